//! From a model name to the entry that prices it and the way its provider bills.
//!
//! A name is tried in several forms, from the most exact to the most general, as LiteLLM does: with
//! its provider in front, as it stands, without the provider, and without a version or region
//! ([`lookup`]). An entry counts only when its provider fits the one the request went to.

use std::sync::Arc;

use rust_decimal::Decimal;

use super::PricingError;
use super::bedrock;
use super::prices::{ModelPrices, Rate, Tier};
use super::provider::{self, Route};
use super::size_class;
use super::table::PriceTable;

/// How a provider bills; see [`super::cost`].
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Nothing a chat response holds is billed: local models, and models billed by time or picture.
    Free,
    /// By token, at the price of the service tier.
    Tokens,
    /// By token, whatever the service tier.
    TokensAnyTier,
    /// By token, times the region's and the speed's factor.
    Anthropic,
    /// By token, times the region's factor.
    Bedrock,
    /// By character where the model has such a price.
    VertexCharacters,
    /// By token, with the older prices above 128k tokens where the model has those.
    VertexTokens,
    Perplexity,
    Xai,
    DashScope,
    /// By token, plus the model router's fee a prompt token.
    AzureAi {
        fee: Option<Decimal>,
    },
}

/// A model name that can be priced.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The name as it is priced, without the provider's prefix where that was only routing.
    pub model: String,
    pub provider: String,
    pub method: Method,
    pub prices: Arc<ModelPrices>,
    /// The entry and provider by which tool calls are billed.
    pub tools: Option<(Arc<ModelPrices>, String)>,
}

/// Resolves the `model` of a response: its routed form first, then the name as it stands.
pub fn resolve_response(
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

/// Resolves one form of a requested name. `known` is the provider that an earlier form led to.
pub fn resolve_request(table: &PriceTable, name: &str, known: Option<&str>) -> Result<Arc<Resolved>, PricingError> {
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

pub fn route(table: &PriceTable, model: &str) -> Result<Route, PricingError> {
    provider::route(table, model).ok_or_else(|| PricingError::UnknownProvider { model: model.to_owned() })
}

/// The name under which a request for `model` is counted and priced first: with the provider in
/// front, less any segments between them that no entry knows (`vertex_ai/team/gemini-2.5-pro`).
pub fn listed_name(table: &PriceTable, model: &str, provider: &str) -> String {
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
        (Some(prices), _) if is_billed_by_second(&prices) => (Method::Free, prices),
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

/// A model name as the table lists it, and without the provider's prefix.
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

/// Finds the entry for a model at a provider, trying every form of the name.
pub fn lookup(table: &PriceTable, model: &str, provider: Option<&str>) -> Option<Arc<ModelPrices>> {
    let model = provider::azure_alias(model).unwrap_or(model);
    let provider = match provider {
        Some("vertex_ai_beta") => Some("vertex_ai"),
        other => other,
    };
    let vertex_name = match provider {
        Some("vertex_ai") => vertex_listed_name(table, model),
        _ => None,
    };
    let model = vertex_name.as_deref().unwrap_or(model);
    match (listed(table, model, provider), provider) {
        (_, Some(local @ "huggingface")) => Some(Arc::new(free_entry(model, local))),
        (None, Some(local @ ("ollama" | "ollama_chat"))) => Some(Arc::new(free_entry(model, local))),
        (found, _) => found.map(Arc::clone),
    }
}

fn listed<'a>(table: &'a PriceTable, model: &str, provider: Option<&str>) -> Option<&'a Arc<ModelPrices>> {
    let names = Names::new(table, model, provider);
    names.in_order(model).into_iter().find_map(|name| {
        table.get_ignoring_case(name).filter(|prices| fits(&prices.provider, names.provider.as_deref()))
    })
}

/// The forms of one name.
struct Names {
    provider: Option<String>,
    combined: String,
    region_free: String,
    split: String,
    combined_stripped: String,
    stripped: String,
    prefixed: String,
}

impl Names {
    fn new(table: &PriceTable, model: &str, provider: Option<&str>) -> Self {
        let mut names = match provider {
            None => {
                let route = provider::route(table, model);
                let (split, provider) = match route {
                    Some(route) => (route.model, Some(route.provider)),
                    None => (model.to_owned(), None),
                };
                let stripped = strip_version(model, provider.as_deref());
                Self {
                    provider,
                    combined: model.to_owned(),
                    region_free: model.to_owned(),
                    split,
                    combined_stripped: stripped.clone(),
                    stripped,
                    prefixed: model.to_owned(),
                }
            }
            Some(provider) => {
                let inner = model.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/'));
                let split = inner.unwrap_or(model).to_owned();
                let stripped = strip_version(&split, Some(provider));
                let prefixed = format!("{provider}/{model}");
                let combined = match inner {
                    Some(_) => model.to_owned(),
                    None => prefixed.clone(),
                };
                Self {
                    provider: Some(provider.to_owned()),
                    region_free: combined.clone(),
                    combined,
                    split,
                    combined_stripped: format!("{provider}/{stripped}"),
                    stripped,
                    prefixed,
                }
            }
        };
        match names.provider.as_deref() {
            Some("bedrock" | "bedrock_converse") => {
                names.split = bedrock::id_of(&names.split).to_owned();
            }
            Some(mantle @ "bedrock_mantle") => {
                let split = bedrock::split_mantle_region(&names.split).1.to_owned();
                names.region_free = format!("{mantle}/{split}");
                names.combined_stripped = format!("{mantle}/{}", strip_version(&split, Some(mantle)));
                names.split = split;
            }
            Some("fireworks_ai") => {
                names.prefixed = format!("fireworks_ai/{}", size_class::fireworks_resource(&names.split));
            }
            _ => {}
        }
        names
    }

    fn in_order<'a>(&'a self, model: &'a str) -> [&'a str; 7] {
        [&self.combined, model, &self.region_free, &self.split, &self.combined_stripped, &self.stripped, &self.prefixed]
    }
}

