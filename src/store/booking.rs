//! Booking: rows of the spend log with every counter and daily row that follows from them. The functions here are
//! the steps of one transaction, in the order in which they take locks, so that two bookings can't wait for each
//! other: new names, ids, rows of the log, keys, users, teams, organisations, end users, team members, then the daily
//! tables; within each in the order of their bytes. LiteLLM locks its rows in the same order.
//!
//! Nothing is counted that [`insert`] did not return: a row that stands in the log already was counted when it came.

pub mod counters;
pub mod daily;
pub mod ids;
pub mod names;

use std::collections::HashSet;

use chrono::NaiveDateTime;
use sqlx::{FromRow, PgConnection};

/// A row of `LiteLLM_SpendLogs` to be booked, with what the daily tables need beside it. Texts hold no NUL, JSON
/// texts are JSON, timestamps are whole milliseconds UTC.
#[derive(Clone, Debug, Default)]
pub struct UsageRow {
    /// Primary key of the log: what makes a record itself.
    pub request_id: String,
    /// Kind of call, as LiteLLM names it.
    pub call_type: String,
    /// Hash of the key.
    pub api_key: String,
    /// USD.
    pub spend: f64,
    /// All tokens.
    pub total_tokens: i32,
    /// Prompt tokens.
    pub prompt_tokens: i32,
    /// Completion tokens.
    pub completion_tokens: i32,
    /// Start of the call.
    pub start_time: NaiveDateTime,
    /// End of the call.
    pub end_time: NaiveDateTime,
    /// First token.
    pub completion_start_time: Option<NaiveDateTime>,
    /// Duration in milliseconds, where it was measured.
    pub request_duration_ms: Option<i32>,
    /// Model.
    pub model: String,
    /// Deployment.
    pub model_id: String,
    /// Public model name.
    pub model_group: String,
    /// Provider.
    pub custom_llm_provider: String,
    /// Base URL of the provider.
    pub api_base: String,
    /// User; empty where there is none, as LiteLLM writes it.
    pub user: String,
    /// Team; empty where there is none.
    pub team_id: String,
    /// Organisation; empty where there is none.
    pub organization_id: String,
    /// End user; empty where there is none.
    pub end_user: String,
    /// JSON object.
    pub metadata: String,
    /// `True`, `False` or nothing.
    pub cache_hit: String,
    /// Key in LiteLLM's cache.
    pub cache_key: String,
    /// Tags, each once.
    pub tags: Vec<String>,
    /// The client's address.
    pub requester_ip_address: Option<String>,
    /// JSON, where prompts are stored.
    pub messages: Option<String>,
    /// JSON, where answers are stored.
    pub response: Option<String>,
    /// JSON, where requests are stored.
    pub proxy_server_request: Option<String>,
    /// Session.
    pub session_id: Option<String>,
    /// `success` or `failure`.
    pub status: String,
    /// MCP tool.
    pub mcp_namespaced_tool_name: Option<String>,
    /// Agent.
    pub agent_id: Option<String>,
    /// LiteLLM's id of the call.
    pub litellm_call_id: Option<String>,
    /// Tokens read from a provider's cache.
    pub cache_read_tokens: i64,
    /// Tokens written to a provider's cache.
    pub cache_creation_tokens: i64,
}

/// To whom a key's usage belongs.
#[derive(Clone, Debug, FromRow)]
pub struct KeyOwner {
    /// SHA-256 of the key.
    pub token: String,
    /// User.
    pub user_id: Option<String>,
    /// Team.
    pub team_id: Option<String>,
    /// Organisation: the key's, else its team's.
    pub organization_id: Option<String>,
}

