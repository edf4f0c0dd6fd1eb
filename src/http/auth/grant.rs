//! What a caller may give to keys, users and teams that it makes: no routes, permissions, roles or teams that it does
//! not have itself. A key that is made may live longer than its maker's.
//!
//! Who is limited to routes is also kept from raising what keys that exist may do: the role of a user counts for all
//! keys of that user, so that a user whom keys name already can't be made, and a blocked key can't be freed, by who has
//! less than it would have then.

use axum::http::StatusCode;
use serde_json::Value;

use crate::http::error::ApiError;
use crate::identity::{Caller, KeyRecord, MASTER_USER_ID, Role, allowed_routes};
use crate::store::Connection;
use crate::store::accounts::{NewKey, NewTeam, NewUser};
use crate::store::{authority, keys, team_views};

impl Role {
    /// How much the role may do: who has less can't give more.
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

/// Checks a key to be made; one without routes of its own gets the caller's.
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
        return Err(refuse(format!("Your key may not call all of {route}, and can't give it.")));
    }
    let given = key.permissions.iter().filter(|(_, value)| !matches!(value, Value::Bool(false) | Value::Null));
    for (name, value) in given {
        if *value != Value::Bool(true) || !caller.permissions.contains(name) {
            return Err(refuse(format!("Your key doesn't have the permission {name}, and can't give it.")));
        }
    }
    check_teams(connection, caller, key.team_id.as_slice()).await
}

/// Checks a user to be made.
pub async fn check_user(connection: &mut Connection, caller: &Caller, user: &NewUser) -> Result<(), ApiError> {
    check_person(caller, &user.user_id)?;
    check_role(caller, Role::of_user(user.user_role.as_deref()))?;
    if caller.may_everything() {
        return Ok(());
    }
    check_teams(connection, caller, &user.teams).await?;
    check_new(connection, std::slice::from_ref(&user.user_id)).await
}

/// Checks a team to be made, whose members are made users where they are none.
pub async fn check_team(
    connection: &mut Connection,
    caller: &Caller,
    team: &NewTeam,
    id_is_given: bool,
) -> Result<(), ApiError> {
    let members: Vec<String> = team.members.iter().map(|(user_id, _)| user_id.clone()).collect();
    members.iter().try_for_each(|member| check_person(caller, member))?;
    if caller.may_everything() {
        return Ok(());
    }
    if id_is_given {
        // Rows and keys may name it already.
        return Err(refuse("A key that is limited to routes can't choose the id of a team."));
    }
    let missing = authority::missing_users(connection, &members).await?;
    check_new(connection, &missing).await
}

/// Checks a key whose block is to be lifted.
pub async fn check_unblock(connection: &mut Connection, caller: &Caller, token: &str) -> Result<(), ApiError> {
    if caller.may_everything() {
        return Ok(());
    }
    let Some(key) = keys::find_key(connection, token).await? else { return Ok(()) };
    if is_within(&key, caller) {
        return Ok(());
    }
    Err(refuse("The key may do more than yours, which can't lift its block."))
}

/// Whether a key may do no more than the caller, but for the rows that it sees.
fn is_within(key: &KeyRecord, caller: &Caller) -> bool {
    let within = !key.allowed_routes.is_empty()
        && key.allowed_routes.iter().all(|route| allowed_routes::covers(&caller.allowed_routes, route));
    within
        && key.permissions.iter().all(|name| caller.permissions.contains(name))
        && Role::of_user(key.user_role.as_deref()).rank() <= caller.role.rank()
}

/// The account that stands for the master key is given by who holds that.
fn check_person(caller: &Caller, user_id: &str) -> Result<(), ApiError> {
    if user_id == MASTER_USER_ID && !caller.stands_for_master() {
        return Err(refuse(format!(
            "The user {MASTER_USER_ID} stands for the master key, whose holder alone may give it."
        )));
    }
    Ok(())
}

fn check_role(caller: &Caller, role: Role) -> Result<(), ApiError> {
    if role.rank() > caller.role.rank() {
        return Err(refuse("Your role is less than the user's."));
    }
    Ok(())
}

async fn check_new(connection: &mut Connection, user_ids: &[String]) -> Result<(), ApiError> {
    if !user_ids.is_empty() && authority::have_keys(connection, user_ids).await? {
        return Err(refuse("Keys name this user already, and would get more rights than yours has."));
    }
    Ok(())
}

/// Teams of the caller: of its key, or that it is a member of.
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
        Some(team) => Err(refuse(format!("You don't belong to the team {team}, and can't give it."))),
        None => Ok(()),
    }
}
