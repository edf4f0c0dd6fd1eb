//! Spend by request tag, from `LiteLLM_SpendLogs.request_tags` or the rollups. As in LiteLLM, a tag that a request
//! carries twice counts twice. A row whose tags are not a list has no tags.

use chrono::NaiveDateTime;
use futures_util::stream::BoxStream;
use serde::Serialize;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::identity::Scope;
use crate::store::rollups::reads::Snapshot;
use crate::store::{DateRange, FIRST_DAY, LAST_DAY};

/// Spend of one tag.
#[derive(Clone, Debug, PartialEq, FromRow, Serialize, utoipa::ToSchema)]
pub struct TagSpend {
    /// The tag; null if a request's list of tags contains null.
    #[schema(example = "prod")]
    pub individual_request_tag: Option<String>,
    /// Number of times that the tag was used.
    pub log_count: i64,
    /// Spend in USD.
    pub total_spend: f64,
}

/// Which rows to include.
#[derive(Clone, Debug)]
pub struct TagFilter {
    /// Rows that the caller may see.
    pub scope: Scope,
    /// Earliest start of a call, included; `None` for no limit.
    pub from: Option<NaiveDateTime>,
    /// Latest start of a call, excluded; `None` for no limit.
    pub until: Option<NaiveDateTime>,
    /// Only these tags; `None` for all.
    pub tags: Option<Vec<String>>,
}

/// Streams the spend and count of each tag, largest spend first. Reads the rollups if a snapshot of them is given, and
/// the log otherwise.
pub fn spend_by_tag<'c>(
    connection: &'c mut PgConnection,
    query: &'c mut QueryBuilder<Postgres>,
    filter: &TagFilter,
    snapshot: Option<&Snapshot>,
) -> BoxStream<'c, Result<TagSpend, sqlx::Error>> {
    match snapshot {
        Some(snapshot) => push_rollups(query, filter, snapshot),
        None => push_log(query, filter),
    }
    query.build_query_as().fetch(connection)
}

fn push_log(query: &mut QueryBuilder<Postgres>, filter: &TagFilter) {
    query.push(
        r#"SELECT tag AS individual_request_tag, count(*) AS log_count, sum(spend) AS total_spend
           FROM "LiteLLM_SpendLogs"
           CROSS JOIN LATERAL jsonb_array_elements_text(
               CASE WHEN jsonb_typeof(request_tags) = 'array' THEN request_tags ELSE '[]' END) AS tag
           WHERE true"#,
    );
    push_scope(query, &filter.scope);
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
}

impl TagFilter {
    /// The days that the filter covers. The rollups count whole days only.
    pub fn days(&self) -> DateRange {
        DateRange {
            start: self.from.map_or(FIRST_DAY, |from| from.date()),
            end: self.until.and_then(|until| until.date().pred_opt()).unwrap_or(LAST_DAY),
        }
    }
}

fn push_rollups(query: &mut QueryBuilder<Postgres>, filter: &TagFilter, snapshot: &Snapshot) {
    let DateRange { start: first, end: last } = filter.days();
    query.push(
        "SELECT individual_request_tag, sum(log_count)::bigint AS log_count, sum(spend) AS total_spend FROM (
             SELECT w.word AS individual_request_tag, log_count, spend FROM (
                 SELECT tag, sum(log_count) AS log_count, sum(spend) AS spend FROM ",
    );
    query.push(if filter.scope == Scope::All { "litespend.day_tag" } else { "litespend.day_tag_owner" });
    query.push(" WHERE day BETWEEN ").push_bind(first).push(" AND ").push_bind(last);
    query.push(" AND day <> ALL (").push_bind(snapshot.dirty.clone()).push(")");
    if let Scope::Owned { user_id, team_ids } = &filter.scope {
        query.push(" AND (user_id = (SELECT id FROM litespend.words WHERE digest = litespend.digest(");
        query
            .push_bind(user_id.clone())
            .push(")) OR team_id = ANY (SELECT id FROM litespend.words WHERE digest = ANY (");
        query
            .push("SELECT litespend.digest(team) FROM unnest(")
            .push_bind(team_ids.clone())
            .push("::text[]) AS team)))");
    }
    query.push(" GROUP BY tag) AS folded LEFT JOIN litespend.words w ON w.id = folded.tag");
    if snapshot.has_deltas || !snapshot.dirty.is_empty() {
        query.push(
            r#" UNION ALL SELECT tag, sign, entries.spend FROM (
                 SELECT sign, request_tags, spend, user_id AS "user", team_id FROM litespend.deltas
                 WHERE sign <> 0 AND day BETWEEN "#,
        );
        query.push_bind(first).push(" AND ").push_bind(last);
        query.push(" AND day <> ALL (").push_bind(snapshot.dirty.clone());
        query.push(r#") UNION ALL SELECT 1, request_tags, spend, "user", team_id FROM unnest("#);
        query.push_bind(snapshot.dirty.clone()).push(
            r#"::date[]) AS dirty(day)
                 JOIN "LiteLLM_SpendLogs" ON "startTime" >= dirty.day AND "startTime" < dirty.day + 1
             ) AS entries CROSS JOIN LATERAL jsonb_array_elements_text(
                 CASE WHEN jsonb_typeof(request_tags) = 'array' THEN request_tags ELSE '[]' END) AS tag WHERE true"#,
        );
        push_scope(query, &filter.scope);
    }
    query.push(") AS parts WHERE true");
    if let Some(tags) = &filter.tags {
        query.push(" AND individual_request_tag = ANY (").push_bind(tags.clone()).push(")");
    }
    query.push(" GROUP BY 1 HAVING sum(log_count) > 0 ORDER BY total_spend DESC, 1");
}

/// Restricts a query on the spend log to the rows of a scope.
pub fn push_scope(query: &mut QueryBuilder<Postgres>, scope: &Scope) {
    match scope {
        Scope::All => {}
        Scope::Owned { user_id, team_ids } => {
            query.push(r#" AND ("user" = "#).push_bind(user_id.clone());
            query.push(" OR team_id = ANY (").push_bind(team_ids.clone()).push("))");
        }
    }
}
