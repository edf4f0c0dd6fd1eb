//! `litespend books`: closes days, so that their totals stay and their rows can leave the database.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use chrono::{NaiveDate, Utc};
use clap::{Args, Subcommand};
use litespend_archive::Archive;

use crate::books;
use crate::books::background::before;
use crate::books::closing::{ClosingOptions, Forgotten};
use crate::books::pruning::Step;
use crate::books::{closing, describe, last_closable, pruning, reopening, verifying};
use crate::cli::archive;
use crate::cli::args::{ArchiveArgs, DatabaseArgs};
use crate::cli::database::Failure;
use crate::cli::database::with_pool;
use crate::cli::output::say;
use crate::store;
use crate::store::books as tables;
use crate::store::database;
use crate::store::database::DatabaseKind;
use crate::store::{Connection, DateRange, Pool, rollups};

/// The subcommands of `books`.
#[derive(Debug, Subcommand)]
pub enum BooksCommand {
    /// Close all days up to a day: their totals stay from then on, whatever happens to the log, and their rows are in the
    /// archive. Can be interrupted and run again.
    Close(CloseArgs),
    /// Print the closed days, what was added to them later, and the reopened days.
    Status(DatabaseArgs),
    /// Read the archive of closed days back and compare it with the totals. The exit code is 1 if something differs.
    Verify(VerifyArgs),
    /// Remove the rows of closed days from the log. The archive has them.
    Prune(PruneArgs),
    /// Open a closed day again. Its rows come back from the archive into the log.
    Reopen(ReopenArgs),
}

/// The arguments of `books close`.
#[derive(Clone, Debug, Args)]
pub struct CloseArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    archive: ArchiveArgs,
    /// Last day to close (YYYY-MM-DD).
    #[arg(long, value_name = "DAY")]
    through: NaiveDate,
    /// For how many days a day must have been over.
    #[arg(long, default_value_t = books::GRACE_DAYS, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(0..=36_500))]
    grace_days: u32,
    /// Archive messages, responses and requests, too.
    #[arg(long, env = "LITESPEND_ARCHIVE_BODIES", value_parser = clap::builder::FalseyValueParser::new())]
    archive_bodies: bool,
    /// Bring rows back into the log that only the archive has, of days that this database does not know to be closed: as after
    /// it was restored from a backup. Without this option, such days are not closed.
    #[arg(long, conflicts_with = "replace_archived")]
    restore_archived: bool,
    /// Close such days with the rows that the log has. Rows that only the archive has are lost.
    #[arg(long)]
    replace_archived: bool,
}

/// The arguments of `books verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    archive: ArchiveArgs,
    /// First day (YYYY-MM-DD). Default: the first closed day.
    #[arg(long, value_name = "DAY")]
    from: Option<NaiveDate>,
    /// Last day (YYYY-MM-DD). Default: the last closed day.
    #[arg(long, value_name = "DAY")]
    to: Option<NaiveDate>,
}

/// The arguments of `books prune`.
#[derive(Clone, Debug, Args)]
pub struct PruneArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    archive: ArchiveArgs,
    /// Keep the rows of the last days. Rows of open days always stay.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=36_500))]
    keep_days: Option<u32>,
    /// Empty messages, responses and requests of rows that are older than this number of days, of open days, too.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(0..=36_500))]
    strip_after: Option<u32>,
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Remove rows although the log has columns that this version does not archive. What these columns have is lost.
    #[arg(long)]
    without_columns: bool,
    /// Change a log that LiteLLM owns.
    #[arg(long, env = "LITESPEND_PRUNE_LITELLM_LOGS", value_parser = clap::builder::FalseyValueParser::new())]
    prune_litellm_logs: bool,
}

/// The arguments of `books reopen`.
#[derive(Clone, Debug, Args)]
pub struct ReopenArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    archive: ArchiveArgs,
    /// Day to open (YYYY-MM-DD).
    #[arg(value_name = "DAY")]
    day: NaiveDate,
    /// Why. `books status` keeps it.
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// Open the day although its rows have other sums than it counts, as when the log lost rows before they were archived, or
    /// rows that were changed later. From then on, the sums of the rows count.
    #[arg(long)]
    accept_difference: bool,
}

/// Runs a subcommand of `books`.
pub fn run(command: BooksCommand) -> Result<(), Failure> {
    match command {
        BooksCommand::Close(args) => with_pool(&args.database, async |pool, _| close(&pool, &args).await),
        BooksCommand::Status(args) => with_pool(&args, async |pool, _| print_status(&pool).await),
        BooksCommand::Verify(args) => with_pool(&args.database, async |pool, _| verify(&pool, &args).await),
        BooksCommand::Prune(args) => with_pool(&args.database, async |pool, kind| prune(&pool, kind, &args).await),
        BooksCommand::Reopen(args) => with_pool(&args.database, async |pool, _| reopen(&pool, &args).await),
    }
}

/// How long a command waits for another session that closes or prunes.
const LOCK_LIMIT: Duration = Duration::from_secs(600);

/// Days that are exported at once. One session of PostgreSQL makes the rows' texts more slowly than they are encoded.
const EXPORTERS: usize = 2;

