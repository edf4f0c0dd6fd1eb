//! A record of `POST /spend/usage`.

use chrono::{DateTime, Utc};
use rust_decimal::prelude::ToPrimitive;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::fields::{self, Counts, ID_BYTES, Instant, NAME_BYTES};
use super::price::price_record;
use super::{Booking, Draft, owner_of};
use crate::pricing::Pricer;
use crate::store::usage::UsageRow;

/// One call to a model.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageRecord {
    /// The key that made the call, raw or its SHA-256. Default: the caller's own.
    api_key: Option<String>,
    /// Model. May be left out where `completion_response` names it.
    #[schema(example = "gpt-4o")]
    model: Option<String>,
    /// Tokens of the prompt.
    #[schema(example = 1200)]
    prompt_tokens: Option<i64>,
    /// Tokens of the completion.
    #[schema(example = 300)]
    completion_tokens: Option<i64>,
    /// All tokens; default: their sum.
    total_tokens: Option<i64>,
    /// A provider's `usage` object, instead of the two counts.
    #[schema(value_type = Option<Object>)]
    usage: Option<Map<String, Value>>,
    /// A provider's whole answer, of which `model`, `usage` and `id` are read; the rest is not stored.
    #[schema(value_type = Option<Object>)]
    completion_response: Option<Map<String, Value>>,
    /// USD. Default: by the price table.
    #[schema(example = 0.006)]
    cost: Option<f64>,
    /// Start of the call: RFC 3339, or seconds since 1970. Default: now.
    #[schema(value_type = Option<String>, example = "2026-03-01T18:30:00Z")]
    start_time: Option<Instant>,
    /// End of the call, in the same forms. Default: its start.
    #[schema(value_type = Option<String>)]
    end_time: Option<Instant>,
    /// What makes the record itself: sent again with the same key, it is not booked again. Becomes `request_id`.
    #[schema(example = "job-17/call-3")]
    idempotency_key: Option<String>,
    /// Tags.
    tags: Option<Vec<String>>,
    /// The client's own user.
    end_user_id: Option<String>,
    /// Session.
    session_id: Option<String>,
    /// `success` (default) or `failure`.
    status: Option<String>,
    /// Kind of call, by LiteLLM's names. Default: `acompletion`.
    call_type: Option<String>,
    /// Provider, for example `openai`.
    custom_llm_provider: Option<String>,
    /// Anything else, stored with the row.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// The client's address.
    requester_ip_address: Option<String>,
}

