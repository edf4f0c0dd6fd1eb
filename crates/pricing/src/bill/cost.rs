//! Bills a request by its provider's rules: turns a [`Method`] into the lines of a [`Bill`].
//!
//! To add a provider with its own rules, add a [`Method`], choose it in [`crate::names::catalog`], and bill it here.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use crate::PricingError;
use crate::bill::breakdown::{Bill, ComponentKind as Kind};
use crate::bill::token_cost;
use crate::bill::token_cost::Terms;
use crate::names::catalog::{Method, Resolved};
use crate::table::prices::{ModelPrices, Rate, Tier};
use crate::usage::Usage;

/// The size in tokens above which older Vertex AI entries have separate prices for prompts and completions.
const VERTEX_LONG_CONTEXT: u64 = 128_000;

/// Vertex AI models whose price per character never depended on the size.
const VERTEX_FLAT_MODELS: [&str; 3] = ["gemini-1.0-pro", "gemini-pro", "gemini-2"];

/// The parts of a request that affect its price.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Billed<'a> {
    pub usage: &'a Usage,
    pub tier: Tier,
    /// Characters of the prompt, without white space. Unknown when a response is priced.
    pub prompt_characters: Option<u64>,
    /// Characters of the answer, without white space. Unknown when a message list is priced.
    pub completion_characters: Option<u64>,
    /// How long the model ran. Unknown for most responses; the time then costs nothing.
    pub milliseconds: Option<Decimal>,
    pub now: DateTime<Utc>,
}

/// Starts a bill with the lines for everything except tool calls.
pub(crate) fn bill(resolved: &Resolved, request: Billed<'_>) -> Result<Bill, PricingError> {
    let prices = resolved.prices.as_ref();
    let usage = request.usage;
    let terms = Terms { prices, tier: request.tier, now: request.now, sizes_are_inclusive: resolved.provider == "xai" };
    let any_tier = Terms { tier: Tier::Standard, ..terms };
    let mut bill = Bill::with_factor(surcharge(&resolved.method, prices, usage)?);
    match &resolved.method {
        Method::Free => {}
        Method::Seconds(price) => {
            let time = request.milliseconds.unwrap_or_default();
            let seconds = crate::bill::amount::multiply(time, Decimal::new(1, 3))?;
            bill.line(Kind::Seconds, seconds, *price)?;
        }
        Method::Tokens | Method::Anthropic | Method::Bedrock => {
            token_cost::bill_tokens(&mut bill, terms, usage)?;
        }
        Method::TokensAnyTier => token_cost::bill_tokens(&mut bill, any_tier, usage)?,
        Method::AzureAi { fee } => {
            token_cost::bill_tokens(&mut bill, terms, usage)?;
            if let Some(fee) = fee {
                bill.count(Kind::RouterFee, usage.prompt_tokens, *fee)?;
            }
        }
        Method::VertexTokens => {
            bill_vertex_prompt(&mut bill, terms, usage)?;
            bill_vertex_completion(&mut bill, terms, usage)?;
        }
        Method::VertexCharacters => bill_vertex_characters(&mut bill, resolved, terms, request)?,
        Method::Perplexity => bill_perplexity(&mut bill, any_tier, usage)?,
        Method::Xai => bill_xai(&mut bill, any_tier, usage)?,
        Method::DashScope => bill_dashscope(&mut bill, any_tier, usage)?,
    }
    bill.end_factor();
    Ok(bill)
}

/// The factor on every token price: for the region that served the request, and for its speed.
fn surcharge(method: &Method, prices: &ModelPrices, usage: &Usage) -> Result<Decimal, PricingError> {
    let one = Decimal::ONE;
    let is_anthropic = *method == Method::Anthropic;
    if !is_anthropic && *method != Method::Bedrock {
        return Ok(one);
    }
    let region = match usage.region.as_deref().map(str::to_lowercase) {
        Some(region) if region != "global" && region != "not_available" => prices.multiplier(&region).unwrap_or(one),
        _ => one,
    };
    let speed = if is_anthropic && usage.is_fast { prices.multiplier("fast").unwrap_or(one) } else { one };
    crate::bill::amount::multiply(region, speed)
}

