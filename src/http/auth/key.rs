//! Finds the key in a request's headers. The order and the accepted spellings are the reference's: first
//! `x-litellm-api-key` (with or without a scheme), then `Authorization` (a scheme is required), then the headers of the
//! Azure, Anthropic, Google and APIM clients (the bare key).

use axum::http::HeaderMap;

use crate::http::error::ApiError;

/// Headers that carry a bare key, in the order in which they are checked.
const BARE_KEY_HEADERS: [&str; 4] = ["api-key", "x-api-key", "x-goog-api-key", "ocp-apim-subscription-key"];

/// Every header that may carry a key, for redaction.
pub const KEY_HEADERS: [&str; 6] =
    ["x-litellm-api-key", "authorization", "api-key", "x-api-key", "x-goog-api-key", "ocp-apim-subscription-key"];

/// The key that the request carries, or a 401 that says why there is none.
pub fn key_of(headers: &HeaderMap) -> Result<String, ApiError> {
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let key = if let Some(value) = text("x-litellm-api-key") {
        without_scheme(&value).unwrap_or(value)
    } else if let Some(value) = text("authorization").filter(|value| !value.is_empty()) {
        without_scheme(&value).unwrap_or_default()
    } else if let Some(value) = BARE_KEY_HEADERS.iter().find_map(|name| text(name)) {
        value
    } else {
        return Err(ApiError::unauthorized("Authentication Error, No api key passed in."));
    };
    if key.is_empty() {
        let message = "Authentication Error, Malformed API Key passed in. Ensure Key has `Bearer ` prefix.";
        return Err(ApiError::unauthorized(message));
    }
    Ok(key)
}

/// The part of the value after `Bearer ` (in any case) or `Basic `.
fn without_scheme(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    let known = scheme.eq_ignore_ascii_case("bearer") || scheme == "Basic";
    known.then(|| rest.to_owned())
}

/// The 401 for a key that does not start with `sk-`. It shows no more of the key than the reference does.
pub fn not_a_virtual_key(key: &str) -> ApiError {
    let characters: Vec<char> = key.chars().collect();
    let shown = if characters.len() > 8 {
        let start: String = characters.iter().take(4).collect();
        let end: String = characters.iter().skip(characters.len() - 4).collect();
        format!("{start}****{end}")
    } else {
        "****".to_owned()
    };
    ApiError::unauthorized(format!("LiteLLM Virtual Key expected. Received={shown}, expected to start with 'sk-'."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn key(name: &str, value: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(
            HeaderName::from_bytes(name.as_bytes()).expect("a header name"),
            HeaderValue::from_str(value).expect("a header value"),
        );
        key_of(&headers).ok()
    }

    #[test]
    fn keys_are_found_where_the_reference_finds_them() {
        for (name, value, expected) in [
            ("authorization", "Bearer sk-1", Some("sk-1")),
            ("authorization", "bearer sk-1", Some("sk-1")),
            ("authorization", "BEARER sk-1", Some("sk-1")),
            ("authorization", "Bearer  sk-1", Some(" sk-1")),
            ("authorization", "Basic sk-1", Some("sk-1")),
            ("authorization", "sk-1", None),
            ("authorization", "Token sk-1", None),
            ("authorization", "Bearer", None),
            ("x-litellm-api-key", "sk-1", Some("sk-1")),
            ("x-litellm-api-key", "Bearer sk-1", Some("sk-1")),
            ("api-key", "sk-1", Some("sk-1")),
            ("api-key", "Bearer sk-1", Some("Bearer sk-1")),
            ("x-goog-api-key", "sk-1", Some("sk-1")),
            ("ocp-apim-subscription-key", "sk-1", Some("sk-1")),
            ("x-other", "sk-1", None),
        ] {
            assert_eq!(key(name, value).as_deref(), expected, "{name}: {value}");
        }
    }
}
