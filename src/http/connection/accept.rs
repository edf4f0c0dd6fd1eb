//! Accepting connections: HTTP/1 and HTTP/2, as many as there are places for, each with limits on its silence, and an
//! orderly end.

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

use crate::http::connection::life::{Ending, Life};
use crate::http::connection::seats::{Seat, Seats};
use crate::http::connection::stall::StallLimit;
use crate::http::connection::streams::{Outgoing, StreamExecutor};
use crate::settings::ConnectionLimits;
use crate::settings::Settings;
use crate::shutdown::DEADLINE;

/// Largest head of an HTTP/1 request, and what is gathered of an answer before it is written, bytes.
const HTTP1_BUFFER: usize = 128 * 1024;

/// Largest head of an HTTP/2 request, bytes.
const HTTP2_HEAD: u32 = 64 * 1024;

/// What an HTTP/2 client may send ahead of a body that is read: of one request, and in all, bytes.
const HTTP2_WINDOWS: (u32, u32) = (128 * 1024, 256 * 1024);

/// What waits to be sent of one answer over HTTP/2, bytes.
const HTTP2_AHEAD: usize = 64 * 1024;

/// Requests that one HTTP/2 connection may take back before they were looked at, and errors of its own that it may
/// make, before it is ended.
const HTTP2_RESETS: (usize, usize) = (20, 100);

/// How long a connection that has to end may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the kernel holds of an answer that its client has not taken, bytes: little, so that progress can be seen.
const SOCKET_AHEAD: u32 = 128 * 1024;

const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

fn builder(limits: &ConnectionLimits) -> Builder<StreamExecutor> {
    let mut builder = Builder::new(StreamExecutor { answer_limit: limits.answer });
    // The head's limit is the connection's: `Life`.
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

/// Serves `app` until `stop`, then finishes what runs, within the deadline.
pub async fn serve(listener: TcpListener, app: Router, settings: &Settings, stop: impl Future<Output = ()>) {
    let limits = &settings.connections;
    let builder = builder(limits);
    let seats = Seats::new(limits.clone(), settings.trusted_proxies.clone());
    let (connections, stopping) = (TaskTracker::new(), CancellationToken::new());
    let mut stop = std::pin::pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or a client that left at once: neither ends the server.
                    tracing::warn!(cause = %error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Some(seat) = seats.take(peer.ip()) else {
            // Said if that costs nothing; nobody waits for it.
            let _ = stream.try_write(FULL);
            continue;
        };
        set_options(&stream);
        let connection = connection(&builder, stream, peer, seat, app.clone(), limits, stopping.clone());
        connections.spawn(connection);
    }
    drop(listener);
    tracing::info!("stopping: finishing what runs");
    connections.close();
    stopping.cancel();
    if tokio::time::timeout(DEADLINE, connections.wait()).await.is_err() {
        tracing::warn!(seconds = DEADLINE.as_secs(), "requests still running at the deadline were cut");
    }
}

fn set_options(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(SOCKET_AHEAD);
}

/// One connection to its end.
fn connection(
    builder: &Builder<StreamExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    seat: Seat,
    app: Router,
    limits: &ConnectionLimits,
    stopping: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    let life = Arc::clone(&seat.life);
    let stream = TokioIo::new(StallLimit::new(stream, limits.answer, seat));
    let service = service(app, peer, Arc::clone(&life));
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
                ending = life.ended() => {
                    if ending == Ending::Limit {
                        connection.as_mut().graceful_shutdown();
                        let _ = tokio::time::timeout(GOODBYE, connection.as_mut()).await;
                    }
                    return tracing::debug!(?ending, "a connection without a request was ended");
                }
            }
        };
        life.finish();
        if let Err(error) = ended {
            tracing::debug!(cause = %error, "connection ended");
        }
    }
}

/// The application as hyper wants it, with the peer's address and the connection's state at hand.
fn service(
    app: Router,
    peer: SocketAddr,
    life: Arc<Life>,
) -> impl hyper::service::Service<Request<Incoming>, Response = Response<Outgoing>, Error = Infallible, Future: Send + 'static>
{
    hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let version = request.version();
        let running = life.begin(version);
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(Arc::clone(&life));
        let answer = app.clone().oneshot(request);
        async move {
            let response = answer.await?;
            Ok(response.map(|body| Outgoing::new(body, version == Version::HTTP_2, running)))
        }
    })
}
