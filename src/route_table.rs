//! The table of all routes. It states for each route its path and method, who may call it, its groups in LiteLLM's
//! `allowed_routes`, whether a replica may answer it, and whether litespend answers it even if there is a LiteLLM
//! upstream. The router, the OpenAPI document, the upstream, the replica, the dashboard and the checks of settings use
//! this table. A path that is not in the table is refused.

/// The callers that may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everyone, from every address: liveness probes.
    Probe,
    /// Everyone whose address is allowed, without a key.
    Public,
    /// Only the master key.
    MasterKey,
    /// Admins. Viewers get 403, everyone else gets 401.
    AdminWrite,
    /// Admins and admin viewers.
    AdminRead,
    /// Admins, admin viewers, and keys with the permission `get_spend_routes`.
    GlobalSpend,
    /// Users with a role, and users without one, who count as internal users. Keys without a user are refused.
    Spend,
    /// Admins, admin viewers, and internal users that are not viewers.
    InternalUsers,
    /// Every key. The handler limits the rows in its answer.
    AnyKey,
}

impl Access {
    /// Whether the route needs no key.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Probe | Self::Public)
    }
}

/// The part of the API that a route belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Always served.
    Api,
    /// LiteLLM's dashboard. Served only with `--ui`.
    Dashboard,
    /// A request of the dashboard for something that litespend does not have. Answered with an empty result, only with
    /// `--ui`.
    Stub,
}

/// Names of LiteLLM's groups of routes.
pub type Groups = &'static [&'static str];

/// A row of the route table.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The path pattern, in the router's notation.
    pub path: &'static str,
    /// The method, which is also the value of the `Allow` header.
    pub method: &'static str,
    /// The callers that may use it.
    pub access: Access,
    /// The groups of LiteLLM 1.109.1 that contain the route. `allowed_routes` may name groups instead of paths.
    pub groups: Groups,
    /// The part of the API that it belongs to.
    pub part: Part,
    /// Whether a replica that lags behind may answer it.
    pub may_lag: bool,
    /// Whether the parameters `start_date` and `end_date` are required.
    pub needs_days: bool,
    /// Whether the LiteLLM upstream answers it, if there is one, unless `--manage-litellm-keys` is set.
    pub left_to_litellm: bool,
}

impl Route {
    const fn may_lag(self) -> Self {
        Self { may_lag: true, ..self }
    }

    const fn needs_days(self) -> Self {
        Self { needs_days: true, ..self }
    }

    const fn left_to_litellm(self) -> Self {
        Self { left_to_litellm: true, ..self }
    }

    const fn dashboard(self) -> Self {
        Self { part: Part::Dashboard, ..self }
    }

    const fn stub(self) -> Self {
        Self { part: Part::Stub, ..self }
    }

    /// Whether the route answers this method. Probes and pages answer HEAD like GET, but without the body. The API
    /// answers HEAD with 405, as LiteLLM does.
    pub fn allows(&self, method: &str) -> bool {
        self.method == method || (self.access.is_open() && method == "HEAD")
    }
}

const fn route(path: &'static str, method: &'static str, access: Access, groups: Groups) -> Route {
    let (part, may_lag, needs_days, left_to_litellm) = (Part::Api, false, false, false);
    Route { path, method, access, groups, part, may_lag, needs_days, left_to_litellm }
}

const fn get(path: &'static str, access: Access, groups: Groups) -> Route {
    route(path, "GET", access, groups)
}

const fn post(path: &'static str, access: Access, groups: Groups) -> Route {
    route(path, "POST", access, groups)
}

const SPEND: Groups = &[
    "spend_tracking_routes",
    "internal_user_routes",
    "internal_user_view_only_routes",
    "admin_viewer_routes",
    "org_admin_allowed_routes",
];
const LOG: Groups = &[
    "spend_tracking_routes",
    "key_management_routes",
    "management_routes",
    "internal_user_routes",
    "internal_user_view_only_routes",
    "admin_viewer_routes",
    "org_admin_allowed_routes",
];
const GLOBAL_TAGS: Groups = &["global_spend_tracking_routes", "ui_routes"];
const GLOBAL_SPEND: Groups = &["global_spend_tracking_routes"];
const RESET: Groups = &["master_key_only_routes"];
const BOOKING: Groups = &["spend_tracking_routes"];
const USER_ACTIVITY: Groups =
    &["management_routes", "self_managed_routes", "admin_viewer_routes", "org_admin_allowed_routes"];
