//! Requests and tokens by day out of `LiteLLM_SpendLogs`, and the names that occur in it.

use chrono::NaiveDate;
use futures_util::stream::BoxStream;
use sqlx::{FromRow, PgConnection};

use crate::store::DateRange;

/// The most names in one answer.
pub const NAME_CAP: i64 = 100_000;

/// Requests of one day, of one model where they are grouped by it.
#[derive(Clone, Debug, FromRow)]
pub struct DayRequests {
    /// Public model name.
    pub model_group: Option<String>,
    /// Day, UTC.
    pub day: NaiveDate,
    /// Requests.
    pub api_requests: i64,
    /// Prompt and completion tokens.
    pub total_tokens: i64,
}

/// Requests by day; of one user where given.
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

/// Requests by day of the `limit` models with the most requests, these first; of one user where given.
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

/// USD by deployment, where the log names one; of one user where given.
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

/// Every tag of the log, [`NAME_CAP`] at most.
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

/// Every end user of the log, [`NAME_CAP`] at most.
///
/// Steps along the index from name to name, so that the time depends on how many there are, not on the log's length.
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
