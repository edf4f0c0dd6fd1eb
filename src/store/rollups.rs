//! The rollups in the schema `litespend`: installing them on LiteLLM's database, folding deltas, counting dirty days
//! again, comparing with the log, removing them. The counting itself stands in `migrations/litespend`. Reads are in
//! [`crate::store::rollups::reads`].

pub mod backlog;
pub mod days;
pub mod packed;
pub mod reads;
pub mod segments;
pub mod verify;
pub mod words;

use std::time::Duration;

use chrono::NaiveDate;
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection};

use crate::store::DateRange;
pub use crate::store::rollups::verify::{Difference, verify_day};

/// Deltas folded in one transaction at most; fewer where they have many tags.
pub const BATCH: i32 = 20_000;

/// How often a transaction that another one overtook is begun again.
const ATTEMPTS: u32 = 20;

/// Whether the log that the session's search path leads to is counted, and no other: an expression. The triggers say so,
/// whatever version of the schema there is. `false` where there is no schema.
pub(super) const COUNTED: &str = r#"COALESCE((
    SELECT count(*) = 4 AND bool_and(t.tgrelid = to_regclass('"LiteLLM_SpendLogs"'))
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'litespend' AND p.proname IN ('log_inserted', 'log_deleted', 'log_updated', 'log_truncated')
      AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
      AND t.tgname IN ('litespend_inserted', 'litespend_deleted', 'litespend_updated', 'litespend_truncated')), false)"#;

/// The same of LiteLLM's daily rows.
pub(super) const DAILY_COUNTED: &str = r#"COALESCE((
    SELECT count(*) = 4 AND bool_and(t.tgrelid = to_regclass('"LiteLLM_DailyUserSpend"'))
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'litespend' AND p.proname = 'activity_changed'
      AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
      AND t.tgname IN ('litespend_inserted', 'litespend_deleted', 'litespend_updated', 'litespend_truncated')), false)"#;

/// How often a transaction that another one overtook (40001), or that a deadlock chose (40P01), was begun.
#[derive(Debug, Default)]
pub(super) struct Attempts(u32);

impl Attempts {
    /// Whether to begin again, after a pause that grows.
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

/// Whether the rollups count every change of the log that the search path leads to.
pub async fn attached(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT {COUNTED}"))).fetch_one(connection).await
}

/// The schema whose log is counted, where it is not the one that the session's search path leads to. There is one schema
/// `litespend` in a database, and so one log that is counted.
pub async fn counted_elsewhere(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT r.relnamespace::regnamespace::text
           FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
           JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace JOIN pg_catalog.pg_class r ON r.oid = t.tgrelid
           WHERE n.nspname = 'litespend' AND p.proname LIKE 'log\_%' AND NOT t.tgisinternal
             AND t.tgrelid IS DISTINCT FROM to_regclass('"LiteLLM_SpendLogs"')
           LIMIT 1"#,
    )
    .fetch_optional(connection)
    .await
}

/// Begins to count on a database that has the schema. Waits at most five seconds for the log's lock, so that writers
/// are not held up behind it.
pub async fn attach(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute("SELECT litespend.attach()").await?;
    transaction.commit().await
}

/// Begins to note changes of LiteLLM's daily rows, whose sums are kept as well. Does nothing where it has begun, or where
/// there is no such table. Waits as [`attach`] does.
pub async fn attach_activity(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute("SELECT litespend.attach_activity()").await?;
    transaction.commit().await
}

/// Stops counting and removes the schema `litespend` with everything in it.
pub async fn remove(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    let installed: bool = sqlx::query_scalar("SELECT to_regprocedure('litespend.detach()') IS NOT NULL")
        .fetch_one(&mut *transaction)
        .await?;
    if installed {
        transaction.execute("SELECT litespend.detach()").await?;
    }
    transaction.execute("DROP SCHEMA IF EXISTS litespend CASCADE").await?;
    transaction.commit().await
}

/// Marks days dirty, so that they are counted again; all of them without a range.
pub async fn mark_dirty(connection: &mut PgConnection, range: Option<DateRange>) -> Result<(), sqlx::Error> {
    match range {
        None => {
            sqlx::query("INSERT INTO litespend.deltas (sign, day) VALUES (0, NULL)").execute(&mut *connection).await?
        }
        Some(range) => {
            sqlx::query(
                "INSERT INTO litespend.deltas (sign, day)
                 SELECT 0, day::date FROM generate_series($1::timestamp, $2::timestamp, interval '1 day') AS day",
            )
            .bind(crate::store::midnight(range.start))
            .bind(crate::store::midnight(range.end))
            .execute(&mut *connection)
            .await?
        }
    };
    // So are the sums of daily rows.
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

/// Folds one batch of deltas; returns how many. In turns with other servers; 0 where another one is at it.
pub async fn fold(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    fold_batch(connection, BATCH, Duration::from_secs(crate::store::STATEMENT_TIMEOUT_SECONDS)).await
}

/// As [`fold`], of a batch of any size and within a time of its own; past it, 57014 and nothing is folded.
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

/// Whether more deltas wait than come in a moment.
pub async fn many_wait(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) = 1000 FROM (SELECT FROM litespend.deltas WHERE sign <> 0 LIMIT 1000) AS first")
        .fetch_one(connection)
        .await
}

