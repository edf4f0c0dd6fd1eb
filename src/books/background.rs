//! The background task that closes days, archives late rows and prunes the log. Several servers may run it on one database:
//! an advisory lock lets one of them work at a time.

use std::time::Duration;

use chrono::{Days, NaiveDate, Utc};
use litespend_archive::Archive;
use tokio_util::sync::CancellationToken;

use crate::books::closing::{ClosingOptions, close_through, keep};
use crate::books::pruning;
use crate::books::{Error, last_closable};
use crate::metrics::Metrics;
use crate::settings::BooksSettings;
use crate::store;
use crate::store::books;
use crate::store::database;
use crate::store::database::DatabaseKind;
use crate::store::rollups;
use crate::store::{Connection, Pool};

/// The pause after a finished round, and after one that left a day which somebody has to look at.
const PAUSE: Duration = Duration::from_secs(600);

/// The pause while another session holds the lock. A session of a server that died may hold it for a while.
const WHILE_LOCKED: Duration = Duration::from_secs(15);

/// The pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// Works until cancelled. Does nothing unless the settings ask for it.
pub async fn run(pool: Pool, archive: Archive, settings: BooksSettings, stop: CancellationToken) {
    if settings.close_after.is_none() {
        return;
    }
    loop {
        // A step that is cut short leaves nothing that counts.
        let worked = tokio::select! {
            () = stop.cancelled() => return,
            worked = work(&pool, &archive, settings, &stop) => worked,
        };
        let pause = match worked {
            Ok(Round::Finished) => PAUSE,
            Ok(Round::Refused) => WHILE_LOCKED,
            Err(error) => {
                Metrics::record_books_failure();
                tracing::warn!(cause = %error, "cannot close the books; trying again");
                if error.is_lasting() { PAUSE } else { AFTER_FAILURE }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// What was due is done.
    Finished,
    /// Another session holds the lock.
    Refused,
}

/// Closes and prunes what is due.
async fn work(
    pool: &Pool,
    archive: &Archive,
    settings: BooksSettings,
    stop: &CancellationToken,
) -> Result<Round, Error> {
    // A connection of its own: the lock belongs to its session, and it has no statement timeout.
    let mut connection = pool.acquire().await?.detach();
    database::lift_statement_timeout(&mut connection).await?;
    if !books::is_possible(&mut connection).await? || !rollups::attached(&mut connection).await? {
        return Err(Error::Refused("the database has no rollups: run `litespend rollups install`".to_owned()));
    }
    if !books::is_current(&mut connection).await? {
        return Err(Error::Refused(
            "the rollups are those of an earlier version: run `litespend rollups install`".to_owned(),
        ));
    }
    if let Some(schema) = books::closed_elsewhere(&mut connection).await? {
        return Err(Error::Refused(format!("the closed days of this database are those of the schema {schema}")));
    }
    let mut round = Round::Refused;
    if books::lock(&mut connection).await? {
        close_and_prune(&mut connection, archive, settings, stop).await?;
        round = Round::Finished;
    }
    record_state(&mut connection).await?;
    store::close(connection).await?;
    Ok(round)
}

async fn close_and_prune(
    connection: &mut Connection,
    archive: &Archive,
    settings: BooksSettings,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let mut first_error = None;
    if let Some(days) = settings.close_after {
        let through = last_closable(Utc::now(), days);
        let options = ClosingOptions { bodies: settings.archive_bodies, ..ClosingOptions::default() };
        // One day at a time: there is no hurry, and the server has other things to do.
        let closed = close_through(connection, Vec::new(), archive, through, options, |day| {
            tracing::info!(day = %day.day, rows = day.archived_rows, spend = day.totals.spend, "closed a day");
            !stop.is_cancelled()
        })
        .await
        .map(drop);
        // A day that cannot be closed does not keep the rows of other days.
        if let Err(error) = closed {
            keep(&mut first_error, error)?;
        }
    }
    if database::kind(connection).await? == DatabaseKind::LiteLlm && !settings.prune_litellm_logs {
        return first_error.map_or(Ok(()), Err);
    }
    if let Some(days) = settings.strip_after {
        let go_on = || !stop.is_cancelled();
        let rows = pruning::strip(connection, before(days), settings.archive_bodies, go_on).await?;
        if rows > 0 {
            tracing::info!(rows, "emptied messages and responses of the log");
        }
    }
    if let Some(days) = settings.prune_after {
        pruning::expect_known_columns(connection).await?;
        let pruned = pruning::prune(connection, archive, before(days), |step| {
            match step {
                pruning::Step::Partition(partition) => tracing::info!(table = partition.table, "dropped a partition"),
                pruning::Step::Day(day, rows) => tracing::info!(%day, rows, "deleted the rows of a closed day"),
                pruning::Step::Kept(day, rows) => {
                    tracing::warn!(%day, rows, "rows of a closed day stay in the log: the archive does not have them as they are");
                }
            }
            !stop.is_cancelled()
        })
        .await;
        if let Err(error) = pruned {
            keep(&mut first_error, error)?;
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// The last day of which no row is younger than this number of days.
pub fn before(days: u32) -> NaiveDate {
    Utc::now().date_naive().checked_sub_days(Days::new(u64::from(days) + 1)).unwrap_or(NaiveDate::MIN)
}

/// Sets the metrics.
async fn record_state(connection: &mut Connection) -> Result<(), Error> {
    let last = books::last_closed_day(connection).await?;
    Metrics::record_closed_through(last.map_or(0, |day| store::day_after(day).and_utc().timestamp()));
    Ok(())
}
