//! Reads the `usage` object of a response and converts it to one form.
//!
//! It understands the usage objects of chat completions, the Anthropic Messages API, the OpenAI Responses API and
//! Google's Interactions API. In the common form, `prompt_tokens` includes cached tokens.
//!
//! Counts are read as leniently as LiteLLM's models read them: `"12"`, `12.0` and `true` are counts. A negative count
//! or a count that is too large is refused, because a bill that rests on it can't be trusted.

pub(crate) mod forms;
pub(crate) mod response;

use rust_decimal::Decimal;
use serde_json::{Map, Value};

use crate::PricingError;
use crate::bill::amount;
use crate::bill::amount::LARGEST_COUNT;
use crate::table::prices::Tier;

type Object = Map<String, Value>;

/// The usage of one request, in the common form.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt, including cached ones.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Total as reported. Some providers include tokens here that they leave out of the two counts above.
    pub total_tokens: u64,
    /// The prompt, broken down by kind of token.
    pub prompt: Option<PromptDetails>,
    /// The answer, broken down by kind of token.
    pub completion: Option<CompletionDetails>,
    /// Requests to tools that the provider ran.
    pub tools: Option<ToolRequests>,
    /// Web searches, which xAI reports in a field of its own.
    pub xai_web_searches: Option<u64>,
    /// Tokens of the sources that Perplexity cites.
    pub citation_tokens: u64,
    /// The cost of the request as the provider states it.
    pub reported_cost: Option<ReportedCost>,
    /// The service tier, if the usage object names one.
    pub tier: Option<String>,
    /// Whether Anthropic served the request at its higher speed.
    pub is_fast: bool,
    /// The region in which Anthropic served the request.
    pub region: Option<String>,
}

/// The fields of `prompt_tokens_details`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptDetails {
    pub cached: u64,
    pub cached_text: u64,
    pub cached_audio: u64,
    pub cached_image: u64,
    /// Whether the cache was created explicitly. DashScope has a separate price for reading such a cache.
    pub is_cache_explicit: bool,
    pub cache_write: u64,
    pub cache_write_lifetimes: Option<CacheLifetimes>,
    pub text: u64,
    pub audio: u64,
    pub image: u64,
    pub video: u64,
    pub characters: u64,
    pub images: u64,
    pub queries: u64,
    pub video_seconds: Decimal,
    pub audio_seconds: Decimal,
    pub web_searches: Option<u64>,
    pub maps_requests: Option<u64>,
}

/// Tokens written to the cache, by lifetime of the cache entry.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CacheLifetimes {
    /// Tokens with a lifetime of 5 or 30 minutes, which are billed at the base price.
    pub short: u64,
    pub hour: u64,
    pub half_day: u64,
}

/// The fields of `completion_tokens_details`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CompletionDetails {
    pub text: u64,
    pub reasoning: u64,
    pub audio: u64,
    pub image: u64,
    pub video: u64,
}

/// The fields of `server_tool_use`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ToolRequests {
    pub web_searches: Option<u64>,
    pub browser_opens: Option<u64>,
}

/// A cost in dollars that a provider states in `usage.cost`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReportedCost {
    pub amount: Decimal,
    /// Whether `usage.cost` was an object with a total, rather than a number.
    pub is_breakdown: bool,
}

