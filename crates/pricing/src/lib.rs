//! Prices requests to language models by LiteLLM's price table and rules.
//!
//! [`Pricer`] holds the price table and the prices that an installation has configured. It answers three questions:
//!
//! - what a message list will cost before it is sent ([`Pricer::calculate`], which serves `POST /spend/calculate`)
//! - what a response cost ([`Pricer::calculate`])
//! - what a usage record cost ([`Pricer::price_usage`])
//!
//! ```
//! use std::sync::Arc;
//!
//! use chrono::Utc;
//! use litespend_pricing::{CustomModels, PriceTable, Pricer, Usage};
//! use serde_json::{Map, Value};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pricer = Pricer::new(Arc::new(PriceTable::embedded()?), CustomModels::default());
//!     let usage: Map<String, Value> = serde_json::from_str(r#"{"prompt_tokens": 1200, "completion_tokens": 300}"#)?;
//!     let priced = pricer.price_usage("gpt-4o", None, &Usage::from_any(&usage)?, Utc::now())?;
//!     for line in &priced.components {
//!         println!("{:?}: {} x {} = {}", line.kind, line.quantity, line.unit_price, line.cost);
//!     }
//!     assert_eq!(priced.cost_f64(), 0.006);
//!     Ok(())
//! }
//! ```
//!
//! A price is computed in three steps:
//!
//! 1. `names` and `table` resolve a model name to a price entry and to the way that its provider bills.
//! 2. `usage` converts the reported usage to one form. Before a call, `tokens` counts the messages instead.
//! 3. `bill` applies the provider's rules and draws up the lines of a bill. Their exact sum is the cost.
//!
//! The rules are those of LiteLLM 1.110.2. Where LiteLLM fails with an error of its own, this crate refuses with a
//! reason. A model without a price is an error; its cost is never reported as zero. Zero is the price of local models,
//! and of use that a chat response doesn't bill (images, seconds).

#![forbid(unsafe_code)]

mod bill;
mod names;
mod request;
mod table;
mod tokens;
mod usage;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde_json::{Map, Value};

use crate::bill::breakdown::Bill;
use crate::bill::cost::Billed;
use crate::bill::tools::ToolSigns;
use crate::names::catalog::Resolved;
use crate::table::custom::CustomModel;
use crate::table::prices::Tier;
use crate::usage::response::Response;

pub use crate::bill::breakdown::{Component, ComponentKind};
pub use crate::request::{CalculateRequest, FieldError};
pub use crate::table::custom::CustomModels;
pub use crate::table::diff::{FieldChange, TableDiff, diff};
pub use crate::table::{PriceTable, SkippedEntry, TableError};
pub use crate::tokens::encoding::Encoding;
pub use crate::usage::Usage;

/// The reason why a request has no price. The caller can correct every such error, so the HTTP status is 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PricingError {
    /// Neither a model nor a response was given.
    #[error("Either 'model' or 'completion_response' must be provided")]
    NothingToPrice,
    /// A model was given without messages.
    #[error("messages must be provided if 'model' is provided")]
    MessagesMissing,
    /// The response does not name a model.
    #[error("completion_response must name a model")]
    ModelMissing,
    /// No rule determines the model's provider.
    #[error(
        "The provider of model '{model}' is unknown. Put it in front of the name, as in \
         'openai/{model}'."
    )]
    UnknownProvider {
        /// The name that the caller asked for.
        model: String,
    },
    /// The price table has no entry for the model.
    #[error("Model '{model}' of provider '{provider}' has no price.")]
    NotMapped {
        /// The last form of the name that was tried.
        model: String,
        /// The provider that the name led to.
        provider: String,
    },
    /// The provider bills by running time, which the response does not state.
    #[error("Model '{model}' is billed by its running time, which is not known here.")]
    BilledByTime {
        /// The name that the caller asked for.
        model: String,
    },
    /// A count in the usage has the wrong type or is out of range.
    #[error("The usage can't be read: {field} {reason}.")]
    InvalidUsage {
        /// The name of the field.
        field: String,
        /// The condition that the field does not meet.
        reason: &'static str,
    },
    /// The response is not a chat completion.
    #[error("The completion_response can't be read: {field} {reason}.")]
    InvalidResponse {
        /// The name of the field.
        field: &'static str,
        /// The condition that the field does not meet.
        reason: &'static str,
    },
    /// A message can't be counted.
    #[error("The messages can't be counted: {reason}.")]
    InvalidMessages {
        /// The condition that the message does not meet.
        reason: &'static str,
    },
    /// The amount exceeds the range of a [`Decimal`].
    #[error("The cost is larger than can be computed.")]
    AmountTooLarge,
}

