//! The log: one line a request, text or JSON, on standard error. Owns what may stand in it: method, matched
//! route, status, milliseconds, the first characters of the key's hash, the client's address and the
//! request's id. Never a key, a query string, a prompt, a body or a connection string.

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
use crate::http::error::Cause;
use crate::http::state::AppState;
pub use crate::http::telemetry::writer::{LogGuard, dropped_lines};
use crate::identity::Caller;
use crate::metrics::Metrics;
use crate::settings::LogFormat;

/// The header by which a request is known across systems.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Starts the log. `RUST_LOG` sets its level, `info` by default. What waits to be written is, when the guard goes.
pub fn start(format: LogFormat) -> LogGuard {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let writer = match writer::start() {
        Ok(writer) => BoxMakeWriter::new(writer),
        Err(_) => BoxMakeWriter::new(std::io::stderr),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // A second start in one process (tests) keeps the first log.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // The usual hook writes to standard error and would wait for its reader.
    std::panic::set_hook(Box::new(|panic| tracing::error!(cause = %panic, "panic")));
    LogGuard
}

/// The address of the client, for the log and the allow list.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub std::net::IpAddr);

/// The id of a request: the one it brought, if it is short and plain, else a new one.
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

/// Logs and counts one request. Outermost but for the panic handler.
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

/// First characters of the caller's key hash: a place in the request's extensions that authentication fills, so that
/// the log knows the key also of a request that was refused or not answered in time.
#[derive(Clone, Debug, Default)]
pub struct KeyPrefix(Arc<OnceLock<String>>);

impl KeyPrefix {
    /// Eight characters of a hash tell keys apart and give nothing away.
    pub fn set(&self, caller: &Caller) {
        let prefix = || if caller.is_master { "master".to_owned() } else { caller.key_hash.chars().take(8).collect() };
        self.0.get_or_init(prefix);
    }

    fn text(&self) -> &str {
        self.0.get().map_or("-", String::as_str)
    }
}
