//! The handlers and the layers around them, on one page. Who may call what stands in the route table; a handler whose path
//! has no line there is refused, so that a new route can't be open by accident.

use std::any::Any;
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

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
use crate::http::upstream;
use crate::http::upstream::Upstream;
use crate::http::{admission, body_room, compression, request_body, response_headers};

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
        .layer(middleware::from_fn_with_state(state.clone(), admission::authorize))
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
