//! The operations of the OpenAPI document: the resources whose routes it describes.

use utoipa_axum::router::OpenApiRouter;

use crate::http::openapi::base;
use crate::http::routes::{
    accounts, activity, allowed_ips, booking, calculate, health, log, otlp, report, reset, tags,
};
use crate::http::state::AppState;

/// The routes that the OpenAPI document contains.
pub fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(base::base())
        .merge(accounts::routes())
        .merge(activity::routes())
        .merge(allowed_ips::routes())
        .merge(booking::routes())
        .merge(calculate::routes())
        .merge(health::routes())
        .merge(log::routes())
        .merge(otlp::routes())
        .merge(report::routes())
        .merge(reset::routes())
        .merge(tags::routes())
}
