//! The classes of routes and who may call each. The table of routes with their class is `router::ROUTES`.

use super::{Caller, Role};
use crate::error::ApiError;

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, from every address: liveness probes.
    Probe,
    /// Everybody whose address is allowed, without a key.
    Public,
    /// The master key alone.
    MasterKey,
    /// Admins; viewers are told 403, everybody else 401.
    AdminWrite,
    /// Admins and admin viewers.
    AdminRead,
    /// Admins, admin viewers, and keys with the permission `get_spend_routes`.
    GlobalSpend,
    /// Users with a role (or without one, who count as internal users); not keys without a user.
    Spend,
    /// Admins, admin viewers and internal users who are not viewers only.
    InternalUsers,
    /// Every key; the handler limits what it answers.
    AnyKey,
}

/// Whether `caller` may call `path`, a route of the class `access`.
pub fn check(access: Access, path: &str, caller: &Caller) -> Result<(), ApiError> {
    if !caller.allowed_routes.is_empty() && !caller.allowed_routes.iter().any(|allowed| route_matches(path, allowed)) {
        return Err(ApiError::forbidden(format!(
            "Virtual key is not allowed to call this route. Only allowed to call routes: {}. Tried to call route: {path}",
            caller.allowed_routes.join(", ")
        )));
    }
    let allowed = match access {
        Access::Probe | Access::Public | Access::AnyKey => true,
        Access::MasterKey => {
            return if caller.is_master { Ok(()) } else { Err(master_key_only(path)) };
        }
        Access::AdminWrite if caller.role == Role::AdminViewer => {
            return Err(ApiError::forbidden(format!(
                "user not allowed to access this route, role= proxy_admin_viewer. Trying to access: {path}"
            )));
        }
        Access::AdminWrite => caller.role == Role::Admin,
        Access::AdminRead => caller.role.sees_everything(),
        Access::GlobalSpend => caller.role.sees_everything() || caller.may_read_global_spend,
        Access::Spend => caller.role != Role::Unknown,
        Access::InternalUsers => caller.role.sees_everything() || caller.role == Role::InternalUser,
    };
    if allowed { Ok(()) } else { Err(admin_only(path, caller)) }
}

/// 401 of the reference for a route that the master key alone may call.
pub fn master_key_only(path: &str) -> ApiError {
    ApiError::unauthorized(format!("Authentication Error, Tried to access route={path}, which is only for MASTER KEY"))
}

fn admin_only(path: &str, caller: &Caller) -> ApiError {
    let role = caller.role_name.as_deref().filter(|_| caller.user_exists).unwrap_or("unknown");
    ApiError::unauthorized(format!(
        "Authentication Error, Only proxy admin can be used to generate, delete, update info for new \
         keys/users/teams. Route={path}. Your role={role}."
    ))
}

/// Groups of routes that LiteLLM's `allowed_routes` may name instead of paths, as far as litespend serves them.
fn in_group(path: &str, group: &str) -> bool {
    match group {
        "spend_tracking_routes" => path.starts_with("/spend/") || path.ends_with("/spend/report"),
        "global_spend_tracking_routes" => path.starts_with("/global/spend/"),
        "info_routes" => {
            path.starts_with("/spend/")
                || path.contains("/daily/activity")
                || ["/key/info", "/team/list", "/user/info"].contains(&path)
        }
        "management_routes" => ["/spend/", "/user/", "/key/", "/team/"].iter().any(|start| path.starts_with(start)),
        _ => false,
    }
}

fn route_matches(path: &str, allowed: &str) -> bool {
    if path == allowed || in_group(path, allowed) {
        return true;
    }
    match allowed.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path.strip_prefix(allowed).is_some_and(|rest| rest.starts_with('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limited_keys_reach_their_routes_only() {
        let mut caller = Caller::master();
        caller.is_master = false;
        for (allowed, path, expected) in [
            ("/spend/logs", "/spend/logs", true),
            ("/spend/logs", "/spend/logs/v2", true),
            ("/spend/logs", "/spend/logsx", false),
            ("/spend/*", "/spend/tags", true),
            ("spend_tracking_routes", "/spend/tags", true),
            ("llm_api_routes", "/spend/tags", false),
        ] {
            caller.allowed_routes = vec![allowed.into()];
            assert_eq!(check(Access::Spend, path, &caller).is_ok(), expected, "{allowed} {path}");
        }
    }
}
