//! Accepting connections: HTTP/1 and HTTP/2, headers within a time limit, answers to those who take them, an orderly
//! end.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tower::ServiceExt;

use super::stall::StallLimit;
use crate::shutdown::DEADLINE;

/// How long a client may take to send the headers of a request.
const HEADER_LIMIT: Duration = Duration::from_secs(15);

/// How long a client may take nothing of its answer.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Serves `app` until `stop`, then finishes what runs, within the deadline.
pub async fn serve(listener: TcpListener, app: Router, stop: impl Future<Output = ()>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    let graceful = GracefulShutdown::new();
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
        let _ = stream.set_nodelay(true);
        let service = service(app.clone(), peer);
        let stream = TokioIo::new(StallLimit::new(stream, STALL_LIMIT));
        let connection = builder.serve_connection_with_upgrades(stream, service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(cause = %error, "connection ended");
            }
        });
    }
    drop(listener);
    tracing::info!("stopping: finishing what runs");
    if tokio::time::timeout(DEADLINE, graceful.shutdown()).await.is_err() {
        tracing::warn!(seconds = DEADLINE.as_secs(), "requests still running at the deadline were cut");
    }
}

/// The application as hyper wants it, with the peer's address at hand.
fn service(
    app: Router,
    peer: SocketAddr,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = axum::response::Response,
    Error = std::convert::Infallible,
    Future: Send + 'static,
> {
    hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        app.clone().oneshot(request)
    })
}
