//! Which archived rows belong into an answer. As for the sums of a closed day, an archived row and a row of the log are the
//! same call if the request ID and the day are equal; the log's row counts then, at whatever time of the day and with whatever
//! values. Rows that an UPDATE of the log took out of a day, or gave another ID, are no longer rows of that day.

use std::collections::HashSet;

use chrono::NaiveDateTime;
use sqlx::PgConnection;

use crate::store::log::LogPosition;

/// The places in `rows` of archived rows that the log has, and with `moved`, of those that were moved.
pub async fn superseded(
    connection: &mut PgConnection,
    rows: &[LogPosition],
    moved: bool,
) -> Result<HashSet<usize>, sqlx::Error> {
    let days = || rows.iter().map(|row| row.start_time.date());
    let (Some(first), Some(last)) = (days().min(), days().max()) else { return Ok(HashSet::new()) };
    let found: Vec<i64> = sqlx::query_scalar(if moved { LOGGED_OR_MOVED } else { LOGGED })
        .bind(rows.iter().map(|row| row.request_id.as_str()).collect::<Vec<_>>())
        .bind(days().collect::<Vec<_>>())
        .bind(first)
        .bind(last)
        .fetch_all(connection)
        .await?;
    Ok(found.into_iter().filter_map(|place| usize::try_from(place - 1).ok()).collect())
}

/// Each row is looked up by the log's primary key. Where the log has no rows of the days, as after a prune, it is asked once.
macro_rules! logged {
    () => {
        r#"SELECT place
           FROM unnest($1::text[], $2::date[]) WITH ORDINALITY AS asked (id, day, place)
           CROSS JOIN LATERAL (
               SELECT FROM "LiteLLM_SpendLogs" AS log
               WHERE log.request_id = asked.id
                 AND log."startTime" >= asked.day AND log."startTime" < asked.day + 1
                 AND log."startTime" >= $3::date AND log."startTime" < $4::date + 1 LIMIT 1) AS found
           WHERE EXISTS (SELECT FROM "LiteLLM_SpendLogs" WHERE "startTime" >= $3::date AND "startTime" < $4::date + 1)"#
    };
}

const LOGGED: &str = logged!();

const LOGGED_OR_MOVED: &str = concat!(
    logged!(),
    r#" UNION ALL
        SELECT place
        FROM unnest($1::text[], $2::date[]) WITH ORDINALITY AS asked (id, day, place)
        CROSS JOIN LATERAL (
            SELECT FROM litespend.moved_ids AS moved
            WHERE moved.day = asked.day AND moved.digest = substring(sha256(convert_to(asked.id, 'UTF8')) FOR 8)
            LIMIT 1) AS found
        WHERE EXISTS (SELECT FROM litespend.moved_ids WHERE day BETWEEN $3::date AND $4::date)"#
);

/// Whether the log has rows of the day of this time or of earlier days, or, with `moved`, once had archived rows of these days
/// that were moved. If not, archived rows up to this time belong into an answer without a further look.
pub async fn reaches_back_to(
    connection: &mut PgConnection,
    time: NaiveDateTime,
    moved: bool,
) -> Result<bool, sqlx::Error> {
    let statement = if moved {
        r#"SELECT EXISTS (SELECT FROM "LiteLLM_SpendLogs" WHERE "startTime" < $1::date + 1)
               OR EXISTS (SELECT FROM litespend.moved_ids WHERE day <= $1::date)"#
    } else {
        r#"SELECT EXISTS (SELECT FROM "LiteLLM_SpendLogs" WHERE "startTime" < $1::date + 1)"#
    };
    sqlx::query_scalar(statement).bind(time.date()).fetch_one(connection).await
}
