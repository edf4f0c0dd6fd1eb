//! LiteLLM's dashboard without a LiteLLM: its static export, the login, its lists, and empty answers for features that
//! litespend lacks. These routes are served with `--ui DIR` only. They are not in the OpenAPI document; LiteLLM leaves
//! them out of its document too.

mod files;
mod folder;
mod lists;
mod login;
mod login_request;
mod stubs;
pub mod throttle;

use std::path::Path;

use axum::Router;
use axum::routing::{get, post};

use crate::http::state::AppState;
use crate::route_table::{self, Part};

pub use crate::http::dashboard::login::clean_up;

pub use crate::identity::SESSION_TEAM;

/// Whether a folder is an export of the dashboard.
pub fn is_export(directory: &Path) -> bool {
    directory.join("index.html").is_file() && directory.join("_next").is_dir()
}

/// The dashboard's routes. Each has its line in the route table.
pub fn router() -> Router<AppState> {
    let router = Router::new()
        .route("/ui", get(files::to_front_page))
        .route("/ui/", get(files::page))
        .route("/ui/{*rest}", get(files::page))
        .route("/_next/{*rest}", get(files::asset))
        .route("/litellm-asset-prefix/_next/{*rest}", get(files::asset))
        .route("/get_image", get(files::logo))
        .route("/get_image/", get(files::logo))
        .route("/get_favicon", get(files::favicon))
        .route("/favicon.ico", get(files::favicon))
        .route("/ui.txt", get(files::front_page_data))
        .route("/v2/login", post(login::log_in))
        .route("/management/v1/users/me", get(lists::get_caller))
        .route("/v2/user/info", get(lists::get_user))
        .route("/user/list", get(lists::list_users))
        .route("/user/available_users", get(lists::count_users))
        .route("/key/list", get(lists::list_keys))
        .route("/v2/team/list", get(lists::list_teams))
        .route("/team/info", get(lists::get_team))
        .route("/gateway/daily/activity", get(lists::count_calls));
    let stubs = route_table::ROUTES.iter().filter(|route| route.part == Part::Stub);
    stubs.fold(router, |router, route| router.route(route.path, get(stubs::answer)))
}
