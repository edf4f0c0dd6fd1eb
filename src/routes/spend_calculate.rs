//! placeholder
use crate::error::ApiError;
use axum::Json;
/// x
#[utoipa::path(post, path = "/spend/calculate", tag = crate::openapi::TAG,
    operation_id = "calculate_spend_spend_calculate_post", security(("APIKeyHeader" = [])), responses((status = 200, description = "x")))]
pub async fn calculate_spend() -> Result<Json<f64>, ApiError> {
    Ok(Json(0.0))
}
