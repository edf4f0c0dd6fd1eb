//! Pages of `LiteLLM_SpendLogs` for the dashboard: filtered, sorted, and without the texts of messages and responses.
//! On request, a page has one row per session. Counts stop at [`COUNT_CAP`].

use chrono::NaiveDateTime;
use futures_util::stream::BoxStream;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder};

use crate::store::log::filter::{LogFilter, Outcomes, REPRESENTATIVE};
use crate::store::log::rows::{LIST_BOUNDS, PAGED, PagedLog, SessionSums};

/// Maximum number of rows that are counted: LiteLLM's limit. Pages beyond it can still be read.
pub const COUNT_CAP: i64 = 10_000;

/// Maximum number of models listed for a session.
pub const SESSION_MODELS: i64 = 10;

/// Sort key of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortKey {
    /// Spend in USD.
    Spend,
    /// Total tokens: prompt and completion tokens.
    TotalTokens,
    /// Start of the call, UTC.
    StartTime,
    /// End of the call, UTC.
    EndTime,
    /// Duration of the call.
    RequestDurationMs,
    /// Name of the model.
    Model,
    /// Time to the first token; rows without one last.
    TimeToFirstToken,
}

impl SortKey {
    fn expression(self) -> &'static str {
        match self {
            Self::Spend => "log.spend",
            Self::TotalTokens => "log.total_tokens",
            Self::StartTime => r#"log."startTime""#,
            Self::EndTime => r#"log."endTime""#,
            Self::RequestDurationMs => "log.request_duration_ms",
            Self::Model => "log.model",
            Self::TimeToFirstToken => {
                r#"CASE WHEN log."completionStartTime" <> log."endTime"
                        THEN log."completionStartTime" - log."startTime" END"#
            }
        }
    }
}

/// Sort key and direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Sort key.
    pub key: SortKey,
    /// Whether the smallest value comes first.
    pub ascending: bool,
}

impl Order {
    /// Pushes the expressions of ` ORDER BY`, for rows called `log`.
    pub(in crate::store) fn push(self, query: &mut QueryBuilder<Postgres>) {
        let direction = if self.ascending { " ASC" } else { " DESC" };
        query.push(self.key.expression()).push(direction);
        if self.key == SortKey::TimeToFirstToken {
            query.push(" NULLS LAST");
        }
        // The request ID breaks ties, so that rows keep their order from page to page. Two calls may have the same one.
        query.push(", log.request_id").push(direction).push(r#", log."startTime""#).push(direction);
    }
}

/// Number of matching rows, at most [`COUNT_CAP`] + 1.
pub async fn count_rows(connection: &mut PgConnection, filter: &LogFilter) -> Result<i64, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT count(*) FROM (SELECT 1");
    filter.push_rows(&mut query, Outcomes::OfRows);
    query.push(" LIMIT ").push_bind(COUNT_CAP + 1).push(") AS rows");
    query.build_query_scalar().persistent(false).fetch_one(connection).await
}

/// Number of matching sessions, at most [`COUNT_CAP`] + 1.
pub async fn count_sessions(connection: &mut PgConnection, filter: &LogFilter) -> Result<i64, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new("SELECT count(*) FROM (SELECT 1");
    filter.push_rows(&mut query, Outcomes::OfSessions);
    query.push(" GROUP BY log.session_key, log.api_key LIMIT ").push_bind(COUNT_CAP + 1).push(") AS sessions");
    query.build_query_scalar().persistent(false).fetch_one(connection).await
}

/// Streams a page of rows.
pub fn page<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    filter: &LogFilter,
    order: Order,
    offset: i64,
    limit: i64,
) -> BoxStream<'q, Result<PagedLog, sqlx::Error>> {
    PAGED.push(query, LIST_BOUNDS, |query| {
        query.push("SELECT log.*");
        filter.push_rows(query, Outcomes::OfRows);
        query.push(" ORDER BY ");
        push_exact_first(query, filter);
        order.push(query);
        query.push(" LIMIT ").push_bind(limit).push(" OFFSET ").push_bind(offset);
    });
    query.build_query_as().persistent(false).fetch(connection)
}

