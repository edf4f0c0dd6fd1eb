//! `GET /global/spend/report`: spend by day and team, customer, user or model, or by key.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use chrono::NaiveDate;
use futures_util::{Stream, TryStreamExt};
use serde::Serialize;

use crate::field_error::FieldError;
use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::read_limits::Length;
use crate::http::reads::Reads;
use crate::http::routes::dates::{not_a_day, parse_day};
use crate::http::state::AppState;
use crate::http::stream::Writer;
use crate::identity::key_filter;
use crate::store::DateRange;
use crate::store::report;
use crate::store::report::DayRow;
use crate::store::rollups::days;

mod from_rollups;
pub mod scoped;

use crate::http::routes::report::from_rollups::{AT_ONCE, DayWriter, Labels, keys_request, write_keys};

/// How a report groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupBy {
    /// By day and team.
    Team,
    /// By day and end user.
    Customer,
    /// By key.
    ApiKey,
    /// By day and user.
    User,
    /// By day and model.
    ModelName,
}

/// The values of `group_by`, as a refusal names them.
const GROUPS: &str = "'team', 'customer', 'api_key', 'user' or 'model_name'";

/// Parameters of `/global/spend/report`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReportParams {
    /// Time from which to start viewing spend (YYYY-MM-DD)
    start_date: Option<String>,
    /// Time till which to view spend (YYYY-MM-DD)
    end_date: Option<String>,
    /// Group spend by internal team, customer, api_key, user or model_name
    #[param(required = false, default = "team", inline)]
    group_by: GroupBy,
    /// Whether `group_by` was `model`: LiteLLM refuses it, and so does the server unless told otherwise.
    #[param(ignore)]
    by_model: bool,
    /// View spend for a specific api_key (raw or its SHA-256)
    api_key: Option<String>,
    /// View spend for a specific internal_user_id
    internal_user_id: Option<String>,
    /// View spend for a specific team_id: grouped by team, user or model_name, or together with customer_id
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
            start_date: reader.text("start_date"),
            end_date: reader.text("end_date"),
            by_model: reader.text("group_by").as_deref() == Some("model"),
            group_by: reader.choice("group_by", &groups, GROUPS).unwrap_or(GroupBy::Team),
            api_key: reader.text("api_key"),
            internal_user_id: reader.text("internal_user_id"),
            team_id: reader.text("team_id"),
            customer_id: reader.text("customer_id"),
        }
    }
}

/// One entry of a report: of a day (by team, customer, user or model) or of a key.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum ReportEntry {
    /// By day.
    Day(ReportDay),
    /// By key.
    Key(ReportKey),
}

/// A day of a report: one of the lists is there.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReportDay {
    /// Midnight of the day.
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

/// A team, customer, user or model of a day.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReportGroup {
    /// Alias of the team; `Unassigned Team` where it has none.
    #[schema(required = false)]
    team_name: Option<String>,
    /// End user.
    #[schema(required = false)]
    customer: Option<String>,
    /// Internal user.
    #[schema(required = false)]
    user: Option<String>,
    /// Model.
    #[schema(required = false)]
    model: Option<String>,
    /// USD.
    total_spend: f64,
    /// By model and key.
    metadata: Vec<ReportUsage>,
}

/// What one key spent on one model.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReportUsage {
    /// Model.
    model: String,
    /// Hash of the key.
    api_key: String,
    /// USD.
    spend: f64,
    /// Prompt and completion tokens.
    total_tokens: i64,
}

/// A key of a report.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReportKey {
    /// Hash of the key.
    api_key: String,
    /// USD.
    total_cost: f64,
    /// Prompt tokens.
    total_input_tokens: i64,
    /// Completion tokens.
    total_output_tokens: i64,
    /// By model.
    model_details: Vec<ReportModel>,
}

/// What a key spent on one model.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReportModel {
    /// Model.
    model: String,
    /// USD.
    total_cost: f64,
    /// Prompt tokens.
    total_input_tokens: i64,
    /// Completion tokens.
    total_output_tokens: i64,
}

