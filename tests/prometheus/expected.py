"""What LiteLLM's metrics are called, and which queries a healthy, new server cannot answer."""

# The labels of LiteLLM 1.110.2. A ledger may leave out labels, but must not have others.
CALLS = """end_user hashed_api_key api_key_alias model team team_alias user user_email requested_model model_id api_provider org_id
    org_alias""".split()
SPEND = [*CALLS, "client_ip", "user_agent", "service_tier"]
COUNTERS = {
    "litellm_spend_metric_total": SPEND,
    "litellm_requests_metric_total": [*CALLS, "client_ip", "user_agent"],
    "litellm_total_tokens_metric_total": CALLS,
    "litellm_input_tokens_metric_total": CALLS,
    "litellm_output_tokens_metric_total": CALLS,
}
OWNERS = {
    "team": ["team", "team_alias"],
    "api_key": ["hashed_api_key", "api_key_alias"],
    "user": ["user", "user_email", "user_alias"],
    "org": ["org_id", "org_alias"],
    "customer": ["end_user"],
}
GAUGES = {
    name.replace("OWNER", owner): labels
    for owner, labels in OWNERS.items()
    for name in (
        "litellm_remaining_OWNER_budget_metric",
        "litellm_OWNER_max_budget_metric",
        "litellm_OWNER_budget_remaining_hours_metric",
    )
}
COVERED = {**COUNTERS, **GAUGES}
# Metrics of /metrics/spend that are litespend's own.
OWN = {"litespend_budgets_not_listed"}

# What the report of activity calls the sum of `litellm_requests_metric_total`. LiteLLM counts successful calls only; the
# ledger counts failed ones as well.
REQUESTS = "total_api_requests"

# The log does not have these, or has another value of them in each call.
NOT_IN_THE_LEDGER = {"client_ip", "user_agent", "service_tier"}

# LiteLLM has these labels of the user's gauges only with a setting that is off by default.
OPTIONAL = {"user_email", "user_alias"}

NO_SUCH_BUDGETS = "litespend's own tables hold no budgets of organisations and customers"
NO_ORGANISATIONS = "there is no organisation"

# Metrics that may have no series, and why.
EMPTY_METRICS = {
    "litespend_books_closed_through_timestamp_seconds": "no day is closed",
    "litespend_books_failures_total": "nothing has failed",
    "litespend_rollups_failures_total": "nothing has failed",
    "litespend_rollups_lock_held_seconds": "nothing has waited for the lock",
    "litespend_connections_refused_total": "no connection was refused",
    "litespend_slow_clients_disconnected_total": "no client was too slow",
    "litespend_database_waits_total": "nothing has waited for a connection",
    "litespend_database_wait_timeouts_total": "nothing has waited for a connection",
    "litellm_remaining_org_budget_metric": NO_ORGANISATIONS,
    "litellm_org_max_budget_metric": NO_SUCH_BUDGETS,
    "litellm_org_budget_remaining_hours_metric": NO_SUCH_BUDGETS,
    "litellm_remaining_customer_budget_metric": NO_SUCH_BUDGETS,
    "litellm_customer_max_budget_metric": NO_SUCH_BUDGETS,
    "litellm_customer_budget_remaining_hours_metric": NO_SUCH_BUDGETS,
}

# Panels of the dashboard that may be empty although their metrics have series, and why.
EMPTY_PANELS = {
    "Compared with a week before": "Prometheus has no samples of last week",
    "USD per million tokens by model": "Prometheus has no samples of an hour ago",
    "Tokens per request by model": "Prometheus has no samples of an hour ago",
}

PUSHED = "LiteLLM pushes it with OpenTelemetry (OTLP); LiteLLM's endpoint for Prometheus does not have it either"

# Names in LiteLLM's dashboards that a ledger of spend does not have, and why.
NOT_COVERED = {
    "litellm_total_tokens_total": "LiteLLM 1.110.2 does not have this name either",
    "litellm_llm_api_failed_requests_metric_total": "deprecated by LiteLLM; failed calls are not among the covered metrics",
    "litellm_proxy_total_requests_metric_total": "counts requests to a proxy, which calls models; litespend calls none",
    "litellm_proxy_failed_requests_metric_total": "counts requests to a proxy, which calls models; litespend calls none",
    "litellm_provider_remaining_budget_metric": "budgets of providers are a setting of LiteLLM's router",
    "litellm_mcp_tool_call_spend_metric_total": "counts calls of tools",
    "litellm_cached_tokens_metric_total": "tokens by kind are not among the covered metrics",
    "litellm_input_cached_tokens_metric_total": "tokens by kind are not among the covered metrics",
    "litellm_input_cache_creation_tokens_metric_total": "tokens by kind are not among the covered metrics",
    "litellm_input_audio_tokens_metric_total": "tokens by kind are not among the covered metrics",
    "litellm_output_audio_tokens_metric_total": "tokens by kind are not among the covered metrics",
    "litellm_output_reasoning_tokens_metric_total": "tokens by kind are not among the covered metrics",
    "litellm_provider_cache_read_input_tokens_metric_total": "tokens by kind are not among the covered metrics",
    "litellm_provider_cache_creation_input_tokens_metric_total": "tokens by kind are not among the covered metrics",
    "litellm_zero_cost_requests_total": "counts calls that LiteLLM itself failed to price",
    "gen_ai_client_operation_duration_seconds": PUSHED,
    "gen_ai_usage_cost_USD": PUSHED,
    "gen_ai_client_token_usage": PUSHED,
}
