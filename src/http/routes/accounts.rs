//! Management of keys, teams and users with LiteLLM's paths and formats, as far as a script needs it: `/key/...`,
//! `/team/...` and `/user/...`. For admins only. Responses leave out LiteLLM's fields for which litespend has no value.

mod answers;
pub mod tables;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde_json::{Map, Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::accounts;
use crate::accounts::{Fields, LITELLM_OWNS};
use crate::http::auth::grant;
use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{FromQuery, JsonObject, Query, QueryReader};
use crate::http::openapi::base::MANAGEMENT_TAG;
use crate::http::state::AppState;
use crate::identity::{Caller, key_filter};
use crate::store::accounts as store;
use crate::store::accounts::{Conflict, DeletedBy, Row, TeamsOf, text};
use crate::store::database;
use crate::store::database::DatabaseKind;

/// The routes of this file and of the files below it.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(generate_key))
        .routes(routes!(delete_keys))
        .routes(routes!(block_key))
        .routes(routes!(unblock_key))
        .routes(routes!(get_key_info))
        .routes(routes!(create_team))
        .routes(routes!(list_teams))
        .routes(routes!(create_user))
        .routes(routes!(get_user_info))
        .merge(tables::routes())
}

/// Maximum number of teams, and of keys, in one response.
const MAX: i64 = 10_000;

/// A row of LiteLLM's tables with all columns.
type RowResponse = Json<Row>;

/// A connection for a change. 409 if LiteLLM owns the tables, unless the settings let litespend manage LiteLLM's keys.
pub(crate) async fn for_change(state: &AppState) -> Result<crate::store::PooledConnection, ApiError> {
    let mut connection = database::acquire(&state.pool).await?;
    if !state.settings.manage_litellm_keys && database::kind(&mut connection).await? == DatabaseKind::LiteLlm {
        return Err(ApiError::nested(StatusCode::CONFLICT, LITELLM_OWNS));
    }
    Ok(connection)
}

fn refusal(conflict: Conflict, id: &str) -> ApiError {
    match conflict {
        Conflict::Token => ApiError::bad_request(ErrorType::BadRequest, "The key already exists."),
        Conflict::Alias => ApiError::Refused {
            status: StatusCode::BAD_REQUEST,
            kind: ErrorType::AliasTaken,
            message: format!("Key with alias '{id}' already exists. Unique key aliases across all keys are required."),
            param: Some("key_alias".into()),
        },
        Conflict::NoTeam => ApiError::nested(StatusCode::NOT_FOUND, "The team does not exist."),
        Conflict::Id => invalid(StatusCode::CONFLICT, format!("User with id {id} already exists")),
        Conflict::Email => invalid(StatusCode::CONFLICT, format!("User with email {id} already exists")),
    }
}

fn invalid(status: StatusCode, message: impl Into<String>) -> ApiError {
    ApiError::Refused { status, kind: ErrorType::InvalidRequest, message: message.into(), param: None }
}

fn not_found(message: &str) -> ApiError {
    ApiError::Refused {
        status: StatusCode::NOT_FOUND,
        kind: ErrorType::NotFound,
        message: message.into(),
        param: Some("key".into()),
    }
}

/// Name of the caller, for columns such as `created_by` and `updated_by`.
fn name_of(caller: &Caller) -> &str {
    caller.user_id.as_deref().unwrap_or(&caller.key_hash)
}

/// Creates a key.
///
/// The response is the only place that contains the raw key: the database stores only its hash.
#[utoipa::path(post, path = "/key/generate", tag = MANAGEMENT_TAG, operation_id = "generate_key",
    request_body(content = Object, description = "`key_alias`, `user_id`, `team_id`, \
    `organization_id`, `duration` (`30d`), `models`, `allowed_routes`, `key_type`, `max_budget`, `metadata`, \
    `permissions`, `blocked`, `key`; all optional"),
    responses((status = 200, description = "The key", body = Object),
              (status = 409, description = "LiteLLM owns the database")))]
