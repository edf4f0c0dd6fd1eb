//! How archived rows come into the log, of this or of another database, and how a day is opened again.

use std::collections::HashSet;

use chrono::{DateTime, Datelike, NaiveDate};
use litespend_archive::OwnedRow;
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::store::books::closing::totals;
use crate::store::books::details::delete_details;
use crate::store::books::{Totals, logged_totals};

/// A row of the archive in the form that PostgreSQL reads with `json_populate_recordset`. Columns that are not archived are
/// left out.
#[derive(Serialize)]
struct Restored<'a> {
    request_id: &'a str,
    call_type: &'a str,
    api_key: &'a str,
    spend: String,
    total_tokens: i32,
    prompt_tokens: i32,
    completion_tokens: i32,
    #[serde(rename = "startTime")]
    start_time: Option<String>,
    #[serde(rename = "endTime")]
    end_time: Option<String>,
    #[serde(rename = "completionStartTime")]
    completion_start_time: Option<String>,
    model: &'a str,
    model_id: Option<&'a str>,
    model_group: Option<&'a str>,
    custom_llm_provider: Option<&'a str>,
    api_base: Option<&'a str>,
    user: Option<&'a str>,
    metadata: Option<&'a RawValue>,
    cache_hit: Option<&'a str>,
    cache_key: Option<&'a str>,
    request_tags: Option<&'a RawValue>,
    team_id: Option<&'a str>,
    organization_id: Option<&'a str>,
    end_user: Option<&'a str>,
    requester_ip_address: Option<&'a str>,
    messages: Option<&'a RawValue>,
    response: Option<&'a RawValue>,
    proxy_server_request: Option<&'a RawValue>,
    session_id: Option<&'a str>,
    status: Option<&'a str>,
    mcp_namespaced_tool_name: Option<&'a str>,
    billing_agent_id: Option<&'a str>,
    agent_id: Option<&'a str>,
    litellm_call_id: Option<&'a str>,
    request_duration_ms: Option<i32>,
    created_at: Option<String>,
    updated_at: Option<String>,
}

/// Columns of texts that an archive without bodies does not have.
const BODIES: [&str; 3] = ["messages", "response", "proxy_server_request"];

/// The columns of [`Restored`].
const COLUMNS: [&str; 33] = [
    "request_id",
    "call_type",
    "api_key",
    "spend",
    "total_tokens",
    "prompt_tokens",
    "completion_tokens",
    "startTime",
    "endTime",
    "completionStartTime",
    "model",
    "model_id",
    "model_group",
    "custom_llm_provider",
    "api_base",
    "user",
    "metadata",
    "cache_hit",
    "cache_key",
    "request_tags",
    "team_id",
    "organization_id",
    "end_user",
    "requester_ip_address",
    "session_id",
    "status",
    "mcp_namespaced_tool_name",
    "billing_agent_id",
    "agent_id",
    "litellm_call_id",
    "request_duration_ms",
    "created_at",
    "updated_at",
];

/// The columns of the log that the archive does not have.
pub(in crate::store) async fn unknown_columns(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT attname::text FROM pg_attribute
           WHERE attrelid = to_regclass('"LiteLLM_SpendLogs"') AND attnum > 0 AND NOT attisdropped AND attname <> ALL ($1)
           ORDER BY attnum"#,
    )
    .bind(COLUMNS.into_iter().chain(BODIES).collect::<Vec<_>>())
    .fetch_all(connection)
    .await
}

/// Microseconds since 1970 as a text that PostgreSQL reads as a timestamp.
fn timestamp(microseconds: i64) -> Option<String> {
    match microseconds {
        i64::MAX => Some("infinity".to_owned()),
        i64::MIN => Some("-infinity".to_owned()),
        _ => DateTime::from_timestamp_micros(microseconds).map(|time| {
            // Year 0 of the calendar is 1 BC.
            let (year, era) = if time.year() > 0 { (time.year(), "") } else { (1 - time.year(), " BC") };
            format!("{year:04}-{}{era}", time.format("%m-%dT%H:%M:%S%.6f"))
        }),
    }
}

