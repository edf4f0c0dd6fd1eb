//! Empty answers for features that litespend lacks. Each has the shape that the dashboard expects, so that its pages
//! say that there is nothing instead of breaking.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::Json;
use axum::extract::MatchedPath;
use serde_json::Value;

use crate::http::error::ApiError;

static SHAPES: LazyLock<HashMap<String, Value>> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../data/dashboard_shapes.json")).unwrap_or_default());

/// Answers with the empty shape of the path.
pub(super) async fn answer(path: MatchedPath) -> Result<Json<Value>, ApiError> {
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
    use crate::route_table::{Part, ROUTES};

    #[test]
    fn every_path_has_a_shape() {
        let paths = ROUTES.iter().filter(|route| route.part == Part::Stub).map(|route| route.path);
        let paths: Vec<_> = paths.filter(|path| !path.starts_with("/.well-known")).collect();
        for path in &paths {
            assert!(SHAPES.contains_key(*path), "{path}");
        }
        assert_eq!(SHAPES.len(), paths.len());
    }
}