/// A price and how it was computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Calculation {
    /// The cost in dollars: exactly the sum of the components.
    pub cost: Decimal,
    /// The model name that was priced, without the provider's prefix if that prefix was only used for routing.
    pub model: String,
    /// The model's provider. Empty if a provider stated the cost of a model that is unknown here.
    pub provider: String,
    /// The name of the price entry. `None` if the provider stated the cost.
    pub price_entry: Option<String>,
    /// Whether the price belongs to a model that LiteLLM no longer lists.
    pub retired: bool,
    /// The last version of LiteLLM that listed a retired model, if it is known.
    pub last_version: Option<String>,
    /// The lines of the bill.
    pub components: Vec<Component>,
    /// Prompt tokens, including cached ones: as reported, or as counted before a call.
    pub prompt_tokens: u64,
    /// Tokens of the answer; 0 before a call.
    pub completion_tokens: u64,
}

impl Calculation {
    /// The cost as the nearest `f64`, for the HTTP answer.
    pub fn cost_f64(&self) -> f64 {
        // Dividing the decimal's parts would round twice. Parsing its digits rounds once.
        let exact = self.cost.normalize().to_string().parse().ok();
        exact.or_else(|| self.cost.to_f64()).unwrap_or(0.0)
    }
}

/// Prices requests by one price table and one configuration. It is cheap to share; replace it as a whole when either
/// changes.
#[derive(Debug)]
pub struct Pricer {
    table: Arc<PriceTable>,
    custom: CustomModels,
}

impl Pricer {
    /// Creates a pricer from a price table and the prices of an installation.
    pub fn new(table: Arc<PriceTable>, custom: CustomModels) -> Self {
        Self { table, custom }
    }

    /// The price table in use.
    pub fn table(&self) -> &Arc<PriceTable> {
        &self.table
    }

    /// Whether LiteLLM or the price table knows a provider with this name.
    pub fn knows_provider(&self, name: &str) -> bool {
        crate::names::provider::is_provider(name) || self.table.has_provider(name)
    }

    /// Prices the body of `POST /spend/calculate`. `now` determines whether off-peak prices apply.
    ///
    /// # Errors
    /// Any [`PricingError`].
    pub fn calculate(&self, request: &CalculateRequest, now: DateTime<Utc>) -> Result<Calculation, PricingError> {
        match (&request.model, &request.completion_response) {
            (Some(model), _) => {
                let messages = request.messages.as_deref();
                let messages = messages.ok_or(PricingError::MessagesMissing)?;
                self.price_messages(model, messages, now)
            }
            (None, Some(response)) => self.price_response(response, now),
            (None, None) => Err(PricingError::NothingToPrice),
        }
    }

    /// Prices a usage object that a provider reported, in any of the forms that [`Usage::from_any`] reads. `provider`
    /// is the provider that served the request, if the caller knows it.
    ///
    /// # Errors
    /// Any [`PricingError`] about the model or the amount.
    pub fn price_usage(
        &self,
        model: &str,
        provider: Option<&str>,
        usage: &Usage,
        now: DateTime<Utc>,
    ) -> Result<Calculation, PricingError> {
        self.price_used(
            Used {
                model,
                provider,
                usage: Some(usage),
                tier: usage.tier(),
                characters: None,
                milliseconds: None,
                cites_urls: false,
            },
            now,
        )
    }

