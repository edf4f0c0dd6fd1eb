//! Optional indexes on LiteLLM's log that make reads of rows fast.

use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection};

/// A recommended index, with the read that it speeds up.
#[derive(Clone, Copy, Debug)]
pub struct WantedIndex {
    /// Name of the index. All index names of litespend start with `litespend_`.
    pub name: &'static str,
    /// Columns of the index, as SQL.
    columns: &'static str,
    /// Which requests are slow without the index.
    pub reason: &'static str,
    /// `EXPLAIN` statement of the read that uses the index.
    read: &'static str,
}

/// All recommended indexes.
pub const WANTED: [WantedIndex; 4] = [
    WantedIndex {
        name: "litespend_spend_logs_api_key",
        columns: r#"api_key, "startTime""#,
        reason: "/spend/logs?api_key=... reads the newest rows of one key",
        read: r#"EXPLAIN SELECT * FROM "LiteLLM_SpendLogs" WHERE api_key = 'x' ORDER BY "startTime" DESC LIMIT 10000"#,
    },
    WantedIndex {
        name: "litespend_spend_logs_user",
        columns: r#""user", "startTime""#,
        reason: "/spend/logs?user_id=..., and every read of a user who is not an admin",
        read: r#"EXPLAIN SELECT * FROM "LiteLLM_SpendLogs" WHERE "user" = 'x' ORDER BY "startTime" DESC LIMIT 10000"#,
    },
    WantedIndex {
        name: "litespend_spend_logs_call_id",
        columns: "litellm_call_id",
        reason: "/spend/logs?request_id=... looks for LiteLLM's id of the call as well",
        read: r#"EXPLAIN SELECT * FROM "LiteLLM_SpendLogs" WHERE litellm_call_id = 'x'"#,
    },
    WantedIndex {
        name: "litespend_spend_logs_start_time",
        columns: r#""startTime""#,
        reason: "everything that is limited to days",
        read: r#"EXPLAIN SELECT * FROM "LiteLLM_SpendLogs" WHERE "startTime" = '2000-01-01'"#,
    },
];

/// The current plan step of the index's read, if that read has to scan a whole table. `None` if an index serves the
/// read, or if the table is so small that PostgreSQL would not use one.
pub async fn missing(connection: &mut PgConnection, wanted: &WantedIndex) -> Result<Option<String>, sqlx::Error> {
    let plan: Result<Vec<String>, sqlx::Error> = sqlx::query_scalar(wanted.read).fetch_all(&mut *connection).await;
    let plan = match plan {
        Ok(plan) => plan,
        // 42703 (undefined column): an older LiteLLM lacks the column, so it needs no index on it.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42703") => return Ok(None),
        Err(error) => return Err(error),
    };
    // A small partition is scanned even if it has the index.
    if is_partitioned(connection).await? && is_valid(connection, wanted.name).await? {
        return Ok(None);
    }
    // A partition is scanned under its own name.
    let scan = plan.iter().find(|line| line.contains("Seq Scan on"));
    Ok(scan.map(|line| line.trim_start_matches([' ', '-', '>']).to_owned()))
}

