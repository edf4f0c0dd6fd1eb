//! Admission of requests: checks the client's address, the method, the key and the key's rights, according to the route
//! table.

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::auth::{access, key};
use crate::http::client_ip;
use crate::http::error::ApiError;
use crate::http::state::AppState;
use crate::http::telemetry::KeyPrefix;
use crate::identity::Caller;
use crate::route_table::{self, Access, Route};
use crate::settings::Settings;
use crate::settings::upstream::covers;

/// Whether litespend itself answers the request, judged by path and method; without an upstream, it answers all. It always
/// answers health probes and `/metrics`, because they describe this process.
pub fn is_served_here(settings: &Settings, request: &Request) -> bool {
    if settings.upstream.is_none() {
        return true;
    }
    let Some(route) = served_route(request) else { return false };
    // The upstream LiteLLM manages its keys, and caches them.
    if route.left_to_litellm && !settings.manage_litellm_keys {
        return false;
    }
    let of_process = route.path.starts_with("/health/") || route.path == "/metrics";
    let only = &settings.serve_only;
    of_process || only.is_empty() || only.iter().any(|entry| covers(entry, route.path))
}

/// Middleware: checks address, method, key and access, in this order. Stores the [`Caller`] in the request's
/// extensions.
pub async fn authorize(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    match admit(&state, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn admit(state: &AppState, request: &mut Request) -> Result<(), ApiError> {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = path.as_ref().and_then(|path| route_table::find(path));
    if route.is_none_or(|route| route.access != Access::Probe) {
        check_address(state, request)?;
    }
    let Some(path) = path else { return Ok(()) };
    let Some(route) = route else { return Err(ApiError::Internal(format!("route {path} is not in the table"))) };
    if !route.allows(request.method().as_str()) {
        return Err(ApiError::MethodNotAllowed(route.method));
    }
    if route.access.is_open() || (route.path == "/metrics" && state.settings.metrics_public) {
        return Ok(());
    }
    let caller = authenticate(state, request.headers(), route).await?;
    if let Some(prefix) = request.extensions().get::<KeyPrefix>() {
        prefix.set(&caller);
    }
    access::check(route.access, route.path, &caller)?;
    request.extensions_mut().insert(caller);
    Ok(())
}

/// The route that the request matches by path and method.
pub fn served_route(request: &Request) -> Option<&'static Route> {
    let path = request.extensions().get::<MatchedPath>()?;
    route_table::find(path.as_str()).filter(|route| route.allows(request.method().as_str()))
}

/// Answers 403 if the client's address is not on the allow list.
pub fn check_address(state: &AppState, request: &Request) -> Result<(), ApiError> {
    let list = state.allow_list.current();
    let allowed = match client_ip::of_request(&state.settings, request) {
        Some(address) => list.allows(address),
        // A client without a known address matches no entry of a list.
        None => list.entries.as_ref().is_none_or(Vec::is_empty),
    };
    if allowed { Ok(()) } else { Err(ApiError::forbidden("Access forbidden: the client's IP address is not allowed.")) }
}

async fn authenticate(state: &AppState, headers: &HeaderMap, route: &Route) -> Result<Caller, ApiError> {
    let key = key::key_of(headers)?;
    if route.access == Access::MasterKey && !state.keys.is_master(&key) {
        return Err(access::master_key_only(route.path));
    }
    state.keys.resolve(&key).await
}
