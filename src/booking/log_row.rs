//! An exported row of the spend log: from `GET /spend/logs`, from `row_to_json`, or from `\copy` as CSV. In a CSV file
//! all values are strings, and empty ones count as missing. Columns that booking does not write are ignored.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::{Map, Value};

use crate::booking::fields;
use crate::booking::fields::{ID_BYTES, Instant, NAME_BYTES, TEXT_BYTES};
use crate::booking::limits::{Dates, Refusal};
use crate::booking::sent::JSON_DIGITS;
use crate::booking::{Draft, Identity, Owner, metadata};
use crate::identity::key_filter;
use crate::json_bounds;
use crate::json_bounds::Bounds;
use crate::store::booking::UsageRow;
use litespend_pricing::Usage;

/// The bounds of a prompt, an answer or a request in JSON, as stored.
const STORED: Bounds =
    Bounds { bytes: 1024 * 1024, elements: 20_000, depth: 64, text: 1024 * 1024, digits: JSON_DIGITS };

/// The bounds of a JSON string that is parsed into a tree.
const TREE: Bounds = Bounds::of_tree(50_000, 64);

/// Converts an exported row, including its owner, or returns the error in it. Prompts, answers and requests may have 1
/// MiB each; larger ones are left out. Metadata is reduced by [`metadata::trimmed`].
pub fn into_draft(fields: Map<String, Value>, now: DateTime<Utc>) -> Result<Draft, Refusal> {
    let mut reader = Reader { fields, now, left_out: Vec::new() };
    let request_id = reader.text("request_id", ID_BYTES)?;
    if request_id.is_empty() {
        return Err("request_id: is missing".into());
    }
    let prompt = reader.tokens("prompt_tokens")?;
    let completion = reader.tokens("completion_tokens")?;
    let sum = || fields::tokens("total_tokens", i64::from(prompt.unwrap_or(0)) + i64::from(completion.unwrap_or(0)));
    let total_tokens = reader.tokens("total_tokens")?.map_or_else(sum, Ok)?;
    let start_time = reader.instant("startTime")?.ok_or("startTime: is missing")?;
    let end_time = reader.instant("endTime")?;
    let end_time = end_time.unwrap_or(start_time);
    fields::duration_ms(start_time, end_time).map_err(|error| error.replace("end_time", "endTime"))?;
    let logged = reader.object("metadata")?;
    let usage = ["usage_object", "additional_usage_values"].iter().find_map(|name| logged.get(*name)?.as_object());
    let used = usage.and_then(|usage| Usage::from_any(usage).ok()).unwrap_or_default();
    let cached =
        |count: fn(&Usage) -> Option<u64>| count(&used).and_then(|count| i64::try_from(count).ok()).unwrap_or(0);
    let cache_read_tokens = cached(|used| Some(used.prompt.as_ref()?.cached));
    let cache_creation_tokens = cached(|used| Some(used.prompt.as_ref()?.cache_write));
    let of_metadata = logged.get("status").and_then(Value::as_str).map(str::to_owned);
    let status = Some(reader.text("status", NAME_BYTES)?).filter(|text| !text.is_empty()).or(of_metadata);
    let mut row = UsageRow {
        request_id,
        call_type: reader.text("call_type", NAME_BYTES)?,
        api_key: key_filter(&reader.text("api_key", NAME_BYTES)?),
        spend: fields::cost("spend", reader.number("spend")?.unwrap_or(0.0))?,
        total_tokens,
        prompt_tokens: prompt.unwrap_or(0),
        completion_tokens: completion.unwrap_or(0),
        start_time,
        end_time,
        completion_start_time: reader.instant("completionStartTime")?,
        request_duration_ms: reader.tokens("request_duration_ms")?,
        model: reader.text("model", NAME_BYTES)?,
        model_id: reader.text("model_id", NAME_BYTES)?,
        model_group: reader.text("model_group", NAME_BYTES)?,
        custom_llm_provider: reader.text("custom_llm_provider", NAME_BYTES)?,
        api_base: reader.text("api_base", TEXT_BYTES)?,
        user: reader.text("user", NAME_BYTES)?,
        team_id: reader.text("team_id", NAME_BYTES)?,
        organization_id: reader.text("organization_id", NAME_BYTES)?,
        end_user: reader.text("end_user", NAME_BYTES)?,
        metadata: String::new(),
        cache_hit: reader.text("cache_hit", NAME_BYTES)?,
        cache_key: reader.text("cache_key", TEXT_BYTES)?,
        tags: reader.tags()?,
        requester_ip_address: reader.optional_text("requester_ip_address", NAME_BYTES)?,
        messages: reader.json("messages")?,
        response: reader.json("response")?,
        proxy_server_request: reader.json("proxy_server_request")?,
        session_id: reader.optional_text("session_id", ID_BYTES)?,
        status: fields::status(status.as_deref())?.to_owned(),
        mcp_namespaced_tool_name: reader.optional_text("mcp_namespaced_tool_name", NAME_BYTES)?,
        agent_id: reader.optional_text("agent_id", NAME_BYTES)?,
        litellm_call_id: reader.optional_text("litellm_call_id", ID_BYTES)?,
        cache_read_tokens,
        cache_creation_tokens,
    };
    row.metadata = metadata::trimmed(logged, reader.left_out)?;
    Ok(Draft { row, owner: Owner::Given, identity: Identity::Logged, names_are_counted: false })
}

