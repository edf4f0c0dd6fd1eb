//! Reads the entries of a rollup a day at a time, in one database snapshot. Merges folded entries, from the day tables
//! and packed days, with unfolded entries, from waiting deltas and from the log's rows on dirty days.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{Days, Months, NaiveDate};
use futures_util::stream::BoxStream;
use futures_util::{Stream, TryStreamExt};
use parking_lot::RwLock;
use rustc_hash::FxHashMap;
use sqlx::PgConnection;
use sqlx::postgres::PgRow;

use crate::store::DateRange;
use crate::store::reading::{CopyMark, Reading};
use crate::store::rollups::copied::CopyReader;
use crate::store::rollups::dictionary::{Dictionary, DictionaryCache};
use crate::store::rollups::reads;
use crate::store::rollups::reads::{Entry, EntryFilter, Grain, Rollup, Snapshot};
use crate::store::rollups::segments;
use crate::store::rollups::segments::Segment;

/// What [`days`] and [`whole`] read.
#[derive(Clone, Debug)]
pub struct DaysRequest {
    /// The rollup.
    pub rollup: Rollup,
    /// The range of days.
    pub range: DateRange,
    /// The filter on entries.
    pub filter: EntryFilter,
    /// Whether a day may be returned in several parts. A packed day keeps its order: by end user ([`Rollup::Customer`])
    /// or team ([`Rollup::Usage`]), then key, then model. Any other day that is split is sorted by [`Entry::subject`], then
    /// key, then model. Two parts can contain entries that are equal in these three.
    pub in_parts: bool,
}

/// Maximum number of entries in a part, if this module splits the day. It does so only if strings must be fetched
/// between parts. Packed parts have the same maximum.
const PART: usize = 4_000;

/// The strings of a read, shared between the reader and the writer of the response.
pub type SharedDictionary = Arc<RwLock<Dictionary>>;

/// The entries of one day, or a part of them.
#[derive(Debug)]
pub struct DayEntries {
    /// Day, UTC.
    pub day: NaiveDate,
    /// The entries, in no particular order unless the day comes in parts. Several entries can have the same names; the
    /// caller must add them up.
    pub entries: Vec<Entry>,
    /// The strings of the entries' dictionary IDs.
    pub dictionary: SharedDictionary,
}

/// Starts a database snapshot for all later statements of the read, and checks whether the rollups can serve the range.
/// The second value is `None` if the caller must read the log instead: the rollups cannot serve the range, were just
/// removed, or are not readable by this role. In the last two cases, the database snapshot has ended.
pub async fn begin(reading: Reading, range: DateRange) -> Result<(Reading, Option<Snapshot>), sqlx::Error> {
    let mut reading = reading.snapshot().await?;
    match reads::snapshot(reading.connection(), Some(range)).await {
        Err(sqlx::Error::Database(error)) if is_gone(error.code().as_deref()) => {
            Ok((reading.without_snapshot().await?, None))
        }
        other => Ok((reading, other?)),
    }
}

/// Whether the error code means that the rollups are absent or not readable: undefined table or function, invalid
/// schema name, or insufficient privilege.
pub fn is_gone(code: Option<&str>) -> bool {
    matches!(code, Some("42P01" | "42883" | "3F000" | "42501"))
}

