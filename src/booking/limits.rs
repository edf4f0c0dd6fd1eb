//! What a booking may ask for: the settings of an installation, and what a request that is over one of them is told.

use std::fmt;

use chrono::TimeDelta;

/// The dates that a record may have, relative to now.
#[derive(Clone, Copy, Debug)]
pub struct Dates {
    /// How far back; `None` for who may book any day since 2000.
    pub back: Option<TimeDelta>,
    /// How far ahead.
    pub ahead: TimeDelta,
}

impl Dates {
    /// Of a permitted feed, or of files: any day since 2000, up to a day ahead.
    pub const ANY: Self = Self { back: None, ahead: TimeDelta::days(1) };
}

/// Why a record is not booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status that says it where the record stands alone: 403, 409, 413, 422, 429 or 503.
    pub code: u16,
    /// For the sender, in words.
    pub message: String,
}

impl Refusal {
    /// 403: the sender may not book this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self { code: 403, message: message.into() }
    }

    /// 409: the id stands for something else.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self { code: 409, message: message.into() }
    }

    /// 413: a field is larger than its limit.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self { code: 413, message: message.into() }
    }

    /// 429: a bound of the day is reached.
    pub fn too_many(message: impl Into<String>) -> Self {
        Self { code: 429, message: message.into() }
    }

    /// 503: not booked, as far as is known; to be sent again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { code: 503, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

/// What is wrong with a field: 422.
impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self { code: 422, message }
    }
}

impl From<&str> for Refusal {
    fn from(message: &str) -> Self {
        Self::from(message.to_owned())
    }
}
