//! Putting archived rows beside the log, until there are enough for a page.

use std::hash::BuildHasher;

use chrono::{NaiveDate, NaiveDateTime};
use futures_util::TryStreamExt;
use litespend_archive::{OwnedRow, Query};
use rustc_hash::{FxBuildHasher, FxHashSet};

use crate::books::Error;
use crate::books::batches::Batch;
use crate::books::beside::needed::{Limits, Needed, too_many};
use crate::books::beside::rows::RowsBeside;
use crate::books::rows::{ArchivedDays, timestamp};
use crate::store::Connection;
use crate::store::log::filter::LogFilter;
use crate::store::log::pages::SortKey;

/// Rows that are put beside the log.
pub(super) struct Putting<'a> {
    days: &'a ArchivedDays,
    filter: &'a LogFilter,
    needed: Needed<'a>,
    /// `None` as long as there are no rows.
    pub(super) beside: Option<RowsBeside>,
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

impl<'a> Putting<'a> {
    /// No rows yet.
    pub(super) fn new(days: &'a ArchivedDays, filter: &'a LogFilter, needed: Needed<'a>, limits: Limits) -> Self {
        Self {
            days,
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
        }
    }

    /// Reads rows. If `may_end`, they end as soon as there are enough for the page; then the position of the last one is
    /// returned.
    pub(super) async fn take(
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

/// A digest of the session of a row and of its key. A row without a session is one by itself.
fn session_of(row: &OwnedRow) -> u64 {
    let session = row.session_id.as_deref().filter(|id| !id.is_empty()).unwrap_or(&row.request_id);
    FxBuildHasher.hash_one((session, row.api_key.as_str()))
}