/// Streams the days in ascending order. Each day is one item of the stream, or several with [`DaysRequest::in_parts`].
/// Days without entries are left out.
///
/// Reads the segments of the range one after another. A [`Segment`] has one source of folded entries: packed days or a
/// day table. Unfolded entries are merged into them. An open source occupies the connection, so strings that are not
/// cached are fetched after the source is closed. If the cache is incomplete, every segment is therefore a single day.
pub fn days<'c>(
    (connection, mark): (&'c mut PgConnection, &'c CopyMark),
    cache: &'c DictionaryCache,
    snapshot: Snapshot,
    request: DaysRequest,
) -> impl Stream<Item = Result<DayEntries, sqlx::Error>> + Send + 'c {
    async_stream::try_stream! {
        let (kept, complete) = cache.refresh(connection).await?;
        // If the cache is incomplete, the read holds strings of its own. Such reads run one at a time, to save memory.
        let _guard = if complete { None } else { Some(cache.lock_large().await) };
        let mut dictionary = Dictionary::new(kept);
        let mut unfolded = Unfolded::read(connection, &request, &snapshot, &mut dictionary).await?;
        let texts = Texts { dictionary: Arc::new(RwLock::new(dictionary)), complete };
        let DaysRequest { rollup, filter, in_parts, .. } = &request;
        for segment in segments_of(connection, &request, &snapshot, complete).await? {
            // Packed parts can be returned unchanged if no unfolded entry must be merged into the segment.
            let as_packed = *in_parts && segment.packed && unfolded.is_after(segment.range.end);
            if as_packed && !complete {
                let mut parts = std::pin::pin!(packed_parts(connection, &texts, *rollup, segment.range.start));
                while let Some(part) = parts.try_next().await? { yield part; }
                continue;
            }
            let source = Source::open((&mut *connection, mark), *rollup, segment, filter, &snapshot, Grain::Day).await?;
            let mut by_day = ByDay::new(source, as_packed);
            // Days whose strings are fetched after the source is closed.
            let mut waiting = Vec::new();
            while let Some(entries) = by_day.next().await? {
                for day in unfolded.merge(entries) {
                    if complete { yield texts.gather(day)?; } else { waiting.push(day); }
                }
            }
            drop(by_day);
            waiting.extend(unfolded.until(segment.range.end));
            for part in waiting.into_iter().flat_map(|day| parts_of(day, *in_parts && !complete)) {
                yield texts.fetch_and_gather(connection, part).await?;
            }
        }
        // Unfolded entries after the last segment: of days without folded entries, and of `EntryFilter::and_at`, which
        // is just after the range.
        for day in unfolded.until(NaiveDate::MAX) {
            yield texts.fetch_and_gather(connection, day).await?;
        }
    }
}

/// Streams the parts of a packed day. A separate statement reads each part, so the connection can fetch strings between
/// parts.
fn packed_parts<'a>(
    connection: &'a mut PgConnection,
    texts: &'a Texts,
    rollup: Rollup,
    day: NaiveDate,
) -> impl Stream<Item = Result<DayEntries, sqlx::Error>> + Send + 'a {
    async_stream::try_stream! {
        let mut part = 0;
        while let Some(entries) = packed_part(connection, rollup, day, part).await? {
            part += 1;
            if !entries.is_empty() {
                yield texts.fetch_and_gather(connection, entries).await?;
            }
        }
    }
}

/// The segments of a request. They are single days if strings must be fetched between days. With `in_parts`, packed
/// segments are single days too.
async fn segments_of(
    connection: &mut PgConnection,
    request: &DaysRequest,
    snapshot: &Snapshot,
    complete: bool,
) -> Result<Vec<Segment>, sqlx::Error> {
    let DaysRequest { rollup, range, filter, in_parts } = request;
    let segments = segments::segments(connection, *rollup, *range, filter, snapshot).await?;
    if !complete {
        return segments::single_days(connection, *rollup, segments).await;
    }
    Ok(if *in_parts { segments.into_iter().flat_map(Segment::packed_days).collect() } else { segments })
}

/// Without `in_parts`, returns the day as one part. With `in_parts`, sorts the day and splits it, so that the read
/// needs the strings of only one part at a time.
fn parts_of(mut day: Vec<Entry>, in_parts: bool) -> Vec<Vec<Entry>> {
    if !in_parts {
        return vec![day];
    }
    day.sort_unstable_by_key(|entry| (entry.subject, entry.api_key, entry.model));
    day.chunks(PART).map(<[Entry]>::to_vec).collect()
}

/// Returns the sums by key and model over the whole range, as entries dated on its first day. The rollup must be
/// [`Rollup::Usage`]. Ignores [`DaysRequest::in_parts`].
pub async fn whole(
    (connection, mark): (&mut PgConnection, &CopyMark),
    cache: &DictionaryCache,
    snapshot: Snapshot,
    request: DaysRequest,
) -> Result<DayEntries, sqlx::Error> {
    let (kept, complete) = cache.refresh(connection).await?;
    let _guard = if complete { None } else { Some(cache.lock_large().await) };
    let mut dictionary = Dictionary::new(kept);
    let DaysRequest { rollup, range, filter, .. } = request;
    let mut sums = Sums { day: range.start, by_key_and_model: FxHashMap::default() };
    let mut batch = reads::unfolded(connection, rollup, range, &filter, &snapshot, &mut dictionary).await?;
    sums.add(&mut batch);
    // Packed months contain the sums of a month. The rest of the range is read by segments.
    let months = segments::packed_months(connection, range, &filter, &snapshot).await?;
    if !months.is_empty() {
        let mut source = Source::Packed(rollup, segments::packed_month_parts(connection, &months));
        while source.next(&mut batch).await? {
            sums.add(&mut batch);
        }
    }
    let mut segments = Vec::new();
    for rest in beside(range, &months) {
        segments.extend(segments::segments(connection, rollup, rest, &filter, &snapshot).await?);
    }
    for segment in segments {
        let mut source =
            Source::open((&mut *connection, mark), rollup, segment, &filter, &snapshot, Grain::Range).await?;
        while source.next(&mut batch).await? {
            sums.add(&mut batch);
        }
    }
    let texts = Texts { dictionary: Arc::new(RwLock::new(dictionary)), complete };
    texts.fetch_and_gather(connection, sums.by_key_and_model.into_values().collect()).await
}

