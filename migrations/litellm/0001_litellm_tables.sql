-- The tables of LiteLLM 1.109 that litespend reads and writes, for a database of our own: same names,
-- types, defaults and indexes, so that LiteLLM, its dashboard and its SQL find what they expect.
-- Never applied to a database that LiteLLM owns.

CREATE TABLE "LiteLLM_Config" (
    param_name text NOT NULL,
    param_value jsonb,
    last_run_at timestamp(3),
    reload_revision bigint NOT NULL DEFAULT 0,
    CONSTRAINT "LiteLLM_Config_pkey" PRIMARY KEY (param_name)
);

CREATE TABLE "LiteLLM_DailyTagSpend" (
    id text NOT NULL,
    tag text,
    date text NOT NULL,
    api_key text NOT NULL,
    model text,
    model_group text,
    custom_llm_provider text,
    prompt_tokens bigint NOT NULL DEFAULT 0,
    completion_tokens bigint NOT NULL DEFAULT 0,
    cache_read_input_tokens bigint NOT NULL DEFAULT 0,
    cache_creation_input_tokens bigint NOT NULL DEFAULT 0,
    spend double precision NOT NULL DEFAULT 0.0,
    api_requests bigint NOT NULL DEFAULT 0,
    successful_requests bigint NOT NULL DEFAULT 0,
    failed_requests bigint NOT NULL DEFAULT 0,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL,
    mcp_namespaced_tool_name text,
    request_id text,
    endpoint text,
    compression_saved_tokens bigint NOT NULL DEFAULT 0,
    compression_savings_spend double precision NOT NULL DEFAULT 0.0,
    prompt_caching_savings_spend double precision NOT NULL DEFAULT 0.0,
    autorouter_savings_spend double precision NOT NULL DEFAULT 0.0,
    gateway_injected_caching_savings_spend double precision NOT NULL DEFAULT 0.0,
    total_response_time_ms bigint NOT NULL DEFAULT 0,
    timed_requests bigint NOT NULL DEFAULT 0,
    CONSTRAINT "LiteLLM_DailyTagSpend_pkey" PRIMARY KEY (id)
);
CREATE INDEX "LiteLLM_DailyTagSpend_api_key_idx" ON "LiteLLM_DailyTagSpend" (api_key);
CREATE INDEX "LiteLLM_DailyTagSpend_date_idx" ON "LiteLLM_DailyTagSpend" (date);
CREATE INDEX "LiteLLM_DailyTagSpend_endpoint_idx" ON "LiteLLM_DailyTagSpend" (endpoint);
CREATE INDEX "LiteLLM_DailyTagSpend_mcp_namespaced_tool_name_idx" ON "LiteLLM_DailyTagSpend" (mcp_namespaced_tool_name);
CREATE INDEX "LiteLLM_DailyTagSpend_model_idx" ON "LiteLLM_DailyTagSpend" (model);
CREATE INDEX "LiteLLM_DailyTagSpend_tag_date_idx" ON "LiteLLM_DailyTagSpend" (tag, date);
CREATE UNIQUE INDEX "LiteLLM_DailyTagSpend_tag_date_api_key_model_custom_llm_provide" ON "LiteLLM_DailyTagSpend" (tag, date, api_key, model, custom_llm_provider, mcp_namespaced_tool_name, endpoint);

