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
