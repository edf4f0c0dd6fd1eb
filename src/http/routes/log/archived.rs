//! Closed days in reads of rows: which of them a request covers, and how their archived rows get into its answer.

use chrono::NaiveDateTime;
use litespend_archive::{Archive, Error as ArchiveError};

use crate::books;
use crate::books::rows::ArchivedDays;
use crate::http::error::{ApiError, ErrorType};
use crate::http::reads::Reads;
use crate::http::state::AppState;
use crate::metrics::Metrics;
use crate::store;
use crate::store::log::filter::{Column, LogFilter};
use crate::store::log::rows;
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

/// The closed days from `from` to `to`, both included, of which the log may lack rows. `None` if there are none. 503 if rows
/// were removed from the log and this server has no archive.
pub async fn archived_days(
    state: &AppState,
    connection: &mut Connection,
    from: Option<NaiveDateTime>,
    to: Option<NaiveDateTime>,
) -> Result<Option<ArchivedDays>, ApiError> {
    let archive = state.archive();
    if archive.is_none() && !state.folding.has_closed_days() || !store::books::is_any_closed(connection).await? {
        return Ok(None);
    }
    let first = from.map_or(store::FIRST_DAY, |from| from.date()).max(store::FIRST_DAY);
    let last = to.map_or(store::LAST_DAY, |to| to.date()).min(store::LAST_DAY);
    let closed = store::books::incomplete_days(connection, DateRange { start: first, end: last }).await?;
    let Some(archive) = archive else {
        if closed.iter().any(|day| day.pruned_at.is_some()) {
            return Err(refused(NO_ARCHIVE));
        }
        return Ok(None);
    };
    let days: Vec<_> = closed.iter().map(|closed| (closed.day, closed.revision.unsigned_abs())).collect();
    Ok((!days.is_empty()).then(|| ArchivedDays::new(Archive::clone(archive), days)))
}

/// A connection for a page of the dashboard's log. If the filter covers closed days and the client wants them, the log of
/// this connection has their archived rows, too.
pub async fn with_archived_rows(
    state: &AppState,
    reads: &Reads,
    mut reading: Reading,
    filter: &LogFilter,
    is_wanted: bool,
) -> Result<Reading, ApiError> {
    // An empty ID belongs to no row, and would be looked for in every day.
    let is_id = |id: &String| !id.is_empty();
    let has_ids = filter.request_id.as_ref().is_none_or(is_id)
        && filter.equal.iter().all(|(column, id)| *column != Column::Session || is_id(id));
    if !is_wanted || !has_ids {
        return Ok(reading);
    }
    if let Some(id) = &filter.request_id
        && rows::exists(reading.connection(), id).await?
    {
        return Ok(reading);
    }
    // A search finds a row by its own ID at any time.
    let window = filter.window.filter(|_| filter.search.is_none());
    let (from, to) = window.unzip();
    if archived_days(state, reading.connection(), from, to).await?.is_none() {
        return Ok(reading);
    }
    drop(reading);
    let mut reading = reads.start_on_primary().await?.scratch().await?;
    let Some(days) = archived_days(state, reading.connection(), from, to).await? else { return Ok(reading) };
    match days.put_beside(reading.connection(), filter).await {
        Err(books::Error::Database(error)) if store::error::forbids_tables(&error) => {
            tracing::warn!(cause = %error, "cannot put archived rows beside the log");
            Err(refused(NO_TABLES))
        }
        result => Ok(result.map(|()| reading)?),
    }
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
