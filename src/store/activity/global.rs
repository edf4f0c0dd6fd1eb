//! Requests and tokens by day from `LiteLLM_SpendLogs`, and the names that occur in it. Closed days come from the tables
//! that hold their sums, because the log may have lost their rows.

use chrono::NaiveDate;
use futures_util::stream::BoxStream;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::store::DateRange;
use crate::store::books;

/// Maximum number of names in one response.
pub const NAME_CAP: i64 = 100_000;

/// Requests on one day, of one model if they are grouped by model.
#[derive(Clone, Debug, FromRow)]
pub struct DayRequests {
    /// Public model name; `None` if not grouped by model.
    pub model_group: Option<String>,
    /// Day, UTC.
    pub day: NaiveDate,
    /// Number of requests.
    pub api_requests: i64,
    /// Total tokens: prompt and completion tokens.
    pub total_tokens: i64,
}

/// SQL: rows with the columns `day`, `user_id`, `model_group`, `model_id`, `requests`, `spend` and `total_tokens` of the days
/// from `$1` to before `$2`, of the user `$3` if it is not null. They are the rows of the log, and the sums of closed days.
async fn calls(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let (open, closed) = if books::is_any_closed(connection).await? {
        (
            r#"AND "startTime"::date NOT IN (SELECT day FROM litespend.closed_days)"#,
            "UNION ALL
             SELECT day, user_id, model_group, model_id, requests, spend, total_tokens
             FROM litespend.closed_activity JOIN (SELECT day FROM litespend.closed_days) AS closed USING (day)
             WHERE day >= $1::date AND day < $2::date AND ($3::text IS NULL OR user_id = NULLIF($3, ''))",
        )
    } else {
        ("", "")
    };
    Ok(format!(
        r#"(SELECT log.* FROM (SELECT NULL::text AS model_id) AS defaults
            CROSS JOIN LATERAL (
                SELECT "startTime"::date AS day, "user" AS user_id, model_group, model_id, 1::bigint AS requests, spend,
                       total_tokens::bigint AS total_tokens
                FROM "LiteLLM_SpendLogs"
                WHERE "startTime" >= $1 AND "startTime" < $2 AND ($3::text IS NULL OR "user" = NULLIF($3, '')) {open}
            ) AS log
            {closed}) AS calls"#
    ))
}

/// Requests by day, of one user if `user_id` is given.
pub async fn by_day(
    connection: &mut PgConnection,
    range: DateRange,
    user_id: Option<&str>,
) -> Result<Vec<DayRequests>, sqlx::Error> {
    let statement = format!(
        "SELECT NULL::text AS model_group, day, sum(requests)::bigint AS api_requests,
                sum(total_tokens)::bigint AS total_tokens
         FROM {} GROUP BY day HAVING sum(requests) > 0 ORDER BY day",
        calls(connection).await?
    );
    sqlx::query_as(AssertSqlSafe(statement))
        .bind(range.from())
        .bind(range.until())
        .bind(user_id)
        .fetch_all(connection)
        .await
}

/// Requests by day of the `limit` models with the most requests. The model with the most requests comes first. Only of
/// one user if `user_id` is given.
pub async fn by_model_and_day(
    connection: &mut PgConnection,
    range: DateRange,
    user_id: Option<&str>,
    limit: i64,
) -> Result<Vec<DayRequests>, sqlx::Error> {
    let statement = format!(
        "WITH days AS (
             SELECT model_group, day, sum(requests)::bigint AS api_requests, sum(total_tokens)::bigint AS total_tokens
             FROM {} GROUP BY 1, 2 HAVING sum(requests) > 0
         ), models AS (
             SELECT model_group, row_number() OVER (ORDER BY sum(api_requests) DESC, model_group) AS place
             FROM days GROUP BY 1
         )
         SELECT days.model_group, days.day, days.api_requests, days.total_tokens
         FROM days JOIN models ON days.model_group IS NOT DISTINCT FROM models.model_group
         WHERE models.place <= $4 ORDER BY models.place, days.day",
        calls(connection).await?
    );
    sqlx::query_as(AssertSqlSafe(statement))
        .bind(range.from())
        .bind(range.until())
        .bind(user_id)
        .bind(limit)
        .fetch_all(connection)
        .await
}

