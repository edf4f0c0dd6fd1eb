//! Rows in PostgreSQL's binary COPY format. They arrive with less work than those of other statements: a message is a row,
//! and the driver prepares nothing for its fields.

use bytes::Bytes;
use chrono::{Datelike, NaiveDate};
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::store::rollups::copied::skip_header;

/// The number of fields that stands for the end.
const END: [u8; 2] = [0xff, 0xff];

/// 2000-01-01 as a number of days in the Common Era.
const EPOCH: i32 = 730_120;

/// A day in SQL, for statements without bind parameters. As a distance, it can also be a day before the Common Era.
pub fn literal(day: NaiveDate) -> String {
    format!("(date '2000-01-01' + ({}))", day.num_days_from_ce() - EPOCH)
}

/// The rows of a statement while they arrive. The driver does not track how much of them is unread. Whoever stops before
/// the end [skips the rest](Self::skip_rest). If that does not happen, the connection must not be used again.
pub struct CopiedRows<'c> {
    messages: BoxStream<'c, Result<Bytes, sqlx::Error>>,
    started: bool,
}

impl<'c> CopiedRows<'c> {
    /// Runs a SELECT without bind parameters. Belongs into a transaction.
    pub async fn start(connection: &'c mut PgConnection, select: &str) -> Result<Self, sqlx::Error> {
        // If a COPY fails before its first row, the driver leaves the end of the answer unread, and the connection is of no
        // use any more. So the tables are locked, and the statement is checked, by one that may fail.
        sqlx::raw_sql(AssertSqlSafe(format!("EXPLAIN {select}"))).execute(&mut *connection).await?;
        let messages = connection.copy_out_raw(&format!("COPY ({select}) TO STDOUT (FORMAT binary)")).await?;
        Ok(Self { messages, started: false })
    }

    /// The next row, for [`Fields`]. `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, sqlx::Error> {
        while let Some(mut message) = self.messages.try_next().await? {
            if !self.started {
                skip_header(&mut message)?;
                self.started = true;
            }
            // The header may come alone, and the mark of the end does.
            if !message.is_empty() && !message.starts_with(&END) {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Reads to the end, so that the connection can be used again.
    pub async fn skip_rest(&mut self) -> Result<(), sqlx::Error> {
        while self.messages.try_next().await?.is_some() {}
        Ok(())
    }
}

/// The fields of a row, one after the other. Each method reads the next field: `None` if it is not of that kind,
/// `Some(None)` if it is null.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The fields of a row. `None` if their number is another one.
    pub fn of(row: &'a [u8], number: u16) -> Option<Self> {
        let (found, fields) = row.split_first_chunk()?;
        (u16::from_be_bytes(*found) == number).then_some(Self(fields))
    }

    fn bytes(&mut self) -> Option<Option<&'a [u8]>> {
        let (length, rest) = self.0.split_first_chunk()?;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            // Null has a negative length.
            self.0 = rest;
            return Some(None);
        };
        let (field, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(Some(field))
    }

    fn array<const LENGTH: usize>(&mut self) -> Option<Option<[u8; LENGTH]>> {
        match self.bytes()? {
            Some(bytes) => bytes.try_into().ok().map(Some),
            None => Some(None),
        }
    }

    /// A `text`.
    pub fn text(&mut self) -> Option<Option<&'a str>> {
        match self.bytes()? {
            Some(bytes) => std::str::from_utf8(bytes).ok().map(Some),
            None => Some(None),
        }
    }

    /// An `int`.
    pub fn int(&mut self) -> Option<Option<i32>> {
        Some(self.array()?.map(i32::from_be_bytes))
    }

    /// A `bigint`, or a timestamp in microseconds since 2000-01-01.
    pub fn long(&mut self) -> Option<Option<i64>> {
        Some(self.array()?.map(i64::from_be_bytes))
    }

    /// A `float8`.
    pub fn float(&mut self) -> Option<Option<f64>> {
        Some(self.array()?.map(f64::from_be_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_one_after_the_other() {
        let float = 1.5_f64.to_be_bytes();
        let sent: [Option<&[u8]>; 5] = [Some(b"text"), None, Some(&[0, 0, 0, 7]), Some(&[0xff; 8]), Some(&float)];
        let mut row: Vec<u8> = vec![0, 5];
        for field in sent {
            row.extend_from_slice(&field.map_or(-1, |field| i32::try_from(field.len()).unwrap()).to_be_bytes());
            row.extend_from_slice(field.unwrap_or_default());
        }
        assert!(Fields::of(&row, 4).is_none());
        let mut fields = Fields::of(&row, 5).unwrap();
        assert_eq!(fields.text(), Some(Some("text")));
        assert_eq!(fields.text(), Some(None));
        assert_eq!(fields.int(), Some(Some(7)));
        assert_eq!(fields.long(), Some(Some(-1)));
        assert_eq!(fields.float(), Some(Some(1.5)));
        assert_eq!(fields.text(), None, "the row is at its end");
    }

    #[test]
    fn what_is_not_a_row_is_refused() {
        assert!(Fields::of(&[], 0).is_none());
        assert!(Fields::of(&[0], 0).is_none());
        let fields = |bytes: &'static [u8]| Fields::of(bytes, 1).unwrap();
        assert_eq!(fields(&[0, 1, 0, 0, 0]).text(), None, "a length that is cut off");
        assert_eq!(fields(&[0, 1, 0, 0, 0, 2, b'a']).text(), None, "a text that is cut off");
        assert_eq!(fields(&[0, 1, 0, 0, 0, 1, 0xff]).text(), None, "not UTF-8");
        assert_eq!(fields(&[0, 1, 0, 0, 0, 2, 0, 7]).int(), None, "a number of another size");
        assert_eq!(fields(&[0, 1, 0x7f, 0xff, 0xff, 0xff]).text(), None, "longer than the message");
    }

    #[test]
    fn days_are_written_as_distances() {
        let literal = |year, month, day| literal(NaiveDate::from_ymd_opt(year, month, day).unwrap());
        assert_eq!(literal(2000, 1, 1), "(date '2000-01-01' + (0))");
        assert_eq!(literal(2026, 3, 4), "(date '2000-01-01' + (9559))");
        assert_eq!(literal(0, 12, 31), "(date '2000-01-01' + (-730120))");
    }
}
