//! The background task that keeps the rollups short: folds deltas, counts dirty days again, packs days that have been
//! quiet and sums their daily rows, and gives back the space of what was folded. Several servers on one database take
//! turns by an advisory lock; without a server nothing is lost, deltas wait. While nothing waits it looks more and more
//! seldom; what is booked here wakes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{Days, NaiveDate, Utc};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, Waiting};
use crate::store;
use crate::store::rollups;
use crate::store::rollups::backlog;
use crate::store::rollups::backlog::{Backlog, Holder};
use crate::store::{Connection, Pool};

/// Pause where there is nothing to do, and between what is booked and folding it.
const IDLE: Duration = Duration::from_secs(1);

/// The pause doubles up to this while nothing comes.
const IDLE_MOST: Duration = Duration::from_secs(32);

/// Pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Deltas folded until the table is vacuumed.
const VACUUM_AFTER: i64 = 5_000;

/// How often a backlog is counted while there is one.
const COUNT_AFTER: Duration = Duration::from_secs(15);

/// Who holds the lock for longer than this while work waits is named.
const HELD_LONG: Duration = Duration::from_secs(60);

/// How often.
const NAMED_AGAIN: Duration = Duration::from_secs(300);

/// How long one batch may take.
const BATCH_LIMIT: Duration = Duration::from_secs(30);

/// How long a batch may take that is so small that a smaller one would not help.
const SMALL_LIMIT: Duration = Duration::from_secs(1800);

/// Such a batch, in deltas.
const SMALL: i32 = 16;

/// Folds in batches that are halved where they take too long, and grow again where they do not.
#[derive(Clone, Copy, Debug)]
pub struct Batches {
    size: i32,
    limit: Duration,
}

impl Default for Batches {
    fn default() -> Self {
        Self::within(BATCH_LIMIT)
    }
}

impl Batches {
    /// Batches that may take so long.
    pub fn within(limit: Duration) -> Self {
        Self { size: rollups::BATCH, limit }
    }

    /// Deltas of the next batch at most.
    pub fn size(&self) -> i32 {
        self.size
    }