/// JSON text as it stands. PostgreSQL wrote it, so it is valid.
fn json(text: &Option<String>) -> Option<&RawValue> {
    text.as_deref().and_then(|text| serde_json::from_str(text).ok())
}

impl<'a> Restored<'a> {
    fn new(row: &'a OwnedRow) -> Self {
        Self {
            request_id: &row.request_id,
            call_type: &row.call_type,
            api_key: &row.api_key,
            spend: row.spend.to_string(),
            total_tokens: row.total_tokens,
            prompt_tokens: row.prompt_tokens,
            completion_tokens: row.completion_tokens,
            start_time: timestamp(row.start_time),
            end_time: row.end_time.and_then(timestamp),
            completion_start_time: row.completion_start_time.and_then(timestamp),
            model: &row.model,
            model_id: row.model_id.as_deref(),
            model_group: row.model_group.as_deref(),
            custom_llm_provider: row.custom_llm_provider.as_deref(),
            api_base: row.api_base.as_deref(),
            user: row.user.as_deref(),
            metadata: json(&row.metadata),
            cache_hit: row.cache_hit.as_deref(),
            cache_key: row.cache_key.as_deref(),
            request_tags: json(&row.request_tags),
            team_id: row.team_id.as_deref(),
            organization_id: row.organization_id.as_deref(),
            end_user: row.end_user.as_deref(),
            requester_ip_address: row.requester_ip_address.as_deref(),
            messages: json(&row.messages),
            response: json(&row.response),
            proxy_server_request: json(&row.proxy_server_request),
            session_id: row.session_id.as_deref(),
            status: row.status.as_deref(),
            mcp_namespaced_tool_name: row.mcp_namespaced_tool_name.as_deref(),
            billing_agent_id: row.billing_agent_id.as_deref(),
            agent_id: row.agent_id.as_deref(),
            litellm_call_id: row.litellm_call_id.as_deref(),
            request_duration_ms: row.request_duration_ms,
            created_at: row.created_at.and_then(timestamp),
            updated_at: row.updated_at.and_then(timestamp),
        }
    }
}

/// Inserts rows of the archive of a day that the log does not have, and returns how many. With `bodies`, also messages,
/// responses and requests; otherwise these columns get their defaults. While the day is closed, this changes no sums.
pub async fn insert_rows(
    connection: &mut PgConnection,
    day: NaiveDate,
    rows: &[OwnedRow],
    bodies: bool,
) -> Result<u64, sqlx::Error> {
    let columns = columns(connection, bodies).await?;
    // The day and the ID decide: the log may have the row at another time of the day.
    let missing = format!(
        r#"WHERE NOT EXISTS (SELECT FROM "LiteLLM_SpendLogs" AS log
                             WHERE log.request_id = archived.request_id
                               AND log."startTime" >= date '{day}' AND log."startTime" < date '{day}' + 1)"#
    );
    let text = as_json(rows.iter())?;
    let statement = format!(
        r#"INSERT INTO "LiteLLM_SpendLogs" ({columns})
           SELECT {columns} FROM json_populate_recordset(NULL::"LiteLLM_SpendLogs", $1::json) AS archived
           {missing} ON CONFLICT DO NOTHING"#
    );
    let done = sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(text).execute(&mut *connection).await?;
    let inserted = done.rows_affected();
    if bodies {
        restore_bodies(connection, rows).await?;
    }
    Ok(inserted)
}

/// A row of the archive, with the ID and the key that it gets in the log.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Incoming<'a> {
    pub(in crate::store) request_id: &'a str,
    pub(in crate::store) api_key: &'a str,
    pub(in crate::store) row: &'a OwnedRow,
}

/// The most rows of one statement of [`insert_incoming`].
const STATEMENT_ROWS: usize = 1_000;

/// The number of bytes of long columns after which such a statement takes no further row.
const STATEMENT_BYTES: usize = 4 * 1024 * 1024;

