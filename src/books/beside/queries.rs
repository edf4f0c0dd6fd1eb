//! The queries that find the archived rows of a page.

use std::sync::Arc;

use chrono::NaiveDate;
use litespend_archive::{Column, IdKind, Query, RowPredicate, RowView};

use crate::books::Error;
use crate::books::beside::needed::Needed;
use crate::books::rows::{ArchivedDays, NO_BODY, microseconds};
use crate::identity::Scope;
use crate::store::log::filter;
use crate::store::log::filter::{LogFilter, Outcomes, SpanType};

impl ArchivedDays {
    /// Queries that find every archived row that a filter can match, each row once. The last one may find many.
    pub(super) async fn queries(
        &self,
        filter: &LogFilter,
        needed: Needed<'_>,
    ) -> Result<Vec<(Vec<(NaiveDate, u32)>, Query)>, Error> {
        let mut days = self.clone();
        let mut equals = Vec::new();
        for (column, value) in &filter.equal {
            let (column, kind) = archived_column(*column);
            if let Some(kind) = kind {
                days.narrow(kind, value).await?;
            }
            equals.push((column, vec![value.clone()]));
        }
        // One row is shown with all its texts, a list without.
        let columns = if filter.names_request() { Column::ALL.to_vec() } else { Column::without_bodies().collect() };
        let mut ids = Vec::new();
        let window = filter.window.or(filter.search.as_ref().map(|(_, from, to)| (*from, *to)));
        let mut queries = Vec::new();
        if let Some((id, from, to)) = &filter.search {
            // The request ID matches at any time, and other IDs within the times.
            let mut outside = days.clone();
            outside.narrow(IdKind::RequestId, id).await?;
            let (from, to) = (microseconds(*from), microseconds(*to));
            let equals = vec![(Column::RequestId, vec![id.clone()])];
            let by_id = Query {
                equals,
                columns: columns.clone(),
                missing_bodies: Some(NO_BODY.to_owned()),
                ..Query::default()
            };
            if from > to {
                queries.push((outside.days, by_id));
            } else {
                queries.push((outside.days.clone(), Query { to: Some(from), ..by_id.clone() }));
                queries.push((outside.days, Query { from: Some(to.saturating_add(1)), ..by_id }));
            }
            ids.push(id.clone());
        }
        let query = Query {
            from: window.map(|(from, _)| microseconds(from)),
            to: window.map(|(_, to)| microseconds(to).saturating_add(1)),
            order: needed.order(),
            equals,
            min_spend: filter.min_spend,
            max_spend: filter.max_spend,
            predicate: predicate(filter, needed.outcomes(), ids),
            columns,
            missing_bodies: Some(NO_BODY.to_owned()),
            ..Query::default()
        };
        let Some(id) = &filter.request_id else {
            queries.push((days.days, query));
            return Ok(queries);
        };
        // The days and files of an ID are found by it. A row with this ID may also have it as its call ID.
        for (kind, column) in [(IdKind::RequestId, Column::RequestId), (IdKind::CallId, Column::LitellmCallId)] {
            let mut of_kind = days.clone();
            of_kind.narrow(kind, id).await?;
            let mut query = query.clone();
            query.equals.push((column, vec![id.clone()]));
            if column == Column::LitellmCallId {
                query.predicate = Some(without_id(query.predicate, id.clone()));
            }
            if !of_kind.days.is_empty() {
                queries.push((of_kind.days, query));
            }
        }
        Ok(queries)
    }
}

/// The columns that a search for an ID looks at.
const SEARCHED: [Column; 8] = [
    Column::RequestId,
    Column::LitellmCallId,
    Column::ApiKey,
    Column::TeamId,
    Column::User,
    Column::EndUser,
    Column::SessionId,
    Column::ModelId,
];

/// The condition that a row belongs to the scope of a filter, has all of these IDs, and may match the filter's details. Which
/// rows do match is the database's decision.
fn predicate(filter: &LogFilter, outcomes: Outcomes, ids: Vec<String>) -> Option<RowPredicate> {
    let details = Details::of(filter, outcomes);
    let mut columns = details.columns();
    if filter.scope != Scope::All {
        columns.extend([Column::User, Column::TeamId]);
    }
    if !ids.is_empty() {
        columns.extend(SEARCHED);
    }
    if columns.is_empty() {
        return None;
    }
    columns.sort();
    columns.dedup();
    let scope = filter.scope.clone();
    Some(RowPredicate {
        columns,
        test: Arc::new(move |row| {
            let is_visible = match &scope {
                Scope::All => true,
                Scope::Owned { user_id, team_ids } => {
                    user_id.is_some() && row.text(Column::User) == user_id.as_deref()
                        || row.text(Column::TeamId).is_some_and(|team| team_ids.iter().any(|id| id == team))
                }
            };
            let has = |id: &String| SEARCHED.iter().any(|column| row.text(*column) == Some(id.as_str()));
            is_visible && ids.iter().all(has) && details.may_match(row)
        }),
    })
}

