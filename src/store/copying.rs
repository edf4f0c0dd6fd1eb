//! Rows in PostgreSQL's binary COPY format. They arrive with less work than those of other statements: the driver prepares
//! nothing for their fields. A COPY sends messages: the first one starts with a header, each has whole rows, and a mark
//! follows after the last row.
//!
//! [`RowDecoder`] decodes all rows of a message. [`CopiedRows`] runs a statement, and returns its rows one by one.

use bytes::Bytes;
use chrono::{NaiveDate, TimeDelta};
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use sqlx::{AssertSqlSafe, PgConnection};

/// The number of fields that stands for the end.
const END: [u8; 2] = [0xff, 0xff];

/// Day 0 of PostgreSQL's calendar.
const EPOCH: NaiveDate = match NaiveDate::from_ymd_opt(2000, 1, 1) {
    Some(day) => day,
    None => NaiveDate::MIN,
};

/// A day in SQL, for statements without bind parameters. As a distance, it can also be a day before the Common Era.
pub fn literal(day: NaiveDate) -> String {
    format!("(date '2000-01-01' + ({}))", day.signed_duration_since(EPOCH).num_days())
}

/// What follows after the header: signature (11 bytes), flags (4 bytes), length of the extension (4 bytes), extension.
fn after_header(message: &[u8]) -> Result<&[u8], sqlx::Error> {
    let after = || {
        let (_, rest) = message.split_at_checked(15)?;
        let (length, rest) = rest.split_first_chunk()?;
        rest.get(usize::try_from(u32::from_be_bytes(*length)).ok()?..)
    };
    after().ok_or_else(|| sqlx::Error::Protocol("COPY: short header".into()))
}

/// Decodes the rows of a COPY, one message after the other.
#[derive(Debug)]
pub struct RowDecoder {
    columns: u16,
    expected: &'static str,
    started: bool,
}

impl RowDecoder {
    /// A decoder of rows that have this number of fields. `expected` says what a row is, for errors.
    pub fn new(columns: u16, expected: &'static str) -> Self {
        Self { columns, expected, started: false }
    }

    /// Decodes the rows of a message and appends them to `rows`. `decode` gets the fields of a row, and reads all of them. It
    /// returns `None` if they are not those of a row.
    ///
    /// # Errors
    ///
    /// A protocol error if the header is incomplete, or if something is not a row. The rows before it have been appended.
    pub fn decode<'a, T>(
        &mut self,
        message: &'a [u8],
        rows: &mut Vec<T>,
        mut decode: impl FnMut(&mut Fields<'a>) -> Option<T>,
    ) -> Result<(), sqlx::Error> {
        let mut rest = message;
        if !self.started {
            rest = after_header(message)?;
            self.started = true;
        }
        while !rest.is_empty() && !rest.starts_with(&END) {
            let decoded = Fields::of(rest, self.columns).and_then(|mut fields| Some((decode(&mut fields)?, fields.0)));
            let Some((row, next)) = decoded else {
                return Err(sqlx::Error::Protocol(format!("COPY: not {}", self.expected)));
            };
            rows.push(row);
            rest = next;
        }
        Ok(())
    }
}

