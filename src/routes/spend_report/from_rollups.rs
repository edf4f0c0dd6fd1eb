//! The report out of the rollups: a day's entries are sorted into groups and written.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use sqlx::PgConnection;

use super::{Grouping, close_group, open_day};
use crate::json_stream::Writer;
use crate::store::DateRange;
use crate::store::rollup_days::{DayEntries, DaysRequest};
use crate::store::rollup_reads::{self, Entry, EntryFilter, Rollup, Words};

impl Grouping {
    /// What to read for this grouping.
    pub(super) fn request(&self, range: DateRange) -> DaysRequest {
        let (rollup, team_id, end_user) = match self {
            Self::Team { team_id } | Self::User { team_id } | Self::Model { team_id } => {
                (Rollup::Usage, team_id.clone(), None)
            }
            Self::Customer => (Rollup::Customer, None, None),
            Self::Pair { team_id, customer_id } => (Rollup::Customer, Some(team_id.clone()), Some(customer_id.clone())),
        };
        let filter = EntryFilter { team_id, end_user, ..EntryFilter::default() };
        DaysRequest { rollup, range, filter }
    }
}

/// What to read for a report by key.
pub(super) fn keys_request(range: DateRange, api_key: Option<String>, user_id: Option<String>) -> DaysRequest {
    let filter = EntryFilter { api_key, user_id, ..EntryFilter::default() };
    DaysRequest { rollup: Rollup::Usage, range, filter }
}

/// Names of teams, by the number of the team: JSON literals.
pub(super) struct Labels {
    aliases: HashMap<String, String>,
    by_number: HashMap<i32, Arc<str>>,
}

impl Labels {
    /// The aliases as they stand in the snapshot; none where the grouping shows no teams.
    pub(super) async fn read(connection: &mut PgConnection, grouping: &Grouping) -> Result<Self, sqlx::Error> {
        let aliases = if grouping.has_teams() { rollup_reads::team_aliases(connection).await? } else { HashMap::new() };
        Ok(Self { aliases, by_number: HashMap::new() })
    }

    /// The team's alias, or `Unassigned Team`.
    fn of(&mut self, team: i32, words: &Words) -> Arc<str> {
        let aliases = &self.aliases;
        let label = self.by_number.entry(team).or_insert_with(|| {
            let id: Option<String> = serde_json::from_str(words.json(team)).unwrap_or_default();
            let alias = id.and_then(|id| aliases.get(&id)).map_or("Unassigned Team", String::as_str);
            Arc::from(serde_json::Value::from(alias).to_string())
        });
        Arc::clone(label)
    }
}

/// Adds up what has the same group, key and model; what no request is left of goes.
fn merge<G: Ord + Copy>(entries: &mut Vec<Entry>, group: impl Fn(&Entry) -> G) {
    entries.sort_unstable_by_key(|entry| (group(entry), entry.api_key, entry.model));
    entries.dedup_by(|next, kept| {
        let same = (group(next), next.api_key, next.model) == (group(kept), kept.api_key, kept.model);
        if same {
            kept.spend += next.spend;
            kept.prompt_tokens += next.prompt_tokens;
            kept.completion_tokens += next.completion_tokens;
            kept.total_tokens += next.total_tokens;
            kept.requests += next.requests;
        }
        same
    });
    entries.retain(|entry| entry.requests > 0);
}

