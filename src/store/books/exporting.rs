//! How the rows of a day are read from the log for the archive: all of them, those that arrived late, or a slice of the day
//! with the versions of its rows.

use chrono::{NaiveDate, NaiveDateTime};
use futures_util::stream::BoxStream;
use litespend_archive::LogRow;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, ValueRef};

use crate::store::copying::{Fields, literal};

/// Begins the transaction in which a day is compared and exported: one snapshot, without a limit of time.
pub async fn begin_export(connection: &mut PgConnection) -> Result<sqlx::Transaction<'_, sqlx::Postgres>, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    // Compiling the statement of a large day takes up to 0.2 s, and does not make it faster: its values are only passed on.
    let settings =
        "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL jit = off";
    transaction.execute(settings).await?;
    Ok(transaction)
}

/// Which rows of a day to export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All rows of this day. The statement has no bind parameters, so that a COPY can run it.
    All(NaiveDate),
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

/// The statement that reads rows of a day for the archive, in the order of start and ID. The day is `$1`, except where the
/// selection has it. `by_bytes` says whether [the database compares texts by their bytes](orders_by_bytes). With
/// `bodies`, the texts of requests and responses are included; otherwise they are null. Columns that an older LiteLLM lacks
/// are null.
pub fn export_statement(selection: Selection, bodies: bool, by_bytes: bool) -> String {
    let body = |column: &str| if bodies { column.to_owned() } else { format!("NULL::jsonb AS {column}") };
    let collation = if by_bytes { "" } else { r#"COLLATE "C""# };
    let day = if let Selection::All(day) = selection { literal(day) } else { "$1".to_owned() };
    let chosen = match selection {
        Selection::All(_) => "",
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
               -- The start has no cast: an index has the order of the column, and not that of a value made from it.
               SELECT request_id, call_type, api_key, spend, total_tokens::int, prompt_tokens::int,
                      completion_tokens::int, "startTime", "endTime"::timestamp, "completionStartTime"::timestamp, model,
                      model_id, model_group, custom_llm_provider, api_base, "user", metadata, cache_hit, cache_key,
                      request_tags, team_id, organization_id, end_user, requester_ip_address, {}, {}, {}, session_id,
                      status, mcp_namespaced_tool_name, billing_agent_id, agent_id, litellm_call_id, request_duration_ms::int,
                      created_at::timestamp, updated_at::timestamp {version}
               FROM "LiteLLM_SpendLogs"
               WHERE "startTime" >= {day} AND "startTime" < {day} + 1 {chosen}) AS rows
           ORDER BY rows."startTime", rows.request_id {collation}"#,
        body("messages"),
        body("response"),
        body("proxy_server_request"),
    )
}

/// Streams the late rows of a day with the statement of [`Selection::Late`].
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

/// The row of [`Selection::Late`] or [`Selection::Slice`], as the archive stores it. If the archive cannot store it, the error
/// is its request ID.
pub fn exported(row: &PgRow) -> Result<LogRow<'_>, String> {
    fetched_row(row).map_err(|_| row.try_get_unchecked::<&str, _>(0).unwrap_or(WITHOUT_ID).to_owned())
}

/// Stands for the request ID of a row that has none.
const WITHOUT_ID: &str = "without an ID";

fn fetched_row(row: &PgRow) -> Result<LogRow<'_>, sqlx::Error> {
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

/// The number of columns of [`Selection::All`].
const COLUMNS: u16 = 36;

/// The row that a COPY of [`Selection::All`] sent, as the archive stores it. If the archive cannot store it, the error is its
/// request ID.
pub fn copied(row: &[u8]) -> Result<LogRow<'_>, String> {
    log_row(row).ok_or_else(|| {
        let id = Fields::of(row, COLUMNS).and_then(|mut fields| fields.text()).flatten();
        id.unwrap_or(WITHOUT_ID).to_owned()
    })
}

/// The fields are read in the order of the statement.
fn log_row(row: &[u8]) -> Option<LogRow<'_>> {
    let mut fields = Fields::of(row, COLUMNS)?;
    let row = LogRow {
        request_id: fields.text()??,
        call_type: fields.text()??,
        api_key: fields.text()??,
        spend: fields.float()??,
        total_tokens: fields.int()??,
        prompt_tokens: fields.int()??,
        completion_tokens: fields.int()??,
        start_time: fields.long()?.map(since_1970).unwrap_or_default(),
        end_time: fields.long()?.map(since_1970),
        completion_start_time: fields.long()?.map(since_1970),
        model: fields.text()??,
        model_id: fields.text()?,
        model_group: fields.text()?,
        custom_llm_provider: fields.text()?,
        api_base: fields.text()?,
        user: fields.text()?,
        metadata: fields.text()?.map(without_version),
        cache_hit: fields.text()?,
        cache_key: fields.text()?,
        request_tags: fields.text()?.map(without_version),
        team_id: fields.text()?,
        organization_id: fields.text()?,
        end_user: fields.text()?,
        requester_ip_address: fields.text()?,
        messages: fields.text()?.map(without_version),
        response: fields.text()?.map(without_version),
        proxy_server_request: fields.text()?.map(without_version),
        session_id: fields.text()?,
        status: fields.text()?,
        mcp_namespaced_tool_name: fields.text()?,
        billing_agent_id: fields.text()?,
        agent_id: fields.text()?,
        litellm_call_id: fields.text()?,
        request_duration_ms: fields.int()?,
        created_at: fields.long()?.map(since_1970),
        updated_at: fields.long()?.map(since_1970),
    };
    fields.is_at_end().then_some(row)
}

/// The text of a JSON value. PostgreSQL sends `jsonb` with the version of its format before the text, which is the byte 1.
fn without_version(json: &str) -> &str {
    json.strip_prefix('\u{1}').unwrap_or(json)
}

/// Microseconds from 1970, the start of Unix time, to 2000, the start of PostgreSQL's.
const EPOCH: i64 = 946_684_800_000_000;

/// A timestamp of PostgreSQL in microseconds since 1970-01-01 UTC. Infinite times are the largest and the smallest number.
fn since_1970(timestamp: i64) -> i64 {
    if timestamp == i64::MIN || timestamp == i64::MAX { timestamp } else { timestamp.saturating_add(EPOCH) }
}

/// A timestamp in microseconds since 1970-01-01 UTC.
fn microseconds(row: &PgRow, column: usize) -> Result<Option<i64>, sqlx::Error> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    let number = bytes.try_into().map(i64::from_be_bytes).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(Some(since_1970(number)))
}
