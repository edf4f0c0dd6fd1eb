//! Queries for `/global/spend/report`, one per grouping. Rows come in the order in which the response is written.

pub mod scoped;

use chrono::NaiveDate;
use futures_util::stream::BoxStream;
use sqlx::{FromRow, PgConnection};

use crate::store::DateRange;

/// Spend of one key on one model on one day, for one team, customer, user or model.
#[derive(Clone, Debug, FromRow)]
pub struct DayRow {
    /// Day, UTC.
    pub day: NaiveDate,
    /// Alias of the team, or `Unassigned Team` if it has none. Set if grouped by team.
    pub team_name: Option<String>,
    /// End user, user or model, depending on the grouping. Unused if grouped by team alone.
    pub member: Option<String>,
    /// Name of the model.
    pub model: String,
    /// SHA-256 of the key.
    pub api_key: String,
    /// Spend in USD.
    pub spend: f64,
    /// Total tokens: prompt and completion tokens.
    pub total_tokens: i64,
}

/// Spend of one key on one model over the whole range.
#[derive(Clone, Debug, FromRow)]
pub struct KeyRow {
    /// SHA-256 of the key.
    pub api_key: String,
    /// Name of the model.
    pub model: String,
    /// Spend in USD.
    pub spend: f64,
    /// Prompt tokens.
    pub prompt_tokens: i64,
    /// Completion tokens.
    pub completion_tokens: i64,
    /// Spend of the key on all models, in USD.
    pub key_spend: f64,
    /// Prompt tokens of the key on all models.
    pub key_prompt_tokens: i64,
    /// Completion tokens of the key on all models.
    pub key_completion_tokens: i64,
}

/// Spend by day and team, days ascending; for all teams, or for `team_id`.
pub fn by_team<'c>(
    connection: &'c mut PgConnection,
    range: DateRange,
    team_id: Option<String>,
) -> BoxStream<'c, Result<DayRow, sqlx::Error>> {
    sqlx::query_as(
        r#"SELECT s."startTime"::date AS day, COALESCE(t.team_alias, 'Unassigned Team') AS team_name, NULL AS member,
                  s.model, s.api_key, sum(s.spend) AS spend, sum(s.total_tokens) AS total_tokens
           FROM "LiteLLM_SpendLogs" s LEFT JOIN "LiteLLM_TeamTable" t ON t.team_id = s.team_id
           WHERE s."startTime" >= $1 AND s."startTime" < $2 AND ($3::text IS NULL OR s.team_id = $3)
           GROUP BY 1, t.team_alias, s.model, s.api_key
           ORDER BY 1, 2"#,
    )
    .bind(range.from())
    .bind(range.until())
    .bind(team_id)
    .fetch(connection)
}

/// Spend of one team for one customer by day, days ascending.
pub fn by_team_and_customer<'c>(
    connection: &'c mut PgConnection,
    range: DateRange,
    team_id: String,
    customer_id: String,
) -> BoxStream<'c, Result<DayRow, sqlx::Error>> {
    sqlx::query_as(
        r#"SELECT s."startTime"::date AS day, COALESCE(t.team_alias, 'Unassigned Team') AS team_name,
                  s.end_user AS member, s.model, s.api_key, sum(s.spend) AS spend,
                  sum(s.total_tokens) AS total_tokens
           FROM "LiteLLM_SpendLogs" s LEFT JOIN "LiteLLM_TeamTable" t ON t.team_id = s.team_id
           WHERE s."startTime" >= $1 AND s."startTime" < $2 AND s.team_id = $3 AND s.end_user = $4
           GROUP BY 1, t.team_alias, s.end_user, s.model, s.api_key
           ORDER BY 1, 2, 3"#,
    )
    .bind(range.from())
    .bind(range.until())
    .bind(team_id)
    .bind(customer_id)
    .fetch(connection)
}

/// Spend by day and customer, days ascending.
pub fn by_customer<'c>(
    connection: &'c mut PgConnection,
    range: DateRange,
) -> BoxStream<'c, Result<DayRow, sqlx::Error>> {
    sqlx::query_as(
        r#"SELECT "startTime"::date AS day, NULL AS team_name, end_user AS member, model, api_key,
                  sum(spend) AS spend, sum(total_tokens) AS total_tokens
           FROM "LiteLLM_SpendLogs"
           WHERE "startTime" >= $1 AND "startTime" < $2
           GROUP BY 1, 3, 4, 5
           ORDER BY 1, 3"#,
    )
    .bind(range.from())
    .bind(range.until())
    .fetch(connection)
}

/// Spend by day and user, days ascending; for all teams, or for `team_id`.
pub fn by_user<'c>(
    connection: &'c mut PgConnection,
    range: DateRange,
    team_id: Option<String>,
) -> BoxStream<'c, Result<DayRow, sqlx::Error>> {
    sqlx::query_as(
        r#"SELECT "startTime"::date AS day, NULL AS team_name, "user" AS member, model, api_key,
                  sum(spend) AS spend, sum(total_tokens) AS total_tokens
           FROM "LiteLLM_SpendLogs"
           WHERE "startTime" >= $1 AND "startTime" < $2 AND ($3::text IS NULL OR team_id = $3)
           GROUP BY 1, 3, 4, 5
           ORDER BY 1, 3"#,
    )
    .bind(range.from())
    .bind(range.until())
    .bind(team_id)
    .fetch(connection)
}

/// Spend by day and model, days ascending; for all teams, or for `team_id`.
pub fn by_model<'c>(
    connection: &'c mut PgConnection,
    range: DateRange,
    team_id: Option<String>,
) -> BoxStream<'c, Result<DayRow, sqlx::Error>> {
    sqlx::query_as(
        r#"SELECT "startTime"::date AS day, NULL AS team_name, model AS member, model, api_key,
                  sum(spend) AS spend, sum(total_tokens) AS total_tokens
           FROM "LiteLLM_SpendLogs"
           WHERE "startTime" >= $1 AND "startTime" < $2 AND ($3::text IS NULL OR team_id = $3)
           GROUP BY 1, 4, 5
           ORDER BY 1, 4"#,
    )
    .bind(range.from())
    .bind(range.until())
    .bind(team_id)
    .fetch(connection)
}

/// Spend by key, largest spend first; for all keys, for `api_key`, or for the keys that `user_id` used.
pub fn by_key<'c>(
    connection: &'c mut PgConnection,
    range: DateRange,
    api_key: Option<String>,
    user_id: Option<String>,
) -> BoxStream<'c, Result<KeyRow, sqlx::Error>> {
    sqlx::query_as(
        r#"SELECT api_key, model, spend, prompt_tokens, completion_tokens,
                  sum(spend) OVER key AS key_spend,
                  (sum(prompt_tokens) OVER key)::bigint AS key_prompt_tokens,
                  (sum(completion_tokens) OVER key)::bigint AS key_completion_tokens
           FROM (SELECT api_key, model, sum(spend) AS spend, sum(prompt_tokens) AS prompt_tokens,
                        sum(completion_tokens) AS completion_tokens
                 FROM "LiteLLM_SpendLogs"
                 WHERE "startTime" >= $1 AND "startTime" < $2
                   AND ($3::text IS NULL OR api_key = $3) AND ($4::text IS NULL OR "user" = $4)
                 GROUP BY 1, 2) AS models
           WINDOW key AS (PARTITION BY api_key)
           ORDER BY key_spend DESC, api_key"#,
    )
    .bind(range.from())
    .bind(range.until())
    .bind(api_key)
    .bind(user_id)
    .fetch(connection)
}
