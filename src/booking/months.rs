//! Maintains the partitions of a log that litespend owns: one for each month up to three months ahead. Several servers may
//! do this at the same time.

use std::collections::BTreeSet;
use std::time::Duration;

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

/// The months for which this server need not look whether there is a partition.
#[derive(Debug, Default)]
pub struct KnownMonths(Mutex<BTreeSet<NaiveDate>>);

impl KnownMonths {
    /// Creates the partitions of these days' months, as far as they are not known to exist. If one cannot be created
    /// now, its rows go to the default partition.
    pub async fn create(
        &self,
        connection: &mut Connection,
        days: impl Iterator<Item = NaiveDate>,
    ) -> Result<(), store::Error> {
        let mut wanted: BTreeSet<NaiveDate> = days.map(months::month_of).collect();
        {
            let known = self.0.lock();
            wanted.retain(|month| !known.contains(month));
        }
        if wanted.is_empty() || months::layout(connection).await? != Layout::Partitioned {
            return Ok(());
        }
        let existing: BTreeSet<NaiveDate> = months::with_partition(connection).await?.into_iter().collect();
        for month in wanted.difference(&existing) {
            match months::add(connection, *month, false).await {
                Ok(_) => {}
                // Any error of the database: the records can be booked all the same.
                Err(error @ store::Error::Database(_)) => {
                    tracing::info!(month = %month.format("%Y-%m"), cause = %error, "cannot create a partition now");
                }
                Err(error) => return Err(error),
            }
        }
        // Also those that could not be created: they are not tried at every booking.
        self.0.lock().extend(wanted);
        Ok(())
    }
}
