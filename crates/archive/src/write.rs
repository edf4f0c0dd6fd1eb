//! Writing a day: rows come in order, and Parquet files go out.

mod encode;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::archive::Archive;
use crate::columns::{LogRow, RowBuilders, SCHEMA_VERSION};
use crate::commit::Prepared;
use crate::error::{Error, Result};
use crate::ids::{DigestCollector, Source, merge};
use crate::listing::{following, ids_path, part_path, token};
use crate::manifest::{Manifest, Part, StoredObject};
use crate::store::hidden_path;
use crate::sums::SumsBuilder;
use crate::upload::Upload;
use crate::write::encode::{Encoded, Encoder, encode};

/// Rows that are encoded or decoded at once, at most.
pub(crate) const BATCH: usize = 8_192;
/// The size in memory at which a batch ends although it has fewer rows. A batch is larger by one row at most.
pub(crate) const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// The largest row. A column of a batch cannot be longer than 2 GiB.
const MOST_ROW_BYTES: usize = i32::MAX as usize - BATCH_BYTES;
/// The most revisions that are declared abandoned at once. There is one for each attempt that was interrupted.
const MOST_ABANDONED: u32 = 1_000;
/// The most files that a day can get in one revision.
const MOST_PARTS: u32 = 1_000_000;
const MICROSECONDS_PER_DAY: i64 = 86_400_000_000;

/// The first microsecond of a day, since 1970-01-01 UTC.
pub(crate) fn start_of(day: NaiveDate) -> i64 {
    day.and_time(NaiveTime::MIN).and_utc().timestamp_micros()
}

/// The microseconds of a day.
pub(crate) fn microseconds_of(day: NaiveDate) -> std::ops::Range<i64> {
    let start = start_of(day);
    start..start.saturating_add(MICROSECONDS_PER_DAY)
}

/// A file that is being written.
struct OpenPart {
    /// The name by which the manifest calls it.
    path: String,
    upload: Upload,
    encoder: Option<Encoder>,
    rows: u64,
    first_start: i64,
    last_start: i64,
}

/// Writes the rows of a day. Nothing counts until [`Archive::commit`]; a writer that is dropped leaves nothing that
/// counts.
pub struct DayWriter {
    archive: Archive,
    day: NaiveDate,
    revision: u32,
    base: Option<Manifest>,
    bodies: bool,
    token: String,
    microseconds: std::ops::Range<i64>,
    builders: RowBuilders,
    last: Option<(i64, String)>,
    sums: SumsBuilder,
    part: Option<OpenPart>,
    parts: Vec<Part>,
    next_number: u32,
    digests: Option<DigestCollector>,
    pending: Option<JoinHandle<Result<Encoded>>>,
}

impl std::fmt::Debug for DayWriter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let writer = &mut formatter.debug_struct("DayWriter");
        writer.field("day", &self.day).field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl Archive {
    /// Starts a new revision of a day. With `base`, the newest revision, the day keeps the files of that revision and
    /// gets the new rows in addition. Without it, the new rows replace everything. `bodies` says whether `messages`,
    /// `response` and `proxy_server_request` are written; otherwise they are null.
    ///
    /// Deletes what interrupted attempts left. If such an attempt is in fact alive, it can no longer be committed, so
    /// of two writers at most one succeeds.
    ///
    /// # Errors
    /// [`Error::Exists`] if `base` is not the newest revision, [`Error::Schema`] if a file has a number that no attempt can
    /// have left, or [`Error::Unavailable`].
    pub async fn write_day(&self, day: NaiveDate, base: Option<&Manifest>, bodies: bool) -> Result<DayWriter> {
        if self.inner.is_untried.load(Ordering::Relaxed) {
            self.probe().await?;
        }
        let listing = self.listing(day).await?;
        let newest = listing.committed.last().copied();
        if let Some(base) = base
            && (base.day != day || newest != Some(base.revision))
        {
            return Err(Error::Exists { day, revision: newest.unwrap_or_default() });
        }
        self.remove_superseded(day).await?;
        let mut last = listing.newest();
        // Traces of an attempt at a revision that nobody has committed.
        let is_stray = |revision: u32| revision > newest.unwrap_or_default();
        let strays: Vec<_> = listing.parts.iter().filter(|part| is_stray(part.revision)).collect();
        let unfinished: Vec<_> = listing.unfinished.iter().filter(|(_, revision)| is_stray(*revision)).collect();
        let traces = strays.iter().map(|part| (part.revision, part.path.clone()));
        let traces = traces.chain(unfinished.iter().map(|(path, revision)| (*revision, path.display().to_string())));
        if let Some((highest, path)) = traces.max() {
            if highest.saturating_sub(last) > MOST_ABANDONED {
                let reason = format!("no attempt can have left revision {highest} after {last}: move the file away");
                return Err(Error::schema(path, reason));
            }
            for revision in last.saturating_add(1)..=highest {
                self.abandon(day, revision).await?;
            }
            last = last.max(highest);
        }
        for part in strays {
            self.inner.store.delete(&part.path).await?;
        }
        for (path, _) in unfinished {
            self.inner.store.delete_unfinished(path)?;
        }
        let highest = listing.parts.iter().max_by_key(|part| part.number);
        let next_number = match highest {
            Some(part) => part.number.checked_add(1).filter(|next| next.checked_add(MOST_PARTS).is_some()),
            None => Some(0),
        };
        let Some(next_number) = next_number else {
            let path = highest.map(|part| part.path.as_str()).unwrap_or_default();
            return Err(Error::schema(path, "no files can be numbered after it: move it away"));
        };
        let revision = following(day, last)?;
        let sums = base.map_or_else(SumsBuilder::default, |base| SumsBuilder::from_sums(&base.sums));
        Ok(DayWriter {
            archive: self.clone(),
            day,
            revision,
            base: base.cloned(),
            bodies,
            token: token(),
            microseconds: microseconds_of(day),
            builders: RowBuilders::default(),
            last: None,
            sums,
            part: None,
            parts: Vec::new(),
            next_number,
            digests: Some(DigestCollector::new(
                Arc::from(self.inner.options.scratch.as_path()),
                self.inner.options.digests_in_memory,
            )),
            pending: None,
        })
    }
}

