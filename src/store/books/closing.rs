//! What closing a day reads and writes.

use chrono::{NaiveDate, NaiveDateTime};
use futures_util::stream::BoxStream;
use litespend_archive::LogRow;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, ValueRef};

use crate::store::books::Totals;
use crate::store::rollups::verify::VERIFY_LOG;
use crate::store::rollups::{Difference, partitions};

/// Why a day can't be closed at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// Changes of the day are not folded yet.
    Unfolded,
    /// The day has to be counted again from the log.
    Dirty,
    /// Partitions of the log came or went and are not counted yet.
    Partitions,
}

/// Whether the rollups have the day as the log has it, as far as they know.
pub async fn readiness(connection: &mut PgConnection, day: NaiveDate) -> Result<Option<NotReady>, sqlx::Error> {
    let (dirty, waiting): (bool, bool) = sqlx::query_as(
        "SELECT COALESCE(bool_or(sign = 0), false), COALESCE(bool_or(sign <> 0), false)
         FROM litespend.deltas WHERE day = $1 OR day IS NULL",
    )
    .bind(day)
    .fetch_one(&mut *connection)
    .await?;
    if dirty {
        return Ok(Some(NotReady::Dirty));
    }
    if waiting {
        return Ok(Some(NotReady::Unfolded));
    }
    Ok((!partitions::are_counted(connection).await?).then_some(NotReady::Partitions))
}

/// The figures that the rollups have of a day, with what is not folded yet.
pub async fn totals(connection: &mut PgConnection, day: NaiveDate) -> Result<Totals, sqlx::Error> {
    sqlx::query_as(
        "SELECT COALESCE(sum(requests), 0)::bigint AS requests, COALESCE(sum(spend), 0)::float8 AS spend,
                COALESCE(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
                COALESCE(sum(completion_tokens), 0)::bigint AS completion_tokens,
                COALESCE(sum(total_tokens), 0)::bigint AS total_tokens
         FROM (SELECT requests, spend, prompt_tokens, completion_tokens, total_tokens FROM litespend.day_usage
               WHERE day = $1
               UNION ALL
               SELECT sign, spend, prompt_tokens, completion_tokens, total_tokens FROM litespend.deltas
               WHERE day = $1 AND sign <> 0) AS parts",
    )
    .bind(day)
    .fetch_one(connection)
    .await
}

/// A hash of the day's sums by team, user, key and model, and of the transactions that wrote them last: it changes with every
/// change of these columns that is folded, also if the sums stay the same.
pub async fn fingerprint(connection: &mut PgConnection, day: NaiveDate) -> Result<String, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT COALESCE(sum(hashtextextended(d::text || d.xmin::text, 0)::numeric), 0)::text
         FROM litespend.day_usage AS d WHERE day = $1",
    )
    .bind(day)
    .fetch_one(connection)
    .await
}

/// The first difference between the rollups and the log on a day, within the caller's transaction.
pub async fn difference(connection: &mut PgConnection, day: NaiveDate) -> Result<Option<Difference>, sqlx::Error> {
    for statement in VERIFY_LOG {
        let found = sqlx::query_as(statement).bind(day).fetch_optional(&mut *connection).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Begins the transaction in which a day is compared and exported: one snapshot, without a limit of time.
pub async fn begin_export(connection: &mut PgConnection) -> Result<sqlx::Transaction<'_, sqlx::Postgres>, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    transaction.execute("SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0").await?;
    Ok(transaction)
}

/// Which rows of a day to export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All rows of the log.
    All,
    /// The rows that arrived after the day was closed and are not in the archive yet.
    Late,
    /// The rows that start at `$2` or later and before `$3`, each with its version in a last column.
    Slice,
}

/// Whether the database compares texts by their bytes. An index then has the order of the archive's rows.
pub async fn orders_by_bytes(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    // The locales of the built-in provider all do. PostgreSQL 14 has no column for the provider.
    sqlx::query_scalar(
        r#"SELECT CASE COALESCE(to_jsonb(databases) ->> 'datlocprovider', 'c')
                  WHEN 'b' THEN true WHEN 'c' THEN datcollate IN ('C', 'POSIX', 'C.UTF-8', 'C.utf8') ELSE false END
                  AND (SELECT attcollation FROM pg_attribute
                       WHERE attrelid = '"LiteLLM_SpendLogs"'::regclass AND attname = 'request_id')
                      = 'pg_catalog."default"'::regcollation
           FROM pg_database AS databases WHERE datname = current_database()"#,
    )
    .fetch_one(connection)
    .await
}

