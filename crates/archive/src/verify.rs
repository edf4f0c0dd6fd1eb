//! Reading back what was written, byte by byte and row by row.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float64Type, Int32Type, TimestampMicrosecondType};
use arrow_array::{Array, PrimitiveArray, RecordBatch, StringArray};
use bytes::{Buf, Bytes};
use chrono::NaiveDate;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use sha2::{Digest, Sha256};

use crate::archive::Archive;
use crate::blocks::{BLOCK, VerifiedObject};
use crate::columns::Column;
use crate::content::ContentHasher;
use crate::error::{Error, Result};
use crate::ids::FanOut;
use crate::manifest::{Manifest, Part, StoredObject, hexadecimal};
use crate::part::{RowSizes, read_metadata};
use crate::sums::{Sums, SumsBuilder};
use crate::write::{BATCH, BATCH_BYTES};

/// Bytes of a file of digests that are read at once.
const PIECE: u64 = 64 * BLOCK;

/// What is checked while a file is read from its start to its end.
struct Check {
    sha256: Sha256,
    content: ContentHasher,
    sums: SumsBuilder,
    first: Option<i64>,
    last: Option<(i64, String)>,
    in_order: bool,
}

impl Check {
    /// Decodes a row group. `bytes` start at `offset` of the file.
    fn row_group(
        mut self,
        metadata: ArrowReaderMetadata,
        group: usize,
        offset: u64,
        bytes: Bytes,
    ) -> Result<Self, ParquetError> {
        self.sha256.update(&bytes);
        let rows_at_once = RowSizes::of(metadata.metadata(), group, &Column::ALL).rows_within(BATCH_BYTES, BATCH);
        let rows = ParquetRecordBatchReaderBuilder::new_with_metadata(Window { offset, bytes }, metadata)
            .with_row_groups(vec![group])
            .with_batch_size(rows_at_once)
            .build()?;
        for batch in rows {
            self.rows(&batch?);
        }
        Ok(self)
    }

    fn rows(&mut self, batch: &RecordBatch) {
        self.content.update(batch);
        let array = |column: Column| batch.columns().get(column.index());
        let texts = |column| array(column).and_then(|array| array.as_string_opt::<i32>());
        let numbers = |column| array(column).and_then(|array| array.as_primitive_opt::<Int32Type>());
        let tokens = [Column::PromptTokens, Column::CompletionTokens, Column::TotalTokens].map(numbers);
        let spend = array(Column::Spend).and_then(|array| array.as_primitive_opt::<Float64Type>());
        let times = array(Column::StartTime).and_then(|array| array.as_primitive_opt::<TimestampMicrosecondType>());
        let (ids, statuses) = (texts(Column::RequestId), texts(Column::Status));
        for row in 0..batch.num_rows() {
            let tokens = tokens.map(|tokens| number(tokens, row));
            self.sums.add_values(number(spend, row), tokens, text(statuses, row));
            let (time, id) = (number(times, row), text(ids, row).unwrap_or_default());
            match &mut self.last {
                Some((last_time, last_id)) => {
                    self.in_order &= (*last_time, last_id.as_str()) < (time, id);
                    *last_time = time;
                    last_id.clear();
                    last_id.push_str(id);
                }
                none => {
                    self.first = Some(time);
                    *none = Some((time, id.to_owned()));
                }
            }
        }
    }
}

/// A number of a column, or 0 if it is null.
fn number<T: ArrowPrimitiveType>(array: Option<&PrimitiveArray<T>>, row: usize) -> T::Native {
    array.filter(|array| array.is_valid(row)).map(|array| array.value(row)).unwrap_or_default()
}

fn text(array: Option<&StringArray>, row: usize) -> Option<&str> {
    array.filter(|array| array.is_valid(row)).map(|array| array.value(row))
}

impl Archive {
    /// Reads a day in its newest revision as a whole: compares each file with its SHA-256, decodes all rows, and
    /// compares their values and sums with the manifest. Returns the manifest, or `None` if the day is not in the
    /// archive.
    ///
    /// # Errors
    /// [`Error::Damaged`] or [`Error::NotFound`] name the file that is not as it should be.
    pub async fn verify_day(&self, day: NaiveDate) -> Result<Option<std::sync::Arc<Manifest>>> {
        let Some(known) = self.manifest(day).await? else { return Ok(None) };
        // What is in memory says nothing about the store.
        self.inner.manifests.invalidate(&(day, known.revision));
        let manifest = self.manifest_at(day, known.revision).await?;
        let mut sums = SumsBuilder::default();
        for part in &manifest.parts {
            self.verify_part(part, &mut sums).await?;
        }
        self.verify_ids(&manifest.ids).await?;
        let sums: Sums = sums.finish();
        if sums != manifest.sums {
            return Err(Error::schema(crate::listing::manifest_path(day, manifest.revision), "its sums are wrong"));
        }
        Ok(Some(manifest))
    }

