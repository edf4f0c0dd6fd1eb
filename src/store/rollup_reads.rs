//! Reads of the rollups. A read happens in one snapshot: [`Snapshot`] says whether the rollups can answer for a range,
//! and which days have changes that are not folded yet. Entries come a day at a time, texts by number; the numbers'
//! texts come through [`Words`].
//!
//! Where many days of the range are dirty, or very many deltas wait, the snapshot says no, and the caller reads the
//! log itself.

use std::collections::HashMap;
use std::collections::hash_map::Entry::Vacant;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Buf, Bytes};
use chrono::{Days, NaiveDate, NaiveDateTime};
use futures_util::stream::BoxStream;
use rustc_hash::FxHashMap;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder, Row};

use super::DateRange;

/// More dirty days than this in a range are not worth reading one by one.
const DIRTY_LIMIT: i64 = 2;

/// More waiting deltas than this are not read; they hold when a bulk load has just ended.
const DELTA_LIMIT: i64 = 200_000;

/// Texts that are kept between reads at most.
const WORDS_KEPT: usize = 200_000;

/// Day 0 of PostgreSQL's calendar.
const EPOCH: NaiveDate = match NaiveDate::from_ymd_opt(2000, 1, 1) {
    Some(day) => day,
    None => NaiveDate::MIN,
};

/// What the rollups can say about a range, as of the transaction's snapshot.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Days to be read from the log instead.
    pub dirty: Vec<NaiveDate>,
    /// Whether deltas of the range wait to be folded.
    pub has_deltas: bool,
    /// Whether days may be packed; the rollups of an older version are not.
    pub may_be_packed: bool,
}

#[derive(FromRow)]
struct Pending {
    all_dirty: bool,
    dirty: Option<Vec<NaiveDate>>,
    dirty_count: i64,
    deltas: i64,
    may_be_packed: bool,
}

/// The snapshot of a range, or nothing where the log must be read.
pub async fn snapshot(
    connection: &mut PgConnection,
    range: Option<DateRange>,
) -> Result<Option<Snapshot>, sqlx::Error> {
    let pending: Pending = sqlx::query_as(
        "SELECT COALESCE(bool_or(sign = 0 AND day IS NULL), false) AS all_dirty,
                array_agg(DISTINCT day) FILTER (WHERE sign = 0 AND day BETWEEN $1 AND $2) AS dirty,
                count(DISTINCT day) FILTER (WHERE sign = 0 AND day BETWEEN $1 AND $2) AS dirty_count,
                count(*) FILTER (WHERE sign <> 0 AND day BETWEEN $1 AND $2) AS deltas,
                to_regclass('litespend.packed_days') IS NOT NULL AS may_be_packed
         FROM litespend.deltas",
    )
    .bind(range.map_or(NaiveDate::MIN.max(EPOCH - Days::new(700_000)), |range| range.start))
    .bind(range.map_or(EPOCH + Days::new(2_000_000), |range| range.end))
    .fetch_one(connection)
    .await?;
    if pending.all_dirty || pending.dirty_count > DIRTY_LIMIT || pending.deltas > DELTA_LIMIT {
        return Ok(None);
    }
    Ok(Some(Snapshot {
        dirty: pending.dirty.unwrap_or_default(),
        has_deltas: pending.deltas > 0,
        may_be_packed: pending.may_be_packed,
    }))
}

/// Texts by number, kept between reads. A text is kept as a JSON literal, ready to be written.
#[derive(Clone, Debug, Default)]
pub struct WordCache {
    current: Arc<RwLock<KeptWords>>,
}

/// The texts of one table. When the rollups are removed and installed again, the numbers begin anew: the new table's
/// texts are kept apart, and a read that has begun goes on with those that it has.
pub type KeptWords = Arc<RwLock<Kept>>;

/// Texts and how far they were read.
#[derive(Debug, Default)]
pub struct Kept {
    texts: FxHashMap<i32, Arc<str>>,
    table: i64,
    last: i32,
    overflowed: bool,
}

