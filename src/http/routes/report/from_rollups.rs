//! The report from the rollups: sorts the entries of a day into groups and writes them.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use chrono::NaiveDate;

use crate::http::error::ApiError;
use crate::http::routes::report::Grouping;
use crate::http::routes::report::writer::{DaysWriter, Usage, close_key, open_key, write_model};
use crate::http::stream::writer::name;
use crate::http::stream::writer::{Text, Writer};
use crate::store;
use crate::store::Connection;
use crate::store::DateRange;
use crate::store::rollups::days::{DayEntries, DaysRequest, SharedDictionary};
use crate::store::rollups::dictionary::Dictionary;
use crate::store::rollups::reads;
use crate::store::rollups::reads::{Entry, EntryFilter, Rollup};

impl Grouping {
    /// The request to the rollups for this grouping.
    pub(super) fn request(&self, range: DateRange) -> DaysRequest {
        let (rollup, team_id, end_user) = match self {
            Self::Team { team_id } | Self::User { team_id } | Self::Model { team_id } => {
                (Rollup::Usage, team_id.clone(), None)
            }
            Self::Customer => (Rollup::Customer, None, None),
            Self::Pair { team_id, customer_id } => (Rollup::Customer, Some(team_id.clone()), Some(customer_id.clone())),
        };
        let filter = EntryFilter { team_id, end_user, ..EntryFilter::default() };
        // Parts are sorted by end user, key and model, so groups of customers can be written while they arrive.
        DaysRequest { rollup, range, filter, in_parts: matches!(self, Self::Customer) }
    }
}

/// The request to the rollups for a report by key.
pub(super) fn keys_request(range: DateRange, api_key: Option<String>, user_id: Option<String>) -> DaysRequest {
    let filter = EntryFilter { api_key, user_id, ..EntryFilter::default() };
    DaysRequest { rollup: Rollup::Usage, range, filter, in_parts: false }
}

/// Display names of teams, by the team's dictionary ID, as JSON literals.
pub(super) struct Labels {
    aliases: HashMap<String, String>,
    by_number: HashMap<i32, Arc<str>>,
}

impl Labels {
    /// Reads the aliases of teams in the snapshot. Reads none if the grouping shows no teams.
    pub(super) async fn read(connection: &mut Connection, grouping: &Grouping) -> Result<Self, store::Error> {
        let aliases = if grouping.has_teams() { reads::team_aliases(connection).await? } else { HashMap::new() };
        Ok(Self { aliases, by_number: HashMap::new() })
    }

    /// The team's alias, or `Unassigned Team`.
    fn of(&mut self, team: i32, dictionary: &Dictionary) -> Arc<str> {
        let aliases = &self.aliases;
        let label = self.by_number.entry(team).or_insert_with(|| {
            let id: Option<String> = serde_json::from_str(dictionary.json(team)).unwrap_or_default();
            let alias = id.and_then(|id| aliases.get(&id)).map_or("Unassigned Team", String::as_str);
            Arc::from(serde_json::Value::from(alias).to_string())
        });
        Arc::clone(label)
    }
}

/// Merges entries with the same group, key and model, and drops those without a remaining request.
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

/// Number of entries that are written between checks for a full chunk: about half a chunk.
pub(super) const AT_ONCE: usize = 200;

/// Writes the days of a report. A day arrives whole or in sorted parts.
pub(super) struct EntriesWriter<'a> {
    grouping: &'a Grouping,
    labels: Labels,
    days: DaysWriter<'a, i32>,
    day: Option<NaiveDate>,
    dictionary: Option<SharedDictionary>,
    /// The last entry so far. It is held back because the next part may add to it.
    held: Option<Entry>,
    /// Names of the day's teams (with the customer, if grouped by both), and their indexes in this list. Teams with the
    /// same alias form one group.
    names: Vec<(Arc<str>, Arc<str>)>,
    numbers: HashMap<Arc<str>, i32>,
}

impl<'a> EntriesWriter<'a> {
    pub(super) fn new(grouping: &'a Grouping, labels: Labels) -> Self {
        Self {
            grouping,
            labels,
            days: DaysWriter::new(grouping),
            day: None,
            dictionary: None,
            held: None,
            names: Vec::new(),
            numbers: HashMap::new(),
        }
    }