CREATE TABLE "LiteLLM_DailyTeamSpend" (
    id text NOT NULL,
    team_id text,
    date text NOT NULL,
    api_key text NOT NULL,
    model text,
    model_group text,
    custom_llm_provider text,
    prompt_tokens bigint NOT NULL DEFAULT 0,
    completion_tokens bigint NOT NULL DEFAULT 0,
    spend double precision NOT NULL DEFAULT 0.0,
    api_requests bigint NOT NULL DEFAULT 0,
    successful_requests bigint NOT NULL DEFAULT 0,
    failed_requests bigint NOT NULL DEFAULT 0,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL,
    cache_creation_input_tokens bigint NOT NULL DEFAULT 0,
    cache_read_input_tokens bigint NOT NULL DEFAULT 0,
    mcp_namespaced_tool_name text,
    endpoint text,
    ptu_flat_cost double precision NOT NULL DEFAULT 0.0,
    compression_saved_tokens bigint NOT NULL DEFAULT 0,
    compression_savings_spend double precision NOT NULL DEFAULT 0.0,
    prompt_caching_savings_spend double precision NOT NULL DEFAULT 0.0,
    autorouter_savings_spend double precision NOT NULL DEFAULT 0.0,
    gateway_injected_caching_savings_spend double precision NOT NULL DEFAULT 0.0,
    total_response_time_ms bigint NOT NULL DEFAULT 0,
    timed_requests bigint NOT NULL DEFAULT 0,
    CONSTRAINT "LiteLLM_DailyTeamSpend_pkey" PRIMARY KEY (id)
);
CREATE INDEX "LiteLLM_DailyTeamSpend_api_key_idx" ON "LiteLLM_DailyTeamSpend" (api_key);
CREATE INDEX "LiteLLM_DailyTeamSpend_date_idx" ON "LiteLLM_DailyTeamSpend" (date);
CREATE INDEX "LiteLLM_DailyTeamSpend_endpoint_idx" ON "LiteLLM_DailyTeamSpend" (endpoint);
CREATE INDEX "LiteLLM_DailyTeamSpend_mcp_namespaced_tool_name_idx" ON "LiteLLM_DailyTeamSpend" (mcp_namespaced_tool_name);
CREATE INDEX "LiteLLM_DailyTeamSpend_model_idx" ON "LiteLLM_DailyTeamSpend" (model);
CREATE INDEX "LiteLLM_DailyTeamSpend_team_id_date_idx" ON "LiteLLM_DailyTeamSpend" (team_id, date);
CREATE UNIQUE INDEX "LiteLLM_DailyTeamSpend_team_id_date_api_key_model_custom_llm_pr" ON "LiteLLM_DailyTeamSpend" (team_id, date, api_key, model, custom_llm_provider, mcp_namespaced_tool_name, endpoint);

CREATE TABLE "LiteLLM_DailyUserSpend" (
    id text NOT NULL,
    user_id text,
    date text NOT NULL,
    api_key text NOT NULL,
    model text,
    model_group text,
    custom_llm_provider text,
    prompt_tokens bigint NOT NULL DEFAULT 0,
    completion_tokens bigint NOT NULL DEFAULT 0,
    spend double precision NOT NULL DEFAULT 0.0,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL,
    api_requests bigint NOT NULL DEFAULT 0,
    failed_requests bigint NOT NULL DEFAULT 0,
    successful_requests bigint NOT NULL DEFAULT 0,
    cache_creation_input_tokens bigint NOT NULL DEFAULT 0,
    cache_read_input_tokens bigint NOT NULL DEFAULT 0,
    mcp_namespaced_tool_name text,
    endpoint text,
    compression_saved_tokens bigint NOT NULL DEFAULT 0,
    compression_savings_spend double precision NOT NULL DEFAULT 0.0,
    prompt_caching_savings_spend double precision NOT NULL DEFAULT 0.0,
    autorouter_savings_spend double precision NOT NULL DEFAULT 0.0,
    gateway_injected_caching_savings_spend double precision NOT NULL DEFAULT 0.0,
    total_response_time_ms bigint NOT NULL DEFAULT 0,
    timed_requests bigint NOT NULL DEFAULT 0,
    CONSTRAINT "LiteLLM_DailyUserSpend_pkey" PRIMARY KEY (id)
);
CREATE INDEX "LiteLLM_DailyUserSpend_api_key_idx" ON "LiteLLM_DailyUserSpend" (api_key);
CREATE INDEX "LiteLLM_DailyUserSpend_date_idx" ON "LiteLLM_DailyUserSpend" (date);
CREATE INDEX "LiteLLM_DailyUserSpend_endpoint_idx" ON "LiteLLM_DailyUserSpend" (endpoint);
CREATE INDEX "LiteLLM_DailyUserSpend_mcp_namespaced_tool_name_idx" ON "LiteLLM_DailyUserSpend" (mcp_namespaced_tool_name);
CREATE INDEX "LiteLLM_DailyUserSpend_model_idx" ON "LiteLLM_DailyUserSpend" (model);
CREATE INDEX "LiteLLM_DailyUserSpend_user_id_date_idx" ON "LiteLLM_DailyUserSpend" (user_id, date);
CREATE UNIQUE INDEX "LiteLLM_DailyUserSpend_user_id_date_api_key_model_custom_llm_pr" ON "LiteLLM_DailyUserSpend" (user_id, date, api_key, model, custom_llm_provider, mcp_namespaced_tool_name, endpoint);

