//! `litespend prices`: shows the changes that a newer price table would make.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::cli::database::Failure;
use crate::cli::output::say;
use crate::prices::{PriceSource, SAVED_TABLE};
use litespend_pricing::{PriceTable, diff};

/// The subcommands of `prices`.
#[derive(Debug, Subcommand)]
pub enum PricesCommand {
    /// Print the differences between a table in LiteLLM's format and the built-in table.
    Check {
        /// The table: LiteLLM's model_prices_and_context_window.json.
        file: PathBuf,
    },
    /// Print the versions and ages of the tables on this machine.
    Status(StatusArgs),
}

/// Where to look for tables.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Newer prices, as given to `serve`: a file or URL.
    #[arg(long, env = "LITELLM_MODEL_COST_MAP_URL", value_name = "FILE|URL")]
    prices: Option<String>,

    /// The directory in which `serve` saves a table that it has read from a URL.
    #[arg(long, env = "LITESPEND_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs a subcommand of `prices`.
pub fn run(command: &PricesCommand) -> Result<(), Failure> {
    match command {
        PricesCommand::Check { file } => check(file),
        PricesCommand::Status(args) => status(args),
    }
}

fn status(args: &StatusArgs) -> Result<(), Failure> {
    let built_in = PriceTable::embedded().context("the built-in table is unusable")?;
    let retired = built_in.len() - built_in.current_models();
    let version = PriceTable::embedded_version();
    say!("built in    LiteLLM {version}: {} names, {retired} of retired models", built_in.len());
    let source = args.prices.as_deref().filter(|text| !text.is_empty()).map(PriceSource::parse);
    let (label, path) = match &source {
        None => {
            say!("in use      the built-in table: --prices names no other");
            return Ok(());
        }
        Some(PriceSource::File(path)) => ("file", path.clone()),
        Some(PriceSource::Url(_)) => {
            let home = args.data_dir.clone().unwrap_or_else(private_postgres::default_home);
            ("saved copy", home.join(SAVED_TABLE))
        }
    };
    let read = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()));
    let table = read.and_then(|bytes| Ok(PriceTable::from_json(&bytes)?));
    match table {
        Ok(table) => say!("{label:<11} {}: {} names, {}", path.display(), table.len(), age(&path)),
        Err(error) => say!("{label:<11} {}: unusable: {error:#}", path.display()),
    }
    Ok(())
}

/// How old a file is, in the largest unit of which it is at least two.
fn age(path: &Path) -> String {
    let modified = std::fs::metadata(path).and_then(|data| data.modified()).ok();
    let Some(age) = modified.and_then(|time| time.elapsed().ok()) else { return "of unknown age".to_owned() };
    let seconds = age.as_secs();
    let units = [("days", 86_400), ("hours", 3_600), ("minutes", 60), ("seconds", 1)];
    let unit = units.into_iter().find(|(_, length)| seconds >= 2 * length).unwrap_or(("seconds", 1));
    format!("{} {} old", seconds / unit.1, unit.0)
}

fn check(file: &Path) -> Result<(), Failure> {
    let bytes =
        std::fs::read(file).with_context(|| format!("cannot read {}", file.display())).map_err(Failure::Setting)?;
    let new = PriceTable::from_json(&bytes)
        .with_context(|| format!("{} is not a price table", file.display()))
        .map_err(Failure::Setting)?;
    let old = PriceTable::embedded().context("the built-in table is unusable")?;
    let changes = diff(&old, &new);
    for model in &changes.added {
        say!("+ {model}");
    }
    for model in &changes.removed {
        say!("- {model}");
    }
    for (model, fields) in &changes.changed {
        for field in fields {
            let show = |value: &Option<serde_json::Value>| {
                value.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
            };
            say!("~ {model}: {} {} -> {}", field.field, show(&field.old), show(&field.new));
        }
    }
    for entry in new.skipped() {
        say!("! {}: left out: {}", entry.model, entry.reason);
    }
    say!(
        "{} models: {} added, {} removed, {} changed, {} left out",
        new.len(),
        changes.added.len(),
        changes.removed.len(),
        changes.changed.len(),
        new.skipped().len()
    );
    Ok(())
}
