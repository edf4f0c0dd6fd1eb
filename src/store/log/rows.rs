//! Rows of `LiteLLM_SpendLogs` for the dashboard: rows of a list, and the stored texts of one call.

use chrono::{NaiveDateTime, SecondsFormat};
use futures_util::stream::BoxStream;
use serde::{Serialize, Serializer};
use serde_json::Value;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::identity::Scope;
use crate::store::log::fields::{Bounds, Columns, JsonField};
use crate::store::tags::push_scope;
use crate::store::utc::read_from_either_type;

/// A timestamp of LiteLLM's tables, which is UTC without a zone. It is written as `2026-03-01T18:30:00.500+00:00`, and
/// without the fraction if that is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub NaiveDateTime);

read_from_either_type!(Instant);

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.and_utc().to_rfc3339_opts(SecondsFormat::AutoSi, false))
    }
}

/// A row of a list, without the texts of messages and responses.
#[derive(Debug, FromRow, Serialize, utoipa::ToSchema)]
pub struct ListedLog {
    /// ID of the request: the primary key of the log.
    pub request_id: String,
    /// Kind of call, for example `acompletion`.
    pub call_type: String,
    /// SHA-256 of the key.
    pub api_key: String,
    /// Spend in USD.
    pub spend: f64,
    /// Total tokens: prompt and completion tokens.
    pub total_tokens: i32,
    /// Prompt tokens.
    pub prompt_tokens: i32,
    /// Completion tokens.
    pub completion_tokens: i32,
    /// Start of the call, UTC.
    #[schema(value_type = String, format = DateTime)]
    #[serde(rename = "startTime")]
    #[sqlx(rename = "startTime")]
    pub start_time: Instant,
    /// End of the call, UTC.
    #[schema(value_type = String, format = DateTime)]
    #[serde(rename = "endTime")]
    #[sqlx(rename = "endTime")]
    pub end_time: Instant,
    /// Time of the first token, UTC.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(rename = "completionStartTime")]
    #[sqlx(rename = "completionStartTime")]
    pub completion_start_time: Option<Instant>,
    /// Name of the model that was called.
    pub model: String,
    /// ID of the deployment that served the call.
    pub model_id: Option<String>,
    /// Public model name.
    pub model_group: Option<String>,
    /// Name of the provider.
    pub custom_llm_provider: Option<String>,
    /// Base URL of the provider.
    pub api_base: Option<String>,
    /// User ID.
    pub user: Option<String>,
    /// Metadata of the call, as JSON.
    #[schema(value_type = Option<serde_json::Value>)]
    #[serde(serialize_with = "write_metadata")]
    pub metadata: JsonField,
    /// Whether the response came from the cache: `True`, `False`, or null.
    pub cache_hit: Option<String>,
    /// Cache key of the call.
    pub cache_key: Option<String>,
    /// Request tags.
    #[schema(value_type = Option<serde_json::Value>)]
    pub request_tags: JsonField,
    /// Team ID.
    pub team_id: Option<String>,
    /// Organisation ID.
    pub organization_id: Option<String>,
    /// End user ID.
    pub end_user: Option<String>,
    /// IP address of the client.
    pub requester_ip_address: Option<String>,
    /// Session ID.
    pub session_id: Option<String>,
    /// `success` or `failure`.
    pub status: Option<String>,
    /// Name of the MCP tool that was called, with its namespace.
    pub mcp_namespaced_tool_name: Option<String>,
    /// Agent ID.
    pub agent_id: Option<String>,
}

/// A row of a page of the log.
#[derive(Debug, FromRow, Serialize, utoipa::ToSchema)]
pub struct PagedLog {
    /// The row, as lists contain it.
    #[sqlx(flatten)]
    #[serde(flatten)]
    pub log: ListedLog,
    /// LiteLLM's call ID.
    pub litellm_call_id: Option<String>,
    /// Duration of the call in milliseconds.
    pub request_duration_ms: Option<i64>,
    /// Sums of the row's session. Absent if the route does not return them.
    #[sqlx(skip)]
    #[serde(flatten)]
    pub session: Option<SessionFields>,
}

