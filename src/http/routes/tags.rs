//! Spend by tag: `/spend/tags` (rows that the caller may see) and `/global/spend/tags` (all rows).

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use chrono::NaiveDate;
use futures_util::{Stream, TryStreamExt};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::openapi::base::TAG;
use crate::http::reads::Reads;
use crate::http::routes::dates::{not_a_day, parse_day};
use crate::http::state::AppState;
use crate::http::stream::writer::Writer;
use crate::identity::{Caller, Scope};
use crate::store;
use crate::store::Statement;
use crate::store::reading::Reading;
use crate::store::rollups::days;
use crate::store::tags;
use crate::store::tags::{TagFilter, TagSpend};
use crate::store::{day_after, midnight};

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_spend_tags)).routes(routes!(list_global_spend_tags))
}

/// The days of `/spend/tags` and `/global/spend/tags`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TagDaysParams {
    /// Time from which to start viewing key spend (YYYY-MM-DD)
    start_date: Option<String>,
    /// Time till which to view key spend (YYYY-MM-DD)
    end_date: Option<String>,
}

impl FromQuery for TagDaysParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { start_date: reader.text("start_date"), end_date: reader.text("end_date") }
    }
}

/// Parameters of `/global/spend/tags`, besides the days.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GlobalTagsParams {
    /// Comma-separated tags to filter on; `all-tags` among them lifts the filter
    tags: Option<String>,
}

impl FromQuery for GlobalTagsParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { tags: reader.text("tags") }
    }
}

/// Response of `/global/spend/tags`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct GlobalTagsResponse {
    /// Tags, largest spend first.
    spend_per_tag: Vec<GlobalTag>,
}

/// One tag of `/global/spend/tags`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct GlobalTag {
    /// The tag; null if a request's list of tags contains null.
    name: Option<String>,
    /// Spend in USD, rounded to four decimal places.
    spend: f64,
    /// Number of times that the tag was used.
    log_count: i64,
}

/// Returns the spend of each request tag.
///
/// Admins see all rows. Other users see their own rows, and those of teams whose log they may read.
#[utoipa::path(get, path = "/spend/tags", tag = TAG, operation_id = "view_spend_tags_spend_tags_get",
    params(TagDaysParams),
    responses((status = 200, description = "Spend of each tag", body = Vec<TagSpend>),
              (status = 400, description = "A bad date")))]
async fn list_spend_tags(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(days): Query<TagDaysParams>,
) -> Result<Response, ApiError> {
    let start = optional_day("start_date", days.start_date.as_deref())?;
    let end = optional_day("end_date", days.end_date.as_deref())?;
    let mut reading = reads.start().await?;
    let scope = if caller.role.sees_everything() {
        Scope::All
    } else {
        store::keys::owned_scope(reading.connection(), caller.user_id.as_deref()).await?
    };
    let filter = TagFilter { scope, from: start.map(midnight), until: end.map(day_after), tags: None };
    let mut writer = Writer::new();
    writer.open_list();
    reads.send(write(state, reading, filter, writer, |row| row), "application/json").await
}

/// Returns the spend of each request tag over all rows, sorted by descending spend. LiteLLM's dashboard uses this
/// route.
#[utoipa::path(get, path = "/global/spend/tags", tag = TAG,
    operation_id = "global_view_spend_tags_global_spend_tags_get", params(TagDaysParams, GlobalTagsParams),
    responses((status = 200, description = "Spend of each tag", body = GlobalTagsResponse),
              (status = 400, description = "A missing or bad date")))]
async fn list_global_spend_tags(
    State(state): State<AppState>,
    reads: Reads,
    Query((days, params)): Query<(TagDaysParams, GlobalTagsParams)>,
) -> Result<Response, ApiError> {
    let (Some(start), Some(end)) = (days.start_date.as_deref(), days.end_date.as_deref()) else {
        return Err(ApiError::bad_request(ErrorType::BadRequest, "Please provide start_date and end_date"));
    };
    let tags: Option<Vec<String>> =
        params.tags.filter(|tags| !tags.is_empty()).map(|tags| tags.split(',').map(str::to_owned).collect());
    let filter = TagFilter {
        scope: Scope::All,
        from: optional_day("start_date", Some(start))?.map(midnight),
        until: optional_day("end_date", Some(end))?.map(day_after),
        tags: tags.filter(|tags| !tags.iter().any(|tag| tag == "all-tags")),
    };
    let reading = reads.start().await?;
    let form = |row: TagSpend| GlobalTag {
        name: row.individual_request_tag,
        spend: four_places(row.total_spend),
        log_count: row.log_count,
    };
    let mut writer = Writer::new();
    writer.open_list_of(&GlobalTagsResponse { spend_per_tag: Vec::new() }, "spend_per_tag")?;
    reads.send(write(state, reading, filter, writer, form), "application/json").await
}

/// Streams rows into the open list while they arrive. Reads the rollups if they can serve the range, and the log
/// otherwise.
fn write<T: Serialize>(
    state: AppState,
    reading: Reading,
    filter: TagFilter,
    mut writer: Writer,
    form: impl Fn(TagSpend) -> T + Send + 'static,
) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        let (mut reading, snapshot) = if state.has_rollups() {
            days::begin(reading, filter.days()).await?
        } else {
            (reading, None)
        };
        {
            let mut query = Statement::default();
            let mut rows =
                tags::spend_by_tag(reading.connection(), &mut query, &filter, snapshot.as_ref());
            while let Some(row) = rows.try_next().await? {
                writer.value(&form(row))?;
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

fn optional_day(name: &str, text: Option<&str>) -> Result<Option<NaiveDate>, ApiError> {
    let refuse = || ApiError::bad_request(ErrorType::InternalError, not_a_day(name));
    text.map(|text| parse_day(text).ok_or_else(refuse)).transpose()
}

/// Rounds like Python's `round(x, 4)`: to the four-place decimal that is nearest to the exact binary value.
fn four_places(amount: f64) -> f64 {
    format!("{amount:.4}").parse().unwrap_or(amount)
}
