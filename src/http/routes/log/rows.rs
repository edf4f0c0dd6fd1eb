//! The stored texts of one call, and the calls of one session: `/spend/logs/ui/{request_id}` and
//! `/spend/logs/session/ui`.

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::field_error::FieldError;
use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::openapi::base::DASHBOARD_TAG;
use crate::http::reads::Reads;
use crate::http::routes::log::answers;
use crate::http::routes::log::answers::LeftOut;
use crate::http::routes::log::archived;
use crate::http::routes::log::params::parse_instant;
use crate::http::routes::page_count::page_count;
use crate::http::state::AppState;
use crate::http::stream;
use crate::http::stream::answer_budget::Share;
use crate::http::stream::writer::Writer;
use crate::http::stream::writer::name;
use crate::identity::{Caller, Scope};
use crate::store;
use crate::store::log::filter::{Column, LogFilter};
use crate::store::log::rows;
use crate::store::log::rows::{LONG_TEXTS, ListedLog, LogTexts, SHORT_TEXTS};
use crate::store::{Connection, Statement};
use crate::store::{keys, team_views};

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_log_texts)).routes(routes!(list_session_logs))
}

/// The permission of a team that lets its members read the team's log.
const PERMISSION: &str = "/spend/logs";

/// Parameters of `/spend/logs/ui/{request_id}`. The dates are checked but have no effect, because a request ID needs none.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogTextsParams {
    /// YYYY-MM-DD HH:MM:SS
    start_date: Option<String>,
    /// YYYY-MM-DD HH:MM:SS
    end_date: Option<String>,
    /// Whether to look for calls of closed days that are only in the archive
    #[param(required = false, default = true)]
    archive: bool,
}

impl FromQuery for LogTextsParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self {
            start_date: reader.text("start_date"),
            end_date: reader.text("end_date"),
            archive: reader.boolean("archive", true),
        }
    }
}

/// Parameters of `/spend/logs/session/ui`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SessionParams {
    /// Session ID
    session_id: String,
    /// Page number for pagination
    #[param(required = false, default = 1, minimum = 1)]
    page: i64,
    /// Number of items per page
    #[param(required = false, default = 50, minimum = 1, maximum = 100)]
    page_size: i64,
    /// Whether to include calls of closed days that are only in the archive
    #[param(required = false, default = true)]
    archive: bool,
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
            archive: reader.boolean("archive", true),
        }
    }
}

/// A page of a session's calls.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SessionResponse {
    /// The calls, newest first.
    data: Vec<ListedLog>,
    /// Total number of calls.
    total: i64,
    /// Number of this page, from 1.
    page: i64,
    /// Maximum number of calls per page.
    page_size: i64,
    /// Total number of pages.
    total_pages: i64,
}

/// Returns the stored texts of one call: messages, response and request.
///
/// Null if the log has no such call. Users who are not admins get 403 unless the call is theirs, or is a call of a team
/// whose log they may read. A text longer than 16 MiB is null. If the texts exceed 16 MiB together, the longest of them
/// are null. 503 if too many large responses are being sent.
#[utoipa::path(get, path = "/spend/logs/ui/{request_id}", tag = DASHBOARD_TAG,
    operation_id = "ui_view_request_response_for_request_id",
    params(("request_id" = String, Path, description = "The request's id, or LiteLLM's id of the call"),
           LogTextsParams),
    responses((status = 200, description = "The texts", body = Option<LogTexts>,
               headers(("x-litespend-left-out" = String, description = "The JSON columns that are null because they were too long: \
               `request_id/column`, the first 20"))),
              (status = 400, description = "A bad date"),
              (status = 403, description = "The row belongs to somebody else")))]
async fn get_log_texts(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
    Query(params): Query<LogTextsParams>,
) -> Result<Response, ApiError> {
    let Ok(Path(request_id)) = path else {
        return Err(ApiError::detail(StatusCode::BAD_REQUEST, "The request ID in the path is not UTF-8"));
    };
    // PostgreSQL stores no NUL, so no request ID contains one.
    if request_id.contains('\0') {
        return respond_with_texts(&reads, None, None).await;
    }
    let filter = LogFilter { request_id: Some(request_id.clone()), ..LogFilter::of(Scope::All) };
    let mut reading = reads.start().await?;
    let scope = scope_of(reading.connection(), &caller).await?;
    let visible = LogFilter { scope: scope.clone(), ..filter.clone() };
    let needed = archived::all_rows(params.archive);
    (reading, _) = archived::with_archived_rows(&state, &reads, reading, &filter, &visible, needed).await?;
    let connection = reading.connection();
    may_read(connection, &caller, &request_id).await?;
    for (name, text) in [("start_date", &params.start_date), ("end_date", &params.end_date)] {
        if text.as_deref().is_some_and(|text| parse_instant(text).is_none()) {
            let message = format!("{name} must be of the form YYYY-MM-DD HH:MM:SS");
            return Err(ApiError::bad_request(ErrorType::InternalServerError, message));
        }
    }
    let mut texts = rows::texts(connection, &scope, &request_id, SHORT_TEXTS).await?;
    let mut share = None;
    if texts.as_ref().is_some_and(|texts| texts.columns().iter().any(|(_, text)| text.is_left_out())) {
        // While the row is read, the driver holds a second copy of it.
        share = Some(state.answer_budget.take(2 * LONG_TEXTS.row).await?);
        texts = rows::texts(connection, &scope, &request_id, LONG_TEXTS).await?;
    }
    reading.finish().await?;
    respond_with_texts(&reads, texts, share).await
}

