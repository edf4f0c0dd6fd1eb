//! `GET /spend/logs/ui` and `GET /spend/logs/v2`: pages of the log, filtered and sorted, optionally with one row per
//! session.

use std::collections::{BTreeMap, BTreeSet};

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use chrono::NaiveDateTime;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::books::beside::{LeftOut, Needed};
use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::Query;
use crate::http::openapi::base::DASHBOARD_TAG;
use crate::http::reads::Reads;
use crate::http::routes::log::answers;
use crate::http::routes::log::answers::Page;
use crate::http::routes::log::archived;
use crate::http::routes::log::archived::OfArchive;
use crate::http::routes::log::params::{LogPageParams, LogRoute};
use crate::http::routes::log::rows;
use crate::http::routes::page_count::page_count;
use crate::http::state::AppState;
use crate::http::stream::answer_budget::AnswerBudget;
use crate::identity::{Caller, Scope};
use crate::store::log::filter::{LogFilter, Outcomes};
use crate::store::log::pages;
use crate::store::log::pages::{COUNT_CAP, Order, SESSION_MODELS, SessionCursor, SortKey};
use crate::store::log::rows::{PagedLog, SessionFields, SessionSums, SessionTotals};
use crate::store::reading::Reading;
use crate::store::{Connection, Statement};

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_dashboard_logs)).routes(routes!(list_log_page))
}

/// A page of the log.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LogPageResponse {
    /// The rows.
    data: Vec<PagedLog>,
    /// Total number of matching rows, or of sessions; counted up to 10,000.
    total: i64,
    /// Number of this page, from 1.
    page: i64,
    /// Maximum number of rows per page.
    page_size: i64,
    /// Total number of pages, as far as rows were counted.
    total_pages: i64,
    /// Whether there are more rows or sessions than were counted.
    total_is_capped: bool,
    /// In lists of sessions that are ordered by activity: cursor of the next page.
    #[serde(flatten)]
    #[schema(value_type = SessionPaging)]
    sessions: Option<SessionPaging>,
}

/// Cursor of the next page of a list of sessions.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SessionPaging {
    /// Value of `session_cursor` for the next page; null on the last page.
    #[schema(required = false)]
    next_session_cursor: Option<String>,
    /// Whether there is a next page.
    #[schema(required = false)]
    has_more: bool,
}

/// Returns a page of the log, for LiteLLM's dashboard.
///
/// Users who are not admins see their own rows, and those of teams whose log they may read. If they ask for another
/// team, the response is 403. Counts stop at 10,000 (`total_is_capped`). A request ID makes the dates optional. A JSON
/// column longer than 1 MiB is null. After the first 16 MiB of a page, JSON columns longer than 1 KiB are null as well.
/// 503 if too many large pages are being sent.
#[utoipa::path(get, path = "/spend/logs/ui", tag = DASHBOARD_TAG, operation_id = "ui_view_spend_logs_spend_logs_ui_get",
    params(LogPageParams),
    responses((status = 200, description = "A page", body = LogPageResponse,
               headers(("x-litespend-left-out" = String, description = "The JSON columns that are null because they were too long: \
               `request_id/column`, the first 20"))),
              (status = 400, description = "A missing or bad date, order or choice"),
              (status = 403, description = "Another team's or user's rows")))]
async fn list_dashboard_logs(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(params): Query<LogPageParams>,
) -> Result<Response, ApiError> {
    let order = params.order()?;
    let mut filter = params.filter(LogRoute::Dashboard)?;
    let mut reading = reads.start().await?;
    let limited = limit_to_caller(reading.connection(), &caller, &params, &mut filter).await;
    let (beside, visible) = beside_and_visible(&caller, &params, &filter);
    let cursor = params.session_cursor.as_deref().filter(|_| is_by_activity(&params, order));
    let cursor = parse_cursor(cursor)?;
    // For callers who are refused anyway, the archive is not asked.
    let needed = needed(&params, &filter, order, cursor.as_ref(), LogRoute::Dashboard).filter(|_| limited.is_ok());
    let mut of_archive;
    (reading, of_archive) = archived::with_archived_rows(&state, &reads, reading, &beside, &visible, needed).await?;
    let connection = reading.connection();
    if let Some(id) = params.request_id.as_deref() {
        rows::may_read(connection, &caller, id).await.map_err(in_error_envelope)?;
    }
    limited?;
    let budget = &state.answer_budget;
    let (mut page, around) = if is_by_activity(&params, order) {
        active_sessions(connection, &params, &filter, order, cursor, of_archive.left_out.take(), budget).await?
    } else {
        rows(connection, &params, &filter, order, budget).await?
    };
    reading = add_sessions(&state, reading, of_archive, params.archive, &mut page.rows).await?;
    reading.finish().await?;
    page.respond(&reads, &around).await
}