impl DayWriter {
    /// The revision that is written.
    pub fn revision(&self) -> u32 {
        self.revision
    }

    /// Adds a row. Rows come in ascending order of `startTime`, and of the bytes of `request_id` where the times are
    /// equal (`ORDER BY "startTime", request_id COLLATE "C"`).
    ///
    /// # Errors
    /// [`Error::OutOfOrder`], [`Error::OtherDay`] and [`Error::TooLarge`] leave the row out. After any other error, the
    /// writer is of no use.
    pub async fn push(&mut self, row: &LogRow<'_>) -> Result<()> {
        if !self.microseconds.contains(&row.start_time) {
            return Err(Error::OtherDay { request_id: row.request_id.to_owned(), day: self.day });
        }
        let without;
        let row = if self.bodies || !row.has_bodies() {
            row
        } else {
            without = LogRow { messages: None, response: None, proxy_server_request: None, ..*row };
            &without
        };
        let bytes = row.bytes();
        if bytes > MOST_ROW_BYTES {
            return Err(Error::TooLarge { request_id: row.request_id.to_owned() });
        }
        match &mut self.last {
            Some((time, id)) => {
                if (*time, id.as_str()) >= (row.start_time, row.request_id) {
                    return Err(Error::OutOfOrder { request_id: row.request_id.to_owned() });
                }
                *time = row.start_time;
                id.clear();
                id.push_str(row.request_id);
            }
            none => *none = Some((row.start_time, row.request_id.to_owned())),
        }
        if self.part.is_none() {
            self.open_part(row.start_time)?;
        }
        self.builders.append(row, bytes);
        self.sums.add(row);
        let Some(part) = &mut self.part else { return Err(unusable()) };
        part.rows += 1;
        part.last_start = row.start_time;
        let mut part_ends = part.rows >= self.archive.inner.options.rows_per_part;
        if part_ends || self.builders.rows() >= BATCH || self.builders.bytes() >= BATCH_BYTES {
            self.encode_batch().await?;
            let bytes = self.part.as_ref().map_or(0, |part| part.upload.bytes());
            part_ends |= bytes >= self.archive.inner.options.bytes_per_part;
        }
        if part_ends { self.close_part().await } else { Ok(()) }
    }

    fn open_part(&mut self, first_start: i64) -> Result<()> {
        let path = part_path(self.day, self.next_number, self.revision, &self.token);
        self.next_number += 1;
        let encoder = Some(Encoder::new(&path, self.archive.inner.options.rows_per_group)?);
        let written = hidden_path(&path).unwrap_or_else(|| path.clone());
        let upload = Upload::new(self.archive.inner.store.clone(), written);
        self.part = Some(OpenPart { path, upload, encoder, rows: 0, first_start, last_start: first_start });
        Ok(())
    }

    /// Hands the collected rows to another thread. Waits for the batch before.
    async fn encode_batch(&mut self) -> Result<()> {
        let bytes = self.builders.bytes();
        let batch = self.builders.finish().map_err(Error::local)?;
        self.settle().await?;
        let encoder = self.part.as_mut().and_then(|part| part.encoder.take());
        let (Some(encoder), Some(digests)) = (encoder, self.digests.take()) else { return Err(unusable()) };
        self.pending = Some(tokio::task::spawn_blocking(move || encode(encoder, digests, &batch, bytes)));
        Ok(())
    }

