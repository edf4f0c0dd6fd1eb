//! Requests in JSON, by the rules of <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>: names in camel
//! case, ids in hexadecimal, enums as numbers, and 64-bit numbers as numbers or strings. Unknown fields are skipped.
//!
//! Every object is read field by field into its place. No tree of the text is built. The structure of a request must be
//! right. A single value that cannot be read (a number with letters, half of a surrogate pair) spoils its own span only,
//! and only if that span needs it.

mod objects;
mod values;

use std::borrow::Cow;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess};
use serde::{Deserialize, de::Error as _};
use serde_json::value::RawValue;

use crate::otlp::DecodeError;
use crate::otlp::json::objects::{List, Object, Read, ReadEach, ReadElement, skip};
use crate::otlp::json::values::{Double, id, number, raw, text};
use crate::otlp::protobuf::STATUS_ERROR;
use crate::otlp::traces::{Attributes, Collector, ResourceSpans, Span, Traces, Value, Wanted};
use crate::settings::OtlpSettings;

/// Decodes an `ExportTraceServiceRequest`. Keeps the inference spans, and the attributes that the mapping reads.
pub fn decode(body: &[u8], settings: &OtlpSettings) -> Result<Traces, DecodeError> {
    let body = std::str::from_utf8(body).map_err(|_| DecodeError::malformed("it is not UTF-8"))?;
    if !body.trim_ascii_start().starts_with('{') {
        return Err(DecodeError::malformed("it is not a JSON object"));
    }
    let mut request = Request { wanted: Wanted(settings), collector: Collector::default(), failure: None };
    let mut deserializer = serde_json::Deserializer::from_str(body);
    let read = Read(&mut request).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match (read, request.failure) {
        (_, Some(failure)) => Err(failure),
        // The message of the parser may repeat what the client wrote.
        (Err(error), None) => {
            Err(DecodeError::malformed(format!("JSON error at line {} column {}", error.line(), error.column())))
        }
        (Ok(()), None) => Ok(request.collector.finish()),
    }
}

/// `ExportTraceServiceRequest`.
struct Request<'a> {
    wanted: Wanted<'a>,
    collector: Collector,
    /// The error that ended the reading, if it is not one of the parser.
    failure: Option<DecodeError>,
}

impl<'de> Object<'de> for Request<'_> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, fields: &mut A) -> Result<(), A::Error> {
        match name {
            "resourceSpans" => fields.next_value_seed(ReadEach(ResourceSpansList(self))),
            _ => skip(fields),
        }
    }
}

struct ResourceSpansList<'a, 'b>(&'a mut Request<'b>);

impl List for ResourceSpansList<'_, '_> {
    fn element<'de, A: SeqAccess<'de>>(&mut self, elements: &mut A) -> Result<bool, A::Error> {
        let mut place = Place { request: self.0, resource: ResourceSpans::default() };
        let is_read = elements.next_element_seed(ReadElement(&mut place))?.is_some();
        let resource = place.resource;
        self.0.collector.add_resource(resource);
        Ok(is_read)
    }
}

/// `ResourceSpans`, and `ScopeSpans` within it.
struct Place<'a, 'b> {
    request: &'a mut Request<'b>,
    resource: ResourceSpans,
}

impl<'de> Object<'de> for Place<'_, '_> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, fields: &mut A) -> Result<(), A::Error> {
        match name {
            "resource" => {
                let (wanted, attributes) = (self.request.wanted, &mut self.resource.attributes);
                fields.next_value_seed(Read(&mut Resource { wanted, attributes }))
            }
            "scopeSpans" => fields.next_value_seed(ReadEach(ScopeSpansList(self))),
            _ => skip(fields),
        }
    }
}

struct ScopeSpansList<'a, 'b, 'c>(&'a mut Place<'b, 'c>);

impl List for ScopeSpansList<'_, '_, '_> {
    fn element<'de, A: SeqAccess<'de>>(&mut self, elements: &mut A) -> Result<bool, A::Error> {
        Ok(elements.next_element_seed(ReadElement(&mut ScopeSpans(self.0)))?.is_some())
    }
}