/// Returns a page of the log.
///
/// Users who are not admins see their own rows, and those of teams whose log they may read. If they ask for another
/// team, the response is 403. Counts stop at 10,000 (`total_is_capped`). A JSON column longer than 1 MiB is null. After
/// the first 16 MiB of a page, JSON columns longer than 1 KiB are null as well. 503 if too many large pages are being
/// sent.
#[utoipa::path(get, path = "/spend/logs/v2", tag = DASHBOARD_TAG, operation_id = "ui_view_spend_logs_spend_logs_v2_get",
    params(LogPageParams),
    responses((status = 200, description = "A page", body = LogPageResponse,
               headers(("x-litespend-left-out" = String, description = "The JSON columns that are null because they were too long: \
               `request_id/column`, the first 20"))),
              (status = 400, description = "A missing or bad date, order or choice"),
              (status = 403, description = "Another team's rows")))]
async fn list_log_page(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(params): Query<LogPageParams>,
) -> Result<Response, ApiError> {
    let order = params.order()?;
    let mut filter = params.filter(LogRoute::Public)?;
    let mut reading = reads.start().await?;
    limit_to_caller(reading.connection(), &caller, &params, &mut filter).await?;
    let needed = needed(&params, &filter, order, None, LogRoute::Public);
    (reading, _) = archived::with_archived_rows(&state, &reads, reading, &filter, &filter, needed).await?;
    let connection = reading.connection();
    let (page, around) = rows(connection, &params, &filter, order, &state.answer_budget).await?;
    reading.finish().await?;
    page.respond(&reads, &around).await
}

/// Restricts the filter to rows that the caller may see; 403 for a team whose log the caller may not read.
async fn limit_to_caller(
    connection: &mut Connection,
    caller: &Caller,
    params: &LogPageParams,
    filter: &mut LogFilter,
) -> Result<(), ApiError> {
    if caller.role.sees_everything() {
        return Ok(());
    }
    let Some(team) = params.team_id.as_deref() else {
        filter.scope = crate::store::keys::owned_scope(connection, caller.user_id.as_deref()).await?;
        return Ok(());
    };
    if rows::may_read_team(connection, caller, team).await? {
        return Ok(());
    }
    Err(refused(format!("Not authorized to view team spend for team_id={team}")))
}

/// Which archived rows are put beside the log for a page, and which rows of the log are an answer by themselves where the
/// archive does not answer. Whether a caller may read a row does not depend on the other filters, nor on which rows the caller
/// sees in lists.
fn beside_and_visible(caller: &Caller, params: &LogPageParams, filter: &LogFilter) -> (LogFilter, LogFilter) {
    let Some(id) = &params.request_id else { return (filter.clone(), filter.clone()) };
    let one = |scope: Scope| LogFilter { request_id: Some(id.clone()), ..LogFilter::of(scope) };
    match &params.team_id {
        _ if caller.role.sees_everything() => (filter.clone(), one(Scope::All)),
        Some(team) => {
            (one(Scope::All), one(Scope::Owned { user_id: caller.user_id.clone(), team_ids: vec![team.clone()] }))
        }
        None => (one(Scope::All), one(filter.scope.clone())),
    }
}

/// Whether a page of the dashboard lists sessions by their last activity.
fn is_by_activity(params: &LogPageParams, order: Order) -> bool {
    params.group_by_session
        && order.key == SortKey::StartTime
        && params.search.is_none()
        && !params.is_lookup(LogRoute::Dashboard)
}

