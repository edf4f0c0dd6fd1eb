//! The filters of the dashboard's log page, as SQL conditions on `LiteLLM_SpendLogs`.

use chrono::NaiveDateTime;
use sqlx::{Postgres, QueryBuilder};

use crate::identity::Scope;
use crate::store::log::rows::{CALL_COLUMNS, LIST_COLUMNS, NEWER_COLUMNS};
use crate::store::log::search::{push_contains, push_contains_like, text_of};
use crate::store::tags::push_scope;

/// Values of `api_key` under which LiteLLM books its own health checks: the name of the account, and the name's
/// SHA-256.
const HEALTH_CHECKS: [&str; 2] =
    ["litellm-internal-health-check", "2ee659761968def976c7905217d96fa6e765f300dfb066f6c73fd3c279b3435a"];

/// SQL expression for the ID of a row's session. A row without a session is a session of its own, identified by the
/// request ID.
pub(in crate::store) const SESSION_KEY: &str = "COALESCE(NULLIF(session_id, ''), request_id)";

/// Sort order that puts the representative row of a session first. The representative is the agent message that ended
/// last. Without agent messages, it is the newest row that is not a tool call.
pub(in crate::store) const REPRESENTATIVE: &str = r#"
    (log.call_type = 'asend_message') DESC,
    CASE WHEN log.call_type = 'asend_message' THEN log."endTime" END DESC NULLS LAST,
    log.call_type IN ('call_mcp_tool', 'list_mcp_tools'), log."startTime" DESC, log.request_id"#;

/// Kind of call that a row records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanType {
    /// A model call.
    Llm,
    /// A message to an agent.
    Agent,
    /// A call of an MCP tool.
    Mcp,
    /// A batch.
    Batch,
}

impl SpanType {
    /// The call types of this kind. `None`: all that no other kind has.
    pub fn call_types(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Mcp => Some(&["call_mcp_tool", "list_mcp_tools"]),
            Self::Agent => Some(&["asend_message"]),
            Self::Batch => Some(&["acreate_batch", "create_batch", "aretrieve_batch", "retrieve_batch"]),
            Self::Llm => None,
        }
    }

    fn condition(self) -> &'static str {
        match self {
            Self::Mcp => "call_type IN ('call_mcp_tool', 'list_mcp_tools')",
            Self::Agent => "call_type = 'asend_message'",
            Self::Batch => "call_type IN ('acreate_batch', 'create_batch', 'aretrieve_batch', 'retrieve_batch')",
            Self::Llm => {
                "call_type NOT IN ('call_mcp_tool', 'list_mcp_tools', 'asend_message', 'acreate_batch',
                                   'create_batch', 'aretrieve_batch', 'retrieve_batch')"
            }
        }
    }
}

/// Which rows to list. Strings must be equal unless the field says otherwise. `None` in a field means no restriction.
#[derive(Clone, Debug)]
pub struct LogFilter {
    /// Rows that the caller may see.
    pub scope: Scope,
    /// Earliest and latest start of the call, both included.
    pub window: Option<(NaiveDateTime, NaiveDateTime)>,
    /// An ID to search for, and an earliest and latest start of the call. The row's own request ID matches at any time.
    /// All other IDs of a row match only within these times.
    pub search: Option<(String, NaiveDateTime, NaiveDateTime)>,
    /// Columns that must have the given value.
    pub equal: Vec<(Column, String)>,
    /// The row's request ID, or LiteLLM's call ID.
    pub request_id: Option<String>,
    /// A substring of the session ID.
    pub session_part: Option<String>,
    /// Status of the row or session. `success` also matches a row without a status.
    pub status: Option<String>,
    /// Whether the response came from the cache.
    pub cache_hit: Option<bool>,
    /// Kind of call.
    pub span_type: Option<SpanType>,
    /// Whether to leave out LiteLLM's own health checks.
    pub no_health_checks: bool,
    /// Minimum spend, in USD.
    pub min_spend: Option<f64>,
    /// Maximum spend, in USD.
    pub max_spend: Option<f64>,
    /// A substring of the alias that the key had when it was used. The wildcards of `LIKE` work in it.
    pub key_alias: Option<String>,
    /// Error code of the call.
    pub error_code: Option<String>,
    /// A substring of the error message. The wildcards of `LIKE` work in it.
    pub error_message: Option<String>,
    /// Whether the provider was called with the client's own token.
    pub client_token: Option<bool>,
}

/// A column that a filter compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// `team_id`
    Team,
    /// `user`
    User,
    /// `api_key`
    ApiKey,
    /// `model`
    Model,
    /// `model_id`
    ModelId,
    /// `model_group`
    ModelGroup,
    /// `end_user`
    EndUser,
    /// `session_id`
    Session,
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Self::Team => "team_id",
            Self::User => r#""user""#,
            Self::ApiKey => "api_key",
            Self::Model => "model",
            Self::ModelId => "model_id",
            Self::ModelGroup => "model_group",
            Self::EndUser => "end_user",
            Self::Session => "session_id",
        }
    }
}

impl LogFilter {
    /// A filter for everything that a scope allows.
    pub fn of(scope: Scope) -> Self {
        Self {
            scope,
            window: None,
            search: None,
            equal: Vec::new(),
            request_id: None,
            session_part: None,
            status: None,
            cache_hit: None,
            span_type: None,
            no_health_checks: false,
            min_spend: None,
            max_spend: None,
            key_alias: None,
            error_code: None,
            error_message: None,
            client_token: None,
        }
    }

