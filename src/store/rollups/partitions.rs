//! Rollups on a partitioned log. PostgreSQL says nothing when a partition is attached, detached or dropped, so the
//! partitions that are counted are remembered. While they differ from the log's, reads use the log.

use chrono::NaiveDate;
use sqlx::{AssertSqlSafe, Connection, Executor, FromRow, PgConnection};

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

/// Puts the triggers on new partitions, takes them from tables that are no partitions of a log any more, in whichever
/// schema, and marks the days of partitions that came or went dirty. Does nothing if another session folds or counts.
/// Waits at most five seconds for the writers of a partition.
pub async fn follow(connection: &mut PgConnection) -> Result<Changed, sqlx::Error> {
    if !can_follow(connection).await? {
        return Ok(Changed::default());
    }
    // An earlier version remembered days that are those of another column.
    let mut transaction = connection.begin().await?;
    if forget_wrong_days(&mut transaction).await? {
        mark_all_dirty(&mut transaction).await?;
    }
    transaction.commit().await?;
    follow_now(connection).await
}

/// Like [`follow`], if the schema is known to be able to.
pub async fn follow_now(connection: &mut PgConnection) -> Result<Changed, sqlx::Error> {
    if compare(connection).await? {
        return Ok(Changed::default());
    }
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    // The lock for folding and counting.
    let is_alone: bool =
        sqlx::query_scalar("SELECT pg_try_advisory_xact_lock(7811884301)").fetch_one(&mut *transaction).await?;
    if !is_alone {
        return Ok(Changed::default());
    }
    let unknown = drop_stray_triggers(&mut transaction).await?;
    let had_wrong_days = forget_wrong_days(&mut transaction).await?;
    let changed =
        sqlx::query_as("SELECT came, went FROM litespend.follow_partitions()").fetch_one(&mut *transaction).await?;
    let has_wrong_days = forget_wrong_days(&mut transaction).await?;
    if unknown || had_wrong_days || has_wrong_days {
        mark_all_dirty(&mut transaction).await?;
    }
    transaction.commit().await?;
    Ok(changed)
}

async fn mark_all_dirty(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute("SELECT litespend.mark_dirty(NULL, NULL)").await.map(|_| ())
}

/// Takes the triggers from every table that is neither this log, nor another log that is counted, nor a partition of
/// either. Such tables were logs or partitions, and may be in any schema by now. Returns whether there was one that is not
/// remembered as a partition, so that it is not known of which days its rows were counted.
pub(super) async fn drop_stray_triggers(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let remembered: Vec<bool> = sqlx::query_scalar(
        r#"WITH RECURSIVE triggered AS MATERIALIZED (
               SELECT DISTINCT t.tgrelid AS relation
               FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
               JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
               WHERE n.nspname = 'litespend' AND NOT t.tgisinternal
                 AND p.proname IN ('log_inserted', 'log_deleted', 'log_updated', 'log_truncated')),
           logs (relation) AS (
               SELECT oid FROM pg_catalog.pg_class
               WHERE oid = to_regclass('"LiteLLM_SpendLogs"')
                  OR relname = 'LiteLLM_SpendLogs' AND NOT relispartition
                     AND oid IN (SELECT triggered.relation FROM triggered)
               UNION ALL
               SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN logs ON i.inhparent = logs.relation
               WHERE NOT i.inhdetachpending)
           SELECT relation IN (SELECT known.relation FROM litespend.partitions AS known),
                  litespend.drop_log_triggers(relation)
           FROM triggered WHERE relation NOT IN (SELECT logs.relation FROM logs)"#,
    )
    .fetch_all(connection)
    .await?;
    Ok(remembered.contains(&false))
}

/// SQL expression: whether the bounds of a partition of `parent`, an SQL expression, are starts of calls, so that they
/// tell its days. A log may be partitioned by another column, such as `"endTime"`.
pub(in crate::store) fn is_by_start(parent: &str) -> String {
    format!(
        "EXISTS (SELECT FROM pg_catalog.pg_partitioned_table AS divided
                 JOIN pg_catalog.pg_attribute AS key
                   ON key.attrelid = divided.partrelid AND key.attnum = divided.partattrs[0]
                 WHERE divided.partrelid = {parent} AND divided.partstrat = 'r' AND key.attname = 'startTime')"
    )
}

/// Forgets the days of partitions whose bounds are not starts of calls: rows of any day may be in them. Returns whether
/// there were such days.
pub(super) async fn forget_wrong_days(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let is_by_start = is_by_start(
        "COALESCE((SELECT inhparent FROM pg_catalog.pg_inherits WHERE inhrelid = known.relation),
                  litespend.counted_table('log_inserted'))",
    );
    let forgotten = sqlx::query(AssertSqlSafe(format!(
        "UPDATE litespend.partitions AS known SET first_day = NULL, last_day = NULL
         WHERE first_day IS NOT NULL AND NOT {is_by_start}"
    )))
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected() > 0)
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
