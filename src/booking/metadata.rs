//! Reduces metadata from other systems (LiteLLM's callback, an exported log) to what can be stored. The record must be
//! booked whatever was logged with it. Fields that are too large are therefore left out and listed, and the record is
//! not refused.

use serde_json::{Map, Value};

use crate::booking::fields::NAME_BYTES;
use crate::booking::limits::Refusal;
use crate::booking::sent;
use crate::json_bounds;
use crate::json_bounds::Bounds;

/// The largest number of bytes in one field. A larger field is left out, and `left_out` lists its name.
const FIELD_BYTES: usize = 16 * 1024;

/// The largest number of bytes in a string within `error_information`, which is searched. A longer string is truncated.
const ERROR_TEXT_BYTES: usize = 8 * 1024;

/// The largest number of names in `left_out`.
const MAX_LEFT_OUT: usize = 100;

/// Returns the metadata as it is stored. `left_out` lists the parts of the row that have already been left out.
pub fn trimmed(mut fields: Map<String, Value>, left_out: Vec<String>) -> Result<String, Refusal> {
    if let Some(error) = fields.get_mut("error_information") {
        cut_texts(error);
    }
    let left_out = leave_out_large(&mut fields, left_out);
    if !left_out.is_empty() {
        fields.insert("left_out".into(), left_out.into());
    }
    let text = Value::Object(fields).to_string();
    sent::within("metadata", &text, sent::METADATA)?;
    Ok(text)
}

/// The stored metadata of a row that loses these fields after all.
pub fn without(metadata: &str, lost: &[&str]) -> String {
    let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(metadata) else { return metadata.to_owned() };
    let left_out = fields.entry("left_out").or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(names) = left_out {
        names.extend(lost.iter().map(|name| Value::from(*name)));
    }
    Value::Object(fields).to_string()
}

fn cut_texts(value: &mut Value) {
    match value {
        Value::String(text) => {
            let end = (0..=ERROR_TEXT_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or(0));
        }
        Value::Array(items) => items.iter_mut().for_each(cut_texts),
        Value::Object(fields) => fields.values_mut().for_each(cut_texts),
        _ => {}
    }
}

fn leave_out_large(fields: &mut Map<String, Value>, mut left_out: Vec<String>) -> Vec<String> {
    let bounds = Bounds { bytes: FIELD_BYTES, ..sent::METADATA };
    fields.retain(|name, value| {
        let fits = name.len() <= NAME_BYTES && json_bounds::check(&value.to_string(), bounds).is_ok();
        if !fits && left_out.len() < MAX_LEFT_OUT {
            left_out.push(name.chars().take(60).collect());
        }
        fits
    });
    left_out
}
