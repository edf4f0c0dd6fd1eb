//! Reads reported usage with the pricing library, and prices records that state no cost. Booking calls the pricing
//! library only from here.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use litespend_pricing::{CalculateRequest, Pricer, Usage};

/// The counts that a usage object may have. It must have at least one of them.
const COUNTS: [&str; 7] = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "total_input_tokens",
    "total_output_tokens",
];

/// Reads a usage object of any provider's API. An object without any count is a mistake, not a call without tokens.
pub fn read_usage(usage: &Map<String, Value>) -> Result<Usage, String> {
    if !COUNTS.iter().any(|name| usage.contains_key(*name)) {
        return Err(
            "usage: has none of the counts prompt_tokens, completion_tokens, input_tokens, output_tokens".into()
        );
    }
    let read = if usage.contains_key("input_tokens") && !usage.contains_key("output_tokens") {
        // Some calls have no answer, for example embeddings.
        let mut whole = usage.clone();
        whole.insert("output_tokens".into(), json!(0));
        Usage::from_any(&whole)
    } else {
        Usage::from_any(usage)
    };
    read.map_err(|error| format!("usage: {error}"))
}

/// The cost in USD of the usage, or the reason why it has no price.
pub fn price_record(
    pricer: &Pricer,
    model: &str,
    provider: Option<&str>,
    usage: &Usage,
    now: DateTime<Utc>,
) -> Result<f64, String> {
    let priced = pricer.price_usage(model, provider, usage, now);
    priced.map(|calculation| calculation.cost_f64()).map_err(|error| format!("cost: is missing, and: {error}"))
}

/// The cost of a call, and what it was computed for.
#[derive(Clone, Debug, PartialEq)]
pub struct Priced {
    /// The cost in USD.
    pub cost: f64,
    /// The one of the models that has the price.
    pub model: String,
    /// The provider that has it.
    pub provider: Option<String>,
}

/// The cost of a call to a model that may be listed under several names and providers: at the first of the models that
/// has a price, and there at the first of the providers. Providers that litespend does not know (frameworks and gateways
/// put their own names there) do not count: the model's name decides. The reason is that of the first model.
pub fn price_call(
    pricer: &Pricer,
    models: &[&str],
    providers: &[String],
    usage: &Usage,
    now: DateTime<Utc>,
) -> Result<Priced, String> {
    let known: Vec<Option<&str>> =
        providers.iter().map(String::as_str).filter(|provider| pricer.knows_provider(provider)).map(Some).collect();
    let known = if known.is_empty() { vec![None] } else { known };
    let mut reason = None;
    for model in models {
        for provider in &known {
            match pricer.price_usage(model, *provider, usage, now) {
                Ok(priced) => {
                    let own = Some(priced.provider.as_str()).filter(|provider| !provider.is_empty());
                    let provider = provider.or(own).map(str::to_owned);
                    return Ok(Priced { cost: priced.cost_f64(), model: (*model).to_owned(), provider });
                }
                Err(error) => _ = reason.get_or_insert(error),
            }
        }
    }
    let reason = reason.map_or_else(|| "no model is named".to_owned(), |reason| reason.to_string());
    Err(format!("cost: is missing, and: {reason}"))
}

/// The cost in USD of a chat completion, as `POST /spend/calculate` computes it. Its text and its citations are
/// included where they are billed. `model` replaces the model that the response names.
pub fn price_response(
    pricer: &Pricer,
    model: &str,
    response: &Map<String, Value>,
    now: DateTime<Utc>,
) -> Result<f64, String> {
    let mut response = response.clone();
    response.insert("model".into(), model.into());
    let request = CalculateRequest { model: None, messages: None, completion_response: Some(response) };
    let priced = pricer.calculate(&request, now);
    priced.map(|calculation| calculation.cost_f64()).map_err(|error| format!("cost: is missing, and: {error}"))
}
