//! The rows of an archive of closed days.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use chrono::NaiveDate;
use futures_util::TryStreamExt;
use litespend_archive::{Archive, OwnedRow, Query};
use tokio::sync::mpsc;

use crate::booking::archived_row;
use crate::books::rows;
use crate::cli::import::{Batch, Line};
use crate::cli::output::say;

/// The URL of the archive that an argument names: a URL, or a directory.
pub(super) fn url(file: &Path) -> Option<&str> {
    file.to_str().filter(|text| text.contains("://") || file.is_dir())
}

/// Reads all rows, oldest first, and sends them in batches.
pub(super) async fn read(archive: Archive, sender: mpsc::Sender<Vec<Line>>) -> anyhow::Result<()> {
    // The rows of other days are in the log of the database that wrote the archive, or not yet what will be closed.
    let (days, open) = archive.published_days().await?;
    if !open.is_empty() {
        let open: Vec<String> = open.iter().map(NaiveDate::to_string).collect();
        say!("left out, because they are not closed: {}", open.join(", "));
    }
    anyhow::ensure!(!days.is_empty(), "the archive has no days");
    let (mut number, mut batch) = (0, Batch::default());
    let mut found = archive.scan(&days, Query { missing_bodies: Some(rows::NO_BODY.to_owned()), ..Query::default() });
    while let Some(row) = found.try_next().await? {
        number += 1;
        if let Some(full) = batch.push(line(number, row)) {
            // The receiver is gone only if booking has failed, and that error is reported instead.
            sender.send(full).await.context("stopped")?;
        }
    }
    sender.send(batch.lines).await.context("stopped")
}

/// The line of a row. If it has an error, its text is the row as the API would answer it.
fn line(number: u64, row: OwnedRow) -> Line {
    let row = Arc::new(row);
    let text = || serde_json::to_string(&rows::log_row(OwnedRow::clone(&row))).unwrap_or_default();
    Line::new(number, &text, archived_row::into_draft(&row))
}