/// The statement that reads the rows of the day `$1` for the archive, in the order of start and ID. `by_bytes` says whether
/// [the database compares texts by their bytes](orders_by_bytes). With `bodies`, the texts of requests and responses are
/// included; otherwise they are null. Columns that an older LiteLLM lacks are null.
pub fn export_statement(selection: Selection, bodies: bool, by_bytes: bool) -> String {
    let body = |column: &str| if bodies { column.to_owned() } else { format!("NULL::jsonb AS {column}") };
    let collation = if by_bytes { "" } else { r#"COLLATE "C""# };
    let chosen = match selection {
        Selection::All => "",
        Selection::Late => {
            "AND substring(sha256(convert_to(request_id, 'UTF8')) FOR 8) IN
                 (SELECT digest FROM litespend.late_ids WHERE day = $1 AND NOT is_lost)"
        }
        Selection::Slice => r#"AND "startTime" >= $2 AND "startTime" < $3"#,
    };
    let version = if selection == Selection::Slice { ", xmin::text" } else { "" };
    format!(
        r#"SELECT rows.* FROM
               (SELECT NULL::text AS model_id, NULL::text AS organization_id, NULL::text AS requester_ip_address,
                       NULL::text AS session_id, NULL::text AS status, NULL::text AS mcp_namespaced_tool_name,
                       NULL::text AS billing_agent_id, NULL::text AS agent_id, NULL::text AS litellm_call_id,
                       NULL::int AS request_duration_ms, NULL::timestamp AS created_at, NULL::timestamp AS updated_at,
                       NULL::jsonb AS messages, NULL::jsonb AS response, NULL::jsonb AS proxy_server_request) AS defaults
           CROSS JOIN LATERAL (
               SELECT request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens,
                      "startTime"::timestamp, "endTime"::timestamp, "completionStartTime"::timestamp, model, model_id,
                      model_group, custom_llm_provider, api_base, "user", metadata, cache_hit, cache_key,
                      request_tags, team_id, organization_id, end_user, requester_ip_address, {}, {}, {}, session_id,
                      status, mcp_namespaced_tool_name, billing_agent_id, agent_id, litellm_call_id, request_duration_ms,
                      created_at::timestamp, updated_at::timestamp {version}
               FROM "LiteLLM_SpendLogs"
               WHERE "startTime" >= $1 AND "startTime" < $1 + 1 {chosen}
               -- The column, and not its text of the same name above: an index has its order.
               ORDER BY "LiteLLM_SpendLogs"."startTime", request_id {collation}) AS rows"#,
        body("messages"),
        body("response"),
        body("proxy_server_request"),
    )
}

/// Streams the rows of a day with a statement of [`export_statement`].
pub fn rows<'c>(
    connection: &'c mut PgConnection,
    day: NaiveDate,
    statement: &'c str,
) -> BoxStream<'c, Result<PgRow, sqlx::Error>> {
    sqlx::query(AssertSqlSafe(statement)).bind(day).fetch(connection)
}

/// Streams the rows of a slice of a day with the statement of [`Selection::Slice`].
pub fn slice<'c>(
    connection: &'c mut PgConnection,
    day: NaiveDate,
    (from, to): (NaiveDateTime, NaiveDateTime),
    statement: &'c str,
) -> BoxStream<'c, Result<PgRow, sqlx::Error>> {
    sqlx::query(AssertSqlSafe(statement)).bind(day).bind(from).bind(to).fetch(connection)
}

/// The version of a row of a slice: it is another one after every update.
pub fn version(row: &PgRow) -> Result<String, sqlx::Error> {
    row.try_get(VERSION)
}

/// Place of the version among the columns of a slice.
const VERSION: usize = 36;

