//! Rows of the archive that stand beside the log's for the statements of one transaction.

use litespend_archive::OwnedRow;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::store::books::restoring::{columns, insert_into};

/// Rows of the archive that stand beside the log's for the statements of one transaction.
#[derive(Debug)]
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

    /// Adds rows that the log does not have.
    pub async fn add(&self, connection: &mut PgConnection, rows: &[OwnedRow]) -> Result<(), sqlx::Error> {
        insert_into(connection, ARCHIVED, &self.columns, "", rows).await.map(|_| ())
    }

    /// From now on, `"LiteLLM_SpendLogs"` means the log with these rows.
    pub async fn finish(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let log: String = sqlx::query_scalar(
            r#"SELECT format('%I.%I', relnamespace::regnamespace, relname)
                                  FROM pg_class WHERE oid = to_regclass('"LiteLLM_SpendLogs"')"#,
        )
        .fetch_one(&mut *connection)
        .await?;
        let statements = format!(
            r#"ANALYZE {ARCHIVED};
               CREATE TEMPORARY VIEW "LiteLLM_SpendLogs" AS
               SELECT * FROM {log} UNION ALL SELECT * FROM {ARCHIVED}"#
        );
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await.map(|_| ())
    }
}
