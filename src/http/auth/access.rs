//! Which callers may call each class of routes. The route table says which class a route is in.

use axum::http::StatusCode;

use crate::http::error::ApiError;
use crate::identity::{Caller, Role, allowed_routes};
use crate::route_table::Access;

/// Checks that `caller` may call `path`, a route of the class `access`.
pub fn check(access: Access, path: &str, caller: &Caller) -> Result<(), ApiError> {
    if !caller.allowed_routes.is_empty()
        && !caller.allowed_routes.iter().any(|allowed| allowed_routes::matches(path, allowed))
    {
        let message = format!(
            "Virtual key is not allowed to call this route. Only allowed to call routes: {}. Tried to call route: {path}",
            caller.allowed_routes.join(", ")
        );
        return Err(ApiError::detail(StatusCode::FORBIDDEN, message));
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

/// The reference's 401 for a route that only the master key may call.
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
            ("info_routes", "/user/info", true),
            ("info_routes", "/spend/tags", false),
            ("management_routes", "/spend/logs", true),
            ("management_routes", "/spend/tags", false),
            ("internal_user_view_only_routes", "/spend/usage", false),
            ("spend_tracking_routes", "/spend/usage", true),
            ("global_spend_tracking_routes", "/global/spend/reset", false),
            ("", "/spend/tags", false),
            ("/", "/spend/tags", false),
        ] {
            caller.allowed_routes = vec![allowed.into()];
            assert_eq!(check(Access::Spend, path, &caller).is_ok(), expected, "{allowed} {path}");
        }
    }
}
