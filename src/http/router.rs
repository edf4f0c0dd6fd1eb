//! The router: all handlers, and the middleware layers around them. The route table says who may call each path. A
//! request for a handler whose path is not in that table fails, so a new route cannot be open by accident.

use std::any::Any;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use tower_http::catch_panic::CatchPanicLayer;

use crate::http::dashboard;
use crate::http::error::{ApiError, Repeatable};
use crate::http::openapi;
use crate::http::operations;
use crate::http::replica;
use crate::http::state::AppState;
use crate::http::telemetry;
use crate::http::upstream;
use crate::http::upstream::Upstream;
use crate::http::{admission, body_budget, compression, request_body, response_headers};

/// Builds the application as one service. From the outside in, the layers are: request log, request body watch, panic
/// catcher, upstream (with `--upstream` only), response headers, time limit, repetition,
/// authorization, body memory, compression,
/// replica. The handlers are innermost.
pub fn build(state: AppState) -> Router {
    let (documented, _) = operations::documented().split_for_parts();
    let timeout = state.settings.request_timeout;
    let router = documented
        .route("/openapi.json", routing::get(openapi::serve))
        .route("/", routing::get(openapi::docs_page))
        .route("/docs", routing::get(openapi::docs_page))
        .route("/docs/", routing::get(openapi::docs_page))
        .route("/docs/{*rest}", routing::get(openapi::docs_file))
        .fallback(not_found);
    let router = if state.settings.ui.is_some() { router.merge(dashboard::router()) } else { router };
    let router = router
        .layer(middleware::from_fn_with_state(state.clone(), replica::reading::read))
        .layer(compression::layer())
        .layer(middleware::from_fn_with_state(compression::CompressionPermits::default(), compression::with_permit))
        .layer(middleware::from_fn_with_state(state.clone(), body_budget::charging::charge))
        .layer(middleware::from_fn_with_state(state.clone(), admission::authorize))
        .layer(middleware::from_fn(repeat))
        .layer(middleware::from_fn(move |request: Request, next: Next| limit_time(timeout, request, next)))
        .layer(middleware::from_fn(response_headers::set));
    // The upstream layer is outside the time limit and the compression, so both leave forwarded requests untouched.
    let router = match Upstream::of(&state.settings) {
        Some(upstream) => router.layer(middleware::from_fn_with_state((state.clone(), upstream), upstream::pass_on)),
        None => router,
    };
    router
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(state.clone(), request_body::watch))
        .layer(middleware::from_fn_with_state(state.clone(), telemetry::log_request))
        .with_state(state)
}

/// Sends a GET a second time if its statements were prepared before a migration of the tables. The client never notices.
async fn repeat(request: Request, next: Next) -> Response {
    if request.method() != Method::GET {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let again = Request::from_parts(parts.clone(), Body::empty());
    let response = next.clone().run(Request::from_parts(parts, body)).await;
    if response.extensions().get::<Repeatable>().is_some() { next.run(again).await } else { response }
}

async fn not_found() -> ApiError {
    ApiError::detail(StatusCode::NOT_FOUND, "Not Found")
}

/// Answers 504 if no answer has begun within `limit`. An answer that has begun is not cut off.
async fn limit_time(limit: Duration, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::Timeout { seconds: limit.as_secs() }.into_response(),
    }
}

/// Handles a panic as the last resort: the client gets a 500 and the log gets a line; the connection is not cut.
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let cause = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panic".to_owned());
    let mut response = ApiError::Internal(format!("panic: {cause}")).into_response();
    response_headers::protect(None, &mut response);
    response
}
