//! Rows that come back from the archive into the log, and which days need that although they are open.

use chrono::NaiveDate;
use futures_util::TryStreamExt;
use litespend_archive::{Archive, Manifest, OwnedRow, Query};

use crate::books::batches::Batch;
use crate::books::{Error, expect_own};
use crate::store::Connection;
use crate::store::books;
use crate::store::books::restoring;

/// Whether the archive has rows that the log lacks, of a day of which this database does not know that it was closed: as after
/// the database was restored from a backup.
pub(super) async fn is_forgotten(
    connection: &mut Connection,
    archive: &Archive,
    manifest: &Manifest,
) -> Result<bool, Error> {
    let day = manifest.day;
    if manifest.extra.get("database").is_none() {
        return Ok(false);
    }
    // The files of attempts that were not recorded are hidden. Those of a day that was recorded may be, for a moment.
    let is_known = !archive.is_shown(manifest).await? && books::has_exported(connection, day).await?;
    if is_known || books::is_reopened_since(connection, day, manifest.created_at).await? {
        return Ok(false);
    }
    let ids = Query { columns: Vec::new(), ..Query::default() };
    let mut rows = archive.scan(&[(day, manifest.revision)], ids).try_chunks(IDS_AT_ONCE);
    while let Some(rows) = rows.try_next().await.map_err(|error| error.1)? {
        let ids: Vec<&str> = rows.iter().map(|row| row.request_id.as_str()).collect();
        if !restoring::missing_ids(connection, day, &ids).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// IDs that are looked for in the log at once.
const IDS_AT_ONCE: usize = 5_000;

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
pub(super) async fn restore_day(
    connection: &mut Connection,
    archive: &Archive,
    manifest: &Manifest,
) -> Result<u64, Error> {
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
