//! What a request of a login has to be before its password is looked at: JSON that says so, from no other site's page.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};

use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::declares_json;
use crate::http::state::AppState;

/// Who asks a browser to send a request, as the browser says.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Longest name of a host that is believed.
const HOST_BYTES: usize = 255;

/// Where the browser is, as far as it can be believed.
pub struct Place {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The host as the browser names it; `None` where that is no host.
    pub host: Option<String>,
}

impl Place {
    /// Of a request.
    pub fn of(state: &AppState, parts: &Parts) -> Self {
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

    /// The address of a path: without a host that can be believed, the path.
    pub fn url(&self, path: &str) -> String {
        match &self.host {
            Some(host) => format!("{}://{host}{path}", self.scheme),
            None => path.to_owned(),
        }
    }
}

/// The one value of a header; of several, none is believed.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// A name or address of a host with or without a port, and nothing else that a URL's authority may hold.
fn host(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let fits = !text.is_empty() && text.len() <= HOST_BYTES && text.bytes().all(plain);
    let authority: Authority = text.parse().ok().filter(|_| fits)?;
    (!authority.host().is_empty()).then(|| authority.as_str().to_ascii_lowercase())
}

/// Refuses what a page of another site can make a browser send.
pub fn check(parts: &Parts, place: &Place) -> Result<(), ApiError> {
    if !parts.headers.contains_key(header::CONTENT_TYPE) || !declares_json(&parts.headers) {
        return Err(ApiError::Refused {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            kind: ErrorType::InvalidRequest,
            message: "A login is JSON: send it with the header Content-Type: application/json.".into(),
            param: None,
        });
    }
    let site = parts.headers.get(FETCH_SITE).map(|site| site.as_bytes());
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return Err(foreign());
    }
    // A proxy may have another name for this server than the browser, which knows best.
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
        place.host.as_deref().is_some_and(|host| bare(host) == bare(&origin))
    };
    if origin.is_some_and(is_own) { Ok(()) } else { Err(foreign()) }
}

fn foreign() -> ApiError {
    ApiError::forbidden("A login must come from this server's own pages.")
}