fn has_vertex_sizes(prices: &ModelPrices) -> bool {
    [Rate::Input, Rate::Output].into_iter().any(|rate| prices.above(VERTEX_LONG_CONTEXT, rate).is_some())
}

fn vertex_rate(prices: &ModelPrices, rate: Rate, tokens: u64) -> Decimal {
    prices
        .above(VERTEX_LONG_CONTEXT, rate)
        .filter(|_| tokens > VERTEX_LONG_CONTEXT)
        .or_else(|| prices.standard(rate))
        .unwrap_or_default()
}

fn bill_vertex_prompt(bill: &mut Bill, terms: Terms<'_>, usage: &Usage) -> Result<(), PricingError> {
    if has_vertex_sizes(terms.prices) {
        let price = vertex_rate(terms.prices, Rate::Input, usage.prompt_tokens);
        return bill.count(Kind::InputTokens, usage.prompt_tokens, price);
    }
    token_cost::bill_prompt_tokens(bill, terms, usage)
}

fn bill_vertex_completion(bill: &mut Bill, terms: Terms<'_>, usage: &Usage) -> Result<(), PricingError> {
    if has_vertex_sizes(terms.prices) {
        let price = vertex_rate(terms.prices, Rate::Output, usage.completion_tokens);
        return bill.count(Kind::OutputTokens, usage.completion_tokens, price);
    }
    token_cost::bill_completion_tokens(bill, terms, usage)
}

fn bill_vertex_characters(
    bill: &mut Bill,
    resolved: &Resolved,
    terms: Terms<'_>,
    request: Billed<'_>,
) -> Result<(), PricingError> {
    let prices = terms.prices;
    let model = resolved.model.as_str();
    let is_flat = VERTEX_FLAT_MODELS.contains(&model);
    // LiteLLM multiplies the characters by four here, although a token is about four characters.
    let is_long = |characters: u64| !is_flat && characters.saturating_mul(4) > VERTEX_LONG_CONTEXT;
    let rate = |rate, characters| {
        if is_long(characters) { prices.above(VERTEX_LONG_CONTEXT, rate) } else { prices.standard(rate) }
    };
    let input =
        request.prompt_characters.and_then(|characters| Some((characters, rate(Rate::InputCharacter, characters)?)));
    match input {
        Some((characters, price)) => bill.count(Kind::InputCharacters, characters, price)?,
        None => bill_vertex_prompt(bill, terms, request.usage)?,
    }
    let output = request
        .completion_characters
        .and_then(|characters| Some((characters, rate(Rate::OutputCharacter, characters)?)));
    match output {
        // For long answers, LiteLLM multiplies the price per character by the number of tokens.
        Some((characters, price)) if is_long(characters) => {
            bill.count(Kind::OutputCharacters, request.usage.completion_tokens, price)
        }
        Some((characters, price)) => bill.count(Kind::OutputCharacters, characters, price),
        None => bill_vertex_completion(bill, terms, request.usage),
    }
}

fn bill_perplexity(bill: &mut Bill, terms: Terms<'_>, usage: &Usage) -> Result<(), PricingError> {
    if let Some(reported) = usage.reported_cost {
        return bill.line(Kind::ProviderReported, Decimal::ONE, reported.amount);
    }
    let prices = terms.prices;
    let window = prices.off_peak.as_ref().filter(|w| w.is_open(terms.now));
    let rate = |rate| window.and_then(|w| w.rate(rate)).or_else(|| prices.standard(rate)).unwrap_or_default();
    let cached = usage.prompt.as_ref().map_or(0, |details| details.cached).min(usage.prompt_tokens);
    let cache_read = window.and_then(|w| w.rate(Rate::CacheRead)).or_else(|| prices.standard(Rate::CacheRead));
    bill.count(Kind::InputTokens, usage.prompt_tokens - cached, rate(Rate::Input))?;
    bill.count(Kind::CacheReadTokens, cached, cache_read.unwrap_or_else(|| rate(Rate::Input)))?;
    if let Some(price) = prices.standard(Rate::Citation) {
        bill.count(Kind::CitationTokens, usage.citation_tokens, price)?;
    }
    let reasoning = usage.completion.unwrap_or_default().reasoning;
    match prices.standard(Rate::Reasoning) {
        Some(price) if reasoning > 0 => {
            let rest = usage.completion_tokens.saturating_sub(reasoning);
            bill.count(Kind::OutputTokens, rest, rate(Rate::Output))?;
            bill.count(Kind::ReasoningTokens, reasoning, price)?;
        }
        _ => bill.count(Kind::OutputTokens, usage.completion_tokens, rate(Rate::Output))?,
    }
    let searches = usage.prompt.as_ref().and_then(|details| details.web_searches);
    let price = prices.search.and_then(|search| search.low);
    bill.count(Kind::WebSearches, searches.unwrap_or(0), price.unwrap_or_default())
}

