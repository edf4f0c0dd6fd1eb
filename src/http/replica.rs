//! Reads that tolerate lag go to a replica, while it answers. A read that fails there is done again on the primary, so
//! no request fails because the replica is away, too slow to connect, or in conflict with its recovery.

pub mod reading;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::store;
use crate::store::Pool;
use crate::store::database;
use crate::store::database::PoolLimits;
use crate::store::database_url::{BadUrl, DatabaseUrl};
use crate::store::reading::ReadPool;

/// How often the replica is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// How long it may take to answer then, and how long a read waits for a connection to it.
const WAIT: Duration = Duration::from_secs(1);

/// Marks a request that the replica answers.
#[derive(Clone, Copy, Debug)]
pub struct ToReplica;

/// A database that follows the primary.
pub struct Replica {
    pool: ReadPool,
    probe: Pool,
    answers: AtomicBool,
    doubtful: Notify,
}

impl Replica {
    /// Not looked at yet.
    pub fn new(url: &str, limits: PoolLimits) -> Result<Self, BadUrl> {
        for warning in DatabaseUrl::parse(url)?.warnings {
            tracing::warn!("DATABASE_URL_READ_REPLICA: {warning}");
        }
        let pool = ReadPool::new(database::pool(url, PoolLimits { wait: limits.wait.min(WAIT), ..limits })?);
        let probe = database::pool(url, PoolLimits { connections: 1, wait: WAIT })?;
        Ok(Self { pool, probe, answers: AtomicBool::new(false), doubtful: Notify::new() })
    }

    /// Whether it answered when it was last looked at.
    pub fn answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// Has it looked at again at once: a read of it has failed.
    pub fn doubt(&self) {
        self.doubtful.notify_one();
    }

    /// Its connections.
    pub fn pool(&self) -> &ReadPool {
        &self.pool
    }

    /// Looks at the replica again and again, until cancelled. A change is logged once.
    pub async fn watch(&self, stop: CancellationToken) {
        let mut first = true;
        loop {
            let result = match tokio::time::timeout(WAIT, database::ping(&self.probe)).await {
                Ok(result) => result,
                Err(_) => Err(store::Error::PoolTimedOut),
            };
            let answers = result.is_ok();
            let changed = self.answers.swap(answers, Ordering::Relaxed) != answers;
            match result {
                Ok(()) if changed => tracing::info!("reads go to the replica"),
                Err(error) if changed || first => {
                    tracing::warn!(cause = %error, "the replica does not answer; reads go to the primary");
                }
                _ => {}
            }
            first = false;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                () = self.doubtful.notified() => {}
            }
        }
    }

    /// Closes its connections.
    pub async fn close(&self) {
        self.pool.close().await;
        self.probe.close().await;
    }
}
