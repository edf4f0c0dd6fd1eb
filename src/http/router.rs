//! Every route with who may call it, and the layers around them, on one page. A path that matches and has no
//! line in [`ROUTES`] is refused, so a new route can't be open by accident.

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::auth::access;
use crate::http::auth::access::Access;
use crate::http::auth::key;
use crate::http::dashboard;
use crate::http::error::ApiError;
use crate::http::openapi;
use crate::http::replica;
use crate::http::routes::accounts::tables;
use crate::http::routes::activity::{daily, global, team};
use crate::http::routes::log::{pages, rows};
use crate::http::routes::report::scoped;
use crate::http::routes::{accounts, activity, allowed_ips, booking, calculate, health, log, report, reset, tags};
use crate::http::state::AppState;
use crate::http::telemetry;
use crate::http::telemetry::KeyPrefix;
use crate::http::upstream;
use crate::http::upstream::Upstream;
use crate::http::{body_room, client_ip, compression, request_body, response_headers};

/// A path, its methods as `Allow` lists them, and who may call it.
pub struct Rule {
    /// Path pattern, as the router knows it.
    pub path: &'static str,
    /// Value of the `Allow` header.
    pub allow: &'static str,
    /// Who may call it.
    pub access: Access,
}

pub(crate) const fn rule(path: &'static str, allow: &'static str, access: Access) -> Rule {
    Rule { path, allow, access }
}

/// Who may call what.
pub const ROUTES: &[Rule] = &[
    rule("/spend/calculate", "POST", Access::Spend),
    rule("/spend/logs", "GET", Access::Spend),
    rule("/spend/tags", "GET", Access::Spend),
    rule("/global/spend/tags", "GET", Access::GlobalSpend),
    rule("/global/spend/report", "GET", Access::GlobalSpend),
    rule("/global/spend/reset", "POST", Access::MasterKey),
    rule("/spend/usage", "POST", Access::AnyKey),
    rule("/spend/usage/litellm", "POST", Access::AnyKey),
    rule("/user/daily/activity", "GET", Access::AnyKey),
    rule("/add/allowed_ip", "POST", Access::AdminWrite),
    rule("/delete/allowed_ip", "POST", Access::AdminWrite),
    rule("/get/allowed_ips", "GET", Access::AdminRead),
    rule("/key/generate", "POST", Access::AdminWrite),
    rule("/key/delete", "POST", Access::AdminWrite),
    rule("/key/block", "POST", Access::AdminWrite),
    rule("/key/unblock", "POST", Access::AdminWrite),
    rule("/key/info", "GET", Access::AdminRead),
    rule("/team/new", "POST", Access::AdminWrite),
    rule("/team/list", "GET", Access::AdminRead),
    rule("/user/new", "POST", Access::AdminWrite),
    rule("/user/info", "GET", Access::AdminRead),
    rule("/user/daily/activity/aggregated", "GET", Access::AnyKey),
    rule("/user/daily/activity/aggregated/keys", "GET", Access::AnyKey),
    rule("/user/daily/activity/aggregated/users", "GET", Access::AnyKey),
    rule("/user/daily/activity/aggregated/model_top_keys", "GET", Access::AnyKey),
    rule("/team/daily/activity", "GET", Access::AnyKey),
    rule("/team/daily/activity/aggregated", "GET", Access::AnyKey),
    rule("/tag/daily/activity/aggregated", "GET", Access::Spend),
    rule("/spend/logs/v2", "GET", Access::Spend),
    rule("/spend/logs/ui", "GET", Access::Spend),
    rule("/spend/logs/ui/{request_id}", "GET", Access::Spend),
    rule("/spend/logs/session/ui", "GET", Access::Spend),
    rule("/spend/keys", "GET", Access::Spend),
    rule("/spend/users", "GET", Access::Spend),
    rule("/key/spend/report", "GET", Access::Spend),
    rule("/user/spend/report", "GET", Access::Spend),
    rule("/team/spend/report", "GET", Access::Spend),
    rule("/global/activity", "GET", Access::InternalUsers),
    rule("/global/activity/model", "GET", Access::InternalUsers),
    rule("/global/spend/provider", "GET", Access::GlobalSpend),
    rule("/global/spend/all_tag_names", "GET", Access::GlobalSpend),
    rule("/global/all_end_users", "GET", Access::AdminRead),
    rule("/health/liveliness", "GET", Access::Probe),
    rule("/health/liveness", "GET", Access::Probe),
    rule("/health/readiness", "GET", Access::Public),
    rule("/metrics", "GET", Access::AdminRead),
    rule("/openapi.json", "GET", Access::Public),
    rule("/", "GET", Access::Public),
    rule("/docs", "GET", Access::Public),
    rule("/docs/", "GET", Access::Public),
    rule("/docs/{*rest}", "GET", Access::Public),
];