/// Spend over a range of whole days, both ends included: by day and team (default), customer, user or model, or by key.
/// `api_key` and `internal_user_id` report by key; `team_id` with `customer_id` reports that pair.
#[utoipa::path(get, path = "/global/spend/report", tag = crate::http::openapi::base::TAG,
    operation_id = "get_global_spend_report_global_spend_report_get", security(("APIKeyHeader" = [])),
    params(ReportParams),
    responses((status = 200, description = "Days ascending, or keys by falling spend", body = Vec<ReportEntry>),
              (status = 400, description = "A missing or bad date")))]
pub async fn get_spend_report(
    State(state): State<AppState>,
    reads: Reads,
    Query(params): Query<ReportParams>,
) -> Result<Response, ApiError> {
    if params.by_model && !state.settings.group_by_model {
        let refusal = FieldError::query("group_by", "literal_error", format!("Input should be {GROUPS}"));
        return Err(ApiError::Validation(vec![refusal]));
    }
    let (Some(start), Some(end)) = (params.start_date.as_deref(), params.end_date.as_deref()) else {
        return Err(ApiError::nested(StatusCode::BAD_REQUEST, "Please provide start_date and end_date"));
    };
    let range = DateRange { start: day("start_date", start)?, end: day("end_date", end)? };
    let content_type = "application/json";
    if params.api_key.is_some() || params.internal_user_id.is_some() || params.group_by == GroupBy::ApiKey {
        let api_key = params.api_key.as_deref().map(key_filter);
        // Asked for a key, the reference does not look at the user.
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
        let message = "customer_id can be given with team_id only";
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
    fn list_name(&self) -> &'static str {
        match self {
            Self::Team { .. } => "teams",
            Self::Customer => "customers",
            Self::Pair { .. } => "teams_customers",
            Self::User { .. } => "users",
            Self::Model { .. } => "models",
        }
    }

    fn has_teams(&self) -> bool {
        matches!(self, Self::Team { .. } | Self::Pair { .. })
    }

    /// The name of a member of a group in JSON, with the colon that follows; none of a team.
    fn member_name(&self) -> Option<&'static str> {
        match self {
            Self::Team { .. } => None,
            Self::Customer | Self::Pair { .. } => Some("\"customer\":"),
            Self::User { .. } => Some("\"user\":"),
            Self::Model { .. } => Some("\"model\":"),
        }
    }

    /// Writes the names of the row's group, with the comma that follows.
    fn write_names(&self, writer: &mut Writer, row: &DayRow) -> Result<(), ApiError> {
        if self.has_teams() {
            writer.raw("\"team_name\":");
            writer.value(&row.team_name)?;
            writer.raw(",");
        }
        if let Some(name) = self.member_name() {
            writer.raw(name);
            writer.value(&row.member)?;
            writer.raw(",");
        }
        Ok(())
    }
}

