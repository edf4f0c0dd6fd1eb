//! Closed days in reads of rows: which of them a request covers, and how their archived rows get into its answer.

use std::time::Duration;

use chrono::NaiveDateTime;
use litespend_archive::{Archive, Error as ArchiveError};
use tokio::time::Instant;

use crate::books;
use crate::books::beside::{LeftOut, Needed};
use crate::books::rows::ArchivedDays;
use crate::http::error::{ApiError, ErrorType};
use crate::http::read_limits::Length;
use crate::http::reads::Reads;
use crate::http::state::AppState;
use crate::metrics::Metrics;
use crate::store;
use crate::store::log;
use crate::store::log::SpendLogFilter;
use crate::store::log::filter::{LogFilter, Outcomes};
use crate::store::log::pages;
use crate::store::log::rows::SessionSums;
use crate::store::reading::Reading;
use crate::store::{Connection, DateRange};

/// The refusal of a read that needs the archive of a server that has none.
const NO_ARCHIVE: &str = "Rows of closed days are in an archive, and this server was started without --archive. Set \
                          archive=false to get the other rows.";

/// The refusal of a read that needs an archive that does not answer.
const AWAY: &str = "The archive with the rows of closed days does not answer. Try again shortly, or set archive=false to \
                    get the other rows.";

/// The refusal of a read that needs temporary tables where the database does not allow them.
const NO_TABLES: &str = "Pages with rows of closed days need temporary tables (the right TEMPORARY, and a database that can be \
                         written). Set archive=false to get the other rows.";

/// The refusal of a read that needs a damaged object.
const DAMAGED: &str = "A file of the archive with rows of closed days is damaged and set aside. Set archive=false to get the \
                       other rows.";

/// How long a page waits for the archived calls of its sessions.
const SOON: Duration = Duration::from_secs(3);

/// Whether days of the log are closed. If not, answers come from the log alone, and nothing else is asked.
async fn has_closed_days(state: &AppState, connection: &mut Connection) -> Result<bool, ApiError> {
    let can_have = state.archive().is_some() || state.folding.has_closed_days();
    Ok(can_have && store::books::is_any_closed(connection).await?)
}

/// Starts a snapshot in which no partition of the log disappears. Its closed days and its rows are of one moment, so that no
/// row is lost that leaves the log meanwhile.
async fn in_snapshot(reading: Reading) -> Result<Reading, ApiError> {
    let mut reading = reading.snapshot().await?;
    log::keep(reading.connection()).await?;
    Ok(reading)
}

/// The days from `from` to `to`, both included.
fn days_between(from: Option<NaiveDateTime>, to: Option<NaiveDateTime>) -> DateRange {
    DateRange {
        start: from.map_or(store::FIRST_DAY, |from| from.date()).max(store::FIRST_DAY),
        end: to.map_or(store::LAST_DAY, |to| to.date()).min(store::LAST_DAY),
    }
}

/// The closed days of a range of which the log may lack rows. `None` if there are none. 503 if rows were removed from the log
/// and this server has no archive.
async fn archived_days(
    state: &AppState,
    connection: &mut Connection,
    range: DateRange,
) -> Result<Option<ArchivedDays>, ApiError> {
    let closed = store::books::incomplete_days(connection, range).await?;
    if closed.is_empty() {
        return Ok(None);
    }
    let Some(archive) = state.archive() else { return Err(refused(NO_ARCHIVE)) };
    let days = closed.iter().map(|closed| (closed.day, closed.revision.unsigned_abs())).collect();
    let moved = store::books::is_current(connection).await?;
    Ok(Some(ArchivedDays::new(Archive::clone(archive), days, moved)))
}

