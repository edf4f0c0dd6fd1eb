//! A bill as it is drawn up: one line a kind of use, and a total that is exactly their sum.

use rust_decimal::Decimal;
use serde::Serialize;

use crate::PricingError;
use crate::bill::amount;

/// What a line of a bill charges for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentKind {
    /// Prompt tokens at the plain price.
    InputTokens,
    /// Prompt characters without white space.
    InputCharacters,
    /// Prompt tokens read from a cache.
    CacheReadTokens,
    /// Audio tokens read from a cache.
    CacheReadAudioTokens,
    /// Tokens written to a cache of the usual lifetime.
    CacheWriteTokens,
    /// Tokens written to a cache that lives an hour.
    CacheWriteHourTokens,
    /// Tokens written to a cache that lives twelve hours.
    CacheWriteHalfDayTokens,
    /// Audio in the prompt, by token.
    InputAudioTokens,
    /// Pictures in the prompt, by token.
    InputImageTokens,
    /// Video in the prompt, by token.
    InputVideoTokens,
    /// Pictures in the prompt, each.
    InputImages,
    /// Video in the prompt, by second.
    InputVideoSeconds,
    /// Audio in the prompt, by second.
    InputAudioSeconds,
    /// Seconds that the model ran.
    Seconds,
    /// Requests, each.
    Requests,
    /// Tokens of cited sources.
    CitationTokens,
    /// Answer tokens at the plain price.
    OutputTokens,
    /// Answer characters without white space.
    OutputCharacters,
    /// Audio in the answer.
    OutputAudioTokens,
    /// Pictures in the answer.
    OutputImageTokens,
    /// Video in the answer.
    OutputVideoTokens,
    /// Tokens of reasoning before the answer.
    ReasoningTokens,
    /// Web searches, each (or each prompt that searched).
    WebSearches,
    /// Pages opened, each.
    BrowserOpens,
    /// Requests to Google Maps, each (or each prompt).
    MapsRequests,
    /// The fee of a model router, a prompt token.
    RouterFee,
    /// A cost that the provider itself stated.
    ProviderReported,
}

/// One line of a bill: `cost = quantity * unit_price`, in dollars.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Component {
    /// What is charged for.
    pub kind: ComponentKind,
    /// How much of it.
    #[serde(with = "rust_decimal::serde::float")]
    pub quantity: Decimal,
    /// Dollars for one, surcharges included.
    #[serde(with = "rust_decimal::serde::float")]
    pub unit_price: Decimal,
    /// Dollars for all.
    #[serde(with = "rust_decimal::serde::float")]
    pub cost: Decimal,
}

/// The lines of a bill. Lines without a quantity are left out.
#[derive(Debug, Default)]
pub struct Bill {
    components: Vec<Component>,
    /// Multiplies every unit price: a region's or a speed's surcharge.
    factor: Option<Decimal>,
}

impl Bill {
    pub fn with_factor(factor: Decimal) -> Self {
        Self { components: Vec::with_capacity(4), factor: (factor != Decimal::ONE).then_some(factor) }
    }

    /// The lines that follow are no token prices, and the factor doesn't apply to them.
    pub fn end_factor(&mut self) {
        self.factor = None;
    }

    /// Adds a line for a count.
    pub fn count(&mut self, kind: ComponentKind, quantity: u64, unit_price: Decimal) -> Result<(), PricingError> {
        self.line(kind, Decimal::from(quantity), unit_price)
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When the amount leaves the range of a decimal.
    pub fn line(&mut self, kind: ComponentKind, quantity: Decimal, unit_price: Decimal) -> Result<(), PricingError> {
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

    /// The lines and their sum.
    pub fn total(self) -> Result<(Decimal, Vec<Component>), PricingError> {
        let mut total = Decimal::ZERO;
        for component in &self.components {
            total = amount::add(total, component.cost)?;
        }
        Ok((total, self.components))
    }
}
