//! A record of `POST /spend/usage`.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::booking::call::{Call, Names};
use crate::booking::fields;
use crate::booking::fields::Instant;
use crate::booking::limits::Refusal;
use crate::booking::price::{price_record, price_response, read_usage};
use crate::booking::sent;
use crate::booking::sent::Form;
use crate::booking::{Booking, Draft, owner_of};
use crate::json_bounds;
use crate::json_bounds::ValueDigest;
use litespend_pricing::{Pricer, Usage};

/// The names that differ from those of [`Call`].
const NAMES: Names = &[("request_id", "idempotency_key"), ("spend", "cost"), ("end_user", "end_user_id")];

/// One call to a model. Each record is refused separately: with 403 if its sender may not book it, 409 if its id
/// belongs to another record, 413 if a field is too large, 422 if a field is wrong, and 429 if the sender's daily limit
/// for new names is reached.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageRecord {
    /// The key that made the call: the raw key or its SHA-256. Default: the caller's own key. Only the master key,
    /// admins, and keys with the permission `book_usage` may name another key.
    #[schema(max_length = 256)]
    api_key: Option<String>,
    /// The model. Optional if `completion_response` names it. At most 256 bytes.
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
    /// All tokens. Default: the sum of the two counts. At most 100,000,000 by default; this limit is a setting.
    #[serde(default, deserialize_with = "fields::whole_number")]
    #[schema(minimum = 0, maximum = 2147483647)]
    total_tokens: Option<i64>,
    /// A provider's `usage` object, instead of the two counts. It is stored. At most 8 KiB, 200 values, 8 levels deep,
    /// and numbers of at most 64 digits when written out.
    #[schema(value_type = Option<Object>)]
    usage: Option<Map<String, Value>>,
    /// A provider's complete response. Its `model`, `usage` and `id` are read, and so are the fields that affect the
    /// price, such as `choices`. Only `usage` is stored as it is. At most 100,000 values, 64 levels deep.
    #[schema(value_type = Option<Object>)]
    completion_response: Option<Map<String, Value>>,
    /// The cost in USD. Default: the price table's. Only the master key, admins, and keys with the permission
    /// `book_usage` may state a cost. At most 10,000 by default; this limit is a setting.
    #[schema(example = 0.006, minimum = 0)]
    cost: Option<f64>,
    /// The start of the call: RFC 3339, or seconds since 1970. Default: now. By default at most one day ahead and 400
    /// days back; both limits are settings. The master key, admins, and keys with the permission `book_usage` may go
    /// back to the year 2000.
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-03-01T18:30:00Z")]
    start_time: Option<Instant>,
    /// The end of the call, in the same forms. Default: the start.
    #[schema(value_type = Option<String>, format = DateTime)]
    end_time: Option<Instant>,
    /// Identifies the record among those of its sender. A record that is sent again with the same key is not booked
    /// again. A different record with the same key is refused with 409. The key becomes the `request_id` of the row,
    /// unless another row has that id; in that case the answer states the row's actual id. At most 512 bytes.
    #[schema(example = "job-17/call-3", max_length = 512)]
    idempotency_key: Option<String>,
    /// Tags: at most 100, of at most 256 bytes each. The number of models, customers and tags that nobody has used
    /// before is limited per key and day (10,000 by default; this limit is a setting). The limit does not apply to the
    /// master key, admins, and keys with the permission `book_usage`.
    #[schema(max_items = 100)]
    tags: Option<Vec<String>>,
    /// The client's own end user: any string of at most 256 bytes.
    #[schema(max_length = 256)]
    end_user_id: Option<String>,
    /// The session. At most 512 bytes.
    #[schema(max_length = 512)]
    session_id: Option<String>,
    /// `success` (default) or `failure`.
    #[schema(schema_with = fields::status_schema)]
    status: Option<String>,
    /// The kind of call, by LiteLLM's names. Default: `acompletion`. At most 256 bytes.
    #[schema(max_length = 256)]
    call_type: Option<String>,
    /// The provider, for example `openai`. At most 256 bytes.
    #[schema(max_length = 256)]
    custom_llm_provider: Option<String>,
    /// Anything else, stored with the row. At most 64 KiB as stored, 2,000 values, 16 levels deep, strings of at most
    /// 16 KiB, and numbers of at most 64 digits when written out. Names that begin with `user_api_key` identify the
    /// maker of a call. They are left out if the sender may not state that.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    /// The client's address. At most 256 bytes.
    #[schema(max_length = 256)]
    requester_ip_address: Option<String>,
}

