//! `LiteLLM_DailyUserSpend`, which LiteLLM writes. It has one row for each combination of day, user, key, model,
//! provider, tool and endpoint.

use crate::store::activity::figures::{self, Figures};
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

/// Model name under which LiteLLM reports rows without a model.
pub const UNKNOWN_MODEL: &str = "unknown-model";

/// The columns of a daily table that reports use.
#[derive(Clone, Debug, Default, FromRow)]
pub struct DailyRow {
    /// User, team or tag of the row.
    pub entity_id: Option<String>,
    /// Day, `YYYY-MM-DD`.
    pub date: String,
    /// SHA-256 of the key; empty for usage without a key.
    pub api_key: String,
    /// Name of the model.
    pub model: Option<String>,
    /// Public model name.
    pub model_group: Option<String>,
    /// Name of the provider.
    pub custom_llm_provider: Option<String>,
    /// Name of the MCP tool, with its namespace.
    pub mcp_namespaced_tool_name: Option<String>,
    /// Endpoint that was called.
    pub endpoint: Option<String>,
    /// Numeric columns.
    #[sqlx(flatten)]
    pub figures: Figures,
}

/// Which rows of the daily table to read.
#[derive(Clone, Debug)]
pub struct DailyFilter {
    /// First day, `YYYY-MM-DD`.
    pub start: String,
    /// Last day, `YYYY-MM-DD`, included.
    pub end: String,
    /// Only this user; `None` for all.
    pub user_id: Option<String>,
    /// Only the key with this hash; `None` for all.
    pub api_key: Option<String>,
    /// Only this model; `None` or the empty string for all. [`UNKNOWN_MODEL`] also matches rows without a model.
    pub model: Option<String>,
}

impl DailyFilter {
    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        query.push(" WHERE date >= ").push_bind(self.start.clone());
        query.push(" AND date <= ").push_bind(self.end.clone());
        if let Some(user_id) = &self.user_id {
            query.push(" AND user_id = ").push_bind(user_id.clone());
        }
        if let Some(api_key) = &self.api_key {
            query.push(" AND api_key = ").push_bind(api_key.clone());
        }
        push_model(query, self.model.as_deref());
    }
}

/// Pushes the condition for a model: none for all models. [`UNKNOWN_MODEL`] also matches rows without a model.
pub(super) fn push_model(query: &mut QueryBuilder<Postgres>, model: Option<&str>) {
    match model {
        None | Some("") => {}
        Some(UNKNOWN_MODEL) => {
            query.push(" AND (model IS NULL OR model IN ('', ").push_bind(UNKNOWN_MODEL).push("))");
        }
        Some(model) => {
            query.push(" AND model = ").push_bind(model.to_owned());
        }
    }
}

/// Number of matching rows.
pub async fn count(connection: &mut PgConnection, filter: &DailyFilter) -> Result<i64, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new(r#"SELECT count(*) FROM "LiteLLM_DailyUserSpend""#);
    filter.push(&mut query);
    query.build_query_scalar().fetch_one(connection).await
}

/// One page of rows, newest day first, then by ID.
pub async fn page(
    connection: &mut PgConnection,
    filter: &DailyFilter,
    offset: i64,
    limit: i64,
) -> Result<Vec<DailyRow>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT rows.* FROM (SELECT NULL::text AS endpoint, ");
    query.push("NULL::text AS mcp_namespaced_tool_name, ").push(figures::DEFAULTS.as_str());
    query.push(") AS defaults CROSS JOIN LATERAL (SELECT user_id AS entity_id, date, api_key, model, model_group, ");
    query.push("custom_llm_provider, mcp_namespaced_tool_name, endpoint, id, ").push(figures::OF_TABLE.as_str());
    query.push(r#" FROM "LiteLLM_DailyUserSpend""#);
    filter.push(&mut query);
    query.push(" ORDER BY date DESC, id OFFSET ").push_bind(offset).push(" LIMIT ").push_bind(limit);
    query.push(") AS rows ORDER BY rows.date DESC, rows.id");
    query.build_query_as().fetch_all(connection).await
}

/// E-mail address and alias of each of these users, by user ID.
pub async fn user_names(
    connection: &mut PgConnection,
    user_ids: &[String],
) -> Result<Vec<(String, Option<String>, Option<String>)>, sqlx::Error> {
    sqlx::query_as(r#"SELECT user_id, user_email, user_alias FROM "LiteLLM_UserTable" WHERE user_id = ANY ($1)"#)
        .bind(user_ids)
        .fetch_all(connection)
        .await
}
