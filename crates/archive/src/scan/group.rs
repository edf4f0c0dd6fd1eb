//! The rows of one row group: conditions first, and then the columns of the rows that fulfil them.

use std::collections::VecDeque;
use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float64Type, Int32Type, TimestampMicrosecondType};
use arrow_array::{Array, PrimitiveArray, RecordBatch};
use parquet::arrow::arrow_reader::RowSelection;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;

use crate::columns::{Column, OwnedRow};
use crate::error::Result;
use crate::part::{PartFile, RowSizes};
use crate::row::{Positions, RowView};
use crate::scan::cursor::CHUNK;
use crate::scan::prune::candidate_rows;
use crate::scan::{Plan, compare};

/// Memory for the rows that are read at once, roughly.
pub(super) const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// Rows whose conditions are tested at once: at first, and at most.
const FIRST_SLICE: usize = 8_192;
const MOST_SLICE: usize = 65_536;

/// A row group that is being read.
pub(super) struct Group {
    group: usize,
    rows: usize,
    /// Rows whose conditions were not tested yet, ascending.
    candidates: Vec<Range<usize>>,
    /// Rows that fulfil the conditions, in the order of the query.
    matches: VecDeque<usize>,
    /// Columns that conditions read in this row group.
    filter_columns: Vec<Column>,
    /// Columns that rows are made of, without those that are null in the whole row group.
    output_columns: Vec<Column>,
    slice: usize,
    most_slice: usize,
    chunk: usize,
    sizes: RowSizes,
}

impl Group {
    pub(super) fn new(file: &PartFile, group: usize, plan: &Plan) -> Option<Self> {
        let metadata = file.row_group(group)?;
        let rows = usize::try_from(metadata.num_rows()).ok()?;
        let mut filter_columns = plan.filter_columns.clone();
        if !lies_within(metadata, &plan.times) {
            filter_columns.push(Column::StartTime);
            filter_columns.sort();
            filter_columns.dedup();
        }
        let most_slice = rows_in_memory(metadata, &filter_columns).clamp(256, MOST_SLICE);
        let mut output_columns = plan.output_columns.clone();
        output_columns.retain(|column| !is_null(metadata, *column));
        Some(Self {
            group,
            rows,
            candidates: candidate_rows(plan, file, group, rows),
            matches: VecDeque::new(),
            filter_columns,
            slice: FIRST_SLICE.min(most_slice),
            most_slice,
            chunk: plan.query.limit.map_or(CHUNK, |limit| CHUNK.min(limit.max(1))),
            sizes: RowSizes::of(file.metadata(), group, &output_columns),
            output_columns,
        })
    }

    /// The next rows in the order of the query, [`CHUNK`] at most. They may be none. `None` at the end.
    pub(super) async fn next_rows(&mut self, file: &PartFile, plan: &Plan) -> Result<Option<Vec<OwnedRow>>> {
        // Reading few rows costs nearly as much as reading many: the pages and dictionaries of all columns. So there are
        // as many as are wanted, or all that the row group has.
        while self.matches.len() < self.chunk {
            let slice = self.next_slice(plan.descending());
            if slice.is_empty() {
                break;
            }
            let tested = self.test(file, plan, slice).await?;
            if plan.descending() {
                self.matches.extend(tested.into_iter().rev());
            } else {
                self.matches.extend(tested);
            }
            self.slice = (self.slice * 2).min(self.most_slice);
        }
        if self.matches.is_empty() {
            return Ok(None);
        }
        let mut bytes = 0;
        // The row with which the memory is full comes along, so that there always is one.
        let has_room = |row: &&usize| {
            let had_room = bytes < CHUNK_BYTES;
            bytes = bytes.saturating_add(self.sizes.of_row(**row));
            had_room
        };
        let count = self.matches.iter().take(self.chunk).take_while(has_room).count();
        let mut chosen: Vec<usize> = self.matches.drain(..count).collect();
        chosen.sort_unstable();
        let selection = selection(consecutive(&chosen), self.rows);
        let batches = file.read(self.group, selection, &self.output_columns, CHUNK).await?;
        let positions = Positions::of(&self.output_columns);
        let mut rows = Vec::with_capacity(count);
        for batch in &batches {
            for row in 0..batch.num_rows() {
                let view = RowView::new(batch, &positions, row);
                let time = view.integer(Column::StartTime).unwrap_or_default();
                if plan.is_after(time, view.text(Column::RequestId).unwrap_or_default()) {
                    rows.push(OwnedRow::of(&view));
                }
            }
        }
        if plan.descending() {
            rows.reverse();
        }
        Ok(Some(rows))
    }

