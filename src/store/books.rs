//! Closed days: days whose totals stay although the log loses their rows. `migrations/litespend/0014_closed_days.sql`
//! has the tables and the rules of the triggers. [`closing`] has when a day can be closed and how it is recorded as closed,
//! [`exporting`] how its rows are read for the archive, [`details`] what is stored of it beside the day tables,
//! [`comparing`] the sums that it is compared with, [`pruning`] how its rows leave the log, [`merging`] which archived rows
//! belong into an answer, [`beside`] how they stand beside the log, and [`restoring`] how they come back.

pub mod beside;
pub mod closing;
pub mod comparing;
pub mod details;
pub mod exporting;
pub mod merging;
pub mod pruning;
pub mod restoring;

use std::collections::HashSet;

use chrono::{DateTime, NaiveDate, Utc};
use sha2::{Digest, Sha256};
use sqlx::{FromRow, PgConnection};

use crate::store::DateRange;
use crate::store::rollups::partitions;

/// The figures of a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromRow)]
pub struct Totals {
    /// Number of requests.
    pub requests: i64,
    /// Spend in USD.
    pub spend: f64,
    /// Prompt tokens.
    pub prompt_tokens: i64,
    /// Completion tokens.
    pub completion_tokens: i64,
    /// Prompt and completion tokens.
    pub total_tokens: i64,
}

impl Totals {
    /// Whether the figures are equal: counts and tokens exactly, spend within 1e-9, relative or absolute. Sums that are
    /// not finite count as equal.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let equal_spend = (self.spend - other.spend).abs() <= 1e-9 * self.spend.abs().max(1.0);
        (self.requests, self.prompt_tokens, self.completion_tokens, self.total_tokens)
            == (other.requests, other.prompt_tokens, other.completion_tokens, other.total_tokens)
            && (equal_spend || !(self.spend.is_finite() || other.spend.is_finite()))
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            spend: self.spend + other.spend,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            completion_tokens: self.completion_tokens + other.completion_tokens,
            total_tokens: self.total_tokens + other.total_tokens,
        }
    }
}

/// A closed day.
#[derive(Clone, Debug, FromRow)]
pub struct ClosedDay {
    /// Day, UTC.
    pub day: NaiveDate,
    /// When it was closed.
    pub closed_at: DateTime<Utc>,
    /// Its figures when it was closed.
    #[sqlx(flatten)]
    pub totals: Totals,
    /// Revision of its manifest in the archive.
    pub revision: i32,
    /// Number of rows in the archive.
    pub archived_rows: i64,
    /// The sums of the rows in the archive, as far as they were recorded: spend in USD, prompt tokens, completion tokens
    /// and both.
    pub archived_spend: Option<f64>,
    /// Prompt tokens of the rows in the archive.
    pub archived_prompt_tokens: Option<i64>,
    /// Completion tokens of the rows in the archive.
    pub archived_completion_tokens: Option<i64>,
    /// Prompt and completion tokens of the rows in the archive.
    pub archived_total_tokens: Option<i64>,
    /// When the archive was last read back and compared.
    pub verified_at: DateTime<Utc>,
    /// When its rows were removed from the log.
    pub pruned_at: Option<DateTime<Utc>>,
}

impl ClosedDay {
    /// The figures of the rows in the archive. `None` if they were not recorded.
    pub fn archived(&self) -> Option<Totals> {
        Some(Totals {
            requests: self.archived_rows,
            spend: self.archived_spend?,
            prompt_tokens: self.archived_prompt_tokens?,
            completion_tokens: self.archived_completion_tokens?,
            total_tokens: self.archived_total_tokens?,
        })
    }
}

/// Whether this database can have closed days: the schema `litespend` has migration 15, and the role of the session may read
/// it. (`to_regclass` fails for a schema that the role may not use.)
pub async fn is_possible(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT count(*) = 3
         FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname = 'litespend' AND c.relname IN ('incomplete_days', 'closed_days', 'settings')
           AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')",
    )
    .fetch_one(connection)
    .await
}

/// Whether the schema `litespend` is recent enough to close, prune and reopen days: it has migration 18.
pub async fn is_current(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass('litespend.moved_ids') IS NOT NULL").fetch_one(connection).await
}

/// Whether a day of the log in the search path is closed.
pub async fn is_any_closed(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    if !is_possible(connection).await? {
        return Ok(false);
    }
    sqlx::query_scalar(r#"SELECT litespend.has_closed_days(to_regclass('"LiteLLM_SpendLogs"'))"#)
        .fetch_one(connection)
        .await
}

/// The schema whose days are closed, if it is not the current one.
pub async fn closed_elsewhere(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT value ->> 'schema' FROM litespend.settings
           WHERE name = 'books' AND value ->> 'schema' <> current_schema()::text
             AND EXISTS (SELECT FROM litespend.closed_days)"#,
    )
    .fetch_optional(connection)
    .await
}