CREATE TABLE "LiteLLM_DeletedVerificationToken" (
    id text NOT NULL,
    token text NOT NULL,
    key_name text,
    key_alias text,
    soft_budget_cooldown boolean NOT NULL DEFAULT false,
    spend double precision NOT NULL DEFAULT 0.0,
    expires timestamp(3),
    models text[],
    aliases jsonb NOT NULL DEFAULT '{}'::jsonb,
    config jsonb NOT NULL DEFAULT '{}'::jsonb,
    user_id text,
    team_id text,
    permissions jsonb NOT NULL DEFAULT '{}'::jsonb,
    max_parallel_requests integer,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    blocked boolean,
    tpm_limit bigint,
    rpm_limit bigint,
    max_budget double precision,
    budget_duration text,
    budget_reset_at timestamp(3),
    allowed_cache_controls text[] DEFAULT ARRAY[]::text[],
    allowed_routes text[] DEFAULT ARRAY[]::text[],
    model_spend jsonb NOT NULL DEFAULT '{}'::jsonb,
    model_max_budget jsonb NOT NULL DEFAULT '{}'::jsonb,
    budget_id text,
    organization_id text,
    object_permission_id text,
    created_at timestamp(3),
    created_by text,
    updated_at timestamp(3),
    updated_by text,
    rotation_count integer DEFAULT 0,
    auto_rotate boolean DEFAULT false,
    rotation_interval text,
    last_rotation_at timestamp(3),
    key_rotation_at timestamp(3),
    deleted_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    deleted_by text,
    deleted_by_api_key text,
    litellm_changed_by text,
    router_settings jsonb DEFAULT '{}'::jsonb,
    policies text[] DEFAULT ARRAY[]::text[],
    access_group_ids text[] DEFAULT ARRAY[]::text[],
    last_active timestamp(3),
    project_id text,
    agent_id text,
    budget_fallbacks jsonb NOT NULL DEFAULT '{}'::jsonb,
    key_type text,
    settings_updated_at timestamp(3),
    tpd_limit bigint,
    total_spend double precision NOT NULL DEFAULT 0.0,
    CONSTRAINT "LiteLLM_DeletedVerificationToken_pkey" PRIMARY KEY (id)
);
CREATE INDEX "LiteLLM_DeletedVerificationToken_created_at_idx" ON "LiteLLM_DeletedVerificationToken" (created_at);
CREATE INDEX "LiteLLM_DeletedVerificationToken_deleted_at_idx" ON "LiteLLM_DeletedVerificationToken" (deleted_at);
CREATE INDEX "LiteLLM_DeletedVerificationToken_key_alias_idx" ON "LiteLLM_DeletedVerificationToken" (key_alias);
CREATE INDEX "LiteLLM_DeletedVerificationToken_organization_id_idx" ON "LiteLLM_DeletedVerificationToken" (organization_id);
CREATE INDEX "LiteLLM_DeletedVerificationToken_team_id_idx" ON "LiteLLM_DeletedVerificationToken" (team_id);
CREATE INDEX "LiteLLM_DeletedVerificationToken_token_idx" ON "LiteLLM_DeletedVerificationToken" (token);
CREATE INDEX "LiteLLM_DeletedVerificationToken_user_id_idx" ON "LiteLLM_DeletedVerificationToken" (user_id);

CREATE TABLE "LiteLLM_EndUserTable" (
    user_id text NOT NULL,
    alias text,
    spend double precision NOT NULL DEFAULT 0.0,
    allowed_model_region text,
    default_model text,
    budget_id text,
    blocked boolean NOT NULL DEFAULT false,
    object_permission_id text,
    models text[] DEFAULT ARRAY[]::text[],
    CONSTRAINT "LiteLLM_EndUserTable_pkey" PRIMARY KEY (user_id)
);

CREATE TABLE "LiteLLM_OrganizationTable" (
    organization_id text NOT NULL,
    organization_alias text NOT NULL,
    budget_id text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    models text[],
    spend double precision NOT NULL DEFAULT 0.0,
    model_spend jsonb NOT NULL DEFAULT '{}'::jsonb,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    created_by text NOT NULL,
    updated_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_by text NOT NULL,
    object_permission_id text,
    CONSTRAINT "LiteLLM_OrganizationTable_pkey" PRIMARY KEY (organization_id)
);

CREATE TABLE "LiteLLM_ProxyModelTable" (
    model_id text NOT NULL,
    model_name text NOT NULL,
    litellm_params jsonb NOT NULL,
    model_info jsonb,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    created_by text NOT NULL,
    updated_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_by text NOT NULL,
    blocked boolean NOT NULL DEFAULT false,
    CONSTRAINT "LiteLLM_ProxyModelTable_pkey" PRIMARY KEY (model_id)
);

