//! `litespend indexes`: indexes that LiteLLM's own migrations do not create. Only `install` creates any.

use anyhow::Context;
use clap::Subcommand;

use crate::cli::args::DatabaseArgs;
use crate::cli::database::Failure;
use crate::cli::database::with_connection;
use crate::cli::output::say;
use crate::store::indexes;
use crate::store::indexes::WANTED;

/// The subcommands of `indexes`.
#[derive(Debug, Subcommand)]
pub enum IndexesCommand {
    /// Print the statements that are worth running, with the reason and with the query plan that shows it.
    Advise(DatabaseArgs),
    /// Run these statements without blocking writers.
    Install(DatabaseArgs),
    /// Remove the indexes that `install` created.
    Remove(DatabaseArgs),
}

/// Runs a subcommand of `indexes`.
pub fn run(command: IndexesCommand) -> Result<(), Failure> {
    match command {
        IndexesCommand::Advise(args) => with_connection(&args, async |mut connection, _| {
            let mut any = false;
            for wanted in &WANTED {
                if let Some(plan) = indexes::missing(&mut connection, wanted).await.context("cannot explain a query")? {
                    any = true;
                    say!("-- {}\n-- now: {plan}", wanted.reason);
                    for statement in indexes::creation(&mut connection, wanted).await.context(wanted.name)? {
                        say!("{statement};");
                    }
                    say!();
                }
            }
            if !any {
                say!("-- every read has its index, or the tables are too small for one to matter");
            }
            Ok(())
        }),
        IndexesCommand::Install(args) => with_connection(&args, async |mut connection, _| {
            for wanted in &WANTED {
                if indexes::missing(&mut connection, wanted).await.context("cannot explain a query")?.is_none() {
                    continue;
                }
                for statement in indexes::creation(&mut connection, wanted).await.context(wanted.name)? {
                    indexes::run(&mut connection, &statement).await.context(wanted.name)?;
                }
                say!("{} created", wanted.name);
            }
            Ok(())
        }),
        IndexesCommand::Remove(args) => with_connection(&args, async |mut connection, _| {
            for wanted in &WANTED {
                indexes::drop(&mut connection, wanted).await.context(wanted.name)?;
            }
            say!("removed");
            Ok(())
        }),
    }
}
