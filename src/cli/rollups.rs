//! `litespend rollups`: installs, monitors and removes the rollups of a database that LiteLLM owns. litespend's own
//! database always has rollups.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use chrono::{Months, NaiveDate};
use clap::{Args, Subcommand};

use crate::cli;
use crate::cli::args::{ArchiveArgs, DatabaseArgs};
use crate::cli::database::Failure;
use crate::cli::database::with_connection;
use crate::cli::output::say;
use crate::rollups::folding::Batches;
use crate::store::Connection;
use crate::store::booking::ids;
use crate::store::database;
use crate::store::database::DatabaseKind;
use crate::store::log::months;
use crate::store::rollups::backlog;
use crate::store::rollups::partitions;
use crate::store::{DateRange, FIRST_DAY, LAST_DAY, books, rollups};

/// The subcommands of `rollups`.
#[derive(Debug, Subcommand)]
pub enum RollupsCommand {
    /// Add the schema and the triggers to LiteLLM's database, and count the existing rows day by day while LiteLLM
    /// keeps running. Can be interrupted and run again.
    Install(InstallArgs),
    /// Print the progress of counting.
    Status(DatabaseArgs),
    /// Compare the rollups with the log, partition by partition, and print the first difference. The exit code is 1 if
    /// there is one. After an interruption, --from continues.
    Verify(VerifyArgs),
    /// Count days again from the log, partition by partition: all days, or a range. Reads of the other days keep using
    /// the rollups. After an interruption, --from continues.
    Rebuild(RangeArgs),
    /// Remove the triggers and the schema from LiteLLM's database. Nothing of litespend remains.
    Remove(RemoveArgs),
}

/// The arguments of `rollups remove`.
#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Remove the totals of closed days, too. Reports then read the log only; the archive stays.
    #[arg(long)]
    forget_closed_days: bool,
}

/// The arguments of `rollups install`.
#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// The database that contains the rollups.
    #[command(flatten)]
    database: DatabaseArgs,
    /// Pause in milliseconds after each day, during which LiteLLM has the database to itself.
    #[arg(long, default_value_t = 0, value_name = "MILLISECONDS")]
    pause: u64,
}

/// The arguments of `rollups verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    range: RangeArgs,
    #[command(flatten)]
    archive: ArchiveArgs,
}

/// The arguments that state a range of days.
#[derive(Clone, Debug, Args)]
pub struct RangeArgs {
    /// The database that contains the rollups.
    #[command(flatten)]
    database: DatabaseArgs,
    /// First day (YYYY-MM-DD). Default: the first day of the log.
    #[arg(long, value_name = "DAY")]
    from: Option<NaiveDate>,
    /// Last day (YYYY-MM-DD). Default: the last day of the log.
    #[arg(long, value_name = "DAY")]
    to: Option<NaiveDate>,
}

/// Runs a subcommand of `rollups`.
pub fn run(command: RollupsCommand) -> Result<(), Failure> {
    match command {
        RollupsCommand::Install(args) => with_connection(&args.database, async |mut connection, kind| {
            install(&mut connection, kind, Duration::from_millis(args.pause)).await
        }),
        RollupsCommand::Status(args) => {
            with_connection(&args, async |mut connection, _| print_status(&mut connection).await)
        }
        RollupsCommand::Verify(args) => {
            with_connection(&args.range.database, async |mut connection, _| verify(&mut connection, &args).await)
        }
        RollupsCommand::Rebuild(args) => with_connection(&args.database, async |mut connection, _| {
            rebuild(&mut connection, args.from, args.to).await
        }),
        RollupsCommand::Remove(args) => with_connection(&args.database, async |mut connection, kind| {
            if kind == DatabaseKind::Own {
                return Err(Failure::Setting(anyhow!(
                    "this database is litespend's own: its rollups cannot be removed"
                )));
            }
            require_own_schema(&mut connection).await?;
            if ids::is_installed(&mut connection).await.context("cannot read the state of booking")? {
                return Err(Failure::Setting(anyhow!(
                    "the same schema holds the IDs of booked records: run `litespend booking remove` first"
                )));
            }
            let closed = books::is_any_closed(&mut connection).await.context("cannot read the state of the books")?;
            if closed && !args.forget_closed_days {
                return Err(Failure::Setting(anyhow!(
                    "days are closed: their totals would be lost, and the log may not have their rows any more; \
                     --forget-closed-days removes them all the same"
                )));
            }
            rollups::remove(&mut connection).await.context("cannot remove the rollups now; try again")?;
            say!("removed: the database is as LiteLLM made it");
            Ok(())
        }),
    }
}

