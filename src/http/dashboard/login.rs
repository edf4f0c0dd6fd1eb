//! `POST /v2/login`: exchanges a password for a key that lasts at most a day, and returns it in a signed token, as the
//! dashboard expects.

use std::net::{IpAddr, Ipv4Addr};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::Header;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use subtle::ConstantTimeEq;

use crate::accounts;
use crate::http::auth::session;
use crate::http::client_ip;
use crate::http::dashboard::login_request;
use crate::http::dashboard::login_request::PublicOrigin;
use crate::http::dashboard::throttle::Attempt;
use crate::http::error::{ApiError, ErrorType};
use crate::http::routes::accounts::for_change;
use crate::http::state::AppState;
use crate::identity::Link;
use crate::identity::SESSION_LINK;
use crate::identity::SESSION_TEAM;
use crate::identity::{KeyRecord, MASTER_USER_ID, hash_key};
use crate::settings::UiSettings;
use crate::store::Connection;
use crate::store::accounts as store;
use crate::store::accounts::NewKey;
use crate::store::database;

/// How long a session lasts at most; it also ends when the key that opened it expires.
const SESSION: TimeDelta = TimeDelta::hours(24);

/// Largest body of a login, in bytes.
const BODY_LIMIT: usize = 16 * 1024;

#[derive(Deserialize)]
struct LoginRequest {
    username: String,
    password: String,
}

/// The claims of the token, the same as LiteLLM's.
#[derive(Serialize)]
struct Claims {
    user_id: String,
    key: String,
    user_email: Option<String>,
    user_role: String,
    login_method: &'static str,
    premium_user: bool,
    auth_header_name: &'static str,
    disabled_non_admin_personal_key_creation: bool,
    server_root_path: &'static str,
    password_reset_required: bool,
    exp: i64,
}

/// The user who has logged in, and the key that was used as the password.
struct Person {
    user_id: String,
    user_email: Option<String>,
    user_role: String,
    /// The key that opened the session; `None` for a login with the admin's password.
    key: Option<KeyRecord>,
}

/// Logs in with the admin's name and password (by default the master key), or with a user's id or email address and one
/// of that user's keys.
pub(super) async fn log_in(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let Some(ui) = &state.settings.ui else { return Err(ApiError::detail(StatusCode::NOT_FOUND, "Not Found")) };
    // All clients without a known address share one counter of attempts.
    let address = client_ip::of_request(&state.settings, &request).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let (parts, body) = request.into_parts();
    let origin = PublicOrigin::of(&state, &parts);
    login_request::check(&parts, &origin)?;
    let body = axum::body::to_bytes(body, BODY_LIMIT)
        .await
        .map_err(|_| ApiError::bad_request(ErrorType::BadRequest, "The request body is too large or incomplete."))?;
    let login: LoginRequest = serde_json::from_slice(&body).map_err(|_| {
        ApiError::bad_request(
            ErrorType::BadRequest,
            "Expected a JSON object with the strings `username` and `password`.",
        )
    })?;
    let person = admit(&state, ui, &login, &Attempt::new(address, &login.username)).await?;
    let (token, expires) = open_session(&state, person).await?;
    answer(&origin, &token, expires)
}

/// Counts the attempt, then checks the password.
async fn admit(state: &AppState, ui: &UiSettings, login: &LoginRequest, attempt: &Attempt) -> Result<Person, ApiError> {
    if let Err(wait) = state.logins.begin(attempt) {
        return Err(ApiError::TooManyRequests {
            message: "Too many failed logins with this username or from this IP address. Try again in five minutes.",
            seconds: wait.as_secs(),
        });
    }
    let checked = check(state, ui, login).await;
    match &checked {
        Ok(_) => state.logins.succeeded(attempt),
        Err(ApiError::Refused { .. }) => {}
        // A failure of the database says nothing about the password.
        Err(_) => state.logins.undo(attempt),
    }
    checked
}

/// Opens a session. Returns its token, and the time at which it ends.
async fn open_session(state: &AppState, person: Person) -> Result<(String, DateTime<Utc>), ApiError> {
    let now = state.clock.now();
    let of_key = person.key.as_ref().and_then(|key| key.expires).map(|expires| expires.and_utc());
    let expires = of_key.map_or(now + SESSION, |expires| expires.min(now + SESSION));
    let mut connection = for_change(state).await?;
    let signer = state.keys.signer().keys(&mut connection).await?;
    let key = mint(state, &mut connection, signer, &person, expires).await?;
    let claims = Claims {
        user_id: person.user_id,
        key,
        user_email: person.user_email,
        user_role: person.user_role,
        login_method: "username_password",
        // The dashboard shows some features, such as allowed addresses, with a licence only. litespend serves them
        // without one.
        premium_user: true,
        auth_header_name: "Authorization",
        disabled_non_admin_personal_key_creation: false,
        server_root_path: "",
        password_reset_required: false,
        exp: expires.timestamp(),
    };
    let token = jsonwebtoken::encode(&Header::default(), &claims, signer.token());
    Ok((token.map_err(|error| ApiError::Internal(error.to_string()))?, expires))
}