    /// Reads a file from its start to its end, and adds its rows to `sums`.
    pub(crate) async fn verify_part(&self, part: &Part, sums: &mut SumsBuilder) -> Result<()> {
        let object = VerifiedObject::from(&part.object);
        self.inner.reader.forget(&object);
        let metadata = read_metadata(&self.inner.reader, &object).await?;
        let mut check = Check {
            sha256: Sha256::new(),
            content: ContentHasher::new(),
            sums: std::mem::take(sums),
            first: None,
            last: None,
            in_order: true,
        };
        for (group, range) in groups(&metadata, object.bytes())?.into_iter().enumerate() {
            let bytes = self.inner.reader.read_once(&object, range.clone()).await?;
            let metadata = metadata.clone();
            let decoded = tokio::task::spawn_blocking(move || check.row_group(metadata, group, range.start, bytes));
            let decoded = decoded.await.map_err(Error::local)?;
            check = decoded.map_err(|error| Error::of_parquet(object.path(), error))?;
        }
        *sums = check.sums;
        let is_right = hexadecimal(&check.sha256.finalize()) == part.object.sha256
            && check.content.finish() == part.content
            && check.in_order
            && u64::try_from(metadata.metadata().file_metadata().num_rows()) == Ok(part.rows);
        if !is_right {
            return Err(self.inner.damage.mark(object.path()).await);
        }
        // Scans leave out files by these times.
        if check.first != Some(part.first_start) || check.last.map(|(time, _)| time) != Some(part.last_start) {
            return Err(Error::schema(&**object.path(), "its rows have other times than the manifest says"));
        }
        Ok(())
    }

    pub(crate) async fn verify_ids(&self, ids: &StoredObject) -> Result<()> {
        let object = VerifiedObject::from(ids);
        self.inner.reader.forget(&object);
        let mut sha256 = Sha256::new();
        let mut start = 0;
        while start < object.bytes() {
            let end = object.bytes().min(start + PIECE);
            sha256.update(&self.inner.reader.read_once(&object, start..end).await?);
            start = end;
        }
        if hexadecimal(&sha256.finalize()) != ids.sha256 {
            return Err(self.inner.damage.mark(object.path()).await);
        }
        FanOut::read(&self.inner.reader, &object).await.map(drop)
    }
}

/// The bytes of a file, cut at the start of each row group. The first range has the file's first bytes, the last one
/// its end.
fn groups(metadata: &ArrowReaderMetadata, bytes: u64) -> Result<Vec<Range<u64>>> {
    let groups = metadata.metadata().row_groups();
    let starts = groups.iter().skip(1).map(|group| {
        let start = group.columns().iter().map(|column| column.byte_range().0).min();
        start.ok_or_else(|| Error::local("a row group without columns"))
    });
    let mut ranges = Vec::with_capacity(groups.len());
    let mut start = 0;
    for next in starts.chain([Ok(bytes)]) {
        let next = next?;
        ranges.push(start..next);
        start = next;
    }
    Ok(ranges)
}

/// A part of a file in memory.
struct Window {
    offset: u64,
    bytes: Bytes,
}

impl Length for Window {
    fn len(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl Window {
    fn at(&self, start: u64, length: Option<usize>) -> Result<Bytes, ParquetError> {
        let outside = || ParquetError::EOF("a page lies outside its row group".to_owned());
        let start = start.checked_sub(self.offset).and_then(|start| usize::try_from(start).ok()).ok_or_else(outside)?;
        let end = length.map_or(Some(self.bytes.len()), |length| start.checked_add(length)).ok_or_else(outside)?;
        if start > end || end > self.bytes.len() { Err(outside()) } else { Ok(self.bytes.slice(start..end)) }
    }
}

impl ChunkReader for Window {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.at(start, None)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.at(start, Some(length))
    }
}
