//! The backlog: what is still to be folded, recounted, packed and summed. Also finds the session that blocks this work.

use chrono::NaiveDate;
use sqlx::{FromRow, PgConnection};

/// Amount of pending background work.
#[derive(Clone, Debug, Default, PartialEq, FromRow)]
pub struct Backlog {
    /// Number of deltas that are not folded.
    pub deltas: i64,
    /// Age of the oldest of these deltas, in seconds.
    pub oldest_seconds: f64,
    /// Number of dirty days, which are to be recounted from the log.
    pub dirty_days: i64,
    /// Number of past days and months that are not packed.
    pub days_to_pack: i64,
    /// Number of past days of LiteLLM's daily rows that are not summed.
    pub days_to_sum: i64,
}

/// Whether there is any background work for days before `before`. One statement finds out. It reads no more than the
/// first row of each table.
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

/// Counts the whole backlog.
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

/// A database session that holds one of the locks for folding.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Holder {
    /// Process ID of the session's PostgreSQL backend.
    pub pid: i32,
    /// Role of the session; `?` if PostgreSQL does not say.
    pub role: String,
    /// The session's `application_name`; `?` if PostgreSQL does not say.
    pub application: String,
}

/// The session that holds a lock for folding, other than the session of this connection. Anybody who may connect to the
/// database can take these locks, and every session may see which session holds them.
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

/// Delays by one hour the day or month that [`crate::store::rollups::pack_due`] would choose next. Used after it
/// failed, because the others in the queue wait behind it.
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
