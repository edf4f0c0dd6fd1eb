//! The price table: LiteLLM's `model_prices_and_context_window.json`, or the built-in table. The built-in table is the
//! same file plus the models that LiteLLM has dropped, marked `retired`. An entry with `alias_of` only names the entry
//! that it stands for.
//!
//! A table is refused as a whole if it is not a JSON object or prices nothing. A single entry that can't be read is
//! skipped and reported, so that one typing error doesn't stop billing.

pub(crate) mod custom;
pub(crate) mod diff;
pub(crate) mod off_peak;
pub(crate) mod prices;

use std::sync::{Arc, RwLock};

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::{Map, Value};

use crate::names::catalog::Resolved;
use crate::table::diff::lacks_price_of;
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
}
