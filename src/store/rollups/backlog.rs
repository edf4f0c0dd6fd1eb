//! What waits to be folded, counted, packed and summed, and who keeps it waiting.

use chrono::NaiveDate;
use sqlx::{FromRow, PgConnection};

/// What waits.
#[derive(Clone, Debug, Default, PartialEq, FromRow)]
pub struct Backlog {
    /// Deltas that are not folded.
    pub deltas: i64,
    /// For how long the oldest of them has waited, seconds.
    pub oldest_seconds: f64,
    /// Days to be counted from the log.
    pub dirty_days: i64,
    /// Days and months that are over and not packed.
    pub days_to_pack: i64,
    /// Days of daily rows that are over and not summed.
    pub days_to_sum: i64,
}

/// Whether there is anything to do for days before `before`: one statement that looks at no more than the first row of
/// each table.
pub async fn is_waiting(connection: &mut PgConnection, before: NaiveDate) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM litespend.deltas) OR EXISTS (SELECT FROM litespend.activity_changes)
             OR EXISTS (SELECT FROM litespend.days_to_pack WHERE due <= now() AND day < $1
                        AND (rollup <> 'usage_month' OR day + interval '1 month' <= $1))
             OR EXISTS (SELECT FROM litespend.activity_to_sum WHERE due <= now() AND date < $1::text)",
    )
    .bind(before)
    .fetch_one(connection)
    .await
}

/// Everything that waits, counted.
pub async fn backlog(connection: &mut PgConnection, before: NaiveDate) -> Result<Backlog, sqlx::Error> {
    sqlx::query_as(
        "SELECT count(*) FILTER (WHERE sign <> 0) AS deltas,
                greatest(0, COALESCE(extract(epoch FROM clock_timestamp() - min(noted_at) FILTER (WHERE sign <> 0)), 0))
                    ::float8 AS oldest_seconds,
                count(DISTINCT day) FILTER (WHERE sign = 0) AS dirty_days,
                (SELECT count(*) FROM litespend.days_to_pack
                 WHERE day < $1 AND (rollup <> 'usage_month' OR day + interval '1 month' <= $1)) AS days_to_pack,
                (SELECT count(*) FROM litespend.activity_to_sum WHERE date < $1::text) AS days_to_sum
         FROM litespend.deltas",
    )
    .bind(before)
    .fetch_one(connection)
    .await
}

/// A session that holds one of the folding's locks.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Holder {
    /// Its process in the database.
    pub pid: i32,
    /// Its role.
    pub role: String,
    /// What it calls itself.
    pub application: String,
}

/// Who holds a lock of the folding, but for the connection that asks. Anybody who may connect can take it, and every session may see
/// who did.
pub async fn lock_holder(connection: &mut PgConnection) -> Result<Option<Holder>, sqlx::Error> {
    sqlx::query_as(
        "SELECT l.pid, COALESCE(a.usename::text, '?') AS role, COALESCE(a.application_name, '?') AS application
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
         WHERE l.locktype = 'advisory' AND l.granted AND l.pid <> pg_backend_pid() AND l.objsubid = 1
           AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
           AND (l.classid::bigint << 32) + l.objid::bigint IN (7811884301, 7811884302)
         LIMIT 1",
    )
    .fetch_optional(connection)
    .await
}

/// Puts off what [`crate::store::rollups::pack_due`] would choose next, for an hour: it failed, and others wait behind it.
pub async fn postpone(connection: &mut PgConnection, rollup: &str, before: NaiveDate) -> Result<(), sqlx::Error> {
    let statement = if rollup == crate::store::rollups::DAILY_ROWS {
        "UPDATE litespend.activity_to_sum SET due = now() + interval '1 hour'
         WHERE $1 <> '' AND date = (SELECT max(date) FROM litespend.activity_to_sum WHERE date < $2::text AND due <= now())"
    } else {
        "UPDATE litespend.days_to_pack SET due = now() + interval '1 hour'
         WHERE rollup = $1 AND day = litespend.next_to_pack($1, $2, NULL)"
    };
    sqlx::query(statement).bind(rollup).bind(before).execute(connection).await?;
    Ok(())
}
