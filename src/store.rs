//! All SQL. A file a table or view, row types and filters beside their queries; nothing here knows HTTP.
//! Functions take a connection; the caller owns the transaction. Every value is bound; structure varies
//! through `QueryBuilder` alone.
//!
//! Columns that an older LiteLLM lacks are read through an outer row of defaults: an unqualified name
//! inside the inner `SELECT` is the table's column where it exists, and the default where it does not.

pub mod activity;
pub mod allowed_ips;
pub mod authority;
pub mod daily_activity;
pub mod dashboard_lists;
pub mod database;
mod earlier_migrations;
pub mod embedded_roles;
pub mod indexes;
pub mod key_metadata;
pub mod keys;
pub mod log_fields;
pub mod log_filter;
pub mod log_pages;
pub mod log_rows;
pub mod management;
pub mod rollup_backlog;
pub mod rollup_days;
pub mod rollup_reads;
pub mod rollup_stretches;
pub mod rollup_verify;
pub mod rollup_words;
pub mod rollups;
pub mod scoped_report;
pub mod search;
pub mod secrets;
pub mod spend_activity;
pub mod spend_logs;
pub mod spend_report;
pub mod spend_reset;
pub mod spend_tables;
pub mod spend_tags;
pub mod team_views;
pub mod usage;

use chrono::{Days, NaiveDate, NaiveDateTime, NaiveTime};
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres};

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

/// A connection that reads a long answer. Dropped before [`Reading::finish`], it closes its connection instead of
/// reading the rest, and the database ends the query at its next look at the socket.
pub struct Reading {
    connection: PoolConnection<Postgres>,
    finished: bool,
}

impl Reading {
    /// Takes a connection out of the pool.
    pub async fn start(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self { connection: pool.acquire().await?, finished: false })
    }

    /// As [`Reading::start`], for an answer whose end the client's own speed decides: its statements may take as long
    /// as they need. [`Reading::finish_long`] ends it.
    pub async fn start_long(pool: &PgPool) -> Result<Self, sqlx::Error> {
        let mut reading = Self::start(pool).await?;
        sqlx::raw_sql("SET statement_timeout = 0").execute(reading.connection()).await?;
        Ok(reading)
    }

    /// As [`Reading::finish`], for [`Reading::start_long`].
    pub async fn finish_long(mut self) -> Result<(), sqlx::Error> {
        let timeout = format!("{STATEMENT_TIMEOUT_SECONDS}s");
        sqlx::query("SELECT set_config('statement_timeout', $1, false)")
            .bind(timeout)
            .execute(self.connection())
            .await?;
        self.finish();
        Ok(())
    }

    /// The connection.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Says that everything was read, so that the connection goes back to the pool.
    pub fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if !self.finished {
            self.connection.close_on_drop();
        }
    }
}