impl WordCache {
    /// Reads the texts that came since the last call. Returns what is kept, and whether that is all there is: numbers
    /// are given in order and by one writer at a time, so none below the last read can come later.
    pub async fn refresh(&self, connection: &mut PgConnection) -> Result<(KeptWords, bool), sqlx::Error> {
        loop {
            let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
            let (table, last, overflowed) = {
                let kept = current.read().unwrap_or_else(PoisonError::into_inner);
                (kept.table, kept.last, kept.overflowed)
            };
            // The table's own number says whether it is still the one whose texts are kept.
            let found: Vec<(i64, Option<i32>, Option<String>)> = sqlx::query_as(
                "SELECT 'litespend.words'::regclass::oid::bigint, id, word
                 FROM (SELECT) AS one LEFT JOIN litespend.words ON id > $1 ORDER BY id LIMIT $2",
            )
            .bind(if overflowed { i32::MAX } else { last })
            .bind(i64::try_from(WORDS_KEPT).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
            let found_table = found.first().map_or(0, |(table, ..)| *table);
            if found_table != table {
                let next = Arc::new(RwLock::new(Kept { table: found_table, ..Kept::default() }));
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
                continue;
            }
            let words: Vec<_> = found.into_iter().filter_map(|(_, id, word)| Some((id?, word?))).collect();
            if overflowed || words.is_empty() {
                return Ok((current, !overflowed));
            }
            let mut kept = current.write().unwrap_or_else(PoisonError::into_inner);
            let complete = kept.texts.len() + words.len() < WORDS_KEPT;
            if complete {
                for (id, word) in words {
                    kept.last = kept.last.max(id);
                    kept.texts.insert(id, literal(&word));
                }
            } else {
                kept.overflowed = true;
                kept.texts = FxHashMap::default();
            }
            drop(kept);
            return Ok((current, complete));
        }
    }

    /// Forgets everything: the rollups were removed.
    pub fn clear(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = KeptWords::default();
    }
}

/// The texts of one read.
#[derive(Debug)]
pub struct Words {
    kept: KeptWords,
    /// Numbers given in this read to texts that have none yet: negative.
    local: HashMap<String, i32>,
    texts: FxHashMap<i32, Arc<str>>,
}

impl Words {
    /// With what earlier reads kept.
    pub fn new(kept: KeptWords) -> Self {
        Self { kept, local: HashMap::new(), texts: FxHashMap::from_iter([(0, Arc::from("null"))]) }
    }

    /// The number of a text: its own, or one of this read.
    fn number(&mut self, id: Option<i32>, text: Option<String>) -> i32 {
        match (id, text) {
            (_, None) => 0,
            (Some(id), Some(_)) => id,
            (None, Some(text)) => {
                let next = -1 - i32::try_from(self.local.len()).unwrap_or(i32::MAX - 1);
                let texts = &mut self.texts;
                *self.local.entry(text).or_insert_with_key(|text| {
                    texts.insert(next, literal(text));
                    next
                })
            }
        }
    }

    /// Takes the texts of these numbers out of what earlier reads kept; returns the numbers that were not there.
    pub fn take_kept(&mut self, numbers: impl Iterator<Item = i32>) -> Vec<i32> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let mut missing = Vec::new();
        for number in numbers {
            if let Vacant(place) = self.texts.entry(number) {
                match kept.texts.get(&number) {
                    Some(text) => drop(place.insert(Arc::clone(text))),
                    None => missing.push(number),
                }
            }
        }
        missing
    }

    /// Reads the texts of these numbers.
    pub async fn fetch(&mut self, connection: &mut PgConnection, mut missing: Vec<i32>) -> Result<(), sqlx::Error> {
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        let found: Vec<(i32, String)> = sqlx::query_as("SELECT id, word FROM litespend.words WHERE id = ANY ($1)")
            .bind(&missing)
            .fetch_all(connection)
            .await?;
        self.texts.extend(found.into_iter().map(|(id, word)| (id, literal(&word))));
        Ok(())
    }

    /// The text of a number as a JSON literal; `null` for none.
    pub fn json(&self, number: i32) -> &str {
        self.texts.get(&number).map_or("null", AsRef::as_ref)
    }

    /// As [`Words::json`], to be kept.
    pub fn shared(&self, number: i32) -> Arc<str> {
        self.texts.get(&number).map_or_else(|| Arc::from("null"), Arc::clone)
    }

    /// An empty set of texts on the same cache, to be filled elsewhere and joined.
    pub fn fork(&self) -> Self {
        Self { kept: Arc::clone(&self.kept), local: HashMap::new(), texts: FxHashMap::default() }
    }

