//! Rollups on a partitioned log. PostgreSQL says nothing when a partition is attached, detached or dropped, so the
//! partitions that are counted are remembered. While they differ from the log's, reads use the log.

use chrono::NaiveDate;
use sqlx::{Connection, Executor, FromRow, PgConnection};

/// SQL expression: whether a read can compare the partitions. NULL if it need not: the log has none, and no other table
/// has triggers. False if the schema `litespend` is older than the comparison.
pub(super) const COMPARABLE: &str = r#"(
    SELECT to_regprocedure('litespend.partitions_are_counted(regclass)') IS NOT NULL
    FROM pg_catalog.pg_class AS log WHERE oid = to_regclass('"LiteLLM_SpendLogs"')
      AND (relkind = 'p' OR EXISTS (
          SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
          JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
          WHERE n.nspname = 'litespend' AND p.proname = 'log_inserted' AND t.tgrelid <> log.oid)))"#;

/// Whether the rollups count exactly the partitions that the log has in this snapshot.
pub async fn are_counted(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    if !can_follow(connection).await? {
        return sqlx::query_scalar(
            r#"SELECT relkind <> 'p' FROM pg_catalog.pg_class WHERE oid = to_regclass('"LiteLLM_SpendLogs"')"#,
        )
        .fetch_one(connection)
        .await;
    }
    compare(connection).await
}

/// The same comparison as `litespend.partitions_are_counted`. Each read makes it, and PostgreSQL plans the body of a
/// function at every call, but a prepared statement only once.
const COMPARISON: &str = r#"
    WITH RECURSIVE present (relation) AS (
        SELECT inhrelid FROM pg_catalog.pg_inherits
        WHERE inhparent = to_regclass('"LiteLLM_SpendLogs"') AND NOT inhdetachpending
        UNION ALL
        SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN present ON i.inhparent = present.relation
        WHERE NOT i.inhdetachpending),
    triggered AS MATERIALIZED (
        SELECT t.tgrelid AS relation, count(*) = 4 AND bool_and(t.tgenabled IN ('O', 'A')) AS complete
        FROM pg_catalog.pg_trigger t
        WHERE NOT t.tgisinternal AND t.tgfoid IN (
            SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
            WHERE n.nspname = 'litespend'
              AND p.proname IN ('log_inserted', 'log_deleted', 'log_updated', 'log_truncated'))
        GROUP BY t.tgrelid)
    SELECT NOT EXISTS (SELECT FROM present FULL JOIN litespend.partitions AS known USING (relation)
                       WHERE present IS NULL OR known IS NULL)
       AND NOT EXISTS (SELECT FROM present LEFT JOIN triggered USING (relation) WHERE complete IS NOT TRUE)
       AND NOT EXISTS (SELECT FROM triggered
                       WHERE relation <> to_regclass('"LiteLLM_SpendLogs"')
                         AND relation NOT IN (SELECT present.relation FROM present))"#;

/// Like [`are_counted`], for a log whose partitions can be compared.
pub(super) async fn compare(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(COMPARISON).fetch_one(connection).await
}

async fn can_follow(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regprocedure('litespend.follow_partitions()') IS NOT NULL")
        .fetch_one(connection)
        .await
}

/// How many partitions of the log came and went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromRow)]
pub struct Changed {
    /// Partitions that are counted from now on.
    pub came: i32,
    /// Partitions that were detached or dropped.
    pub went: i32,
}

/// Puts the triggers on new partitions, and marks the days of those that came or went dirty. Does nothing if another
/// session folds or counts. Waits at most five seconds for the writers of a partition.
pub async fn follow(connection: &mut PgConnection) -> Result<Changed, sqlx::Error> {
    if can_follow(connection).await? { follow_now(connection).await } else { Ok(Changed::default()) }
}

/// Like [`follow`], if the schema is known to be able to.
pub async fn follow_now(connection: &mut PgConnection) -> Result<Changed, sqlx::Error> {
    if compare(connection).await? {
        return Ok(Changed::default());
    }
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    let changed =
        sqlx::query_as("SELECT came, went FROM litespend.follow_partitions()").fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(changed)
}

/// The days of a partition.
#[derive(Clone, Debug, FromRow)]
pub struct Bounds {
    /// Name of the partition's table.
    pub name: String,
    /// First day.
    pub first_day: NaiveDate,
    /// Last day, included.
    pub last_day: NaiveDate,
}

/// The partitions of the log that are counted and whose days are known, in the order of their days. Empty if the log is
/// not partitioned.
pub async fn bounds(connection: &mut PgConnection) -> Result<Vec<Bounds>, sqlx::Error> {
    if !can_follow(connection).await? {
        return Ok(Vec::new());
    }
    sqlx::query_as(
        "SELECT c.relname::text AS name, p.first_day, p.last_day
         FROM litespend.partitions AS p JOIN pg_class AS c ON c.oid = p.relation
         WHERE p.first_day IS NOT NULL AND p.last_day IS NOT NULL ORDER BY p.first_day",
    )
    .fetch_all(connection)
    .await
}
