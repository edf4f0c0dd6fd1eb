//! Rows become the bytes of a Parquet file, and their IDs become digests.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;

use crate::columns::{Column, SCHEMA};
use crate::content::ContentHasher;
use crate::error::{Error, Result};
use crate::format::properties;
use crate::ids::{DigestCollector, IdKind};

/// The size in memory at which a row group ends. Text that compresses well would otherwise make groups of any size, which
/// readers have to hold.
const GROUP_BYTES: usize = 256 * 1024 * 1024;

/// Takes what the Parquet writer writes.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<Vec<u8>>>>);

/// Smaller writes are collected up to this size.
const PIECE: usize = 256 * 1024;

impl Sink {
    fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut pieces = self.0.lock();
        match pieces.last_mut() {
            Some(piece) if piece.len() + bytes.len() <= PIECE => piece.extend_from_slice(bytes),
            _ => {
                let mut piece = Vec::with_capacity(bytes.len().max(PIECE));
                piece.extend_from_slice(bytes);
                pieces.push(piece);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Encodes the rows of one file.
pub(super) struct Encoder {
    writer: ArrowWriter<Sink>,
    sink: Sink,
    content: ContentHasher,
    path: String,
    /// The size in memory of the rows of the row group that is open.
    in_group: usize,
}

impl Encoder {
    pub(super) fn new(path: &str, rows_per_group: usize) -> Result<Self> {
        let sink = Sink::default();
        // The Arrow schema in the metadata would only say again what the Parquet schema says.
        let options =
            ArrowWriterOptions::new().with_properties(properties(rows_per_group)?).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(sink.clone(), Arc::clone(&SCHEMA), options);
        let writer = writer.map_err(|error| Error::of_parquet(path, error))?;
        Ok(Self { writer, sink, content: ContentHasher::new(), path: path.to_owned(), in_group: 0 })
    }

    /// Writes a batch that takes about this many bytes in memory.
    fn write(&mut self, batch: &RecordBatch, bytes: usize) -> Result<()> {
        let failed = |error| Error::of_parquet(&self.path, error);
        self.content.update(batch);
        self.writer.write(batch).map_err(failed)?;
        let (rows, open) = (batch.num_rows(), self.writer.in_progress_rows());
        // The writer may have ended a row group by itself.
        let share = bytes.checked_div(rows).unwrap_or_default().saturating_mul(open.min(rows));
        self.in_group = if open > rows { self.in_group.saturating_add(bytes) } else { share };
        if self.in_group >= GROUP_BYTES {
            self.in_group = 0;
            self.writer.flush().map_err(failed)?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(Vec<Vec<u8>>, String)> {
        self.writer.finish().map_err(|error| Error::of_parquet(&self.path, error))?;
        Ok((self.sink.take(), self.content.finish()))
    }
}

/// What a batch leaves behind when it is encoded.
pub(super) struct Encoded {
    pub(super) encoder: Encoder,
    pub(super) digests: DigestCollector,
    pub(super) pieces: Vec<Vec<u8>>,
}

pub(super) fn encode(
    mut encoder: Encoder,
    mut digests: DigestCollector,
    batch: &RecordBatch,
    bytes: usize,
) -> Result<Encoded> {
    encoder.write(batch, bytes)?;
    let texts = |column: Column| batch.columns().get(column.index()).and_then(|array| array.as_string_opt::<i32>());
    for (kind, column) in [(IdKind::RequestId, Column::RequestId), (IdKind::CallId, Column::LitellmCallId)] {
        texts(column).into_iter().flatten().flatten().try_for_each(|id| digests.add(kind, id))?;
    }
    for (kind, column) in [
        (IdKind::Session, Column::SessionId),
        (IdKind::ApiKey, Column::ApiKey),
        (IdKind::User, Column::User),
        (IdKind::EndUser, Column::EndUser),
        (IdKind::Team, Column::TeamId),
    ] {
        texts(column).into_iter().flatten().flatten().try_for_each(|id| digests.add_repeating(kind, id))?;
    }
    let pieces = encoder.sink.take();
    Ok(Encoded { encoder, digests, pieces })
}