/// The row as the archive stores it.
pub fn exported(row: &PgRow) -> Result<LogRow<'_>, sqlx::Error> {
    let required = |column: usize| row.try_get_unchecked::<&str, _>(column);
    let text = |column: usize| row.try_get_unchecked::<Option<&str>, _>(column);
    let number = |column: usize| row.try_get_unchecked::<i32, _>(column);
    let json = |column: usize| Ok::<_, sqlx::Error>(text(column)?.map(without_version));
    Ok(LogRow {
        request_id: required(0)?,
        call_type: required(1)?,
        api_key: required(2)?,
        spend: row.try_get_unchecked(3)?,
        total_tokens: number(4)?,
        prompt_tokens: number(5)?,
        completion_tokens: number(6)?,
        start_time: microseconds(row, 7)?.unwrap_or_default(),
        end_time: microseconds(row, 8)?,
        completion_start_time: microseconds(row, 9)?,
        model: required(10)?,
        model_id: text(11)?,
        model_group: text(12)?,
        custom_llm_provider: text(13)?,
        api_base: text(14)?,
        user: text(15)?,
        metadata: json(16)?,
        cache_hit: text(17)?,
        cache_key: text(18)?,
        request_tags: json(19)?,
        team_id: text(20)?,
        organization_id: text(21)?,
        end_user: text(22)?,
        requester_ip_address: text(23)?,
        messages: json(24)?,
        response: json(25)?,
        proxy_server_request: json(26)?,
        session_id: text(27)?,
        status: text(28)?,
        mcp_namespaced_tool_name: text(29)?,
        billing_agent_id: text(30)?,
        agent_id: text(31)?,
        litellm_call_id: text(32)?,
        request_duration_ms: row.try_get_unchecked(33)?,
        created_at: microseconds(row, 34)?,
        updated_at: microseconds(row, 35)?,
    })
}

/// The text of a JSON value. PostgreSQL sends `jsonb` with the version of its format before the text, which is the byte 1.
fn without_version(json: &str) -> &str {
    json.strip_prefix('\u{1}').unwrap_or(json)
}

/// Microseconds from 1970, the start of Unix time, to 2000, the start of PostgreSQL's.
const EPOCH: i64 = 946_684_800_000_000;

/// A timestamp in microseconds since 1970-01-01 UTC. Infinite times become the largest and the smallest number.
fn microseconds(row: &PgRow, column: usize) -> Result<Option<i64>, sqlx::Error> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    let number = bytes.try_into().map(i64::from_be_bytes).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(Some(if number == i64::MIN || number == i64::MAX { number } else { number.saturating_add(EPOCH) }))
}

/// Number of buckets for the IDs of a day.
pub fn buckets(rows: i64) -> i32 {
    i32::try_from(rows / 500 + 1).unwrap_or(i32::MAX).min(1 << 20)
}

/// The names that the first or the last row of a key on a day gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyNames {
    /// Start of the row's call.
    pub start_time: NaiveDateTime,
    /// Alias of the key.
    pub alias: Option<String>,
    /// Team ID.
    pub team: Option<String>,
    /// User ID of the owner.
    pub owner: Option<String>,
}

/// Names of a key: its hash, whether they are those of the day's first row that has any (or else of the last), and the
/// names.
pub type NamedKey = (String, bool, KeyNames);

/// The sums of a day's rows by user, model group and model ID.
#[derive(Clone, Copy, Debug)]
pub struct ActivityGroup<'a> {
    /// User ID.
    pub user: Option<&'a str>,
    /// Model group.
    pub model_group: Option<&'a str>,
    /// Model ID.
    pub model_id: Option<&'a str>,
    /// Number of requests.
    pub requests: i64,
    /// Spend in USD.
    pub spend: f64,
    /// Prompt and completion tokens.
    pub total_tokens: i64,
}

/// Digests of the request IDs of a day that fall into one bucket, one after the other, as `litespend.id_bucket` and
/// `litespend.id_digest` say.
#[derive(Clone, Debug)]
pub struct BucketOfIds {
    /// Number of the bucket.
    pub bucket: i32,
    /// The digests, eight bytes each.
    pub digests: Vec<u8>,
}