/// The rows of a statement while they arrive. The driver does not track how much of them is unread. Whoever stops before
/// the end [skips the rest](Self::skip_rest). If that does not happen, the connection must not be used again.
///
/// This is for callers that keep their connection after an error: the session may hold a lock. A read is given up at any time
/// instead, and cannot wait for the rest of the rows: its connection is closed
/// ([`CopyMark`](crate::store::reading::CopyMark)).
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

    /// The next row, for [`Fields`]. `None` at the end. PostgreSQL sends each row as a message of its own.
    pub async fn next(&mut self) -> Result<Option<Bytes>, sqlx::Error> {
        while let Some(mut message) = self.messages.try_next().await? {
            if !self.started {
                message = message.slice_ref(after_header(&message)?);
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
    #[inline]
    pub fn of(row: &'a [u8], number: u16) -> Option<Self> {
        let (found, fields) = row.split_first_chunk()?;
        (u16::from_be_bytes(*found) == number).then_some(Self(fields))
    }

    /// Whether there are no more fields.
    #[inline]
    pub fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// The length of the next field. Null has a negative one.
    #[inline]
    fn length(&mut self) -> Option<Option<usize>> {
        let (length, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(usize::try_from(i32::from_be_bytes(*length)).ok())
    }

    fn bytes(&mut self) -> Option<Option<&'a [u8]>> {
        let Some(length) = self.length()? else { return Some(None) };
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Some(field))
    }

    #[inline]
    fn array<const LENGTH: usize>(&mut self) -> Option<Option<[u8; LENGTH]>> {
        let Some(length) = self.length()? else { return Some(None) };
        if length != LENGTH {
            return None;
        }
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(Some(*field))
    }

    /// A `text`.
    pub fn text(&mut self) -> Option<Option<&'a str>> {
        match self.bytes()? {
            Some(bytes) => std::str::from_utf8(bytes).ok().map(Some),
            None => Some(None),
        }
    }

    /// An `int`.
    #[inline]
    pub fn int(&mut self) -> Option<Option<i32>> {
        Some(self.array()?.map(i32::from_be_bytes))
    }

    /// A `bigint`, or a timestamp in microseconds since 2000-01-01.
    #[inline]
    pub fn long(&mut self) -> Option<Option<i64>> {
        Some(self.array()?.map(i64::from_be_bytes))
    }

    /// A `float8`.
    #[inline]
    pub fn float(&mut self) -> Option<Option<f64>> {
        Some(self.array()?.map(f64::from_be_bytes))
    }

    /// A `date`, which is sent as the number of days since 2000-01-01.
    #[inline]
    pub fn date(&mut self) -> Option<Option<NaiveDate>> {
        match self.int()? {
            Some(number) => EPOCH.checked_add_signed(TimeDelta::days(i64::from(number))).map(Some),
            None => Some(None),
        }
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

    /// A row of one `int`.
    fn row(number: i32) -> Vec<u8> {
        [&[0_u8, 1, 0, 0, 0, 4][..], &number.to_be_bytes()].concat()
    }

    #[test]
    fn rows_are_decoded_message_by_message() {
        let header = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\x02ab".to_vec();
        let (mut decoder, mut numbers) = (RowDecoder::new(1, "a number"), Vec::new());
        for message in [header.clone(), [row(1), row(2)].concat(), row(3), END.to_vec()] {
            decoder.decode(&message, &mut numbers, |fields| fields.int()?).unwrap();
        }
        assert_eq!(numbers, [1, 2, 3]);
        let error = decoder.decode(&row(4)[..9], &mut numbers, |fields| fields.int()?).unwrap_err();
        assert!(error.to_string().ends_with("COPY: not a number"), "{error}");
        let mut decoder = RowDecoder::new(1, "a number");
        let error = decoder.decode(&header[..20], &mut numbers, |fields| fields.int()?).unwrap_err();
        assert!(error.to_string().ends_with("COPY: short header"), "{error}");
    }

    #[test]
    fn dates_are_read_as_distances() {
        let date = |number: i32| Fields::of(&row(number), 1).unwrap().date();
        assert_eq!(date(0), Some(NaiveDate::from_ymd_opt(2000, 1, 1)));
        assert_eq!(date(9559), Some(NaiveDate::from_ymd_opt(2026, 3, 4)));
        assert_eq!(date(-730_120), Some(NaiveDate::from_ymd_opt(0, 12, 31)));
        assert_eq!(date(i32::MAX), None, "infinity");
    }

    #[test]
    fn days_are_written_as_distances() {
        let literal = |year, month, day| literal(NaiveDate::from_ymd_opt(year, month, day).unwrap());
        assert_eq!(literal(2000, 1, 1), "(date '2000-01-01' + (0))");
        assert_eq!(literal(2026, 3, 4), "(date '2000-01-01' + (9559))");
        assert_eq!(literal(0, 12, 31), "(date '2000-01-01' + (-730120))");
    }
}