    /// Folds one batch; returns how many deltas. A batch that takes too long is tried again at half the size.
    pub async fn fold(&mut self, connection: &mut Connection) -> Result<i64, store::Error> {
        loop {
            let limit = if self.size <= SMALL { SMALL_LIMIT } else { self.limit };
            match rollups::fold_batch(connection, self.size, limit).await {
                Err(error) if is_timeout(&error) && self.size > 1 => {
                    Metrics::record_fold_failure();
                    self.size /= 2;
                    tracing::warn!(size = self.size, "a batch of deltas took too long; trying with a smaller one");
                }
                Ok(folded) => {
                    if folded > 0 {
                        self.size = (self.size + self.size / 4 + 1).min(rollups::BATCH);
                    }
                    Metrics::record_folded(folded);
                    return Ok(folded);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_timeout(error: &store::Error) -> bool {
    matches!(error, store::Error::Database(error) if error.code().as_deref() == Some("57014"))
}

/// What folding and the rest of a server tell each other.
#[derive(Debug, Default)]
pub struct Signals {
    attached: AtomicBool,
    wake: Notify,
}

impl Signals {
    /// Whether the rollups count every change of the log, as last seen.
    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// Says whether they do; returns what was known before.
    pub fn attach(&self, attached: bool) -> bool {
        self.attached.swap(attached, Ordering::Relaxed)
    }

    /// Wakes the folding: the log was changed here.
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

fn waiting(backlog: &Backlog) -> Waiting {
    Waiting {
        deltas: backlog.deltas,
        oldest_seconds: backlog.oldest_seconds,
        dirty_days: backlog.dirty_days,
        days_to_pack: backlog.days_to_pack,
        days_to_sum: backlog.days_to_sum,
    }
}

/// What the task remembers between its steps.
#[derive(Default)]
struct Memory {
    batches: Batches,
    folded: i64,
    counted: Option<Instant>,
    lock: LockWatch,
}

/// Folds until cancelled. A failure is logged and tried again: reads stay exact meanwhile.
pub async fn run(pool: Pool, signals: Arc<Signals>, stop: CancellationToken) {
    let mut memory = Memory::default();
    let mut idle = IDLE;
    loop {
        let pause = if signals.is_attached() {
            match step(&pool, &mut memory).await {
                Ok(Next::AtOnce) => {
                    idle = IDLE;
                    Duration::ZERO
                }
                Ok(Next::Soon) => {
                    idle = IDLE;
                    IDLE
                }
                Ok(Next::Later) => {
                    let pause = idle;
                    idle = (idle * 2).min(IDLE_MOST);
                    pause
                }
                Err(error) => {
                    Metrics::record_fold_failure();
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
            () = signals.wake.notified(), if pause > IDLE => {
                // More is likely to follow: it is folded together.
                idle = IDLE;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(IDLE) => {}
                }
            }
        }
    }
}

/// Days before this are over: yesterday's last calls may still be on their way.
fn over() -> NaiveDate {
    Utc::now().date_naive() - Days::new(1)
}

/// When the next step is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// More waits.
    AtOnce,
    /// A little was done; more is likely to come.
    Soon,
    /// There was nothing to do.
    Later,
}

/// One batch, one day, a vacuum, or a day packed.
async fn step(pool: &Pool, memory: &mut Memory) -> Result<Next, store::Error> {
    let mut connection = pool.acquire().await?;
    let can_pack = rollups::can_pack(&mut connection).await?;
    if can_pack && !backlog::is_waiting(&mut connection, over()).await? {
        memory.lock.free();
        Metrics::record_backlog(&Waiting::default());
        return Ok(Next::Later);
    }
    if can_pack && memory.counted.is_none_or(|at| at.elapsed() >= COUNT_AFTER) {
        Metrics::record_backlog(&waiting(&backlog::backlog(&mut connection, over()).await?));
        memory.counted = Some(Instant::now());
    }
    let work = work(&mut connection, &mut memory.batches, &mut memory.folded).await?;
    if work == Work::Backlog {
        memory.lock.free();
        return Ok(Next::AtOnce);
    }
    // A few deltas come all the time on a busy day: what follows does not wait for an end of them.
    if memory.folded >= VACUUM_AFTER {
        rollups::vacuum(&mut connection).await?;
        memory.folded = 0;
    }
    let packed = can_pack && pack(&mut connection, over()).await?;
    if work == Work::Nothing && !packed {
        memory.lock.look(&mut connection).await?;
        return Ok(Next::Later);
    }
    memory.lock.free();
    Ok(if packed { Next::AtOnce } else { Next::Soon })
}

/// Packs a day of each rollup and a month, and sums a day of daily rows, of those that are due; whether there was one. One
/// that can't be packed is put off, so that the others have their turn.
async fn pack(connection: &mut Connection, before: NaiveDate) -> Result<bool, store::Error> {
    let mut done = false;
    for rollup in rollups::PACKED {
        match rollups::pack_due(connection, rollup, before).await {
            Ok(day) => done |= day.is_some(),
            Err(error @ store::Error::Database(_)) => {
                Metrics::record_fold_failure();
                tracing::warn!(rollup, cause = %error, "a day could not be packed; trying again in an hour");
                backlog::postpone(connection, rollup, before).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Watches who holds the folding's lock while work waits. Any role that may connect can hold it; it is another server
/// most of the time, and then only for a moment.
#[derive(Default)]
struct LockWatch {
    holder: Option<(Holder, Instant)>,
    named: Option<Instant>,
}

impl LockWatch {
    /// The lock was to be had, or nothing waited.
    fn free(&mut self) {
        if self.holder.take().is_some() {
            self.named = None;
            Metrics::record_lock_held(Duration::ZERO);
        }
    }

    /// Nothing could be done: looks who holds the lock, and names them where they have for long.
    async fn look(&mut self, connection: &mut Connection) -> Result<(), store::Error> {
        let Some(found) = backlog::lock_holder(connection).await? else {
            self.free();
            return Ok(());
        };
        let since = match &self.holder {
            Some((holder, since)) if *holder == found => *since,
            _ => Instant::now(),
        };
        let held = since.elapsed();
        Metrics::record_lock_held(held);
        if held >= HELD_LONG && self.named.is_none_or(|at| at.elapsed() >= NAMED_AGAIN) {
            self.named = Some(Instant::now());
            tracing::warn!(
                pid = found.pid, role = %found.role, application = %found.application, seconds = held.as_secs(),
                "another session holds the lock of the rollups' folding while work waits"
            );
        }
        self.holder = Some((found, since));
        Ok(())
    }
}

/// What a step of counting did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// There was nothing to do.
    Nothing,
    /// A batch was folded, and little more waits.
    Done,
    /// More is likely to wait.
    Backlog,
}

/// Folds one batch, or else counts one dirty day.
async fn work(connection: &mut Connection, batches: &mut Batches, folded: &mut i64) -> Result<Work, store::Error> {
    let batch = batches.fold(connection).await?;
    *folded += batch;
    if batch > 0 {
        return Ok(if rollups::many_wait(connection).await? { Work::Backlog } else { Work::Done });
    }
    if let Some(day) = rollups::recount(connection).await? {
        tracing::info!(%day, "counted from the spend log");
        *folded += VACUUM_AFTER;
        return Ok(Work::Backlog);
    }
    Ok(Work::Nothing)
}

/// Folds, counts and packs everything that waits now. For tests and the command line.
pub async fn settle(connection: &mut Connection) -> Result<(), store::Error> {
    let (mut batches, mut folded) = (Batches::default(), 0);
    while work(connection, &mut batches, &mut folded).await? != Work::Nothing {}
    if !rollups::can_pack(connection).await? {
        return Ok(());
    }
    let before = Utc::now().date_naive() + Days::new(1);
    for rollup in rollups::PACKED {
        while rollups::pack_any(connection, rollup, before).await?.is_some() {}
    }
    Ok(())
}
