//! Aggregated activity: `/user/daily/activity/aggregated` with its `/keys`, `/users` and `/model_top_keys`, and
//! `/daily/activity/aggregated` below `/team` and `/tag`. The database computes the sums.
//! [`activity_scope`](crate::http::routes::activity::scope) decides which rows a caller may see.

pub mod daily;
pub mod global;
pub mod scope;
pub mod stream;
pub mod team;

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::ApiError;
use crate::http::extract::Query;
use crate::http::openapi::base::DASHBOARD_TAG;
use crate::http::reads::Reads;
use crate::http::routes::activity::daily::{SpendAnalyticsPaginatedResponse, bucket_of_key, log_window};
use crate::http::routes::activity::scope::{
    KeyPageParams, ModelKeysParams, TagActivityParams, TeamActivityParams, TopKeysParams, UserActivityParams,
    UserPageParams,
};
use crate::http::routes::activity::stream::EntityMetadata;
use crate::http::routes::dates::parse_day;
use crate::http::state::AppState;
use crate::identity::Caller;
use crate::store;
use crate::store::Connection;
use crate::store::activity;
use crate::store::activity::daily::user_names;
use crate::store::activity::figures::Figures;
use crate::store::activity::{KeySums, UserSums};
use crate::store::key_metadata;
use crate::store::key_metadata::KeyMetadata;

/// The routes of this file and of the files below it.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(get_user_activity))
        .routes(routes!(list_user_activity_keys))
        .routes(routes!(list_user_activity_users))
        .routes(routes!(list_model_top_keys))
        .routes(routes!(get_team_activity))
        .routes(routes!(get_tag_activity))
        .merge(daily::routes())
        .merge(global::routes())
        .merge(team::routes())
}

/// Sums of one key in a list of keys.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct KeySpendMetrics {
    /// Spend in USD.
    spend: f64,
    /// Prompt tokens.
    prompt_tokens: i64,
    /// Completion tokens.
    completion_tokens: i64,
    /// Total tokens: prompt and completion tokens.
    total_tokens: i64,
    /// Number of requests.
    api_requests: i64,
    /// Number of requests that succeeded.
    successful_requests: i64,
    /// Number of requests that failed.
    failed_requests: i64,
    /// Prompt tokens that were read from the provider's cache.
    cache_read_input_tokens: i64,
    /// Prompt tokens that were written to the provider's cache.
    cache_creation_input_tokens: i64,
}

impl From<&Figures> for KeySpendMetrics {
    fn from(sums: &Figures) -> Self {
        Self {
            spend: sums.spend,
            prompt_tokens: sums.prompt_tokens,
            completion_tokens: sums.completion_tokens,
            total_tokens: sums.total_tokens(),
            api_requests: sums.api_requests,
            successful_requests: sums.successful_requests,
            failed_requests: sums.failed_requests,
            cache_read_input_tokens: sums.cache_read_input_tokens,
            cache_creation_input_tokens: sums.cache_creation_input_tokens,
        }
    }
}

/// One key in a list of keys.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct KeySpendActivityRow {
    /// SHA-256 of the key; `unattributed` for rows without a key.
    api_key: String,
    /// Sums of the key's rows.
    metrics: KeySpendMetrics,
    /// Metadata of the key.
    metadata: KeyMetadata,
}

/// A page of keys.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DailyActivityKeyPageResponse {
    /// Keys, sorted by descending spend.
    api_keys: Vec<KeySpendActivityRow>,
    /// Total number of keys.
    total_api_keys: i64,
    /// Number of keys before this page.
    offset: i64,
    /// Maximum number of keys per page.
    limit: i64,
}

/// One user in a list of users.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UserActivityRow {
    /// User ID; null for rows without a user.
    user_id: Option<String>,
    /// E-mail address.
    user_email: Option<String>,
    /// Display name.
    user_alias: Option<String>,
    /// Spend in USD.
    spend: f64,
    /// Prompt tokens.
    prompt_tokens: i64,
    /// Completion tokens.
    completion_tokens: i64,
    /// Total tokens: prompt and completion tokens.
    total_tokens: i64,
    /// Number of requests.
    api_requests: i64,
    /// Number of requests that succeeded.
    successful_requests: i64,
    /// Number of requests that failed.
    failed_requests: i64,
}

/// A page of users.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct DailyActivityUserPageResponse {
    /// Users, sorted by descending spend.
    users: Vec<UserActivityRow>,
    /// Total number of users.
    total_users: i64,
    /// Number of users before this page.
    offset: i64,
    /// Maximum number of users per page.
    limit: i64,
}