    /// Takes the texts of a fork.
    pub fn join(&mut self, fork: Self) {
        self.texts.extend(fork.texts);
    }

    /// Lets go of texts once there are very many; those of this read's own numbers stay.
    pub fn trim(&mut self) {
        if self.texts.len() > WORDS_KEPT {
            self.texts.retain(|number, _| *number <= 0);
        }
    }
}

fn literal(text: &str) -> Arc<str> {
    Arc::from(serde_json::Value::from(text).to_string())
}

/// Which rollup, and which of its entries.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    /// Only this key's.
    pub api_key: Option<String>,
    /// Only this user's.
    pub user_id: Option<String>,
    /// Only this team's.
    pub team_id: Option<String>,
    /// Only this end user's.
    pub end_user: Option<String>,
    /// Also what the log has at this very instant, after the range: the reference's end of a summary.
    pub and_at: Option<NaiveDateTime>,
}

/// A rollup that is read entry by entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollup {
    /// By team, user, key and model.
    Usage,
    /// By end user, team, key and model.
    Customer,
}

impl Rollup {
    /// Its name in the table of packed days.
    fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Customer => "customer",
        }
    }

    /// Bytes of a packed entry.
    fn packed_size(self) -> usize {
        match self {
            Self::Usage => 56,
            Self::Customer => 40,
        }
    }
}

/// How coarse folded entries are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// Entry by entry, day by day.
    Day,
    /// Of [`Rollup::Usage`]: by key and model over the whole range.
    Range,
}

/// The sums of one entry of one day. Texts are numbers of [`Words`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// Day.
    pub day: NaiveDate,
    /// End user (of [`Rollup::Customer`]) or user (of [`Rollup::Usage`]).
    pub who: i32,
    /// Team.
    pub team: i32,
    /// Key.
    pub api_key: i32,
    /// Model.
    pub model: i32,
    /// USD.
    pub spend: f64,
    /// Prompt tokens; 0 of [`Rollup::Customer`].
    pub prompt_tokens: i64,
    /// Completion tokens; 0 of [`Rollup::Customer`].
    pub completion_tokens: i64,
    /// Prompt and completion tokens.
    pub total_tokens: i64,
    /// Requests; what has none is not there.
    pub requests: i64,
}

#[derive(FromRow)]
struct TextEntry {
    day: NaiveDate,
    who: Option<String>,
    who_id: Option<i32>,
    team: Option<String>,
    team_id: Option<i32>,
    api_key: String,
    api_key_id: Option<i32>,
    model: String,
    model_id: Option<i32>,
    spend: f64,
    prompt_tokens: i64,
    completion_tokens: i64,
    total_tokens: i64,
    requests: i64,
}

