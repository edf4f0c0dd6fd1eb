//! Who calls, and what they may do. Owns the way from a request's headers to a [`Caller`], the roles, the
//! access classes of routes and the [`Scope`] of rows a caller may see. Refuses everything it does not
//! know: an unknown key, an unknown role, a route without a class.
//!
//! A new route gets its class in `router::ROUTES`; a new kind of caller gets a [`Role`] and its line in
//! [`access::check`].

pub mod access;
pub mod key;
pub mod lookup;

use chrono::{DateTime, NaiveDateTime, Utc};
use sha2::{Digest, Sha256};

use crate::error::{ApiError, ErrorType};

/// The name under which LiteLLM books calls made with the master key.
pub const MASTER_KEY_ALIAS: &str = "litellm_proxy_master_key";

/// The user that the master key stands for, as LiteLLM names it.
pub const MASTER_USER_ID: &str = "default_user_id";

/// What a user may do, by LiteLLM's role names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `proxy_admin`, and the master key.
    Admin,
    /// `proxy_admin_viewer`: sees everything, changes nothing.
    AdminViewer,
    /// `internal_user`, and a user without a role.
    InternalUser,
    /// `internal_user_viewer`.
    InternalUserViewer,
    /// A key without a user, a user that does not exist, a role that LiteLLM does not have.
    Unknown,
}

impl Role {
    /// The role of an existing user by its stored name; `None` is a user without a role.
    pub fn of_user(stored: Option<&str>) -> Self {
        match stored {
            Some("proxy_admin") => Self::Admin,
            Some("proxy_admin_viewer") => Self::AdminViewer,
            Some("internal_user") | None => Self::InternalUser,
            Some("internal_user_viewer") => Self::InternalUserViewer,
            Some(_) => Self::Unknown,
        }
    }

    /// Whether the role sees every row.
    pub fn sees_everything(self) -> bool {
        matches!(self, Self::Admin | Self::AdminViewer)
    }
}

/// The authenticated caller of a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whether the master key was used.
    pub is_master: bool,
    /// What the caller may do.
    pub role: Role,
    /// The role's stored name, for messages; `None` where the user has none or there is no user.
    pub role_name: Option<String>,
    /// The key's user.
    pub user_id: Option<String>,
    /// Whether that user exists.
    pub user_exists: bool,
    /// The key's team.
    pub team_id: Option<String>,
    /// SHA-256 of the key in hex, or [`MASTER_KEY_ALIAS`]: the value of `api_key` in LiteLLM's tables.
    pub key_hash: String,
    /// Routes the key is limited to; empty means no limit.
    pub allowed_routes: Vec<String>,
    /// Whether the key's `permissions` hold `get_spend_routes`.
    pub may_read_global_spend: bool,
    /// Whether the key's `permissions` say `book_usage: true`: what it books is taken as it is stated.
    pub may_book_usage: bool,
}

impl Caller {
    /// The holder of the master key.
    pub fn master() -> Self {
        Self {
            is_master: true,
            role: Role::Admin,
            role_name: Some("proxy_admin".into()),
            user_id: Some(MASTER_USER_ID.into()),
            user_exists: true,
            team_id: None,
            key_hash: MASTER_KEY_ALIAS.into(),
            allowed_routes: Vec::new(),
            may_read_global_spend: true,
            may_book_usage: true,
        }
    }

    /// The caller's user id where rows must be limited to it: internal users see their own rows only.
    pub fn own_rows_only(&self) -> Option<&str> {
        match self.role {
            Role::Admin | Role::AdminViewer => None,
            _ => Some(self.user_id.as_deref().unwrap_or_default()),
        }
    }
}

/// Which rows of the spend log a caller may see. There is no "none given, so everything".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every row.
    All,
    /// Rows of this user, and of these teams.
    Owned {
        /// The caller's user; `None` owns no rows.
        user_id: Option<String>,
        /// Teams whose logs the caller may read: as their admin, or by a member's `/spend/logs` permission.
        team_ids: Vec<String>,
    },
}

/// A key as it stands in the database.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    /// SHA-256 of the key, hex.
    pub token: String,
    /// Shortened key for display, `sk-...1234`.
    pub key_name: Option<String>,
    /// Owner.
    pub user_id: Option<String>,
    /// Team.
    pub team_id: Option<String>,
    /// End of validity, UTC.
    pub expires: Option<NaiveDateTime>,
    /// Whether the key is blocked.
    pub blocked: bool,
    /// Routes the key is limited to; empty means no limit.
    pub allowed_routes: Vec<String>,
    /// `permissions.get_spend_routes`.
    pub may_read_global_spend: bool,
    /// Whether `permissions.book_usage` is `true`.
    pub may_book_usage: bool,
    /// Whether the owner exists.
    pub user_exists: bool,
    /// The owner's stored role.
    pub user_role: Option<String>,
    /// Whether the owner was deactivated through SCIM.
    pub user_deactivated: bool,
    /// Whether the team is blocked.
    pub team_blocked: bool,
}

impl KeyRecord {
    /// The caller that the key stands for at the instant `now`, or why it stands for nobody.
    pub fn into_caller(self, now: DateTime<Utc>) -> Result<Caller, ApiError> {
        if self.blocked {
            let message = "Authentication Error, Key is blocked. Update via `/key/unblock` if you're an admin.";
            return Err(ApiError::unauthorized(message));
        }
        if self.user_deactivated {
            return Err(ApiError::unauthorized("Authentication Error, the key's user has been deactivated via SCIM."));
        }
        if let Some(expires) = self.expires.map(|expires| expires.and_utc())
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
                param: self.key_name,
            });
        }
        if self.team_blocked {
            return Err(ApiError::unauthorized("Authentication Error, the key's team is blocked."));
        }
        let role = if self.user_exists { Role::of_user(self.user_role.as_deref()) } else { Role::Unknown };
        Ok(Caller {
            is_master: false,
            role,
            role_name: self.user_role,
            user_id: self.user_id,
            user_exists: self.user_exists,
            team_id: self.team_id,
            key_hash: self.token,
            allowed_routes: self.allowed_routes,
            may_read_global_spend: self.may_read_global_spend,
            may_book_usage: self.may_book_usage,
        })
    }
}

/// SHA-256 of a key in lower-case hex: how LiteLLM stores keys.
pub fn hash_key(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

/// A key parameter as LiteLLM's endpoints take it: a raw key (`sk-...`) is hashed, anything else is a hash already.
pub fn key_filter(value: &str) -> String {
    if value.starts_with("sk-") { hash_key(value) } else { value.to_owned() }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hashed_as_litellm_hashes_them() {
        // The recordings' key and its token.
        assert_eq!(hash_key("sk-int-key-0001"), "f3fd4cad6f39d97f74132065d8e861d6832460f80aecd00c8b50a27afc006f2b");
        assert_eq!(key_filter("abc"), "abc");
    }
}
