//! The spend log, `LiteLLM_SpendLogs`: its rows, and sums by day.

pub mod fields;
pub mod filter;
pub mod months;
pub mod pages;
pub mod rows;
pub mod search;

use std::borrow::Cow;
use std::fmt;

use chrono::{NaiveDate, NaiveDateTime};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use serde::{Serialize, Serializer};
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::store::log::fields::{Bounds, Columns, JsonField};
use crate::store::utc::{UtcTimestamp, read_from_either_type};

/// Maximum number of rows in one response: LiteLLM's limit.
pub const ROW_CAP: i64 = 10_000;

/// A timestamp of LiteLLM's tables, which is UTC without a zone. It is written as `2026-03-01T18:30:00.500000Z`, and
/// without the fraction if that is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub NaiveDateTime);

read_from_either_type!(Timestamp);

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.0.and_utc().timestamp_subsec_micros() == 0;
        let format = if whole { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%.6fZ" };
        self.0.format(format).fmt(formatter)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A row of the log with all columns.
#[derive(Debug, FromRow, Serialize, utoipa::ToSchema)]
pub struct SpendLog {
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
    pub start_time: Timestamp,
    /// End of the call, UTC.
    #[schema(value_type = String, format = DateTime)]
    #[serde(rename = "endTime")]
    #[sqlx(rename = "endTime")]
    pub end_time: Timestamp,
    /// Duration of the call in milliseconds.
    pub request_duration_ms: Option<i32>,
    /// Time of the first token, UTC.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(rename = "completionStartTime")]
    #[sqlx(rename = "completionStartTime")]
    pub completion_start_time: Option<Timestamp>,
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
    #[schema(value_type = Option<Value>)]
    pub metadata: JsonField,
    /// Whether the response came from the cache: `True`, `False`, or null.
    pub cache_hit: Option<String>,
    /// Cache key of the call.
    pub cache_key: Option<String>,
    /// Request tags: a list of strings, unless a client stored something else.
    #[schema(value_type = Option<Value>)]
    pub request_tags: JsonField,
    /// Team ID.
    pub team_id: Option<String>,
    /// Organisation ID.
    pub organization_id: Option<String>,
    /// End user ID.
    pub end_user: Option<String>,
    /// IP address of the client.
    pub requester_ip_address: Option<String>,
    /// Messages of the call, if LiteLLM stores them.
    #[schema(value_type = Option<Value>)]
    pub messages: JsonField,
    /// Response of the call, if LiteLLM stores it.
    #[schema(value_type = Option<Value>)]
    pub response: JsonField,
    /// Session ID.
    pub session_id: Option<String>,
    /// `success` or `failure`.
    pub status: Option<String>,
    /// Name of the MCP tool that was called, with its namespace.
    pub mcp_namespaced_tool_name: Option<String>,
    /// ID of the agent that is billed.
    pub billing_agent_id: Option<String>,
    /// Agent ID.
    pub agent_id: Option<String>,
    /// Request as the proxy received it, if LiteLLM stores it.
    #[schema(value_type = Option<Value>)]
    pub proxy_server_request: JsonField,
    /// LiteLLM's call ID.
    pub litellm_call_id: Option<String>,
    /// Time when the row was written, UTC.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub created_at: Option<Timestamp>,
    /// Time when the row was last changed, UTC.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub updated_at: Option<Timestamp>,
}

impl SpendLog {
    /// Names of the columns, in the order of [`SpendLog::texts`].
    pub const NAMES: [&'static str; 36] = [
        "request_id",
        "call_type",
        "api_key",
        "spend",
        "total_tokens",
        "prompt_tokens",
        "completion_tokens",
        "startTime",
        "endTime",
        "request_duration_ms",
        "completionStartTime",
        "model",
        "model_id",
        "model_group",
        "custom_llm_provider",
        "api_base",
        "user",
        "metadata",
        "cache_hit",
        "cache_key",
        "request_tags",
        "team_id",
        "organization_id",
        "end_user",
        "requester_ip_address",
        "messages",
        "response",
        "session_id",
        "status",
        "mcp_namespaced_tool_name",
        "billing_agent_id",
        "agent_id",
        "proxy_server_request",
        "litellm_call_id",
        "created_at",
        "updated_at",
    ];

    /// Names of the numeric columns.
    pub const NUMBERS: [&'static str; 5] =
        ["spend", "total_tokens", "prompt_tokens", "completion_tokens", "request_duration_ms"];
    /// Number of JSON columns that are left out because they are too long.
    pub fn left_out(&self) -> usize {
        let columns = [&self.metadata, &self.request_tags, &self.messages, &self.response, &self.proxy_server_request];
        columns.into_iter().filter(|column| column.is_left_out()).count()
    }

    /// The values as strings for a table: the empty string for null, JSON text for the JSON columns.
    pub fn texts(&self) -> [Cow<'_, str>; 36] {
        [
            Cow::from(&self.request_id),
            Cow::from(&self.call_type),
            Cow::from(&self.api_key),
            Cow::from(self.spend.to_string()),
            Cow::from(self.total_tokens.to_string()),
            Cow::from(self.prompt_tokens.to_string()),
            Cow::from(self.completion_tokens.to_string()),
            Cow::from(self.start_time.to_string()),
            Cow::from(self.end_time.to_string()),
            number(self.request_duration_ms),
            number(self.completion_start_time),
            Cow::from(&self.model),
            text(&self.model_id),
            text(&self.model_group),
            text(&self.custom_llm_provider),
            text(&self.api_base),
            text(&self.user),
            json(&self.metadata),
            text(&self.cache_hit),
            text(&self.cache_key),
            json(&self.request_tags),
            text(&self.team_id),
            text(&self.organization_id),
            text(&self.end_user),
            text(&self.requester_ip_address),
            json(&self.messages),
            json(&self.response),
            text(&self.session_id),
            text(&self.status),
            text(&self.mcp_namespaced_tool_name),
            text(&self.billing_agent_id),
            text(&self.agent_id),
            json(&self.proxy_server_request),
            text(&self.litellm_call_id),
            number(self.created_at),
            number(self.updated_at),
        ]
    }
}

fn text(value: &Option<String>) -> Cow<'_, str> {
    Cow::from(value.as_deref().unwrap_or_default())
}

fn number(value: Option<impl ToString>) -> Cow<'static, str> {
    Cow::from(value.map(|value| value.to_string()).unwrap_or_default())
}

