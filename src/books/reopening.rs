//! Opening a closed day again. Its rows come back from the archive first.

use chrono::NaiveDate;
use futures_util::TryStreamExt;
use litespend_archive::{Archive, OwnedRow, Query};

use crate::books::Error;
use crate::books::closing::archive_late_rows;
use crate::books::verifying::read_back;
use crate::store::Connection;
use crate::store::books;
use crate::store::books::restoring;

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
    restoring::reopen(connection, day, reason).await?;
    Ok(restored)
}
