//! The prices of one model: reads the price fields of a table entry into a compact typed form.
//!
//! The name of a price field consists of a base (`input_cost_per_token`), an optional prompt size
//! (`_above_200k_tokens`) and an optional service tier (`_priority`). Any number is accepted as a size. To support
//! another base, add it to [`Rate`] and to [`RATE_NAMES`]. Fields that are not prices of a chat request (image sizes,
//! video resolutions, pages) are not read.

use rust_decimal::Decimal;
use serde_json::{Map, Value};

use crate::bill::amount;
use crate::table::off_peak::OffPeak;

/// A unit of use that has its own price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rate {
    Input,
    Output,
    CacheRead,
    CacheWrite,
    CacheWriteHour,
    CacheWriteHalfDay,
    CacheReadAudio,
    CacheReadImage,
    CacheReadExplicit,
    InputAudio,
    InputImageToken,
    InputVideo,
    InputCharacter,
    InputImage,
    InputVideoSecond,
    InputAudioSecond,
    InputQuery,
    OutputAudio,
    OutputImageToken,
    OutputVideo,
    Reasoning,
    OutputCharacter,
    Second,
    InputSecond,
    OutputSecond,
    Citation,
    MapsQuery,
}

const RATE_NAMES: [(&str, Rate); 27] = [
    ("input_cost_per_token", Rate::Input),
    ("output_cost_per_token", Rate::Output),
    ("cache_read_input_token_cost", Rate::CacheRead),
    ("cache_creation_input_token_cost", Rate::CacheWrite),
    ("cache_creation_input_token_cost_above_1hr", Rate::CacheWriteHour),
    ("cache_creation_input_token_cost_above_12hr", Rate::CacheWriteHalfDay),
    ("cache_read_input_audio_token_cost", Rate::CacheReadAudio),
    ("cache_read_input_image_token_cost", Rate::CacheReadImage),
    ("explicit_cache_read_input_token_cost", Rate::CacheReadExplicit),
    ("input_cost_per_audio_token", Rate::InputAudio),
    ("input_cost_per_image_token", Rate::InputImageToken),
    ("input_cost_per_video_token", Rate::InputVideo),
    ("input_cost_per_character", Rate::InputCharacter),
    ("input_cost_per_image", Rate::InputImage),
    ("input_cost_per_video_per_second", Rate::InputVideoSecond),
    ("input_cost_per_audio_per_second", Rate::InputAudioSecond),
    ("input_cost_per_query", Rate::InputQuery),
    ("output_cost_per_audio_token", Rate::OutputAudio),
    ("output_cost_per_image_token", Rate::OutputImageToken),
    ("output_cost_per_video_token", Rate::OutputVideo),
    ("output_cost_per_reasoning_token", Rate::Reasoning),
    ("output_cost_per_character", Rate::OutputCharacter),
    ("cost_per_second", Rate::Second),
    ("input_cost_per_second", Rate::InputSecond),
    ("output_cost_per_second", Rate::OutputSecond),
    ("citation_cost_per_token", Rate::Citation),
    ("google_maps_grounding_cost_per_query", Rate::MapsQuery),
];

/// The service tier that served a request. Tiers without prices of their own count as standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Tier {
    #[default]
    Standard,
    Flex,
    Balanced,
    Priority,
    Ultrafast,
}

impl Tier {
    /// The tier that a response names. `fast` is billed as `priority`. Every other name is standard. That includes
    /// batches, which are billed separately from single responses.
    pub fn served(name: &str) -> Self {
        let is = |tier: &str| name.eq_ignore_ascii_case(tier);
        if is("flex") {
            Self::Flex
        } else if is("balanced") {
            Self::Balanced
        } else if is("priority") || is("fast") {
            Self::Priority
        } else if is("ultrafast") {
            Self::Ultrafast
        } else {
            Self::Standard
        }
    }
}

const TIER_SUFFIXES: [(&str, Tier); 4] = [
    ("_flex", Tier::Flex),
    ("_balanced", Tier::Balanced),
    ("_priority", Tier::Priority),
    ("_ultrafast", Tier::Ultrafast),
];

