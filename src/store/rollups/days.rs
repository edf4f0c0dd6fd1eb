//! The entries of a rollup, a whole day at a time, folded and unfolded together, in one snapshot.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use chrono::{Days, Months, NaiveDate};
use futures_util::stream::BoxStream;
use futures_util::{Stream, TryStreamExt};
use rustc_hash::FxHashMap;
use sqlx::PgConnection;
use sqlx::postgres::PgRow;

use crate::store::DateRange;
use crate::store::reading::{CopyMark, Reading};
use crate::store::rollups::reads;
use crate::store::rollups::reads::{CopyReader, Entry, EntryFilter, Grain, Rollup, Snapshot};
use crate::store::rollups::stretches;
use crate::store::rollups::stretches::Stretch;
use crate::store::rollups::words::{WordCache, Words};

/// What to read.
#[derive(Clone, Debug)]
pub struct DaysRequest {
    /// Which rollup.
    pub rollup: Rollup,
    /// Which days.
    pub range: DateRange,
    /// Which entries.
    pub filter: EntryFilter,
    /// Whether a packed day may come in parts: sorted as it is packed, by end user or team, then key and model. What is
    /// equal in these may stand in two parts.
    pub in_parts: bool,
}

/// Entries of a part of a day that is not packed, where texts are read in between: as many as of a packed part.
const PART: usize = 4_000;

/// The texts of a read, shared between the reader and the writer of the answer.
pub type SharedWords = Arc<RwLock<Words>>;

/// The entries of one day, or a part of them.
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
pub async fn begin(reading: Reading, range: DateRange) -> Result<(Reading, Option<Snapshot>), sqlx::Error> {
    let mut reading = reading.snapshot().await?;
    match reads::snapshot(reading.connection(), Some(range)).await {
        Err(sqlx::Error::Database(error)) if is_gone(error.code().as_deref()) => {
            Ok((reading.without_snapshot().await?, None))
        }
        other => Ok((reading, other?)),
    }
}

/// Undefined table or function, invalid schema, insufficient privilege.
pub fn is_gone(code: Option<&str>) -> bool {
    matches!(code, Some("42P01" | "42883" | "3F000" | "42501"))
}

