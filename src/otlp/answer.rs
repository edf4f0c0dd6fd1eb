//! Answers in both encodings: `ExportTraceServiceResponse`, and for errors `google.rpc.Status`
//! (<https://opentelemetry.io/docs/specs/otlp/#otlphttp-response>).

use serde::Serialize;

use crate::otlp::wire;

/// The encoding of a request, and of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Protocol Buffers.
    Protobuf,
    /// JSON.
    Json,
}

impl Encoding {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }

    fn json(value: &impl Serialize) -> Vec<u8> {
        // The structures below have no keys or values that JSON lacks.
        serde_json::to_vec(value).unwrap_or_default()
    }
}

/// The spans that were not booked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejected {
    /// Their number. 0 with a message is a warning.
    pub spans: u64,
    /// The reasons, for people.
    pub message: String,
}

/// Encodes the answer to a request that was accepted. Without rejected spans and warnings, it is an empty message, as
/// the specification demands.
pub fn accepted(encoding: Encoding, rejected: &Rejected) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Response<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        partial_success: Option<PartialSuccess<'a>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct PartialSuccess<'a> {
        /// A 64-bit number is a string in JSON.
        rejected_spans: String,
        error_message: &'a str,
    }
    let is_partial = rejected.spans > 0 || !rejected.message.is_empty();
    match encoding {
        Encoding::Json => {
            let (rejected_spans, error_message) = (rejected.spans.to_string(), rejected.message.as_str());
            let partial_success = is_partial.then_some(PartialSuccess { rejected_spans, error_message });
            Encoding::json(&Response { partial_success })
        }
        Encoding::Protobuf => {
            let (mut response, mut partial_success) = (Vec::new(), Vec::new());
            if is_partial {
                wire::put_number(&mut partial_success, 1, rejected.spans);
                wire::put_bytes(&mut partial_success, 2, rejected.message.as_bytes());
                wire::put_bytes(&mut response, 1, &partial_success);
            }
            response
        }
    }
}

/// Encodes the answer to a request that was refused. `http_status` is the status of the answer.
pub fn refused(encoding: Encoding, http_status: u16, message: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Status<'a> {
        code: u8,
        message: &'a str,
    }
    let code = rpc_code(http_status);
    match encoding {
        Encoding::Json => Encoding::json(&Status { code, message }),
        Encoding::Protobuf => {
            let mut status = Vec::new();
            wire::put_number(&mut status, 1, code.into());
            wire::put_bytes(&mut status, 2, message.as_bytes());
            status
        }
    }
}

/// The `google.rpc.Code` of an HTTP status.
fn rpc_code(http_status: u16) -> u8 {
    match http_status {
        401 => 16,
        403 => 7,
        404 => 5,
        409 => 9,
        429 => 8,
        502 | 503 => 14,
        504 => 4,
        500.. => 13,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_form_of_the_specification() {
        let rejected = Rejected { spans: 2, message: "no price".to_owned() };
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("JSON");
        assert_eq!(text(accepted(Encoding::Json, &Rejected::default())), "{}");
        assert_eq!(accepted(Encoding::Protobuf, &Rejected::default()), b"");
        assert_eq!(
            text(accepted(Encoding::Json, &rejected)),
            r#"{"partialSuccess":{"rejectedSpans":"2","errorMessage":"no price"}}"#
        );
        assert_eq!(accepted(Encoding::Protobuf, &rejected), b"\x0a\x0c\x08\x02\x12\x08no price");
        let warning = Rejected { spans: 0, message: "look".to_owned() };
        assert_eq!(
            text(accepted(Encoding::Json, &warning)),
            r#"{"partialSuccess":{"rejectedSpans":"0","errorMessage":"look"}}"#
        );
        assert_eq!(accepted(Encoding::Protobuf, &warning), b"\x0a\x06\x12\x04look");
        assert_eq!(text(refused(Encoding::Json, 400, "bad")), r#"{"code":3,"message":"bad"}"#);
        assert_eq!(refused(Encoding::Protobuf, 503, "away"), b"\x08\x0e\x12\x04away");
    }
}
