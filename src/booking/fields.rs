//! The limits of single fields. They are derived from the capacity of PostgreSQL's columns and indexes, and they
//! exclude obvious mistakes. Every error names its field.

use chrono::{DateTime, NaiveDateTime, SubsecRound, TimeDelta, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::{ObjectBuilder, Schema, Type};

use crate::booking::limits::Dates;
use crate::settings::MAX_COST;
use litespend_pricing::Usage;

/// The largest number of bytes in the id of a request.
pub const ID_BYTES: usize = 512;
/// The largest number of bytes in the name of a model, key, owner or tag. Seven of them form an index entry of the
/// daily tables, which PostgreSQL limits to about 2,700 bytes.
pub const NAME_BYTES: usize = 256;
/// The largest number of bytes in other short strings.
pub const TEXT_BYTES: usize = 2048;
/// The largest number of tags on one record.
pub const MAX_TAGS: usize = 100;

/// 2000-01-01 in seconds since 1970. An earlier date is refused as a mistake, because no record of a call to a model is
/// that old.
const EARLIEST: i64 = 946_684_800;

/// An instant as a client writes it: RFC 3339, a timestamp without a time zone (UTC), or seconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub enum Instant {
    /// Seconds since 1970-01-01 UTC.
    Epoch(f64),
    /// A timestamp in a string.
    Text(String),
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Instant;
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an RFC 3339 timestamp or epoch seconds")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Instant, E> {
                Ok(Instant::Text(text.to_owned()))
            }
            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Instant, E> {
                Ok(Instant::Epoch(seconds))
            }
            #[expect(clippy::cast_precision_loss, reason = "seconds that lose precision are far out of range")]
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Instant, E> {
                Ok(Instant::Epoch(seconds as f64))
            }
            #[expect(clippy::cast_precision_loss, reason = "seconds that lose precision are far out of range")]
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Instant, E> {
                Ok(Instant::Epoch(seconds as f64))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Parses an instant and truncates it to whole milliseconds UTC. Refuses an instant at which no call can have happened.
pub fn instant(name: &str, value: &Instant, now: DateTime<Utc>, dates: Dates) -> Result<NaiveDateTime, String> {
    let parsed = match value {
        Instant::Epoch(seconds) => epoch(name, *seconds)?,
        Instant::Text(text) => parse_instant(text).ok_or_else(|| {
            format!("{name}: expected an RFC 3339 timestamp such as 2026-03-01T18:30:00Z, or epoch seconds")
        })?,
    };
    if parsed.timestamp() < EARLIEST {
        return Err(format!("{name}: is before the year 2000"));
    }
    if parsed > now + dates.ahead {
        let ahead = if dates.ahead == TimeDelta::days(1) {
            "a day".to_owned()
        } else {
            format!("{} hours", dates.ahead.num_hours())
        };
        return Err(format!("{name}: is more than {ahead} in the future"));
    }
    if let Some(back) = dates.back
        && parsed < now - back
    {
        return Err(format!("{name}: is more than {} days ago", back.num_days()));
    }
    Ok(parsed.naive_utc().trunc_subsecs(3))
}

fn epoch(name: &str, seconds: f64) -> Result<DateTime<Utc>, String> {
    if seconds.abs() > 1e11 {
        return Err(format!("{name}: is out of range; epoch seconds are expected, not milliseconds"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "the range was checked above; NaN becomes 0 and is too early")]
    let microseconds = (seconds * 1e6).round() as i64;
    DateTime::from_timestamp_micros(microseconds).ok_or_else(|| format!("{name}: is out of range"))
}

fn parse_instant(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    if let Ok(parsed) = DateTime::parse_from_rfc3339(text) {
        return Some(parsed.with_timezone(&Utc));
    }
    ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
        .map(|parsed| parsed.and_utc())
}

/// The milliseconds between two instants. Refuses an end before the start. `names` are those of the two
/// fields.
pub fn duration_ms(names: [&str; 2], start: NaiveDateTime, end: NaiveDateTime) -> Result<i32, String> {
    let [start_name, end_name] = names;
    let milliseconds = (end - start).num_milliseconds();
    if milliseconds < 0 {
        return Err(format!("{end_name}: is before {start_name}"));
    }
    i32::try_from(milliseconds).map_err(|_| format!("{end_name}: is more than 24 days after {start_name}"))
}

/// Checks that a string has at most `most` bytes and no NUL, which PostgreSQL can't store.
pub fn text(name: &str, value: impl Into<String>, most: usize) -> Result<String, String> {
    let value = value.into();
    if value.len() > most {
        return Err(format!("{name}: is longer than {most} bytes"));
    }
    if value.contains('\0') {
        return Err(format!("{name}: must not contain a NUL character"));
    }
    Ok(value)
}

/// Like [`text`], for a string that may be missing. An empty string counts as missing.
pub fn optional_text(name: &str, value: Option<String>, most: usize) -> Result<Option<String>, String> {
    value.filter(|value| !value.is_empty()).map(|value| text(name, value, most)).transpose()
}

/// Converts a count of tokens to the type of its column.
pub fn tokens(name: &str, count: i64) -> Result<i32, String> {
    if count < 0 {
        return Err(format!("{name}: must not be negative"));
    }
    i32::try_from(count).map_err(|_| format!("{name}: is larger than {}", i32::MAX))
}

/// Checks a cost in USD: finite, not negative, and at most [`MAX_COST`].
pub fn cost(name: &str, amount: f64) -> Result<f64, String> {
    if !amount.is_finite() {
        return Err(format!("{name}: must be a finite number"));
    }
    if amount < 0.0 {
        return Err(format!("{name}: must not be negative"));
    }
    if amount > MAX_COST {
        return Err(format!("{name}: is larger than {MAX_COST}"));
    }
    // Turns negative zero into zero, because a negative zero looks like a mistake in every report.
    Ok(amount + 0.0)
}

/// Checks tags, and removes duplicate and empty ones.
pub fn tags(name: &str, values: Vec<String>) -> Result<Vec<String>, String> {
    if values.len() > MAX_TAGS {
        return Err(format!("{name}: has more than {MAX_TAGS} items"));
    }
    let mut unique: Vec<String> = Vec::with_capacity(values.len());
    for value in values {
        let value = text(name, value, NAME_BYTES)?;
        if !value.is_empty() && !unique.contains(&value) {
            unique.push(value);
        }
    }
    Ok(unique)
}

/// Parses a status: `success` (default) or `failure`.
pub fn status(value: Option<&str>) -> Result<&'static str, String> {
    match value {
        None | Some("" | "success") => Ok("success"),
        Some("failure") => Ok("failure"),
        Some(_) => Err("status: expected success or failure".to_owned()),
    }
}

/// The values that [`status`] accepts, for the OpenAPI document.
pub fn status_schema() -> Schema {
    let types = SchemaType::from_iter([Type::String, Type::Null]);
    let values = [Value::from("success"), "failure".into(), "".into(), Value::Null];
    Schema::Object(ObjectBuilder::new().schema_type(types).enum_values(Some(values)).build())
}

/// Reads a whole number that may have a fraction of zeros, such as `272.0`. JSON has only one kind of number, and many
/// languages write whole numbers this way.
pub fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    struct Visitor;
    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Option<i64>;
        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("a whole number")
        }
        fn visit_none<E: de::Error>(self) -> Result<Option<i64>, E> {
            Ok(None)
        }
        fn visit_unit<E: de::Error>(self) -> Result<Option<i64>, E> {
            Ok(None)
        }
        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<i64>, D::Error> {
            deserializer.deserialize_any(self)
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<Option<i64>, E> {
            Ok(Some(number))
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Option<i64>, E> {
            // A number that is too large stays too large.
            Ok(Some(i64::try_from(number).unwrap_or(i64::MAX)))
        }
        #[expect(clippy::cast_possible_truncation, reason = "whole, and what is too large stays too large")]
        fn visit_f64<E: de::Error>(self, number: f64) -> Result<Option<i64>, E> {
            if number.fract() == 0.0 {
                return Ok(Some(number as i64));
            }
            Err(E::invalid_type(de::Unexpected::Float(number), &self))
        }
    }
    deserializer.deserialize_option(Visitor)
}

