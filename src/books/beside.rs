//! Archived rows beside the log's, for pages of the dashboard's log: its statements filter, sort and group both.

use std::sync::Arc;

use chrono::NaiveDate;
use futures_util::TryStreamExt;
use litespend_archive::{Column, IdKind, Order, OwnedRow, Query, RowPredicate};

use crate::books::Error;
use crate::books::batches::Batch;
use crate::books::rows::{ArchivedDays, NO_BODY, microseconds, position};
use crate::identity::Scope;
use crate::store::Connection;
use crate::store::books::beside::Beside;
use crate::store::books::merging;
use crate::store::log::LogPosition;
use crate::store::log::filter;
use crate::store::log::filter::LogFilter;

/// The most archived rows that one page of the dashboard's log may look at.
const MOST_BESIDE: usize = 100_000;

/// The columns of a list of rows: all but messages, responses and requests.
fn listed_columns() -> Vec<Column> {
    let is_listed =
        |column: &Column| !matches!(column, Column::Messages | Column::Response | Column::ProxyServerRequest);
    Column::ALL.into_iter().filter(is_listed).collect()
}

impl ArchivedDays {
    /// Puts the archived rows that may match a filter beside the log's, for the statements of a transaction that is rolled
    /// back. The statements apply the filter themselves.
    pub async fn put_beside(self, connection: &mut Connection, filter: &LogFilter) -> Result<(), Error> {
        let mut beside = None;
        let mut batch = Batch::default();
        let mut count = 0;
        for query in self.queries(filter).await? {
            let (days, query) = query;
            let mut rows = self.archive.scan(&days, query);
            while let Some(row) = rows.try_next().await? {
                count += 1;
                if count > MOST_BESIDE {
                    return Err(Error::Refused(format!(
                        "more than {MOST_BESIDE} archived rows may match: choose a shorter time or further filters, or set \
                         archive=false"
                    )));
                }
                if let Some(full) = batch.push(row) {
                    self.add(&mut beside, connection, full).await?;
                }
            }
        }
        if let Some(rest) = batch.rest() {
            self.add(&mut beside, connection, rest).await?;
        }
        if let Some(beside) = beside {
            beside.finish(connection).await?;
        }
        Ok(())
    }

    /// Adds the rows that the log does not have and that were not moved. If there are any, the table for them is needed.
    async fn add(
        &self,
        beside: &mut Option<Beside>,
        connection: &mut Connection,
        mut rows: Vec<OwnedRow>,
    ) -> Result<(), Error> {
        let positions: Vec<LogPosition> = rows.iter().map(position).collect();
        let superseded = merging::superseded(connection, &positions, self.moved).await?;
        let mut place = 0;
        rows.retain(|_| {
            place += 1;
            !superseded.contains(&(place - 1))
        });
        if rows.is_empty() {
            return Ok(());
        }
        let beside = match beside {
            Some(beside) => beside,
            None => beside.insert(Beside::begin(connection).await?),
        };
        Ok(beside.add(connection, &rows).await?)
    }

    /// Queries that find every archived row that a filter can match, each row once.
    async fn queries(&self, filter: &LogFilter) -> Result<Vec<(Vec<(NaiveDate, u32)>, Query)>, Error> {
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
        let columns = if filter.request_id.is_some() { Column::ALL.to_vec() } else { listed_columns() };
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
            order: Order::Descending,
            equals,
            min_spend: filter.min_spend,
            max_spend: filter.max_spend,
            predicate: predicate(&filter.scope, ids),
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

/// The condition that a row belongs to the scope and has one of the IDs.
fn predicate(scope: &Scope, ids: Vec<String>) -> Option<RowPredicate> {
    if *scope == Scope::All && ids.is_empty() {
        return None;
    }
    let mut columns = if ids.is_empty() { Vec::new() } else { SEARCHED.to_vec() };
    columns.extend([Column::User, Column::TeamId]);
    columns.sort();
    columns.dedup();
    let scope = scope.clone();
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
            is_visible && ids.iter().all(has)
        }),
    })
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
