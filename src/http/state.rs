//! The application state that all handlers share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use litespend_archive::Archive;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::booking::booker::Booker;
use crate::clock::Clock;
use crate::http::auth::lookup::KeyLookup;
use crate::http::body_budget::BodyBudget;
use crate::http::client_ip::{AllowList, AllowedAddresses};
use crate::http::dashboard::throttle::LoginThrottle;
use crate::http::read_limits::ReadLimits;
use crate::http::replica::Replica;
use crate::http::silence::Silence;
use crate::http::stream::answer_budget::AnswerBudget;
use crate::metrics::Metrics;
use crate::prices::Prices;
use crate::rollups::folding::Signals;
use crate::settings::Settings;
use crate::store;
use crate::store::Pool;
use crate::store::reading::ReadPool;
use crate::store::rollups::dictionary::DictionaryCache;
use crate::store::spend_metrics::remembered::RememberedSeries;

/// How often the server reads the allow list again, so that a change made by another server takes effect here.
const ALLOW_LIST_REFRESH: std::time::Duration = std::time::Duration::from_secs(3);

/// The application state, available to every handler. Cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Inner>);

/// The contents of [`AppState`].
pub struct Inner {
    /// The pool of connections to the database.
    pub pool: Pool,
    /// The settings, checked at start.
    pub settings: Settings,
    /// Looks up API keys and caches the results.
    pub keys: KeyLookup,
    /// The client addresses that are allowed to send requests.
    pub allow_list: AllowList,
    /// The price table in use.
    pub prices: Arc<Prices>,
    /// Serializes activity answers that contain a day with very many sums: at most one of them builds such days at a
    /// time.
    pub large_days: tokio::sync::Mutex<()>,
    /// Permits for requests that take long to price. There is one permit.
    pub large_requests: Arc<Semaphore>,
    /// The same pool, lent to reads; a read that ends early has its query cancelled.
    pub read_pool: ReadPool,
    /// Limits on what reads may use: connections, large answers and disk space.
    pub read_limits: ReadLimits,
    /// The clock that handlers ask for the current time.
    pub clock: Clock,
    /// The memory budget for request bodies.
    pub body_budget: BodyBudget,
    /// The memory budget for large answers that are held in memory as a whole.
    pub answer_budget: AnswerBudget,
    /// Books usage records.
    pub booker: Booker,
    /// Counts failed logins to the dashboard and limits their rate.
    pub logins: LoginThrottle,
    /// The metrics that `/metrics` reports.
    pub metrics: Metrics,
    /// The rollups' dictionary of strings (keys, models, tags, ...), cached between reads.
    pub dictionary: DictionaryCache,
    /// The series of `/metrics/spend`, remembered between scrapes.
    pub spend_series: tokio::sync::Mutex<RememberedSeries>,
    /// Whether the archive did not answer a page in time a moment ago.
    pub silent_archive: Silence,
    /// Signals between the background fold task and the rest of the server.
    pub folding: Arc<Signals>,
    /// Whether rollups are installed that do not count the log any more, as of the last check.
    lost_rollups: AtomicBool,
    /// Whether the role of this server may not read the rollups.
    unreadable_rollups: AtomicBool,
    replica: OnceLock<Replica>,
    archive: OnceLock<Archive>,
}

