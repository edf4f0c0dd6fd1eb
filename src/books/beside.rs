//! Archived rows beside the log's, for pages of the dashboard's log: its statements filter, sort and group both.

use std::hash::BuildHasher;
use std::sync::Arc;

use chrono::{NaiveDate, NaiveDateTime};
use futures_util::TryStreamExt;
use litespend_archive::{Column, IdKind, Order, OwnedRow, Query, RowPredicate, RowView};
use rustc_hash::{FxBuildHasher, FxHashSet};

use crate::books::Error;
use crate::books::batches::{Batch, bytes_of};
use crate::books::rows::{ArchivedDays, NO_BODY, microseconds, position, timestamp};
use crate::identity::Scope;
use crate::store::Connection;
use crate::store::books::beside::Beside;
use crate::store::books::merging;
use crate::store::log::LogPosition;
use crate::store::log::filter;
use crate::store::log::filter::{LogFilter, Outcomes, SpanType};
use crate::store::log::pages;
use crate::store::log::pages::{SessionCursor, SortKey};

/// Bounds of the archived rows of one page.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most rows that stand beside the log. Lists of sessions have no such bound: of each session, two rows are needed at
    /// most, and the others are removed.
    pub beside: i64,
    /// The most bytes of long columns that are put beside the log.
    pub bytes: usize,
    /// The most rows that are looked at.
    pub read: usize,
    /// Rows after which the database is asked again whether there are enough sessions, which rows come first, or which rows
    /// sessions need.
    pub look: i64,
}

impl Limits {
    /// The bounds of every page that a server answers.
    pub const OF_PAGE: Self = Self { beside: 100_000, bytes: 1024 * 1024 * 1024, read: 500_000, look: 10_000 };

    /// The number of rows at which those that no session needs are removed next, if `rows` are left. It grows with them, so
    /// that each removal is worth its time.
    fn next_removal(self, rows: i64) -> i64 {
        rows.saturating_add(rows.max(self.look))
    }
}

/// The archived rows that a page is made of.
#[derive(Clone, Copy, Debug)]
pub enum Needed<'a> {
    /// All rows that match.
    All(Outcomes),
    /// The rows that come first in an order.
    First(pages::Order, i64),
    /// The rows that say what all sessions are: of each session, the one that represents it, and the newest.
    Sessions,
    /// The rows of the sessions that come first when the newest activity does.
    NewestSessions {
        /// Only sessions after the cursor are shown.
        after: Option<&'a SessionCursor>,
        /// How many are counted, from the first one, unless that would be too many rows. At least as many as are shown.
        counted: i64,
        /// How many the page needs in any case.
        shown: i64,
    },
}

impl Needed<'_> {
    fn outcomes(self) -> Outcomes {
        match self {
            Self::All(outcomes) => outcomes,
            Self::First(..) => Outcomes::OfRows,
            Self::Sessions | Self::NewestSessions { .. } => Outcomes::OfSessions,
        }
    }

    /// Whether rows that are neither the newest of their session nor represent it can be left out.
    fn is_of_sessions(self) -> bool {
        matches!(self, Self::Sessions | Self::NewestSessions { .. })
    }

    /// The order in which rows are read.
    fn order(self) -> Order {
        match self {
            Self::First(pages::Order { key: SortKey::StartTime, ascending: true }, _) => Order::Ascending,
            _ => Order::Descending,
        }
    }
}

/// Archived rows that were left out, because the rows beside the log are enough for a page.
pub struct LeftOut {
    days: ArchivedDays,
    query: Query,
    filter: LogFilter,
    beside: RowsBeside,
}

/// The rows beside the log, with their number and size.
struct RowsBeside {
    table: Beside,
    rows: i64,
    /// Bytes of the long columns of rows that were added since the first ones were kept last.
    bytes: usize,
    /// The number of rows at which those that no session needs are removed next.
    next_removal: i64,
    limits: Limits,
}

