//! `GET /global/spend/report`: spend by day and team, customer, user or model, or by key.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use chrono::NaiveDate;
use futures_util::stream::BoxStream;
use futures_util::{Stream, TryStreamExt};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::field_error::FieldError;
use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::openapi::base::TAG;
use crate::http::read_limits::Length;
use crate::http::reads::Reads;
use crate::http::routes::dates::{DaysParams, not_a_day, parse_day};
use crate::http::state::AppState;
use crate::http::stream::writer::name;
use crate::http::stream::writer::{Name, Text, Writer};
use crate::identity::key_filter;
use crate::store;
use crate::store::report;
use crate::store::report::DayRow;
use crate::store::rollups::days;
use crate::store::{Connection, DateRange};

mod from_rollups;
pub mod scoped;
mod writer;

use crate::http::routes::report::from_rollups::{AT_ONCE, EntriesWriter, Labels, keys_request, write_keys};
use crate::http::routes::report::writer::{DaysWriter, close_key, open_key, write_model};

/// The routes of this file and of the files below it.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_spend_report)).merge(scoped::routes())
}

/// Grouping of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// By day and team.
    Team,
    /// By day and end user.
    Customer,
    /// By key, over the whole range.
    ApiKey,
    /// By day and user.
    User,
    /// By day and model.
    ModelName,
}

/// The values of `group_by`, for error messages.
const GROUPS: &str = "'team', 'customer', 'api_key', 'user' or 'model_name'";

/// Parameters of `/global/spend/report`, besides the days.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReportParams {
    /// Group spend by internal team, customer, api_key, user or model_name
    #[param(required = false, default = "team", inline)]
    group_by: GroupBy,
    /// Whether `group_by` is `model`. LiteLLM refuses this value, and litespend does too unless it is configured to
    /// accept it.
    #[param(ignore)]
    by_model: bool,
    /// View spend for a specific api_key (raw or its SHA-256)
    api_key: Option<String>,
    /// View spend for a specific internal_user_id
    internal_user_id: Option<String>,
    /// View spend for a specific team_id; applies if grouped by team, user or model_name, or together with customer_id
    team_id: Option<String>,
    /// View spend for a specific customer_id, in conjunction with team_id
    customer_id: Option<String>,
}

impl FromQuery for ReportParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        let groups = [
            ("team", GroupBy::Team),
            ("customer", GroupBy::Customer),
            ("api_key", GroupBy::ApiKey),
            ("user", GroupBy::User),
            ("model_name", GroupBy::ModelName),
            ("model", GroupBy::ModelName),
        ];
        Self {
            by_model: reader.text("group_by").as_deref() == Some("model"),
            group_by: reader.choice("group_by", &groups, GROUPS).unwrap_or(GroupBy::Team),
            api_key: reader.text("api_key"),
            internal_user_id: reader.text("internal_user_id"),
            team_id: reader.text("team_id"),
            customer_id: reader.text("customer_id"),
        }
    }
}

/// One entry of a report: a day (if grouped by team, customer, user or model) or a key.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum ReportEntry {
    /// A day.
    Day(ReportDay),
    /// A key.
    Key(ReportKey),
}

/// A day of a report. Exactly one of the lists is present.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReportDay {
    /// Midnight at the start of the day, UTC.
    #[schema(example = "2026-02-01T00:00:00+00:00")]
    group_by_day: String,
    /// Grouped by team.
    #[schema(required = false)]
    teams: Option<Vec<ReportGroup>>,
    /// Grouped by customer.
    #[schema(required = false)]
    customers: Option<Vec<ReportGroup>>,
    /// One team's spend for one customer.
    #[schema(required = false)]
    teams_customers: Option<Vec<ReportGroup>>,
    /// Grouped by user.
    #[schema(required = false)]
    users: Option<Vec<ReportGroup>>,
    /// Grouped by model.
    #[schema(required = false)]
    models: Option<Vec<ReportGroup>>,
}

/// Spend of a team, customer, user or model on a day.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReportGroup {
    /// Alias of the team; `Unassigned Team` if it has none.
    #[schema(required = false)]
    team_name: Option<String>,
    /// End user ID.
    #[schema(required = false)]
    customer: Option<String>,
    /// User ID.
    #[schema(required = false)]
    user: Option<String>,
    /// Name of the model.
    #[schema(required = false)]
    model: Option<String>,
    /// Spend in USD.
    total_spend: f64,
    /// Spend by model and key.
    metadata: Vec<ReportUsage>,
}

