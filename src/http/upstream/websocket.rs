//! WebSocket (RFC 6455), the only protocol that a forwarded connection may switch to. Both sides of the handshake are
//! checked, so that no other protocol gets a raw connection that bypasses this server's rules.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Version};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::http::error::ApiError;
use crate::http::upstream::forwarded::elements;

/// Most WebSockets that are open at the same time; beyond them, 503.
pub(super) const MAX_OPEN: usize = 1000;

/// How long a WebSocket may be silent in both directions before it is closed. Usually both ends ping each other much
/// more often.
const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// The constant that the server appends to the client's key (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A valid handshake of a client.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Handshake {
    /// The value of `Sec-WebSocket-Accept` that accepts the handshake.
    accept: String,
}

impl Handshake {
    /// Reads the handshake of a request that asks for a WebSocket. Returns `None` for every other request: no other
    /// switch of protocol is forwarded, and a request for one goes on as a plain request. Refuses an invalid WebSocket
    /// handshake.
    pub(super) fn of(request: &Request) -> Result<Option<Self>, ApiError> {
        let headers = request.headers();
        let asks = elements(headers, &header::CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"));
        let protocols: Vec<&str> =
            elements(headers, &header::UPGRADE).filter(|protocol| !protocol.is_empty()).collect();
        let websocket = matches!(protocols.as_slice(), [only] if only.eq_ignore_ascii_case("websocket"));
        if !asks || !websocket || request.version() != Version::HTTP_11 {
            return Ok(None);
        }
        if request.method() != Method::GET || has_body(headers) {
            return Err(ApiError::detail(
                StatusCode::BAD_REQUEST,
                "A WebSocket handshake must be a GET request without a body.",
            ));
        }
        if only(headers, &header::SEC_WEBSOCKET_VERSION) != Some(b"13") {
            return Err(ApiError::detail(StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version must be 13."));
        }
        let key = only(headers, &header::SEC_WEBSOCKET_KEY);
        let Some(key) = key.filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)) else {
            return Err(ApiError::detail(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64."));
        };
        let accept = STANDARD.encode(Sha1::new_with_prefix(key).chain_update(GUID).finalize());
        Ok(Some(Self { accept }))
    }

    /// Whether the headers of the upstream's answer accept this handshake.
    pub(super) fn is_answered_by(&self, answer: &HeaderMap) -> bool {
        only(answer, &header::UPGRADE).is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
            && only(answer, &header::SEC_WEBSOCKET_ACCEPT) == Some(self.accept.as_bytes())
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
}

/// The value of a header that appears exactly once.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
}

/// Switches to WebSocket: copies bytes in both directions until one side ends the connection or both are silent.
pub(super) fn switch(
    mut answer: hyper::Response<hyper::body::Incoming>,
    client_side: OnUpgrade,
    permit: OwnedSemaphorePermit,
) -> Response {
    let server_side = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let _permit = permit;
        match tokio::try_join!(client_side, server_side) {
            Ok((client, server)) => {
                let activity = Activity::default();
                let mut client = Watched { stream: TokioIo::new(client), activity: activity.clone() };
                let mut server = Watched { stream: TokioIo::new(server), activity: activity.clone() };
                tokio::select! {
                    // A connection that was cut counts as ended.
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    () = activity.silent(IDLE_LIMIT) => tracing::debug!("closed an idle WebSocket"),
                }
            }
            Err(error) => tracing::debug!(cause = %error, "cannot complete a protocol upgrade"),
        }
    });
    let mut response = crate::http::upstream::plain(answer.map(|_| axum::body::Body::empty()));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response
}

/// The time at which either side last sent bytes.
#[derive(Clone)]
struct Activity(Arc<(Instant, AtomicU64)>);

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new((Instant::now(), AtomicU64::new(0))))
    }
}

impl Activity {
    fn came(&self) {
        let (start, last) = &*self.0;
        last.store(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Waits until no bytes have arrived for `limit`.
    async fn silent(&self, limit: Duration) {
        let (start, last) = &*self.0;
        loop {
            let end = *start + Duration::from_millis(last.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// One side of the connection, whose reads are recorded in `activity`.
struct Watched<S> {
    stream: S,
    activity: Activity,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if read.is_ready() {
            this.activity.came();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().uri("/ws");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).expect("a request")
    }

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("sec-websocket-version", "13");
    const CONNECTION: (&str, &str) = ("connection", "keep-alive, Upgrade");

    #[test]
    fn only_a_handshake_in_order_is_one() {
        // The example from RFC 6455.
        let handshake = Handshake::of(&request(&[CONNECTION, ("upgrade", "WebSocket"), KEY, VERSION]));
        let handshake = handshake.expect("in order").expect("a handshake");
        assert_eq!(handshake.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for other in ["h2c", "websocket, h2c", "TLS/1.0", "websocket/13", ""] {
            let found = Handshake::of(&request(&[CONNECTION, ("upgrade", other), KEY, VERSION])).expect("plain");
            assert_eq!(found, None, "{other}");
        }
        assert_eq!(Handshake::of(&request(&[("upgrade", "websocket"), KEY, VERSION])).expect("plain"), None);
        for bad in [
            &[CONNECTION, ("upgrade", "websocket"), KEY][..],
            &[CONNECTION, ("upgrade", "websocket"), KEY, ("sec-websocket-version", "8")],
            &[CONNECTION, ("upgrade", "websocket"), VERSION],
            &[CONNECTION, ("upgrade", "websocket"), ("sec-websocket-key", "c2hvcnQ="), VERSION],
            &[CONNECTION, ("upgrade", "websocket"), KEY, KEY, VERSION],
            &[CONNECTION, ("upgrade", "websocket"), KEY, VERSION, ("content-length", "5")],
        ] {
            assert!(Handshake::of(&request(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_answer_has_to_agree() {
        let handshake = Handshake { accept: "right".into() };
        let answer = |upgrade: &'static str, accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static(accept));
            handshake.is_answered_by(&headers)
        };
        assert!(answer("websocket", "right"));
        assert!(!answer("h2c", "right") && !answer("websocket", "wrong"));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_and_bytes_are_no_silence() {
        let activity = Activity::default();
        let limit = Duration::from_secs(10);
        let silent = activity.silent(limit);
        let mut silent = std::pin::pin!(silent);
        assert!(tokio::time::timeout(Duration::from_secs(6), silent.as_mut()).await.is_err());
        activity.came();
        assert!(tokio::time::timeout(Duration::from_secs(6), silent.as_mut()).await.is_err());
        assert!(tokio::time::timeout(Duration::from_secs(6), silent).await.is_ok());
    }
}
