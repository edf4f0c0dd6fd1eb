//! Maintains the partitions of a log that litespend owns: one for each month up to three months ahead. Several servers may
//! do this at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use chrono::{NaiveDate, Utc};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::store;
use crate::store::log::months;
use crate::store::log::months::Layout;
use crate::store::{Connection, Pool};

/// The pause between two checks of the partitions.
const PAUSE: Duration = Duration::from_secs(600);

/// The pause after a partition could not be created.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Creates missing partitions until cancelled, and watches the default partition.
pub async fn run(pool: Pool, stop: CancellationToken) {
    let mut warned = false;
    loop {
        let pause = match maintain(&pool, Utc::now().date_naive()).await {
            Ok(Maintained { misplaced: 0, .. }) => {
                warned = false;
                PAUSE
            }
            Ok(Maintained { misplaced, .. }) => {
                if !warned {
                    tracing::warn!(
                        rows = misplaced,
                        "some rows of the log are in the default partition: run `litespend log partition` to move them"
                    );
                }
                warned = true;
                PAUSE
            }
            Err(error) => {
                tracing::warn!(cause = %error, "cannot maintain the partitions of the log; trying again");
                AFTER_FAILURE
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The result of one check of the partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Number of partitions that were created.
    pub created: u32,
    /// Number of rows that are left in the default partition, at most 10,000.
    pub misplaced: i64,
}

/// Creates the partitions of the coming months, and counts the rows in the default partition. Then updates the planner's
/// statistics. Does nothing if the log is not partitioned, or if LiteLLM owns it. If some
/// partition can't be created, the others are, and the error is returned.
pub async fn maintain(pool: &Pool, today: NaiveDate) -> Result<Maintained, store::Error> {
    let mut connection = pool.acquire().await?;
    if months::layout(&mut connection).await? != Layout::Partitioned {
        return Ok(Maintained::default());
    }
    let existing: BTreeSet<NaiveDate> = months::with_partition(&mut connection).await?.into_iter().collect();
    let (mut created, mut failed) = (0, None);
    for month in months::months_ahead(today).into_iter().filter(|month| !existing.contains(month)) {
        match months::add(&mut connection, month, false).await {
            Ok(added) => created += u32::from(added),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let misplaced = months::misplaced_rows(&mut connection).await?;
    Metrics::record_misplaced_rows(misplaced);
    if created > 0 {
        tracing::info!(created, "created partitions of the log");
        months::analyze(&mut connection).await?;
    }
    failed.map_or(Ok(Maintained { created, misplaced }), Err)
}

/// How often a booking tries again to create partitions while a report holds the lock that this takes. A record that is
/// booked before its month has a partition stays in the default partition, so a short wait is worth it.
const RETRIES: usize = 2;

/// The pause before such a retry, in which readers and writers of the log go on.
const BEFORE_RETRY: Duration = Duration::from_millis(500);

/// For how long a month without a partition is left as it is. Its records go to the default partition meanwhile.
const UNTIL_NEXT_TRY: Duration = Duration::from_secs(60);

/// What this server knows of the months that it books.
#[derive(Debug, Default)]
pub struct KnownMonths(Mutex<BTreeMap<NaiveDate, Known>>);

#[derive(Clone, Copy, Debug)]
enum Known {
    /// The month has a partition.
    Partition,
    /// The month had none at this time, and none could be created.
    NoneAt(Instant),
}

impl Known {
    fn holds(self, now: Instant) -> bool {
        match self {
            Self::Partition => true,
            Self::NoneAt(then) => now.saturating_duration_since(then) < UNTIL_NEXT_TRY,
        }
    }
}

impl KnownMonths {
    /// Creates the partitions of these days' months, as far as they are not known to exist. If one cannot be created
    /// now, its rows go to the default partition, and the next attempt is a minute later. `now` is the current time.
    pub async fn create(
        &self,
        connection: &mut Connection,
        days: impl Iterator<Item = NaiveDate>,
        now: Instant,
    ) -> Result<(), store::Error> {
        let mut wanted: BTreeSet<NaiveDate> = days.map(months::month_of).collect();
        {
            let known = self.0.lock();
            wanted.retain(|month| !known.get(month).is_some_and(|known| known.holds(now)));
        }
        if wanted.is_empty() || months::layout(connection).await? != Layout::Partitioned {
            return Ok(());
        }
        let existing: BTreeSet<NaiveDate> = months::with_partition(connection).await?.into_iter().collect();
        let mut pauses = std::iter::repeat_n(BEFORE_RETRY, RETRIES);
        for month in wanted {
            let exists = existing.contains(&month) || add(connection, month, &mut pauses).await?;
            let known = if exists { Known::Partition } else { Known::NoneAt(now) };
            self.0.lock().insert(month, known);
        }
        Ok(())
    }
}

/// Creates the partition of a month, and returns whether it did. While others hold the lock, tries again after each of the
/// pauses that are left. Any error of the database is false: the records can be booked all the same.
async fn add(
    connection: &mut Connection,
    month: NaiveDate,
    pauses: &mut impl Iterator<Item = Duration>,
) -> Result<bool, store::Error> {
    loop {
        let error = match months::add(connection, month, false).await {
            Ok(added) => return Ok(added),
            Err(error) => error,
        };
        if months::is_lock_timeout(&error)
            && let Some(pause) = pauses.next()
        {
            tokio::time::sleep(pause).await;
        } else if matches!(error, store::Error::Database(_)) {
            tracing::info!(month = %month.format("%Y-%m"), cause = %error, "cannot create a partition now");
            return Ok(false);
        } else {
            return Err(error);
        }
    }
}