/// Inserts archived rows, maybe of another database, with all their columns, and returns the IDs of those that were
/// inserted. `conflict` is the target of ON CONFLICT. Where the log cannot hold null, a null becomes the column's default.
pub(in crate::store) async fn insert_incoming(
    connection: &mut PgConnection,
    conflict: &str,
    rows: &[Incoming<'_>],
) -> Result<HashSet<String>, sqlx::Error> {
    let mut inserted = HashSet::with_capacity(rows.len());
    if rows.is_empty() {
        return Ok(inserted);
    }
    let (columns, values) = incoming_columns(connection).await?;
    let statement = format!(
        r#"INSERT INTO "LiteLLM_SpendLogs" ({columns})
           SELECT {values} FROM json_populate_recordset(NULL::"LiteLLM_SpendLogs", $1::json) AS archived
           ON CONFLICT {conflict} DO NOTHING RETURNING request_id"#
    );
    let mut rows = rows.iter().peekable();
    while rows.peek().is_some() {
        let (mut restored, mut bytes) = (Vec::new(), 0);
        while let Some(incoming) = rows.next_if(|_| restored.len() < STATEMENT_ROWS && bytes < STATEMENT_BYTES) {
            bytes += text_bytes(incoming.row);
            let (request_id, api_key) = (incoming.request_id, incoming.api_key);
            restored.push(Restored { request_id, api_key, ..Restored::new(incoming.row) });
        }
        let text = serde_json::to_string(&restored).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        let ids: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement.clone()))
            .persistent(false)
            .bind(text)
            .fetch_all(&mut *connection)
            .await?;
        inserted.extend(ids);
    }
    Ok(inserted)
}

/// Number of bytes in the texts of a row that may be long.
pub fn text_bytes(row: &OwnedRow) -> usize {
    let texts = [
        &row.metadata,
        &row.request_tags,
        &row.messages,
        &row.response,
        &row.proxy_server_request,
        &row.api_base,
        &row.model_id,
        &row.model_group,
        &row.cache_hit,
        &row.cache_key,
        &row.requester_ip_address,
        &row.billing_agent_id,
        &row.agent_id,
        &row.session_id,
        &row.litellm_call_id,
    ];
    row.call_type.len() + row.model.len() + texts.into_iter().flatten().map(String::len).sum::<usize>()
}

/// The columns of the log that an archive has, and their values for rows named `archived`, both as SQL.
async fn incoming_columns(connection: &mut PgConnection) -> Result<(String, String), sqlx::Error> {
    sqlx::query_as(
        r#"SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum),
                  string_agg(CASE WHEN a.attnotnull AND d.adbin IS NOT NULL
                                  THEN format('COALESCE(archived.%I, (%s)::%s)', a.attname, pg_get_expr(d.adbin, d.adrelid),
                                              format_type(a.atttypid, a.atttypmod))
                                  ELSE format('archived.%I', a.attname) END, ', ' ORDER BY a.attnum)
           FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
           WHERE a.attrelid = to_regclass('"LiteLLM_SpendLogs"') AND NOT a.attisdropped AND a.attname = ANY ($1)"#,
    )
    .bind(COLUMNS.into_iter().chain(BODIES).collect::<Vec<_>>())
    .fetch_one(connection)
    .await
}

/// Those of these IDs of which the log has no row on the day.
pub async fn missing_ids(
    connection: &mut PgConnection,
    day: NaiveDate,
    ids: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT id FROM unnest($2::text[]) AS id
           WHERE NOT EXISTS (SELECT FROM "LiteLLM_SpendLogs" AS log
                             WHERE log.request_id = id AND log."startTime" >= $1 AND log."startTime" < $1 + 1)"#,
    )
    .bind(day)
    .bind(ids)
    .fetch_all(connection)
    .await
}

