//! Optional indexes on LiteLLM's log that make reads of rows fast.

use sqlx::{Executor, PgConnection};

/// A recommended index, with the read that it speeds up.
#[derive(Clone, Copy, Debug)]
pub struct WantedIndex {
    /// Name of the index. All index names of litespend start with `litespend_`.
    pub name: &'static str,
    /// Statement that creates the index without blocking writers.
    pub create: &'static str,
    /// Statement that drops the index.
    pub drop: &'static str,
    /// Which requests are slow without the index.
    pub reason: &'static str,
    /// `EXPLAIN` statement of the read that uses the index.
    pub read: &'static str,
    /// Table of the read, by its name in a query plan.
    pub table: &'static str,
}

/// All recommended indexes.
pub const WANTED: [WantedIndex; 4] = [
    WantedIndex {
        name: "litespend_spend_logs_api_key",
        create: r#"CREATE INDEX CONCURRENTLY IF NOT EXISTS litespend_spend_logs_api_key ON "LiteLLM_SpendLogs" (api_key, "startTime")"#,
        drop: "DROP INDEX CONCURRENTLY IF EXISTS litespend_spend_logs_api_key",
        reason: "/spend/logs?api_key=... reads the newest rows of one key",
        read: r#"EXPLAIN SELECT * FROM "LiteLLM_SpendLogs" WHERE api_key = 'x' ORDER BY "startTime" DESC LIMIT 10000"#,
        table: "LiteLLM_SpendLogs",
    },
    WantedIndex {
        name: "litespend_spend_logs_user",
        create: r#"CREATE INDEX CONCURRENTLY IF NOT EXISTS litespend_spend_logs_user ON "LiteLLM_SpendLogs" ("user", "startTime")"#,
        drop: "DROP INDEX CONCURRENTLY IF EXISTS litespend_spend_logs_user",
        reason: "/spend/logs?user_id=..., and every read of a user who is not an admin",
        read: r#"EXPLAIN SELECT * FROM "LiteLLM_SpendLogs" WHERE "user" = 'x' ORDER BY "startTime" DESC LIMIT 10000"#,
        table: "LiteLLM_SpendLogs",
    },
    WantedIndex {
        name: "litespend_spend_logs_call_id",
        create: r#"CREATE INDEX CONCURRENTLY IF NOT EXISTS litespend_spend_logs_call_id ON "LiteLLM_SpendLogs" (litellm_call_id)"#,
        drop: "DROP INDEX CONCURRENTLY IF EXISTS litespend_spend_logs_call_id",
        reason: "/spend/logs?request_id=... looks for LiteLLM's id of the call as well",
        read: r#"EXPLAIN SELECT * FROM "LiteLLM_SpendLogs" WHERE litellm_call_id = 'x'"#,
        table: "LiteLLM_SpendLogs",
    },
    WantedIndex {
        name: "litespend_spend_logs_start_time",
        create: r#"CREATE INDEX CONCURRENTLY IF NOT EXISTS litespend_spend_logs_start_time ON "LiteLLM_SpendLogs" ("startTime")"#,
        drop: "DROP INDEX CONCURRENTLY IF EXISTS litespend_spend_logs_start_time",
        reason: "everything that is limited to days",
        read: r#"EXPLAIN SELECT * FROM "LiteLLM_SpendLogs" WHERE "startTime" = '2000-01-01'"#,
        table: "LiteLLM_SpendLogs",
    },
];

/// The current plan step of the index's read, if that read has to scan the whole table. `None` if an index serves the
/// read, or if the table is so small that PostgreSQL would not use one.
pub async fn missing(connection: &mut PgConnection, wanted: &WantedIndex) -> Result<Option<String>, sqlx::Error> {
    let plan: Result<Vec<String>, sqlx::Error> = sqlx::query_scalar(wanted.read).fetch_all(&mut *connection).await;
    let plan = match plan {
        Ok(plan) => plan,
        // 42703 (undefined column): an older LiteLLM lacks the column, so it needs no index on it.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42703") => return Ok(None),
        Err(error) => return Err(error),
    };
    let scan = plan.iter().find(|line| line.contains("Seq Scan on") && line.contains(wanted.table));
    Ok(scan.map(|line| line.trim_start_matches([' ', '-', '>']).to_owned()))
}

/// Creates the index. Does nothing if one with the name exists.
pub async fn create(connection: &mut PgConnection, wanted: &WantedIndex) -> Result<(), sqlx::Error> {
    connection.execute(wanted.create).await.map(|_| ())
}

/// Drops the index. Does nothing if none with the name exists.
pub async fn drop(connection: &mut PgConnection, wanted: &WantedIndex) -> Result<(), sqlx::Error> {
    connection.execute(wanted.drop).await.map(|_| ())
}