impl ListedLog {
    /// Approximate size of the row in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let own = [&self.request_id, &self.call_type, &self.api_key, &self.model].into_iter().map(String::len);
        let other = [
            &self.model_id,
            &self.model_group,
            &self.custom_llm_provider,
            &self.api_base,
            &self.user,
            &self.cache_hit,
            &self.cache_key,
            &self.team_id,
            &self.organization_id,
            &self.end_user,
            &self.requester_ip_address,
            &self.session_id,
            &self.status,
            &self.mcp_namespaced_tool_name,
            &self.agent_id,
        ];
        let other = other.into_iter().flatten().map(String::len);
        size_of::<PagedLog>() + own.chain(other).sum::<usize>() + self.metadata.bytes() + self.request_tags.bytes()
    }
}

/// Sums over all calls of the row's session that were made with the same key.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SessionFields {
    /// Number of calls; 1 for a row without a session.
    pub session_total_count: i64,
    /// More sums, only for a row with a session.
    #[serde(flatten)]
    pub sums: Option<SessionTotals>,
}

/// More sums of a session.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SessionTotals {
    /// Spend in USD.
    pub session_total_spend: f64,
    /// Sum of the durations of the calls, in milliseconds.
    pub session_total_duration_ms: i64,
    /// Number of tool calls. Absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp_tool_call_count: Option<i64>,
    /// Spend of tool calls in USD. Absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp_tool_call_spend: Option<f64>,
    /// Number of calls that the cache answered.
    pub session_cache_hit_count: i64,
    /// Number of model calls.
    pub session_llm_count: i64,
    /// Number of messages to agents.
    pub session_agent_count: i64,
    /// Prompt tokens.
    pub session_total_prompt_tokens: i64,
    /// Completion tokens.
    pub session_total_completion_tokens: i64,
    /// Total tokens: prompt and completion tokens.
    pub session_total_tokens: i64,
    /// Names of the models, at most ten.
    pub session_models: Vec<String>,
    /// Whether the session used more models than are listed.
    pub session_models_truncated: bool,
}

/// Sums of one session and key, as the database returns them.
#[derive(Default, Clone, Debug, FromRow)]
pub struct SessionSums {
    /// Session ID.
    pub session_id: String,
    /// SHA-256 of the key.
    pub api_key: String,
    /// Number of calls.
    pub calls: i64,
    /// Spend in USD.
    pub spend: f64,
    /// Sum of the durations of the calls, in milliseconds.
    pub duration_ms: i64,
    /// Number of tool calls.
    pub tool_calls: i64,
    /// Spend of tool calls in USD.
    pub tool_spend: f64,
    /// Number of calls that the cache answered.
    pub cache_hits: i64,
    /// Number of model calls.
    pub llm_calls: i64,
    /// Number of messages to agents.
    pub agent_calls: i64,
    /// Prompt tokens.
    pub prompt_tokens: i64,
    /// Completion tokens.
    pub completion_tokens: i64,
    /// Total tokens: prompt and completion tokens.
    pub total_tokens: i64,
    /// Names of the models: up to one more than responses list.
    pub models: Vec<String>,
}

/// If the metadata was stored as a JSON string that itself contains JSON, writes the inner JSON.
fn write_metadata<S: Serializer>(metadata: &JsonField, serializer: S) -> Result<S::Ok, S::Error> {
    match metadata.text() {
        Some(stored) if stored.starts_with('"') => {
            let text: String = serde_json::from_str(stored).unwrap_or_default();
            match serde_json::from_str::<Value>(&text) {
                Ok(value) => value.serialize(serializer),
                Err(_) => Value::Object(serde_json::Map::new()).serialize(serializer),
            }
        }
        _ => metadata.serialize(serializer),
    }
}