    /// Prepares the next part, and returns its entries in the order in which they are to be written. If the part is of
    /// a new day, first ends the previous day.
    pub(super) fn take(&mut self, writer: &mut Writer, mut part: DayEntries) -> Result<Vec<Entry>, ApiError> {
        if self.day != Some(part.day) {
            self.close(writer)?;
            self.day = Some(part.day);
        }
        if let Grouping::Model { .. } = self.grouping {
            for entry in &mut part.entries {
                entry.subject = entry.model;
            }
        }
        if self.grouping.has_teams() {
            let dictionary = part.dictionary.read();
            for entry in &mut part.entries {
                let label = self.labels.of(entry.team, &dictionary);
                let customer =
                    if matches!(self.grouping, Grouping::Pair { .. }) { dictionary.json(entry.subject) } else { "" };
                let names = &mut self.names;
                entry.subject = *self.numbers.entry(Arc::clone(&label)).or_insert_with(|| {
                    names.push((label, Arc::from(customer)));
                    i32::try_from(names.len()).unwrap_or(i32::MAX) - 1
                });
            }
        }
        part.entries.extend(self.held.take());
        merge(&mut part.entries, |entry| entry.subject);
        self.held = part.entries.pop();
        if let Some(held) = &self.held {
            // The entry is written after the next part was read, so its strings must stay.
            let numbers = [held.subject, held.api_key, held.model];
            part.dictionary.write().hold(numbers);
        }
        self.dictionary = Some(part.dictionary);
        Ok(part.entries)
    }

    /// Writes entries of the current day.
    pub(super) fn write(&mut self, writer: &mut Writer, entries: &[Entry]) -> Result<(), ApiError> {
        let Some(dictionary) = self.dictionary.clone() else { return Ok(()) };
        let dictionary = dictionary.read();
        let (groups, member_name) = (&self.names, self.grouping.member_name().unwrap_or(name!("customer")));
        for entry in entries {
            let usage = Usage {
                model: Text::Json(dictionary.json(entry.model)),
                api_key: Text::Json(dictionary.json(entry.api_key)),
                spend: entry.spend,
                total_tokens: entry.total_tokens,
            };
            let names = |writer: &mut Writer, group: &i32| {
                let Some((team, customer)) = usize::try_from(*group).ok().and_then(|index| groups.get(index)) else {
                    writer.name(member_name);
                    return writer.text(Text::Json(dictionary.json(*group)));
                };
                writer.name(name!("team_name"));
                writer.text(Text::Json(team))?;
                if !customer.is_empty() {
                    writer.name(name!("customer"));
                    writer.text(Text::Json(customer))?;
                }
                Ok(())
            };
            self.days.write(writer, entry.day, entry.subject, names, &usage)?;
        }
        Ok(())
    }

    /// Ends the current day. Writes nothing if the day had no entries.
    pub(super) fn close(&mut self, writer: &mut Writer) -> Result<(), ApiError> {
        if let Some(entry) = self.held.take() {
            self.write(writer, &[entry])?;
        }
        self.days.close_day(writer);
        self.names.clear();
        self.numbers.clear();
        Ok(())
    }
}

/// Writes the keys of the whole range, sorted by descending spend. Returns the full chunks.
pub(super) fn write_keys(writer: &mut Writer, mut all: DayEntries) -> Result<Vec<Bytes>, ApiError> {
    let mut chunks = Vec::new();
    merge(&mut all.entries, |_| ());
    let dictionary = all.dictionary.read();
    let mut keys: Vec<&[Entry]> = all.entries.chunk_by(|a, b| a.api_key == b.api_key).collect();
    let spend = |models: &[Entry]| models.iter().map(|entry| entry.spend).sum::<f64>();
    keys.sort_by(|a, b| spend(b).total_cmp(&spend(a)));
    for models in keys {
        let Some(first) = models.first() else { continue };
        let tokens = models.iter().fold((0, 0), |(prompt, completion), entry| {
            (prompt + entry.prompt_tokens, completion + entry.completion_tokens)
        });
        open_key(writer, Text::Json(dictionary.json(first.api_key)), spend(models), tokens)?;
        for entry in models {
            let tokens = (entry.prompt_tokens, entry.completion_tokens);
            write_model(writer, Text::Json(dictionary.json(entry.model)), entry.spend, tokens)?;
        }
        close_key(writer);
        chunks.extend(writer.chunk());
    }
    Ok(chunks)
}