CREATE TABLE "LiteLLM_SpendLogs" (
    request_id text NOT NULL,
    call_type text NOT NULL,
    api_key text NOT NULL DEFAULT ''::text,
    spend double precision NOT NULL DEFAULT 0.0,
    total_tokens integer NOT NULL DEFAULT 0,
    prompt_tokens integer NOT NULL DEFAULT 0,
    completion_tokens integer NOT NULL DEFAULT 0,
    "startTime" timestamp(3) NOT NULL,
    "endTime" timestamp(3) NOT NULL,
    "completionStartTime" timestamp(3),
    model text NOT NULL DEFAULT ''::text,
    model_id text DEFAULT ''::text,
    model_group text DEFAULT ''::text,
    custom_llm_provider text DEFAULT ''::text,
    api_base text DEFAULT ''::text,
    "user" text DEFAULT ''::text,
    metadata jsonb DEFAULT '{}'::jsonb,
    cache_hit text DEFAULT ''::text,
    cache_key text DEFAULT ''::text,
    request_tags jsonb DEFAULT '[]'::jsonb,
    team_id text,
    end_user text,
    requester_ip_address text,
    messages jsonb DEFAULT '{}'::jsonb,
    response jsonb DEFAULT '{}'::jsonb,
    proxy_server_request jsonb DEFAULT '{}'::jsonb,
    session_id text,
    status text,
    mcp_namespaced_tool_name text,
    organization_id text,
    agent_id text,
    request_duration_ms integer,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    litellm_call_id text,
    billing_agent_id text,
    CONSTRAINT "LiteLLM_SpendLogs_pkey" PRIMARY KEY (request_id)
);
CREATE INDEX "LiteLLM_SpendLogs_end_user_idx" ON "LiteLLM_SpendLogs" (end_user);
CREATE INDEX "LiteLLM_SpendLogs_session_id_idx" ON "LiteLLM_SpendLogs" (session_id);
CREATE INDEX "LiteLLM_SpendLogs_startTime_request_id_idx" ON "LiteLLM_SpendLogs" ("startTime", request_id);

CREATE TABLE "LiteLLM_TeamMembership" (
    user_id text NOT NULL,
    team_id text NOT NULL,
    spend double precision NOT NULL DEFAULT 0.0,
    budget_id text,
    total_spend double precision NOT NULL DEFAULT 0.0,
    CONSTRAINT "LiteLLM_TeamMembership_pkey" PRIMARY KEY (user_id, team_id)
);

CREATE TABLE "LiteLLM_TeamTable" (
    team_id text NOT NULL,
    team_alias text,
    organization_id text,
    admins text[],
    members text[],
    members_with_roles jsonb NOT NULL DEFAULT '{}'::jsonb,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    max_budget double precision,
    spend double precision NOT NULL DEFAULT 0.0,
    models text[],
    max_parallel_requests integer,
    tpm_limit bigint,
    rpm_limit bigint,
    budget_duration text,
    budget_reset_at timestamp(3),
    blocked boolean NOT NULL DEFAULT false,
    created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    model_spend jsonb NOT NULL DEFAULT '{}'::jsonb,
    model_max_budget jsonb NOT NULL DEFAULT '{}'::jsonb,
    model_id integer,
    team_member_permissions text[] DEFAULT ARRAY[]::text[],
    object_permission_id text,
    router_settings jsonb DEFAULT '{}'::jsonb,
    policies text[] DEFAULT ARRAY[]::text[],
    allow_team_guardrail_config boolean NOT NULL DEFAULT false,
    soft_budget double precision,
    access_group_ids text[] DEFAULT ARRAY[]::text[],
    budget_limits jsonb,
    default_team_member_models text[] DEFAULT ARRAY[]::text[],
    tpd_limit bigint,
    CONSTRAINT "LiteLLM_TeamTable_pkey" PRIMARY KEY (team_id)
);
CREATE INDEX "LiteLLM_TeamTable_created_at_idx" ON "LiteLLM_TeamTable" (created_at);
CREATE INDEX "LiteLLM_TeamTable_organization_id_idx" ON "LiteLLM_TeamTable" (organization_id);
CREATE INDEX "LiteLLM_TeamTable_team_alias_idx" ON "LiteLLM_TeamTable" (team_alias);
CREATE UNIQUE INDEX "LiteLLM_TeamTable_model_id_key" ON "LiteLLM_TeamTable" (model_id);