impl Usage {
    /// Reads a usage object as that of a chat completion, whatever fields it has.
    ///
    /// # Errors
    /// [`PricingError::InvalidUsage`] if a field has the wrong type or a count is out of range.
    pub fn from_chat(usage: &Object) -> Result<Self, PricingError> {
        let mut result = Self {
            prompt_tokens: total(usage, "prompt_tokens")?,
            completion_tokens: total(usage, "completion_tokens")?,
            total_tokens: total(usage, "total_tokens")?,
            prompt: match usage.get("prompt_tokens_details") {
                Some(Value::Object(details)) if !details.is_empty() => Some(prompt_details(details)?),
                _ => None,
            },
            completion: match usage.get("completion_tokens_details") {
                Some(Value::Object(details)) if !details.is_empty() => Some(completion_details(details)?),
                _ => None,
            },
            tools: match usage.get("server_tool_use") {
                Some(Value::Object(tools)) => Some(ToolRequests {
                    web_searches: count(tools, "web_search_requests")?,
                    browser_opens: count(tools, "browser_open_requests")?,
                }),
                _ => None,
            },
            xai_web_searches: match usage.get("server_side_tool_usage_details") {
                Some(Value::Object(details)) => whole(details.get("web_search_calls"))?,
                _ => None,
            },
            citation_tokens: whole(usage.get("citation_tokens"))?.unwrap_or(0),
            reported_cost: usage.get("cost").and_then(reported_cost),
            tier: text(usage, "service_tier"),
            is_fast: usage.get("speed").and_then(Value::as_str) == Some("fast"),
            region: text(usage, "inference_geo"),
        };
        result.add_reasoning(reasoning(usage)?, usage)?;
        for field in ["prompt_cache_hit_tokens", "cache_read_input_tokens"] {
            if let Some(cached) = whole(usage.get(field))? {
                result.prompt.get_or_insert_default().cached = cached;
            }
        }
        for field in ["cache_read_input_tokens", "cache_creation_input_tokens"] {
            check_number(usage, field)?;
        }
        if let Some(written) = whole(usage.get("cache_creation_input_tokens"))? {
            result.prompt.get_or_insert_default().cache_write = written;
        }
        Ok(result)
    }

    /// Reads a usage object of any supported API. The fields that it has determine which API it is.
    ///
    /// # Errors
    /// The same as for [`Usage::from_chat`].
    pub fn from_any(usage: &Object) -> Result<Self, PricingError> {
        let has = |field: &str| usage.contains_key(field);
        if !has("prompt_tokens") && has("input_tokens") {
            if has("cache_read_input_tokens") || has("cache_creation_input_tokens") {
                return crate::usage::forms::from_anthropic(usage);
            }
            if has("output_tokens") {
                return crate::usage::forms::from_responses(usage);
            }
        }
        if !has("prompt_tokens") && !has("input_tokens") && (has("total_input_tokens") || has("total_output_tokens")) {
            return crate::usage::forms::from_interactions(usage);
        }
        Self::from_chat(usage)
    }

    /// Usage that consists of a prompt only, for pricing a request before it is sent.
    pub fn of_prompt(tokens: u64) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens, ..Self::default() }
    }

    /// The service tier that this usage names. Names that have no prices of their own count as the standard tier, and
    /// so does a missing name.
    pub fn tier(&self) -> Tier {
        self.tier.as_deref().map_or(Tier::Standard, Tier::served)
    }

    /// Applies `reasoning_tokens` from outside the details. Sets the reasoning count and computes the text count, each
    /// only if the details do not state it.
    fn add_reasoning(&mut self, reasoning: u64, usage: &Object) -> Result<(), PricingError> {
        if reasoning == 0 {
            return Ok(());
        }
        let stated = match usage.get("completion_tokens_details") {
            Some(Value::Object(details)) => Some(details),
            _ => None,
        };
        let states =
            |field: &str| stated.is_some_and(|details| details.get(field).is_some_and(|value| !value.is_null()));
        let details = self.completion.get_or_insert_default();
        if !states("reasoning_tokens") {
            details.reasoning = reasoning;
        }
        if !states("text_tokens") && usage.get("completion_tokens").is_some_and(|v| !v.is_null()) {
            details.text = self
                .completion_tokens
                .saturating_sub(reasoning)
                .saturating_sub(details.image)
                .saturating_sub(details.audio);
        }
        Ok(())
    }
}

