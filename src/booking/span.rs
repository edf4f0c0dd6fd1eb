//! An inference span of OpenTelemetry.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::booking::call::{Call, Names};
use crate::booking::fields;
use crate::booking::fields::{Instant, MAX_TAGS, NAME_BYTES, Tokens};
use crate::booking::limits::Refusal;
use crate::booking::price::{Priced, price_call, read_usage};
use crate::booking::{Booking, Draft, NewNames, metadata, owner_of};
use crate::json_bounds::ValueDigest;
use crate::otlp::inference::{Inference, NameBounds};
use litespend_pricing::{Pricer, Usage};

/// The names that differ from those of [`Call`].
const NAMES: Names = &[("model", "gen_ai.response.model"), ("model_group", "gen_ai.request.model")];

/// The bounds of the names that a span's call gets.
pub const BOUNDS: NameBounds = NameBounds { bytes: NAME_BYTES, tags: MAX_TAGS };

/// Returns the draft of a span's call, or the reason why it cannot be booked. The call belongs to the key that sent the
/// span, and costs what the price table says. Its model and its provider are those that have the price, so that names
/// without a price do not become names of reports. The metadata has those that the span states.
pub fn draft(
    inference: &Inference,
    booking: &Booking<'_>,
    pricer: &Pricer,
    now: DateTime<Utc>,
) -> Result<Draft, Refusal> {
    let used = match &inference.usage {
        Some(usage) => read_usage(usage)?,
        None => Usage::default(),
    };
    let tokens = fields::used_tokens(&used)?;
    let Priced { cost: spend, model, provider } = price(inference, &used, tokens, pricer, now)?;
    let status = if inference.is_failure { "failure" } else { "success" };
    let call = Call {
        request_id: Some(inference.id()),
        call_type: Some(inference.operation.call_type().to_owned()),
        api_key: Some(booking.key(None)?),
        spend,
        tokens,
        start_time: Some(instant(inference.start_time)),
        end_time: Some(instant(inference.end_time)),
        metadata: stored_metadata(inference, status, &model, provider.as_deref())?,
        model: Some(model),
        model_group: inference.requested_model.clone().or_else(|| Some(inference.model.clone())),
        custom_llm_provider: provider,
        end_user: inference.customer.clone(),
        cache_hit: Some("False".to_owned()),
        tags: inference.tags.clone(),
        session_id: inference.conversation.clone().or_else(|| Some(inference.trace_id.clone())),
        status: Some(status.to_owned()),
        ..Call::default()
    };
    let mut row = call.into_row(NAMES, now, booking.dates())?;
    booking.plausible(&row)?;
    let owner = owner_of(&mut row);
    let draft = booking.draft(row, owner, Some((digest(inference), None)));
    Ok(match draft.new_names {
        // An exporter never sends again what was refused.
        NewNames::Refused => Draft { new_names: NewNames::LeftOut, ..draft },
        NewNames::Unlimited | NewNames::LeftOut => draft,
    })
}

