//! Reads the rows of a file. The first character of the file determines its format. Memory is bounded by the longest
//! row.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use flate2::read::MultiGzDecoder;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::json_bounds;
use crate::json_bounds::Bounds;

/// The largest number of bytes in a row, after decompression.
const LONGEST_ROW: u64 = 16 * 1024 * 1024;

/// The largest number of columns in a CSV file.
const MAX_COLUMNS: usize = 1000;

/// The bounds of a row that is parsed into a tree.
const TREE: Bounds = Bounds::of_tree(200_000, 100);

/// Receives a row: its number (its line, or its place in an array, from 1), a function that returns its text, and its fields or the error in it. If it returns
/// an error, reading ends.
pub(super) type TakeRow<'a> =
    dyn FnMut(u64, &dyn Fn() -> String, Result<Map<String, Value>, String>) -> anyhow::Result<()> + 'a;

/// A reader for the rows of a file.
pub(super) struct Rows {
    input: Box<dyn BufRead + Send>,
    size: Option<u64>,
}

/// Counts the bytes that are read, before decompression.
struct Counting<R> {
    inner: R,
    position: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.position.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Fails when a row is too long. A small compressed file may expand to an enormous row.
struct OneRow<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for OneRow<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64);
        let left = left.ok_or_else(|| std::io::Error::other(format!("a row is longer than {LONGEST_ROW} bytes")))?;
        self.left.set(left);
        Ok(read)
    }
}

/// Parses the fields of a row, or returns the error in it.
fn fields(text: &[u8]) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "not a JSON object: not UTF-8".to_owned())?;
    if let Err(Some(excess)) = json_bounds::check(text, TREE) {
        return Err(format!("the row {}", excess.what));
    }
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}

impl Rows {
    /// Opens a file, or standard input for `-`. Decompresses gzip. `position` counts the bytes that are read.
    pub(super) fn open(path: &Path, position: Arc<AtomicU64>) -> anyhow::Result<Self> {
        let (inner, size): (Box<dyn Read + Send>, _) = if path.as_os_str() == "-" {
            (Box::new(std::io::stdin()), None)
        } else {
            let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            let size = file.metadata().ok().map(|metadata| metadata.len());
            (Box::new(file), size)
        };
        let mut input = BufReader::with_capacity(256 * 1024, Counting { inner, position });
        let packed = input.fill_buf().context("cannot read")?.starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn BufRead + Send> = if packed {
            Box::new(BufReader::with_capacity(256 * 1024, MultiGzDecoder::new(input)))
        } else {
            Box::new(input)
        };
        Ok(Self { input, size })
    }

    /// The size of the file in bytes. `None` for standard input.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Reads all rows and passes each to `take`.
    pub(super) fn for_each(&mut self, take: &mut TakeRow<'_>) -> anyhow::Result<()> {
        let mut empty_lines = 0;
        let first = loop {
            let buffer = self.input.fill_buf().context("cannot read")?;
            match buffer.first() {
                None => return Ok(()),
                // Spreadsheets write a byte-order mark.
                Some(0xef) if buffer.starts_with(&[0xef, 0xbb, 0xbf]) => self.input.consume(3),
                Some(byte) if byte.is_ascii_whitespace() => {
                    empty_lines += u64::from(*byte == b'\n');
                    self.input.consume(1);
                }
                Some(byte) => break *byte,
            }
        };
        match first {
            b'[' => self.array(take),
            b'{' => self.lines(empty_lines, take),
            _ => self.csv(empty_lines, take),
        }
    }

    /// Reads JSON lines, after some empty lines.
    fn lines(&mut self, empty_lines: u64, take: &mut TakeRow<'_>) -> anyhow::Result<()> {
        let mut line = Vec::new();
        for number in empty_lines + 1.. {
            line.clear();
            let mut input = self.input.by_ref().take(LONGEST_ROW + 2);
            if input.read_until(b'\n', &mut line).context("cannot read")? == 0 {
                return Ok(());
            }
            let text = line.trim_ascii();
            if text.len() as u64 > LONGEST_ROW || (line.len() as u64 > LONGEST_ROW + 1 && !line.ends_with(b"\n")) {
                bail!("line {number} is longer than {LONGEST_ROW} bytes");
            }
            if text.is_empty() {
                continue;
            }
            take(number, &|| String::from_utf8_lossy(text).into_owned(), fields(text))?;
        }
        Ok(())
    }

    /// Reads an array, with which the file must end.
    fn array(&mut self, take: &mut TakeRow<'_>) -> anyhow::Result<()> {
        let mut failed = None;
        let left = Rc::new(Cell::new(LONGEST_ROW));
        let input = OneRow { inner: &mut self.input, left: Rc::clone(&left) };
        let mut deserializer = serde_json::Deserializer::from_reader(input);
        let result = Elements { take, failed: &mut failed, left }.deserialize(&mut deserializer);
        if let Some(error) = failed {
            return Err(error);
        }
        result.context("not a JSON array")?;
        deserializer.end().context("something follows the JSON array")
    }