/// Keys with the largest spend on one model.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ModelTopKeysResponse {
    /// Model, as requested.
    model: String,
    /// Whether the request's `model_group` was taken as a public model name.
    by_model_group: bool,
    /// Keys, sorted by descending spend.
    api_keys: Vec<KeySpendActivityRow>,
}

/// Returns the daily activity of a user for the whole range in one response.
///
/// The response has sums by day and, within each day, by model, provider, key, endpoint, tool and user. It lists the
/// `api_key_limit` keys with the largest spend. All other sums include all keys.
#[utoipa::path(get, path = "/user/daily/activity/aggregated", tag = DASHBOARD_TAG,
    operation_id = "get_user_daily_activity_aggregated", params(UserActivityParams, TopKeysParams),
    responses((status = 200, description = "Days, newest first", body = SpendAnalyticsPaginatedResponse),
              (status = 400, description = "A missing or bad date"),
              (status = 403, description = "Another user's activity")))]
async fn get_user_activity(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query((params, top)): Query<(UserActivityParams, TopKeysParams)>,
) -> Result<Response, ApiError> {
    let filter = scope::of_user(&caller, params, state.clock.now(), false)?;
    stream::respond(&state, &reads, filter, top.api_key_limit, EntityMetadata::OfUsers).await
}

/// Returns a page of the keys in a user's activity, sorted by descending spend.
#[utoipa::path(get, path = "/user/daily/activity/aggregated/keys", tag = DASHBOARD_TAG,
    operation_id = "get_user_daily_activity_aggregated_keys", params(UserActivityParams, KeyPageParams),
    responses((status = 200, description = "Keys", body = DailyActivityKeyPageResponse),
              (status = 400, description = "A missing or bad date, or over 400 days"),
              (status = 403, description = "Another user's activity")))]
async fn list_user_activity_keys(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query((params, page)): Query<(UserActivityParams, KeyPageParams)>,
) -> Result<Json<DailyActivityKeyPageResponse>, ApiError> {
    let asked = (params.start_date.clone(), params.end_date.clone());
    let mut filter = scope::of_user(&caller, params, state.clock.now(), true)?;
    let mut reading = activity::begin_snapshot(reads.start().await?, &mut filter, state.has_rollups()).await?;
    let connection = reading.connection();
    let rows = activity::key_page(connection, &filter, page.offset, page.limit).await?;
    let total_api_keys = match rows.first() {
        Some(row) => row.members,
        None => activity::count_keys(connection, &filter).await?,
    };
    let api_keys = named(connection, rows, asked).await?;
    reading.finish().await?;
    Ok(Json(DailyActivityKeyPageResponse { api_keys, total_api_keys, offset: page.offset, limit: page.limit }))
}

/// Returns a page of the users in the activity, sorted by descending spend.
///
/// Users who are not admins see only themselves.
#[utoipa::path(get, path = "/user/daily/activity/aggregated/users", tag = DASHBOARD_TAG,
    operation_id = "get_user_daily_activity_aggregated_users", params(UserActivityParams, UserPageParams),
    responses((status = 200, description = "Users", body = DailyActivityUserPageResponse),
              (status = 400, description = "A missing or bad date, or over 400 days"),
              (status = 403, description = "Another user's activity")))]
async fn list_user_activity_users(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query((params, page)): Query<(UserActivityParams, UserPageParams)>,
) -> Result<Json<DailyActivityUserPageResponse>, ApiError> {
    let mut filter = scope::of_user(&caller, params, state.clock.now(), true)?;
    let mut reading = activity::begin_snapshot(reads.start().await?, &mut filter, state.has_rollups()).await?;
    let connection = reading.connection();
    let rows = activity::user_page(connection, &filter, page.offset, page.limit).await?;
    let total_users = match rows.first() {
        Some(row) => row.members,
        None => activity::count_users(connection, &filter).await?,
    };
    let ids: Vec<String> = rows.iter().filter_map(|row| row.user_id.clone()).collect();
    let names = user_names(connection, &ids).await?;
    reading.finish().await?;
    let names: BTreeMap<_, _> = names.into_iter().map(|(id, email, alias)| (id, (email, alias))).collect();
    let users = rows.into_iter().map(|row| user_row(row, &names)).collect();
    Ok(Json(DailyActivityUserPageResponse { users, total_users, offset: page.offset, limit: page.limit }))
}

/// Returns the keys with the largest spend on one model.
#[utoipa::path(get, path = "/user/daily/activity/aggregated/model_top_keys", tag = DASHBOARD_TAG,
    operation_id = "get_user_daily_activity_model_top_keys", params(UserActivityParams, ModelKeysParams),
    responses((status = 200, description = "Keys", body = ModelTopKeysResponse),
              (status = 400, description = "A missing or bad date, or over 400 days"),
              (status = 403, description = "Another user's activity")))]
