//! The token counts of a span.
//!
//! `gen_ai.usage.input_tokens` includes the tokens that were read from and written to the provider's cache. So say the
//! conventions, and OpenAI's and Google's APIs count the same way. Anthropic's API, and Bedrock's for its models, count
//! cached tokens apart: the conventions tell instrumentations to add them up. Some do not. If the cached tokens of a
//! span exceed its input, they cannot be included, so they are added here. Where they do not exceed it, the
//! conventions are believed.
//!
//! The result is a usage object in the form of a chat completion, in which `prompt_tokens` includes cached tokens too.

use serde_json::{Map, Value as Json, json};

use crate::otlp::conventions::{
    CACHE_CREATION_TOKENS, CACHE_READ_AUDIO_TOKENS, CACHE_READ_TOKENS, INPUT_AUDIO_TOKENS, INPUT_IMAGE_TOKENS,
    INPUT_TOKENS, OUTPUT_AUDIO_TOKENS, OUTPUT_TOKENS, REASONING_TOKENS, SERVICE_TIER,
};
use crate::otlp::traces::{Attributes, Value};

/// The largest number of bytes in the name of a service tier. A longer name is none.
const TIER_BYTES: usize = 64;

/// The usage object of a span. `None` if the span states neither input nor output. Counts that are too large for one
/// call are refused later, with the other limits of booking.
pub(super) fn of(attributes: &Attributes) -> Result<Option<Map<String, Json>>, String> {
    let count = |names: &[&str]| count(attributes, names);
    let (input, output) = (count(INPUT_TOKENS)?, count(OUTPUT_TOKENS)?);
    if input.is_none() && output.is_none() {
        return Ok(None);
    }
    let (input, output) = (input.unwrap_or(0), output.unwrap_or(0));
    let [read, written] = [count(CACHE_READ_TOKENS)?.unwrap_or(0), count(CACHE_CREATION_TOKENS)?.unwrap_or(0)];
    let cached = u64::from(read) + u64::from(written);
    let prompt = if cached > u64::from(input) { cached + u64::from(input) } else { input.into() };

    let mut usage = Map::new();
    usage.insert("prompt_tokens".into(), prompt.into());
    usage.insert("completion_tokens".into(), output.into());
    usage.insert("total_tokens".into(), (prompt + u64::from(output)).into());
    let mut details = Map::new();
    let add = |details: &mut Map<String, Json>, name: &str, count: u32| {
        if count > 0 {
            details.insert(name.into(), count.into());
        }
    };
    add(&mut details, "cached_tokens", read);
    add(&mut details, "cache_creation_tokens", written);
    add(&mut details, "audio_tokens", count(INPUT_AUDIO_TOKENS)?.unwrap_or(0));
    add(&mut details, "image_tokens", count(INPUT_IMAGE_TOKENS)?.unwrap_or(0));
    let cached_audio = count(CACHE_READ_AUDIO_TOKENS)?.unwrap_or(0);
    if cached_audio > 0 {
        details.insert("cached_tokens_details".into(), json!({ "audio_tokens": cached_audio }));
    }
    let mut of_output = Map::new();
    add(&mut of_output, "reasoning_tokens", count(REASONING_TOKENS)?.unwrap_or(0));
    add(&mut of_output, "audio_tokens", count(OUTPUT_AUDIO_TOKENS)?.unwrap_or(0));
    for (name, details) in [("prompt_tokens_details", details), ("completion_tokens_details", of_output)] {
        if !details.is_empty() {
            usage.insert(name.into(), details.into());
        }
    }
    match SERVICE_TIER.iter().find_map(|name| Some((name, attributes.get(name)?))) {
        Some((_, Value::Text(tier))) if (1..=TIER_BYTES).contains(&tier.len()) => {
            usage.insert("service_tier".into(), tier.as_str().into());
        }
        // Tiers have prices of their own.
        Some((name, Value::Unreadable)) => return Err(format!("{name}: cannot be read")),
        _ => {}
    }
    Ok(Some(usage))
}