/// Rows that are put beside the log.
struct Putting<'a> {
    days: &'a ArchivedDays,
    filter: &'a LogFilter,
    needed: Needed<'a>,
    /// `None` as long as there are no rows.
    beside: Option<RowsBeside>,
    /// Number of rows that the query gave that is read.
    rows_of_query: i64,
    /// The number of rows of the query at which the database is asked next whether there are enough.
    next_look: i64,
    /// Number of sessions that there are, as far as they were counted.
    sessions_counted: i64,
    /// Number of sessions after the cursor, of those that were looked at.
    sessions_after: i64,
    /// Sessions whose newest archived row started after this time were looked at.
    looked_down_to: Option<NaiveDateTime>,
    /// Digests of the sessions of the rows, if sessions are listed.
    sessions: FxHashSet<u64>,
    limits: Limits,
}

impl ArchivedDays {
    /// Puts the archived rows that match a filter beside the log's, for the statements of a transaction that is rolled back.
    /// Returns what was left out because the page does not need it.
    pub async fn put_beside(
        self,
        connection: &mut Connection,
        filter: &LogFilter,
        needed: Needed<'_>,
    ) -> Result<Option<LeftOut>, Error> {
        self.put_beside_within(connection, filter, needed, Limits::OF_PAGE).await
    }

    /// Like [`Self::put_beside`], within other bounds.
    pub async fn put_beside_within(
        self,
        connection: &mut Connection,
        filter: &LogFilter,
        needed: Needed<'_>,
        limits: Limits,
    ) -> Result<Option<LeftOut>, Error> {
        let mut queries = self.queries(filter, needed).await?;
        // The rows of the queries before are few: they have one ID.
        let last = queries.pop();
        let mut putting = Putting {
            days: &self,
            filter,
            needed,
            beside: None,
            rows_of_query: 0,
            next_look: 0,
            sessions_counted: 0,
            sessions_after: 0,
            looked_down_to: None,
            sessions: FxHashSet::default(),
            limits,
        };
        let mut read = 0;
        for (days, query) in queries {
            putting.take(connection, &days, query, &mut read, false).await?;
        }
        let mut rest = None;
        if let Some((days, mut query)) = last
            && let Some(end) = putting.take(connection, &days, query.clone(), &mut read, true).await?
        {
            query.after = Some(end);
            rest = Some((days, query));
        }
        let Some(beside) = putting.beside else { return Ok(None) };
        beside.table.finish(connection).await?;
        let filter = filter.clone();
        Ok(rest.map(|(days, query)| LeftOut { days: Self { days, ..self }, query, filter, beside }))
    }

    /// The rows that the log does not have and that were not moved.
    pub(super) async fn of_archive_alone(
        &self,
        connection: &mut Connection,
        mut rows: Vec<OwnedRow>,
    ) -> Result<Vec<OwnedRow>, Error> {
        let positions: Vec<LogPosition> = rows.iter().map(position).collect();
        let superseded = merging::superseded(connection, &positions, self.moved).await?;
        let mut place = 0;
        rows.retain(|_| {
            place += 1;
            !superseded.contains(&(place - 1))
        });
        Ok(rows)
    }
}

