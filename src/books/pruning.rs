//! Removing rows from the log: of days that are closed, archived and verified, and of no others. A partition with such
//! days only is dropped; other rows are deleted in small batches.

use std::time::Duration;

use chrono::NaiveDate;
use litespend_archive::Archive;

use crate::books::closing::{archive_late_rows, keep};
use crate::books::verifying::read_back;
use crate::books::{Error, expect_own};
use crate::store;
use crate::store::Connection;
use crate::store::books;
use crate::store::books::closing;
use crate::store::books::pruning;
use crate::store::books::pruning::Partition;
use crate::store::log::months;

/// How often to wait for the readers and writers of the log, two seconds each.
const LOCK_ATTEMPTS: u32 = 30;

/// The pause between two of these attempts.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// A step of pruning.
#[derive(Clone, Debug)]
pub enum Step {
    /// A partition is dropped.
    Partition(Partition),
    /// The rows of a day are deleted: the day, and the number of rows.
    Day(NaiveDate, i64),
    /// Rows of a closed day stay, because the archive does not have them: the day, and their number.
    Kept(NaiveDate, i64),
}

/// The steps that [`prune`] would take.
pub async fn plan(connection: &mut Connection, through: NaiveDate) -> Result<Vec<Step>, Error> {
    let partitions = pruning::closed_partitions(connection, through).await?;
    let mut days = Vec::new();
    for closed in books::closed_days(connection, None).await? {
        let is_in_partition =
            partitions.iter().any(|partition| (partition.first_day..=partition.last_day).contains(&closed.day));
        if closed.day > through || is_in_partition {
            continue;
        }
        let rows = books::logged_rows(connection, closed.day).await?;
        if rows > 0 {
            days.push(Step::Day(closed.day, rows));
        }
    }
    let mut steps: Vec<Step> = partitions.into_iter().map(Step::Partition).collect();
    steps.extend(days);
    Ok(steps)
}

/// The steps that [`prune`] would take as things are now: a partition with rows that the archive does not have is kept.
pub async fn preview(connection: &mut Connection, through: NaiveDate) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    for step in plan(connection, through).await? {
        let kept = match &step {
            Step::Partition(partition) => kept_of(connection, partition).await?,
            Step::Day(..) | Step::Kept(..) => Vec::new(),
        };
        if kept.is_empty() { steps.push(step) } else { steps.extend(kept) }
    }
    Ok(steps)
}

/// The days of a partition with rows that the archive does not have.
async fn kept_of(connection: &mut Connection, partition: &Partition) -> Result<Vec<Step>, Error> {
    let mut kept = Vec::new();
    for closed in books::closed_days(connection, Some(partition.days())).await? {
        let rows = pruning::unarchived_rows(connection, closed.day).await?;
        if rows > 0 {
            kept.push(Step::Kept(closed.day, rows));
        }
    }
    Ok(kept)
}

/// Removes the rows of closed days up to `through` from the log. Archives late rows and reads the archive back before.
/// `report` is called after each step, and returns whether to go on. A day with an error keeps its rows, and the error is
/// returned at the end. The caller holds the lock of the books and a connection without a statement timeout.
pub async fn prune(
    connection: &mut Connection,
    archive: &Archive,
    through: NaiveDate,
    mut report: impl FnMut(&Step) -> bool,
) -> Result<(), Error> {
    let mut first_error = None;
    closing::find_lost_rows(connection).await?;
    for day in closing::days_with_late_rows(connection).await?.into_iter().filter(|day| *day <= through) {
        if let Err(error) = archive_late_rows(connection, archive, day).await {
            keep(&mut first_error, error)?;
        }
    }
    let database = books::database_id(connection).await?;
    for step in plan(connection, through).await? {
        match take(connection, archive, &database, step).await {
            Ok(done) if done.iter().all(&mut report) => {}
            Ok(_) => break,
            Err(error) => keep(&mut first_error, error)?,
        }
    }
    pruning::record_pruned(connection, store::FIRST_DAY, through).await?;
    first_error.map_or(Ok(()), Err)
}

/// Takes a step of pruning, and returns what was done.
async fn take(connection: &mut Connection, archive: &Archive, database: &str, step: Step) -> Result<Vec<Step>, Error> {
    let mut done = Vec::new();
    match &step {
        Step::Partition(partition) => {
            for closed in books::closed_days(connection, Some(partition.days())).await? {
                expect_own(closed.day, Some(read_back(archive, &closed).await?.as_ref()), database)?;
            }
            done = kept_of(connection, partition).await?;
            if done.is_empty() && drop_partition(connection, partition).await? {
                done.push(step);
            }
        }
        Step::Day(day, _) => {
            let Some(closed) = books::closed_day(connection, *day).await? else { return Ok(done) };
            expect_own(*day, Some(read_back(archive, &closed).await?.as_ref()), database)?;
            pruning::begin(connection, *day).await?;
            let mut deleted = 0;
            loop {
                let batch = pruning::delete_rows(connection, *day).await?;
                if batch == 0 {
                    break;
                }
                deleted += i64::try_from(batch).unwrap_or(i64::MAX);
            }
            done.push(Step::Day(*day, deleted));
            let kept = books::logged_rows(connection, *day).await?;
            if kept > 0 {
                done.push(Step::Kept(*day, kept));
            }
        }
        Step::Kept(..) => {}
    }
    Ok(done)
}

async fn drop_partition(connection: &mut Connection, partition: &Partition) -> Result<bool, Error> {
    let mut attempt = 1;
    loop {
        match pruning::drop_partition(connection, partition).await {
            // False: rows arrived meanwhile, and the next run archives them first.
            Ok(dropped) => return Ok(dropped),
            Err(error)
                if (months::is_lock_timeout(&error) || store::error::is_conflict(&error))
                    && attempt < LOCK_ATTEMPTS =>
            {
                attempt += 1;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Empties messages, responses and requests of the rows up to `through`. With `archived_only`, only of rows of closed days
/// that the archive has. Returns the number of rows. `go_on` is asked after each batch.
pub async fn strip(
    connection: &mut Connection,
    through: NaiveDate,
    archived_only: bool,
    go_on: impl Fn() -> bool,
) -> Result<u64, Error> {
    let mut rows = 0;
    for day in pruning::logged_days(connection, through).await? {
        if archived_only && books::closed_day(connection, day).await?.is_none() {
            continue;
        }
        loop {
            let stripped = pruning::strip_rows(connection, day, archived_only).await?;
            rows += stripped;
            if stripped == 0 {
                break;
            }
            if !go_on() {
                return Ok(rows);
            }
        }
    }
    Ok(rows)
}
