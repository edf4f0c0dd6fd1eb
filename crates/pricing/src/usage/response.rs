//! Reads the parts of a chat completion that affect its price, and checks that the object is a chat completion.

use rust_decimal::Decimal;
use serde_json::{Map, Value};

use crate::PricingError;
use crate::bill::amount;
use crate::bill::amount::LARGEST_COUNT;
use crate::usage::{Usage, is_truthy, whole_text};

type Object = Map<String, Value>;

/// The parts of a chat completion that affect its price.
#[derive(Debug)]
pub(crate) struct Response<'a> {
    pub model: Option<&'a str>,
    pub usage: Option<Usage>,
    pub service_tier: Option<&'a str>,
    pub cites_urls: bool,
    /// How long the model ran, in milliseconds, if a component on the way measured it (`_response_ms`).
    pub milliseconds: Option<Decimal>,
    /// The number of characters in the texts of all choices, without white space.
    pub characters: u64,
}

impl<'a> Response<'a> {
    /// Reads a chat completion.
    ///
    /// # Errors
    /// [`PricingError::InvalidResponse`] or [`PricingError::InvalidUsage`] if a field has a type that no chat
    /// completion has.
    pub(crate) fn read(response: &'a Object) -> Result<Self, PricingError> {
        check_text(response, "id")?;
        check_text(response, "system_fingerprint")?;
        check_whole(response, "created")?;
        let mut result = Self {
            model: text(response, "model")?,
            usage: match response.get("usage") {
                None | Some(Value::Null) => None,
                Some(Value::Object(usage)) => Some(Usage::from_any(usage)?),
                Some(_) => return Err(invalid("usage", "must be an object")),
            },
            service_tier: response.get("service_tier").and_then(Value::as_str),
            cites_urls: false,
            milliseconds: milliseconds(response),
            characters: 0,
        };
        if let Some(Value::Array(choices)) = response.get("choices") {
            for choice in choices {
                let Value::Object(choice) = choice else {
                    return Err(invalid("choices", "must hold objects"));
                };
                result.read_choice(choice)?;
            }
        }
        Ok(result)
    }

    fn read_choice(&mut self, choice: &Object) -> Result<(), PricingError> {
        check_whole(choice, "index")?;
        if let Some(Value::Array(_) | Value::Object(_)) = choice.get("finish_reason") {
            return Err(invalid("finish_reason", "must be a string"));
        }
        let message = match choice.get("message") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Object(message)) => message,
            Some(_) => return Err(invalid("message", "must be an object")),
        };
        match message.get("role") {
            None | Some(Value::Null) => {}
            Some(Value::String(role))
                if matches!(role.as_str(), "assistant" | "user" | "system" | "tool" | "function") => {}
            Some(other) if !is_truthy(other) => {}
            Some(_) => return Err(invalid("role", "must name a role")),
        }
        if let Some(content) = text(message, "content")? {
            self.characters = self.characters.saturating_add(characters(content));
        }
        check_message(message)?;
        match message.get("annotations") {
            None | Some(Value::Null) => {}
            Some(Value::Array(annotations)) => {
                for annotation in annotations {
                    match annotation.get("type").and_then(Value::as_str) {
                        Some("url_citation") => self.cites_urls = true,
                        None if annotation.is_object() && annotation.get("type").is_none() => {}
                        _ => return Err(invalid("annotations", "must be URL citations")),
                    }
                }
            }
            Some(_) => return Err(invalid("annotations", "must be a list")),
        }
        Ok(())
    }
}

/// Checks the fields of a message that don't affect its price.
fn check_message(message: &Object) -> Result<(), PricingError> {
    check_text(message, "reasoning_content")?;
    check_text(message, "refusal")?;
    for field in ["tool_calls", "images", "thinking_blocks"] {
        let is_list = match message.get(field) {
            None | Some(Value::Null) => true,
            Some(Value::Array(items)) => items.iter().all(Value::is_object),
            Some(other) => field == "tool_calls" && is_empty(other),
        };
        if !is_list {
            return Err(invalid(field, "must be a list of objects"));
        }
    }
    let has = |field: &str, part: &str| match message.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::Object(object)) => object.get(part).is_some_and(Value::is_string),
        Some(_) => false,
    };
    if !has("function_call", "arguments") {
        return Err(invalid("function_call", "must have arguments"));
    }
    if !has("audio", "id") {
        return Err(invalid("audio", "must have an id"));
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    matches!(value, Value::String(_) | Value::Object(_)) && !is_truthy(value)
}

fn milliseconds(response: &Object) -> Option<Decimal> {
    match response.get("_response_ms")? {
        Value::Bool(flag) => Some(Decimal::from(u8::from(*flag))),
        Value::Number(number) => amount::from_number(number),
        _ => None,
    }
    .filter(|time| !time.is_sign_negative() && *time <= Decimal::from(LARGEST_COUNT))
}

/// Counts the characters that are not white space, which are the ones that Google bills.
pub(crate) fn characters(text: &str) -> u64 {
    // Python treats the four ASCII separators as white space. Unicode's property does not.
    let is_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    text.chars().filter(|c| !is_space(*c)).count() as u64
}

fn text<'a>(object: &'a Object, field: &'static str) -> Result<Option<&'a str>, PricingError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(field, "must be a string")),
    }
}

fn check_text(object: &Object, field: &'static str) -> Result<(), PricingError> {
    text(object, field).map(|_| ())
}

fn check_whole(object: &Object, field: &'static str) -> Result<(), PricingError> {
    let is_whole = match object.get(field) {
        None | Some(Value::Null | Value::Bool(_)) => true,
        Some(Value::Number(number)) => number.as_f64().is_some_and(|number| number.fract() == 0.0),
        Some(Value::String(text)) => whole_text(text).is_some(),
        Some(_) => false,
    };
    if is_whole { Ok(()) } else { Err(invalid(field, "must be a whole number")) }
}

fn invalid(field: &'static str, reason: &'static str) -> PricingError {
    PricingError::InvalidResponse { field, reason }
}
