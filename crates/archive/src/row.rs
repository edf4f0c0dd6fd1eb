//! Rows as they are read.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};

use crate::columns::{COLUMNS, Column};

/// Where each column is in a batch that holds some of the columns.
#[derive(Debug, Clone)]
pub(crate) struct Positions([Option<usize>; COLUMNS]);

impl Positions {
    /// The positions in a batch of these columns, which is in the order of the files.
    pub(crate) fn of(columns: &[Column]) -> Self {
        let mut sorted = columns.to_vec();
        sorted.sort();
        sorted.dedup();
        let mut positions = [None; COLUMNS];
        for (position, column) in sorted.into_iter().enumerate() {
            if let Some(slot) = positions.get_mut(column.index()) {
                *slot = Some(position);
            }
        }
        Self(positions)
    }

    pub(crate) fn array<'a>(&self, batch: &'a RecordBatch, column: Column) -> Option<&'a ArrayRef> {
        let position = self.0.get(column.index()).copied().flatten()?;
        batch.columns().get(position)
    }
}

/// One row of a batch, with the columns that were read.
#[derive(Debug, Clone, Copy)]
pub struct RowView<'a> {
    batch: &'a RecordBatch,
    positions: &'a Positions,
    row: usize,
}

impl<'a> RowView<'a> {
    pub(crate) fn new(batch: &'a RecordBatch, positions: &'a Positions, row: usize) -> Self {
        Self { batch, positions, row }
    }

    /// The value of a text column. `None` if it is null or was not read.
    pub fn text(&self, column: Column) -> Option<&'a str> {
        let array = self.positions.array(self.batch, column)?.as_string_opt::<i32>()?;
        (self.row < array.len() && array.is_valid(self.row)).then(|| array.value(self.row))
    }

    /// The value of a column of numbers or times (microseconds since 1970-01-01 UTC). `None` if it is null or was not
    /// read.
    pub fn integer(&self, column: Column) -> Option<i64> {
        let array = self.positions.array(self.batch, column)?;
        if self.row >= array.len() || array.is_null(self.row) {
            return None;
        }
        if let Some(numbers) = array.as_primitive_opt::<Int32Type>() {
            return Some(i64::from(numbers.value(self.row)));
        }
        array.as_primitive_opt::<TimestampMicrosecondType>().map(|times| times.value(self.row))
    }

    /// The value of `spend`. `None` if it was not read.
    pub fn float(&self, column: Column) -> Option<f64> {
        let array = self.positions.array(self.batch, column)?.as_primitive_opt::<Float64Type>()?;
        (self.row < array.len() && array.is_valid(self.row)).then(|| array.value(self.row))
    }
}