/// The cost: at the price of the model that answered or, where it has none, of the model that was asked. Providers answer
/// with names of snapshots that the price table may not list yet.
fn price(
    inference: &Inference,
    used: &Usage,
    tokens: Tokens,
    pricer: &Pricer,
    now: DateTime<Utc>,
) -> Result<Priced, String> {
    let asked = inference.requested_model.as_ref().filter(|asked| **asked != inference.model);
    let models: Vec<&str> = std::iter::once(&inference.model).chain(asked).map(String::as_str).collect();
    let priced = price_call(pricer, &models, &inference.providers, used, now);
    if !inference.is_failure || tokens.total > 0 {
        return priced;
    }
    // A call that failed without using tokens costs nothing, whether or not its model has a price.
    let nothing = Priced { cost: 0.0, model: String::new(), provider: None };
    Ok(priced.map_or(nothing, |priced| Priced { cost: 0.0, ..priced }))
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds that lose precision are far out of range")]
fn instant(milliseconds: u64) -> Instant {
    Instant::Epoch(milliseconds as f64 / 1000.0)
}

/// Recognises the same call when its span is exported again, in whatever encoding. The customer and the tags are not
/// part of it, because they also depend on the settings.
fn digest(inference: &Inference) -> ValueDigest {
    let usage = inference.usage.as_ref().map(|usage| json!(usage).to_string());
    let mut digest = Sha256::new();
    for text in [
        inference.operation.name(),
        &inference.model,
        inference.requested_model.as_deref().unwrap_or_default(),
        inference.provider.as_deref().unwrap_or_default(),
        usage.as_deref().unwrap_or_default(),
        if inference.is_failure { "failure" } else { "success" },
        &inference.start_time.to_string(),
        &inference.end_time.to_string(),
    ] {
        digest.update(text.as_bytes());
        digest.update([0]);
    }
    digest.finalize().into()
}

fn stored_metadata(
    inference: &Inference,
    status: &str,
    model: &str,
    provider: Option<&str>,
) -> Result<String, Refusal> {
    let mut stored = Map::new();
    stored.insert("status".into(), status.into());
    if let Some(usage) = &inference.usage {
        let further: Map<String, Value> = usage
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "prompt_tokens" | "completion_tokens" | "total_tokens"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        stored.insert("additional_usage_values".into(), further.into());
        stored.insert("usage_object".into(), usage.clone().into());
    }
    if let Some(error_type) = &inference.error_type {
        stored.insert("error_information".into(), json!({ "error_class": error_type }));
    }
    let mut span = Map::new();
    // The row has the model that was asked as its `model_group`.
    let is_known = inference.model == model || inference.requested_model.as_ref() == Some(&inference.model);
    for (name, value) in [
        ("trace_id", Some(&inference.trace_id)),
        ("span_id", Some(&inference.span_id)),
        ("response_id", inference.response_id.as_ref()),
        ("response_model", Some(&inference.model).filter(|_| !is_known)),
        ("provider", inference.provider.as_ref().filter(|stated| Some(stated.as_str()) != provider)),
    ] {
        if let Some(value) = value {
            span.insert(name.into(), value.clone().into());
        }
    }
    span.insert("operation".into(), inference.operation.name().into());
    stored.insert("opentelemetry".into(), span.into());
    metadata::trimmed(stored, inference.left_out.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::identity::Caller;
    use crate::otlp::conventions::Operation;
    use crate::prices::Prices;
    use crate::settings::{BookingLimits, ConfigFile};

    fn inference() -> Inference {
        let usage = json!({"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100,
                           "prompt_tokens_details": {"cached_tokens": 600, "cache_creation_tokens": 300}});
        Inference {
            trace_id: "ab".repeat(16),
            span_id: "cd".repeat(8),
            operation: Operation::Chat,
            model: "claude-sonnet-4-20250514".to_owned(),
            requested_model: None,
            provider: Some("anthropic".to_owned()),
            providers: vec!["anthropic".to_owned()],
            usage: usage.as_object().cloned(),
            start_time: 1_772_323_200_123,
            end_time: 1_772_323_201_000,
            is_failure: false,
            error_type: None,
            customer: None,
            tags: Vec::new(),
            conversation: None,
            response_id: None,
            left_out: Vec::new(),
        }
    }

    fn pricer() -> Arc<Pricer> {
        Prices::new(&ConfigFile::default(), None, None).expect("prices").current()
    }

    fn drafted(inference: &Inference) -> Result<Draft, Refusal> {
        let caller = Caller::master();
        let booking = Booking::of(&caller, "m", BookingLimits::default()).expect("an admin may book");
        let now = "2026-03-02T00:00:00Z".parse().expect("a timestamp");
        draft(inference, &booking, &pricer(), now)
    }

    #[test]
    fn cached_tokens_are_priced_as_in_the_providers_own_form() {
        let draft = drafted(&inference()).expect("a draft");
        let own = json!({"input_tokens": 100, "output_tokens": 100, "cache_read_input_tokens": 600,
                         "cache_creation_input_tokens": 300});
        let used = read_usage(own.as_object().expect("an object")).expect("usage");
        let now = "2026-03-02T00:00:00Z".parse().expect("a timestamp");
        let expected =
            crate::booking::price::price_record(&pricer(), "claude-sonnet-4-20250514", Some("anthropic"), &used, now);
        assert!((draft.row.spend - expected.expect("a price")).abs() < 1e-12, "{}", draft.row.spend);
        assert_eq!((draft.row.cache_read_tokens, draft.row.cache_creation_tokens), (600, 300));
        assert_eq!(draft.row.request_duration_ms, Some(877));
        assert_eq!(draft.row.session_id.as_deref(), Some("ab".repeat(16).as_str()));
    }

    #[test]
    fn the_asked_model_prices_an_answer_of_an_unknown_one() {
        let unknown = Inference { model: "claude-sonnet-4-20991231".to_owned(), ..inference() };
        let refusal = drafted(&unknown).expect_err("no price");
        assert!(refusal.code == 422 && refusal.message.starts_with("cost: is missing, and: "), "{refusal}");
        let asked = Inference { requested_model: Some("claude-sonnet-4-20250514".to_owned()), ..unknown.clone() };
        let row = drafted(&asked).expect("a draft").row;
        let names = (row.model.as_str(), row.model_group.as_str());
        assert_eq!(names, ("claude-sonnet-4-20250514", "claude-sonnet-4-20250514"));
        let metadata: Value = serde_json::from_str(&row.metadata).expect("JSON");
        assert_eq!(metadata["opentelemetry"]["response_model"], "claude-sonnet-4-20991231");
        // A failure without usage costs nothing, whatever the model is.
        let failed = Inference { is_failure: true, usage: None, ..unknown };
        let row = drafted(&failed).expect("a draft").row;
        assert_eq!((row.spend.to_bits(), row.status.as_str()), (0, "failure"));
        assert_eq!((row.model.as_str(), row.model_group.as_str()), ("", "claude-sonnet-4-20991231"));
        let failed = Inference { model: "claude-sonnet-4-20250514".to_owned(), ..failed };
        let row = drafted(&failed).expect("a draft").row;
        assert_eq!((row.spend.to_bits(), row.model.as_str()), (0, "claude-sonnet-4-20250514"));
    }

    #[test]
    fn the_provider_may_be_one_that_has_no_prices() {
        let usage = json!({"prompt_tokens": 1000, "completion_tokens": 100});
        for (provider, operation, model, priced_by, spend) in [
            ("cohere", Operation::Chat, "command-a-03-2025", Some("cohere_chat"), Some(0.0035)),
            ("cohere", Operation::TextCompletion, "command", Some("cohere"), Some(0.0012)),
            ("cohere", Operation::Embeddings, "embed-english-v3.0", Some("cohere"), Some(0.0001)),
            (
                "openai",
                Operation::TextCompletion,
                "gpt-3.5-turbo-instruct",
                Some("text-completion-openai"),
                Some(0.0017),
            ),
            ("openai", Operation::TextCompletion, "davinci-002", Some("text-completion-openai"), Some(0.0022)),
            ("openai", Operation::TextCompletion, "gpt-4o", Some("openai"), Some(0.0035)),
            ("az.ai.openai", Operation::TextCompletion, "gpt-35-turbo-instruct", Some("azure_text"), Some(0.00187)),
            ("_OTHER", Operation::Chat, "gpt-4o", Some("openai"), Some(0.0035)),
            ("unknown", Operation::Chat, "gpt-4o", Some("openai"), Some(0.0035)),
            ("ChatOpenAI", Operation::Chat, "gpt-4o", Some("openai"), Some(0.0035)),
            ("Langchain", Operation::Chat, "claude-sonnet-4-20250514", Some("anthropic"), Some(0.0045)),
            ("litellm", Operation::Chat, "gpt-4o", Some("openai"), Some(0.0035)),
            ("portkey", Operation::Chat, "gpt-4o", Some("openai"), Some(0.0035)),
            ("portkey", Operation::Chat, "no-such-model", None, None),
            // What is known stays as it was said.
            ("groq", Operation::Chat, "gpt-4o", None, None),
            ("anthropic", Operation::Chat, "gpt-4o", None, None),
            ("hosted_vllm", Operation::Chat, "gpt-4o", None, None),
            ("cohere", Operation::Embeddings, "command-a-03-2025", None, None),
        ] {
            let inference = Inference {
                operation,
                model: model.to_owned(),
                provider: Some(crate::otlp::conventions::litellm_provider(provider)),
                providers: crate::otlp::conventions::litellm_providers(provider, operation),
                usage: usage.as_object().cloned(),
                ..inference()
            };
            let row = drafted(&inference).map(|draft| draft.row);
            let found = row.as_ref().ok();
            let is_right = match (found.map(|row| row.spend), spend) {
                (Some(found), Some(spend)) => (found - spend).abs() < 1e-12,
                (found, spend) => found.is_none() && spend.is_none(),
            };
            assert!(is_right, "{provider} {model}: {row:?}");
            assert_eq!(found.map(|row| row.custom_llm_provider.as_str()), priced_by, "{provider} {model}");
        }
    }

    #[test]
    fn the_digest_is_of_the_call_and_not_of_the_settings() {
        let tagged = Inference { tags: vec!["a:b".to_owned()], customer: Some("c".to_owned()), ..inference() };
        assert_eq!(digest(&tagged), digest(&inference()));
        let other = Inference { end_time: 0, ..inference() };
        assert_ne!(digest(&other), digest(&inference()));
    }
}
