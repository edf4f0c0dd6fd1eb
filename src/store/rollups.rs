//! The rollups in the schema `litespend`: installs them on LiteLLM's database, folds deltas, recounts dirty days,
//! compares them with the log, and removes them.
//!
//! Triggers append every change of the log to `litespend.deltas`. A fold adds deltas to the day tables and deletes
//! them. A day is dirty if its sums cannot be trusted; a recount rebuilds them from the log. The SQL functions that do
//! this are in `migrations/litespend`. Reads are in [`crate::store::rollups::reads`].

pub mod backlog;
pub mod copied;
mod counted;
pub mod days;
pub mod dictionary;
mod installing;
pub mod packed;
mod packing;
pub mod partitions;
pub mod reads;
pub mod segments;
pub mod verify;

pub(super) use crate::store::rollups::counted::{COUNTED, DAILY_COUNTED};
pub use crate::store::rollups::counted::{Lost, attached, counted_elsewhere, installed_elsewhere, lost};
pub use crate::store::rollups::installing::{attach, attach_activity, remember, remove};
pub use crate::store::rollups::packing::{
    DAILY_ROWS, MONTHS, PACKED, can_pack, pack, pack_any, pack_due, pack_month, sum_activity,
};
pub use crate::store::rollups::verify::{Difference, verify_day};

use std::time::Duration;

use chrono::NaiveDate;
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection};

use crate::store::DateRange;
use crate::store::books;

/// Maximum number of deltas folded in one transaction. A batch is smaller if its deltas have many tags or long strings.
pub const BATCH: i32 = 20_000;

/// Maximum number of retries after a serialization failure or a deadlock.
const ATTEMPTS: u32 = 20;

/// Number of retries so far after a serialization failure (40001) or a deadlock (40P01).
#[derive(Debug, Default)]
pub(super) struct Attempts(u32);

impl Attempts {
    /// Returns `None` if the caller should retry, after a pause that grows by 10 ms with each retry. Returns the result
    /// or the error otherwise.
    pub(super) async fn again<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<Option<T>, sqlx::Error> {
        match result {
            Err(sqlx::Error::Database(error))
                if self.0 < ATTEMPTS && matches!(error.code().as_deref(), Some("40001" | "40P01")) =>
            {
                self.0 += 1;
                tokio::time::sleep(Duration::from_millis(u64::from(self.0) * 10)).await;
                Ok(None)
            }
            result => result.map(Some),
        }
    }
}

/// Whether the role of the session may read the sums of the rollups, if there are any. What was ever logged, what is expected,
/// and the IDs of booked records are not among them.
pub async fn are_readable(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT COALESCE(bool_and(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')), true)
         FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname = 'litespend' AND c.relkind IN ('r', 'p')
           AND c.relname <> ALL (ARRAY['secrets', 'migrations', 'litellm_migrations'])
           AND c.relname !~ '^(lifetime|expected|booked)_'",
    )
    .fetch_one(connection)
    .await
}

/// Marks the days of the range dirty, so that they are recounted, except closed days. Without a range, marks every day.
pub async fn mark_dirty(connection: &mut PgConnection, range: Option<DateRange>) -> Result<(), sqlx::Error> {
    match range {
        None => {
            sqlx::query("INSERT INTO litespend.deltas (sign, day) VALUES (0, NULL)").execute(&mut *connection).await?
        }
        Some(range) => {
            let closed: Vec<NaiveDate> = if books::is_possible(connection).await? {
                let days = books::closed_days(connection, Some(range)).await?;
                days.into_iter().map(|closed| closed.day).collect()
            } else {
                Vec::new()
            };
            sqlx::query(
                "INSERT INTO litespend.deltas (sign, day)
                 SELECT 0, day::date FROM generate_series($1::timestamp, $2::timestamp, interval '1 day') AS day
                 WHERE day::date <> ALL ($3)",
            )
            .bind(crate::store::midnight(range.start))
            .bind(crate::store::midnight(range.end))
            .bind(closed)
            .execute(&mut *connection)
            .await?
        }
    };
    // Also invalidates the sums of LiteLLM's daily rows.
    let summed: bool = sqlx::query_scalar("SELECT to_regclass('litespend.activity_changes') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if summed {
        sqlx::query(
            "INSERT INTO litespend.activity_changes
             SELECT NULL WHERE $1::date IS NULL
             UNION ALL SELECT date FROM litespend.activity_days WHERE date BETWEEN $1::text AND $2::text",
        )
        .bind(range.map(|range| range.start))
        .bind(range.map(|range| range.end))
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Folds one batch of deltas and returns how many it folded. Only one server folds at a time: the result is 0 if
/// another server holds the lock.
pub async fn fold(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    fold_batch(connection, BATCH, Duration::from_secs(crate::store::STATEMENT_TIMEOUT_SECONDS)).await
}

/// Like [`fold`], with a given batch size and time limit. If the limit passes, the error is 57014 and nothing is
/// folded.
pub async fn fold_batch(connection: &mut PgConnection, batch: i32, limit: Duration) -> Result<i64, sqlx::Error> {
    let mut attempts = Attempts::default();
    loop {
        let result = fold_once(connection, batch, limit).await;
        if let Some(folded) = attempts.again(result).await? {
            return Ok(folded);
        }
    }
}

async fn fold_once(connection: &mut PgConnection, batch: i32, limit: Duration) -> Result<i64, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    limit_statements(&mut transaction, limit).await?;
    let folded = sqlx::query_scalar("SELECT litespend.fold($1)").bind(batch).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(folded)
}

/// Whether at least 1,000 unfolded deltas are waiting, which is more than arrive in a moment.
pub async fn many_wait(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) = 1000 FROM (SELECT FROM litespend.deltas WHERE sign <> 0 LIMIT 1000) AS first")
        .fetch_one(connection)
        .await
}

/// Sets the statement timeout of the open transaction.
async fn limit_statements(connection: &mut PgConnection, limit: Duration) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT set_config('statement_timeout', $1, true)")
        .bind(format!("{}ms", limit.as_millis().max(1)))
        .execute(connection)
        .await?;
    Ok(())
}

