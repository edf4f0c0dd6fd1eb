//! Books rows exactly once. Records that arrive while a transaction runs are collected for the next one, so that they
//! share one wait for the disk. A request is answered only after its own rows are committed. Senders take turns
//! (`queue`).
//!
//! Errors that can be retried safely are retried: a deadlock with another transaction, and a lost connection. A
//! connection may even be lost during the commit, because the ids of committed records carry the UUID of this booking
//! (`attempt`).

mod attempt;
mod queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use uuid::Uuid;

use crate::booking::Draft;
use crate::booking::booker::attempt::Failed;
use crate::booking::booker::queue::{Job, Queue};
use crate::booking::limits::Refusal;
use crate::booking::months::KnownMonths;
use crate::settings::BookingLimits;
use crate::store::booking::tables::Tables;
use crate::store::error::{is_changed_table, is_conflict, is_denied, is_refused_value, is_unavailable};
use crate::store::{Connection, Pool};

/// The number of concurrent transactions. The second one reads and prepares while the first waits for the disk.
const CONCURRENT: usize = 2;

/// The delays before a failed transaction is retried.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2)];

/// The outcome of booking one record.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The record was booked now.
    Recorded {
        /// The id of its row in the log.
        request_id: String,
        /// The cost in USD.
        spend: f64,
    },
    /// The same record had already been booked.
    Duplicate {
        /// The id of its row in the log.
        request_id: String,
        /// The cost in USD, as it was booked then.
        spend: f64,
    },
    /// The record was not booked, for this reason.
    Rejected(Refusal),
}

/// The reason why no record of a request was booked, as far as is known. The client can safely send the request again
/// with the same ids.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BookingError {
    /// The database is unavailable, or the connection was lost during the commit.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The database belongs to LiteLLM, and booking has not been installed on it.
    #[error("booking is not installed on this database")]
    NotInstalled,
    /// The server's database role may not write.
    #[error("the database role lacks a right: {0}")]
    Denied(String),
    /// The transaction failed.
    #[error("the transaction failed: {0}")]
    Failed(String),
    /// The database cannot store a value of a record.
    #[error("the database cannot store a value: {0}")]
    Refused(String),
}

/// How often the tables of an older LiteLLM are looked at again.
const TABLES_AGAIN: Duration = Duration::from_secs(60);

/// Books rows. It is cheap to clone.
#[derive(Clone)]
pub struct Booker(Arc<Inner>);

struct Inner {
    pool: Pool,
    limits: BookingLimits,
    queue: Mutex<Queue>,
    permits: Semaphore,
    /// What the tables can hold, and when it was looked up.
    tables: Mutex<Option<(Instant, Arc<Tables>)>>,
    months: KnownMonths,
}

impl Booker {
    /// Creates a booker for the database of `pool`.
    pub fn new(pool: Pool, limits: BookingLimits) -> Self {
        Self(Arc::new(Inner {
            pool,
            limits,
            queue: Mutex::default(),
            permits: Semaphore::new(CONCURRENT),
            tables: Mutex::default(),
            months: KnownMonths::default(),
        }))
    }

    /// Books records and returns their outcomes in the same order. Records that exceed one transaction are booked in
    /// several, one after the other. If a later transaction fails, its records are refused and the earlier ones stay
    /// booked. A transaction that has begun completes even if the caller stops waiting.
    pub async fn book(&self, sender: &str, drafts: Vec<Draft>) -> Result<Vec<Outcome>, BookingError> {
        let mut outcomes = Vec::with_capacity(drafts.len());
        for (drafts, weight) in queue::batches(drafts) {
            let count = drafts.len();
            match self.book_batch(sender, drafts, weight).await {
                Ok(booked) => outcomes.extend(booked),
                Err(error) if outcomes.is_empty() => return Err(error),
                Err(error) => {
                    tracing::error!(cause = %error, "cannot book a part of the usage");
                    let refusal = Refusal::unavailable("not booked because of a database error: send the record again");
                    outcomes.resize(outcomes.len() + count, Outcome::Rejected(refusal));
                }
            }
        }
        Ok(outcomes)
    }

    async fn book_batch(&self, sender: &str, drafts: Vec<Draft>, weight: usize) -> Result<Vec<Outcome>, BookingError> {
        let (reply, answer) = oneshot::channel();
        self.0.queue.lock().push(sender, Job { drafts, weight, reply });
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move { inner.book_next().await });
        answer.await.unwrap_or_else(|_| Err(BookingError::Failed("the booking ended without an answer".to_owned())))
    }
}

