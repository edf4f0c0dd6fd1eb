//! The entries of a rollup, a whole day at a time, folded and unfolded together, in one snapshot.

use std::sync::{Arc, PoisonError, RwLock};

use chrono::NaiveDate;
use futures_util::{Stream, TryStreamExt};
use sqlx::{Executor, PgConnection};

use super::DateRange;
use super::rollup_reads::{self, CopyReader, Entry, EntryFilter, Grain, Rollup, Snapshot, WordCache, Words};

/// What to read.
#[derive(Clone, Debug)]
pub struct DaysRequest {
    /// Which rollup.
    pub rollup: Rollup,
    /// Which days.
    pub range: DateRange,
    /// Which entries.
    pub filter: EntryFilter,
    /// How coarse; with [`Grain::Range`] there is one "day" for the whole range.
    pub grain: Grain,
}

/// The texts of a read, shared between the reader and the writer of the answer.
pub type SharedWords = Arc<RwLock<Words>>;

/// The entries of one day.
#[derive(Debug)]
pub struct DayEntries {
    /// Day.
    pub day: NaiveDate,
    /// Its entries, in no particular order; what occurs twice is to be added.
    pub entries: Vec<Entry>,
    /// The texts of their numbers.
    pub words: SharedWords,
}

/// Begins a read: one snapshot for everything that follows. Nothing where the rollups can't answer for the range, were
/// removed a moment ago, or may not be read by this role.
pub async fn begin(connection: &mut PgConnection, range: DateRange) -> Result<Option<Snapshot>, sqlx::Error> {
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let snapshot = match rollup_reads::snapshot(connection, Some(range)).await {
        Err(sqlx::Error::Database(error)) if is_gone(error.code().as_deref()) => {
            connection.execute("ROLLBACK").await?;
            return Ok(None);
        }
        other => other?,
    };
    if snapshot.is_none() {
        end(connection).await?;
    }
    Ok(snapshot)
}

/// Undefined table or function, invalid schema, insufficient privilege.
fn is_gone(code: Option<&str>) -> bool {
    matches!(code, Some("42P01" | "42883" | "3F000" | "42501"))
}

/// Ends a read that [`begin`] began.
pub async fn end(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute("COMMIT").await?;
    Ok(())
}

