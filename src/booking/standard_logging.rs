//! LiteLLM's `StandardLoggingPayload`, as its `generic_api` callback sends it. The payload's statements about a call,
//! including its cost, are stored unchanged. Prompts and answers are not stored. Only the master key, admins, and keys
//! with the permission `book_usage` may send a payload that states a cost, or the key, user or team of someone else.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::booking::call::{Call, Names};
use crate::booking::fields;
use crate::booking::fields::Instant;
use crate::booking::limits::Refusal;
use crate::booking::price::{price_record, read_usage};
use crate::booking::sent;
use crate::booking::sent::Form;
use crate::booking::{Booking, Draft, Owner, metadata};
use crate::identity::{MASTER_KEY_ALIAS, MASTER_USER_ID};
use crate::json_bounds::ValueDigest;
use litespend_pricing::{Pricer, Usage};

/// The names that differ from those of [`Call`].
const NAMES: Names = &[
    ("request_id", "id"),
    ("api_key", "user_api_key_hash"),
    ("spend", "response_cost"),
    ("start_time", "startTime"),
    ("end_time", "endTime"),
    ("completion_start_time", "completionStartTime"),
    ("user", "user_api_key_user_id"),
    ("team_id", "user_api_key_team_id"),
    ("organization_id", "user_api_key_org_id"),
    ("tags", "request_tags"),
    ("mcp_namespaced_tool_name", "mcp_tool_call_metadata"),
];

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
        let provider = self.custom_llm_provider.take().filter(|provider| !provider.is_empty());
        let model = self.model.take().unwrap_or_default();
        let spend = match self.response_cost {
            Some(cost) => cost,
            None if status == "failure" && (booking.is_trusted || tokens.total == 0) => 0.0,
            None => price_record(pricer, &model, provider.as_deref(), &used, now)?,
        };
        let Owned { owner, user, team_id, organization_id } = owned(booking, &metadata, &api_key);
        let text_of_metadata = |name: &str| of_metadata(name).map(str::to_owned);
        let end_user = self.end_user.take().filter(|end_user| !end_user.is_empty());
        let tool = metadata.get("mcp_tool_call_metadata").and_then(|call| call.get("namespaced_tool_name"));
        let call = Call {
            request_id: self.id.take().filter(|id| !id.is_empty()).or_else(|| self.litellm_call_id.clone()),
            call_type: self.call_type.take(),
            api_key: Some(api_key),
            spend,
            tokens,
            start_time: self.start_time.take(),
            end_time: self.end_time.take(),
            completion_start_time: self.completion_start_time.take(),
            model: Some(model),
            model_id: self.model_id.take(),
            model_group: self.model_group.take(),
            custom_llm_provider: provider,
            api_base: self.api_base.take(),
            user,
            team_id,
            organization_id,
            end_user: end_user.or_else(|| text_of_metadata("user_api_key_end_user_id")),
            cache_hit: self.cache_hit.map(|hit| if hit { "True" } else { "False" }.to_owned()),
            cache_key: self.cache_key.take(),
            tags: self.request_tags.iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
            requester_ip_address: self.requester_ip_address.take().or_else(|| text_of_metadata("requester_ip_address")),
            session_id: self.session_id.take().filter(|id| !id.is_empty()).or_else(|| self.trace_id.take()),
            status: Some(status.to_owned()),
            mcp_namespaced_tool_name: tool.and_then(Value::as_str).map(str::to_owned),
            litellm_call_id: self.litellm_call_id.take(),
            metadata: self.metadata(metadata, status, booking)?,
            ..Call::default()
        };
        let row = call.into_row(NAMES, now, booking.dates())?;
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

/// To whom a call is booked.
struct Owned {
    owner: Owner,
    user: Option<String>,
    team_id: Option<String>,
    organization_id: Option<String>,
}

/// The owner that the payload names, if its sender may name one; otherwise that of the sender's key.
fn owned(booking: &Booking<'_>, metadata: &Map<String, Value>, api_key: &str) -> Owned {
    if !booking.is_trusted {
        return Owned { owner: Owner::OfKey, user: None, team_id: None, organization_id: None };
    }
    let text = |name: &str| metadata.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let text = |name: &str| text(name).map(str::to_owned);
    let master = api_key == MASTER_KEY_ALIAS;
    Owned {
        owner: if master { Owner::Given } else { Owner::OfKeyWhereKnown },
        user: text("user_api_key_user_id").or_else(|| master.then(|| MASTER_USER_ID.to_owned())),
        team_id: text("user_api_key_team_id"),
        organization_id: text("user_api_key_org_id"),
    }
}