impl CompletionDetails {
    /// The text tokens without those that are also counted as reasoning. The overlap is the amount by which the parts
    /// exceed `completion_tokens`.
    pub fn text_without_reasoning(&self, completion_tokens: u64) -> u64 {
        let stated = self.text.saturating_add(self.other_parts());
        let excess = stated.saturating_sub(completion_tokens);
        self.text - self.reasoning.min(self.text).min(excess)
    }

    /// All tokens except text.
    pub fn other_parts(&self) -> u64 {
        [self.reasoning, self.audio, self.image, self.video].into_iter().fold(0, u64::saturating_add)
    }
}

fn reported_cost(value: &Value) -> Option<ReportedCost> {
    let (number, is_breakdown) = match value {
        Value::Number(number) => (number, false),
        Value::Object(breakdown) => match breakdown.get("total_cost") {
            Some(Value::Number(total)) => (total, true),
            _ => return None,
        },
        _ => return None,
    };
    let amount = amount::from_number(number)?;
    (amount >= Decimal::ZERO).then_some(ReportedCost { amount, is_breakdown })
}

pub(crate) fn prompt_details(details: &Object) -> Result<PromptDetails, PricingError> {
    let get = |field: &str| count(details, field);
    let mut result = PromptDetails {
        cached: get("cached_tokens")?.unwrap_or(0),
        text: get("text_tokens")?.unwrap_or(0),
        audio: get("audio_tokens")?.unwrap_or(0),
        image: get("image_tokens")?.unwrap_or(0),
        video: get("video_tokens")?.unwrap_or(0),
        characters: get("character_count")?.unwrap_or(0),
        images: get("image_count")?.unwrap_or(0),
        queries: get("query_count")?.unwrap_or(0),
        video_seconds: seconds(details, "video_length_seconds")?,
        audio_seconds: seconds(details, "audio_length_seconds")?,
        web_searches: get("web_search_requests")?,
        maps_requests: get("google_maps_grounding_requests")?,
        is_cache_explicit: details.get("cache_type").and_then(Value::as_str) == Some("ephemeral"),
        ..PromptDetails::default()
    };
    let written = match (get("cache_write_tokens")?, get("cache_creation_tokens")?) {
        (None, None) => whole(details.get("cache_creation_input_tokens"))?,
        (written, created) => written.or(created),
    };
    result.cache_write = written.unwrap_or(0);
    match details.get("cached_tokens_details") {
        Some(Value::Object(cached)) => {
            result.cached_text = count(cached, "text_tokens")?.unwrap_or(0);
            result.cached_audio = count(cached, "audio_tokens")?.unwrap_or(0);
            result.cached_image = count(cached, "image_tokens")?.unwrap_or(0);
        }
        None | Some(Value::Null) => {}
        Some(_) => return Err(invalid("cached_tokens_details", "must be an object")),
    }
    match details.get("cache_creation_token_details") {
        Some(Value::Object(lifetimes)) => {
            result.cache_write_lifetimes = Some(CacheLifetimes {
                short: sum_counts(lifetimes, ["ephemeral_5m_input_tokens", "ephemeral_30m_input_tokens"])?,
                hour: count(lifetimes, "ephemeral_1h_input_tokens")?.unwrap_or(0),
                half_day: count(lifetimes, "ephemeral_12h_input_tokens")?.unwrap_or(0),
            });
        }
        None | Some(Value::Null) => {}
        Some(_) => return Err(invalid("cache_creation_token_details", "must be an object")),
    }
    Ok(result)
}

fn completion_details(details: &Object) -> Result<CompletionDetails, PricingError> {
    let get = |field: &str| Ok::<_, PricingError>(count(details, field)?.unwrap_or(0));
    for unused in ["accepted_prediction_tokens", "rejected_prediction_tokens"] {
        get(unused)?;
    }
    Ok(CompletionDetails {
        text: get("text_tokens")?,
        reasoning: get("reasoning_tokens")?,
        audio: get("audio_tokens")?,
        image: get("image_tokens")?,
        video: get("video_tokens")?,
    })
}