/// Removes every NUL from the strings of a value. Removes fields whose names contain NUL.
pub fn without_nul(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *text = text.replace('\0', ""),
        Value::Array(items) => items.iter_mut().for_each(without_nul),
        Value::Object(fields) => {
            fields.retain(|name, _| !name.contains('\0'));
            fields.values_mut().for_each(without_nul);
        }
        _ => {}
    }
}

/// Token counts, in the types of their columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Prompt tokens, including cached ones.
    pub prompt: i32,
    /// Completion tokens.
    pub completion: i32,
    /// All tokens: as reported, or else the sum.
    pub total: i32,
    /// Tokens read from the provider's cache.
    pub cache_read: i64,
    /// Tokens written to the provider's cache.
    pub cache_creation: i64,
}

/// Converts the counts of a usage object.
pub fn used_tokens(used: &Usage) -> Result<Tokens, String> {
    let count = |name: &str, count: u64| tokens(name, i64::try_from(count).unwrap_or(i64::MAX));
    let (prompt, completion) =
        (count("prompt_tokens", used.prompt_tokens)?, count("completion_tokens", used.completion_tokens)?);
    let sum = used.prompt_tokens.saturating_add(used.completion_tokens);
    let cached = used.prompt.as_ref();
    Ok(Tokens {
        prompt,
        completion,
        total: count("total_tokens", if used.total_tokens == 0 { sum } else { used.total_tokens })?,
        cache_read: count("cache_read_input_tokens", cached.map_or(0, |prompt| prompt.cached))?.into(),
        cache_creation: count("cache_creation_input_tokens", cached.map_or(0, |prompt| prompt.cache_write))?.into(),
    })
}