fn answer(origin: &PublicOrigin, token: &str, expires: DateTime<Utc>) -> Result<Response, ApiError> {
    let mut response = Json(json!({ "redirect_url": origin.url("/ui?login=success"), "token": token })).into_response();
    let secure = if origin.scheme == "https" { "; Secure" } else { "" };
    let end = expires.format("%a, %d %b %Y %H:%M:%S GMT");
    for path in ["/", "/ui"] {
        // The dashboard's scripts read this cookie, so it cannot be HttpOnly.
        let cookie = HeaderValue::try_from(format!("token={token}; Path={path}; Expires={end}; SameSite=lax{secure}"));
        response
            .headers_mut()
            .append(header::SET_COOKIE, cookie.map_err(|error| ApiError::Internal(error.to_string()))?);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

fn equal(one: &str, other: &str) -> bool {
    bool::from(hash_key(one).as_bytes().ct_eq(hash_key(other).as_bytes()))
}

fn refused() -> ApiError {
    ApiError::Refused {
        status: StatusCode::UNAUTHORIZED,
        kind: ErrorType::AuthError,
        message:
            "Invalid credentials. Log in as the admin with the master key (or UI_USERNAME and UI_PASSWORD), or as a user \
             with the user's ID or e-mail address and one of the user's keys."
                .into(),
        param: Some("invalid_credentials".into()),
    }
}

async fn check(state: &AppState, ui: &UiSettings, login: &LoginRequest) -> Result<Person, ApiError> {
    let password = ui.password.as_ref().unwrap_or(&state.settings.master_key);
    // Both comparisons always run, whatever the result of the first one.
    let (name, secret) = (equal(&login.username, &ui.username), equal(&login.password, password.expose_secret()));
    if name & secret {
        let (user_id, user_role) = (MASTER_USER_ID.into(), "proxy_admin".into());
        return Ok(Person { user_id, user_email: None, user_role, key: None });
    }
    if !login.password.starts_with("sk-") || state.keys.is_master(&login.password) {
        return Err(refused());
    }
    let caller = match state.keys.resolve(&login.password).await {
        Ok(caller) => caller,
        Err(ApiError::Refused { .. }) => return Err(refused()),
        Err(error) => return Err(error),
    };
    let key = state.keys.record(&login.password).await?;
    // The key of a session must not open further sessions, because those could be renewed forever. Only the admin's
    // password opens the account that stands for the master key.
    let is_session = key.session.is_some() || key.team_id.as_deref() == Some(SESSION_TEAM);
    let Some(user_id) = caller.user_id.filter(|user_id| !is_session && user_id != MASTER_USER_ID) else {
        return Err(refused());
    };
    let mut connection = database::acquire(&state.pool).await?;
    let user = store::find_user(&mut connection, &user_id).await?.ok_or_else(refused)?;
    let email = store::text(&user, "user_email");
    let named = equal(&login.username, &user_id) || (!email.is_empty() && equal(&login.username, email));
    if !named {
        return Err(refused());
    }
    let user_role = Some(store::text(&user, "user_role")).filter(|role| !role.is_empty()).unwrap_or("internal_user");
    Ok(Person {
        user_id,
        user_email: Some(email).filter(|email| !email.is_empty()).map(str::to_owned),
        user_role: user_role.to_owned(),
        key: Some(key),
    })
}

/// Creates the key of a session. The key is bound to the credentials that opened the session, and has no more rights
/// than they have.
async fn mint(
    state: &AppState,
    connection: &mut Connection,
    signer: &session::Keys,
    person: &Person,
    expires: DateTime<Utc>,
) -> Result<String, ApiError> {
    let raw = accounts::generate_key();
    let token = hash_key(&raw);
    let parent = person.key.as_ref().map(|key| key.token.clone());
    let limits = match &parent {
        Some(parent) => store::find_limits(connection, parent).await?.ok_or_else(refused)?,
        None => NewKey::default(),
    };
    let seal = signer.seal(&token, &person.user_id, parent.as_deref());
    let link = Link { parent, seal };
    let key = NewKey {
        key_name: accounts::shortened(&raw),
        user_id: Some(person.user_id.clone()),
        team_id: Some(SESSION_TEAM.into()),
        expires: Some(expires.naive_utc()),
        metadata: Map::from_iter([(SESSION_LINK.to_owned(), link.write())]),
        created_by: person.user_id.clone(),
        token,
        ..limits
    };
    store::create_session_key(connection, &key).await?;
    state.keys.forget(&key.token).await;
    Ok(raw)
}

/// Deletes the keys of expired sessions. Returns their number.
pub async fn clean_up(state: &AppState) -> Result<u64, ApiError> {
    let mut connection = for_change(state).await?;
    Ok(store::delete_expired_keys(&mut connection, SESSION_TEAM, state.clock.now().naive_utc()).await?)
}