/// What is not in the day tables yet: unfolded deltas, and the dirty days from the log. In order of days.
pub async fn unfolded(
    connection: &mut PgConnection,
    rollup: Rollup,
    range: DateRange,
    filter: &EntryFilter,
    snapshot: &Snapshot,
    words: &mut Words,
) -> Result<Vec<Entry>, sqlx::Error> {
    if snapshot.dirty.is_empty() && !snapshot.has_deltas && filter.and_at.is_none() {
        return Ok(Vec::new());
    }
    let who = match rollup {
        Rollup::Usage => "user_id",
        Rollup::Customer => "end_user",
    };
    let mut query =
        QueryBuilder::<Postgres>::new("SELECT sums.*, w.id AS who_id, t.id AS team_id, k.id AS api_key_id, ");
    query.push("m.id AS model_id FROM (SELECT day, ").push(who).push(
        " AS who, team_id AS team, api_key, model, sum(spend) AS spend, sum(prompt_tokens)::bigint AS prompt_tokens,
          sum(completion_tokens)::bigint AS completion_tokens, sum(total_tokens)::bigint AS total_tokens,
          sum(sign)::bigint AS requests FROM (
              SELECT sign, day, team_id, user_id, api_key, model, end_user, spend, prompt_tokens, completion_tokens,
                     total_tokens
              FROM litespend.deltas WHERE sign <> 0 AND day <> ALL (",
    );
    query.push_bind(snapshot.dirty.clone()).push(") AND day BETWEEN ").push_bind(range.start).push(" AND ");
    query.push_bind(range.end);
    if !snapshot.dirty.is_empty() {
        query.push(
            r#" UNION ALL
              SELECT 1, "startTime"::date, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                     completion_tokens, total_tokens
              FROM unnest("#,
        );
        query.push_bind(snapshot.dirty.clone()).push(
            r#"::date[]) AS dirty(day) JOIN "LiteLLM_SpendLogs" ON "startTime" >= dirty.day AND "startTime" < dirty.day + 1"#,
        );
    }
    if let Some(instant) = filter.and_at {
        query.push(
            r#" UNION ALL
              SELECT 1, "startTime"::date, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                     completion_tokens, total_tokens FROM "LiteLLM_SpendLogs" WHERE "startTime" = "#,
        );
        query.push_bind(instant);
    }
    query.push(") AS entries WHERE true");
    for (column, value) in [
        (" AND api_key = ", &filter.api_key),
        (" AND user_id = ", &filter.user_id),
        (" AND team_id = ", &filter.team_id),
        (" AND end_user = ", &filter.end_user),
    ] {
        if let Some(value) = value {
            query.push(column).push_bind(value.clone());
        }
    }
    query.push(
        " GROUP BY 1, 2, 3, 4, 5) AS sums
          LEFT JOIN litespend.words w ON w.digest = litespend.digest(who)
          LEFT JOIN litespend.words t ON t.digest = litespend.digest(team)
          LEFT JOIN litespend.words k ON k.digest = litespend.digest(api_key)
          LEFT JOIN litespend.words m ON m.digest = litespend.digest(model) ORDER BY day",
    );
    let rows: Vec<TextEntry> = query.build_query_as().fetch_all(connection).await?;
    let entry = |row: TextEntry| Entry {
        day: row.day,
        who: words.number(row.who_id, row.who),
        team: words.number(row.team_id, row.team),
        api_key: words.number(row.api_key_id, Some(row.api_key)),
        model: words.number(row.model_id, Some(row.model)),
        spend: row.spend,
        prompt_tokens: row.prompt_tokens,
        completion_tokens: row.completion_tokens,
        total_tokens: row.total_tokens,
        requests: row.requests,
    };
    Ok(rows.into_iter().map(entry).collect())
}

/// The numbers of the filter's texts; nothing where a text has none, and so no folded entry has it.
async fn numbers_of(
    connection: &mut PgConnection,
    filter: &EntryFilter,
) -> Result<Option<[Option<i32>; 4]>, sqlx::Error> {
    let mut numbers = [None; 4];
    let texts = [&filter.api_key, &filter.user_id, &filter.team_id, &filter.end_user];
    for (number, text) in numbers.iter_mut().zip(texts) {
        let Some(text) = text else { continue };
        *number = sqlx::query_scalar("SELECT id FROM litespend.words WHERE digest = litespend.digest($1)")
            .bind(text)
            .fetch_optional(&mut *connection)
            .await?;
        if number.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(numbers))
}

/// The statement that copies the folded entries of a range out in order of days, or nothing where there can be none.
pub async fn copy_statement(
    connection: &mut PgConnection,
    rollup: Rollup,
    range: DateRange,
    filter: &EntryFilter,
    snapshot: &Snapshot,
    by: Grain,
) -> Result<Option<String>, sqlx::Error> {
    let Some([api_key, user_id, team_id, end_user]) = numbers_of(connection, filter).await? else { return Ok(None) };
    let mut query = QueryBuilder::<Postgres>::new("COPY (SELECT ");
    query.push(match (rollup, by) {
        (Rollup::Usage, Grain::Day) => {
            "day, user_id, team_id, api_key, model, requests, spend, total_tokens, prompt_tokens, completion_tokens
             FROM litespend.day_usage"
        }
        (Rollup::Usage, Grain::Range) => {
            "min(day), 0, 0, api_key, model, sum(requests)::bigint, sum(spend), sum(total_tokens)::bigint,
             sum(prompt_tokens)::bigint, sum(completion_tokens)::bigint FROM litespend.day_usage"
        }
        (Rollup::Customer, _) => {
            "day, end_user, team_id, api_key, model, requests, spend, total_tokens FROM litespend.day_customer"
        }
    });
    // COPY takes no parameters; what is written into it are dates and numbers of ours.
    query.push(" WHERE day BETWEEN '").push(range.start).push("' AND '").push(range.end).push("'");
    for (column, number) in [
        (" AND api_key = ", api_key),
        (" AND user_id = ", user_id),
        (" AND team_id = ", team_id),
        (" AND end_user = ", end_user),
    ] {
        if let Some(number) = number {
            query.push(column).push(number);
        }
    }
    for day in &snapshot.dirty {
        query.push(" AND day <> '").push(day).push("'");
    }
    query.push(match (rollup, by) {
        (Rollup::Usage, Grain::Range) => " GROUP BY api_key, model) TO STDOUT (FORMAT binary)",
        _ => " ORDER BY day) TO STDOUT (FORMAT binary)",
    });
    Ok(Some(query.into_string()))
}

impl EntryFilter {
    /// Whether every entry is wanted.
    fn is_everything(&self) -> bool {
        self.api_key.is_none() && self.user_id.is_none() && self.team_id.is_none() && self.end_user.is_none()
    }
}

/// A stretch of days that are read the same way.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// Its days.
    pub range: DateRange,
    /// Whether they are packed: all of them, then.
    pub packed: bool,
}

impl Stretch {
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

/// The stretches day by day, only of days that have entries: an index lookup for each.
pub async fn single_days(
    connection: &mut PgConnection,
    rollup: Rollup,
    stretches: Vec<Stretch>,
) -> Result<Vec<Stretch>, sqlx::Error> {
    let statement = match rollup {
        Rollup::Usage => {
            "WITH RECURSIVE days AS (
                 SELECT min(day) AS day FROM litespend.day_usage WHERE day BETWEEN $1 AND $2
                 UNION ALL
                 SELECT (SELECT min(day) FROM litespend.day_usage WHERE day > days.day AND day <= $2) FROM days
                 WHERE days.day IS NOT NULL)
             SELECT day FROM days WHERE day IS NOT NULL"
        }
        Rollup::Customer => {
            "WITH RECURSIVE days AS (
                 SELECT min(day) AS day FROM litespend.day_customer WHERE day BETWEEN $1 AND $2
                 UNION ALL
                 SELECT (SELECT min(day) FROM litespend.day_customer WHERE day > days.day AND day <= $2) FROM days
                 WHERE days.day IS NOT NULL)
             SELECT day FROM days WHERE day IS NOT NULL"
        }
    };
    let mut single = Vec::new();
    for stretch in stretches {
        if stretch.packed {
            single.extend(stretch.packed_days());
            continue;
        }
        let days: Vec<NaiveDate> = sqlx::query_scalar(statement)
            .bind(stretch.range.start)
            .bind(stretch.range.end)
            .fetch_all(&mut *connection)
            .await?;
        single.extend(days.into_iter().map(|day| Stretch { range: DateRange { start: day, end: day }, packed: false }));
    }
    Ok(single)
}

/// The range in stretches. Where only some of the entries are wanted, an index finds them: nothing is read packed then.
pub async fn stretches(
    connection: &mut PgConnection,
    rollup: Rollup,
    range: DateRange,
    filter: &EntryFilter,
    snapshot: &Snapshot,
) -> Result<Vec<Stretch>, sqlx::Error> {
    let mut packed: Vec<NaiveDate> = Vec::new();
    if snapshot.may_be_packed && filter.is_everything() {
        packed = sqlx::query_scalar(
            "SELECT day FROM litespend.packed_days
             WHERE rollup = $1 AND day BETWEEN $2 AND $3 AND part = 0 AND day <> ALL ($4) ORDER BY day",
        )
        .bind(rollup.name())
        .bind(range.start)
        .bind(range.end)
        .bind(&snapshot.dirty)
        .fetch_all(connection)
        .await?;
    }
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut add = |start: NaiveDate, end: NaiveDate, packed: bool| match stretches.last_mut() {
        _ if start > end => {}
        Some(last) if last.packed == packed => last.range.end = end,
        _ => stretches.push(Stretch { range: DateRange { start, end }, packed }),
    };
    let mut next = range.start;
    for day in packed {
        add(next, day - Days::new(1), false);
        add(day, day, true);
        next = day + Days::new(1);
    }
    add(next, range.end, false);
    Ok(stretches)
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
         WHERE rollup = 'usage_month' AND part = 0 AND day >= $1 AND day + interval '1 month' <= $2
           AND NOT EXISTS (SELECT FROM unnest($3::date[]) AS dirty
                           WHERE dirty >= packed_days.day AND dirty < packed_days.day + interval '1 month')
         ORDER BY day",
    )
    .bind(range.start)
    .bind(range.until())
    .bind(&snapshot.dirty)
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

/// The packed entries of a stretch, a part of a day a row.
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
    let mut rest: &[u8] = row.try_get(1)?;
    let broken = |_| sqlx::Error::Protocol("packed day: short entry".into());
    entries.reserve(rest.len() / rollup.packed_size());
    while !rest.is_empty() {
        let mut entry = Entry {
            day,
            who: rest.try_get_i32().map_err(broken)?,
            team: rest.try_get_i32().map_err(broken)?,
            api_key: rest.try_get_i32().map_err(broken)?,
            model: rest.try_get_i32().map_err(broken)?,
            requests: rest.try_get_i64().map_err(broken)?,
            spend: rest.try_get_f64().map_err(broken)?,
            total_tokens: rest.try_get_i64().map_err(broken)?,
            ..Entry::default()
        };
        if rollup == Rollup::Usage {
            entry.prompt_tokens = rest.try_get_i64().map_err(broken)?;
            entry.completion_tokens = rest.try_get_i64().map_err(broken)?;
        }
        entries.push(entry);
    }
    Ok(day)
}