struct Reader {
    fields: Map<String, Value>,
    now: DateTime<Utc>,
    left_out: Vec<String>,
}

impl Reader {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.get_mut(name).map(Value::take).filter(|value| !value.is_null() && value.as_str() != Some(""))
    }

    fn text(&mut self, name: &str, most: usize) -> Result<String, String> {
        match self.take(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => fields::text(name, text, most),
            Some(_) => Err(format!("{name}: expected a text")),
        }
    }

    fn optional_text(&mut self, name: &str, most: usize) -> Result<Option<String>, String> {
        Ok(Some(self.text(name, most)?).filter(|text| !text.is_empty()))
    }

    fn number(&mut self, name: &str) -> Result<Option<f64>, String> {
        let number = match self.take(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| format!("{name}: expected a number"))
    }

    fn tokens(&mut self, name: &str) -> Result<Option<i32>, String> {
        let count = match self.take(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_i64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        fields::tokens(name, count.ok_or_else(|| format!("{name}: expected a whole number"))?).map(Some)
    }

    fn instant(&mut self, name: &str) -> Result<Option<NaiveDateTime>, String> {
        let value = match self.take(name) {
            None => return Ok(None),
            Some(Value::String(text)) => Instant::Text(text),
            Some(value) => Instant::Epoch(value.as_f64().ok_or_else(|| format!("{name}: expected a timestamp"))?),
        };
        fields::instant(name, &value, self.now, Dates::ANY).map(Some)
    }

    /// Takes a JSON value, or a string that contains one, as in a CSV file.
    fn value(&mut self, name: &str) -> Result<Option<Value>, String> {
        let value = match self.take(name) {
            Some(Value::String(text)) if text.starts_with(['{', '[', '"']) => {
                if let Err(Some(excess)) = json_bounds::check(&text, TREE) {
                    return Err(format!("{name}: {}", excess.what));
                }
                serde_json::from_str(&text).map_err(|_| format!("{name}: expected JSON"))?
            }
            Some(value) => value,
            None => return Ok(None),
        };
        if json_bounds::has_nul(&value) {
            return Err(format!("{name}: must not contain a NUL character"));
        }
        Ok(Some(value))
    }

    /// Takes a JSON value as text. A value that is too large to be stored is left out, and its name is recorded.
    fn json(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(text) = self.value(name)?.map(|value| value.to_string()) else { return Ok(None) };
        if json_bounds::check(&text, STORED).is_err() {
            self.left_out.push(name.to_owned());
            return Ok(None);
        }
        Ok(Some(text))
    }

    fn object(&mut self, name: &str) -> Result<Map<String, Value>, String> {
        match self.value(name)? {
            None => Ok(Map::new()),
            Some(Value::Object(fields)) => Ok(fields),
            Some(_) => Err(format!("{name}: expected a JSON object")),
        }
    }

    fn tags(&mut self) -> Result<Vec<String>, String> {
        match self.value("request_tags")? {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                let texts = items.into_iter().map(|item| match item {
                    Value::String(text) => Ok(text),
                    _ => Err("request_tags: expected a list of texts".to_owned()),
                });
                fields::tags("request_tags", texts.collect::<Result<_, _>>()?)
            }
            // LiteLLM writes an empty object if a call had no tags.
            Some(Value::Object(fields)) if fields.is_empty() => Ok(Vec::new()),
            Some(_) => Err("request_tags: expected a list".to_owned()),
        }
    }
}