/// All closed days, ascending; only those of the range, if one is given.
pub async fn closed_days(
    connection: &mut PgConnection,
    range: Option<DateRange>,
) -> Result<Vec<ClosedDay>, sqlx::Error> {
    sqlx::query_as("SELECT * FROM litespend.closed_days WHERE $1::date IS NULL OR day BETWEEN $1 AND $2 ORDER BY day")
        .bind(range.map(|range| range.start))
        .bind(range.map(|range| range.end))
        .fetch_all(connection)
        .await
}

/// The closed days of a range of which the log may lack rows, ascending. All closed days if partitions of the log came or
/// went and nobody looked at them yet.
pub async fn incomplete_days(connection: &mut PgConnection, range: DateRange) -> Result<Vec<ClosedDay>, sqlx::Error> {
    let are_partitions_known = partitions::are_counted(&mut *connection).await?;
    let mut closed = closed_days(&mut *connection, Some(range)).await?;
    if are_partitions_known && !closed.is_empty() {
        let incomplete: HashSet<NaiveDate> =
            sqlx::query_scalar("SELECT DISTINCT day FROM litespend.incomplete_days WHERE day BETWEEN $1 AND $2")
                .bind(range.start)
                .bind(range.end)
                .fetch_all(connection)
                .await?
                .into_iter()
                .collect();
        closed.retain(|closed| incomplete.contains(&closed.day));
    }
    Ok(closed)
}

/// The ID by which the archive knows this database. It is made when the first day is closed.
pub async fn database_id(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    // Several sessions ask for it at once, each in a snapshot: what is right is not written again.
    let known: Option<String> = sqlx::query_scalar(
        r#"SELECT s.value ->> 'id' FROM litespend.settings AS s JOIN pg_class AS c ON c.oid = to_regclass('"LiteLLM_SpendLogs"')
           WHERE s.name = 'books' AND s.value ->> 'schema' = c.relnamespace::regnamespace::text"#,
    )
    .fetch_optional(&mut *connection)
    .await?
    .flatten();
    if let Some(known) = known {
        return Ok(known);
    }
    sqlx::query(
        r#"INSERT INTO litespend.settings (name, value)
           SELECT 'books', jsonb_build_object('schema', relnamespace::regnamespace::text, 'id', gen_random_uuid())
           FROM pg_class WHERE oid = to_regclass('"LiteLLM_SpendLogs"')
           ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value || settings.value || jsonb_build_object(
               'schema', EXCLUDED.value -> 'schema')"#,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query_scalar("SELECT value ->> 'id' FROM litespend.settings WHERE name = 'books'").fetch_one(connection).await
}

/// The columns of the log that the archive does not have, as a LiteLLM newer than this version may have made them.
pub async fn unknown_columns(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    restoring::unknown_columns(connection).await
}

/// One closed day. `None` if the day is not closed.
pub async fn closed_day(connection: &mut PgConnection, day: NaiveDate) -> Result<Option<ClosedDay>, sqlx::Error> {
    sqlx::query_as("SELECT * FROM litespend.closed_days WHERE day = $1").bind(day).fetch_optional(connection).await
}

/// The days up to `through` that have rows or sums and are not closed, ascending.
pub async fn open_days(connection: &mut PgConnection, through: NaiveDate) -> Result<Vec<NaiveDate>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT day FROM litespend.open_days(to_regclass('"LiteLLM_SpendLogs"'), date '0001-01-01', $1) AS day
           ORDER BY day"#,
    )
    .bind(through)
    .fetch_all(connection)
    .await
}

/// Takes the lock that lets one session at a time close, prune and reopen days. The session holds it until it ends or
/// calls [`unlock`]. Returns false if another session holds it.
pub async fn lock(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock(7811884305)").fetch_one(connection).await
}

/// Releases the lock of [`lock`].
pub async fn unlock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_unlock(7811884305)").execute(connection).await.map(|_| ())
}

/// What was added to a closed day.
#[derive(Clone, Debug, FromRow)]
pub struct Adjustment {
    /// Day, UTC.
    pub day: NaiveDate,
    /// When it was first noted.
    pub first_noted_at: DateTime<Utc>,
    /// When it was last noted.
    pub last_noted_at: DateTime<Utc>,
    /// `late` rows, differences of `updated` rows, or `missed` changes, whose figures are unknown.
    pub kind: String,
    /// The sums of what was added.
    #[sqlx(flatten)]
    pub totals: Totals,
}

/// The adjustments of closed days, summed by day and kind; of all days, or of one.
pub async fn adjustments(
    connection: &mut PgConnection,
    day: Option<NaiveDate>,
) -> Result<Vec<Adjustment>, sqlx::Error> {
    sqlx::query_as(
        "SELECT a.day, min(noted_at) AS first_noted_at, max(noted_at) AS last_noted_at, kind,
                COALESCE(sum(a.requests), 0)::bigint AS requests, COALESCE(sum(a.spend), 0)::float8 AS spend,
                COALESCE(sum(a.prompt_tokens), 0)::bigint AS prompt_tokens,
                COALESCE(sum(a.completion_tokens), 0)::bigint AS completion_tokens,
                COALESCE(sum(a.total_tokens), 0)::bigint AS total_tokens
         FROM litespend.adjustments AS a JOIN litespend.closed_days AS c ON c.day = a.day
         WHERE $1::date IS NULL OR a.day = $1 GROUP BY a.day, kind ORDER BY a.day, kind",
    )
    .bind(day)
    .fetch_all(connection)
    .await
}

