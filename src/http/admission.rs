//! Admission of requests: checks the client's address, the method, the key and the key's rights, according to the route
//! table. Also decides which requests litespend answers, and which it forwards to the upstream LiteLLM.

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
use crate::route_table::{self, Access, Part, Route};
use crate::settings::Settings;
use crate::settings::upstream::covers;

/// The path of OpenTelemetry's traces.
const TRACES: &str = "/v1/traces";

/// Whether litespend answers the request itself, and does not forward it to the upstream LiteLLM. The path, the method
/// and the settings decide. Without an upstream, litespend answers every request. The setting `serve_only` does not
/// apply to `/health/` and `/metrics`, because they describe this process.
pub fn is_served_here(settings: &Settings, request: &Request) -> bool {
    if settings.upstream.is_none() {
        return true;
    }
    let Some(route) = served_route(settings, request) else { return false };
    // LiteLLM has traces of its own under this path.
    if route.path == TRACES && route.part == Part::Api && !settings.otlp.on_litellm_database {
        return false;
    }
    // The upstream LiteLLM caches its keys, so it manages them itself unless the settings say otherwise.
    if route.left_to_litellm && !settings.manage_litellm_keys {
        return false;
    }
    let of_process = route.path.starts_with("/health/") || is_metrics(route.path);
    let only = &settings.serve_only;
    of_process || only.is_empty() || only.iter().any(|entry| covers(entry, route.path))
}

fn is_metrics(path: &str) -> bool {
    matches!(path, "/metrics" | "/metrics/spend")
}

/// Middleware: checks address, method, key and access, in this order. Stores the [`Caller`] in the request's extensions
/// if the route needs a key. Probes are admitted from every address.
pub async fn authorize(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    match admit(&state, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn admit(state: &AppState, request: &mut Request) -> Result<(), ApiError> {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let with_dashboard = state.settings.ui.is_some();
    let route = path.as_ref().and_then(|path| route_table::find_for(path, request.method().as_str(), with_dashboard));
    if route.is_none_or(|route| route.access != Access::Probe) {
        check_address(state, request)?;
    }
    // The router answers a path without a route with 404.
    let Some(path) = path else { return Ok(()) };
    let Some(route) = route else { return Err(ApiError::Internal(format!("route {path} is not in the table"))) };
    if !route.allows(request.method().as_str()) {
        return Err(ApiError::MethodNotAllowed(route.method));
    }
    if route.access.is_open() || (is_metrics(route.path) && state.settings.metrics_public) {
        return Ok(());
    }
    let caller = authenticate(state, request.headers(), route).await?;
    // The log names the key even if the access check refuses the request.
    if let Some(prefix) = request.extensions().get::<KeyPrefix>() {
        prefix.set(&caller);
    }
    access::check(route.access, route.path, &caller)?;
    request.extensions_mut().insert(caller);
    Ok(())
}

/// The entry of the route table that matches the request's path and method.
pub fn served_route(settings: &Settings, request: &Request) -> Option<&'static Route> {
    let (path, method) = (request.extensions().get::<MatchedPath>()?, request.method().as_str());
    route_table::find_for(path.as_str(), method, settings.ui.is_some()).filter(|route| route.allows(method))
}

/// Returns a 403 if the allow list excludes the client's address. An absent or empty list allows every address.
pub fn check_address(state: &AppState, request: &Request) -> Result<(), ApiError> {
    let list = state.allow_list.current();
    let allowed = match client_ip::of_request(&state.settings, request) {
        Some(address) => list.allows(address),
        // An unknown address matches no entry, so it is allowed only if there are no entries.
        None => list.entries.as_ref().is_none_or(Vec::is_empty),
    };
    if allowed { Ok(()) } else { Err(ApiError::forbidden("Access forbidden: the client's IP address is not allowed.")) }
}

/// Determines the caller from the request's key. For a route that needs the master key, refuses any other key without
/// looking it up.
async fn authenticate(state: &AppState, headers: &HeaderMap, route: &Route) -> Result<Caller, ApiError> {
    let key = key::key_of(headers)?;
    if route.access == Access::MasterKey && !state.keys.is_master(&key) {
        return Err(access::master_key_only(route.path));
    }
    state.keys.resolve(&key).await
}
