//! `POST /global/spend/reset`: sets the spend of all keys and teams to 0.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::ApiError;
use crate::http::openapi::base::TAG;
use crate::http::state::AppState;
use crate::store;
use crate::store::database;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(reset_spend))
}

/// Result of a change.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StatusResponse {
    /// Readable description of the change.
    pub message: String,
    /// Always `success`.
    #[schema(example = "success")]
    pub status: &'static str,
}

impl StatusResponse {
    /// A response for a successful change.
    pub fn success(message: impl Into<String>) -> Json<Self> {
        Json(Self { message: message.into(), status: "success" })
    }
}

/// Sets the spend of all keys and teams to 0.
///
/// The spend log and the daily tables do not change. Only the master key may do this.
#[utoipa::path(post, path = "/global/spend/reset", tag = TAG,
    operation_id = "global_spend_reset_global_spend_reset_post",
    responses((status = 200, description = "Reset", body = StatusResponse),
              (status = 401, description = "Not the master key")))]
async fn reset_spend(State(state): State<AppState>) -> Result<Json<StatusResponse>, ApiError> {
    let mut connection = database::acquire(&state.pool).await?;
    let (keys, teams) = store::reset::reset(&mut connection).await?;
    tracing::info!(keys, teams, "spend of all keys and teams reset");
    Ok(StatusResponse::success("Spend for all API Keys and Teams reset successfully"))
}
