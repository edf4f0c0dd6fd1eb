//! Checks of a login request that run before the password is checked: the request must declare a JSON body, and must
//! not come from another site's page.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};

use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::declares_json;
use crate::http::state::AppState;

/// The header in which a browser says which site's page caused the request.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Longest host name that is accepted, in bytes.
const HOST_BYTES: usize = 255;

/// The scheme and host by which the browser reached this server, as far as they can be trusted.
pub(super) struct PublicOrigin {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The host as the browser names it; `None` if that is not a valid host.
    pub host: Option<String>,
}

impl PublicOrigin {
    /// The origin of a request: from the forwarded headers of a trusted proxy, else from the request itself.
    pub(super) fn of(state: &AppState, parts: &Parts) -> Self {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip().to_canonical());
        let trusted = state.settings.use_x_forwarded_for
            && peer.is_some_and(|peer| state.settings.trusted_proxies.iter().any(|network| network.contains(peer)));
        let forwarded = |name: &str| single(&parts.headers, name).filter(|_| trusted);
        let scheme = match forwarded("x-forwarded-proto") {
            Some(proto) if proto.trim().eq_ignore_ascii_case("https") => "https",
            _ => "http",
        };
        let asked = match parts.headers.contains_key(header::HOST) {
            true => single(&parts.headers, "host").and_then(host),
            false => parts.uri.authority().and_then(|authority| host(authority.as_str())),
        };
        Self { scheme, host: forwarded("x-forwarded-host").and_then(host).or(asked) }
    }

    /// The full URL of a path, or the path alone if no host can be trusted.
    pub(super) fn url(&self, path: &str) -> String {
        match &self.host {
            Some(host) => format!("{}://{host}{path}", self.scheme),
            None => path.to_owned(),
        }
    }
}

/// The value of a header that appears exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// A host name or address with or without a port. Everything else that a URL's authority may contain is rejected.
fn host(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let fits = !text.is_empty() && text.len() <= HOST_BYTES && text.bytes().all(plain);
    let authority: Authority = text.parse().ok().filter(|_| fits)?;
    (!authority.host().is_empty()).then(|| authority.as_str().to_ascii_lowercase())
}

/// Refuses requests that a page of another site can make a browser send.
pub(super) fn check(parts: &Parts, public: &PublicOrigin) -> Result<(), ApiError> {
    if !parts.headers.contains_key(header::CONTENT_TYPE) || !declares_json(&parts.headers) {
        return Err(ApiError::Refused {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            kind: ErrorType::InvalidRequest,
            message: "A login request must be JSON. Send the header Content-Type: application/json.".into(),
            param: None,
        });
    }
    let site = parts.headers.get(FETCH_SITE).map(|site| site.as_bytes());
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return Err(foreign());
    }
    // The proxy's name for this server may differ from the browser's, and the browser's verdict is the reliable one.
    if site == Some(b"same-origin") || !parts.headers.contains_key(header::ORIGIN) {
        return Ok(());
    }
    let origin = single(&parts.headers, "origin").and_then(|origin| {
        let (scheme, rest) = origin.split_once("://")?;
        let port = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => return None,
        };
        host(rest).map(|origin| (origin, port))
    });
    let is_own = |(origin, port): (String, &str)| {
        let bare = |host: &str| host.strip_suffix(port).unwrap_or(host).to_owned();
        public.host.as_deref().is_some_and(|host| bare(host) == bare(&origin))
    };
    if origin.is_some_and(is_own) { Ok(()) } else { Err(foreign()) }
}

fn foreign() -> ApiError {
    ApiError::forbidden("A login request must come from a page of this server.")
}
