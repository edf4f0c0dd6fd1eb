//! How LiteLLM's answers about new and changed accounts differ from the rows: fields that they add, and fields that they
//! leave empty.

use serde_json::{Map, Value};

use crate::store::accounts::{Row, text};

/// The fields of a key's `router_settings`. LiteLLM's answer has all of them, whether they are set or not.
const ROUTER_SETTINGS: [&str; 20] = [
    "routing_strategy_args",
    "routing_strategy",
    "routing_groups",
    "retry_policy",
    "model_group_retry_policy",
    "model_group_affinity_config",
    "allowed_fails",
    "cooldown_time",
    "num_retries",
    "timeout",
    "max_retries",
    "retry_after",
    "fallbacks",
    "context_window_fallbacks",
    "content_policy_fallbacks",
    "enable_tag_filtering",
    "weights",
    "tag_routing_prefix",
    "optional_pre_call_checks",
    "fallback_on_unsupported_params",
];

/// What the answer has of the key that is created with a user.
const OF_KEY: [&str; 4] = ["token", "key_name", "key_alias", "expires"];

/// What the answer has empty if no key is created with the user.
const WITHOUT_KEY: [&str; 4] = ["token_id", "created_at", "updated_at", "model_max_budget"];

/// The answer about a new key.
pub(super) fn new_key(mut row: Row, raw: &str) -> Row {
    if let Some(settings) = row.get_mut("router_settings") {
        *settings = Value::Object(unset_router_settings());
    }
    clear(&mut row, "policies");
    with_raw_key(row, raw)
}

fn unset_router_settings() -> Map<String, Value> {
    let unset = ROUTER_SETTINGS.map(|name| (name.to_owned(), Value::Null));
    let alias = ("model_group_alias".to_owned(), Value::Object(Map::new()));
    unset.into_iter().chain([alias]).collect()
}

/// The answer about a new user, with the key that was created as well and the raw form of it, if one was.
pub(super) fn new_user(mut row: Row, names_teams: bool, key: Option<(&Row, &str)>) -> Row {
    clear(&mut row, "policies");
    if !names_teams {
        clear(&mut row, "teams");
    }
    for name in OF_KEY {
        let value = key.and_then(|(key, _)| key.get(name)).cloned();
        row.insert(name.into(), value.unwrap_or_default());
    }
    if let Some((_, raw)) = key {
        return with_raw_key(row, raw);
    }
    for name in WITHOUT_KEY {
        row.insert(name.into(), Value::Null);
    }
    row.insert("key".into(), "".into());
    row
}

/// The answer about a key that is now blocked. It has the organisation by another name, too.
pub(super) fn blocked_key(mut row: Row) -> Row {
    let organization = row.get("organization_id").cloned().unwrap_or_default();
    row.insert("org_id".into(), organization);
    row
}

fn clear(row: &mut Row, name: &str) {
    if let Some(value) = row.get_mut(name) {
        *value = Value::Null;
    }
}

fn with_raw_key(mut row: Row, raw: &str) -> Row {
    row.insert("key".into(), raw.into());
    row.insert("token_id".into(), text(&row, "token").into());
    row
}
