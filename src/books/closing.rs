//! Closing a day: fold, compare the rollups with the log, write the archive, read it back, and record the day as closed.
//! It can be interrupted anywhere and run again: until the last step, nothing that was done has any effect.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use chrono::NaiveDate;
use futures_util::TryStreamExt;
use litespend_archive::{Archive, DayWriter, Manifest, Query};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use crate::books::day_sums::DaySums;
use crate::books::names::NamesCollector;
use crate::books::restoring::{is_forgotten, restore_forgotten};
use crate::books::{Error, describe, expect_own, publishing, totals_of};
use crate::store;
use crate::store::Connection;
use crate::store::books;
use crate::store::books::closing;
use crate::store::books::closing::Closing;
use crate::store::books::details;
use crate::store::books::details::Details;
use crate::store::books::exporting;
use crate::store::books::exporting::Selection;
use crate::store::books::{ClosedDay, Totals};
use crate::store::copying::CopiedRows;
use crate::store::log::months;
use crate::store::rollups;
use crate::store::rollups::partitions;

/// How often a day is exported again because the log changed meanwhile.
const ATTEMPTS: u32 = 3;

/// How long to wait for the folding of a day's changes.
const SETTLE_LIMIT: Duration = Duration::from_secs(600);

/// The pause between two looks at the folding, which a server may be doing.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// How often to wait for the writers of the log, two seconds each.
const LOCK_ATTEMPTS: u32 = 30;

/// The pause between two of these attempts, in which the writers go on.
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// How days are closed.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClosingOptions {
    /// Messages, responses and requests are archived, too.
    pub bodies: bool,
    /// What happens to rows that only the archive has, of days that this database does not know to be closed.
    pub forgotten: Forgotten,
}

/// What happens to rows that only the archive has, of days that this database does not know to be closed: as after it was
/// restored from a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forgotten {
    /// The day is not closed.
    #[default]
    Refused,
    /// They come back into the log.
    Restored,
    /// They are lost.
    Replaced,
}

/// Who orders the rows of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// An index, where the database says that it compares texts by their bytes. Some C libraries have a `C.UTF-8` that does
    /// not, or did not when the index was made.
    OfDatabase,
    /// A sort by bytes.
    Sorted,
}

/// Closes a day. A day without rows stays open, and there is nothing to return. The caller holds the lock of the books and
/// a connection without a statement timeout. If the call is given up before its end, the connection must not be used again.
pub async fn close_day(
    connection: &mut Connection,
    archive: &Archive,
    day: NaiveDate,
    options: ClosingOptions,
) -> Result<Option<ClosedDay>, Error> {
    if let Some(closed) = books::closed_day(connection, day).await? {
        return Ok(Some(closed));
    }
    let mut order = Order::OfDatabase;
    for _ in 0..ATTEMPTS {
        settle(connection, day).await?;
        let closing = match export(connection, archive, day, options, order).await {
            Ok(Some(closing)) => closing,
            Ok(None) => return Ok(None),
            Err(Error::Archive(litespend_archive::Error::OutOfOrder { .. })) if order == Order::OfDatabase => {
                order = Order::Sorted;
                continue;
            }
            Err(Error::Database(error)) if store::error::is_conflict(&error) => continue,
            Err(error) => return Err(error),
        };
        if record(connection, &closing).await? {
            publishing::publish(archive, day).await;
            let closed = books::closed_day(connection, day).await?;
            return closed.map(Some).ok_or(Error::Busy { day, reason: "another session reopened the day" });
        }
    }
    Err(Error::Busy { day, reason: "the log of the day kept changing" })
}

