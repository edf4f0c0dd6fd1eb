//! `litespend indexes`: indexes that LiteLLM's own migrations do not make. Nothing is made but by `install`.

use anyhow::Context;
use clap::Subcommand;

use crate::cli::args::DatabaseArgs;
use crate::cli::database::Failure;
use crate::cli::database::with_connection;
use crate::store::indexes;
use crate::store::indexes::WANTED;

/// What to do about indexes.
#[derive(Debug, Subcommand)]
pub enum IndexesCommand {
    /// Print the statements worth running, with the reason and the plan that shows it.
    Advise(DatabaseArgs),
    /// Run them, without blocking writers.
    Install(DatabaseArgs),
    /// Remove those that `install` made.
    Remove(DatabaseArgs),
}

/// Runs a subcommand.
pub fn run(command: IndexesCommand) -> Result<(), Failure> {
    match command {
        IndexesCommand::Advise(args) => with_connection(&args, async |mut connection, _| {
            let mut any = false;
            for wanted in &WANTED {
                if let Some(plan) =
                    indexes::missing(&mut connection, wanted).await.context("a read cannot be explained")?
                {
                    any = true;
                    println!("-- {}\n-- now: {plan}\n{};\n", wanted.reason, wanted.create);
                }
            }
            if !any {
                println!("-- every read has its index, or the tables are too small for one to matter");
            }
            Ok(())
        }),
        IndexesCommand::Install(args) => with_connection(&args, async |mut connection, _| {
            for wanted in &WANTED {
                if indexes::missing(&mut connection, wanted).await.context("a read cannot be explained")?.is_some() {
                    indexes::create(&mut connection, wanted).await.with_context(|| wanted.name.to_owned())?;
                    println!("{} made", wanted.name);
                }
            }
            Ok(())
        }),
        IndexesCommand::Remove(args) => with_connection(&args, async |mut connection, _| {
            for wanted in &WANTED {
                indexes::drop(&mut connection, wanted).await.with_context(|| wanted.name.to_owned())?;
            }
            println!("removed");
            Ok(())
        }),
    }
}
