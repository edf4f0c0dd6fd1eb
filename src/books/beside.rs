//! Archived rows beside the log's, for pages of the dashboard's log: its statements filter, sort and group both.
//!
//! `needed` says which rows a page needs, and `queries` finds them in the archive. `putting` puts them into the table of
//! `rows`, until there are enough. `left_out` adds those that the sessions of a page have beyond that.

mod left_out;
mod needed;
mod putting;
mod queries;
mod rows;

pub use crate::books::beside::left_out::LeftOut;
pub use crate::books::beside::needed::{Limits, Needed};

use litespend_archive::OwnedRow;

use crate::books::Error;
use crate::books::beside::putting::Putting;
use crate::books::rows::{ArchivedDays, position};
use crate::store::Connection;
use crate::store::books::merging;
use crate::store::log::LogPosition;
use crate::store::log::filter::LogFilter;

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
        let mut putting = Putting::new(&self, filter, needed, limits);
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
