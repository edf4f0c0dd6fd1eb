//! The state of the application.

use std::sync::{Arc, OnceLock};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::booking::booker::Booker;
use crate::clock::Clock;
use crate::http::auth::lookup::KeyLookup;
use crate::http::body_room::BodyRoom;
use crate::http::client_ip::{AllowList, AllowedAddresses};
use crate::http::dashboard::throttle::LoginThrottle;
use crate::http::read_limits::ReadLimits;
use crate::http::replica::Replica;
use crate::http::stream::answer_room::AnswerRoom;
use crate::metrics::Metrics;
use crate::prices::Prices;
use crate::rollups::folding::Signals;
use crate::settings::Settings;
use crate::store;
use crate::store::Pool;
use crate::store::reading::ReadPool;
use crate::store::rollups::words::WordCache;

/// How often the allow list is read again, so that a change made by another server counts here.
const ALLOW_LIST_REFRESH: std::time::Duration = std::time::Duration::from_secs(3);

/// What every handler can reach. Cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

/// The contents of [`AppState`].
pub struct Inner {
    /// Connections to the database.
    pub pool: Pool,
    /// Settings.
    pub settings: Settings,
    /// Keys.
    pub keys: KeyLookup,
    /// Addresses that may call.
    pub allow_list: AllowList,
    /// Prices.
    pub prices: Arc<Prices>,
    /// A turn for days of activity with very many sums.
    pub large_days: tokio::sync::Mutex<()>,
    /// Turns for requests that take long to price.
    pub large_requests: Arc<Semaphore>,
    /// The same connections, lent to reads.
    pub read_pool: ReadPool,
    /// How much reads may take.
    pub read_limits: ReadLimits,
    /// Time.
    pub clock: Clock,
    /// Room for the bodies of requests.
    pub body_room: BodyRoom,
    /// Room for large answers that are held in memory.
    pub answer_room: AnswerRoom,
    /// Books usage.
    pub booker: Booker,
    /// Logins of the dashboard.
    pub logins: LoginThrottle,
    /// Metrics.
    pub metrics: Metrics,
    /// Texts of the rollups.
    pub words: WordCache,
    /// What folding and the rest of the server tell each other.
    pub folding: Arc<Signals>,
    replica: OnceLock<Replica>,
}

impl std::ops::Deref for AppState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl AppState {
    /// The state of a server on `pool`.
    pub fn new(pool: Pool, settings: Settings, prices: Arc<Prices>, clock: Clock) -> anyhow::Result<Self> {
        let keys = KeyLookup::new(pool.clone(), &settings, clock);
        let allow_list = AllowList::default();
        allow_list.replace(AllowedAddresses { entries: settings.allowed_ips.clone() });
        let metrics = Metrics::install()?;
        let booker = Booker::new(pool.clone(), settings.booking);
        let options = pool.options();
        let read_limits =
            ReadLimits::new(options.get_max_connections(), options.get_acquire_timeout(), &settings.reads);
        Ok(Self(Arc::new(Inner {
            read_pool: ReadPool::new(pool.clone()),
            read_limits,
            pool,
            settings,
            keys,
            allow_list,
            prices,
            clock,
            body_room: BodyRoom::default(),
            answer_room: AnswerRoom::default(),
            booker,
            metrics,
            logins: LoginThrottle::default(),
            words: WordCache::default(),
            large_days: tokio::sync::Mutex::new(()),
            large_requests: Arc::new(Semaphore::new(1)),
            folding: Arc::default(),
            replica: OnceLock::new(),
        })))
    }

    /// Reads the allow list; where the database has none, the config file's stands.
    pub async fn refresh_allow_list(&self) -> Result<(), store::Error> {
        // A change made here meanwhile must not be replaced by what was read before it.
        let _turn = self.allow_list.turn().await;
        let mut connection = self.pool.acquire().await?;
        let stored = store::allowed_ips::read(&mut connection).await?;
        self.allow_list.replace(AllowedAddresses { entries: stored.or_else(|| self.settings.allowed_ips.clone()) });
        Ok(())
    }

    /// Sends reads that tolerate lag to a replica from now on.
    pub fn use_replica(&self, replica: Replica) {
        // A second one has nobody to ask it.
        let _ = self.replica.set(replica);
    }

    /// The replica, where there is one.
    pub fn replica(&self) -> Option<&Replica> {
        self.replica.get()
    }

    /// Whether the rollups count every change of the log, as last seen.
    pub fn has_rollups(&self) -> bool {
        self.folding.is_attached()
    }

    /// Looks whether the rollups are there.
    pub async fn refresh_rollups(&self) -> Result<(), store::Error> {
        let mut connection = self.pool.acquire().await?;
        let attached = store::rollups::attached(&mut connection).await?;
        if self.folding.attach(attached) && !attached {
            self.words.clear();
        }
        Ok(())
    }

    /// Reads the allow list again and again, until cancelled. While the database is away, the last list stands.
    pub async fn keep_fresh(self, stop: CancellationToken) {
        let mut away = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(ALLOW_LIST_REFRESH) => {}
            }
            match self.refresh_allow_list().await {
                Ok(()) => {
                    away = false;
                    if let Err(error) = self.refresh_rollups().await {
                        tracing::warn!(cause = %error, "the state of the rollups cannot be read");
                    }
                }
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(cause = %error, "the allow list cannot be read; the last one stands");
                }
                Err(_) => {}
            }
        }
    }
}
