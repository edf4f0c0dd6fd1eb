//! Reading rows: filters, an order, and a place to continue from.

mod cursor;
mod group;
mod prune;

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use chrono::NaiveDate;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::task::JoinHandle;

use crate::archive::{Archive, Inner};
use crate::columns::{Column, OwnedRow};
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::row::RowView;
use crate::scan::cursor::DayCursor;
use crate::write::microseconds_of;

/// The most days that are read at once.
const MOST_AHEAD: usize = 4;
/// Up to this many rows, the first day is read alone, because it may well have them all.
const FEW: usize = 200;

/// The order of rows: by `startTime`, and by the bytes of `request_id` where the times are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Oldest first.
    #[default]
    Ascending,
    /// Newest first.
    Descending,
}

/// A condition in code.
#[derive(Clone)]
pub struct RowPredicate {
    /// The columns that the condition reads. It sees no others.
    pub columns: Vec<Column>,
    /// Whether a row fulfils the condition.
    pub test: Arc<dyn Fn(&RowView<'_>) -> bool + Send + Sync>,
}

impl fmt::Debug for RowPredicate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RowPredicate").field("columns", &self.columns).finish_non_exhaustive()
    }
}

/// Which rows to read, and what of them. A row must fulfil every condition.
#[derive(Debug, Clone)]
pub struct Query {
    /// The smallest `startTime`, in microseconds since 1970-01-01 UTC.
    pub from: Option<i64>,
    /// The `startTime` before which rows lie, in microseconds since 1970-01-01 UTC.
    pub to: Option<i64>,
    /// The order of the rows.
    pub order: Order,
    /// `startTime` and `request_id` of the last row of an earlier answer: only rows after it in the order are read.
    pub after: Option<(i64, String)>,
    /// Text columns, each with the values of which it must have one. Null is never equal to a value.
    pub equals: Vec<(Column, Vec<String>)>,
    /// The same, but a row needs the value of one of these columns only. All rows match if there are none.
    pub equals_any: Vec<(Column, Vec<String>)>,
    /// The smallest `spend`, in USD. As in PostgreSQL, NaN equals itself and is larger than every other number.
    pub min_spend: Option<f64>,
    /// The largest `spend`, in USD, in the same order.
    pub max_spend: Option<f64>,
    /// The smallest `request_duration_ms`. Rows without one are left out.
    pub min_duration_ms: Option<i32>,
    /// The largest `request_duration_ms`. Rows without one are left out.
    pub max_duration_ms: Option<i32>,
    /// A further condition.
    pub predicate: Option<RowPredicate>,
    /// The columns that are read. `startTime` and `request_id` always are.
    pub columns: Vec<Column>,
    /// What rows have as `messages`, `response` and `proxy_server_request` if their day was archived without these columns.
    pub missing_bodies: Option<String>,
    /// The most rows to read.
    pub limit: Option<usize>,
}

impl Default for Query {
    /// All rows with all columns, oldest first.
    fn default() -> Self {
        Self {
            from: None,
            to: None,
            order: Order::Ascending,
            after: None,
            equals: Vec::new(),
            equals_any: Vec::new(),
            min_spend: None,
            max_spend: None,
            min_duration_ms: None,
            max_duration_ms: None,
            predicate: None,
            columns: Column::ALL.to_vec(),
            missing_bodies: None,
            limit: None,
        }
    }
}

/// A query with what follows from it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    query: Query,
    /// The microseconds that rows may start in.
    times: std::ops::Range<i64>,
    /// Columns that conditions read, without `startTime`.
    filter_columns: Vec<Column>,
    /// Columns that rows are made of.
    output_columns: Vec<Column>,
}

impl Plan {
    fn new(query: Query) -> Result<Self> {
        let mut times = query.from.unwrap_or(i64::MIN)..query.to.unwrap_or(i64::MAX);
        match (&query.after, query.order) {
            (Some((time, _)), Order::Ascending) => times.start = times.start.max(*time),
            (Some((time, _)), Order::Descending) => times.end = times.end.min(time.saturating_add(1)),
            (None, _) => {}
        }
        let mut filter_columns = Vec::new();
        for (column, _) in query.equals.iter().chain(&query.equals_any) {
            if !column.is_text() {
                return Err(Error::schema(column.name(), "only columns of text can be compared with values"));
            }
            filter_columns.push(*column);
        }
        if query.min_spend.is_some() || query.max_spend.is_some() {
            filter_columns.push(Column::Spend);
        }
        if query.min_duration_ms.is_some() || query.max_duration_ms.is_some() {
            filter_columns.push(Column::RequestDurationMs);
        }
        filter_columns.extend(query.predicate.iter().flat_map(|predicate| predicate.columns.iter().copied()));
        let mut output_columns = query.columns.clone();
        output_columns.extend([Column::StartTime, Column::RequestId]);
        for columns in [&mut filter_columns, &mut output_columns] {
            columns.sort();
            columns.dedup();
        }
        Ok(Self { query, times, filter_columns, output_columns })
    }

