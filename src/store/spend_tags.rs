//! Spend by request tag, out of `LiteLLM_SpendLogs.request_tags`. A tag that a request carries twice counts twice,
//! as in the reference; a row whose tags are not a list has none.

use chrono::NaiveDateTime;
use serde::Serialize;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::auth::Scope;

/// The spend of one tag.
#[derive(Clone, Debug, PartialEq, FromRow, Serialize, utoipa::ToSchema)]
pub struct TagSpend {
    /// The tag; null where a request's list of tags holds null.
    #[schema(example = "prod")]
    pub individual_request_tag: Option<String>,
    /// How many times it was used.
    pub log_count: i64,
    /// Spend in USD.
    pub total_spend: f64,
}

/// Which rows to group.
#[derive(Clone, Debug)]
pub struct TagFilter {
    /// Rows the caller may see.
    pub scope: Scope,
    /// First instant, if limited.
    pub from: Option<NaiveDateTime>,
    /// First instant after, if limited.
    pub until: Option<NaiveDateTime>,
    /// Only these tags, if limited.
    pub tags: Option<Vec<String>>,
}

/// Spend and count of each tag, largest spend first.
pub async fn spend_by_tag(connection: &mut PgConnection, filter: &TagFilter) -> Result<Vec<TagSpend>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new(
        r#"SELECT tag AS individual_request_tag, count(*) AS log_count, sum(spend) AS total_spend
           FROM "LiteLLM_SpendLogs"
           CROSS JOIN LATERAL jsonb_array_elements_text(
               CASE WHEN jsonb_typeof(request_tags) = 'array' THEN request_tags ELSE '[]' END) AS tag
           WHERE true"#,
    );
    push_scope(&mut query, &filter.scope);
    if let Some(from) = filter.from {
        query.push(r#" AND "startTime" >= "#).push_bind(from);
    }
    if let Some(until) = filter.until {
        query.push(r#" AND "startTime" < "#).push_bind(until);
    }
    if let Some(tags) = &filter.tags {
        query.push(" AND tag = ANY (").push_bind(tags.clone()).push(")");
    }
    query.push(" GROUP BY tag ORDER BY total_spend DESC, tag");
    query.build_query_as().fetch_all(connection).await
}

/// Limits a query on the spend log to a scope.
pub fn push_scope(query: &mut QueryBuilder<Postgres>, scope: &Scope) {
    match scope {
        Scope::All => {}
        Scope::Owned { user_id, team_ids } => {
            query.push(r#" AND ("user" = "#).push_bind(user_id.clone());
            query.push(" OR team_id = ANY (").push_bind(team_ids.clone()).push("))");
        }
    }
}
