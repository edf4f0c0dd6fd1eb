//! A record of `POST /spend/usage`.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::booking::fields;
use crate::booking::fields::{ID_BYTES, Instant, NAME_BYTES};
use crate::booking::limits::Refusal;
use crate::booking::price::{price_record, price_response, read_usage};
use crate::booking::sent;
use crate::booking::sent::Form;
use crate::booking::{Booking, Draft, owner_of};
use crate::json_bounds;
use crate::json_bounds::ValueDigest;
use crate::store::booking::UsageRow;
use litespend_pricing::{Pricer, Usage};

/// One call to a model. A record is refused by itself: with 403 where its sender may not book it, 409 where its id
/// stands for another record, 413 where a field is too large, 422 where one is wrong, 429 where the sender's new names
/// of the day are used up.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageRecord {
    /// The key that made the call, raw or its SHA-256. Default: the caller's own. Other keys: only for the master key,
    /// admins, and keys with the permission `book_usage`.
    #[schema(max_length = 256)]
    api_key: Option<String>,
    /// Model. May be left out where `completion_response` names it. At most 256 bytes.
    #[schema(example = "gpt-4o", max_length = 256)]
    model: Option<String>,
    /// Tokens of the prompt.
    #[serde(default, deserialize_with = "fields::whole_number")]
    #[schema(example = 1200, minimum = 0, maximum = 2147483647)]
    prompt_tokens: Option<i64>,
    /// Tokens of the completion.
    #[serde(default, deserialize_with = "fields::whole_number")]
    #[schema(example = 300, minimum = 0, maximum = 2147483647)]
    completion_tokens: Option<i64>,
    /// All tokens; default: their sum. By setting, at most 100,000,000.
    #[serde(default, deserialize_with = "fields::whole_number")]
    #[schema(minimum = 0, maximum = 2147483647)]
    total_tokens: Option<i64>,
    /// A provider's `usage` object, instead of the two counts. Stored: at most 8 KiB, 200 values, 8 deep, and numbers
    /// of at most 64 digits when written out.
    #[schema(value_type = Option<Object>)]
    usage: Option<Map<String, Value>>,
    /// A provider's whole answer, of which `model`, `usage` and `id` are read; the rest is not stored. At most 100,000
    /// values, 64 deep.
    #[schema(value_type = Option<Object>)]
    completion_response: Option<Map<String, Value>>,
    /// USD. Default: by the price table. Stated costs: only from the master key, admins, and keys with the permission
    /// `book_usage`. By setting, at most 10,000.
    #[schema(example = 0.006, minimum = 0)]
    cost: Option<f64>,
    /// Start of the call: RFC 3339, or seconds since 1970. Default: now. At most a day ahead and, by setting, 400 days
    /// back; for the master key, admins, and keys with the permission `book_usage`, since 2000.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-03-01T18:30:00Z")]
    start_time: Option<Instant>,
    /// End of the call, in the same forms. Default: its start.
    #[schema(value_type = Option<String>, format = DateTime)]
    end_time: Option<Instant>,
    /// What makes the record itself among those of its sender: sent again with the same key, it is not booked again. The
    /// same key for another record is refused with 409. Becomes `request_id`, unless another row has that: then the
    /// answer names the row's own. At most 512 bytes.
    #[schema(example = "job-17/call-3", max_length = 512)]
    idempotency_key: Option<String>,
    /// Tags: at most 100 of 256 bytes. Models, customers and tags that nobody used before are limited by key and day
    /// (by setting, 10,000), but for the master key, admins, and keys with the permission `book_usage`.
    #[schema(max_items = 100)]
    tags: Option<Vec<String>>,
    /// The client's own user: any text of at most 256 bytes.
    #[schema(max_length = 256)]
    end_user_id: Option<String>,
    /// Session. At most 512 bytes.
    #[schema(max_length = 512)]
    session_id: Option<String>,
    /// `success` (default) or `failure`.
    #[schema(schema_with = fields::status_schema)]
    status: Option<String>,
    /// Kind of call, by LiteLLM's names. Default: `acompletion`. At most 256 bytes.
    #[schema(max_length = 256)]
    call_type: Option<String>,
    /// Provider, for example `openai`. At most 256 bytes.
    #[schema(max_length = 256)]
    custom_llm_provider: Option<String>,
    /// Anything else, stored with the row: at most 64 KiB as stored, 2,000 values, 16 deep, texts of at most 16 KiB, and
    /// numbers of at most 64 digits when written out. Names that begin with `user_api_key` say who made a call; they are
    /// left out where the sender may not say it.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// The client's address. At most 256 bytes.
    #[schema(max_length = 256)]
    requester_ip_address: Option<String>,
}

impl UsageRecord {
    /// The row that a record becomes, or why it can't be booked.
    pub fn read(json: &str, booking: &Booking<'_>, pricer: &Pricer, now: DateTime<Utc>) -> Result<Draft, Refusal> {
        let digest = sent::digest(json, Form::Record)?;
        fields::parse::<Self>(json)?.into_draft(digest, booking, pricer, now)
    }

