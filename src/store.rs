//! All SQL of the server, with one file per table or view. Row types and filters are next to their queries. Nothing in
//! this module knows HTTP.
//! Functions take a connection, and the caller owns the transaction. Every value is a bind parameter. A statement whose
//! structure varies is built with `QueryBuilder`, and in no other way.
//!
//! An older LiteLLM lacks some columns. Statements read such a column from a lateral subquery that is joined to an
//! outer row of defaults. An unqualified column name in the inner `SELECT` then means the table's column if the table
//! has it, and the default otherwise.

pub mod accounts;
pub mod activity;
pub mod allowed_ips;
pub mod authority;
pub mod booking;
pub mod books;
pub mod copying;
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
pub mod spend_metrics;
pub mod tags;
pub mod team_views;
mod utc;

use chrono::{Days, NaiveDate, NaiveDateTime, NaiveTime};

/// Pool of connections to the database.
pub type Pool = sqlx::PgPool;

/// One connection to the database.
pub type Connection = sqlx::PgConnection;

/// A connection that goes back to its pool.
pub type PooledConnection = sqlx::pool::PoolConnection<sqlx::Postgres>;

/// An error of the database or of the connection to it.
pub type Error = sqlx::Error;

/// Buffer for a statement that is built at run time. The rows of the statement borrow the buffer, so the reader of the
/// rows must keep it alive.
pub type Statement = sqlx::QueryBuilder<sqlx::Postgres>;

/// A transaction, rolled back when it is dropped.
pub type Transaction<'a> = sqlx::Transaction<'a, sqlx::Postgres>;

/// Starts a transaction at the session's default isolation level.
pub async fn begin(connection: &mut Connection) -> Result<Transaction<'_>, Error> {
    sqlx::Connection::begin(connection).await
}

/// Ends a connection that does not belong to a pool.
pub async fn close(connection: Connection) -> Result<(), Error> {
    sqlx::Connection::close(connection).await
}

/// Maximum duration of one statement, in seconds: the session's `statement_timeout`.
pub const STATEMENT_TIMEOUT_SECONDS: u64 = 60;

/// A day before every day that can occur in the log.
pub const FIRST_DAY: NaiveDate = day_of(-4000);

/// A day after every day that can occur in the log.
pub const LAST_DAY: NaiveDate = day_of(9999);

const fn day_of(year: i32) -> NaiveDate {
    match NaiveDate::from_ymd_opt(year, 1, 1) {
        Some(day) => day,
        None => NaiveDate::MIN,
    }
}

/// A closed range of days, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateRange {
    /// First day.
    pub start: NaiveDate,
    /// Last day, included.
    pub end: NaiveDate,
}

impl DateRange {
    /// Midnight at the start of the first day.
    pub fn from(&self) -> NaiveDateTime {
        midnight(self.start)
    }

    /// Midnight at the end of the last day: the first instant after the range.
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
