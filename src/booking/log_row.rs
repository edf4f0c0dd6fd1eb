//! An exported row of the spend log: from `GET /spend/logs`, from `row_to_json`, or from `\copy` as CSV. In a CSV file
//! all values are strings, and empty ones count as missing. Columns that booking does not write are ignored.

use chrono::{DateTime, Utc};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::booking::call::{Call, Names};
use crate::booking::fields;
use crate::booking::fields::{Instant, Tokens};
use crate::booking::limits::{Dates, Refusal};
use crate::booking::sent::JSON_DIGITS;
use crate::booking::{Draft, Identity, NewNames, Owner, metadata};
use crate::identity::key_filter;
use crate::json_bounds;
use crate::json_bounds::Bounds;
use litespend_pricing::Usage;

/// The bounds of a prompt, an answer or a request in JSON, as stored.
const STORED: Bounds =
    Bounds { bytes: 1024 * 1024, elements: 20_000, depth: 64, text: 1024 * 1024, digits: JSON_DIGITS };

/// The bounds of a JSON string that is parsed into a tree.
pub(super) const TREE: Bounds = Bounds::of_tree(50_000, 64);

/// The names that differ from those of [`Call`].
const NAMES: Names = &[
    ("start_time", "startTime"),
    ("end_time", "endTime"),
    ("completion_start_time", "completionStartTime"),
    ("tags", "request_tags"),
];

/// The columns of a row, as they are exported.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LogRow {
    request_id: Option<String>,
    call_type: Option<String>,
    api_key: Option<String>,
    #[serde(deserialize_with = "number")]
    spend: Option<f64>,
    #[serde(deserialize_with = "count")]
    total_tokens: Option<i64>,
    #[serde(deserialize_with = "count")]
    prompt_tokens: Option<i64>,
    #[serde(deserialize_with = "count")]
    completion_tokens: Option<i64>,
    #[serde(rename = "startTime", deserialize_with = "present")]
    start_time: Option<Instant>,
    #[serde(rename = "endTime", deserialize_with = "present")]
    end_time: Option<Instant>,
    #[serde(rename = "completionStartTime", deserialize_with = "present")]
    completion_start_time: Option<Instant>,
    #[serde(deserialize_with = "count")]
    request_duration_ms: Option<i64>,
    model: Option<String>,
    model_id: Option<String>,
    model_group: Option<String>,
    custom_llm_provider: Option<String>,
    api_base: Option<String>,
    user: Option<String>,
    team_id: Option<String>,
    organization_id: Option<String>,
    end_user: Option<String>,
    cache_hit: Option<String>,
    cache_key: Option<String>,
    requester_ip_address: Option<String>,
    session_id: Option<String>,
    status: Option<String>,
    mcp_namespaced_tool_name: Option<String>,
    agent_id: Option<String>,
    litellm_call_id: Option<String>,
    #[serde(deserialize_with = "json")]
    metadata: Option<Map<String, Value>>,
    #[serde(deserialize_with = "json")]
    request_tags: Option<Tags>,
    #[serde(deserialize_with = "json")]
    messages: Option<Value>,
    #[serde(deserialize_with = "json")]
    response: Option<Value>,
    #[serde(deserialize_with = "json")]
    proxy_server_request: Option<Value>,
}

/// The tags of a row. LiteLLM writes an empty object if a call had none.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a list of strings")]
enum Tags {
    List(Vec<String>),
    None {},
}