    /// The number of tokens of a message list for a model.
    ///
    /// # Errors
    /// [`PricingError::InvalidMessages`].
    pub fn count_tokens(&self, model: &str, messages: &[Value]) -> Result<u64, PricingError> {
        let name = match self.custom.find(&self.table, model) {
            Some(CustomModel::Named(name)) => name,
            Some(CustomModel::Priced(resolved)) => resolved.model.clone(),
            None => model.to_owned(),
        };
        crate::tokens::MessageCounter::new(&self.table, &name).count(messages)
    }

    fn price_response(&self, response: &Map<String, Value>, now: DateTime<Utc>) -> Result<Calculation, PricingError> {
        let response = Response::read(response)?;
        let usage = response.usage.as_ref();
        let tier = match response.service_tier {
            Some(tier) => Tier::served(tier),
            None => usage.map_or(Tier::Standard, Usage::tier),
        };
        self.price_used(
            Used {
                model: response.model.ok_or(PricingError::ModelMissing)?,
                provider: None,
                usage,
                tier,
                characters: Some(response.characters),
                milliseconds: response.milliseconds,
                cites_urls: response.cites_urls,
            },
            now,
        )
    }

    fn price_used(&self, used: Used<'_>, now: DateTime<Utc>) -> Result<Calculation, PricingError> {
        let custom = self.custom.find(&self.table, used.model);
        let (model, resolved) = match &custom {
            Some(CustomModel::Priced(resolved)) => (used.model, Some(Ok(Arc::clone(resolved)))),
            Some(CustomModel::Named(name)) => (name.as_str(), None),
            None => (used.model, None),
        };
        if resolved.is_none()
            && used.usage.is_some_and(|usage| usage.reported_cost.is_some())
            && let Some(calculation) = self.reported(model, used)?
        {
            return Ok(calculation);
        }
        let resolved =
            resolved.unwrap_or_else(|| crate::names::catalog::resolve_response(&self.table, model, used.provider));
        let resolved = match resolved {
            Ok(resolved) => resolved,
            // A cost that the provider states needs no price entry.
            Err(error) => return self.reported_by_provider(model, used)?.ok_or(error),
        };
        let nothing = Usage::default();
        let billed = Billed {
            usage: used.usage.unwrap_or(&nothing),
            tier: used.tier,
            prompt_characters: None,
            completion_characters: used.characters,
            milliseconds: used.milliseconds,
            now,
        };
        let mut bill = crate::bill::cost::bill(&resolved, billed)?;
        let signs = ToolSigns { model, cites_urls: used.cites_urls };
        crate::bill::tools::bill_tools(&mut bill, &self.table, &resolved, used.usage, signs)?;
        calculation(&resolved, billed.usage, bill)
    }

    /// Uses the cost that the provider states, unless the provider has billing rules of its own that read it.
    fn reported(&self, model: &str, used: Used<'_>) -> Result<Option<Calculation>, PricingError> {
        match self.provider_of(model, used).as_str() {
            "xai" | "perplexity" | "opencode_go" => Ok(None),
            provider => self.reported_cost(model, provider, used),
        }
    }

    /// Like [`Self::reported`], for providers with billing rules of their own whose model has no price entry.
    fn reported_by_provider(&self, model: &str, used: Used<'_>) -> Result<Option<Calculation>, PricingError> {
        let cost = used.usage.and_then(|usage| usage.reported_cost);
        match (self.provider_of(model, used).as_str(), cost) {
            ("xai", Some(cost)) if cost.is_breakdown => Ok(None),
            (provider @ ("xai" | "perplexity"), _) => self.reported_cost(model, provider, used),
            _ => Ok(None),
        }
    }

