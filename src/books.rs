//! Closing the books: the totals of a closed day stay although the log loses its rows, and the rows are in an archive.
//! [`closing`] closes days, [`verifying`] compares them with the archive, [`pruning`] removes their rows from the log,
//! and [`reopening`] opens a day again. [`background`] does the first and the third of these in a server. [`publishing`]
//! decides what other engines see, [`rows`] reads archived rows in the form of the log's, [`beside`] puts them beside the
//! log for its statements, and [`batches`] cuts them to size. `session_sums` adds them to the
//! sums of sessions.
//!
//! The rule: a day is closed when its figures in the rollups, in the log and in the archive agree. From then on, nobody
//! counts it again from the log. Deleted rows change nothing, late rows add, and an update counts by its difference.
//! `migrations/litespend/0014_closed_days.sql` has the triggers that see to that.

pub mod background;
pub mod batches;
pub mod beside;
pub mod closing;
pub mod day_sums;
pub mod names;
pub mod pruning;
pub mod publishing;
pub mod reopening;
mod restoring;
pub mod rows;
mod session_sums;
pub mod verifying;

use chrono::{DateTime, Days, NaiveDate, Utc};
use litespend_archive::{Manifest, Sums};

use crate::store;
use crate::store::books::Totals;
use crate::store::books::closing::NotReady;
use crate::store::rollups::Difference;

/// Why the books could not be closed, compared, pruned or reopened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(#[from] store::Error),
    /// The archive failed, or has an object that is not as it was written.
    #[error("{0}")]
    Archive(#[from] litespend_archive::Error),
    /// The rollups do not agree with the log.
    #[error(
        "{}: the rollup by {} differs from the log: {}: counted {}, logged {}",
        .0.day, .0.rollup, .0.entry, .0.counted, .0.logged
    )]
    Differs(Box<Difference>),
    /// Two places have different figures of a day.
    #[error("{day}: {place} has {found}, but {expected} are expected")]
    Figures {
        /// The day.
        day: NaiveDate,
        /// The place with the unexpected figures.
        place: &'static str,
        /// Its figures.
        found: String,
        /// The figures that it should have.
        expected: String,
    },
    /// The log has a row that the archive cannot store: it is not as LiteLLM's tables have it.
    #[error("{day}: the row {request_id} of the log lacks a value that every row has, or has one of another type")]
    Row {
        /// The day.
        day: NaiveDate,
        /// The row.
        request_id: String,
    },
    /// The log has a row that the database cannot give as the archive stores it.
    #[error("{day}: the database cannot read a row of this day: {cause}")]
    Unreadable {
        /// The day.
        day: NaiveDate,
        /// What the database says.
        cause: store::Error,
    },
    /// The log or the rollups kept changing, or are not up to date.
    #[error("{day}: {reason}; try again")]
    Busy {
        /// The day.
        day: NaiveDate,
        /// What stands in the way.
        reason: &'static str,
    },
    /// The request is not possible.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// An error of a statement that reads the rows of a day. One that a value causes concerns this day only.
    fn of_rows(day: NaiveDate, error: store::Error) -> Self {
        if store::error::is_refused_value(&error) {
            return Self::Unreadable { day, cause: error };
        }
        Self::Database(error)
    }

    /// Whether the cause stays until somebody removes it.
    fn is_lasting(&self) -> bool {
        matches!(self, Self::Row { .. } | Self::Unreadable { .. } | Self::Differs(_))
    }

    fn busy(day: NaiveDate, reason: NotReady) -> Self {
        let reason = match reason {
            NotReady::Unfolded => "changes of the day are not folded yet",
            NotReady::Dirty => "the day is not counted yet",
            NotReady::Partitions => "partitions of the log came or went and are not counted yet",
        };
        Self::Busy { day, reason }
    }
}

/// For how many days a day must have been over before it is closed, if nothing else is set.
pub const GRACE_DAYS: u32 = 2;

/// The last day that may be closed at this time: it has been over for `grace_days`.
pub fn last_closable(now: DateTime<Utc>, grace_days: u32) -> NaiveDate {
    now.date_naive().checked_sub_days(Days::new(u64::from(grace_days) + 1)).unwrap_or(NaiveDate::MIN)
}

/// The sums of an archived day in the form of the rollups.
pub fn totals_of(sums: &Sums) -> Totals {
    Totals {
        requests: i64::try_from(sums.rows).unwrap_or(i64::MAX),
        spend: sums.spend,
        prompt_tokens: sums.prompt_tokens,
        completion_tokens: sums.completion_tokens,
        total_tokens: sums.total_tokens,
    }
}

/// Figures for people.
pub fn describe(totals: &Totals) -> String {
    format!("{} requests, {} USD and {} tokens", totals.requests, totals.spend, totals.total_tokens)
}

/// Refuses the archive of another database: its days must not be replaced by ours.
fn expect_own(day: NaiveDate, manifest: Option<&Manifest>, database: &str) -> Result<(), Error> {
    let owner = manifest.and_then(|manifest| manifest.extra.get("database")).and_then(serde_json::Value::as_str);
    match owner {
        Some(owner) if owner != database => Err(Error::Refused(format!(
            "{day}: the archive has this day from another database: each database needs an archive of its own"
        ))),
        _ => Ok(()),
    }
}