/// Parses a record. An error names its field and repeats nothing else of the text.
pub fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    // The fast parser runs first. Only if it fails does the slow one find the field.
    serde_json::from_str(json).or_else(|_| {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        serde_path_to_error::deserialize(&mut deserializer).map_err(described)
    })
}

/// Like [`parse`], for a record whose JSON has been parsed.
pub fn from_object<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, String> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(described)
}

fn described(error: serde_path_to_error::Error<serde_json::Error>) -> String {
    let path = error.path().to_string();
    let message = error.into_inner().to_string();
    let message = without_texts(message.rsplit_once(" at line ").map_or(message.as_str(), |(start, _)| start));
    // The names below one of our fields may be the client's.
    let field = path.split(['.', '[']).next().filter(|field| is_name(&field.to_ascii_lowercase()));
    field.map_or_else(|| message.clone(), |field| format!("{field}: {message}"))
}

/// Removes the client's text from a parser's message. It may be a prompt or a key, and messages end up in logs. The
/// name of an unknown field stays if it looks like a field name, so that a misspelled field can be found.
fn without_texts(message: &str) -> String {
    let without_string = match (message.find(" string \""), message.rfind("\", expected")) {
        (Some(start), Some(end)) if start < end => {
            format!("{} string{}", message.get(..start).unwrap_or_default(), message.get(end + 1..).unwrap_or_default())
        }
        _ => message.to_owned(),
    };
    let unknown = ["unknown field `", "unknown variant `"].into_iter().find(|start| without_string.starts_with(start));
    let end = without_string.find("`, expected").or_else(|| without_string.find("`, there are"));
    match (unknown, end) {
        (Some(start), Some(end)) if !without_string.get(start.len()..end).is_some_and(is_name) => {
            let kind = start.trim_end_matches(" `");
            format!("{kind}{}", without_string.get(end + 1..).unwrap_or_default())
        }
        _ => without_string,
    }
}

/// Whether a string looks like one of our field names.
fn is_name(text: &str) -> bool {
    (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-03-01T12:00:00Z".parse().expect("a timestamp")
    }

    #[test]
    fn what_a_client_wrote_is_not_repeated() {
        for (message, expected) in [
            (r#"invalid type: string "my prompt", expected f64"#, "invalid type: string, expected f64"),
            (r#"invalid type: string "a\", expected b", expected f64"#, "invalid type: string, expected f64"),
            ("unknown field `promt_tokens`, expected `cost`", "unknown field `promt_tokens`, expected `cost`"),
            ("unknown field `sk-1234`, expected `cost` or `tags`", "unknown field, expected `cost` or `tags`"),
            ("invalid type: integer `5`, expected a string", "invalid type: integer `5`, expected a string"),
        ] {
            assert_eq!(without_texts(message), expected);
        }
    }

    #[test]
    fn instants_are_read_in_every_spelling_and_cut_to_milliseconds() {
        for (value, expected) in [
            (Instant::Text("2026-02-28T23:59:59.9999Z".into()), "2026-02-28 23:59:59.999"),
            (Instant::Text("2026-03-01T01:30:00+02:00".into()), "2026-02-28 23:30:00"),
            (Instant::Text("2026-02-28 10:00:00.5".into()), "2026-02-28 10:00:00.500"),
            (Instant::Epoch(1_772_323_200.25), "2026-03-01 00:00:00.250"),
        ] {
            assert_eq!(instant("start_time", &value, now(), Dates::ANY).expect("an instant").to_string(), expected);
        }
    }

    #[test]
    fn absurd_instants_are_refused() {
        for value in [
            Instant::Epoch(1_772_323_200_000.0),
            Instant::Epoch(f64::NAN),
            Instant::Epoch(-1e9),
            Instant::Epoch(0.0),
            Instant::Text("2026-03-03T00:00:00Z".into()),
            Instant::Text("0026-03-01T00:00:00Z".into()),
            Instant::Text("yesterday".into()),
            Instant::Text("+262142-01-01T00:00:00Z".into()),
        ] {
            let error = instant("start_time", &value, now(), Dates::ANY).expect_err("refused");
            assert!(error.starts_with("start_time: "), "{error}");
        }
        let near = Dates { back: Some(TimeDelta::days(30)), ahead: TimeDelta::hours(2) };
        for (text, expected) in [
            ("2026-01-29T00:00:00Z", Some("start_time: is more than 30 days ago")),
            ("2026-03-01T14:00:01Z", Some("start_time: is more than 2 hours in the future")),
            ("2026-01-31T00:00:00Z", None),
        ] {
            let read = instant("start_time", &Instant::Text(text.into()), now(), near);
            assert_eq!(read.err().as_deref(), expected, "{text}");
        }
    }
}
