//! The background task that keeps the rollups short: folds deltas, counts dirty days again, and gives back the space
//! of what was folded. Several servers on one database take turns by an advisory lock; without a server nothing is
//! lost, deltas wait.

use std::time::Duration;

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

/// Folds until cancelled. A failure is logged and tried again: reads stay exact meanwhile.
pub async fn run(state: AppState, stop: CancellationToken) {
    let mut folded = 0;
    loop {
        let pause = if state.has_rollups() {
            match step(&state, &mut folded).await {
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

/// One batch, one day, or a vacuum; whether there may be more to do.
async fn step(state: &AppState, folded: &mut i64) -> Result<bool, sqlx::Error> {
    let mut connection = state.pool.acquire().await?;
    let more = work(&mut connection, folded).await?;
    if !more && *folded >= VACUUM_AFTER {
        rollups::vacuum(&mut connection).await?;
        *folded = 0;
    }
    Ok(more)
}

/// Folds one batch, or else counts one dirty day; whether something was done.
async fn work(connection: &mut PgConnection, folded: &mut i64) -> Result<bool, sqlx::Error> {
    let batch = rollups::fold(connection).await?;
    *folded += batch;
    if batch > 0 {
        return Ok(true);
    }
    if let Some(day) = rollups::recount(connection).await? {
        tracing::info!(%day, "counted from the spend log");
        *folded += VACUUM_AFTER;
        return Ok(true);
    }
    Ok(false)
}

/// Folds and counts everything that waits now. For tests and the command line.
pub async fn settle(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut folded = 0;
    while work(connection, &mut folded).await? {}
    Ok(())
}