/// Writes the days of a report while the rows arrive in order: at any time one group of one day is open.
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
        writer.raw("[");
        let mut open: Option<DayRow> = None;
        let mut total = 0.0;
        if let Some(snapshot) = snapshot {
            let request = grouping.request(range);
            let labels = Labels::read(reading.connection(), &grouping).await?;
            let mut day_writer = DayWriter::new(&grouping, labels);
            {
                let mut days = std::pin::pin!(days::days(reading.copying(), &state.words, snapshot, request));
                while let Some(part) = days.try_next().await? {
                    for entries in day_writer.take(&mut writer, part).chunks(AT_ONCE) {
                        day_writer.write(&mut writer, entries);
                        if let Some(piece) = writer.piece() {
                            yield piece;
                        }
                    }
                }
            }
            day_writer.close(&mut writer);
        } else {
            let connection = reading.connection();
            let mut rows = match &grouping {
                Grouping::Team { team_id } => report::by_team(connection, range, team_id.clone()),
                Grouping::Customer => report::by_customer(connection, range),
                Grouping::User { team_id } => report::by_user(connection, range, team_id.clone()),
                Grouping::Model { team_id } => report::by_model(connection, range, team_id.clone()),
                Grouping::Pair { team_id, customer_id } => {
                    report::by_team_and_customer(connection, range, team_id.clone(), customer_id.clone())
                }
            };
            while let Some(row) = rows.try_next().await? {
                let same_day = open.as_ref().is_some_and(|last| last.day == row.day);
                let same_group = same_day
                    && open.as_ref().is_some_and(|last| (&last.team_name, &last.member) == (&row.team_name, &row.member));
                if same_group {
                    writer.raw(",");
                } else {
                    if open.is_some() {
                        close_group(&mut writer, total);
                        writer.raw(if same_day { "," } else { "]}," });
                    }
                    if !same_day {
                        open_day(&mut writer, row.day, grouping.list_name());
                    }
                    total = 0.0;
                    writer.raw("{");
                    grouping.write_names(&mut writer, &row)?;
                    writer.raw("\"metadata\":[");
                }
                total += row.spend;
                write_usage(&mut writer, &row)?;
                open = Some(row);
                if let Some(piece) = writer.piece() {
                    yield piece;
                }
            }
        }
        reading.finish().await?;
        if open.is_some() {
            close_group(&mut writer, total);
            writer.raw("]}");
        }
        writer.raw("]");
        yield writer.take();
    }
}

fn open_day(writer: &mut Writer, day: NaiveDate, list: &str) {
    writer.raw("{\"group_by_day\":\"");
    writer.raw(&day.format("%Y-%m-%d").to_string());
    writer.raw("T00:00:00+00:00\",\"");
    writer.raw(list);
    writer.raw("\":[");
}

fn close_group(writer: &mut Writer, total: f64) {
    writer.raw("],\"total_spend\":");
    writer.amount(total);
    writer.raw("}");
}

fn write_usage(writer: &mut Writer, row: &DayRow) -> Result<(), ApiError> {
    writer.raw("{\"model\":");
    writer.value(&row.model)?;
    writer.raw(",\"spend\":");
    writer.amount(row.spend);
    writer.raw(",\"api_key\":");
    writer.value(&row.api_key)?;
    writer.raw(",\"total_tokens\":");
    writer.integer(row.total_tokens);
    writer.raw("}");
    Ok(())
}

/// Writes the keys of a report while the rows arrive, the key with the largest spend first.
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
        let mut open: Option<String> = None;
        if let Some(snapshot) = snapshot {
            let request = keys_request(range, api_key, user_id);
            let all = days::whole(reading.copying(), &state.words, snapshot, request).await?;
            writer.raw("[");
            for piece in write_keys(&mut writer, all) {
                yield piece;
            }
            writer.raw("]");
            reading.finish().await?;
            yield writer.take();
            return;
        }
        {
            let mut rows = report::by_key(reading.connection(), range, api_key, user_id);
            while let Some(row) = rows.try_next().await? {
                if open.as_ref() == Some(&row.api_key) {
                    writer.raw(",");
                } else {
                    writer.raw(if open.is_some() { "]},{" } else { "[{" });
                    writer.raw("\"api_key\":");
                    writer.value(&row.api_key)?;
                    writer.raw(",\"total_cost\":");
                    writer.amount(row.key_spend);
                    writer.raw(",\"total_input_tokens\":");
                    writer.integer(row.key_prompt_tokens);
                    writer.raw(",\"total_output_tokens\":");
                    writer.integer(row.key_completion_tokens);
                    writer.raw(",\"model_details\":[");
                    open = Some(row.api_key);
                }
                writer.raw("{\"model\":");
                writer.value(&row.model)?;
                writer.raw(",\"total_cost\":");
                writer.amount(row.spend);
                writer.raw(",\"total_input_tokens\":");
                writer.integer(row.prompt_tokens);
                writer.raw(",\"total_output_tokens\":");
                writer.integer(row.completion_tokens);
                writer.raw("}");
                if let Some(piece) = writer.piece() {
                    yield piece;
                }
            }
        }
        reading.finish().await?;
        writer.raw(if open.is_some() { "]}]" } else { "[]" });
        yield writer.take();
    }
}
