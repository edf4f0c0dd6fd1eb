//! A bill: one line per kind of use, and a total that is exactly the sum of the lines.

use rust_decimal::Decimal;
use serde::Serialize;

use crate::PricingError;
use crate::bill::amount;

/// The kind of use that a line of a bill charges for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentKind {
    /// Prompt tokens at the base price.
    InputTokens,
    /// Prompt characters without white space.
    InputCharacters,
    /// Prompt tokens read from a cache.
    CacheReadTokens,
    /// Audio tokens read from a cache.
    CacheReadAudioTokens,
    /// Image tokens read from a cache.
    CacheReadImageTokens,
    /// Tokens written to a cache entry with the usual lifetime.
    CacheWriteTokens,
    /// Tokens written to a cache entry that lives for one hour.
    CacheWriteHourTokens,
    /// Tokens written to a cache entry that lives for twelve hours.
    CacheWriteHalfDayTokens,
    /// Audio in the prompt, per token.
    InputAudioTokens,
    /// Images in the prompt, per token.
    InputImageTokens,
    /// Video in the prompt, per token.
    InputVideoTokens,
    /// Images in the prompt, per image.
    InputImages,
    /// Video in the prompt, per second.
    InputVideoSeconds,
    /// Audio in the prompt, per second.
    InputAudioSeconds,
    /// Running time of the model, per second.
    Seconds,
    /// Requests, per request.
    Requests,
    /// Tokens of cited sources.
    CitationTokens,
    /// Answer tokens at the base price.
    OutputTokens,
    /// Answer characters without white space.
    OutputCharacters,
    /// Audio in the answer, per token.
    OutputAudioTokens,
    /// Images in the answer, per token.
    OutputImageTokens,
    /// Video in the answer, per token.
    OutputVideoTokens,
    /// Reasoning tokens, which precede the answer.
    ReasoningTokens,
    /// Web searches: per search, or per prompt that searched.
    WebSearches,
    /// Pages opened, per page.
    BrowserOpens,
    /// Requests to Google Maps: per request, or per prompt.
    MapsRequests,
    /// The fee of a model router, per prompt token.
    RouterFee,
    /// A cost that the provider itself stated.
    ProviderReported,
}

/// One line of a bill. `cost` is `quantity * unit_price`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Component {
    /// The kind of use that is charged.
    pub kind: ComponentKind,
    /// The number of units.
    #[serde(with = "rust_decimal::serde::float")]
    pub quantity: Decimal,
    /// Dollars per unit, surcharges included.
    #[serde(with = "rust_decimal::serde::float")]
    pub unit_price: Decimal,
    /// Dollars for all units.
    #[serde(with = "rust_decimal::serde::float")]
    pub cost: Decimal,
}

/// The lines of a bill. A line with a quantity of zero is omitted.
#[derive(Debug, Default)]
pub(crate) struct Bill {
    components: Vec<Component>,
    /// The factor that multiplies every unit price: a surcharge for a region or for speed.
    factor: Option<Decimal>,
}

impl Bill {
    pub(crate) fn with_factor(factor: Decimal) -> Self {
        Self { components: Vec::with_capacity(4), factor: (factor != Decimal::ONE).then_some(factor) }
    }

    /// Stops applying the factor. The lines that follow are not token prices.
    pub(crate) fn end_factor(&mut self) {
        self.factor = None;
    }

    /// Adds a line for a whole number of units.
    pub(crate) fn count(
        &mut self,
        kind: ComponentKind,
        quantity: u64,
        unit_price: Decimal,
    ) -> Result<(), PricingError> {
        self.line(kind, Decimal::from(quantity), unit_price)
    }

    /// Adds a line, unless the quantity is zero.
    ///
    /// # Errors
    /// [`PricingError::AmountTooLarge`] if the amount exceeds the range of a decimal.
    pub(crate) fn line(
        &mut self,
        kind: ComponentKind,
        quantity: Decimal,
        unit_price: Decimal,
    ) -> Result<(), PricingError> {
        if quantity.is_zero() {
            return Ok(());
        }
        let unit_price = match self.factor {
            Some(factor) => amount::multiply(unit_price, factor)?,
            None => unit_price,
        };
        self.components.push(Component { kind, quantity, unit_price, cost: amount::multiply(quantity, unit_price)? });
        Ok(())
    }

    /// Returns the sum of the lines, and the lines.
    pub(crate) fn total(self) -> Result<(Decimal, Vec<Component>), PricingError> {
        let mut total = Decimal::ZERO;
        for component in &self.components {
            total = amount::add(total, component.cost)?;
        }
        Ok((total, self.components))
    }
}
