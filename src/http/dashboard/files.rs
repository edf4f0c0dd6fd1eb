//! The static export: one folder per page, and assets whose names change with their content.

use axum::body::Body;
use axum::extract::{OriginalUri, Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use tower::ServiceExt;
use tower_http::services::ServeDir;

use crate::http::dashboard::folder::Folder;
use crate::http::error::ApiError;
use crate::http::state::AppState;

/// An asset's content never changes under the same name.
const FOREVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// A page may change with an update, so browsers have to revalidate it.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");

/// Redirects `/ui` to the folder `/ui/`, which the relative addresses in the pages need.
pub(super) async fn to_front_page(OriginalUri(uri): OriginalUri) -> Redirect {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Redirect::temporary(&format!("/ui/{query}"))
}

/// Serves a page, or a file next to it.
pub(super) async fn page(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    file(&state, "/ui", "", request).await
}

/// Serves a script, a style sheet or a font.
pub(super) async fn asset(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let prefix = if request.uri().path().starts_with("/litellm-asset-prefix") { "/litellm-asset-prefix" } else { "" };
    let mut response = file(&state, prefix, "", request).await?;
    if response.status().is_success() {
        response.headers_mut().insert(header::CACHE_CONTROL, FOREVER);
    }
    Ok(response)
}

/// Serves the logo above the menu.
pub(super) async fn logo(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    file(&state, "", "/assets/logos/litellm_logo.png", request).await
}

/// Serves the front page's content, as other pages request it before they navigate there.
pub(super) async fn front_page_data(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    file(&state, "", "/index.txt", request).await
}

/// Serves the icon for the browser's tab.
pub(super) async fn favicon(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    file(&state, "", "/favicon.ico", request).await
}

/// Serves the file `whole` or, if that is empty, the file at the request's path after `prefix`.
async fn file(state: &AppState, prefix: &str, whole: &str, request: Request) -> Result<Response, ApiError> {
    let Some(ui) = &state.settings.ui else { return Err(ApiError::detail(StatusCode::NOT_FOUND, "Not Found")) };
    let (mut parts, _) = request.into_parts();
    let asked = parts.uri.clone();
    let path = if whole.is_empty() { asked.path().strip_prefix(prefix).unwrap_or_default() } else { whole };
    parts.uri = PathAndQuery::try_from(path).map(Uri::from).map_err(|_| not_found())?;
    let files = ServeDir::with_backend("", Folder::new(&ui.directory)).redirect_path_prefix(prefix);
    let served = files.oneshot(Request::from_parts(parts, Body::empty())).await;
    let mut response = match served {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    };
    if response.headers().contains_key(header::LOCATION) {
        // The path is a folder without its final slash. The redirect keeps the query.
        let query = asked.query().map(|query| format!("?{query}")).unwrap_or_default();
        return Ok(Redirect::temporary(&format!("{}/{query}", asked.path().trim_end_matches('/'))).into_response());
    }
    if response.status() == StatusCode::NOT_FOUND {
        return Err(not_found());
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(ASK_AGAIN);
    Ok(response)
}

fn not_found() -> ApiError {
    ApiError::detail(StatusCode::NOT_FOUND, "Not Found")
}