fn json(value: &JsonField) -> Cow<'_, str> {
    Cow::from(value.text().unwrap_or_default())
}

/// Defaults of the columns that a LiteLLM before 1.109 may lack: the outer row of defaults.
const NEWER_COLUMNS: &str = r#"
    SELECT NULL::integer AS request_duration_ms, NULL::text AS organization_id, NULL::text AS requester_ip_address,
           '{}'::jsonb AS messages, '{}'::jsonb AS response, NULL::text AS session_id, NULL::text AS status,
           NULL::text AS mcp_namespaced_tool_name, NULL::text AS billing_agent_id, NULL::text AS agent_id,
           '{}'::jsonb AS proxy_server_request, NULL::text AS litellm_call_id, NULL::timestamp AS created_at,
           NULL::timestamp AS updated_at, NULL::text AS model_id"#;

const COLUMNS: Columns = Columns {
    plain: r#"
        request_id, spend, total_tokens, prompt_tokens, completion_tokens, "startTime", "endTime", request_duration_ms,
        "completionStartTime", created_at, updated_at"#,
    texts: &[
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
        "billing_agent_id",
        "agent_id",
        "litellm_call_id",
    ],
    json: &["metadata", "request_tags", "messages", "response", "proxy_server_request"],
};

/// Limit on the JSON of one row, in bytes. A row is held in memory as a whole while it is sent.
pub const ROW_BOUNDS: Bounds = Bounds { column: 8 * 1024 * 1024, row: 8 * 1024 * 1024 };