impl Putting<'_> {
    /// Reads rows. If `may_end`, they end as soon as there are enough for the page; then the position of the last one is
    /// returned.
    async fn take(
        &mut self,
        connection: &mut Connection,
        days: &[(NaiveDate, u32)],
        query: Query,
        read: &mut usize,
        may_end: bool,
    ) -> Result<Option<(i64, String)>, Error> {
        let (mut batch, mut is_enough, mut end) = (Batch::default(), false, None::<(i64, String)>);
        self.rows_of_query = 0;
        let mut rows = self.days.archive.scan(days, query);
        while let Some(row) = rows.try_next().await? {
            // Rows of the same time are in another order where the database does not compare texts by their bytes.
            if is_enough && end.as_ref().is_some_and(|(time, _)| *time != row.start_time) {
                if let Some(rest) = batch.rest() {
                    self.add(connection, rest).await?;
                }
                return Ok(end);
            }
            *read += 1;
            if *read > self.limits.read {
                let most = self.limits.read;
                return Err(too_many(format!("more than {most} archived rows would have to be looked at")));
            }
            let time = row.start_time;
            end = Some((time, row.request_id.clone()));
            if let Some(full) = batch.push(row) {
                self.add(connection, full).await?;
                is_enough = is_enough || may_end && self.is_enough(connection, time).await?;
            }
        }
        if let Some(rest) = batch.rest() {
            self.add(connection, rest).await?;
        }
        Ok(None)
    }

    /// Adds those of the rows that belong beside the log.
    async fn add(&mut self, connection: &mut Connection, rows: Vec<OwnedRow>) -> Result<(), Error> {
        let rows = self.days.of_archive_alone(connection, rows).await?;
        if rows.is_empty() {
            return Ok(());
        }
        if self.needed.is_of_sessions() {
            self.sessions.extend(rows.iter().map(session_of));
        }
        // At most two rows of each session are needed, so at least half of these are not.
        let many = i64::try_from(self.sessions.len()).unwrap_or(i64::MAX).saturating_mul(4);
        let beside = match &mut self.beside {
            Some(beside) => beside,
            none => none.insert(RowsBeside::begin(connection, self.limits).await?),
        };
        self.rows_of_query += beside.add(connection, &rows, self.filter, self.needed.outcomes()).await?;
        match self.needed {
            // In other orders than that of time, every row may be one of the first.
            Needed::First(order, wanted)
                if order.key != SortKey::StartTime && beside.rows > wanted.saturating_add(self.limits.look) =>
            {
                beside.keep_first(connection, order, wanted).await?;
            }
            needed if needed.is_of_sessions() && beside.rows >= many => beside.remove_unneeded(connection).await?,
            _ => {}
        }
        beside.check_size()?;
        if beside.rows > self.limits.beside && !self.needed.is_of_sessions() {
            return Err(too_many(format!("more than {} archived rows match", self.limits.beside)));
        }
        Ok(())
    }

    /// Whether there are enough rows, if no row that is read later comes before them. `time` is that of the last row.
    async fn is_enough(&mut self, connection: &mut Connection, time: i64) -> Result<bool, Error> {
        let Some(RowsBeside { table, .. }) = &self.beside else { return Ok(false) };
        match self.needed {
            Needed::All(_) | Needed::Sessions => Ok(false),
            Needed::First(order, wanted) => Ok(order.key == SortKey::StartTime && self.rows_of_query >= wanted),
            Needed::NewestSessions { after, counted, shown } => {
                if self.rows_of_query < self.next_look.max(counted) {
                    return Ok(false);
                }
                self.next_look = self.rows_of_query.saturating_add(self.limits.look);
                if self.sessions_counted < counted {
                    self.sessions_counted = table.sessions(connection).await?;
                }
                let is_full = self.rows_of_query >= self.limits.beside - 2 * self.limits.look;
                let least = if is_full { shown } else { counted };
                if self.sessions_counted < least {
                    return Ok(false);
                }
                let Some(cursor) = after else { return Ok(true) };
                // A session whose newest archived row is newer than this time gets no newer one, so it is looked up in the
                // log once. Rows that are read later may have this time, too.
                let times = (timestamp(time).0, self.looked_down_to);
                let missing = shown - self.sessions_after;
                self.sessions_after += table.sessions_after(connection, self.filter, cursor, times, missing).await?;
                self.looked_down_to = Some(times.0);
                Ok(self.sessions_after >= shown)
            }
        }
    }
}

impl RowsBeside {
    async fn begin(connection: &mut Connection, limits: Limits) -> Result<Self, Error> {
        let table = Beside::begin(connection).await?;
        Ok(Self { table, rows: 0, bytes: 0, next_removal: limits.next_removal(0), limits })
    }

