//! Answers that are written while the database still reads: bounded memory whatever their size. A stream's
//! first piece is awaited before the status is sent, so that a query that fails at once is an error answer;
//! one that fails later ends the connection without the closing chunk, and the client knows. What does not fit into a
//! piece is read ahead of the client.

pub mod answer_room;
pub mod read_ahead;
pub mod spool;
pub mod writer;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use crate::http::error::ApiError;
use crate::http::stream::read_ahead::{LargeAnswer, read_ahead};

/// Size at which a piece is sent, in bytes.
pub const PIECE: usize = 64 * 1024;

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
