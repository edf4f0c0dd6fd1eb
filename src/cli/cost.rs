//! `litespend cost`: prices a call from the shell.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use chrono::Utc;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::cli::database::Failure;
use crate::cli::output::say;
use crate::prices::Prices;
use crate::settings::ConfigFile;
use litespend_pricing::{CalculateRequest, Calculation};

/// The arguments of `cost`.
#[derive(Debug, Args)]
pub struct CostArgs {
    /// Model, as a call names it. Optional if the messages' file names it.
    #[arg(required_unless_present = "messages")]
    model: Option<String>,
    /// Prompt tokens.
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    input: u64,
    /// Number of the prompt tokens that were read from the provider's cache.
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    cached: u64,
    /// Completion tokens.
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    output: u64,
    /// Count the tokens of these messages instead: a JSON list, or an object with `messages` and optionally `model`.
    /// `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["input", "cached", "output"])]
    messages: Option<PathBuf>,
    /// Service tier, for example priority or flex. A tier without prices of its own, such as batch, has the standard
    /// prices.
    #[arg(long, value_name = "TIER", conflicts_with = "messages")]
    service_tier: Option<String>,
    /// LiteLLM's config.yaml, for its prices and aliases.
    #[arg(long, short, env = "CONFIG_FILE_PATH", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the breakdown as JSON, as `POST /spend/calculate?explain=true` answers.
    #[arg(long)]
    json: bool,
}

/// Prices the call and prints the result.
pub fn run(args: &CostArgs) -> Result<(), Failure> {
    let config = match &args.config {
        Some(path) => ConfigFile::read(path).map_err(Failure::Setting)?,
        None => ConfigFile::default(),
    };
    let prices = Arc::new(Prices::new(&config, None, None)?);
    let body = body(args).map_err(Failure::Setting)?;
    let request = CalculateRequest::from_body(body).map_err(|errors| {
        Failure::Setting(anyhow!("{}", errors.iter().map(|error| error.msg).collect::<Vec<_>>().join("; ")))
    })?;
    let calculation =
        prices.current().calculate(&request, Utc::now()).map_err(|error| Failure::Runtime(error.into()))?;
    print_calculation(&calculation, args.json);
    Ok(())
}

fn body(args: &CostArgs) -> anyhow::Result<Map<String, Value>> {
    let body = match &args.messages {
        Some(path) => {
            let text = if path.as_os_str() == "-" {
                std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?
            } else {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
            };
            let messages: Value = serde_json::from_str(&text).context("the messages are not JSON")?;
            let (named, messages) = match messages {
                Value::Object(mut object) => {
                    (object.remove("model"), object.remove("messages").context("the object has no `messages`")?)
                }
                other => (None, other),
            };
            let model = args.model.clone().map(Value::String).or(named);
            json!({ "model": model.context("the model is missing: pass it as an argument, or in the file")?, "messages": messages })
        }
        None => json!({ "completion_response": {
            "model": args.model,
            "usage": {
                "prompt_tokens": args.input,
                "completion_tokens": args.output,
                "total_tokens": args.input.saturating_add(args.output),
                "prompt_tokens_details": { "cached_tokens": args.cached },
            },
            "service_tier": args.service_tier,
        } }),
    };
    match body {
        Value::Object(body) => Ok(body),
        _ => Ok(Map::new()),
    }
}

fn print_calculation(calculation: &Calculation, as_json: bool) {
    if as_json {
        say!(
            "{}",
            json!({ "cost": calculation.cost_f64(), "model": calculation.model, "provider": calculation.provider,
            "price_entry": calculation.price_entry, "retired": calculation.retired, "last_version": calculation.last_version,
            "components": calculation.components })
        );
        return;
    }
    let retired = match (calculation.retired, &calculation.last_version) {
        (false, _) => String::new(),
        (true, None) => ", no longer in LiteLLM's list".to_owned(),
        (true, Some(version)) => format!(", in LiteLLM's list until {version}"),
    };
    say!("{} ({}{retired})", calculation.model, calculation.provider);
    for line in &calculation.components {
        let kind = serde_json::to_value(line.kind).unwrap_or_default();
        say!(
            "  {:<24} {:>12} x {:<14} = {}",
            kind.as_str().unwrap_or_default(),
            line.quantity.normalize(),
            line.unit_price.normalize(),
            line.cost.normalize()
        );
    }
    say!("{} USD", calculation.cost.normalize());
}