impl Inner {
    /// Waits for a permit, then books the jobs that are queued. Most calls find an empty queue, because an earlier
    /// transaction has taken their job.
    async fn book_next(&self) {
        let Ok(_permit) = self.permits.acquire().await else { return };
        let jobs = self.queue.lock().next();
        let Some(single) = jobs.first().map(|_| jobs.len() == 1) else { return };
        let drafts: Vec<&Draft> = jobs.iter().flat_map(|job| &job.drafts).collect();
        let booked = self.book_divided(&drafts).await;
        match booked {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for job in jobs {
                    let own = outcomes.by_ref().take(job.drafts.len()).collect();
                    let _ = job.reply.send(Ok(own));
                }
            }
            Err(BookingError::Failed(_)) if !single => {
                // One request must not fail because of another, so each is booked separately.
                for job in jobs {
                    let drafts: Vec<&Draft> = job.drafts.iter().collect();
                    let booked = self.book_divided(&drafts).await;
                    let _ = job.reply.send(booked);
                }
            }
            Err(error) => {
                for job in jobs {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Books records in one transaction. If the database cannot store one of them, the others are booked in smaller ones.
    async fn book_divided(&self, drafts: &[&Draft]) -> Result<Vec<Outcome>, BookingError> {
        let mut outcomes = Vec::with_capacity(drafts.len());
        let mut parts = vec![drafts];
        while let Some(part) = parts.pop() {
            match self.book_with_retries(part).await {
                Ok(booked) => outcomes.extend(booked),
                Err(BookingError::Refused(_)) if part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(BookingError::Refused(cause)) => {
                    tracing::error!(cause, "the database cannot store a record");
                    outcomes.push(Outcome::Rejected("the database cannot store a value of this record".into()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(outcomes)
    }

    async fn book_with_retries(&self, drafts: &[&Draft]) -> Result<Vec<Outcome>, BookingError> {
        // This mark tells a retry which records an earlier attempt committed.
        let booking = Uuid::new_v4();
        let mut pauses = PAUSES.iter();
        loop {
            let error = match self.attempt(drafts, booking).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Database(error)) => error,
            };
            if is_changed_table(&error) {
                // Statements are fitted to what the tables were.
                self.tables.lock().take();
            }
            let away = is_unavailable(&error);
            let again = away || is_conflict(&error) || is_changed_table(&error);
            match pauses.next().filter(|_| again) {
                Some(pause) => {
                    tracing::debug!(cause = %error, "retrying a booking");
                    tokio::time::sleep(*pause).await;
                }
                None if away => return Err(BookingError::Unavailable(error.to_string())),
                None if is_denied(&error) => return Err(BookingError::Denied(error.to_string())),
                None if is_refused_value(&error) => return Err(BookingError::Refused(error.to_string())),
                None => return Err(BookingError::Failed(error.to_string())),
            }
        }
    }

    async fn attempt(&self, drafts: &[&Draft], booking: Uuid) -> Result<Vec<Outcome>, Failed> {
        let mut connection = self.pool.acquire().await?;
        let tables = self.tables(&mut connection).await?;
        let days = drafts.iter().map(|draft| draft.row.start_time.date());
        self.months.create(&mut connection, days, Instant::now()).await?;
        attempt::run(&mut connection, &tables, drafts, &self.limits, booking).await
    }

    /// What the database's tables can hold. An older LiteLLM lacks some columns until it is upgraded.
    async fn tables(&self, connection: &mut Connection) -> Result<Arc<Tables>, Failed> {
        if let Some((found, tables)) = &*self.tables.lock()
            && (tables.missing().next().is_none() || found.elapsed() < TABLES_AGAIN)
        {
            return Ok(Arc::clone(tables));
        }
        let tables = Arc::new(Tables::find(connection).await?);
        let before = self.tables.lock().replace((Instant::now(), Arc::clone(&tables)));
        if tables.missing().next().is_some() && before.is_none_or(|(_, before)| before != tables) {
            let missing = tables.missing().collect::<Vec<_>>().join(", ");
            tracing::warn!(missing, "LiteLLM's tables are older than what is booked: these columns are left out");
        }
        Ok(tables)
    }
}
