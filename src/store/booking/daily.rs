//! Adds to the daily tables: spend and counts by day, owner, key, model, provider, MCP tool and endpoint, as LiteLLM
//! writes them. No column of a row's key is NULL (`''` stands for "none"), because the unique index would not find the
//! row again.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::store::booking::UsageRow;
use crate::store::booking::tables::Tables;

/// Key of a daily row: the columns of the unique index, with the user, team or tag as `owner`. Keys are ordered by the
/// fields in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    owner: &'a str,
    date: NaiveDate,
    api_key: &'a str,
    model: &'a str,
    custom_llm_provider: &'a str,
    mcp_namespaced_tool_name: &'a str,
    endpoint: &'static str,
}

#[derive(Debug, Default)]
struct Sums<'a> {
    model_group: &'a str,
    /// One of the requests that the row counts.
    request_id: &'a str,
    spend: f64,
    prompt_tokens: i64,
    completion_tokens: i64,
    requests: i64,
    successes: i64,
    cache_read_tokens: i64,
    cache_creation_tokens: i64,
    response_time_ms: i64,
    timed_requests: i64,
}

impl<'a> Sums<'a> {
    fn add(&mut self, row: &'a UsageRow) {
        let succeeded = row.status != "failure";
        self.model_group = &row.model_group;
        self.request_id = &row.request_id;
        self.spend += row.spend;
        self.prompt_tokens += i64::from(row.prompt_tokens);
        self.completion_tokens += i64::from(row.completion_tokens);
        self.requests += 1;
        self.successes += i64::from(succeeded);
        self.cache_read_tokens += row.cache_read_tokens;
        self.cache_creation_tokens += row.cache_creation_tokens;
        if let (true, Some(duration)) = (succeeded, row.request_duration_ms) {
            self.response_time_ms += i64::from(duration);
            self.timed_requests += 1;
        }
    }
}

type Table<'a> = BTreeMap<Key<'a>, Sums<'a>>;

/// The amounts that a set of rows adds to the daily tables.
#[derive(Debug, Default)]
pub struct Days<'a> {
    users: Table<'a>,
    teams: Table<'a>,
    tags: Table<'a>,
}

impl<'a> Days<'a> {
    /// Sums up the rows, by the columns that the daily tables have.
    pub fn of(tables: &Tables, rows: impl IntoIterator<Item = &'a UsageRow>) -> Self {
        let mut days = Self::default();
        let [by_tool, by_endpoint] =
            ["mcp_namespaced_tool_name", "endpoint"].map(|column| tables.has("LiteLLM_DailyUserSpend", column));
        for row in rows {
            let key = Key {
                owner: &row.user,
                date: row.start_time.date(),
                api_key: &row.api_key,
                model: &row.model,
                custom_llm_provider: &row.custom_llm_provider,
                mcp_namespaced_tool_name: row
                    .mcp_namespaced_tool_name
                    .as_deref()
                    .filter(|_| by_tool)
                    .unwrap_or_default(),
                endpoint: if by_endpoint { endpoint(&row.call_type) } else { "" },
            };
            days.users.entry(key).or_default().add(row);
            days.teams.entry(Key { owner: &row.team_id, ..key }).or_default().add(row);
            for tag in &row.tags {
                days.tags.entry(Key { owner: tag, ..key }).or_default().add(row);
            }
        }
        days
    }
}

macro_rules! upsert {
    ($table:literal, $owner:literal, $column:literal, $value:literal, $update:literal) => {
        concat!(
            "INSERT INTO \"", $table, "\" AS t (id, ", $owner, ", date, api_key, model, custom_llm_provider, ",
            "«mcp_namespaced_tool_name:mcp_namespaced_tool_name, »«endpoint:endpoint, »model_group, spend, prompt_tokens, ",
            "completion_tokens, api_requests, ",
            "successful_requests, failed_requests, cache_read_input_tokens, cache_creation_input_tokens, ",
            "«total_response_time_ms:total_response_time_ms, »«timed_requests:timed_requests, »", $column, "updated_at) ",
            "SELECT gen_random_uuid()::text, new.owner, new.date, new.api_key, new.model, new.custom_llm_provider, ",
            "«mcp_namespaced_tool_name:new.mcp_namespaced_tool_name, »«endpoint:new.endpoint, »new.model_group, new.spend, new.prompt_tokens, ",
            "new.completion_tokens, new.requests, new.successes, new.requests - new.successes, new.cache_read_tokens, ",
            "new.cache_creation_tokens, «total_response_time_ms:new.response_time_ms, »«timed_requests:new.timed_requests, »", $value, "now() AT TIME ZONE 'UTC' ",
            "FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], ",
            "$9::float8[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], ",
            "$16::bigint[], $17::bigint[], $18::text[]) AS new (owner, date, api_key, model, custom_llm_provider, ",
            "mcp_namespaced_tool_name, endpoint, model_group, spend, prompt_tokens, completion_tokens, requests, ",
            "successes, cache_read_tokens, cache_creation_tokens, response_time_ms, timed_requests, request_id) ",
            "ON CONFLICT (", $owner, ", date, api_key, model, custom_llm_provider«mcp_namespaced_tool_name:, mcp_namespaced_tool_name»«endpoint:, endpoint») ",
            "DO UPDATE SET spend = t.spend + EXCLUDED.spend, prompt_tokens = t.prompt_tokens + EXCLUDED.prompt_tokens, ",
            "completion_tokens = t.completion_tokens + EXCLUDED.completion_tokens, ",
            "api_requests = t.api_requests + EXCLUDED.api_requests, ",
            "successful_requests = t.successful_requests + EXCLUDED.successful_requests, ",
            "failed_requests = t.failed_requests + EXCLUDED.failed_requests, ",
            "cache_read_input_tokens = t.cache_read_input_tokens + EXCLUDED.cache_read_input_tokens, ",
            "cache_creation_input_tokens = t.cache_creation_input_tokens + EXCLUDED.cache_creation_input_tokens, ",
            "«total_response_time_ms:total_response_time_ms = t.total_response_time_ms + EXCLUDED.total_response_time_ms, »",
            "«timed_requests:timed_requests = t.timed_requests + EXCLUDED.timed_requests, »", $update, "updated_at = EXCLUDED.updated_at"
        )
    };
}

