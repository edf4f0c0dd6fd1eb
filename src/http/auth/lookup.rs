//! Looks up keys and caches the results for a few seconds. The cache is bounded in size and age, so a blocked or
//! deleted key stops working on every server within [`LIFETIME`]. A change made through this server, and a key's
//! expiry, take effect at once. Unknown keys are cached separately, so that guessed keys evict no existing key. Only a
//! limited number of lookups of unknown keys per second reach the database. Keys that this server has already seen to
//! exist are exempt from that limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::future::Cache;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::clock::Clock;
use crate::http::auth::into_caller;
use crate::http::auth::key;
use crate::http::auth::session::Signer;
use crate::http::auth::token_bucket::TokenBucket;
use crate::http::error::{ApiError, ErrorType};
use crate::identity::{Caller, KeyRecord, hash_key};
use crate::settings::Settings;
use crate::store;
use crate::store::Pool;
use crate::store::database;
use crate::store::error::{is_stale_plan, is_statement_timeout, is_unavailable};

/// How long a lookup is cached.
pub const LIFETIME: Duration = Duration::from_secs(9);

/// Most cached lookups of existing keys, and also most cached lookups of unknown keys.
const CAPACITY: u64 = 50_000;

/// Most keys that are still recognized as existing after their cached lookup has expired.
const SEEN_CAPACITY: u64 = 200_000;

/// How long a key stays recognized after its last lookup.
const SEEN_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a change invalidates lookups that began before it. This is longer than any lookup runs and is cached.
const CHANGE_LIFETIME: Duration = Duration::from_secs(180);

/// Resolves keys to callers.
#[derive(Clone)]
pub struct KeyLookup(Arc<Inner>);

struct Inner {
    pool: Pool,
    master_key: SecretString,
    clock: Clock,
    signer: Signer,
    known: Cache<String, Arc<Found>>,
    absent: Cache<String, u64>,
    seen: Cache<String, ()>,
    bucket: TokenBucket,
    changes: Changes,
}

/// The cached result of a successful lookup.
struct Found {
    record: KeyRecord,
    /// The change counter at the time when the lookup began.
    since: u64,
}

/// Why a key was not found.
enum Missing {
    Unknown,
    NoTurn,
    Database(store::Error),
}

/// Counts the changes made through this server, so that the result of a lookup which began before a change is not used
/// after it.
struct Changes {
    count: AtomicU64,
    of_all: AtomicU64,
    of_key: Cache<String, u64>,
}

impl Changes {
    fn now(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn next(&self) -> u64 {
        self.count.fetch_add(1, Ordering::SeqCst) + 1
    }

    async fn none_since<'a>(&self, since: u64, hashes: impl Iterator<Item = &'a str>) -> bool {
        if since < self.of_all.load(Ordering::SeqCst) {
            return false;
        }
        for hash in hashes {
            if self.of_key.get(hash).await.is_some_and(|changed| since < changed) {
                return false;
            }
        }
        true
    }
}

impl KeyLookup {
    /// Creates a lookup that reads from `pool`. The master key is never looked up in the database.
    pub fn new(pool: Pool, settings: &Settings, clock: Clock) -> Self {
        let password = settings.ui.as_ref().and_then(|ui| ui.password.clone());
        let signer = Signer::new(settings.authority.secret.clone(), settings.master_key.clone(), password);
        let remembered = || Cache::builder().max_capacity(CAPACITY).time_to_live(LIFETIME);
        Self(Arc::new(Inner {
            pool,
            master_key: settings.master_key.clone(),
            clock,
            signer,
            known: remembered().build(),
            absent: Cache::builder().max_capacity(CAPACITY).time_to_live(LIFETIME).build(),
            seen: Cache::builder().max_capacity(SEEN_CAPACITY).time_to_idle(SEEN_LIFETIME).build(),
            bucket: TokenBucket::new(settings.authority.key_lookups),
            changes: Changes {
                count: AtomicU64::new(0),
                of_all: AtomicU64::new(0),
                of_key: Cache::builder().time_to_live(CHANGE_LIFETIME).build(),
            },
        }))
    }

    /// Whether `candidate` is the master key. The comparison takes constant time.
    pub fn is_master(&self, candidate: &str) -> bool {
        let digest = |text: &str| hash_key(text).into_bytes();
        bool::from(digest(candidate).ct_eq(&digest(self.0.master_key.expose_secret())))
    }

    /// The signer of login tokens and session seals.
    pub fn signer(&self) -> &Signer {
        &self.0.signer
    }