/// The statements that create the index without blocking writers. Empty if it exists. On a partitioned log, PostgreSQL
/// cannot create an index concurrently. So each partition that has rows gets an index of its own, which is then attached to
/// that of the table above; the indexes of tables that are partitioned themselves are only made of such parts.
pub async fn creation(connection: &mut PgConnection, wanted: &WantedIndex) -> Result<Vec<String>, sqlx::Error> {
    let WantedIndex { name, columns, .. } = wanted;
    if !is_partitioned(connection).await? {
        let mut statements = Vec::new();
        if is_invalid(connection, name).await? {
            statements.push(format!("DROP INDEX CONCURRENTLY {name}"));
        }
        statements
            .push(format!(r#"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON "LiteLLM_SpendLogs" ({columns})"#));
        return Ok(statements);
    }
    let mut statements = vec![format!(r#"CREATE INDEX IF NOT EXISTS {name} ON ONLY "LiteLLM_SpendLogs" ({columns})"#)];
    // An index is complete when its last part is attached, so the parts of the lowest level come first.
    let mut attachments = Vec::new();
    for partition in partitions(connection, name).await? {
        let Partition { relation, name, index, above, exists, invalid, attached, partitioned } = partition;
        if attached {
            continue;
        }
        if partitioned {
            if !exists {
                statements.push(format!("CREATE INDEX IF NOT EXISTS {name} ON ONLY {relation} ({columns})"));
            }
            attachments.push(format!("ALTER INDEX {above} ATTACH PARTITION {index}"));
            continue;
        }
        if invalid {
            statements.push(format!("DROP INDEX CONCURRENTLY {index}"));
        }
        statements.push(format!("CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {relation} ({columns})"));
        statements.push(format!("ALTER INDEX {above} ATTACH PARTITION {index}"));
    }
    statements.extend(attachments.into_iter().rev());
    Ok(statements)
}

/// Runs one of the statements of [`creation`]. A statement waits at most five seconds for a lock on the log.
pub async fn run(connection: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
    connection.execute("SET lock_timeout = '5s'").await?;
    connection.execute(AssertSqlSafe(statement)).await?;
    connection.execute("RESET lock_timeout").await.map(|_| ())
}

/// Drops the index. Does nothing if none with the name exists.
pub async fn drop(connection: &mut PgConnection, wanted: &WantedIndex) -> Result<(), sqlx::Error> {
    let name = wanted.name;
    if !is_partitioned(connection).await? {
        return connection
            .execute(AssertSqlSafe(format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")))
            .await
            .map(|_| ());
    }
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    // The indexes of partitions that are not attached yet, after an interrupted installation, and those of partitions that
    // were detached and stayed beside the log.
    let rest: Vec<String> = sqlx::query_scalar(
        r#"WITH RECURSIVE tree (relation) AS (
               SELECT to_regclass('"LiteLLM_SpendLogs"')::oid
               UNION ALL
               SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.relation)
           SELECT c.oid::regclass::text FROM pg_class c JOIN pg_index x ON x.indexrelid = c.oid
           WHERE NOT c.relispartition AND c.relname ~ ('^' || $1 || '_[0-9]+$')
             AND (x.indrelid IN (SELECT tree.relation FROM tree)
                  OR c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('"LiteLLM_SpendLogs"')))"#,
    )
    .bind(name)
    .fetch_all(&mut *transaction)
    .await?;
    for index in rest.iter().map(String::as_str).chain([name]) {
        transaction.execute(AssertSqlSafe(format!("DROP INDEX IF EXISTS {index}"))).await?;
    }
    transaction.commit().await
}

async fn is_partitioned(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('"LiteLLM_SpendLogs"') AND relkind = 'p')"#,
    )
    .fetch_one(connection)
    .await
}

/// Whether a complete index has this name. That of a partitioned log is complete once every partition has its own.
async fn is_valid(connection: &mut PgConnection, name: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass($1) AND indisvalid)")
        .bind(name)
        .fetch_one(connection)
        .await
}

/// Whether an index with this name was left invalid by an interrupted `CREATE INDEX CONCURRENTLY`.
async fn is_invalid(connection: &mut PgConnection, name: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid)")
        .bind(name)
        .fetch_one(connection)
        .await
}

/// A partition of the log, at any level, and its part of an index.
#[derive(FromRow)]
struct Partition {
    /// Its name, as SQL.
    relation: String,
    /// Name of the index to create, as SQL without the schema.
    name: String,
    /// The index, as SQL: the one that is attached, or else the one to create.
    index: String,
    /// The index of the table above, as SQL.
    above: String,
    /// Whether the index exists.
    exists: bool,
    /// Whether the index exists and is not complete.
    invalid: bool,
    /// Whether the index is attached to that of the table above.
    attached: bool,
    /// Whether the partition has partitions itself.
    partitioned: bool,
}

/// The partitions of the log, from the top level down.
async fn partitions(connection: &mut PgConnection, name: &str) -> Result<Vec<Partition>, sqlx::Error> {
    sqlx::query_as(
        r#"WITH RECURSIVE tree AS (
               SELECT to_regclass('"LiteLLM_SpendLogs"')::oid AS relation, 0 AS level, $1 AS index, '' AS above,
                      to_regclass($1)::oid AS index_oid, false AS attached
               UNION ALL
               SELECT c.oid, tree.level + 1,
                      COALESCE(part.oid::regclass::text, format('%I.%I', n.nspname, $1 || '_' || c.oid))
                          COLLATE "default",
                      tree.index,
                      COALESCE(part.oid, to_regclass(format('%I.%I', n.nspname, $1 || '_' || c.oid))::oid),
                      part.oid IS NOT NULL
               FROM tree JOIN pg_inherits i ON i.inhparent = tree.relation JOIN pg_class c ON c.oid = i.inhrelid
               JOIN pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN LATERAL (
                   SELECT x.indexrelid AS oid FROM pg_inherits parts JOIN pg_index x ON x.indexrelid = parts.inhrelid
                   WHERE parts.inhparent = tree.index_oid AND x.indrelid = c.oid) AS part ON true
               WHERE c.relkind IN ('r', 'p'))
           SELECT relation::regclass::text AS relation, $1 || '_' || relation AS name, index, above, attached,
                  index_oid IS NOT NULL AS exists, COALESCE(NOT x.indisvalid, false) AS invalid,
                  c.relkind = 'p' AS partitioned
           FROM tree JOIN pg_class c ON c.oid = relation LEFT JOIN pg_index x ON x.indexrelid = index_oid
           WHERE level > 0 ORDER BY level, relation"#,
    )
    .bind(name)
    .fetch_all(connection)
    .await
}
