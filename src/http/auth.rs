//! Authentication: turns a request's headers into a [`Caller`], and checks what each class of routes requires of a
//! caller. An unknown key and an unknown role are refused.
//!
//! To add a new kind of caller, add a [`Role`] and its case in [`access::check`].

pub mod access;
pub mod grant;
pub mod key;
pub mod lookup;
pub mod session;
mod token_bucket;

use chrono::{DateTime, Utc};

use crate::http::error::{ApiError, ErrorType};
use crate::identity::{Caller, KeyRecord, MASTER_USER_ID, Role, SessionOf, SessionRecord, allowed_routes};

/// The caller that a key identifies at the instant `now`, or the reason why the key is refused. The key of a session
/// needs `seals`.
pub fn into_caller(mut key: KeyRecord, now: DateTime<Utc>, seals: Option<&session::Keys>) -> Result<Caller, ApiError> {
    check(&mut key, now)?;
    let session = match key.session.take() {
        Some(session) => Some(narrow(&mut key, session, now, seals)?),
        None => None,
    };
    let own_role = if key.user_exists { Role::of_user(key.user_role.as_deref()) } else { Role::Unknown };
    let (role, role_name) = match session {
        // Someone who logged in with the admin's password needs no user row, and no user row changes the rights of that
        // login.
        Some(SessionOf::Admin) => (Role::Admin, Some("proxy_admin".to_owned())),
        _ => (own_role, key.user_role),
    };
    Ok(Caller {
        is_master: false,
        role,
        role_name,
        user_id: key.user_id,
        user_exists: key.user_exists || session == Some(SessionOf::Admin),
        team_id: key.team_id,
        key_hash: key.token,
        allowed_routes: key.allowed_routes,
        may_read_global_spend: key.permissions.iter().any(|name| name == "get_spend_routes"),
        may_book_usage: key.permissions.iter().any(|name| name == "book_usage"),
        permissions: key.permissions,
        session,
    })
}

fn check(key: &mut KeyRecord, now: DateTime<Utc>) -> Result<(), ApiError> {
    // LiteLLM stores an empty string where there is no value.
    key.user_exists &= key.user_id.as_deref() != Some("");
    key.user_id = key.user_id.take().filter(|user_id| !user_id.is_empty());
    key.team_id = key.team_id.take().filter(|team_id| !team_id.is_empty());
    if key.blocked {
        let message = "Authentication Error, Key is blocked. Update via `/key/unblock` if you're an admin.";
        return Err(ApiError::unauthorized(message));
    }
    if key.user_deactivated {
        return Err(ApiError::unauthorized("Authentication Error, the key's user has been deactivated via SCIM."));
    }
    if let Some(expires) = key.expires.map(|expires| expires.and_utc())
        && expires < now
    {
        return Err(ApiError::Refused {
            status: axum::http::StatusCode::UNAUTHORIZED,
            kind: ErrorType::ExpiredKey,
            message: format!(
                "Authentication Error - Expired Key. Key Expiry time {} and current time {}",
                expires.format("%Y-%m-%d %H:%M:%S%.6f%:z"),
                now.format("%Y-%m-%d %H:%M:%S%.6f%:z")
            ),
            param: key.key_name.clone(),
        });
    }
    if key.team_blocked {
        return Err(ApiError::unauthorized("Authentication Error, the key's team is blocked."));
    }
    Ok(())
}

/// Removes from a session's key all rights that the key which opened the session does not have.
fn narrow(
    key: &mut KeyRecord,
    session: SessionRecord,
    now: DateTime<Utc>,
    seals: Option<&session::Keys>,
) -> Result<SessionOf, ApiError> {
    let over = || ApiError::unauthorized("Authentication Error, the session has ended. Log in again.");
    let user_id = key.user_id.as_deref().unwrap_or_default();
    if !seals.is_some_and(|seals| seals.fits(&session.link, &key.token, user_id)) {
        return Err(over());
    }
    let parent = match (session.link.parent, session.parent) {
        (None, _) if user_id == MASTER_USER_ID => {
            key.team_id = None;
            return Ok(SessionOf::Admin);
        }
        (Some(_), Some(parent)) => parent,
        _ => return Err(over()),
    };
    let expired = parent.expires.is_some_and(|expires| expires.and_utc() < now);
    let owned = key.user_exists && parent.user_id == key.user_id;
    if parent.blocked || parent.team_blocked || parent.is_session || expired || !owned {
        return Err(over());
    }
    key.team_id = parent.team_id.filter(|team_id| !team_id.is_empty());
    key.allowed_routes = allowed_routes::intersection(&key.allowed_routes, &parent.allowed_routes);
    key.permissions.retain(|name| parent.permissions.contains(name));
    Ok(SessionOf::Key)
}
