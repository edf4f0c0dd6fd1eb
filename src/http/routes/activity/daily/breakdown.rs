//! Sums daily rows by day and breaks each day down by model, provider, key and other groups.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::http::routes::activity::daily::bucket_of_key;
use crate::http::routes::activity::daily::response::{Breakdown, DailySpendData, GroupMetrics, KeyMetrics};
use crate::http::routes::dates::parse_day;
use crate::store::activity::FLAT_COST_KEY;
use crate::store::activity::daily::{DailyRow, UNKNOWN_MODEL};
use crate::store::activity::figures::Figures;
use crate::store::key_metadata::KeyMetadata;

/// Metadata of each user, team or tag.
pub type Entities = BTreeMap<String, Map<String, Value>>;

/// Sums the rows by day and group, newest day first. Also returns the sums over all rows.
pub fn aggregate(
    rows: &[DailyRow],
    keys: &BTreeMap<String, KeyMetadata>,
    entities: &Entities,
) -> (Vec<DailySpendData>, Figures) {
    let mut days: BTreeMap<&str, (Figures, Breakdown)> = BTreeMap::new();
    let mut totals = Figures::default();
    for row in rows {
        let (metrics, breakdown) = days.entry(&row.date).or_default();
        *metrics += &row.figures;
        totals += &row.figures;
        add_to_breakdown(breakdown, row, keys, entities);
    }
    let results = days
        .into_iter()
        .rev()
        .filter_map(|(date, (metrics, breakdown))| Some(DailySpendData { date: parse_day(date)?, metrics, breakdown }))
        .collect();
    (results, totals)
}

/// Metadata of a key in a report.
pub fn metadata_of(key: &str, keys: &BTreeMap<String, KeyMetadata>) -> KeyMetadata {
    if key.is_empty() {
        return KeyMetadata { key_alias: Some("Unattributed".into()), key_exists: Some(false), ..Default::default() };
    }
    keys.get(key).cloned().unwrap_or_else(|| KeyMetadata { key_exists: Some(false), ..Default::default() })
}

fn add_to_breakdown(
    breakdown: &mut Breakdown,
    row: &DailyRow,
    keys: &BTreeMap<String, KeyMetadata>,
    entities: &Entities,
) {
    let named = |name: &Option<String>| name.as_deref().filter(|name| !name.is_empty()).map(str::to_owned);
    let flat = row.api_key == FLAT_COST_KEY;
    let add = |groups: &mut BTreeMap<String, GroupMetrics>, name: String, metadata: &dyn Fn() -> Map<String, Value>| {
        let group =
            groups.entry(name).or_insert_with(|| GroupMetrics { metadata: metadata(), ..GroupMetrics::default() });
        group.metrics += &row.figures;
        if !flat {
            add_key(&mut group.api_key_breakdown, row, keys);
        }
    };
    let nothing = || Map::new();
    let model = if flat { named(&row.model_group).or(named(&row.model)) } else { named(&row.model) };
    if let Some(model) = model.or((!flat).then(|| UNKNOWN_MODEL.to_owned())) {
        add(&mut breakdown.models, model, &nothing);
    }
    let group = named(&row.model_group).or(named(&row.model)).unwrap_or_else(|| "unknown-model-group".to_owned());
    add(&mut breakdown.model_groups, group, &nothing);
    if let Some(tool) = named(&row.mcp_namespaced_tool_name) {
        add(&mut breakdown.mcp_servers, tool, &nothing);
    }
    if !flat {
        let provider = named(&row.custom_llm_provider).unwrap_or_else(|| "unknown".to_owned());
        let metadata = provider_metadata(&provider);
        add(&mut breakdown.providers, provider, &|| metadata.clone());
    }
    if let Some(endpoint) = named(&row.endpoint) {
        add(&mut breakdown.endpoints, endpoint, &nothing);
    }
    let entity = named(&row.entity_id).unwrap_or_else(|| "Unassigned".to_owned());
    let metadata = entities.get(&entity);
    add(&mut breakdown.entities, entity, &|| metadata.cloned().unwrap_or_default());
    if !flat {
        add_key(&mut breakdown.api_keys, row, keys);
    }
}

/// Metadata of a provider. LiteLLM marks the provider that is covered by a subscription.
pub fn provider_metadata(provider: &str) -> Map<String, Value> {
    if provider == "chatgpt" { Map::from_iter([("subscription_covered".to_owned(), json!(true))]) } else { Map::new() }
}

fn add_key(groups: &mut BTreeMap<String, Box<KeyMetrics>>, row: &DailyRow, keys: &BTreeMap<String, KeyMetadata>) {
    let group = groups.entry(bucket_of_key(&row.api_key)).or_insert_with(|| {
        Box::new(KeyMetrics { metrics: Figures::default(), metadata: metadata_of(&row.api_key, keys) })
    });
    group.metrics += &row.figures;
}
