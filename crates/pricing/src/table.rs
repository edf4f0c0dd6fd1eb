//! The price table: LiteLLM's `model_prices_and_context_window.json`, or the built-in table. The built-in table is the
//! same file plus the models that LiteLLM has dropped, marked `retired`. An entry with `alias_of` only names the entry
//! that it stands for.
//!
//! A table is refused as a whole if it is not a JSON object or prices nothing. A single entry that can't be read is
//! skipped and reported, so that one typing error doesn't stop billing.

pub(crate) mod custom;
pub(crate) mod off_peak;
pub(crate) mod prices;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use rust_decimal::Decimal;
use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::{Map, Value};

use crate::names::catalog::Resolved;
use crate::table::prices::ModelPrices;
use crate::tokens::encoding::unpack;

/// `data/model_prices.json`, compressed by the build script.
static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/model_prices.json.zlib"));

const EMBEDDED_VERSION: &str = include_str!("../data/model_prices.version");

/// The largest number of resolved names that are cached. Names come from requests, so the cache must be bounded. The
/// models of one installation fit.
const REMEMBERED_NAMES: usize = 4096;

/// The reason why a file is not a price table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file is not JSON.
    #[error("the price table is not valid JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    /// The file is JSON but not an object.
    #[error("the price table must be a JSON object of models")]
    NotAnObject,
    /// No entry has a price.
    #[error("the price table prices no model")]
    Empty,
}

/// An entry that was skipped, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedEntry {
    /// The name of the entry.
    pub model: String,
    /// The error in the entry.
    pub reason: String,
}

/// Prices by model name. A table is built once, then shared. Only its cache of resolved names changes.
#[derive(Debug)]
pub struct PriceTable {
    entries: FxHashMap<Box<str>, Arc<ModelPrices>>,
    /// Maps the lower-case form of a name to the name, for names that are not lower-case. Used to ignore case in
    /// lookups.
    lower_case: FxHashMap<Box<str>, Box<str>>,
    /// Names of OpenAI models. Token counting checks whether a name extends one of them, or one of them extends the
    /// name.
    openai_models: Vec<Box<str>>,
    /// The providers that entries name.
    providers: FxHashSet<Box<str>>,
    skipped: Vec<SkippedEntry>,
    source: Vec<u8>,
    resolved: RwLock<FxHashMap<Box<str>, Arc<Resolved>>>,
}

impl PriceTable {
    /// Reads the table that is compiled into the program.
    ///
    /// # Errors
    /// None in a release: a test reads the embedded file.
    pub fn embedded() -> Result<Self, TableError> {
        Self::read(unpack(EMBEDDED))
    }

