//! Resolves a model name to the entry that prices it and to the way that its provider bills.
//!
//! A name is tried in several forms, from the most exact to the most general, as LiteLLM does: with its provider in
//! front, as it stands, without the provider, and without a version or region ([`lookup`]). An entry is used only if
//! its provider matches the provider that served the request.

use std::sync::Arc;

use rust_decimal::Decimal;

use crate::PricingError;
use crate::names::lookup::{free_entry, lookup};
use crate::names::provider;
use crate::names::provider::Route;
use crate::names::size_class;
use crate::table::PriceTable;
use crate::table::prices::{ModelPrices, Rate, Tier};

/// The way that a provider bills; see [`crate::bill::cost`].
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Nothing in a chat response is billed: local models, and models billed by time or per image.
    Free,
    /// By running time, in dollars per second. Only responses that state the time are billed.
    Seconds(Decimal),
    /// By token, at the prices of the service tier.
    Tokens,
    /// By token, at the standard prices whatever the service tier.
    TokensAnyTier,
    /// By token, multiplied by the factors for region and speed.
    Anthropic,
    /// By token, multiplied by the factor for the region.
    Bedrock,
    /// By character if the model has a price per character.
    VertexCharacters,
    /// By token, with the older prices above 128k tokens if the model has those.
    VertexTokens,
    Perplexity,
    Xai,
    DashScope,
    /// By token, plus the model router's fee per prompt token.
    AzureAi {
        fee: Option<Decimal>,
    },
}

/// A model name that can be priced.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The model name that is priced, without the provider's prefix if that prefix was only used for routing.
    pub model: String,
    pub provider: String,
    pub method: Method,
    pub prices: Arc<ModelPrices>,
    /// The price entry and the provider that tool calls are billed by.
    pub tools: Option<(Arc<ModelPrices>, String)>,
}

/// Resolves the `model` of a response: first in its routed form, then as it stands.
pub(crate) fn resolve_response(
    table: &PriceTable,
    model: &str,
    provider: Option<&str>,
) -> Result<Arc<Resolved>, PricingError> {
    let key = format!("{}\n{model}", provider.unwrap_or_default());
    if let Some(resolved) = table.remembered(&key) {
        return Ok(resolved);
    }
    let resolved = match provider {
        Some(provider) => {
            let name = listed_name(table, model, provider);
            resolve(table, &name, provider).or_else(|_| resolve(table, model, provider))
        }
        None => {
            let route = route(table, model)?;
            resolve(table, &route.model, &route.provider).or_else(|_| resolve(table, model, &route.provider))
        }
    }?;
    let resolved = Arc::new(resolved);
    table.remember(&key, &resolved);
    Ok(resolved)
}

/// Resolves one form of a requested name. `known` is the provider that an earlier form resolved to.
pub(crate) fn resolve_request(
    table: &PriceTable,
    name: &str,
    known: Option<&str>,
) -> Result<Arc<Resolved>, PricingError> {
    let key = format!("{}\n\n{name}", known.unwrap_or_default());
    if let Some(resolved) = table.remembered(&key) {
        return Ok(resolved);
    }
    let resolved = match known {
        Some(provider) => resolve(table, name, provider),
        None => {
            let route = route(table, name)?;
            resolve(table, &route.model, &route.provider)
        }
    }?;
    let resolved = Arc::new(resolved);
    table.remember(&key, &resolved);
    Ok(resolved)
}

pub(crate) fn route(table: &PriceTable, model: &str) -> Result<Route, PricingError> {
    provider::route(table, model).ok_or_else(|| PricingError::UnknownProvider { model: model.to_owned() })
}

