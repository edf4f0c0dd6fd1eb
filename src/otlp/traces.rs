//! A decoded request. Only inference spans are kept, and only the attributes that the mapping reads.

use crate::otlp::conventions;
use crate::otlp::conventions::Operation;
use crate::otlp::{DecodeError, MAX_SPANS};
use crate::settings::OtlpSettings;

/// The largest number of bytes in the value of an attribute that is kept.
const VALUE_BYTES: usize = 2048;

/// The value of an attribute. Lists, maps and bytes are not kept, because no attribute that is read has such a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Double(f64),
    /// A truth value.
    Boolean(bool),
    /// A string of more than 2,048 bytes, which is not kept.
    TooLong,
    /// A value that is not of the kind that it is declared as, such as a whole number with letters.
    Unreadable,
}

impl Value {
    /// A string, if it is short enough to be kept. What is not UTF-8 in it is replaced.
    pub(super) fn text(text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        if text.len() > VALUE_BYTES { Self::TooLong } else { Self::Text(String::from_utf8_lossy(text).into_owned()) }
    }
}

/// The attributes of a span or a resource that the mapping reads. A name occurs once: the first value counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes(Vec<(String, Value)>);

impl Attributes {
    /// The value of an attribute.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    pub(super) fn add(&mut self, name: &str, value: Value) {
        if self.get(name).is_none() {
            self.0.push((name.to_owned(), value));
        }
    }
}

/// An inference span.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Span {
    /// The id of the trace. All zeros if the request states no valid id.
    pub trace_id: [u8; 16],
    /// The id of the span. All zeros if the request states no valid id.
    pub span_id: [u8; 8],
    /// The start, in nanoseconds since 1970. 0 if it is not stated.
    pub start_time: u64,
    /// The end, in nanoseconds since 1970. 0 if it is not stated.
    pub end_time: u64,
    /// Whether the span's status is an error.
    pub is_error: bool,
    /// A field other than an attribute whose value cannot be read.
    pub unreadable: Option<&'static str>,
    /// The attributes.
    pub attributes: Attributes,
}

/// What a span describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One inference.
    Inference(Operation),
    /// Something else, by its own account.
    Other,
    /// It does not say.
    Unnamed,
}

impl Span {
    /// What the span describes. The conventions' own attribute decides; those of OpenLLMetry and OpenInference count
    /// where it is missing, or has a name that the conventions do not have.
    pub fn subject(&self) -> Subject {
        let text = |name| match self.attributes.get(name) {
            Some(Value::Text(text)) if !text.is_empty() => Some(text.as_str()),
            _ => None,
        };
        let inference = |operation: Option<Operation>| operation.map_or(Subject::Other, Subject::Inference);
        match text(conventions::OPERATION) {
            Some(name) if Operation::is_around(name) => return Subject::Other,
            // A name that the conventions do not have says nothing.
            Some(name) => {
                if let Some(operation) = Operation::named(name) {
                    return Subject::Inference(operation);
                }
            }
            None => {}
        }
        // Both have a name for what they do not know.
        if let Some(request_type) = text(conventions::REQUEST_TYPE).filter(|request_type| *request_type != "unknown") {
            return inference(Operation::of_request_type(request_type));
        }
        match text(conventions::SPAN_KIND).filter(|kind| *kind != "UNKNOWN") {
            Some(kind) => inference(Operation::of_span_kind(kind)),
            None => Subject::Unnamed,
        }
    }

    /// The kind of inference that the span describes, if it describes one.
    pub fn operation(&self) -> Option<Operation> {
        match self.subject() {
            Subject::Inference(operation) => Some(operation),
            Subject::Other | Subject::Unnamed => None,
        }
    }

    /// Whether the span has token counts and does not say what it describes. It may be an inference.
    fn is_unnamed_usage(&self) -> bool {
        let mut counts = conventions::INPUT_TOKENS.iter().chain(conventions::OUTPUT_TOKENS);
        self.subject() == Subject::Unnamed && counts.any(|name| self.attributes.get(name).is_some())
    }
}

/// The inference spans of one resource.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSpans {
    /// The attributes of the resource.
    pub attributes: Attributes,
    /// The spans.
    pub spans: Vec<Span>,
}

/// What is kept of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traces {
    /// The resources that have inference spans.
    pub resources: Vec<ResourceSpans>,
    /// The number of other spans that have token counts and do not say what they describe.
    pub unnamed: usize,
}

/// The names of the attributes that are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a>(pub(super) &'a OtlpSettings);

impl Wanted<'_> {
    pub(super) fn contains(self, name: &str) -> bool {
        let Self(settings) = self;
        conventions::is_read(name)
            || settings.customer_attributes.iter().any(|own| own == name)
            || settings.tag_attributes.iter().any(|own| own == name)
    }
}

/// Collects what a decoder finds.
#[derive(Debug, Default)]
pub(super) struct Collector {
    traces: Traces,
    count: usize,
}

impl Collector {
    /// Adds a span to a resource that is still being read, if the span describes an inference.
    pub(super) fn add_span(&mut self, resource: &mut ResourceSpans, span: Span) -> Result<(), DecodeError> {
        if span.operation().is_none() {
            self.traces.unnamed += usize::from(span.is_unnamed_usage());
            return Ok(());
        }
        self.count += 1;
        if self.count > MAX_SPANS {
            return Err(DecodeError::TooManySpans);
        }
        resource.spans.push(span);
        Ok(())
    }

    /// Adds a resource that has been read, unless it has no spans.
    pub(super) fn add_resource(&mut self, resource: ResourceSpans) {
        if !resource.spans.is_empty() {
            self.traces.resources.push(resource);
        }
    }

    pub(super) fn finish(self) -> Traces {
        self.traces
    }
}
