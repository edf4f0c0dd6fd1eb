//! The lists of users, keys and teams that the dashboard shows, in pages. Callers other than admins and admin viewers
//! see only their own rows.

use std::collections::BTreeMap;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{FromQuery, Query, QueryReader};
use crate::http::reads::Reads;
use crate::http::routes::dates::{DaysParams, not_a_day, parse_day};
use crate::http::routes::log::search_text;
use crate::http::routes::page_count::page_count;
use crate::http::state::AppState;
use crate::identity::{Caller, key_filter};
use crate::store::accounts;
use crate::store::accounts::Row;
use crate::store::accounts::lists as store;
use crate::store::accounts::lists::{Filter, Page, Sort};
use crate::store::database;

/// Most rows of a page.
const PAGE_LIMIT: i64 = 1000;

/// The parameters of all lists. Each list uses some of them.
#[derive(Debug)]
pub(super) struct ListParams {
    page: i64,
    size: i64,
    filter: Filter,
    sort_by: Option<String>,
    descending: bool,
    deleted: bool,
}

impl FromQuery for ListParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        let mut text = |name: &str| reader.text(name).filter(|text| !text.is_empty());
        let ids = text("user_ids").map(|ids| ids.split(',').map(|id| id.trim().to_owned()).collect());
        let filter = Filter {
            user_id: text("user_id"),
            user_ids: ids,
            user_email: text("user_email"),
            user_role: text("role"),
            team_id: text("team_id").or_else(|| text("team")),
            team_alias: text("team_alias").or_else(|| text("search")),
            organization_id: text("organization_id"),
            key_alias: text("key_alias"),
            token: text("key_hash").map(|key| key_filter(&key)),
            only_of_user: None,
        };
        let (sort_by, status) = (text("sort_by"), text("status"));
        let descending = text("sort_order").is_none_or(|order| !order.eq_ignore_ascii_case("asc"));
        let size =
            reader.optional_integer("size", 1, PAGE_LIMIT).or(reader.optional_integer("page_size", 1, PAGE_LIMIT));
        Self {
            page: reader.integer("page", 1, 1, 1_000_000),
            size: size.unwrap_or(25),
            filter,
            sort_by,
            descending,
            deleted: status.as_deref() == Some("deleted"),
        }
    }
}

impl ListParams {
    /// Answers 400 if a search string is too long.
    fn check(&self) -> Result<(), ApiError> {
        let Filter { user_id, user_email, team_alias, key_alias, .. } = &self.filter;
        search_text::check(&[
            ("user_id", user_id.as_deref()),
            ("user_email", user_email.as_deref()),
            ("team_alias or search", team_alias.as_deref()),
            ("key_alias", key_alias.as_deref()),
        ])
    }

    fn page(&self) -> Page {
        Page { offset: (self.page - 1) * self.size, limit: self.size }
    }

    fn sort(&self) -> Sort<'_> {
        Sort { by: self.sort_by.as_deref(), descending: self.descending }
    }

    fn pages(&self, total: i64) -> i64 {
        page_count(total, self.size)
    }
}

/// `GET /management/v1/users/me`: the caller's user id, role and email.
pub(super) async fn get_caller(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, ApiError> {
    let mut connection = database::acquire(&state.pool).await?;
    let user_id = caller.user_id.unwrap_or_default();
    let user = accounts::find_user(&mut connection, &user_id).await?;
    let email = user.as_ref().and_then(|user| user.get("user_email").cloned());
    Ok(Json(json!({ "user_id": user_id, "user_role": caller.role_name, "user_email": email })))
}

/// The parameters of routes that show a single user or team.
pub(super) struct OneParams {
    user_id: Option<String>,
    team_id: Option<String>,
}

impl FromQuery for OneParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { user_id: reader.text("user_id"), team_id: reader.text("team_id") }
    }
}

/// `GET /v2/user/info`: a user, without keys and teams. Callers other than admins and admin viewers can see only their
/// own user.
pub(super) async fn get_user(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(params): Query<OneParams>,
) -> Result<Json<Row>, ApiError> {
    let own = caller.user_id.clone().unwrap_or_default();
    let user_id = params.user_id.filter(|id| !id.is_empty()).unwrap_or_else(|| own.clone());
    if !caller.role.sees_everything() && user_id != own {
        return Err(ApiError::forbidden("You can only see your own user."));
    }
    let mut connection = database::acquire(&state.pool).await?;
    let missing = || ApiError::detail(StatusCode::NOT_FOUND, "User not found");
    if user_id.is_empty() {
        return Err(missing());
    }
    let mut user = match accounts::find_user(&mut connection, &user_id).await? {
        Some(user) => user,
        // The master key's user may have no row in the database.
        None if caller.stands_for_master() && user_id == own => {
            let fields = json!({ "user_id": user_id, "user_role": caller.role_name, "spend": 0, "metadata": {} });
            accounts::user_without_row(&mut connection, &fields).await?
        }
        None => return Err(missing()),
    };
    user.insert("object_permission".into(), Value::Null);
    user.insert("model_max_budget_usage".into(), json!({}));
    Ok(Json(user))
}

/// `GET /user/list`: a page of users.
pub(super) async fn list_users(
    State(state): State<AppState>,
    Query(params): Query<ListParams>,
) -> Result<Json<Value>, ApiError> {
    params.check()?;
    let mut connection = database::acquire(&state.pool).await?;
    let (users, total) = store::users(&mut connection, &params.filter, params.sort(), params.page()).await?;
    Ok(Json(json!({ "users": users, "total": total, "page": params.page, "page_size": params.size,
                    "total_pages": params.pages(total) })))
}

