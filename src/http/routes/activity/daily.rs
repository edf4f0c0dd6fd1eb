//! `GET /user/daily/activity`: LiteLLM's daily rows, summed by day and broken down by model, provider, key and other
//! groups.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, TimeDelta, Utc};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::http::error::ApiError;
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::reads::Reads;
use crate::http::routes::dates::parse_day;
use crate::http::state::AppState;
use crate::identity::Caller;
use crate::store;
use crate::store::activity::FLAT_COST_KEY;
use crate::store::activity::daily;
use crate::store::activity::daily::{DailyFilter, DailyRow, UNKNOWN_MODEL};
use crate::store::activity::figures::Figures;
use crate::store::key_metadata;
use crate::store::key_metadata::KeyMetadata;
use crate::store::midnight;

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

/// Sums over daily rows.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct SpendMetrics {
    /// Spend in USD.
    pub spend: f64,
    /// Cost of provisioned throughput in USD; always 0 in litespend.
    pub flat_cost: f64,
    /// Hours of provisioned throughput; always 0 in litespend.
    pub ptu_hours: f64,
    /// Prompt tokens.
    pub prompt_tokens: i64,
    /// Completion tokens.
    pub completion_tokens: i64,
    /// Prompt tokens that were read from the provider's cache.
    pub cache_read_input_tokens: i64,
    /// Prompt tokens that were written to the provider's cache.
    pub cache_creation_input_tokens: i64,
    /// Tokens saved by prompt compression.
    pub compression_saved_tokens: i64,
    /// USD saved by prompt compression.
    pub compression_savings_spend: f64,
    /// USD saved by the provider's cache.
    pub prompt_caching_savings_spend: f64,
    /// USD saved by cache markers that the gateway added.
    pub gateway_injected_caching_savings_spend: f64,
    /// USD saved by automatic routing.
    pub autorouter_savings_spend: f64,
    /// Total tokens: prompt and completion tokens.
    pub total_tokens: i64,
    /// Number of requests that succeeded.
    pub successful_requests: i64,
    /// Number of requests that failed.
    pub failed_requests: i64,
    /// Number of requests.
    pub api_requests: i64,
    /// Sum of response times, in milliseconds.
    pub total_response_time_ms: i64,
    /// Number of requests in the sum of response times.
    pub timed_requests: i64,
}

impl From<&Figures> for SpendMetrics {
    fn from(figures: &Figures) -> Self {
        Self {
            spend: figures.spend,
            flat_cost: 0.0,
            ptu_hours: 0.0,
            prompt_tokens: figures.prompt_tokens,
            completion_tokens: figures.completion_tokens,
            cache_read_input_tokens: figures.cache_read_input_tokens,
            cache_creation_input_tokens: figures.cache_creation_input_tokens,
            compression_saved_tokens: figures.compression_saved_tokens,
            compression_savings_spend: figures.compression_savings_spend,
            prompt_caching_savings_spend: figures.prompt_caching_savings_spend,
            gateway_injected_caching_savings_spend: figures.gateway_injected_caching_savings_spend,
            autorouter_savings_spend: figures.autorouter_savings_spend,
            total_tokens: figures.total_tokens(),
            successful_requests: figures.successful_requests,
            failed_requests: figures.failed_requests,
            api_requests: figures.api_requests,
            total_response_time_ms: figures.total_response_time_ms,
            timed_requests: figures.timed_requests,
        }
    }
}

/// Serializes figures as responses show them.
fn write_metrics<S: Serializer>(figures: &Figures, serializer: S) -> Result<S::Ok, S::Error> {
    SpendMetrics::from(figures).serialize(serializer)
}

/// Sums of one key.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct KeyMetrics {
    /// Sums of the rows.
    #[serde(serialize_with = "write_metrics")]
    #[schema(value_type = SpendMetrics)]
    pub metrics: Figures,
    /// Metadata of the key.
    pub metadata: KeyMetadata,
}

/// Sums of one group (a model, a provider and so on), also by key.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct GroupMetrics {
    /// Sums of the rows.
    #[serde(serialize_with = "write_metrics")]
    #[schema(value_type = SpendMetrics)]
    pub metrics: Figures,
    /// Metadata of the group.
    #[schema(value_type = Object)]
    pub metadata: Map<String, Value>,
    /// Sums by key.
    // The values are boxed because a map allocates space for several values at once, which is wasted in a group with
    // one key.
    #[schema(value_type = BTreeMap<String, KeyMetrics>)]
    pub api_key_breakdown: BTreeMap<String, Box<KeyMetrics>>,
}