/// A day that was reopened.
#[derive(Clone, Debug, FromRow)]
pub struct ReopenedDay {
    /// Day, UTC.
    pub day: NaiveDate,
    /// When it was reopened.
    pub reopened_at: DateTime<Utc>,
    /// Why, as given by the user.
    pub reason: String,
    /// Number of requests that the day had counted; `None` for days that an earlier version reopened.
    pub requests: Option<i64>,
    /// Spend in USD that the day had counted.
    pub spend: Option<f64>,
    /// Tokens that the day had counted.
    pub total_tokens: Option<i64>,
}

/// Whether this database has the IDs of a day that it has exported: a closed day, or one of which the closing was interrupted.
pub async fn has_exported(connection: &mut PgConnection, day: NaiveDate) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM litespend.closed_ids WHERE day = $1)")
        .bind(day)
        .fetch_one(connection)
        .await
}

/// Whether a day was opened again at this time or later.
pub async fn is_reopened_since(
    connection: &mut PgConnection,
    day: NaiveDate,
    time: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM litespend.reopened_days WHERE day = $1 AND reopened_at >= $2)")
        .bind(day)
        .bind(time)
        .fetch_one(connection)
        .await
}

/// The days that were reopened, in the order of time.
pub async fn reopened_days(connection: &mut PgConnection) -> Result<Vec<ReopenedDay>, sqlx::Error> {
    sqlx::query_as("SELECT * FROM litespend.reopened_days ORDER BY reopened_at").fetch_all(connection).await
}

/// Number of rows of the log on a day.
pub async fn logged_rows(connection: &mut PgConnection, day: NaiveDate) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(r#"SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE "startTime" >= $1 AND "startTime" < $1 + 1"#)
        .bind(day)
        .fetch_one(connection)
        .await
}

/// The sums of the log's rows of a day.
pub async fn logged_totals(connection: &mut PgConnection, day: NaiveDate) -> Result<Totals, sqlx::Error> {
    sqlx::query_as(
        r#"SELECT count(*) AS requests, COALESCE(sum(spend), 0)::float8 AS spend,
                  COALESCE(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
                  COALESCE(sum(completion_tokens), 0)::bigint AS completion_tokens,
                  COALESCE(sum(total_tokens), 0)::bigint AS total_tokens
           FROM "LiteLLM_SpendLogs" WHERE "startTime" >= $1 AND "startTime" < $1 + 1"#,
    )
    .bind(day)
    .fetch_one(connection)
    .await
}

/// The digest of a request ID, as `litespend.id_digest` computes it: the first eight bytes of its SHA-256.
pub fn id_digest(request_id: &str) -> [u8; 8] {
    Sha256::digest(request_id).first_chunk().copied().unwrap_or_default()
}

/// The IDs, as digests, of rows that left one of these closed days by an update, or got another ID. The archive of the day
/// may still have them; they do not belong to the day any more.
pub async fn moved_ids(
    connection: &mut PgConnection,
    days: &[NaiveDate],
) -> Result<HashSet<(NaiveDate, [u8; 8])>, sqlx::Error> {
    if days.is_empty() || !is_current(connection).await? {
        return Ok(HashSet::new());
    }
    let moved: Vec<(NaiveDate, Vec<u8>)> =
        sqlx::query_as("SELECT DISTINCT day, digest FROM litespend.moved_ids WHERE day = ANY ($1)")
            .bind(days)
            .fetch_all(connection)
            .await?;
    Ok(moved.into_iter().filter_map(|(day, digest)| Some((day, *digest.first_chunk()?))).collect())
}

/// Number of rows of a closed day that its IDs in the database say the archive has.
pub async fn archived_id_count(connection: &mut PgConnection, day: NaiveDate) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT COALESCE(sum(octet_length(digests)) / 8, 0)::bigint FROM litespend.closed_ids WHERE day = $1",
    )
    .bind(day)
    .fetch_one(connection)
    .await
}

/// Those of these IDs, each with the day of its row, that a closed day counts although the log does not have them.
pub async fn archived_ids(
    connection: &mut PgConnection,
    rows: &[(&str, NaiveDate)],
) -> Result<HashSet<String>, sqlx::Error> {
    if rows.is_empty() || !is_any_closed(connection).await? {
        return Ok(HashSet::new());
    }
    let found: Vec<String> = sqlx::query_scalar(
        r#"SELECT id FROM unnest($1::text[], $2::date[]) AS asked (id, day) JOIN litespend.closed_days AS c USING (day)
           WHERE litespend.is_known(c.day, id, c.buckets)
             AND NOT EXISTS (SELECT FROM "LiteLLM_SpendLogs" WHERE request_id = id)"#,
    )
    .bind(rows.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, day)| *day).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().collect())
}

/// The last closed day.
pub async fn last_closed_day(connection: &mut PgConnection) -> Result<Option<NaiveDate>, sqlx::Error> {
    sqlx::query_scalar("SELECT max(day) FROM litespend.closed_days").fetch_one(connection).await
}
