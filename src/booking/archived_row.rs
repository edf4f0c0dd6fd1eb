//! A row of an archive of closed days. The log gets all its columns as they are. This module reads from it what booking
//! counts: the counters of keys and owners, and the daily tables.

use std::sync::Arc;

use chrono::DateTime;
use litespend_archive::OwnedRow;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::booking::fields::{NAME_BYTES, TEXT_BYTES};
use crate::booking::limits::Refusal;
use crate::booking::log_row::{TREE, cached};
use crate::booking::{Draft, Identity, NewNames, Owner, fields};
use crate::identity::key_filter;
use crate::json_bounds;
use crate::settings::MAX_COST;
use crate::store::booking::UsageRow;

/// Converts an archived row, including its owner. Returns an error if a name in it is too long for the indexes of the
/// counters and daily tables.
pub fn into_draft(archived: &Arc<OwnedRow>) -> Result<Draft, Refusal> {
    // The log has milliseconds, and rounds.
    let milliseconds = archived.start_time.saturating_add(500).div_euclid(1000);
    let start_time = DateTime::from_timestamp_millis(milliseconds).ok_or("startTime: is out of range")?;
    let name = |field: &str, value: Option<&str>| fields::text(field, value.unwrap_or_default(), NAME_BYTES);
    let text = |field: &str, value: Option<&str>| fields::text(field, value.unwrap_or_default(), TEXT_BYTES);
    for (field, value) in [("session_id", &archived.session_id), ("litellm_call_id", &archived.litellm_call_id)] {
        text(field, value.as_deref())?;
    }
    let metadata = archived.metadata.as_deref().map(Metadata::of).unwrap_or_default();
    let status = archived.status.as_deref().filter(|status| !status.is_empty());
    let is_failure = status.map_or(metadata.is_failure, |status| status == "failure");
    let row = UsageRow {
        request_id: text("request_id", Some(&archived.request_id))?,
        call_type: archived.call_type.clone(),
        api_key: name("api_key", Some(&key_filter(&archived.api_key)))?,
        spend: counted(archived.spend),
        total_tokens: archived.total_tokens,
        prompt_tokens: archived.prompt_tokens,
        completion_tokens: archived.completion_tokens,
        start_time: start_time.naive_utc(),
        request_duration_ms: archived.request_duration_ms,
        model: name("model", Some(&archived.model))?,
        model_group: archived.model_group.clone().unwrap_or_default(),
        custom_llm_provider: name("custom_llm_provider", archived.custom_llm_provider.as_deref())?,
        user: name("user", archived.user.as_deref())?,
        team_id: name("team_id", archived.team_id.as_deref())?,
        organization_id: text("organization_id", archived.organization_id.as_deref())?,
        end_user: text("end_user", archived.end_user.as_deref())?,
        tags: fields::tags("request_tags", tags(archived.request_tags.as_deref()))?,
        status: if is_failure { "failure" } else { "success" }.to_owned(),
        mcp_namespaced_tool_name: archived
            .mcp_namespaced_tool_name
            .as_deref()
            .map(|tool| name("mcp_namespaced_tool_name", Some(tool)))
            .transpose()?,
        cache_read_tokens: metadata.cache_read_tokens,
        cache_creation_tokens: metadata.cache_creation_tokens,
        archived: Some(Arc::clone(archived)),
        ..UsageRow::default()
    };
    Ok(Draft { row, owner: Owner::Given, identity: Identity::Logged, new_names: NewNames::Unlimited })
}

/// The spend that counters add, in USD. One amount that is no number, or that is absurd, would spoil a counter for ever.
fn counted(spend: f64) -> f64 {
    // The sum turns negative zero into zero.
    if spend.is_finite() && spend.abs() <= MAX_COST { spend + 0.0 } else { 0.0 }
}

/// What booking counts of the metadata of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Metadata {
    is_failure: bool,
    cache_read_tokens: i64,
    cache_creation_tokens: i64,
}

/// The fields of metadata that say it. The others are not parsed, however large they are.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields<'a> {
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    usage_object: Option<&'a RawValue>,
    #[serde(borrow)]
    additional_usage_values: Option<&'a RawValue>,
}

