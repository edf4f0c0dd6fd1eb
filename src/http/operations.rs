//! The operations of the OpenAPI document: the list of all handlers that it describes.

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::openapi::base;
use crate::http::routes::accounts::tables;
use crate::http::routes::activity::{daily, global, team};
use crate::http::routes::log::{pages, rows};
use crate::http::routes::report::scoped;
use crate::http::routes::{accounts, activity, allowed_ips, booking, calculate, health, log, report, reset, tags};
use crate::http::state::AppState;

/// The routes that the OpenAPI document contains.
pub fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(base::base())
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

/// The further routes that LiteLLM's dashboard and reports read, beyond the published operations.
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