async fn list_model_top_keys(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query((params, asked)): Query<(UserActivityParams, ModelKeysParams)>,
) -> Result<Json<ModelTopKeysResponse>, ApiError> {
    let days = (params.start_date.clone(), params.end_date.clone());
    let filter = scope::of_user(&caller, params, state.clock.now(), true)?;
    let ModelKeysParams { model_group: model, by_model_group, limit } = asked;
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    let rows = activity::keys_of_model(connection, &filter, &model, by_model_group, limit).await?;
    let api_keys = named(connection, rows, days).await?;
    Ok(Json(ModelTopKeysResponse { model, by_model_group, api_keys }))
}

/// Returns the daily activity of teams for the whole range in one response, with sums by team.
///
/// Users who are not admins see their own teams. They see the usage of their own keys only, unless they may see the
/// whole activity of each of these teams, as its admin or by the team's permissions.
#[utoipa::path(get, path = "/team/daily/activity/aggregated", tag = DASHBOARD_TAG,
    operation_id = "get_team_daily_activity_aggregated", params(TeamActivityParams, TopKeysParams),
    responses((status = 200, description = "Days, newest first", body = SpendAnalyticsPaginatedResponse),
              (status = 400, description = "A missing or bad date, or over 400 days"),
              (status = 404, description = "No such user, or a team that the caller is not in")))]
async fn get_team_activity(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query((params, top)): Query<(TeamActivityParams, TopKeysParams)>,
) -> Result<Response, ApiError> {
    let range = scope::limited_range(params.start_date.as_deref(), params.end_date.as_deref())?;
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    let (filter, teams) = scope::of_teams(connection, &caller, params).await?;
    reading.finish().await?;
    stream::respond(&state, &reads, filter.between(range), top.api_key_limit, EntityMetadata::Given(teams)).await
}

/// Returns the daily activity of tags for the whole range in one response, with sums by tag.
///
/// A request with several tags counts once for each of them. Users who are not admins see only the usage of their own
/// keys.
#[utoipa::path(get, path = "/tag/daily/activity/aggregated", tag = DASHBOARD_TAG,
    operation_id = "get_tag_daily_activity_aggregated", params(TagActivityParams, TopKeysParams),
    responses((status = 200, description = "Days, newest first", body = SpendAnalyticsPaginatedResponse),
              (status = 400, description = "A missing or bad date, or over 400 days")))]
async fn get_tag_activity(
    State(state): State<AppState>,
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query((params, top)): Query<(TagActivityParams, TopKeysParams)>,
) -> Result<Response, ApiError> {
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    let filter = scope::of_tags(connection, &caller, params).await?;
    reading.finish().await?;
    stream::respond(&state, &reads, filter, top.api_key_limit, EntityMetadata::Given(BTreeMap::new())).await
}

/// The keys with their metadata. `days` is the requested range, in which the log is searched for metadata of keys.
async fn named(
    connection: &mut Connection,
    rows: Vec<KeySums>,
    days: (Option<String>, Option<String>),
) -> Result<Vec<KeySpendActivityRow>, store::Error> {
    let keys = rows.iter().map(|row| row.api_key.clone()).filter(|key| !key.is_empty()).collect();
    let days: Vec<_> = [days.0, days.1].into_iter().flatten().filter_map(|day| parse_day(&day)).collect();
    let known = key_metadata::find(connection, &keys, log_window(&days)).await?;
    Ok(rows.into_iter().map(|row| key_row(&row, &known)).collect())
}

fn key_row(row: &KeySums, known: &BTreeMap<String, KeyMetadata>) -> KeySpendActivityRow {
    let metadata = if row.api_key.is_empty() {
        crate::http::routes::activity::daily::metadata_of("", known)
    } else {
        // Unlike in a breakdown, the metadata of an unknown key is empty here: it does not even say that the key does
        // not exist.
        known.get(&row.api_key).cloned().unwrap_or_default()
    };
    KeySpendActivityRow { api_key: bucket_of_key(&row.api_key), metrics: (&row.sums).into(), metadata }
}

type Names = BTreeMap<String, (Option<String>, Option<String>)>;

fn user_row(row: UserSums, names: &Names) -> UserActivityRow {
    let (user_email, user_alias) = row.user_id.as_ref().and_then(|id| names.get(id)).cloned().unwrap_or_default();
    UserActivityRow {
        user_id: row.user_id,
        user_email,
        user_alias,
        spend: row.sums.spend,
        prompt_tokens: row.sums.prompt_tokens,
        completion_tokens: row.sums.completion_tokens,
        total_tokens: row.sums.prompt_tokens + row.sums.completion_tokens,
        api_requests: row.sums.api_requests,
        successful_requests: row.sums.successful_requests,
        failed_requests: row.sums.failed_requests,
    }
}
