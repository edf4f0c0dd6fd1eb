//! How rows of closed days leave the log, and how texts leave its rows.

use chrono::{NaiveDate, NaiveDateTime};
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection};

use crate::store::DateRange;
use crate::store::rollups::partitions::is_by_start;

/// Rows of one statement that deletes, about.
pub const BATCH: i64 = 5_000;

/// Rows of one statement that empties texts. They are longer.
pub const STRIP_BATCH: i64 = 500;

/// A partition of the log and its days.
#[derive(Clone, Debug, FromRow)]
pub struct Partition {
    /// Name of the table, with its schema, quoted for SQL.
    pub table: String,
    /// First day.
    pub first_day: NaiveDate,
    /// Last day, included.
    pub last_day: NaiveDate,
}

impl Partition {
    /// The days of the partition.
    pub fn days(&self) -> DateRange {
        DateRange { start: self.first_day, end: self.last_day }
    }
}

/// The partitions of the log with rows of closed days up to `through` and of no other days, in the order of their days.
/// Days with late rows that the archive does not have count as not closed. A partition whose bounds are not starts of calls is
/// not among them.
pub async fn closed_partitions(
    connection: &mut PgConnection,
    through: NaiveDate,
) -> Result<Vec<Partition>, sqlx::Error> {
    let is_by_start = is_by_start("(SELECT inhparent FROM pg_catalog.pg_inherits WHERE inhrelid = partition)");
    let partitions: Vec<Partition> = sqlx::query_as(AssertSqlSafe(format!(
        r#"SELECT partition::text AS table, days.first_day, days.last_day
           FROM litespend.partitions_of(to_regclass('"LiteLLM_SpendLogs"')) AS partition,
                litespend.partition_days(partition) AS days
           WHERE days.last_day <= $1 AND {is_by_start} ORDER BY days.first_day"#
    )))
    .bind(through)
    .fetch_all(&mut *connection)
    .await?;
    let mut closed = Vec::new();
    for partition in partitions {
        if has_closed_rows_only(connection, &partition).await? {
            closed.push(partition);
        }
    }
    Ok(closed)
}

async fn has_closed_rows_only(connection: &mut PgConnection, partition: &Partition) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT NOT EXISTS (SELECT FROM litespend.open_days($1::regclass, $2, $3))
            AND NOT EXISTS (SELECT FROM litespend.late_ids WHERE day BETWEEN $2 AND $3 AND NOT is_lost)
            AND EXISTS (SELECT FROM litespend.closed_days WHERE day BETWEEN $2 AND $3)",
    )
    .bind(&partition.table)
    .bind(partition.first_day)
    .bind(partition.last_day)
    .fetch_one(connection)
    .await
}

/// Whether a partition has late rows that the log had lost before they were archived.
async fn has_found_rows(connection: &mut PgConnection, partition: &Partition) -> Result<bool, sqlx::Error> {
    let statement = format!(
        r#"SELECT EXISTS (SELECT FROM litespend.late_ids AS late
                          WHERE is_lost AND day BETWEEN $1 AND $2 AND EXISTS (
                              SELECT FROM {} AS log WHERE log."startTime" >= late.day AND log."startTime" < late.day + 1
                                AND substring(sha256(convert_to(log.request_id, 'UTF8')) FOR 8) = late.digest))"#,
        partition.table
    );
    sqlx::query_scalar(AssertSqlSafe(statement))
        .persistent(false)
        .bind(partition.first_day)
        .bind(partition.last_day)
        .fetch_one(connection)
        .await
}

/// Drops a partition that has rows of closed days only, and only in these [`versions`]. Returns false, and changes nothing, if it
/// has others by now. Waits at most two seconds for the readers and writers of the log; when the wait is over, the error is 55P03.
pub async fn drop_partition(
    connection: &mut PgConnection,
    partition: &Partition,
    archived: &str,
) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '2s'").await?;
    // This one holds up writers of these days only, so rows may be looked at under it.
    let share = format!("LOCK TABLE {} IN SHARE MODE", partition.table);
    transaction.execute(AssertSqlSafe(share)).await?;
    if has_found_rows(&mut transaction, partition).await? || versions(&mut transaction, partition).await? != archived {
        return Ok(false);
    }
    // The log first, as every query locks it before its partitions.
    transaction.execute(r#"LOCK TABLE ONLY "LiteLLM_SpendLogs" IN ACCESS EXCLUSIVE MODE"#).await?;
    let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", partition.table);
    transaction.execute(AssertSqlSafe(lock)).await?;
    if !has_closed_rows_only(&mut transaction, partition).await? {
        return Ok(false);
    }
    sqlx::query("DELETE FROM litespend.partitions WHERE relation = $1::regclass")
        .bind(&partition.table)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("SELECT litespend.mark_incomplete($1, $2)")
        .bind(partition.first_day)
        .bind(partition.last_day)
        .execute(&mut *transaction)
        .await?;
    let drop = format!("DROP TABLE {}", partition.table);
    transaction.execute(AssertSqlSafe(drop)).await?;
    record_pruned(&mut transaction, partition.first_day, partition.last_day).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Records that rows of a closed day begin to leave the log, before the first one does: from then on, answers need the
/// archive.
pub async fn begin(connection: &mut PgConnection, day: NaiveDate) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT litespend.mark_incomplete($1, $1)").bind(day).execute(&mut *transaction).await?;
    sqlx::query("UPDATE litespend.closed_days SET pruned_at = now() WHERE day = $1 AND pruned_at IS NULL")
        .bind(day)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

/// Records the closed days of a range that have no rows in the log as pruned.
pub async fn record_pruned(
    connection: &mut PgConnection,
    first: NaiveDate,
    last: NaiveDate,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        r#"UPDATE litespend.closed_days AS c SET pruned_at = now()
           WHERE day BETWEEN $1 AND $2 AND pruned_at IS NULL
             AND NOT EXISTS (SELECT FROM "LiteLLM_SpendLogs" WHERE "startTime" >= c.day AND "startTime" < c.day + 1)"#,
    )
    .bind(first)
    .bind(last)
    .execute(connection)
    .await
    .map(|_| ())
}