async fn generate_key(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonObject(body): JsonObject,
) -> Result<RowResponse, ApiError> {
    let mut fields = Fields::new(body);
    let (key, raw) = accounts::new_key(&mut fields, name_of(&caller), state.clock.now());
    let mut key = fields.finish(key).map_err(ApiError::Validation)?;
    refuse_master_key(&state, &raw)?;
    let mut connection = for_change(&state).await?;
    grant::check_key(&mut connection, &caller, &mut key).await?;
    let created = store::create_key(&mut connection, &key).await?;
    let row = created.map_err(|conflict| refusal(conflict, key.key_alias.as_deref().unwrap_or_default()))?;
    // The key cache remembers unknown keys for a while, so the entry is removed.
    state.keys.forget(&key.token).await;
    Ok(Json(answers::new_key(row, &raw)))
}

/// Refuses to store the master key as a virtual key, because it would stay valid after the master key is changed.
fn refuse_master_key(state: &AppState, raw: &str) -> Result<(), ApiError> {
    if state.keys.is_master(raw) { Err(refusal(Conflict::Token, "")) } else { Ok(()) }
}

/// Deletes keys, given as raw keys, hashes or aliases. If one of them does not exist, deletes none.
#[utoipa::path(post, path = "/key/delete", tag = MANAGEMENT_TAG, operation_id = "delete_keys",
    request_body(content = crate::http::openapi::bodies::KeysRequest),
    responses((status = 200, description = "Deleted", body = Object),
              (status = 404, description = "One of the keys does not exist")))]
async fn delete_keys(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonObject(body): JsonObject,
) -> Result<RowResponse, ApiError> {
    let mut fields = Fields::new(body);
    let (keys, aliases) = (fields.texts("keys"), fields.texts("key_aliases"));
    if keys.is_empty() && aliases.is_empty() {
        fields.reject_whole("At least one of 'keys' or 'key_aliases' must be provided.");
    }
    fields.finish(()).map_err(ApiError::Validation)?;
    let mut connection = for_change(&state).await?;
    let mut tokens: Vec<String> = keys.iter().map(|key| key_filter(key)).collect();
    let of_aliases = store::tokens_of_aliases(&mut connection, &aliases).await?;
    let missing_alias = of_aliases.len() < aliases.len();
    tokens.extend(of_aliases);
    let by = DeletedBy { user: name_of(&caller), key: Some(&caller.key_hash) };
    if missing_alias || !store::delete_keys(&mut connection, &tokens, by).await? {
        return Err(invalid(StatusCode::NOT_FOUND, "Some of the keys do not exist. No key was deleted."));
    }
    for token in &tokens {
        state.keys.forget(token).await;
    }
    let deleted: Vec<String> = keys.into_iter().chain(aliases).collect();
    Ok(Json(Map::from_iter([("deleted_keys".to_owned(), json!(deleted))])))
}

/// Blocks a key, given as a raw key or a hash.
#[utoipa::path(post, path = "/key/block", tag = MANAGEMENT_TAG, operation_id = "block_key",
    request_body(content = crate::http::openapi::bodies::KeyRequest),
    responses((status = 200, description = "The key", body = Object),
              (status = 404, description = "There is no such key")))]
async fn block_key(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonObject(body): JsonObject,
) -> Result<RowResponse, ApiError> {
    let row = set_blocked(&state, &caller, body, true).await?;
    Ok(Json(answers::blocked_key(row)))
}

/// Unblocks a key, given as a raw key or a hash.
#[utoipa::path(post, path = "/key/unblock", tag = MANAGEMENT_TAG, operation_id = "unblock_key",
    request_body(content = crate::http::openapi::bodies::KeyRequest),
    responses((status = 200, description = "The key", body = Object),
              (status = 404, description = "There is no such key")))]
async fn unblock_key(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonObject(body): JsonObject,
) -> Result<RowResponse, ApiError> {
    set_blocked(&state, &caller, body, false).await.map(Json)
}

async fn set_blocked(
    state: &AppState,
    caller: &Caller,
    body: Map<String, Value>,
    blocked: bool,
) -> Result<Row, ApiError> {
    let mut fields = Fields::new(body);
    let key = fields.required_text("key");
    let token = key_filter(&fields.finish(key).map_err(ApiError::Validation)?);
    let mut connection = for_change(state).await?;
    if !blocked {
        grant::check_unblock(&mut connection, caller, &token).await?;
    }
    let row = store::set_blocked(&mut connection, &token, blocked).await?;
    state.keys.forget(&token).await;
    row.ok_or_else(|| not_found("Key not found."))
}

