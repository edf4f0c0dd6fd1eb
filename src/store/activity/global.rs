//! Requests and tokens by day from `LiteLLM_SpendLogs`, and the names that occur in it.

use chrono::NaiveDate;
use futures_util::stream::BoxStream;
use sqlx::{FromRow, PgConnection};

use crate::store::DateRange;

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

/// Requests by day, of one user if `user_id` is given.
pub async fn by_day(
    connection: &mut PgConnection,
    range: DateRange,
    user_id: Option<&str>,
) -> Result<Vec<DayRequests>, sqlx::Error> {
    sqlx::query_as(
        r#"SELECT NULL::text AS model_group, "startTime"::date AS day, count(*) AS api_requests,
                  sum(total_tokens) AS total_tokens
           FROM "LiteLLM_SpendLogs"
           WHERE "startTime" >= $1 AND "startTime" < $2 AND ($3::text IS NULL OR "user" = NULLIF($3, ''))
           GROUP BY 2 ORDER BY 2"#,
    )
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
    sqlx::query_as(
        r#"WITH days AS (
               SELECT model_group, "startTime"::date AS day, count(*) AS api_requests,
                      sum(total_tokens) AS total_tokens
               FROM "LiteLLM_SpendLogs"
               WHERE "startTime" >= $1 AND "startTime" < $2 AND ($3::text IS NULL OR "user" = NULLIF($3, ''))
               GROUP BY 1, 2
           ), models AS (
               SELECT model_group, row_number() OVER (ORDER BY sum(api_requests) DESC, model_group) AS place
               FROM days GROUP BY 1
           )
           SELECT days.model_group, days.day, days.api_requests, days.total_tokens
           FROM days JOIN models ON days.model_group IS NOT DISTINCT FROM models.model_group
           WHERE models.place <= $4 ORDER BY models.place, days.day"#,
    )
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
    sqlx::query_as(
        r#"SELECT log.model_id, sum(log.spend) FROM (SELECT NULL::text AS model_id) AS defaults
           CROSS JOIN LATERAL (SELECT model_id, spend FROM "LiteLLM_SpendLogs"
                               WHERE "startTime" >= $1 AND "startTime" < $2 AND model_id <> ''
                                 AND ($3::text IS NULL OR "user" = NULLIF($3, ''))) AS log
           GROUP BY 1"#,
    )
    .bind(range.from())
    .bind(range.until())
    .bind(user_id)
    .fetch_all(connection)
    .await
}

/// Every tag in the log, at most [`NAME_CAP`].
pub fn tag_names(connection: &mut PgConnection) -> BoxStream<'_, Result<Option<String>, sqlx::Error>> {
    sqlx::query_scalar(
        r#"SELECT DISTINCT tag FROM "LiteLLM_SpendLogs"
           CROSS JOIN LATERAL jsonb_array_elements_text(
               CASE WHEN jsonb_typeof(request_tags) = 'array' THEN request_tags ELSE '[]' END) AS tag
           ORDER BY tag LIMIT $1"#,
    )
    .bind(NAME_CAP)
    .fetch(connection)
}

/// Every end user in the log, at most [`NAME_CAP`].
///
/// The query jumps through the index from name to name. So its duration depends on the number of names, and not on the
/// length of the log.
pub fn end_users(connection: &mut PgConnection) -> BoxStream<'_, Result<Option<String>, sqlx::Error>> {
    sqlx::query_scalar(
        r#"WITH RECURSIVE names AS (
               (SELECT end_user FROM "LiteLLM_SpendLogs" WHERE end_user IS NOT NULL ORDER BY end_user LIMIT 1)
               UNION ALL
               SELECT (SELECT log.end_user FROM "LiteLLM_SpendLogs" log WHERE log.end_user > names.end_user
                       ORDER BY log.end_user LIMIT 1)
               FROM names WHERE names.end_user IS NOT NULL
           )
           (SELECT end_user FROM names WHERE end_user IS NOT NULL LIMIT $1)
           UNION ALL
           SELECT NULL WHERE EXISTS (SELECT FROM "LiteLLM_SpendLogs" WHERE end_user IS NULL)"#,
    )
    .bind(NAME_CAP)
    .fetch(connection)
}
