//! A record as it was sent. The bounds of its fields are checked before anything of it is built or stored. Its digest
//! identifies the same record when it is sent again. The digest covers only what the client sent, and not values that
//! are filled in later, such as the time of arrival or today's price.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};

use crate::booking::limits::Refusal;
use crate::json_bounds;
use crate::json_bounds::{Bounds, FieldDigests, Value, ValueDigest, Walk};

/// The largest number of bytes in a row's metadata as stored, including `usage`.
pub const METADATA_BYTES: usize = 64 * 1024;
/// The largest number of values in a record's metadata.
pub const METADATA_VALUES: usize = 2000;
/// The largest number of bytes in one string of a stored JSON value.
pub const JSON_TEXT_BYTES: usize = 16 * 1024;
/// The deepest nesting of lists and objects in a stored JSON value.
pub const JSON_DEPTH: usize = 16;
/// The largest number of digits of a number in a stored JSON value, when written out.
pub const JSON_DIGITS: usize = 64;
/// The largest number of values in a provider's response, which is read but not stored.
pub const RESPONSE_VALUES: usize = 100_000;

/// The bounds of metadata as it is stored.
pub const METADATA: Bounds = Bounds {
    bytes: METADATA_BYTES,
    elements: METADATA_VALUES,
    depth: JSON_DEPTH,
    text: JSON_TEXT_BYTES,
    digits: JSON_DIGITS,
};
/// The bounds of a provider's usage object, which is stored.
pub const USAGE: Bounds = Bounds { bytes: 8 * 1024, elements: 200, depth: 8, text: 1024, digits: JSON_DIGITS };
const TAGS: Bounds = Bounds { bytes: 256 * 1024, elements: 1000, depth: 2, text: usize::MAX, digits: usize::MAX };
const RESPONSE: Bounds = Bounds::of_tree(RESPONSE_VALUES, 64);
/// The bounds of all other fields. They are loose, because the check of each field reports strings and numbers that are
/// too long.
const SCALAR: Bounds = Bounds { bytes: 64 * 1024, elements: 16, depth: 4, text: usize::MAX, digits: usize::MAX };
/// Larger than what is stored of the metadata in LiteLLM's callback; see `standard_logging`.
const CALLBACK_METADATA: Bounds = Bounds::of_tree(50_000, 64);

/// The fields of LiteLLM's callback that are read. All others are skipped.
pub const PAYLOAD_FIELDS: [&str; 26] = [
    "id",
    "litellm_call_id",
    "trace_id",
    "session_id",
    "call_type",
    "response_cost",
    "cost_breakdown",
    "status",
    "custom_llm_provider",
    "total_tokens",
    "prompt_tokens",
    "completion_tokens",
    "startTime",
    "endTime",
    "completionStartTime",
    "model",
    "model_id",
    "model_group",
    "api_base",
    "metadata",
    "cache_hit",
    "cache_key",
    "request_tags",
    "end_user",
    "requester_ip_address",
    "error_information",
];

/// The forms in which records are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A record of `POST /spend/usage`.
    Record,
    /// LiteLLM's callback. Fields that are not read are not part of the digest.
    Payload,
}

impl Form {
    /// The bounds of a field. `None` if the field is skipped without being read.
    fn bounds(self, field: &str) -> Option<Bounds> {
        match (self, field) {
            (Self::Record, "metadata") => Some(METADATA),
            (Self::Record, "usage") => Some(USAGE),
            (Self::Record, "tags") | (Self::Payload, "request_tags") => Some(TAGS),
            (Self::Record, "completion_response") => Some(RESPONSE),
            (Self::Payload, "metadata" | "cost_breakdown" | "error_information") => Some(CALLBACK_METADATA),
            (Self::Payload, field) if !PAYLOAD_FIELDS.contains(&field) => None,
            (Self::Record | Self::Payload, _) => Some(SCALAR),
        }
    }
}

/// Computes the digest of a record, or returns the bound that it exceeds. A text that is not an object gets the digest
/// of an empty record; the form's own parser reports the error.
pub fn digest(json: &str, form: Form) -> Result<ValueDigest, Refusal> {
    let mut refusal = None;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let digest = Record { form, refusal: &mut refusal }.deserialize(&mut deserializer);
    match (refusal, digest) {
        (Some(refusal), _) => Err(refusal),
        (None, digest) => Ok(digest.unwrap_or_default()),
    }
}

struct Record<'a> {
    form: Form,
    refusal: &'a mut Option<Refusal>,
}

impl<'de> DeserializeSeed<'de> for Record<'_> {
    type Value = ValueDigest;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ValueDigest, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Record<'_> {
    type Value = ValueDigest;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a record")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<ValueDigest, A::Error> {
        let mut digests = FieldDigests::default();
        let mut count = 0;
        while let Some(name) = fields.next_key::<String>()? {
            count += 1;
            if count > 1000 {
                *self.refusal = Some(Refusal::too_large("the record has more than 1000 fields"));
                return Err(serde::de::Error::custom("over its bounds"));
            }
            let Some(bounds) = self.form.bounds(&name) else {
                json_bounds::skip(&mut fields)?;
                continue;
            };
            let mut walk = Walk::new(bounds);
            let digest = fields.next_value_seed(Value { walk: &mut walk, depth: 0 });
            if let Some(excess) = walk.excess {
                let message = format!("{}: {}", shown(&name), excess.what);
                *self.refusal = Some(if excess.is_size { Refusal::too_large(message) } else { message.into() });
            }
            digests.add(&name, digest?);
        }
        Ok(digests.finish())
    }
}

/// The name of a field, shortened for a message.
fn shown(name: &str) -> String {
    name.chars().take(60).filter(|character| !character.is_control()).collect()
}

/// Checks whether a JSON value that will be stored keeps within its bounds.
pub fn within(name: &str, json: &str, bounds: Bounds) -> Result<(), Refusal> {
    match json_bounds::check(json, bounds) {
        Ok(_) => Ok(()),
        Err(Some(excess)) if excess.is_size => Err(Refusal::too_large(format!("{name}: {}", excess.what))),
        Err(Some(excess)) => Err(format!("{name}: {}", excess.what).into()),
        Err(None) => Err(format!("{name}: cannot be stored as JSON").into()),
    }
}