async fn require_attached(connection: &mut Connection) -> Result<(), Failure> {
    if rollups::attached(connection).await.context("cannot read the state of the rollups")? {
        return Ok(());
    }
    require_own_schema(connection).await?;
    if let Some(lost) = rollups::lost(connection).await.context("cannot read the state of the rollups")? {
        return Err(Failure::Setting(anyhow!(
            "{lost}, so requests read the log: run `litespend rollups install` to count the log again"
        )));
    }
    Err(Failure::Setting(anyhow!("this database has no rollups: run `litespend rollups install` to add them")))
}

/// Checks that the rollups belong to this schema. A database has one set of rollups. If they belong to a LiteLLM in
/// another schema, this command must not change them.
async fn require_own_schema(connection: &mut Connection) -> Result<(), Failure> {
    let other = rollups::installed_elsewhere(connection).await.context("cannot read the state of the rollups")?;
    let Some(schema) = other else { return Ok(()) };
    Err(Failure::Setting(anyhow!(
        "this database has rollups for the schema {schema}, and a database can have only one set of rollups: requests \
         for the current schema read its spend log"
    )))
}

async fn install(connection: &mut Connection, kind: DatabaseKind, pause: Duration) -> Result<(), Failure> {
    require_own_schema(connection).await?;
    if kind == DatabaseKind::LiteLlm {
        database::migrate_schema(connection).await.context("cannot create the schema litespend")?;
    }
    if !rollups::attached(connection).await.context("cannot read the state of the rollups")? {
        rollups::attach(connection).await.context("cannot add the triggers now (is the log locked?); try again")?;
        say!("counting every change of the spend log from now on");
    } else {
        // An earlier version did not remember it.
        rollups::remember(connection).await.context("cannot remember the rollups")?;
    }
    partitions::follow(connection).await.context("cannot add the triggers of the partitions now; try again")?;
    rollups::attach_activity(connection)
        .await
        .context("cannot add the triggers of the daily rows now (is their table locked?); try again")?;
    count(connection, pause).await
}