/// Prices by unit and tier. An entry has so few that a linear scan is faster than a hash map.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RateSheet(Vec<(Rate, Tier, Decimal)>);

impl RateSheet {
    /// The price that is set for exactly this tier.
    pub fn exact(&self, rate: Rate, tier: Tier) -> Option<Decimal> {
        self.0.iter().find(|(r, t, _)| *r == rate && *t == tier).map(|(_, _, price)| *price)
    }

    /// The price for a tier, or the standard price if the tier has none of its own.
    pub fn get(&self, rate: Rate, tier: Tier) -> Option<Decimal> {
        self.exact(rate, tier).or_else(|| self.exact(rate, Tier::Standard))
    }

    pub fn set(&mut self, rate: Rate, tier: Tier, price: Decimal) {
        match self.0.iter_mut().find(|(r, t, _)| *r == rate && *t == tier) {
            Some(entry) => entry.2 = price,
            None => self.0.push((rate, tier, price)),
        }
    }

    fn applies_to(&self, tier: Tier) -> bool {
        self.0.iter().any(|(rate, t, _)| *rate <= Rate::CacheWriteHalfDay && (*t == Tier::Standard || *t == tier))
    }
}

/// Prices that apply to the whole request if its prompt has more than `tokens` tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    pub tokens: u64,
    pub rates: RateSheet,
}

impl Threshold {
    /// Whether this threshold changes the prices of a prompt with this size and tier.
    pub fn is_crossed(&self, prompt_tokens: u64, tier: Tier, inclusive: bool) -> bool {
        self.is_exceeded(prompt_tokens, inclusive) && self.rates.applies_to(tier)
    }

    fn is_exceeded(&self, prompt_tokens: u64, inclusive: bool) -> bool {
        prompt_tokens > self.tokens || (inclusive && prompt_tokens == self.tokens)
    }
}

/// One row of `tiered_pricing`: prices for prompts of more than `above` and at most `up_to` tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct PriceBand {
    pub above: Decimal,
    pub up_to: Decimal,
    pub rates: RateSheet,
}

/// The values of `search_context_cost_per_query`, in dollars per search.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SearchPrices {
    pub low: Option<Decimal>,
    pub medium: Option<Decimal>,
    pub high: Option<Decimal>,
}

/// The prices of one model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelPrices {
    /// The name of the table entry.
    pub name: String,
    /// The value of `litellm_provider`. Empty if the entry has none.
    pub provider: String,
    pub mode: Option<String>,
    /// Whether the model is no longer in LiteLLM's own table.
    pub retired: bool,
    /// The last version of LiteLLM whose table had a retired model, if it is known.
    pub last_version: Option<String>,
    pub rates: RateSheet,
    /// Sorted by size, smallest first.
    pub thresholds: Vec<Threshold>,
    /// The rows of `tiered_pricing` that have a range, in ascending order. `None` if the entry lacks the field.
    pub bands: Option<Vec<PriceBand>>,
    pub off_peak: Option<OffPeak>,
    /// Factors from `provider_specific_entry`, by region (`us`) and speed (`fast`).
    pub multipliers: Vec<(String, Decimal)>,
    pub search: Option<SearchPrices>,
    /// Whether every search is billed, rather than once per prompt.
    pub bills_each_search: bool,
    /// Whether a price of any kind is set. Models with only a price per image have none.
    pub has_prices: bool,
    /// Whether `input_cost_per_token` is set. For Together AI this decides whether the name or a size class is priced.
    pub has_input_price: bool,
}

