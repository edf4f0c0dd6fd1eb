//! Indexes that make reads of rows fast, on a database that has none of them.

use sqlx::{Executor, PgConnection};

/// An index worth having, with the read that it serves.
#[derive(Clone, Copy, Debug)]
pub struct WantedIndex {
    /// Its name; all of ours begin with `litespend_`.
    pub name: &'static str,
    /// The statement that makes it without blocking writers.
    pub create: &'static str,
    /// The statement that removes it.
    pub drop: &'static str,
    /// What becomes slow without it.
    pub reason: &'static str,
    /// The read, to be explained.
    pub read: &'static str,
    /// Table of the read, as a plan names it.
    pub table: &'static str,
}

/// All of them.
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

/// The plan of a wanted index's read as it is now, where it has to read the whole table; nothing where an index serves
/// it, or the table is so small that none would.
pub async fn missing(connection: &mut PgConnection, wanted: &WantedIndex) -> Result<Option<String>, sqlx::Error> {
    let plan: Result<Vec<String>, sqlx::Error> = sqlx::query_scalar(wanted.read).fetch_all(&mut *connection).await;
    let plan = match plan {
        Ok(plan) => plan,
        // 42703: an older LiteLLM lacks the column, and so needs no index on it.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42703") => return Ok(None),
        Err(error) => return Err(error),
    };
    let scan = plan.iter().find(|line| line.contains("Seq Scan on") && line.contains(wanted.table));
    Ok(scan.map(|line| line.trim_start_matches([' ', '-', '>']).to_owned()))
}

/// Makes one.
pub async fn create(connection: &mut PgConnection, wanted: &WantedIndex) -> Result<(), sqlx::Error> {
    connection.execute(wanted.create).await.map(|_| ())
}

/// Removes one.
pub async fn drop(connection: &mut PgConnection, wanted: &WantedIndex) -> Result<(), sqlx::Error> {
    connection.execute(wanted.drop).await.map(|_| ())
}