/// Whether an entry of provider `listed` may price a request to `asked`. An entry without a
/// provider fits every request; some providers serve the models of others.
fn fits(listed: &str, asked: Option<&str>) -> bool {
    let Some(asked) = asked else { return true };
    listed.is_empty()
        || listed == asked
        || match asked {
            "vertex_ai" => listed.starts_with("vertex_ai"),
            "fireworks_ai" => listed.starts_with("fireworks_ai"),
            "azure_ai" => matches!(listed, "azure" | "openai"),
            "litellm_proxy" | "github" | "nadir" => true,
            _ => asked.starts_with("bedrock") && listed.starts_with("bedrock"),
        }
}

fn strip_version(model: &str, provider: Option<&str>) -> String {
    match provider {
        Some("bedrock" | "bedrock_converse") => bedrock::base_model(model),
        Some("vertex_ai" | "gemini" | "databricks") => strip_number(model).to_owned(),
        _ if model.contains("ft:") => strip_fine_tuning(model).to_owned(),
        _ => strip_date(model).to_owned(),
    }
}

/// `gemini-1.5-flash-001` is `gemini-1.5-flash`.
fn strip_number(model: &str) -> &str {
    match model.rsplit_once('-') {
        Some((rest, number)) if is_number(number) => rest,
        _ => model,
    }
}

/// `o3-2025-04-16` is `o3`.
pub fn strip_date(model: &str) -> &str {
    let Some(split) = model.len().checked_sub("-2025-04-16".len()) else {
        return model;
    };
    match model.split_at_checked(split) {
        Some((rest, date)) if is_dash_date(date) => rest,
        _ => model,
    }
}

fn is_dash_date(text: &str) -> bool {
    let mut parts = text.split('-');
    parts.next() == Some("")
        && [4, 2, 2].iter().all(|length| parts.next().is_some_and(|part| part.len() == *length && is_number(part)))
        && parts.next().is_none()
}

/// `ft:gpt-4o:organization:suffix:id` is `ft:gpt-4o`.
fn strip_fine_tuning(model: &str) -> &str {
    let mut rest = model;
    for _ in 0..3 {
        match rest.rsplit_once(':') {
            Some((shorter, _)) => rest = shorter,
            None => return model,
        }
    }
    rest
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Models priced by second in a mode where the elapsed time would be billed. A chat response
/// states no elapsed time, so that nothing is billed.
fn is_billed_by_second(prices: &ModelPrices) -> bool {
    let has_second_price =
        [Rate::Second, Rate::InputSecond, Rate::OutputSecond].into_iter().any(|rate| prices.standard(rate).is_some());
    let is_timed_mode = matches!(
        prices.mode.as_deref(),
        None | Some("audio_transcription" | "chat" | "completion" | "embedding" | "responses")
    );
    has_second_price && is_timed_mode && !prices.prices_tokens()
}

/// Replicate bills an unlisted model by its running time, which no response states.
fn is_billed_by_elapsed_time(table: &PriceTable, model: &str) -> bool {
    model.contains("replicate") && !table.contains(model)
}

fn vertex_method(model: &str) -> Method {
    let families = ["claude", "llama", "mistral", "jamba", "codestral", "gemma", "gemini-2"];
    if families.iter().any(|family| model.contains(family)) { Method::VertexTokens } else { Method::VertexCharacters }
}

fn vertex_listed_name(table: &PriceTable, model: &str) -> Option<String> {
    let is_listed = |name: &str, provider: &str| {
        table.provider_of(&format!("vertex_ai/{name}")) == provider || table.provider_of(name) == provider
    };
    let meta = format!("meta/{model}");
    if is_listed(&meta, "vertex_ai-llama_models") {
        return Some(meta);
    }
    let latest = format!("{model}@latest");
    (is_listed(&latest, "vertex_ai-mistral_models") || is_listed(&latest, "vertex_ai-ai21_models")).then_some(latest)
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

/// Fireworks bills cached tokens at half the input price unless the entry says otherwise.
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
        // A local server bills no tools, and knows every model.
        "lemonade" => Some(Arc::new(free_entry(model, provider))),
        "ollama" | "ollama_chat" => listed(table, model, Some(provider)).map(Arc::clone),
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

/// An entry for a model that runs on the caller's own machine or that its provider bills by other
/// means: no price a token.
fn free_entry(model: &str, provider: &str) -> ModelPrices {
    ModelPrices {
        name: model.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/')).unwrap_or(model).to_owned(),
        provider: provider.to_owned(),
        mode: Some("chat".to_owned()),
        ..ModelPrices::default()
    }
}
