//! Response headers for browsers and caches, on every answer of litespend itself: private answers are not stored,
//! content types are not guessed, pages are not shown in a frame, and answers that ask a client to retry say when.

use axum::extract::{MatchedPath, Request};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use crate::route_table::{self, Access, Route};

/// The login route: it needs no key, and its answer contains one.
const LOGIN: &str = "/v2/login";

/// Middleware: sets the headers of one answer.
pub async fn set(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().and_then(|path| route_table::find(path.as_str()));
    let mut response = next.run(request).await;
    protect(route, &mut response);
    response
}

/// Sets the headers, depending on the route. A `Cache-Control` that the handler has set is kept.
pub fn protect(route: Option<&Route>, response: &mut Response) {
    let open = route.is_some_and(|route| {
        route.access == Access::Public && route.path != LOGIN && !route.path.starts_with("/health/")
    });
    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !open {
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
    if headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html")) {
        headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static("frame-ancestors 'none'"));
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        headers.entry(RETRY_AFTER).or_insert(HeaderValue::from_static("1"));
    }
}