/// Defaults of the columns that a LiteLLM before 1.109 may lack: the outer row of defaults.
pub(in crate::store) const NEWER_COLUMNS: &str = r#"
    SELECT NULL::integer AS request_duration_ms, NULL::text AS organization_id, NULL::text AS requester_ip_address,
           NULL::text AS session_id, NULL::text AS status, NULL::text AS mcp_namespaced_tool_name,
           NULL::text AS agent_id, NULL::text AS litellm_call_id, NULL::text AS model_id,
           '{}'::jsonb AS messages, '{}'::jsonb AS response, '{}'::jsonb AS proxy_server_request"#;

/// Columns of a list.
pub(in crate::store) const LIST_COLUMNS: &str = r#"
    request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens, "startTime", "endTime",
    "completionStartTime", model, model_id, model_group, custom_llm_provider, api_base, "user", metadata, cache_hit,
    cache_key, request_tags, team_id, organization_id, end_user, requester_ip_address, session_id, status,
    mcp_namespaced_tool_name, agent_id"#;

/// String columns of a page of the log.
const PAGED_TEXTS: &[&str] = &[
    "call_type",
    "api_key",
    "model",
    "model_id",
    "model_group",
    "custom_llm_provider",
    "api_base",
    r#""user""#,
    "cache_hit",
    "cache_key",
    "team_id",
    "organization_id",
    "end_user",
    "requester_ip_address",
    "session_id",
    "status",
    "mcp_namespaced_tool_name",
    "agent_id",
    "litellm_call_id",
];

/// Columns of the list of a session's rows.
const LISTED: Columns = Columns {
    plain: r#"
        request_id, spend, total_tokens, prompt_tokens, completion_tokens, "startTime", "endTime",
        "completionStartTime""#,
    // All string columns except LiteLLM's call ID.
    texts: PAGED_TEXTS.split_at(PAGED_TEXTS.len() - 1).0,
    json: &["metadata", "request_tags"],
};

/// Columns of a page of the log.
pub(super) const PAGED: Columns = Columns {
    plain: r#"
        request_id, spend, total_tokens, prompt_tokens, completion_tokens, "startTime", "endTime",
        "completionStartTime", request_duration_ms"#,
    texts: PAGED_TEXTS,
    json: &["metadata", "request_tags"],
};

/// Limits on the JSON of one row in a list, in bytes.
pub(super) const LIST_BOUNDS: Bounds = Bounds { column: 1024 * 1024, row: 2 * 1024 * 1024 };

/// Columns that a page of the log has in addition to [`LIST_COLUMNS`].
pub(in crate::store) const CALL_COLUMNS: &str = r#"
    litellm_call_id,
    COALESCE(request_duration_ms, (extract(epoch FROM "endTime" - "startTime") * 1000)::bigint)
        AS request_duration_ms"#;