/// Parameters of `/key/info`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct KeyInfoParams {
    /// The key, as a hash (preferred) or raw; default: the caller's own key
    key: Option<String>,
}

impl FromQuery for KeyInfoParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { key: reader.text("key") }
    }
}

/// Returns the row of a key, which may be a deleted one.
#[utoipa::path(get, path = "/key/info", tag = MANAGEMENT_TAG, operation_id = "get_key_info",
    params(KeyInfoParams),
    responses((status = 200, description = "The key", body = Object),
              (status = 404, description = "There is no such key")))]
async fn get_key_info(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(params): Query<KeyInfoParams>,
) -> Result<RowResponse, ApiError> {
    let key = params.key.filter(|key| !key.is_empty()).unwrap_or_else(|| caller.key_hash.clone());
    let mut connection = database::acquire(&state.pool).await?;
    let found = store::find_key(&mut connection, &key_filter(&key)).await?;
    let mut row = found.ok_or_else(|| not_found("Key not found in database"))?;
    row.remove("token");
    let now = state.clock.now().format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
    let status = match (row.contains_key("deleted_at"), row.get("blocked"), text(&row, "expires")) {
        (true, ..) => "deleted",
        (false, Some(Value::Bool(true)), _) => "revoked",
        (false, _, expires) if !expires.is_empty() && expires < now.as_str() => "expired",
        _ => "active",
    };
    row.insert("status".into(), status.into());
    if status == "deleted" {
        // LiteLLM's answer has both names of the organization then, one of them always empty.
        row.insert("org_id".into(), Value::Null);
    }
    // A raw key is shortened in the response, because responses may be logged where requests are not.
    let shown = if key.starts_with("sk-") { accounts::shortened(&key) } else { key };
    Ok(Json(Map::from_iter([("key".to_owned(), shown.into()), ("info".to_owned(), Value::Object(row))])))
}

/// Creates a team with its members. The caller becomes an admin of the team.
#[utoipa::path(post, path = "/team/new", tag = MANAGEMENT_TAG, operation_id = "create_team",
    request_body(content = Object, description = "`team_alias`, `team_id`, \
    `organization_id`, `members_with_roles`, `models`, `max_budget`, `metadata`, `blocked`; all optional"),
    responses((status = 200, description = "The team", body = Object),
              (status = 400, description = "The id is taken"),
              (status = 409, description = "LiteLLM owns the database")))]
async fn create_team(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonObject(body): JsonObject,
) -> Result<RowResponse, ApiError> {
    let id_is_given = body.get("team_id").is_some_and(|id| !id.is_null());
    let mut fields = Fields::new(body);
    let team = accounts::new_team(&mut fields);
    let mut team = fields.finish(team).map_err(ApiError::Validation)?;
    let mut connection = for_change(&state).await?;
    grant::check_team(&mut connection, &caller, &team, id_is_given).await?;
    accounts::add_creator(&mut team, caller.user_id.as_deref());
    let created = store::create_team(&mut connection, &team).await?;
    state.keys.forget_all();
    let is_taken = |_| {
        let message = format!("Team id = {} already exists. Please use a different team id.", team.team_id);
        invalid(StatusCode::BAD_REQUEST, message)
    };
    Ok(Json(created.map_err(is_taken)?))
}

/// Parameters of `/team/list` and `/user/info`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UserParams {
    /// User ID. `/team/list`: only teams with this member. `/user/info`: this user; default: the caller, with all keys
    /// and teams
    user_id: Option<String>,
}

impl FromQuery for UserParams {
    fn from_query(reader: &mut QueryReader) -> Self {
        Self { user_id: reader.text("user_id").filter(|user_id| !user_id.is_empty()) }
    }
}

/// Returns teams, newest first, with their keys and memberships. With `user_id`, returns the teams that list the user
/// as a member.
#[utoipa::path(get, path = "/team/list", tag = MANAGEMENT_TAG, operation_id = "list_teams",
    params(UserParams),
    responses((status = 200, description = "The teams", body = Vec<Object>)))]
