//! The request log: one line per request, as text or JSON, on standard error. This module decides what a line contains:
//! method, matched route, status, milliseconds, the first characters of the key's hash, the client's address, the
//! request's id and, after a failure, its cause. It never logs a key, a query string, a prompt, a body or a connection
//! string.

mod writer;

use std::io::IsTerminal;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::http::client_ip;
use crate::http::error::{Cause, PassedOn};
use crate::http::state::AppState;
pub use crate::http::telemetry::writer::{LogGuard, dropped_lines};
use crate::identity::Caller;
use crate::metrics::Metrics;
use crate::settings::LogFormat;

/// The header that identifies a request across systems.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Starts the log. `RUST_LOG` sets its level; the default is `info`. Dropping the guard writes the lines that are still
/// queued.
pub fn start(format: LogFormat) -> LogGuard {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,object_store=warn"));
    let writer = match writer::start() {
        Ok(writer) => BoxMakeWriter::new(writer),
        Err(_) => BoxMakeWriter::new(std::io::stderr),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // If a process starts the log twice (tests do), the first log stays.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // The default panic hook writes to standard error directly and would block while nobody reads it.
    std::panic::set_hook(Box::new(|panic| tracing::error!(cause = %panic, "panic")));
    LogGuard
}

/// The client's address, kept in the request's extensions for the handlers that change the allow list.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub std::net::IpAddr);

/// The id of a request: the client's own `X-Request-Id` if it is 1 to 128 characters long and consists of ASCII
/// letters, digits and `-_.:/+=`; otherwise a new UUID.
fn request_id(request: &Request) -> HeaderValue {
    let brought = request.headers().get(&REQUEST_ID).filter(|value| {
        let bytes = value.as_bytes();
        (1..=128).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte))
    });
    brought.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).unwrap_or_else(|_| HeaderValue::from_static("-"))
    })
}

/// Middleware: logs and counts one request. This is the outermost layer. The time that it measures ends when the
/// answer's status and headers are ready, not with the body's last byte.
pub async fn log_request(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(&request);
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("-", |path| path.as_str()).to_owned();
    let address = client_ip::of_request(&state.settings, &request);
    if let Some(address) = address {
        request.extensions_mut().insert(ClientAddress(address));
    }
    let key = KeyPrefix::default();
    request.extensions_mut().insert(key.clone());
    let mut response = next.run(request).await;
    let elapsed = started.elapsed();
    let status = response.status();
    Metrics::record(&route, status, elapsed);
    // Counted where the answer leaves: layers on its way may replace it.
    if (status.is_client_error() || status.is_server_error()) && response.extensions().get::<PassedOn>().is_none() {
        Metrics::record_refusal(status);
    }
    let key = key.text();
    let cause = response.extensions().get::<Cause>().map(|cause| cause.0.as_str());
    let address = address.map_or_else(|| "-".to_owned(), |address| address.to_string());
    let milliseconds = elapsed.as_secs_f64() * 1000.0;
    let id_text = id.to_str().unwrap_or("-");
    if let Some(cause) = cause {
        tracing::error!(%method, route, status = status.as_u16(), ms = milliseconds, key, client = address, request_id = id_text, cause, "request");
    } else {
        tracing::info!(%method, route, status = status.as_u16(), ms = milliseconds, key, client = address, request_id = id_text, "request");
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The first characters of the caller's key hash. Authentication fills it in through the request's extensions, so that
/// the log can name the key even if the request was refused or timed out.
#[derive(Clone, Debug, Default)]
pub struct KeyPrefix(Arc<OnceLock<String>>);

impl KeyPrefix {
    /// Stores the first eight characters of the caller's key hash, or `master` for the master key. Eight characters
    /// distinguish keys and reveal nothing about them.
    pub fn set(&self, caller: &Caller) {
        let prefix = || if caller.is_master { "master".to_owned() } else { caller.key_hash.chars().take(8).collect() };
        self.0.get_or_init(prefix);
    }

    fn text(&self) -> &str {
        self.0.get().map_or("-", String::as_str)
    }
}
