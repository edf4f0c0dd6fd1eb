//! Booking: inserts rows into the spend log and updates every counter and daily row that depends on them. The functions
//! are the steps of one transaction. They lock in a fixed order, so that two bookings cannot deadlock: new names, IDs,
//! log rows, keys, users, teams, organisations, end users, team members, then the daily tables. Within each of these,
//! the order is that of the bytes. LiteLLM locks its rows in the same order.
//!
//! Only rows that [`insert`] returned may be counted. A row that was in the log before was counted when it was
//! inserted.

pub mod counters;
pub mod daily;
pub mod ids;
pub mod names;
pub mod tables;

use std::collections::HashSet;
use std::sync::Arc;

use chrono::NaiveDateTime;
use litespend_archive::OwnedRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::store::booking::tables::Tables;
use crate::store::books::restoring;
use crate::store::books::restoring::Incoming;

/// A row to be booked into `LiteLLM_SpendLogs`, with the additional values that the daily tables need. Strings contain
/// no NUL, JSON strings are valid JSON, and timestamps are whole milliseconds in UTC.
#[derive(Clone, Debug, Default)]
pub struct UsageRow {
    /// Primary key of the log: the identity of the record.
    pub request_id: String,
    /// Kind of call by LiteLLM's name, for example `acompletion`.
    pub call_type: String,
    /// SHA-256 of the key.
    pub api_key: String,
    /// Spend in USD.
    pub spend: f64,
    /// Total tokens.
    pub total_tokens: i32,
    /// Prompt tokens.
    pub prompt_tokens: i32,
    /// Completion tokens.
    pub completion_tokens: i32,
    /// Start of the call, UTC.
    pub start_time: NaiveDateTime,
    /// End of the call, UTC.
    pub end_time: NaiveDateTime,
    /// Time of the first token, UTC.
    pub completion_start_time: Option<NaiveDateTime>,
    /// Duration in milliseconds; `None` if it was not measured.
    pub request_duration_ms: Option<i32>,
    /// Name of the model.
    pub model: String,
    /// ID of the deployment.
    pub model_id: String,
    /// Public model name.
    pub model_group: String,
    /// Name of the provider.
    pub custom_llm_provider: String,
    /// Base URL of the provider.
    pub api_base: String,
    /// User ID; empty if there is none, as LiteLLM writes it.
    pub user: String,
    /// Team ID; empty if there is none.
    pub team_id: String,
    /// Organisation ID; empty if there is none.
    pub organization_id: String,
    /// End user ID; empty if there is none.
    pub end_user: String,
    /// Metadata of the call, as the text of a JSON object.
    pub metadata: String,
    /// Whether the response came from the cache: `True`, `False` or empty.
    pub cache_hit: String,
    /// Key in LiteLLM's response cache.
    pub cache_key: String,
    /// Request tags without duplicates.
    pub tags: Vec<String>,
    /// IP address of the client.
    pub requester_ip_address: Option<String>,
    /// Messages as JSON text, if prompts are stored.
    pub messages: Option<String>,
    /// Response as JSON text, if responses are stored.
    pub response: Option<String>,
    /// Request as JSON text, if requests are stored.
    pub proxy_server_request: Option<String>,
    /// Session ID.
    pub session_id: Option<String>,
    /// `success` or `failure`.
    pub status: String,
    /// Name of the MCP tool, with its namespace.
    pub mcp_namespaced_tool_name: Option<String>,
    /// Agent ID.
    pub agent_id: Option<String>,
    /// LiteLLM's call ID.
    pub litellm_call_id: Option<String>,
    /// Tokens read from a provider's cache.
    pub cache_read_tokens: i64,
    /// Tokens written to a provider's cache.
    pub cache_creation_tokens: i64,
    /// The archived row that is booked, if it is one. The log then gets all columns of it, but for `request_id` and
    /// `api_key`, which are those above. The other fields are what is counted.
    pub archived: Option<Arc<OwnedRow>>,
}

impl UsageRow {
    /// Number of bytes in the columns that may be long.
    pub fn text_bytes(&self) -> usize {
        let texts = [&self.messages, &self.response, &self.proxy_server_request];
        let archived = self.archived.as_deref().map_or(0, restoring::text_bytes);
        self.metadata.len() + archived + texts.into_iter().flatten().map(String::len).sum::<usize>()
    }
}

