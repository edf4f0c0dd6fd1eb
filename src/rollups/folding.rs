//! The background task that keeps the backlog of the rollups short. It folds deltas, recounts dirty days, packs days
//! that have not changed for some time, sums their daily rows, and vacuums the table of deltas. If several servers use
//! one database, an advisory lock lets one of them work at a time. While no server runs, nothing is lost, because the
//! deltas wait. While there is no work, the task checks less and less often; a booking on this server wakes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{Days, NaiveDate, Utc};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, Waiting};
use crate::store;
use crate::store::rollups;
use crate::store::rollups::Abilities;
use crate::store::rollups::backlog;
use crate::store::rollups::backlog::{Backlog, Holder};
use crate::store::rollups::partitions;
use crate::store::{Connection, Pool};

/// The pause when there is no work, and the pause between a booking and its folding.
const IDLE: Duration = Duration::from_secs(1);

/// The pause doubles up to this value while there is no work.
const IDLE_MAX: Duration = Duration::from_secs(32);

/// The pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// The number of folded deltas after which the table is vacuumed.
const VACUUM_AFTER: i64 = 5_000;

/// How often the backlog is counted while there is one.
const COUNT_AFTER: Duration = Duration::from_secs(15);

/// How often the partitions of the log are compared, at most.
const FOLLOW_AFTER: Duration = Duration::from_secs(1);

/// How long a failure to follow the partitions is not logged again.
const FOLLOW_FAILED: Duration = Duration::from_secs(60);

/// A session that holds the lock for longer than this while work waits is logged.
const HELD_LONG: Duration = Duration::from_secs(60);

/// How often such a session is logged again.
const NAMED_AGAIN: Duration = Duration::from_secs(300);

/// The longest time that one batch may take.
const BATCH_LIMIT: Duration = Duration::from_secs(30);

/// The longest time for a batch that is so small that a smaller one would not help.
const SMALL_LIMIT: Duration = Duration::from_secs(1800);

/// The largest number of deltas in such a small batch.
const SMALL: i32 = 16;

/// Folds deltas in batches. A batch that takes too long is halved. Batches grow again when they succeed.
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
    /// Batches with this time limit.
    pub fn within(limit: Duration) -> Self {
        Self { size: rollups::BATCH, limit }
    }

    /// The largest number of deltas in the next batch.
    pub fn size(&self) -> i32 {
        self.size
    }

    /// Folds one batch and returns the number of deltas. A batch that takes too long is retried with half the size.
    pub async fn fold(&mut self, connection: &mut Connection) -> Result<i64, store::Error> {
        loop {
            let limit = if self.size <= SMALL { SMALL_LIMIT } else { self.limit };
            match rollups::fold_batch(connection, self.size, limit).await {
                Err(error) if is_timeout(&error) && self.size > 1 => {
                    Metrics::record_fold_failure();
                    self.size /= 2;
                    tracing::warn!(size = self.size, "a batch of deltas took too long; trying a smaller batch");
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

/// Shared state between the folding task and the rest of the server.
#[derive(Debug, Default)]
pub struct Signals {
    attached: AtomicBool,
    closed: AtomicBool,
    wake: Notify,
}

impl Signals {
    /// Whether the rollups count every change of the log, as of the last check.
    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// Sets whether the rollups count every change. Returns the previous value.
    pub fn attach(&self, attached: bool) -> bool {
        self.attached.swap(attached, Ordering::Relaxed)
    }

    /// Whether days are closed, as of the last check. Their sums are read from the rollups even if these do not count the
    /// log any more.
    pub fn has_closed_days(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Sets whether days are closed.
    pub fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    /// Wakes the folding task, because this server has changed the log.
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

/// The state that the task keeps between its steps.
#[derive(Default)]
struct Memory {
    batches: Batches,
    folded: i64,
    counted: Option<Instant>,
    lock: LockWatch,
    followed: Option<Instant>,
    follow_failed: Option<Instant>,
}

/// Folds until cancelled. A failure is logged and retried; reads stay exact in the meantime.
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
                    idle = (idle * 2).min(IDLE_MAX);
                    pause
                }
                Err(error) => {
                    Metrics::record_fold_failure();
                    tracing::warn!(cause = %error, "cannot fold the deltas into the rollups; trying again");
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
                // More bookings are likely to follow, and they can be folded together.
                idle = IDLE;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(IDLE) => {}
                }
            }
        }
    }
}

/// Days before this date are over. Yesterday is not included, because its last calls may still arrive.
fn over() -> NaiveDate {
    Utc::now().date_naive() - Days::new(1)
}

/// When the next step is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// More work is waiting.
    AtOnce,
    /// A little work was done, and more is likely to come.
    Soon,
    /// There was no work.
    Later,
}

