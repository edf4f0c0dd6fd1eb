//! Which days of a range are read from where: those that are packed, whole or in parts, and the others, from their rows.

use chrono::{Days, NaiveDate};
use futures_util::stream::BoxStream;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::store::DateRange;
use crate::store::rollups::packed;
use crate::store::rollups::reads::{Entry, EntryFilter, Rollup, Snapshot};

/// Consecutive days that are read the same way.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Its days.
    pub range: DateRange,
    /// Whether they are packed: all of them, then.
    pub packed: bool,
}

impl Segment {
    /// Day by day where it is packed, else as it is: a range of any length may have few days in it.
    pub fn packed_days(self) -> Vec<Self> {
        if !self.packed {
            return vec![self];
        }
        let DateRange { start, end } = self.range;
        let days = start.iter_days().take_while(|day| *day <= end);
        days.map(|day| Self { range: DateRange { start: day, end: day }, packed: true }).collect()
    }
}

/// The segments day by day, only of days that have entries: an index lookup for each.
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

/// The range in segments. Where only some of the entries are wanted, an index finds them: nothing is read packed then.
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

/// The first days of the months of the range that are packed, whole, and without a dirty day. Where only some of the
/// entries are wanted, none.
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

/// The packed entries of months.
pub fn packed_month_parts<'c>(
    connection: &'c mut PgConnection,
    months: &[NaiveDate],
) -> BoxStream<'c, Result<PgRow, sqlx::Error>> {
    sqlx::query("SELECT day, entries FROM litespend.packed_days WHERE rollup = 'usage_month' AND day = ANY ($1)")
        .bind(months.to_vec())
        .fetch(connection)
}

/// The packed entries of a segment, a part of a day a row.
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

/// The packed entries of one part of a day.
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

/// Takes the entries out of a row of [`packed_parts`]; returns its day.
pub fn unpack(rollup: Rollup, row: &PgRow, entries: &mut Vec<Entry>) -> Result<NaiveDate, sqlx::Error> {
    let day: NaiveDate = row.try_get(0)?;
    packed::decode(rollup, day, row.try_get(1)?, entries)?;
    Ok(day)
}
