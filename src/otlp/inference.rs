//! What one span says about its call to a model.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json};

use crate::otlp::conventions;
use crate::otlp::conventions::Operation;
use crate::otlp::traces::{Attributes, Span, Value};
use crate::otlp::usage;
use crate::settings::OtlpSettings;

/// The largest number of bytes in the name of a customer or in a tag, and the largest number of tags.
#[derive(Clone, Copy, Debug)]
pub struct NameBounds {
    /// Bytes of a name.
    pub bytes: usize,
    /// Tags of one call.
    pub tags: usize,
}

/// A call to a model, as a span describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Inference {
    /// The id of the trace, in hexadecimal.
    pub trace_id: String,
    /// The id of the span, in hexadecimal.
    pub span_id: String,
    /// The kind of call.
    pub operation: Operation,
    /// The model that answered, or else the one that was asked.
    pub model: String,
    /// The model that was asked, if the span states it.
    pub requested_model: Option<String>,
    /// The provider, by LiteLLM's name.
    pub provider: Option<String>,
    /// The names under which LiteLLM lists the provider's models for this kind of call, the likelier one first.
    pub providers: Vec<String>,
    /// The tokens, in the form of a chat completion's usage object. `None` if the span states none.
    pub usage: Option<Map<String, Json>>,
    /// The start, in milliseconds since 1970.
    pub start_time: u64,
    /// The end, in milliseconds since 1970.
    pub end_time: u64,
    /// Whether the call failed.
    pub is_failure: bool,
    /// The class of the error.
    pub error_type: Option<String>,
    /// The customer.
    pub customer: Option<String>,
    /// The tags.
    pub tags: Vec<String>,
    /// The conversation.
    pub conversation: Option<String>,
    /// The provider's id of the answer.
    pub response_id: Option<String>,
    /// The names of attributes whose values are too long, cannot be read, or are otherwise no names.
    pub left_out: Vec<String>,
}

impl Inference {
    /// The id of the call, which is the same whenever and however often its span is exported.
    pub fn id(&self) -> String {
        format!("otel-{}-{}", self.trace_id, self.span_id)
    }

    /// Reads a span. Attributes of the span take precedence over those of its resource. Returns the reason if the span
    /// cannot be booked.
    pub fn read(
        span: &Span,
        resource: &Attributes,
        settings: &OtlpSettings,
        bounds: NameBounds,
    ) -> Result<Self, String> {
        let operation = span.operation().ok_or("gen_ai.operation.name: is missing")?;
        if span.trace_id == [0; 16] {
            return Err("trace_id: is missing or invalid".to_owned());
        }
        if span.span_id == [0; 8] {
            return Err("span_id: is missing or invalid".to_owned());
        }
        if let Some(field) = span.unreadable {
            return Err(format!("{field}: cannot be read"));
        }
        let mut texts = Texts { span: &span.attributes, resource, bounds, left_out: Vec::new() };
        let requested_model = required(&span.attributes, conventions::REQUEST_MODEL)?;
        let model = required(&span.attributes, conventions::RESPONSE_MODEL)?.or_else(|| requested_model.clone());
        let model = model.ok_or("gen_ai.response.model, gen_ai.request.model: both are missing")?;
        let provider = conventions::PROVIDER.iter().find_map(|name| texts.of_span(name));
        // A class that cannot be kept is still one.
        let is_failure = span.is_error
            || match span.attributes.get(conventions::ERROR_TYPE) {
                Some(Value::Text(class)) => !class.trim().is_empty(),
                class => class.is_some(),
            };
        let error_type = texts.of_span(conventions::ERROR_TYPE);
        let usage = usage::of(&span.attributes)?;
        if usage.is_none() && !is_failure {
            return Err("gen_ai.usage.input_tokens, gen_ai.usage.output_tokens: both are missing".to_owned());
        }
        if span.start_time == 0 {
            return Err("start_time_unix_nano: is missing".to_owned());
        }
        let customer = settings.customer_attributes.iter().find_map(|name| texts.of_any(name));
        let mut tags = Vec::new();
        for name in &settings.tag_attributes {
            let Some(tag) = texts.of_any(name).map(|value| format!("{name}:{value}")) else { continue };
            if tag.len() > bounds.bytes || tags.len() >= bounds.tags {
                texts.left_out.push(name.clone());
            } else {
                tags.push(tag);
            }
        }
        let (conversation, response_id) =
            (texts.of_span(conventions::CONVERSATION), texts.of_span(conventions::RESPONSE_ID));
        Ok(Self {
            trace_id: hexadecimal(&span.trace_id),
            span_id: hexadecimal(&span.span_id),
            operation,
            model,
            requested_model,
            provider: provider.as_deref().map(conventions::litellm_provider),
            providers: provider.map(|name| conventions::litellm_providers(&name, operation)).unwrap_or_default(),
            usage,
            start_time: milliseconds(span.start_time),
            // The clock of a machine may be set back during a call.
            end_time: milliseconds(span.end_time.max(span.start_time)),
            is_failure,
            error_type,
            customer,
            tags,
            conversation,
            response_id,
            left_out: texts.left_out,
        })
    }
}

