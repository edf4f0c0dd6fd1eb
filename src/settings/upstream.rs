//! The LiteLLM behind: its address, and which of its paths are served here.

use axum::http::Uri;
use axum::http::uri::{Authority, PathAndQuery, Scheme};

/// Where requests are passed on to: `http://` or `https://`, a host, and perhaps a path before theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: Authority,
    /// What goes before the path of a request; empty, or without a slash at its end.
    pub prefix: String,
}

impl Target {
    /// Out of a URL, or why not.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.trim().parse().map_err(|_| "not a URL".to_owned())?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err("must be of the form http://HOST:PORT".to_owned());
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err("must start with http:// or https://".to_owned());
        }
        if authority.as_str().contains('@') {
            return Err("must not hold a user or password".to_owned());
        }
        let prefix = parts.path_and_query.as_ref().map_or("/", PathAndQuery::as_str);
        if prefix.contains('?') {
            return Err("must not hold a query".to_owned());
        }
        Ok(Self { scheme, authority, prefix: prefix.trim_end_matches('/').to_owned() })
    }
}

/// Whether an entry of `--serve-only` means the route `path`: the path itself, or everything under `.../*`.
pub fn covers(entry: &str, path: &str) -> bool {
    match entry.strip_suffix('*') {
        Some(prefix) => prefix.starts_with('/') && path.starts_with(prefix),
        None => entry == path,
    }
}
