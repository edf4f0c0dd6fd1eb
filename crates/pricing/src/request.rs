//! The body of `POST /spend/calculate`, and what is wrong with one.

use serde::Serialize;
use serde_json::{Map, Value};

/// A request for a price: a model and its messages before the call, or the response after it.
/// A `model` goes before a response, as in LiteLLM.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CalculateRequest {
    /// The model that will be asked.
    pub model: Option<String>,
    /// What it will be asked.
    pub messages: Option<Vec<Value>>,
    /// What a model has answered: a chat completion.
    pub completion_response: Option<Map<String, Value>>,
}

/// A field of the wrong type, in the form of the `detail` list of an answer with status 422.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// A name of pydantic's for what is wrong.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Where: always `["body", FIELD]`.
    pub loc: [&'static str; 2],
    /// What is wrong, in words.
    pub msg: &'static str,
}

impl CalculateRequest {
    /// Takes the fields of a body apart. Unknown fields are ignored, and null is as good as missing.
    ///
    /// # Errors
    /// Every field of the wrong type, in the order in which the fields are declared.
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