/// Spend in USD by deployment, for the rows that name a deployment. Only of one user if `user_id` is given.
pub async fn by_deployment(
    connection: &mut PgConnection,
    range: DateRange,
    user_id: Option<&str>,
) -> Result<Vec<(String, f64)>, sqlx::Error> {
    let statement = format!(
        "SELECT model_id, sum(spend) FROM {} WHERE model_id <> '' GROUP BY 1 HAVING sum(requests) > 0",
        calls(connection).await?
    );
    sqlx::query_as(AssertSqlSafe(statement))
        .bind(range.from())
        .bind(range.until())
        .bind(user_id)
        .fetch_all(connection)
        .await
}

/// Names of closed days in a day table, as SQL that continues a list of names; empty if no day is closed.
async fn closed_names(connection: &mut PgConnection, table: &str, column: &str) -> Result<String, sqlx::Error> {
    if !books::is_any_closed(connection).await? {
        return Ok(String::new());
    }
    Ok(format!(
        "UNION SELECT word FROM (SELECT DISTINCT {column} AS id FROM {table}
                                 WHERE day IN (SELECT day FROM litespend.closed_days)) AS used
         LEFT JOIN litespend.words USING (id)"
    ))
}

/// A list of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameList {
    /// Every tag in the log and on closed days.
    Tags,
    /// Every end user in the log and on closed days; `None` for calls without one.
    EndUsers,
}

/// Streams names, at most [`NAME_CAP`].
pub async fn names(
    connection: &mut PgConnection,
    list: NameList,
) -> Result<BoxStream<'_, Result<Option<String>, sqlx::Error>>, sqlx::Error> {
    let statement = match list {
        NameList::Tags => tags_statement(&closed_names(connection, "litespend.day_tag", "tag").await?),
        NameList::EndUsers => {
            end_users_statement(&closed_names(connection, "litespend.day_customer", "end_user").await?)
        }
    };
    Ok(sqlx::query_scalar(AssertSqlSafe(statement)).bind(NAME_CAP).fetch(connection))
}

fn tags_statement(closed: &str) -> String {
    format!(
        r#"SELECT tag FROM (
               SELECT tag FROM "LiteLLM_SpendLogs"
               CROSS JOIN LATERAL jsonb_array_elements_text(
                   CASE WHEN jsonb_typeof(request_tags) = 'array' THEN request_tags ELSE '[]' END) AS tag
               GROUP BY tag {closed}) AS tags
           ORDER BY tag LIMIT $1"#
    )
}

/// The query jumps through the index from name to name. So its duration depends on the number of names, and not on the
/// length of the log.
fn end_users_statement(closed: &str) -> String {
    let order = if closed.is_empty() { "" } else { "ORDER BY end_user LIMIT $1 + 1" };
    format!(
        r#"WITH RECURSIVE names AS (
               (SELECT end_user FROM "LiteLLM_SpendLogs" WHERE end_user IS NOT NULL ORDER BY end_user LIMIT 1)
               UNION ALL
               SELECT (SELECT log.end_user FROM "LiteLLM_SpendLogs" log WHERE log.end_user > names.end_user
                       ORDER BY log.end_user LIMIT 1)
               FROM names WHERE names.end_user IS NOT NULL
           )
           (SELECT end_user FROM names WHERE end_user IS NOT NULL LIMIT $1)
           UNION ALL
           SELECT NULL WHERE EXISTS (SELECT FROM "LiteLLM_SpendLogs" WHERE end_user IS NULL)
           {closed} {order}"#
    )
}