/// Streams the texts one after the other, without further copies.
async fn respond_with_texts(
    reads: &Reads,
    texts: Option<LogTexts>,
    share: Option<Share>,
) -> Result<Response, ApiError> {
    let mut left_out = LeftOut::default();
    if let Some(texts) = &texts {
        left_out.add(&texts.request_id, &texts.columns());
    }
    let mut response = reads.send(write_texts(texts, share), "application/json").await?;
    left_out.name_in(&mut response);
    Ok(response)
}

fn write_texts(texts: Option<LogTexts>, share: Option<Share>) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        let mut writer = Writer::new();
        if let Some(LogTexts { messages, response, proxy_server_request, .. }) = texts {
            let columns =
                [
                (name!("messages"), messages),
                (name!("response"), response),
                (name!("proxy_server_request"), proxy_server_request),
            ];
            writer.open_object();
            for (name, text) in columns {
                writer.name(name);
                if text.bytes() < stream::CHUNK {
                    writer.value(&text)?;
                } else if let Some(text) = text.into_text() {
                    yield writer.take_before_value();
                    yield Bytes::from(text);
                }
            }
            writer.close();
        } else {
            writer.value(&())?;
        }
        yield writer.take();
        drop(share);
    }
}

/// Users who are not admins see their own calls, and those of teams whose log they may read. A JSON column longer than
/// 1 MiB is null. After the first 16 MiB of a page, JSON columns longer than 1 KiB are null as well.
#[utoipa::path(get, path = "/spend/logs/session/ui", tag = DASHBOARD_TAG, operation_id = "ui_view_session_spend_logs",
    params(SessionParams),
    responses((status = 200, description = "A page", body = SessionResponse,
               headers(("x-litespend-left-out" = String, description = "The JSON columns that are null because they were too long: \
               `request_id/column`, the first 20")))))]
async fn list_session_logs(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(params): Query<SessionParams>,
) -> Result<Response, ApiError> {
    let SessionParams { session_id, page, page_size, archive } = params;
    let mut reading = reads.start().await?;
    let scope = scope_of(reading.connection(), &caller).await?;
    let equal = vec![(Column::Session, session_id.clone())];
    let filter = LogFilter { equal, ..LogFilter::of(scope.clone()) };
    let needed = archived::all_rows(archive);
    (reading, _) = archived::with_archived_rows(&state, &reads, reading, &filter, &filter, needed).await?;
    let connection = reading.connection();
    let offset = (page - 1).saturating_mul(page_size);
    let total = rows::count_of_session(connection, &scope, &session_id).await?;
    let total_pages = page_count(total, page_size);
    let mut query = Statement::default();
    let found = rows::of_session(connection, &mut query, &scope, &session_id, offset, page_size);
    let rows = answers::read(found, &state.answer_budget).await?;
    reading.finish().await?;
    rows.respond(&reads, &SessionResponse { data: Vec::new(), total, page, page_size, total_pages }).await
}

async fn scope_of(connection: &mut Connection, caller: &Caller) -> Result<Scope, store::Error> {
    if caller.role.sees_everything() {
        return Ok(Scope::All);
    }
    keys::owned_scope(connection, caller.user_id.as_deref()).await
}

/// Whether the caller may read the log of a team: as its admin, or as a member if the team permits its members.
pub async fn may_read_team(connection: &mut Connection, caller: &Caller, team: &str) -> Result<bool, store::Error> {
    let asked = [team.to_owned()];
    let views = team_views::views(connection, Some(&asked), caller.user_id.as_deref(), PERMISSION).await?;
    Ok(views.iter().any(|view| view.sees_all))
}

/// 403 unless the caller may read at least one of the rows with this request ID or call ID. It is also 403 if there is
/// no such row.
pub async fn may_read(connection: &mut Connection, caller: &Caller, request_id: &str) -> Result<(), ApiError> {
    if caller.role.sees_everything() {
        return Ok(());
    }
    if rows::may_read(connection, request_id, caller.user_id.as_deref(), PERMISSION).await? {
        return Ok(());
    }
    let message = format!("Not authorized to view spend log for request_id={request_id}");
    Err(ApiError::nested(StatusCode::FORBIDDEN, message))
}
