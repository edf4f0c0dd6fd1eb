//! Opening a closed day again. Its rows come back from the archive first.

use std::time::Duration;

use chrono::NaiveDate;
use litespend_archive::Archive;

use crate::books::closing::archive_late_rows;
use crate::books::restoring::restore_day;
use crate::books::verifying::read_back;
use crate::books::{Error, describe, expect_own, publishing};
use crate::store;
use crate::store::Connection;
use crate::store::books;
use crate::store::books::restoring;
use crate::store::books::restoring::Reopening;
use crate::store::log::months;

/// How often to wait for the writers of the log, two seconds each.
const LOCK_ATTEMPTS: u32 = 30;

/// The pause between two of these attempts, in which the writers go on.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// Opens a day again, and returns the number of rows that came back from the archive. Refuses to if its rows have other sums
/// than the day counts, unless `any_sums`. The caller holds the lock of the books and a connection without a statement
/// timeout.
pub async fn reopen(
    connection: &mut Connection,
    archive: &Archive,
    day: NaiveDate,
    reason: &str,
    any_sums: bool,
) -> Result<u64, Error> {
    if books::closed_day(connection, day).await?.is_none() {
        return Err(Error::Refused(format!("{day} is not closed")));
    }
    archive_late_rows(connection, archive, day).await?;
    let Some(closed) = books::closed_day(connection, day).await? else {
        return Err(Error::Refused(format!("{day} is not closed")));
    };
    let manifest = read_back(archive, &closed).await?;
    expect_own(day, Some(&manifest), &books::database_id(connection).await?)?;
    let restored = restore_day(connection, archive, &manifest).await?;
    let rows = books::logged_rows(connection, day).await?;
    let mut attempt = 1;
    loop {
        match restoring::reopen(connection, day, rows, reason, any_sums).await {
            Ok(Reopening::Done) => {
                publishing::hide(archive, day).await;
                return Ok(restored);
            }
            Ok(Reopening::RowsLeft) => {
                return Err(Error::Busy { day, reason: "rows of the day left the log meanwhile" });
            }
            Ok(Reopening::Differs { counted, logged }) => {
                return Err(Error::Refused(format!(
                    "{day} counts {}, but its rows have {}: once it is open, their sums count. --accept-difference \
                     says that they should",
                    describe(&counted),
                    describe(&logged)
                )));
            }
            Err(error)
                if (months::is_lock_timeout(&error) || store::error::is_conflict(&error))
                    && attempt < LOCK_ATTEMPTS =>
            {
                attempt += 1;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