/// The owners to whom the usage of a key belongs.
#[derive(Clone, Debug, FromRow)]
pub struct KeyOwner {
    /// SHA-256 of the key.
    pub token: String,
    /// User ID.
    pub user_id: Option<String>,
    /// Team ID.
    pub team_id: Option<String>,
    /// Organisation ID: that of the key, or else that of its team.
    pub organization_id: Option<String>,
}

/// The owners of these keys, including deleted keys. The result lacks keys that never existed.
pub async fn key_owners(
    connection: &mut PgConnection,
    tables: &Tables,
    tokens: &[&str],
) -> Result<Vec<KeyOwner>, sqlx::Error> {
    let statement = tables.fit(
        "LiteLLM_DeletedVerificationToken",
        r#"
        SELECT k.token, k.user_id, k.team_id, COALESCE(k.organization_id, t.organization_id) AS organization_id
        FROM (
            SELECT token, user_id, team_id, organization_id FROM "LiteLLM_VerificationToken" WHERE token = ANY ($1)
            «token:UNION ALL
            (SELECT DISTINCT ON (token) token, user_id, team_id, organization_id
             FROM "LiteLLM_DeletedVerificationToken" AS gone
             WHERE token = ANY ($1)
               AND NOT EXISTS (SELECT FROM "LiteLLM_VerificationToken" AS live WHERE live.token = gone.token)
             ORDER BY token, deleted_at DESC)»
        ) AS k
        LEFT JOIN "LiteLLM_TeamTable" t ON t.team_id = k.team_id
        "#,
    );
    sqlx::query_as(AssertSqlSafe(statement)).bind(tokens).fetch_all(connection).await
}

/// Inserts the rows that are not in the log yet, and returns their IDs. `rows` must be in the order of their IDs, with
/// each ID once. If another transaction has inserted the same ID and not committed yet, this call waits for it.
///
/// The primary key of a partitioned log is the ID and the start of the call, so it does not keep IDs unique. There, the
/// call locks the IDs against other bookings, and looks for them in all partitions first.
pub async fn insert(
    connection: &mut PgConnection,
    tables: &Tables,
    rows: &[&UsageRow],
) -> Result<HashSet<String>, sqlx::Error> {
    if ids_are_unique(connection).await? {
        return insert_free(connection, tables, &BY_ID, rows).await;
    }
    let ids: Vec<&str> = rows.iter().map(|row| row.request_id.as_str()).collect();
    let taken = lock_ids(connection, &ids).await?;
    let rows: Vec<&UsageRow> = rows.iter().copied().filter(|row| !taken.contains(&row.request_id)).collect();
    insert_free(connection, tables, &BY_ANY_INDEX, &rows).await
}

/// Whether the log has a unique index on the ID alone.
async fn ids_are_unique(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT EXISTS (
               SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
               WHERE i.indrelid = to_regclass('"LiteLLM_SpendLogs"') AND a.attname = 'request_id' AND i.indnkeyatts = 1
                 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL)"#,
    )
    .fetch_one(connection)
    .await
}