/// Limits the statements of the open transaction in time.
async fn limit_statements(connection: &mut PgConnection, limit: Duration) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT set_config('statement_timeout', $1, true)")
        .bind(format!("{}ms", limit.as_millis().max(1)))
        .execute(connection)
        .await?;
    Ok(())
}

/// Counts one dirty day again; returns which, or nothing where no day is dirty or another server is at work.
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
    // A day of a large log takes longer than a request may.
    transaction.execute("SET LOCAL statement_timeout = '30min'").await?;
    let day = sqlx::query_scalar("SELECT litespend.recount()").fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(day)
}

/// The rollup of months of usage.
pub const MONTHS: &str = "usage_month";

/// What is summed of LiteLLM's daily rows.
pub const DAILY_ROWS: &str = "activity";

/// What is packed or summed, day by day or month by month.
pub const PACKED: [&str; 4] = ["usage", "customer", MONTHS, DAILY_ROWS];

/// Packs one day that waits for it, of the days before `before` that are not among `but`, whether it is due or not.
/// Returns which, or nothing where none is left or another server is at work.
pub async fn pack(
    connection: &mut PgConnection,
    rollup: &'static str,
    before: NaiveDate,
    but: &[NaiveDate],
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, rollup, before, Some(but)).await
}

/// Packs one month of usage that ended before `before` and is not among `but`; returns its first day.
pub async fn pack_month(
    connection: &mut PgConnection,
    before: NaiveDate,
    but: &[NaiveDate],
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, MONTHS, before, Some(but)).await
}

/// Sums one quiet day of LiteLLM's daily rows, of the days before `before` that are not among `but`; voids sums that
/// changes have overtaken. Returns which, or nothing where none is left or another server is at work.
pub async fn sum_activity(
    connection: &mut PgConnection,
    before: NaiveDate,
    but: &[NaiveDate],
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, DAILY_ROWS, before, Some(but)).await
}

/// Packs, or sums, the newest day or month of one of [`PACKED`] that is due. One that was changed soon after it was packed
/// is not due for some minutes.
pub async fn pack_due(
    connection: &mut PgConnection,
    rollup: &'static str,
    before: NaiveDate,
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, rollup, before, None).await
}

/// As [`pack_due`], whether it is due or not.
pub async fn pack_any(
    connection: &mut PgConnection,
    rollup: &'static str,
    before: NaiveDate,
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, rollup, before, Some(&[])).await
}

async fn pack_one(
    connection: &mut PgConnection,
    rollup: &'static str,
    before: NaiveDate,
    but: Option<&[NaiveDate]>,
) -> Result<Option<NaiveDate>, sqlx::Error> {
    let but: Option<Vec<String>> = but.map(|but| but.iter().map(NaiveDate::to_string).collect());
    let statement = match rollup {
        MONTHS => "SELECT litespend.pack_month($2::date, $3::text[]::date[])::text WHERE $1 <> ''",
        DAILY_ROWS => "SELECT litespend.sum_activity($2::date::text, $3::text[]) WHERE $1 <> ''",
        _ => "SELECT litespend.pack($1, $2::date, $3::text[]::date[])::text",
    };
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL statement_timeout = '10min'").await?;
    let day: Option<String> =
        sqlx::query_scalar(statement).bind(rollup).bind(before).bind(but).fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(day.and_then(|day| day.parse().ok()))
}

/// Whether days and months can be packed and summed here: the rollups of an older version have no queues.
pub async fn can_pack(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass('litespend.activity_to_sum') IS NOT NULL").fetch_one(connection).await
}

/// Gives back the space of folded deltas, so that reads find a short table.
pub async fn vacuum(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute("VACUUM litespend.deltas").await?;
    Ok(())
}

/// How far the rollups are.
#[derive(Clone, Debug, FromRow)]
pub struct Status {
    /// Deltas not yet folded.
    pub pending: i64,
    /// Days still to be counted from the log.
    pub dirty_days: i64,
    /// Whether every day is dirty.
    pub all_dirty: bool,
    /// Days counted.
    pub days: i64,
    /// First day counted.
    pub first_day: Option<NaiveDate>,
    /// Last day counted.
    pub last_day: Option<NaiveDate>,
    /// Size of the schema on disk, bytes.
    pub bytes: i64,
}

/// How far the rollups are.
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

/// The first and last day of the log.
pub async fn log_span(connection: &mut PgConnection) -> Result<Option<DateRange>, sqlx::Error> {
    let (start, end): (Option<NaiveDate>, Option<NaiveDate>) =
        sqlx::query_as(r#"SELECT min("startTime")::date, max("startTime")::date FROM "LiteLLM_SpendLogs""#)
            .fetch_one(connection)
            .await?;
    Ok(start.zip(end).map(|(start, end)| DateRange { start, end }))
}
