//! Books rows exactly once. Records that arrive while a transaction runs wait and go into the next one together, so
//! that single records share the wait for the disk; nobody is answered before the commit of their own rows. Senders are
//! served in turn ([`queue`]).
//!
//! What can be tried again safely is: a deadlock with somebody else's transaction, and a connection that is lost,
//! even while committing, for the ids of what was committed carry this booking's mark ([`attempt`]).

mod attempt;
mod queue;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use uuid::Uuid;

use crate::booking::Draft;
use crate::booking::booker::attempt::Failed;
use crate::booking::booker::queue::{Job, Queue};
use crate::booking::limits::Refusal;
use crate::settings::BookingLimits;
use crate::store::booking as store_usage;
use crate::store::error::{is_conflict, is_unavailable};
use crate::store::{Connection, Pool};

/// Transactions at the same time. A second one reads and prepares while the first waits for the disk.
const CONCURRENT: usize = 2;

/// Pauses before a transaction that failed is tried again.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2)];

/// What became of one record.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Booked now.
    Recorded {
        /// Its row in the log.
        request_id: String,
        /// USD.
        spend: f64,
    },
    /// The same record was booked before.
    Duplicate {
        /// Its row in the log.
        request_id: String,
        /// USD as booked then.
        spend: f64,
    },
    /// Not booked, and why.
    Rejected(Refusal),
}

/// Why nothing of a request was booked, as far as is known. Sending it again with the same ids is safe.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BookingError {
    /// The database is away, or was lost while committing.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The database's tables are older than those that booking writes.
    #[error("the database's tables have no {0}")]
    OldTables(String),
    /// The database is LiteLLM's, and nobody said that it may be booked into.
    #[error("booking is not installed on this database")]
    NotInstalled,
    /// The transaction failed.
    #[error("the transaction failed: {0}")]
    Failed(String),
}

/// Books rows; cheap to clone.
#[derive(Clone)]
pub struct Booker(Arc<Inner>);

struct Inner {
    pool: Pool,
    limits: BookingLimits,
    queue: Mutex<Queue>,
    turns: Semaphore,
    tables_checked: tokio::sync::OnceCell<()>,
}

impl Booker {
    /// Books in the database of `pool`.
    pub fn new(pool: Pool, limits: BookingLimits) -> Self {
        Self(Arc::new(Inner {
            pool,
            limits,
            queue: Mutex::default(),
            turns: Semaphore::new(CONCURRENT),
            tables_checked: tokio::sync::OnceCell::new(),
        }))
    }

    /// Books records; the outcomes are in their order. What is more than one transaction's work is booked in several, one
    /// after the other; where a later one fails, its records are refused and the earlier ones stand. A transaction that has
    /// begun goes on to its end when the caller does not wait for it.
    pub async fn book(&self, sender: &str, drafts: Vec<Draft>) -> Result<Vec<Outcome>, BookingError> {
        let mut outcomes = Vec::with_capacity(drafts.len());
        for (drafts, weight) in queue::pieces(drafts) {
            let count = drafts.len();
            match self.book_piece(sender, drafts, weight).await {
                Ok(booked) => outcomes.extend(booked),
                Err(error) if outcomes.is_empty() => return Err(error),
                Err(error) => {
                    tracing::error!(cause = %error, "a part of the usage was not booked");
                    let refusal = Refusal::unavailable("not booked, the database failed: send it again");
                    outcomes.resize(outcomes.len() + count, Outcome::Rejected(refusal));
                }
            }
        }
        Ok(outcomes)
    }

    async fn book_piece(&self, sender: &str, drafts: Vec<Draft>, weight: usize) -> Result<Vec<Outcome>, BookingError> {
        let (reply, answer) = oneshot::channel();
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).push(sender, Job { drafts, weight, reply });
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move { inner.take_turn().await });
        answer.await.unwrap_or_else(|_| Err(BookingError::Failed("the booking ended without an answer".to_owned())))
    }
}

impl Inner {
    /// Books what waits, once there is a turn. Most turns find nothing: another took it along.
    async fn take_turn(&self) {
        let Ok(_turn) = self.turns.acquire().await else { return };
        let jobs = self.queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(single) = jobs.first().map(|_| jobs.len() == 1) else { return };
        let drafts: Vec<&Draft> = jobs.iter().flat_map(|job| &job.drafts).collect();
        let booked = self.book_with_retries(&drafts).await;
        match booked {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for job in jobs {
                    let own = outcomes.by_ref().take(job.drafts.len()).collect();
                    let _ = job.reply.send(Ok(own));
                }
            }
            Err(BookingError::Failed(_)) if !single => {
                // One request must not spoil another: each alone.
                for job in jobs {
                    let drafts: Vec<&Draft> = job.drafts.iter().collect();
                    let booked = self.book_with_retries(&drafts).await;
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

    async fn book_with_retries(&self, drafts: &[&Draft]) -> Result<Vec<Outcome>, BookingError> {
        // By this mark a later run knows what an earlier one committed.
        let booking = Uuid::new_v4();
        let mut pauses = PAUSES.iter();
        loop {
            let error = match self.attempt(drafts, booking).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Database(error)) => error,
            };
            let away = is_unavailable(&error);
            let again = away || is_conflict(&error);
            match pauses.next().filter(|_| again) {
                Some(pause) => {
                    tracing::debug!(cause = %error, "booking is tried again");
                    tokio::time::sleep(*pause).await;
                }
                None if away => return Err(BookingError::Unavailable(error.to_string())),
                None => return Err(BookingError::Failed(error.to_string())),
            }
        }
    }

    async fn attempt(&self, drafts: &[&Draft], booking: Uuid) -> Result<Vec<Outcome>, Failed> {
        let mut connection = self.pool.acquire().await?;
        self.check_tables(&mut connection).await?;
        attempt::run(&mut connection, drafts, &self.limits, booking).await
    }

    /// Says once, before anything is written, which columns an older LiteLLM lacks.
    async fn check_tables(&self, connection: &mut Connection) -> Result<(), Failed> {
        let checked: Result<&(), Failed> = self
            .tables_checked
            .get_or_try_init(|| async {
                let missing = store_usage::missing_columns(connection).await?;
                if missing.is_empty() {
                    Ok(())
                } else {
                    Err(Failed::Final(BookingError::OldTables(missing.join(", "))))
                }
            })
            .await;
        checked.copied()
    }
}