CREATE TABLE "LiteLLM_UserTable" (
    user_id text NOT NULL,
    user_alias text,
    team_id text,
    sso_user_id text,
    organization_id text,
    password text,
    teams text[] DEFAULT ARRAY[]::text[],
    user_role text,
    max_budget double precision,
    spend double precision NOT NULL DEFAULT 0.0,
    user_email text,
    models text[],
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    max_parallel_requests integer,
    tpm_limit bigint,
    rpm_limit bigint,
    budget_duration text,
    budget_reset_at timestamp(3),
    allowed_cache_controls text[] DEFAULT ARRAY[]::text[],
    model_spend jsonb NOT NULL DEFAULT '{}'::jsonb,
    model_max_budget jsonb NOT NULL DEFAULT '{}'::jsonb,
    created_at timestamp(3) DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp(3) DEFAULT CURRENT_TIMESTAMP,
    object_permission_id text,
    policies text[] DEFAULT ARRAY[]::text[],
    password_reset_required boolean,
    last_breach_check_at timestamp(3),
    CONSTRAINT "LiteLLM_UserTable_pkey" PRIMARY KEY (user_id)
);
CREATE INDEX "LiteLLM_UserTable_lower_user_email_idx" ON "LiteLLM_UserTable" (lower(user_email));
CREATE UNIQUE INDEX "LiteLLM_UserTable_sso_user_id_key" ON "LiteLLM_UserTable" (sso_user_id);

CREATE TABLE "LiteLLM_VerificationToken" (
    token text NOT NULL,
    key_name text,
    key_alias text,
    soft_budget_cooldown boolean NOT NULL DEFAULT false,
    spend double precision NOT NULL DEFAULT 0.0,
    expires timestamp(3),
    models text[],
    aliases jsonb NOT NULL DEFAULT '{}'::jsonb,
    config jsonb NOT NULL DEFAULT '{}'::jsonb,
    user_id text,
    team_id text,
    permissions jsonb NOT NULL DEFAULT '{}'::jsonb,
    max_parallel_requests integer,
    metadata jsonb NOT NULL DEFAULT '{}'::jsonb,
    blocked boolean,
    tpm_limit bigint,
    rpm_limit bigint,
    max_budget double precision,
    budget_duration text,
    budget_reset_at timestamp(3),
    allowed_cache_controls text[] DEFAULT ARRAY[]::text[],
    model_spend jsonb NOT NULL DEFAULT '{}'::jsonb,
    model_max_budget jsonb NOT NULL DEFAULT '{}'::jsonb,
    budget_id text,
    organization_id text,
    created_at timestamp(3) DEFAULT CURRENT_TIMESTAMP,
    created_by text,
    updated_at timestamp(3) DEFAULT CURRENT_TIMESTAMP,
    updated_by text,
    allowed_routes text[] DEFAULT ARRAY[]::text[],
    object_permission_id text,
    auto_rotate boolean DEFAULT false,
    key_rotation_at timestamp(3),
    last_rotation_at timestamp(3),
    rotation_count integer DEFAULT 0,
    rotation_interval text,
    project_id text,
    router_settings jsonb DEFAULT '{}'::jsonb,
    policies text[] DEFAULT ARRAY[]::text[],
    access_group_ids text[] DEFAULT ARRAY[]::text[],
    last_active timestamp(3),
    agent_id text,
    budget_limits jsonb,
    budget_fallbacks jsonb NOT NULL DEFAULT '{}'::jsonb,
    key_type text,
    settings_updated_at timestamp(3),
    tpd_limit bigint,
    total_spend double precision NOT NULL DEFAULT 0.0,
    CONSTRAINT "LiteLLM_VerificationToken_pkey" PRIMARY KEY (token)
);
CREATE INDEX "LiteLLM_VerificationToken_budget_reset_at_expires_idx" ON "LiteLLM_VerificationToken" (budget_reset_at, expires);
CREATE INDEX "LiteLLM_VerificationToken_team_id_idx" ON "LiteLLM_VerificationToken" (team_id);
CREATE INDEX "LiteLLM_VerificationToken_user_id_team_id_idx" ON "LiteLLM_VerificationToken" (user_id, team_id);

-- Ours: reads by key and by user, newest first, without scanning the log.
CREATE INDEX "LiteLLM_SpendLogs_api_key_startTime_idx" ON "LiteLLM_SpendLogs" (api_key, "startTime");
CREATE INDEX "LiteLLM_SpendLogs_user_startTime_idx" ON "LiteLLM_SpendLogs" ("user", "startTime");
CREATE INDEX "LiteLLM_SpendLogs_litellm_call_id_idx" ON "LiteLLM_SpendLogs" (litellm_call_id);