/// The archived rows that a page needs. `None` if the client does not want any.
fn needed<'a>(
    params: &LogPageParams,
    filter: &LogFilter,
    order: Order,
    cursor: Option<&'a SessionCursor>,
    route: LogRoute,
) -> Option<Needed<'a>> {
    if !params.archive {
        return None;
    }
    let through = params.page.saturating_mul(params.page_size);
    let first = |through: i64| through.saturating_add(1).max(COUNT_CAP + 1);
    Some(if filter.request_id.is_some() {
        // Whoever asks for one request gets all that is known of it.
        let is_grouped = params.group_by_session && params.search.is_none();
        Needed::All(if is_grouped { Outcomes::OfSessions } else { Outcomes::OfRows })
    } else if !params.group_by_session || params.search.is_some() {
        Needed::First(order, first(through))
    } else if route == LogRoute::Dashboard
        && is_by_activity(params, order)
        && !order.ascending
        && filter.status.is_none()
    {
        let shown = if cursor.is_some() { params.page_size } else { through };
        Needed::NewestSessions { after: cursor, counted: first(shown), shown: shown.saturating_add(1) }
    } else {
        Needed::Sessions
    })
}

/// A 403 in the `error` envelope.
fn refused(message: String) -> ApiError {
    ApiError::Refused { status: StatusCode::FORBIDDEN, kind: ErrorType::AuthError, message, param: None }
}

/// Puts a refusal into the `error` envelope, in which both routes return every refusal.
fn in_error_envelope(error: ApiError) -> ApiError {
    match error {
        ApiError::NestedDetail { status: StatusCode::FORBIDDEN, message } => refused(message),
        other => other,
    }
}

/// A page of rows and the rest of the response. If sessions are grouped and not ordered by activity, the rows are the
/// representative rows of sessions.
async fn rows(
    connection: &mut Connection,
    params: &LogPageParams,
    filter: &LogFilter,
    order: Order,
    budget: &AnswerBudget,
) -> Result<(Page<PagedLog>, LogPageResponse), ApiError> {
    let offset = (params.page - 1).saturating_mul(params.page_size);
    let mut query = Statement::default();
    let (counted, found) = if params.group_by_session && params.search.is_none() {
        let counted = pages::count_sessions(connection, filter).await?;
        (counted, pages::session_page(connection, &mut query, filter, order, offset, params.page_size))
    } else {
        let counted = pages::count_rows(connection, filter).await?;
        (counted, pages::page(connection, &mut query, filter, order, offset, params.page_size))
    };
    Ok((answers::read(found, budget).await?, response(params.page, params.page_size, counted, false)))
}

/// The response without its rows. With `is_cut`, there may be more than was counted.
fn response(page: i64, page_size: i64, counted: i64, is_cut: bool) -> LogPageResponse {
    let total = counted.min(COUNT_CAP);
    LogPageResponse {
        data: Vec::new(),
        total,
        page,
        page_size,
        total_pages: page_count(total, page_size),
        total_is_capped: counted > COUNT_CAP || is_cut,
        sessions: None,
    }
}

/// A page of sessions ordered by their last activity, starting after the cursor if there is one. A page without a
/// cursor ends at [`COUNT_CAP`].
async fn active_sessions(
    connection: &mut Connection,
    params: &LogPageParams,
    filter: &LogFilter,
    order: Order,
    cursor: Option<SessionCursor>,
    left_out: Option<LeftOut>,
    budget: &AnswerBudget,
) -> Result<(Page<PagedLog>, LogPageResponse), ApiError> {
    let offset = if cursor.is_some() { 0 } else { (params.page - 1).saturating_mul(params.page_size) };
    let limit = params.page_size.min(COUNT_CAP.saturating_sub(offset));
    let mut found = Vec::new();
    if limit > 0 {
        found = pages::active_sessions(connection, filter, cursor.as_ref(), order.ascending, offset, limit + 1).await?;
    }
    let has_more = usize::try_from(limit).is_ok_and(|limit| found.len() > limit);
    if has_more {
        found.pop();
    }
    // If the page reaches the end of the list, its length gives the total.
    let ends_list = cursor.is_none() && limit > 0 && !has_more && (offset == 0 || !found.is_empty());
    let counted = if ends_list {
        offset + i64::try_from(found.len()).unwrap_or(i64::MAX)
    } else {
        pages::count_sessions(connection, filter).await?
    };
    let next_session_cursor = found.last().filter(|_| has_more).map(|session| {
        let last_activity = session.last_activity.format("%Y-%m-%d %H:%M:%S%.f");
        format!("{last_activity}|{}|{}", session.api_key, session.session_key)
    });
    let is_cut = left_out.is_some();
    // The row that represents a session may be an earlier one.
    if let Some(left_out) = left_out.filter(|_| !found.is_empty()) {
        let ids: Vec<&str> = found.iter().map(|session| session.session_key.as_str()).collect();
        left_out.add_sessions(connection, &ids).await?;
    }
    let mut query = Statement::default();
    let page = answers::read(pages::representatives(connection, &mut query, filter, &found), budget).await?;
    let sessions = Some(SessionPaging { next_session_cursor, has_more });
    Ok((page, LogPageResponse { sessions, ..response(params.page, params.page_size, counted, is_cut) }))
}