impl ModelPrices {
    /// Reads an entry of a price table. Fields of the wrong type count as unset, as in LiteLLM.
    pub fn from_entry(name: &str, entry: &Map<String, Value>) -> Self {
        let mut prices = Self {
            name: name.to_owned(),
            provider: text(entry, "litellm_provider").unwrap_or_default(),
            mode: text(entry, "mode"),
            retired: entry.get("retired") == Some(&Value::Bool(true)),
            last_version: text(entry, "last_version"),
            bands: entry.get("tiered_pricing").and_then(price_bands),
            off_peak: entry.get("off_peak_pricing").and_then(OffPeak::from_value),
            search: entry.get("search_context_cost_per_query").and_then(search_prices),
            bills_each_search: entry.get("web_search_billing_unit").and_then(Value::as_str) == Some("per_query"),
            ..Self::default()
        };
        for (field, value) in entry {
            let Some(price) = amount::from_value(value) else {
                continue;
            };
            let Some((rate, threshold, tier)) = parse_field(field) else {
                continue;
            };
            match threshold {
                None => prices.rates.set(rate, tier, price),
                Some(tokens) => prices.threshold_mut(tokens).rates.set(rate, tier, price),
            }
        }
        prices.thresholds.sort_by_key(|threshold| threshold.tokens);
        if let Some(Value::Object(factors)) = entry.get("provider_specific_entry") {
            prices.multipliers =
                factors.iter().filter_map(|(key, value)| Some((key.clone(), amount::from_value(value)?))).collect();
        }
        prices.has_prices = entry.iter().any(|(field, value)| !value.is_null() && is_price_field(field));
        prices.has_input_price = entry.contains_key("input_cost_per_token");
        prices
    }

    /// The standard price of a unit.
    pub fn standard(&self, rate: Rate) -> Option<Decimal> {
        self.rates.exact(rate, Tier::Standard)
    }

    /// The standard price above exactly this prompt size.
    pub fn above(&self, tokens: u64, rate: Rate) -> Option<Decimal> {
        self.thresholds.iter().find(|threshold| threshold.tokens == tokens)?.rates.exact(rate, Tier::Standard)
    }

    /// The price for a tier above the largest prompt size that is crossed and for which this unit has a price.
    pub fn above_crossed(&self, rate: Rate, tier: Tier, prompt_tokens: u64, inclusive: bool) -> Option<Decimal> {
        let crossed = |size: &&Threshold| size.is_exceeded(prompt_tokens, inclusive);
        self.thresholds.iter().rev().filter(crossed).find_map(|size| size.rates.get(rate, tier))
    }

    pub fn multiplier(&self, name: &str) -> Option<Decimal> {
        self.multipliers.iter().find(|(key, _)| key == name).map(|(_, factor)| *factor)
    }

    /// Whether the model has a token price: a positive flat input or output price, or `tiered_pricing`. In a chat
    /// response, models without one are billed by time or not at all.
    pub fn prices_tokens(&self) -> bool {
        let positive = |rate| self.standard(rate).is_some_and(|price| price > Decimal::ZERO);
        positive(Rate::Input) || positive(Rate::Output) || self.bands.is_some()
    }

    /// The row of `tiered_pricing` for a prompt. A prompt outside every range gets the last row. A prompt without
    /// tokens has no row.
    pub fn band(&self, prompt_tokens: u64) -> Option<&PriceBand> {
        if prompt_tokens == 0 {
            return None;
        }
        let bands = self.bands.as_ref()?;
        let size = Decimal::from(prompt_tokens);
        bands.iter().find(|band| band.above < size && size <= band.up_to).or_else(|| bands.last())
    }

    fn threshold_mut(&mut self, tokens: u64) -> &mut Threshold {
        let position = self.thresholds.iter().position(|threshold| threshold.tokens == tokens).unwrap_or_else(|| {
            self.thresholds.push(Threshold { tokens, rates: RateSheet::default() });
            self.thresholds.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "the position was found or made two lines above")]
        &mut self.thresholds[position]
    }
}

/// Whether the name of a field shows that it holds a price by which a request can be billed.
pub(crate) fn is_price_field(field: &str) -> bool {
    matches!(
        field,
        "cost_per_second"
            | "input_cost_per_second"
            | "output_cost_per_second"
            | "input_cost_per_query"
            | "input_cost_per_text_message"
            | "tiered_pricing"
    ) || (field.contains("cost_per") && field.contains("token"))
        || (field.starts_with("cache_") && field.contains("token_cost"))
}