/// Locks IDs until the end of the transaction, in a fixed order, and returns those that are in the log. One lock stands
/// for many IDs, so that a large booking does not fill PostgreSQL's table of locks.
async fn lock_ids(connection: &mut PgConnection, ids: &[&str]) -> Result<HashSet<String>, sqlx::Error> {
    sqlx::query(
        "SELECT pg_advisory_xact_lock(781188, bucket)
         FROM (SELECT DISTINCT hashtext(id) & 255 AS bucket FROM unnest($1::text[]) AS id ORDER BY bucket) AS buckets",
    )
    .bind(ids)
    .execute(&mut *connection)
    .await?;
    // A statement of its own: its snapshot shows what the holders of the locks have committed.
    let taken: Vec<String> =
        sqlx::query_scalar(r#"SELECT DISTINCT request_id FROM "LiteLLM_SpendLogs" WHERE request_id = ANY ($1)"#)
            .bind(ids)
            .fetch_all(connection)
            .await?;
    Ok(taken.into_iter().collect())
}

/// The statement that inserts rows; `$conflict` says which existing row stops a new one.
macro_rules! insert_statement {
    ($conflict:literal) => {
        concat!(
            r#"
            INSERT INTO "LiteLLM_SpendLogs" (
                request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens, "startTime", "endTime",
                "completionStartTime"«request_duration_ms:, request_duration_ms», model, model_id, model_group, custom_llm_provider, api_base,
                "user", team_id«organization_id:, organization_id», end_user, metadata, cache_hit, cache_key, request_tags,
                requester_ip_address, messages, response«proxy_server_request:, proxy_server_request»«session_id:, session_id»«status:, status»«mcp_namespaced_tool_name:, mcp_namespaced_tool_name»
                «agent_id:, agent_id»«litellm_call_id:, litellm_call_id»)
            SELECT
                new.request_id, new.call_type, new.api_key, new.spend, new.total_tokens, new.prompt_tokens,
                new.completion_tokens, new.start_time, new.end_time, new.completion_start_time, «request_duration_ms:new.request_duration_ms,»
                new.model, new.model_id, new.model_group, new.custom_llm_provider, new.api_base, new.user_id, new.team_id,
                «organization_id:new.organization_id,» new.end_user, new.metadata::jsonb, new.cache_hit, new.cache_key,
                COALESCE(new.request_tags, '[]')::jsonb, new.requester_ip_address, COALESCE(new.messages, '{}')::jsonb,
                COALESCE(new.response, '{}')::jsonb«proxy_server_request:, COALESCE(new.proxy_server_request, '{}')::jsonb»«session_id:, new.session_id»«status:,
                new.status»«mcp_namespaced_tool_name:, new.mcp_namespaced_tool_name»«agent_id:, new.agent_id»«litellm_call_id:, new.litellm_call_id»
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
            ON CONFLICT "#,
            $conflict,
            " DO NOTHING RETURNING request_id"
        )
    };
}

/// How rows are inserted.
struct Insertion {
    /// The statement for rows that are not archived.
    statement: &'static str,
    /// The target of ON CONFLICT.
    conflict: &'static str,
}

/// For a log whose IDs are unique: the ID stops a row.
const BY_ID: Insertion = Insertion { statement: insert_statement!("(request_id)"), conflict: "(request_id)" };

/// For a partitioned log: any unique index stops a row.
const BY_ANY_INDEX: Insertion = Insertion { statement: insert_statement!(""), conflict: "" };

/// Inserts rows whose IDs are free, and returns the IDs of those that were inserted.
async fn insert_free(
    connection: &mut PgConnection,
    tables: &Tables,
    insertion: &Insertion,
    rows: &[&UsageRow],
) -> Result<HashSet<String>, sqlx::Error> {
    let (mut archived, mut stated): (Vec<Incoming<'_>>, Vec<&UsageRow>) = (Vec::new(), Vec::new());
    for row in rows.iter().copied() {
        match row.archived.as_deref() {
            Some(found) => {
                archived.push(Incoming { request_id: &row.request_id, api_key: &row.api_key, row: found });
            }
            None => stated.push(row),
        }
    }
    let mut inserted = restoring::insert_incoming(connection, insertion.conflict, &archived).await?;
    inserted.extend(insert_rows(connection, tables, insertion.statement, &stated).await?);
    Ok(inserted)
}

async fn insert_rows(
    connection: &mut PgConnection,
    tables: &Tables,
    statement: &str,
    rows: &[&UsageRow],
) -> Result<HashSet<String>, sqlx::Error> {
    if rows.is_empty() {
        return Ok(HashSet::new());
    }
    macro_rules! column {
        ($take:expr) => {
            rows.iter().map($take).collect::<Vec<_>>()
        };
    }
    let tags: Vec<Option<String>> = rows
        .iter()
        .map(|row| (!row.tags.is_empty()).then(|| serde_json::Value::from(row.tags.as_slice()).to_string()))
        .collect();
    let inserted: Vec<String> = sqlx::query_scalar(AssertSqlSafe(tables.fit("LiteLLM_SpendLogs", statement)))
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

/// A row that was in the log before.
#[derive(Clone, Debug, FromRow)]
pub struct ExistingRow {
    /// Request ID.
    pub request_id: String,
    /// SHA-256 of the key for which it was booked.
    pub api_key: String,
    /// Spend in USD.
    pub spend: f64,
    /// Start of the call, UTC.
    #[sqlx(rename = "startTime")]
    pub start_time: NaiveDateTime,
}

/// The rows of the log with these request IDs.
pub async fn existing(connection: &mut PgConnection, ids: &[&str]) -> Result<Vec<ExistingRow>, sqlx::Error> {
    sqlx::query_as(
        r#"SELECT request_id, api_key, spend, "startTime"::timestamp FROM "LiteLLM_SpendLogs" WHERE request_id = ANY ($1)"#,
    )
    .bind(ids)
    .fetch_all(connection)
    .await
}
