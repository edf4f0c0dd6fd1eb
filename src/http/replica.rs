//! Sends reads that tolerate lag to a replica while it responds. If a read on the replica fails before its answer has
//! begun, it is repeated on the primary, unless it timed out (504). So such a read does not fail because the replica is
//! unavailable, too slow to connect, or in conflict with its recovery.

pub mod reading;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::store;
use crate::store::Pool;
use crate::store::database;
use crate::store::database::PoolLimits;
use crate::store::database_url::BadUrl;
use crate::store::reading::ReadPool;

/// How often the replica is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// How long the replica may take to respond to a check, and most time that a read waits for a connection to it.
const WAIT: Duration = Duration::from_secs(1);

/// Marks a request whose reads go to the replica.
#[derive(Clone, Copy, Debug)]
pub struct ToReplica;

/// A database that replicates the primary.
pub struct Replica {
    pool: ReadPool,
    probe: Pool,
    answers: AtomicBool,
    doubtful: Notify,
}

impl Replica {
    /// Creates a replica that has not been checked yet. Reads go to the primary until a check succeeds.
    pub fn new(url: &str, limits: PoolLimits) -> Result<Self, BadUrl> {
        let pool = ReadPool::new(database::pool(url, PoolLimits { wait: limits.wait.min(WAIT), ..limits })?);
        let probe = database::pool(url, PoolLimits { connections: 1, wait: WAIT })?;
        Ok(Self { pool, probe, answers: AtomicBool::new(false), doubtful: Notify::new() })
    }

    /// Whether the replica responded to the last check.
    pub fn answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// Requests a check at once, because a read on the replica has failed.
    pub fn check_soon(&self) {
        self.doubtful.notify_one();
    }

    /// The pool of connections to the replica.
    pub fn pool(&self) -> &ReadPool {
        &self.pool
    }

    /// Checks the replica at a fixed interval until cancelled. Logs each change of its state once.
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

    /// Closes all connections to the replica.
    pub async fn close(&self) {
        self.pool.close().await;
        self.probe.close().await;
    }
}
