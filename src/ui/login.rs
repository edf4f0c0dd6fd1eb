//! `POST /v2/login`: a password for a key that lasts a day, and a token that holds it, as the dashboard wants it.

use std::net::{IpAddr, Ipv4Addr};

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::TimeDelta;
use jsonwebtoken::{EncodingKey, Header};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Connection;
use subtle::ConstantTimeEq;

use super::{SESSION_TEAM, UiSettings};
use crate::app::AppState;
use crate::auth::{MASTER_USER_ID, hash_key};
use crate::error::{ApiError, ErrorType};
use crate::management;
use crate::router::client_address;
use crate::routes::management::for_change;
use crate::store::management::{self as store, NewKey};

/// How long a session lasts.
const SESSION: TimeDelta = TimeDelta::hours(24);

/// Largest body, bytes.
const BODY_LIMIT: usize = 16 * 1024;

#[derive(Deserialize)]
struct LoginRequest {
    username: String,
    password: String,
}

/// What the token says, as LiteLLM's does.
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

/// Who has logged in.
struct Person {
    user_id: String,
    user_email: Option<String>,
    user_role: String,
}

/// Takes the admin's name and password (by default the master key), or a user's id or address and one of the user's keys.
pub async fn log_in(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let Some(ui) = &state.settings.ui else { return Err(ApiError::detail(StatusCode::NOT_FOUND, "Not Found")) };
    // Who has no address shares one count.
    let address = client_address(&state, &request).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_LIMIT)
        .await
        .map_err(|_| ApiError::bad_request(ErrorType::BadRequest, "The body is too large or was cut off."))?;
    let login: LoginRequest = serde_json::from_slice(&body).map_err(|_| {
        ApiError::bad_request(ErrorType::BadRequest, "Expected a JSON object with the texts `username` and `password`.")
    })?;
    if !state.logins.begin(address) {
        return Err(ApiError::Refused {
            status: StatusCode::TOO_MANY_REQUESTS,
            kind: ErrorType::AuthError,
            message: "Too many failed logins from this address; try again in five minutes.".into(),
            param: Some("username".into()),
        });
    }
    let person = match check(&state, ui, &login).await {
        Ok(person) => person,
        Err(error) => {
            if !matches!(error, ApiError::Refused { .. }) {
                // A database that is away says nothing of the password.
                state.logins.succeeded(address);
            }
            return Err(error);
        }
    };
    state.logins.succeeded(address);
    let now = state.clock.now();
    let key = mint(&state, &person).await?;
    let claims = Claims {
        user_id: person.user_id,
        key,
        user_email: person.user_email,
        user_role: person.user_role,
        login_method: "username_password",
        // What the dashboard shows for a licence only, such as allowed addresses, is served here without one.
        premium_user: true,
        auth_header_name: "Authorization",
        disabled_non_admin_personal_key_creation: false,
        server_root_path: "",
        password_reset_required: false,
        exp: (now + SESSION).timestamp(),
    };
    let secret = EncodingKey::from_secret(state.settings.master_key.expose_secret().as_bytes());
    let token = jsonwebtoken::encode(&Header::default(), &claims, &secret)
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    let scheme = scheme(&state, &parts.headers);
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let mut response =
        Json(json!({ "redirect_url": format!("{scheme}://{host}/ui?login=success"), "token": token })).into_response();
    let secure = if scheme == "https" { "; Secure" } else { "" };
    for path in ["/", "/ui"] {
        // The dashboard's scripts read it: it can't be HttpOnly.
        let cookie = HeaderValue::try_from(format!("token={token}; Path={path}; SameSite=lax{secure}"));
        response
            .headers_mut()
            .append(header::SET_COOKIE, cookie.map_err(|error| ApiError::Internal(error.to_string()))?);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// `https` where a proxy in front says so, and is listened to.
fn scheme(state: &AppState, headers: &HeaderMap) -> &'static str {
    let forwarded = headers.get("x-forwarded-proto").filter(|_| state.settings.use_x_forwarded_for);
    if forwarded.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"https")) { "https" } else { "http" }
}

fn equal(one: &str, other: &str) -> bool {
    bool::from(hash_key(one).as_bytes().ct_eq(hash_key(other).as_bytes()))
}

async fn check(state: &AppState, ui: &UiSettings, login: &LoginRequest) -> Result<Person, ApiError> {
    let password = ui.password.as_ref().unwrap_or(&state.settings.master_key);
    // Both are compared, whatever the first comparison says.
    let (name, secret) = (equal(&login.username, &ui.username), equal(&login.password, password.expose_secret()));
    if name & secret {
        return Ok(Person { user_id: MASTER_USER_ID.into(), user_email: None, user_role: "proxy_admin".into() });
    }
    let refused = || ApiError::Refused {
        status: StatusCode::UNAUTHORIZED,
        kind: ErrorType::AuthError,
        message:
            "Invalid credentials. Log in as the admin with the master key (or UI_USERNAME and UI_PASSWORD), or with a \
                  user's id or address and one of the user's keys."
                .into(),
        param: Some("invalid_credentials".into()),
    };
    if !login.password.starts_with("sk-") || state.keys.is_master(&login.password) {
        return Err(refused());
    }
    let caller = match state.keys.resolve(&login.password).await {
        Ok(caller) => caller,
        Err(ApiError::Refused { .. }) => return Err(refused()),
        Err(error) => return Err(error),
    };
    // A session's key must not make further ones: sessions would never end.
    let Some(user_id) = caller.user_id.filter(|_| caller.team_id.as_deref() != Some(SESSION_TEAM)) else {
        return Err(refused());
    };
    let mut connection = state.pool.acquire().await?;
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
    })
}

/// A key for the session.
async fn mint(state: &AppState, person: &Person) -> Result<String, ApiError> {
    let mut connection = for_change(state).await?;
    let raw = management::generate_key();
    let key = NewKey {
        token: hash_key(&raw),
        key_name: management::shortened(&raw),
        user_id: Some(person.user_id.clone()),
        team_id: Some(SESSION_TEAM.into()),
        expires: Some((state.clock.now() + SESSION).naive_utc()),
        created_by: person.user_id.clone(),
        ..NewKey::default()
    };
    let mut transaction = connection.begin().await?;
    if person.user_id == MASTER_USER_ID {
        // The admin may have no row yet, and the key's role is its user's.
        store::ensure_admin(&mut transaction, MASTER_USER_ID).await?;
    }
    store::create_session_key(&mut transaction, &key).await?;
    transaction.commit().await?;
    state.keys.forget(&key.token).await;
    Ok(raw)
}

/// Deletes the keys of sessions that are over. Returns how many there were.
pub async fn clean_up(state: &AppState) -> Result<u64, ApiError> {
    let mut connection = for_change(state).await?;
    Ok(store::delete_expired_keys(&mut connection, SESSION_TEAM, state.clock.now().naive_utc()).await?)
}
