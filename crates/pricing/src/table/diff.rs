//! The differences between two price tables, and what a new one no longer prices.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde_json::{Map, Value};

use crate::table::{PriceTable, is_annotation};

/// The differences between two price tables, for a person to review before a reload.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TableDiff {
    /// Models that only the new table has.
    pub added: Vec<String>,
    /// Models that only the old table has.
    pub removed: Vec<String>,
    /// Models with a price in the old table that the new one cannot price as before: it lacks the model, cannot read its
    /// entry, or lacks one of its prices. Models without a price above zero, and those that the old table marks `retired`,
    /// are left out.
    pub lost: Vec<String>,
    /// Price fields with different values, by model.
    pub changed: BTreeMap<String, Vec<FieldChange>>,
}

/// A field of a model with different values in two tables. `None` means that the field is missing.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldChange {
    /// The name of the field.
    pub field: String,
    /// The value in the old table.
    pub old: Option<Value>,
    /// The value in the new table.
    pub new: Option<Value>,
}

impl TableDiff {
    /// Whether both tables price everything alike.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Lists the models that were added or removed, and the price fields that changed in the others. Equal numbers count as
/// unchanged, however they are written.
pub fn diff(old: &PriceTable, new: &PriceTable) -> TableDiff {
    let (old_table, new_table) = (old, new);
    let (old, new) = (old.models(), new.models());
    let mut diff = TableDiff::default();
    for name in old.keys().filter(|name| old_table.is_priced(&old, name)) {
        let entry = old_table.entry_of(&old, name);
        if entry.is_some_and(|entry| lacks_price_of(entry, new_table.entry_of(&new, name))) {
            diff.lost.push(name.clone());
        }
    }
    for (name, entry) in &new {
        if is_annotation(name) {
            continue;
        }
        match old.get(name) {
            None => diff.added.push(name.clone()),
            Some(before) => {
                let changes = field_changes(before, entry);
                if !changes.is_empty() {
                    diff.changed.insert(name.clone(), changes);
                }
            }
        }
    }
    diff.removed = old.keys().filter(|name| !is_annotation(name) && !new.contains_key(*name)).cloned().collect();
    diff
}

fn field_changes(old: &Value, new: &Value) -> Vec<FieldChange> {
    let empty = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut fields: Vec<&String> = old.keys().chain(new.keys()).collect();
    fields.sort_unstable();
    fields.dedup();
    fields
        .into_iter()
        .filter(|field| is_compared(field))
        .filter_map(|field| {
            let (before, after) = (old.get(field), new.get(field));
            let equal = match (before, after) {
                (Some(Value::Number(a)), Some(Value::Number(b))) => a.as_f64() == b.as_f64(),
                (before, after) => before == after,
            };
            (!equal).then(|| FieldChange { field: field.clone(), old: before.cloned(), new: after.cloned() })
        })
        .collect()
}

/// Whether the old entry has a price above zero in a field in which the new one has no number.
pub(super) fn lacks_price_of(old: &Map<String, Value>, new: Option<&Map<String, Value>>) -> bool {
    old.iter().any(|(field, value)| is_compared(field) && lacks_number_of(value, new.and_then(|new| new.get(field))))
}

/// The same for one value, which may contain further ones.
fn lacks_number_of(old: &Value, new: Option<&Value>) -> bool {
    match old {
        Value::Object(fields) => {
            fields.iter().any(|(name, old)| lacks_number_of(old, new.and_then(|new| new.get(name))))
        }
        Value::Array(items) => {
            items.iter().enumerate().any(|(at, old)| lacks_number_of(old, new.and_then(|new| new.get(at))))
        }
        _ => {
            let price = crate::bill::amount::from_value;
            price(old).is_some_and(|price| price > Decimal::ZERO) && new.and_then(price).is_none()
        }
    }
}

/// Whether a field affects the cost of a request. Capability flags and context sizes don't.
fn is_compared(field: &str) -> bool {
    field.contains("cost")
        || field.contains("pricing")
        || field.contains("multiplier")
        || matches!(
            field,
            "alias_of"
                | "litellm_provider"
                | "mode"
                | "provider_specific_entry"
                | "web_search_billing_unit"
                | "retired"
        )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::table::TableError;

    fn table(value: &Value) -> Result<PriceTable, TableError> {
        PriceTable::from_json(&serde_json::to_vec(value).unwrap())
    }

    #[test]
    fn a_diff_lists_models_and_price_fields() {
        let old = table(&json!({
            "a": {"input_cost_per_token": 1e-6, "supports_vision": true},
            "b": {"input_cost_per_token": 1e-6},
        }))
        .unwrap();
        let new = table(&json!({
            "a": {"input_cost_per_token": 2e-6},
            "c": {"input_cost_per_token": 1e-6},
        }))
        .unwrap();
        let diff = diff(&old, &new);
        assert_eq!(diff.added, ["c"]);
        assert_eq!(diff.removed, ["b"]);
        assert_eq!(diff.changed["a"].len(), 1);
        assert_eq!(diff.changed["a"][0].field, "input_cost_per_token");
        assert!(super::diff(&new, &new).is_empty());
    }

    #[test]
    fn models_that_the_new_table_cannot_price_as_before_are_lost() {
        let old = table(&json!({
            "whole": {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6},
            "field": {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6},
            "null": {"input_cost_per_token": 1e-6},
            "word": {"input_cost_per_token": 1e-6},
            "image": {"output_cost_per_image": 0.04},
            "search": {"search_context_cost_per_query": {"search_context_size_low": 0.03}},
            "bands": {"tiered_pricing": [{"range": [0, 1000], "input_cost_per_token": 1e-6}]},
            "gone": {"input_cost_per_token": 1e-6},
            "alias": {"alias_of": "field"},
            "free": {"input_cost_per_token": 0.0},
            "dropped": {"input_cost_per_token": 1e-6, "retired": true},
        }))
        .unwrap();
        let new = table(&json!({
            "whole": {"input_cost_per_token": "2e-6", "output_cost_per_token": 2e-6},
            "field": {"input_cost_per_token": 1e-6},
            "null": {"input_cost_per_token": null},
            "word": {"input_cost_per_token": "n/a"},
            "image": {"mode": "image_generation"},
            "search": {"search_context_cost_per_query": {}},
            "bands": {"tiered_pricing": [{"range": [0, 1000]}]},
            "alias": {"alias_of": "field"},
        }))
        .unwrap();
        let mut lost = diff(&old, &new).lost;
        lost.sort_unstable();
        assert_eq!(lost, ["alias", "bands", "field", "gone", "image", "null", "search", "word"]);
        assert_eq!(old.priced_models(), 9);
        assert_eq!(super::diff(&new, &new).lost, [""; 0]);
    }
}