struct ScopeSpans<'a, 'b, 'c>(&'a mut Place<'b, 'c>);

impl<'de> Object<'de> for ScopeSpans<'_, '_, '_> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, fields: &mut A) -> Result<(), A::Error> {
        match name {
            "spans" => fields.next_value_seed(ReadEach(SpanList(self.0))),
            _ => skip(fields),
        }
    }
}

struct SpanList<'a, 'b, 'c>(&'a mut Place<'b, 'c>);

impl List for SpanList<'_, '_, '_> {
    fn element<'de, A: SeqAccess<'de>>(&mut self, elements: &mut A) -> Result<bool, A::Error> {
        let mut reader = SpanReader { wanted: self.0.request.wanted, span: Span::default() };
        if elements.next_element_seed(ReadElement(&mut reader))?.is_none() {
            return Ok(false);
        }
        let Place { request, resource } = &mut *self.0;
        request.collector.add_span(resource, reader.span).map_err(|failure| {
            request.failure = Some(failure);
            A::Error::custom("over a bound")
        })?;
        Ok(true)
    }
}

struct SpanReader<'a> {
    wanted: Wanted<'a>,
    span: Span,
}

impl<'de> Object<'de> for SpanReader<'_> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, fields: &mut A) -> Result<(), A::Error> {
        let Self { wanted, span } = self;
        match name {
            "traceId" => span.trace_id = id(fields)?,
            "spanId" => span.span_id = id(fields)?,
            "startTimeUnixNano" => match number(raw(fields)?) {
                Ok(time) => span.start_time = time,
                Err(_) => span.unreadable = Some("start_time_unix_nano"),
            },
            "endTimeUnixNano" => match number(raw(fields)?) {
                Ok(time) => span.end_time = time,
                Err(_) => span.unreadable = Some("end_time_unix_nano"),
            },
            "attributes" => {
                let (wanted, attributes) = (*wanted, &mut span.attributes);
                fields.next_value_seed(ReadEach(AttributeList { wanted, attributes }))?;
            }
            "status" => {
                let mut status = Status(&mut span.is_error);
                if Read(&mut status).deserialize(raw(fields)?).is_err() {
                    span.unreadable = Some("status.code");
                }
            }
            _ => skip(fields)?,
        }
        Ok(())
    }
}

struct Status<'a>(&'a mut bool);

impl<'de> Object<'de> for Status<'_> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, fields: &mut A) -> Result<(), A::Error> {
        match name {
            "code" => {
                let code: u64 = number(raw(fields)?).map_err(A::Error::custom)?;
                *self.0 = code == STATUS_ERROR;
            }
            _ => skip(fields)?,
        }
        Ok(())
    }
}

struct Resource<'a> {
    wanted: Wanted<'a>,
    attributes: &'a mut Attributes,
}

impl<'de> Object<'de> for Resource<'_> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, fields: &mut A) -> Result<(), A::Error> {
        match name {
            "attributes" => {
                let (wanted, attributes) = (self.wanted, &mut *self.attributes);
                fields.next_value_seed(ReadEach(AttributeList { wanted, attributes }))
            }
            _ => skip(fields),
        }
    }
}

struct AttributeList<'a> {
    wanted: Wanted<'a>,
    attributes: &'a mut Attributes,
}

impl List for AttributeList<'_> {
    fn element<'de, A: SeqAccess<'de>>(&mut self, elements: &mut A) -> Result<bool, A::Error> {
        let mut attribute = KeyValue::default();
        if elements.next_element_seed(ReadElement(&mut attribute))?.is_none() {
            return Ok(false);
        }
        if let (Ok(key), Some(value)) = (std::str::from_utf8(&attribute.key), attribute.value)
            && self.wanted.contains(key)
            && let Some(value) = any_value(value)
        {
            self.attributes.add(key, value);
        }
        Ok(true)
    }
}

