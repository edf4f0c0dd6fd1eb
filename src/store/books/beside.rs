//! Rows of the archive that stand beside the log's for the statements of one transaction, which is rolled back.

use chrono::NaiveDateTime;
use litespend_archive::OwnedRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Postgres, QueryBuilder};

use crate::store::books::restoring::{as_json, columns};
use crate::store::log::filter::{LogFilter, Outcomes, REPRESENTATIVE, SESSION_KEY};
use crate::store::log::pages::{Order, SessionCursor};
use crate::store::log::rows::{CALL_COLUMNS, LIST_COLUMNS, NEWER_COLUMNS};

/// Rows of the archive that stand beside the log's for the statements of one transaction.
#[derive(Clone, Debug)]
pub struct Beside {
    columns: String,
}

/// Name of the temporary table with the archive's rows.
const ARCHIVED: &str = "pg_temp.litespend_archived_logs";

impl Beside {
    /// Creates the table for the archive's rows. Belongs into a transaction that is rolled back. Statements that were prepared
    /// before would not see the view of [`Beside::finish`], so they are forgotten.
    pub async fn begin(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        connection.clear_cached_statements().await?;
        let columns = columns(connection, true).await?;
        connection
            .execute(r#"CREATE TEMPORARY TABLE litespend_archived_logs (LIKE "LiteLLM_SpendLogs" INCLUDING DEFAULTS)"#)
            .await?;
        Ok(Self { columns })
    }

    /// Adds those of these rows that match a filter, and returns their number. The log must not have them.
    pub async fn add(
        &self,
        connection: &mut PgConnection,
        rows: &[OwnedRow],
        filter: &LogFilter,
        outcomes: Outcomes,
    ) -> Result<u64, sqlx::Error> {
        let columns = &self.columns;
        // Columns that an older LiteLLM lacks are those of `defaults`.
        let mut query = QueryBuilder::<Postgres>::new(format!(
            "INSERT INTO {ARCHIVED} ({columns}) SELECT matching.* FROM ({NEWER_COLUMNS}) AS defaults
             CROSS JOIN LATERAL (SELECT {columns} FROM json_populate_recordset(NULL::{ARCHIVED}, "
        ));
        query.push_bind(as_json(rows.iter())?).push("::json) AS archived");
        filter.push(&mut query, outcomes);
        query.push(") AS matching");
        Ok(query.build().persistent(false).execute(connection).await?.rows_affected())
    }

    /// Removes all rows but the first ones in an order. Frees the space of the others.
    pub async fn keep_first(&self, connection: &mut PgConnection, order: Order, rows: i64) -> Result<(), sqlx::Error> {
        let mut query = QueryBuilder::<Postgres>::new(format!(
            "SELECT log.place FROM ({NEWER_COLUMNS}) AS defaults
             CROSS JOIN LATERAL (SELECT ctid AS place, {LIST_COLUMNS}, {CALL_COLUMNS} FROM {ARCHIVED}) AS log ORDER BY "
        ));
        order.push(&mut query);
        query.push(format_args!(" LIMIT {rows}"));
        self.keep(connection, &query.into_string()).await.map(|_| ())
    }

    /// Removes all rows but two of each session at most: the one that represents the session, and the newest. Together with
    /// the rows of the log and with rows that are added later, they say the same of every session as all rows did. Frees the
    /// space of the others, and returns the number of rows that are left.
    pub async fn keep_of_sessions(&self, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let first = |order: &str| {
            format!(
                r#"SELECT place FROM (
                       SELECT DISTINCT ON (log.session_key, log.api_key) log.place
                       FROM ({NEWER_COLUMNS}) AS defaults CROSS JOIN LATERAL (
                           SELECT ctid AS place, request_id, api_key, call_type, "startTime", "endTime",
                                  {SESSION_KEY} AS session_key
                           FROM {ARCHIVED}) AS log
                       ORDER BY log.session_key, log.api_key, {order}) AS of_sessions"#
            )
        };
        let places = format!("{} UNION ALL {}", first(REPRESENTATIVE), first(r#"log."startTime" DESC"#));
        let kept = self.keep(connection, &places).await?;
        Ok(i64::try_from(kept).unwrap_or(i64::MAX))
    }

    /// Removes all rows but those whose places a statement returns, and returns their number.
    async fn keep(&self, connection: &mut PgConnection, places: &str) -> Result<u64, sqlx::Error> {
        let copy = format!(
            "CREATE TEMPORARY TABLE litespend_first_logs AS
             SELECT * FROM {ARCHIVED} WHERE ctid = ANY (ARRAY({places}))"
        );
        let kept = sqlx::query(AssertSqlSafe(copy)).persistent(false).execute(&mut *connection).await?.rows_affected();
        let statements = format!(
            "TRUNCATE {ARCHIVED}; INSERT INTO {ARCHIVED} SELECT * FROM pg_temp.litespend_first_logs;
             DROP TABLE pg_temp.litespend_first_logs"
        );
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await?;
        Ok(kept)
    }

    /// Number of sessions that have rows here.
    pub async fn sessions(&self, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let statement = format!(
            "SELECT count(*) FROM (SELECT FROM ({NEWER_COLUMNS}) AS defaults
             CROSS JOIN LATERAL (SELECT {SESSION_KEY} AS session_key, api_key FROM {ARCHIVED}) AS log
             GROUP BY session_key, api_key) AS sessions"
        );
        sqlx::query_scalar(AssertSqlSafe(statement)).persistent(false).fetch_one(connection).await
    }

    /// Number of sessions, at most `most`, that come after a cursor when the newest come first. Only those are counted whose
    /// newest row here started after `from` and, if `to` is given, not after `to`.
    ///
    /// The log may have a newer row of a session, by which it comes before the cursor. Such rows are looked up for each
    /// session by its ID, because the log may have millions of rows that are newer than the cursor. `"LiteLLM_SpendLogs"`
    /// must still be the log alone.
    pub async fn sessions_after(
        &self,
        connection: &mut PgConnection,
        filter: &LogFilter,
        cursor: &SessionCursor,
        (from, to): (NaiveDateTime, Option<NaiveDateTime>),
        most: i64,
    ) -> Result<i64, sqlx::Error> {
        let mut query = QueryBuilder::<Postgres>::new(format!(
            r#"SELECT count(*) FROM (SELECT FROM ({NEWER_COLUMNS}) AS defaults
               CROSS JOIN LATERAL (
                   SELECT log.session_key, log.api_key
                   FROM (SELECT {SESSION_KEY} AS session_key, api_key, "startTime" FROM {ARCHIVED}) AS log
                   GROUP BY log.session_key, log.api_key"#
        ));
        SessionCursor::push(Some(cursor), &mut query, false);
        query.push(r#" AND max(log."startTime") > "#).push_bind(from);
        if let Some(to) = to {
            query.push(r#" AND max(log."startTime") <= "#).push_bind(to);
        }
        query.push(") AS sessions WHERE true");
        // A row without a session is one by its request ID. Each kind of row has an index.
        for of_session in [
            "session_id = sessions.session_key AND session_id <> ''",
            "request_id = sessions.session_key AND COALESCE(session_id, '') = ''",
        ] {
            query.push(r#" AND NOT EXISTS (SELECT FROM "LiteLLM_SpendLogs""#);
            filter.push(&mut query, Outcomes::OfSessions);
            query.push(" AND ").push(of_session).push(" AND api_key = sessions.api_key");
            // The first condition follows from the second one, and limits the partitions that are looked at.
            query.push(r#" AND "startTime" >= "#).push_bind(cursor.last_activity);
            query.push(r#" AND ("startTime", sessions.session_key, sessions.api_key) >= ("#);
            query.push_bind(cursor.last_activity).push(", ").push_bind(cursor.session_key.clone()).push(", ");
            query.push_bind(cursor.api_key.clone()).push("))");
        }
        query.push(" LIMIT ").push_bind(most).push(") AS found");
        query.build_query_scalar().persistent(false).fetch_one(connection).await
    }

    /// From now on, `"LiteLLM_SpendLogs"` means the log with these rows.
    pub async fn finish(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let log: String = sqlx::query_scalar(
            r#"SELECT format('%I.%I', relnamespace::regnamespace, relname)
                                  FROM pg_class WHERE oid = to_regclass('"LiteLLM_SpendLogs"')"#,
        )
        .fetch_one(&mut *connection)
        .await?;
        let statements = format!(
            r#"CREATE INDEX ON {ARCHIVED} (request_id, "startTime");
               ANALYZE {ARCHIVED};
               CREATE TEMPORARY VIEW "LiteLLM_SpendLogs" AS
               SELECT * FROM {log} UNION ALL SELECT * FROM {ARCHIVED}"#
        );
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *connection).await?;
        // Statements that were prepared since the beginning mean the log without these rows.
        connection.clear_cached_statements().await
    }
}
