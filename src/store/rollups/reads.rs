//! Reads of the rollups. All statements of a read run in one database snapshot. [`Snapshot`] says whether the rollups
//! can serve a range, and which days have changes that are not folded yet. Entries are read a day at a time, with
//! strings as dictionary IDs; [`Dictionary`] resolves the IDs.
//!
//! If more than two days of the range are dirty, or more than 200,000 deltas are waiting, [`snapshot`] returns `None`
//! and the caller reads the log itself. Where days are closed, it returns a snapshot in which all other days are dirty
//! instead: the log may have lost the rows of closed days.

use std::collections::HashMap;

use chrono::{NaiveDate, NaiveDateTime};
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Postgres, QueryBuilder};

use crate::store::books;
use crate::store::rollups::COUNTED;
use crate::store::rollups::dictionary::Dictionary;
use crate::store::rollups::partitions;
use crate::store::{DateRange, FIRST_DAY, LAST_DAY};

/// Maximum number of dirty days in a range that are worth reading one by one from the log.
const DIRTY_LIMIT: i64 = 2;

/// Maximum number of waiting deltas that a read includes. A larger number occurs just after a bulk load.
const DELTA_LIMIT: i64 = 200_000;

/// What the rollups can serve for a range, as of the transaction's snapshot.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Dirty days, which are read from the log instead.
    pub dirty: Vec<NaiveDate>,
    /// Whether there are unfolded deltas for the range.
    pub has_deltas: bool,
    /// Whether packed days can be read. The rollups of an older version have none that this version can read.
    pub may_be_packed: bool,
    /// Whether days can be closed. The rollups of an older version have no tables for that.
    pub may_be_closed: bool,
}

#[derive(FromRow)]
struct Pending {
    counted: bool,
    all_dirty: bool,
    dirty: Option<Vec<NaiveDate>>,
    dirty_count: i64,
    deltas: i64,
    may_be_packed: bool,
    may_be_closed: bool,
    /// Whether the partitions of the log can be compared; `None` if it has none.
    comparable: Option<bool>,
}

/// The snapshot of a range, or of all days without a range. `None` if the log must be read instead.
pub async fn snapshot(
    connection: &mut PgConnection,
    range: Option<DateRange>,
) -> Result<Option<Snapshot>, sqlx::Error> {
    let days = range.unwrap_or(DateRange { start: FIRST_DAY, end: LAST_DAY });
    // Checks that the rollups count the log in the search path and not that of another schema: they may just have been
    // installed there.
    let pending: Pending = sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {COUNTED} AS counted, COALESCE(bool_or(sign = 0 AND day IS NULL), false) AS all_dirty,
                array_agg(DISTINCT day) FILTER (WHERE sign = 0 AND day BETWEEN $1 AND $2) AS dirty,
                count(DISTINCT day) FILTER (WHERE sign = 0 AND day BETWEEN $1 AND $2) AS dirty_count,
                count(*) FILTER (WHERE sign <> 0 AND day BETWEEN $1 AND $2) AS deltas,
                EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('litespend.packed_days')
                                                     AND attname = 'layout') AS may_be_packed,
                to_regclass('litespend.closed_midnights') IS NOT NULL AS may_be_closed,
                {} AS comparable
         FROM litespend.deltas",
        partitions::COMPARABLE
    )))
    .bind(days.start)
    .bind(days.end)
    .fetch_one(&mut *connection)
    .await?;
    let mut usable =
        pending.counted && !pending.all_dirty && pending.dirty_count <= DIRTY_LIMIT && pending.deltas <= DELTA_LIMIT;
    if let (true, Some(comparable)) = (usable, pending.comparable) {
        usable = comparable && partitions::compare(connection).await?;
    }
    let snapshot = Snapshot {
        dirty: pending.dirty.unwrap_or_default(),
        has_deltas: pending.deltas > 0,
        may_be_packed: pending.may_be_packed,
        may_be_closed: pending.may_be_closed,
    };
    if usable {
        return Ok(Some(snapshot));
    }
    if !pending.may_be_closed || !books::is_any_closed(connection).await? {
        return Ok(None);
    }
    let dirty = sqlx::query_scalar(r#"SELECT litespend.open_days(to_regclass('"LiteLLM_SpendLogs"'), $1, $2)"#)
        .bind(days.start)
        .bind(days.end)
        .fetch_all(connection)
        .await?;
    Ok(Some(Snapshot { dirty, ..snapshot }))
}

/// Which entries of a rollup to read. `None` in a field means no restriction.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    /// Only entries of this key, given by its hash.
    pub api_key: Option<String>,
    /// Only entries of this user.
    pub user_id: Option<String>,
    /// Only entries of this team.
    pub team_id: Option<String>,
    /// Only entries of this end user.
    pub end_user: Option<String>,
    /// Also include the log's rows that start at exactly this instant, which comes just after the range. LiteLLM's
    /// summary includes midnight at the start of its end day.
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
    /// Name of the rollup in `litespend.packed_days`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Customer => "customer",
        }
    }

    /// Day table of the rollup.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Usage => "litespend.day_usage",
            Self::Customer => "litespend.day_customer",
        }
    }
}

