//! Overviews of the whole log: `/global/activity`, `/global/activity/model`, `/global/spend/provider`,
//! `/global/spend/all_tag_names` and `/global/all_end_users`.

use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::Query;
use crate::http::openapi::base::DASHBOARD_TAG;
use crate::http::reads::Reads;
use crate::http::routes::dates::{DaysParams, not_a_day};
use crate::http::routes::log::params::parse_lenient_day;
use crate::http::state::AppState;
use crate::http::stream::writer::Writer;
use crate::identity::Caller;
use crate::store::DateRange;
use crate::store::activity::global;
use crate::store::activity::global::{DayRequests, NameList};
use crate::store::reading::Reading;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(get_global_activity))
        .routes(routes!(list_model_activity))
        .routes(routes!(list_provider_spend))
        .routes(routes!(list_tag_names))
        .routes(routes!(list_end_users))
}

/// Maximum number of models in one response; those with the most requests are listed.
const MODELS: i64 = 10;

/// Parses both dates of an overview. If the end is before the start, the range contains no days.
fn range(days: &DaysParams) -> Result<DateRange, ApiError> {
    let (Some(start), Some(end)) = (&days.start_date, &days.end_date) else {
        return Err(ApiError::nested(StatusCode::BAD_REQUEST, "Please provide start_date and end_date"));
    };
    let day = |name, text: &str| {
        let refusal = || ApiError::bad_request(ErrorType::InternalServerError, not_a_day(name));
        parse_lenient_day(text).ok_or_else(refusal)
    };
    Ok(DateRange { start: day("start_date", start)?, end: day("end_date", end)? })
}

/// Requests and tokens by day.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct GlobalActivityResponse {
    /// Days, sorted alphabetically by `date`.
    daily_data: Vec<DayActivity>,
    /// Total number of requests.
    sum_api_requests: i64,
    /// Total number of tokens.
    sum_total_tokens: i64,
}

/// Requests and tokens on one day.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DayActivity {
    /// Abbreviated month name and day of the month.
    #[schema(example = "Feb 01")]
    date: String,
    /// Number of requests.
    api_requests: i64,
    /// Total tokens: prompt and completion tokens.
    total_tokens: i64,
}

/// Requests and tokens of one model by day.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ModelActivity {
    /// Public model name.
    model: Option<String>,
    /// Days, sorted alphabetically by `date`.
    daily_data: Vec<ModelDayActivity>,
    /// Total number of requests.
    sum_api_requests: i64,
    /// Total number of tokens.
    sum_total_tokens: i64,
}

/// Requests and tokens of one model on one day.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ModelDayActivity {
    /// Public model name.
    model_group: Option<String>,
    /// Date, requests and tokens of the day.
    #[serde(flatten)]
    day: DayActivity,
}

/// Spend of one provider.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ProviderSpend {
    /// Name of the provider.
    provider: String,
    /// Spend in USD.
    spend: f64,
}

/// Names of tags.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct TagNamesResponse {
    /// The tags.
    tag_names: Vec<Option<String>>,
}

/// Names of end users.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EndUsersResponse {
    /// The end users; contains null if there are calls without an end user.
    end_users: Vec<Option<String>>,
}

/// Returns requests and tokens by day.
///
/// Users who are not admins see only their own calls.
#[utoipa::path(get, path = "/global/activity", tag = DASHBOARD_TAG,
    operation_id = "get_global_activity_global_activity_get", params(DaysParams),
    responses((status = 200, description = "Days", body = GlobalActivityResponse),
              (status = 400, description = "A missing or bad date")))]
async fn get_global_activity(
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(days): Query<DaysParams>,
) -> Result<Json<GlobalActivityResponse>, ApiError> {
    let range = range(&days)?;
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    let rows = global::by_day(connection, range, caller.own_rows_only()).await?;
    let (sum_api_requests, sum_total_tokens) = sums(&rows);
    let mut daily_data: Vec<DayActivity> = rows.into_iter().map(DayActivity::from).collect();
    daily_data.sort_by(|a, b| a.date.cmp(&b.date));
    Ok(Json(GlobalActivityResponse { daily_data, sum_api_requests, sum_total_tokens }))
}

