//! The error for a field of a request that was not accepted.

use serde::Serialize;
use serde_json::{Value, json};

/// One field of a request that was not accepted, in FastAPI's format.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// The machine-readable kind of error, for example `string_type`, `missing`, `int_parsing`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The location: `["query", "page"]`, `["body", "ip"]`, or `["body", 12]` for a position in a malformed text.
    #[schema(value_type = Vec<Value>)]
    pub loc: Vec<Value>,
    /// The message, which states what is expected.
    pub msg: String,
}

impl FieldError {
    /// An error in a parameter of the query string.
    pub fn query(name: &str, kind: &'static str, msg: impl Into<String>) -> Self {
        Self { kind, loc: vec![json!("query"), json!(name)], msg: msg.into() }
    }

    /// An error in a field of a JSON body.
    pub fn body(name: &str, kind: &'static str, msg: impl Into<String>) -> Self {
        Self::body_part([json!(name)], kind, msg)
    }

    /// An error in a part of a JSON body. The path consists of names and positions; the empty path is the whole body.
    pub fn body_part(path: impl IntoIterator<Item = Value>, kind: &'static str, msg: impl Into<String>) -> Self {
        Self { kind, loc: std::iter::once(json!("body")).chain(path).collect(), msg: msg.into() }
    }
}
