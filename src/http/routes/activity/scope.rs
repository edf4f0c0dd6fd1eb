//! Translates a request for activity into a filter on the daily tables: checks the parameters and restricts the rows to
//! those that the caller may see. Bad dates are refused before anything is read, and before rows that the caller may
//! not see are refused.

use axum::http::StatusCode;
use chrono::{DateTime, NaiveDate, Utc};
use serde_json::{Map, json};

use crate::http::error::ApiError;
use crate::http::extract::{FromQuery, QueryReader};
use crate::http::routes::activity::daily::{Entities, date_range, extend_to_today, key_of_bucket, visible_user};
use crate::identity::{Caller, Role};
use crate::store::Connection;
use crate::store::activity::{ActivityFilter, DailyTable};
use crate::store::team_views;

/// Maximum length of the range of an unpaged response, in days: LiteLLM's limit.
const MAX_DAYS: i64 = 400;

/// Members of a team may see all its activity if the team's permissions contain this value.
const PERMISSION: &str = "/team/daily/activity";

/// Parameters of a user's activity.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UserActivityParams {
    /// Start date in YYYY-MM-DD format
    pub start_date: Option<String>,
    /// End date in YYYY-MM-DD format
    pub end_date: Option<String>,
    /// Filter by specific model
    model: Option<String>,
    /// Filter by specific API key (its SHA-256; `unattributed` for rows without one)
    api_key: Option<String>,
    /// Filter by specific user; users who are not admins may give only their own ID
    user_id: Option<String>,
    /// Offset between UTC and the caller's time zone in minutes, as JavaScript's getTimezoneOffset returns it
    timezone: Option<i64>,
    /// With timezone: a range that ends today in the caller's time zone also covers today in UTC
    #[param(required = false, default = false)]
    include_current_utc_day: bool,
}

impl FromQuery for UserActivityParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self {
            start_date: reader.text("start_date"),
            end_date: reader.text("end_date"),
            model: reader.text("model"),
            api_key: reader.text("api_key"),
            user_id: reader.text("user_id"),
            timezone: reader.optional_integer("timezone", i64::MIN, i64::MAX),
            include_current_utc_day: reader.boolean("include_current_utc_day", false),
        }
    }
}

/// Parameters of teams' activity.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TeamActivityParams {
    /// Comma-separated team IDs; default: all teams that the caller may see
    team_ids: Option<String>,
    /// Start date in YYYY-MM-DD format
    pub start_date: Option<String>,
    /// End date in YYYY-MM-DD format
    pub end_date: Option<String>,
    /// Filter by specific model
    model: Option<String>,
    /// Filter by specific API key (its SHA-256; `unattributed` for rows without one)
    api_key: Option<String>,
    /// Comma-separated team IDs to leave out
    exclude_team_ids: Option<String>,
    /// Accepted as in LiteLLM, but has no effect: days are UTC
    #[expect(dead_code, reason = "checked, and without effect")]
    timezone: Option<i64>,
}

impl FromQuery for TeamActivityParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self {
            team_ids: reader.text("team_ids"),
            start_date: reader.text("start_date"),
            end_date: reader.text("end_date"),
            model: reader.text("model"),
            api_key: reader.text("api_key"),
            exclude_team_ids: reader.text("exclude_team_ids"),
            timezone: reader.optional_integer("timezone", i64::MIN, i64::MAX),
        }
    }
}

/// Parameters of tags' activity.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TagActivityParams {
    /// Start date in YYYY-MM-DD format
    start_date: Option<String>,
    /// End date in YYYY-MM-DD format
    end_date: Option<String>,
    /// Filter by specific model
    model: Option<String>,
    /// Filter by specific API key (its SHA-256; `unattributed` for rows without one)
    api_key: Option<String>,
    /// Comma-separated tags; default: all
    tags: Option<String>,
    /// Accepted as in LiteLLM, but has no effect: days are UTC
    #[expect(dead_code, reason = "checked, and without effect")]
    timezone: Option<i64>,
}