/// Spend of one key on one model.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReportUsage {
    /// Name of the model.
    model: String,
    /// SHA-256 of the key.
    api_key: String,
    /// Spend in USD.
    spend: f64,
    /// Total tokens: prompt and completion tokens.
    total_tokens: i64,
}

/// Spend of one key, in a report by key.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReportKey {
    /// SHA-256 of the key.
    api_key: String,
    /// Spend in USD.
    total_cost: f64,
    /// Prompt tokens.
    total_input_tokens: i64,
    /// Completion tokens.
    total_output_tokens: i64,
    /// Spend by model.
    model_details: Vec<ReportModel>,
}

/// Spend of the key on one model.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReportModel {
    /// Name of the model.
    model: String,
    /// Spend in USD.
    total_cost: f64,
    /// Prompt tokens.
    total_input_tokens: i64,
    /// Completion tokens.
    total_output_tokens: i64,
}

/// Returns the spend in a range of days, both ends included: by day and team (default), customer, user or model, or by
/// key.
///
/// `api_key` and `internal_user_id` select a report by key. `team_id` together with `customer_id` selects the spend of
/// that team for that customer.
#[utoipa::path(get, path = "/global/spend/report", tag = TAG,
    operation_id = "get_global_spend_report_global_spend_report_get", params(DaysParams, ReportParams),
    responses((status = 200, description = "Days ascending, or keys by falling spend", body = Vec<ReportEntry>),
              (status = 400, description = "A missing or bad date")))]
async fn get_spend_report(
    State(state): State<AppState>,
    reads: Reads,
    Query((dates, params)): Query<(DaysParams, ReportParams)>,
) -> Result<Response, ApiError> {
    if params.by_model && !state.settings.group_by_model {
        let refusal = FieldError::query("group_by", "literal_error", format!("Input should be {GROUPS}"));
        return Err(ApiError::Validation(vec![refusal]));
    }
    let (Some(start), Some(end)) = (dates.start_date.as_deref(), dates.end_date.as_deref()) else {
        return Err(ApiError::nested(StatusCode::BAD_REQUEST, "Please provide start_date and end_date"));
    };
    let range = DateRange { start: day("start_date", start)?, end: day("end_date", end)? };
    let content_type = "application/json";
    if params.api_key.is_some() || params.internal_user_id.is_some() || params.group_by == GroupBy::ApiKey {
        let api_key = params.api_key.as_deref().map(key_filter);
        // If a key is given, LiteLLM ignores the user.
        let user_id = params.internal_user_id.filter(|_| api_key.is_none());
        let pair = params.team_id.is_some() && params.customer_id.is_some();
        if api_key.is_some() || user_id.is_some() || !pair {
            return reads.send(keys(state, reads.clone(), range, api_key, user_id), content_type).await;
        }
    }
    if matches!(params.group_by, GroupBy::User | GroupBy::ModelName)
        && params.team_id.is_none()
        && params.customer_id.is_some()
    {
        let message = "customer_id requires team_id";
        return Err(ApiError::bad_request(ErrorType::InvalidRequest, message));
    }
    let grouping = match (params.team_id, params.customer_id) {
        (Some(team_id), Some(customer_id)) => Grouping::Pair { team_id, customer_id },
        (team_id, _) if params.group_by == GroupBy::Team => Grouping::Team { team_id },
        (team_id, _) if params.group_by == GroupBy::User => Grouping::User { team_id },
        (team_id, _) if params.group_by == GroupBy::ModelName => Grouping::Model { team_id },
        _ => Grouping::Customer,
    };
    reads.send(days(state, reads.clone(), range, grouping), content_type).await
}

fn day(name: &str, text: &str) -> Result<NaiveDate, ApiError> {
    parse_day(text).ok_or_else(|| ApiError::bad_request(ErrorType::InternalServerError, not_a_day(name)))
}

enum Grouping {
    Team { team_id: Option<String> },
    Customer,
    Pair { team_id: String, customer_id: String },
    User { team_id: Option<String> },
    Model { team_id: Option<String> },
}

impl Grouping {
    fn list_name(&self) -> Name {
        match self {
            Self::Team { .. } => name!("teams"),
            Self::Customer => name!("customers"),
            Self::Pair { .. } => name!("teams_customers"),
            Self::User { .. } => name!("users"),
            Self::Model { .. } => name!("models"),
        }
    }