/// The first of these attributes that the span has, as a count.
fn count(attributes: &Attributes, names: &[&str]) -> Result<Option<u32>, String> {
    let Some((name, value)) = names.iter().find_map(|name| Some((name, attributes.get(name)?))) else {
        return Ok(None);
    };
    let number = match value {
        Value::Integer(number) => u32::try_from(*number).ok(),
        // Some languages have no whole numbers.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and within the range")]
        Value::Double(number) if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(number) => {
            Some(*number as u32)
        }
        _ => None,
    };
    number.map(Some).ok_or_else(|| format!("{name}: expected a count of tokens between 0 and {}", u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(counts: &[(&str, i64)]) -> Json {
        let mut attributes = Attributes::default();
        for (name, count) in counts {
            attributes.add(name, Value::Integer(*count));
        }
        of(&attributes).expect("counts").map_or(Json::Null, Json::Object)
    }

    #[test]
    fn cached_tokens_are_part_of_the_input() {
        let expected = json!({
            "prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050,
            "prompt_tokens_details": {"cached_tokens": 600, "cache_creation_tokens": 300},
        });
        for (read, written) in [
            ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_creation.input_tokens"),
            ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_write.input_tokens"),
            ("gen_ai.usage.cache_read_input_tokens", "gen_ai.usage.cache_creation_input_tokens"),
            ("gen_ai.usage.details.cache_read_tokens", "gen_ai.usage.details.cache_write_tokens"),
            ("gen_ai.usage.input_tokens.cached", "gen_ai.usage.input_tokens.cache_write"),
        ] {
            let counts =
                [("gen_ai.usage.input_tokens", 1000), ("gen_ai.usage.output_tokens", 50), (read, 600), (written, 300)];
            assert_eq!(usage(&counts), expected, "{read}");
            // An instrumentation that passes on Anthropic's counts as they are.
            let apart =
                [("gen_ai.usage.input_tokens", 100), ("gen_ai.usage.output_tokens", 50), (read, 600), (written, 300)];
            assert_eq!(usage(&apart), expected, "{read}");
        }
    }

    #[test]
    fn earlier_names_count_where_the_new_ones_are_missing() {
        let old = [("gen_ai.usage.prompt_tokens", 5), ("gen_ai.usage.completion_tokens", 6)];
        assert_eq!(usage(&old), json!({"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}));
        let both = [old[0], old[1], ("gen_ai.usage.input_tokens", 7), ("gen_ai.usage.output_tokens", 8)];
        assert_eq!(usage(&both), json!({"prompt_tokens": 7, "completion_tokens": 8, "total_tokens": 15}));
        let embeddings = [("gen_ai.usage.input_tokens", 9)];
        assert_eq!(usage(&embeddings), json!({"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}));
        assert_eq!(usage(&[]), Json::Null);
    }

    #[test]
    fn openinferences_names_count() {
        let counts = [
            ("llm.token_count.prompt", 100),
            ("llm.token_count.completion", 90),
            ("llm.token_count.total", 190),
            ("llm.token_count.prompt_details.cache_read", 30),
            ("llm.token_count.prompt_details.cache_write", 20),
            ("llm.token_count.prompt_details.audio", 40),
            ("llm.token_count.completion_details.reasoning", 60),
            ("llm.token_count.completion_details.audio", 5),
        ];
        let expected = json!({
            "prompt_tokens": 100, "completion_tokens": 90, "total_tokens": 190,
            "prompt_tokens_details": {"cached_tokens": 30, "cache_creation_tokens": 20, "audio_tokens": 40},
            "completion_tokens_details": {"reasoning_tokens": 60, "audio_tokens": 5},
        });
        assert_eq!(usage(&counts), expected);
    }

    #[test]
    fn details_are_kept() {
        let counts = [
            ("gen_ai.usage.input_tokens", 100),
            ("gen_ai.usage.output_tokens", 90),
            ("gen_ai.usage.audio.input_tokens", 40),
            ("gen_ai.usage.image.input_tokens", 20),
            ("gen_ai.usage.cache_read.input_tokens", 30),
            ("gen_ai.usage.audio.cache_read.input_tokens", 10),
            ("gen_ai.usage.reasoning.output_tokens", 60),
            ("gen_ai.usage.audio.output_tokens", 5),
        ];
        let expected = json!({
            "prompt_tokens": 100, "completion_tokens": 90, "total_tokens": 190,
            "prompt_tokens_details": {"cached_tokens": 30, "audio_tokens": 40, "image_tokens": 20,
                                      "cached_tokens_details": {"audio_tokens": 10}},
            "completion_tokens_details": {"reasoning_tokens": 60, "audio_tokens": 5},
        });
        assert_eq!(usage(&counts), expected);
    }

    #[test]
    fn the_service_tier_is_part_of_the_usage() {
        let mut attributes = Attributes::default();
        attributes.add("gen_ai.usage.input_tokens", Value::Integer(1));
        attributes.add("openai.response.service_tier", Value::text("flex"));
        assert_eq!(of(&attributes).expect("counts").expect("usage")["service_tier"], "flex");
        let mut attributes = Attributes::default();
        attributes.add("gen_ai.usage.input_tokens", Value::Integer(1));
        attributes.add("openai.response.service_tier", Value::Unreadable);
        assert_eq!(of(&attributes), Err("openai.response.service_tier: cannot be read".to_owned()));
    }

    #[test]
    fn what_is_no_count_is_refused_with_its_name() {
        let values = [Value::Integer(-1), Value::Integer(i64::MAX), Value::Double(0.5), Value::Double(f64::NAN)];
        let others = [Value::text("12"), Value::Boolean(true), Value::TooLong, Value::Unreadable];
        for value in values.into_iter().chain(others) {
            let mut attributes = Attributes::default();
            attributes.add("gen_ai.usage.output_tokens", value.clone());
            let error = of(&attributes).expect_err("refused");
            assert!(error.starts_with("gen_ai.usage.output_tokens: "), "{value:?}: {error}");
        }
        let mut attributes = Attributes::default();
        attributes.add("gen_ai.usage.input_tokens", Value::Double(12.0));
        assert_eq!(of(&attributes).expect("a count").expect("usage")["prompt_tokens"], 12);
    }
}
