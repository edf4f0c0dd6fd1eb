//! Rows of the archive in the form of the log's, and the merging of both. The log wins: a row that both have is the log's.
//! [`merging`] says which rows are the same call.

use std::collections::VecDeque;
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use litespend_archive::{Archive, Column, IdKind, Order, OwnedRow, Query, RowPredicate};

use crate::books::Error;
use crate::books::batches::{BATCH_BYTES, Batch, bytes_of};
use crate::identity::Scope;
use crate::store::Connection;
use crate::store::books::merging;
use crate::store::books::restoring::Beside;
use crate::store::log::fields::{JsonField, shortened};
use crate::store::log::filter;
use crate::store::log::filter::LogFilter;
use crate::store::log::{LogPosition, ROW_BOUNDS, SpendLog, SpendLogFilter, Timestamp};

/// The closed days that a read covers, with their revisions in the archive.
#[derive(Clone, Debug)]
pub struct ArchivedDays {
    archive: Archive,
    days: Vec<(NaiveDate, u32)>,
    /// Whether the database notes which rows were moved.
    moved: bool,
}

impl ArchivedDays {
    /// These days of an archive, in ascending order. With `moved`, the database notes which rows were moved.
    pub fn new(archive: Archive, days: Vec<(NaiveDate, u32)>, moved: bool) -> Self {
        Self { archive, days, moved }
    }

    /// The first instant after the newest of the days. `None` if there are no days.
    pub fn end(&self) -> Option<NaiveDateTime> {
        self.days.last().map(|(day, _)| crate::store::day_after(*day))
    }

    /// Leaves out the days that have no row of an ID.
    async fn narrow(&mut self, kind: IdKind, value: &str) -> Result<(), Error> {
        let found = self.archive.find(kind, value, &self.days).await?;
        self.days.retain(|(day, _)| found.contains(day));
        Ok(())
    }

    /// The rows that match a filter, newest first.
    pub async fn rows(mut self, filter: &SpendLogFilter, columns: Vec<Column>) -> Result<ArchivedRows, Error> {
        let mut equals = Vec::new();
        for (kind, column, value) in
            [(IdKind::ApiKey, Column::ApiKey, &filter.api_key), (IdKind::User, Column::User, &filter.user_id)]
        {
            if let Some(value) = value {
                self.narrow(kind, value).await?;
                equals.push((column, vec![value.clone()]));
            }
        }
        let mut predicate = None;
        if let Some(id) = &filter.request_id {
            let mut found = self.archive.find(IdKind::RequestId, id, &self.days).await?;
            let by_call = self.archive.find(IdKind::CallId, id, &self.days).await?;
            if by_call.is_empty() {
                equals.push((Column::RequestId, vec![id.clone()]));
            } else {
                predicate = Some(either_id(id.clone()));
            }
            found.extend(by_call);
            self.days.retain(|(day, _)| found.contains(day));
        }
        let query = Query {
            from: filter.from.map(microseconds),
            to: filter.to.map(|to| microseconds(to).saturating_add(1)),
            order: Order::Descending,
            after: filter.after.as_ref().map(|after| (microseconds(after.start_time), after.request_id.clone())),
            equals,
            predicate,
            columns,
            missing_bodies: Some(NO_BODY.to_owned()),
            ..Query::default()
        };
        Ok(ArchivedRows { days: self, query, scan: None, read: 0, is_at_end: false })
    }
}

impl ArchivedDays {
    /// These days, if they have rows that match a filter for one request.
    pub async fn with_rows(self, filter: &SpendLogFilter) -> Result<Option<Self>, Error> {
        let mut rows = self.clone().rows(filter, Column::ALL.to_vec()).await?;
        Ok(rows.next(FEWEST).await?.map(|_| self))
    }
}

/// The archived rows of an answer. They are read in pieces, so that what the log has is looked up for many rows at once.
pub struct ArchivedRows {
    days: ArchivedDays,
    /// Its limit is the number of rows that one scan reads.
    query: Query,
    scan: Option<BoxStream<'static, Result<OwnedRow, Error>>>,
    /// Number of rows that the scan gave.
    read: usize,
    is_at_end: bool,
}

/// Some archived rows in their order.
#[derive(Debug, Default)]
pub struct Piece {
    /// Those of the rows that belong into an answer.
    pub rows: VecDeque<OwnedRow>,
    /// The position of the last row of the piece, whether or not it belongs into an answer. `None` if no rows come after.
    pub end: Option<LogPosition>,
}

/// The most rows of a piece.
const PIECE: usize = 2_000;

/// The fewest rows that a scan is started for.
const FEWEST: usize = 100;