/// Performs one step: folds one batch or recounts one dirty day. If no large backlog is left, also vacuums and packs
/// when due.
async fn step(pool: &Pool, memory: &mut Memory) -> Result<Next, store::Error> {
    let mut connection = pool.acquire().await?;
    let Abilities { can_pack, can_follow } = rollups::abilities(&mut connection).await?;
    if can_follow {
        follow_partitions(&mut connection, memory).await?;
    }
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
    // On a busy day a few deltas arrive all the time, so the following work does not wait until there are none.
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

/// Counts new partitions of the log, and the days of those that are gone. Until this succeeds, reads use the log, so a
/// failure does not stop the folding: the account may lack the right to create triggers.
async fn follow_partitions(connection: &mut Connection, memory: &mut Memory) -> Result<(), store::Error> {
    if memory.followed.is_some_and(|at| at.elapsed() < FOLLOW_AFTER) {
        return Ok(());
    }
    memory.followed = Some(Instant::now());
    match partitions::follow_now(connection).await {
        Ok(changed) if changed != partitions::Changed::default() => {
            tracing::info!(came = changed.came, went = changed.went, "the partitions of the log changed");
        }
        Ok(_) => {}
        Err(error @ store::Error::Database(_)) => {
            if memory.follow_failed.is_none_or(|at| at.elapsed() >= FOLLOW_FAILED) {
                memory.follow_failed = Some(Instant::now());
                tracing::warn!(cause = %error, "cannot follow the partitions of the log; reads use the log");
            }
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Packs one day of each rollup and one month, and sums one day of daily rows, if any are due. Returns whether there
/// was one. A day that can't be packed is postponed, so that the others are not blocked.
async fn pack(connection: &mut Connection, before: NaiveDate) -> Result<bool, store::Error> {
    let mut done = false;
    for rollup in rollups::PACKED {
        match rollups::pack_due(connection, rollup, before).await {
            Ok(day) => done |= day.is_some(),
            Err(error @ store::Error::Database(_)) => {
                Metrics::record_fold_failure();
                tracing::warn!(rollup, cause = %error, "cannot pack a day; trying again in an hour");
                backlog::postpone(connection, rollup, before).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Watches which session holds the lock for folding while work waits. Any role that may connect can hold it. Usually
/// the holder is another server, and only for a moment.
#[derive(Default)]
struct LockWatch {
    holder: Option<(Holder, Instant)>,
    named: Option<Instant>,
}

impl LockWatch {
    /// Records that the lock was free or that no work waited.
    fn free(&mut self) {
        if self.holder.take().is_some() {
            self.named = None;
            Metrics::record_lock_held(Duration::ZERO);
        }
    }

    /// Called when no work could be done. Finds the session that holds the lock, and logs it if it has held the lock
    /// for long.
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
                "another session holds the folding lock while work is waiting"
            );
        }
        self.holder = Some((found, since));
        Ok(())
    }
}

/// The result of a step of counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// There was no work.
    Nothing,
    /// A batch was folded, and little more is waiting.
    Done,
    /// More work is likely to be waiting.
    Backlog,
}

/// Folds one batch. If there are no deltas, recounts one dirty day.
async fn work(connection: &mut Connection, batches: &mut Batches, folded: &mut i64) -> Result<Work, store::Error> {
    let batch = batches.fold(connection).await?;
    *folded += batch;
    if batch > 0 {
        return Ok(if rollups::many_wait(connection).await? { Work::Backlog } else { Work::Done });
    }
    if let Some(day) = rollups::recount(connection).await? {
        tracing::info!(%day, "counted a day from the spend log");
        *folded += VACUUM_AFTER;
        return Ok(Work::Backlog);
    }
    Ok(Work::Nothing)
}

/// Folds, counts and packs the whole backlog. For tests and the command line.
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
