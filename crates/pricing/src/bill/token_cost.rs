//! Billing by token: determines the price of each kind of token in a request, and adds the lines.
//!
//! Prices are chosen for the whole request, in this order:
//!
//! 1. the row of `tiered_pricing` for the prompt's size, or else the largest `_above_N_tokens` size that the prompt
//!    exceeds
//! 2. the service tier
//! 3. off-peak windows that are open
//!
//! Cached tokens, audio, images and reasoning that have no price of their own are billed as plain input or output.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use crate::PricingError;
use crate::bill::breakdown::{Bill, ComponentKind as Kind};
use crate::table::off_peak::OffPeak;
use crate::table::prices::{ModelPrices, Rate, Tier};
use crate::usage::{PromptDetails, Usage};

/// The terms by which a request is billed, besides its usage.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub prices: &'a ModelPrices,
    pub tier: Tier,
    pub now: DateTime<Utc>,
    /// Whether a prompt of exactly a threshold's size has that threshold's prices, rather than only a larger one.
    pub sizes_are_inclusive: bool,
}

/// The unit prices of a request's tokens.
struct TokenRates {
    input: Decimal,
    output: Decimal,
    cache_read: Decimal,
    cache_write: Decimal,
    cache_write_hour: Decimal,
    cache_write_half_day: Decimal,
    reasoning: Decimal,
}

/// Adds the lines for all tokens of a request.
pub(crate) fn bill_tokens(bill: &mut Bill, terms: Terms<'_>, usage: &Usage) -> Result<(), PricingError> {
    let rates = TokenRates::new(terms, usage);
    bill_prompt(bill, terms, &rates, usage)?;
    bill_completion(bill, terms, &rates, usage)
}

/// Adds the lines for the prompt only.
pub(crate) fn bill_prompt_tokens(bill: &mut Bill, terms: Terms<'_>, usage: &Usage) -> Result<(), PricingError> {
    bill_prompt(bill, terms, &TokenRates::new(terms, usage), usage)
}

/// Adds the lines for the completion only.
pub(crate) fn bill_completion_tokens(bill: &mut Bill, terms: Terms<'_>, usage: &Usage) -> Result<(), PricingError> {
    bill_completion(bill, terms, &TokenRates::new(terms, usage), usage)
}

impl<'a> Terms<'a> {
    fn open_window(&self) -> Option<&'a OffPeak> {
        self.prices.off_peak.as_ref().filter(|window| window.is_open(self.now))
    }

    fn rate(&self, rate: Rate) -> Option<Decimal> {
        self.prices.rates.get(rate, self.tier)
    }

    fn above(&self, rate: Rate, usage: &Usage) -> Option<Decimal> {
        self.prices.above_crossed(rate, self.tier, usage.prompt_tokens, self.sizes_are_inclusive)
    }
}

impl TokenRates {
    fn new(terms: Terms<'_>, usage: &Usage) -> Self {
        let window = terms.open_window();
        let mut rates = Self::of_band(terms, usage, window).unwrap_or_else(|| Self::of_sizes(terms, usage, window));
        if let Some(explicit) = explicit_cache_read(terms, usage, window) {
            rates.cache_read = explicit;
        }
        rates
    }