#[derive(Default)]
struct KeyValue<'de> {
    key: Cow<'de, [u8]>,
    /// Read only if the key is one of those that are read.
    value: Option<&'de RawValue>,
}

impl<'de> Object<'de> for KeyValue<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, fields: &mut A) -> Result<(), A::Error> {
        match name {
            "key" => self.key = text(raw(fields)?).unwrap_or_default(),
            "value" => self.value = Some(raw(fields)?),
            _ => skip(fields)?,
        }
        Ok(())
    }
}

/// Reads an `AnyValue`. `None` for a value of a kind that is not kept.
fn any_value(value: &RawValue) -> Option<Value> {
    let mut found = AnyValue(None);
    match Read(&mut found).deserialize(value) {
        Ok(()) => found.0,
        Err(_) => Some(Value::Unreadable),
    }
}

struct AnyValue(Option<Value>);

impl<'de> Object<'de> for AnyValue {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, fields: &mut A) -> Result<(), A::Error> {
        if !matches!(name, "stringValue" | "boolValue" | "intValue" | "doubleValue") {
            return skip(fields);
        }
        let value = raw(fields)?;
        if value.get() == "null" {
            return Ok(());
        }
        let read = match name {
            "stringValue" => text(value).map(Value::text),
            "boolValue" => bool::deserialize(value).ok().map(Value::Boolean),
            "intValue" => number(value).ok().map(Value::Integer),
            _ => Double::deserialize(value).ok().map(|Double(number)| Value::Double(number)),
        };
        self.0 = Some(read.unwrap_or(Value::Unreadable));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> OtlpSettings {
        OtlpSettings { tag_attributes: vec!["service.name".to_owned()], ..OtlpSettings::default() }
    }