    /// Adds those of these rows that match a filter, and returns their number.
    async fn add(
        &mut self,
        connection: &mut Connection,
        rows: &[OwnedRow],
        filter: &LogFilter,
        outcomes: Outcomes,
    ) -> Result<i64, Error> {
        self.bytes += rows.iter().map(bytes_of).sum::<usize>();
        let added = self.table.add(connection, rows, filter, outcomes).await?;
        let added = i64::try_from(added).unwrap_or(i64::MAX);
        self.rows = self.rows.saturating_add(added);
        Ok(added)
    }

    /// Removes all rows but the first ones in an order. There are more.
    async fn keep_first(&mut self, connection: &mut Connection, order: pages::Order, rows: i64) -> Result<(), Error> {
        self.table.keep_first(connection, order, rows).await?;
        self.rows = rows;
        self.bytes = 0;
        Ok(())
    }

    /// If the rows are many or large, removes those that no session needs.
    async fn remove_unneeded(&mut self, connection: &mut Connection) -> Result<(), Error> {
        if self.rows < self.next_removal && self.bytes <= self.limits.bytes {
            return Ok(());
        }
        let of_each = self.bytes / usize::try_from(self.rows).unwrap_or(usize::MAX).max(1);
        self.rows = self.table.keep_of_sessions(connection).await?;
        self.bytes = of_each.saturating_mul(usize::try_from(self.rows).unwrap_or(usize::MAX));
        self.next_removal = self.limits.next_removal(self.rows);
        Ok(())
    }

    /// Refuses rows that are too large.
    fn check_size(&self) -> Result<(), Error> {
        if self.bytes > self.limits.bytes {
            return Err(too_many("the archived rows that match are too large".to_owned()));
        }
        Ok(())
    }
}

/// A digest of the session of a row and of its key. A row without a session is one by itself.
fn session_of(row: &OwnedRow) -> u64 {
    let session = row.session_id.as_deref().filter(|id| !id.is_empty()).unwrap_or(&row.request_id);
    FxBuildHasher.hash_one((session, row.api_key.as_str()))
}

fn too_many(what: String) -> Error {
    Error::Refused(format!("{what}: choose a shorter time or further filters, or set archive=false"))
}

impl LeftOut {
    /// Puts the rows of these sessions that were left out beside the log.
    pub async fn add_sessions(mut self, connection: &mut Connection, ids: &[&str]) -> Result<(), Error> {
        // The session of a row without one is its request ID, which may be the name of a session of other rows.
        let mut by_request = self.days.clone();
        by_request.narrow_to_any(IdKind::RequestId, ids).await?;
        let mut by_session = self.days.clone();
        by_session.narrow_to_any(IdKind::Session, ids).await?;
        self.days.days.retain(|day| by_session.days.contains(day) || by_request.days.contains(day));
        if self.days.days.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        self.query.equals_any = vec![(Column::SessionId, ids.clone()), (Column::RequestId, ids)];
        let mut batch = Batch::default();
        let mut read = 0;
        let limits = self.beside.limits;
        self.beside.next_removal = limits.next_removal(self.beside.rows);
        let mut rows = self.days.archive.scan(&self.days.days, self.query);
        loop {
            let row = rows.try_next().await?;
            let is_end = row.is_none();
            read += usize::from(!is_end);
            if read > limits.read {
                let most = limits.read;
                return Err(too_many(format!("the sessions of a page have more than {most} archived rows")));
            }
            let full = match row {
                Some(row) => batch.push(row),
                None => std::mem::take(&mut batch).rest(),
            };
            if let Some(full) = full {
                let full = self.days.of_archive_alone(connection, full).await?;
                self.beside.add(connection, &full, &self.filter, Outcomes::OfSessions).await?;
                self.beside.remove_unneeded(connection).await?;
                self.beside.check_size()?;
            }
            if is_end {
                return Ok(());
            }
        }
    }
}

impl ArchivedDays {
    /// Queries that find every archived row that a filter can match, each row once. The last one may find many.
    async fn queries(
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
