//! The rollups in the schema `litespend`: installs them on LiteLLM's database, folds deltas, recounts dirty days,
//! compares them with the log, and removes them.
//!
//! Triggers append every change of the log to `litespend.deltas`. A fold adds deltas to the day tables and deletes
//! them. A day is dirty if its sums cannot be trusted; a recount rebuilds them from the log. The SQL functions that do
//! this are in `migrations/litespend`. Reads are in [`crate::store::rollups::reads`].

pub mod backlog;
pub mod days;
pub mod dictionary;
pub mod packed;
pub mod partitions;
pub mod reads;
pub mod segments;
pub mod verify;

use std::fmt;
use std::time::Duration;

use chrono::NaiveDate;
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection};

use crate::store::DateRange;
use crate::store::books;
pub use crate::store::rollups::verify::{Difference, verify_day};

/// Maximum number of deltas folded in one transaction. A batch is smaller if its deltas have many tags or long strings.
pub const BATCH: i32 = 20_000;

/// Maximum number of retries after a serialization failure or a deadlock.
const ATTEMPTS: u32 = 20;

/// SQL expression: true if the log in the session's search path has the triggers of the rollups, and no log of another
/// schema has any. A log is a table with LiteLLM's name that is no partition; the triggers of other tables, in whichever
/// schema, do not matter here. It checks the triggers, so it works for every version of the schema. It is `false` if the
/// schema does not exist.
pub(super) const COUNTED: &str = r#"(
    SELECT count(*) FILTER (WHERE t.tgrelid = log.oid) = 4
       AND NOT COALESCE(bool_or(c.relname = 'LiteLLM_SpendLogs' AND NOT c.relispartition AND c.oid <> log.oid), false)
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
    LEFT JOIN pg_catalog.pg_class log ON log.oid = to_regclass('"LiteLLM_SpendLogs"')
    WHERE n.nspname = 'litespend' AND p.proname IN ('log_inserted', 'log_deleted', 'log_updated', 'log_truncated')
      AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
      AND t.tgname IN ('litespend_inserted', 'litespend_deleted', 'litespend_updated', 'litespend_truncated'))"#;

/// SQL expression: the same check for LiteLLM's table of daily rows, `LiteLLM_DailyUserSpend`.
pub(super) const DAILY_COUNTED: &str = r#"COALESCE((
    SELECT count(*) = 4 AND bool_and(t.tgrelid = to_regclass('"LiteLLM_DailyUserSpend"'))
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'litespend' AND p.proname = 'activity_changed'
      AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
      AND t.tgname IN ('litespend_inserted', 'litespend_deleted', 'litespend_updated', 'litespend_truncated')), false)"#;

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

/// Whether the log in the search path has the triggers of the rollups. If it is partitioned, see also
/// [`partitions::are_counted`].
pub async fn attached(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT {COUNTED}"))).fetch_one(connection).await
}

/// The schema whose log is counted, if it is not the log in the session's search path. A database has one schema
/// `litespend`, so only one log in it is counted. Partitions and former logs in other schemas do not matter.
pub async fn counted_elsewhere(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT r.relnamespace::regnamespace::text
           FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
           JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace JOIN pg_catalog.pg_class r ON r.oid = t.tgrelid
           WHERE n.nspname = 'litespend' AND p.proname LIKE 'log\_%' AND NOT t.tgisinternal
             AND r.relname = 'LiteLLM_SpendLogs' AND NOT r.relispartition
             AND r.oid IS DISTINCT FROM to_regclass('"LiteLLM_SpendLogs"')
           LIMIT 1"#,
    )
    .fetch_optional(connection)
    .await
}

/// The schema that has the rollups, if it is not the schema in the session's search path: the one whose log is counted,
/// or whose log was counted until it was renamed.
pub async fn installed_elsewhere(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let counted = counted_elsewhere(connection).await?;
    if counted.is_some() || attached(connection).await? {
        return Ok(counted);
    }
    let owner = owner(connection).await?;
    Ok(owner.filter(|owner| !owner.is_own).map(|owner| owner.schema))
}

/// Rollups that were installed and not removed, although the log does not have their triggers: it was renamed, and a new
/// one took its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The table that has the triggers, as SQL. `None` if it was dropped, or is a partition by now.
    pub table: Option<String>,
}