/// Number of rows of a session within the scope.
pub async fn count_of_session(
    connection: &mut PgConnection,
    scope: &Scope,
    session_id: &str,
) -> Result<i64, sqlx::Error> {
    let mut count = QueryBuilder::<Postgres>::new(
        r#"SELECT log.* FROM (SELECT NULL::text AS session_id) AS defaults
           CROSS JOIN LATERAL (SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE session_id = "#,
    );
    count.push_bind(session_id.to_owned());
    push_scope(&mut count, scope);
    count.push(") AS log");
    count.build_query_scalar().fetch_one(connection).await
}

/// Streams a page of a session's rows, newest first.
pub fn of_session<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    scope: &Scope,
    session_id: &str,
    offset: i64,
    limit: i64,
) -> BoxStream<'q, Result<ListedLog, sqlx::Error>> {
    LISTED.push(query, LIST_BOUNDS, |query| {
        query.push("SELECT log.* FROM (");
        query.push(NEWER_COLUMNS).push(") AS defaults CROSS JOIN LATERAL (SELECT ").push(LIST_COLUMNS);
        query.push(r#" FROM "LiteLLM_SpendLogs" WHERE session_id = "#).push_bind(session_id.to_owned());
        push_scope(query, scope);
        query.push(r#" ORDER BY "startTime" DESC, request_id DESC LIMIT "#).push_bind(limit);
        query.push(" OFFSET ").push_bind(offset);
        query.push(r#") AS log ORDER BY log."startTime" DESC, log.request_id DESC"#);
    });
    query.build_query_as().fetch(connection)
}

/// The stored texts of one call. LiteLLM stores them only if it is configured to.
#[derive(Debug, FromRow, Serialize, utoipa::ToSchema)]
pub struct LogTexts {
    /// The row's request ID.
    #[serde(skip)]
    pub request_id: String,
    /// Messages of the call.
    #[schema(value_type = Option<serde_json::Value>)]
    pub messages: JsonField,
    /// Response of the call.
    #[schema(value_type = Option<serde_json::Value>)]
    pub response: JsonField,
    /// Request as the proxy received it.
    #[schema(value_type = Option<serde_json::Value>)]
    pub proxy_server_request: JsonField,
}

impl LogTexts {
    /// The texts with their column names.
    pub fn columns(&self) -> [(&'static str, &JsonField); 3] {
        [
            ("messages", &self.messages),
            ("response", &self.response),
            ("proxy_server_request", &self.proxy_server_request),
        ]
    }
}

const TEXTS: Columns =
    Columns { plain: "request_id", texts: &[], json: &["messages", "response", "proxy_server_request"] };

/// Size limits, in bytes, for texts that need no permit from the memory budget of large responses.
pub const SHORT_TEXTS: Bounds = Bounds { column: 1024 * 1024, row: 1024 * 1024 };

/// Absolute size limits, in bytes, for the texts of a call.
pub const LONG_TEXTS: Bounds = Bounds { column: 16 * 1024 * 1024, row: 16 * 1024 * 1024 };

/// The texts of the row with this request ID or LiteLLM call ID. A matching request ID takes precedence, and then the newest
/// row.
pub async fn texts(
    connection: &mut PgConnection,
    scope: &Scope,
    request_id: &str,
    bounds: Bounds,
) -> Result<Option<LogTexts>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("");
    TEXTS.push(&mut query, bounds, |query| {
        query.push("SELECT log.* FROM (").push(NEWER_COLUMNS);
        query.push(") AS defaults CROSS JOIN LATERAL (SELECT request_id, messages, response, proxy_server_request");
        query.push(r#" FROM "LiteLLM_SpendLogs" WHERE (request_id = "#).push_bind(request_id.to_owned());
        query.push(" OR litellm_call_id = ").push_bind(request_id.to_owned()).push(")");
        push_scope(query, scope);
        query
            .push(" ORDER BY (request_id = ")
            .push_bind(request_id.to_owned())
            .push(r#") DESC, "startTime" DESC LIMIT 1) AS log"#);
    });
    query.build_query_as().fetch_optional(connection).await
}

/// Whether the user may read at least one of the rows with this request ID or LiteLLM call ID. A user may read their
/// own rows. A user may also read a team's rows as admin of the team, or as a member if the team has the `permission`.
pub async fn may_read(
    connection: &mut PgConnection,
    request_id: &str,
    user_id: Option<&str>,
    permission: &str,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT EXISTS (
               SELECT FROM (SELECT NULL::text AS litellm_call_id, NULL::text[] AS team_member_permissions) AS defaults
               CROSS JOIN LATERAL (SELECT "user" AS owner, team_id FROM "LiteLLM_SpendLogs"
                                   WHERE request_id = $1 OR litellm_call_id = $1) AS log
               LEFT JOIN LATERAL (SELECT members_with_roles, team_member_permissions FROM "LiteLLM_TeamTable"
                                  WHERE team_id = log.team_id AND team_id <> '') AS team ON true
               WHERE log.owner = $2 OR EXISTS (
                   SELECT FROM jsonb_array_elements(CASE WHEN jsonb_typeof(team.members_with_roles) = 'array'
                                                         THEN team.members_with_roles ELSE '[]' END) AS member
                   WHERE member ->> 'user_id' = $2
                     AND (member ->> 'role' = 'admin' OR $3 = ANY (team.team_member_permissions))))"#,
    )
    .bind(request_id)
    .bind(user_id)
    .bind(permission)
    .fetch_one(connection)
    .await
}