impl ArchivedRows {
    /// The next rows, about as many as `wanted`, without those that the log has or that were moved. Without a connection, the
    /// log has none of them.
    pub async fn piece(&mut self, connection: Option<&mut Connection>, wanted: usize) -> Result<Piece, Error> {
        let most = wanted.clamp(1, PIECE);
        let mut piece = Piece::default();
        let mut bytes = 0;
        while piece.rows.len() < most && bytes < BATCH_BYTES {
            let Some(row) = self.next(wanted).await? else { break };
            bytes += bytes_of(&row);
            piece.rows.push_back(row);
        }
        if !self.is_at_end {
            piece.end = piece.rows.back().map(position);
        }
        if let Some(connection) = connection {
            let positions: Vec<LogPosition> = piece.rows.iter().map(position).collect();
            let superseded = merging::superseded(connection, &positions, self.days.moved).await?;
            let rows = piece.rows.into_iter().enumerate();
            piece.rows = rows.filter(|(place, _)| !superseded.contains(place)).map(|(_, row)| row).collect();
        }
        Ok(piece)
    }

    /// Whether the log is needed for the rows that are left. They started at this time or before.
    pub async fn need_log(&mut self, connection: &mut Connection, time: NaiveDateTime) -> Result<bool, Error> {
        Ok(merging::reaches_back_to(connection, time, self.days.moved).await?)
    }

    /// The next row. A scan reads as many rows as are wanted. If the log has many of them, larger scans follow.
    async fn next(&mut self, wanted: usize) -> Result<Option<OwnedRow>, Error> {
        loop {
            if self.is_at_end {
                return Ok(None);
            }
            let scan = match &mut self.scan {
                Some(scan) => scan,
                None => {
                    let larger = self.query.limit.map_or(0, |limit| limit.saturating_mul(2));
                    self.query.limit = Some(wanted.max(larger).max(FEWEST));
                    self.read = 0;
                    let rows = self.days.archive.scan(&self.days.days, self.query.clone());
                    self.scan.insert(rows.map_err(Error::from).boxed())
                }
            };
            if let Some(row) = scan.try_next().await? {
                self.read += 1;
                self.query.after = Some((row.start_time, row.request_id.clone()));
                return Ok(Some(row));
            }
            self.scan = None;
            self.is_at_end = self.query.limit.is_some_and(|limit| self.read < limit);
        }
    }
}

/// LiteLLM's default for messages, responses and requests that are not kept.
pub const NO_BODY: &str = "{}";

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

/// The condition that a row has this request ID or call ID.
fn either_id(id: String) -> RowPredicate {
    RowPredicate {
        columns: vec![Column::RequestId, Column::LitellmCallId],
        test: Arc::new(move |row| {
            row.text(Column::RequestId) == Some(id.as_str()) || row.text(Column::LitellmCallId) == Some(id.as_str())
        }),
    }
}

fn microseconds(time: NaiveDateTime) -> i64 {
    time.and_utc().timestamp_micros()
}

fn timestamp(microseconds: i64) -> Timestamp {
    Timestamp(DateTime::from_timestamp_micros(microseconds).unwrap_or_default().naive_utc())
}

/// The position of a row of the archive.
pub fn position(row: &OwnedRow) -> LogPosition {
    LogPosition { start_time: timestamp(row.start_time).0, request_id: row.request_id.clone() }
}

/// Whether one position comes before another in the order of the log's rows, newest first.
pub fn is_before(one: &LogPosition, other: &LogPosition) -> bool {
    (one.start_time, &one.request_id) > (other.start_time, &other.request_id)
}

/// The row as the log had it. What is too long is left out or shortened, as in rows of the log.
pub fn log_row(row: OwnedRow) -> SpendLog {
    let text = |text: Option<String>| text.map(shortened);
    let mut row = SpendLog {
        request_id: row.request_id,
        call_type: shortened(row.call_type),
        api_key: shortened(row.api_key),
        spend: row.spend,
        total_tokens: row.total_tokens,
        prompt_tokens: row.prompt_tokens,
        completion_tokens: row.completion_tokens,
        start_time: timestamp(row.start_time),
        end_time: timestamp(row.end_time.unwrap_or(row.start_time)),
        request_duration_ms: row.request_duration_ms,
        completion_start_time: row.completion_start_time.map(timestamp),
        model: shortened(row.model),
        model_id: text(row.model_id),
        model_group: text(row.model_group),
        custom_llm_provider: text(row.custom_llm_provider),
        api_base: text(row.api_base),
        user: text(row.user),
        metadata: JsonField::from_text(row.metadata),
        cache_hit: text(row.cache_hit),
        cache_key: text(row.cache_key),
        request_tags: JsonField::from_text(row.request_tags),
        team_id: text(row.team_id),
        organization_id: text(row.organization_id),
        end_user: text(row.end_user),
        requester_ip_address: text(row.requester_ip_address),
        messages: JsonField::from_text(row.messages),
        response: JsonField::from_text(row.response),
        session_id: text(row.session_id),
        status: text(row.status),
        mcp_namespaced_tool_name: text(row.mcp_namespaced_tool_name),
        billing_agent_id: text(row.billing_agent_id),
        agent_id: text(row.agent_id),
        proxy_server_request: JsonField::from_text(row.proxy_server_request),
        litellm_call_id: text(row.litellm_call_id),
        created_at: row.created_at.map(timestamp),
        updated_at: row.updated_at.map(timestamp),
    };
    ROW_BOUNDS.apply(&mut [
        &mut row.metadata,
        &mut row.request_tags,
        &mut row.messages,
        &mut row.response,
        &mut row.proxy_server_request,
    ]);
    row
}