const NONE: Groups = &[];
const GENERATE_KEY: Groups = &[
    "team_service_account_key_routes",
    "key_management_routes",
    "management_routes",
    "internal_user_routes",
    "org_admin_allowed_routes",
];
const KEYS: Groups =
    &["key_management_routes", "management_routes", "internal_user_routes", "org_admin_allowed_routes"];
const KEY_INFO: Groups = &[
    "info_routes",
    "key_management_routes",
    "management_routes",
    "ui_routes",
    "internal_user_routes",
    "admin_viewer_routes",
    "org_admin_allowed_routes",
];
const NEW_ACCOUNTS: Groups = &["management_routes", "org_admin_allowed_routes"];
const ACCOUNT_INFO: Groups =
    &["info_routes", "management_routes", "ui_routes", "admin_viewer_routes", "org_admin_allowed_routes"];
const TEAM_ACTIVITY: Groups = &[
    "key_management_routes",
    "management_routes",
    "internal_user_routes",
    "self_managed_routes",
    "admin_viewer_routes",
    "org_admin_allowed_routes",
];
const TAG_ACTIVITY: Groups =
    &["internal_user_routes", "internal_user_view_only_routes", "admin_viewer_routes", "org_admin_allowed_routes"];
const OVERVIEW: Groups = &["ui_routes", "internal_user_routes", "admin_viewer_routes", "org_admin_allowed_routes"];
const MODEL_OVERVIEW: Groups = &["internal_user_routes", "admin_viewer_routes", "org_admin_allowed_routes"];