const USERS: &str = upsert!("LiteLLM_DailyUserSpend", "user_id", "", "", "");
const TEAMS: &str = upsert!("LiteLLM_DailyTeamSpend", "team_id", "", "", "");
const TAGS: &str = upsert!(
    "LiteLLM_DailyTagSpend",
    "tag",
    "«request_id:request_id, »",
    "«request_id:new.request_id, »",
    "«request_id:request_id = COALESCE(EXCLUDED.request_id, t.request_id), »"
);

/// Adds the sums to the daily tables.
pub async fn add(connection: &mut PgConnection, tables: &Tables, days: &Days<'_>) -> Result<(), sqlx::Error> {
    let statements = [
        ("LiteLLM_DailyUserSpend", &days.users, USERS),
        ("LiteLLM_DailyTeamSpend", &days.teams, TEAMS),
        ("LiteLLM_DailyTagSpend", &days.tags, TAGS),
    ];
    for (name, table, statement) in statements {
        if !table.is_empty() {
            upsert(connection, tables.fit(name, statement), table).await?;
        }
    }
    Ok(())
}

async fn upsert(connection: &mut PgConnection, statement: String, table: &Table<'_>) -> Result<(), sqlx::Error> {
    macro_rules! key {
        ($take:expr) => {
            table.keys().map($take).collect::<Vec<_>>()
        };
    }
    macro_rules! sum {
        ($take:expr) => {
            table.values().map($take).collect::<Vec<_>>()
        };
    }
    sqlx::query(AssertSqlSafe(statement))
        .bind(key!(|key| key.owner))
        .bind(key!(|key| key.date.format("%Y-%m-%d").to_string()))
        .bind(key!(|key| key.api_key))
        .bind(key!(|key| key.model))
        .bind(key!(|key| key.custom_llm_provider))
        .bind(key!(|key| key.mcp_namespaced_tool_name))
        .bind(key!(|key| key.endpoint))
        .bind(sum!(|sums| sums.model_group))
        .bind(sum!(|sums| sums.spend))
        .bind(sum!(|sums| sums.prompt_tokens))
        .bind(sum!(|sums| sums.completion_tokens))
        .bind(sum!(|sums| sums.requests))
        .bind(sum!(|sums| sums.successes))
        .bind(sum!(|sums| sums.cache_read_tokens))
        .bind(sum!(|sums| sums.cache_creation_tokens))
        .bind(sum!(|sums| sums.response_time_ms))
        .bind(sum!(|sums| sums.timed_requests))
        .bind(sum!(|sums| sums.request_id))
        .execute(connection)
        .await?;
    Ok(())
}

/// The endpoint on which LiteLLM's proxy serves this kind of call. Empty for kinds that LiteLLM books without an
/// endpoint.
pub fn endpoint(call_type: &str) -> &'static str {
    match call_type {
        "acompletion" => "/chat/completions",
        "atext_completion" => "/completions",
        "aembedding" => "/embeddings",
        "aimage_generation" => "/image/generations",
        "aimage_edit" => "/images/edits",
        "aspeech" => "/audio/speech",
        "atranscription" => "/audio/transcriptions",
        "amoderation" => "/moderations",
        "arerank" => "/rerank",
        "aresponses" | "_aresponses_websocket" => "/responses",
        "acompact_responses" => "/responses/compact",
        "alist_input_items" => "/responses/{response_id}/input_items",
        "acancel_responses" => "/responses/{response_id}/cancel",
        "aocr" => "/ocr",
        "asearch" => "/search",
        "avideo_generation" | "avideo_list" => "/videos",
        "avideo_status" => "/videos/{video_id}",
        "avideo_content" => "/videos/{video_id}/content",
        "avideo_remix" => "/videos/{video_id}/remix",
        "avideo_edit" => "/videos/edits",
        "avideo_extension" => "/videos/extensions",
        "acreate_realtime_client_secret" => "/realtime/client_secrets",
        "arealtime_calls" => "/realtime/calls",
        "acreate_container" | "alist_containers" => "/containers",
        "aretrieve_container" | "adelete_container" => "/containers/{container_id}",
        "aingest" => "/rag/ingest",
        "acreate_interaction" => "/interactions",
        "acreate_batch" | "aretrieve_batch" => "/batches",
        _ => "",
    }
}
