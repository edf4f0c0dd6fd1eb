//! A JSON writer that returns its output in chunks. The writer adds every comma, brace and colon; callers only say
//! which element comes next.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;

use crate::http::error::ApiError;
use crate::http::stream::CHUNK;

/// A buffer of JSON text.
#[derive(Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
    /// The closing text of each open list and object, the innermost last.
    ends: Vec<Cow<'static, str>>,
    /// Whether a comma is needed before the next value or name.
    needs_comma: bool,
}

/// A string value to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text<'a> {
    /// The string itself. The writer escapes it.
    Plain(&'a str),
    /// A JSON literal of the string. It is written unchanged.
    Json(&'a str),
}

/// The name of a field as JSON has it: a comma, the name in quotes, and a colon. `name!` makes one at compile time, so that
/// a name is one copy into the buffer.
#[derive(Clone, Copy, Debug)]
pub struct Name(&'static str);

impl Name {
    /// For `name!` only.
    #[doc(hidden)]
    pub const fn new(text: &'static str) -> Self {
        Self(text)
    }
}

/// The [`Name`] of a field. The name must not need escaping.
macro_rules! name {
    ($name:literal) => {
        $crate::http::stream::writer::Name::new(concat!(",\"", $name, "\":"))
    };
}
pub(crate) use name;

impl Writer {
    /// A writer with an empty buffer.
    pub fn new() -> Self {
        Self { buffer: Vec::with_capacity(CHUNK + CHUNK / 4), ..Self::default() }
    }

    /// Opens a list. Its values follow.
    pub fn open_list(&mut self) {
        self.open("[", Cow::Borrowed("]"));
    }

    /// Opens an object. Its names and values follow alternately.
    pub fn open_object(&mut self) {
        self.open("{", Cow::Borrowed("}"));
    }

    /// Writes `answer` up to and including the opening bracket of its empty list `name`. The values of that list
    /// follow. [`Writer::close`] then writes the rest of `answer`.
    ///
    /// # Errors
    ///
    /// [`ApiError::Internal`] if `answer` has no list of that name, or if the list is not empty.
    pub fn open_list_of(&mut self, answer: &impl Serialize, name: &str) -> Result<(), ApiError> {
        let text = serde_json::to_string(answer).map_err(internal)?;
        let start = format!("\"{name}\":[");
        let after = text.find(&format!("{start}]")).map(|found| found + start.len());
        let after = after.ok_or_else(|| ApiError::Internal(format!("an answer without the empty list {name}")))?;
        let (before, after) = text.split_at(after);
        self.open(before, Cow::Owned(after.to_owned()));
        Ok(())
    }

    #[inline]
    fn open(&mut self, start: &str, end: Cow<'static, str>) {
        self.separate();
        self.push(start);
        self.ends.push(end);
        self.needs_comma = false;
    }

    /// Closes the innermost list or object.
    #[inline]
    pub fn close(&mut self) {
        if let Some(end) = self.ends.pop() {
            self.push(&end);
        }
        self.needs_comma = true;
    }

    /// Writes the name of a field; its value follows.
    #[inline]
    pub fn name(&mut self, name: Name) {
        let comma = usize::from(!self.needs_comma);
        self.push(name.0.get(comma..).unwrap_or_default());
        self.needs_comma = false;
    }

    /// Writes the name of a field that comes from data, with escaping; its value follows.
    pub fn text_name(&mut self, name: Text<'_>) -> Result<(), ApiError> {
        self.text(name)?;
        self.push(":");
        self.needs_comma = false;
        Ok(())
    }

    /// Serializes a value.
    pub fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), ApiError> {
        self.separate();
        serde_json::to_writer(&mut self.buffer, value).map_err(internal)
    }

    /// Writes a string.
    pub fn text(&mut self, text: Text<'_>) -> Result<(), ApiError> {
        match text {
            Text::Plain(text) => self.value(text),
            Text::Json(text) => {
                self.separate();
                self.push(text);
                Ok(())
            }
        }
    }

    /// Writes an amount in USD. JSON has no NaN or infinity, so these become null.
    pub fn amount(&mut self, amount: f64) {
        self.separate();
        if amount.is_finite() {
            let mut digits = ryu::Buffer::new();
            self.push(digits.format_finite(amount));
        } else {
            self.push("null");
        }
    }

    /// Writes an integer.
    pub fn integer(&mut self, number: i64) {
        self.separate();
        let mut digits = itoa::Buffer::new();
        self.push(digits.format(number));
    }

    /// Ends a line, in output that has one value per line.
    pub fn end_line(&mut self) {
        self.push("\n");
        self.needs_comma = false;
    }

    /// Takes the buffered text if it has at least the size of a chunk.
    pub fn chunk(&mut self) -> Option<Bytes> {
        (self.buffer.len() >= CHUNK).then(|| self.take())
    }

    /// Takes all of the buffered text.
    pub fn take(&mut self) -> Bytes {
        let next = Vec::with_capacity(CHUNK + CHUNK / 4);
        Bytes::from(std::mem::replace(&mut self.buffer, next))
    }

    /// Takes all of the buffered text, so that the caller can send the next value itself. Adds the comma that the value
    /// needs before it.
    pub fn take_before_value(&mut self) -> Bytes {
        self.separate();
        self.take()
    }

    #[inline]
    fn separate(&mut self) {
        if std::mem::replace(&mut self.needs_comma, true) {
            self.push(",");
        }
    }

    #[inline]
    fn push(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }
}

fn internal(error: serde_json::Error) -> ApiError {
    ApiError::Internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Writer) -> Result<(), ApiError>) -> String {
        let mut writer = Writer::new();
        write(&mut writer).expect("written");
        String::from_utf8(writer.take().to_vec()).expect("text")
    }

    #[test]
    fn punctuation_follows_from_what_is_written() {
        let nested = written(|writer| {
            writer.open_list();
            writer.open_object();
            writer.name(name!("a"));
            writer.integer(-1);
            writer.text_name(Text::Plain("b\"c"))?;
            writer.open_list();
            writer.close();
            writer.text_name(Text::Json("\"d\""))?;
            writer.amount(f64::NAN);
            writer.close();
            writer.open_object();
            writer.close();
            writer.value(&[1, 2])?;
            writer.text(Text::Json("\"x\""))?;
            writer.close();
            Ok(())
        });
        assert_eq!(nested, r#"[{"a":-1,"b\"c":[],"d":null},{},[1,2],"x"]"#);
        let lines = written(|writer| {
            for number in 0..2 {
                writer.integer(number);
                writer.end_line();
            }
            Ok(())
        });
        assert_eq!(lines, "0\n1\n");
    }

    #[test]
    fn the_list_of_an_answer_is_filled() {
        #[derive(Serialize)]
        struct Answer {
            data: Vec<i32>,
            total: i32,
        }
        let filled = written(|writer| {
            writer.open_list_of(&Answer { data: Vec::new(), total: 2 }, "data")?;
            writer.integer(1);
            writer.integer(2);
            writer.close();
            Ok(())
        });
        assert_eq!(filled, r#"{"data":[1,2],"total":2}"#);
        let mut writer = Writer::new();
        assert!(writer.open_list_of(&Answer { data: vec![7], total: 2 }, "data").is_err());
        assert!(writer.open_list_of(&Answer { data: Vec::new(), total: 2 }, "rows").is_err());
    }
}