/// Sums of a day by group.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct Breakdown {
    /// Sums by MCP tool.
    pub mcp_servers: BTreeMap<String, GroupMetrics>,
    /// Sums by model.
    pub models: BTreeMap<String, GroupMetrics>,
    /// Sums by public model name.
    pub model_groups: BTreeMap<String, GroupMetrics>,
    /// Sums by provider.
    pub providers: BTreeMap<String, GroupMetrics>,
    /// Sums by endpoint.
    pub endpoints: BTreeMap<String, GroupMetrics>,
    /// Sums by key.
    #[schema(value_type = BTreeMap<String, KeyMetrics>)]
    pub api_keys: BTreeMap<String, Box<KeyMetrics>>,
    /// Sums by user, team or tag.
    pub entities: BTreeMap<String, GroupMetrics>,
    /// Sums by guardrail; always empty in litespend.
    pub guardrails: BTreeMap<String, GroupMetrics>,
}

/// Sums of one day.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DailySpendData {
    /// Day, UTC.
    pub date: NaiveDate,
    /// Sums of the rows.
    #[serde(serialize_with = "write_metrics")]
    #[schema(value_type = SpendMetrics)]
    pub metrics: Figures,
    /// Sums by group.
    pub breakdown: Breakdown,
}

/// Sums over the page, and the position of the page.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct DailySpendMetadata {
    /// Spend in USD.
    pub total_spend: f64,
    /// Cost of provisioned throughput in USD; always 0 in litespend.
    pub total_flat_cost: f64,
    /// Hours of provisioned throughput; always 0 in litespend.
    pub total_ptu_hours: f64,
    /// Prompt tokens.
    pub total_prompt_tokens: i64,
    /// Completion tokens.
    pub total_completion_tokens: i64,
    /// Total tokens: prompt and completion tokens.
    pub total_tokens: i64,
    /// Number of requests.
    pub total_api_requests: i64,
    /// Number of requests that succeeded.
    pub total_successful_requests: i64,
    /// Number of requests that failed.
    pub total_failed_requests: i64,
    /// Prompt tokens that were read from the provider's cache.
    pub total_cache_read_input_tokens: i64,
    /// Prompt tokens that were written to the provider's cache.
    pub total_cache_creation_input_tokens: i64,
    /// Tokens saved by prompt compression.
    pub total_compression_saved_tokens: i64,
    /// USD saved by prompt compression.
    pub total_compression_savings_spend: f64,
    /// USD saved by the provider's cache.
    pub total_prompt_caching_savings_spend: f64,
    /// USD saved by cache markers that the gateway added.
    pub total_gateway_injected_caching_savings_spend: f64,
    /// USD saved by automatic routing.
    pub total_autorouter_savings_spend: f64,
    /// Sum of response times, in milliseconds.
    pub total_response_time_ms: i64,
    /// Number of requests in the sum of response times.
    pub total_timed_requests: i64,
    /// Number of this page, from 1.
    pub page: i64,
    /// Total number of pages.
    pub total_pages: i64,
    /// Whether there is a next page.
    pub has_more: bool,
    /// Maximum number of listed keys, if the response limits them.
    pub api_key_limit: Option<i64>,
    /// Total number of keys, if the response limits them.
    pub total_api_keys: Option<i64>,
    /// Number of keys of each team or tag, if the response limits them.
    pub entity_total_api_keys: Option<BTreeMap<String, i64>>,
}

impl DailySpendMetadata {
    /// Metadata with these totals, and without paging.
    pub fn of(totals: &Figures) -> Self {
        Self {
            total_spend: totals.spend,
            total_prompt_tokens: totals.prompt_tokens,
            total_completion_tokens: totals.completion_tokens,
            total_tokens: totals.total_tokens(),
            total_api_requests: totals.api_requests,
            total_successful_requests: totals.successful_requests,
            total_failed_requests: totals.failed_requests,
            total_cache_read_input_tokens: totals.cache_read_input_tokens,
            total_cache_creation_input_tokens: totals.cache_creation_input_tokens,
            total_compression_saved_tokens: totals.compression_saved_tokens,
            total_compression_savings_spend: totals.compression_savings_spend,
            total_prompt_caching_savings_spend: totals.prompt_caching_savings_spend,
            total_gateway_injected_caching_savings_spend: totals.gateway_injected_caching_savings_spend,
            total_autorouter_savings_spend: totals.autorouter_savings_spend,
            total_response_time_ms: totals.total_response_time_ms,
            total_timed_requests: totals.timed_requests,
            ..Self::default()
        }
    }
}

/// Response with daily activity.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SpendAnalyticsPaginatedResponse {
    /// Days, newest first.
    pub results: Vec<DailySpendData>,
    /// Totals and paging.
    pub metadata: DailySpendMetadata,
}

/// Returns the daily activity of a user, from one page of LiteLLM's daily rows.
///
/// The response has sums by day and, within each day, by model, provider, key, endpoint, tool and user.
#[utoipa::path(get, path = "/user/daily/activity", tag = crate::http::openapi::base::TAG,
    operation_id = "get_user_daily_activity_user_daily_activity_get", security(("APIKeyHeader" = [])),
    params(DailyActivityParams),
    responses((status = 200, description = "Days, newest first", body = SpendAnalyticsPaginatedResponse),
              (status = 400, description = "A missing or bad date"),
              (status = 403, description = "Another user's activity")))]