/// Counts dirty days until none is left, and prints the progress.
async fn count(connection: &mut Connection, pause: Duration) -> Result<(), Failure> {
    let started = Instant::now();
    let mut days = 0_u32;
    let mut idle = 0;
    loop {
        match rollups::recount(connection).await.context("cannot count a day")? {
            Some(day) => {
                days += 1;
                idle = 0;
                let left = rollups::status(connection).await.context("no status")?.dirty_days;
                say!("{day} counted, {left} days left ({:.0} s)", started.elapsed().as_secs_f64());
                rollups::vacuum(connection).await.context("cannot vacuum the deltas")?;
                tokio::time::sleep(pause).await;
            }
            None => {
                let status = rollups::status(connection).await.context("no status")?;
                if status.dirty_days == 0 && !status.all_dirty {
                    break;
                }
                // A server on the same database is counting.
                idle += 1;
                if idle > 600 {
                    let holder = backlog::lock_holder(connection).await.context("no status")?;
                    let holder = holder.map_or_else(String::new, |holder| {
                        format!(": {} of role {}, process {}", holder.application, holder.role, holder.pid)
                    });
                    return Err(Failure::Runtime(anyhow!("another session has been counting for ten minutes{holder}")));
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    // What arrives meanwhile is left to the servers: on a busy database, there is always something.
    let mut waiting = rollups::status(connection).await.context("no status")?.pending;
    let mut batches = Batches::default();
    while waiting > 0 {
        let folded = batches.fold(connection).await.context("cannot fold the deltas")?;
        if folded == 0 {
            break;
        }
        waiting -= folded;
    }
    say!("done: {days} days counted in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

async fn print_status(connection: &mut Connection) -> Result<(), Failure> {
    require_attached(connection).await?;
    let status = rollups::status(connection).await.context("no status")?;
    let day = |day: Option<NaiveDate>| day.map_or_else(|| "-".to_owned(), |day| day.to_string());
    say!("days counted    {} ({} to {})", status.days, day(status.first_day), day(status.last_day));
    let dirty = if status.all_dirty { "all".to_owned() } else { status.dirty_days.to_string() };
    say!("days to count   {dirty}");
    say!("deltas waiting  {}", status.pending);
    if rollups::can_pack(connection).await.context("no status")? {
        let today = chrono::Utc::now().date_naive();
        let waiting = backlog::backlog(connection, today).await.context("no status")?;
        say!("days to pack    {}", waiting.days_to_pack);
        say!("days to sum     {}", waiting.days_to_sum);
    }
    say!("size            {:.1} MB", status.bytes as f64 / 1e6);
    Ok(())
}

async fn span(
    connection: &mut Connection,
    from: Option<NaiveDate>,
    to: Option<NaiveDate>,
) -> Result<Option<DateRange>, Failure> {
    let log = rollups::log_span(connection).await.context("cannot read the log")?;
    let start = from.or(log.map(|log| log.start));
    let end = to.or(log.map(|log| log.end));
    Ok(start.zip(end).map(|(start, end)| DateRange { start, end }))
}

async fn verify(connection: &mut Connection, args: &VerifyArgs) -> Result<(), Failure> {
    let (from, to) = (args.range.from, args.range.to);
    require_attached(connection).await?;
    if !partitions::are_counted(connection).await.context("cannot compare the partitions")? {
        return Err(Failure::Runtime(anyhow!(
            "partitions of the log came or went and are not counted yet, so requests read the log: a running server \
             counts them soon, or run `litespend rollups install`"
        )));
    }
    verify_closed(connection, args).await?;
    let Some(range) = span(connection, from, to).await? else {
        say!("the spend log is empty");
        return Ok(());
    };
    let started = Instant::now();
    let pieces = pieces(connection, range).await?;
    for piece in &pieces {
        for day in piece.range.start.iter_days().take_while(|day| *day <= piece.range.end) {
            let found = rollups::verify_day(connection, day).await.context("cannot compare a day")?;
            if let Some(found) = found {
                return Err(Failure::Runtime(anyhow!(
                    "the rollup by {} differs from the log on {}: {}: counted {}, logged {}",
                    found.rollup,
                    found.day,
                    found.entry,
                    found.counted,
                    found.logged
                )));
            }
        }
        if pieces.len() > 1 {
            say!("{}: no difference ({:.0} s)", piece.name, started.elapsed().as_secs_f64());
        }
    }
    say!("{} to {}: no difference ({:.1} s)", range.start, range.end, started.elapsed().as_secs_f64());
    Ok(())
}

/// Compares the closed days with the archive, if one is given. The log may have lost their rows.
async fn verify_closed(connection: &mut Connection, args: &VerifyArgs) -> Result<(), Failure> {
    if !books::is_any_closed(connection).await.context("cannot read the state of the books")? {
        return Ok(());
    }
    if args.archive.url().is_none() {
        say!("closed days are not compared: that needs --archive");
        return Ok(());
    }
    let archive = cli::archive::open(&args.archive, false).await?;
    let (start, end) = (args.range.from.unwrap_or(FIRST_DAY), args.range.to.unwrap_or(LAST_DAY));
    cli::books::compare(connection, &archive, DateRange { start, end }).await
}

/// The longest span of days that is divided into pieces: about thirty years.
const LONGEST_SPAN: i64 = 11_000;

/// Counts the days of a range again, one piece after the other.
async fn rebuild(connection: &mut Connection, from: Option<NaiveDate>, to: Option<NaiveDate>) -> Result<(), Failure> {
    require_attached(connection).await?;
    partitions::follow(connection).await.context("cannot follow the partitions of the log")?;
    let Some(logged) = span(connection, from, to).await? else {
        // The log is empty, so the rollups must be.
        rollups::mark_dirty(connection, None).await.context("cannot mark the days")?;
        return count(connection, Duration::ZERO).await;
    };
    // Days that the log has lost may still have sums.
    let counted = rollups::status(connection).await.context("no status")?;
    let start = from.unwrap_or(logged.start.min(counted.first_day.unwrap_or(logged.start)));
    let end = to.unwrap_or(logged.end.max(counted.last_day.unwrap_or(logged.end)));
    if (end - start).num_days() > LONGEST_SPAN {
        // A few rows with strange dates.
        rollups::mark_dirty(connection, None).await.context("cannot mark the days")?;
        return count(connection, Duration::ZERO).await;
    }
    let pieces = pieces(connection, DateRange { start, end }).await?;
    for piece in &pieces {
        rollups::mark_dirty(connection, Some(piece.range)).await.context("cannot mark the days")?;
        count(connection, Duration::ZERO).await?;
        if pieces.len() > 1 {
            say!("{}: counted", piece.name);
        }
    }
    Ok(())
}

/// Days that are compared or counted together.
struct Piece {
    /// The partition, or the days.
    name: String,
    range: DateRange,
}

impl Piece {
    fn of_days(start: NaiveDate, end: NaiveDate) -> Self {
        Self { name: format!("{start} to {end}"), range: DateRange { start, end } }
    }
}

/// Divides a range at the bounds of the log's partitions. Days outside of them, and a log without any, are divided by
/// month.
async fn pieces(connection: &mut Connection, range: DateRange) -> Result<Vec<Piece>, Failure> {
    let bounds = partitions::bounds(connection).await.context("cannot read the partitions of the log")?;
    let mut pieces = Vec::new();
    let mut next = range.start;
    for partition in bounds {
        let (start, end) = (partition.first_day.max(next), partition.last_day.min(range.end));
        if start > end {
            continue;
        }
        pieces.extend(months_between(next, start.pred_opt().unwrap_or(start)));
        pieces.push(Piece { name: partition.name, range: DateRange { start, end } });
        next = end.succ_opt().unwrap_or(end);
    }
    pieces.extend(months_between(next, range.end));
    Ok(pieces)
}

/// The days from `start` to `end`, month by month. Empty if `start` is after `end`.
fn months_between(start: NaiveDate, end: NaiveDate) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut next = start;
    while next <= end {
        let following = months::month_of(next).checked_add_months(Months::new(1));
        let last = following.and_then(|following| following.pred_opt()).unwrap_or(end).min(end);
        pieces.push(Piece::of_days(next, last));
        let Some(day) = last.succ_opt() else { break };
        next = day;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_divided_by_month() {
        let day = |text: &str| text.parse::<NaiveDate>().unwrap_or_default();
        let names =
            |start, end| months_between(day(start), day(end)).into_iter().map(|piece| piece.name).collect::<Vec<_>>();
        assert_eq!(
            names("2026-01-30", "2026-03-01"),
            ["2026-01-30 to 2026-01-31", "2026-02-01 to 2026-02-28", "2026-03-01 to 2026-03-01"]
        );
        assert!(names("2026-02-02", "2026-02-01").is_empty());
    }
}
