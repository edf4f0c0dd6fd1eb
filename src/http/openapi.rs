//! The OpenAPI document, and the page that displays it. The document is generated from the handlers. The page's files
//! are compiled in, so that it works without internet access.

pub mod base;
pub mod bodies;
mod parameters;
pub mod shared;

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, LazyLock};

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use flate2::read::GzDecoder;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerFile};

use crate::http::compression::StaticFile;
use crate::http::error::ApiError;
use crate::http::operations;

/// The complete document.
pub fn document() -> OpenApi {
    finish(operations::documented().split_for_parts().1)
}

/// Adds the parts that all operations share to the document.
pub fn finish(mut document: OpenApi) -> OpenApi {
    shared::complete_document(&mut document);
    document
}

/// The complete document as YAML: the output of `litespend openapi`, and the content of `openapi.yaml`.
pub fn yaml() -> anyhow::Result<String> {
    Ok(document().to_yaml()?)
}

/// `GET /openapi.json`.
pub async fn serve(headers: HeaderMap) -> Result<Response, ApiError> {
    static FILE: OnceCell<StaticFile> = OnceCell::const_new();
    let file = FILE.get_or_try_init(|| {
        prepare(|| {
            let text = serde_json::to_vec(&document()).map_err(|error| ApiError::Internal(error.to_string()))?;
            Ok(StaticFile::new(HeaderValue::from_static("application/json"), text.into()))
        })
    });
    Ok(file.await?.answer(&headers))
}

/// `GET /` and `GET /docs`: the page. It refers to its files by absolute paths, so that it works at both addresses.
pub async fn docs_page(headers: HeaderMap) -> Result<Response, ApiError> {
    static FILE: OnceCell<StaticFile> = OnceCell::const_new();
    let file = FILE.get_or_try_init(|| {
        prepare(|| {
            let file = file("index.html")?;
            let page = String::from_utf8_lossy(&content(file)?).replace("\"./", "\"/docs/");
            Ok(StaticFile::new(HeaderValue::from_static("text/html; charset=utf-8"), page.into()))
        })
    });
    Ok(file.await?.answer(&headers))
}

/// `GET /docs/...`: the files of the page. Each is compressed at its first use and then shared.
pub async fn docs_file(name: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Result<Response, ApiError> {
    type Files = Mutex<HashMap<String, Arc<OnceCell<StaticFile>>>>;
    static FILES: LazyLock<Files> = LazyLock::new(Mutex::default);
    // A name that is not UTF-8 names no file.
    let Path(name) = name.map_err(|_| not_found())?;
    // Only names of existing files get an entry, so the map cannot grow beyond them.
    file(&name)?;
    let cell = Arc::clone(FILES.lock().entry(name.clone()).or_default());
    let ready = cell.get_or_try_init(|| {
        prepare(move || {
            let file = file(&name)?;
            let content_type = HeaderValue::from_str(&file.content_type).map_err(|_| not_found())?;
            Ok(StaticFile::new(content_type, content(file)?.into()))
        })
    });
    Ok(ready.await?.answer(&headers))
}

/// Runs slow work on a blocking thread, so that it holds up no other request.
async fn prepare(make: impl FnOnce() -> Result<StaticFile, ApiError> + Send + 'static) -> Result<StaticFile, ApiError> {
    tokio::task::spawn_blocking(make).await.map_err(|error| ApiError::Internal(error.to_string()))?
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

/// The bytes of a file, unpacked.
fn content(file: SwaggerFile<'static>) -> Result<Vec<u8>, ApiError> {
    if !file.gzpipped {
        return Ok(file.bytes.into_owned());
    }
    let mut unpacked = Vec::new();
    let read = GzDecoder::new(&*file.bytes).read_to_end(&mut unpacked);
    read.map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(unpacked)
}
