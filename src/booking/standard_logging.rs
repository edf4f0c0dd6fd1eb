//! LiteLLM's `StandardLoggingPayload`, as its `generic_api` callback sends it. The payload's statements about a call,
//! including its cost, are stored unchanged. Prompts and answers are not stored. Only the master key, admins, and keys
//! with the permission `book_usage` may send a payload that states a cost, or the key, user or team of someone else.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::booking::fields;
use crate::booking::fields::{ID_BYTES, Instant, NAME_BYTES, TEXT_BYTES};
use crate::booking::limits::Refusal;
use crate::booking::price::{price_record, read_usage};
use crate::booking::sent;
use crate::booking::sent::Form;
use crate::booking::{Booking, Draft, Owner, metadata};
use crate::identity::{MASTER_KEY_ALIAS, MASTER_USER_ID};
use crate::json_bounds::ValueDigest;
use crate::store::booking::UsageRow;
use litespend_pricing::{Pricer, Usage};

/// The part of the payload that becomes a row. Everything else is skipped without being read. Fields of `metadata` with
/// more than 16 KiB are left out of the row and listed in its `left_out`; strings in the error information are
/// truncated to 8 KiB. The remaining metadata is stored and may have at most 64 KiB. Names have at most 256 bytes, ids
/// 512, `api_base` and `cache_key` 2,048.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[schema(as = StandardLoggingPayload)]
pub struct Payload {
    /// The id of the call, by which it is booked once. It becomes `request_id`, unless another row has that id.
    #[schema(max_length = 512)]
    id: Option<String>,
    #[schema(max_length = 512)]
    litellm_call_id: Option<String>,
    #[schema(max_length = 512)]
    trace_id: Option<String>,
    #[schema(max_length = 512)]
    session_id: Option<String>,
    #[schema(max_length = 256)]
    call_type: Option<String>,
    /// The cost in USD, as LiteLLM computed it. Only the master key, admins, and keys with the permission `book_usage`
    /// may state it.
    #[schema(minimum = 0, maximum = 1e12)]
    response_cost: Option<f64>,
    #[schema(value_type = Option<Object>)]
    cost_breakdown: Option<Value>,
    /// `success` (default) or `failure`.
    #[schema(schema_with = fields::status_schema)]
    status: Option<String>,
    #[schema(max_length = 256)]
    custom_llm_provider: Option<String>,
    #[serde(default, deserialize_with = "fields::whole_number")]
    #[schema(minimum = 0, maximum = 2147483647)]
    total_tokens: Option<i64>,
    #[serde(default, deserialize_with = "fields::whole_number")]
    #[schema(minimum = 0, maximum = 2147483647)]
    prompt_tokens: Option<i64>,
    #[serde(default, deserialize_with = "fields::whole_number")]
    #[schema(minimum = 0, maximum = 2147483647)]
    completion_tokens: Option<i64>,
    #[serde(rename = "startTime")]
    /// Seconds since 1970.
    #[schema(value_type = f64, required = true, minimum = 946684800, maximum = 1e11)]
    start_time: Option<Instant>,
    #[serde(rename = "endTime")]
    /// Seconds since 1970.
    #[schema(value_type = Option<f64>, minimum = 946684800, maximum = 1e11)]
    end_time: Option<Instant>,
    #[serde(rename = "completionStartTime")]
    /// When the first token arrived, in seconds since 1970.
    #[schema(value_type = Option<f64>, minimum = 946684800, maximum = 1e11)]
    completion_start_time: Option<Instant>,
    #[schema(max_length = 256)]
    model: Option<String>,
    #[schema(max_length = 256)]
    model_id: Option<String>,
    #[schema(max_length = 256)]
    model_group: Option<String>,
    #[schema(max_length = 2048)]
    api_base: Option<String>,
    #[schema(value_type = Option<Object>)]
    metadata: Option<Map<String, Value>>,
    cache_hit: Option<bool>,
    #[schema(max_length = 2048)]
    cache_key: Option<String>,
    #[schema(value_type = Option<Vec<String>>, max_items = 100)]
    request_tags: Option<Vec<Value>>,
    #[schema(max_length = 256)]
    end_user: Option<String>,
    #[schema(max_length = 256)]
    requester_ip_address: Option<String>,
    #[schema(value_type = Option<Object>)]
    error_information: Option<Value>,
}