/// Conditions of a filter that leave out most rows before the database sees them.
struct Details {
    status: Option<String>,
    cache_hit: Option<bool>,
    call_types: Option<&'static [&'static str]>,
    session_part: Option<String>,
    /// Texts that the metadata contains.
    in_metadata: Vec<String>,
}

impl Details {
    fn of(filter: &LogFilter, outcomes: Outcomes) -> Self {
        let mut in_metadata = Vec::new();
        if filter.error_code.is_some() || filter.error_message.is_some() {
            in_metadata.push("\"error_information\"".to_owned());
        }
        // Other characters may be written in several ways.
        let plain = |text: &&String| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        in_metadata.extend(filter.error_code.iter().filter(plain).cloned());
        in_metadata.extend(filter.error_message.iter().filter(plain).cloned());
        in_metadata.extend(filter.key_alias.iter().filter(plain).cloned());
        if filter.client_token.is_some() {
            in_metadata.push("\"used_client_oauth_token\"".to_owned());
        }
        Self {
            // The status of a session is that of one of its rows.
            status: filter.status.clone().filter(|_| outcomes == Outcomes::OfRows),
            cache_hit: filter.cache_hit,
            call_types: filter.span_type.and_then(SpanType::call_types),
            session_part: filter.session_part.clone(),
            in_metadata,
        }
    }

    fn columns(&self) -> Vec<Column> {
        [
            (self.status.is_some(), Column::Status),
            (self.cache_hit.is_some(), Column::CacheHit),
            (self.call_types.is_some(), Column::CallType),
            (self.session_part.is_some(), Column::SessionId),
            (!self.in_metadata.is_empty(), Column::Metadata),
        ]
        .into_iter()
        .filter_map(|(is_read, column)| is_read.then_some(column))
        .collect()
    }

    fn may_match(&self, row: &RowView<'_>) -> bool {
        let has_status = |status: &String| match row.text(Column::Status) {
            Some(of_row) => of_row == status,
            None => status == "success",
        };
        let is_hit = |hit| hit == row.text(Column::CacheHit).is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let is_call = |types: &[&str]| row.text(Column::CallType).is_some_and(|call| types.contains(&call));
        let has_part = |part: &String| row.text(Column::SessionId).is_some_and(|id| id.contains(part.as_str()));
        let metadata = || row.text(Column::Metadata).unwrap_or_default();
        self.status.as_ref().is_none_or(has_status)
            && self.cache_hit.is_none_or(is_hit)
            && self.call_types.is_none_or(is_call)
            && self.session_part.as_ref().is_none_or(has_part)
            && self.in_metadata.iter().all(|text| metadata().contains(text.as_str()))
    }
}

/// A condition, and that the row does not have this request ID.
fn without_id(condition: Option<RowPredicate>, id: String) -> RowPredicate {
    let mut columns = condition.as_ref().map_or_else(Vec::new, |condition| condition.columns.clone());
    columns.push(Column::RequestId);
    columns.sort();
    columns.dedup();
    RowPredicate {
        columns,
        test: Arc::new(move |row| {
            row.text(Column::RequestId) != Some(id.as_str())
                && condition.as_ref().is_none_or(|condition| (condition.test)(row))
        }),
    }
}

/// The archive's column for a column of a filter, and its kind of ID if days can be looked up by it.
fn archived_column(column: filter::Column) -> (Column, Option<IdKind>) {
    match column {
        filter::Column::Team => (Column::TeamId, None),
        filter::Column::User => (Column::User, Some(IdKind::User)),
        filter::Column::ApiKey => (Column::ApiKey, Some(IdKind::ApiKey)),
        filter::Column::Model => (Column::Model, None),
        filter::Column::ModelId => (Column::ModelId, None),
        filter::Column::ModelGroup => (Column::ModelGroup, None),
        filter::Column::EndUser => (Column::EndUser, Some(IdKind::EndUser)),
        filter::Column::Session => (Column::SessionId, Some(IdKind::Session)),
    }
}