    fn provider_of(&self, model: &str, used: Used<'_>) -> String {
        match used.provider {
            Some(provider) => provider.to_owned(),
            None => crate::names::provider::route(&self.table, model).map(|route| route.provider).unwrap_or_default(),
        }
    }

    fn reported_cost(&self, model: &str, provider: &str, used: Used<'_>) -> Result<Option<Calculation>, PricingError> {
        let Some((usage, cost)) = used.usage.and_then(|usage| Some((usage, usage.reported_cost?))) else {
            return Ok(None);
        };
        let mut bill = Bill::default();
        bill.line(ComponentKind::ProviderReported, Decimal::ONE, cost.amount)?;
        let (cost, components) = bill.total()?;
        let prefix = format!("{provider}/");
        Ok(Some(Calculation {
            cost,
            model: model.strip_prefix(&prefix).unwrap_or(model).to_owned(),
            provider: provider.to_owned(),
            price_entry: None,
            retired: false,
            last_version: None,
            components,
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
        }))
    }

    fn price_messages(&self, model: &str, messages: &[Value], now: DateTime<Utc>) -> Result<Calculation, PricingError> {
        match self.custom.find(&self.table, model) {
            Some(CustomModel::Priced(resolved)) => self.price_counted(&resolved, &resolved.model, messages, now),
            Some(CustomModel::Named(name)) => self.price_listed(&name, messages, now),
            None => self.price_listed(model, messages, now),
        }
    }

    /// Prices messages under the name with its provider in front. If that has no price, tries the name as it stands.
    fn price_listed(&self, model: &str, messages: &[Value], now: DateTime<Utc>) -> Result<Calculation, PricingError> {
        let route = crate::names::provider::route(&self.table, model);
        let listed = match &route {
            Some(route) => crate::names::catalog::listed_name(&self.table, model, &route.provider),
            None => model.to_owned(),
        };
        let resolved = crate::names::catalog::resolve_request(&self.table, &listed, None);
        if let Ok(resolved) = resolved {
            return self.price_counted(&resolved, &listed, messages, now);
        }
        let provider = crate::names::provider::route(&self.table, &listed).map(|route| route.provider);
        let resolved = crate::names::catalog::resolve_request(&self.table, model, provider.as_deref())?;
        self.price_counted(&resolved, model, messages, now)
    }

    fn price_counted(
        &self,
        resolved: &Resolved,
        counted_as: &str,
        messages: &[Value],
        now: DateTime<Utc>,
    ) -> Result<Calculation, PricingError> {
        let tokens = crate::tokens::MessageCounter::new(&self.table, counted_as).count(messages)?;
        let prompt_characters = if resolved.provider == "vertex_ai" && !messages.is_empty() {
            Some(crate::tokens::prompt_characters(messages)?)
        } else {
            None
        };
        let usage = Usage::of_prompt(tokens);
        let billed = Billed {
            usage: &usage,
            tier: Tier::Standard,
            prompt_characters,
            completion_characters: None,
            milliseconds: None,
            now,
        };
        let bill = crate::bill::cost::bill(resolved, billed)?;
        calculation(resolved, &usage, bill)
    }
}

/// The known facts about a request that has been made.
#[derive(Clone, Copy)]
struct Used<'a> {
    model: &'a str,
    provider: Option<&'a str>,
    usage: Option<&'a Usage>,
    tier: Tier,
    characters: Option<u64>,
    milliseconds: Option<Decimal>,
    cites_urls: bool,
}

fn calculation(resolved: &Resolved, usage: &Usage, bill: Bill) -> Result<Calculation, PricingError> {
    let (cost, components) = bill.total()?;
    Ok(Calculation {
        cost,
        model: resolved.model.clone(),
        provider: resolved.provider.clone(),
        price_entry: Some(resolved.prices.name.clone()),
        retired: resolved.prices.retired,
        last_version: resolved.prices.last_version.clone(),
        components,
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
    })
}

#[cfg(test)]
#[path = "../../../tests/api/support/randomness.rs"]
mod randomness;