/// Reads entries out of PostgreSQL's binary COPY format.
#[derive(Debug)]
pub struct CopyReader {
    rollup: Rollup,
    started: bool,
}

impl CopyReader {
    /// For the entries of a rollup.
    pub fn new(rollup: Rollup) -> Self {
        Self { rollup, started: false }
    }

    /// The entries of one message, appended to `entries`. A message holds whole rows; the first begins with a header.
    pub fn read(&mut self, mut message: Bytes, entries: &mut Vec<Entry>) -> Result<(), sqlx::Error> {
        if !self.started {
            // Signature (11 bytes), flags, length of the extension and the extension.
            let broken = || sqlx::Error::Protocol("COPY: short header".into());
            message.try_get_u64().map_err(|_| broken())?;
            if message.remaining() < 11 {
                return Err(broken());
            }
            message.advance(7);
            let extension = message.try_get_u32().map_err(|_| broken())? as usize;
            if message.remaining() < extension {
                return Err(broken());
            }
            message.advance(extension);
            self.started = true;
        }
        while message.has_remaining() {
            match self.row(&mut message) {
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => break,
                Err(_) => return Err(sqlx::Error::Protocol("COPY: short row".into())),
            }
        }
        Ok(())
    }

    fn row(&self, message: &mut Bytes) -> Result<Option<Entry>, bytes::TryGetError> {
        if message.try_get_i16()? < 0 {
            return Ok(None);
        }
        let mut entry = Entry {
            day: day(int(message)?),
            who: int(message)?,
            team: int(message)?,
            api_key: int(message)?,
            model: int(message)?,
            requests: long(message)?,
            spend: f64::from_bits(long(message)?.cast_unsigned()),
            total_tokens: long(message)?,
            ..Entry::default()
        };
        if self.rollup == Rollup::Usage {
            entry.prompt_tokens = long(message)?;
            entry.completion_tokens = long(message)?;
        }
        Ok(Some(entry))
    }
}

/// A field of four bytes, after its length.
fn int(message: &mut Bytes) -> Result<i32, bytes::TryGetError> {
    message.try_get_i32()?;
    message.try_get_i32()
}

/// A field of eight bytes, after its length.
fn long(message: &mut Bytes) -> Result<i64, bytes::TryGetError> {
    message.try_get_i32()?;
    message.try_get_i64()
}

fn day(number: i32) -> NaiveDate {
    EPOCH.checked_add_signed(chrono::TimeDelta::days(i64::from(number))).unwrap_or(EPOCH)
}

/// Aliases of all teams that have one, by id.
pub async fn team_aliases(connection: &mut PgConnection) -> Result<HashMap<String, String>, sqlx::Error> {
    let rows: Vec<(String, String)> =
        sqlx::query_as(r#"SELECT team_id, team_alias FROM "LiteLLM_TeamTable" WHERE team_alias IS NOT NULL"#)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().collect())
}