/// The routes that are in the OpenAPI document.
pub fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(calculate::calculate_spend))
        .routes(routes!(log::list_spend_logs))
        .routes(routes!(tags::list_spend_tags))
        .routes(routes!(tags::list_global_spend_tags))
        .routes(routes!(report::get_spend_report))
        .routes(routes!(reset::reset_spend))
        .routes(routes!(booking::record_usage))
        .routes(routes!(booking::record_litellm_usage))
        .routes(routes!(daily::list_user_daily_activity))
        .routes(routes!(allowed_ips::add_allowed_ip))
        .routes(routes!(allowed_ips::delete_allowed_ip))
        .routes(routes!(allowed_ips::list_allowed_ips))
        .routes(routes!(accounts::generate_key))
        .routes(routes!(accounts::delete_keys))
        .routes(routes!(accounts::block_key))
        .routes(routes!(accounts::unblock_key))
        .routes(routes!(accounts::get_key_info))
        .routes(routes!(accounts::create_team))
        .routes(routes!(accounts::list_teams))
        .routes(routes!(accounts::create_user))
        .routes(routes!(accounts::get_user_info))
        .merge(dashboard())
        .routes(routes!(health::get_liveliness))
        .routes(routes!(health::get_liveness))
        .routes(routes!(health::get_readiness))
        .routes(routes!(health::get_metrics))
}

/// What LiteLLM's dashboard and reports read beyond the published operations.
fn dashboard() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(activity::get_user_activity))
        .routes(routes!(activity::list_user_activity_keys))
        .routes(routes!(activity::list_user_activity_users))
        .routes(routes!(activity::list_model_top_keys))
        .routes(routes!(team::list_team_activity))
        .routes(routes!(activity::get_team_activity))
        .routes(routes!(activity::get_tag_activity))
        .routes(routes!(pages::list_log_page))
        .routes(routes!(pages::list_dashboard_logs))
        .routes(routes!(rows::get_log_texts))
        .routes(routes!(rows::list_session_logs))
        .routes(routes!(tables::list_spend_keys))
        .routes(routes!(tables::list_spend_users))
        .routes(routes!(scoped::get_key_report))
        .routes(routes!(scoped::get_user_report))
        .routes(routes!(scoped::get_team_report))
        .routes(routes!(global::get_global_activity))
        .routes(routes!(global::list_model_activity))
        .routes(routes!(global::list_provider_spend))
        .routes(routes!(global::list_tag_names))
        .routes(routes!(global::list_end_users))
}

/// The application as one service: log, request bodies, panics, headers, time limit, authorisation, compression,
/// handlers.
pub fn build(state: AppState) -> Router {
    let (documented, _) = documented().split_for_parts();
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
        .layer(middleware::from_fn_with_state(state.clone(), replica::read))
        .layer(compression::layer())
        .layer(middleware::from_fn_with_state(compression::Turns::default(), compression::in_turn))
        .layer(middleware::from_fn_with_state(state.clone(), body_room::charge))
        .layer(middleware::from_fn_with_state(state.clone(), authorize))
        .layer(middleware::from_fn(move |request: Request, next: Next| limit_time(timeout, request, next)))
        .layer(middleware::from_fn(response_headers::set));
    // Outside of the time limit and the compression: what is passed on is not touched.
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

async fn not_found() -> ApiError {
    ApiError::detail(StatusCode::NOT_FOUND, "Not Found")
}

/// Answers 504 where no answer has begun in time. What has begun is not cut.
async fn limit_time(limit: Duration, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::Timeout { seconds: limit.as_secs() }.into_response(),
    }
}