/// Puts messages, responses and requests back into rows of the log that were emptied after they were archived.
async fn restore_bodies(connection: &mut PgConnection, rows: &[OwnedRow]) -> Result<(), sqlx::Error> {
    let has_bodies = |row: &&OwnedRow| {
        [&row.messages, &row.response, &row.proxy_server_request].into_iter().flatten().any(|text| text != "{}")
    };
    let text = as_json(rows.iter().filter(has_bodies))?;
    let columns: Vec<String> = sqlx::query_scalar(
        r#"SELECT attname::text FROM pg_attribute
           WHERE attrelid = to_regclass('"LiteLLM_SpendLogs"') AND NOT attisdropped AND attname = ANY ($1)"#,
    )
    .bind(BODIES.as_slice())
    .fetch_all(&mut *connection)
    .await?;
    if columns.is_empty() {
        return Ok(());
    }
    let empty = |column: &String| format!("log.{column} = '{{}}' AND archived.{column} <> '{{}}'");
    let set = |column: &String| {
        format!("{column} = CASE WHEN {} THEN archived.{column} ELSE log.{column} END", empty(column))
    };
    let statement = format!(
        r#"UPDATE "LiteLLM_SpendLogs" AS log SET {}
           FROM json_populate_recordset(NULL::"LiteLLM_SpendLogs", $1::json) AS archived
           WHERE log.request_id = archived.request_id AND log."startTime" = archived."startTime" AND ({})"#,
        columns.iter().map(set).collect::<Vec<_>>().join(", "),
        columns.iter().map(empty).collect::<Vec<_>>().join(" OR "),
    );
    sqlx::query(AssertSqlSafe(statement)).persistent(false).bind(text).execute(connection).await?;
    Ok(())
}

/// Rows as JSON that `json_populate_recordset` reads.
pub(super) fn as_json<'a>(rows: impl Iterator<Item = &'a OwnedRow>) -> Result<String, sqlx::Error> {
    let restored: Vec<Restored<'_>> = rows.map(Restored::new).collect();
    serde_json::to_string(&restored).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}

/// The columns of the log that rows of the archive have, as SQL.
pub(super) async fn columns(connection: &mut PgConnection, bodies: bool) -> Result<String, sqlx::Error> {
    let wanted = COLUMNS.into_iter().chain(BODIES.into_iter().filter(|_| bodies)).collect::<Vec<_>>();
    sqlx::query_scalar(
        r#"SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
           WHERE attrelid = to_regclass('"LiteLLM_SpendLogs"') AND NOT attisdropped AND attname = ANY ($1)"#,
    )
    .bind(wanted)
    .fetch_one(connection)
    .await
}

/// What came of [`reopen`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reopening {
    /// The day is open.
    Done,
    /// The log has fewer rows of the day than expected. Nothing has changed.
    RowsLeft,
    /// The rows of the log have other sums than the day counts. Nothing has changed.
    Differs {
        /// What the day counts.
        counted: Totals,
        /// The sums of the rows.
        logged: Totals,
    },
}

/// Opens a closed day again: its sums are counted from the log from now on. Nothing changes if the log has fewer rows of the
/// day than `rows`, or, unless `any_sums`, if their sums are not what the day counts. Waits at most two seconds for the
/// writers of the log; when the wait is over, the error is 55P03.
pub async fn reopen(
    connection: &mut PgConnection,
    day: NaiveDate,
    rows: i64,
    reason: &str,
    any_sums: bool,
) -> Result<Reopening, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '2s'").await?;
    // Every writer that began before and took the day for closed has committed now.
    transaction.execute(r#"LOCK TABLE "LiteLLM_SpendLogs" IN SHARE MODE"#).await?;
    let logged = logged_totals(&mut transaction, day).await?;
    if logged.requests < rows {
        return Ok(Reopening::RowsLeft);
    }
    let counted = totals(&mut transaction, day).await?;
    if !any_sums && !counted.agrees_with(&logged) {
        return Ok(Reopening::Differs { counted, logged });
    }
    delete_details(&mut transaction, day).await?;
    sqlx::query("DELETE FROM litespend.closed_days WHERE day = $1").bind(day).execute(&mut *transaction).await?;
    sqlx::query(
        "INSERT INTO litespend.reopened_days (day, reopened_at, reason, requests, spend, total_tokens)
         VALUES ($1, now(), $2, $3, $4, $5)",
    )
    .bind(day)
    .bind(reason)
    .bind(counted.requests)
    .bind(counted.spend)
    .bind(counted.total_tokens)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("SELECT litespend.mark_dirty($1, $1)").bind(day).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(Reopening::Done)
}
