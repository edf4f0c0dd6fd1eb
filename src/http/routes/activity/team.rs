//! `GET /team/daily/activity`: pages of the daily rows of teams.

use axum::http::StatusCode;
use axum::{Extension, Json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::ApiError;
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::openapi::base::DASHBOARD_TAG;
use crate::http::reads::Reads;
use crate::http::routes::activity::daily::{
    DailySpendMetadata, SpendAnalyticsPaginatedResponse, aggregate, date_range, known_keys,
};
use crate::http::routes::activity::scope;
use crate::http::routes::activity::scope::TeamActivityParams;
use crate::http::state::AppState;
use crate::identity::Caller;
use crate::store::activity;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_team_activity))
}

/// Maximum number of rows per page. LiteLLM has no limit.
const MAX_ROWS: i64 = 10_000;

/// Parameters that select a page of daily rows.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RowPageParams {
    /// Page number for pagination, from 1
    #[param(required = false, default = 1, minimum = 1)]
    page: i64,
    /// Items per page
    #[param(required = false, default = 10, minimum = 1, maximum = 10000)]
    page_size: i64,
}

impl FromQuery for RowPageParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self {
            page: reader.integer("page", 1, i64::MIN, i64::MAX),
            page_size: reader.integer("page_size", 10, i64::MIN, MAX_ROWS),
        }
    }
}

/// Returns the daily activity of teams, from one page of LiteLLM's daily rows, with sums by team.
///
/// Users who are not admins see their own teams. They see the usage of their own keys only, unless they may see the
/// whole activity of each of these teams, as its admin or by the team's permissions.
#[utoipa::path(get, path = "/team/daily/activity", tag = DASHBOARD_TAG,
    operation_id = "get_team_daily_activity_team_daily_activity_get", params(TeamActivityParams, RowPageParams),
    responses((status = 200, description = "Days, newest first", body = SpendAnalyticsPaginatedResponse),
              (status = 400, description = "A missing or bad date, or a page before the first"),
              (status = 404, description = "No such user, or a team that the caller is not in")))]
async fn list_team_activity(
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query((params, page)): Query<(TeamActivityParams, RowPageParams)>,
) -> Result<Json<SpendAnalyticsPaginatedResponse>, ApiError> {
    let RowPageParams { page, page_size } = page;
    let (start, end) = (params.start_date.clone(), params.end_date.clone());
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    let (filter, teams) = scope::of_teams(connection, &caller, params).await?;
    let filter = filter.between(date_range(start.as_deref(), end.as_deref())?);
    if page < 1 || page_size < 1 {
        return Err(ApiError::detail(StatusCode::BAD_REQUEST, "page and page_size must be >= 1"));
    }
    let count = activity::count_rows(connection, &filter).await?;
    let offset = (page - 1).saturating_mul(page_size);
    let rows =
        if offset < count { activity::row_page(connection, &filter, offset, page_size).await? } else { Vec::new() };
    let keys = known_keys(connection, &rows).await?;
    let (results, totals) = aggregate(&rows, &keys, &teams);
    let metadata = DailySpendMetadata::of(&totals).on_page(page, page_size, count);
    Ok(Json(SpendAnalyticsPaginatedResponse { results, metadata }))
}
