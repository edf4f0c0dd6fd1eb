//! `GET /key/spend/report`, `/user/spend/report` and `/team/spend/report`: the caller's own spend by key and model.
//! Admins may request any key, user or team.

use axum::Extension;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::ApiError;
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::openapi::base::DASHBOARD_TAG;
use crate::http::reads::Reads;
use crate::http::routes::dates::DaysParams;
use crate::http::routes::log::params::parse_lenient_day;
use crate::http::state::AppState;
use crate::http::stream::writer::Writer;
use crate::identity::{Caller, key_filter};
use crate::store::DateRange;
use crate::store::Statement;
use crate::store::reading::Reading;
use crate::store::report::scoped;
use crate::store::report::scoped::{KeySpend, Spender};

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(get_key_report))
        .routes(routes!(get_user_report))
        .routes(routes!(get_team_report))
}

/// Maximum length of the range, in days: LiteLLM's limit.
const MAX_DAYS: i64 = 366;

/// Parses both dates of a report. 400 if one is missing or invalid, if the end is before the start, or if the range
/// exceeds 366 days.
fn range(days: &DaysParams) -> Result<DateRange, ApiError> {
    let refuse = |message: String| ApiError::detail(StatusCode::BAD_REQUEST, message);
    let (Some(start), Some(end)) = (&days.start_date, &days.end_date) else {
        return Err(refuse("Please provide start_date and end_date".to_owned()));
    };
    let (Some(start), Some(end)) = (parse_lenient_day(start), parse_lenient_day(end)) else {
        return Err(refuse("start_date and end_date must be in YYYY-MM-DD format".to_owned()));
    };
    if end < start {
        return Err(refuse("start_date must be on or before end_date".to_owned()));
    }
    if (end - start).num_days() > MAX_DAYS {
        return Err(refuse(format!("Date range too large; maximum is {MAX_DAYS} days")));
    }
    Ok(DateRange { start, end })
}

/// The key whose spend is reported.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct KeyParams {
    /// View spend for a specific api_key (its SHA-256, so that the key stays out of logs); admins only
    api_key: Option<String>,
}

impl FromQuery for KeyParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { api_key: reader.text("api_key") }
    }
}

/// The user whose spend is reported.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UserParams {
    /// View spend for a specific internal_user_id; admins only
    internal_user_id: Option<String>,
}

impl FromQuery for UserParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { internal_user_id: reader.text("internal_user_id") }
    }
}

/// The team whose spend is reported.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TeamParams {
    /// View spend for a specific team_id; admins only
    team_id: Option<String>,
}

impl FromQuery for TeamParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { team_id: reader.text("team_id") }
    }
}

/// Returns the spend of the calling key, by model. Admins may name any key.
#[utoipa::path(get, path = "/key/spend/report", tag = DASHBOARD_TAG,
    operation_id = "get_key_spend_report_key_spend_report_get", params(DaysParams, KeyParams),
    responses((status = 200, description = "The key, if it has spend", body = Vec<KeySpend>),
              (status = 400, description = "A missing or bad date, or over 366 days"),
              (status = 403, description = "Another key")))]
async fn get_key_report(
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query((days, params)): Query<(DaysParams, KeyParams)>,
) -> Result<Response, ApiError> {
    let range = range(&days)?;
    let asked = params.api_key.as_deref().map(key_filter);
    let key = resolve(&caller, asked, Some(&caller.key_hash), "api_key")?;
    respond(&reads, range, Spender::Key(key)).await
}

/// Returns the spend of the calling key's user, by key and model. Admins may name any user.
#[utoipa::path(get, path = "/user/spend/report", tag = DASHBOARD_TAG,
    operation_id = "get_user_spend_report_user_spend_report_get", params(DaysParams, UserParams),
    responses((status = 200, description = "Keys, largest spend first", body = Vec<KeySpend>),
              (status = 400, description = "A missing or bad date, over 366 days, or a key without a user"),
              (status = 403, description = "Another user")))]
async fn get_user_report(
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query((days, params)): Query<(DaysParams, UserParams)>,
) -> Result<Response, ApiError> {
    let range = range(&days)?;
    let user = resolve(&caller, params.internal_user_id, caller.user_id.as_deref(), "internal_user_id")?;
    respond(&reads, range, Spender::User(user)).await
}

/// Returns the spend of the calling key's team, by key and model. Admins may name any team.
#[utoipa::path(get, path = "/team/spend/report", tag = DASHBOARD_TAG,
    operation_id = "get_team_spend_report_team_spend_report_get", params(DaysParams, TeamParams),
    responses((status = 200, description = "Keys, largest spend first", body = Vec<KeySpend>),
              (status = 400, description = "A missing or bad date, over 366 days, or a key without a team"),
              (status = 403, description = "Another team")))]
async fn get_team_report(
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query((days, params)): Query<(DaysParams, TeamParams)>,
) -> Result<Response, ApiError> {
    let range = range(&days)?;
    let team = resolve(&caller, params.team_id, caller.team_id.as_deref(), "team_id")?;
    respond(&reads, range, Spender::Team(team)).await
}

/// The key, user or team whose spend is reported: the requested one, if the caller may see it, or else the caller's
/// own.
fn resolve(caller: &Caller, asked: Option<String>, own: Option<&str>, name: &str) -> Result<String, ApiError> {
    match (asked.filter(|asked| !asked.is_empty()), own) {
        (Some(asked), own) if own == Some(asked.as_str()) || caller.role.sees_everything() => Ok(asked),
        (Some(_), _) => {
            let message = format!("Not authorized to view spend for a {name} other than your own");
            Err(ApiError::detail(StatusCode::FORBIDDEN, message))
        }
        (None, Some(own)) => Ok(own.to_owned()),
        (None, None) => {
            let message = format!("No {name} associated with this API key; pass a {name} query param");
            Err(ApiError::detail(StatusCode::BAD_REQUEST, message))
        }
    }
}

async fn respond(reads: &Reads, range: DateRange, spender: Spender) -> Result<Response, ApiError> {
    let reading = reads.start().await?;
    reads.send(write(reading, range, spender), "application/json").await
}

fn write(mut reading: Reading, range: DateRange, spender: Spender) -> impl Stream<Item = Result<Bytes, ApiError>> {
    async_stream::try_stream! {
        let mut writer = Writer::new();
        writer.open_list();
        {
            let mut query = Statement::default();
            let mut rows = scoped::by_key(reading.connection(), &mut query, range, &spender).await?;
            while let Some(row) = rows.try_next().await? {
                writer.value(&row)?;
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
