//! What can go wrong with an archive.

use chrono::NaiveDate;

/// The outcome of an operation on an archive.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on an archive failed. No text contains credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The store did not answer in time, or refused. The same request may succeed later.
    #[error("the archive is unavailable: {0}")]
    Unavailable(String),
    /// The store answered that it does not allow this, or cannot do it; or its certificate is not accepted.
    #[error("the archive refused: {0}")]
    Refused(String),
    /// A stored object does not have the bytes that were written. It is not answered from again until
    /// [`crate::Archive::clear_damage`].
    #[error("{path} is damaged: its bytes are not those that were written")]
    Damaged {
        /// The object, relative to the root of the archive.
        path: String,
    },
    /// Another writer has committed this revision of the day, or has declared it abandoned.
    #[error("revision {revision} of {day} is taken by another writer")]
    Exists {
        /// The day.
        day: NaiveDate,
        /// The revision that could not be written.
        revision: u32,
    },
    /// The URL does not name a place for an archive.
    #[error("the archive's URL is not usable: {0}")]
    BadUrl(String),
    /// The object does not exist, or no longer.
    #[error("{path} does not exist in the archive")]
    NotFound {
        /// The object, relative to the root of the archive.
        path: String,
    },
    /// A row was pushed that comes before its predecessor in the order (`startTime`, `request_id`).
    #[error("the row {request_id} is out of order")]
    OutOfOrder {
        /// The row's `request_id`.
        request_id: String,
    },
    /// A row was pushed whose `startTime` is not on the day that is written.
    #[error("the row {request_id} does not start on {day}")]
    OtherDay {
        /// The row's `request_id`.
        request_id: String,
        /// The day that is written.
        day: NaiveDate,
    },
    /// A row was pushed that is larger than a file can hold.
    #[error("the row {request_id} is too large for the archive")]
    TooLarge {
        /// The row's `request_id`.
        request_id: String,
    },
    /// An object has a form that this version cannot read, or a request asks for what a column cannot do.
    #[error("{path}: {reason}")]
    Schema {
        /// The object or the column.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This machine failed: its scratch directory, or a task that was ended.
    #[error("the archive could not work on this machine: {0}")]
    Local(String),
}

impl Error {
    pub(crate) fn schema(path: impl Into<String>, reason: impl ToString) -> Self {
        Self::Schema { path: path.into(), reason: reason.to_string() }
    }

    pub(crate) fn damaged(path: impl Into<String>) -> Self {
        Self::Damaged { path: path.into() }
    }

    pub(crate) fn local(cause: impl ToString) -> Self {
        Self::Local(cause.to_string())
    }

    /// What the Parquet library reports about an object. An error of the archive that passed through the library comes
    /// out as itself.
    pub(crate) fn of_parquet(path: &str, error: parquet::errors::ParquetError) -> Self {
        if let parquet::errors::ParquetError::External(inner) = &error
            && let Some(own) = inner.downcast_ref::<Self>()
        {
            return own.clone();
        }
        Self::schema(path, error)
    }
}