/// The owners of these keys, of deleted ones as well. Keys that never were are missing.
pub async fn key_owners(connection: &mut PgConnection, tokens: &[&str]) -> Result<Vec<KeyOwner>, sqlx::Error> {
    sqlx::query_as(
        r#"
        SELECT k.token, k.user_id, k.team_id, COALESCE(k.organization_id, t.organization_id) AS organization_id
        FROM (
            SELECT token, user_id, team_id, organization_id FROM "LiteLLM_VerificationToken" WHERE token = ANY ($1)
            UNION ALL
            (SELECT DISTINCT ON (token) token, user_id, team_id, organization_id
             FROM "LiteLLM_DeletedVerificationToken" AS gone
             WHERE token = ANY ($1)
               AND NOT EXISTS (SELECT FROM "LiteLLM_VerificationToken" AS live WHERE live.token = gone.token)
             ORDER BY token, deleted_at DESC)
        ) AS k
        LEFT JOIN "LiteLLM_TeamTable" t ON t.team_id = k.team_id
        "#,
    )
    .bind(tokens)
    .fetch_all(connection)
    .await
}

/// Columns that booking writes and that a LiteLLM before 1.109 may lack, as `table.column`.
pub async fn missing_columns(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        r#"
        SELECT needed.relation || '.' || needed.name
        FROM (VALUES ('LiteLLM_SpendLogs', 'request_duration_ms'), ('LiteLLM_SpendLogs', 'organization_id'),
                     ('LiteLLM_SpendLogs', 'litellm_call_id'), ('LiteLLM_SpendLogs', 'agent_id'),
                     ('LiteLLM_SpendLogs', 'mcp_namespaced_tool_name'), ('LiteLLM_SpendLogs', 'proxy_server_request'),
                     ('LiteLLM_VerificationToken', 'total_spend'), ('LiteLLM_VerificationToken', 'last_active'),
                     ('LiteLLM_TeamMembership', 'total_spend'),
                     ('LiteLLM_DailyUserSpend', 'endpoint'), ('LiteLLM_DailyUserSpend', 'timed_requests'),
                     ('LiteLLM_DailyTeamSpend', 'endpoint'), ('LiteLLM_DailyTeamSpend', 'timed_requests'),
                     ('LiteLLM_DailyTagSpend', 'endpoint'), ('LiteLLM_DailyTagSpend', 'timed_requests')
             ) AS needed (relation, name)
        WHERE NOT EXISTS (
            SELECT FROM pg_attribute AS a
            WHERE a.attrelid = to_regclass('"' || needed.relation || '"') AND a.attname = needed.name
              AND NOT a.attisdropped
        )
        ORDER BY 1
        "#,
    )
    .fetch_all(connection)
    .await
}