/// Granularity in which folded entries are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// One entry per row of the day table.
    Day,
    /// For [`Rollup::Usage`]: sums by key and model over the whole range.
    Range,
}

/// Sums of one entry on one day. Strings are dictionary IDs, which [`Dictionary`] resolves; 0 means none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// Day, UTC.
    pub day: NaiveDate,
    /// End user in [`Rollup::Customer`], user in [`Rollup::Usage`]; a dictionary ID.
    pub subject: i32,
    /// Team; a dictionary ID.
    pub team: i32,
    /// Key; a dictionary ID.
    pub api_key: i32,
    /// Model; a dictionary ID.
    pub model: i32,
    /// Spend in USD.
    pub spend: f64,
    /// Prompt tokens; 0 in [`Rollup::Customer`].
    pub prompt_tokens: i64,
    /// Completion tokens; 0 in [`Rollup::Customer`].
    pub completion_tokens: i64,
    /// Prompt and completion tokens.
    pub total_tokens: i64,
    /// Number of requests. Deltas of deleted rows count negatively. An entry whose total is 0 counts as absent.
    pub requests: i64,
}

#[derive(FromRow)]
struct TextEntry {
    day: NaiveDate,
    subject: Option<String>,
    subject_id: Option<i32>,
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

/// Entries that are not in the day tables: unfolded deltas, and the rows of dirty days from the log. Ordered by day.
pub async fn unfolded(
    connection: &mut PgConnection,
    rollup: Rollup,
    range: DateRange,
    filter: &EntryFilter,
    snapshot: &Snapshot,
    dictionary: &mut Dictionary,
) -> Result<Vec<Entry>, sqlx::Error> {
    if snapshot.dirty.is_empty() && !snapshot.has_deltas && filter.and_at.is_none() {
        return Ok(Vec::new());
    }
    let subject = match rollup {
        Rollup::Usage => "user_id",
        Rollup::Customer => "end_user",
    };
    let mut query =
        QueryBuilder::<Postgres>::new("SELECT sums.*, w.id AS subject_id, t.id AS team_id, k.id AS api_key_id, ");
    query.push("m.id AS model_id FROM (SELECT day, ").push(subject).push(
        " AS subject, team_id AS team, api_key, model, sum(spend) AS spend, sum(prompt_tokens)::bigint AS prompt_tokens,
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
        if snapshot.may_be_closed {
            // The first instant of a closed day is stored beside the log.
            query.push(" AND NOT EXISTS (SELECT FROM litespend.closed_days WHERE day = ").push_bind(instant.date());
            query.push(
                ") UNION ALL
              SELECT requests, day, team_id, user_id, api_key, model, end_user, spend, prompt_tokens, completion_tokens,
                     total_tokens
              FROM litespend.closed_midnights
              WHERE EXISTS (SELECT FROM litespend.closed_days AS c WHERE c.day = closed_midnights.day) AND day = ",
            );
            query.push_bind(instant.date());
        }
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
          LEFT JOIN litespend.words w ON w.digest = litespend.digest(subject)
          LEFT JOIN litespend.words t ON t.digest = litespend.digest(team)
          LEFT JOIN litespend.words k ON k.digest = litespend.digest(api_key)
          LEFT JOIN litespend.words m ON m.digest = litespend.digest(model) ORDER BY day",
    );
    let rows: Vec<TextEntry> = query.build_query_as().fetch_all(connection).await?;
    let entry = |row: TextEntry| Entry {
        day: row.day,
        subject: dictionary.number(row.subject_id, row.subject),
        team: dictionary.number(row.team_id, row.team),
        api_key: dictionary.number(row.api_key_id, Some(row.api_key)),
        model: dictionary.number(row.model_id, Some(row.model)),
        spend: row.spend,
        prompt_tokens: row.prompt_tokens,
        completion_tokens: row.completion_tokens,
        total_tokens: row.total_tokens,
        requests: row.requests,
    };
    Ok(rows.into_iter().map(entry).collect())
}

/// The dictionary IDs of the filter's strings. `None` if a string has no ID, because then no folded entry contains it.
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

/// The COPY statement that reads the folded entries of a range, ordered by day. `None` if no folded entry can match.
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
    // COPY takes no bind parameters. The statement contains only dates and numbers that this server computed.
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
    /// Whether the filter selects every entry.
    pub(super) fn is_everything(&self) -> bool {
        self.api_key.is_none() && self.user_id.is_none() && self.team_id.is_none() && self.end_user.is_none()
    }
}

/// Aliases by team ID, for all teams that have an alias.
pub async fn team_aliases(connection: &mut PgConnection) -> Result<HashMap<String, String>, sqlx::Error> {
    let rows: Vec<(String, String)> =
        sqlx::query_as(r#"SELECT team_id, team_alias FROM "LiteLLM_TeamTable" WHERE team_alias IS NOT NULL"#)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().collect())
}
