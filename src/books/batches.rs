//! Archived rows in batches that one statement takes.

use litespend_archive::OwnedRow;

use crate::store::books::restoring;

/// Rows of one statement.
const ROWS: usize = 1_000;

/// Bytes of long columns of one statement. PostgreSQL takes no message of more than 1 GB, and each copy of it is memory.
pub const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Rows that are collected for a statement.
#[derive(Debug, Default)]
pub struct Batch {
    rows: Vec<OwnedRow>,
    bytes: usize,
}

impl Batch {
    /// Adds a row. Returns all rows if they are enough for a statement.
    pub fn push(&mut self, row: OwnedRow) -> Option<Vec<OwnedRow>> {
        self.bytes += bytes_of(&row);
        self.rows.push(row);
        if self.rows.len() < ROWS && self.bytes < BATCH_BYTES {
            return None;
        }
        self.bytes = 0;
        Some(std::mem::take(&mut self.rows))
    }

    /// The rows that are left.
    pub fn rest(self) -> Option<Vec<OwnedRow>> {
        (!self.rows.is_empty()).then_some(self.rows)
    }
}

/// Number of bytes in the long columns of a row.
pub fn bytes_of(row: &OwnedRow) -> usize {
    restoring::text_bytes(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bytes: usize) -> OwnedRow {
        OwnedRow { response: Some("x".repeat(bytes)), ..OwnedRow::default() }
    }

    #[test]
    fn a_batch_ends_by_rows_or_by_bytes() {
        let mut batch = Batch::default();
        assert!((1..ROWS).all(|_| batch.push(row(1)).is_none()));
        assert_eq!(batch.push(row(1)).unwrap().len(), ROWS);
        let half = BATCH_BYTES / 2;
        assert!(batch.push(row(half)).is_none());
        assert_eq!(batch.push(row(half)).unwrap().len(), 2);
        assert_eq!(batch.push(row(BATCH_BYTES)).unwrap().len(), 1);
        assert!(batch.push(row(1)).is_none());
        assert_eq!(batch.rest().unwrap().len(), 1);
        assert!(Batch::default().rest().is_none());
    }
}
