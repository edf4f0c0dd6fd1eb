//! Spend of one key, user or team by key and model, from `LiteLLM_SpendLogs` and, for closed days, from the rollups.

use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::store::DateRange;
use crate::store::books;

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

impl Spender {
    /// The column of the log and that of the rollups, and the value that they must have.
    fn condition(&self) -> (&'static str, &'static str, &str) {
        match self {
            Self::Key(key) => ("api_key", "api_key", key),
            Self::User(user) => (r#""user""#, "user_id", user),
            Self::Team(team) => ("team_id", "team_id", team),
        }
    }
}

/// Streams the spend by key, largest first.
pub async fn by_key<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    range: DateRange,
    spender: &Spender,
) -> Result<BoxStream<'q, Result<KeySpend, sqlx::Error>>, sqlx::Error> {
    let are_days_closed = books::is_any_closed(connection).await?;
    let (logged, counted, value) = spender.condition();
    query.push(
        r#"SELECT api_key, sum(spend) AS total_cost, sum(prompt_tokens)::bigint AS total_input_tokens,
                  sum(completion_tokens)::bigint AS total_output_tokens,
                  jsonb_agg(jsonb_build_object('model', model, 'total_cost', spend, 'total_input_tokens',
                            prompt_tokens, 'total_output_tokens', completion_tokens) ORDER BY spend DESC, model)
                      AS model_details
           FROM (SELECT api_key, model, sum(spend) AS spend, sum(prompt_tokens) AS prompt_tokens,
                        sum(completion_tokens) AS completion_tokens
                 FROM (SELECT api_key, model, 1::bigint AS requests, spend, prompt_tokens::bigint AS prompt_tokens,
                              completion_tokens::bigint AS completion_tokens
                       FROM "LiteLLM_SpendLogs" WHERE "startTime" >= "#,
    );
    query.push_bind(range.from()).push(r#" AND "startTime" < "#).push_bind(range.until());
    query.push(format_args!(" AND {logged} = ")).push_bind(value.to_owned());
    if are_days_closed {
        // The log may have lost rows of closed days. Their sums are in the rollups, with what is not folded yet.
        query.push(
            r#" AND "startTime"::date NOT IN (SELECT day FROM litespend.closed_days)
                UNION ALL
                SELECT k.word, m.word, requests, spend, prompt_tokens, completion_tokens
                FROM litespend.day_usage AS d JOIN litespend.words AS k ON k.id = d.api_key
                JOIN litespend.words AS m ON m.id = d.model
                WHERE day IN (SELECT day FROM litespend.closed_days) AND day BETWEEN "#,
        );
        query.push_bind(range.start).push(" AND ").push_bind(range.end);
        query.push(format_args!(" AND d.{counted} = (SELECT id FROM litespend.words WHERE digest = litespend.digest("));
        query.push_bind(value.to_owned()).push(
            ")) UNION ALL
                SELECT api_key, model, sign, spend, prompt_tokens, completion_tokens FROM litespend.deltas
                WHERE sign <> 0 AND day IN (SELECT day FROM litespend.closed_days) AND day BETWEEN ",
        );
        query.push_bind(range.start).push(" AND ").push_bind(range.end);
        query.push(format_args!(" AND {counted} = ")).push_bind(value.to_owned());
    }
    query.push(
        ") AS calls GROUP BY 1, 2 HAVING sum(requests) > 0) AS models GROUP BY 1 ORDER BY total_cost DESC, api_key",
    );
    Ok(query.build_query_as().fetch(connection))
}