/// What the rows of a day gave while they were exported.
#[derive(Debug)]
pub struct Details<'a> {
    /// The IDs. `None`: they are read from the log.
    pub ids: Option<Vec<BucketOfIds>>,
    /// The sums by user and model. `None`: they are read from the log.
    pub activity: Option<Vec<ActivityGroup<'a>>>,
    /// The names of keys.
    pub names: &'a [NamedKey],
}

/// Stores what a closed day needs beside the day tables. Belongs into the transaction of the export. Has no effect while
/// the day is not closed.
pub async fn store_details(
    connection: &mut PgConnection,
    day: NaiveDate,
    buckets: i32,
    details: &Details<'_>,
) -> Result<(), sqlx::Error> {
    delete_details(&mut *connection, day).await?;
    store_ids(connection, day, buckets, details.ids.as_deref()).await?;
    store_activity(connection, day, details.activity.as_deref()).await?;
    sqlx::query(
        r#"INSERT INTO litespend.closed_midnights
           SELECT $1, team_id, "user", api_key, model, end_user, count(*), sum(spend), sum(prompt_tokens),
                  sum(completion_tokens), sum(total_tokens)
           FROM "LiteLLM_SpendLogs" WHERE "startTime" = $1 GROUP BY 2, 3, 4, 5, 6"#,
    )
    .bind(day)
    .execute(&mut *connection)
    .await?;
    store_key_names(connection, day, details.names).await
}