/// Days ascending, each once, days without entries left out.
pub fn days<'c>(
    connection: &'c mut PgConnection,
    cache: &'c WordCache,
    snapshot: Snapshot,
    request: DaysRequest,
) -> impl Stream<Item = Result<DayEntries, sqlx::Error>> + Send + 'c {
    async_stream::try_stream! {
        let (kept, complete) = cache.refresh(connection).await?;
        let mut words = Words::new(kept);
        let mut unfolded =
            rollup_reads::unfolded(connection, request.rollup, request.range, &request.filter, &snapshot, &mut words).await?;
        let flat = request.grain == Grain::Range;
        if flat {
            unfolded.iter_mut().for_each(|entry| entry.day = request.range.start);
        }
        unfolded.sort_by_key(|entry| entry.day);
        let mut unfolded = unfolded.into_iter().peekable();
        let words = Arc::new(RwLock::new(words));
        // With all texts at hand the whole range is copied at once; else day by day, and texts are read in between.
        let parts: Vec<DateRange> = if complete || flat {
            vec![request.range]
        } else {
            request.range.start.iter_days().take_while(|day| *day <= request.range.end)
                .map(|day| DateRange { start: day, end: day }).collect()
        };
        for part in parts {
            let mut current: Vec<Entry> = Vec::new();
            let mut finished: Vec<Vec<Entry>> = Vec::new();
            let statement = rollup_reads::copy_statement(
                connection, request.rollup, part, &request.filter, &snapshot, request.grain,
            ).await?;
            if let Some(statement) = statement {
                let mut messages = connection.copy_out_raw(&statement).await?;
                let mut reader = CopyReader::new(request.rollup);
                let mut batch = Vec::with_capacity(16);
                while let Some(message) = messages.try_next().await? {
                    reader.read(message, &mut batch)?;
                    for mut entry in batch.drain(..) {
                        if flat {
                            entry.day = part.start;
                        }
                        if current.first().is_some_and(|first| first.day != entry.day) {
                            let capacity = current.len();
                            finished.push(std::mem::replace(&mut current, Vec::with_capacity(capacity)));
                        }
                        current.push(entry);
                    }
                    if complete {
                        for entries in finished.drain(..) {
                            let next = entries.first().map_or(part.end, |first| first.day);
                            while unfolded.peek().is_some_and(|entry| entry.day < next) {
                                let alone = take_day(&mut unfolded);
                                yield gather(alone, Vec::new(), &words)?;
                            }
                            let more = take_if(&mut unfolded, next);
                            yield gather(entries, more, &words)?;
                        }
                    }
                }
            }
            if !current.is_empty() {
                finished.push(current);
            }
            for entries in finished {
                let next = entries.first().map_or(part.end, |first| first.day);
                while unfolded.peek().is_some_and(|entry| entry.day < next) {
                    let alone = take_day(&mut unfolded);
                    fetch_texts(connection, &words, &alone, complete).await?;
                    yield gather(alone, Vec::new(), &words)?;
                }
                let more = take_if(&mut unfolded, next);
                fetch_texts(connection, &words, &entries, complete).await?;
                fetch_texts(connection, &words, &more, complete).await?;
                yield gather(entries, more, &words)?;
            }
            while unfolded.peek().is_some_and(|entry| entry.day <= part.end) {
                let alone = take_day(&mut unfolded);
                fetch_texts(connection, &words, &alone, complete).await?;
                yield gather(alone, Vec::new(), &words)?;
            }
        }
        // What stands at the instant after the range.
        while unfolded.peek().is_some() {
            let alone = take_day(&mut unfolded);
            fetch_texts(connection, &words, &alone, complete).await?;
            yield gather(alone, Vec::new(), &words)?;
        }
    }
}

type Rest = std::iter::Peekable<std::vec::IntoIter<Entry>>;

/// The entries of the first day left.
fn take_day(rest: &mut Rest) -> Vec<Entry> {
    let day = rest.peek().map(|entry| entry.day);
    std::iter::from_fn(|| rest.next_if(|entry| Some(entry.day) == day)).collect()
}

/// The entries of `day`, where that is the first day left.
fn take_if(rest: &mut Rest, day: NaiveDate) -> Vec<Entry> {
    std::iter::from_fn(|| rest.next_if(|entry| entry.day == day)).collect()
}

fn numbers(entries: &[Entry]) -> impl Iterator<Item = i32> + '_ {
    entries.iter().flat_map(|entry| [entry.who, entry.team, entry.api_key, entry.model])
}

fn gather(mut entries: Vec<Entry>, more: Vec<Entry>, words: &SharedWords) -> Result<DayEntries, sqlx::Error> {
    entries.extend(more);
    let missing = words.write().unwrap_or_else(PoisonError::into_inner).take_kept(numbers(&entries));
    if let Some(number) = missing.first() {
        // No answer is better than one without its names.
        return Err(sqlx::Error::Protocol(format!("the rollups' word {number} is missing")));
    }
    let day = entries.first().map_or(NaiveDate::MIN, |entry| entry.day);
    Ok(DayEntries { day, entries, words: Arc::clone(words) })
}

/// Reads the texts of entries that are not kept. Does nothing where all are.
async fn fetch_texts(
    connection: &mut PgConnection,
    words: &SharedWords,
    entries: &[Entry],
    complete: bool,
) -> Result<(), sqlx::Error> {
    if complete {
        return Ok(());
    }
    let (mut local, missing) = {
        let mut shared = words.write().unwrap_or_else(PoisonError::into_inner);
        shared.trim();
        let missing = shared.take_kept(numbers(entries));
        (shared.fork(), missing)
    };
    local.fetch(connection, missing).await?;
    words.write().unwrap_or_else(PoisonError::into_inner).join(local);
    Ok(())
}
