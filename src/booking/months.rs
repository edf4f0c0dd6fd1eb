//! Keeps the partitions of a log that litespend owns: one for each month up to three months ahead. Several servers may do
//! this at the same time.

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

/// The pause between two looks at the partitions.
const PAUSE: Duration = Duration::from_secs(600);

/// The pause after a partition could not be created.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Creates missing partitions until cancelled, and moves rows out of the default partition.
pub async fn run(pool: Pool, stop: CancellationToken) {
    let mut warned = false;
    loop {
        let pause = match keep(&pool, Utc::now().date_naive()).await {
            Ok(Kept { misplaced: 0, .. }) => {
                warned = false;
                PAUSE
            }
            Ok(Kept { misplaced, .. }) => {
                if !warned {
                    tracing::warn!(rows = misplaced, "rows of the log are in no partition of a month; trying again");
                }
                warned = true;
                AFTER_FAILURE
            }
            Err(error) => {
                tracing::warn!(cause = %error, "cannot create a partition of the log; trying again");
                AFTER_FAILURE
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The result of one look at the partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Number of partitions that were created.
    pub created: u32,
    /// Number of rows that are left in the default partition, at most 10,000.
    pub misplaced: i64,
}

/// Creates the partitions of the coming months, and those of months that have rows in the default partition. Does nothing
/// if the log is not partitioned, or if LiteLLM owns it.
pub async fn keep(pool: &Pool, today: NaiveDate) -> Result<Kept, store::Error> {
    let mut connection = pool.acquire().await?;
    if months::layout(&mut connection).await? != Layout::Partitioned {
        return Ok(Kept::default());
    }
    let present: BTreeSet<NaiveDate> = months::present(&mut connection).await?.into_iter().collect();
    let missing = months::coming(today).into_iter().filter(|month| !present.contains(month));
    let mut wanted: BTreeSet<NaiveDate> = missing.collect();
    wanted.extend(months::misplaced(&mut connection).await?);
    let mut created = 0;
    for month in wanted {
        match months::add(&mut connection, month).await {
            Ok(added) => created += u32::from(added),
            // A reader holds the default partition. There is time: the partitions are created months ahead.
            Err(error) if months::is_lock_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    if created > 0 {
        tracing::info!(created, "created partitions of the log");
        months::analyze(&mut connection).await?;
    }
    let misplaced = months::misplaced_rows(&mut connection).await?;
    Metrics::record_misplaced_rows(misplaced);
    Ok(Kept { created, misplaced })
}

/// The months whose partitions are known to exist.
#[derive(Debug, Default)]
pub struct KnownMonths(Mutex<BTreeSet<NaiveDate>>);

impl KnownMonths {
    /// Creates the partitions of these days' months, as far as they are not known to exist. If one cannot be created
    /// now, its rows go to the default partition, and [`run`] moves them later.
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
        let present: BTreeSet<NaiveDate> = months::present(connection).await?.into_iter().collect();
        for month in &wanted {
            if present.contains(month) {
                continue;
            }
            match months::add(connection, *month).await {
                Ok(_) => {}
                Err(error) if months::is_lock_timeout(&error) => {
                    tracing::info!(month = %month.format("%Y-%m"), "cannot create a partition of the log now");
                }
                Err(error) => return Err(error),
            }
        }
        self.0.lock().extend(wanted);
        Ok(())
    }
}