/// Reads a total. A value that Python treats as false counts as 0.
fn total(usage: &Object, field: &str) -> Result<u64, PricingError> {
    match usage.get(field) {
        Some(value) if !is_truthy(value) => Ok(0),
        _ => Ok(count(usage, field)?.unwrap_or(0)),
    }
}

/// Reads `reasoning_tokens` from outside the details. It must be a number, because it is subtracted.
fn reasoning(usage: &Object) -> Result<u64, PricingError> {
    match usage.get("reasoning_tokens") {
        Some(Value::String(text)) if !text.is_empty() => Err(invalid("reasoning_tokens", "must be a number")),
        _ => total(usage, "reasoning_tokens"),
    }
}

fn check_number(usage: &Object, field: &str) -> Result<(), PricingError> {
    match usage.get(field) {
        None | Some(Value::Null | Value::Bool(_) | Value::Number(_)) => Ok(()),
        Some(Value::String(text)) if text.trim().parse::<f64>().is_ok() => Ok(()),
        Some(_) => Err(invalid(field, "must be a number")),
    }
}

/// Whether Python treats a value as true: it is not null, false, zero or empty.
pub(crate) fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn sum_counts(object: &Object, fields: [&str; 2]) -> Result<u64, PricingError> {
    let mut sum: u64 = 0;
    for field in fields {
        sum = sum.saturating_add(count(object, field)?.unwrap_or(0));
    }
    Ok(sum)
}

/// Reads a count: an integer, a boolean, a float without a fraction, or a whole number in a string. `None` if the field
/// is missing or null.
pub(crate) fn count(object: &Object, field: &str) -> Result<Option<u64>, PricingError> {
    let number = match object.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Bool(flag)) => return Ok(Some(u64::from(*flag))),
        Some(Value::Number(number)) => amount::from_number(number),
        Some(Value::String(text)) => whole_text(text),
        Some(_) => None,
    };
    let number = number.filter(|number| number.is_integer()).ok_or_else(|| invalid(field, "must be a whole number"))?;
    in_range(field, number).map(Some)
}

/// Parses a whole number. Zeros may follow a decimal point; an exponent is not accepted.
pub(crate) fn whole_text(text: &str) -> Option<Decimal> {
    let text = text.trim();
    let is_plain = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+');
    let number: Decimal = text.chars().all(is_plain).then(|| text.parse().ok())??;
    number.is_integer().then_some(number)
}

/// Reads a count from an integer or a boolean. Any other value is ignored.
pub(crate) fn whole(value: Option<&Value>) -> Result<Option<u64>, PricingError> {
    match value {
        Some(Value::Bool(flag)) => Ok(Some(u64::from(*flag))),
        Some(Value::Number(number)) if !number.is_f64() => match amount::from_number(number) {
            Some(number) => in_range("usage", number).map(Some),
            None => Err(invalid("usage", "must be a smaller number")),
        },
        _ => Ok(None),
    }
}

fn seconds(object: &Object, field: &str) -> Result<Decimal, PricingError> {
    let number = match object.get(field) {
        None | Some(Value::Null) => return Ok(Decimal::ZERO),
        Some(Value::Bool(flag)) => return Ok(Decimal::from(u8::from(*flag))),
        Some(value) => amount::from_value(value),
    };
    let number = number.ok_or_else(|| invalid(field, "must be a number"))?;
    in_range(field, number.ceil())?;
    Ok(number)
}

fn in_range(field: &str, number: Decimal) -> Result<u64, PricingError> {
    u64::try_from(number)
        .ok()
        .filter(|number| *number <= LARGEST_COUNT)
        .ok_or_else(|| invalid(field, "must be between 0 and 1000000000000"))
}

pub(crate) fn invalid(field: &str, reason: &'static str) -> PricingError {
    PricingError::InvalidUsage { field: field.to_owned(), reason }
}

fn text(object: &Object, field: &str) -> Option<String> {
    object.get(field).and_then(Value::as_str).map(str::to_owned)
}
