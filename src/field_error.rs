//! A field of a request that could not be accepted.

use serde::Serialize;
use serde_json::{Value, json};

/// One field of a request that could not be accepted, as FastAPI reports it.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Machine-readable kind, for example `string_type`, `missing`, `int_parsing`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Where: `["query", "page"]`, `["body", "ip"]`, or `["body", 12]` for a position in a malformed text.
    #[schema(value_type = Vec<Value>)]
    pub loc: Vec<Value>,
    /// What is expected, in words.
    pub msg: String,
}

impl FieldError {
    /// A field of the query string.
    pub fn query(name: &str, kind: &'static str, msg: impl Into<String>) -> Self {
        Self { kind, loc: vec![json!("query"), json!(name)], msg: msg.into() }
    }

    /// A field of a JSON body.
    pub fn body(name: &str, kind: &'static str, msg: impl Into<String>) -> Self {
        Self { kind, loc: vec![json!("body"), json!(name)], msg: msg.into() }
    }
}
