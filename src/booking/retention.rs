//! Deletes the ids of records that are older than the installation's retention period, and the new names that the
//! rollups' dictionary contains by now. Several servers may do this at the same time.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::settings::BookingLimits;
use crate::store;
use crate::store::Pool;
use crate::store::booking::ids;
use crate::store::booking::ids::Access;
use crate::store::booking::names;

/// The pause between two runs.
const PAUSE: Duration = Duration::from_secs(3600);

/// The number of rows per statement.
const BATCH: i64 = 10_000;

/// Deletes old ids and names periodically until cancelled.
pub async fn run(pool: Pool, limits: BookingLimits, stop: CancellationToken) {
    loop {
        match forget(&pool, &limits).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "deleted the IDs of old records"),
            Err(error) => tracing::debug!(cause = %error, "cannot delete the IDs of old records"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Deletes the ids and names that are old now. Returns the number of ids.
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