    /// Prices from a row of `tiered_pricing`, which apply to every token of the request. `None` if no row applies or
    /// the row has no input price.
    fn of_band(terms: Terms<'_>, usage: &Usage, window: Option<&OffPeak>) -> Option<Self> {
        let rates = &terms.prices.band(usage.prompt_tokens)?.rates;
        let set = |rate| rates.exact(rate, Tier::Standard);
        let off_peak = |rate, standard| window.and_then(|w| w.rate(rate)).unwrap_or(standard);
        let input = set(Rate::Input)?;
        let output = set(Rate::Output).or_else(|| terms.prices.standard(Rate::Output)).unwrap_or_default();
        let cache_write = off_peak(Rate::CacheWrite, set(Rate::CacheWrite).unwrap_or(input));
        let reasoning = window.and_then(|w| w.reasoning).or_else(|| set(Rate::Reasoning)).or_else(|| set(Rate::Output));
        let billed_output = off_peak(Rate::Output, output);
        Some(Self {
            input: off_peak(Rate::Input, input),
            output: billed_output,
            cache_read: off_peak(Rate::CacheRead, set(Rate::CacheRead).unwrap_or(input)),
            cache_write,
            cache_write_hour: set(Rate::CacheWriteHour).unwrap_or(cache_write),
            cache_write_half_day: set(Rate::CacheWriteHalfDay).unwrap_or(cache_write),
            reasoning: reasoning.unwrap_or_else(|| own_reasoning(terms, billed_output)),
        })
    }

    /// Flat prices, overridden by the prices of every prompt size that is exceeded, smallest first.
    fn of_sizes(terms: Terms<'_>, usage: &Usage, window: Option<&OffPeak>) -> Self {
        let mut input = terms.rate(Rate::Input).unwrap_or_default();
        let mut output = terms.rate(Rate::Output).unwrap_or_default();
        if output.is_zero() {
            // Models that only generate images: all of their output is image tokens.
            output = terms.prices.standard(Rate::OutputImageToken).unwrap_or(output);
        }
        let mut cache_read = terms.rate(Rate::CacheRead);
        let mut cache_write = terms.rate(Rate::CacheWrite);
        let mut hour = terms.rate(Rate::CacheWriteHour);
        let mut half_day = terms.rate(Rate::CacheWriteHalfDay);
        for size in &terms.prices.thresholds {
            if !size.is_crossed(usage.prompt_tokens, terms.tier, terms.sizes_are_inclusive) {
                continue;
            }
            let set = |rate| size.rates.get(rate, terms.tier);
            input = set(Rate::Input).unwrap_or(input);
            output = set(Rate::Output).unwrap_or(output);
            cache_read = set(Rate::CacheRead).or(cache_read);
            cache_write = set(Rate::CacheWrite).or(cache_write);
            hour = size.rates.exact(Rate::CacheWriteHour, terms.tier).or(hour);
            half_day = size.rates.exact(Rate::CacheWriteHalfDay, terms.tier).or(half_day);
        }
        let off_peak = |rate, standard| window.and_then(|w| w.rate(rate)).unwrap_or(standard);
        let billed_input = off_peak(Rate::Input, input);
        let billed_output = off_peak(Rate::Output, output);
        let cache_write = off_peak(Rate::CacheWrite, cache_write.unwrap_or(billed_input));
        Self {
            input: billed_input,
            output: billed_output,
            cache_read: off_peak(Rate::CacheRead, cache_read.unwrap_or(billed_input)),
            cache_write,
            cache_write_hour: hour.unwrap_or(cache_write),
            cache_write_half_day: half_day.unwrap_or(cache_write),
            reasoning: window.and_then(|w| w.reasoning).unwrap_or_else(|| own_reasoning(terms, billed_output)),
        }
    }
}

/// The reasoning price of a tier. If a tier has an output price but no reasoning price, it bills reasoning as output
/// and not at the standard reasoning price.
fn own_reasoning(terms: Terms<'_>, output: Decimal) -> Decimal {
    let rates = &terms.prices.rates;
    let standard = || rates.exact(Rate::Reasoning, Tier::Standard);
    let price = if terms.tier == Tier::Standard {
        standard()
    } else if let Some(price) = rates.exact(Rate::Reasoning, terms.tier) {
        Some(price)
    } else if rates.exact(Rate::Output, terms.tier).is_some() {
        None
    } else {
        standard()
    };
    price.unwrap_or(output)
}

