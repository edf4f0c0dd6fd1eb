//! All SQL. A file a table or view, row types and filters beside their queries; nothing here knows HTTP.
//! Functions take a connection; the caller owns the transaction. Every value is bound; structure varies
//! through `QueryBuilder` alone.
//!
//! Columns that an older LiteLLM lacks are read through an outer row of defaults: an unqualified name
//! inside the inner `SELECT` is the table's column where it exists, and the default where it does not.

pub mod accounts;
pub mod activity;
pub mod allowed_ips;
pub mod authority;
pub mod booking;
pub mod database;
pub mod database_url;
mod earlier_migrations;
pub mod embedded_roles;
pub mod error;
pub mod indexes;
pub mod key_metadata;
pub mod keys;
pub mod log;
pub mod reading;
pub mod report;
pub mod reset;
pub mod rollups;
pub mod secrets;
pub mod tags;
pub mod team_views;

use chrono::{Days, NaiveDate, NaiveDateTime, NaiveTime};

/// Connections to the database.
pub type Pool = sqlx::PgPool;

/// A connection.
pub type Connection = sqlx::PgConnection;

/// A connection that goes back to its pool.
pub type PooledConnection = sqlx::pool::PoolConnection<sqlx::Postgres>;

/// What the database, or the way to it, can answer instead.
pub type Error = sqlx::Error;

/// Room for a statement that is put together at run time. The rows that it gives borrow it, so who reads them keeps it.
pub type Statement = sqlx::QueryBuilder<sqlx::Postgres>;

/// A transaction, rolled back when it is dropped.
pub type Transaction<'a> = sqlx::Transaction<'a, sqlx::Postgres>;

/// Begins a transaction.
pub async fn begin(connection: &mut Connection) -> Result<Transaction<'_>, Error> {
    sqlx::Connection::begin(connection).await
}

/// How long one statement may run, in seconds: the session's `statement_timeout`.
pub const STATEMENT_TIMEOUT_SECONDS: u64 = 60;

/// A closed range of days, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateRange {
    /// First day.
    pub start: NaiveDate,
    /// Last day, included.
    pub end: NaiveDate,
}

impl DateRange {
    /// The first instant of the range.
    pub fn from(&self) -> NaiveDateTime {
        midnight(self.start)
    }

    /// The first instant after the range.
    pub fn until(&self) -> NaiveDateTime {
        day_after(self.end)
    }
}

/// Midnight at the start of `day`.
pub fn midnight(day: NaiveDate) -> NaiveDateTime {
    day.and_time(NaiveTime::MIN)
}

/// Midnight at the end of `day`.
pub fn day_after(day: NaiveDate) -> NaiveDateTime {
    midnight(day.checked_add_days(Days::new(1)).unwrap_or(NaiveDate::MAX))
}