pub async fn list_user_daily_activity(
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
    let metadata = DailySpendMetadata {
        page: params.page,
        total_pages: count.div_euclid(params.page_size) + i64::from(count % params.page_size > 0),
        has_more: params.page.saturating_mul(params.page_size) < count,
        ..DailySpendMetadata::of(&totals)
    };
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

/// Metadata of each user, team or tag.
pub type Entities = BTreeMap<String, Map<String, Value>>;

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
    let metadata = |email, alias| {
        Map::from_iter([("user_email".to_owned(), json!(email)), ("user_alias".to_owned(), json!(alias))])
    };
    Ok(names
        .into_iter()
        .map(|(id, email, alias): (String, Option<String>, Option<String>)| (id, metadata(email, alias)))
        .collect())
}

/// Sums the rows by day and group, newest day first. Also returns the sums over all rows.
pub fn aggregate(
    rows: &[DailyRow],
    keys: &BTreeMap<String, KeyMetadata>,
    entities: &Entities,
) -> (Vec<DailySpendData>, Figures) {
    let mut days: BTreeMap<&str, (Figures, Breakdown)> = BTreeMap::new();
    let mut totals = Figures::default();
    for row in rows {
        let (metrics, breakdown) = days.entry(&row.date).or_default();
        *metrics += &row.figures;
        totals += &row.figures;
        add_to_breakdown(breakdown, row, keys, entities);
    }
    let results = days
        .into_iter()
        .rev()
        .filter_map(|(date, (metrics, breakdown))| Some(DailySpendData { date: parse_day(date)?, metrics, breakdown }))
        .collect();
    (results, totals)
}

/// Metadata of a key in a report.
pub fn metadata_of(key: &str, keys: &BTreeMap<String, KeyMetadata>) -> KeyMetadata {
    if key.is_empty() {
        return KeyMetadata { key_alias: Some("Unattributed".into()), key_exists: Some(false), ..Default::default() };
    }
    keys.get(key).cloned().unwrap_or_else(|| KeyMetadata { key_exists: Some(false), ..Default::default() })
}

fn add_to_breakdown(
    breakdown: &mut Breakdown,
    row: &DailyRow,
    keys: &BTreeMap<String, KeyMetadata>,
    entities: &Entities,
) {
    let named = |name: &Option<String>| name.as_deref().filter(|name| !name.is_empty()).map(str::to_owned);
    let flat = row.api_key == FLAT_COST_KEY;
    let add = |groups: &mut BTreeMap<String, GroupMetrics>, name: String, metadata: &dyn Fn() -> Map<String, Value>| {
        let group =
            groups.entry(name).or_insert_with(|| GroupMetrics { metadata: metadata(), ..GroupMetrics::default() });
        group.metrics += &row.figures;
        if !flat {
            add_key(&mut group.api_key_breakdown, row, keys);
        }
    };
    let nothing = || Map::new();
    let model = if flat { named(&row.model_group).or(named(&row.model)) } else { named(&row.model) };
    if let Some(model) = model.or((!flat).then(|| UNKNOWN_MODEL.to_owned())) {
        add(&mut breakdown.models, model, &nothing);
    }
    let group = named(&row.model_group).or(named(&row.model)).unwrap_or_else(|| "unknown-model-group".to_owned());
    add(&mut breakdown.model_groups, group, &nothing);
    if let Some(tool) = named(&row.mcp_namespaced_tool_name) {
        add(&mut breakdown.mcp_servers, tool, &nothing);
    }
    if !flat {
        let provider = named(&row.custom_llm_provider).unwrap_or_else(|| "unknown".to_owned());
        let metadata = provider_metadata(&provider);
        add(&mut breakdown.providers, provider, &|| metadata.clone());
    }
    if let Some(endpoint) = named(&row.endpoint) {
        add(&mut breakdown.endpoints, endpoint, &nothing);
    }
    let entity = named(&row.entity_id).unwrap_or_else(|| "Unassigned".to_owned());
    let metadata = entities.get(&entity);
    add(&mut breakdown.entities, entity, &|| metadata.cloned().unwrap_or_default());
    if !flat {
        add_key(&mut breakdown.api_keys, row, keys);
    }
}

/// Metadata of a provider. LiteLLM marks the provider that is covered by a subscription.
pub fn provider_metadata(provider: &str) -> Map<String, Value> {
    if provider == "chatgpt" { Map::from_iter([("subscription_covered".to_owned(), json!(true))]) } else { Map::new() }
}

fn add_key(groups: &mut BTreeMap<String, Box<KeyMetrics>>, row: &DailyRow, keys: &BTreeMap<String, KeyMetadata>) {
    let group = groups.entry(bucket_of_key(&row.api_key)).or_insert_with(|| {
        Box::new(KeyMetrics { metrics: Figures::default(), metadata: metadata_of(&row.api_key, keys) })
    });
    group.metrics += &row.figures;
}