impl UsageRecord {
    /// Reads a record and returns its row, or the reason why it can't be booked.
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
        let api_key = booking.key(self.api_key.as_deref())?;
        if self.cost.is_some() {
            booking.stated_cost("cost")?;
        }
        let mut response = self.completion_response.unwrap_or_default();
        if !booking.is_trusted {
            // The usage object of some providers states a cost. This sender may not state one.
            for usage in response.get_mut("usage").and_then(Value::as_object_mut).into_iter() {
                usage.remove("cost");
            }
        }
        let response_text = |name: &str| response.get(name).and_then(Value::as_str).map(str::to_owned);
        let model = self.model.or_else(|| response_text("model")).filter(|model| !model.is_empty());
        let model = model.ok_or("model: is missing")?;
        let provider = self.custom_llm_provider.filter(|provider| !provider.is_empty());

        let counted = self.prompt_tokens.is_some() || self.completion_tokens.is_some();
        let reported = reported_usage(counted, self.usage, &response)?;
        let count = |name: &str, count: Option<i64>| fields::tokens(name, count.unwrap_or(0));
        let (prompt, completion) =
            (count("prompt_tokens", self.prompt_tokens)?, count("completion_tokens", self.completion_tokens)?);
        let mut used = match &reported {
            Some(usage) => read_usage(usage)?,
            None => counted_usage(prompt, completion),
        };
        if !booking.is_trusted {
            used.reported_cost = None;
        }
        let mut tokens = fields::used_tokens(&used)?;
        if let Some(total) = self.total_tokens {
            tokens.total = fields::tokens("total_tokens", total)?;
        }

        let spend = match self.cost {
            Some(cost) => cost,
            None if !counted && reported.is_none() && response.is_empty() => {
                return Err("cost: is missing, and cannot be calculated: set prompt_tokens and \
                            completion_tokens, usage or completion_response"
                    .into());
            }
            None if provider.is_none() && !counted && response.contains_key("choices") => {
                price_response(pricer, &model, &response, now)?
            }
            None => price_record(pricer, &model, provider.as_deref(), &used, now)?,
        };

        let status = fields::status(self.status.as_deref())?;
        let id = self.idempotency_key.or_else(|| response_text("id")).filter(|id| !id.is_empty());
        let identity = id.is_some().then_some((digest, self.cost));
        let mut metadata = self.metadata.unwrap_or_default();
        if !booking.is_trusted {
            metadata.retain(|name, _| !name.starts_with("user_api_key"));
        }
        let call = Call {
            request_id: Some(id.unwrap_or_else(|| Uuid::now_v7().to_string())),
            call_type: self.call_type.filter(|kind| !kind.is_empty()).or_else(|| Some("acompletion".to_owned())),
            api_key: Some(api_key),
            spend,
            tokens,
            start_time: self.start_time.or(Some(Instant::Epoch(now.timestamp_millis() as f64 / 1000.0))),
            end_time: self.end_time,
            model_group: Some(model.clone()),
            model: Some(model),
            custom_llm_provider: provider,
            end_user: self.end_user_id,
            metadata: stored_metadata(metadata, reported, status)?,
            cache_hit: Some("False".to_owned()),
            tags: self.tags.unwrap_or_default(),
            requester_ip_address: self.requester_ip_address,
            session_id: self.session_id,
            status: Some(status.to_owned()),
            ..Call::default()
        };
        let mut row = call.into_row(NAMES, now, booking.dates())?;
        booking.plausible(&row)?;
        let owner = owner_of(&mut row);
        Ok(booking.draft(row, owner, identity))
    }
}

/// The usage object of a record: its own, or that of the response; none if the record states counts of tokens.
fn reported_usage(
    counted: bool,
    usage: Option<Map<String, Value>>,
    response: &Map<String, Value>,
) -> Result<Option<Map<String, Value>>, Refusal> {
    Ok(match (counted, usage, response.get("usage")) {
        (true, Some(_), _) => return Err("usage: set either the token counts or a usage object".into()),
        (false, Some(_), Some(Value::Object(_))) => {
            return Err("usage: set either a usage object or a completion_response".into());
        }
        (_, Some(usage), _) => Some(usage),
        (false, None, Some(Value::Object(usage))) => {
            sent::within("completion_response.usage", &json!(usage).to_string(), sent::USAGE)?;
            Some(usage.clone())
        }
        (true, None, _) | (_, _, None | Some(Value::Null)) => None,
        (..) => return Err("completion_response.usage: expected an object".into()),
    })
}

/// The usage of a record that states counts of tokens.
fn counted_usage(prompt: i32, completion: i32) -> Usage {
    Usage {
        prompt_tokens: prompt.unsigned_abs().into(),
        completion_tokens: completion.unsigned_abs().into(),
        ..Usage::default()
    }
}

/// Returns the caller's metadata plus the fields that LiteLLM's readers expect in it.
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
