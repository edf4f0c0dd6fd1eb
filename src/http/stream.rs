//! Streams responses while the database is still reading, so that memory is bounded whatever the size of the response.
//! The status is sent after the first piece of the body is ready, so a query that fails at once gets an error response.
//! If a query fails later, the connection ends without the closing chunk, which tells the client that the body is
//! incomplete. A response that does not fit into one piece is read ahead of the client.

pub mod answer_budget;
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

/// Size at which a piece of the body is sent, in bytes.
pub const PIECE: usize = 64 * 1024;

/// A response of the given content type, with a body that consists of `pieces`. Waits for the first piece. A response
/// that does not fit into one piece calls `large`, which counts it as a large response or refuses it if there are too
/// many.
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
    // A response of one piece is sent whole, with its length.
    let second = if first.len() < PIECE { pieces.next().await.transpose()? } else { None };
    let body = match second {
        None if first.len() < PIECE => Body::from(first),
        second => {
            let start = stream::iter(std::iter::once(first).chain(second).map(Ok));
            let ahead = read_ahead(Box::pin(start.chain(pieces)), large()?);
            // The task yields after each piece. However fast a client receives a large response, a small response then
            // waits for one piece of it, and not for a whole socket buffer.
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