/// The cursor in a list of sessions by activity: `LAST_ACTIVITY|KEY|SESSION`. Text in another form counts as no cursor. An
/// invalid time is refused.
fn parse_cursor(text: Option<&str>) -> Result<Option<SessionCursor>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let mut parts = text.splitn(3, '|');
    let (Some(time), Some(api_key), Some(session_key)) = (parts.next(), parts.next(), parts.next()) else {
        return Ok(None);
    };
    if time.is_empty() || session_key.is_empty() {
        return Ok(None);
    }
    // The parser accepts years of any length; PostgreSQL's range is smaller.
    let time = NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.f").ok();
    let time = time.filter(|time| (-4_711..=250_000).contains(&chrono::Datelike::year(time)));
    let last_activity = time.ok_or_else(|| {
        ApiError::bad_request(ErrorType::InternalServerError, "session_cursor must be a cursor from a previous page")
    })?;
    Ok(Some(SessionCursor { last_activity, api_key: api_key.to_owned(), session_key: session_key.to_owned() }))
}

/// Adds to each row the sums of its session, over the calls with the same key as the row, of any time. With `archive`, calls
/// that only the archive has are among them.
async fn add_sessions(
    state: &AppState,
    mut reading: Reading,
    of_archive: OfArchive,
    archive: bool,
    rows: &mut [PagedLog],
) -> Result<Reading, ApiError> {
    let named = |row: &PagedLog| row.log.session_id.clone().filter(|id| !id.is_empty());
    let ids: BTreeSet<String> = rows.iter().filter_map(named).collect();
    let keys: BTreeSet<String> = rows.iter().map(|row| row.log.api_key.clone()).collect();
    let mut sums = BTreeMap::new();
    if !ids.is_empty() {
        let (ids, keys): (Vec<_>, Vec<_>) =
            (ids.iter().map(String::as_str).collect(), keys.iter().map(String::as_str).collect());
        let found;
        (reading, found) = archived::session_sums(state, reading, of_archive, (&ids, &keys), archive).await?;
        for found in found {
            sums.insert((found.session_id.clone(), found.api_key.clone()), found);
        }
    }
    for row in rows {
        let found = named(row).and_then(|id| sums.get(&(id, row.log.api_key.clone())));
        row.session = Some(match found {
            Some(found) => SessionFields { session_total_count: found.calls, sums: Some(totals(found)) },
            None => SessionFields { session_total_count: 1, sums: None },
        });
    }
    Ok(reading)
}

fn totals(found: &SessionSums) -> SessionTotals {
    let named = usize::try_from(SESSION_MODELS).unwrap_or(usize::MAX);
    let tools = found.tool_calls > 0;
    SessionTotals {
        session_total_spend: found.spend,
        session_total_duration_ms: found.duration_ms,
        mcp_tool_call_count: tools.then_some(found.tool_calls),
        mcp_tool_call_spend: tools.then_some(found.tool_spend),
        session_cache_hit_count: found.cache_hits,
        session_llm_count: found.llm_calls,
        session_agent_count: found.agent_calls,
        session_total_prompt_tokens: found.prompt_tokens,
        session_total_completion_tokens: found.completion_tokens,
        session_total_tokens: found.total_tokens,
        session_models: found.models.iter().take(named).cloned().collect(),
        session_models_truncated: found.models.len() > named,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_is_capped_if_more_was_found_than_is_counted_or_rows_were_left_out() {
        for (counted, is_cut, total, total_pages, is_capped) in [
            (0, false, 0, 0, false),
            (101, false, 101, 3, false),
            (101, true, 101, 3, true),
            (COUNT_CAP, false, COUNT_CAP, 200, false),
            (COUNT_CAP + 1, false, COUNT_CAP, 200, true),
            (COUNT_CAP + 1, true, COUNT_CAP, 200, true),
        ] {
            let response = response(2, 50, counted, is_cut);
            assert_eq!(
                (response.total, response.total_pages, response.total_is_capped),
                (total, total_pages, is_capped),
                "{counted}, {is_cut}"
            );
        }
    }
}
