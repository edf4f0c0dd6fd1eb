//! Spend of one key, user or team by key and model, from `LiteLLM_SpendLogs`.

use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::store::DateRange;

/// Whose spend to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spender {
    /// A key, given by its SHA-256.
    Key(String),
    /// A user, given by the user ID.
    User(String),
    /// A team, given by the team ID.
    Team(String),
}

/// Spend of one key.
#[derive(Clone, Debug, FromRow, Serialize, utoipa::ToSchema)]
pub struct KeySpend {
    /// SHA-256 of the key.
    pub api_key: String,
    /// Spend in USD.
    pub total_cost: f64,
    /// Prompt tokens.
    pub total_input_tokens: i64,
    /// Completion tokens.
    pub total_output_tokens: i64,
    /// Spend by model, largest first.
    #[schema(value_type = Vec<ModelSpend>)]
    pub model_details: Json<Vec<ModelSpend>>,
}

/// Spend of one key on one model.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelSpend {
    /// Name of the model.
    pub model: String,
    /// Spend in USD.
    pub total_cost: f64,
    /// Prompt tokens.
    pub total_input_tokens: i64,
    /// Completion tokens.
    pub total_output_tokens: i64,
}

/// Streams the spend by key, largest first.
pub fn by_key<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    range: DateRange,
    spender: &Spender,
) -> BoxStream<'q, Result<KeySpend, sqlx::Error>> {
    query.push(
        r#"SELECT api_key, sum(spend) AS total_cost, sum(prompt_tokens)::bigint AS total_input_tokens,
                  sum(completion_tokens)::bigint AS total_output_tokens,
                  jsonb_agg(jsonb_build_object('model', model, 'total_cost', spend, 'total_input_tokens',
                            prompt_tokens, 'total_output_tokens', completion_tokens) ORDER BY spend DESC, model)
                      AS model_details
           FROM (SELECT api_key, model, sum(spend) AS spend, sum(prompt_tokens) AS prompt_tokens,
                        sum(completion_tokens) AS completion_tokens
                 FROM "LiteLLM_SpendLogs" WHERE "startTime" >= "#,
    );
    query.push_bind(range.from()).push(r#" AND "startTime" < "#).push_bind(range.until());
    match spender {
        Spender::Key(key) => query.push(" AND api_key = ").push_bind(key.clone()),
        Spender::User(user) => query.push(r#" AND "user" = "#).push_bind(user.clone()),
        Spender::Team(team) => query.push(" AND team_id = ").push_bind(team.clone()),
    };
    query.push(" GROUP BY 1, 2) AS models GROUP BY 1 ORDER BY total_cost DESC, api_key");
    query.build_query_as().fetch(connection)
}
