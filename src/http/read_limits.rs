//! Limits on the resources that reads use: connections, answers that wait for their clients, and disk space.
//! Connections and answers are limited per key and for all keys together, so that one key cannot take everything. Disk
//! space is limited per answer and in total.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::error::ApiError;
use crate::http::stream::spool::SpoolBudget;
use crate::metrics::Metrics;
use crate::settings::ReadSettings;
use crate::store::reading::ReadPermits;

/// The length class of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// A page or a sum.
    Short,
    /// Thousands of rows.
    Long,
}

/// Permits, limited in total and per key.
#[derive(Debug)]
struct KeyedPermits {
    all: Arc<Semaphore>,
    per_key: usize,
    keys: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Above this number of keys, keys that hold no permit are removed from the map.
const MAX_KEYS: usize = 1024;

impl KeyedPermits {
    fn new(all: usize, per_key: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), per_key: per_key.clamp(1, all), keys: Mutex::default() }
    }

    /// Waits for a permit of the key, then for one of the total.
    async fn take(&self, key: &str, permits: &mut ReadPermits) {
        permits.extend(self.of_key(key).acquire_owned().await.ok());
        permits.extend(Arc::clone(&self.all).acquire_owned().await.ok());
    }

    fn of_key(&self, key: &str) -> Arc<Semaphore> {
        let mut keys = self.keys.lock();
        if let Some(permits) = keys.get(key).and_then(Weak::upgrade) {
            return permits;
        }
        if keys.len() >= MAX_KEYS {
            keys.retain(|_, permits| permits.strong_count() > 0);
        }
        let permits = Arc::new(Semaphore::new(self.per_key));
        keys.insert(key.to_owned(), Arc::downgrade(&permits));
        permits
    }
}

/// The limits of all reads of a server.
#[derive(Debug)]
pub struct ReadLimits {
    connections: KeyedPermits,
    /// The additional limit for reads whose answers may be large.
    long: KeyedPermits,
    answers: KeyedPermits,
    waiting: Arc<Semaphore>,
    wait: Duration,
    spool: SpoolBudget,
}

/// The message for a key that has too many large answers in progress.
const BUSY_KEY: &str = "The server is sending too many large responses to this key. Try again shortly.";

impl ReadLimits {
    /// Creates the limits for a pool of `connections`. One connection (two from 8 connections on) is reserved and not
    /// lent to reads. One key may use three quarters of the others. Reads with large answers may use half of all
    /// connections, and half of a key's, so that short reads do not queue behind them. A read waits at most `wait` for
    /// its permits.
    pub fn new(connections: u32, wait: Duration, settings: &ReadSettings) -> Self {
        let connections = usize::try_from(connections).unwrap_or(usize::MAX);
        let reserved = if connections >= 8 { 2 } else { 1 };
        let reads = connections.saturating_sub(reserved).max(1);
        let of_key = (reads - reads.div_ceil(4)).max(1);
        Self {
            connections: KeyedPermits::new(reads, of_key),
            long: KeyedPermits::new((connections / 2).max(1), (of_key / 2).max(1)),
            answers: KeyedPermits::new(settings.large_answers.max(1), settings.large_answers_per_key),
            waiting: Arc::new(Semaphore::new((connections / 2).max(1))),
            wait,
            spool: SpoolBudget::new(settings.spool_dir.clone(), settings.spool_answer, settings.spool_total),
        }
    }

    /// Permits for a read with one connection. The caller holds them as long as it has the connection. Answers 503 if
    /// they are not free within the time limit.
    pub async fn connection(&self, key: &str, length: Length) -> Result<ReadPermits, ApiError> {
        let wait = async {
            let mut permits = Vec::new();
            if length == Length::Long {
                self.long.take(key, &mut permits).await;
            }
            self.connections.take(key, &mut permits).await;
            permits
        };
        let mut wait = pin!(wait);
        if let Some(permits) = wait.as_mut().now_or_never() {
            return Ok(permits);
        }
        Metrics::record_database_wait();
        tokio::time::timeout(self.wait, wait).await.map_err(|_| {
            Metrics::record_database_wait_timeout();
            ApiError::Unavailable(None)
        })
    }

    /// Like [`Self::connection`] for a short read, but returns `None` instead of waiting.
    pub fn try_connection(&self, key: &str) -> Option<ReadPermits> {
        let own = self.connections.of_key(key).try_acquire_owned().ok()?;
        let all = Arc::clone(&self.connections.all).try_acquire_owned().ok()?;
        Some(vec![own, all])
    }

    /// Permits for an answer that does not fit into one chunk, held until it is sent. Answers 429 if the key has too
    /// many such answers, 503 if the server has.
    pub fn large_answer(&self, key: &str) -> Result<Vec<OwnedSemaphorePermit>, ApiError> {
        let own = self.answers.of_key(key).try_acquire_owned();
        let own = own.map_err(|_| ApiError::TooManyRequests { message: BUSY_KEY, seconds: 1 })?;
        let all = Arc::clone(&self.answers.all).try_acquire_owned().map_err(|_| ApiError::Unavailable(None))?;
        Ok(vec![own, all])
    }

    /// Permits for answers that hold a connection while they wait for their client: half of the connections.
    pub fn waiting(&self) -> Arc<Semaphore> {
        Arc::clone(&self.waiting)
    }

    /// The disk space for answers that are read ahead.
    pub fn spool(&self) -> &SpoolBudget {
        &self.spool
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_has_a_part_of_the_places_and_others_have_the_rest() {
        let limits = ReadLimits::new(8, Duration::from_millis(20), &ReadSettings::default());
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(limits.connection("a", Length::Short).await.expect("a permit"));
        }
        let refused = limits.connection("a", Length::Short).await.expect_err("no fifth permit");
        assert_eq!(refused.status(), 503);
        held.push(limits.connection("b", Length::Short).await.expect("a permit"));
        held.push(limits.connection("b", Length::Short).await.expect("a permit"));
        let refused = limits.connection("c", Length::Short).await.expect_err("no seventh permit");
        assert_eq!(refused.status(), 503);
        held.clear();
        // Two of a key's four permits, and four of all eight connections, are for long answers.
        for key in ["a", "a", "b", "b"] {
            held.push(limits.connection(key, Length::Long).await.expect("a permit"));
        }
        for key in ["a", "c"] {
            assert_eq!(limits.connection(key, Length::Long).await.expect_err("no permit").status(), 503);
            limits.connection(key, Length::Short).await.expect("a permit");
        }
        held.clear();
        limits.connection("a", Length::Short).await.expect("a permit");
    }

    #[test]
    fn large_answers_are_counted_by_key_and_keys_without_any_are_forgotten() {
        let settings = ReadSettings { large_answers: 3, large_answers_per_key: 2, ..ReadSettings::default() };
        let limits = ReadLimits::new(8, Duration::ZERO, &settings);
        let held = (limits.large_answer("a").expect("one"), limits.large_answer("a").expect("two"));
        assert_eq!(limits.large_answer("a").expect_err("no third").status(), 429);
        let other = limits.large_answer("b").expect("one");
        assert_eq!(limits.large_answer("b").expect_err("no fourth").status(), 503);
        drop((held, other));
        for key in 0..3 * MAX_KEYS {
            limits.large_answer(&key.to_string()).expect("one");
        }
        assert!(limits.answers.keys.lock().len() <= MAX_KEYS);
    }
}