impl std::ops::Deref for AppState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl AppState {
    /// Creates the state of a server that uses `pool`. Fails if the metrics cannot be installed.
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
            body_budget: BodyBudget::default(),
            answer_budget: AnswerBudget::default(),
            booker,
            metrics,
            logins: LoginThrottle::default(),
            dictionary: DictionaryCache::default(),
            spend_series: tokio::sync::Mutex::default(),
            large_days: tokio::sync::Mutex::new(()),
            large_requests: Arc::new(Semaphore::new(1)),
            silent_archive: Silence::default(),
            folding: Arc::default(),
            lost_rollups: AtomicBool::default(),
            unreadable_rollups: AtomicBool::default(),
            replica: OnceLock::new(),
            archive: OnceLock::new(),
        })))
    }

    /// Reads the allow list from the database. If the database has none, the config file's list applies.
    pub async fn refresh_allow_list(&self) -> Result<(), store::Error> {
        // Without this lock, a list that was read before a change could replace that change.
        let _guard = self.allow_list.lock().await;
        let mut connection = self.pool.acquire().await?;
        let stored = store::allowed_ips::read(&mut connection).await?;
        self.allow_list.replace(AllowedAddresses { entries: stored.or_else(|| self.settings.allowed_ips.clone()) });
        Ok(())
    }

    /// From now on, sends reads that tolerate lag to `replica`.
    pub fn use_replica(&self, replica: Replica) {
        // A replica that was set earlier stays in use; a second one is ignored.
        let _ = self.replica.set(replica);
    }

    /// The replica, if one is configured.
    pub fn replica(&self) -> Option<&Replica> {
        self.replica.get()
    }

    /// From now on, reads rows of closed days from `archive`.
    pub fn use_archive(&self, archive: Archive) {
        // An archive that was set earlier stays in use; a second one is ignored.
        let _ = self.archive.set(archive);
    }

    /// The archive of closed days, if one is configured.
    pub fn archive(&self) -> Option<&Archive> {
        self.archive.get()
    }

    /// Whether reads of sums use the rollups, as of the last check: they count every change of the spend log, or days are
    /// closed.
    pub fn has_rollups(&self) -> bool {
        self.folding.is_attached() || self.folding.has_closed_days()
    }

    /// The state of the rollups, as of the last check: `counting`, `not installed`, `lost` if they are installed but do not
    /// count the log any more, or `unreadable` if the role of this server may not read them.
    pub fn rollups_state(&self) -> &'static str {
        if self.unreadable_rollups.load(Ordering::Relaxed) {
            return "unreadable";
        }
        match (self.folding.is_attached(), self.lost_rollups.load(Ordering::Relaxed)) {
            (true, _) => "counting",
            (false, true) => "lost",
            (false, false) => "not installed",
        }
    }

    /// Checks whether the rollups are installed.
    pub async fn refresh_rollups(&self) -> Result<(), store::Error> {
        let mut connection = self.pool.acquire().await?;
        let readable = store::rollups::are_readable(&mut connection).await?;
        if !self.unreadable_rollups.swap(!readable, Ordering::Relaxed) && !readable {
            tracing::warn!(
                "the database role of this server may not read the rollups in the schema litespend: reads use the log, which \
                 lacks what was deleted and pruned; docs/operations.md says what to grant"
            );
        }
        let attached = readable && store::rollups::attached(&mut connection).await?;
        let closed = readable && store::books::is_any_closed(&mut connection).await?;
        self.folding.close(closed);
        if self.folding.attach(attached) && !attached && !closed {
            self.dictionary.clear();
        }
        let lost = if attached || !readable { None } else { store::rollups::lost(&mut connection).await? };
        Metrics::record_rollups_lost(lost.is_some() || !readable);
        let was_lost = self.lost_rollups.swap(lost.is_some(), Ordering::Relaxed);
        if let Some(lost) = lost.filter(|_| !was_lost) {
            tracing::warn!("{lost}: reads use the log; run `litespend rollups install`");
        }
        Ok(())
    }

    /// Refreshes the allow list, and then whether the rollups are installed, at a fixed interval until cancelled. While
    /// the database is unavailable, the last list applies.
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
                    if let Some(archive) = self.archive()
                        && let Err(error) = archive.refresh_damage().await
                    {
                        tracing::warn!(cause = %error, "cannot read which files of the archive are damaged");
                    }
                    if let Err(error) = self.refresh_rollups().await {
                        tracing::warn!(cause = %error, "cannot read the state of the rollups");
                    }
                }
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(cause = %error, "cannot read the allow list; the previous one stays in use");
                }
                Err(_) => {}
            }
        }
    }
}