    /// The caller that a key identifies.
    pub async fn resolve(&self, candidate: &str) -> Result<Caller, ApiError> {
        if self.is_master(candidate) {
            return Ok(Caller::master());
        }
        let record = self.record(candidate).await?;
        if record.session.is_none() {
            return into_caller(record, self.0.clock.now(), None);
        }
        let seals = match self.0.signer.ready() {
            Some(seals) => seals,
            None => self.0.signer.keys(&mut *database::acquire(&self.0.pool).await?).await?,
        };
        into_caller(record, self.0.clock.now(), Some(seals))
    }

    /// The database row of a key, even if the key is blocked or expired.
    pub async fn record(&self, candidate: &str) -> Result<KeyRecord, ApiError> {
        if !candidate.starts_with("sk-") {
            return Err(key::not_a_virtual_key(candidate));
        }
        let hash = hash_key(candidate);
        // If a change happened after a lookup began, the lookup is repeated. If that happens three times in a row, the
        // request gets 503.
        for _ in 0..3 {
            match self.find(&hash).await {
                Ok(found) if self.0.changes.none_since(found.since, found.record.depends_on()).await => {
                    return Ok(found.record.clone());
                }
                Ok(_) => self.0.known.invalidate(&hash).await,
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::Unavailable(None))
    }

    async fn find(&self, hash: &str) -> Result<Arc<Found>, ApiError> {
        let inner = &self.0;
        if let Some(since) = inner.absent.get(hash).await
            && inner.changes.none_since(since, std::iter::once(hash)).await
        {
            return Err(unknown());
        }
        let found = inner.known.try_get_with_by_ref(hash, self.look_up(hash)).await;
        found.map_err(|missing| match Arc::try_unwrap(missing) {
            Ok(Missing::Database(error)) => ApiError::from(error),
            Ok(missing) => refusal(&missing),
            // Several requests shared this one lookup.
            Err(shared) => refusal(&shared),
        })
    }

    async fn look_up(&self, hash: &str) -> Result<Arc<Found>, Missing> {
        let inner = &self.0;
        if inner.seen.get(hash).await.is_none() && !inner.bucket.take() {
            return Err(Missing::NoTurn);
        }
        let since = inner.changes.now();
        let found = async {
            let mut connection = database::acquire(&inner.pool).await?;
            store::keys::find_key(&mut connection, hash).await
        };
        match found.await.map_err(Missing::Database)? {
            Some(record) => {
                inner.seen.insert(hash.to_owned(), ()).await;
                Ok(Arc::new(Found { record, since }))
            }
            None => {
                inner.seen.invalidate(hash).await;
                inner.absent.insert(hash.to_owned(), since).await;
                Err(Missing::Unknown)
            }
        }
    }

    /// Discards the cached lookups of one key and of the sessions that it opened, after a change made through this
    /// server.
    pub async fn forget(&self, hash: &str) {
        let changed = self.0.changes.next();
        self.0.changes.of_key.insert(hash.to_owned(), changed).await;
        self.0.known.invalidate(hash).await;
        self.0.absent.invalidate(hash).await;
    }

    /// Discards all cached lookups, after a change of users or teams made through this server.
    pub fn forget_all(&self) {
        let changed = self.0.changes.next();
        self.0.changes.of_all.fetch_max(changed, Ordering::SeqCst);
        self.0.known.invalidate_all();
        self.0.absent.invalidate_all();
    }

    /// The number of cached lookups, for the metrics.
    pub fn remembered(&self) -> u64 {
        self.0.known.entry_count() + self.0.absent.entry_count()
    }
}

fn unknown() -> ApiError {
    ApiError::Refused {
        status: axum::http::StatusCode::UNAUTHORIZED,
        kind: ErrorType::TokenNotFound,
        message: "Authentication Error, Invalid API key provided.".into(),
        param: Some("key".into()),
    }
}

fn refusal(missing: &Missing) -> ApiError {
    match missing {
        Missing::Unknown => unknown(),
        Missing::NoTurn => {
            ApiError::TooManyRequests { message: "Too many requests with unknown keys. Try again shortly.", seconds: 1 }
        }
        Missing::Database(error) if is_unavailable(error) => ApiError::Unavailable(None),
        Missing::Database(error) if is_statement_timeout(error) => ApiError::statement_timeout(),
        Missing::Database(error) if is_stale_plan(error) => {
            store::database::discard_prepared_statements();
            ApiError::StalePlan(error.to_string())
        }
        Missing::Database(error) => ApiError::Internal(error.to_string()),
    }
}