    #[test]
    fn the_rules_of_otlp_json_are_followed() {
        // The resource may come after its spans, and a value before its key.
        let body = r#"{"later": [{}], "resourceSpans": [{"scopeSpans": [{"scope": {"name": "x"}, "spans": [
            {"traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "eee19b7ec3c1b174", "kind": 3, "flags": 257,
             "startTimeUnixNano": "1772323200000000001", "endTimeUnixNano": 1772323201500000000,
             "attributes": [
                {"value": {"stringValue": "chat"}, "key": "gen_ai.operation.name"},
                {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "12"}},
                {"key": "gen_ai.usage.output_tokens", "value": {"intValue": 7}},
                {"key": "gen_ai.usage.reasoning_tokens", "value": {"doubleValue": 3.0}},
                {"key": "gen_ai.input.messages", "value": {"arrayValue": {"values": [{"kvlistValue": {"values": []}}]}}},
                {"key": "gen_ai.request.model", "value": {"newKind": {"a": 1}}},
                {"key": "unknown", "value": {"intValue": "1"}}],
             "status": {"code": 2, "message": "late"}},
            {"traceId": "no", "attributes": [{"key": "gen_ai.operation.name", "value": {"stringValue": "invoke_agent"}}]},
            {}]}], "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}}]}"#;
        let resources = decode(body.as_bytes(), &settings()).expect("a request").resources;
        let [resource] = resources.as_slice() else { panic!("{resources:?}") };
        assert_eq!(resource.attributes.get("service.name"), Some(&Value::text("shop")));
        let [span] = resource.spans.as_slice() else { panic!("{resources:?}") };
        assert_eq!(u128::from_be_bytes(span.trace_id), 0x5b8e_fff7_9803_8103_d269_b633_813f_c60c);
        assert_eq!(u64::from_be_bytes(span.span_id), 0xeee1_9b7e_c3c1_b174);
        assert_eq!((span.start_time, span.end_time), (1_772_323_200_000_000_001, 1_772_323_201_500_000_000));
        assert!(span.is_error);
        assert_eq!(span.attributes.get("gen_ai.usage.input_tokens"), Some(&Value::Integer(12)));
        assert_eq!(span.attributes.get("gen_ai.usage.output_tokens"), Some(&Value::Integer(7)));
        assert_eq!(span.attributes.get("gen_ai.usage.reasoning_tokens"), Some(&Value::Double(3.0)));
        for name in ["gen_ai.input.messages", "gen_ai.request.model", "unknown"] {
            assert_eq!(span.attributes.get(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_without_repeating_it() {
        let deep = format!(r#"{{"a": {}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        for body in [
            "",
            "null",
            "[]",
            "{",
            "{} x",
            r#"{"resourceSpans": {}}"#,
            r#"{"resourceSpans": ["secret"]}"#,
            r#"{"resourceSpans": [null]}"#,
            r#"{"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": ["secret"]}]}]}]}"#,
            r#"{"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{"key": secret}]}]}]}]}"#,
        ] {
            match decode(body.as_bytes(), &settings()) {
                Err(DecodeError::Malformed(message)) => assert!(!message.contains("secret"), "{message}"),
                other => panic!("{body}: {other:?}"),
            }
        }
        // What is skipped may nest as deeply as it likes: skipping takes no stack.
        let _ = decode(deep.as_bytes(), &settings());
        for body in [" {}", r#"{"resourceSpans": null}"#, r#"{"resourceSpans": [{"resource": null}]}"#] {
            assert_eq!(decode(body.as_bytes(), &settings()), Ok(Traces::default()));
        }
        let not_utf_8 = decode(b"{\"a\": \"\xff\"}", &settings());
        assert_eq!(not_utf_8, Err(DecodeError::malformed("it is not UTF-8")));
    }

    /// The spans of a request with one span of these fields.
    fn spans(fields: &str) -> Vec<Span> {
        let chat = r#"{"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}}"#;
        let fields = fields.replace("CHAT", chat);
        let body = format!(r#"{{"resourceSpans": [{{"scopeSpans": [{{"spans": [{{{fields}}}]}}]}}]}}"#);
        let traces = decode(body.as_bytes(), &settings()).unwrap_or_else(|error| panic!("{fields}: {error}"));
        traces.resources.into_iter().flat_map(|resource| resource.spans).collect()
    }

    #[test]
    fn a_value_that_cannot_be_read_spoils_no_other_span() {
        let model = "gen_ai.request.model";
        for (value, read) in [
            (r#"{"stringValue": "hello \ud83d"}"#, Some(Value::text(b"hello \xed\xa0\xbd"))),
            (r#"{"stringValue": "\ud83d\ude00 \n"}"#, Some(Value::text("😀 \n"))),
            (r#"{"stringValue": 5}"#, Some(Value::Unreadable)),
            (r#"{"stringValue": [104]}"#, Some(Value::Unreadable)),
            (r#"{"stringValue": null}"#, None),
            (r#"{"intValue": 1e21}"#, Some(Value::Unreadable)),
            (r#"{"intValue": 1e999}"#, Some(Value::Unreadable)),
            (r#"{"intValue": 1.5}"#, Some(Value::Unreadable)),
            (r#"{"intValue": "12.0"}"#, Some(Value::Unreadable)),
            (r#"{"intValue": {}}"#, Some(Value::Unreadable)),
            (r#"{"intValue": "-12"}"#, Some(Value::Integer(-12))),
            (r#"{"boolValue": "true"}"#, Some(Value::Unreadable)),
            (r#"{"doubleValue": "much"}"#, Some(Value::Unreadable)),
            (r#"{"doubleValue": "-Infinity"}"#, Some(Value::Double(f64::NEG_INFINITY))),
            ("5", Some(Value::Unreadable)),
            ("null", None),
        ] {
            for key in [model, "unknown", r"half \udc00"] {
                let found = spans(&format!(r#""attributes": [CHAT, {{"key": "{key}", "value": {value}}}]"#));
                let [span] = found.as_slice() else { panic!("{value}: {found:?}") };
                assert_eq!(span.attributes.get(key), read.as_ref().filter(|_| key == model), "{key} {value}");
            }
        }
        for (field, named) in [
            (r#""startTimeUnixNano": "secret""#, Some("start_time_unix_nano")),
            (r#""startTimeUnixNano": -1"#, Some("start_time_unix_nano")),
            (r#""endTimeUnixNano": 1e300"#, Some("end_time_unix_nano")),
            (r#""status": {"code": "STATUS_CODE_ERROR"}"#, Some("status.code")),
            (r#""status": "ERROR""#, Some("status.code")),
            (r#""status": {"code": 2, "message": "\ud83d"}"#, None),
            (r#""traceId": 5, "spanId": "\ud83d", "name": "\ud83d", "\udc00": 1e999"#, None),
        ] {
            let found = spans(&format!(r#""attributes": [CHAT], {field}"#));
            let [span] = found.as_slice() else { panic!("{field}: {found:?}") };
            assert_eq!(span.unreadable, named, "{field}");
            // A span that is ignored may have whatever it likes.
            assert_eq!(spans(field), []);
        }
    }

    #[test]
    fn what_a_span_describes_may_be_said_by_other_conventions() {
        let attribute =
            |key: &str, value: &str| format!(r#"{{"key": "{key}", "value": {{"stringValue": "{value}"}}}}"#);
        let decoded = |pairs: &[(&str, &str)]| {
            let attributes: Vec<String> = pairs.iter().map(|(key, value)| attribute(key, value)).collect();
            let attributes = attributes.join(",");
            let body =
                format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"attributes":[{attributes}]}}]}}]}}]}}"#);
            let traces = decode(body.as_bytes(), &settings()).expect("a request");
            let operation = traces.resources.first().and_then(|resource| resource.spans.first()?.operation());
            (operation.map(|operation| operation.name()), traces.unnamed)
        };
        let (operation, kind) = ("gen_ai.operation.name", "openinference.span.kind");
        let (request_type, tokens) = ("llm.request.type", ("gen_ai.usage.prompt_tokens", "5"));
        for (pairs, expected) in [
            (&[(request_type, "completion")][..], (Some("text_completion"), 0)),
            (&[(kind, "LLM")], (Some("chat"), 0)),
            (&[(kind, "EMBEDDING")], (Some("embeddings"), 0)),
            (&[(operation, "invoke_agent"), (request_type, "chat"), (kind, "LLM"), tokens], (None, 0)),
            (&[(operation, ""), (kind, "LLM")], (Some("chat"), 0)),
            (&[(operation, "chat.completions"), tokens], (Some("chat"), 0)),
            (&[(operation, "text.streaming_completions"), tokens], (Some("text_completion"), 0)),
            (&[(operation, "anything"), (request_type, "chat"), tokens], (Some("chat"), 0)),
            (&[(operation, "anything"), tokens], (None, 1)),
            (&[(request_type, "rerank"), tokens], (None, 0)),
            (&[(kind, "AGENT"), tokens], (None, 0)),
            (&[(request_type, "unknown"), tokens], (None, 1)),
            (&[(request_type, "unknown"), (kind, "LLM"), tokens], (Some("chat"), 0)),
            (&[tokens], (None, 1)),
            (&[("llm.token_count.completion", "5")], (None, 1)),
            (&[("gen_ai.request.model", "gpt-4o")], (None, 0)),
        ] {
            assert_eq!(decoded(pairs), expected, "{pairs:?}");
        }
    }

    #[test]
    fn spans_beyond_the_bound_are_refused() {
        let span = r#"{"attributes":[{"key":"gen_ai.operation.name","value":{"stringValue":"chat"}}]}"#;
        let body = |spans: usize| {
            format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{}]}}]}}]}}"#, vec![span; spans].join(","))
        };
        assert!(decode(body(crate::otlp::MAX_SPANS).as_bytes(), &settings()).is_ok());
        let refused = decode(body(crate::otlp::MAX_SPANS + 1).as_bytes(), &settings());
        assert_eq!(refused, Err(DecodeError::TooManySpans));
    }
}
