//! Archived rows that a page does not need, until it is known which sessions it shows.

use futures_util::TryStreamExt;
use litespend_archive::{Column, IdKind, Query};

use crate::books::Error;
use crate::books::batches::Batch;
use crate::books::beside::needed::too_many;
use crate::books::beside::rows::RowsBeside;
use crate::books::rows::ArchivedDays;
use crate::store::Connection;
use crate::store::log::filter::{LogFilter, Outcomes};

/// Archived rows that were left out, because the rows beside the log are enough for a page.
pub struct LeftOut {
    pub(super) days: ArchivedDays,
    pub(super) query: Query,
    pub(super) filter: LogFilter,
    pub(super) beside: RowsBeside,
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