    fn has_teams(&self) -> bool {
        matches!(self, Self::Team { .. } | Self::Pair { .. })
    }

    /// The field that contains the end user, user or model of a group; `None` if grouped by team alone.
    fn member_name(&self) -> Option<Name> {
        match self {
            Self::Team { .. } => None,
            Self::Customer | Self::Pair { .. } => Some(name!("customer")),
            Self::User { .. } => Some(name!("user")),
            Self::Model { .. } => Some(name!("model")),
        }
    }

    /// The rows of the report from the log, in the order of the report.
    fn rows<'c>(
        &self,
        connection: &'c mut Connection,
        range: DateRange,
    ) -> BoxStream<'c, Result<DayRow, store::Error>> {
        match self {
            Self::Team { team_id } => report::by_team(connection, range, team_id.clone()),
            Self::Customer => report::by_customer(connection, range),
            Self::User { team_id } => report::by_user(connection, range, team_id.clone()),
            Self::Model { team_id } => report::by_model(connection, range, team_id.clone()),
            Self::Pair { team_id, customer_id } => {
                report::by_team_and_customer(connection, range, team_id.clone(), customer_id.clone())
            }
        }
    }
}

/// Streams the days of a report while its rows arrive in order. Reads the rollups if they can serve the range, and the
/// log otherwise.
fn days(
    state: AppState,
    reads: Reads,
    range: DateRange,
    grouping: Grouping,
) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        let length = if matches!(grouping, Grouping::Customer) { Length::Long } else { Length::Short };
        let reading = reads.start_for(length).await?;
        let (mut reading, snapshot) =
            if state.has_rollups() { days::begin(reading, range).await? } else { (reading, None) };
        let mut writer = Writer::new();
        writer.open_list();
        if let Some(snapshot) = snapshot {
            let request = grouping.request(range);
            let labels = Labels::read(reading.connection(), &grouping).await?;
            let mut entries_writer = EntriesWriter::new(&grouping, labels);
            let mut days = std::pin::pin!(days::days(reading.copying(), &state.dictionary, snapshot, request));
            while let Some(part) = days.try_next().await? {
                for entries in entries_writer.take(&mut writer, part)?.chunks(AT_ONCE) {
                    entries_writer.write(&mut writer, entries)?;
                    if let Some(chunk) = writer.chunk() {
                        yield chunk;
                    }
                }
            }
            entries_writer.close(&mut writer)?;
        } else {
            let mut days = DaysWriter::new(&grouping);
            let mut rows = grouping.rows(reading.connection(), range);
            while let Some(row) = rows.try_next().await? {
                days.write_row(&mut writer, row)?;
                if let Some(chunk) = writer.chunk() {
                    yield chunk;
                }
            }
            days.close_day(&mut writer);
        }
        reading.finish().await?;
        writer.close();
        yield writer.take();
    }
}

/// Streams the keys of a report while its rows arrive, sorted by descending spend.
fn keys(
    state: AppState,
    reads: Reads,
    range: DateRange,
    api_key: Option<String>,
    user_id: Option<String>,
) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        let reading = reads.start().await?;
        let (mut reading, snapshot) =
            if state.has_rollups() { days::begin(reading, range).await? } else { (reading, None) };
        let mut writer = Writer::new();
        writer.open_list();
        if let Some(snapshot) = snapshot {
            let request = keys_request(range, api_key, user_id);
            let all = days::whole(reading.copying(), &state.dictionary, snapshot, request).await?;
            for chunk in write_keys(&mut writer, all)? {
                yield chunk;
            }
        } else {
            let mut open: Option<String> = None;
            let mut rows = report::by_key(reading.connection(), range, api_key, user_id);
            while let Some(row) = rows.try_next().await? {
                if open.as_ref() != Some(&row.api_key) {
                    if open.is_some() {
                        close_key(&mut writer);
                    }
                    let tokens = (row.key_prompt_tokens, row.key_completion_tokens);
                    open_key(&mut writer, Text::Plain(&row.api_key), row.key_spend, tokens)?;
                    open = Some(row.api_key);
                }
                let tokens = (row.prompt_tokens, row.completion_tokens);
                write_model(&mut writer, Text::Plain(&row.model), row.spend, tokens)?;
                if let Some(chunk) = writer.chunk() {
                    yield chunk;
                }
            }
            if open.is_some() {
                close_key(&mut writer);
            }
        }
        reading.finish().await?;
        writer.close();
        yield writer.take();
    }
}
