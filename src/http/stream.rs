//! Streams responses while the database is still reading, so that memory is bounded whatever the size of the response.
//! The status is sent after the first chunk of the body is ready, so a query that fails at once gets an error response.
//! If a query fails later, the connection ends without the closing chunk, which tells the client that the body is
//! incomplete. A response that does not fit into one chunk is read ahead of the client.

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

/// Size at which a chunk of the body is sent, in bytes.
pub const CHUNK: usize = 64 * 1024;

/// A response of the given content type, with a body that consists of `chunks`. Waits for the first chunk. A response
/// that does not fit into one chunk calls `large`, which counts it as a large response or refuses it if there are too
/// many.
pub async fn respond(
    chunks: impl Stream<Item = Result<Bytes, ApiError>> + Send + 'static,
    content_type: &'static str,
    large: impl FnOnce() -> Result<LargeAnswer, ApiError>,
) -> Result<Response, ApiError> {
    let mut chunks = Box::pin(chunks);
    let first = match chunks.next().await {
        Some(first) => first?,
        None => Bytes::new(),
    };
    // A response of one chunk is sent whole, with its length.
    let second = if first.len() < CHUNK { chunks.next().await.transpose()? } else { None };
    let body = match second {
        None if first.len() < CHUNK => Body::from(first),
        second => {
            let start = stream::iter(std::iter::once(first).chain(second).map(Ok));
            let ahead = read_ahead(Box::pin(start.chain(chunks)), large()?);
            // The task yields after each chunk. However fast a client receives a large response, a small response then
            // waits for one chunk of it, and not for a whole socket buffer.
            Body::from_stream(ahead.then(async |chunk| {
                tokio::task::yield_now().await;
                chunk.inspect_err(|error| tracing::error!(cause = ?error, "the response ended early"))
            }))
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}
