//! Forgets ids of records that are older than an installation wants to remember, and new names that are words of the
//! rollups by now. Several servers may do it at once.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::settings::BookingLimits;
use crate::store;
use crate::store::Pool;
use crate::store::booking::ids;
use crate::store::booking::ids::Access;
use crate::store::booking::names;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(3600);

/// Rows in one statement.
const BATCH: i64 = 10_000;

/// Forgets what is old, again and again, until cancelled.
pub async fn run(pool: Pool, limits: BookingLimits, stop: CancellationToken) {
    loop {
        match forget(&pool, &limits).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "ids of old records were forgotten"),
            Err(error) => tracing::debug!(cause = %error, "ids of old records were not forgotten"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Forgets what is old now; returns how many ids.
pub async fn forget(pool: &Pool, limits: &BookingLimits) -> Result<u64, store::Error> {
    let mut connection = pool.acquire().await?;
    if ids::access(&mut connection).await? == Access::NotInstalled {
        return Ok(0);
    }
    while names::forget_old(&mut connection, BATCH).await? > 0 {}
    let mut count = 0;
    loop {
        match ids::forget_old(&mut connection, limits.keep_ids_days, BATCH).await? {
            0 => return Ok(count),
            batch => count += batch,
        }
    }
}
