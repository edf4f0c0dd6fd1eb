//! Decodes the rows that a COPY of a day table sends. [`crate::store::rollups::reads`] has the statement.

use bytes::{Buf, Bytes};
use chrono::NaiveDate;

use crate::store::rollups::reads::{Entry, Rollup};

/// Day 0 of PostgreSQL's calendar.
const EPOCH: NaiveDate = match NaiveDate::from_ymd_opt(2000, 1, 1) {
    Some(day) => day,
    None => NaiveDate::MIN,
};

/// Decodes entries from PostgreSQL's binary COPY format.
#[derive(Debug)]
pub struct CopyReader {
    rollup: Rollup,
    started: bool,
}

impl CopyReader {
    /// A reader for the entries of this rollup.
    pub fn new(rollup: Rollup) -> Self {
        Self { rollup, started: false }
    }

    /// Decodes the entries of one message and appends them to `entries`. A message holds whole rows, and the first
    /// message starts with a header.
    pub fn read(&mut self, mut message: Bytes, entries: &mut Vec<Entry>) -> Result<(), sqlx::Error> {
        if !self.started {
            skip_header(&mut message)?;
            self.started = true;
        }
        while message.has_remaining() {
            match self.row(&mut message) {
                Some(Some(entry)) => entries.push(entry),
                Some(None) => break,
                None => return Err(sqlx::Error::Protocol("COPY: not a row of the rollup".into())),
            }
        }
        Ok(())
    }

    /// The next row: `Some(None)` at the end, `None` if the bytes are not a row of the rollup.
    fn row(&self, message: &mut Bytes) -> Option<Option<Entry>> {
        let fields = message.try_get_i16().ok()?;
        if fields < 0 {
            return Some(None);
        }
        if fields != if self.rollup == Rollup::Usage { 10 } else { 8 } {
            return None;
        }
        let mut entry = Entry {
            day: day(int(message)?)?,
            subject: int(message)?,
            team: int(message)?,
            api_key: int(message)?,
            model: int(message)?,
            requests: long(message)?,
            spend: f64::from_bits(long(message)?.cast_unsigned()),
            total_tokens: long(message)?,
            ..Entry::default()
        };
        if self.rollup == Rollup::Usage {
            entry.prompt_tokens = long(message)?;
            entry.completion_tokens = long(message)?;
        }
        Some(Some(entry))
    }
}

/// Skips the header of the first message of a COPY in binary format: signature (11 bytes), flags (4 bytes), length of the
/// extension (4 bytes), extension.
fn skip_header(message: &mut Bytes) -> Result<(), sqlx::Error> {
    let broken = || sqlx::Error::Protocol("COPY: short header".into());
    message.try_get_u64().map_err(|_| broken())?;
    if message.remaining() < 11 {
        return Err(broken());
    }
    message.advance(7);
    let extension = message.try_get_u32().map_err(|_| broken())? as usize;
    if message.remaining() < extension {
        return Err(broken());
    }
    message.advance(extension);
    Ok(())
}

/// Reads a length, which must be 4, and a field of four bytes.
fn int(message: &mut Bytes) -> Option<i32> {
    (message.try_get_i32().ok()? == 4).then(|| message.try_get_i32().ok()).flatten()
}

/// Reads a length, which must be 8, and a field of eight bytes.
fn long(message: &mut Bytes) -> Option<i64> {
    (message.try_get_i32().ok()? == 8).then(|| message.try_get_i64().ok()).flatten()
}

/// Converts a PostgreSQL date, which counts days since 2000-01-01.
fn day(number: i32) -> Option<NaiveDate> {
    EPOCH.checked_add_signed(chrono::TimeDelta::days(i64::from(number)))
}

#[cfg(test)]
mod fuzz;