impl fmt::Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.table {
            Some(table) => write!(formatter, "the rollups count {table}, which is not the log any more"),
            None => formatter.write_str("the rollups are installed, but the log does not have their triggers any more"),
        }
    }
}

/// Whether the rollups counted the log of this schema, but do not count it any more. This stays so until they are
/// installed again or removed. `None` if they count a log, or were never installed.
pub async fn lost(connection: &mut PgConnection) -> Result<Option<Lost>, sqlx::Error> {
    if attached(connection).await? || counted_elsewhere(connection).await?.is_some() {
        return Ok(None);
    }
    if !owner(connection).await?.is_some_and(|owner| owner.is_own) {
        return Ok(None);
    }
    let table = sqlx::query_scalar(
        "SELECT r.oid::regclass::text
         FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
         JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace JOIN pg_catalog.pg_class r ON r.oid = t.tgrelid
         WHERE n.nspname = 'litespend' AND p.proname = 'log_inserted' AND NOT t.tgisinternal
           AND NOT r.relispartition AND r.relname <> 'LiteLLM_SpendLogs'
         ORDER BY r.oid LIMIT 1",
    )
    .fetch_optional(connection)
    .await?;
    Ok(Some(Lost { table }))
}

/// A log, of whichever schema.
#[derive(Clone, Debug, FromRow)]
struct Log {
    schema: String,
    /// Whether it is the log in the session's search path.
    is_own: bool,
    /// Whether a table beside it has triggers of the rollups, but is no log: a log that was renamed, for example.
    is_beside_counted: bool,
}

/// The log for which the rollups were installed. `None` if they were never installed, or if they do not say for which of
/// several logs.
async fn owner(connection: &mut PgConnection) -> Result<Option<Log>, sqlx::Error> {
    let logs: Vec<Log> = sqlx::query_as(
        r#"SELECT log.relnamespace::regnamespace::text AS schema,
                  COALESCE(log.oid = to_regclass('"LiteLLM_SpendLogs"'), false) AS is_own,
                  EXISTS (
                      SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
                      JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                      JOIN pg_catalog.pg_class r ON r.oid = t.tgrelid
                      WHERE n.nspname = 'litespend' AND p.proname = 'log_inserted' AND NOT t.tgisinternal
                        AND r.oid <> log.oid AND r.relnamespace = log.relnamespace) AS is_beside_counted
           FROM pg_catalog.pg_class AS log
           WHERE log.relname = 'LiteLLM_SpendLogs' AND log.relkind IN ('r', 'p') AND NOT log.relispartition
           ORDER BY log.oid = to_regclass('"LiteLLM_SpendLogs"') DESC NULLS LAST, log.oid"#,
    )
    .fetch_all(&mut *connection)
    .await?;
    let memory = memory(connection).await?;
    let remembered = memory.as_ref().and_then(|memory| memory.schema.as_deref());
    let found = logs
        .iter()
        .find(|log| Some(log.schema.as_str()) == remembered)
        .or_else(|| logs.iter().find(|log| log.is_beside_counted))
        .or_else(|| logs.first().filter(|_| memory.is_some() && logs.len() == 1));
    Ok(found.cloned())
}

/// What the schema `litespend` says about a log that it counts or counted.
#[derive(Clone, Debug, FromRow)]
struct Memory {
    /// The schema of the log; `None` if an earlier version installed the rollups.
    schema: Option<String>,
}

