//! Requests in Protocol Buffers. The numbers of the fields are those of
//! <https://github.com/open-telemetry/opentelemetry-proto/tree/v1.9.0/opentelemetry/proto>. Fields that are not read are
//! skipped.

use crate::otlp::DecodeError;
use crate::otlp::traces::{Attributes, Collector, ResourceSpans, Span, Traces, Value, Wanted};
use crate::otlp::wire::{FieldValue, Fields};
use crate::settings::OtlpSettings;

/// `STATUS_CODE_ERROR`.
pub(super) const STATUS_ERROR: u64 = 2;

/// Decodes an `ExportTraceServiceRequest`. Keeps the inference spans, and the attributes that the mapping reads.
pub fn decode(body: &[u8], settings: &OtlpSettings) -> Result<Traces, DecodeError> {
    let wanted = Wanted(settings);
    let mut collector = Collector::default();
    for field in Fields::of(body) {
        if let (1, value) = field? {
            let resource = resource_spans(message(value)?, wanted, &mut collector)?;
            collector.add_resource(resource);
        }
    }
    Ok(collector.finish())
}

fn resource_spans(bytes: &[u8], wanted: Wanted<'_>, collector: &mut Collector) -> Result<ResourceSpans, DecodeError> {
    let mut resource = ResourceSpans::default();
    for field in Fields::of(bytes) {
        match field? {
            (1, value) => {
                for field in Fields::of(message(value)?) {
                    if let (1, value) = field? {
                        attribute(message(value)?, wanted, &mut resource.attributes)?;
                    }
                }
            }
            (2, value) => {
                for field in Fields::of(message(value)?) {
                    if let (2, value) = field? {
                        let span = span(message(value)?, wanted)?;
                        collector.add_span(&mut resource, span)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(resource)
}

fn span(bytes: &[u8], wanted: Wanted<'_>) -> Result<Span, DecodeError> {
    let mut span = Span::default();
    for field in Fields::of(bytes) {
        match field? {
            // An id of another length is no id.
            (1, value) => span.trace_id = message(value)?.try_into().unwrap_or_default(),
            (2, value) => span.span_id = message(value)?.try_into().unwrap_or_default(),
            (7, FieldValue::Fixed64(time)) => span.start_time = time,
            (8, FieldValue::Fixed64(time)) => span.end_time = time,
            (7, _) => span.unreadable = Some("start_time_unix_nano"),
            (8, _) => span.unreadable = Some("end_time_unix_nano"),
            (9, value) => attribute(message(value)?, wanted, &mut span.attributes)?,
            (15, value) => {
                for field in Fields::of(message(value)?) {
                    match field? {
                        (3, FieldValue::Varint(code)) => span.is_error = code == STATUS_ERROR,
                        (3, _) => span.unreadable = Some("status.code"),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(span)
}

/// Reads a `KeyValue`.
fn attribute(bytes: &[u8], wanted: Wanted<'_>, attributes: &mut Attributes) -> Result<(), DecodeError> {
    let (mut name, mut any_value): (&[u8], &[u8]) = (&[], &[]);
    for field in Fields::of(bytes) {
        match field? {
            (1, value) => name = message(value)?,
            (2, value) => any_value = message(value)?,
            _ => {}
        }
    }
    // A name that is not UTF-8 is none of those that are read.
    let Some(name) = std::str::from_utf8(name).ok().filter(|name| wanted.contains(name)) else { return Ok(()) };
    if let Some(value) = value(any_value)? {
        attributes.add(name, value);
    }
    Ok(())
}

/// Reads an `AnyValue`. `None` for a value of a kind that is not kept. A value that cannot be read spoils its own span
/// only.
fn value(bytes: &[u8]) -> Result<Option<Value>, DecodeError> {
    let mut found = None;
    for field in Fields::of(bytes) {
        found = match field? {
            (1, FieldValue::Bytes(text)) => Some(Value::text(text)),
            (2, FieldValue::Varint(number)) => Some(Value::Boolean(number != 0)),
            // Negative numbers are written as their two's complement.
            (3, FieldValue::Varint(number)) => Some(Value::Integer(number.cast_signed())),
            (4, FieldValue::Fixed64(bits)) => Some(Value::Double(f64::from_bits(bits))),
            (1..=4, _) => Some(Value::Unreadable),
            _ => None,
        };
    }
    Ok(found)
}

fn message(value: FieldValue<'_>) -> Result<&[u8], DecodeError> {
    match value {
        FieldValue::Bytes(bytes) => Ok(bytes),
        _ => Err(wrong_type()),
    }
}

fn wrong_type() -> DecodeError {
    DecodeError::malformed("a field has a wrong type")
}
