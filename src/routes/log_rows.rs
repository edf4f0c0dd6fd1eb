//! One call of the log, and the calls of one session: `/spend/logs/ui/{request_id}`, `/spend/logs/session/ui`.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Serialize;
use sqlx::PgConnection;

use super::log_params::parse_instant;
use crate::auth::{Caller, Scope};
use crate::error::{ApiError, ErrorType, FieldError};
use crate::extract::{FromQuery, Query, QueryReader};
use crate::reads::Reads;
use crate::store::log_rows::{self, ListedLog, LogTexts};
use crate::store::{keys, team_views};

/// The permission that lets a team's members read its log.
const PERMISSION: &str = "/spend/logs";

/// Parameters of `/spend/logs/ui/{request_id}`: taken, and without effect, as an id needs no dates.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogTextsParams {
    /// YYYY-MM-DD HH:MM:SS
    start_date: Option<String>,
    /// YYYY-MM-DD HH:MM:SS
    end_date: Option<String>,
}

impl FromQuery for LogTextsParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { start_date: reader.text("start_date"), end_date: reader.text("end_date") }
    }
}

/// Parameters of `/spend/logs/session/ui`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SessionParams {
    /// The session
    session_id: String,
    /// Page number for pagination
    #[param(required = false, default = 1, minimum = 1)]
    page: i64,
    /// Number of items per page
    #[param(required = false, default = 50, minimum = 1, maximum = 100)]
    page_size: i64,
}

impl FromQuery for SessionParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        let session_id = reader.text("session_id");
        if session_id.is_none() {
            reader.reject(FieldError::query("session_id", "missing", "Field required"));
        }
        Self {
            session_id: session_id.unwrap_or_default(),
            page: reader.integer("page", 1, 1, i64::MAX),
            page_size: reader.integer("page_size", 50, 1, 100),
        }
    }
}

/// A page of a session's calls.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SessionResponse {
    /// Calls, newest first.
    data: Vec<ListedLog>,
    /// Calls in all.
    total: i64,
    /// This page.
    page: i64,
    /// Calls of a page at most.
    page_size: i64,
    /// Pages in all.
    total_pages: i64,
}

/// The stored texts of one call: messages, answer, request. Null where the log has no such call. Users who are not
/// admins are refused calls that are neither theirs nor of a team whose log they may read.
#[utoipa::path(get, path = "/spend/logs/ui/{request_id}", tag = crate::openapi::DASHBOARD_TAG,
    operation_id = "ui_view_request_response_for_request_id", security(("APIKeyHeader" = [])),
    params(("request_id" = String, Path, description = "The request's id, or LiteLLM's id of the call"),
           LogTextsParams),
    responses((status = 200, description = "The texts", body = Option<LogTexts>),
              (status = 400, description = "A bad date"),
              (status = 403, description = "Not the caller's")))]
pub async fn get_log_texts(
    reads: Reads,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
    Query(params): Query<LogTextsParams>,
) -> Result<Json<Option<LogTexts>>, ApiError> {
    let Ok(Path(request_id)) = path else {
        return Err(ApiError::detail(StatusCode::BAD_REQUEST, "The request's id in the path is not UTF-8"));
    };
    // PostgreSQL stores no NUL, so no call has it in its id.
    if request_id.contains('\0') {
        return Ok(Json(None));
    }
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    may_read(connection, &caller, &request_id).await?;
    for (name, text) in [("start_date", &params.start_date), ("end_date", &params.end_date)] {
        if text.as_deref().is_some_and(|text| parse_instant(text).is_none()) {
            let message = format!("{name} must be of the form YYYY-MM-DD HH:MM:SS");
            return Err(ApiError::bad_request(ErrorType::InternalServerError, message));
        }
    }
    let scope = scope_of(connection, &caller).await?;
    Ok(Json(log_rows::texts(connection, &scope, &request_id).await?))
}

/// The calls of one session, newest first; of users who are not admins, their own and those of teams whose log they
/// may read.
#[utoipa::path(get, path = "/spend/logs/session/ui", tag = crate::openapi::DASHBOARD_TAG,
    operation_id = "ui_view_session_spend_logs", security(("APIKeyHeader" = [])), params(SessionParams),
    responses((status = 200, description = "A page", body = SessionResponse)))]
pub async fn list_session_logs(
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(params): Query<SessionParams>,
) -> Result<Json<SessionResponse>, ApiError> {
    let SessionParams { session_id, page, page_size } = params;
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    let scope = scope_of(connection, &caller).await?;
    let offset = (page - 1).saturating_mul(page_size);
    let (data, total) = log_rows::of_session(connection, &scope, &session_id, offset, page_size).await?;
    let total_pages = total.div_euclid(page_size) + i64::from(total % page_size > 0);
    Ok(Json(SessionResponse { data, total, page, page_size, total_pages }))
}

async fn scope_of(connection: &mut PgConnection, caller: &Caller) -> Result<Scope, sqlx::Error> {
    if caller.role.sees_everything() {
        return Ok(Scope::All);
    }
    keys::owned_scope(connection, caller.user_id.as_deref()).await
}

/// Whether the caller may read a team's log: as its admin, or as a member where the team lets its members.
pub async fn may_read_team(connection: &mut PgConnection, caller: &Caller, team: &str) -> Result<bool, sqlx::Error> {
    let asked = [team.to_owned()];
    let views = team_views::views(connection, Some(&asked), caller.user_id.as_deref(), PERMISSION).await?;
    Ok(views.iter().any(|view| view.sees_all))
}

/// 403 where none of the rows that an id stands for is the caller's to read, also where there is none.
pub async fn may_read(connection: &mut PgConnection, caller: &Caller, request_id: &str) -> Result<(), ApiError> {
    if caller.role.sees_everything() {
        return Ok(());
    }
    if log_rows::may_read(connection, request_id, caller.user_id.as_deref(), PERMISSION).await? {
        return Ok(());
    }
    let message = format!("Not authorized to view spend log for request_id={request_id}");
    Err(ApiError::nested(StatusCode::FORBIDDEN, message))
}