/// Converts an exported row, including its owner, or returns the error in it. Prompts, answers and requests may have 1
/// MiB each; larger ones are left out. Metadata is reduced by [`metadata::trimmed`].
pub fn into_draft(fields: Map<String, Value>, now: DateTime<Utc>) -> Result<Draft, Refusal> {
    let row: LogRow = fields::from_object(fields)?;
    let tokens = row.tokens()?;
    let logged = row.metadata.unwrap_or_default();
    let of_metadata = logged.get("status").and_then(Value::as_str).map(str::to_owned);
    let mut left_out = Vec::new();
    let call = Call {
        request_id: row.request_id,
        call_type: row.call_type,
        api_key: row.api_key.map(|key| key_filter(&key)),
        spend: row.spend.unwrap_or(0.0),
        tokens: with_cache(tokens, &logged),
        start_time: row.start_time,
        end_time: row.end_time,
        completion_start_time: row.completion_start_time,
        model: row.model,
        model_id: row.model_id,
        model_group: row.model_group,
        custom_llm_provider: row.custom_llm_provider,
        api_base: row.api_base,
        user: row.user,
        team_id: row.team_id,
        organization_id: row.organization_id,
        end_user: row.end_user,
        cache_hit: row.cache_hit,
        cache_key: row.cache_key,
        tags: match row.request_tags {
            Some(Tags::List(tags)) => tags,
            Some(Tags::None {}) | None => Vec::new(),
        },
        requester_ip_address: row.requester_ip_address,
        session_id: row.session_id,
        status: row.status.filter(|status| !status.is_empty()).or(of_metadata),
        mcp_namespaced_tool_name: row.mcp_namespaced_tool_name,
        agent_id: row.agent_id,
        litellm_call_id: row.litellm_call_id,
        messages: stored("messages", row.messages, &mut left_out),
        response: stored("response", row.response, &mut left_out),
        proxy_server_request: stored("proxy_server_request", row.proxy_server_request, &mut left_out),
        metadata: metadata::trimmed(logged, left_out)?,
    };
    let mut booked = call.into_row(NAMES, now, Dates::ANY)?;
    // A row without a duration stays without one.
    let duration = row.request_duration_ms;
    booked.request_duration_ms =
        duration.map(|duration| fields::tokens("request_duration_ms", duration)).transpose()?;
    Ok(Draft { row: booked, owner: Owner::Given, identity: Identity::Logged, new_names: NewNames::Unlimited })
}

impl LogRow {
    /// The counts of the row. Default of the total: the sum.
    fn tokens(&self) -> Result<Tokens, String> {
        let count = |name: &str, count: Option<i64>| fields::tokens(name, count.unwrap_or(0));
        let prompt = count("prompt_tokens", self.prompt_tokens)?;
        let completion = count("completion_tokens", self.completion_tokens)?;
        let sum = i64::from(prompt) + i64::from(completion);
        let total = count("total_tokens", self.total_tokens.or(Some(sum)))?;
        Ok(Tokens { prompt, completion, total, ..Tokens::default() })
    }
}

/// Adds the counts of cached tokens, which only the metadata states.
fn with_cache(tokens: Tokens, logged: &Map<String, Value>) -> Tokens {
    let usage = ["usage_object", "additional_usage_values"].iter().find_map(|name| logged.get(*name)?.as_object());
    let (cache_read, cache_creation) = cached(usage);
    Tokens { cache_read, cache_creation, ..tokens }
}

/// The counts of cached tokens in the usage of a call: those read from the cache, and those written to it.
pub(super) fn cached(usage: Option<&Map<String, Value>>) -> (i64, i64) {
    let cached = usage.and_then(|usage| Usage::from_any(usage).ok()).and_then(|used| used.prompt).unwrap_or_default();
    let count = |count: u64| i64::try_from(count).unwrap_or(0);
    (count(cached.cached), count(cached.cache_write))
}

/// A JSON value as text. A value that is too large to be stored is left out, and its name is recorded.
fn stored(name: &str, value: Option<Value>, left_out: &mut Vec<String>) -> Option<String> {
    let text = value?.to_string();
    if json_bounds::check(&text, STORED).is_err() {
        left_out.push(name.to_owned());
        return None;
    }
    Some(text)
}

/// Reads a value; `None` for null and for an empty string.
fn present<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    if value.is_null() || value.as_str() == Some("") {
        return Ok(None);
    }
    T::deserialize(value).map(Some).map_err(D::Error::custom)
}

/// Reads a number, or a string that contains one.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let number = match present(deserializer)? {
        None => return Ok(None),
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(_) => None,
    };
    number.map(Some).ok_or_else(|| D::Error::custom("expected a number"))
}

/// Reads a whole number, or a string that contains one.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let count = match present(deserializer)? {
        None => return Ok(None),
        Some(Value::Number(number)) => number.as_i64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(_) => None,
    };
    count.map(Some).ok_or_else(|| D::Error::custom("expected a whole number"))
}

/// Reads a JSON value, or a string that contains one, as in a CSV file.
fn json<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    let value = match present(deserializer)? {
        None => return Ok(None),
        Some(Value::String(text)) if text.starts_with(['{', '[', '"']) => {
            if let Err(Some(excess)) = json_bounds::check(&text, TREE) {
                return Err(D::Error::custom(excess.what));
            }
            serde_json::from_str(&text).map_err(|_| D::Error::custom("expected JSON"))?
        }
        Some(value) => value,
    };
    if json_bounds::has_nul(&value) {
        return Err(D::Error::custom("must not contain a NUL character"));
    }
    T::deserialize(value).map(Some).map_err(D::Error::custom)
}
