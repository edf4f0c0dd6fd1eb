//! Opening a closed day again. Its rows come back from the archive first.

use std::time::Duration;

use chrono::NaiveDate;
use futures_util::TryStreamExt;
use litespend_archive::{Archive, Manifest, OwnedRow, Query};

use crate::books::batches::Batch;
use crate::books::closing::{archive_late_rows, is_forgotten};
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

/// Brings the archived rows of days up to `through` back into the log, if this database does not know that they were closed: as
/// after it was restored from a backup.
pub(super) async fn restore_forgotten(
    connection: &mut Connection,
    archive: &Archive,
    through: NaiveDate,
) -> Result<(), Error> {
    let database = books::database_id(connection).await?;
    for (day, _) in archive.days().await? {
        if day > through || books::closed_day(connection, day).await?.is_some() {
            continue;
        }
        let Some(manifest) = archive.manifest(day).await? else { continue };
        let is_owned = manifest.extra.get("database").is_some() && expect_own(day, Some(&manifest), &database).is_ok();
        if is_owned && is_forgotten(connection, archive, &manifest).await? {
            let Some(manifest) = archive.verify_day(day).await? else { continue };
            let rows = restore_day(connection, archive, &manifest).await?;
            tracing::info!(%day, rows, "rows came back from the archive");
        }
    }
    Ok(())
}

/// Inserts the archived rows of a day into the log, as far as it does not have them and they were not moved away. Returns
/// their number.
async fn restore_day(connection: &mut Connection, archive: &Archive, manifest: &Manifest) -> Result<u64, Error> {
    let day = manifest.day;
    let moved = books::moved_ids(connection, &[day]).await?;
    let mut restored = 0;
    let mut batch = Batch::default();
    let mut rows = archive.scan(&[(day, manifest.revision)], Query::default());
    while let Some(row) = rows.try_next().await? {
        if moved.contains(&(day, books::id_digest(&row.request_id))) {
            continue;
        }
        if let Some(full) = batch.push(row) {
            restored += restore(connection, day, &full, manifest.bodies).await?;
        }
    }
    if let Some(rest) = batch.rest() {
        restored += restore(connection, day, &rest, manifest.bodies).await?;
    }
    Ok(restored)
}

/// Inserts archived rows into the log, as far as it does not have them, and returns how many. All must be there then.
async fn restore(connection: &mut Connection, day: NaiveDate, rows: &[OwnedRow], bodies: bool) -> Result<u64, Error> {
    let inserted = restoring::insert_rows(connection, day, rows, bodies).await?;
    let ids: Vec<&str> = rows.iter().map(|row| row.request_id.as_str()).collect();
    let missing = restoring::missing_ids(connection, day, &ids).await?;
    match missing.as_slice() {
        [] => Ok(inserted),
        [first, ..] => Err(Error::Refused(format!(
            "{day}: {} archived rows cannot come back, because the log has other rows with their ids, among them {first}",
            missing.len()
        ))),
    }
}