impl Payload {
    /// Reads a payload and returns its row, or the reason why it can't be booked.
    pub fn read(json: &str, booking: &Booking<'_>, pricer: &Pricer, now: DateTime<Utc>) -> Result<Draft, Refusal> {
        let digest = sent::digest(json, Form::Payload)?;
        fields::parse::<Self>(json)?.into_draft(digest, booking, pricer, now)
    }

    fn into_draft(
        mut self,
        digest: ValueDigest,
        booking: &Booking<'_>,
        pricer: &Pricer,
        now: DateTime<Utc>,
    ) -> Result<Draft, Refusal> {
        let metadata = self.metadata.take().unwrap_or_default();
        let of_metadata = |name: &str| metadata.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let api_key = booking.key(of_metadata("user_api_key_hash"))?;
        booking.owner(of_metadata("user_api_key_user_id"), of_metadata("user_api_key_team_id"))?;
        let stated_cost = self.response_cost;
        if stated_cost.is_some() {
            booking.stated_cost("response_cost")?;
        }
        let status = fields::status(self.status.as_deref())?;
        let mut used = self.used(&metadata)?;
        if !booking.is_trusted {
            used.reported_cost = None;
        }
        let tokens = fields::used_tokens(&used)?;
        let model = plain("model", self.model.take(), NAME_BYTES)?;
        let provider = plain("custom_llm_provider", self.custom_llm_provider.take(), NAME_BYTES)?;
        let spend = match self.response_cost {
            Some(cost) => fields::cost("response_cost", cost)?,
            None if status == "failure" && (booking.is_trusted || tokens.total == 0) => 0.0,
            None => {
                let provider = Some(provider.as_str()).filter(|provider| !provider.is_empty());
                fields::cost("response_cost", price_record(pricer, &model, provider, &used, now)?)?
            }
        };
        let start_time = self.start_time.take().ok_or("startTime: is missing")?;
        let dates = booking.dates();
        let start_time = fields::instant("startTime", &start_time, now, dates)?;
        let instant = |name: &str, value: &Option<Instant>| {
            value.as_ref().map(|value| fields::instant(name, value, now, dates)).transpose()
        };
        let end_time = instant("endTime", &self.end_time)?;
        let id = self.id.take().or_else(|| self.litellm_call_id.clone()).filter(|id| !id.is_empty());
        let Owned { owner, user, team_id, organization_id } = owned(booking, &metadata, &api_key)?;
        let end_user = self.end_user.take().filter(|end_user| !end_user.is_empty());
        let end_user = end_user.or_else(|| of_metadata("user_api_key_end_user_id").map(str::to_owned));
        let address = self.requester_ip_address.take();
        let address = address.or_else(|| of_metadata("requester_ip_address").map(str::to_owned));
        let tool = metadata.get("mcp_tool_call_metadata").and_then(|call| call.get("namespaced_tool_name"));
        let tool = tool.and_then(Value::as_str).map(str::to_owned);
        let tags = self.request_tags.take().unwrap_or_default();
        let tags = tags.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let session_id = self.session_id.take().filter(|id| !id.is_empty()).or_else(|| self.trace_id.take());
        let row = UsageRow {
            request_id: fields::text("id", id.ok_or("id: is missing")?, ID_BYTES)?,
            call_type: plain("call_type", self.call_type.take(), NAME_BYTES)?,
            api_key: fields::text("user_api_key_hash", api_key, NAME_BYTES)?,
            spend,
            total_tokens: tokens.total,
            prompt_tokens: tokens.prompt,
            completion_tokens: tokens.completion,
            start_time,
            end_time: end_time.unwrap_or(start_time),
            completion_start_time: instant("completionStartTime", &self.completion_start_time)?,
            request_duration_ms: end_time.map(|end| fields::duration_ms(start_time, end)).transpose()?,
            model,
            model_id: plain("model_id", self.model_id.take(), NAME_BYTES)?,
            model_group: plain("model_group", self.model_group.take(), NAME_BYTES)?,
            custom_llm_provider: provider,
            api_base: plain("api_base", self.api_base.take(), TEXT_BYTES)?,
            user,
            team_id,
            organization_id,
            end_user: plain("end_user", end_user, NAME_BYTES)?,
            cache_hit: self.cache_hit.map_or("", |hit| if hit { "True" } else { "False" }).to_owned(),
            cache_key: plain("cache_key", self.cache_key.take(), TEXT_BYTES)?,
            tags: fields::tags("request_tags", tags)?,
            requester_ip_address: fields::optional_text("requester_ip_address", address, NAME_BYTES)?,
            session_id: fields::optional_text("session_id", session_id, ID_BYTES)?,
            status: status.to_owned(),
            mcp_namespaced_tool_name: fields::optional_text("mcp_tool_call_metadata", tool, NAME_BYTES)?,
            litellm_call_id: fields::optional_text("litellm_call_id", self.litellm_call_id.take(), ID_BYTES)?,
            cache_read_tokens: tokens.cache_read,
            cache_creation_tokens: tokens.cache_creation,
            metadata: self.metadata(metadata, status, booking)?,
            ..UsageRow::default()
        };
        booking.plausible(&row)?;
        Ok(booking.draft(row, owner, Some((digest, stated_cost))))
    }

