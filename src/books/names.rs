//! What the rows of a day say about their keys: alias, team and owner. The first and the last row of a key that say
//! anything are kept, as the reader of the log looks for them.

use chrono::{DateTime, NaiveDateTime};
use litespend_archive::LogRow;
use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde_json::Value;

use crate::store::books::closing::{KeyNames, NamedKey};

/// The fields of a row's metadata that name its key.
#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default, rename = "user_api_key_alias")]
    alias: Value,
    #[serde(default, rename = "user_api_key_team_id")]
    team: Value,
    #[serde(default, rename = "user_api_key_user_id")]
    owner: Value,
}

/// A scalar as text. `None` for null, an empty text, a list or an object.
fn scalar(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    (!text.is_empty()).then_some(text)
}

fn filled(text: Option<&str>) -> Option<String> {
    text.filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Collects the names of a day's keys. Rows come in the order of their start.
#[derive(Debug, Default)]
pub struct NamesCollector {
    keys: FxHashMap<String, (KeyNames, KeyNames)>,
}

impl NamesCollector {
    /// Looks at a row.
    pub fn add(&mut self, row: &LogRow<'_>) {
        let metadata: Metadata = row.metadata.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let names = KeyNames {
            start_time: time(row.start_time),
            alias: scalar(&metadata.alias),
            team: filled(row.team_id).or_else(|| scalar(&metadata.team)),
            owner: filled(row.user).or_else(|| scalar(&metadata.owner)),
        };
        if names.alias.is_none() && names.team.is_none() && names.owner.is_none() {
            return;
        }
        match self.keys.get_mut(row.api_key) {
            Some((_, last)) => *last = names,
            None => {
                self.keys.insert(row.api_key.to_owned(), (names.clone(), names));
            }
        }
    }

    /// The names, two entries for each key.
    pub fn finish(self) -> Vec<NamedKey> {
        let entries = self.keys.into_iter();
        entries.flat_map(|(key, (first, last))| [(key.clone(), true, first), (key, false, last)]).collect()
    }
}

fn time(microseconds: i64) -> NaiveDateTime {
    DateTime::from_timestamp_micros(microseconds).unwrap_or_default().naive_utc()
}
