//! Decodes the rows that a COPY of a day table sends. [`crate::store::rollups::reads`] has the statement.

use crate::store::copying::{Fields, RowDecoder};
use crate::store::rollups::reads::{Entry, Rollup};

/// Decodes entries from PostgreSQL's binary COPY format.
#[derive(Debug)]
pub struct CopyReader {
    rollup: Rollup,
    decoder: RowDecoder,
}

impl CopyReader {
    /// A reader for the entries of this rollup.
    pub fn new(rollup: Rollup) -> Self {
        let columns = if rollup == Rollup::Usage { 10 } else { 8 };
        Self { rollup, decoder: RowDecoder::new(columns, "a row of the rollup") }
    }

    /// Decodes the entries of one message and appends them to `entries`.
    pub fn read(&mut self, message: &[u8], entries: &mut Vec<Entry>) -> Result<(), sqlx::Error> {
        let rollup = self.rollup;
        self.decoder.decode(message, entries, |fields| entry(rollup, fields))
    }
}

/// The entry in a row. `None` if the fields are not those of the rollup.
#[inline]
fn entry(rollup: Rollup, fields: &mut Fields<'_>) -> Option<Entry> {
    let mut entry = Entry {
        day: fields.date()??,
        subject: fields.int()??,
        team: fields.int()??,
        api_key: fields.int()??,
        model: fields.int()??,
        requests: fields.long()??,
        spend: fields.float()??,
        total_tokens: fields.long()??,
        ..Entry::default()
    };
    if rollup == Rollup::Usage {
        entry.prompt_tokens = fields.long()??;
        entry.completion_tokens = fields.long()??;
    }
    Some(entry)
}

#[cfg(test)]
mod fuzz;