/// Writes one day, and hands out what fills pieces.
pub(super) fn write_day(
    writer: &mut Writer,
    mut day: DayEntries,
    grouping: &Grouping,
    labels: &mut Labels,
    separator: &mut &'static str,
) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let words = day.words.read().unwrap_or_else(PoisonError::into_inner);
    // Teams with one alias are one group: they get one number.
    let mut names: Vec<(Arc<str>, Arc<str>)> = Vec::new();
    let mut numbers: HashMap<Arc<str>, i32> = HashMap::new();
    if let Grouping::Model { .. } = grouping {
        for entry in &mut day.entries {
            entry.who = entry.model;
        }
    }
    if grouping.has_teams() {
        for entry in &mut day.entries {
            let label = labels.of(entry.team, &words);
            let customer = if matches!(grouping, Grouping::Pair { .. }) { words.json(entry.who) } else { "" };
            entry.who = *numbers.entry(Arc::clone(&label)).or_insert_with(|| {
                names.push((label, Arc::from(customer)));
                i32::try_from(names.len()).unwrap_or(i32::MAX) - 1
            });
        }
    }
    merge(&mut day.entries, |entry| entry.who);
    let mut group = None;
    let mut total = 0.0;
    for entry in &day.entries {
        if group == Some(entry.who) {
            writer.raw(",");
        } else {
            if group.is_some() {
                close_group(writer, total);
                writer.raw(",{");
            } else {
                writer.raw(separator);
                *separator = ",";
                open_day(writer, entry.day, grouping.list_name());
                writer.raw("{");
            }
            group = Some(entry.who);
            total = 0.0;
            let name = usize::try_from(entry.who).ok().and_then(|index| names.get(index));
            if let Some((team, customer)) = name {
                writer.raw("\"team_name\":");
                writer.raw(team);
                writer.raw(",");
                if !customer.is_empty() {
                    writer.raw("\"customer\":");
                    writer.raw(customer);
                    writer.raw(",");
                }
            } else {
                writer.raw(grouping.member_name().unwrap_or("\"customer\":"));
                writer.raw(words.json(entry.who));
                writer.raw(",");
            }
            writer.raw("\"metadata\":[");
        }
        total += entry.spend;
        writer.raw("{\"model\":");
        writer.raw(words.json(entry.model));
        writer.raw(",\"spend\":");
        writer.amount(entry.spend);
        writer.raw(",\"api_key\":");
        writer.raw(words.json(entry.api_key));
        writer.raw(",\"total_tokens\":");
        writer.integer(entry.total_tokens);
        writer.raw("}");
        pieces.extend(writer.piece());
    }
    if group.is_some() {
        close_group(writer, total);
        writer.raw("]}");
    }
    pieces
}

/// Writes the keys of the whole range, the one with the largest spend first.
pub(super) fn write_keys(writer: &mut Writer, mut all: DayEntries) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    merge(&mut all.entries, |_| ());
    let words = all.words.read().unwrap_or_else(PoisonError::into_inner);
    let mut keys: Vec<&[Entry]> = all.entries.chunk_by(|a, b| a.api_key == b.api_key).collect();
    let spend = |models: &[Entry]| models.iter().map(|entry| entry.spend).sum::<f64>();
    keys.sort_by(|a, b| spend(b).total_cmp(&spend(a)));
    let mut separator = "";
    for models in keys {
        let Some(first) = models.first() else { continue };
        writer.raw(separator);
        separator = ",";
        writer.raw("{\"api_key\":");
        writer.raw(words.json(first.api_key));
        write_sums(writer, spend(models), models.iter().map(|entry| (entry.prompt_tokens, entry.completion_tokens)));
        writer.raw(",\"model_details\":[");
        for (index, entry) in models.iter().enumerate() {
            writer.raw(if index == 0 { "{\"model\":" } else { ",{\"model\":" });
            writer.raw(words.json(entry.model));
            write_sums(writer, entry.spend, std::iter::once((entry.prompt_tokens, entry.completion_tokens)));
            writer.raw("}");
        }
        writer.raw("]}");
        pieces.extend(writer.piece());
    }
    pieces
}

fn write_sums(writer: &mut Writer, spend: f64, tokens: impl Iterator<Item = (i64, i64)>) {
    let (prompt, completion) = tokens.fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
    writer.raw(",\"total_cost\":");
    writer.amount(spend);
    writer.raw(",\"total_input_tokens\":");
    writer.integer(prompt);
    writer.raw(",\"total_output_tokens\":");
    writer.integer(completion);
}
