//! The middleware layer that routes reads to the replica.

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::replica::ToReplica;
use crate::http::state::AppState;
use crate::route_table;

fn tolerates_lag(request: &Request) -> bool {
    let path = request.extensions().get::<MatchedPath>();
    let route = path.and_then(|path| route_table::find(path.as_str()));
    request.method() == Method::GET && route.is_some_and(|route| route.may_lag)
}

/// Middleware: runs a read on the replica and, if the result is a server error other than 504, again on the primary. An
/// answer that has begun is not repeated.
pub async fn read(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let replica = state.replica().filter(|replica| replica.answers());
    let Some(replica) = replica.filter(|_| tolerates_lag(&request)) else { return next.run(request).await };
    let (mut parts, body) = request.into_parts();
    let again = Request::from_parts(parts.clone(), Body::empty());
    parts.extensions.insert(ToReplica);
    let response = next.clone().run(Request::from_parts(parts, body)).await;
    if !response.status().is_server_error() || response.status() == StatusCode::GATEWAY_TIMEOUT {
        return response;
    }
    replica.check_soon();
    next.run(again).await
}