/// Accumulates sums by key and model.
struct Sums {
    day: NaiveDate,
    by_key_and_model: FxHashMap<(i32, i32), Entry>,
}

impl Sums {
    /// Adds the entries of a batch and empties it.
    fn add(&mut self, batch: &mut Vec<Entry>) {
        for entry in batch.drain(..) {
            let new = Entry { day: self.day, api_key: entry.api_key, model: entry.model, ..Entry::default() };
            let sum = self.by_key_and_model.entry((entry.api_key, entry.model)).or_insert(new);
            sum.spend += entry.spend;
            sum.prompt_tokens += entry.prompt_tokens;
            sum.completion_tokens += entry.completion_tokens;
            sum.total_tokens += entry.total_tokens;
            sum.requests += entry.requests;
        }
    }
}

/// The parts of a range outside these months. The months lie completely inside the range, in ascending order; each is
/// given by its first day.
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

/// Source of the folded entries of a segment.
enum Source<'c> {
    /// No folded entry can match.
    Nothing,
    /// Packed days, one part per row.
    Packed(Rollup, BoxStream<'c, Result<PgRow, sqlx::Error>>),
    /// Rows of a day table, in COPY's binary format.
    Rows(CopyReader, BoxStream<'c, Result<Bytes, sqlx::Error>>),
}

impl<'c> Source<'c> {
    async fn open(
        (connection, mark): (&'c mut PgConnection, &CopyMark),
        rollup: Rollup,
        segment: Segment,
        filter: &EntryFilter,
        snapshot: &Snapshot,
        grain: Grain,
    ) -> Result<Self, sqlx::Error> {
        if segment.packed {
            return Ok(Self::Packed(rollup, segments::packed_parts(connection, rollup, segment.range)));
        }
        let statement = reads::copy_statement(connection, rollup, segment.range, filter, snapshot, grain).await?;
        let Some(statement) = statement else { return Ok(Self::Nothing) };
        let messages = mark.copy_out(connection, &statement).await?;
        Ok(Self::Rows(CopyReader::new(rollup), messages))
    }

    /// Appends the next entries to `batch`, possibly none. Returns `false` at the end of the source.
    async fn next(&mut self, batch: &mut Vec<Entry>) -> Result<bool, sqlx::Error> {
        match self {
            Self::Nothing => Ok(false),
            Self::Packed(rollup, parts) => {
                let Some(part) = parts.try_next().await? else { return Ok(false) };
                segments::unpack(*rollup, &part, batch)?;
                Ok(true)
            }
            Self::Rows(reader, messages) => {
                let Some(message) = messages.try_next().await? else { return Ok(false) };
                reader.read(&message, batch)?;
                Ok(true)
            }
        }
    }
}

/// Groups the entries of a source by day, or by packed part.
struct ByDay<'c> {
    source: Source<'c>,
    /// Whether to return each packed part unchanged, and not whole days.
    as_packed: bool,
    /// Entries that were read but not returned yet.
    rest: Vec<Entry>,
    is_over: bool,
}

impl<'c> ByDay<'c> {
    fn new(source: Source<'c>, as_packed: bool) -> Self {
        Self { source, as_packed, rest: Vec::new(), is_over: false }
    }

    /// The entries of the next day, or of the next packed part with `as_packed`. `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<Entry>>, sqlx::Error> {
        // Number of entries in `rest` that are known to be of the same day.
        let mut seen = 0;
        loop {
            let day = self.rest.first().map(|first| first.day);
            let end = self.rest.iter().skip(seen).position(|entry| Some(entry.day) != day).map(|at| seen + at);
            if let Some(end) = end {
                // The next day probably has about as many entries as this one.
                let capacity = end;
                let mut rest = Vec::with_capacity(capacity.max(self.rest.len() - end));
                rest.extend(self.rest.drain(end..));
                return Ok(Some(std::mem::replace(&mut self.rest, rest)));
            }
            seen = self.rest.len();
            if self.is_over || (self.as_packed && seen > 0) {
                return Ok((seen > 0).then(|| std::mem::take(&mut self.rest)));
            }
            self.is_over = !self.source.next(&mut self.rest).await?;
        }
    }
}