impl FromQuery for TagActivityParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self {
            start_date: reader.text("start_date"),
            end_date: reader.text("end_date"),
            model: reader.text("model"),
            api_key: reader.text("api_key"),
            tags: reader.text("tags"),
            timezone: reader.optional_integer("timezone", i64::MIN, i64::MAX),
        }
    }
}

/// Limits the number of keys that a response lists.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TopKeysParams {
    /// Maximum number of keys to list; those with the largest spend are listed
    #[param(required = false, default = 100, minimum = 1, maximum = 1000)]
    pub api_key_limit: i64,
}

impl FromQuery for TopKeysParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { api_key_limit: reader.integer("api_key_limit", 100, 1, 1000) }
    }
}

/// Parameters that select a page of keys.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct KeyPageParams {
    /// Number of keys to skip
    #[param(required = false, default = 0, minimum = 0)]
    pub offset: i64,
    /// Maximum number of keys
    #[param(required = false, default = 50, minimum = 1, maximum = 100)]
    pub limit: i64,
}

impl FromQuery for KeyPageParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { offset: reader.integer("offset", 0, 0, i64::MAX), limit: reader.integer("limit", 50, 1, 100) }
    }
}

/// Parameters that select a page of users.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UserPageParams {
    /// Number of users to skip
    #[param(required = false, default = 0, minimum = 0)]
    pub offset: i64,
    /// Maximum number of users
    #[param(required = false, default = 50, minimum = 1, maximum = 100)]
    pub limit: i64,
}

impl FromQuery for UserPageParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        let KeyPageParams { offset, limit } = KeyPageParams::from_query(reader);
        Self { offset, limit }
    }
}

/// Parameters that select the keys of a model.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ModelKeysParams {
    /// Name of the model
    #[param(min_length = 1)]
    pub model_group: String,
    /// Whether model_group is a public model name
    #[param(required = false, default = true)]
    pub by_model_group: bool,
    /// Maximum number of keys
    #[param(required = false, default = 5, minimum = 1, maximum = 100)]
    pub limit: i64,
}

impl FromQuery for ModelKeysParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self {
            model_group: reader.required_text("model_group"),
            by_model_group: reader.boolean("by_model_group", true),
            limit: reader.integer("limit", 5, 1, 100),
        }
    }
}

/// Parses both dates. 400 if one is missing or invalid, if the end is before the start, or if the range exceeds 400
/// days.
pub fn limited_range(start: Option<&str>, end: Option<&str>) -> Result<(NaiveDate, NaiveDate), ApiError> {
    let (start, end) = date_range(start, end)?;
    if (end - start).num_days() > MAX_DAYS {
        let message = format!("Date range must be at most {MAX_DAYS} days");
        return Err(ApiError::nested(StatusCode::BAD_REQUEST, message));
    }
    Ok((start, end))
}

/// Filter for the activity of a user, or of all users if an admin names none.
pub fn of_user(
    caller: &Caller,
    params: UserActivityParams,
    now: DateTime<Utc>,
    limited: bool,
) -> Result<ActivityFilter, ApiError> {
    let check = if limited { limited_range } else { date_range };
    let (start, end) = check(params.start_date.as_deref(), params.end_date.as_deref())?;
    let user_id = visible_user(caller, params.user_id.as_deref(), true)?;
    let zone = params.timezone.filter(|_| params.include_current_utc_day);
    Ok(ActivityFilter {
        table: DailyTable::User,
        start: start.to_string(),
        end: extend_to_today(end, zone, now).to_string(),
        entities: user_id.map(|user_id| vec![user_id]),
        excluded: Vec::new(),
        api_keys: selected_key(params.api_key.as_deref()).map(|key| vec![key]),
        model: params.model,
        summed: Vec::new(),
        members_are_complete: false,
    })
}

