//! The OpenAPI document and the page that shows it. The document is generated from the handlers; the page's
//! files are compiled in, so that it works without internet access.

mod shared;

pub use shared::ErrorResponse;

use std::sync::Arc;

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, ContactBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};
use utoipa_swagger_ui::{Config, SwaggerFile};

use crate::error::ApiError;

/// The tag of the nine published operations.
pub const TAG: &str = "Budget & Spend Tracking";

/// The tag of booking usage.
pub const USAGE_TAG: &str = "Recording usage";

/// The tag of keys, teams and users.
pub const MANAGEMENT_TAG: &str = "Keys, teams and users";

/// The tag of what LiteLLM's dashboard and reports read beyond those.
pub const DASHBOARD_TAG: &str = "Dashboard";

/// The name of the security scheme.
pub const SECURITY: &str = "APIKeyHeader";

/// The document without its paths.
pub fn base() -> OpenApi {
    let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
        "x-litellm-api-key",
        "The master key or a virtual key, with or without `Bearer `. `Authorization: Bearer ...` works as well.",
    )));
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("litespend")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some("LiteLLM's Budget & Spend Tracking API, served from Rust."))
                .license(Some(LicenseBuilder::new().name("MIT OR Apache-2.0").build()))
                .contact(Some(ContactBuilder::new().name(Some("litespend")).build()))
                .build(),
        )
        .components(Some(ComponentsBuilder::new().security_scheme(SECURITY, scheme).build()))
        .build()
}

/// The whole document.
pub fn document() -> OpenApi {
    finish(crate::router::documented().split_for_parts().1)
}

/// Adds to the document what all operations share.
pub fn finish(mut document: OpenApi) -> OpenApi {
    shared::complete_document(&mut document);
    document
}

/// The whole document as YAML: what `litespend openapi` prints and `openapi.yaml` holds.
pub fn yaml() -> anyhow::Result<String> {
    Ok(document().to_yaml()?)
}

/// `GET /openapi.json`.
pub async fn serve(document: OpenApi) -> Json<OpenApi> {
    Json(document)
}

/// `GET /` and `GET /docs`: the page. Its files are named by absolute paths, so that it works at both.
pub async fn docs_page() -> Result<Response, ApiError> {
    let file = file("index.html")?;
    let page = String::from_utf8_lossy(&file.bytes).replace("\"./", "\"/docs/");
    Ok(([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response())
}

/// `GET /docs/...`: the files of the page.
pub async fn docs_file(name: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    // A name that is not text names no file.
    let Path(name) = name.map_err(|_| not_found())?;
    let file = file(&name)?;
    Ok(([(header::CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response())
}

fn not_found() -> ApiError {
    ApiError::detail(StatusCode::NOT_FOUND, "Not Found")
}

fn file(name: &str) -> Result<SwaggerFile<'static>, ApiError> {
    match utoipa_swagger_ui::serve(name, Arc::new(Config::from("/openapi.json"))) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(not_found()),
        Err(error) => Err(ApiError::Internal(error.to_string())),
    }
}
