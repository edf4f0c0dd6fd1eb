//! What litespend does not have answers with the empty shape that the dashboard expects, so that its pages say that
//! there is nothing instead of breaking.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::Json;
use axum::extract::MatchedPath;
use serde_json::Value;

use crate::http::error::ApiError;

/// The paths.
pub const PATHS: [&str; 32] = [
    "/litellm/.well-known/litellm-ui-config",
    "/.well-known/litellm-ui-config",
    "/get/ui_theme_settings",
    "/ui/litellm-runtime-config.json",
    "/public/litellm_blog_posts",
    "/api/plugins",
    "/health/license",
    "/sso/get/ui_settings",
    "/get/ui_settings",
    "/organization/list",
    "/health/readiness/details",
    "/get/user_banner",
    "/gateway/errors/activity",
    "/get/latest_release_info",
    "/telemetry/settings",
    "/telemetry/ui_events/enabled",
    "/health/deployment_warnings",
    "/model_group/info",
    "/models",
    "/v2/model/info",
    "/v1/agents",
    "/subscription_accounts/usage",
    "/tag/summary",
    "/tag/list",
    "/project/list",
    "/prompts/list",
    "/policies/list",
    "/v2/guardrails/list",
    "/user/available_roles",
    "/team/metadata_schema",
    "/get/sso_settings",
    "/config/list",
];

static SHAPES: LazyLock<HashMap<String, Value>> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../data/dashboard_shapes.json")).unwrap_or_default());

/// The shape of the path.
pub async fn answer(path: MatchedPath) -> Result<Json<Value>, ApiError> {
    let path = match path.as_str() {
        "/.well-known/litellm-ui-config" => "/litellm/.well-known/litellm-ui-config",
        path => path,
    };
    let shape = SHAPES.get(path).ok_or_else(|| ApiError::Internal(format!("{path} has no shape")))?;
    Ok(Json(shape.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_a_shape() {
        for path in PATHS.iter().filter(|path| !path.starts_with("/.well-known")) {
            assert!(SHAPES.contains_key(*path), "{path}");
        }
        assert_eq!(SHAPES.len(), PATHS.len() - 1);
    }
}
