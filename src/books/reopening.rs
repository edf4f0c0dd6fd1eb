//! Opening a closed day again. Its rows come back from the archive first.

use std::time::Duration;

use chrono::NaiveDate;
use futures_util::TryStreamExt;
use litespend_archive::{Archive, OwnedRow, Query};

use crate::books::Error;
use crate::books::closing::{archive_late_rows, expect_own};
use crate::books::verifying::read_back;
use crate::store;
use crate::store::Connection;
use crate::store::books;
use crate::store::books::restoring;
use crate::store::log::months;

/// How often to wait for the writers of the log, two seconds each.
const LOCK_ATTEMPTS: u32 = 30;

/// The pause between two of these attempts, in which the writers go on.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// Rows of one statement that inserts.
const BATCH: usize = 1_000;

/// Opens a day again, and returns the number of rows that came back from the archive. The caller holds the lock of the
/// books and a connection without a statement timeout.
pub async fn reopen(
    connection: &mut Connection,
    archive: &Archive,
    day: NaiveDate,
    reason: &str,
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
    let mut restored = 0;
    let mut batch: Vec<OwnedRow> = Vec::with_capacity(BATCH);
    let mut rows = archive.scan(&[(day, manifest.revision)], Query::default());
    while let Some(row) = rows.try_next().await? {
        batch.push(row);
        if batch.len() == BATCH {
            restored += restoring::insert_rows(connection, &batch, manifest.bodies).await?;
            batch.clear();
        }
    }
    if !batch.is_empty() {
        restored += restoring::insert_rows(connection, &batch, manifest.bodies).await?;
    }
    let rows = books::logged_rows(connection, day).await?;
    let mut attempt = 1;
    loop {
        match restoring::reopen(connection, day, rows, reason).await {
            Ok(true) => return Ok(restored),
            Ok(false) => return Err(Error::Busy { day, reason: "rows of the day left the log meanwhile" }),
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
