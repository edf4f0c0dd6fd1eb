//! Books rows exactly once. Records that arrive while a transaction runs wait and go into the next one together, so
//! that single records share the wait for the disk; nobody is answered before the commit of their own rows.
//!
//! What can be tried again safely is: a deadlock with somebody else's transaction, and a connection that is lost,
//! even while committing, for rows that stand in the log already are not counted again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::{Semaphore, oneshot};

use super::{Draft, MOST_RECORDS, Owner};
use crate::error::is_unavailable;
use crate::store::usage::counters::{self, Totals};
use crate::store::usage::daily::{self, Days};
use crate::store::usage::{self as store_usage, UsageRow};

/// Transactions at the same time. A second one reads and prepares while the first waits for the disk.
const CONCURRENT: usize = 2;

/// Pauses before a transaction that failed is tried again.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2)];

/// What became of one record.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Booked now: USD.
    Recorded(f64),
    /// Booked before, by the same key: USD as booked then.
    Duplicate(f64),
    /// Not booked, and why.
    Rejected(String),
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
    /// The transaction failed.
    #[error("the transaction failed: {0}")]
    Failed(String),
}

struct Job {
    drafts: Vec<Draft>,
    reply: oneshot::Sender<Result<Vec<Outcome>, BookingError>>,
}

/// Books rows; cheap to clone.
#[derive(Clone)]
pub struct Booker(Arc<Inner>);

struct Inner {
    pool: PgPool,
    queue: Mutex<VecDeque<Job>>,
    turns: Semaphore,
    tables_checked: tokio::sync::OnceCell<()>,
}

impl Booker {
    /// Books in the database of `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self(Arc::new(Inner {
            pool,
            queue: Mutex::default(),
            turns: Semaphore::new(CONCURRENT),
            tables_checked: tokio::sync::OnceCell::new(),
        }))
    }

    /// Books records; the outcomes are in their order. Goes on to its end when the caller does not wait for it.
    pub async fn book(&self, drafts: Vec<Draft>) -> Result<Vec<Outcome>, BookingError> {
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(Job { drafts, reply });
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move { inner.take_turn().await });
        answer.await.unwrap_or_else(|_| Err(BookingError::Failed("the booking ended without an answer".to_owned())))
    }
}

impl Inner {
    /// Books what waits, once there is a turn. Most turns find nothing: another took it along.
    async fn take_turn(&self) {
        let Ok(_turn) = self.turns.acquire().await else { return };
        let jobs = self.next_jobs();
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

    /// The waiting jobs, as many as make one transaction; at least one if any waits.
    fn next_jobs(&self) -> Vec<Job> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut jobs: Vec<Job> = Vec::new();
        let mut records = 0;
        while let Some(next) = queue.front() {
            records += next.drafts.len();
            if records > MOST_RECORDS && !jobs.is_empty() {
                break;
            }
            jobs.extend(queue.pop_front());
        }
        jobs
    }

