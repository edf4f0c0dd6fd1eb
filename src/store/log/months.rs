//! The partitions of a log that litespend owns: one for each month, and a default partition for all other rows, which is
//! normally empty. The SQL functions that create them are in `migrations/litespend`:
//! `0012_log_by_month.sql` and `0013_add_month.sql`.

use chrono::{Datelike, Months, NaiveDate, NaiveDateTime};
use sqlx::{Connection, Executor, FromRow, PgConnection};

use crate::store::database;
use crate::store::database::DatabaseKind;

/// Number of months after the current one for which there are partitions.
pub const AHEAD: u32 = 3;

/// The first day of the month of `day`.
pub fn month_of(day: NaiveDate) -> NaiveDate {
    day.with_day(1).unwrap_or(day)
}

/// The current month and the [`AHEAD`] months after it, as their first days.
pub fn months_ahead(today: NaiveDate) -> Vec<NaiveDate> {
    (0..=AHEAD).filter_map(|months| month_of(today).checked_add_months(Months::new(months))).collect()
}

/// How the log is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// litespend owns the log, and it is partitioned.
    Partitioned,
    /// litespend owns the log, and it is a plain table.
    Plain,
    /// LiteLLM owns the log. litespend does not change its partitions.
    LiteLlm,
}

/// Finds out how the log is stored.
pub async fn layout(connection: &mut PgConnection) -> Result<Layout, sqlx::Error> {
    if database::kind(connection).await? == DatabaseKind::LiteLlm {
        return Ok(Layout::LiteLlm);
    }
    let partitioned: bool = sqlx::query_scalar(
        r#"SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = to_regclass('"LiteLLM_SpendLogs"') AND relkind = 'p')"#,
    )
    .fetch_one(connection)
    .await?;
    Ok(if partitioned { Layout::Partitioned } else { Layout::Plain })
}

/// Creates the partition of a month. Returns false if a partition has days of the month, if another session is creating
/// partitions, or if the partition's name is taken. If the default partition has rows of the month, they are moved; without
/// `move_rows`, nothing happens, and the result is false. A read that runs during the move may miss these rows. Waits at most
/// 0.3 s for each lock on the default partition, during which its new readers and writers queue; when the wait is over, the
/// error is 55P03.
pub async fn add(connection: &mut PgConnection, month: NaiveDate, move_rows: bool) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '300ms'").await?;
    let added = sqlx::query_scalar(r#"SELECT litespend.add_month(to_regclass('"LiteLLM_SpendLogs"'), $1, $2)"#)
        .bind(month)
        .bind(move_rows)
        .fetch_one(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(added)
}

/// Whether an error means that a lock could not be acquired in time (55P03).
pub fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
}

/// The months that have a partition of their own, as their first days.
pub async fn with_partition(connection: &mut PgConnection) -> Result<Vec<NaiveDate>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT days.first_day
           FROM litespend.partitions_of(to_regclass('"LiteLLM_SpendLogs"')) AS partition,
                litespend.partition_days(partition) AS days
           WHERE days.first_day IS NOT NULL ORDER BY days.first_day"#,
    )
    .fetch_all(connection)
    .await
}

/// The months that have rows in the default partition, as their first days.
pub async fn misplaced(connection: &mut PgConnection) -> Result<Vec<NaiveDate>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT month FROM litespend.default_partition(to_regclass('"LiteLLM_SpendLogs"')) AS rest,
                             litespend.months_of(rest) AS month WHERE rest IS NOT NULL"#,
    )
    .fetch_all(connection)
    .await
}