/// Inserts the rows that are not in the log yet and returns their ids. `rows` come in the order of their ids, each id
/// once; what another transaction has inserted and not yet committed is waited for.
pub async fn insert(connection: &mut PgConnection, rows: &[&UsageRow]) -> Result<HashSet<String>, sqlx::Error> {
    macro_rules! column {
        ($take:expr) => {
            rows.iter().map($take).collect::<Vec<_>>()
        };
    }
    let tags: Vec<Option<String>> = rows
        .iter()
        .map(|row| (!row.tags.is_empty()).then(|| serde_json::Value::from(row.tags.as_slice()).to_string()))
        .collect();
    let inserted: Vec<String> = sqlx::query_scalar(
        r#"
        INSERT INTO "LiteLLM_SpendLogs" (
            request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens, "startTime", "endTime",
            "completionStartTime", request_duration_ms, model, model_id, model_group, custom_llm_provider, api_base,
            "user", team_id, organization_id, end_user, metadata, cache_hit, cache_key, request_tags,
            requester_ip_address, messages, response, proxy_server_request, session_id, status,
            mcp_namespaced_tool_name, agent_id, litellm_call_id)
        SELECT
            new.request_id, new.call_type, new.api_key, new.spend, new.total_tokens, new.prompt_tokens,
            new.completion_tokens, new.start_time, new.end_time, new.completion_start_time, new.request_duration_ms,
            new.model, new.model_id, new.model_group, new.custom_llm_provider, new.api_base, new.user_id, new.team_id,
            new.organization_id, new.end_user, new.metadata::jsonb, new.cache_hit, new.cache_key,
            COALESCE(new.request_tags, '[]')::jsonb, new.requester_ip_address, COALESCE(new.messages, '{}')::jsonb,
            COALESCE(new.response, '{}')::jsonb, COALESCE(new.proxy_server_request, '{}')::jsonb, new.session_id,
            new.status, new.mcp_namespaced_tool_name, new.agent_id, new.litellm_call_id
        FROM unnest(
            $1::text[], $2::text[], $3::text[], $4::float8[], $5::int[], $6::int[], $7::int[], $8::timestamp[],
            $9::timestamp[], $10::timestamp[], $11::int[], $12::text[], $13::text[], $14::text[], $15::text[],
            $16::text[], $17::text[], $18::text[], $19::text[], $20::text[], $21::text[], $22::text[], $23::text[],
            $24::text[], $25::text[], $26::text[], $27::text[], $28::text[], $29::text[], $30::text[], $31::text[],
            $32::text[], $33::text[]
        ) AS new (
            request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens, start_time, end_time,
            completion_start_time, request_duration_ms, model, model_id, model_group, custom_llm_provider, api_base,
            user_id, team_id, organization_id, end_user, metadata, cache_hit, cache_key, request_tags,
            requester_ip_address, messages, response, proxy_server_request, session_id, status,
            mcp_namespaced_tool_name, agent_id, litellm_call_id)
        ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id
        "#,
    )
    .bind(column!(|row| row.request_id.as_str()))
    .bind(column!(|row| row.call_type.as_str()))
    .bind(column!(|row| row.api_key.as_str()))
    .bind(column!(|row| row.spend))
    .bind(column!(|row| row.total_tokens))
    .bind(column!(|row| row.prompt_tokens))
    .bind(column!(|row| row.completion_tokens))
    .bind(column!(|row| row.start_time))
    .bind(column!(|row| row.end_time))
    .bind(column!(|row| row.completion_start_time))
    .bind(column!(|row| row.request_duration_ms))
    .bind(column!(|row| row.model.as_str()))
    .bind(column!(|row| row.model_id.as_str()))
    .bind(column!(|row| row.model_group.as_str()))
    .bind(column!(|row| row.custom_llm_provider.as_str()))
    .bind(column!(|row| row.api_base.as_str()))
    .bind(column!(|row| row.user.as_str()))
    .bind(column!(|row| row.team_id.as_str()))
    .bind(column!(|row| row.organization_id.as_str()))
    .bind(column!(|row| row.end_user.as_str()))
    .bind(column!(|row| row.metadata.as_str()))
    .bind(column!(|row| row.cache_hit.as_str()))
    .bind(column!(|row| row.cache_key.as_str()))
    .bind(tags)
    .bind(column!(|row| row.requester_ip_address.as_deref()))
    .bind(column!(|row| row.messages.as_deref()))
    .bind(column!(|row| row.response.as_deref()))
    .bind(column!(|row| row.proxy_server_request.as_deref()))
    .bind(column!(|row| row.session_id.as_deref()))
    .bind(column!(|row| row.status.as_str()))
    .bind(column!(|row| row.mcp_namespaced_tool_name.as_deref()))
    .bind(column!(|row| row.agent_id.as_deref()))
    .bind(column!(|row| row.litellm_call_id.as_deref()))
    .fetch_all(connection)
    .await?;
    Ok(inserted.into_iter().collect())
}

/// A row that stood in the log before.
#[derive(Clone, Debug, FromRow)]
pub struct ExistingRow {
    /// Its id.
    pub request_id: String,
    /// Hash of the key it was booked for.
    pub api_key: String,
    /// USD.
    pub spend: f64,
    /// Start of the call.
    #[sqlx(rename = "startTime")]
    pub start_time: NaiveDateTime,
}

/// The rows of the log with these ids.
pub async fn existing(connection: &mut PgConnection, ids: &[&str]) -> Result<Vec<ExistingRow>, sqlx::Error> {
    sqlx::query_as(
        r#"SELECT request_id, api_key, spend, "startTime" FROM "LiteLLM_SpendLogs" WHERE request_id = ANY ($1)"#,
    )
    .bind(ids)
    .fetch_all(connection)
    .await
}
