//! The current time, which tests can fix with [`Clock::fixed`].

use chrono::{DateTime, Utc};

/// The source of the current time: the system's clock, or one fixed instant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    fixed: Option<DateTime<Utc>>,
}

impl Clock {
    /// The clock of the system.
    pub fn system() -> Self {
        Self { fixed: None }
    }

    /// A clock that always shows the same instant.
    pub fn fixed(at: DateTime<Utc>) -> Self {
        Self { fixed: Some(at) }
    }

    /// The current instant, in UTC.
    pub fn now(&self) -> DateTime<Utc> {
        self.fixed.unwrap_or_else(Utc::now)
    }
}