/// A row of the log in a version that the archive has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archived {
    /// Request ID.
    pub request_id: String,
    /// Start of the call, UTC.
    pub start_time: NaiveDateTime,
    /// The version, of [`version`](crate::store::books::exporting::version).
    pub version: String,
}

/// Deletes rows of a closed day from the log, and returns how many. Leaves rows that have been updated meanwhile or are not
/// recorded as archived.
pub async fn delete_rows(connection: &mut PgConnection, day: NaiveDate, rows: &[Archived]) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        r#"DELETE FROM "LiteLLM_SpendLogs" AS log
           USING unnest($2::text[], $3::timestamp[], $4::text[]::xid[]) AS archived (id, start, version),
                 litespend.closed_days AS closed
           WHERE log.request_id = archived.id AND log."startTime" = archived.start AND log.xmin = archived.version
             AND log."startTime" >= $1 AND log."startTime" < $1 + 1
             AND closed.day = $1 AND litespend.is_archived($1, log.request_id, closed.buckets)"#,
    )
    .bind(day)
    .bind(rows.iter().map(|row| row.request_id.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.start_time).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.version.as_str()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// The end of the slice of a day that begins at `from` and has about [`BATCH`] rows; `None` if the day has no more.
pub async fn end_of_slice(
    connection: &mut PgConnection,
    day: NaiveDate,
    from: NaiveDateTime,
) -> Result<Option<NaiveDateTime>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT COALESCE(
               (SELECT ("startTime"::timestamp + interval '1 microsecond') FROM "LiteLLM_SpendLogs"
                WHERE "startTime" >= $2 AND "startTime" < $1::date + 1 ORDER BY "startTime" OFFSET $3 LIMIT 1),
               $1::date + time '00:00' + interval '1 day')
           WHERE EXISTS (SELECT FROM "LiteLLM_SpendLogs" WHERE "startTime" >= $2 AND "startTime" < $1::date + 1)"#,
    )
    .bind(day)
    .bind(from)
    .bind(BATCH - 1)
    .fetch_optional(connection)
    .await
}

/// A hash of the versions of a partition's rows, and their number: it changes with every change of a row.
pub async fn versions(connection: &mut PgConnection, partition: &Partition) -> Result<String, sqlx::Error> {
    let statement = format!(
        "SELECT count(*) || ' ' || COALESCE(sum(hashtextextended(tableoid::text || ctid::text || xmin::text, 0)::numeric), 0)
         FROM {}",
        partition.table
    );
    sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await
}

/// Empties messages, responses and requests of up to [`STRIP_BATCH`] rows of a day, and returns of how many. With
/// `archived_only`, of rows that the archive has only.
pub async fn strip_rows(
    connection: &mut PgConnection,
    day: NaiveDate,
    archived_only: bool,
) -> Result<u64, sqlx::Error> {
    let columns: Vec<String> = sqlx::query_scalar(
        r#"SELECT attname::text FROM pg_attribute
           WHERE attrelid = to_regclass('"LiteLLM_SpendLogs"') AND NOT attisdropped
             AND attname IN ('messages', 'response', 'proxy_server_request') ORDER BY attname"#,
    )
    .fetch_all(&mut *connection)
    .await?;
    if columns.is_empty() {
        return Ok(0);
    }
    let list = |form: &dyn Fn(&str) -> String, separator| {
        columns.iter().map(|column| form(column)).collect::<Vec<_>>().join(separator)
    };
    let statement = format!(
        r#"WITH batch AS (
               SELECT request_id, "startTime" FROM "LiteLLM_SpendLogs"
               WHERE "startTime" >= $1 AND "startTime" < $1 + 1 AND ({}) {} LIMIT $2)
           UPDATE "LiteLLM_SpendLogs" AS log SET {} FROM batch
           WHERE log.request_id = batch.request_id AND log."startTime" = batch."startTime"
             AND log."startTime" >= $1 AND log."startTime" < $1 + 1"#,
        list(&|column| format!("{column} <> '{{}}'"), " OR "),
        if archived_only {
            "AND EXISTS (SELECT FROM litespend.closed_days AS c
                         WHERE c.day = $1 AND litespend.is_archived(c.day, request_id, c.buckets))"
        } else {
            ""
        },
        list(&|column| format!("{column} = '{{}}'"), ", "),
    );
    let done = sqlx::query(AssertSqlSafe(statement)).bind(day).bind(STRIP_BATCH).execute(connection).await?;
    Ok(done.rows_affected())
}

/// The days up to `through` that have rows in the log, ascending.
pub async fn logged_days(connection: &mut PgConnection, through: NaiveDate) -> Result<Vec<NaiveDate>, sqlx::Error> {
    sqlx::query_scalar(
        r#"WITH RECURSIVE logged AS (
               SELECT min("startTime")::date AS day FROM "LiteLLM_SpendLogs" WHERE "startTime" > '-infinity'
               UNION ALL
               SELECT (SELECT min("startTime")::date FROM "LiteLLM_SpendLogs" WHERE "startTime" >= logged.day + 1)
               FROM logged WHERE logged.day IS NOT NULL AND logged.day < $1)
           SELECT day FROM logged WHERE day <= $1"#,
    )
    .bind(through)
    .fetch_all(connection)
    .await
}