/// Number of rows in the default partition; counts at most 10,000.
pub async fn misplaced_rows(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let rest: Option<String> =
        sqlx::query_scalar(r#"SELECT litespend.default_partition(to_regclass('"LiteLLM_SpendLogs"'))::text"#)
            .fetch_one(&mut *connection)
            .await?;
    let Some(rest) = rest else { return Ok(0) };
    let statement = format!("SELECT count(*) FROM (SELECT FROM {rest} LIMIT 10000) AS few");
    sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_one(connection).await
}

/// Updates the planner's statistics for the whole log. Autovacuum analyzes only the partitions.
pub async fn analyze(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute(r#"ANALYZE "LiteLLM_SpendLogs""#).await.map(|_| ())
}

/// A partition of the log.
#[derive(Clone, Debug, FromRow)]
pub struct Partition {
    /// Name of the table.
    pub name: String,
    /// First day; `None` for the default partition.
    pub first_day: Option<NaiveDate>,
    /// Last day, included.
    pub last_day: Option<NaiveDate>,
    /// Number of rows, as PostgreSQL last estimated it.
    pub rows: i64,
    /// Size with indexes in bytes.
    pub bytes: i64,
}

/// All partitions of the log, in the order of their days. The default partition is last.
pub async fn partitions(connection: &mut PgConnection) -> Result<Vec<Partition>, sqlx::Error> {
    sqlx::query_as(
        r#"SELECT c.relname::text AS name, days.first_day, days.last_day,
                  GREATEST(c.reltuples, 0)::bigint AS rows, pg_total_relation_size(c.oid) AS bytes
           FROM litespend.partitions_of(to_regclass('"LiteLLM_SpendLogs"')) AS partition
           JOIN pg_class c ON c.oid = partition, litespend.partition_days(partition) AS days
           ORDER BY days.first_day NULLS LAST, c.relname"#,
    )
    .fetch_all(connection)
    .await
}

/// How far the rows of a plain log have been copied into the partitioned one that will replace it.
#[derive(Clone, Debug)]
pub struct Copying {
    /// Number of rows copied so far.
    pub copied: i64,
    /// Start and ID of the last row that was copied.
    pub after: Option<(NaiveDateTime, String)>,
    /// Whether the copy missed a change of the log. If so, it must be discarded.
    pub broken: bool,
}

#[derive(FromRow)]
struct CopyingRow {
    copied: i64,
    after_time: Option<String>,
    after_id: Option<String>,
    broken: bool,
}

const TIME_FORMAT: &str = "%Y-%m-%dT%H:%M:%S%.f";

/// The state of the copy. `None` if no copy has begun.
pub async fn copying(connection: &mut PgConnection) -> Result<Option<Copying>, sqlx::Error> {
    let row: Option<CopyingRow> = sqlx::query_as(
        "SELECT (value ->> 'copied')::bigint AS copied, value ->> 'after_time' AS after_time,
                value ->> 'after_id' AS after_id, COALESCE((value ->> 'broken')::boolean, false) AS broken
         FROM litespend.settings WHERE name = 'log_by_month'",
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| {
        let time = row.after_time.and_then(|time| NaiveDateTime::parse_from_str(&time, TIME_FORMAT).ok());
        Copying { copied: row.copied, after: time.zip(row.after_id), broken: row.broken }
    }))
}

/// Creates the partitioned table, with partitions for all months of the log, and the triggers that repeat every change
/// of the log on it. Waits at most five seconds for the writers of the log.
pub async fn begin_copy(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute(r#"SELECT litespend.begin_by_month(to_regclass('"LiteLLM_SpendLogs"'))"#).await?;
    transaction.commit().await
}

/// Number of rows that are copied in one transaction.
pub const BATCH: i64 = 5_000;

/// Copies the next rows, at most [`BATCH`], and returns how many, with the new state of the copy. The rows are locked
/// against changes until they are copied; readers and new rows do not wait.
pub async fn copy_batch(connection: &mut PgConnection, from: &Copying) -> Result<(i64, Copying), sqlx::Error> {
    let (time, id) = from.after.clone().unzip();
    let mut transaction = connection.begin().await?;
    // A change that was committed before its row is locked has been applied to the copy already.
    let last: Option<(i64, NaiveDateTime, String)> = sqlx::query_as(
        r#"WITH next AS MATERIALIZED (
               SELECT "startTime", request_id FROM "LiteLLM_SpendLogs"
               WHERE ("startTime", request_id) > (COALESCE($1::timestamp, '-infinity'), $2)
               ORDER BY "startTime", request_id LIMIT $3),
           batch AS (
               SELECT log.* FROM next JOIN "LiteLLM_SpendLogs" AS log
                   ON log.request_id = next.request_id AND log."startTime" = next."startTime" FOR SHARE OF log),
           copied AS (INSERT INTO "LiteLLM_SpendLogs_by_month" SELECT * FROM batch ON CONFLICT DO NOTHING)
           SELECT count(*) OVER (), "startTime", request_id FROM next ORDER BY "startTime" DESC, request_id DESC LIMIT 1"#,
    )
    .bind(time)
    .bind(id.unwrap_or_default())
    .bind(BATCH)
    .fetch_optional(&mut *transaction)
    .await?;
    let Some((count, time, id)) = last else { return Ok((0, from.clone())) };
    let copied = from.copied + count;
    let broken: bool = sqlx::query_scalar(
        "UPDATE litespend.settings
         SET value = value || jsonb_build_object('copied', $1::bigint, 'after_time', $2::text, 'after_id', $3::text)
         WHERE name = 'log_by_month' RETURNING value ? 'broken'",
    )
    .bind(copied)
    .bind(time.format(TIME_FORMAT).to_string())
    .bind(&id)
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok((count, Copying { copied, after: Some((time, id)), broken }))
}

/// Creates partitions in the copy for the months found in its default partition, and for the coming months.
pub async fn complete_copy(connection: &mut PgConnection, today: NaiveDate) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    sqlx::query(
        r#"SELECT litespend.add_month(to_regclass('"LiteLLM_SpendLogs_by_month"'), month, true)
           FROM (SELECT month FROM litespend.default_partition(to_regclass('"LiteLLM_SpendLogs_by_month"')) AS rest,
                                   litespend.months_of(rest) AS month
                 UNION SELECT unnest($1::date[])) AS months (month) ORDER BY month"#,
    )
    .bind(months_ahead(today))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

/// The months of which the log or its copy has rows, as their first days.
pub async fn months_of_either(connection: &mut PgConnection) -> Result<Vec<NaiveDate>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT month FROM litespend.months_of(to_regclass('"LiteLLM_SpendLogs"')) AS month
           UNION SELECT month FROM litespend.months_of(to_regclass('"LiteLLM_SpendLogs_by_month"')) AS month
           ORDER BY month"#,
    )
    .fetch_all(connection)
    .await
}

