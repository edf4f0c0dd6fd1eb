//! Answers that are written while the database still reads: bounded memory whatever their size. A stream's
//! first piece is awaited before the status is sent, so that a query that fails at once is an error answer;
//! one that fails later ends the connection without the closing chunk, and the client knows. What does not fit into a
//! piece is read ahead of the client.

pub mod answer_room;
pub mod read_ahead;
pub mod spool;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;

use crate::http::stream::read_ahead::{LargeAnswer, read_ahead};

use crate::http::error::ApiError;

/// Size at which a piece is sent, in bytes.
pub const PIECE: usize = 64 * 1024;

/// A buffer of JSON text that is handed out in pieces.
#[derive(Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self { buffer: Vec::with_capacity(PIECE + PIECE / 4) }
    }

    /// Appends text as it is.
    pub fn raw(&mut self, text: &str) {
        self.buffer.extend_from_slice(text.as_bytes());
    }

    /// Appends a value as JSON.
    pub fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), ApiError> {
        serde_json::to_writer(&mut self.buffer, value).map_err(|error| ApiError::Internal(error.to_string()))
    }

    /// Appends a number of USD; what is not a finite number has no JSON and is null.
    pub fn amount(&mut self, amount: f64) {
        if amount.is_finite() {
            let mut digits = ryu::Buffer::new();
            self.raw(digits.format_finite(amount));
        } else {
            self.raw("null");
        }
    }

    /// Appends a whole number.
    pub fn integer(&mut self, number: i64) {
        let mut digits = itoa::Buffer::new();
        self.raw(digits.format(number));
    }

    /// Appends a value of a list; `is_first` says whether none came before, and is false from then on.
    pub fn item<T: Serialize + ?Sized>(&mut self, is_first: &mut bool, value: &T) -> Result<(), ApiError> {
        if !std::mem::replace(is_first, false) {
            self.raw(",");
        }
        self.value(value)
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
}

/// What stands before and after the values of the list `name` in an answer whose list is empty.
pub fn around(answer: &impl Serialize, name: &str) -> Result<(String, String), ApiError> {
    let text = serde_json::to_string(answer).map_err(|error| ApiError::Internal(error.to_string()))?;
    let list = format!("\"{name}\":[");
    let start = text.find(&list).ok_or_else(|| ApiError::Internal(format!("an answer without the list {name}")))?;
    let (before, after) = text.split_at(start + list.len());
    Ok((before.to_owned(), after.to_owned()))
}

/// An answer of the given type out of pieces; waits for the first. One that does not fit into a piece is counted as a
/// large answer, or refused where there are too many.
pub async fn respond(
    pieces: impl Stream<Item = Result<Bytes, ApiError>> + Send + 'static,
    content_type: &'static str,
    large: impl FnOnce() -> Result<LargeAnswer, ApiError>,
) -> Result<Response, ApiError> {
    let mut pieces = Box::pin(pieces);
    let first = match pieces.next().await {
        Some(first) => first?,
        None => Bytes::new(),
    };
    // An answer of one piece is sent whole, with its length.
    let second = if first.len() < PIECE { pieces.next().await.transpose()? } else { None };
    let body = match second {
        None if first.len() < PIECE => Body::from(first),
        second => {
            let start = stream::iter(std::iter::once(first).chain(second).map(Ok));
            let ahead = read_ahead(Box::pin(start.chain(pieces)), large()?);
            // After each piece others have their turn: however fast a client takes a large answer, small ones wait a
            // piece for it and not a socket's buffer.
            Body::from_stream(ahead.then(async |piece| {
                tokio::task::yield_now().await;
                piece.inspect_err(|error| tracing::error!(cause = ?error, "answer cut short"))
            }))
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}
