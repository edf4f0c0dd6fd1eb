//! The identity of callers: roles, callers, the rows that a caller may see, and keys as the database stores them.
//! Authentication, the store and booking share these types, which belong neither to HTTP nor to SQL.

pub mod allowed_routes;

use chrono::NaiveDateTime;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The key name under which LiteLLM records calls made with the master key.
pub const MASTER_KEY_ALIAS: &str = "litellm_proxy_master_key";

/// The user to which LiteLLM assigns the master key.
pub const MASTER_USER_ID: &str = "default_user_id";

/// The team to which LiteLLM assigns the keys of dashboard sessions.
pub const SESSION_TEAM: &str = "litellm-dashboard";

/// The field of a key's `metadata` that marks it as the key of a session.
pub const SESSION_LINK: &str = "litespend_session";

/// The rights of a user, by LiteLLM's role names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `proxy_admin`, and the master key.
    Admin,
    /// `proxy_admin_viewer`: may see everything and change nothing.
    AdminViewer,
    /// `internal_user`, and a user without a role.
    InternalUser,
    /// `internal_user_viewer`.
    InternalUserViewer,
    /// A key without a user, a user that does not exist, or a role that LiteLLM does not have.
    Unknown,
}

impl Role {
    /// The role of an existing user, by its stored name. `None` means a user without a role.
    pub fn of_user(stored: Option<&str>) -> Self {
        match stored {
            Some("proxy_admin") => Self::Admin,
            Some("proxy_admin_viewer") => Self::AdminViewer,
            Some("internal_user") | None => Self::InternalUser,
            Some("internal_user_viewer") => Self::InternalUserViewer,
            Some(_) => Self::Unknown,
        }
    }

    /// Whether the role may see every row.
    pub fn sees_everything(self) -> bool {
        matches!(self, Self::Admin | Self::AdminViewer)
    }
}

/// The authenticated caller of a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whether the caller used the master key.
    pub is_master: bool,
    /// The rights of the caller.
    pub role: Role,
    /// The stored name of the role, for messages. `None` if the user has no role or there is no user.
    pub role_name: Option<String>,
    /// The key's user. Never an empty string.
    pub user_id: Option<String>,
    /// Whether that user exists.
    pub user_exists: bool,
    /// The key's team. For a session, the team of the key that opened it. Never an empty string.
    pub team_id: Option<String>,
    /// SHA-256 of the key in hex, or [`MASTER_KEY_ALIAS`]: the value of `api_key` in LiteLLM's tables.
    pub key_hash: String,
    /// The routes to which the key is limited. Empty means no limit.
    pub allowed_routes: Vec<String>,
    /// The names of the key's `permissions` that are `true`.
    pub permissions: Vec<String>,
    /// Whether the key's `permissions` include `get_spend_routes`.
    pub may_read_global_spend: bool,
    /// Whether the key's `permissions` say `book_usage: true`. Statements in the records that it books, such as costs
    /// and owners, are then accepted.
    pub may_book_usage: bool,
    /// How the dashboard session was opened. `None` if this is not a session.
    pub session: Option<SessionOf>,
}

/// The credential with which a session was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionOf {
    /// The admin's password.
    Admin,
    /// A key.
    Key,
}

impl Caller {
    /// The caller that uses the master key.
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
            permissions: Vec::new(),
            may_read_global_spend: true,
            session: None,
            may_book_usage: true,
        }
    }

    /// Whether the caller used the master key, or logged in as the admin.
    pub fn stands_for_master(&self) -> bool {
        self.is_master || self.session == Some(SessionOf::Admin)
    }

    /// Whether the caller has no limits: an admin whose key is not limited to certain routes.
    pub fn may_everything(&self) -> bool {
        self.role == Role::Admin && self.allowed_routes.is_empty()
    }

    /// The caller's user id, if the caller may see only its own rows, as internal users do. Empty if the caller has no
    /// user: such a caller owns no rows, not even the rows without a user.
    pub fn own_rows_only(&self) -> Option<&str> {
        match self.role {
            Role::Admin | Role::AdminViewer => None,
            _ => Some(self.user_id.as_deref().unwrap_or_default()),
        }
    }
}