    async fn book_with_retries(&self, drafts: &[&Draft]) -> Result<Vec<Outcome>, BookingError> {
        // Ids whose transaction reached its commit: where they are found later, it was this booking's.
        let mut ours = HashSet::new();
        let mut pauses = PAUSES.iter();
        loop {
            let error = match self.attempt(drafts, &mut ours).await {
                Ok(outcomes) => return Ok(outcomes),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Database(error)) => error,
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

    async fn attempt(&self, drafts: &[&Draft], ours: &mut HashSet<String>) -> Result<Vec<Outcome>, Attempt> {
        let mut connection = self.pool.acquire().await?;
        self.check_tables(&mut connection).await?;
        let owned = with_owners(&mut connection, drafts).await?;
        let rows = first_of_each_id(&owned);
        if rows.is_empty() {
            return Ok(outcomes(&owned, &HashSet::new(), &HashMap::new()));
        }
        let mut transaction = connection.begin().await?;
        let mut inserted = store_usage::insert(&mut transaction, &rows).await?;
        let new = || rows.iter().copied().filter(|row| inserted.contains(&row.request_id));
        if !inserted.is_empty() {
            counters::add(&mut transaction, &Totals::of(new())).await?;
            daily::add(&mut transaction, &Days::of(new())).await?;
        }
        let mut before = HashMap::new();
        if inserted.len() < rows.len() {
            let ids = rows.iter().map(|row| row.request_id.as_str()).filter(|id| !inserted.contains(*id));
            let ids: Vec<&str> = ids.collect();
            let found = store_usage::existing(&mut transaction, &ids).await?;
            before.extend(found.into_iter().map(|row| (row.request_id, (row.api_key, row.spend))));
        }
        ours.extend(inserted.iter().cloned());
        transaction.commit().await?;
        inserted.extend(ours.iter().cloned());
        Ok(outcomes(&owned, &inserted, &before))
    }

    /// Says once, before anything is written, which columns an older LiteLLM lacks.
    async fn check_tables(&self, connection: &mut PgConnection) -> Result<(), Attempt> {
        let checked: Result<&(), Attempt> = self
            .tables_checked
            .get_or_try_init(|| async {
                let missing = store_usage::missing_columns(connection).await?;
                if missing.is_empty() { Ok(()) } else { Err(BookingError::OldTables(missing.join(", ")).into()) }
            })
            .await;
        checked.copied()
    }
}

enum Attempt {
    Database(sqlx::Error),
    Final(BookingError),
}

impl From<sqlx::Error> for Attempt {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<BookingError> for Attempt {
    fn from(error: BookingError) -> Self {
        Self::Final(error)
    }
}

/// Whether the transaction lost against another and can be run again: deadlock, serialization failure.
fn is_conflict(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| matches!(code.as_ref(), "40P01" | "40001"))
}

/// The rows with their owners, in order; an error where the key is unknown.
async fn with_owners(
    connection: &mut PgConnection,
    drafts: &[&Draft],
) -> Result<Vec<Result<UsageRow, String>>, Attempt> {
    let mut tokens: Vec<&str> =
        drafts.iter().filter(|draft| draft.owner != Owner::Given).map(|draft| draft.row.api_key.as_str()).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let owners = if tokens.is_empty() { Vec::new() } else { store_usage::key_owners(connection, &tokens).await? };
    let owners: HashMap<&str, _> = owners.iter().map(|owner| (owner.token.as_str(), owner)).collect();
    let complete = |draft: &&Draft| {
        let mut row = draft.row.clone();
        match (draft.owner, owners.get(row.api_key.as_str())) {
            (Owner::Given, _) | (Owner::OfKeyWhereKnown, None) => {}
            (Owner::OfKey, None) => return Err("api_key: there is no such key".to_owned()),
            (Owner::OfKey | Owner::OfKeyWhereKnown, Some(owner)) => {
                for (field, value) in [
                    (&mut row.user, &owner.user_id),
                    (&mut row.team_id, &owner.team_id),
                    (&mut row.organization_id, &owner.organization_id),
                ] {
                    if field.is_empty() {
                        value.as_deref().unwrap_or_default().clone_into(field);
                    }
                }
            }
        }
        Ok(row)
    };
    Ok(drafts.iter().map(complete).collect())
}

/// The first row of each id, in the order of the ids.
fn first_of_each_id(rows: &[Result<UsageRow, String>]) -> Vec<&UsageRow> {
    let mut seen = HashSet::with_capacity(rows.len());
    let mut first: Vec<&UsageRow> = rows.iter().flatten().filter(|row| seen.insert(&row.request_id)).collect();
    first.sort_unstable_by(|a, b| a.request_id.cmp(&b.request_id));
    first
}

/// What became of each record: of several with one id, the first counts.
fn outcomes(
    rows: &[Result<UsageRow, String>],
    inserted: &HashSet<String>,
    before: &HashMap<String, (String, f64)>,
) -> Vec<Outcome> {
    let mut first: HashMap<&str, &UsageRow> = HashMap::with_capacity(rows.len());
    let outcome = |row: &UsageRow, api_key: &str, spend: f64| {
        if row.api_key == api_key {
            Outcome::Duplicate(spend)
        } else {
            Outcome::Rejected("idempotency_key: is already that of a record of another key".to_owned())
        }
    };
    let mut result = Vec::with_capacity(rows.len());
    for row in rows {
        result.push(match row {
            Err(error) => Outcome::Rejected(error.clone()),
            Ok(row) => match (first.get(row.request_id.as_str()), before.get(&row.request_id)) {
                (_, Some((api_key, spend))) if !inserted.contains(&row.request_id) => outcome(row, api_key, *spend),
                (Some(first), _) => outcome(row, &first.api_key, first.spend),
                (None, _) => Outcome::Recorded(row.spend),
            },
        });
        if let Ok(row) = row {
            first.entry(&row.request_id).or_insert(row);
        }
    }
    result
}
