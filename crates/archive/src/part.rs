//! Reading from a Parquet file whose blocks are checked.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::RecordBatch;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryStreamExt};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::arrow::async_reader::{AsyncFileReader, MetadataFetch};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::bloom_filter::Sbbf;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};

use crate::archive::Inner;
use crate::blocks::{BlockReader, VerifiedObject};
use crate::columns::{Column, SCHEMA};
use crate::error::{Error, Result};
use crate::manifest::Part;

/// The most of a file's end that is read in the hope that it is the whole metadata.
const METADATA_GUESS: usize = 256 * 1024;

/// An open file.
#[derive(Debug, Clone)]
pub(crate) struct PartFile {
    reader: BlockReader,
    object: VerifiedObject,
    metadata: ArrowReaderMetadata,
}

impl PartFile {
    pub(crate) async fn open(inner: &Inner, part: &Part) -> Result<Self> {
        let object = VerifiedObject::from(&part.object);
        let reader = inner.reader.clone();
        if let Some(metadata) = inner.metadata.get(object.path()) {
            inner.damage.check(object.path())?;
            return Ok(Self { reader, object, metadata });
        }
        let metadata = read_metadata(&reader, &object).await?;
        inner.metadata.insert(Arc::clone(object.path()), metadata.clone());
        Ok(Self { reader, object, metadata })
    }

    pub(crate) fn metadata(&self) -> &ParquetMetaData {
        self.metadata.metadata()
    }

    pub(crate) fn row_group(&self, group: usize) -> Option<&RowGroupMetaData> {
        self.metadata().row_groups().get(group)
    }

    /// The chosen rows of a row group.
    pub(crate) async fn read(
        &self,
        group: usize,
        rows: RowSelection,
        columns: &[Column],
        batch: usize,
    ) -> Result<Vec<RecordBatch>> {
        let failed = |error| Error::of_parquet(self.object.path(), error);
        let file = CheckedFile {
            reader: self.reader.clone(),
            object: self.object.clone(),
            metadata: Arc::clone(self.metadata.metadata()),
        };
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), columns.iter().map(|column| column.index()));
        let stream = ParquetRecordBatchStreamBuilder::new_with_metadata(file, self.metadata.clone())
            .with_row_groups(vec![group])
            .with_row_selection(rows)
            .with_projection(mask)
            .with_batch_size(batch)
            .build()
            .map_err(failed)?;
        stream.try_collect().await.map_err(failed)
    }

    /// Whether a column of a row group may have one of these values.
    pub(crate) async fn may_contain(&self, group: usize, column: Column, values: &[String]) -> Result<bool> {
        let Some(chunk) = self.row_group(group).and_then(|group| group.columns().get(column.index())) else {
            return Ok(true);
        };
        let offset = chunk.bloom_filter_offset().and_then(|offset| u64::try_from(offset).ok());
        let length = chunk.bloom_filter_length().and_then(|length| u64::try_from(length).ok());
        let (Some(offset), Some(length)) = (offset, length) else { return Ok(true) };
        let bytes = self.reader.read(&self.object, offset..offset.saturating_add(length)).await?;
        let filter = Sbbf::from_bytes(&bytes).map_err(|error| Error::of_parquet(self.object.path(), error))?;
        Ok(values.iter().any(|value| filter.check(value.as_str())))
    }
}

/// Reads the metadata at the end of a file.
pub(crate) async fn read_metadata(reader: &BlockReader, object: &VerifiedObject) -> Result<ArrowReaderMetadata> {
    let failed = |error| Error::of_parquet(object.path(), error);
    let fetch = Fetch { reader, object };
    let metadata = ParquetMetaDataReader::new()
        .with_prefetch_hint(Some(METADATA_GUESS.min(usize::try_from(object.bytes()).unwrap_or(METADATA_GUESS))))
        .with_page_index_policy(PageIndexPolicy::Optional)
        .load_and_finish(fetch, object.bytes())
        .await
        .map_err(failed)?;
    let options = ArrowReaderOptions::new().with_schema(Arc::clone(&SCHEMA));
    ArrowReaderMetadata::try_new(Arc::new(metadata), options).map_err(failed)
}

struct Fetch<'a> {
    reader: &'a BlockReader,
    object: &'a VerifiedObject,
}

impl MetadataFetch for Fetch<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        let read = self.reader.read(self.object, range);
        async move { read.await.map_err(|error| ParquetError::External(Box::new(error))) }.boxed()
    }
}

struct CheckedFile {
    reader: BlockReader,
    object: VerifiedObject,
    metadata: Arc<ParquetMetaData>,
}

impl AsyncFileReader for CheckedFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        let read = self.reader.read(&self.object, range);
        async move { read.await.map_err(|error| ParquetError::External(Box::new(error))) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move {
            let read = self.reader.read_ranges(&self.object, &ranges).await;
            read.map_err(|error| ParquetError::External(Box::new(error)))
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        let metadata = Arc::clone(&self.metadata);
        async move { Ok(metadata) }.boxed()
    }
}
