//! Rows of the archive in the form of the log's, and the merging of both. The log wins: a row that both have is the log's.
//! [`merging`] says which rows are the same call.

use std::collections::{BTreeSet, VecDeque};

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use litespend_archive::{Archive, Column, IdKind, Order, OwnedRow, Query};

use crate::books::Error;
use crate::books::batches::{BATCH_BYTES, bytes_of};
use crate::store::books::merging;
use crate::store::log::fields::{JsonField, shortened};
use crate::store::log::{LogPosition, ROW_BOUNDS, SpendLog, SpendLogFilter, Timestamp};
use crate::store::{Connection, DateRange};

/// The closed days that a read covers, with their revisions in the archive.
#[derive(Clone, Debug)]
pub struct ArchivedDays {
    pub(super) archive: Archive,
    pub(super) days: Vec<(NaiveDate, u32)>,
    /// Whether the database notes which rows were moved.
    pub(super) moved: bool,
}

impl ArchivedDays {
    /// These days of an archive, in ascending order. With `moved`, the database notes which rows were moved.
    pub fn new(archive: Archive, days: Vec<(NaiveDate, u32)>, moved: bool) -> Self {
        Self { archive, days, moved }
    }

    /// Those of the days that lie in a range. `None` if there are none.
    pub fn within(&self, range: DateRange) -> Option<Self> {
        let is_within = |(day, _): &(NaiveDate, u32)| (range.start..=range.end).contains(day);
        let days: Vec<_> = self.days.iter().copied().filter(is_within).collect();
        (!days.is_empty()).then(|| Self { archive: self.archive.clone(), days, moved: self.moved })
    }

    /// The first instant after the newest of the days. `None` if there are no days.
    pub fn end(&self) -> Option<NaiveDateTime> {
        self.days.last().map(|(day, _)| crate::store::day_after(*day))
    }

    /// Leaves out the days that have no row of an ID.
    pub(super) async fn narrow(&mut self, kind: IdKind, value: &str) -> Result<(), Error> {
        let found = self.archive.find(kind, value, &self.days).await?;
        self.days.retain(|(day, _)| found.contains(day));
        Ok(())
    }

    /// Leaves out the days that have no row of any of these IDs.
    pub(super) async fn narrow_to_any(&mut self, kind: IdKind, values: &[&str]) -> Result<(), Error> {
        let mut found = BTreeSet::new();
        for value in values {
            found.extend(self.archive.find(kind, value, &self.days).await?);
        }
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
        let mut equals_any = Vec::new();
        if let Some(id) = &filter.request_id {
            let mut found = self.archive.find(IdKind::RequestId, id, &self.days).await?;
            let by_call = self.archive.find(IdKind::CallId, id, &self.days).await?;
            if by_call.is_empty() {
                equals.push((Column::RequestId, vec![id.clone()]));
            } else {
                equals_any =
                    [Column::RequestId, Column::LitellmCallId].map(|column| (column, vec![id.clone()])).to_vec();
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
            equals_any,
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

pub(super) fn microseconds(time: NaiveDateTime) -> i64 {
    time.and_utc().timestamp_micros()
}

pub(super) fn timestamp(microseconds: i64) -> Timestamp {
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
