//! What a request costs.
//!
//! [`Pricer`] holds the price table and the prices of the installation, and answers three
//! questions: what a message list will cost, what a response cost ([`Pricer::calculate`], behind
//! `POST /spend/calculate`), and what a usage record cost ([`Pricer::price_usage`]).
//!
//! The way of a price: a name is resolved to an entry and a way of billing ([`catalog`], from
//! [`provider`], [`table`] and [`custom`]); the usage is read into one form ([`usage`]) or counted
//! ([`tokens`]); the provider's rules turn both into the lines of a bill ([`cost`],
//! [`token_cost`], [`tools`]), whose exact sum is the cost. The rules are LiteLLM 1.109.1's; where
//! it answers with a failure of its own, this module refuses with a reason. A model without a price
//! is an error, never zero; zero is the price of local models and of what a chat response doesn't
//! bill (pictures, seconds).

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
pub use crate::table::{FieldChange, PriceTable, SkippedEntry, TableDiff, TableError, diff};
pub use crate::tokens::encoding::Encoding;
pub use crate::usage::Usage;

/// Why a request has no price. Each is the caller's to put right: status 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PricingError {
    /// Neither a model nor a response was given.
    #[error("Either 'model' or 'completion_response' must be provided")]
    NothingToPrice,
    /// A model was given without messages.
    #[error("messages must be provided if 'model' is provided")]
    MessagesMissing,
    /// The response names no model.
    #[error("completion_response must name a model")]
    ModelMissing,
    /// No rule finds the model's provider.
    #[error(
        "The provider of model '{model}' is unknown. Put it in front of the name, as in \
         'openai/{model}'."
    )]
    UnknownProvider {
        /// The name as it was asked for.
        model: String,
    },
    /// No entry of the price table fits the model.
    #[error("Model '{model}' of provider '{provider}' has no price.")]
    NotMapped {
        /// The last form of the name that was tried.
        model: String,
        /// The provider that the name led to.
        provider: String,
    },
    /// The provider bills the time that the model ran.
    #[error("Model '{model}' is billed by its running time, which is not known here.")]
    BilledByTime {
        /// The name as it was asked for.
        model: String,
    },
    /// A count of the usage is of the wrong type or out of range.
    #[error("The usage can't be read: {field} {reason}.")]
    InvalidUsage {
        /// The field's name.
        field: String,
        /// What it must be.
        reason: &'static str,
    },
    /// The response is no chat completion.
    #[error("The completion_response can't be read: {field} {reason}.")]
    InvalidResponse {
        /// The field's name.
        field: &'static str,
        /// What it must be.
        reason: &'static str,
    },
    /// A message can't be counted.
    #[error("The messages can't be counted: {reason}.")]
    InvalidMessages {
        /// What is wrong.
        reason: &'static str,
    },
    /// The amount leaves the range of a decimal.
    #[error("The cost is larger than can be computed.")]
    AmountTooLarge,
}

/// A price with its reasons.
#[derive(Debug, Clone, PartialEq)]
pub struct Calculation {
    /// In dollars: exactly the sum of the components.
    pub cost: Decimal,
    /// The model as it was priced, without the provider's prefix where that was only routing.
    pub model: String,
    /// Empty where a provider stated the cost of a model that is not known here.
    pub provider: String,
    /// The name of the price entry; `None` where the provider stated the cost.
    pub price_entry: Option<String>,
    /// The price is of a model that LiteLLM no longer lists.
    pub retired: bool,
    /// The lines of the bill.
    pub components: Vec<Component>,
    /// Tokens of the prompt, cached ones included, as reported or as counted.
    pub prompt_tokens: u64,
    /// Tokens of the answer; 0 before a call.
    pub completion_tokens: u64,
}

impl Calculation {
    /// The cost as the nearest float, for the wire.
    pub fn cost_f64(&self) -> f64 {
        // Dividing the decimal's parts rounds twice; its digits, parsed, round once.
        let exact = self.cost.normalize().to_string().parse().ok();
        exact.or_else(|| self.cost.to_f64()).unwrap_or(0.0)
    }
}

/// Prices requests by one table and one configuration. Cheap to share; replaced as a whole when
/// either changes.
#[derive(Debug)]
pub struct Pricer {
    table: Arc<PriceTable>,
    custom: CustomModels,
}

impl Pricer {
    /// A pricer for a table and the prices of an installation.
    pub fn new(table: Arc<PriceTable>, custom: CustomModels) -> Self {
        Self { table, custom }
    }

    /// The table in use.
    pub fn table(&self) -> &Arc<PriceTable> {
        &self.table
    }

    /// Prices the body of `POST /spend/calculate`. `now` decides whether off-peak prices hold.
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

    /// Prices what a provider reported, whatever the form of its usage object
    /// ([`Usage::from_any`]). `provider` is the one the request went to, where that is known.
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

    /// How many tokens a message list has for a model.
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
            // What the provider states needs no entry.
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

    /// A cost that the provider states is the cost, except where the provider's own rules read it.
    fn reported(&self, model: &str, used: Used<'_>) -> Result<Option<Calculation>, PricingError> {
        match self.provider_of(model, used).as_str() {
            "xai" | "perplexity" | "opencode_go" => Ok(None),
            provider => self.reported_cost(model, provider, used),
        }
    }

    /// As [`Self::reported`], for the providers with rules of their own, where these found no entry.
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

    /// Prices messages under the name with its provider in front, then under the name as it is.
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

/// What is known of a request that has been made.
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
        components,
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
    })
}

#[cfg(test)]
#[path = "../../../tests/api/support/randomness.rs"]
mod randomness;