/// If the filter asks for a request ID, the row with that request ID comes before rows for which a client set that ID
/// as the call ID.
fn push_exact_first(query: &mut QueryBuilder<Postgres>, filter: &LogFilter) {
    if let Some(id) = &filter.request_id {
        query.push("(log.request_id = ").push_bind(id.clone()).push(") DESC, ");
    }
}

/// Streams a page of sessions, each as its representative row.
pub fn session_page<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    filter: &LogFilter,
    order: Order,
    offset: i64,
    limit: i64,
) -> BoxStream<'q, Result<PagedLog, sqlx::Error>> {
    PAGED.push(query, LIST_BOUNDS, |query| {
        query.push("SELECT log.* FROM (SELECT DISTINCT ON (log.session_key, log.api_key) log.*");
        filter.push_rows(query, Outcomes::OfSessions);
        query.push(" ORDER BY log.session_key, log.api_key, ").push(REPRESENTATIVE).push(") AS log ORDER BY ");
        push_exact_first(query, filter);
        order.push(query);
        query.push(" LIMIT ").push_bind(limit).push(" OFFSET ").push_bind(offset);
    });
    query.build_query_as().persistent(false).fetch(connection)
}

/// Cursor in a list of sessions: the last one of the page before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionCursor {
    /// Start of the session's latest call.
    pub last_activity: NaiveDateTime,
    /// Hash of its key.
    pub api_key: String,
    /// Session ID, or the request ID of its only row.
    pub session_key: String,
}

impl SessionCursor {
    /// Pushes the condition that a session comes after a cursor, for groups of rows called `log`.
    pub(in crate::store) fn push(cursor: Option<&Self>, query: &mut QueryBuilder<Postgres>, ascending: bool) {
        let Some(cursor) = cursor else { return };
        query.push(r#" HAVING (max(log."startTime"), log.session_key, log.api_key) "#);
        query.push(if ascending { "> (" } else { "< (" }).push_bind(cursor.last_activity);
        query.push(", ").push_bind(cursor.session_key.clone()).push(", ").push_bind(cursor.api_key.clone()).push(")");
    }
}

/// A session in a page.
#[derive(Clone, Debug, FromRow)]
pub struct ActiveSession {
    /// Session ID, or the request ID of its only row.
    pub session_key: String,
    /// Hash of its key.
    pub api_key: String,
    /// Start of its latest call.
    pub last_activity: NaiveDateTime,
}

/// Sessions ordered by their last activity, starting after `cursor` if it is given.
pub async fn active_sessions(
    connection: &mut PgConnection,
    filter: &LogFilter,
    cursor: Option<&SessionCursor>,
    ascending: bool,
    offset: i64,
    limit: i64,
) -> Result<Vec<ActiveSession>, sqlx::Error> {
    let mut query = QueryBuilder::<Postgres>::new(
        r#"SELECT log.session_key, log.api_key, max(log."startTime")::timestamp AS last_activity"#,
    );
    filter.push_rows(&mut query, Outcomes::OfSessions);
    query.push(" GROUP BY log.session_key, log.api_key");
    SessionCursor::push(cursor, &mut query, ascending);
    query.push(if ascending { " ORDER BY 3, 1, 2 LIMIT " } else { " ORDER BY 3 DESC, 1 DESC, 2 DESC LIMIT " });
    query.push_bind(limit).push(" OFFSET ").push_bind(offset);
    query.build_query_as().persistent(false).fetch_all(connection).await
}

/// Streams the representative rows of these sessions, in the order of `sessions`.
pub fn representatives<'q, 'c: 'q>(
    connection: &'c mut PgConnection,
    query: &'q mut QueryBuilder<Postgres>,
    filter: &LogFilter,
    sessions: &[ActiveSession],
) -> BoxStream<'q, Result<PagedLog, sqlx::Error>> {
    PAGED.push(query, LIST_BOUNDS, |query| {
        query.push("SELECT log.* FROM unnest(");
        query.push_bind(sessions.iter().map(|session| session.session_key.clone()).collect::<Vec<_>>());
        query.push("::text[], ").push_bind(sessions.iter().map(|session| session.api_key.clone()).collect::<Vec<_>>());
        query.push("::text[]) WITH ORDINALITY AS wanted(session_key, api_key, place) JOIN (");
        query.push("SELECT DISTINCT ON (log.session_key, log.api_key) log.*");
        filter.push_rows(query, Outcomes::OfSessions);
        query.push(" ORDER BY log.session_key, log.api_key, ").push(REPRESENTATIVE);
        query.push(") AS log USING (session_key, api_key) ORDER BY wanted.place");
    });
    query.build_query_as().persistent(false).fetch(connection)
}