/// The first name under which a request for `model` is counted and priced: the model with its provider in front.
/// Leading segments that no entry contains are dropped: `team/gemini-2.5-pro` at `vertex_ai` becomes
/// `vertex_ai/gemini-2.5-pro` if the table lists that name.
pub(crate) fn listed_name(table: &PriceTable, model: &str, provider: &str) -> String {
    let prefix = model.split('/').next().unwrap_or(model);
    if provider::is_provider(prefix) || table.contains(model) {
        return if provider::is_provider(prefix) { model.to_owned() } else { format!("{provider}/{model}") };
    }
    let mut rest = model;
    loop {
        let candidate = format!("{provider}/{rest}");
        if table.contains(&candidate) {
            return candidate;
        }
        match rest.split_once('/') {
            Some((segment, shorter)) if !provider::is_provider(segment) => rest = shorter,
            _ => return format!("{provider}/{model}"),
        }
    }
}

fn resolve(table: &PriceTable, model: &str, provider: &str) -> Result<Resolved, PricingError> {
    let model = size_class::together(table, model, provider);
    let model = model.as_str();
    if is_billed_by_elapsed_time(table, model) {
        return Err(PricingError::BilledByTime { model: model.to_owned() });
    }
    let name = PricedName::new(table, model, provider);
    let mapped = || {
        lookup(table, &name.full, Some(provider))
            .ok_or_else(|| PricingError::NotMapped { model: model.to_owned(), provider: provider.to_owned() })
    };
    let (method, prices) = match (lookup(table, &name.full, Some(provider)), provider) {
        (Some(prices), _) if second_price(&prices).is_some() => {
            (second_price(&prices).map_or(Method::Free, Method::Seconds), prices)
        }
        (_, "vertex_ai") => {
            let prices = lookup(table, &name.bare, Some(provider))
                .ok_or_else(|| PricingError::NotMapped { model: model.to_owned(), provider: provider.to_owned() })?;
            (vertex_method(&name.bare), prices)
        }
        (_, "anthropic") => (Method::Anthropic, mapped()?),
        (_, "bedrock") => (Method::Bedrock, mapped()?),
        (_, "databricks") => {
            let key = size_class::databricks(&name.full);
            let prices = lookup(table, &key, Some(provider));
            (Method::Tokens, prices.map_or_else(mapped, Ok)?)
        }
        (_, "fireworks_ai") => (Method::TokensAnyTier, fireworks(table, &name.full, &mapped)?),
        (_, "deepseek" | "tencent") => (Method::TokensAnyTier, mapped()?),
        (_, "perplexity") => (Method::Perplexity, mapped()?),
        (_, "xai") => (Method::Xai, mapped()?),
        (_, "lemonade") => (Method::Free, Arc::new(free_entry(model, provider))),
        (_, "dashscope" | "qwencloud" | "qwen_ai_platform") => (Method::DashScope, mapped()?),
        (_, "azure_ai") => azure_ai(table, &name.full, mapped())?,
        (_, "openai" | "azure" | "gemini") => (Method::Tokens, mapped()?),
        _ => {
            let prices = mapped()?;
            let method = if prices.prices_tokens() { Method::Tokens } else { Method::Free };
            (method, prices)
        }
    };
    Ok(Resolved {
        tools: tool_prices(table, model, provider),
        model: model.to_owned(),
        provider: provider.to_owned(),
        method,
        prices,
    })
}

/// A model name in two forms: as the table lists it, and without the provider's prefix.
struct PricedName {
    full: String,
    bare: String,
}

impl PricedName {
    fn new(table: &PriceTable, model: &str, provider: &str) -> Self {
        let prefix = format!("{provider}/");
        let mut model = model;
        while let Some(rest) = model.strip_prefix(&prefix) {
            if !rest.starts_with(&prefix) {
                break;
            }
            model = rest;
        }
        let is_prefixed = model.starts_with(&prefix);
        let prefixed = if is_prefixed { model.to_owned() } else { format!("{prefix}{model}") };
        let is_listed = table.contains(&prefixed);
        let bare = match model.split_once('/') {
            Some((_, rest)) if is_prefixed || !is_listed => rest,
            _ => model,
        };
        let full = if is_listed {
            prefixed
        } else if table.contains(model) || !table.contains(bare) {
            model.to_owned()
        } else {
            bare.to_owned()
        };
        Self { full, bare: bare.to_owned() }
    }
}