impl Metadata {
    /// Reads JSON. What has another form counts as missing.
    fn of(json: &str) -> Self {
        let Ok(fields) = serde_json::from_str::<Fields<'_>>(json) else { return Self::default() };
        let usage = object(fields.usage_object).or_else(|| object(fields.additional_usage_values));
        let (cache_read_tokens, cache_creation_tokens) = cached(usage.as_ref());
        let is_failure = fields.status.is_some_and(|status| status.get() == r#""failure""#);
        Self { is_failure, cache_read_tokens, cache_creation_tokens }
    }
}

/// A JSON object. `None` for other values, and for one that is too large.
fn object(json: Option<&RawValue>) -> Option<Map<String, Value>> {
    match parsed(json?.get()) {
        Some(Value::Object(fields)) => Some(fields),
        _ => None,
    }
}

/// The tags in JSON: the strings of a list.
fn tags(json: Option<&str>) -> Vec<String> {
    let Some(Value::Array(items)) = json.and_then(parsed) else { return Vec::new() };
    let tag = |item| match item {
        Value::String(tag) => Some(tag),
        _ => None,
    };
    items.into_iter().filter_map(tag).collect()
}

/// A JSON value. `None` if it is too large.
fn parsed(json: &str) -> Option<Value> {
    json_bounds::check(json, TREE).ok()?;
    serde_json::from_str(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> OwnedRow {
        OwnedRow { request_id: "r".to_owned(), start_time: 1_772_323_200_123_000, ..OwnedRow::default() }
    }

    fn drafted(row: OwnedRow) -> Result<UsageRow, Refusal> {
        into_draft(&Arc::new(row)).map(|draft| draft.row)
    }

    #[test]
    fn what_is_absurd_adds_nothing_to_counters_and_stays_in_the_log() {
        for (spend, expected) in [
            (0.25, 0.25),
            (-0.25, -0.25),
            (-0.0, 0.0),
            (f64::NAN, 0.0),
            (f64::INFINITY, 0.0),
            (f64::NEG_INFINITY, 0.0),
            (1e300, 0.0),
        ] {
            let row = drafted(OwnedRow { spend, ..row() }).expect("a draft");
            assert_eq!(row.spend.to_bits(), f64::to_bits(expected), "{spend}");
            assert_eq!(row.archived.expect("the row").spend.to_bits(), spend.to_bits());
        }
    }

    #[test]
    fn the_metadata_says_what_no_column_has() {
        let usage = r#"{"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}"#;
        let metadata = |fields: &str| {
            let row = OwnedRow { metadata: Some(fields.to_owned()), ..row() };
            let row = drafted(row).expect("a draft");
            (row.status, row.cache_read_tokens)
        };
        let success = |tokens: i64| ("success".to_owned(), tokens);
        assert_eq!(metadata(&format!(r#"{{"usage_object": {usage}, "other": 1e999}}"#)), success(4));
        assert_eq!(metadata(&format!(r#"{{"usage_object": null, "additional_usage_values": {usage}}}"#)), success(4));
        assert_eq!(metadata(r#"{"status": "failure"}"#), ("failure".to_owned(), 0));
        for odd in ["", "{", "null", "7", r#"{"usage_object": [1]}"#, r#"{"status": {}}"#] {
            assert_eq!(metadata(odd), success(0), "{odd}");
        }
    }

    #[test]
    fn tags_are_the_strings_of_a_list() {
        let tags = |json: &str| {
            let row = drafted(OwnedRow { request_tags: Some(json.to_owned()), ..row() });
            row.map(|row| row.tags)
        };
        assert_eq!(tags(r#"["a", 1, null, "b", "a", ""]"#), Ok(vec!["a".to_owned(), "b".to_owned()]));
        for odd in ["{}", "null", r#""a""#, "["] {
            assert_eq!(tags(odd), Ok(Vec::new()), "{odd}");
        }
        assert!(tags(&format!(r#"["{}"]"#, "x".repeat(NAME_BYTES + 1))).is_err());
    }

    #[test]
    fn only_names_of_indexes_have_limits() {
        let long = "x".repeat(TEXT_BYTES);
        let texts = OwnedRow {
            end_user: Some(long.clone()),
            api_base: Some(long.repeat(3)),
            model_group: Some(long.clone()),
            ..row()
        };
        assert_eq!(drafted(texts).expect("a draft").end_user, long);
        let refusal = drafted(OwnedRow { model: long, ..row() }).expect_err("refused");
        assert!(refusal.message.starts_with("model: is longer"), "{refusal}");
    }
}