    /// Reads a price table from JSON.
    ///
    /// # Errors
    /// If the bytes are not a JSON object, or no entry has a price.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TableError> {
        Self::read(bytes.to_vec())
    }

    /// The version of LiteLLM whose table is compiled into the program.
    pub fn embedded_version() -> &'static str {
        EMBEDDED_VERSION.trim()
    }

    /// This table with the models of another one that are marked `retired` and that this table lacks.
    ///
    /// # Errors
    /// None: both tables have been read before.
    pub fn with_retired(&self, other: &Self) -> Result<Self, TableError> {
        let mut models = self.models();
        for (name, entry) in other.models() {
            if entry.get("retired") == Some(&Value::Bool(true)) {
                models.entry(name).or_insert(entry);
            }
        }
        Self::read(Value::Object(models).to_string().into_bytes())
    }

    /// The number of models that are not marked `retired`.
    pub fn current_models(&self) -> usize {
        self.entries.values().filter(|prices| !prices.retired).count()
    }

    /// The number of models that have a price above zero and are not marked `retired`.
    pub fn priced_models(&self) -> usize {
        let models = self.models();
        models.keys().filter(|name| self.is_priced(&models, name)).count()
    }

    /// Whether a name is that of a model that has a price above zero and is not marked `retired`.
    fn is_priced(&self, models: &Map<String, Value>, name: &str) -> bool {
        let retired = self.get(name).is_none_or(|prices| prices.retired);
        !retired && self.entry_of(models, name).is_some_and(|entry| lacks_price_of(entry, None))
    }

    /// The entry that prices a model, an alias resolved. `None` if there is none that can be read. `models` are those of
    /// this table.
    fn entry_of<'a>(&self, models: &'a Map<String, Value>, name: &str) -> Option<&'a Map<String, Value>> {
        models.get(&self.get(name)?.name)?.as_object()
    }

    fn read(source: Vec<u8>) -> Result<Self, TableError> {
        let Value::Object(models) = serde_json::from_slice(&source)? else {
            return Err(TableError::NotAnObject);
        };
        let mut table = Self {
            entries: FxHashMap::with_capacity_and_hasher(models.len(), rustc_hash::FxBuildHasher),
            lower_case: FxHashMap::default(),
            openai_models: Vec::new(),
            providers: FxHashSet::default(),
            skipped: Vec::new(),
            source,
            resolved: RwLock::default(),
        };
        for (name, entry) in &models {
            table.insert(name, entry);
        }
        // An alias may come before the model that it stands for.
        for (name, entry) in &models {
            table.insert_alias(name, entry);
        }
        if !table.entries.values().any(|prices| prices.has_prices) {
            return Err(TableError::Empty);
        }
        Ok(table)
    }

    fn insert(&mut self, name: &str, entry: &Value) {
        if is_annotation(name) || target_of(entry).is_some() {
            return;
        }
        let entry = match readable_entry(entry) {
            Ok(entry) => entry,
            Err(reason) => {
                self.skipped.push(SkippedEntry { model: name.to_owned(), reason });
                return;
            }
        };
        let prices = Arc::new(ModelPrices::from_entry(name, entry));
        let aliases = entry.get("aliases").and_then(Value::as_array);
        let aliases = aliases.into_iter().flatten().filter_map(Value::as_str);
        for key in std::iter::once(name).chain(aliases) {
            if key == name || !self.entries.contains_key(key) {
                self.insert_name(key, &prices);
            }
        }
    }

    fn insert_name(&mut self, name: &str, prices: &Arc<ModelPrices>) {
        let lower = name.to_lowercase();
        if lower != name {
            self.lower_case.insert(lower.into(), name.into());
        }
        if prices.provider == "openai" && !is_fine_tuning_base(name) {
            self.openai_models.push(name.into());
        }
        if !self.providers.contains(prices.provider.as_str()) {
            self.providers.insert(prices.provider.as_str().into());
        }
        self.entries.insert(name.into(), Arc::clone(prices));
    }

    /// Inserts an entry that only says which other entry it stands for.
    fn insert_alias(&mut self, name: &str, entry: &Value) {
        let Some(target) = target_of(entry) else {
            return;
        };
        match self.entries.get(target).filter(|prices| prices.name == target).cloned() {
            Some(_) if self.entries.contains_key(name) => {}
            Some(prices) => self.insert_name(name, &prices),
            None => {
                let reason = format!("alias_of names {target}, which is not a model");
                self.skipped.push(SkippedEntry { model: name.to_owned(), reason });
            }
        }
    }

    /// The entry with exactly this name.
    pub fn get(&self, name: &str) -> Option<&Arc<ModelPrices>> {
        self.entries.get(name)
    }

    /// Whether an entry with exactly this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The entry with this name, or with the same name in another letter case.
    pub fn get_ignoring_case(&self, name: &str) -> Option<&Arc<ModelPrices>> {
        if let Some(prices) = self.entries.get(name) {
            return Some(prices);
        }
        let lower = name.to_lowercase();
        match self.lower_case.get(lower.as_str()) {
            Some(key) => self.entries.get(key),
            None => self.entries.get(lower.as_str()),
        }
    }

    /// The provider in the entry with this name. Empty if there is no such entry.
    pub fn provider_of(&self, name: &str) -> &str {
        self.get(name).map_or("", |prices| prices.provider.as_str())
    }

    /// Whether an entry names this provider.
    pub fn has_provider(&self, name: &str) -> bool {
        self.providers.contains(name)
    }

    /// The names of OpenAI's models in this table, without the bases of fine-tuned models.
    pub fn openai_models(&self) -> &[Box<str>] {
        &self.openai_models
    }

    /// Whether an entry with this name exists and is a model of OpenAI.
    pub fn is_openai_model(&self, name: &str) -> bool {
        self.provider_of(name) == "openai" && !is_fine_tuning_base(name)
    }

    /// The number of names in the table, aliases included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the table has no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries that could not be read.
    pub fn skipped(&self) -> &[SkippedEntry] {
        &self.skipped
    }

    pub(crate) fn remembered(&self, key: &str) -> Option<Arc<Resolved>> {
        self.resolved.read().ok()?.get(key).cloned()
    }

    pub(crate) fn remember(&self, key: &str, resolved: &Arc<Resolved>) {
        if let Ok(mut names) = self.resolved.write()
            && names.len() < REMEMBERED_NAMES
        {
            names.insert(key.into(), Arc::clone(resolved));
        }
    }

    fn models(&self) -> Map<String, Value> {
        match serde_json::from_slice(&self.source) {
            Ok(Value::Object(models)) => models,
            _ => Map::new(),
        }
    }
}

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
fn lacks_price_of(old: &Map<String, Value>, new: Option<&Map<String, Value>>) -> bool {
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

/// The entry for which an alias stands. `None` if the entry is a model.
fn target_of(entry: &Value) -> Option<&str> {
    entry.get("alias_of")?.as_str()
}

/// Whether a key of the file is not a model.
fn is_annotation(name: &str) -> bool {
    matches!(name, "sample_spec" | "fallback_generalizations")
}

/// `ft:gpt-4o` is the price of fine-tuned models, not a model.
fn is_fine_tuning_base(name: &str) -> bool {
    name.starts_with("ft:") && name.matches(':').count() <= 1
}

fn readable_entry(entry: &Value) -> Result<&Map<String, Value>, String> {
    let Value::Object(fields) = entry else {
        return Err("is not an object".to_owned());
    };
    for (field, value) in fields {
        let is_flat_price = crate::table::prices::is_price_field(field) && field != "tiered_pricing";
        if is_flat_price && !value.is_null() && !value.is_object() {
            match crate::bill::amount::from_value(value) {
                None => return Err(format!("{field} is not a number")),
                Some(price) if price.is_sign_negative() && !price.is_zero() => {
                    return Err(format!("{field} is negative"));
                }
                Some(_) => {}
            }
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(value: &Value) -> Result<PriceTable, TableError> {
        PriceTable::from_json(&serde_json::to_vec(value).unwrap())
    }

    #[test]
    fn the_embedded_table_is_read_whole() {
        let table = PriceTable::embedded().unwrap();
        assert!(table.len() > 5000);
        assert_eq!(table.skipped(), []);
        assert!(table.get("gpt-4o").is_some());
    }

    #[test]
    fn files_that_price_nothing_are_refused() {
        assert!(matches!(table(&json!([])), Err(TableError::NotAnObject)));
        assert!(matches!(table(&json!({"a": {"mode": "chat"}})), Err(TableError::Empty)));
        assert!(matches!(PriceTable::from_json(b"{"), Err(TableError::Syntax(_))));
    }

    #[test]
    fn broken_entries_are_skipped_and_reported() {
        let table = table(&json!({
            "good": {"input_cost_per_token": 1e-6},
            "text": "x",
            "word": {"input_cost_per_token": "cheap"},
            "negative": {"output_cost_per_token": -1e-6},
        }))
        .unwrap();
        assert_eq!(table.len(), 1);
        let mut skipped: Vec<&str> = table.skipped().iter().map(|s| s.model.as_str()).collect();
        skipped.sort_unstable();
        assert_eq!(skipped, ["negative", "text", "word"]);
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
