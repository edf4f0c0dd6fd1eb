//! Converts the usage objects of APIs other than chat completions to a [`Usage`].

use serde_json::{Map, Value};

use crate::PricingError;
use crate::usage::{CacheLifetimes, CompletionDetails, PromptDetails, Usage, count, invalid, prompt_details, whole};

type Object = Map<String, Value>;

/// Reads a usage object of the Anthropic Messages API. Its `input_tokens` excludes the tokens that were read from or
/// written to the cache.
pub(crate) fn from_anthropic(usage: &Object) -> Result<Usage, PricingError> {
    let mut parts = AnthropicTokens::default();
    match usage.get("iterations") {
        Some(Value::Array(iterations)) if !iterations.is_empty() => {
            for iteration in iterations {
                let Value::Object(iteration) = iteration else {
                    return Err(invalid("iterations", "must hold objects"));
                };
                parts.add(iteration)?;
            }
        }
        _ => parts.add(usage)?,
    }
    if parts.lifetimes.is_none()
        && let Some(Value::Object(lifetimes)) = usage.get("cache_creation")
    {
        parts.lifetimes = Some(lifetimes_of(lifetimes)?);
    }
    let mut rest = usage.clone();
    for field in [
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "completion_tokens_details",
        "reasoning_tokens",
    ] {
        rest.remove(field);
    }
    let mut result = Usage::from_chat(&rest)?;
    let reasoning = match usage.get("output_tokens_details") {
        Some(Value::Object(details)) => count(details, "thinking_tokens")?.unwrap_or(0),
        _ => 0,
    }
    .min(parts.output);
    result.prompt_tokens = parts.input + parts.cache_read + parts.cache_write;
    result.completion_tokens = parts.output;
    result.total_tokens = result.prompt_tokens + result.completion_tokens;
    result.prompt = Some(PromptDetails {
        cached: parts.cache_read,
        cache_write: parts.cache_write,
        cache_write_lifetimes: parts.lifetimes,
        text: parts.input,
        ..PromptDetails::default()
    });
    result.completion =
        Some(CompletionDetails { reasoning, text: parts.output - reasoning, ..CompletionDetails::default() });
    Ok(result)
}

#[derive(Default)]
struct AnthropicTokens {
    input: u64,
    output: u64,
    cache_read: u64,
    cache_write: u64,
    lifetimes: Option<CacheLifetimes>,
}

impl AnthropicTokens {
    fn add(&mut self, usage: &Object) -> Result<(), PricingError> {
        self.input += count(usage, "input_tokens")?.unwrap_or(0);
        self.output += count(usage, "output_tokens")?.unwrap_or(0);
        self.cache_read += count(usage, "cache_read_input_tokens")?.unwrap_or(0);
        self.cache_write += count(usage, "cache_creation_input_tokens")?.unwrap_or(0);
        if let Some(Value::Object(lifetimes)) = usage.get("cache_creation") {
            let added = lifetimes_of(lifetimes)?;
            let sum = self.lifetimes.get_or_insert_default();
            sum.short += added.short;
            sum.hour += added.hour;
        }
        Ok(())
    }
}

fn lifetimes_of(lifetimes: &Object) -> Result<CacheLifetimes, PricingError> {
    Ok(CacheLifetimes {
        short: count(lifetimes, "ephemeral_5m_input_tokens")?.unwrap_or(0),
        hour: count(lifetimes, "ephemeral_1h_input_tokens")?.unwrap_or(0),
        half_day: 0,
    })
}

