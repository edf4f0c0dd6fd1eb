//! What the rows of a day say about their keys: alias, team and owner. The first and the last row of a key that say
//! anything are kept, as the reader of the log looks for them.

use chrono::{DateTime, NaiveDateTime};
use litespend_archive::LogRow;
use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde_json::Value;

use crate::store::books::details::{KeyNames, NamedKey};

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

fn filled(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// Makes a text another one. It nearly always is the same one, as the rows of a key have the same team and user.
fn replace(known: &mut Option<String>, text: Option<&str>) {
    if known.as_deref() != text {
        *known = text.map(str::to_owned);
    }
}

/// The longest metadata that is kept as text until the last row of a key is known.
const MOST_KEPT: usize = 4_096;

/// The most keys whose metadata is kept.
const MOST_UNREAD: usize = 4_096;

/// The names of the last row of a key.
#[derive(Debug)]
enum Last {
    Known(KeyNames),
    /// What the metadata of the row says is missing. Nearly every row is followed by another one of its key, so its metadata
    /// is read only at the end.
    Unread {
        names: KeyNames,
        metadata: String,
    },
}

/// Collects the names of a day's keys. Rows come in the order of their start.
#[derive(Debug, Default)]
pub struct NamesCollector {
    keys: FxHashMap<String, (KeyNames, Last)>,
    /// How often metadata was kept of another key.
    unread: usize,
}

impl NamesCollector {
    /// Looks at a row.
    pub fn add(&mut self, row: &LogRow<'_>) {
        let (team, owner) = (filled(row.team_id), filled(row.user));
        let has_names = team.is_some() || owner.is_some();
        let own = || KeyNames {
            start_time: time(row.start_time),
            alias: None,
            team: team.map(str::to_owned),
            owner: owner.map(str::to_owned),
        };
        match (self.keys.get_mut(row.api_key), row.metadata) {
            (Some((_, Last::Unread { names, metadata })), Some(text)) if has_names && text.len() <= MOST_KEPT => {
                names.start_time = time(row.start_time);
                replace(&mut names.team, team);
                replace(&mut names.owner, owner);
                metadata.clear();
                metadata.push_str(text);
            }
            (Some((_, last)), Some(text)) if has_names && text.len() <= MOST_KEPT && self.unread < MOST_UNREAD => {
                self.unread += 1;
                *last = Last::Unread { names: own(), metadata: text.to_owned() };
            }
            (known, metadata) => {
                let names = with_metadata(own(), metadata);
                if names.alias.is_none() && names.team.is_none() && names.owner.is_none() {
                    return;
                }
                match known {
                    Some((_, last)) => *last = Last::Known(names),
                    None => {
                        self.keys.insert(row.api_key.to_owned(), (names.clone(), Last::Known(names)));
                    }
                }
            }
        }
    }

    /// The names, two entries for each key.
    pub fn finish(self) -> Vec<NamedKey> {
        let entries = self.keys.into_iter().flat_map(|(key, (first, last))| {
            let last = match last {
                Last::Known(names) => names,
                Last::Unread { names, metadata } => with_metadata(names, Some(&metadata)),
            };
            [(key.clone(), true, first), (key, false, last)]
        });
        entries.collect()
    }
}

/// The names of a row, with those that only its metadata has.
fn with_metadata(names: KeyNames, metadata: Option<&str>) -> KeyNames {
    let metadata: Metadata = metadata.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    KeyNames {
        alias: scalar(&metadata.alias),
        team: names.team.or_else(|| scalar(&metadata.team)),
        owner: names.owner.or_else(|| scalar(&metadata.owner)),
        ..names
    }
}

fn time(microseconds: i64) -> NaiveDateTime {
    DateTime::from_timestamp_micros(microseconds).unwrap_or_default().naive_utc()
}