    /// Whether the filter asks for one request. Any number of calls may have an empty ID.
    pub fn names_request(&self) -> bool {
        self.request_id.as_deref().is_some_and(|id| !id.is_empty())
    }

    /// Pushes ` WHERE ...`: the conditions on columns of the log, without the status of sessions.
    pub(in crate::store) fn push(&self, query: &mut QueryBuilder<Postgres>, outcomes: Outcomes) {
        query.push(" WHERE true");
        push_scope(query, &self.scope);
        if let Some((from, to)) = self.window {
            query.push(r#" AND "startTime" >= "#).push_bind(from);
            query.push(r#" AND "startTime" <= "#).push_bind(to);
        }
        if let Some((id, from, to)) = &self.search {
            query.push(" AND (request_id = ").push_bind(id.clone());
            query.push(r#" OR ("startTime" >= "#).push_bind(*from).push(r#" AND "startTime" <= "#).push_bind(*to);
            query.push(" AND ").push_bind(id.clone());
            query.push(r#" IN (litellm_call_id, api_key, team_id, "user", end_user, session_id, model_id)))"#);
        }
        for (column, value) in &self.equal {
            query.push(" AND ").push(column.name()).push(" = ").push_bind(value.clone());
        }
        if let Some(id) = &self.request_id {
            query.push(" AND (request_id = ").push_bind(id.clone());
            query.push(" OR litellm_call_id = ").push_bind(id.clone()).push(")");
        }
        if let Some(part) = &self.session_part {
            query.push(" AND ");
            push_contains(query, "session_id", part);
        }
        self.push_details(query);
        if let (Some(status), Outcomes::OfRows) = (&self.status, outcomes) {
            query.push(" AND (status = ").push_bind(status.clone());
            query.push(if status == "success" { " OR status IS NULL)" } else { ")" });
        }
    }

    fn push_details(&self, query: &mut QueryBuilder<Postgres>) {
        match self.cache_hit {
            Some(true) => query.push(" AND lower(cache_hit) = 'true'"),
            Some(false) => query.push(" AND (cache_hit IS NULL OR lower(cache_hit) <> 'true')"),
            None => query,
        };
        if let Some(span_type) = self.span_type {
            query.push(" AND ").push(span_type.condition());
        }
        if self.no_health_checks {
            query.push(" AND api_key <> ALL (").push_bind(HEALTH_CHECKS.map(str::to_owned).to_vec()).push(")");
        }
        if let Some(least) = self.min_spend {
            query.push(" AND spend >= ").push_bind(least);
        }
        if let Some(most) = self.max_spend {
            query.push(" AND spend <= ").push_bind(most);
        }
        if let Some(part) = &self.key_alias {
            query.push(" AND ");
            push_contains_like(query, &text_of("metadata -> 'user_api_key_alias'"), part);
        }
        if let Some(code) = &self.error_code {
            query.push(" AND ").push(text_of("metadata -> 'error_information' -> 'error_code'"));
            query.push(" = ").push_bind(code.clone());
        }
        if let Some(part) = &self.error_message {
            query.push(" AND ");
            push_contains_like(query, &text_of("metadata -> 'error_information' -> 'error_message'"), part);
        }
        if let Some(used) = self.client_token {
            query.push(" AND ").push(text_of("metadata -> 'used_client_oauth_token'"));
            query.push(" = ").push_bind(used.to_string());
        }
    }

    /// Pushes ` FROM ... WHERE ...`: the matching rows as `log`, with LiteLLM's column names. With
    /// [`Outcomes::OfSessions`], the status filter selects whole sessions by the status of their representative row.
    pub(super) fn push_rows(&self, query: &mut QueryBuilder<Postgres>, outcomes: Outcomes) {
        query.push(" FROM (").push(NEWER_COLUMNS).push(") AS defaults CROSS JOIN LATERAL (SELECT ");
        query.push(LIST_COLUMNS).push(", ").push(CALL_COLUMNS).push(", ").push(SESSION_KEY).push(" AS session_key");
        query.push(r#" FROM "LiteLLM_SpendLogs""#);
        self.push(query, outcomes);
        query.push(") AS log");
        if let (Some(status), Outcomes::OfSessions) = (&self.status, outcomes) {
            query.push(" WHERE (log.session_key, log.api_key) IN (SELECT session_key, api_key FROM (");
            query.push("SELECT DISTINCT ON (log.session_key, log.api_key) log.session_key, log.api_key, log.status");
            let everything = Self { status: None, ..self.clone() };
            everything.push_rows(query, Outcomes::OfRows);
            query.push(" ORDER BY log.session_key, log.api_key, ").push(REPRESENTATIVE);
            query.push(") AS outcomes WHERE COALESCE(status, 'success') = ").push_bind(status.clone()).push(")");
        }
    }
}

/// Which row's status the status filter compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcomes {
    /// The status of each row itself.
    OfRows,
    /// The status of the session's representative row.
    OfSessions,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_calls_are_the_same_here_and_in_the_database() {
        for span_type in [SpanType::Mcp, SpanType::Agent, SpanType::Batch] {
            let quoted: Vec<&str> = span_type.condition().split('\'').skip(1).step_by(2).collect();
            assert_eq!(Some(quoted.as_slice()), span_type.call_types(), "{span_type:?}");
        }
    }
}
