//! Forwards the requests that litespend does not serve to an upstream LiteLLM. Requests and answers pass through
//! unchanged and as they arrive (streams, uploads, WebSockets), without a time limit. The upstream decides what its
//! callers may do; the list of allowed addresses applies to forwarded requests too. If the client disconnects, the
//! request to the upstream ends as well.

mod forwarded;
mod websocket;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{Method, StatusCode, Uri, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::admission;
use crate::http::error::{ApiError, PassedOn};
use crate::http::state::AppState;
use crate::http::upstream::websocket::Handshake;
use crate::settings::Settings;
use crate::settings::upstream::Target;

/// How long connecting to the upstream may take. Forwarded requests have no other time limit.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long an idle connection to the upstream is kept for the next request. This is less than the keep-alive of
/// LiteLLM's server (5 s), so that no request is sent on a connection that is closing.
const IDLE_LIMIT: Duration = Duration::from_secs(4);

/// The upstream URL of a request for `uri`: the same path and query, byte for byte.
fn address_of(target: &Target, uri: &Uri) -> Result<Uri, ApiError> {
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    Uri::builder()
        .scheme(target.scheme.clone())
        .authority(target.authority.clone())
        .path_and_query(format!("{}{path}", target.prefix))
        .build()
        .map_err(|error| ApiError::Internal(error.to_string()))
}

/// Rewrites the `Location` of a redirect that points at the target itself: removes the target's own address, which
/// clients may be unable to reach. Returns `None` if the redirect leads elsewhere.
fn redirect_of(target: &Target, location: &HeaderValue) -> Option<HeaderValue> {
    let location = location.to_str().ok()?;
    let (location, fragment) = location.split_at(location.find('#').unwrap_or(location.len()));
    let uri: Uri = location.parse().ok()?;
    let to_itself = match (uri.scheme(), uri.authority()) {
        (None, None) => !target.prefix.is_empty(),
        (Some(scheme), Some(authority)) => {
            let port = |scheme: &Scheme, authority: &Authority| {
                authority.port_u16().unwrap_or(if *scheme == Scheme::HTTPS { 443 } else { 80 })
            };
            // If a proxy in front of the target terminates TLS, the target believes that its own scheme is http.
            let no_ports = authority.port().is_none() && target.authority.port().is_none();
            authority.host().eq_ignore_ascii_case(target.authority.host())
                && (no_ports || port(scheme, authority) == port(&target.scheme, &target.authority))
        }
        _ => false,
    };
    let path = uri.path_and_query().filter(|_| to_itself)?.as_str().strip_prefix(&target.prefix)?;
    let path = match path.bytes().next() {
        Some(b'/') => format!("{path}{fragment}"),
        None | Some(b'?') => format!("/{path}{fragment}"),
        Some(_) => return None,
    };
    // A path that starts with two slashes would name another host.
    HeaderValue::try_from(path).ok().filter(|path| !path.as_bytes().starts_with(b"//"))
}

/// The upstream LiteLLM. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    target: Target,
    client: Client<HttpsConnector<HttpConnector>, Body>,
    websockets: Arc<Semaphore>,
}

impl Upstream {
    /// The upstream named in the settings, if there is one.
    pub fn of(settings: &Settings) -> Option<Self> {
        let target = settings.upstream.clone()?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_LIMIT));
        let connector =
            HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .build(connector);
        Some(Self { target, client, websockets: Arc::new(Semaphore::new(websocket::MAX_OPEN)) })
    }

    /// Forwards a request and returns the answer as it arrives.
    async fn forward(&self, state: &AppState, mut request: Request) -> Result<Response, ApiError> {
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(ApiError::MethodNotAllowed("GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"));
        }
        if request.headers().get_all(header::HOST).iter().count() > 1 {
            return Err(ApiError::detail(StatusCode::BAD_REQUEST, "A request must have exactly one Host header."));
        }
        let websocket = match Handshake::of(&request)? {
            Some(handshake) => Some((handshake, self.websocket_permit()?, hyper::upgrade::on(&mut request))),
            None => None,
        };
        let (mut parts, body) = request.into_parts();
        forwarded::rewrite(&state.settings, &parts.uri, parts.extensions.get(), &mut parts.headers);
        forwarded::join_cookies(&mut parts.headers);
        // This server has answered `Expect` already. With the header, the client would wait for a second answer.
        parts.headers.remove(header::EXPECT);
        parts.headers.remove(header::HOST);
        if websocket.is_some() {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        let mut passed_on = Request::new(body);
        *passed_on.method_mut() = parts.method;
        *passed_on.uri_mut() = address_of(&self.target, &parts.uri)?;
        *passed_on.headers_mut() = parts.headers;
        let mut answer = self.client.request(passed_on).await.map_err(|error| ApiError::Upstream(cause_of(&error)))?;
        if let Some(location) = answer.headers().get(header::LOCATION).and_then(|to| redirect_of(&self.target, to)) {
            answer.headers_mut().insert(header::LOCATION, location);
        }
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(plain(answer.map(Body::new)));
        }
        match websocket {
            Some((handshake, permit, client_side)) if handshake.is_answered_by(answer.headers()) => {
                Ok(websocket::switch(answer, client_side, permit))
            }
            _ => Err(ApiError::Upstream("the upstream switched to a protocol that was not requested".to_owned())),
        }
    }

    /// A permit for one WebSocket; 503 if none is free.
    fn websocket_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.websockets).try_acquire_owned().map_err(|_| {
            ApiError::detail(
                StatusCode::SERVICE_UNAVAILABLE,
                "The server has reached its limit of open WebSockets. Try again later.",
            )
        })
    }
}