fn parse_field(field: &str) -> Option<(Rate, Option<u64>, Tier)> {
    let (field, tier) = TIER_SUFFIXES
        .iter()
        .find_map(|(suffix, tier)| Some((field.strip_suffix(suffix)?, *tier)))
        .unwrap_or((field, Tier::Standard));
    if let Some(rate) = rate_named(field) {
        return Some((rate, None, tier));
    }
    let (base, size) = field.strip_suffix("_tokens")?.rsplit_once("_above_")?;
    let (digits, factor) = match size.strip_suffix('k') {
        Some(digits) => (digits, 1000),
        None => (size, 1),
    };
    let tokens = digits.parse::<u64>().ok()?.checked_mul(factor)?;
    Some((rate_named(base)?, Some(tokens), tier))
}

fn rate_named(name: &str) -> Option<Rate> {
    RATE_NAMES.iter().find(|(known, _)| *known == name).map(|(_, rate)| *rate)
}

fn text(entry: &Map<String, Value>, field: &str) -> Option<String> {
    entry.get(field).and_then(Value::as_str).map(str::to_owned)
}

fn price_bands(value: &Value) -> Option<Vec<PriceBand>> {
    let mut bands: Vec<PriceBand> = value.as_array()?.iter().filter_map(price_band).collect();
    bands.sort_by_key(|band| band.above);
    Some(bands)
}

fn price_band(row: &Value) -> Option<PriceBand> {
    let row = row.as_object()?;
    let [above, up_to] = row.get("range")?.as_array()?.as_slice() else {
        return None;
    };
    let mut rates = RateSheet::default();
    for (field, value) in row {
        if let (Some((rate, None, Tier::Standard)), false) = (parse_field(field), value.is_null()) {
            rates.set(rate, Tier::Standard, amount::from_value(value).unwrap_or_default());
        }
    }
    Some(PriceBand { above: amount::from_value(above)?, up_to: amount::from_value(up_to)?, rates })
}

fn search_prices(value: &Value) -> Option<SearchPrices> {
    let sizes = value.as_object()?;
    let price = |size: &str| sizes.get(size).and_then(amount::from_value);
    Some(SearchPrices {
        low: price("search_context_size_low"),
        medium: price("search_context_size_medium"),
        high: price("search_context_size_high"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn prices(entry: Value) -> ModelPrices {
        ModelPrices::from_entry("m", entry.as_object().unwrap())
    }

    #[test]
    fn fields_are_read_by_base_size_and_tier() {
        let prices = prices(json!({
            "input_cost_per_token": 1e-6,
            "input_cost_per_token_priority": "2e-6",
            "input_cost_per_token_above_200k_tokens": 3e-6,
            "cache_creation_input_token_cost_above_1hr_above_64000_tokens_flex": 4e-6,
            "input_cost_per_token_batches": 9.0,
            "max_tokens": 5,
        }));
        assert_eq!(prices.standard(Rate::Input), Some("0.000001".parse().unwrap()));
        assert_eq!(prices.rates.get(Rate::Input, Tier::Priority), Some("0.000002".parse().unwrap()));
        assert_eq!(prices.rates.get(Rate::Input, Tier::Flex), Some("0.000001".parse().unwrap()));
        assert_eq!(prices.above(200_000, Rate::Input), Some("0.000003".parse().unwrap()));
        assert_eq!(prices.thresholds[0].tokens, 64_000);
        assert_eq!(
            prices.thresholds[0].rates.exact(Rate::CacheWriteHour, Tier::Flex),
            Some("0.000004".parse().unwrap())
        );
    }

    #[test]
    fn bands_are_half_open_and_the_last_is_endless() {
        let prices = prices(json!({"tiered_pricing": [
            {"range": [1000, 2000], "input_cost_per_token": 2},
            {"range": [0, 1000], "input_cost_per_token": 1},
        ]}));
        let input = |tokens| prices.band(tokens).and_then(|b| b.rates.exact(Rate::Input, Tier::Standard));
        assert_eq!(input(0), None);
        assert_eq!(input(1000), Some(Decimal::from(1)));
        assert_eq!(input(1001), Some(Decimal::from(2)));
        assert_eq!(input(9000), Some(Decimal::from(2)));
    }
}