/// `None` if no log was ever counted, or if this role cannot read it.
async fn memory(connection: &mut PgConnection) -> Result<Option<Memory>, sqlx::Error> {
    let is_readable: bool = sqlx::query_scalar(
        "SELECT count(*) = 3
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'litespend' AND c.relname IN ('settings', 'turn', 'deltas')
           AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !is_readable {
        return Ok(None);
    }
    // To install the rollups leaves a delta, and to count it is a turn.
    sqlx::query_as(
        "SELECT (SELECT value ->> 'schema' FROM litespend.settings WHERE name = 'rollups') AS schema
         FROM litespend.turn
         WHERE CASE WHEN taken > 0 THEN true ELSE EXISTS (SELECT FROM litespend.deltas) END
         LIMIT 1",
    )
    .fetch_optional(connection)
    .await
}

/// Starts counting in a database that has the schema `litespend`. Takes the triggers from tables that are neither a log
/// that is counted nor a partition of it. Waits at most five seconds for each lock, because writers queue behind the
/// waiting lock request.
pub async fn attach(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    partitions::drop_stray_triggers(&mut transaction).await?;
    transaction.execute("SELECT litespend.attach()").await?;
    // Every day is to be counted anyway.
    partitions::forget_wrong_days(&mut transaction).await?;
    remember(&mut transaction).await?;
    transaction.commit().await
}

/// Remembers that the rollups were installed for the schema of the log, so that it is noticed if they do not count the
/// log any more. `attach` does this, too.
pub async fn remember(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        r#"INSERT INTO litespend.settings (name, value)
           SELECT 'rollups', jsonb_build_object('schema', relnamespace::regnamespace::text)
           FROM pg_catalog.pg_class WHERE oid = to_regclass('"LiteLLM_SpendLogs"')
           ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value WHERE settings.value <> EXCLUDED.value"#,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Starts recording changes of LiteLLM's daily rows, whose sums are also kept. Does nothing if that has already
/// started, or if the table does not exist. The lock timeout is that of [`attach`].
pub async fn attach_activity(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute("SELECT litespend.attach_activity()").await?;
    transaction.commit().await
}

/// Stops counting, and drops the schema `litespend` with everything in it. Waits at most five seconds for each lock.
pub async fn remove(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    let installed: bool = sqlx::query_scalar("SELECT to_regprocedure('litespend.detach()') IS NOT NULL")
        .fetch_one(&mut *transaction)
        .await?;
    if installed {
        // A server that folds or counts meanwhile locks the same tables in another order.
        transaction.execute("SELECT pg_advisory_xact_lock(7811884301)").await?;
        transaction.execute("SELECT litespend.detach()").await?;
    }
    transaction.execute("DROP SCHEMA IF EXISTS litespend CASCADE").await?;
    transaction.commit().await
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

/// Name of the rollup of usage by month.
pub const MONTHS: &str = "usage_month";

/// Name of the sums of LiteLLM's daily rows.
pub const DAILY_ROWS: &str = "activity";

/// The rollups that are packed or summed by day or by month.
pub const PACKED: [&str; 4] = ["usage", "customer", MONTHS, DAILY_ROWS];

/// Packs the newest queued day before `before` that is not in `but`, whether or not it is due. Returns the day. Returns
/// `None` if no such day is queued, or if another server holds the lock.
pub async fn pack(
    connection: &mut PgConnection,
    rollup: &'static str,
    before: NaiveDate,
    but: &[NaiveDate],
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, rollup, before, Some(but)).await
}

/// Packs the newest queued month of usage that ended before `before` and is not in `but`, whether or not it is due.
/// Returns the first day of the month. Returns `None` if no such month is queued, or if another server holds the lock.
pub async fn pack_month(
    connection: &mut PgConnection,
    before: NaiveDate,
    but: &[NaiveDate],
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, MONTHS, before, Some(but)).await
}

/// First deletes the sums of days whose daily rows have changed since. Then sums the newest queued day of LiteLLM's
/// daily rows that is before `before` and not in `but`, and returns it. Returns `None` if no such day is queued, or if
/// another server holds the lock.
pub async fn sum_activity(
    connection: &mut PgConnection,
    before: NaiveDate,
    but: &[NaiveDate],
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, DAILY_ROWS, before, Some(but)).await
}

/// Packs or sums the newest due day or month of one of [`PACKED`], and returns it. If a change discards a packed or
/// summed day, that day becomes due again five minutes later.
pub async fn pack_due(
    connection: &mut PgConnection,
    rollup: &'static str,
    before: NaiveDate,
) -> Result<Option<NaiveDate>, sqlx::Error> {
    pack_one(connection, rollup, before, None).await
}

/// Like [`pack_due`], but ignores whether the day or month is due.
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

/// Whether days and months can be packed and summed in this database. The rollups of an older version have no queues
/// for that.
pub async fn can_pack(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass('litespend.activity_to_sum') IS NOT NULL").fetch_one(connection).await
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
