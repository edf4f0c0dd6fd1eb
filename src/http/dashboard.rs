//! LiteLLM's dashboard without a LiteLLM: its static export, the login, the lists it shows, and empty answers for what
//! litespend does not have. Served with `--ui DIR` only; the routes are not in the OpenAPI document, as in LiteLLM.

mod files;
mod folder;
mod lists;
mod login;
mod login_request;
mod shapes;
mod throttle;

use std::path::{Path, PathBuf};

use axum::Router;
use axum::routing::{get, post};
use secrecy::SecretString;

use crate::http::auth::access::Access;
use crate::http::router::{Rule, rule};
use crate::http::state::AppState;

pub use crate::http::dashboard::login::clean_up;
pub use crate::http::dashboard::throttle::LoginThrottle;

pub use crate::http::auth::session::TEAM as SESSION_TEAM;

/// Where the dashboard is, and who may log in with a password.
#[derive(Clone, Debug)]
pub struct UiSettings {
    /// The folder of the static export.
    pub directory: PathBuf,
    /// `UI_USERNAME`: the admin's name.
    pub username: String,
    /// `UI_PASSWORD`; without it, the master key is the password.
    pub password: Option<SecretString>,
}

/// Whether a folder is such an export.
pub fn is_export(directory: &Path) -> bool {
    directory.join("index.html").is_file() && directory.join("_next").is_dir()
}

/// Who may call what, beside `router::ROUTES`.
pub const ROUTES: &[Rule] = &[
    rule("/ui", "GET", Access::Public),
    rule("/ui/", "GET", Access::Public),
    rule("/ui/{*rest}", "GET", Access::Public),
    rule("/_next/{*rest}", "GET", Access::Public),
    rule("/litellm-asset-prefix/_next/{*rest}", "GET", Access::Public),
    rule("/get_image", "GET", Access::Public),
    rule("/get_image/", "GET", Access::Public),
    rule("/get_favicon", "GET", Access::Public),
    rule("/favicon.ico", "GET", Access::Public),
    rule("/ui.txt", "GET", Access::Public),
    rule("/ui/litellm-runtime-config.json", "GET", Access::Public),
    rule("/public/litellm_blog_posts", "GET", Access::Public),
    rule("/litellm/.well-known/litellm-ui-config", "GET", Access::Public),
    rule("/.well-known/litellm-ui-config", "GET", Access::Public),
    rule("/get/ui_theme_settings", "GET", Access::Public),
    rule("/v2/login", "POST", Access::Public),
    rule("/management/v1/users/me", "GET", Access::AnyKey),
    rule("/v2/user/info", "GET", Access::AnyKey),
    rule("/user/list", "GET", Access::AdminRead),
    rule("/user/available_users", "GET", Access::AdminRead),
    rule("/key/list", "GET", Access::AnyKey),
    rule("/v2/team/list", "GET", Access::AnyKey),
    rule("/team/info", "GET", Access::AnyKey),
    rule("/api/plugins", "GET", Access::AnyKey),
    rule("/health/license", "GET", Access::AnyKey),
    rule("/sso/get/ui_settings", "GET", Access::AnyKey),
    rule("/get/ui_settings", "GET", Access::Public),
    rule("/organization/list", "GET", Access::AnyKey),
    rule("/health/readiness/details", "GET", Access::AnyKey),
    rule("/get/user_banner", "GET", Access::AnyKey),
    rule("/gateway/daily/activity", "GET", Access::AnyKey),
    rule("/gateway/errors/activity", "GET", Access::AnyKey),
    rule("/get/latest_release_info", "GET", Access::AnyKey),
    rule("/telemetry/settings", "GET", Access::AnyKey),
    rule("/telemetry/ui_events/enabled", "GET", Access::AnyKey),
    rule("/health/deployment_warnings", "GET", Access::AnyKey),
    rule("/model_group/info", "GET", Access::AnyKey),
    rule("/models", "GET", Access::AnyKey),
    rule("/v2/model/info", "GET", Access::AnyKey),
    rule("/v1/agents", "GET", Access::AnyKey),
    rule("/subscription_accounts/usage", "GET", Access::AnyKey),
    rule("/tag/summary", "GET", Access::AnyKey),
    rule("/tag/list", "GET", Access::AnyKey),
    rule("/project/list", "GET", Access::AnyKey),
    rule("/prompts/list", "GET", Access::AnyKey),
    rule("/policies/list", "GET", Access::AnyKey),
    rule("/v2/guardrails/list", "GET", Access::AnyKey),
    rule("/user/available_roles", "GET", Access::AnyKey),
    rule("/team/metadata_schema", "GET", Access::AnyKey),
    rule("/get/sso_settings", "GET", Access::AdminRead),
    rule("/config/list", "GET", Access::AdminRead),
];

/// The routes, each of which has its line above.
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
    shapes::PATHS.iter().fold(router, |router, path| router.route(path, get(shapes::answer)))
}
