//! A call as its sender states it. Each form of a record is converted to a [`Call`], and [`Call::into_row`] is the one
//! place that checks the fields and makes a row of them.

use chrono::{DateTime, Utc};

use crate::booking::fields;
use crate::booking::fields::{ID_BYTES, Instant, NAME_BYTES, TEXT_BYTES, Tokens};
use crate::booking::limits::Dates;
use crate::store::booking::UsageRow;

/// The fields of a form whose names differ from those of [`Call`]: the name in `Call`, and the name in the form. Errors
/// state the form's name.
pub type Names = &'static [(&'static str, &'static str)];

/// A call whose fields are not checked yet. An empty string counts as missing. The meaning of each field is that of
/// [`UsageRow`].
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "`UsageRow` documents the same fields")]
pub struct Call {
    pub request_id: Option<String>,
    pub call_type: Option<String>,
    pub api_key: Option<String>,
    pub spend: f64,
    pub tokens: Tokens,
    pub start_time: Option<Instant>,
    /// Default: the start.
    pub end_time: Option<Instant>,
    pub completion_start_time: Option<Instant>,
    pub model: Option<String>,
    pub model_id: Option<String>,
    pub model_group: Option<String>,
    pub custom_llm_provider: Option<String>,
    pub api_base: Option<String>,
    pub user: Option<String>,
    pub team_id: Option<String>,
    pub organization_id: Option<String>,
    pub end_user: Option<String>,
    pub cache_hit: Option<String>,
    pub cache_key: Option<String>,
    pub tags: Vec<String>,
    pub requester_ip_address: Option<String>,
    pub session_id: Option<String>,
    pub status: Option<String>,
    pub mcp_namespaced_tool_name: Option<String>,
    pub agent_id: Option<String>,
    pub litellm_call_id: Option<String>,
    /// JSON texts, which the form has checked.
    pub metadata: String,
    pub messages: Option<String>,
    pub response: Option<String>,
    pub proxy_server_request: Option<String>,
}

impl Call {
    /// Checks every field and returns the row, or the error in the first wrong field.
    pub fn into_row(self, names: Names, now: DateTime<Utc>, dates: Dates) -> Result<UsageRow, String> {
        let named =
            |field: &'static str| names.iter().find(|(own, _)| *own == field).map_or(field, |(_, theirs)| *theirs);
        let optional = |field, value, most| fields::optional_text(named(field), value, most);
        let missing = |field| format!("{}: is missing", named(field));
        let text = |field, value, most| optional(field, value, most).map(Option::unwrap_or_default);
        let instant = |field, value: Option<Instant>| {
            value.map(|value| fields::instant(named(field), &value, now, dates)).transpose()
        };
        let request_id = optional("request_id", self.request_id, ID_BYTES)?;
        let start_time = self.start_time.ok_or_else(|| missing("start_time"))?;
        let start_time = fields::instant(named("start_time"), &start_time, now, dates)?;
        let end_time = instant("end_time", self.end_time)?;
        let ends = [named("start_time"), named("end_time")];
        let duration = end_time.map(|end| fields::duration_ms(ends, start_time, end)).transpose()?;
        Ok(UsageRow {
            request_id: request_id.ok_or_else(|| missing("request_id"))?,
            call_type: text("call_type", self.call_type, NAME_BYTES)?,
            api_key: text("api_key", self.api_key, NAME_BYTES)?,
            spend: fields::cost(named("spend"), self.spend)?,
            total_tokens: self.tokens.total,
            prompt_tokens: self.tokens.prompt,
            completion_tokens: self.tokens.completion,
            start_time,
            end_time: end_time.unwrap_or(start_time),
            completion_start_time: instant("completion_start_time", self.completion_start_time)?,
            request_duration_ms: duration,
            model: text("model", self.model, NAME_BYTES)?,
            model_id: text("model_id", self.model_id, NAME_BYTES)?,
            model_group: text("model_group", self.model_group, NAME_BYTES)?,
            custom_llm_provider: text("custom_llm_provider", self.custom_llm_provider, NAME_BYTES)?,
            api_base: text("api_base", self.api_base, TEXT_BYTES)?,
            user: text("user", self.user, NAME_BYTES)?,
            team_id: text("team_id", self.team_id, NAME_BYTES)?,
            organization_id: text("organization_id", self.organization_id, NAME_BYTES)?,
            end_user: text("end_user", self.end_user, NAME_BYTES)?,
            metadata: self.metadata,
            cache_hit: text("cache_hit", self.cache_hit, NAME_BYTES)?,
            cache_key: text("cache_key", self.cache_key, TEXT_BYTES)?,
            tags: fields::tags(named("tags"), self.tags)?,
            requester_ip_address: optional("requester_ip_address", self.requester_ip_address, NAME_BYTES)?,
            messages: self.messages,
            response: self.response,
            proxy_server_request: self.proxy_server_request,
            session_id: optional("session_id", self.session_id, ID_BYTES)?,
            status: fields::status(self.status.as_deref())?.to_owned(),
            mcp_namespaced_tool_name: optional("mcp_namespaced_tool_name", self.mcp_namespaced_tool_name, NAME_BYTES)?,
            agent_id: optional("agent_id", self.agent_id, NAME_BYTES)?,
            litellm_call_id: optional("litellm_call_id", self.litellm_call_id, ID_BYTES)?,
            cache_read_tokens: self.tokens.cache_read,
            cache_creation_tokens: self.tokens.cache_creation,
            archived: None,
        })
    }
}
