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
use crate::columns::{Column, DICTIONARY_SCHEMA, SCHEMA};
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
            inner.damage.check(object.path()).await?;
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
        self.read_as(self.metadata.clone(), group, rows, columns, batch).await
    }

    /// The chosen rows of a row group, with dictionaries where the file has them.
    pub(crate) async fn read_dictionaries(
        &self,
        group: usize,
        rows: RowSelection,
        columns: &[Column],
        batch: usize,
    ) -> Result<Vec<RecordBatch>> {
        let options = ArrowReaderOptions::new().with_schema(Arc::clone(&DICTIONARY_SCHEMA));
        let metadata = ArrowReaderMetadata::try_new(Arc::clone(self.metadata.metadata()), options);
        let metadata = metadata.map_err(|error| Error::of_parquet(self.object.path(), error))?;
        self.read_as(metadata, group, rows, columns, batch).await
    }

    async fn read_as(
        &self,
        metadata: ArrowReaderMetadata,
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
        let stream = ParquetRecordBatchStreamBuilder::new_with_metadata(file, metadata)
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

/// About how many bytes the rows of a row group take in memory, by the sizes of its pages.
#[derive(Debug)]
pub(crate) struct RowSizes {
    /// For each column of text, the first row of each page and the bytes of one of its rows.
    columns: Vec<Vec<(usize, usize)>>,
    /// The bytes of a row in all other columns.
    others: usize,
}

impl RowSizes {
    pub(crate) fn of(metadata: &ParquetMetaData, group: usize, columns: &[Column]) -> Self {
        let mut sizes = Self { columns: Vec::new(), others: 0 };
        let Some(row_group) = metadata.row_groups().get(group) else { return sizes };
        let rows = usize::try_from(row_group.num_rows()).unwrap_or_default();
        let pages = metadata.page_index_for_row_group(group);
        for column in columns {
            let offsets = pages.offset_index(column.index()).filter(|_| column.is_text());
            let texts = offsets.and_then(|offsets| Some((offsets, offsets.unencoded_byte_array_data_bytes()?)));
            let Some((offsets, texts)) = texts else {
                let chunk = row_group.columns().get(column.index());
                let bytes = chunk.and_then(|chunk| usize::try_from(chunk.uncompressed_size()).ok()).unwrap_or_default();
                sizes.others += bytes.div_ceil(rows.max(1));
                continue;
            };
            let starts = offsets.page_locations().iter();
            let starts: Vec<usize> = starts.map(|page| usize::try_from(page.first_row_index).unwrap_or(0)).collect();
            let ends = starts.iter().skip(1).copied().chain([rows]);
            let pages = starts.iter().zip(ends).zip(texts).map(|((start, end), bytes)| {
                let bytes = usize::try_from(*bytes).unwrap_or_default();
                (*start, bytes.div_ceil(end.saturating_sub(*start).max(1)))
            });
            sizes.columns.push(pages.collect());
        }
        sizes
    }

    /// About how many bytes a row takes.
    pub(crate) fn of_row(&self, row: usize) -> usize {
        let texts = self.columns.iter().filter_map(|pages| {
            let page = pages.partition_point(|(start, _)| *start <= row).checked_sub(1)?;
            pages.get(page).map(|(_, bytes)| *bytes)
        });
        texts.fold(self.others, usize::saturating_add)
    }

    /// How many rows take no more than these bytes wherever they are: one at least, and `most` at most.
    pub(crate) fn rows_within(&self, bytes: usize, most: usize) -> usize {
        let largest = self.columns.iter().filter_map(|pages| pages.iter().map(|(_, bytes)| *bytes).max());
        let largest = largest.fold(self.others, usize::saturating_add);
        (bytes / largest.max(1)).clamp(1, most)
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
