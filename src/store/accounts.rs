//! Creates, blocks, deletes and shows keys, teams and users. Rows are shown as JSON with all their columns, so that
//! columns of another LiteLLM version are included. Timestamps are UTC and end in `Z`. Passwords are left out.

mod keys;
pub mod lists;
pub mod tables;
mod teams;
mod users;

pub use crate::store::accounts::keys::{
    DeletedBy, NewKey, create_key, create_session_key, delete_expired_keys, delete_keys, exists_key, find_key,
    find_limits, keys_of, list_keys, set_blocked, tokens_of_aliases,
};
pub use crate::store::accounts::teams::{NewMember, NewTeam, TeamsOf, create_team, list_teams};
pub use crate::store::accounts::users::{NewUser, create_user, find_user, list_users, user_without_row};

use serde_json::{Map, Value};
use sqlx::types::Json;

/// A row as a JSON object, by column.
pub type Row = Map<String, Value>;

/// Names of columns that hold timestamps.
const TIMES: [&str; 11] = [
    "created_at",
    "updated_at",
    "expires",
    "budget_reset_at",
    "last_active",
    "deleted_at",
    "settings_updated_at",
    "last_rotation_at",
    "key_rotation_at",
    "last_breach_check_at",
    "last_run_at",
];

/// Names of columns that hold lists. LiteLLM shows a NULL in them as an empty list.
const LISTS: [&str; 9] = [
    "models",
    "admins",
    "members",
    "teams",
    "policies",
    "access_group_ids",
    "allowed_routes",
    "allowed_cache_controls",
    "team_member_permissions",
];

pub(super) fn shown(Json(mut row): Json<Row>) -> Row {
    row.remove("password");
    for name in TIMES {
        if let Some(Value::String(text)) = row.get_mut(name) {
            // A timestamptz column has the offset of the session, which is UTC.
            let utc = text.trim_end_matches("+00:00");
            *text = format!("{utc}Z");
        }
    }
    for name in LISTS {
        if let Some(value) = row.get_mut(name).filter(|value| value.is_null()) {
            *value = Value::Array(Vec::new());
        }
    }
    // A team that was created without members has an object here and not a list.
    if let Some(value) = row.get_mut("members_with_roles").filter(|value| !value.is_array()) {
        *value = Value::Array(Vec::new());
    }
    row
}

pub(super) fn all_shown(rows: Vec<Json<Row>>) -> Vec<Row> {
    rows.into_iter().map(shown).collect()
}

/// Why a row was not created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// The key exists already.
    Token,
    /// Another key has the alias.
    Alias,
    /// The team does not exist.
    NoTeam,
    /// The ID of the team or user is taken.
    Id,
    /// Another user has the e-mail address.
    Email,
}

/// A string of a row; empty if the column is absent or not a string.
pub fn text<'a>(row: &'a Row, name: &str) -> &'a str {
    row.get(name).and_then(Value::as_str).unwrap_or_default()
}