/// Reads a usage object of the OpenAI Responses or Realtime API. Its `input_tokens` includes cached tokens.
pub(crate) fn from_responses(usage: &Object) -> Result<Usage, PricingError> {
    let details_of = |names: [&str; 2]| {
        names.iter().find_map(|name| match usage.get(*name) {
            Some(Value::Object(details)) if !details.is_empty() => Some(details),
            _ => None,
        })
    };
    let mut rest = usage.clone();
    for field in ["prompt_tokens_details", "completion_tokens_details", "reasoning_tokens", "total_tokens"] {
        rest.remove(field);
    }
    let mut result = Usage::from_chat(&rest)?;
    result.prompt_tokens = count(usage, "input_tokens")?.unwrap_or(0);
    result.completion_tokens = count(usage, "output_tokens")?.unwrap_or(0);
    result.total_tokens = result.prompt_tokens + result.completion_tokens;
    if let Some(input) = details_of(["input_tokens_details", "input_token_details"]) {
        let mut details = prompt_details(input)?;
        if let Some(Value::Object(lifetimes)) = input.get("cache_write_tokens_details") {
            details.cache_write_lifetimes = Some(CacheLifetimes {
                short: count(lifetimes, "ttl_30m_tokens")?.unwrap_or(0),
                hour: 0,
                half_day: count(lifetimes, "ttl_12h_tokens")?.unwrap_or(0),
            });
        }
        result.prompt = Some(details);
    }
    if let Some(output) = details_of(["output_tokens_details", "output_token_details"]) {
        let get = |field: &str| Ok::<_, PricingError>(whole(output.get(field))?.unwrap_or(0));
        let mut details = CompletionDetails {
            reasoning: get("reasoning_tokens")?,
            text: get("text_tokens")?,
            audio: get("audio_tokens")?,
            image: get("image_tokens")?,
            video: 0,
        };
        details.text = details.text_without_reasoning(result.completion_tokens);
        result.completion = Some(details);
    }
    if let Some(cost) = &mut result.reported_cost {
        // LiteLLM's models of the Responses API replace a cost breakdown with its total.
        cost.is_breakdown = false;
    }
    Ok(result)
}

/// Reads a usage object of Google's Interactions API: totals, and lists of token counts by modality.
pub(crate) fn from_interactions(usage: &Object) -> Result<Usage, PricingError> {
    let total = |field: &str| Ok::<_, PricingError>(whole(usage.get(field))?.unwrap_or(0));
    let cached = total("total_cached_tokens")?;
    let reasoning = match total("total_reasoning_tokens")? {
        0 => total("total_thought_tokens")?,
        reasoning => reasoning,
    };
    let mut input = Modalities::default();
    input.add(usage.get("input_tokens_by_modality"))?;
    input.add(usage.get("tool_use_tokens_by_modality"))?;
    let mut from_cache = Modalities::default();
    from_cache.add(usage.get("cached_tokens_by_modality"))?;
    if !from_cache.any && cached > 0 {
        from_cache.text = cached;
    }
    let mut output = Modalities::default();
    output.add(usage.get("output_tokens_by_modality"))?;
    let searches = google_searches(usage)?;
    let prompt_tokens = total("total_input_tokens")? + total("total_tool_use_tokens")?;
    let completion_tokens = total("total_output_tokens")? + reasoning;
    Ok(Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: match total("total_tokens")? {
            0 => prompt_tokens + completion_tokens,
            stated => stated,
        },
        prompt: (input.any || cached > 0 || searches > 0).then(|| PromptDetails {
            cached,
            web_searches: (searches > 0).then_some(searches),
            text: input.text.saturating_sub(from_cache.text),
            audio: input.audio.saturating_sub(from_cache.audio),
            image: input.image.saturating_sub(from_cache.image),
            video: input.video.saturating_sub(from_cache.video),
            ..PromptDetails::default()
        }),
        completion: (output.any || reasoning > 0).then_some(CompletionDetails {
            text: output.text,
            reasoning,
            audio: output.audio,
            image: output.image,
            video: output.video,
        }),
        ..Usage::default()
    })
}

#[derive(Default)]
struct Modalities {
    any: bool,
    text: u64,
    audio: u64,
    image: u64,
    video: u64,
}

impl Modalities {
    fn add(&mut self, entries: Option<&Value>) -> Result<(), PricingError> {
        let Some(Value::Array(entries)) = entries else {
            return Ok(());
        };
        for entry in entries {
            let modality = entry.get("modality").and_then(Value::as_str).unwrap_or("");
            let sum = match modality.to_lowercase().as_str() {
                "text" | "document" => &mut self.text,
                "audio" => &mut self.audio,
                "image" => &mut self.image,
                "video" => &mut self.video,
                _ => continue,
            };
            *sum += whole(entry.get("tokens"))?.unwrap_or(0);
            self.any = true;
        }
        Ok(())
    }
}

fn google_searches(usage: &Object) -> Result<u64, PricingError> {
    let mut searches = 0;
    if let Some(Value::Array(entries)) = usage.get("grounding_tool_count") {
        for entry in entries {
            if entry.get("type").and_then(Value::as_str) == Some("google_search") {
                searches += whole(entry.get("count"))?.unwrap_or(0);
            }
        }
    }
    Ok(searches)
}