    async fn settle(&mut self) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let encoded = pending.await.map_err(Error::local)??;
        let Some(part) = &mut self.part else { return Err(unusable()) };
        part.encoder = Some(encoded.encoder);
        self.digests = Some(encoded.digests);
        part.upload.write_all(encoded.pieces).await
    }

    async fn close_part(&mut self) -> Result<()> {
        if self.builders.rows() > 0 {
            self.encode_batch().await?;
        }
        self.settle().await?;
        let Some(mut part) = self.part.take() else { return Ok(()) };
        let encoder = part.encoder.take().ok_or_else(unusable)?;
        let finished = tokio::task::spawn_blocking(move || encoder.finish()).await.map_err(Error::local)?;
        let (pieces, content) = finished?;
        part.upload.write_all(pieces).await?;
        let object = StoredObject { path: part.path, ..part.upload.finish().await? };
        let (first_start, last_start) = (part.first_start, part.last_start);
        self.parts.push(Part { object, rows: part.rows, first_start, last_start, content });
        Ok(())
    }

    /// Ends the writing. All files are in the store, and on the disk if it is a directory.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Local`].
    pub async fn finish(mut self) -> Result<Prepared> {
        self.close_part().await?;
        let mut sources = self.digests.take().ok_or_else(unusable)?.sources()?;
        if let Some(base) = &self.base {
            sources.push(Source::of_object(&self.archive.inner.reader, &base.ids, None).await?);
        }
        let path = ids_path(self.day, self.revision, &self.token);
        let (ids, _) = merge(sources, Upload::new(self.archive.inner.store.clone(), path)).await?;
        let (base_parts, base_sums, base_bodies) = match self.base.take() {
            Some(base) => (base.parts, Some(base.sums), base.bodies),
            None => (Vec::new(), None, false),
        };
        let manifest = Manifest {
            schema_version: SCHEMA_VERSION,
            day: self.day,
            revision: self.revision,
            created_at: now(),
            bodies: self.bodies || base_bodies,
            parts: self.parts,
            ids,
            sums: self.sums.finish(),
            extra: Value::Null,
        };
        Ok(Prepared { archive: self.archive, base_parts, base_sums, manifest })
    }
}

fn unusable() -> Error {
    Error::Local("the writer failed before".to_owned())
}

/// The time, in whole microseconds.
fn now() -> DateTime<Utc> {
    let now = Utc::now();
    DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;
    use crate::archive::Options;
    use crate::columns::Column;
    use crate::part::{PartFile, RowSizes};
    use crate::scan::Query;

    /// A day of these rows, given by the lengths of their responses.
    async fn written(archive: &Archive, lengths: &[usize]) -> Arc<Manifest> {
        let day = NaiveDate::from_ymd_opt(2026, 10, 1).unwrap();
        let text = "x".repeat(lengths.iter().copied().max().unwrap_or_default());
        let mut writer = archive.write_day(day, None, true).await.unwrap();
        let mut most = 0;
        for (number, length) in lengths.iter().enumerate() {
            let id = format!("{number:08}");
            let row = LogRow {
                request_id: &id,
                start_time: start_of(day) + number as i64,
                response: text.get(..*length),
                ..LogRow::default()
            };
            writer.push(&row).await.unwrap();
            most = most.max(writer.builders.bytes());
        }
        assert!(most < BATCH_BYTES, "{most} bytes wait to be encoded at once");
        let prepared = writer.finish().await.unwrap();
        prepared.verify().await.unwrap();
        archive.commit(&prepared, Value::Null).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn large_rows_are_never_many_at_once() {
        let root = tempfile::tempdir().unwrap();
        let archive = Archive::open(root.path().to_str().unwrap(), Options::default()).await.unwrap();
        // Text of 300 MiB that is small when it is compressed.
        let mut lengths = vec![1; 5_000];
        lengths.extend([1 << 20; 300]);
        lengths.extend([1; 5_000]);
        let manifest = written(&archive, &lengths).await;
        let file = PartFile::open(&archive.inner, &manifest.parts[0]).await.unwrap();
        let groups: Vec<i64> = file.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
        assert!(groups.len() == 2 && groups.iter().sum::<i64>() == 10_300, "{groups:?}");
        let sizes = RowSizes::of(file.metadata(), 0, &Column::ALL);
        let (small, large) = (sizes.of_row(10), sizes.of_row(5_100));
        assert!(small < 2_000 && ((1 << 20)..(3 << 20)).contains(&large), "{small} {large}");
        assert!((4..=16).contains(&sizes.rows_within(BATCH_BYTES, BATCH)));
        let few = RowSizes::of(file.metadata(), 0, &[Column::RequestId, Column::StartTime]);
        assert_eq!(few.rows_within(BATCH_BYTES, BATCH), BATCH, "a column that is not read does not count");
        let rows = archive.scan(&[(manifest.day, 1)], Query::default());
        let read: Vec<usize> =
            rows.map_ok(|row| row.response.map_or(0, |text| text.len())).try_collect().await.unwrap();
        assert!(read == lengths);
    }
}