/// Sums of these sessions, separately for each key.
pub async fn session_sums(
    connection: &mut PgConnection,
    session_ids: &[&str],
    api_keys: &[&str],
) -> Result<Vec<SessionSums>, sqlx::Error> {
    sqlx::query_as(
        r#"
        SELECT sums.*, COALESCE(models.names, '{}') AS models
        FROM (
            SELECT log.session_id, log.api_key, count(*) AS calls, sum(log.spend) AS spend,
                   sum(COALESCE(log.request_duration_ms,
                       (extract(epoch FROM log."endTime" - log."startTime") * 1000)::bigint))::bigint AS duration_ms,
                   count(*) FILTER (WHERE log.call_type IN ('call_mcp_tool', 'list_mcp_tools')) AS tool_calls,
                   COALESCE(sum(log.spend) FILTER (WHERE log.call_type IN ('call_mcp_tool', 'list_mcp_tools')), 0)
                       AS tool_spend,
                   count(*) FILTER (WHERE lower(log.cache_hit) = 'true') AS cache_hits,
                   count(*) FILTER (WHERE log.call_type NOT IN ('call_mcp_tool', 'list_mcp_tools', 'asend_message'))
                       AS llm_calls,
                   count(*) FILTER (WHERE log.call_type = 'asend_message') AS agent_calls,
                   sum(log.prompt_tokens) AS prompt_tokens, sum(log.completion_tokens) AS completion_tokens,
                   sum(log.total_tokens) AS total_tokens
            FROM (SELECT NULL::integer AS request_duration_ms) AS defaults
            CROSS JOIN LATERAL (
                SELECT session_id, api_key, spend, request_duration_ms, "startTime", "endTime", call_type, cache_hit,
                       prompt_tokens, completion_tokens, total_tokens
                FROM "LiteLLM_SpendLogs" WHERE session_id = ANY ($1) AND api_key = ANY ($2)
            ) AS log
            GROUP BY log.session_id, log.api_key
        ) AS sums
        LEFT JOIN LATERAL (
            SELECT array_agg(name ORDER BY name) AS names FROM (
                SELECT DISTINCT left(model, 256) AS name FROM "LiteLLM_SpendLogs"
                WHERE session_id = sums.session_id AND api_key = sums.api_key AND model <> ''
                ORDER BY 1 LIMIT $3
            ) AS named
        ) AS models ON true
        "#,
    )
    .bind(session_ids)
    .bind(api_keys)
    .bind(SESSION_MODELS + 1)
    .fetch_all(connection)
    .await
}

/// Each list of names of models without repetitions, cut as in [`session_sums`], and in the database's order.
pub async fn sorted_models(
    connection: &mut PgConnection,
    lists: &[Vec<String>],
) -> Result<Vec<Vec<String>>, sqlx::Error> {
    let places =
        lists.iter().enumerate().flat_map(|(place, list)| list.iter().map(move |_| i64::try_from(place).unwrap_or(0)));
    sqlx::query_scalar(
        "SELECT COALESCE((SELECT array_agg(name ORDER BY name)
                          FROM (SELECT DISTINCT left(name, 256) AS name FROM unnest($1::bigint[], $2::text[]) AS named (of, name)
                                WHERE of = place) AS names), '{}')
         FROM generate_series(0, $3 - 1) AS place ORDER BY place",
    )
    .bind(places.collect::<Vec<_>>())
    .bind(lists.iter().flatten().map(String::as_str).collect::<Vec<_>>())
    .bind(i64::try_from(lists.len()).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await
}