/// The price per second, for models without a token price whose mode is billed by elapsed time.
fn second_price(prices: &ModelPrices) -> Option<Decimal> {
    let price =
        [Rate::Second, Rate::InputSecond, Rate::OutputSecond].into_iter().find_map(|rate| prices.standard(rate));
    let is_timed_mode = matches!(
        prices.mode.as_deref(),
        None | Some("audio_transcription" | "chat" | "completion" | "embedding" | "responses")
    );
    price.filter(|_| is_timed_mode && !prices.prices_tokens())
}

/// Replicate bills unlisted models by running time, which no response states.
fn is_billed_by_elapsed_time(table: &PriceTable, model: &str) -> bool {
    model.contains("replicate") && !table.contains(model)
}

fn vertex_method(model: &str) -> Method {
    let families = ["claude", "llama", "mistral", "jamba", "codestral", "gemma", "gemini-2"];
    if families.iter().any(|family| model.contains(family)) { Method::VertexTokens } else { Method::VertexCharacters }
}

fn fireworks(
    table: &PriceTable,
    name: &str,
    mapped: &dyn Fn() -> Result<Arc<ModelPrices>, PricingError>,
) -> Result<Arc<ModelPrices>, PricingError> {
    let prices = mapped().or_else(|error| {
        let routed = name.strip_prefix("fireworks_ai/").unwrap_or(name);
        lookup(table, routed, None)
            .or_else(|| lookup(table, size_class::fireworks(name), Some("fireworks_ai")))
            .ok_or(error)
    })?;
    Ok(with_cache_discount(prices))
}

/// Fireworks bills cached tokens at half the input price, unless the entry states a price for them.
fn with_cache_discount(prices: Arc<ModelPrices>) -> Arc<ModelPrices> {
    if prices.provider != "fireworks_ai" || prices.standard(Rate::CacheRead).is_some() {
        return prices;
    }
    let half = Decimal::new(5, 1);
    let mut discounted = ModelPrices::clone(&prices);
    let input = discounted.standard(Rate::Input).unwrap_or_default();
    let cache_read = input.checked_mul(half).unwrap_or(input);
    discounted.rates.set(Rate::CacheRead, Tier::Standard, cache_read);
    if let Some(off_peak) = &mut discounted.off_peak
        && off_peak.cache_read.is_none()
    {
        off_peak.cache_read = Some(off_peak.input.and_then(|input| input.checked_mul(half)).unwrap_or(cache_read));
    }
    Arc::new(discounted)
}

fn azure_ai(
    table: &PriceTable,
    name: &str,
    mapped: Result<Arc<ModelPrices>, PricingError>,
) -> Result<(Method, Arc<ModelPrices>), PricingError> {
    let lower = name.to_lowercase();
    let entry = lower.strip_prefix("azure_ai/").unwrap_or(&lower);
    let is_router = lower.contains("model-router") || lower.contains("model_router");
    let is_fee_entry = matches!(entry, "model-router" | "model_router");
    let prices = match mapped {
        Ok(prices) => prices,
        Err(error) if !is_router => return Err(error),
        Err(_) => Arc::new(free_entry(name, "azure_ai")),
    };
    let fee = (is_router && !is_fee_entry)
        .then(|| lookup(table, "model_router", Some("azure_ai")))
        .flatten()
        .and_then(|router| router.standard(Rate::Input));
    Ok((Method::AzureAi { fee }, prices))
}

fn tool_prices(table: &PriceTable, model: &str, provider: &str) -> Option<(Arc<ModelPrices>, String)> {
    let own = match provider {
        // A local server bills no tools and accepts every model name.
        "lemonade" => Some(Arc::new(free_entry(model, provider))),
        _ => lookup(table, model, Some(provider)),
    };
    if let Some(prices) = own {
        return Some((prices, provider.to_owned()));
    }
    model.contains('/').then(|| lookup(table, model, None)).flatten().map(|prices| {
        let provider = prices.provider.clone();
        (prices, provider)
    })
}
