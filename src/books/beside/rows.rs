//! The table of the rows beside the log, and what is removed from it.

use litespend_archive::OwnedRow;

use crate::books::Error;
use crate::books::batches::bytes_of;
use crate::books::beside::needed::{Limits, too_many};
use crate::store::Connection;
use crate::store::books::beside::Beside;
use crate::store::log::filter::{LogFilter, Outcomes};
use crate::store::log::pages::Order;

/// The rows beside the log, with their number and size.
pub(super) struct RowsBeside {
    pub(super) table: Beside,
    pub(super) rows: i64,
    /// Bytes of the long columns of rows that were added since the first ones were kept last.
    bytes: usize,
    /// The number of rows at which those that no session needs are removed next.
    pub(super) next_removal: i64,
    pub(super) limits: Limits,
}

impl RowsBeside {
    pub(super) async fn begin(connection: &mut Connection, limits: Limits) -> Result<Self, Error> {
        let table = Beside::begin(connection).await?;
        Ok(Self { table, rows: 0, bytes: 0, next_removal: limits.next_removal(0), limits })
    }

    /// Adds those of these rows that match a filter, and returns their number.
    pub(super) async fn add(
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
    pub(super) async fn keep_first(
        &mut self,
        connection: &mut Connection,
        order: Order,
        rows: i64,
    ) -> Result<(), Error> {
        self.table.keep_first(connection, order, rows).await?;
        self.rows = rows;
        self.bytes = 0;
        Ok(())
    }

    /// If the rows are many or large, removes those that no session needs.
    pub(super) async fn remove_unneeded(&mut self, connection: &mut Connection) -> Result<(), Error> {
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
    pub(super) fn check_size(&self) -> Result<(), Error> {
        if self.bytes > self.limits.bytes {
            return Err(too_many("the archived rows that match are too large".to_owned()));
        }
        Ok(())
    }
}
