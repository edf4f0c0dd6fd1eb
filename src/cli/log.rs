//! `litespend log`: the spend log of a database that litespend owns.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use chrono::{NaiveDate, Utc};
use clap::{Args, Subcommand};

use crate::cli::args::DatabaseArgs;
use crate::cli::database::Failure;
use crate::cli::database::with_pool;
use crate::cli::output::say;
use crate::store::Connection;
use crate::store::database;
use crate::store::log::months;
use crate::store::log::months::{Copying, Layout};

/// The subcommands of `log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Partition the log by month if an earlier version created it as one table. Servers keep running. Needs free space
    /// for a second copy of the log. Can be interrupted and run again.
    Partition(PartitionArgs),
    /// Print the partitions with their days, rows and sizes.
    Status(DatabaseArgs),
}

/// The arguments of `log partition`.
#[derive(Clone, Debug, Args)]
pub struct PartitionArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Pause in milliseconds after each 5,000 rows.
    #[arg(long, default_value_t = 0, value_name = "MILLISECONDS")]
    pause: u64,
    /// Remove what an interrupted run has copied. The log stays as it is.
    #[arg(long)]
    cancel: bool,
}

/// Runs a subcommand of `log`.
pub fn run(command: LogCommand) -> Result<(), Failure> {
    match command {
        LogCommand::Partition(args) => with_pool(&args.database, async |pool, _| {
            let mut connection = pool.acquire().await.context("no connection")?;
            database::lift_statement_timeout(&mut connection).await.context("cannot prepare the session")?;
            if !months::lock_copying(&mut connection).await.context("cannot lock the log against a second copy")? {
                return Err(Failure::Runtime(anyhow!("another session is partitioning the log")));
            }
            if args.cancel {
                return cancel(&mut connection).await;
            }
            partition(&mut connection, Duration::from_millis(args.pause)).await
        }),
        LogCommand::Status(args) => with_pool(&args, async |pool, _| {
            let mut connection = pool.acquire().await.context("no connection")?;
            print_status(&mut connection).await
        }),
    }
}

/// How long the command keeps trying to swap the tables, which needs a moment without readers and writers.
const SWAP_LIMIT: Duration = Duration::from_secs(600);

/// The pause between two tries.
const SWAP_PAUSE: Duration = Duration::from_secs(3);

async fn partition(connection: &mut Connection, pause: Duration) -> Result<(), Failure> {
    match months::layout(connection).await.context("cannot read the tables")? {
        Layout::Partitioned => {
            return move_rows(connection).await;
        }
        Layout::LiteLlm => {
            return Err(Failure::Setting(anyhow!(
                "this database is LiteLLM's, and litespend does not change its log: partition it as LiteLLM's own \
                 documentation describes"
            )));
        }
        Layout::Plain => {}
    }
    copy(connection, pause).await?;
    compare(connection).await?;
    let started = Instant::now();
    loop {
        match months::swap(connection).await {
            Ok(true) => break,
            Ok(false) => return Err(Failure::Runtime(anyhow!(BROKEN))),
            Err(error) if months::is_lock_timeout(&error) && started.elapsed() < SWAP_LIMIT => {
                say!("waiting for readers and writers of the log");
                tokio::time::sleep(SWAP_PAUSE).await;
            }
            Err(error) => return Err(Failure::Runtime(anyhow!(error).context("cannot replace the log; try again"))),
        }
    }
    months::analyze(connection).await.context("cannot analyze the log")?;
    say!("done: the log is partitioned by month");
    Ok(())
}

/// Gives the rows in the default partition partitions of their months.
async fn move_rows(connection: &mut Connection) -> Result<(), Failure> {
    let months = months::misplaced(connection).await.context("cannot read the default partition")?;
    if months.is_empty() {
        say!("the log is already partitioned");
    }
    for month in months {
        let moved = months::add(connection, month, true).await;
        let moved = moved.context("cannot move rows out of the default partition now (is it read?); try again")?;
        let month = name(Some(month));
        if moved {
            say!("{month} has a partition now");
        } else {
            say!("{month} cannot have a partition: a table has its name, or a partition has some of its days");
        }
    }
    Ok(())
}

