//! Models, prices and aliases of an installation, from `model_list` and `router_settings` in LiteLLM's `config.yaml`.
//!
//! - A deployment that sets a price is billed by its own prices only. The price table supplies a missing input or
//!   output price and nothing else. Other units without a price (cached tokens, for example) are billed as plain input
//!   or output.
//! - A deployment without prices is billed as its `base_model`, or else as the model that it is routed to.
//! - If several deployments share a name, the last one counts.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde_json::{Map, Value};

use crate::names::catalog;
use crate::names::catalog::{Method, Resolved};
use crate::table::PriceTable;
use crate::table::prices::{ModelPrices, Rate, Tier, is_price_field};

/// Prices and aliases, by the names that clients use.
#[derive(Debug, Clone, Default)]
pub struct CustomModels {
    deployments: FxHashMap<String, Deployment>,
    aliases: FxHashMap<String, String>,
}

#[derive(Debug, Clone)]
struct Deployment {
    /// The model that the deployment is routed to, including its provider.
    model: String,
    base_model: Option<String>,
    prices: Option<Map<String, Value>>,
}

/// The meaning of a configured name.
#[derive(Debug, Clone)]
pub enum CustomModel {
    /// Another name, which the price table prices.
    Named(String),
    /// A model with its own prices.
    Priced(Arc<Resolved>),
}

impl CustomModels {
    /// Reads the two sections of a configuration. Either may be missing. Entries without a name or a model are skipped.
    pub fn from_config(model_list: Option<&Value>, router_settings: Option<&Value>) -> Self {
        let mut models = Self::default();
        for entry in model_list.and_then(Value::as_array).into_iter().flatten() {
            if let Some((name, deployment)) = deployment(entry) {
                models.deployments.insert(name, deployment);
            }
        }
        let aliases = router_settings.and_then(|settings| settings.get("model_group_alias"));
        for (alias, target) in aliases.and_then(Value::as_object).into_iter().flatten() {
            let target = match target {
                Value::String(model) => Some(model.as_str()),
                target => target.get("model").and_then(Value::as_str),
            };
            if let Some(target) = target {
                models.aliases.insert(alias.clone(), target.to_owned());
            }
        }
        models
    }

    /// Whether the configuration has neither models nor aliases.
    pub fn is_empty(&self) -> bool {
        self.deployments.is_empty() && self.aliases.is_empty()
    }

    /// Resolves a name. `None` if the configuration doesn't contain it.
    pub fn find(&self, table: &PriceTable, name: &str) -> Option<CustomModel> {
        if self.is_empty() {
            return None;
        }
        let target = self.aliases.get(name);
        let Some(deployment) = self.deployments.get(target.map_or(name, String::as_str)) else {
            return target.cloned().map(CustomModel::Named);
        };
        let base = deployment.base_model.as_ref().unwrap_or(&deployment.model);
        match &deployment.prices {
            None => Some(CustomModel::Named(base.clone())),
            Some(prices) => Some(CustomModel::Priced(Arc::new(priced(table, name, deployment, base, prices)))),
        }
    }
}

fn deployment(entry: &Value) -> Option<(String, Deployment)> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let params = entry.get("litellm_params")?;
    let info = entry.get("model_info");
    let mut prices = Map::new();
    for source in [info, Some(params)].into_iter().flatten() {
        for (field, value) in source.as_object().into_iter().flatten() {
            let belongs = is_price_field(field)
                || field.contains("_cost")
                || matches!(
                    field.as_str(),
                    "off_peak_pricing" | "search_context_cost_per_query" | "provider_specific_entry"
                );
            if belongs && !value.is_null() {
                prices.insert(field.clone(), value.clone());
            }
        }
    }
    let name = text(entry.get("model_name"))?;
    let deployment = Deployment {
        model: text(params.get("model"))?,
        base_model: text(info.and_then(|info| info.get("base_model"))).or_else(|| text(params.get("base_model"))),
        prices: prices.keys().any(|field| is_price_field(field)).then_some(prices),
    };
    Some((name, deployment))
}

fn priced(
    table: &PriceTable,
    name: &str,
    deployment: &Deployment,
    base: &str,
    fields: &Map<String, Value>,
) -> Resolved {
    let mut prices = ModelPrices::from_entry(name, fields);
    let listed = catalog::resolve_response(table, base, None).ok();
    for rate in [Rate::Input, Rate::Output] {
        let listed = listed.as_ref().and_then(|listed| listed.prices.standard(rate));
        if prices.standard(rate).is_none()
            && let Some(price) = listed
        {
            prices.rates.set(rate, Tier::Standard, price);
        }
    }
    let provider = catalog::route(table, &deployment.model).map(|route| route.provider).unwrap_or_default();
    prices.provider.clone_from(&provider);
    let method = if prices.prices_tokens() { Method::Tokens } else { Method::Free };
    let prices = Arc::new(prices);
    Resolved {
        model: deployment.model.clone(),
        tools: Some((Arc::clone(&prices), provider.clone())),
        provider,
        method,
        prices,
    }
}