/// Middleware: serves the paths that litespend serves, and forwards all other requests to the upstream.
pub async fn pass_on(
    State((state, upstream)): State<(AppState, Upstream)>,
    request: Request,
    next: Next,
) -> Result<Response, Infallible> {
    if admission::is_served_here(&state.settings, &request) {
        return Ok(next.run(request).await);
    }
    if let Err(refusal) = admission::check_address(&state, &request) {
        return Ok(refusal.into_response());
    }
    Ok(upstream.forward(&state, request).await.unwrap_or_else(IntoResponse::into_response))
}

/// The answer without the headers that describe only the connection to the upstream.
fn plain(mut answer: Response) -> Response {
    forwarded::remove_hop_by_hop(answer.headers_mut());
    *answer.version_mut() = Version::HTTP_11;
    answer.extensions_mut().insert(PassedOn);
    answer
}

/// The cause of a failed forward, for the log: the error and its chain of sources.
fn cause_of(error: &dyn std::error::Error) -> String {
    let mut text = format!("upstream: {error}");
    let mut source = error.source();
    while let Some(under) = source {
        text.push_str(": ");
        text.push_str(&under.to_string());
        source = under.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_urls_without_secrets_or_queries() {
        for (text, path, expected) in [
            ("http://litellm:4000", "/v1/models?a=b%20c", Some("http://litellm:4000/v1/models?a=b%20c")),
            ("https://example.com/", "/", Some("https://example.com/")),
            ("http://127.0.0.1:4000/base/", "/x", Some("http://127.0.0.1:4000/base/x")),
            ("litellm:4000", "/", None),
            ("ftp://litellm", "/", None),
            ("http://user:secret@litellm", "/", None),
            ("http://litellm?x=1", "/", None),
            ("", "/", None),
        ] {
            let found = Target::parse(text)
                .ok()
                .map(|target| address_of(&target, &path.parse().expect("a path")).expect("a URL").to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn redirects_to_the_target_itself_lead_to_this_server() {
        for (target, location, expected) in [
            ("http://litellm:4000", "http://litellm:4000/ui/?a=b", Some("/ui/?a=b")),
            ("http://litellm:4000", "http://litellm:4000/ui/#/usage", Some("/ui/#/usage")),
            ("http://litellm:4000", "http://LiteLLM:4000", Some("/")),
            ("http://litellm:4000", "http://litellm/ui/", None),
            ("http://litellm", "http://litellm:80/ui/", Some("/ui/")),
            ("https://litellm.example.com", "http://litellm.example.com/ui/", Some("/ui/")),
            ("http://litellm:4000", "https://login.example.com/?to=http://litellm:4000/x", None),
            ("http://litellm:4000", "/sso?next=%2Fui", None),
            ("http://litellm:4000", "ui/", None),
            ("http://litellm:4000/base", "/base/ui/", Some("/ui/")),
            ("http://litellm:4000/base", "http://litellm:4000/base?x=1", Some("/?x=1")),
            ("http://litellm:4000/base", "/basement", None),
            ("http://litellm:4000/base", "/base//example.com", None),
        ] {
            let location = HeaderValue::from_static(location);
            let found = redirect_of(&Target::parse(target).expect("a URL"), &location);
            assert_eq!(found.as_ref().map(|to| to.to_str().expect("text")), expected, "{target} {location:?}");
        }
    }
}