/// A connection for rows of the log, and the closed days whose archived rows belong among them. Without closed days, it is the
/// same connection; otherwise it is in a snapshot.
pub async fn with_archived_days(
    state: &AppState,
    reads: &Reads,
    mut reading: Reading,
    filter: &mut SpendLogFilter,
    length: Length,
) -> Result<(Reading, Option<ArchivedDays>), ApiError> {
    if !has_closed_days(state, reading.connection()).await? {
        return Ok((reading, None));
    }
    // All pages of a list are in one order, also those that no closed day concerns.
    filter.by_bytes = true;
    let range = days_between(filter.from, filter.after.as_ref().map(|after| after.start_time).or(filter.to));
    reading = in_snapshot(reading).await?;
    let mut days = archived_days(state, reading.connection(), range).await;
    if matches!(days, Ok(Some(_))) && length == Length::Short {
        // The archive may keep the connection waiting.
        reading.finish().await?;
        reading = in_snapshot(reads.start_for(Length::Long).await?).await?;
        days = archived_days(state, reading.connection(), range).await;
    }
    if matches!(days, Ok(Some(_))) {
        reading.may_be_idle().await?;
    }
    if filter.names_request() {
        // One request has few rows, so it is known before the answer begins whether the archive has some of them.
        days = match days {
            Ok(Some(days)) => days.with_rows(filter).await.map_err(ApiError::from),
            other => other,
        };
        if days.as_ref().is_err_and(is_refusal) && log::reaches(reading.connection(), filter, 1).await? {
            return Ok((reading, None));
        }
    }
    Ok((reading, days?))
}

/// All rows that match a filter of rows, if the client wants those of the archive.
pub fn all_rows(is_wanted: bool) -> Option<Needed<'static>> {
    is_wanted.then_some(Needed::All(Outcomes::OfRows))
}

/// What a page has of the archive.
#[derive(Default)]
pub struct OfArchive {
    /// The rows that the page does not need.
    pub left_out: Option<LeftOut>,
    /// All closed days, if rows of some stand beside the log.
    days: Option<ArchivedDays>,
}

/// A connection for a page of the dashboard's log. If the filter covers closed days and the client wants them, the log of
/// this connection has those of their archived rows that the page needs. Where the archive does not answer, and one request is asked for, it is
/// answered from the log if that has a row of it that is `visible` to the caller.
pub async fn with_archived_rows(
    state: &AppState,
    reads: &Reads,
    mut reading: Reading,
    filter: &LogFilter,
    visible: &LogFilter,
    needed: Option<Needed<'_>>,
) -> Result<(Reading, OfArchive), ApiError> {
    let alone = |reading| Ok((reading, OfArchive::default()));
    let Some(needed) = needed else { return alone(reading) };
    if !has_closed_days(state, reading.connection()).await? {
        return alone(reading);
    }
    // A search finds a row by its own ID at any time.
    let window = filter.window.filter(|_| filter.search.is_none());
    let (from, to) = window.unzip();
    let range = days_between(from, to);
    reading = in_snapshot(reading).await?;
    // The page may have to wait for memory.
    reading.may_be_idle().await?;
    match archived_days(state, reading.connection(), range).await {
        Ok(None) => return alone(reading),
        Ok(Some(_)) => {}
        Err(error) => return of_log_alone(reading, visible, error).await.and_then(alone),
    }
    reading.finish().await?;
    reading = in_snapshot(reads.start_on_primary().await?.scratch().await?).await?;
    // All days, for the sums of sessions. Beside the log's rows, the table of this name is another one, which nothing is known
    // of.
    let all = match archived_days(state, reading.connection(), days_between(None, None)).await {
        Ok(all) => all,
        Err(error) => return of_log_alone(reading, visible, error).await.and_then(alone),
    };
    let Some(days) = all.as_ref().and_then(|all| all.within(range)) else { return alone(reading) };
    match days.put_beside(reading.connection(), filter, needed).await {
        Ok(left_out) => Ok((reading, OfArchive { left_out, days: all })),
        Err(books::Error::Database(error)) if store::error::forbids_tables(&error) => {
            tracing::warn!(cause = %error, "cannot put archived rows beside the log");
            let mut reading = in_snapshot(reading.without_snapshot().await?).await?;
            reading.may_be_idle().await?;
            of_log_alone(reading, visible, refused(NO_TABLES)).await.and_then(alone)
        }
        Err(error @ books::Error::Archive(_)) => of_log_alone(reading, visible, error.into()).await.and_then(alone),
        Err(error) => Err(error.into()),
    }
}

