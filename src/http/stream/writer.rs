//! JSON, written piece by piece. The writer puts every comma, brace and colon; handlers say what comes next.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;

use crate::http::error::ApiError;
use crate::http::stream::PIECE;

/// A buffer of JSON text that is handed out in pieces.
#[derive(Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
    /// The text that ends each list and object that is open, the innermost last.
    ends: Vec<Cow<'static, str>>,
    /// Whether a comma belongs before the next value or name.
    needs_comma: bool,
}

/// A string: as it is, or as the JSON text that it was turned into before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text<'a> {
    /// As it is.
    Plain(&'a str),
    /// JSON text.
    Json(&'a str),
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self { buffer: Vec::with_capacity(PIECE + PIECE / 4), ..Self::default() }
    }

    /// Opens a list, in which values follow.
    pub fn open_list(&mut self) {
        self.open("[", Cow::Borrowed("]"));
    }

    /// Opens an object, in which names and values follow in turn.
    pub fn open_object(&mut self) {
        self.open("{", Cow::Borrowed("}"));
    }

    /// Opens `answer` at its list `name`, which is empty: values of the list follow. Closing it writes what stands after
    /// the list.
    ///
    /// # Errors
    ///
    /// [`ApiError::Internal`] where `answer` has no such list, or it is not empty.
    pub fn open_list_of(&mut self, answer: &impl Serialize, name: &str) -> Result<(), ApiError> {
        let text = serde_json::to_string(answer).map_err(internal)?;
        let start = format!("\"{name}\":[");
        let after = text.find(&format!("{start}]")).map(|found| found + start.len());
        let after = after.ok_or_else(|| ApiError::Internal(format!("an answer without the empty list {name}")))?;
        let (before, after) = text.split_at(after);
        self.open(before, Cow::Owned(after.to_owned()));
        Ok(())
    }

    fn open(&mut self, start: &str, end: Cow<'static, str>) {
        self.separate();
        self.push(start);
        self.ends.push(end);
        self.needs_comma = false;
    }

    /// Closes the innermost list or object.
    pub fn close(&mut self) {
        if let Some(end) = self.ends.pop() {
            self.push(&end);
        }
        self.needs_comma = true;
    }

    /// Writes the name of an object's field; its value follows. A name that is fixed needs no escaping.
    pub fn name(&mut self, name: &'static str) {
        self.separate();
        self.push("\"");
        self.push(name);
        self.push("\":");
        self.needs_comma = false;
    }

    /// Writes a name that is a client's text.
    pub fn text_name(&mut self, name: Text<'_>) -> Result<(), ApiError> {
        self.text(name)?;
        self.push(":");
        self.needs_comma = false;
        Ok(())
    }

    /// Writes a value.
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

    /// Writes a number of USD; what is not a finite number has no JSON and is null.
    pub fn amount(&mut self, amount: f64) {
        self.separate();
        if amount.is_finite() {
            let mut digits = ryu::Buffer::new();
            self.push(digits.format_finite(amount));
        } else {
            self.push("null");
        }
    }

    /// Writes a whole number.
    pub fn integer(&mut self, number: i64) {
        self.separate();
        let mut digits = itoa::Buffer::new();
        self.push(digits.format(number));
    }

    /// Ends the line of a text that holds one value a line.
    pub fn end_line(&mut self) {
        self.push("\n");
        self.needs_comma = false;
    }

    /// What has gathered, once it is enough for a piece.
    pub fn piece(&mut self) -> Option<Bytes> {
        (self.buffer.len() >= PIECE).then(|| self.take())
    }

    /// Everything that has gathered.
    pub fn take(&mut self) -> Bytes {
        let next = Vec::with_capacity(PIECE + PIECE / 4);
        Bytes::from(std::mem::replace(&mut self.buffer, next))
    }

    /// The value that follows is written by somebody else: everything that has gathered, to be sent before it.
    pub fn take_before_value(&mut self) -> Bytes {
        self.separate();
        self.take()
    }

    fn separate(&mut self) {
        if std::mem::replace(&mut self.needs_comma, true) {
            self.push(",");
        }
    }

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
            writer.name("a");
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