/// Days ascending, each once (but for [`DaysRequest::in_parts`]), days without entries left out.
pub fn days<'c>(
    (connection, mark): (&'c mut PgConnection, &'c CopyMark),
    cache: &'c WordCache,
    snapshot: Snapshot,
    request: DaysRequest,
) -> impl Stream<Item = Result<DayEntries, sqlx::Error>> + Send + 'c {
    async_stream::try_stream! {
        let (kept, complete) = cache.refresh(connection).await?;
        let _turn = if complete { None } else { Some(cache.turn().await) };
        let mut words = Words::new(kept);
        let DaysRequest { rollup, range, filter, in_parts } = request;
        let mut unfolded =
            reads::unfolded(connection, rollup, range, &filter, &snapshot, &mut words).await?;
        unfolded.sort_by_key(|entry| entry.day);
        let mut unfolded = unfolded.into_iter().peekable();
        let words = Arc::new(RwLock::new(words));
        // With all texts at hand a stretch is read at once; else day by day, and texts are read in between.
        let mut stretches = stretches::stretches(connection, rollup, range, &filter, &snapshot).await?;
        if !complete {
            stretches = stretches::single_days(connection, rollup, stretches).await?;
        } else if in_parts {
            stretches = stretches.into_iter().flat_map(Stretch::packed_days).collect();
        }
        for stretch in stretches {
            let is_alone = unfolded.peek().is_none_or(|entry| entry.day > stretch.range.end);
            if in_parts && stretch.packed && is_alone {
                if complete {
                    let mut parts = stretches::packed_parts(connection, rollup, stretch.range);
                    while let Some(part) = parts.try_next().await? {
                        let mut entries = Vec::new();
                        stretches::unpack(rollup, &part, &mut entries)?;
                        if !entries.is_empty() {
                            yield gather(entries, Vec::new(), &words)?;
                        }
                    }
                } else {
                    for part in 0.. {
                        let row = stretches::packed_part(connection, rollup, stretch.range.start, part).await?;
                        let Some(row) = row else { break };
                        let mut entries = Vec::new();
                        stretches::unpack(rollup, &row, &mut entries)?;
                        if !entries.is_empty() {
                            yield gather_with_texts(connection, entries, &words, complete).await?;
                        }
                    }
                }
                continue;
            }
            let mut current: Vec<Entry> = Vec::new();
            let mut finished: Vec<Vec<Entry>> = Vec::new();
            let mut read = Folded::start((&mut *connection, mark), rollup, stretch, &filter, &snapshot).await?;
            while read.next(&mut current, &mut finished).await? {
                if complete {
                    for entries in finished.drain(..) {
                        let next = entries.first().map_or(stretch.range.end, |first| first.day);
                        while unfolded.peek().is_some_and(|entry| entry.day < next) {
                            let alone = take_day(&mut unfolded);
                            yield gather(alone, Vec::new(), &words)?;
                        }
                        let more = take_if(&mut unfolded, next);
                        yield gather(entries, more, &words)?;
                    }
                }
            }
            drop(read);
            if !current.is_empty() {
                finished.push(current);
            }
            for mut entries in finished {
                let next = entries.first().map_or(stretch.range.end, |first| first.day);
                while unfolded.peek().is_some_and(|entry| entry.day < next) {
                    let alone = take_day(&mut unfolded);
                    yield gather_with_texts(connection, alone, &words, complete).await?;
                }
                entries.extend(take_if(&mut unfolded, next));
                if in_parts && !complete {
                    // However many names the day has, those of one part are held at a time.
                    entries.sort_unstable_by_key(|entry| (entry.who, entry.api_key, entry.model));
                    for part in entries.chunks(PART) {
                        yield gather_with_texts(connection, part.to_vec(), &words, complete).await?;
                    }
                } else {
                    yield gather_with_texts(connection, entries, &words, complete).await?;
                }
            }
            while unfolded.peek().is_some_and(|entry| entry.day <= stretch.range.end) {
                let alone = take_day(&mut unfolded);
                yield gather_with_texts(connection, alone, &words, complete).await?;
            }
        }
        // What stands at the instant after the range.
        while unfolded.peek().is_some() {
            let alone = take_day(&mut unfolded);
            yield gather_with_texts(connection, alone, &words, complete).await?;
        }
    }
}

/// The sums of a key and a model over the whole range of days, as entries of its first day.
pub async fn whole(
    (connection, mark): (&mut PgConnection, &CopyMark),
    cache: &WordCache,
    snapshot: Snapshot,
    request: DaysRequest,
) -> Result<DayEntries, sqlx::Error> {
    let (kept, complete) = cache.refresh(connection).await?;
    let _turn = if complete { None } else { Some(cache.turn().await) };
    let mut words = Words::new(kept);
    let DaysRequest { rollup, range, filter, .. } = request;
    let mut sums: FxHashMap<(i32, i32), Entry> = FxHashMap::default();
    let mut add = |entry: Entry| {
        let sum = sums.entry((entry.api_key, entry.model)).or_insert(Entry {
            day: range.start,
            api_key: entry.api_key,
            model: entry.model,
            ..Entry::default()
        });
        sum.spend += entry.spend;
        sum.prompt_tokens += entry.prompt_tokens;
        sum.completion_tokens += entry.completion_tokens;
        sum.total_tokens += entry.total_tokens;
        sum.requests += entry.requests;
    };
    reads::unfolded(connection, rollup, range, &filter, &snapshot, &mut words).await?.into_iter().for_each(&mut add);
    let mut entries = Vec::new();
    let months = stretches::packed_months(connection, range, &filter, &snapshot).await?;
    if !months.is_empty() {
        let mut parts = stretches::packed_month_parts(connection, &months);
        while let Some(part) = parts.try_next().await? {
            stretches::unpack(rollup, &part, &mut entries)?;
            entries.drain(..).for_each(&mut add);
        }
    }
    let mut stretches = Vec::new();
    for rest in beside(range, &months) {
        stretches.extend(stretches::stretches(connection, rollup, rest, &filter, &snapshot).await?);
    }
    for stretch in stretches {
        if stretch.packed {
            let mut parts = stretches::packed_parts(connection, rollup, stretch.range);
            while let Some(part) = parts.try_next().await? {
                stretches::unpack(rollup, &part, &mut entries)?;
                entries.drain(..).for_each(&mut add);
            }
        } else if let Some(statement) =
            reads::copy_statement(connection, rollup, stretch.range, &filter, &snapshot, Grain::Range).await?
        {
            let mut messages = mark.copy_out(connection, &statement).await?;
            let mut reader = CopyReader::new(rollup);
            while let Some(message) = messages.try_next().await? {
                reader.read(message, &mut entries)?;
                entries.drain(..).for_each(&mut add);
            }
        }
    }
    let entries: Vec<Entry> = sums.into_values().collect();
    let words = Arc::new(RwLock::new(words));
    gather_with_texts(connection, entries, &words, complete).await
}