/// Reads texts that a call is booked without if they are too long.
struct Texts<'a> {
    span: &'a Attributes,
    resource: &'a Attributes,
    bounds: NameBounds,
    left_out: Vec<String>,
}

impl Texts<'_> {
    fn of_span(&mut self, name: &str) -> Option<String> {
        self.kept(name, self.span.get(name))
    }

    fn of_any(&mut self, name: &str) -> Option<String> {
        self.kept(name, self.span.get(name).or_else(|| self.resource.get(name)))
    }

    fn kept(&mut self, name: &str, value: Option<&Value>) -> Option<String> {
        let text = match value? {
            Value::Text(text) => text.trim().to_owned(),
            Value::Integer(number) => number.to_string(),
            Value::Boolean(truth) => truth.to_string(),
            Value::Double(_) | Value::TooLong | Value::Unreadable => "\0".to_owned(),
        };
        if text.len() > self.bounds.bytes || text.contains('\0') {
            self.left_out.push(name.to_owned());
            return None;
        }
        Some(text).filter(|text| !text.is_empty())
    }
}

/// The name of a model: the first of these attributes that has one. A call without its model cannot be booked, so a name
/// that is too long is an error.
fn required(attributes: &Attributes, names: &[&str]) -> Result<Option<String>, String> {
    for name in names {
        match attributes.get(name) {
            None => {}
            Some(Value::Text(text)) if text.trim().is_empty() => {}
            Some(Value::Text(text)) => return Ok(Some(text.trim().to_owned())),
            Some(Value::TooLong) => return Err(format!("{name}: is too long")),
            Some(_) => return Err(format!("{name}: expected a string")),
        }
    }
    Ok(None)
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn milliseconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: NameBounds = NameBounds { bytes: 256, tags: 100 };

    fn attributes(pairs: &[(&str, &str)]) -> Attributes {
        let mut attributes = Attributes::default();
        for (name, text) in pairs {
            let value = text.parse().map_or_else(|_| Value::text(text), Value::Integer);
            attributes.add(name, value);
        }
        attributes
    }

    fn span(pairs: &[(&str, &str)]) -> Span {
        let attributes = attributes(&[&[("gen_ai.operation.name", "chat")], pairs].concat());
        let (start_time, end_time) = (1_772_323_200_123_999_999, 1_772_323_201_000_000_000);
        Span { trace_id: [0xab; 16], span_id: [1; 8], start_time, end_time, attributes, ..Span::default() }
    }

    fn settings() -> OtlpSettings {
        let tag_attributes = vec!["service.name".to_owned(), "deployment.environment.name".to_owned()];
        OtlpSettings { tag_attributes, ..OtlpSettings::default() }
    }

    fn read(span: &Span, resource: &[(&str, &str)]) -> Result<Inference, String> {
        Inference::read(span, &attributes(resource), &settings(), BOUNDS)
    }

    const USED: [(&str, &str); 3] =
        [("gen_ai.request.model", "gpt-4o"), ("gen_ai.usage.input_tokens", "10"), ("gen_ai.usage.output_tokens", "2")];

    #[test]
    fn a_span_says_who_was_asked_and_for_whom() {
        let given = [
            ("gen_ai.response.model", "gpt-4o-2024-08-06"),
            ("gen_ai.system", "az.ai.openai"),
            ("enduser.id", "customer-7"),
            ("user.id", "somebody else"),
            ("service.name", "of the span"),
            ("gen_ai.conversation.id", "conversation-1"),
        ];
        let resource = [("service.name", "shop"), ("deployment.environment.name", "prod"), ("user.id", "x")];
        let inference = read(&span(&[&USED[..], &given].concat()), &resource).expect("an inference");
        assert_eq!(inference.id(), format!("otel-{}-{}", "ab".repeat(16), "01".repeat(8)));
        assert_eq!((inference.model.as_str(), inference.provider.as_deref()), ("gpt-4o-2024-08-06", Some("azure")));
        assert_eq!(inference.requested_model.as_deref(), Some("gpt-4o"));
        assert_eq!(inference.customer.as_deref(), Some("customer-7"));
        assert_eq!(inference.tags, ["service.name:of the span", "deployment.environment.name:prod"]);
        assert_eq!(inference.conversation.as_deref(), Some("conversation-1"));
        assert_eq!((inference.start_time, inference.end_time), (1_772_323_200_123, 1_772_323_201_000));
        assert!(!inference.is_failure && inference.left_out.is_empty());
        // The older name counts only where the newer one is missing.
        let both = [("gen_ai.provider.name", "openai"), ("gen_ai.system", "anthropic")];
        let inference = read(&span(&[&USED[..], &both].concat()), &resource).expect("an inference");
        assert_eq!(inference.provider.as_deref(), Some("openai"));
        assert_eq!(inference.customer.as_deref(), Some("x"), "a customer of the resource");
    }

    #[test]
    fn names_that_cannot_be_stored_are_left_out() {
        let long = "x".repeat(257);
        let given = [("enduser.id", long.as_str()), ("service.name", "a\0b"), ("user.id", "17")];
        let resource = [("deployment.environment.name", &long[..250])];
        let inference = read(&span(&[&USED[..], &given].concat()), &resource).expect("an inference");
        assert_eq!((inference.customer.as_deref(), inference.tags), (Some("17"), Vec::new()));
        assert_eq!(inference.left_out, ["enduser.id", "service.name", "deployment.environment.name"]);
    }

    #[test]
    fn failures_count_with_the_usage_that_they_state() {
        let failed = span(&[("gen_ai.request.model", "gpt-4o"), ("error.type", "RateLimitError")]);
        let inference = read(&failed, &[]).expect("an inference");
        assert!(inference.is_failure && inference.usage.is_none());
        assert_eq!(inference.error_type.as_deref(), Some("RateLimitError"));
        let inference = read(&Span { is_error: true, ..span(&USED) }, &[]).expect("an inference");
        assert!(inference.is_failure && inference.usage.is_some());
        for class in ["x".repeat(300), "x".repeat(3000), "a\0b".to_owned()] {
            let inference = read(&span(&[USED[0], ("error.type", &class)]), &[]).expect("an inference");
            assert!(inference.is_failure && inference.error_type.is_none());
            assert_eq!(inference.left_out, ["error.type"]);
        }
        let inference = read(&span(&[&USED[..], &[("error.type", " ")]].concat()), &[]).expect("an inference");
        assert!(!inference.is_failure);
    }

    #[test]
    fn a_span_that_cannot_be_booked_says_why() {
        let no_model = [USED[1], USED[2]];
        let long = "x".repeat(3000);
        for (span, expected) in [
            (Span { trace_id: [0; 16], ..span(&USED) }, "trace_id: "),
            (Span { span_id: [0; 8], ..span(&USED) }, "span_id: "),
            (Span { start_time: 0, ..span(&USED) }, "start_time_unix_nano: "),
            (Span { unreadable: Some("status.code"), ..span(&USED) }, "status.code: cannot be read"),
            (span(&no_model), "gen_ai.response.model, gen_ai.request.model: "),
            (span(&[("gen_ai.request.model", long.as_str()), USED[1]]), "gen_ai.request.model: is too long"),
            (span(&[USED[0]]), "gen_ai.usage.input_tokens, gen_ai.usage.output_tokens: "),
            (span(&[USED[0], ("gen_ai.usage.input_tokens", "-5")]), "gen_ai.usage.input_tokens: "),
        ] {
            let error = read(&span, &[]).expect_err("refused");
            assert!(error.starts_with(expected), "{error}");
        }
        let set_back = Span { end_time: 5, ..span(&USED) };
        let inference = read(&set_back, &[]).expect("an inference");
        assert_eq!(inference.end_time, inference.start_time);
    }
}