async fn list_teams(
    State(state): State<AppState>,
    Query(params): Query<UserParams>,
) -> Result<Json<Vec<Row>>, ApiError> {
    let mut connection = database::acquire(&state.pool).await?;
    let whose = params.user_id.as_deref().map_or(TeamsOf::Everybody, TeamsOf::Member);
    Ok(Json(store::list_teams(&mut connection, whose, MAX).await?))
}

/// Creates a user and, unless `auto_create_key` is false, a key for the user.
#[utoipa::path(post, path = "/user/new", tag = MANAGEMENT_TAG, operation_id = "create_user",
    request_body(content = Object, description = "`user_id`, `user_email`, \
    `user_alias`, `user_role`, `teams`, `models`, `max_budget`, `metadata`, `auto_create_key`, `key_alias`, `duration`; \
    all optional"),
    responses((status = 200, description = "The user", body = Object),
              (status = 409, description = "The id or address is taken, or LiteLLM owns the database")))]
async fn create_user(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonObject(body): JsonObject,
) -> Result<RowResponse, ApiError> {
    // The new user's models and metadata are also those of the key.
    let mut of_key: Map<String, Value> = ["key_alias", "duration", "key", "models", "metadata"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), body.get(*name)?.clone())))
        .collect();
    // The key of a new user has no type.
    of_key.insert("key_type".into(), Value::Null);
    let names_teams = body.get("teams").is_some_and(|teams| !teams.is_null());
    let mut fields = Fields::new(body);
    let user = accounts::new_user(&mut fields);
    let wants_key = fields.boolean("auto_create_key").unwrap_or(true);
    let user = fields.finish(user).map_err(ApiError::Validation)?;
    of_key.insert("user_id".into(), user.user_id.as_str().into());
    let mut fields = Fields::new(of_key);
    let (key, raw) = accounts::new_key(&mut fields, name_of(&caller), state.clock.now());
    let mut key = fields.finish(key).map_err(ApiError::Validation)?;
    refuse_master_key(&state, &raw)?;

    let mut connection = for_change(&state).await?;
    grant::check_user(&mut connection, &caller, &user).await?;
    grant::check_key(&mut connection, &caller, &mut key).await?;
    let mut transaction = crate::store::begin(&mut connection).await?;
    let created = store::create_user(&mut transaction, &user).await?;
    let id = |conflict| {
        if conflict == Conflict::Email { user.user_email.as_deref().unwrap_or_default() } else { user.user_id.as_str() }
    };
    let row = created.map_err(|conflict| refusal(conflict, id(conflict)))?;
    let mut made = None;
    if wants_key {
        let created = store::create_key(&mut transaction, &key).await?;
        made = Some(created.map_err(|conflict| refusal(conflict, key.key_alias.as_deref().unwrap_or_default()))?);
    }
    transaction.commit().await?;
    state.keys.forget_all();
    Ok(Json(answers::new_user(row, names_teams, made.as_ref().map(|made| (made, raw.as_str())))))
}

/// Returns a user with their keys and teams. Without `user_id`, returns the caller, with all keys and teams.
#[utoipa::path(get, path = "/user/info", tag = MANAGEMENT_TAG, operation_id = "get_user_info",
    params(UserParams),
    responses((status = 200, description = "The user", body = Object),
              (status = 404, description = "There is no such user")))]
async fn get_user_info(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(params): Query<UserParams>,
) -> Result<RowResponse, ApiError> {
    let mut connection = database::acquire(&state.pool).await?;
    let asked = params.user_id.as_deref();
    let user_id = asked.map(str::to_owned).or(caller.user_id);
    let row = match &user_id {
        Some(user_id) => store::find_user(&mut connection, user_id).await?,
        None => None,
    };
    if let (Some(user_id), None) = (asked, &row) {
        return Err(invalid(StatusCode::NOT_FOUND, format!("User {user_id} not found")));
    }
    let keys = store::keys_of(&mut connection, asked, MAX).await?;
    let mut teams = store::list_teams(&mut connection, asked.map_or(TeamsOf::Everybody, TeamsOf::User), MAX).await?;
    if asked.is_none() {
        teams.sort_by(|one, other| store::text(one, "team_alias").cmp(store::text(other, "team_alias")));
    }
    let Value::Object(answer) = json!({"user_id": user_id, "user_info": row, "keys": keys, "teams": teams}) else {
        return Err(ApiError::Internal("an object is an object".into()));
    };
    Ok(Json(answer))
}
