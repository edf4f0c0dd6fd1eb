//! Which log the rollups count, and whether they still do.

use std::fmt;

use sqlx::{AssertSqlSafe, FromRow, PgConnection};

/// SQL expression: true if the log in the session's search path has the triggers of the rollups, and no log of another
/// schema has any. A log is a table with LiteLLM's name that is no partition; the triggers of other tables, in whichever
/// schema, do not matter here. It checks the triggers, so it works for every version of the schema. It is `false` if the
/// schema does not exist.
pub(crate) const COUNTED: &str = r#"(
    SELECT count(*) FILTER (WHERE t.tgrelid = log.oid) = 4
       AND NOT COALESCE(bool_or(c.relname = 'LiteLLM_SpendLogs' AND NOT c.relispartition AND c.oid <> log.oid), false)
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
    LEFT JOIN pg_catalog.pg_class log ON log.oid = to_regclass('"LiteLLM_SpendLogs"')
    WHERE n.nspname = 'litespend' AND p.proname IN ('log_inserted', 'log_deleted', 'log_updated', 'log_truncated')
      AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
      AND t.tgname IN ('litespend_inserted', 'litespend_deleted', 'litespend_updated', 'litespend_truncated'))"#;

/// SQL expression: the same check for LiteLLM's table of daily rows, `LiteLLM_DailyUserSpend`.
pub(crate) const DAILY_COUNTED: &str = r#"COALESCE((
    SELECT count(*) = 4 AND bool_and(t.tgrelid = to_regclass('"LiteLLM_DailyUserSpend"'))
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'litespend' AND p.proname = 'activity_changed'
      AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
      AND t.tgname IN ('litespend_inserted', 'litespend_deleted', 'litespend_updated', 'litespend_truncated')), false)"#;

/// Whether the log in the search path has the triggers of the rollups. If it is partitioned, see also
/// [`crate::store::rollups::partitions::are_counted`].
pub async fn attached(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT {COUNTED}"))).fetch_one(connection).await
}

/// The schema whose log is counted, if it is not the log in the session's search path. A database has one schema
/// `litespend`, so only one log in it is counted. Partitions and former logs in other schemas do not matter.
pub async fn counted_elsewhere(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        r#"SELECT r.relnamespace::regnamespace::text
           FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
           JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace JOIN pg_catalog.pg_class r ON r.oid = t.tgrelid
           WHERE n.nspname = 'litespend' AND p.proname LIKE 'log\_%' AND NOT t.tgisinternal
             AND r.relname = 'LiteLLM_SpendLogs' AND NOT r.relispartition
             AND r.oid IS DISTINCT FROM to_regclass('"LiteLLM_SpendLogs"')
           LIMIT 1"#,
    )
    .fetch_optional(connection)
    .await
}

/// The schema that has the rollups, if it is not the schema in the session's search path: the one whose log is counted,
/// or whose log was counted until it was renamed.
pub async fn installed_elsewhere(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let counted = counted_elsewhere(connection).await?;
    if counted.is_some() || attached(connection).await? {
        return Ok(counted);
    }
    let owner = owner(connection).await?;
    Ok(owner.filter(|owner| !owner.is_own).map(|owner| owner.schema))
}

/// Rollups that were installed and not removed, although the log does not have their triggers: it was renamed, and a new
/// one took its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The table that has the triggers, as SQL. `None` if it was dropped, or is a partition by now.
    pub table: Option<String>,
}

impl fmt::Display for Lost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.table {
            Some(table) => write!(formatter, "the rollups count {table}, which is not the log any more"),
            None => formatter.write_str("the rollups are installed, but the log does not have their triggers any more"),
        }
    }
}

/// Whether the rollups counted the log of this schema, but do not count it any more. This stays so until they are
/// installed again or removed. `None` if they count a log, or were never installed.
pub async fn lost(connection: &mut PgConnection) -> Result<Option<Lost>, sqlx::Error> {
    if attached(connection).await? || counted_elsewhere(connection).await?.is_some() {
        return Ok(None);
    }
    if !owner(connection).await?.is_some_and(|owner| owner.is_own) {
        return Ok(None);
    }
    let table = sqlx::query_scalar(
        "SELECT r.oid::regclass::text
         FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
         JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace JOIN pg_catalog.pg_class r ON r.oid = t.tgrelid
         WHERE n.nspname = 'litespend' AND p.proname = 'log_inserted' AND NOT t.tgisinternal
           AND NOT r.relispartition AND r.relname <> 'LiteLLM_SpendLogs'
         ORDER BY r.oid LIMIT 1",
    )
    .fetch_optional(connection)
    .await?;
    Ok(Some(Lost { table }))
}

/// A log, of whichever schema.
#[derive(Clone, Debug, FromRow)]
struct Log {
    schema: String,
    /// Whether it is the log in the session's search path.
    is_own: bool,
    /// Whether a table beside it has triggers of the rollups, but is no log: a log that was renamed, for example.
    is_beside_counted: bool,
}

/// The log for which the rollups were installed. `None` if they were never installed, or if they do not say for which of
/// several logs.
async fn owner(connection: &mut PgConnection) -> Result<Option<Log>, sqlx::Error> {
    let logs: Vec<Log> = sqlx::query_as(
        r#"SELECT log.relnamespace::regnamespace::text AS schema,
                  COALESCE(log.oid = to_regclass('"LiteLLM_SpendLogs"'), false) AS is_own,
                  EXISTS (
                      SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
                      JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                      JOIN pg_catalog.pg_class r ON r.oid = t.tgrelid
                      WHERE n.nspname = 'litespend' AND p.proname = 'log_inserted' AND NOT t.tgisinternal
                        AND r.oid <> log.oid AND r.relnamespace = log.relnamespace) AS is_beside_counted
           FROM pg_catalog.pg_class AS log
           WHERE log.relname = 'LiteLLM_SpendLogs' AND log.relkind IN ('r', 'p') AND NOT log.relispartition
           ORDER BY log.oid = to_regclass('"LiteLLM_SpendLogs"') DESC NULLS LAST, log.oid"#,
    )
    .fetch_all(&mut *connection)
    .await?;
    let memory = memory(connection).await?;
    let remembered = memory.as_ref().and_then(|memory| memory.schema.as_deref());
    let found = logs
        .iter()
        .find(|log| Some(log.schema.as_str()) == remembered)
        .or_else(|| logs.iter().find(|log| log.is_beside_counted))
        .or_else(|| logs.first().filter(|_| memory.is_some() && logs.len() == 1));
    Ok(found.cloned())
}

/// What the schema `litespend` says about a log that it counts or counted.
#[derive(Clone, Debug, FromRow)]
struct Memory {
    /// The schema of the log; `None` if an earlier version installed the rollups.
    schema: Option<String>,
}

/// `None` if no log was ever counted, or if this role cannot read it.
async fn memory(connection: &mut PgConnection) -> Result<Option<Memory>, sqlx::Error> {
    let is_readable: bool = sqlx::query_scalar(
        "SELECT count(*) = 3
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'litespend' AND c.relname IN ('settings', 'turn', 'deltas')
           AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !is_readable {
        return Ok(None);
    }
    // To install the rollups leaves a delta, and to count it is a turn.
    sqlx::query_as(
        "SELECT (SELECT value ->> 'schema' FROM litespend.settings WHERE name = 'rollups') AS schema
         FROM litespend.turn
         WHERE CASE WHEN taken > 0 THEN true ELSE EXISTS (SELECT FROM litespend.deltas) END
         LIMIT 1",
    )
    .fetch_optional(connection)
    .await
}