    /// Takes the next rows to be tested from the candidates.
    fn next_slice(&mut self, descending: bool) -> Vec<Range<usize>> {
        let mut slice = Vec::new();
        let mut room = self.slice;
        if !descending {
            self.candidates.reverse();
        }
        while room > 0
            && let Some(range) = self.candidates.pop()
        {
            let count = range.len().min(room);
            room -= count;
            let (now, later) = if descending {
                (range.end - count..range.end, range.start..range.end - count)
            } else {
                (range.start..range.start + count, range.start + count..range.end)
            };
            slice.push(now);
            if !later.is_empty() {
                self.candidates.push(later);
            }
        }
        if descending {
            slice.reverse();
        } else {
            self.candidates.reverse();
        }
        slice
    }

    /// The rows of a slice that fulfil the conditions, ascending.
    async fn test(&self, file: &PartFile, plan: &Plan, slice: Vec<Range<usize>>) -> Result<VecDeque<usize>> {
        if self.filter_columns.is_empty() {
            return Ok(slice.into_iter().flatten().collect());
        }
        let selection = selection(slice.iter().cloned(), self.rows);
        // A condition in code sees texts. Otherwise, a value is compared once, and not for each row that has it.
        let batches = if plan.query.predicate.is_some() {
            file.read(self.group, selection, &self.filter_columns, self.slice).await?
        } else {
            file.read_dictionaries(self.group, selection, &self.filter_columns, self.slice).await?
        };
        let positions = Positions::of(&self.filter_columns);
        let mut rows = slice.into_iter().flatten();
        let mut matches = VecDeque::new();
        for batch in &batches {
            let fulfilled = fulfilled(plan, batch, &positions);
            matches.extend(rows.by_ref().zip(fulfilled).filter(|(_, fulfilled)| *fulfilled).map(|(row, _)| row));
        }
        Ok(matches)
    }
}

/// For each row of a batch whether it fulfils all conditions.
fn fulfilled(plan: &Plan, batch: &RecordBatch, positions: &Positions) -> Vec<bool> {
    let query = &plan.query;
    let mut fulfilled = vec![true; batch.num_rows()];
    if let Some(times) = positions.array(batch, Column::StartTime) {
        keep(&mut fulfilled, times.as_primitive::<TimestampMicrosecondType>(), |time| plan.times.contains(&time));
    }
    for (column, values) in &query.equals {
        keep_equal(&mut fulfilled, batch, positions, (*column, values));
    }
    if !query.equals_any.is_empty() {
        let mut any = vec![false; batch.num_rows()];
        for (column, values) in &query.equals_any {
            let mut own = fulfilled.clone();
            keep_equal(&mut own, batch, positions, (*column, values));
            any.iter_mut().zip(own).for_each(|(any, own)| *any |= own);
        }
        fulfilled = any;
    }
    if (query.min_spend.is_some() || query.max_spend.is_some())
        && let Some(spend) = positions.array(batch, Column::Spend)
    {
        keep(&mut fulfilled, spend.as_primitive::<Float64Type>(), |spend| {
            query.min_spend.is_none_or(|limit| compare(spend, limit).is_ge())
                && query.max_spend.is_none_or(|limit| compare(spend, limit).is_le())
        });
    }
    if (query.min_duration_ms.is_some() || query.max_duration_ms.is_some())
        && let Some(durations) = positions.array(batch, Column::RequestDurationMs)
    {
        keep(&mut fulfilled, durations.as_primitive::<Int32Type>(), |duration| {
            query.min_duration_ms.is_none_or(|limit| duration >= limit)
                && query.max_duration_ms.is_none_or(|limit| duration <= limit)
        });
    }
    if let Some(predicate) = &query.predicate {
        for (row, fulfilled) in fulfilled.iter_mut().enumerate() {
            *fulfilled = *fulfilled && (predicate.test)(&RowView::new(batch, positions, row));
        }
    }
    fulfilled
}

