//! `GET /user/daily/activity`: LiteLLM's daily rows, summed by day and broken down by model, provider, key and other
//! groups.

mod breakdown;
mod response;

pub use crate::http::routes::activity::daily::breakdown::{Entities, aggregate, metadata_of, provider_metadata};
pub use crate::http::routes::activity::daily::response::{
    Breakdown, DailySpendData, DailySpendMetadata, GroupMetrics, KeyMetrics, SpendAnalyticsPaginatedResponse,
    SpendMetrics,
};

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::ApiError;
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::openapi::base::TAG;
use crate::http::reads::Reads;
use crate::http::routes::dates::parse_day;
use crate::http::state::AppState;
use crate::identity::Caller;
use crate::store;
use crate::store::activity::FLAT_COST_KEY;
use crate::store::activity::daily;
use crate::store::activity::daily::{DailyFilter, DailyRow};
use crate::store::key_metadata;
use crate::store::key_metadata::KeyMetadata;
use crate::store::midnight;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_user_daily_activity))
}

/// Name of rows without a key in reports.
const UNATTRIBUTED: &str = "unattributed";

/// Prefix for a key that is itself named `unattributed` or that starts with this prefix.
const RAW: &str = "raw:";

/// Parameters of `/user/daily/activity`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DailyActivityParams {
    /// Start date in YYYY-MM-DD format
    start_date: Option<String>,
    /// End date in YYYY-MM-DD format
    end_date: Option<String>,
    /// Filter by specific model
    model: Option<String>,
    /// Filter by specific API key (its SHA-256; `unattributed` for rows without one)
    api_key: Option<String>,
    /// Filter by specific user; users who are not admins may give only their own ID
    user_id: Option<String>,
    /// Page number for pagination
    #[param(required = false, default = 1, minimum = 1)]
    page: i64,
    /// Items per page
    #[param(required = false, default = 50, minimum = 1, maximum = 1000)]
    page_size: i64,
    /// Offset between UTC and the caller's time zone in minutes, as JavaScript's getTimezoneOffset returns it
    timezone: Option<i64>,
    /// With timezone: a range that ends today in the caller's time zone also covers today in UTC
    #[param(required = false, default = false)]
    include_current_utc_day: bool,
}

impl FromQuery for DailyActivityParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self {
            start_date: reader.text("start_date"),
            end_date: reader.text("end_date"),
            model: reader.text("model"),
            api_key: reader.text("api_key"),
            user_id: reader.text("user_id"),
            page: reader.integer("page", 1, 1, i64::MAX),
            page_size: reader.integer("page_size", 50, 1, 1000),
            timezone: reader.optional_integer("timezone", i64::MIN, i64::MAX),
            include_current_utc_day: reader.boolean("include_current_utc_day", false),
        }
    }
}

/// Returns the daily activity of a user, from one page of LiteLLM's daily rows.
///
/// The response has sums by day and, within each day, by model, provider, key, endpoint, tool and user.
#[utoipa::path(get, path = "/user/daily/activity", tag = TAG,
    operation_id = "get_user_daily_activity_user_daily_activity_get", params(DailyActivityParams),
    responses((status = 200, description = "Days, newest first", body = SpendAnalyticsPaginatedResponse),
              (status = 400, description = "A missing or bad date"),
              (status = 403, description = "Another user's activity")))]
async fn list_user_daily_activity(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(params): Query<DailyActivityParams>,
) -> Result<Json<SpendAnalyticsPaginatedResponse>, ApiError> {
    let user_id =
        visible_user(&caller, params.user_id.as_deref(), params.start_date.is_some() && params.end_date.is_some())?;
    let (start, end) = date_range(params.start_date.as_deref(), params.end_date.as_deref())?;
    let zone = params.timezone.filter(|_| params.include_current_utc_day);
    let filter = DailyFilter {
        start: start.to_string(),
        end: extend_to_today(end, zone, state.clock.now()).to_string(),
        user_id,
        api_key: params.api_key.filter(|key| !key.is_empty()).map(|key| key_of_bucket(&key)),
        model: params.model,
    };
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    let offset = (params.page - 1).saturating_mul(params.page_size);
    let idle = if offset == 0 { reads.try_start().await? } else { None };
    let (count, rows) = if let Some(mut other) = idle {
        // Counting takes as long as reading the first page, so both run at the same time.
        tokio::try_join!(
            daily::count(other.connection(), &filter),
            daily::page(connection, &filter, 0, params.page_size)
        )?
    } else {
        let count = daily::count(connection, &filter).await?;
        if offset < count {
            (count, daily::page(connection, &filter, offset, params.page_size).await?)
        } else {
            (count, Vec::new())
        }
    };
    let keys = known_keys(connection, &rows).await?;
    let users = known_users(connection, &rows).await?;
    let (results, totals) = aggregate(&rows, &keys, &users);
    let metadata = DailySpendMetadata::of(&totals).on_page(params.page, params.page_size, count);
    Ok(Json(SpendAnalyticsPaginatedResponse { results, metadata }))
}