    /// The same for a day that was archived without messages, responses and requests: these columns are not read.
    fn without_bodies(&self) -> Self {
        let mut plan = self.clone();
        plan.output_columns.retain(|column| !column.is_body());
        plan
    }

    fn descending(&self) -> bool {
        self.query.order == Order::Descending
    }

    fn covers(&self, day: NaiveDate) -> bool {
        let day = microseconds_of(day);
        day.start < self.times.end && self.times.start < day.end && !self.times.is_empty()
    }

    /// Whether a row comes after the place to continue from.
    fn is_after(&self, time: i64, id: &str) -> bool {
        match (&self.query.after, self.query.order) {
            (None, _) => true,
            (Some((last, last_id)), Order::Ascending) => (time, id) > (*last, last_id.as_str()),
            (Some((last, last_id)), Order::Descending) => (time, id) < (*last, last_id.as_str()),
        }
    }
}

/// Compares numbers as PostgreSQL does: NaN equals itself and is larger than every other number.
fn compare(one: f64, other: f64) -> Ordering {
    one.partial_cmp(&other).unwrap_or_else(|| one.is_nan().cmp(&other.is_nan()))
}

/// How many days to read at once when `finished` days had `count` rows: as many as are probably needed for the limit.
fn days_at_once(limit: usize, count: usize, finished: usize) -> usize {
    match count.checked_div(finished) {
        None if limit <= FEW => 1,
        None => 2,
        Some(0) => MOST_AHEAD,
        Some(rows_per_day) => limit.saturating_sub(count).div_ceil(rows_per_day).min(MOST_AHEAD),
    }
}

/// A day whose first rows are being read on another thread.
struct Ahead(JoinHandle<Result<(DayCursor, Vec<OwnedRow>)>>);

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Ahead {
    fn start(archive: &Archive, day: (NaiveDate, u32), plan: &Arc<Plan>) -> Self {
        let (archive, plan) = (archive.clone(), Arc::clone(plan));
        Self(tokio::spawn(async move {
            let manifest = archive.manifest_from(day.0, day.1).await?;
            let mut cursor = DayCursor::new(Arc::clone(&archive.inner), &manifest, plan);
            let rows = cursor.next_rows().await?;
            Ok((cursor, rows))
        }))
    }

    async fn wait(mut self) -> Result<(DayCursor, Vec<OwnedRow>)> {
        (&mut self.0).await.map_err(Error::local)?
    }
}

impl Archive {
    /// Reads rows of these days, given with their revisions, in the order of the query. Dropping the stream stops all
    /// work. An error ends the stream.
    ///
    /// At most about a thousand rows with their columns are in memory for each of the few days that are read at once.
    pub fn scan(&self, days: &[(NaiveDate, u32)], query: Query) -> BoxStream<'static, Result<OwnedRow>> {
        let (archive, mut days) = (self.clone(), days.to_vec());
        let limit = query.limit.unwrap_or(usize::MAX);
        async_stream::try_stream! {
            let plan = Arc::new(Plan::new(query)?);
            days.retain(|(day, _)| plan.covers(*day));
            days.sort_by_key(|(day, _)| *day);
            if plan.descending() {
                days.reverse();
            }
            let mut days = days.into_iter();
            let mut ahead: VecDeque<Ahead> = VecDeque::new();
            let (mut count, mut finished) = (0, 0);
            'days: while count < limit {
                while ahead.len() < days_at_once(limit, count, finished) && let Some(day) = days.next() {
                    ahead.push_back(Ahead::start(&archive, day, &plan));
                }
                let Some(next) = ahead.pop_front() else { break };
                let (mut cursor, mut rows) = next.wait().await?;
                while !rows.is_empty() {
                    for row in rows {
                        count += 1;
                        yield row;
                        if count >= limit {
                            break 'days;
                        }
                    }
                    rows = cursor.next_rows().await?;
                }
                finished += 1;
            }
        }
        .boxed()
    }

    /// The row with a `request_id`, if one of these days has it.
    ///
    /// # Errors
    /// Any [`Error`] about the objects that are read.
    pub async fn row(&self, request_id: &str, days: &[(NaiveDate, u32)]) -> Result<Option<OwnedRow>> {
        let found = self.find(crate::ids::IdKind::RequestId, request_id, days).await?;
        let days: Vec<_> = days.iter().filter(|(day, _)| found.contains(day)).copied().collect();
        let equals = vec![(Column::RequestId, vec![request_id.to_owned()])];
        let query = Query { equals, limit: Some(1), order: Order::Descending, ..Query::default() };
        self.scan(&days, query).next().await.transpose()
    }
}

/// Cursors over the parts of a day.
fn cursors(inner: &Arc<Inner>, manifest: &Manifest, plan: &Arc<Plan>) -> Vec<cursor::PartCursor> {
    let parts = manifest.parts.iter();
    let parts = parts.filter(|part| part.first_start < plan.times.end && plan.times.start <= part.last_start);
    parts.map(|part| cursor::PartCursor::new(Arc::clone(inner), part.clone(), Arc::clone(plan))).collect()
}