/// What is left of a range beside whole months.
fn beside(range: DateRange, months: &[NaiveDate]) -> Vec<DateRange> {
    let mut rest = Vec::new();
    let mut next = range.start;
    for month in months {
        if next < *month {
            rest.push(DateRange { start: next, end: *month - Days::new(1) });
        }
        next = month.checked_add_months(Months::new(1)).unwrap_or(NaiveDate::MAX);
    }
    if next <= range.end {
        rest.push(DateRange { start: next, end: range.end });
    }
    rest
}

/// The folded entries of a stretch, from its rows or packed.
enum Folded<'c> {
    Nothing,
    Packed(Rollup, BoxStream<'c, Result<PgRow, sqlx::Error>>),
    Rows(CopyReader, BoxStream<'c, Result<Bytes, sqlx::Error>>, Vec<Entry>),
}

impl<'c> Folded<'c> {
    async fn start(
        (connection, mark): (&'c mut PgConnection, &CopyMark),
        rollup: Rollup,
        stretch: Stretch,
        filter: &EntryFilter,
        snapshot: &Snapshot,
    ) -> Result<Self, sqlx::Error> {
        if stretch.packed {
            return Ok(Self::Packed(rollup, stretches::packed_parts(connection, rollup, stretch.range)));
        }
        let statement = reads::copy_statement(connection, rollup, stretch.range, filter, snapshot, Grain::Day).await?;
        let Some(statement) = statement else { return Ok(Self::Nothing) };
        let messages = mark.copy_out(connection, &statement).await?;
        Ok(Self::Rows(CopyReader::new(rollup), messages, Vec::with_capacity(16)))
    }

    /// Reads on: entries go to `current`, and days that are over to `finished`. Returns whether there may be more.
    async fn next(&mut self, current: &mut Vec<Entry>, finished: &mut Vec<Vec<Entry>>) -> Result<bool, sqlx::Error> {
        match self {
            Self::Nothing => Ok(false),
            Self::Packed(rollup, parts) => {
                let Some(part) = parts.try_next().await? else { return Ok(false) };
                let mut entries = Vec::new();
                let day = stretches::unpack(*rollup, &part, &mut entries)?;
                if current.first().is_some_and(|first| first.day != day) {
                    finished.push(std::mem::take(current));
                }
                if current.is_empty() {
                    *current = entries;
                } else {
                    current.append(&mut entries);
                }
                Ok(true)
            }
            Self::Rows(reader, messages, batch) => {
                let Some(message) = messages.try_next().await? else { return Ok(false) };
                reader.read(message, batch)?;
                for entry in batch.drain(..) {
                    if current.first().is_some_and(|first| first.day != entry.day) {
                        let capacity = current.len();
                        finished.push(std::mem::replace(current, Vec::with_capacity(capacity)));
                    }
                    current.push(entry);
                }
                Ok(true)
            }
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

/// As [`gather`], of entries whose texts may not be kept. The texts of what was gathered before go first, where they are
/// very many, so that all texts of these entries are there when they are written.
async fn gather_with_texts(
    connection: &mut PgConnection,
    entries: Vec<Entry>,
    words: &SharedWords,
    complete: bool,
) -> Result<DayEntries, sqlx::Error> {
    if !complete {
        let (mut local, missing) = {
            let mut shared = words.write().unwrap_or_else(PoisonError::into_inner);
            shared.trim();
            let missing = shared.take_kept(numbers(&entries));
            (shared.fork(), missing)
        };
        local.fetch(connection, missing).await?;
        words.write().unwrap_or_else(PoisonError::into_inner).join(local);
    }
    gather(entries, Vec::new(), words)
}