/// Whether the log and the copy have the same rows in a month, in one snapshot: their number, and a sum of hashes of
/// all their columns.
pub async fn copy_agrees(connection: &mut PgConnection, month: NaiveDate) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT (SELECT (count(*), sum(hashtextextended(log::text, 0)::numeric)) FROM "LiteLLM_SpendLogs" AS log
                   WHERE "startTime" >= $1::date AND "startTime" < $1::date + interval '1 month')
                  IS NOT DISTINCT FROM
                  (SELECT (count(*), sum(hashtextextended(copy::text, 0)::numeric)) FROM "LiteLLM_SpendLogs_by_month" AS copy
                   WHERE "startTime" >= $1::date AND "startTime" < $1::date + interval '1 month')"#,
    )
    .bind(month)
    .fetch_one(connection)
    .await
}

/// Puts the copy in place of the log, which is dropped. Returns false, and changes nothing, if the copy has missed a
/// change, or is gone. Waits at most two seconds for the readers and writers of the log; when the wait is over, the error is 55P03.
pub async fn swap(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '2s'").await?;
    transaction.execute(r#"LOCK TABLE "LiteLLM_SpendLogs" IN ACCESS EXCLUSIVE MODE"#).await?;
    if copying(&mut transaction).await?.is_none_or(|copying| copying.broken) {
        return Ok(false);
    }
    transaction
        .execute(
            r#"SELECT litespend.replace_log(to_regclass('"LiteLLM_SpendLogs"'),
                                            to_regclass('"LiteLLM_SpendLogs_by_month"'));
               DELETE FROM litespend.settings WHERE name = 'log_by_month'"#,
        )
        .await?;
    transaction.commit().await?;
    Ok(true)
}

/// Removes the copy. The log stays as it is. Waits at most five seconds for the readers and writers of the log.
pub async fn cancel_copy(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute(r#"SELECT litespend.cancel_by_month(to_regclass('"LiteLLM_SpendLogs"'))"#).await?;
    transaction.commit().await
}

/// Takes the lock that lets one session at a time partition the log. The session holds it until it ends. Returns false
/// if another session holds it.
pub async fn lock_copying(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(COPYING_LOCK).fetch_one(connection).await
}

/// Key of the advisory lock of [`lock_copying`].
const COPYING_LOCK: i64 = 7_811_884_303;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coming_months_cross_the_year() {
        let day = |year, month, day| NaiveDate::from_ymd_opt(year, month, day).unwrap_or_default();
        let expected = [(2026, 11), (2026, 12), (2027, 1), (2027, 2)].map(|(year, month)| day(year, month, 1));
        assert_eq!(months_ahead(day(2026, 11, 30)), expected);
    }
}