    /// Reads CSV, after some empty lines.
    fn csv(&mut self, empty_lines: u64, take: &mut TakeRow<'_>) -> anyhow::Result<()> {
        let left = Rc::new(Cell::new(LONGEST_ROW));
        let input = OneRow { inner: &mut self.input, left: Rc::clone(&left) };
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
        let headers = reader.byte_headers().context("cannot read the header")?.clone();
        if headers.len() > MAX_COLUMNS {
            bail!("the header has more than {MAX_COLUMNS} columns");
        }
        let headers: Vec<String> = headers.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
        if !headers.iter().any(|name| name == "request_id") {
            bail!(
                "the file is neither JSON nor CSV whose header has the column request_id (\\copy ... WITH (FORMAT csv, \
                 HEADER))"
            );
        }
        let mut record = csv::ByteRecord::new();
        loop {
            let line = reader.position().line();
            left.set(LONGEST_ROW);
            if !reader.read_byte_record(&mut record).context("cannot read")? {
                return Ok(());
            }
            let line = record.position().map_or(line, csv::Position::line);
            let row = csv_row(&headers, &record);
            let text = || record.iter().map(String::from_utf8_lossy).collect::<Vec<_>>().join(",");
            take(empty_lines + line, &text, row)?;
        }
    }
}

fn csv_row(headers: &[String], record: &csv::ByteRecord) -> Result<Map<String, Value>, String> {
    if record.len() != headers.len() {
        return Err(format!("{} columns instead of {}", record.len(), headers.len()));
    }
    let cell = |(name, cell): (&String, &[u8])| {
        let text = std::str::from_utf8(cell).map_err(|_| format!("{name}: is not UTF-8"))?;
        Ok((name.clone(), Value::from(text)))
    };
    headers.iter().zip(record.iter()).map(cell).collect()
}

/// Reads the elements of an array one at a time.
struct Elements<'a, 'b> {
    take: &'a mut TakeRow<'b>,
    failed: &'a mut Option<anyhow::Error>,
    left: Rc<Cell<u64>>,
}

impl<'de> DeserializeSeed<'de> for Elements<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(element) = elements.next_element::<Box<RawValue>>()? {
            number += 1;
            self.left.set(LONGEST_ROW);
            let row = fields(element.get().as_bytes());
            if let Err(error) = (self.take)(number, &|| element.get().to_owned(), row) {
                *self.failed = Some(error);
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers and ids of the rows of a file, and the error at its end.
    fn read(text: &str) -> (Vec<(u64, Option<String>)>, Option<String>) {
        let mut rows = Rows { input: Box::new(std::io::Cursor::new(text.to_owned())), size: None };
        let mut found = Vec::new();
        let result = rows.for_each(&mut |number, _, row| {
            let id = row.ok().and_then(|row| Some(row.get("request_id")?.as_str()?.to_owned()));
            found.push((number, id));
            Ok(())
        });
        (found, result.err().map(|error| error.to_string()))
    }

    fn rows(found: &[(u64, &str)]) -> Vec<(u64, Option<String>)> {
        found.iter().map(|(number, id)| (*number, Some((*id).to_owned()))).collect()
    }

    #[test]
    fn an_array_is_the_whole_file() {
        let array = r#"[{"request_id": "a"}, {"request_id": "b"}]"#;
        assert_eq!(read(&format!("{array}\n \n")), (rows(&[(1, "a"), (2, "b")]), None));
        let (found, error) = read(&format!("{array}{array}"));
        assert_eq!(found, rows(&[(1, "a"), (2, "b")]));
        assert_eq!(error.as_deref(), Some("something follows the JSON array"));
    }

    #[test]
    fn white_space_before_the_first_row_does_not_change_the_form() {
        assert_eq!(read("\n  [{\"request_id\": \"a\"}]"), (rows(&[(1, "a")]), None));
        assert_eq!(read("\n\n{\"request_id\": \"a\"}\n\n{\"request_id\": \"b\"}"), (rows(&[(3, "a"), (5, "b")]), None));
        assert_eq!(read("\nrequest_id,model\na,m\n"), (rows(&[(3, "a")]), None));
    }

    #[test]
    fn a_row_may_be_as_long_as_the_limit() {
        let line = |length: usize| {
            let frame = r#"{"request_id": "a", "x": ""}"#.len();
            format!(r#"{{"request_id": "a", "x": "{}"}}"#, "y".repeat(length - frame))
        };
        let limit = usize::try_from(LONGEST_ROW).unwrap_or_default();
        for end in ["", "\n", "\r\n"] {
            let (found, error) = read(&(line(limit) + end));
            assert_eq!((found.len(), error), (1, None), "{end:?}");
        }
        let (found, error) = read(&line(limit + 1));
        assert_eq!((found.len(), error.as_deref()), (0, Some("line 1 is longer than 16777216 bytes")));
    }
}
