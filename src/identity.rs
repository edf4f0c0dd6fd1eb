//! Who calls: roles, callers, the rows that a caller may see, and keys as they stand in the database. Authentication,
//! the store and booking share these; none of them is HTTP's or SQL's own.

pub mod allowed_routes;

use chrono::NaiveDateTime;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// The name under which LiteLLM books calls made with the master key.
pub const MASTER_KEY_ALIAS: &str = "litellm_proxy_master_key";

/// The user that the master key stands for, as LiteLLM names it.
pub const MASTER_USER_ID: &str = "default_user_id";

/// The team of the keys of sessions, as LiteLLM names it.
pub const SESSION_TEAM: &str = "litellm-dashboard";

/// The field of a key's `metadata` that makes it the key of a session.
pub const SESSION_LINK: &str = "litespend_session";

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
    /// The key's user; never empty.
    pub user_id: Option<String>,
    /// Whether that user exists.
    pub user_exists: bool,
    /// The key's team, of a session that of the key that opened it; never empty.
    pub team_id: Option<String>,
    /// SHA-256 of the key in hex, or [`MASTER_KEY_ALIAS`]: the value of `api_key` in LiteLLM's tables.
    pub key_hash: String,
    /// Routes the key is limited to; empty means no limit.
    pub allowed_routes: Vec<String>,
    /// Names of the key's `permissions` that are `true`.
    pub permissions: Vec<String>,
    /// Whether the key's `permissions` hold `get_spend_routes`.
    pub may_read_global_spend: bool,
    /// Whether the key's `permissions` say `book_usage: true`: what it books is taken as it is stated.
    pub may_book_usage: bool,
    /// Whether this is a session of the dashboard.
    pub session: Option<SessionOf>,
}

/// What a session was opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionOf {
    /// The admin's password.
    Admin,
    /// A key.
    Key,
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
            permissions: Vec::new(),
            may_read_global_spend: true,
            session: None,
            may_book_usage: true,
        }
    }

    /// Whether the caller is the holder of the master key, or has logged in as such.
    pub fn stands_for_master(&self) -> bool {
        self.is_master || self.session == Some(SessionOf::Admin)
    }

    /// Whether nothing limits the caller: an admin with a key for all routes.
    pub fn may_everything(&self) -> bool {
        self.role == Role::Admin && self.allowed_routes.is_empty()
    }

    /// The caller's user id where rows must be limited to it: internal users see their own rows only. Empty where there
    /// is no user, who owns no rows: not those without a user either.
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
    /// Names of the `permissions` that are `true`.
    pub permissions: Vec<String>,
    /// Whether the owner exists.
    pub user_exists: bool,
    /// The owner's stored role.
    pub user_role: Option<String>,
    /// Whether the owner was deactivated through SCIM.
    pub user_deactivated: bool,
    /// Whether the team is blocked.
    pub team_blocked: bool,
    /// What binds the key of a session.
    pub session: Option<SessionRecord>,
}

/// What binds the key of a session.
#[derive(Clone, Debug)]
pub struct SessionRecord {
    /// The link in its metadata.
    pub link: Link,
    /// The key that opened it, where it still exists.
    pub parent: Option<ParentRecord>,
}

/// The key that opened a session.
#[derive(Clone, Debug)]
pub struct ParentRecord {
    /// SHA-256 of the key, hex.
    pub token: String,
    /// Owner.
    pub user_id: Option<String>,
    /// Team.
    pub team_id: Option<String>,
    /// End of validity, UTC.
    pub expires: Option<NaiveDateTime>,
    /// Whether it is blocked.
    pub blocked: bool,
    /// Routes it is limited to; empty means no limit.
    pub allowed_routes: Vec<String>,
    /// Names of the `permissions` that are `true`.
    pub permissions: Vec<String>,
    /// Whether it is the key of a session itself.
    pub is_session: bool,
    /// Whether its team is blocked.
    pub team_blocked: bool,
}

/// A link as it stands in a key's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// SHA-256 of the key that logged in; `None` for a session of the admin's password.
    pub parent: Option<String>,
    /// The seal.
    pub seal: String,
}

impl Link {
    /// The link that a metadata field holds. What it is not is a link that no seal fits.
    pub fn read(value: &Value) -> Self {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        Self { parent: text("parent"), seal: text("seal").unwrap_or_default() }
    }

    /// The metadata field.
    pub fn write(&self) -> Value {
        let parent = self.parent.clone().map(|parent| ("parent".to_owned(), Value::String(parent)));
        let seal = ("seal".to_owned(), Value::String(self.seal.clone()));
        Value::Object(Map::from_iter(parent.into_iter().chain([seal])))
    }
}

impl KeyRecord {
    /// The keys whose change changes what this one may do.
    pub fn depends_on(&self) -> impl Iterator<Item = &str> {
        let parent = self.session.as_ref().and_then(|session| session.link.parent.as_deref());
        std::iter::once(self.token.as_str()).chain(parent)
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