/// The price for reading an explicitly created cache, if the request read one and the model has such a price.
pub(crate) fn explicit_cache_read(terms: Terms<'_>, usage: &Usage, window: Option<&OffPeak>) -> Option<Decimal> {
    let details = usage.prompt.as_ref()?;
    if details.cached == 0 || !details.is_cache_explicit {
        return None;
    }
    let band = terms
        .prices
        .band(usage.prompt_tokens)
        .map(|band| &band.rates)
        .filter(|rates| rates.exact(Rate::Input, Tier::Standard).is_some());
    let in_band = |rate| band.and_then(|rates| rates.exact(rate, Tier::Standard));
    let flat = terms.rate(Rate::CacheReadExplicit);
    let off_peak = window.and_then(|w| w.cache_read_explicit);
    if flat.is_none() && in_band(Rate::CacheReadExplicit).is_none() && off_peak.is_none() {
        return None;
    }
    let standard = match band {
        Some(_) => {
            in_band(Rate::CacheReadExplicit).or_else(|| in_band(Rate::CacheRead)).or_else(|| in_band(Rate::Input))
        }
        None => flat.or_else(|| terms.rate(Rate::CacheRead)).or_else(|| terms.prices.standard(Rate::Input)),
    };
    off_peak.or_else(|| window.and_then(|w| w.cache_read)).or(standard)
}

/// Tokens read from a cache by kind. Their sum is at most the number of cached tokens.
struct CachedTokens {
    text: u64,
    audio: u64,
    image: u64,
}

impl CachedTokens {
    fn new(details: &PromptDetails) -> Self {
        let audio = details.cached_audio.min(details.cached);
        let text = details.cached_text.min(details.cached - audio);
        let image = details.cached_image.min(details.cached - audio - text);
        Self { text, audio, image }
    }
}

/// Prompt tokens by kind, corrected for tokens that are counted twice.
struct PromptTokens {
    text: u64,
    audio: u64,
    image: u64,
    video: u64,
}

impl PromptTokens {
    fn new(details: &PromptDetails, prompt_tokens: u64) -> Self {
        let cached = CachedTokens::new(details);
        let mut tokens = Self {
            text: details.text.saturating_sub(cached.text),
            audio: details.audio.saturating_sub(cached.audio),
            image: details.image.saturating_sub(cached.image),
            video: details.video,
        };
        let from_cache = details.cached.saturating_add(details.cache_write);
        let others = from_cache.saturating_add(tokens.audio).saturating_add(tokens.image).saturating_add(tokens.video);
        if from_cache > 0 && others.saturating_add(tokens.text) > prompt_tokens {
            // Cached tokens are also counted under their kind. The tokens that the cache covers must not be billed a
            // second time.
            let mut rest = prompt_tokens.saturating_sub(from_cache);
            let mut take = |wanted: u64| {
                let taken = wanted.min(rest);
                rest -= taken;
                taken
            };
            tokens.audio = take(tokens.audio);
            tokens.image = take(tokens.image);
            tokens.video = take(tokens.video);
            tokens.text = rest;
        } else if tokens.text == 0 && details.images == 0 {
            tokens.text = prompt_tokens.saturating_sub(others);
        }
        tokens
    }
}

