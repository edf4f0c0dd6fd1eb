//! How the Parquet files are written.

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::columns::{Column, Kind, SCHEMA_VERSION};
use crate::error::{Error, Result};

/// The size at which a page ends. A row is read by decoding a page of each column.
const PAGE_BYTES: usize = 64 * 1024;
/// The same for columns that have another text in each row: of rows that lie far apart, little else is decoded.
const WIDE_PAGE_BYTES: usize = 8 * 1024;
const PAGE_ROWS: usize = 20_000;
/// Beyond this size of a dictionary, values are written as they are: a read needs the whole dictionary.
const DICTIONARY_BYTES: usize = 128 * 1024;
/// The estimated size at which a row group ends even if it has few rows.
const GROUP_BYTES: usize = 64 * 1024 * 1024;
/// The share of wrong answers of a bloom filter at most.
const FALSE_POSITIVES: f64 = 0.05;

pub(crate) fn properties(rows_per_group: usize) -> Result<WriterProperties> {
    // With level 3, the days of a benchmark were smaller by 2 %, but compressing them was 7 % of the work of closing.
    let zstd = ZstdLevel::try_new(1).map_err(Error::local)?;
    let rows_per_group = rows_per_group.max(1);
    let version = KeyValue::new("litespend.schema_version".to_owned(), SCHEMA_VERSION.to_string());
    let mut properties = WriterProperties::builder()
        .set_created_by("litespend-archive".to_owned())
        .set_compression(Compression::ZSTD(zstd))
        .set_data_page_size_limit(PAGE_BYTES)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES)
        .set_max_row_group_row_count(Some(rows_per_group))
        .set_max_row_group_bytes(Some(GROUP_BYTES))
        .set_key_value_metadata(Some(vec![version]))
        .set_sorting_columns(Some(vec![ascending(Column::StartTime), ascending(Column::RequestId)]));
    for column in Column::ALL {
        let path = || ColumnPath::from(column.name());
        // A dictionary of other columns would only be given up after a while.
        if !column.has_dictionary() {
            properties = properties.set_column_dictionary_enabled(path(), false);
        }
        if matches!(column, Column::RequestId | Column::LitellmCallId | Column::SessionId | Column::Metadata) {
            properties = properties.set_column_data_page_size_limit(path(), WIDE_PAGE_BYTES);
        }
        if column.is_document() {
            properties = properties.set_column_statistics_enabled(path(), EnabledStatistics::None);
        }
        if matches!(column.kind(), Kind::Time | Kind::OptionalTime) {
            properties = properties.set_column_encoding(path(), Encoding::DELTA_BINARY_PACKED);
        }
        if column.has_bloom_filter() {
            // The filter is folded to the number of values that there are in the row group.
            properties = properties
                .set_column_bloom_filter_enabled(path(), true)
                .set_column_bloom_filter_fpp(path(), FALSE_POSITIVES)
                .set_column_bloom_filter_max_ndv(path(), rows_per_group as u64);
        }
    }
    Ok(properties.build())
}

fn ascending(column: Column) -> SortingColumn {
    let column_idx = i32::try_from(column.index()).unwrap_or_default();
    SortingColumn { column_idx, descending: false, nulls_first: false }
}