/// The last line: a panic is a 500 and a line in the log, never a cut connection.
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

/// The address that the request comes from, where it is known.
pub fn client_address(state: &AppState, request: &Request) -> Option<IpAddr> {
    let ConnectInfo(peer) = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
    let settings = &state.settings;
    Some(client_ip::client_address(
        peer.ip(),
        request.headers(),
        settings.use_x_forwarded_for,
        &settings.trusted_proxies,
    ))
}

/// Checks address, method, key and access, in this order, and leaves the caller in the request's extensions.
async fn authorize(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    match admit(&state, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn admit(state: &AppState, request: &mut Request) -> Result<(), ApiError> {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let rule = path.as_ref().and_then(|path| rule_of(path));
    if rule.is_none_or(|rule| rule.access != Access::Probe) {
        check_address(state, request)?;
    }
    let Some(path) = path else { return Ok(()) };
    let Some(rule) = rule else { return Err(ApiError::Internal(format!("route {path} has no access rule"))) };
    let open = matches!(rule.access, Access::Probe | Access::Public);
    if !method_allowed(rule, request.method(), open) {
        return Err(ApiError::MethodNotAllowed(rule.allow));
    }
    if open || (rule.path == "/metrics" && state.settings.metrics_public) {
        return Ok(());
    }
    let caller = authenticate(state, request.headers(), rule).await?;
    if let Some(prefix) = request.extensions().get::<KeyPrefix>() {
        prefix.set(&caller);
    }
    access::check(rule.access, rule.path, &caller)?;
    request.extensions_mut().insert(caller);
    Ok(())
}

/// The path of every route.
pub fn paths() -> impl Iterator<Item = &'static str> {
    ROUTES.iter().chain(dashboard::ROUTES).map(|rule| rule.path)
}

/// The rule of a route, which is there only where the route is.
pub(crate) fn rule_of(path: &str) -> Option<&'static Rule> {
    ROUTES.iter().chain(dashboard::ROUTES).find(|rule| rule.path == path)
}

/// The rule of the route that the request matches, if its method is one of the route's.
pub(crate) fn served_rule(request: &Request) -> Option<&'static Rule> {
    let path = request.extensions().get::<MatchedPath>()?;
    let rule = rule_of(path.as_str())?;
    let open = matches!(rule.access, Access::Probe | Access::Public);
    method_allowed(rule, request.method(), open).then_some(rule)
}

/// HEAD is GET without the body for probes and pages; the API answers it 405, as the reference does.
fn method_allowed(rule: &Rule, method: &Method, open: bool) -> bool {
    rule.allow.split(',').any(|allowed| allowed == method.as_str()) || (open && method == Method::HEAD)
}

/// 403 where the client's address is not on the list.
pub(crate) fn check_address(state: &AppState, request: &Request) -> Result<(), ApiError> {
    let list = state.allow_list.current();
    let allowed = match client_address(state, request) {
        Some(address) => list.allows(address),
        // Without an address nothing can be on a list.
        None => list.entries.as_ref().is_none_or(Vec::is_empty),
    };
    if allowed { Ok(()) } else { Err(ApiError::forbidden("Access forbidden: the client's IP address is not allowed.")) }
}

async fn authenticate(
    state: &AppState,
    headers: &HeaderMap,
    rule: &Rule,
) -> Result<crate::http::auth::Caller, ApiError> {
    let key = key::key_of(headers)?;
    if rule.access == Access::MasterKey && !state.keys.is_master(&key) {
        return Err(access::master_key_only(rule.path));
    }
    state.keys.resolve(&key).await
}