/// Waits until the rollups have all changes of the day, and folds and counts as far as no server does.
async fn settle(connection: &mut Connection, day: NaiveDate) -> Result<(), Error> {
    let started = tokio::time::Instant::now();
    loop {
        let Some(reason) = closing::readiness(connection, day).await? else { return Ok(()) };
        partitions::follow(connection).await?;
        let folded = rollups::fold(connection).await?;
        let counted = rollups::recount(connection).await?;
        if folded == 0 && counted.is_none() {
            if started.elapsed() > SETTLE_LIMIT {
                return Err(Error::busy(day, reason));
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    }
}

/// Writes the archive and compares the rollups with the rows, all in one snapshot; then reads the archive back. Of a day
/// without rows, nothing is written.
async fn export(
    connection: &mut Connection,
    archive: &Archive,
    day: NaiveDate,
    options: ClosingOptions,
    order: Order,
) -> Result<Option<Closing>, Error> {
    let mut transaction = exporting::begin_export(connection).await?;
    if let Some(reason) = closing::readiness(&mut transaction, day).await? {
        return Err(Error::busy(day, reason));
    }
    let totals = closing::totals(&mut transaction, day).await?;
    if totals.requests == 0 {
        return Ok(None);
    }
    let fingerprint = closing::fingerprint(&mut transaction, day).await?;
    let database = books::database_id(&mut transaction).await?;
    let existing = archive.manifest(day).await?;
    expect_own(day, existing.as_deref(), &database)?;
    if let Some(existing) = &existing
        && options.forgotten != Forgotten::Replaced
        && is_forgotten(&mut transaction, archive, existing).await?
    {
        return Err(Error::Refused(format!(
            "{day}: the archive has {} rows of this day, which this database does not know to be closed, and the log lacks \
             some of them: `books close --restore-archived` brings them back; with --replace-archived, the day is closed \
             without them, and they are lost",
            existing.sums.rows
        )));
    }
    // A day that was archived with bodies keeps them.
    let bodies = options.bodies || existing.is_some_and(|existing| existing.bodies);
    let mut writer = archive.write_day(day, None, bodies).await?;
    let mut names = NamesCollector::default();
    let mut sums = DaySums::default();
    {
        let by_bytes = order == Order::OfDatabase && exporting::orders_by_bytes(&mut transaction).await?;
        let statement = exporting::export_statement(Selection::All(day), bodies, by_bytes);
        let mut rows = CopiedRows::start(&mut transaction, &statement).await?;
        let written = write_rows(day, &mut rows, &mut writer, &mut names, &mut sums).await;
        // Also if the writing ended early: the connection goes on to be used.
        let rest = rows.skip_rest().await;
        rest.map_err(|error| Error::of_rows(day, error))?;
        written?;
    }
    // Where our comparison finds no agreement, the database's own decides, and names the difference.
    if !sums.agree_with_rollups(&mut transaction, day).await?
        && let Some(found) = closing::difference(&mut transaction, day).await?
    {
        return Err(Error::Differs(Box::new(found)));
    }
    let prepared = writer.finish().await?;
    expect(day, "the archive", &totals_of(prepared.sums()), &totals)?;
    let buckets = details::buckets(totals.requests);
    let (ids, names) = (sums.ids(buckets), names.finish());
    let details = Details { ids, activity: sums.activity(), names: &names };
    details::store_details(&mut transaction, day, buckets, &details).await?;
    transaction.commit().await?;
    expect(day, "the archive, read back,", &totals_of(&prepared.verify().await?), &totals)?;
    let manifest = archive.commit(&prepared, json!({"database": database})).await?;
    let (revision, archived) = (manifest.revision, totals_of(&manifest.sums));
    Ok(Some(Closing { day, totals, fingerprint, revision, archived, buckets }))
}

/// Writes the rows of a day, and collects their names and sums.
async fn write_rows(
    day: NaiveDate,
    rows: &mut CopiedRows<'_>,
    writer: &mut DayWriter,
    names: &mut NamesCollector,
    sums: &mut DaySums,
) -> Result<(), Error> {
    while let Some(row) = rows.next().await.map_err(|error| Error::of_rows(day, error))? {
        let row = exporting::copied(&row).map_err(|request_id| Error::Row { day, request_id })?;
        names.add(&row);
        sums.add(&row);
        writer.push(&row).await?;
    }
    Ok(())
}

pub(super) fn expect(day: NaiveDate, place: &'static str, found: &Totals, expected: &Totals) -> Result<(), Error> {
    // The sum of numbers that are not finite is none; the archive leaves them out.
    let comparable = if expected.spend.is_finite() { *found } else { Totals { spend: expected.spend, ..*found } };
    if expected.agrees_with(&comparable) {
        return Ok(());
    }
    Err(Error::Figures { day, place, found: describe(found), expected: describe(expected) })
}

/// Records the day as closed. Returns false if the log changed since the export.
async fn record(connection: &mut Connection, closing: &Closing) -> Result<bool, Error> {
    let mut attempt = 1;
    loop {
        match closing::close(connection, closing).await {
            Err(error)
                if (months::is_lock_timeout(&error) || store::error::is_conflict(&error))
                    && attempt < LOCK_ATTEMPTS =>
            {
                attempt += 1;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Brings rows into the archive that arrived after their day was closed. Returns their number. Their sums already count.
pub async fn archive_late_rows(connection: &mut Connection, archive: &Archive, day: NaiveDate) -> Result<u64, Error> {
    let Some(closed) = books::closed_day(connection, day).await? else { return Ok(0) };
    let recorded = u32::try_from(closed.revision).unwrap_or_default();
    let newest = archive.manifest(day).await?;
    let Some(newest) = newest.filter(|manifest| manifest.revision >= recorded) else {
        return Err(Error::Refused(format!("{day}: the archive does not have revision {recorded} of this day")));
    };
    let database = books::database_id(connection).await?;
    expect_own(day, Some(&newest), &database)?;
    if newest.revision > recorded {
        adopt(connection, archive, day, &newest).await?;
    }
    if closing::late_ids(connection, day).await?.is_empty() {
        return Ok(0);
    }
    let mut transaction = exporting::begin_export(connection).await?;
    let mut lost: HashSet<Vec<u8>> = closing::late_ids(&mut transaction, day).await?.into_iter().collect();
    let mut writer = archive.write_day(day, Some(&newest), newest.bodies).await?;
    let mut found = HashSet::new();
    let mut count = 0;
    {
        let statement = exporting::export_statement(Selection::Late, newest.bodies, false);
        let mut rows = exporting::rows(&mut transaction, day, &statement);
        while let Some(row) = rows.try_next().await.map_err(|error| Error::of_rows(day, error))? {
            let row = exporting::exported(&row).map_err(|request_id| Error::Row { day, request_id })?;
            writer.push(&row).await?;
            found.extend(lost.take(books::id_digest(row.request_id).as_slice()));
            count += 1;
        }
    }
    transaction.commit().await?;
    // What the log lost before it could be archived goes on counting, but the archive does not have it.
    let lost: Vec<Vec<u8>> = lost.into_iter().collect();
    if !lost.is_empty() {
        closing::record_lost_rows(connection, day, &lost).await?;
    }
    if count == 0 {
        return Ok(0);
    }
    let found: Vec<Vec<u8>> = found.into_iter().collect();
    let prepared = writer.finish().await?;
    prepared.verify().await?;
    let manifest = archive.commit(&prepared, json!({"database": database})).await?;
    closing::record_late_rows(connection, day, manifest.revision, &totals_of(&manifest.sums), &found).await?;
    publishing::publish(archive, day).await;
    Ok(count)
}

/// Records a revision with late rows that an interrupted attempt committed to the archive but not to the database.
async fn adopt(connection: &mut Connection, archive: &Archive, day: NaiveDate, newest: &Manifest) -> Result<(), Error> {
    let late: HashSet<Vec<u8>> = closing::unarchived_ids(connection, day).await?.into_iter().collect();
    let mut archived = Vec::new();
    // The log may have lost them meanwhile, so the archive says which they are.
    let ids = Query { columns: Vec::new(), ..Query::default() };
    let mut rows = archive.scan(&[(day, newest.revision)], ids);
    while let Some(row) = rows.try_next().await? {
        archived.extend(late.get(books::id_digest(&row.request_id).as_slice()).cloned());
    }
    closing::record_late_rows(connection, day, newest.revision, &totals_of(&newest.sums), &archived).await?;
    Ok(())
}

/// What [`close_through`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Number of days that were closed.
    pub days: u32,
    /// Number of rows that were archived.
    pub rows: u64,
}

/// Closes all days up to `through`, oldest first, and archives late rows of closed days. `report` is called after each
/// day, and returns whether to go on. A day that cannot be closed does not keep the other days open; its error is returned
/// at the end.
///
/// Each of the `exporters`, further connections without a statement timeout, exports a day while others are exported and
/// recorded. Without any, one day is closed after the other.
pub async fn close_through(
    connection: &mut Connection,
    exporters: Vec<Connection>,
    archive: &Archive,
    through: NaiveDate,
    options: ClosingOptions,
    mut report: impl FnMut(&ClosedDay) -> bool,
) -> Result<Closed, Error> {
    publishing::reconcile(connection, archive).await?;
    if options.forgotten == Forgotten::Restored {
        restore_forgotten(connection, archive, through).await?;
    }
    let mut done = Closed::default();
    let mut first_error = None;
    closing::find_lost_rows(connection).await?;
    for day in closing::days_with_late_rows(connection).await? {
        match archive_late_rows(connection, archive, day).await {
            Ok(rows) => done.rows += rows,
            Err(error) => keep(&mut first_error, error)?,
        }
    }
    let unknown = books::unknown_columns(connection).await?;
    if !unknown.is_empty() {
        tracing::warn!(columns = unknown.join(", "), "the log has columns that this version does not archive");
    }
    // Before several exports ask for it at once.
    books::database_id(connection).await?;
    let mut exports = Exports::new(exporters, archive, options, books::open_days(connection, through).await?);
    while let Some((day, export)) = exports.next().await {
        let closed = match close_exported(connection, archive, day, options, export).await {
            Ok(Some(closed)) => closed,
            // The log has just lost the rows that it had.
            Ok(None) => continue,
            Err(error) => {
                keep(&mut first_error, error)?;
                continue;
            }
        };
        done.days += 1;
        done.rows += closed.archived_rows.unsigned_abs();
        if !report(&closed) {
            break;
        }
    }
    drop(exports);
    // Of all months, and not only of those of today's days: an earlier run may have been interrupted.
    if let Err(error) = archive.compact_months(through).await {
        tracing::warn!(cause = %error, "the index of a month's ids could not be written");
    }
    first_error.map_or(Ok(done), Err)
}

/// What is known of a day before it is recorded: nothing yet, or its export.
type Export = Option<Result<Option<Closing>, Error>>;

/// A connection that exported a day, and the export.
type Exported = (Connection, Result<Option<Closing>, Error>);

/// Closes a day that was exported on another connection, or exports it first.
async fn close_exported(
    connection: &mut Connection,
    archive: &Archive,
    day: NaiveDate,
    options: ClosingOptions,
    export: Export,
) -> Result<Option<ClosedDay>, Error> {
    match export {
        Some(Ok(None)) => return Ok(None),
        Some(Ok(Some(closing))) if record(connection, &closing).await? => {
            publishing::publish(archive, day).await;
            return Ok(books::closed_day(connection, day).await?);
        }
        // The log changed after the export.
        Some(Ok(Some(_))) => {}
        Some(Err(
            error @ (Error::Differs(_)
            | Error::Figures { .. }
            | Error::Row { .. }
            | Error::Unreadable { .. }
            | Error::Refused(_)),
        )) => return Err(error),
        // It may have been the exporter's connection, or the day has changed: the next attempt tells.
        Some(Err(error)) => tracing::debug!(%day, cause = %error, "exporting a day again"),
        None => {}
    }
    close_day(connection, archive, day, options).await
}

/// Exports days on connections of their own, ahead of those who record them.
struct Exports<'a> {
    archive: &'a Archive,
    options: ClosingOptions,
    days: std::vec::IntoIter<NaiveDate>,
    idle: Vec<Connection>,
    running: VecDeque<(NaiveDate, AbortOnDropHandle<Exported>)>,
}

impl<'a> Exports<'a> {
    fn new(exporters: Vec<Connection>, archive: &'a Archive, options: ClosingOptions, days: Vec<NaiveDate>) -> Self {
        Self { archive, options, days: days.into_iter(), idle: exporters, running: VecDeque::new() }
    }

    /// The next day with its export, in the order of the days.
    async fn next(&mut self) -> Option<(NaiveDate, Export)> {
        while let Some(mut connection) = self.idle.pop() {
            let Some(day) = self.days.next() else { break };
            let (archive, options) = (self.archive.clone(), self.options);
            let export = tokio::spawn(async move {
                let export = match settle(&mut connection, day).await {
                    Ok(()) => export(&mut connection, &archive, day, options, Order::OfDatabase).await,
                    Err(error) => Err(error),
                };
                (connection, export)
            });
            self.running.push_back((day, AbortOnDropHandle::new(export)));
        }
        let Some((day, export)) = self.running.pop_front() else { return Some((self.days.next()?, None)) };
        match export.await {
            Ok((connection, Err(error @ Error::Database(_)))) => {
                // The connection may be of no use any more.
                drop(connection);
                Some((day, Some(Err(error))))
            }
            Ok((connection, export)) => {
                self.idle.push(connection);
                Some((day, Some(export)))
            }
            Err(error) => {
                tracing::warn!(%day, cause = %error, "the export of a day ended early");
                Some((day, None))
            }
        }
    }
}

/// Keeps the first error that concerns a single day. Returns an error that concerns all days.
pub(super) fn keep(first: &mut Option<Error>, error: Error) -> Result<(), Error> {
    use litespend_archive::Error as Archive;
    match error {
        Error::Database(_)
        | Error::Archive(Archive::Unavailable(_) | Archive::Refused(_) | Archive::Local(_) | Archive::BadUrl(_)) => {
            return Err(error);
        }
        error if first.is_none() => *first = Some(error),
        error => tracing::warn!(cause = %error, "a day is left as it is"),
    }
    Ok(())
}