/// A connection for work on the books: without a statement timeout, and checked for rollups.
async fn connection(pool: &Pool) -> Result<Connection, Failure> {
    let mut connection = pool.acquire().await.context("no connection")?.detach();
    database::lift_statement_timeout(&mut connection).await.context("cannot prepare the session")?;
    if !tables::is_possible(&mut connection).await.context("cannot read the state of the books")? {
        return Err(Failure::Setting(anyhow!(
            "this database has no rollups, or those of an earlier version: run `litespend rollups install`"
        )));
    }
    if !tables::is_current(&mut connection).await.context("cannot read the state of the books")? {
        return Err(Failure::Setting(anyhow!(
            "the rollups of this database are those of an earlier version: run `litespend rollups install`"
        )));
    }
    if let Some(schema) =
        tables::closed_elsewhere(&mut connection).await.context("cannot read the state of the books")?
    {
        return Err(Failure::Setting(anyhow!(
            "the closed days of this database are those of the schema {schema}: set it in the URL (?schema=)"
        )));
    }
    Ok(connection)
}

/// The connection, with the lock that lets one session at a time work on the books.
async fn locked(pool: &Pool) -> Result<Connection, Failure> {
    let mut connection = connection(pool).await?;
    if !rollups::attached(&mut connection).await.context("cannot read the state of the rollups")? {
        return Err(Failure::Setting(anyhow!(
            "the rollups do not count the log of this database: run `litespend rollups install`"
        )));
    }
    let started = Instant::now();
    while !tables::lock(&mut connection).await.context("cannot lock the books")? {
        if started.elapsed() > LOCK_LIMIT {
            return Err(Failure::Runtime(anyhow!("another session has been working on the books for ten minutes")));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(connection)
}

fn failed(error: books::Error) -> Failure {
    match error {
        books::Error::Refused(message) => Failure::Setting(anyhow!(message)),
        other => Failure::Runtime(other.into()),
    }
}

async fn close(pool: &Pool, args: &CloseArgs) -> Result<(), Failure> {
    let last = last_closable(Utc::now(), args.grace_days);
    if args.through > last {
        return Err(Failure::Setting(anyhow!(
            "--through: {} has not been over for {} days; the last day that can be closed is {last}",
            args.through,
            args.grace_days
        )));
    }
    let archive = archive::open(&args.archive, true).await?;
    let forgotten = match (args.restore_archived, args.replace_archived) {
        (true, _) => Forgotten::Restored,
        (_, true) => Forgotten::Replaced,
        _ => Forgotten::Refused,
    };
    let options = ClosingOptions { bodies: args.archive_bodies, forgotten };
    close_through(pool, &archive, args.through, options).await
}

/// Closes all days up to `through`, and prints each.
pub(crate) async fn close_through(
    pool: &Pool,
    archive: &Archive,
    through: NaiveDate,
    options: ClosingOptions,
) -> Result<(), Failure> {
    let mut connection = locked(pool).await?;
    let mut exporters = Vec::new();
    for _ in 0..EXPORTERS {
        exporters.push(self::connection(pool).await?);
    }
    let started = Instant::now();
    let closed = closing::close_through(&mut connection, exporters, archive, through, options, |day| {
        say!("{} closed: {}", day.day, describe(&day.totals));
        true
    })
    .await
    .map_err(failed)?;
    let rate = closed.rows as f64 / started.elapsed().as_secs_f64().max(0.001);
    say!(
        "done: {} days closed, {} rows archived in {:.1} s ({rate:.0} rows/s)",
        closed.days,
        closed.rows,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn print_status(pool: &Pool) -> Result<(), Failure> {
    let mut connection = connection(pool).await?;
    let days = tables::closed_days(&mut connection, None).await.context("cannot read the closed days")?;
    let all = DateRange { start: store::FIRST_DAY, end: store::LAST_DAY };
    let incomplete = tables::incomplete_days(&mut connection, all).await.context("cannot read the closed days")?;
    if days.is_empty() {
        say!("no day is closed");
    }
    for day in &days {
        let place = match day.pruned_at {
            Some(at) => format!("pruned {}", at.format("%Y-%m-%d")),
            None if incomplete.iter().any(|incomplete| incomplete.day == day.day) => "partly in the log".to_owned(),
            None => "in the log".to_owned(),
        };
        say!(
            "{}  {:>10} requests {:>16.6} USD {:>14} tokens  {:>10} rows archived, verified {}, {place}",
            day.day,
            day.totals.requests,
            day.totals.spend,
            day.totals.total_tokens,
            day.archived_rows,
            day.verified_at.format("%Y-%m-%d %H:%M")
        );
    }
    let adjustments = tables::adjustments(&mut connection, None).await.context("cannot read the adjustments")?;
    if !adjustments.is_empty() {
        say!("adjustments, which count in addition:");
    }
    for adjustment in adjustments {
        say!(
            "{}  {:8} {:>+10} requests {:>+16.6} USD {:>+14} tokens  {} to {}",
            adjustment.day,
            adjustment.kind,
            adjustment.totals.requests,
            adjustment.totals.spend,
            adjustment.totals.total_tokens,
            adjustment.first_noted_at.format("%Y-%m-%d %H:%M"),
            adjustment.last_noted_at.format("%Y-%m-%d %H:%M")
        );
    }
    let reopened = tables::reopened_days(&mut connection).await.context("cannot read the reopened days")?;
    if !reopened.is_empty() {
        say!("reopened:");
    }
    for day in reopened {
        let counted = match (day.requests, day.spend, day.total_tokens) {
            (Some(requests), Some(spend), Some(tokens)) => {
                format!("  (had counted {requests} requests, {spend} USD and {tokens} tokens)")
            }
            _ => String::new(),
        };
        say!("{}  {}  {}{counted}", day.day, day.reopened_at.format("%Y-%m-%d %H:%M"), day.reason.escape_debug());
    }
    Ok(())
}

async fn verify(pool: &Pool, args: &VerifyArgs) -> Result<(), Failure> {
    let archive = archive::open(&args.archive, false).await?;
    let mut connection = connection(pool).await?;
    let range = DateRange {
        start: args.from.unwrap_or(crate::store::FIRST_DAY),
        end: args.to.unwrap_or(crate::store::LAST_DAY),
    };
    compare(&mut connection, &archive, range).await
}

/// Compares the closed days of a range with the archive, and reports every difference.
pub(crate) async fn compare(connection: &mut Connection, archive: &Archive, range: DateRange) -> Result<(), Failure> {
    let days = tables::closed_days(connection, Some(range)).await.context("cannot read the closed days")?;
    let started = Instant::now();
    let mut differences = 0;
    for day in &days {
        match verifying::verify_day(connection, archive, day).await {
            Ok(()) => {}
            Err(error @ books::Error::Database(_)) => return Err(failed(error)),
            Err(error) => {
                differences += 1;
                say!("{}: {error}", day.day);
            }
        }
    }
    for path in archive.damaged() {
        say!("set aside as damaged: {path}");
    }
    if differences > 0 {
        return Err(Failure::Runtime(anyhow!("{differences} of {} closed days are not as they should be", days.len())));
    }
    say!("{} closed days: no difference ({:.1} s)", days.len(), started.elapsed().as_secs_f64());
    Ok(())
}

async fn prune(pool: &Pool, kind: DatabaseKind, args: &PruneArgs) -> Result<(), Failure> {
    if kind == DatabaseKind::LiteLlm && !args.prune_litellm_logs && !args.dry_run {
        return Err(Failure::Setting(anyhow!(
            "the log belongs to LiteLLM: --prune-litellm-logs says that rows may be removed from it"
        )));
    }
    if args.keep_days.is_none() && args.strip_after.is_none() {
        return Err(Failure::Setting(anyhow!("set --keep-days, --strip-after, or both")));
    }
    // Late rows are archived first, so the archive is written.
    let archive = archive::open(&args.archive, !args.dry_run).await?;
    let mut connection = locked(pool).await?;
    if let Some(days) = args.keep_days {
        let through = before(days);
        if !args.without_columns {
            pruning::expect_known_columns(&mut connection).await.map_err(failed)?;
        }
        if args.dry_run {
            let steps = pruning::preview(&mut connection, &archive, through).await.map_err(failed)?;
            if steps.is_empty() {
                say!("nothing to remove: no closed day up to {through} has rows in the log");
            }
            for step in steps {
                say!("would {}", described(&step, "drop", "delete", "keep"));
            }
        } else {
            pruning::prune(&mut connection, &archive, through, |step| {
                say!("{}", described(step, "dropped", "deleted", "kept"));
                true
            })
            .await
            .map_err(failed)?;
            say!("done: the rows of closed days up to {through} that the archive has are no longer in the log");
        }
    }
    match args.strip_after {
        Some(days) if args.dry_run => {
            say!("would empty messages, responses and requests of all rows up to {}", before(days));
        }
        Some(days) => {
            let rows = pruning::strip(&mut connection, before(days), false, || true).await.map_err(failed)?;
            say!("emptied messages, responses and requests of {rows} rows up to {}", before(days));
        }
        None => {}
    }
    Ok(())
}

fn described(step: &Step, drop: &str, delete: &str, keep: &str) -> String {
    match step {
        Step::Partition(partition) => {
            format!("{drop} the partition {} ({} to {})", partition.table, partition.first_day, partition.last_day)
        }
        Step::Day(day, rows) => format!("{delete} {rows} rows of {day}"),
        Step::Kept(day, rows) => {
            format!(
                "{keep} {rows} rows of {day}: the archive does not have them as they are (reopen and close the day to archive them)"
            )
        }
    }
}

async fn reopen(pool: &Pool, args: &ReopenArgs) -> Result<(), Failure> {
    let archive = archive::open(&args.archive, true).await?;
    let mut connection = locked(pool).await?;
    let restored = reopening::reopen(&mut connection, &archive, args.day, &args.why, args.accept_difference)
        .await
        .map_err(failed)?;
    say!("{} is open again; {restored} rows came back from the archive", args.day);
    Ok(())
}