/// Keeps the rows that have one of these values in a text column.
fn keep_equal(
    fulfilled: &mut [bool],
    batch: &RecordBatch,
    positions: &Positions,
    (column, values): (Column, &[String]),
) {
    let Some(texts) = positions.array(batch, column) else { return };
    let is_wanted = |text: &str| values.iter().any(|value| value == text);
    if let Some(dictionary) = texts.as_dictionary_opt::<Int32Type>() {
        let texts = dictionary.values().as_string::<i32>();
        let wanted: Vec<bool> = texts.iter().map(|text| text.is_some_and(is_wanted)).collect();
        keep(fulfilled, dictionary.keys(), |key| {
            usize::try_from(key).ok().and_then(|key| wanted.get(key)).copied().unwrap_or_default()
        });
    } else {
        for (fulfilled, text) in fulfilled.iter_mut().zip(texts.as_string::<i32>()) {
            *fulfilled = *fulfilled && text.is_some_and(is_wanted);
        }
    }
}

/// Keeps the rows whose value is not null and passes the test.
fn keep<T: ArrowPrimitiveType>(fulfilled: &mut [bool], values: &PrimitiveArray<T>, test: impl Fn(T::Native) -> bool) {
    for (fulfilled, value) in fulfilled.iter_mut().zip(values.values()) {
        *fulfilled = *fulfilled && test(*value);
    }
    if let Some(nulls) = values.nulls() {
        for (fulfilled, is_valid) in fulfilled.iter_mut().zip(nulls) {
            *fulfilled = *fulfilled && is_valid;
        }
    }
}

/// Whether a column is null in all rows, as far as that is known without reading it.
fn is_null(group: &RowGroupMetaData, column: Column) -> bool {
    let statistics = group.columns().get(column.index()).and_then(|chunk| chunk.statistics());
    let nulls = statistics.and_then(Statistics::null_count_opt);
    nulls.is_some_and(|nulls| u64::try_from(group.num_rows()) == Ok(nulls))
}

fn lies_within(group: &RowGroupMetaData, times: &Range<i64>) -> bool {
    let statistics = group.columns().get(Column::StartTime.index()).and_then(|chunk| chunk.statistics());
    match statistics {
        Some(Statistics::Int64(own)) => {
            own.min_opt().is_some_and(|first| times.contains(first))
                && own.max_opt().is_some_and(|last| times.contains(last))
        }
        _ => false,
    }
}

/// How many rows of these columns fit into the memory for rows, on average.
fn rows_in_memory(group: &RowGroupMetaData, columns: &[Column]) -> usize {
    let sizes = columns.iter().filter_map(|column| group.columns().get(column.index()));
    let bytes: u64 = sizes.map(|chunk| u64::try_from(chunk.uncompressed_size()).unwrap_or_default()).sum();
    let rows = u64::try_from(group.num_rows()).unwrap_or_default();
    let fitting = (CHUNK_BYTES as u64).saturating_mul(rows).checked_div(bytes.max(1)).unwrap_or_default();
    usize::try_from(fitting).unwrap_or(usize::MAX)
}

/// Ascending numbers as ranges.
fn consecutive(numbers: &[usize]) -> impl Iterator<Item = Range<usize>> + '_ {
    numbers.chunk_by(|a, b| a + 1 == *b).filter_map(|run| Some(*run.first()?..run.last()? + 1))
}

fn selection(ranges: impl Iterator<Item = Range<usize>>, rows: usize) -> RowSelection {
    RowSelection::from_consecutive_ranges(ranges, rows)
}
