//! Sums by day and group: model, provider, endpoint and so on.

use futures_util::stream::BoxStream;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::store::activity::figures::{self, Figures};
use crate::store::activity::filter::ActivityFilter;

/// The names of a row's groups (model, public model name and so on) as a report shows them.
const NAMES: &str = r#"
    COALESCE(NULLIF(model, ''), 'unknown-model') AS model,
    COALESCE(NULLIF(model_group, ''), NULLIF(model, ''), 'unknown-model-group') AS model_group,
    COALESCE(NULLIF(custom_llm_provider, ''), 'unknown') AS provider,
    NULLIF(mcp_namespaced_tool_name, '') AS tool, NULLIF(endpoint, '') AS endpoint"#;

/// The dimension by which the rows of a sum are grouped, in addition to the day and possibly the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[repr(i32)]
pub enum Dimension {
    /// No further dimension: the sum of the day.
    Day = 0,
    /// Model.
    Model = 1,
    /// Public model name.
    ModelGroup = 2,
    /// Provider.
    Provider = 3,
    /// MCP tool.
    Tool = 4,
    /// Endpoint.
    Endpoint = 5,
    /// User, team or tag.
    Entity = 6,
    /// Rows of one key that have the same model, public model name, provider, tool and endpoint.
    Key = 7,
}

/// Sums of one group on one day.
#[derive(Clone, Debug, FromRow)]
pub struct DaySums {
    /// Day, `YYYY-MM-DD`.
    pub date: String,
    /// Dimension of the group.
    pub dimension: Dimension,
    /// Name of the group; `None` for [`Dimension::Day`] and [`Dimension::Key`].
    pub name: Option<String>,
    /// If set, the sums cover only this key.
    pub api_key: Option<String>,
    /// For [`Dimension::Key`]: model, public model name, provider, tool and endpoint.
    pub names: Option<Vec<Option<String>>>,
    /// Sums of the figures.
    #[sqlx(flatten)]
    pub sums: Figures,
}

/// Dimension and name of a sum's group, derived from the bits of `GROUPING (model, model_group, provider, tool,
/// endpoint)`.
const DIMENSIONS: &str = r#"
    CASE GROUPING (model, model_group, provider, tool, endpoint)
        WHEN 31 THEN 0 WHEN 15 THEN 1 WHEN 23 THEN 2 WHEN 27 THEN 3 WHEN 29 THEN 4 ELSE 5 END AS dimension,
    COALESCE(CASE WHEN GROUPING (model) = 0 THEN model END, CASE WHEN GROUPING (model_group) = 0 THEN model_group END,
             CASE WHEN GROUPING (provider) = 0 THEN provider END, tool, endpoint) AS name"#;

/// Condition that excludes the groups of rows without a tool or without an endpoint. These do not count as groups.
const NAMED: &str = "(GROUPING (tool) = 1 OR tool IS NOT NULL) AND (GROUPING (endpoint) = 1 OR endpoint IS NOT NULL)";

/// Streams the sums by day and group, and for each key of `api_keys` the sums by all group columns together. The newest
/// day comes first; the order within a day is arbitrary. Includes the sums by user, team or tag.
pub fn day_sums<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    filter: &ActivityFilter,
    api_keys: &[String],
) -> BoxStream<'q, Result<DaySums, sqlx::Error>> {
    // The statement aggregates all rows once into a small number of groups, and then groups these again. It reads the
    // rows of the listed keys separately, and returns each of their sums once. One such sum counts for several groups
    // of the response, so the response is longer than the rows are.
    query.push("WITH groups AS MATERIALIZED (");
    let mut separator = "";
    if !filter.summed.is_empty() {
        query.push("SELECT date, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, ");
        query
            .push(figures::NAMES.as_str())
            .push(" FROM litespend.activity_groups WHERE date = ANY (")
            .push_bind(filter.summed_days());
        query.push(")");
        separator = " UNION ALL ";
    }
    for part in &filter.parts() {
        query.push(separator).push("(");
        separator = " UNION ALL ";
        query.push("SELECT date, model, model_group, custom_llm_provider, mcp_namespaced_tool_name, endpoint, ");
        query.push(figures::SUMS.as_str());
        part.push_rows(query);
        query.push(" GROUP BY 1, 2, 3, 4, 5, 6)");
    }
    query.push("), named AS (SELECT date, ").push(NAMES).push(", ").push(figures::NAMES.as_str()).push(" FROM groups");
    query.push(") SELECT date, NULL::text AS api_key, ").push(DIMENSIONS);
    query.push(", NULL::text[] AS names, ").push(figures::SUMS.as_str());
    query.push(
        " FROM named GROUP BY GROUPING SETS ((date), (date, model), (date, model_group), (date, provider),
          (date, tool), (date, endpoint)) HAVING ",
    );
    query.push(NAMED);
    query.push(" UNION ALL SELECT date, api_key, 7, NULL, ARRAY[model, model_group, provider, tool, endpoint], ");
    query
        .push(figures::NAMES.as_str())
        .push(" FROM (SELECT date, api_key, ")
        .push(NAMES)
        .push(", ")
        .push(figures::SUMS.as_str());
    let keyed = ActivityFilter { api_keys: Some(api_keys.to_vec()), summed: Vec::new(), ..filter.clone() };
    keyed.push_rows(query);
    query.push(" GROUP BY date, api_key, 3, 4, 5, 6, 7) AS keyed");
    for source in filter.entity_sources() {
        query
            .push(" UNION ALL SELECT date, NULL::text, 6, COALESCE(entity_id, ''), NULL::text[], ")
            .push(figures::SUMS.as_str());
        source.push(query);
        query.push(" GROUP BY date, 4");
    }
    query
        .push(" UNION ALL SELECT date, api_key, 6, COALESCE(entity_id, ''), NULL::text[], ")
        .push(figures::SUMS.as_str());
    keyed.push_rows(query);
    query.push(" GROUP BY date, api_key, 4");
    query.push(" ORDER BY 1 DESC");
    query.build_query_as().persistent(false).fetch(connection)
}