/// The next packed part of a day; `None` after the last.
async fn packed_part(
    connection: &mut PgConnection,
    rollup: Rollup,
    day: NaiveDate,
    part: i32,
) -> Result<Option<Vec<Entry>>, sqlx::Error> {
    let Some(row) = segments::packed_part(connection, rollup, day, part).await? else { return Ok(None) };
    let mut entries = Vec::new();
    segments::unpack(rollup, &row, &mut entries)?;
    Ok(Some(entries))
}

/// Unfolded entries, ordered by day.
struct Unfolded(std::iter::Peekable<std::vec::IntoIter<Entry>>);

impl Unfolded {
    async fn read(
        connection: &mut PgConnection,
        request: &DaysRequest,
        snapshot: &Snapshot,
        dictionary: &mut Dictionary,
    ) -> Result<Self, sqlx::Error> {
        let DaysRequest { rollup, range, filter, .. } = request;
        let mut entries = reads::unfolded(connection, *rollup, *range, filter, snapshot, dictionary).await?;
        entries.sort_by_key(|entry| entry.day);
        Ok(Self(entries.into_iter().peekable()))
    }

    /// Whether all remaining entries are on days after this one.
    fn is_after(&mut self, day: NaiveDate) -> bool {
        self.0.peek().is_none_or(|entry| entry.day > day)
    }

    /// The entries of the next day, if that day is not after `last`.
    fn next_day(&mut self, last: NaiveDate) -> Option<Vec<Entry>> {
        let day = self.0.peek().map(|entry| entry.day).filter(|day| *day <= last)?;
        Some(std::iter::from_fn(|| self.0.next_if(|entry| entry.day == day)).collect())
    }

    /// The entries of all days up to and including `last`, one list per day.
    fn until(&mut self, last: NaiveDate) -> Vec<Vec<Entry>> {
        std::iter::from_fn(|| self.next_day(last)).collect()
    }

    /// Merges the folded entries of one day with the unfolded entries. Returns one list per day: first the days before
    /// it that have only unfolded entries, then the day itself.
    fn merge(&mut self, mut folded: Vec<Entry>) -> Vec<Vec<Entry>> {
        let Some(day) = folded.first().map(|first| first.day) else { return Vec::new() };
        let mut days = day.pred_opt().map_or_else(Vec::new, |before| self.until(before));
        folded.extend(self.next_day(day).unwrap_or_default());
        days.push(folded);
        days
    }
}

/// The strings of a read.
struct Texts {
    dictionary: SharedDictionary,
    /// Whether the cache contains the complete dictionary, so that no string has to be fetched.
    complete: bool,
}

impl Texts {
    /// Attaches the strings to the entries. The strings must be cached or fetched already; a missing one is an error.
    fn gather(&self, entries: Vec<Entry>) -> Result<DayEntries, sqlx::Error> {
        let missing = self.dictionary.write().take_cached(numbers(&entries));
        if let Some(number) = missing.first() {
            // An error is better than a response with a missing name.
            return Err(sqlx::Error::Protocol(format!("the rollups' dictionary has no entry {number}")));
        }
        let day = entries.first().map_or(NaiveDate::MIN, |entry| entry.day);
        Ok(DayEntries { day, entries, dictionary: Arc::clone(&self.dictionary) })
    }

    /// Fetches the strings of the entries if the cache may lack some, and attaches them. If the read holds very many
    /// strings, it first drops those of earlier entries. It never drops strings of these entries, so all of them are
    /// present when the entries are written.
    async fn fetch_and_gather(
        &self,
        connection: &mut PgConnection,
        entries: Vec<Entry>,
    ) -> Result<DayEntries, sqlx::Error> {
        if !self.complete {
            let (mut local, missing) = {
                let mut shared = self.dictionary.write();
                shared.trim();
                let missing = shared.take_cached(numbers(&entries));
                (shared.fork(), missing)
            };
            local.fetch(connection, missing).await?;
            self.dictionary.write().join(local);
        }
        self.gather(entries)
    }
}

/// All dictionary IDs in the entries.
fn numbers(entries: &[Entry]) -> impl Iterator<Item = i32> + '_ {
    entries.iter().flat_map(|entry| [entry.subject, entry.team, entry.api_key, entry.model])
}
