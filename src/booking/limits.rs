//! The limits of booking: the range of dates that a record may have, and the refusal of a record that exceeds a limit.

use std::fmt;

use chrono::TimeDelta;

/// The range of dates that a record may have, relative to now.
#[derive(Clone, Copy, Debug)]
pub struct Dates {
    /// How far back. `None` for a caller that may book any day since 2000.
    pub back: Option<TimeDelta>,
    /// How far ahead.
    pub ahead: TimeDelta,
}

impl Dates {
    /// The range for trusted callers and for files: any day since 2000, up to one day ahead.
    pub const ANY: Self = Self { back: None, ahead: TimeDelta::days(1) };
}

/// The reason why a record is not booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status of the answer if the record is sent alone: 403, 409, 413, 422, 429 or 503.
    pub code: u16,
    /// The message for the sender.
    pub message: String,
}

impl Refusal {
    /// 403: the sender may not book this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self { code: 403, message: message.into() }
    }

    /// 409: the id belongs to a different record.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self { code: 409, message: message.into() }
    }

    /// 413: a field is larger than its limit.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self { code: 413, message: message.into() }
    }

    /// 429: a daily limit is reached.
    pub fn too_many(message: impl Into<String>) -> Self {
        Self { code: 429, message: message.into() }
    }

    /// 503: as far as is known, the record was not booked. The client should send it again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { code: 503, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

/// 422: a field has a wrong value.
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
