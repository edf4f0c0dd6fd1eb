//! What other engines see of the archive: the files of closed days, and of no others. A file is hidden from them until its
//! day is recorded as closed, and again when the day is opened.

use std::collections::HashSet;

use chrono::NaiveDate;
use litespend_archive::Archive;

use crate::books::restoring::is_forgotten;
use crate::books::{Error, expect_own};
use crate::metrics::Metrics;
use crate::store;
use crate::store::Connection;
use crate::store::books;

/// Shows a day that was recorded as closed, and deletes its superseded files. What cannot be done now is done by
/// [`reconcile`].
pub async fn publish(archive: &Archive, day: NaiveDate) {
    if let Err(error) = archive.publish(day).await {
        failed(day, &error.into());
    }
}

/// Hides a day that was opened again. What cannot be done now is done by [`reconcile`].
pub async fn hide(archive: &Archive, day: NaiveDate) {
    if let Err(error) = archive.hide(day).await {
        failed(day, &error.into());
    }
}

/// Shows closed days that are hidden, and hides open ones that are shown: what interrupted commands left, and what earlier
/// versions did not hide. Only days of this database are touched. The caller holds the lock of the books.
pub async fn reconcile(connection: &mut Connection, archive: &Archive) -> Result<(), store::Error> {
    let files = match archive.day_files().await {
        Ok(files) => files,
        Err(error) => {
            Metrics::record_books_failure();
            tracing::warn!(cause = %error, "cannot list the days of the archive");
            return Ok(());
        }
    };
    let closed = books::closed_days(connection, None).await?;
    let closed: HashSet<NaiveDate> = closed.into_iter().map(|closed| closed.day).collect();
    for files in files {
        let is_closed = closed.contains(&files.day);
        let is_right = if is_closed { !files.hidden && !files.superseded } else { !files.shown };
        if is_right {
            continue;
        }
        let database = books::database_id(connection).await?;
        if let Err(error) = put_right(connection, archive, files.day, is_closed, &database).await {
            failed(files.day, &error);
        }
    }
    Ok(())
}

async fn put_right(
    connection: &mut Connection,
    archive: &Archive,
    day: NaiveDate,
    is_closed: bool,
    database: &str,
) -> Result<(), Error> {
    let manifest = archive.manifest(day).await?;
    // The days of other databases, and of nobody, are not ours to touch.
    let is_owned = manifest.as_ref().is_some_and(|manifest| manifest.extra.get("database").is_some());
    if !is_owned || expect_own(day, manifest.as_deref(), database).is_err() {
        return Ok(());
    }
    if is_closed {
        archive.publish(day).await?;
    } else if let Some(manifest) = manifest
        // The rows may be nowhere else.
        && !is_forgotten(connection, archive, &manifest).await?
    {
        archive.hide(day).await?;
    }
    Ok(())
}

fn failed(day: NaiveDate, error: &Error) {
    Metrics::record_books_failure();
    tracing::warn!(%day, cause = %error, "other engines do not see the day as it is; it is put right when days are next closed");
}
