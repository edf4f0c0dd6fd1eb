//! Compression of answers. Content that never changes is compressed once and shared. An answer made for one client is
//! compressed while it is sent. The number of such answers at a time is limited, because each one uses memory until its
//! client has received it.

use std::io::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tower_http::CompressionLevel;
use tower_http::compression::predicate::{And, DefaultPredicate};
use tower_http::compression::{CompressionLayer, Predicate};

/// Most answers that are compressed at the same time. Further answers are sent uncompressed.
const AT_ONCE: usize = 32;

/// A predicate: whether an answer is made for one client.
type MadeNow = fn(StatusCode, Version, &HeaderMap, &Extensions) -> bool;

/// The layer that compresses answers made for one client.
pub fn layer() -> CompressionLayer<And<DefaultPredicate, MadeNow>> {
    let made_now: MadeNow = |_, _, _, extensions| extensions.get::<Prepared>().is_none();
    CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(DefaultPredicate::new().and(made_now))
}

/// Permits to compress an answer. A permit is held until the answer is sent.
#[derive(Clone, Debug)]
pub struct CompressionPermits(Arc<Semaphore>);

impl Default for CompressionPermits {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

/// Middleware around [`layer`]: if no permit is free, removes `Accept-Encoding` from the request, so that the answer is
/// not compressed.
pub async fn with_permit(State(permits): State<CompressionPermits>, mut request: Request, next: Next) -> Response {
    if !request.headers().contains_key(header::ACCEPT_ENCODING) {
        return next.run(request).await;
    }
    let Ok(permit) = permits.0.try_acquire_owned() else {
        request.headers_mut().remove(header::ACCEPT_ENCODING);
        return next.run(request).await;
    };
    let response = next.run(request).await;
    if !response.headers().contains_key(header::CONTENT_ENCODING) || response.extensions().get::<Prepared>().is_some() {
        return response;
    }
    response.map(|body| {
        Body::from_stream(body.into_data_stream().inspect(move |_| {
            let _ = &permit;
        }))
    })
}

/// Marks an answer that needs no further compression.
#[derive(Clone, Copy, Debug)]
struct Prepared;

/// Content that never changes, stored in every encoding in which it is sent.
#[derive(Debug)]
pub struct StaticFile {
    content_type: HeaderValue,
    plain: Bytes,
    gzip: Option<Bytes>,
    zstd: Option<Bytes>,
}

impl StaticFile {
    /// Compresses the content with gzip and zstd. This takes a moment for large content. An encoding that saves less
    /// than about a tenth is not kept.
    pub fn new(content_type: HeaderValue, plain: Bytes) -> Self {
        let smaller = |packed: std::io::Result<Vec<u8>>| {
            packed.ok().filter(|packed| packed.len() < plain.len() / 10 * 9).map(Bytes::from)
        };
        let gzip = smaller((|| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(&plain)?;
            encoder.finish()
        })());
        let zstd = smaller(zstd::bulk::compress(&plain, 15));
        Self { content_type, plain, gzip, zstd }
    }

    /// The answer in the best encoding that the client accepts: zstd, then gzip, then none.
    pub fn answer(&self, headers: &HeaderMap) -> Response {
        let forms = [("zstd", &self.zstd), ("gzip", &self.gzip)];
        let form =
            forms.into_iter().find_map(|(name, bytes)| Some((name, bytes.clone().filter(|_| accepts(headers, name))?)));
        let (encoding, bytes) = form.map_or((None, self.plain.clone()), |(name, bytes)| (Some(name), bytes));
        let mut response = bytes.into_response();
        let named = response.headers_mut();
        named.insert(header::CONTENT_TYPE, self.content_type.clone());
        named.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if let Some(encoding) = encoding {
            named.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        response.extensions_mut().insert(Prepared);
        response
    }
}

/// Whether `Accept-Encoding` names `encoding` with a weight other than 0.
fn accepts(headers: &HeaderMap, encoding: &str) -> bool {
    let lines = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(encoding));
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        named && weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|weight| weight > 0.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_bytes_are_sent_in_the_form_that_the_client_reads() {
        let text = "shared ".repeat(10_000);
        let file = StaticFile::new(HeaderValue::from_static("text/plain"), Bytes::from(text));
        for (accepted, expected) in [
            ("gzip", Some("gzip")),
            ("gzip, zstd", Some("zstd")),
            ("gzip, zstd;q=0", Some("gzip")),
            ("br", None),
            ("identity", None),
            ("gzip; q=0.0", None),
            ("ZSTD;q=0.5", Some("zstd")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted));
            let answer = file.answer(&headers);
            let encoding = answer.headers().get(header::CONTENT_ENCODING).map(|value| value.to_str().expect("text"));
            assert_eq!(encoding, expected, "{accepted}");
        }
        let random: Vec<u8> = (0..100_u8).collect();
        assert!(StaticFile::new(HeaderValue::from_static("image/png"), Bytes::from(random)).gzip.is_none());
    }
}