/// Filter for the activity of teams, with the days still unset, and the metadata of the teams.
pub async fn of_teams(
    connection: &mut Connection,
    caller: &Caller,
    params: TeamActivityParams,
) -> Result<(ActivityFilter, Entities), ApiError> {
    let admin = caller.role.sees_everything();
    let mut teams = list(params.team_ids.as_deref());
    if !admin {
        teams = Some(own_teams(connection, caller, teams).await?);
    }
    let named = teams.as_deref().filter(|teams| !teams.is_empty());
    let views = team_views::views(connection, named, caller.user_id.as_deref(), PERMISSION).await?;
    // If the caller may not see everything of some of these teams, the caller sees only their own keys, in all of these
    // teams.
    let narrowed = !admin && named.is_some() && views.iter().any(|view| !view.sees_all);
    let own_keys = match caller.user_id.as_deref().filter(|_| narrowed) {
        Some(user_id) => Some(team_views::keys_of_user(connection, user_id).await?),
        None => None,
    };
    let filter = ActivityFilter {
        table: DailyTable::Team,
        start: String::new(),
        end: String::new(),
        entities: teams,
        excluded: list(params.exclude_team_ids.as_deref()).unwrap_or_default(),
        api_keys: narrow(selected_key(params.api_key.as_deref()), own_keys),
        model: params.model,
        summed: Vec::new(),
        members_are_complete: false,
    };
    let metadata = |alias| Map::from_iter([("team_alias".to_owned(), json!(alias))]);
    Ok((filter, views.into_iter().map(|view| (view.team_id, metadata(view.team_alias))).collect()))
}

/// The requested teams, or all of the caller's teams. 404 if one of them is not the caller's.
async fn own_teams(
    connection: &mut Connection,
    caller: &Caller,
    asked: Option<Vec<String>>,
) -> Result<Vec<String>, ApiError> {
    let refuse = |message: String| ApiError::nested(StatusCode::NOT_FOUND, message);
    let own = match caller.user_id.as_deref() {
        Some(user_id) => team_views::teams_of_user(connection, user_id).await?,
        None => None,
    };
    let Some(own) = own else {
        return Err(refuse("The key's user does not exist".to_owned()));
    };
    let Some(asked) = asked else { return Ok(own) };
    match asked.iter().find(|team| !own.contains(team)) {
        Some(team) => Err(refuse(format!("User does not belong to Team= {team}"))),
        None => Ok(asked),
    }
}

/// Filter for the activity of tags.
pub async fn of_tags(
    connection: &mut Connection,
    caller: &Caller,
    params: TagActivityParams,
) -> Result<ActivityFilter, ApiError> {
    let (start, end) = limited_range(params.start_date.as_deref(), params.end_date.as_deref())?;
    let own_keys = match (caller.role, caller.user_id.as_deref()) {
        (Role::Admin | Role::AdminViewer, _) => None,
        (_, user_id) => {
            let mut keys = vec![caller.key_hash.clone()];
            if let Some(user_id) = user_id {
                keys.extend(team_views::keys_of_user(connection, user_id).await?);
            }
            Some(keys)
        }
    };
    Ok(ActivityFilter {
        table: DailyTable::Tag,
        start: start.to_string(),
        end: end.to_string(),
        entities: list(params.tags.as_deref()),
        excluded: Vec::new(),
        api_keys: narrow(selected_key(params.api_key.as_deref()), own_keys),
        model: params.model,
        summed: Vec::new(),
        members_are_complete: false,
    })
}

/// Splits a comma-separated list; `None` if it is empty.
fn list(text: Option<&str>) -> Option<Vec<String>> {
    text.filter(|text| !text.is_empty()).map(|text| text.split(',').map(str::to_owned).collect())
}

/// Converts a key's name in reports to the value of `api_key` in the daily tables.
fn selected_key(name: Option<&str>) -> Option<String> {
    name.filter(|name| !name.is_empty()).map(key_of_bucket)
}

/// The keys to read: the requested key, if the caller may see it, or all that the caller may see.
fn narrow(selected: Option<String>, own: Option<Vec<String>>) -> Option<Vec<String>> {
    match (selected, own) {
        (Some(key), Some(own)) if !own.contains(&key) => Some(Vec::new()),
        (Some(key), _) => Some(vec![key]),
        (None, own) => own,
    }
}
