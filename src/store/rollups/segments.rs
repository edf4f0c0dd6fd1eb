//! Splits a range of days into segments by source. Packed days are read from `litespend.packed_days`, whole or in
//! parts. All other days are read from the rows of the day tables.

use chrono::{Days, NaiveDate};
use futures_util::stream::BoxStream;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::store::DateRange;
use crate::store::rollups::packed;
use crate::store::rollups::reads::{Entry, EntryFilter, Rollup, Snapshot};

/// Consecutive days that have the same source.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// The days of the segment.
    pub range: DateRange,
    /// Whether the days are packed: either all of them are, or none is.
    pub packed: bool,
}

impl Segment {
    /// Splits a packed segment into single days. An unpacked segment stays as it is, because it may be long and have
    /// entries on a few days only.
    pub fn packed_days(self) -> Vec<Self> {
        if !self.packed {
            return vec![self];
        }
        let DateRange { start, end } = self.range;
        let days = start.iter_days().take_while(|day| *day <= end);
        days.map(|day| Self { range: DateRange { start: day, end: day }, packed: true }).collect()
    }
}

/// Splits the segments into single days. For unpacked segments, it returns only days that have entries, and it finds
/// each such day with one index lookup.
pub async fn single_days(
    connection: &mut PgConnection,
    rollup: Rollup,
    segments: Vec<Segment>,
) -> Result<Vec<Segment>, sqlx::Error> {
    let table = rollup.table();
    let statement = format!(
        "WITH RECURSIVE days AS (
             SELECT min(day) AS day FROM {table} WHERE day BETWEEN $1 AND $2
             UNION ALL
             SELECT (SELECT min(day) FROM {table} WHERE day > days.day AND day <= $2) FROM days WHERE days.day IS NOT NULL)
         SELECT day FROM days WHERE day IS NOT NULL"
    );
    let mut single = Vec::new();
    for segment in segments {
        if segment.packed {
            single.extend(segment.packed_days());
            continue;
        }
        let days: Vec<NaiveDate> = sqlx::query_scalar(AssertSqlSafe(statement.as_str()))
            .bind(segment.range.start)
            .bind(segment.range.end)
            .fetch_all(&mut *connection)
            .await?;
        single.extend(days.into_iter().map(|day| Segment { range: DateRange { start: day, end: day }, packed: false }));
    }
    Ok(single)
}

/// Splits the range into segments. If the filter selects only some of the entries, no segment is packed, because an
/// index finds those entries in the day table.
pub async fn segments(
    connection: &mut PgConnection,
    rollup: Rollup,
    range: DateRange,
    filter: &EntryFilter,
    snapshot: &Snapshot,
) -> Result<Vec<Segment>, sqlx::Error> {
    let mut packed: Vec<NaiveDate> = Vec::new();
    if snapshot.may_be_packed && filter.is_everything() {
        packed = sqlx::query_scalar(
            "SELECT day FROM litespend.packed_days
             WHERE rollup = $1 AND day BETWEEN $2 AND $3 AND part = 0 AND layout = $5 AND day <> ALL ($4) ORDER BY day",
        )
        .bind(rollup.name())
        .bind(range.start)
        .bind(range.end)
        .bind(&snapshot.dirty)
        .bind(packed::LAYOUT)
        .fetch_all(connection)
        .await?;
    }
    let mut segments: Vec<Segment> = Vec::new();
    let mut add = |start: NaiveDate, end: NaiveDate, packed: bool| match segments.last_mut() {
        _ if start > end => {}
        Some(last) if last.packed == packed => last.range.end = end,
        _ => segments.push(Segment { range: DateRange { start, end }, packed }),
    };
    let mut next = range.start;
    for day in packed {
        add(next, day - Days::new(1), false);
        add(day, day, true);
        next = day + Days::new(1);
    }
    add(next, range.end, false);
    Ok(segments)
}

/// The packed months that lie completely inside the range and contain no dirty day, each as its first day. Returns none
/// if the filter selects only some of the entries.
pub async fn packed_months(
    connection: &mut PgConnection,
    range: DateRange,
    filter: &EntryFilter,
    snapshot: &Snapshot,
) -> Result<Vec<NaiveDate>, sqlx::Error> {
    if !snapshot.may_be_packed || !filter.is_everything() {
        return Ok(Vec::new());
    }
    sqlx::query_scalar(
        "SELECT day FROM litespend.packed_days
         WHERE rollup = 'usage_month' AND part = 0 AND layout = $4 AND day >= $1 AND day + interval '1 month' <= $2
           AND NOT EXISTS (SELECT FROM unnest($3::date[]) AS dirty
                           WHERE dirty >= packed_days.day AND dirty < packed_days.day + interval '1 month')
         ORDER BY day",
    )
    .bind(range.start)
    .bind(range.until())
    .bind(&snapshot.dirty)
    .bind(packed::LAYOUT)
    .fetch_all(connection)
    .await
}

/// The packed entries of these months, one part of a month per row.
pub fn packed_month_parts<'c>(
    connection: &'c mut PgConnection,
    months: &[NaiveDate],
) -> BoxStream<'c, Result<PgRow, sqlx::Error>> {
    sqlx::query("SELECT day, entries FROM litespend.packed_days WHERE rollup = 'usage_month' AND day = ANY ($1)")
        .bind(months.to_vec())
        .fetch(connection)
}

/// The packed entries of a segment, one part of a day per row, ordered by day and part.
pub fn packed_parts<'c>(
    connection: &'c mut PgConnection,
    rollup: Rollup,
    range: DateRange,
) -> BoxStream<'c, Result<PgRow, sqlx::Error>> {
    sqlx::query(
        "SELECT day, entries FROM litespend.packed_days WHERE rollup = $1 AND day BETWEEN $2 AND $3 ORDER BY day, part",
    )
    .bind(rollup.name())
    .bind(range.start)
    .bind(range.end)
    .fetch(connection)
}

/// The packed entries of one part of a day; `None` if the day has no such part.
pub async fn packed_part(
    connection: &mut PgConnection,
    rollup: Rollup,
    day: NaiveDate,
    part: i32,
) -> Result<Option<PgRow>, sqlx::Error> {
    sqlx::query("SELECT day, entries FROM litespend.packed_days WHERE rollup = $1 AND day = $2 AND part = $3")
        .bind(rollup.name())
        .bind(day)
        .bind(part)
        .fetch_optional(connection)
        .await
}

/// Decodes a row of [`packed_parts`] and appends its entries to `entries`. Returns the day of the row.
pub fn unpack(rollup: Rollup, row: &PgRow, entries: &mut Vec<Entry>) -> Result<NaiveDate, sqlx::Error> {
    let day: NaiveDate = row.try_get(0)?;
    packed::decode(rollup, day, row.try_get(1)?, entries)?;
    Ok(day)
}