/// All routes.
pub const ROUTES: &[Route] = &[
    post("/spend/calculate", Access::Spend, SPEND),
    get("/spend/logs", Access::Spend, LOG).may_lag(),
    get("/spend/tags", Access::Spend, SPEND).may_lag(),
    get("/global/spend/tags", Access::GlobalSpend, GLOBAL_TAGS).may_lag().needs_days(),
    get("/global/spend/report", Access::GlobalSpend, GLOBAL_SPEND).may_lag().needs_days(),
    post("/global/spend/reset", Access::MasterKey, RESET),
    post("/spend/usage", Access::AnyKey, BOOKING),
    post("/spend/usage/litellm", Access::AnyKey, BOOKING),
    post("/v1/traces", Access::AnyKey, BOOKING),
    get("/user/daily/activity", Access::AnyKey, USER_ACTIVITY).may_lag().needs_days(),
    post("/add/allowed_ip", Access::AdminWrite, NONE),
    post("/delete/allowed_ip", Access::AdminWrite, NONE),
    get("/get/allowed_ips", Access::AdminRead, NONE),
    post("/key/generate", Access::AdminWrite, GENERATE_KEY).left_to_litellm(),
    post("/key/delete", Access::AdminWrite, KEYS).left_to_litellm(),
    post("/key/block", Access::AdminWrite, KEYS).left_to_litellm(),
    post("/key/unblock", Access::AdminWrite, KEYS).left_to_litellm(),
    get("/key/info", Access::AdminRead, KEY_INFO).left_to_litellm(),
    post("/team/new", Access::AdminWrite, NEW_ACCOUNTS).left_to_litellm(),
    get("/team/list", Access::AdminRead, ACCOUNT_INFO).left_to_litellm(),
    post("/user/new", Access::AdminWrite, NEW_ACCOUNTS).left_to_litellm(),
    get("/user/info", Access::AdminRead, ACCOUNT_INFO).left_to_litellm(),
    get("/user/daily/activity/aggregated", Access::AnyKey, USER_ACTIVITY).may_lag().needs_days(),
    get("/user/daily/activity/aggregated/keys", Access::AnyKey, USER_ACTIVITY).may_lag().needs_days(),
    get("/user/daily/activity/aggregated/users", Access::AnyKey, USER_ACTIVITY).may_lag().needs_days(),
    get("/user/daily/activity/aggregated/model_top_keys", Access::AnyKey, USER_ACTIVITY).may_lag().needs_days(),
    get("/team/daily/activity", Access::AnyKey, TEAM_ACTIVITY).may_lag().needs_days(),
    get("/team/daily/activity/aggregated", Access::AnyKey, TEAM_ACTIVITY).may_lag().needs_days(),
    get("/tag/daily/activity/aggregated", Access::Spend, TAG_ACTIVITY).may_lag().needs_days(),
    get("/spend/logs/v2", Access::Spend, LOG).may_lag(),
    get("/spend/logs/ui", Access::Spend, SPEND).may_lag(),
    get("/spend/logs/ui/{request_id}", Access::Spend, SPEND).may_lag(),
    get("/spend/logs/session/ui", Access::Spend, SPEND).may_lag(),
    get("/spend/keys", Access::Spend, SPEND).may_lag(),
    get("/spend/users", Access::Spend, SPEND).may_lag(),
    get("/key/spend/report", Access::Spend, SPEND).may_lag().needs_days(),
    get("/user/spend/report", Access::Spend, SPEND).may_lag().needs_days(),
    get("/team/spend/report", Access::Spend, SPEND).may_lag().needs_days(),
    get("/global/activity", Access::InternalUsers, OVERVIEW).may_lag().needs_days(),
    get("/global/activity/model", Access::InternalUsers, MODEL_OVERVIEW).may_lag().needs_days(),
    get("/global/spend/provider", Access::GlobalSpend, GLOBAL_SPEND).may_lag().needs_days(),
    get("/global/spend/all_tag_names", Access::GlobalSpend, GLOBAL_SPEND).may_lag(),
    get("/global/all_end_users", Access::AdminRead, NONE).may_lag(),
    get("/health/liveliness", Access::Probe, NONE),
    get("/health/liveness", Access::Probe, NONE),
    get("/health/readiness", Access::Public, NONE),
    get("/metrics", Access::AdminRead, NONE),
    get("/metrics/spend", Access::AdminRead, NONE),
    get("/openapi.json", Access::Public, NONE),
    get("/", Access::Public, NONE),
    get("/docs", Access::Public, NONE),
    get("/docs/", Access::Public, NONE),
    get("/docs/{*rest}", Access::Public, NONE),
    // Routes of the dashboard.
    get("/ui", Access::Public, NONE).dashboard(),
    get("/ui/", Access::Public, NONE).dashboard(),
    get("/ui/{*rest}", Access::Public, NONE).dashboard(),
    get("/_next/{*rest}", Access::Public, NONE).dashboard(),
    get("/litellm-asset-prefix/_next/{*rest}", Access::Public, NONE).dashboard(),
    get("/get_image", Access::Public, NONE).dashboard(),
    get("/get_image/", Access::Public, NONE).dashboard(),
    get("/get_favicon", Access::Public, NONE).dashboard(),
    get("/favicon.ico", Access::Public, NONE).dashboard(),
    get("/ui.txt", Access::Public, NONE).dashboard(),
    post("/v2/login", Access::Public, NONE).dashboard(),
    get("/management/v1/users/me", Access::AnyKey, NONE).dashboard(),
    get("/v2/user/info", Access::AnyKey, NONE).dashboard(),
    get("/user/list", Access::AdminRead, NONE).dashboard(),
    get("/user/available_users", Access::AdminRead, NONE).dashboard(),
    get("/key/list", Access::AnyKey, KEYS).dashboard(),
    get("/v2/team/list", Access::AnyKey, NONE).dashboard(),
    get("/team/info", Access::AnyKey, NONE).dashboard(),
    get("/gateway/daily/activity", Access::AnyKey, NONE).dashboard(),
    // Other requests of the dashboard, for things that litespend does not have.
    get("/ui/litellm-runtime-config.json", Access::Public, NONE).stub(),
    get("/public/litellm_blog_posts", Access::Public, NONE).stub(),
    get("/litellm/.well-known/litellm-ui-config", Access::Public, NONE).stub(),
    get("/.well-known/litellm-ui-config", Access::Public, NONE).stub(),
    get("/get/ui_theme_settings", Access::Public, NONE).stub(),
    get("/api/plugins", Access::AnyKey, NONE).stub(),
    get("/health/license", Access::AnyKey, NONE).stub(),
    get("/sso/get/ui_settings", Access::AnyKey, NONE).stub(),
    get("/get/ui_settings", Access::Public, NONE).stub(),
    get("/organization/list", Access::AnyKey, NONE).stub(),
    get("/health/readiness/details", Access::AnyKey, NONE).stub(),
    get("/get/user_banner", Access::AnyKey, NONE).stub(),
    get("/gateway/errors/activity", Access::AnyKey, NONE).stub(),
    get("/get/latest_release_info", Access::AnyKey, NONE).stub(),
    get("/telemetry/settings", Access::AnyKey, NONE).stub(),
    get("/telemetry/ui_events/enabled", Access::AnyKey, NONE).stub(),
    get("/health/deployment_warnings", Access::AnyKey, NONE).stub(),
    get("/model_group/info", Access::AnyKey, NONE).stub(),
    get("/models", Access::AnyKey, NONE).stub(),
    get("/v2/model/info", Access::AnyKey, NONE).stub(),
    get("/v1/agents", Access::AnyKey, NONE).stub(),
    get("/subscription_accounts/usage", Access::AnyKey, NONE).stub(),
    get("/tag/summary", Access::AnyKey, NONE).stub(),
    get("/tag/list", Access::AnyKey, NONE).stub(),
    get("/project/list", Access::AnyKey, NONE).stub(),
    get("/prompts/list", Access::AnyKey, NONE).stub(),
    get("/policies/list", Access::AnyKey, NONE).stub(),
    get("/v2/guardrails/list", Access::AnyKey, NONE).stub(),
    get("/user/available_roles", Access::AnyKey, NONE).stub(),
    get("/team/metadata_schema", Access::AnyKey, NONE).stub(),
    get("/get/sso_settings", Access::AdminRead, NONE).stub(),
    get("/config/list", Access::AdminRead, NONE).stub(),
    get("/access_group/list", Access::AdminRead, NONE).stub(),
    get("/alerting/settings", Access::AdminRead, NONE).stub(),
    get("/auto_router/benchmarks", Access::AdminRead, NONE).stub(),
    get("/auto_router/shadow_eval", Access::AdminRead, NONE).stub(),
    get("/cache/settings", Access::AdminRead, NONE).stub(),
    get("/callbacks/configs", Access::AdminRead, NONE).stub(),
    get("/claude-code/plugins", Access::AnyKey, NONE).stub(),
    get("/cloudzero/settings", Access::AdminRead, NONE).stub(),
    get("/config/block_requests_for_models_without_pricing", Access::AdminRead, NONE).stub(),
    get("/config/cost_discount_config", Access::AdminRead, NONE).stub(),
    get("/config/cost_margin_config", Access::AdminRead, NONE).stub(),
    get("/config/pass_through_endpoint", Access::AdminRead, NONE).stub(),
    get("/config_overrides/cyberark", Access::AdminRead, NONE).stub(),
    get("/config_overrides/hashicorp_vault", Access::AdminRead, NONE).stub(),
    get("/coordination_redis/settings", Access::AdminRead, NONE).stub(),
    get("/cost_optimization/prompt_caching/requests", Access::AdminRead, NONE).stub(),
    get("/credentials", Access::AdminRead, NONE).stub(),
    get("/credentials/user_connections", Access::AnyKey, NONE).stub(),
    get("/get/background_chat_settings", Access::AdminRead, NONE).stub(),
    get("/get/config/callbacks", Access::AdminRead, NONE).stub(),
    get("/get/default_team_settings", Access::AdminRead, NONE).stub(),
    get("/get/internal_user_settings", Access::AdminRead, NONE).stub(),
    get("/get/mcp_semantic_filter_settings", Access::AdminRead, NONE).stub(),
    get("/get/mcp_tool_search_settings", Access::AdminRead, NONE).stub(),
    get("/get/websearch_interception_settings", Access::AdminRead, NONE).stub(),
    get("/global/activity/cache_hits", Access::AnyKey, NONE).stub(),
    get("/guardrails/submissions", Access::AnyKey, NONE).stub(),
    get("/guardrails/ui/add_guardrail_settings", Access::AdminRead, NONE).stub(),
    get("/guardrails/ui/provider_specific_params", Access::AdminRead, NONE).stub(),
    get("/guardrails/usage/overview", Access::AdminRead, NONE).stub(),
    get("/health/latest", Access::AdminRead, NONE).stub(),
    get("/lens/service", Access::AnyKey, NONE).stub(),
    get("/management/v1/budgets", Access::AdminRead, NONE).stub(),
    get("/model-insights", Access::AdminRead, NONE).stub(),
    get("/model/cost_map/source", Access::AdminRead, NONE).stub(),
    get("/model/deprecations", Access::AdminRead, NONE).stub(),
    get("/policies/attachments/list", Access::AdminRead, NONE).stub(),
    get("/policy/templates", Access::AdminRead, NONE).stub(),
    get("/public/agents/fields", Access::Public, NONE).stub(),
    get("/public/litellm_model_cost_map", Access::Public, NONE).stub(),
    get("/public/model_hub/info", Access::Public, NONE).stub(),
    get("/public/providers/fields", Access::Public, NONE).stub(),
    get("/public/skill_hub", Access::Public, NONE).stub(),
    get("/public/v1/model_hub", Access::Public, NONE).stub(),
    get("/public/v1/model_hub/{facet}", Access::Public, NONE).stub(),
    get("/router/fields", Access::AdminRead, NONE).stub(),
    get("/router/settings", Access::AdminRead, NONE).stub(),
    get("/schedule/model_cost_map_reload/status", Access::AdminRead, NONE).stub(),
    get("/search_tools/list", Access::AnyKey, NONE).stub(),
    get("/search_tools/ui/available_providers", Access::AnyKey, NONE).stub(),
    get("/skill-hub/skills", Access::AnyKey, NONE).stub(),
    get("/skill-hub/submissions", Access::AnyKey, NONE).stub(),
    get("/team/available", Access::AnyKey, NONE).stub(),
    get("/user/daily/activity/aggregated/cache_leakage_keys", Access::AnyKey, NONE).stub(),
    get("/v1/access_group", Access::AdminRead, NONE).stub(),
    get("/v1/indexes", Access::AdminRead, NONE).stub(),
    get("/v1/mcp/network/client-ip", Access::AnyKey, NONE).stub(),
    get("/v1/mcp/server", Access::AnyKey, NONE).stub(),
    get("/v1/mcp/server/health", Access::AnyKey, NONE).stub(),
    get("/v1/mcp/server/submissions", Access::AdminRead, NONE).stub(),
    get("/v1/mcp/sessions", Access::AdminRead, NONE).stub(),
    get("/v1/mcp/toolset", Access::AnyKey, NONE).stub(),
    get("/v1/mcp/user-credentials", Access::AnyKey, NONE).stub(),
    get("/v1/mcp/user-env-vars/status", Access::AnyKey, NONE).stub(),
    get("/v1/memory", Access::AdminRead, NONE).stub(),
    get("/v1/tool/list", Access::AdminRead, NONE).stub(),
    get("/v1/tool/spend", Access::AdminRead, NONE).stub(),
    get("/v1/traces", Access::AnyKey, NONE).stub(),
    get("/v1/traces/agents", Access::AnyKey, NONE).stub(),
    get("/v1/workflows/runs", Access::AdminRead, NONE).stub(),
    get("/vector_store/list", Access::AnyKey, NONE).stub(),
];

/// Finds the route with a path pattern. The route is served only if its part is served. Where the API and the dashboard
/// have routes with the same path, this is the API's.
pub fn find(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.path == path)
}

/// Finds the route for a path pattern and a method, among all routes or only those of the API. If none answers the
/// method, this is the first one with the path.
pub fn find_for(path: &str, method: &str, with_dashboard: bool) -> Option<&'static Route> {
    let mut served = ROUTES.iter().filter(|route| route.path == path && (with_dashboard || route.part == Part::Api));
    served.clone().find(|route| route.allows(method)).or_else(|| served.next())
}

/// The routes that are always served.
pub fn api() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| route.part == Part::Api)
}
