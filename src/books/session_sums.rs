//! The sums of sessions over those of their calls that only the archive has.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use litespend_archive::{Column, IdKind, OwnedRow, Query};
use tokio::time::Instant;

use crate::books::Error;
use crate::books::batches::Batch;
use crate::books::rows::ArchivedDays;
use crate::store::Connection;
use crate::store::log::filter::SpanType;
use crate::store::log::pages;
use crate::store::log::pages::SESSION_MODELS;
use crate::store::log::rows::SessionSums;

/// The most names of models that are collected of a session.
const MOST_MODELS: usize = 1_000;

/// The columns that the sums need.
const SUMMED: [Column; 12] = [
    Column::SessionId,
    Column::ApiKey,
    Column::Spend,
    Column::RequestDurationMs,
    Column::StartTime,
    Column::EndTime,
    Column::CallType,
    Column::CacheHit,
    Column::PromptTokens,
    Column::CompletionTokens,
    Column::TotalTokens,
    Column::Model,
];

/// The sums of a session with a key: the names of both come first.
type Sums = BTreeMap<(String, String), SessionSums>;

impl ArchivedDays {
    /// Those of these days that have calls of any of these sessions. `None` if there are none.
    pub async fn of_sessions(mut self, ids: &[&str]) -> Result<Option<Self>, Error> {
        self.narrow_to_any(IdKind::Session, ids).await?;
        Ok((!self.days.is_empty()).then_some(self))
    }

    /// Adds the archived calls of these sessions with these keys to their sums, without those that the log has. `None` if the
    /// archive has not answered by the deadline.
    pub async fn add_to_sessions(
        &self,
        connection: &mut Connection,
        (ids, keys): (&[&str], &[&str]),
        sums: Vec<SessionSums>,
        deadline: Instant,
    ) -> Result<Option<Vec<SessionSums>>, Error> {
        let name = |sums: &SessionSums| (sums.session_id.clone(), sums.api_key.clone());
        let mut sums: Sums = sums.into_iter().map(|sums| (name(&sums), sums)).collect();
        let mut models: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let equals = vec![(Column::SessionId, owned(ids)), (Column::ApiKey, owned(keys))];
        let mut rows = self.archive.scan(&self.days, Query { equals, columns: SUMMED.to_vec(), ..Query::default() });
        let mut batch = Batch::default();
        // The time of the database is limited otherwise, and none of its statements may be left half-way.
        while let Some(row) = match tokio::time::timeout_at(deadline, rows.try_next()).await {
            Ok(row) => row?,
            Err(_) => return Ok(None),
        } {
            if let Some(full) = batch.push(row) {
                self.add(connection, full, &mut sums, &mut models).await?;
            }
        }
        if let Some(rest) = batch.rest() {
            self.add(connection, rest, &mut sums, &mut models).await?;
        }
        name_models(connection, &mut sums, models).await?;
        Ok(Some(sums.into_values().collect()))
    }

    async fn add(
        &self,
        connection: &mut Connection,
        rows: Vec<OwnedRow>,
        sums: &mut Sums,
        models: &mut BTreeMap<(String, String), BTreeSet<String>>,
    ) -> Result<(), Error> {
        for row in self.of_archive_alone(connection, rows).await? {
            let name = (row.session_id.clone().unwrap_or_default(), row.api_key.clone());
            let names = models.entry(name.clone()).or_default();
            if !row.model.is_empty() && names.len() < MOST_MODELS && !names.contains(&row.model) {
                names.insert(row.model.clone());
            }
            let sum = sums.entry(name).or_insert_with_key(|(session_id, api_key)| SessionSums {
                session_id: session_id.clone(),
                api_key: api_key.clone(),
                ..SessionSums::default()
            });
            add(sum, &row);
        }
        Ok(())
    }
}

/// Adds a call. [`pages::session_sums`] has the same rules for the calls of the log.
fn add(sum: &mut SessionSums, row: &OwnedRow) {
    let is_of = |kind: SpanType| kind.call_types().is_some_and(|types| types.contains(&row.call_type.as_str()));
    let (is_tool, is_agent) = (is_of(SpanType::Mcp), is_of(SpanType::Agent));
    sum.calls += 1;
    sum.spend += row.spend;
    sum.duration_ms = sum.duration_ms.saturating_add(match (row.request_duration_ms, row.end_time) {
        (Some(duration), _) => i64::from(duration),
        (None, Some(end)) => rounded_to_milliseconds(end.saturating_sub(row.start_time)),
        (None, None) => 0,
    });
    if is_tool {
        sum.tool_calls += 1;
        sum.tool_spend += row.spend;
    }
    sum.agent_calls += i64::from(is_agent);
    sum.llm_calls += i64::from(!is_tool && !is_agent);
    sum.cache_hits += i64::from(row.cache_hit.as_deref().is_some_and(|text| text.eq_ignore_ascii_case("true")));
    sum.prompt_tokens += i64::from(row.prompt_tokens);
    sum.completion_tokens += i64::from(row.completion_tokens);
    sum.total_tokens += i64::from(row.total_tokens);
}

/// Halves are rounded away from zero, as by PostgreSQL.
fn rounded_to_milliseconds(microseconds: i64) -> i64 {
    let half = if microseconds < 0 { -500 } else { 500 };
    microseconds.saturating_add(half) / 1_000
}

/// Adds the names of models. The database orders them, and the first ones are kept.
async fn name_models(
    connection: &mut Connection,
    sums: &mut Sums,
    models: BTreeMap<(String, String), BTreeSet<String>>,
) -> Result<(), Error> {
    let most = usize::try_from(SESSION_MODELS + 1).unwrap_or(usize::MAX);
    let (names, lists): (Vec<_>, Vec<_>) = models.into_iter().unzip();
    let lists: Vec<Vec<String>> = lists
        .into_iter()
        .zip(&names)
        .map(|(list, name)| {
            let of_log = sums.get(name).map(|sums| sums.models.clone()).unwrap_or_default();
            list.into_iter().chain(of_log).collect()
        })
        .collect();
    for (name, mut sorted) in names.iter().zip(pages::sorted_models(connection, &lists).await?) {
        if let Some(sums) = sums.get_mut(name) {
            sorted.truncate(most);
            sums.models = sorted;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_as_the_database_rounds_them() {
        for (microseconds, expected) in [(0, 0), (499, 0), (500, 1), (1_499, 1), (-499, 0), (-500, -1), (2_500, 3)] {
            assert_eq!(rounded_to_milliseconds(microseconds), expected, "{microseconds}");
        }
    }
}