fn bill_xai(bill: &mut Bill, terms: Terms<'_>, usage: &Usage) -> Result<(), PricingError> {
    if let Some(reported) = usage.reported_cost.filter(|cost| !cost.is_breakdown) {
        return bill.line(Kind::ProviderReported, Decimal::ONE, reported.amount);
    }
    // xAI leaves reasoning tokens out of `completion_tokens`, unless a component on the way has added them.
    let includes_reasoning = usage.total_tokens == usage.prompt_tokens.saturating_add(usage.completion_tokens);
    let reasoning = usage.completion.unwrap_or_default().reasoning;
    let billed = Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: if includes_reasoning {
            usage.completion_tokens
        } else {
            usage.completion_tokens.saturating_add(reasoning)
        },
        prompt: usage.prompt.clone(),
        ..Usage::default()
    };
    token_cost::bill_tokens(bill, terms, &billed)
}

fn bill_dashscope(bill: &mut Bill, terms: Terms<'_>, usage: &Usage) -> Result<(), PricingError> {
    let details = usage.prompt.as_ref();
    let cached = details.map_or(0, |details| details.cached);
    let written = details.map_or(0, |details| details.cache_write);
    let text = usage.prompt_tokens.saturating_sub(cached).saturating_sub(written);
    let reasoning = usage.completion.unwrap_or_default().reasoning;
    let prices = terms.prices;
    let size = text.saturating_add(cached).saturating_add(written);
    let band = prices.band(size).map(|band| &band.rates);
    let in_band = |rate| band.and_then(|rates| rates.exact(rate, Tier::Standard));
    let flat = |rate| prices.standard(rate);
    let set = |rate| match band {
        Some(_) => in_band(rate),
        None => flat(rate),
    };
    let window = prices.off_peak.as_ref().filter(|w| w.is_open(terms.now));
    let off_peak = |rate| window.and_then(|w| w.rate(rate));
    let input = set(Rate::Input).unwrap_or_default();
    let output =
        off_peak(Rate::Output).or_else(|| set(Rate::Output)).or_else(|| flat(Rate::Output)).unwrap_or_default();
    let own_reasoning = match (in_band(Rate::Reasoning), in_band(Rate::Output)) {
        (Some(price), _) => Some(price),
        (None, Some(_)) => None,
        (None, None) => flat(Rate::Reasoning),
    };
    let reasoning_price = off_peak(Rate::Reasoning).or(own_reasoning).unwrap_or(output);
    let cache_read = token_cost::explicit_cache_read(terms, usage, window)
        .or_else(|| off_peak(Rate::CacheRead))
        .or_else(|| set(Rate::CacheRead))
        .unwrap_or(input);
    let cache_write = off_peak(Rate::CacheWrite).or_else(|| set(Rate::CacheWrite)).unwrap_or(input);
    bill.count(Kind::InputTokens, text, off_peak(Rate::Input).unwrap_or(input))?;
    bill.count(Kind::CacheReadTokens, cached, cache_read)?;
    bill.count(Kind::CacheWriteTokens, written, cache_write)?;
    let plain = usage.completion_tokens.saturating_sub(reasoning);
    bill.count(Kind::OutputTokens, plain, output)?;
    bill.count(Kind::ReasoningTokens, reasoning, reasoning_price)
}
