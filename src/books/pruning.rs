//! Removing rows from the log: of days that are closed, archived and verified, and of no others. A partition with such
//! days only is dropped; other rows are deleted in small batches. A row goes only if the archive has it as it is.

use std::time::Duration;

use chrono::{NaiveDate, NaiveTime};
use futures_util::TryStreamExt;
use litespend_archive::{Archive, Column, LogRow, Manifest, Query};

use crate::books::closing::{archive_late_rows, keep};
use crate::books::rows::{NO_BODY, timestamp};
use crate::books::verifying::read_back;
use crate::books::{Error, expect_own};
use crate::store;
use crate::store::Connection;
use crate::store::books;
use crate::store::books::closing;
use crate::store::books::exporting;
use crate::store::books::exporting::Selection;
use crate::store::books::pruning;
use crate::store::books::pruning::{Archived, Partition};
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
    /// Rows of a closed day stay, because the archive does not have them as they are: the day, and their number.
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

/// The steps that [`prune`] would take as things are now: rows that the archive does not have as they are stay, and with them
/// their partition.
pub async fn preview(connection: &mut Connection, archive: &Archive, through: NaiveDate) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    for step in plan(connection, through).await? {
        match step {
            Step::Partition(partition) => {
                let kept = kept_of(connection, archive, &partition).await?;
                if kept.is_empty() { steps.push(Step::Partition(partition)) } else { steps.extend(kept) }
            }
            Step::Day(day, _) => {
                let Some(closed) = books::closed_day(connection, day).await? else { continue };
                let manifest = read_back(archive, &closed).await?;
                let found = compare(connection, archive, &manifest, Matching::Stay).await?;
                steps.extend((found.archived > 0).then_some(Step::Day(day, found.archived)));
                steps.extend((found.kept > 0).then_some(Step::Kept(day, found.kept)));
            }
            Step::Kept(..) => {}
        }
    }
    Ok(steps)
}

/// The days of a partition with rows that the archive does not have as they are.
async fn kept_of(connection: &mut Connection, archive: &Archive, partition: &Partition) -> Result<Vec<Step>, Error> {
    let database = books::database_id(connection).await?;
    let mut kept = Vec::new();
    for closed in books::closed_days(connection, Some(partition.days())).await? {
        let manifest = read_back(archive, &closed).await?;
        expect_own(closed.day, Some(&manifest), &database)?;
        let rows = compare(connection, archive, &manifest, Matching::Stay).await?.kept;
        if rows > 0 {
            kept.push(Step::Kept(closed.day, rows));
        }
    }
    Ok(kept)
}

/// What happens to rows of the log that the archive has as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matching {
    /// They stay.
    Stay,
    /// They are deleted.
    Go,
}

/// What was found of the rows of a day.
#[derive(Clone, Copy, Debug, Default)]
struct Compared {
    /// Rows that the archive has as they are.
    archived: i64,
    /// Rows that it does not have, or has with other values.
    kept: i64,
}

