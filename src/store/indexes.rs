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
/// cannot create an index concurrently, so there is an index for each partition, which is then attached to the log's.
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
    for partition in unindexed_partitions(connection, name).await? {
        let Partition { relation, index, invalid, partitioned } = partition;
        if invalid {
            statements.push(format!("DROP INDEX CONCURRENTLY {index}"));
        }
        // A partition that has partitions itself: its index is built with its writers waiting.
        let concurrently = if partitioned { "" } else { "CONCURRENTLY " };
        statements.push(format!("CREATE INDEX {concurrently}IF NOT EXISTS {index} ON {relation} ({columns})"));
        statements.push(format!("ALTER INDEX {name} ATTACH PARTITION {index}"));
    }
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
    // The indexes of partitions that are not attached yet, after an interrupted installation.
    let rest: Vec<String> = sqlx::query_scalar(
        "SELECT c.oid::regclass::text FROM pg_class c
         WHERE c.relkind IN ('i', 'I') AND NOT c.relispartition AND c.relname ~ ('^' || $1 || '_[0-9]+$')
           AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('\"LiteLLM_SpendLogs\"'))",
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

/// A partition of the log without its part of an index.
#[derive(FromRow)]
struct Partition {
    /// Its name, as SQL.
    relation: String,
    /// Name of the index to create, as SQL without the schema.
    index: String,
    /// Whether an index with this name exists and is invalid.
    invalid: bool,
    /// Whether the partition has partitions itself.
    partitioned: bool,
}

async fn unindexed_partitions(connection: &mut PgConnection, name: &str) -> Result<Vec<Partition>, sqlx::Error> {
    sqlx::query_as(
        r#"SELECT c.oid::regclass::text AS relation, $1 || '_' || c.oid AS index, c.relkind = 'p' AS partitioned,
                  EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass($1 || '_' || c.oid)
                                                 AND NOT indisvalid AND c.relkind <> 'p') AS invalid
           FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = to_regclass('"LiteLLM_SpendLogs"') AND c.relkind IN ('r', 'p')
             AND NOT EXISTS (SELECT FROM pg_inherits part JOIN pg_index x ON x.indexrelid = part.inhrelid
                             WHERE part.inhparent = to_regclass($1) AND x.indrelid = c.oid)
           ORDER BY c.oid"#,
    )
    .bind(name)
    .fetch_all(connection)
    .await
}