const BROKEN: &str =
    "the copy missed a change of the log: run `litespend log partition --cancel`, then `litespend log partition` again";

async fn cancel(connection: &mut Connection) -> Result<(), Failure> {
    if months::layout(connection).await.context("cannot read the tables")? != Layout::Plain
        || months::copying(connection).await.context("cannot read the state of the copy")?.is_none()
    {
        say!("there is no copy to remove");
        return Ok(());
    }
    months::cancel_copy(connection).await.context("cannot remove the copy now; try again")?;
    say!("removed: the log is as it was");
    Ok(())
}

/// Copies all rows, from where an interrupted run stopped.
async fn copy(connection: &mut Connection, pause: Duration) -> Result<(), Failure> {
    let found = months::copying(connection).await.context("cannot read the state of the copy")?;
    let mut state = match found {
        Some(state) if state.broken => return Err(Failure::Runtime(anyhow!(BROKEN))),
        Some(state) => {
            say!("continuing after {} rows", state.copied);
            state
        }
        None => {
            months::begin_copy(connection).await.context("cannot begin now (is the log locked?); try again")?;
            Copying { copied: 0, after: None, broken: false }
        }
    };
    let started = Instant::now();
    let mut month = None;
    loop {
        let (count, next) = months::copy_batch(connection, &state).await.context("cannot copy rows; try again")?;
        state = next;
        if state.broken {
            return Err(Failure::Runtime(anyhow!(BROKEN)));
        }
        // Rows that arrive from now on are copied by the triggers.
        if count < months::BATCH {
            break;
        }
        let reached = state.after.as_ref().map(|(time, _)| months::month_of(time.date()));
        if reached != month {
            month = reached;
            say!("{} rows copied, now in {} ({:.0} s)", state.copied, name(month), started.elapsed().as_secs_f64());
        }
        tokio::time::sleep(pause).await;
    }
    say!("{} rows copied", state.copied);
    months::complete_copy(connection, Utc::now().date_naive())
        .await
        .context("cannot create the partitions of the coming months now; try again")?;
    Ok(())
}

fn name(month: Option<NaiveDate>) -> String {
    month.map_or_else(|| "-".to_owned(), |month| month.format("%Y-%m").to_string())
}

/// Compares the log and the copy month by month.
async fn compare(connection: &mut Connection) -> Result<(), Failure> {
    for month in months::months_of_either(connection).await.context("cannot read the log")? {
        let agrees = months::copy_agrees(connection, month).await.context("cannot compare the log and the copy")?;
        let month = name(Some(month));
        if !agrees {
            return Err(Failure::Runtime(anyhow!(
                "the copy differs from the log in {month}: run `litespend log partition --cancel`, then `litespend log \
                 partition` again"
            )));
        }
        say!("{month} compared");
    }
    Ok(())
}

async fn print_status(connection: &mut Connection) -> Result<(), Failure> {
    match months::layout(connection).await.context("cannot read the tables")? {
        Layout::LiteLlm => say!("the log is LiteLLM's; litespend does not change its partitions"),
        Layout::Plain => {
            say!("the log is one table: run `litespend log partition` to partition it by month");
            if let Some(state) = months::copying(connection).await.context("cannot read the state of the copy")? {
                let broken = if state.broken { "; the copy missed a change, so remove it with --cancel" } else { "" };
                say!("{} rows are copied{broken}", state.copied);
            }
        }
        Layout::Partitioned => {
            for partition in months::partitions(connection).await.context("cannot read the partitions")? {
                let days = match (partition.first_day, partition.last_day) {
                    (Some(first), Some(last)) => format!("{first} to {last}"),
                    _ => "all other days".to_owned(),
                };
                let size = partition.bytes as f64 / 1e6;
                say!("{:32} {days:24} about {:>10} rows {size:>10.1} MB", partition.name, partition.rows);
            }
            let misplaced = months::misplaced_rows(connection).await.context("cannot read the partitions")?;
            if misplaced > 0 {
                say!("{misplaced} rows are in no partition of a month: run `litespend log partition` to move them");
            }
        }
    }
    Ok(())
}