    /// The usage of the call: the payload's own counts, and the usage object for what they leave out.
    fn used(&self, metadata: &Map<String, Value>) -> Result<Usage, String> {
        let usage = metadata.get("usage_object").and_then(Value::as_object);
        // The payload's own counts take precedence. The usage object supplies the counts that they leave out.
        let mut used = usage.map(read_usage).and_then(Result::ok).unwrap_or_default();
        for (name, own, count) in [
            ("prompt_tokens", self.prompt_tokens, &mut used.prompt_tokens),
            ("completion_tokens", self.completion_tokens, &mut used.completion_tokens),
            ("total_tokens", self.total_tokens, &mut used.total_tokens),
        ] {
            if let Some(own) = own {
                *count = fields::tokens(name, own)?.unsigned_abs().into();
            }
        }
        Ok(used)
    }

    /// Puts the payload's metadata where LiteLLM's readers look for it. NUL characters are removed: PostgreSQL would
    /// refuse the record because of them, and no reader needs them.
    fn metadata(
        &mut self,
        mut fields: Map<String, Value>,
        status: &str,
        booking: &Booking<'_>,
    ) -> Result<String, Refusal> {
        fields.retain(|name, value| {
            let says_who = name.starts_with("user_api_key") && !booking.is_trusted;
            !value.is_null() && name != "user_api_key_auth_metadata" && !says_who
        });
        fields.insert("status".into(), status.into());
        for (name, value) in
            [("cost_breakdown", self.cost_breakdown.take()), ("error_information", self.error_information.take())]
        {
            if let Some(value) = value {
                fields.insert(name.into(), value);
            }
        }
        if let Some(Value::Object(usage)) = fields.get("usage_object") {
            let further: Map<String, Value> = usage
                .iter()
                .filter(|(name, _)| !matches!(name.as_str(), "prompt_tokens" | "completion_tokens" | "total_tokens"))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            fields.insert("additional_usage_values".into(), Value::Object(further));
        }
        let mut value = Value::Object(fields);
        fields::without_nul(&mut value);
        let Value::Object(fields) = value else { return Ok("{}".to_owned()) };
        metadata::trimmed(fields, Vec::new())
    }
}

/// Checks a string that may be missing. A missing string becomes empty.
fn plain(name: &str, value: Option<String>, most: usize) -> Result<String, String> {
    fields::text(name, value.unwrap_or_default(), most)
}

/// To whom a call is booked.
struct Owned {
    owner: Owner,
    user: String,
    team_id: String,
    organization_id: String,
}

/// The owner that the payload names, if its sender may name one; otherwise that of the sender's key.
fn owned(booking: &Booking<'_>, metadata: &Map<String, Value>, api_key: &str) -> Result<Owned, String> {
    if !booking.is_trusted {
        let none = String::new;
        return Ok(Owned { owner: Owner::OfKey, user: none(), team_id: none(), organization_id: none() });
    }
    let text = |name: &str| {
        let text = metadata.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        plain(name, text.map(str::to_owned), NAME_BYTES)
    };
    let mut user = text("user_api_key_user_id")?;
    let master = api_key == MASTER_KEY_ALIAS;
    if master && user.is_empty() {
        MASTER_USER_ID.clone_into(&mut user);
    }
    let owner = if master { Owner::Given } else { Owner::OfKeyWhereKnown };
    Ok(Owned { owner, user, team_id: text("user_api_key_team_id")?, organization_id: text("user_api_key_org_id")? })
}