/// The user whose rows to read. Admins may name any user, or none for all users. Other callers get their own rows; 403
/// if they name somebody else.
pub fn visible_user(caller: &Caller, asked: Option<&str>, has_dates: bool) -> Result<Option<String>, ApiError> {
    if caller.role.sees_everything() {
        return Ok(asked.map(str::to_owned));
    }
    if !has_dates {
        return Err(missing_dates());
    }
    let Some(own) = caller.user_id.as_deref().filter(|own| !own.is_empty()) else {
        let message =
            "Service-account keys cannot query user analytics. Use a user-bound key, or call as a proxy admin.";
        return Err(ApiError::nested(StatusCode::FORBIDDEN, message));
    };
    if asked.is_some_and(|asked| asked != own) {
        let message = "Non-admin users can only view their own spend data.";
        return Err(ApiError::nested(StatusCode::FORBIDDEN, message));
    }
    Ok(Some(own.to_owned()))
}

fn missing_dates() -> ApiError {
    ApiError::nested(StatusCode::BAD_REQUEST, "Please provide start_date and end_date")
}

/// Parses both dates. 400 if one is missing or invalid, or if the end is before the start.
pub fn date_range(start: Option<&str>, end: Option<&str>) -> Result<(NaiveDate, NaiveDate), ApiError> {
    let (Some(start), Some(end)) = (start, end) else { return Err(missing_dates()) };
    let (Some(start), Some(end)) = (parse_day(start), parse_day(end)) else {
        let message = "start_date and end_date must be valid YYYY-MM-DD dates";
        return Err(ApiError::nested(StatusCode::BAD_REQUEST, message));
    };
    if end < start {
        return Err(ApiError::nested(StatusCode::BAD_REQUEST, "end_date must be on or after start_date"));
    }
    Ok((start, end))
}

/// The last day to read. If the range ends today or later in the caller's time zone, it also covers today in UTC.
pub fn extend_to_today(end: NaiveDate, zone_minutes: Option<i64>, now: DateTime<Utc>) -> NaiveDate {
    let Some(offset) = zone_minutes.and_then(TimeDelta::try_minutes) else { return end };
    match now.checked_sub_signed(offset) {
        Some(local) if end >= local.date_naive() => end.max(now.date_naive()),
        _ => end,
    }
}

/// Converts a key's name in reports to the value of `api_key` in the daily tables.
pub fn key_of_bucket(name: &str) -> String {
    if name == UNATTRIBUTED { String::new() } else { name.strip_prefix(RAW).unwrap_or(name).to_owned() }
}

/// Converts the value of `api_key` in the daily tables to the key's name in reports.
pub fn bucket_of_key(key: &str) -> String {
    if key.is_empty() {
        UNATTRIBUTED.to_owned()
    } else if key == UNATTRIBUTED || key.starts_with(RAW) {
        format!("{RAW}{key}")
    } else {
        key.to_owned()
    }
}

/// Metadata of the keys in these rows.
pub async fn known_keys(
    connection: &mut store::Connection,
    rows: &[DailyRow],
) -> Result<BTreeMap<String, KeyMetadata>, store::Error> {
    let keys: BTreeSet<String> =
        rows.iter().map(|row| row.api_key.clone()).filter(|key| !key.is_empty() && key != FLAT_COST_KEY).collect();
    let days: Vec<NaiveDate> = rows.iter().filter_map(|row| parse_day(&row.date)).collect();
    key_metadata::find(connection, &keys, log_window(&days)).await
}

/// The time range of the log in which to look for metadata of keys that were used on these days: from one day before to
/// one day after them.
pub fn log_window(days: &[NaiveDate]) -> Option<(NaiveDateTime, NaiveDateTime)> {
    let from = days.iter().min()?.checked_sub_days(Days::new(1))?;
    let until = days.iter().max()?.checked_add_days(Days::new(2))?;
    Some((midnight(from), midnight(until)))
}

async fn known_users(connection: &mut store::Connection, rows: &[DailyRow]) -> Result<Entities, store::Error> {
    let ids: BTreeSet<String> =
        rows.iter().filter_map(|row| row.entity_id.clone()).filter(|id| !id.is_empty()).collect();
    if ids.is_empty() {
        return Ok(Entities::new());
    }
    let ids: Vec<String> = ids.into_iter().collect();
    let names = store::activity::daily::user_names(connection, &ids).await?;
    Ok(names.into_iter().map(|(id, email, alias)| (id, user_metadata(email, alias))).collect())
}

/// The metadata of a user in a report.
pub fn user_metadata(email: Option<String>, alias: Option<String>) -> Map<String, Value> {
    Map::from_iter([("user_email".to_owned(), json!(email)), ("user_alias".to_owned(), json!(alias))])
}
