//! Traces of OpenTelemetry, as far as they say what calls to models used. This module decodes the two encodings of an
//! OTLP export request, keeps the spans that describe one inference each, and converts such a span to an
//! [`inference::Inference`]. It knows neither HTTP nor SQL, and it sets no price.
//!
//! | module        | owns                                                                       |
//! |---------------|----------------------------------------------------------------------------|
//! | `conventions` | the names of attributes, operations and providers                          |
//! | `traces`      | a decoded request, and the bounds of what is kept of it                    |
//! | `wire`        | the wire format of Protocol Buffers                                        |
//! | `protobuf`    | requests in Protocol Buffers                                               |
//! | `json`        | requests in JSON. `objects` in it reads objects and lists, `values` values |
//! | `answer`      | answers in both encodings                                                  |
//! | `inference`   | what one span says about its call                                          |
//! | `usage`       | the token counts of a span                                                 |
//!
//! The decoders read a request in place. They build nothing for a span that is ignored, so a request takes little more
//! memory than its bytes, whatever it contains. (The generated types of `opentelemetry-proto` take about fifty times
//! the bytes of a request that consists of empty messages. The tests use them to check these decoders.)
//!
//! To support another name of an attribute, add it to `conventions`.

pub mod answer;
pub mod conventions;
pub mod inference;
pub mod json;
pub mod protobuf;
pub mod traces;
mod usage;
mod wire;

/// The largest number of inference spans in one request.
pub const MAX_SPANS: usize = 10_000;

/// The reason why a request cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body is not an `ExportTraceServiceRequest`.
    #[error("the body is not an ExportTraceServiceRequest: {0}")]
    Malformed(String),
    /// The request has more inference spans than [`MAX_SPANS`].
    #[error("the request has more than {MAX_SPANS} inference spans: export smaller batches")]
    TooManySpans,
}

impl DecodeError {
    fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed(what.into())
    }
}
