//! The body of `POST /spend/calculate` and its validation.

use serde::Serialize;
use serde_json::{Map, Value};

/// A request for a price: either a model and its messages before the call, or the response after it. If both are given,
/// the model and its messages are priced, as in LiteLLM.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CalculateRequest {
    /// The model that will receive the messages.
    pub model: Option<String>,
    /// The messages that will be sent.
    pub messages: Option<Vec<Value>>,
    /// The response of a model: a chat completion.
    pub completion_response: Option<Map<String, Value>>,
}

/// A field of the wrong type, in the form of the `detail` list in an answer with status 422.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Pydantic's name for the error, such as `string_type`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The location: always `["body", FIELD]`.
    pub loc: [&'static str; 2],
    /// The message for the caller.
    pub msg: &'static str,
}

impl CalculateRequest {
    /// Reads the fields of a body. Unknown fields are ignored, and `null` counts as missing.
    ///
    /// # Errors
    /// Lists every field of the wrong type, in the order in which the fields are declared.
    pub fn from_body(mut body: Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let mut wrong = |field, kind, msg| {
            errors.push(FieldError { kind, loc: ["body", field], msg });
        };
        let model = match body.remove("model") {
            None | Some(Value::Null) => None,
            Some(Value::String(model)) => Some(model),
            Some(_) => {
                wrong("model", "string_type", "Input should be a valid string");
                None
            }
        };
        let messages = match body.remove("messages") {
            None | Some(Value::Null) => None,
            Some(Value::Array(messages)) => Some(messages),
            Some(_) => {
                wrong("messages", "list_type", "Input should be a valid list");
                None
            }
        };
        let completion_response = match body.remove("completion_response") {
            None | Some(Value::Null) => None,
            Some(Value::Object(response)) => Some(response),
            Some(_) => {
                wrong("completion_response", "dict_type", "Input should be a valid dictionary");
                None
            }
        };
        if errors.is_empty() { Ok(Self { model, messages, completion_response }) } else { Err(errors) }
    }
}
