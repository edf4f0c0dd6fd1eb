//! Rewrites the headers of a forwarded request. Headers of the client's connection are removed. Everything that the
//! client claims about its origin is replaced by what this server knows.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::Uri;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::http::client_ip;
use crate::http::client_ip::canonical;
use crate::settings::Settings;

/// Headers that describe one connection, not the message (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// Prefixes of headers in which proxies describe a client, in lower case with hyphens.
const PROXY_HEADER_PREFIXES: [&str; 3] = ["x-forwarded", "x-original-", "cf-connecting-"];

/// Further headers in which proxies describe a client.
const PROXY_HEADERS: [&str; 19] = [
    "forwarded",
    "client-ip",
    "fastly-client-ip",
    "remote-addr",
    "true-client-ip",
    "x-appengine-user-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-host",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-rewrite-url",
    "x-scheme",
];

/// Whether a header describes the origin of a request, or its original host, scheme or path. Underscores count as
/// hyphens, because servers that turn headers into environment variables do not distinguish the two.
fn is_set_by_proxies(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    PROXY_HEADER_PREFIXES.iter().any(|beginning| name.starts_with(beginning)) || PROXY_HEADERS.contains(&name.as_str())
}

/// Removes the headers that are not meant for the upstream, and sets the `X-Forwarded-*` headers: the client's address,
/// and the scheme and host that the client used. They describe the connection or, if its peer is a trusted proxy, they
/// are what that proxy says. Such a proxy may name the port as well.
pub(super) fn rewrite(settings: &Settings, uri: &Uri, peer: Option<&ConnectInfo<SocketAddr>>, headers: &mut HeaderMap) {
    let forwarded = ForwardedHeaders::of(settings, uri, peer, headers);
    // The new headers are written last, so that nothing the client names in `Connection` removes them.
    remove_hop_by_hop(headers);
    let untrusted: Vec<HeaderName> = headers.keys().filter(|name| is_set_by_proxies(name)).cloned().collect();
    for name in untrusted {
        headers.remove(name);
    }
    forwarded.write(headers);
}

/// The values of the `X-Forwarded-*` headers for the upstream.
struct ForwardedHeaders {
    client: Option<IpAddr>,
    proto: HeaderValue,
    host: Option<HeaderValue>,
    port: Option<HeaderValue>,
}

impl ForwardedHeaders {
    fn of(settings: &Settings, uri: &Uri, peer: Option<&ConnectInfo<SocketAddr>>, headers: &HeaderMap) -> Self {
        let peer: Option<IpAddr> = peer.map(|ConnectInfo(peer)| canonical(peer.ip()));
        let proxies = &settings.trusted_proxies;
        let client = peer
            .map(|peer| client_ip::client_address(peer, headers, settings.use_x_forwarded_for, proxies))
            .filter(|_| peer.is_some());
        let trusted = settings.use_x_forwarded_for
            && peer.is_some_and(|peer| proxies.iter().any(|network| network.contains(peer)));
        let said = |name: &HeaderName| single(headers, name).filter(|_| trusted);
        let is_proto = |value: &HeaderValue| matches!(value.as_bytes(), b"http" | b"https");
        let is_port = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.parse::<u16>().is_ok());
        // A full URL in the request line takes precedence over the header `Host` (RFC 9112, section 3.2.2).
        let authority = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        let host = said(&FORWARDED_HOST).or(authority).or_else(|| headers.get(header::HOST).cloned());
        Self {
            client,
            proto: said(&FORWARDED_PROTO).filter(is_proto).unwrap_or(HeaderValue::from_static("http")),
            host,
            port: said(&FORWARDED_PORT).filter(is_port),
        }
    }

    fn write(self, headers: &mut HeaderMap) {
        let client = self.client.and_then(|client| HeaderValue::try_from(client.to_string()).ok());
        let all = [
            (FORWARDED_FOR, client),
            (FORWARDED_PROTO, Some(self.proto)),
            (FORWARDED_HOST, self.host),
            (FORWARDED_PORT, self.port),
        ];
        for (name, value) in all {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
    }
}

/// The value of a header that appears exactly once.
fn single(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none()).cloned()
}

/// The elements of a header whose value is a comma-separated list.
pub(super) fn elements<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Removes the hop-by-hop headers and those that `Connection` names. `TE: trailers` is kept.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = elements(headers, &header::CONNECTION).filter_map(|name| name.parse().ok()).collect();
    let trailers = elements(headers, &header::TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Joins several `Cookie` headers into one: HTTP/2 may split cookies, HTTP/1.1 has one header.
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_connection_are_left_out() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("authorization", "Bearer sk-1"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        join_cookies(&mut headers);
        let mut left: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        left.sort();
        assert_eq!(left, ["authorization: \"Bearer sk-1\"", "cookie: \"a=1; b=2\"", "te: \"trailers\""]);
    }

    #[test]
    fn names_by_which_proxies_tell_of_clients_are_known_in_every_spelling() {
        for name in
            ["X-Forwarded-For", "x_forwarded_for", "X-FORWARDED-Ssl", "Forwarded", "X-Real_IP", "True-Client-IP"]
        {
            assert!(is_set_by_proxies(&name.parse().expect("a name")), "{name}");
        }
        for name in ["x-litellm-api-key", "authorization", "x-request-id", "host", "user-agent"] {
            assert!(!is_set_by_proxies(&name.parse().expect("a name")), "{name}");
        }
    }
}
