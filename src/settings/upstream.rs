//! The LiteLLM to which requests are passed on: its address, and the paths that litespend serves itself.

use axum::http::Uri;
use axum::http::uri::{Authority, PathAndQuery, Scheme};

/// The address of the upstream: `http://` or `https://`, a host, and optionally a path that is put in front of the path
/// of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Host and port.
    pub authority: Authority,
    /// The path that is put in front of a request's path. Empty, or without a slash at its end.
    pub prefix: String,
}

impl Target {
    /// Parses a URL, or returns the reason why it can't be used.
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
            return Err("must not contain a user or password".to_owned());
        }
        let prefix = parts.path_and_query.as_ref().map_or("/", PathAndQuery::as_str);
        if prefix.contains('?') {
            return Err("must not contain a query".to_owned());
        }
        Ok(Self { scheme, authority, prefix: prefix.trim_end_matches('/').to_owned() })
    }
}

/// Whether an entry of `--serve-only` includes the route `path`. An entry is a path, or a prefix that ends in `*`.
pub fn covers(entry: &str, path: &str) -> bool {
    match entry.strip_suffix('*') {
        Some(prefix) => prefix.starts_with('/') && path.starts_with(prefix),
        None => entry == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_mean_a_path_or_all_under_it() {
        assert!(covers("/spend/logs", "/spend/logs"));
        assert!(!covers("/spend/logs", "/spend/logs/v2"));
        assert!(covers("/spend/*", "/spend/logs/v2"));
        assert!(!covers("*", "/spend/logs"));
    }
}
