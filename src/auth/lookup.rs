//! Looks keys up and remembers the answer for a few seconds. The cache is bounded in size and age, so that a
//! blocked or deleted key stops working everywhere within [`LIFETIME`]; an unknown key is remembered too, so
//! that guessing does not reach the database twice. The end of a key's validity counts at once.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgPool;
use subtle::ConstantTimeEq;

use super::{Caller, KeyRecord, hash_key, key};
use crate::clock::Clock;
use crate::error::{ApiError, ErrorType, is_statement_timeout, is_unavailable};
use crate::store;

/// How long a lookup is remembered.
pub const LIFETIME: Duration = Duration::from_secs(9);

/// How many lookups are remembered at most.
const CAPACITY: u64 = 50_000;

/// Resolves keys to callers.
#[derive(Clone)]
pub struct KeyLookup {
    pool: PgPool,
    master_key: Arc<SecretString>,
    cache: Cache<String, Option<Arc<KeyRecord>>>,
    clock: Clock,
}

impl KeyLookup {
    /// Looks keys up in `pool`; `master_key` is never looked up.
    pub fn new(pool: PgPool, master_key: SecretString, clock: Clock) -> Self {
        let cache = Cache::builder().max_capacity(CAPACITY).time_to_live(LIFETIME).build();
        Self { pool, master_key: Arc::new(master_key), cache, clock }
    }

    /// Whether `candidate` is the master key, in time that does not depend on where they differ.
    pub fn is_master(&self, candidate: &str) -> bool {
        let digest = |text: &str| hash_key(text).into_bytes();
        bool::from(digest(candidate).ct_eq(&digest(self.master_key.expose_secret())))
    }

    /// The caller that a key stands for.
    pub async fn resolve(&self, candidate: &str) -> Result<Caller, ApiError> {
        if self.is_master(candidate) {
            return Ok(Caller::master());
        }
        if !candidate.starts_with("sk-") {
            return Err(key::not_a_virtual_key(candidate));
        }
        let hash = hash_key(candidate);
        let record = self
            .cache
            .try_get_with(hash.clone(), async {
                let mut connection = self.pool.acquire().await?;
                store::keys::find_key(&mut connection, &hash).await.map(|found| found.map(Arc::new))
            })
            .await
            .map_err(|error: Arc<sqlx::Error>| match Arc::try_unwrap(error) {
                Ok(error) => ApiError::from(error),
                // Several requests waited for this one lookup.
                Err(shared) if is_unavailable(&shared) => ApiError::Unavailable(None),
                Err(shared) if is_statement_timeout(&shared) => ApiError::statement_timeout(),
                Err(shared) => ApiError::Internal(shared.to_string()),
            })?;
        match record {
            Some(record) => KeyRecord::clone(&record).into_caller(self.clock.now()),
            None => Err(ApiError::Refused {
                status: axum::http::StatusCode::UNAUTHORIZED,
                kind: ErrorType::TokenNotFound,
                message: "Authentication Error, Invalid API key provided.".into(),
                param: Some("key".into()),
            }),
        }
    }

    /// Forgets one key, after a change made here.
    pub async fn forget(&self, hash: &str) {
        self.cache.invalidate(hash).await;
    }

    /// Forgets every key, after a change of users or teams made here.
    pub fn forget_all(&self) {
        self.cache.invalidate_all();
    }

    /// How many lookups are remembered now, for the metrics.
    pub fn remembered(&self) -> u64 {
        self.cache.entry_count()
    }
}