/// The rows of the spend log that a caller may see. A missing restriction never means access to every row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every row.
    All,
    /// The rows of this user and of these teams.
    Owned {
        /// The caller's user. A caller without a user (`None`) owns no rows.
        user_id: Option<String>,
        /// The teams whose logs the caller may read: as an admin of the team, or as a member with the `/spend/logs`
        /// permission.
        team_ids: Vec<String>,
    },
}

/// A key as the database stores it.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    /// The SHA-256 of the key in hex.
    pub token: String,
    /// The shortened key for display, such as `sk-...1234`.
    pub key_name: Option<String>,
    /// The user that owns the key.
    pub user_id: Option<String>,
    /// The key's team.
    pub team_id: Option<String>,
    /// The end of the key's validity, in UTC.
    pub expires: Option<NaiveDateTime>,
    /// Whether the key is blocked.
    pub blocked: bool,
    /// The routes to which the key is limited. Empty means no limit.
    pub allowed_routes: Vec<String>,
    /// The names of the `permissions` that are `true`.
    pub permissions: Vec<String>,
    /// Whether the user that owns the key exists.
    pub user_exists: bool,
    /// The stored role of that user.
    pub user_role: Option<String>,
    /// Whether SCIM deactivated that user.
    pub user_deactivated: bool,
    /// Whether the key's team is blocked.
    pub team_blocked: bool,
    /// The session that this key belongs to, if it is the key of a session.
    pub session: Option<SessionRecord>,
}

/// The session to which a session key is bound.
#[derive(Clone, Debug)]
pub struct SessionRecord {
    /// The link in the metadata of the session's key.
    pub link: Link,
    /// The key that opened the session, if it still exists.
    pub parent: Option<ParentRecord>,
}

/// The key that opened a session.
#[derive(Clone, Debug)]
pub struct ParentRecord {
    /// The SHA-256 of the key in hex.
    pub token: String,
    /// The user that owns the key.
    pub user_id: Option<String>,
    /// The key's team.
    pub team_id: Option<String>,
    /// The end of the key's validity, in UTC.
    pub expires: Option<NaiveDateTime>,
    /// Whether the key is blocked.
    pub blocked: bool,
    /// The routes to which the key is limited. Empty means no limit.
    pub allowed_routes: Vec<String>,
    /// The names of the `permissions` that are `true`.
    pub permissions: Vec<String>,
    /// Whether the key is itself the key of a session.
    pub is_session: bool,
    /// Whether the key's team is blocked.
    pub team_blocked: bool,
}

/// The field of a key's metadata that links a session to the key that opened it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The SHA-256 of the key that logged in. `None` if the session was opened with the admin's password.
    pub parent: Option<String>,
    /// The seal: an HMAC which proves that a litespend server created the link.
    pub seal: String,
}

impl Link {
    /// Reads a link from a metadata field. A malformed field becomes a link with an invalid seal.
    pub fn read(value: &Value) -> Self {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        Self { parent: text("parent"), seal: text("seal").unwrap_or_default() }
    }

    /// Returns the link as a metadata field.
    pub fn write(&self) -> Value {
        let parent = self.parent.clone().map(|parent| ("parent".to_owned(), Value::String(parent)));
        let seal = ("seal".to_owned(), Value::String(self.seal.clone()));
        Value::Object(Map::from_iter(parent.into_iter().chain([seal])))
    }
}

impl KeyRecord {
    /// The keys on which the rights of this key depend.
    pub fn depends_on(&self) -> impl Iterator<Item = &str> {
        let parent = self.session.as_ref().and_then(|session| session.link.parent.as_deref());
        std::iter::once(self.token.as_str()).chain(parent)
    }
}

/// The SHA-256 of a key in lower-case hex, which is how LiteLLM stores keys.
pub fn hash_key(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

/// Converts a key parameter as LiteLLM's endpoints do: a raw key (`sk-...`) is hashed, and anything else already is a
/// hash.
pub fn key_filter(value: &str) -> String {
    if value.starts_with("sk-") { hash_key(value) } else { value.to_owned() }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
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
        // The key that the recordings used, and its hash.
        assert_eq!(hash_key("sk-int-key-0001"), "f3fd4cad6f39d97f74132065d8e861d6832460f80aecd00c8b50a27afc006f2b");
        assert_eq!(key_filter("abc"), "abc");
    }
}