impl UsageRecord {
    /// The row that the record becomes, or what is wrong with it.
    pub fn into_draft(self, booking: &Booking<'_>, pricer: &Pricer, now: DateTime<Utc>) -> Result<Draft, String> {
        let response = self.completion_response.unwrap_or_default();
        let response_text = |name: &str| response.get(name).and_then(Value::as_str).map(str::to_owned);
        let model = self.model.or_else(|| response_text("model")).filter(|model| !model.is_empty());
        let model = fields::text("model", model.ok_or("model: is missing")?, NAME_BYTES)?;
        let custom_llm_provider = fields::optional_text("custom_llm_provider", self.custom_llm_provider, NAME_BYTES)?;

        let usage = match (self.usage, response.get("usage")) {
            (Some(usage), _) => Some(usage),
            (None, Some(Value::Object(usage))) => Some(usage.clone()),
            (None, None | Some(Value::Null)) => None,
            (None, Some(_)) => return Err("completion_response.usage: expected an object".to_owned()),
        };
        let counts = usage.as_ref().map(Counts::of).transpose()?.unwrap_or_default();
        let prompt = fields::tokens("prompt_tokens", self.prompt_tokens.unwrap_or(counts.prompt))?;
        let completion = fields::tokens("completion_tokens", self.completion_tokens.unwrap_or(counts.completion))?;
        let sum = i64::from(prompt) + i64::from(completion);
        let given_counts = self.prompt_tokens.is_some() || self.completion_tokens.is_some();
        let total = self.total_tokens.or(counts.total.filter(|_| !given_counts)).unwrap_or(sum);

        let spend = match self.cost {
            Some(cost) => fields::cost("cost", cost)?,
            None => {
                let priced = usage_for_pricing(usage.as_ref(), prompt, completion, total);
                let price = price_record(pricer, &model, custom_llm_provider.as_deref(), &priced)?;
                fields::cost("cost", price.to_f64().ok_or("cost: the price is out of range")?)?
            }
        };

        let start_time = self.start_time.unwrap_or(Instant::Epoch(now.timestamp_millis() as f64 / 1000.0));
        let start_time = fields::instant("start_time", &start_time, now)?;
        let end_time = self.end_time.map(|end| fields::instant("end_time", &end, now)).transpose()?;
        let request_duration_ms = end_time.map(|end| fields::duration_ms(start_time, end)).transpose()?;
        let status = fields::status(self.status.as_deref())?;

        let id = self.idempotency_key.or_else(|| response_text("id")).filter(|id| !id.is_empty());
        let request_id = match id {
            Some(id) => fields::text("idempotency_key", id, ID_BYTES)?,
            None => Uuid::now_v7().to_string(),
        };
        let mut row = UsageRow {
            request_id,
            call_type: fields::optional_text("call_type", self.call_type, NAME_BYTES)?
                .unwrap_or_else(|| "acompletion".to_owned()),
            api_key: fields::text("api_key", booking.key(self.api_key.as_deref())?, NAME_BYTES)?,
            spend,
            total_tokens: fields::tokens("total_tokens", total)?,
            prompt_tokens: prompt,
            completion_tokens: completion,
            start_time,
            end_time: end_time.unwrap_or(start_time),
            request_duration_ms,
            model_group: model.clone(),
            model,
            custom_llm_provider: custom_llm_provider.unwrap_or_default(),
            end_user: fields::optional_text("end_user_id", self.end_user_id, NAME_BYTES)?.unwrap_or_default(),
            metadata: metadata(self.metadata, usage, status)?,
            cache_hit: "False".to_owned(),
            tags: fields::tags("tags", self.tags.unwrap_or_default())?,
            requester_ip_address: fields::optional_text("requester_ip_address", self.requester_ip_address, NAME_BYTES)?,
            session_id: fields::optional_text("session_id", self.session_id, ID_BYTES)?,
            status: status.to_owned(),
            cache_read_tokens: counts.cache_read,
            cache_creation_tokens: counts.cache_creation,
            ..UsageRow::default()
        };
        let owner = owner_of(&mut row);
        Ok(Draft { row, owner })
    }
}

/// The usage that a price is computed of: the object as it came, with the counts that stand beside it.
fn usage_for_pricing(usage: Option<&Map<String, Value>>, prompt: i32, completion: i32, total: i64) -> Map<String, Value> {
    let mut usage = usage.cloned().unwrap_or_default();
    usage.insert("prompt_tokens".into(), prompt.into());
    usage.insert("completion_tokens".into(), completion.into());
    usage.insert("total_tokens".into(), total.into());
    usage
}

/// The caller's metadata with what LiteLLM's readers look for in it.
fn metadata(
    metadata: Option<Map<String, Value>>,
    usage: Option<Map<String, Value>>,
    status: &str,
) -> Result<String, String> {
    let mut fields = metadata.unwrap_or_default();
    fields.insert("status".into(), status.into());
    if let Some(usage) = usage {
        let further: Map<String, Value> = usage
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "prompt_tokens" | "completion_tokens" | "total_tokens"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        fields.insert("additional_usage_values".into(), json!(further));
        fields.insert("usage_object".into(), Value::Object(usage));
    }
    let value = Value::Object(fields);
    if fields::has_nul(&value) {
        return Err("metadata, usage: must not contain a NUL character".to_owned());
    }
    Ok(value.to_string())
}