/// `GET /user/available_users`: the numbers of users and teams. Neither is limited.
pub(super) async fn count_users(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let mut connection = database::acquire(&state.pool).await?;
    let (users, teams) = store::counts(&mut connection).await?;
    Ok(Json(json!({ "total_users": null, "total_teams": null, "total_users_used": users, "total_teams_used": teams,
                    "total_teams_remaining": null, "total_users_remaining": null })))
}

/// `GET /key/list`: a page of keys, without the keys of sessions.
pub(super) async fn list_keys(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(params): Query<ListParams>,
) -> Result<Json<Value>, ApiError> {
    params.check()?;
    let mut connection = database::acquire(&state.pool).await?;
    let filter = Filter { only_of_user: caller.own_rows_only().map(str::to_owned), ..params.filter.clone() };
    let found = if params.deleted {
        store::deleted_keys(&mut connection, &filter, params.page()).await?
    } else {
        store::keys(&mut connection, &filter, params.sort(), params.page()).await?
    };
    let (keys, total) = found;
    Ok(Json(
        json!({ "keys": keys, "total_count": total, "current_page": params.page, "total_pages": params.pages(total) }),
    ))
}

/// `GET /v2/team/list`: a page of teams.
pub(super) async fn list_teams(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(params): Query<ListParams>,
) -> Result<Json<Value>, ApiError> {
    params.check()?;
    let mut connection = database::acquire(&state.pool).await?;
    let (page, size) = (params.page, params.size);
    let (teams, total) = if params.deleted {
        // litespend does not delete teams.
        (Vec::new(), 0)
    } else {
        let filter = Filter { only_of_user: caller.own_rows_only().map(str::to_owned), ..params.filter.clone() };
        store::teams(&mut connection, &filter, params.sort(), params.page()).await?
    };
    Ok(Json(
        json!({ "teams": teams, "total": total, "page": page, "page_size": size, "total_pages": params.pages(total) }),
    ))
}

/// `GET /team/info`: a team with its keys and memberships. Callers other than admins and admin viewers can see only
/// their own teams.
pub(super) async fn get_team(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(params): Query<OneParams>,
) -> Result<Json<Value>, ApiError> {
    let team_id = params.team_id.unwrap_or_default();
    let mut connection = database::acquire(&state.pool).await?;
    let missing = || {
        ApiError::detail(
            StatusCode::NOT_FOUND,
            json!({ "message": format!("Team not found, passed team id: {team_id}.") }).to_string(),
        )
    };
    let mut team = store::team(&mut connection, &team_id, caller.own_rows_only()).await?.ok_or_else(missing)?;
    let keys = team.remove("keys").unwrap_or_default();
    let memberships = team.remove("team_memberships").unwrap_or_default();
    for name in [
        "team_member_budget_table",
        "access_group_models",
        "organization_models",
        "litellm_model_table",
        "object_permission",
    ] {
        team.insert(name.into(), Value::Null);
    }
    team.insert("model_max_budget_usage".into(), json!({}));
    let edit = if caller.role == crate::identity::Role::Admin { "unrestricted" } else { "none" };
    team.insert("caller_edit_access".into(), json!({ "kind": edit }));
    Ok(Json(json!({ "team_id": team_id, "team_info": team, "keys": keys, "team_memberships": memberships })))
}

/// `GET /gateway/daily/activity`: the numbers of successful and failed calls, by day and by route. LiteLLM counts the
/// requests that it receives; litespend counts the calls that were booked.
pub(super) async fn count_calls(
    reads: Reads,
    Extension(caller): Extension<Caller>,
    Query(days): Query<DaysParams>,
) -> Result<Json<Value>, ApiError> {
    let day = |name: &str, text: Option<String>| {
        let text = text.unwrap_or_default();
        parse_day(&text).ok_or_else(|| ApiError::bad_request(ErrorType::BadRequest, not_a_day(name)))
    };
    let (start, end) = (day("start_date", days.start_date)?, day("end_date", days.end_date)?);
    let mut reading = reads.start().await?;
    let connection = reading.connection();
    let calls = store::calls(connection, &start.to_string(), &end.to_string(), caller.own_rows_only()).await?;
    let (mut dates, mut routes) = (BTreeMap::<&str, [i64; 2]>::new(), BTreeMap::<&str, [i64; 2]>::new());
    let mut total = [0, 0];
    for row in &calls {
        for sums in [&mut total, dates.entry(&row.date).or_default(), routes.entry(&row.route).or_default()] {
            let [successful, failed] = sums;
            *successful += row.successful;
            *failed += row.failed;
        }
    }
    let [successful, failed] = total;
    let by_date: Vec<Value> = dates
        .into_iter()
        .map(|(date, [ok, bad])| json!({ "date": date, "successful_requests": ok, "failed_requests": bad }))
        .collect();
    let by_route: Vec<Value> = routes
        .into_iter()
        .map(|(route, [ok, bad])| {
            json!({ "category": "llm_api", "route": route, "successful_requests": ok, "failed_requests": bad })
        })
        .collect();
    Ok(Json(json!({ "total_successful_requests": successful, "total_failed_requests": failed, "by_date": by_date,
                    "by_route": by_route, "by_status_code": [] })))
}