    fn into_draft(
        self,
        digest: ValueDigest,
        booking: &Booking<'_>,
        pricer: &Pricer,
        now: DateTime<Utc>,
    ) -> Result<Draft, Refusal> {
        let api_key = fields::text("api_key", booking.key(self.api_key.as_deref())?, NAME_BYTES)?;
        if self.cost.is_some() {
            booking.stated_cost("cost")?;
        }
        let mut response = self.completion_response.unwrap_or_default();
        if !booking.is_trusted {
            // Some providers' usage says what a call cost; this sender's word for it is not enough.
            for usage in response.get_mut("usage").and_then(Value::as_object_mut).into_iter() {
                usage.remove("cost");
            }
        }
        let response_text = |name: &str| response.get(name).and_then(Value::as_str).map(str::to_owned);
        let model = self.model.or_else(|| response_text("model")).filter(|model| !model.is_empty());
        let model = fields::text("model", model.ok_or("model: is missing")?, NAME_BYTES)?;
        let custom_llm_provider = fields::optional_text("custom_llm_provider", self.custom_llm_provider, NAME_BYTES)?;

        let counted = self.prompt_tokens.is_some() || self.completion_tokens.is_some();
        let reported = match (counted, self.usage, response.get("usage")) {
            (true, Some(_), _) => return Err("usage: give either the counts of tokens or a usage object".into()),
            (false, Some(_), Some(Value::Object(_))) => {
                return Err("usage: give either a usage object or a completion_response".into());
            }
            (_, Some(usage), _) => Some(usage),
            (false, None, Some(Value::Object(usage))) => {
                sent::within("completion_response.usage", &json!(usage).to_string(), sent::USAGE)?;
                Some(usage.clone())
            }
            (true, None, _) | (_, _, None | Some(Value::Null)) => None,
            (..) => return Err("completion_response.usage: expected an object".into()),
        };
        let count = |name: &str, count: Option<i64>| fields::tokens(name, count.unwrap_or(0));
        let (prompt, completion) =
            (count("prompt_tokens", self.prompt_tokens)?, count("completion_tokens", self.completion_tokens)?);
        let mut used = match &reported {
            Some(usage) => read_usage(usage)?,
            None => Usage {
                prompt_tokens: prompt.unsigned_abs().into(),
                completion_tokens: completion.unsigned_abs().into(),
                ..Usage::default()
            },
        };
        if !booking.is_trusted {
            used.reported_cost = None;
        }
        let tokens = fields::used_tokens(&used)?;
        let total = self.total_tokens.map_or(Ok(tokens.total), |total| fields::tokens("total_tokens", total))?;

        let spend = match self.cost {
            Some(cost) => fields::cost("cost", cost)?,
            None if !counted && reported.is_none() && response.is_empty() => {
                return Err("cost: is missing, and there is nothing to price: give prompt_tokens and \
                            completion_tokens, usage or completion_response"
                    .into());
            }
            None if custom_llm_provider.is_none() && !counted && response.contains_key("choices") => {
                fields::cost("cost", price_response(pricer, &model, &response, now)?)?
            }
            None => fields::cost("cost", price_record(pricer, &model, custom_llm_provider.as_deref(), &used, now)?)?,
        };

        let dates = booking.dates();
        let start_time = self.start_time.unwrap_or(Instant::Epoch(now.timestamp_millis() as f64 / 1000.0));
        let start_time = fields::instant("start_time", &start_time, now, dates)?;
        let end_time = self.end_time.map(|end| fields::instant("end_time", &end, now, dates)).transpose()?;
        let request_duration_ms = end_time.map(|end| fields::duration_ms(start_time, end)).transpose()?;
        let status = fields::status(self.status.as_deref())?;

        let id = self.idempotency_key.or_else(|| response_text("id")).filter(|id| !id.is_empty());
        let identity = id.is_some().then_some((digest, self.cost));
        let request_id = match id {
            Some(id) => fields::text("idempotency_key", id, ID_BYTES)?,
            None => Uuid::now_v7().to_string(),
        };
        let mut metadata = self.metadata.unwrap_or_default();
        if !booking.is_trusted {
            metadata.retain(|name, _| !name.starts_with("user_api_key"));
        }
        let mut row = UsageRow {
            request_id,
            call_type: fields::optional_text("call_type", self.call_type, NAME_BYTES)?
                .unwrap_or_else(|| "acompletion".to_owned()),
            api_key,
            spend,
            total_tokens: total,
            prompt_tokens: tokens.prompt,
            completion_tokens: tokens.completion,
            start_time,
            end_time: end_time.unwrap_or(start_time),
            request_duration_ms,
            model_group: model.clone(),
            model,
            custom_llm_provider: custom_llm_provider.unwrap_or_default(),
            end_user: fields::optional_text("end_user_id", self.end_user_id, NAME_BYTES)?.unwrap_or_default(),
            metadata: stored_metadata(metadata, reported, status)?,
            cache_hit: "False".to_owned(),
            tags: fields::tags("tags", self.tags.unwrap_or_default())?,
            requester_ip_address: fields::optional_text("requester_ip_address", self.requester_ip_address, NAME_BYTES)?,
            session_id: fields::optional_text("session_id", self.session_id, ID_BYTES)?,
            status: status.to_owned(),
            cache_read_tokens: tokens.cache_read,
            cache_creation_tokens: tokens.cache_creation,
            ..UsageRow::default()
        };
        booking.plausible(&row)?;
        let owner = owner_of(&mut row);
        Ok(booking.draft(row, owner, identity))
    }
}

/// The caller's metadata with what LiteLLM's readers look for in it.
fn stored_metadata(
    mut fields: Map<String, Value>,
    usage: Option<Map<String, Value>>,
    status: &str,
) -> Result<String, String> {
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
    if json_bounds::has_nul(&value) {
        return Err("metadata, usage: must not contain a NUL character".to_owned());
    }
    Ok(value.to_string())
}