/// Compares the rows of a closed day with those of the archive, in slices of time.
async fn compare(
    connection: &mut Connection,
    archive: &Archive,
    manifest: &Manifest,
    matching: Matching,
) -> Result<Compared, Error> {
    let day = manifest.day;
    let columns = if manifest.bodies { Column::ALL.to_vec() } else { Column::without_bodies().collect() };
    let mut rows = archive.scan(&[(day, manifest.revision)], Query { columns, ..Query::default() });
    let mut next = rows.try_next().await?;
    let statement = exporting::export_statement(Selection::Slice, manifest.bodies, false);
    let mut found = Compared::default();
    let mut from = day.and_time(NaiveTime::MIN);
    while let Some(to) = pruning::end_of_slice(connection, day, from).await? {
        let mut archived = Vec::new();
        {
            let mut logged = exporting::slice(connection, day, (from, to), &statement);
            while let Some(row) = logged.try_next().await.map_err(|error| Error::of_rows(day, error))? {
                let version = exporting::version(&row)?;
                // What the archive cannot store, it does not have.
                let Ok(row) = exporting::exported(&row) else {
                    found.kept += 1;
                    continue;
                };
                let place = (row.start_time, row.request_id);
                while next.as_ref().is_some_and(|next| (next.start_time, next.request_id.as_str()) < place) {
                    next = rows.try_next().await?;
                }
                if next.as_ref().is_some_and(|next| is_archived(&row, &next.as_row())) {
                    let (request_id, start_time) = (row.request_id.to_owned(), timestamp(row.start_time).0);
                    archived.push(Archived { request_id, start_time, version });
                } else {
                    found.kept += 1;
                }
            }
        }
        let matched = match matching {
            Matching::Go if !archived.is_empty() => {
                if found.archived == 0 {
                    pruning::begin(connection, day).await?;
                }
                pruning::delete_rows(connection, day, &archived).await?
            }
            _ => archived.len() as u64,
        };
        let matched = i64::try_from(matched).unwrap_or(i64::MAX);
        found.archived += matched;
        // Rows that were updated meanwhile.
        found.kept += i64::try_from(archived.len()).unwrap_or(i64::MAX) - matched;
        from = to;
    }
    Ok(found)
}

/// Whether the archive has a row of the log as it is. The log may have lost its texts, and when the row was written does not
/// matter.
fn is_archived(logged: &LogRow<'_>, archived: &LogRow<'_>) -> bool {
    let same_text =
        |logged: Option<&str>, archived: Option<&str>| logged.is_none_or(|text| text == NO_BODY) || logged == archived;
    same_text(logged.messages, archived.messages)
        && same_text(logged.response, archived.response)
        && same_text(logged.proxy_server_request, archived.proxy_server_request)
        && (logged.spend == archived.spend || logged.spend.is_nan() && archived.spend.is_nan())
        && without_texts(logged) == without_texts(archived)
}

fn without_texts<'a>(row: &LogRow<'a>) -> LogRow<'a> {
    LogRow {
        spend: 0.0,
        messages: None,
        response: None,
        proxy_server_request: None,
        created_at: None,
        updated_at: None,
        ..*row
    }
}

/// Refuses to remove rows that have more columns than the archive, as after an update of LiteLLM.
pub async fn expect_known_columns(connection: &mut Connection) -> Result<(), Error> {
    let unknown = books::unknown_columns(connection).await?;
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "the log has columns that this version does not archive, so its rows stay: {}; a newer version may archive them, and \
         `books prune --without-columns` removes the rows all the same",
        unknown.join(", ")
    )))
}

/// Removes the rows of closed days up to `through` from the log. Archives late rows and reads the archive back before.
/// `report` is called after each step, and returns whether to go on. A day with an error keeps the rows that are left, and the
/// error is returned at the end. The caller holds the lock of the books and a connection without a statement timeout.
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
            let versions = pruning::versions(connection, partition).await?;
            done = kept_of(connection, archive, partition).await?;
            if done.is_empty() && drop_partition(connection, partition, &versions).await? {
                done.push(step);
            }
        }
        Step::Day(day, _) => {
            let Some(closed) = books::closed_day(connection, *day).await? else { return Ok(done) };
            let manifest = read_back(archive, &closed).await?;
            expect_own(*day, Some(&manifest), database)?;
            let found = compare(connection, archive, &manifest, Matching::Go).await?;
            done.push(Step::Day(*day, found.archived));
            if found.kept > 0 {
                done.push(Step::Kept(*day, found.kept));
            }
        }
        Step::Kept(..) => {}
    }
    Ok(done)
}

async fn drop_partition(connection: &mut Connection, partition: &Partition, versions: &str) -> Result<bool, Error> {
    let mut attempt = 1;
    loop {
        match pruning::drop_partition(connection, partition, versions).await {
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