/// The sums of these sessions with these keys over the calls of the log and, if the client wants them, of the archive. Where
/// the archive does not answer soon, over those of the log alone: a page of the log's own rows does not need the archive.
pub async fn session_sums(
    state: &AppState,
    mut reading: Reading,
    of_archive: OfArchive,
    (ids, keys): (&[&str], &[&str]),
    is_wanted: bool,
) -> Result<(Reading, Vec<SessionSums>), ApiError> {
    let mut all = of_archive.days;
    if all.is_none()
        && is_wanted
        && state.archive().is_some()
        && !state.silent_archive.is_on()
        && has_closed_days(state, reading.connection()).await?
    {
        if !reading.has_snapshot() {
            reading = in_snapshot(reading).await?;
            reading.may_be_idle().await?;
        }
        all = archived_days(state, reading.connection(), days_between(None, None)).await?;
    }
    let deadline = Instant::now() + SOON;
    let days = match all {
        Some(all) => match tokio::time::timeout_at(deadline, all.of_sessions(ids)).await {
            Ok(days) => or_without(days)?,
            Err(_) => none_in_time(state),
        },
        None => None,
    };
    let of_log = pages::session_sums(reading.connection(), ids, keys).await?;
    let Some(days) = days else { return Ok((reading, of_log)) };
    let sums = days.add_to_sessions(reading.connection(), (ids, keys), of_log.clone(), deadline).await;
    let sums = match sums {
        Ok(None) => none_in_time(state),
        sums => or_without(sums)?,
    };
    Ok((reading, sums.unwrap_or(of_log)))
}

/// What comes of a read of the archive, or nothing if the archive failed.
fn or_without<T>(read: Result<Option<T>, books::Error>) -> Result<Option<T>, ApiError> {
    match read {
        Ok(found) => Ok(found),
        Err(books::Error::Archive(error)) => {
            Metrics::record_books_failure();
            tracing::warn!(cause = %error, "the sums of sessions lack archived calls");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Nothing, because the archive did not answer in time. The next pages without archived rows do not wait for it.
fn none_in_time<T>(state: &AppState) -> Option<T> {
    tracing::warn!("the sums of sessions lack archived calls: the archive did not answer in time");
    state.silent_archive.begin();
    None
}

/// The connection, if one request is asked for and the log has a row of it. Otherwise the error for which there are no
/// archived rows.
async fn of_log_alone(mut reading: Reading, visible: &LogFilter, error: ApiError) -> Result<Reading, ApiError> {
    if is_refusal(&error) && visible.names_request() && pages::count_rows(reading.connection(), visible).await? > 0 {
        return Ok(reading);
    }
    Err(error)
}

/// Whether an error is one of [`refused`].
fn is_refusal(error: &ApiError) -> bool {
    matches!(error, ApiError::Refused { status: axum::http::StatusCode::SERVICE_UNAVAILABLE, .. })
}

fn refused(message: impl Into<String>) -> ApiError {
    ApiError::Refused {
        status: axum::http::StatusCode::SERVICE_UNAVAILABLE,
        kind: ErrorType::InternalServerError,
        message: message.into(),
        param: None,
    }
}

impl From<books::Error> for ApiError {
    fn from(error: books::Error) -> Self {
        match error {
            books::Error::Database(error) => error.into(),
            books::Error::Refused(message) => Self::bad_request(ErrorType::InvalidRequest, message),
            books::Error::Archive(ArchiveError::Damaged { path }) => {
                Metrics::record_books_failure();
                tracing::error!(%path, "an object of the archive is damaged; it is set aside");
                refused(DAMAGED)
            }
            books::Error::Archive(error) => {
                Metrics::record_books_failure();
                tracing::warn!(cause = %error, "cannot read the archive");
                refused(AWAY)
            }
            other => Self::Internal(other.to_string()),
        }
    }
}
