//! `litespend prices`: shows the changes that a newer price table would make.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

use crate::cli::database::Failure;
use litespend_pricing::{PriceTable, diff};

/// The subcommands of `prices`.
#[derive(Debug, Subcommand)]
pub enum PricesCommand {
    /// Print the differences between a table in LiteLLM's format and the built-in table.
    Check {
        /// The table: LiteLLM's model_prices_and_context_window.json.
        file: PathBuf,
    },
}

/// Runs a subcommand of `prices`.
pub fn run(command: &PricesCommand) -> Result<(), Failure> {
    let PricesCommand::Check { file } = command;
    let bytes =
        std::fs::read(file).with_context(|| format!("cannot read {}", file.display())).map_err(Failure::Setting)?;
    let new = PriceTable::from_json(&bytes)
        .with_context(|| format!("{} is not a price table", file.display()))
        .map_err(Failure::Setting)?;
    let old = PriceTable::embedded().context("the built-in table is unusable")?;
    let changes = diff(&old, &new);
    for model in &changes.added {
        println!("+ {model}");
    }
    for model in &changes.removed {
        println!("- {model}");
    }
    for (model, fields) in &changes.changed {
        for field in fields {
            let show = |value: &Option<serde_json::Value>| {
                value.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
            };
            println!("~ {model}: {} {} -> {}", field.field, show(&field.old), show(&field.new));
        }
    }
    for entry in new.skipped() {
        println!("! {}: left out: {}", entry.model, entry.reason);
    }
    println!(
        "{} models: {} added, {} removed, {} changed, {} left out",
        new.len(),
        changes.added.len(),
        changes.removed.len(),
        changes.changed.len(),
        new.skipped().len()
    );
    Ok(())
}