/// Returns requests and tokens by day, for the ten models with the most requests.
///
/// Users who are not admins see only their own calls.
#[utoipa::path(get, path = "/global/activity/model", tag = DASHBOARD_TAG,
    operation_id = "get_global_activity_model_global_activity_model_get", params(DaysParams),
    responses((status = 200, description = "Models", body = Vec<ModelActivity>),
              (status = 400, description = "A missing or bad date")))]
async fn list_model_activity(
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(days): Query<DaysParams>,
) -> Result<Json<Vec<ModelActivity>>, ApiError> {
    let range = range(&days)?;
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    let rows = global::by_model_and_day(connection, range, caller.own_rows_only(), MODELS).await?;
    let models = rows.chunk_by(|a, b| a.model_group == b.model_group).filter_map(|rows| {
        let model = rows.first()?.model_group.clone();
        let (sum_api_requests, sum_total_tokens) = sums(rows);
        let day = |row: &DayRequests| ModelDayActivity { model_group: model.clone(), day: row.clone().into() };
        let mut daily_data: Vec<_> = rows.iter().map(day).collect();
        daily_data.sort_by(|a, b| a.day.date.cmp(&b.day.date));
        Some(ModelActivity { model, daily_data, sum_api_requests, sum_total_tokens })
    });
    Ok(Json(models.collect()))
}

/// Returns the spend by provider, for the deployments to which the server routes calls.
///
/// litespend routes no calls and knows no deployments, so the list is empty. `/user/daily/activity/aggregated` has the
/// spend by provider.
#[utoipa::path(get, path = "/global/spend/provider", tag = DASHBOARD_TAG,
    operation_id = "get_global_spend_provider_global_spend_provider_get", params(DaysParams),
    responses((status = 200, description = "Providers", body = Vec<ProviderSpend>),
              (status = 400, description = "A missing or bad date")))]
async fn list_provider_spend(Query(days): Query<DaysParams>) -> Result<Json<Vec<ProviderSpend>>, ApiError> {
    range(&days)?;
    Ok(Json(Vec::new()))
}

/// Returns every tag in the log and on closed days, at most 100,000.
#[utoipa::path(get, path = "/global/spend/all_tag_names", tag = DASHBOARD_TAG,
    operation_id = "global_get_all_tag_names_global_spend_all_tag_names_get",
    responses((status = 200, description = "Tags", body = TagNamesResponse)))]
async fn list_tag_names(reads: Reads) -> Result<Response, ApiError> {
    let reading = reads.start().await?;
    let mut writer = Writer::new();
    writer.open_list_of(&TagNamesResponse { tag_names: Vec::new() }, "tag_names")?;
    reads.send(write_names(reading, writer, NameList::Tags), "application/json").await
}

/// Returns every end user in the log and on closed days, at most 100,000.
#[utoipa::path(get, path = "/global/all_end_users", tag = DASHBOARD_TAG,
    operation_id = "global_view_all_end_users_global_all_end_users_get",
    responses((status = 200, description = "End users", body = EndUsersResponse)))]
async fn list_end_users(reads: Reads) -> Result<Response, ApiError> {
    let reading = reads.start().await?;
    let mut writer = Writer::new();
    writer.open_list_of(&EndUsersResponse { end_users: Vec::new() }, "end_users")?;
    reads.send(write_names(reading, writer, NameList::EndUsers), "application/json").await
}

/// Streams names into the open list while they arrive from the database.
fn write_names(
    mut reading: Reading,
    mut writer: Writer,
    list: NameList,
) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        {
            let mut rows = global::names(reading.connection(), list).await?;
            while let Some(name) = rows.try_next().await? {
                writer.value(&name)?;
                if let Some(chunk) = writer.chunk() {
                    yield chunk;
                }
            }
        }
        reading.finish().await?;
        writer.close();
        yield writer.take();
    }
}

impl From<DayRequests> for DayActivity {
    fn from(row: DayRequests) -> Self {
        Self {
            date: row.day.format("%b %d").to_string(),
            api_requests: row.api_requests,
            total_tokens: row.total_tokens,
        }
    }
}

fn sums(rows: &[DayRequests]) -> (i64, i64) {
    rows.iter().fold((0, 0), |(requests, tokens), row| (requests + row.api_requests, tokens + row.total_tokens))
}
