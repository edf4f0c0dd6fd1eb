//! What a caller may grant to the keys, users and teams that it creates. It cannot grant routes, permissions, roles or
//! teams that it does not have itself. A key that it creates may live longer than its own key.
//!
//! A caller that is limited to routes also cannot extend the rights of existing keys. The role of a user applies to all
//! keys of that user. So such a caller cannot create a user that keys name already. It also cannot unblock a key that
//! would then have more rights than the caller.

use axum::http::StatusCode;
use serde_json::Value;

use crate::http::error::ApiError;
use crate::identity::{Caller, KeyRecord, MASTER_USER_ID, Role, allowed_routes};
use crate::store::Connection;
use crate::store::accounts::{NewKey, NewTeam, NewUser};
use crate::store::{authority, keys, team_views};

impl Role {
    /// The rank of the role: a caller cannot grant a role of a higher rank than its own.
    fn rank(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::InternalUserViewer => 1,
            Self::InternalUser => 2,
            Self::AdminViewer => 3,
            Self::Admin => 4,
        }
    }
}

fn refuse(message: impl Into<String>) -> ApiError {
    ApiError::nested(StatusCode::FORBIDDEN, message)
}

/// Checks a key before it is created. If the caller is limited to routes and the new key names none, the new key gets
/// the caller's routes.
pub async fn check_key(connection: &mut Connection, caller: &Caller, key: &mut NewKey) -> Result<(), ApiError> {
    if let Some(user_id) = key.user_id.as_deref() {
        check_person(caller, user_id)?;
        let role = authority::role_of(connection, user_id).await?;
        check_role(caller, role.map_or(Role::Unknown, |role| Role::of_user(role.as_deref())))?;
    }
    if caller.may_everything() {
        return Ok(());
    }
    if key.allowed_routes.is_empty() {
        key.allowed_routes.clone_from(&caller.allowed_routes);
    } else if let Some(route) =
        key.allowed_routes.iter().find(|route| !allowed_routes::covers(&caller.allowed_routes, route))
    {
        return Err(refuse(format!("Your key cannot grant {route}, because it may not call all of it.")));
    }
    let given = key.permissions.iter().filter(|(_, value)| !matches!(value, Value::Bool(false) | Value::Null));
    for (name, value) in given {
        if *value != Value::Bool(true) || !caller.permissions.contains(name) {
            return Err(refuse(format!("Your key cannot grant the permission {name}, because it does not have it.")));
        }
    }
    check_teams(connection, caller, key.team_id.as_slice()).await
}

/// Checks a user before it is created.
pub async fn check_user(connection: &mut Connection, caller: &Caller, user: &NewUser) -> Result<(), ApiError> {
    check_person(caller, &user.user_id)?;
    check_role(caller, Role::of_user(user.user_role.as_deref()))?;
    if caller.may_everything() {
        return Ok(());
    }
    check_teams(connection, caller, &user.teams).await?;
    check_new(connection, std::slice::from_ref(&user.user_id)).await
}

/// Checks a team before it is created. Members that are not users yet are created with it, so they are checked as new
/// users.
pub async fn check_team(
    connection: &mut Connection,
    caller: &Caller,
    team: &NewTeam,
    id_is_given: bool,
) -> Result<(), ApiError> {
    let members: Vec<String> = team.members.iter().map(|member| member.user_id.clone()).collect();
    members.iter().try_for_each(|member| check_person(caller, member))?;
    if caller.may_everything() {
        return Ok(());
    }
    if id_is_given {
        // Existing rows and keys may name this id already.
        return Err(refuse("A key that is restricted to routes cannot set the ID of a new team."));
    }
    let missing = authority::missing_users(connection, &members).await?;
    check_new(connection, &missing).await
}

/// Checks a key before it is unblocked.
pub async fn check_unblock(connection: &mut Connection, caller: &Caller, token: &str) -> Result<(), ApiError> {
    if caller.may_everything() {
        return Ok(());
    }
    let Some(key) = keys::find_key(connection, token).await? else { return Ok(()) };
    if is_within(&key, caller) {
        return Ok(());
    }
    Err(refuse("Your key cannot unblock a key that has more rights."))
}

/// Whether a key has no more rights than the caller. The rows that each of them may see are not compared.
fn is_within(key: &KeyRecord, caller: &Caller) -> bool {
    let within = !key.allowed_routes.is_empty()
        && key.allowed_routes.iter().all(|route| allowed_routes::covers(&caller.allowed_routes, route));
    within
        && key.permissions.iter().all(|name| caller.permissions.contains(name))
        && Role::of_user(key.user_role.as_deref()).rank() <= caller.role.rank()
}

/// Only a caller that stands for the master key may assign the master key's user.
fn check_person(caller: &Caller, user_id: &str) -> Result<(), ApiError> {
    if user_id == MASTER_USER_ID && !caller.stands_for_master() {
        return Err(refuse(format!(
            "The user {MASTER_USER_ID} represents the master key. Only the master key can assign it."
        )));
    }
    Ok(())
}

fn check_role(caller: &Caller, role: Role) -> Result<(), ApiError> {
    if role.rank() > caller.role.rank() {
        return Err(refuse("Your role is lower than the user's role."));
    }
    Ok(())
}

async fn check_new(connection: &mut Connection, user_ids: &[String]) -> Result<(), ApiError> {
    if !user_ids.is_empty() && authority::have_keys(connection, user_ids).await? {
        return Err(refuse("Existing keys have this user ID, and would get more rights than your key has."));
    }
    Ok(())
}

/// Checks that all teams in `asked` are the caller's own: the team of its key, or a team that its user is a member of.
async fn check_teams(connection: &mut Connection, caller: &Caller, asked: &[String]) -> Result<(), ApiError> {
    let foreign: Vec<&String> = asked.iter().filter(|team| Some(*team) != caller.team_id.as_ref()).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let own = match &caller.user_id {
        Some(user_id) => team_views::teams_of_user(connection, user_id).await?.unwrap_or_default(),
        None => Vec::new(),
    };
    match foreign.iter().find(|team| !own.contains(team)) {
        Some(team) => Err(refuse(format!("You cannot assign the team {team}, because you are not a member of it."))),
        None => Ok(()),
    }
}
