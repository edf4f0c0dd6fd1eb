//! Accepts HTTP/1 and HTTP/2 connections up to a limit, enforces time limits on silent clients, and shuts down
//! gracefully.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::{Response, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::http::connection::limiter::{ConnectionLimiter, ConnectionSlot};
use crate::http::connection::stall::StallLimit;
use crate::http::connection::state::{ConnectionState, Ending};
use crate::http::connection::streams::{Outgoing, StreamExecutor};
use crate::settings::ConnectionLimits;
use crate::settings::Settings;
use crate::shutdown::DEADLINE;

/// Largest head of an HTTP/1 request, and most bytes of an answer that are buffered before they are written.
const HTTP1_BUFFER: usize = 128 * 1024;

/// Largest head of an HTTP/2 request, in bytes.
const HTTP2_HEAD: u32 = 64 * 1024;

/// Bytes that an HTTP/2 client may send before the server has read them: of one request's body, and of all requests on
/// the connection.
const HTTP2_WINDOWS: (u32, u32) = (128 * 1024, 256 * 1024);

/// Most bytes of one HTTP/2 answer that are buffered for sending.
const HTTP2_AHEAD: usize = 64 * 1024;

/// Requests that an HTTP/2 client may reset before the server has looked at them, and protocol errors that it may make,
/// before the connection is closed.
const HTTP2_RESETS: (usize, usize) = (20, 100);

/// How long a connection that reached a time limit may take to shut down gracefully.
const GOODBYE: Duration = Duration::from_secs(1);

/// Most unsent bytes of an answer that the kernel buffers. The value is small, so that the server can see whether the
/// client makes progress.
const SOCKET_AHEAD: u32 = 128 * 1024;

const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

fn builder(limits: &ConnectionLimits) -> Builder<StreamExecutor> {
    let mut builder = Builder::new(StreamExecutor { answer_limit: limits.answer });
    // `ConnectionState` enforces the time limit for the request head.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HTTP1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(HTTP2_HEAD)
        .initial_stream_window_size(HTTP2_WINDOWS.0)
        .initial_connection_window_size(HTTP2_WINDOWS.1)
        .max_send_buf_size(HTTP2_AHEAD)
        .max_pending_accept_reset_streams(HTTP2_RESETS.0)
        .max_local_error_reset_streams(HTTP2_RESETS.1);
    builder
}

/// Serves `app` until `stop` completes. Then lets running requests finish, until the deadline.
pub async fn serve(listener: TcpListener, app: Router, settings: &Settings, stop: impl Future<Output = ()>) {
    let limits = &settings.connections;
    let builder = builder(limits);
    let limiter = ConnectionLimiter::new(limits.clone(), settings.trusted_proxies.clone());
    let (connections, stopping) = (TaskTracker::new(), CancellationToken::new());
    let mut stop = std::pin::pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The process may be out of file descriptors, or the client may have disconnected at once. Neither
                    // stops the server.
                    tracing::warn!(cause = %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Some(slot) = limiter.take(peer.ip()) else {
            // The answer is sent only if that does not block.
            let _ = stream.try_write(FULL);
            continue;
        };
        set_options(&stream);
        let connection = connection(&builder, stream, peer, slot, app.clone(), limits, stopping.clone());
        connections.spawn(connection);
    }
    drop(listener);
    tracing::info!("shutting down; waiting for running requests");
    connections.close();
    stopping.cancel();
    if tokio::time::timeout(DEADLINE, connections.wait()).await.is_err() {
        tracing::warn!(seconds = DEADLINE.as_secs(), "aborting requests that are still running at the deadline");
    }
}

fn set_options(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(SOCKET_AHEAD);
}

/// Serves one connection until it ends.
fn connection(
    builder: &Builder<StreamExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    slot: ConnectionSlot,
    app: Router,
    limits: &ConnectionLimits,
    stopping: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let state = Arc::clone(&slot.state);
    let stream = TokioIo::new(StallLimit::new(stream, limits.answer, slot));
    let service = service(app, peer, Arc::clone(&state));
    let connection = builder.serve_connection_with_upgrades(stream, service).into_owned();
    async move {
        let mut connection = std::pin::pin!(connection);
        let mut leaving = false;
        let ended = loop {
            tokio::select! {
                ended = connection.as_mut() => break ended,
                () = stopping.cancelled(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                ending = state.ended() => {
                    if ending == Ending::Limit {
                        connection.as_mut().graceful_shutdown();
                        let _ = tokio::time::timeout(GOODBYE, connection.as_mut()).await;
                    }
                    return tracing::debug!(?ending, "closed a connection without a request");
                }
            }
        };
        state.finish();
        if let Err(error) = ended {
            tracing::debug!(cause = %error, "connection ended");
        }
    }
}

/// Wraps the application as a hyper service. Adds the peer's address and the connection's state to each request.
fn service(
    app: Router,
    peer: SocketAddr,
    state: Arc<ConnectionState>,
) -> impl hyper::service::Service<Request<Incoming>, Response = Response<Outgoing>, Error = Infallible, Future: Send + 'static>
{
    hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let version = request.version();
        let running = state.begin(version);
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(Arc::clone(&state));
        let answer = app.clone().oneshot(request);
        async move {
            let response = answer.await?;
            Ok(response.map(|body| Outgoing::new(body, version == Version::HTTP_2, running)))
        }
    })
}