/// Which rows of the log to read. `None` in a field means no restriction.
#[derive(Clone, Debug, Default)]
pub struct SpendLogFilter {
    /// SHA-256 of the key.
    pub api_key: Option<String>,
    /// User ID.
    pub user_id: Option<String>,
    /// The row's request ID, or LiteLLM's call ID.
    pub request_id: Option<String>,
    /// Earliest start of a call, included.
    pub from: Option<NaiveDateTime>,
    /// Latest start of a call, included.
    pub to: Option<NaiveDateTime>,
    /// Only rows after this position in the order of the response, which means older rows.
    pub after: Option<LogPosition>,
    /// Only rows up to this position, which is included. Needs `by_bytes`.
    pub until: Option<LogPosition>,
    /// Whether request IDs are ordered by their bytes, as in the archive, and not by the database's collation.
    pub by_bytes: bool,
}

/// Position of a row in the log, which is ordered by start of the call and then by request ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// Start of the call, UTC.
    pub start_time: NaiveDateTime,
    /// ID of the request: the primary key of the log.
    pub request_id: String,
}

impl SpendLogFilter {
    /// Whether the filter asks for one request. Any number of calls may have an empty ID.
    pub fn names_request(&self) -> bool {
        self.request_id.as_deref().is_some_and(|id| !id.is_empty())
    }

    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        query.push(" WHERE true");
        if let Some(api_key) = &self.api_key {
            query.push(" AND api_key = ").push_bind(api_key.clone());
        }
        if let Some(user_id) = &self.user_id {
            query.push(r#" AND "user" = "#).push_bind(user_id.clone());
        }
        if let Some(request_id) = &self.request_id {
            query.push(" AND (request_id = ").push_bind(request_id.clone());
            query.push(" OR litellm_call_id = ").push_bind(request_id.clone()).push(")");
        }
        if let Some(from) = self.from {
            query.push(r#" AND "startTime" >= "#).push_bind(from);
        }
        if let Some(to) = self.to {
            query.push(r#" AND "startTime" <= "#).push_bind(to);
        }
        if let Some(after) = &self.after {
            if self.by_bytes {
                // For the index, which has another collation.
                query.push(r#" AND "startTime" <= "#).push_bind(after.start_time);
            }
            query.push(r#" AND ("startTime", request_id"#).push(self.collation()).push(") < (");
            query.push_bind(after.start_time).push(", ").push_bind(after.request_id.clone()).push(")");
        }
        if let Some(until) = &self.until {
            // For the index, as above.
            query.push(r#" AND "startTime" >= "#).push_bind(until.start_time);
            query.push(r#" AND ("startTime", request_id"#).push(self.collation()).push(") >= (");
            query.push_bind(until.start_time).push(", ").push_bind(until.request_id.clone()).push(")");
        }
    }

    fn collation(&self) -> &'static str {
        if self.by_bytes { r#" COLLATE "C""# } else { "" }
    }

    fn push_order(&self, query: &mut QueryBuilder<Postgres>) {
        query.push(r#" ORDER BY "startTime" DESC, request_id"#).push(self.collation()).push(" DESC");
    }
}

/// Keeps the partitions of the log, and rows from being truncated, until the transaction ends. As the first statement of a
/// snapshot, it waits for those who are about to drop partitions; the snapshot then begins after them.
pub async fn keep(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(r#"LOCK TABLE "LiteLLM_SpendLogs" IN ACCESS SHARE MODE"#).execute(connection).await.map(drop)
}

/// Streams the newest `limit` rows, newest first.
pub fn newest<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    filter: &SpendLogFilter,
    limit: i64,
) -> BoxStream<'q, Result<SpendLog, sqlx::Error>> {
    COLUMNS.push(query, ROW_BOUNDS, |query| {
        query.push("SELECT log.* FROM (").push(NEWER_COLUMNS).push(") AS defaults CROSS JOIN LATERAL (SELECT ");
        query.push(COLUMNS.plain);
        for name in COLUMNS.texts.iter().chain(COLUMNS.json) {
            query.push(", ").push(*name);
        }
        query.push(r#" FROM "LiteLLM_SpendLogs""#);
        filter.push(query);
        filter.push_order(query);
        query.push(" LIMIT ").push_bind(limit);
        query.push(r#") AS log ORDER BY log."startTime" DESC, log.request_id"#).push(filter.collation()).push(" DESC");
    });
    query.build_query_as().fetch(connection)
}

/// Whether at least `limit` rows match the filter.
pub async fn reaches(connection: &mut PgConnection, filter: &SpendLogFilter, limit: i64) -> Result<bool, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new(
        r#"SELECT 1 FROM (SELECT NULL::text AS litellm_call_id) AS defaults
           CROSS JOIN LATERAL (SELECT 1 FROM "LiteLLM_SpendLogs""#,
    );
    filter.push(&mut query);
    query.push(" OFFSET ").push_bind(limit.saturating_sub(1)).push(" LIMIT 1) AS log");
    Ok(query.build().fetch_optional(connection).await?.is_some())
}

/// Position of the last row of a page of `limit` rows, if more rows follow it. `None` otherwise.
pub async fn end_of_page(
    connection: &mut PgConnection,
    filter: &SpendLogFilter,
    limit: i64,
) -> Result<Option<LogPosition>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new(
        r#"SELECT log.* FROM (SELECT NULL::text AS litellm_call_id) AS defaults
           CROSS JOIN LATERAL (SELECT "startTime", request_id FROM "LiteLLM_SpendLogs""#,
    );
    filter.push(&mut query);
    filter.push_order(&mut query);
    query.push(" OFFSET ").push_bind(limit.saturating_sub(1));
    query.push(r#" LIMIT 2) AS log ORDER BY log."startTime" DESC, log.request_id"#);
    query.push(filter.collation()).push(" DESC");
    let found: Vec<(UtcTimestamp, String)> = query.build_query_as().fetch_all(connection).await?;
    let mut found = found.into_iter();
    let last = found.next().map(|(UtcTimestamp(start_time), request_id)| LogPosition { start_time, request_id });
    Ok(last.filter(|_| found.next().is_some()))
}

/// Streams the positions of the newest `limit` rows, newest first.
pub fn positions<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    filter: &SpendLogFilter,
    limit: i64,
) -> BoxStream<'q, Result<LogPosition, sqlx::Error>> {
    query.push(
        r#"SELECT log.* FROM (SELECT NULL::text AS litellm_call_id) AS defaults
           CROSS JOIN LATERAL (SELECT "startTime", request_id FROM "LiteLLM_SpendLogs""#,
    );
    filter.push(query);
    filter.push_order(query);
    query.push(" LIMIT ").push_bind(limit);
    query.push(r#") AS log ORDER BY log."startTime" DESC, log.request_id"#).push(filter.collation()).push(" DESC");
    let found = query.build_query_as::<(UtcTimestamp, String)>().fetch(connection);
    found.map_ok(|(UtcTimestamp(start_time), request_id)| LogPosition { start_time, request_id }).boxed()
}

/// Spend of one combination of key, user and model on one day.
#[derive(Clone, Debug, FromRow)]
pub struct DaySpend {
    /// Day, UTC.
    pub day: NaiveDate,
    /// SHA-256 of the key.
    pub api_key: String,
    /// User ID.
    pub user: Option<String>,
    /// Name of the model that was called.
    pub model: String,
    /// Spend in USD.
    pub spend: f64,
}

/// Streams the spend by day, key, user and model, days ascending.
pub fn by_day<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    filter: &SpendLogFilter,
) -> BoxStream<'q, Result<DaySpend, sqlx::Error>> {
    query.push(
        r#"SELECT log.* FROM (SELECT NULL::text AS litellm_call_id) AS defaults CROSS JOIN LATERAL (
           SELECT "startTime"::date AS day, api_key, "user", model, sum(spend) AS spend FROM "LiteLLM_SpendLogs""#,
    );
    filter.push(query);
    query.push(" GROUP BY 1, 2, 3, 4) AS log ORDER BY log.day");
    query.build_query_as().fetch(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_have_a_fraction_only_where_it_is_not_zero() {
        let text = |value: &str| {
            let parsed = NaiveDateTime::parse_from_str(value, "%Y-%m-%dT%H:%M:%S%.f").expect("a timestamp");
            serde_json::to_string(&Timestamp(parsed)).expect("serialises")
        };
        assert_eq!(text("2026-03-01T18:30:00.500"), r#""2026-03-01T18:30:00.500000Z""#);
        assert_eq!(text("2026-03-01T18:30:00"), r#""2026-03-01T18:30:00Z""#);
    }
}
