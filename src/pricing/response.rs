//! The parts of a chat completion that its price depends on, and the checks that the whole object
//! is one.

use serde_json::{Map, Value};

use super::PricingError;
use super::usage::Usage;

type Object = Map<String, Value>;

/// A chat completion, read.
#[derive(Debug)]
pub struct Response<'a> {
    pub model: Option<&'a str>,
    pub usage: Option<Usage>,
    pub service_tier: Option<&'a str>,
    pub cites_urls: bool,
    /// Characters of all choices' texts, without white space.
    pub characters: u64,
}

impl<'a> Response<'a> {
    /// Reads a chat completion.
    ///
    /// # Errors
    /// [`PricingError::InvalidResponse`] or [`PricingError::InvalidUsage`] where a field has a type
    /// that no chat completion has.
    pub fn read(response: &'a Object) -> Result<Self, PricingError> {
        check_text(response, "id")?;
        check_text(response, "system_fingerprint")?;
        check_whole(response, "created")?;
        let mut result = Self {
            model: text(response, "model")?,
            usage: match response.get("usage") {
                None | Some(Value::Null) => None,
                Some(Value::Object(usage)) => Some(Usage::from_chat(usage)?),
                Some(_) => return Err(invalid("usage", "must be an object")),
            },
            service_tier: response.get("service_tier").and_then(Value::as_str),
            cites_urls: false,
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
        let message = match choice.get("message") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Object(message)) => message,
            Some(_) => return Err(invalid("message", "must be an object")),
        };
        match message.get("role") {
            None | Some(Value::Null) => {}
            Some(Value::String(role))
                if matches!(role.as_str(), "" | "assistant" | "user" | "system" | "tool" | "function") => {}
            Some(_) => return Err(invalid("role", "must name a role")),
        }
        if let Some(content) = text(message, "content")? {
            self.characters = self.characters.saturating_add(characters(content));
        }
        match message.get("tool_calls") {
            None | Some(Value::Null | Value::Array(_)) => {}
            Some(_) => return Err(invalid("tool_calls", "must be a list")),
        }
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

/// Counts characters that are no white space, as Google bills them.
pub fn characters(text: &str) -> u64 {
    // Python counts the four ASCII separators as white space, Unicode's property does not.
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
        Some(Value::String(text)) => text.trim().parse::<i64>().is_ok(),
        Some(_) => false,
    };
    if is_whole { Ok(()) } else { Err(invalid(field, "must be a whole number")) }
}

fn invalid(field: &'static str, reason: &'static str) -> PricingError {
    PricingError::InvalidResponse { field, reason }
}