async fn store_ids(
    connection: &mut PgConnection,
    day: NaiveDate,
    buckets: i32,
    ids: Option<&[BucketOfIds]>,
) -> Result<(), sqlx::Error> {
    let Some(ids) = ids else {
        sqlx::query(
            r#"INSERT INTO litespend.closed_ids (day, bucket, digests)
               SELECT $1, litespend.id_bucket(digest, $2), string_agg(digest, '')
               FROM (SELECT substring(sha256(convert_to(request_id, 'UTF8')) FOR 8) AS digest FROM "LiteLLM_SpendLogs"
                     WHERE "startTime" >= $1 AND "startTime" < $1 + 1) AS ids
               GROUP BY 2"#,
        )
        .bind(day)
        .bind(buckets)
        .execute(connection)
        .await?;
        return Ok(());
    };
    sqlx::query(
        "INSERT INTO litespend.closed_ids (day, bucket, digests) SELECT $1, ids.* FROM unnest($2::int[], $3::bytea[]) AS ids",
    )
    .bind(day)
    .bind(ids.iter().map(|ids| ids.bucket).collect::<Vec<_>>())
    .bind(ids.iter().map(|ids| ids.digests.as_slice()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

async fn store_activity(
    connection: &mut PgConnection,
    day: NaiveDate,
    groups: Option<&[ActivityGroup<'_>]>,
) -> Result<(), sqlx::Error> {
    let Some(groups) = groups else {
        sqlx::query(
            r#"INSERT INTO litespend.closed_activity (day, user_id, model_group, model_id, requests, spend, total_tokens)
               SELECT $1, log."user", log.model_group, log.model_id, count(*), sum(log.spend), sum(log.total_tokens)
               FROM (SELECT NULL::text AS model_id) AS defaults
               CROSS JOIN LATERAL (SELECT "user", model_group, model_id, spend, total_tokens FROM "LiteLLM_SpendLogs"
                                   WHERE "startTime" >= $1 AND "startTime" < $1 + 1) AS log
               GROUP BY 2, 3, 4"#,
        )
        .bind(day)
        .execute(connection)
        .await?;
        return Ok(());
    };
    macro_rules! column {
        ($field:ident) => {
            groups.iter().map(|group| group.$field).collect::<Vec<_>>()
        };
    }
    sqlx::query(
        "INSERT INTO litespend.closed_activity (day, user_id, model_group, model_id, requests, spend, total_tokens)
         SELECT $1, groups.*
         FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::float8[], $7::bigint[]) AS groups",
    )
    .bind(day)
    .bind(column!(user))
    .bind(column!(model_group))
    .bind(column!(model_id))
    .bind(column!(requests))
    .bind(column!(spend))
    .bind(column!(total_tokens))
    .execute(connection)
    .await?;
    Ok(())
}

async fn store_key_names(connection: &mut PgConnection, day: NaiveDate, names: &[NamedKey]) -> Result<(), sqlx::Error> {
    macro_rules! column {
        ($take:expr) => {
            names.iter().map($take).collect::<Vec<_>>()
        };
    }
    sqlx::query(
        r#"INSERT INTO litespend.closed_key_names (day, api_key, is_first, "startTime", alias, team, owner)
           SELECT $1, names.* FROM unnest($2::text[], $3::bool[], $4::timestamp[], $5::text[], $6::text[], $7::text[]) AS names"#,
    )
    .bind(day)
    .bind(column!(|(key, ..)| key.as_str()))
    .bind(column!(|(_, is_first, _)| *is_first))
    .bind(column!(|(.., names)| names.start_time))
    .bind(column!(|(.., names)| names.alias.as_deref()))
    .bind(column!(|(.., names)| names.team.as_deref()))
    .bind(column!(|(.., names)| names.owner.as_deref()))
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes what is stored of a day beside the day tables.
pub(super) async fn delete_details(connection: &mut PgConnection, day: NaiveDate) -> Result<(), sqlx::Error> {
    for statement in [
        "DELETE FROM litespend.closed_ids WHERE day = $1",
        "DELETE FROM litespend.late_ids WHERE day = $1",
        "DELETE FROM litespend.moved_ids WHERE day = $1",
        "DELETE FROM litespend.closed_activity WHERE day = $1",
        "DELETE FROM litespend.closed_midnights WHERE day = $1",
        "DELETE FROM litespend.closed_key_names WHERE day = $1",
        "DELETE FROM litespend.adjustments WHERE day = $1",
        "DELETE FROM litespend.incomplete_days WHERE day = $1",
    ] {
        sqlx::query(statement).bind(day).execute(&mut *connection).await?;
    }
    Ok(())
}

/// What is recorded of a day that is closed.
#[derive(Clone, Debug)]
pub struct Closing {
    /// Day, UTC.
    pub day: NaiveDate,
    /// Its figures in the rollups, the log and the archive.
    pub totals: Totals,
    /// The [`fingerprint`] of its rollups when it was exported.
    pub fingerprint: String,
    /// Revision of its manifest.
    pub revision: u32,
    /// The figures of the rows in the archive.
    pub archived: Totals,
    /// Number of buckets of its IDs.
    pub buckets: i32,
}

/// Records the day as closed. Returns false, and changes nothing, if the log changed after it was exported. Waits at most
/// two seconds for the writers of the log; when the wait is over, the error is 55P03.
pub async fn close(connection: &mut PgConnection, closing: &Closing) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '2s'").await?;
    // Whoever counts or folds at this moment is waited for, or begins again and sees the closed day.
    transaction.execute("UPDATE litespend.turn SET taken = taken + 1").await?;
    // Every writer that began before has its deltas committed now, and every later one sees the closed day.
    transaction.execute(r#"LOCK TABLE "LiteLLM_SpendLogs" IN SHARE MODE"#).await?;
    if readiness(&mut transaction, closing.day).await?.is_some()
        || !totals(&mut transaction, closing.day).await?.agrees_with(&closing.totals)
        || fingerprint(&mut transaction, closing.day).await? != closing.fingerprint
    {
        return Ok(false);
    }
    let Closing { day, totals, revision, archived, buckets, .. } = closing;
    sqlx::query("DELETE FROM litespend.incomplete_days WHERE day = $1").bind(day).execute(&mut *transaction).await?;
    sqlx::query(
        "INSERT INTO litespend.closed_days (day, requests, spend, prompt_tokens, completion_tokens, total_tokens,
             revision, archived_rows, archived_spend, archived_prompt_tokens, archived_completion_tokens,
             archived_total_tokens, buckets)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(day)
    .bind(totals.requests)
    .bind(totals.spend)
    .bind(totals.prompt_tokens)
    .bind(totals.completion_tokens)
    .bind(totals.total_tokens)
    .bind(i32::try_from(*revision).unwrap_or(i32::MAX))
    .bind(archived.requests)
    .bind(archived.spend)
    .bind(archived.prompt_tokens)
    .bind(archived.completion_tokens)
    .bind(archived.total_tokens)
    .bind(buckets)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(true)
}

/// Digests of the IDs of rows that arrived after the day was closed and are not recorded as archived, without those that
/// the log lost.
pub async fn late_ids(connection: &mut PgConnection, day: NaiveDate) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    sqlx::query_scalar("SELECT digest FROM litespend.late_ids WHERE day = $1 AND NOT is_lost")
        .bind(day)
        .fetch_all(connection)
        .await
}

/// Records that the log has lost late rows before they were archived. They go on counting. The archive does not have them:
/// should the log have them again, they are not removed from it.
pub async fn record_lost_rows(
    connection: &mut PgConnection,
    day: NaiveDate,
    digests: &[Vec<u8>],
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE litespend.late_ids SET is_lost = true WHERE day = $1 AND digest = ANY ($2)")
        .bind(day)
        .bind(digests)
        .execute(connection)
        .await
        .map(|_| ())
}

/// Finds lost late rows that the log has again, as when their partition is attached again. They are archived next.
pub async fn find_lost_rows(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        r#"UPDATE litespend.late_ids AS late SET is_lost = false
           WHERE is_lost AND EXISTS (SELECT FROM "LiteLLM_SpendLogs" AS log
                                     WHERE log."startTime" >= late.day AND log."startTime" < late.day + 1
                                       AND substring(sha256(convert_to(log.request_id, 'UTF8')) FOR 8) = late.digest)"#,
    )
    .execute(connection)
    .await
    .map(|_| ())
}

/// Digests of the IDs of all rows that arrived after the day was closed and are not recorded as archived.
pub async fn unarchived_ids(connection: &mut PgConnection, day: NaiveDate) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    sqlx::query_scalar("SELECT digest FROM litespend.late_ids WHERE day = $1").bind(day).fetch_all(connection).await
}

/// Records that late rows of a closed day are in the archive: the revision that has them, the figures of all its rows, and
/// the digests of the late rows' IDs.
pub async fn record_late_rows(
    connection: &mut PgConnection,
    day: NaiveDate,
    revision: u32,
    archived: &Totals,
    digests: &[Vec<u8>],
) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query(
        "INSERT INTO litespend.closed_ids AS ids (day, bucket, digests)
         SELECT $1, litespend.id_bucket(digest, buckets), string_agg(digest, '')
         FROM unnest($2::bytea[]) AS digest, litespend.closed_days WHERE day = $1
         GROUP BY 2
         ON CONFLICT (day, bucket) DO UPDATE SET digests = ids.digests || EXCLUDED.digests",
    )
    .bind(day)
    .bind(digests)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("DELETE FROM litespend.late_ids WHERE day = $1 AND digest = ANY ($2)")
        .bind(day)
        .bind(digests)
        .execute(&mut *transaction)
        .await?;
    sqlx::query(
        "UPDATE litespend.closed_days SET revision = $2, archived_rows = $3, archived_spend = $4, archived_prompt_tokens = $5,
             archived_completion_tokens = $6, archived_total_tokens = $7, verified_at = now()
         WHERE day = $1",
    )
    .bind(day)
    .bind(i32::try_from(revision).unwrap_or(i32::MAX))
    .bind(archived.requests)
    .bind(archived.spend)
    .bind(archived.prompt_tokens)
    .bind(archived.completion_tokens)
    .bind(archived.total_tokens)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

/// Records that the archive of a day was read back and compared.
pub async fn record_verified(connection: &mut PgConnection, day: NaiveDate) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE litespend.closed_days SET verified_at = now() WHERE day = $1")
        .bind(day)
        .execute(connection)
        .await
        .map(|_| ())
}

/// The closed days with rows that arrived later and are not recorded as archived, ascending; without those of which the log
/// has lost all these rows.
pub async fn days_with_late_rows(connection: &mut PgConnection) -> Result<Vec<NaiveDate>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT DISTINCT day FROM litespend.late_ids JOIN litespend.closed_days USING (day) WHERE NOT is_lost ORDER BY day",
    )
    .fetch_all(connection)
    .await
}