fn bill_prompt(bill: &mut Bill, terms: Terms<'_>, rates: &TokenRates, usage: &Usage) -> Result<(), PricingError> {
    let Some(details) = &usage.prompt else {
        return bill.count(Kind::InputTokens, usage.prompt_tokens, rates.input);
    };
    let tokens = PromptTokens::new(details, usage.prompt_tokens);
    let standard = |rate| terms.prices.standard(rate);
    let by_character = standard(Rate::InputCharacter).filter(|_| details.characters > 0);
    match by_character {
        Some(price) => bill.count(Kind::InputCharacters, details.characters, price)?,
        None => bill.count(Kind::InputTokens, tokens.text, rates.input)?,
    }
    bill_cache(bill, terms, rates, details)?;
    // If a kind of token also has a price per image or per second, it is billed that way only, not twice.
    let by_picture = standard(Rate::InputImage).filter(|_| details.images > 0);
    let by_video_second = standard(Rate::InputVideoSecond).filter(|_| !details.video_seconds.is_zero());
    let by_audio_second = standard(Rate::InputAudioSecond).filter(|_| !details.audio_seconds.is_zero());
    let of_kind = |rate| terms.rate(rate).unwrap_or(rates.input);
    if by_audio_second.is_none() {
        let price = terms.above(Rate::InputAudio, usage).unwrap_or_else(|| of_kind(Rate::InputAudio));
        bill.count(Kind::InputAudioTokens, tokens.audio, price)?;
    }
    if by_picture.is_none() {
        bill.count(Kind::InputImageTokens, tokens.image, of_kind(Rate::InputImageToken))?;
    }
    if by_video_second.is_none() {
        bill.count(Kind::InputVideoTokens, tokens.video, of_kind(Rate::InputVideo))?;
    }
    if let Some(price) = by_picture {
        bill.count(Kind::InputImages, details.images, price)?;
    }
    if let Some(price) = by_video_second {
        bill.line(Kind::InputVideoSeconds, details.video_seconds, price)?;
    }
    if let Some(price) = by_audio_second {
        bill.line(Kind::InputAudioSeconds, details.audio_seconds, price)?;
    }
    if let Some(price) = standard(Rate::InputQuery) {
        bill.count(Kind::Requests, details.queries, price)?;
    }
    Ok(())
}

fn bill_cache(
    bill: &mut Bill,
    terms: Terms<'_>,
    rates: &TokenRates,
    details: &PromptDetails,
) -> Result<(), PricingError> {
    let cached = CachedTokens::new(details);
    let of_kind = |rate| terms.rate(rate).unwrap_or(rates.cache_read);
    bill.count(Kind::CacheReadTokens, details.cached - cached.audio - cached.image, rates.cache_read)?;
    bill.count(Kind::CacheReadAudioTokens, cached.audio, of_kind(Rate::CacheReadAudio))?;
    bill.count(Kind::CacheReadImageTokens, cached.image, of_kind(Rate::CacheReadImage))?;
    let lifetimes = details.cache_write_lifetimes.unwrap_or_default();
    let attributed = lifetimes.short.saturating_add(lifetimes.hour).saturating_add(lifetimes.half_day);
    let short = details.cache_write.saturating_sub(attributed).saturating_add(lifetimes.short);
    bill.count(Kind::CacheWriteTokens, short, rates.cache_write)?;
    bill.count(Kind::CacheWriteHourTokens, lifetimes.hour, rates.cache_write_hour)?;
    bill.count(Kind::CacheWriteHalfDayTokens, lifetimes.half_day, rates.cache_write_half_day)
}

fn bill_completion(bill: &mut Bill, terms: Terms<'_>, rates: &TokenRates, usage: &Usage) -> Result<(), PricingError> {
    let all = usage.completion_tokens;
    let details = usage.completion.unwrap_or_default();
    let text = details.text_without_reasoning(all);
    let parts = details.other_parts();
    if text == 0 && parts == 0 {
        return bill.count(Kind::OutputTokens, all, rates.output);
    }
    let text = if text == 0 { all.saturating_sub(parts) } else { text };
    let of_kind = |rate| terms.prices.standard(rate).unwrap_or(rates.output);
    bill.count(Kind::OutputTokens, text, rates.output)?;
    bill.count(Kind::OutputAudioTokens, details.audio, of_kind(Rate::OutputAudio))?;
    bill.count(Kind::ReasoningTokens, details.reasoning, rates.reasoning)?;
    let image_price = terms.rate(Rate::OutputImageToken).unwrap_or(rates.output);
    bill.count(Kind::OutputImageTokens, details.image, image_price)?;
    bill.count(Kind::OutputVideoTokens, details.video, of_kind(Rate::OutputVideo))
}
