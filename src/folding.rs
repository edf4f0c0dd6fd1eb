//! The background task that keeps the rollups short: folds deltas, counts dirty days again, packs days that have been
//! quiet and sums their daily rows, and gives back the space of what was folded. Several servers on one database take
//! turns by an advisory lock; without a server nothing is lost, deltas wait.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{Days, NaiveDate, Utc};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::app::AppState;
use crate::store::rollups;

/// Pause where there is nothing to do.
const IDLE: Duration = Duration::from_secs(1);

/// Pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Deltas folded until the table is vacuumed.
const VACUUM_AFTER: i64 = 5_000;

/// A day that has just been packed and was changed again is left alone for so long.
const REPACK_AFTER: Duration = Duration::from_secs(300);

/// The rollups that are packed by day.
const PACKED: [&str; 2] = ["usage", "customer"];

/// What is packed by month.
const PACKED_MONTHS: &str = "usage_month";

/// What is summed of LiteLLM's daily rows.
const SUMMED: &str = "activity";

/// What the task remembers between its steps.
#[derive(Default)]
struct Memory {
    folded: i64,
    packed: HashMap<(&'static str, NaiveDate), Instant>,
}

/// Folds until cancelled. A failure is logged and tried again: reads stay exact meanwhile.
pub async fn run(state: AppState, stop: CancellationToken) {
    let mut memory = Memory::default();
    loop {
        let pause = if state.has_rollups() {
            match step(&state, &mut memory).await {
                Ok(true) => Duration::ZERO,
                Ok(false) => IDLE,
                Err(error) => {
                    tracing::warn!(cause = %error, "the rollups could not be folded; trying again");
                    AFTER_FAILURE
                }
            }
        } else {
            IDLE
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One batch, one day, a vacuum, or a day packed; whether there may be more to do.
async fn step(state: &AppState, memory: &mut Memory) -> Result<bool, sqlx::Error> {
    let mut connection = state.pool.acquire().await?;
    if work(&mut connection, &mut memory.folded).await? == Work::Backlog {
        return Ok(true);
    }
    // A few deltas come all the time on a busy day: what follows does not wait for an end of them.
    if memory.folded >= VACUUM_AFTER {
        rollups::vacuum(&mut connection).await?;
        memory.folded = 0;
    }
    // Yesterday's last calls may still be on their way.
    let before = Utc::now().date_naive() - Days::new(1);
    memory.packed.retain(|_, at| at.elapsed() < REPACK_AFTER);
    pack(&mut connection, before, &mut memory.packed).await
}

/// Packs a day of each rollup and a month, and sums a day of daily rows; whether there was one.
async fn pack(
    connection: &mut PgConnection,
    before: NaiveDate,
    packed: &mut HashMap<(&'static str, NaiveDate), Instant>,
) -> Result<bool, sqlx::Error> {
    if !rollups::can_pack(connection).await? {
        return Ok(false);
    }
    let mut done = false;
    for rollup in PACKED.into_iter().chain([PACKED_MONTHS, SUMMED]) {
        let but: Vec<NaiveDate> = packed.keys().filter(|(of, _)| *of == rollup).map(|(_, day)| *day).collect();
        let day = match rollup {
            PACKED_MONTHS => rollups::pack_month(connection, before, &but).await?,
            SUMMED => rollups::sum_activity(connection, before, &but).await?,
            _ => rollups::pack(connection, rollup, before, &but).await?,
        };
        if let Some(day) = day {
            packed.insert((rollup, day), Instant::now());
            done = true;
        }
    }
    Ok(done)
}

/// What a step of counting did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// There was nothing to do.
    Nothing,
    /// All deltas that waited are folded.
    Done,
    /// More is likely to wait.
    Backlog,
}

/// Folds one batch, or else counts one dirty day.
async fn work(connection: &mut PgConnection, folded: &mut i64) -> Result<Work, sqlx::Error> {
    let batch = rollups::fold(connection).await?;
    *folded += batch;
    if batch >= i64::from(rollups::BATCH) {
        return Ok(Work::Backlog);
    }
    if batch > 0 {
        return Ok(Work::Done);
    }
    if let Some(day) = rollups::recount(connection).await? {
        tracing::info!(%day, "counted from the spend log");
        *folded += VACUUM_AFTER;
        return Ok(Work::Backlog);
    }
    Ok(Work::Nothing)
}

/// Folds, counts and packs everything that waits now. For tests and the command line.
pub async fn settle(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut folded = 0;
    while work(connection, &mut folded).await? != Work::Nothing {}
    let before = Utc::now().date_naive() + Days::new(1);
    while pack(connection, before, &mut HashMap::new()).await? {}
    Ok(())
}