/// Recounts the newest dirty day and returns it. Returns `None` if no day is dirty, no log is counted, or another
/// server holds the lock.
pub async fn recount(connection: &mut PgConnection) -> Result<Option<NaiveDate>, sqlx::Error> {
    let mut attempts = Attempts::default();
    loop {
        let result = recount_once(connection).await;
        if let Some(day) = attempts.again(result).await? {
            return Ok(day);
        }
    }
}

async fn recount_once(connection: &mut PgConnection) -> Result<Option<NaiveDate>, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    // Recounting a day of a large log takes longer than the statement timeout of a request.
    transaction.execute("SET LOCAL statement_timeout = '30min'").await?;
    let day = sqlx::query_scalar("SELECT litespend.recount()").fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(day)
}

/// What can be done with the rollups of a database. Those of an older version lack some.
#[derive(Clone, Copy, Debug, FromRow)]
pub struct Abilities {
    /// Whether days and months can be packed and summed.
    pub can_pack: bool,
    /// Whether the log has partitions, or had, that can be followed.
    pub can_follow: bool,
}

/// What can be done with the rollups of this database.
pub async fn abilities(connection: &mut PgConnection) -> Result<Abilities, sqlx::Error> {
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT to_regclass('litespend.activity_to_sum') IS NOT NULL AS can_pack,
                COALESCE({}, false) AS can_follow",
        partitions::COMPARABLE
    )))
    .fetch_one(connection)
    .await
}

/// Vacuums `litespend.deltas` after folds, so that reads scan a short table.
pub async fn vacuum(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute("VACUUM litespend.deltas").await?;
    Ok(())
}

/// State of the rollups: how much is counted, and how much is waiting.
#[derive(Clone, Debug, FromRow)]
pub struct Status {
    /// Number of deltas that are not folded yet.
    pub pending: i64,
    /// Number of dirty days.
    pub dirty_days: i64,
    /// Whether every day is dirty.
    pub all_dirty: bool,
    /// Number of days with usage in the day tables.
    pub days: i64,
    /// First day with usage in the day tables.
    pub first_day: Option<NaiveDate>,
    /// Last day with usage in the day tables.
    pub last_day: Option<NaiveDate>,
    /// Size of the schema's tables on disk, with their indexes, in bytes.
    pub bytes: i64,
}

/// State of the rollups: how much is counted, and how much is waiting.
pub async fn status(connection: &mut PgConnection) -> Result<Status, sqlx::Error> {
    sqlx::query_as(
        "SELECT count(*) FILTER (WHERE sign <> 0) AS pending,
                count(DISTINCT day) FILTER (WHERE sign = 0) AS dirty_days,
                COALESCE(bool_or(sign = 0 AND day IS NULL), false) AS all_dirty,
                (SELECT count(DISTINCT day) FROM litespend.day_usage) AS days,
                (SELECT min(day) FROM litespend.day_usage) AS first_day,
                (SELECT max(day) FROM litespend.day_usage) AS last_day,
                (SELECT COALESCE(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
                 WHERE relnamespace = 'litespend'::regnamespace AND relkind = 'r') AS bytes
         FROM litespend.deltas",
    )
    .fetch_one(connection)
    .await
}

/// The first and the last day of the log; `None` if the log is empty.
pub async fn log_span(connection: &mut PgConnection) -> Result<Option<DateRange>, sqlx::Error> {
    let (start, end): (Option<NaiveDate>, Option<NaiveDate>) =
        sqlx::query_as(r#"SELECT min("startTime")::date, max("startTime")::date FROM "LiteLLM_SpendLogs""#)
            .fetch_one(connection)
            .await?;
    Ok(start.zip(end).map(|(start, end)| DateRange { start, end }))
}
