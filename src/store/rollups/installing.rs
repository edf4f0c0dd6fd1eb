//! Puts the triggers of the rollups on a log, and takes them away with everything else.

use sqlx::{Connection, Executor, PgConnection};

use crate::store::rollups::partitions;

/// Starts counting in a database that has the schema `litespend`. Takes the triggers from tables that are neither a log
/// that is counted nor a partition of it. Waits at most five seconds for each lock, because writers queue behind the
/// waiting lock request.
pub async fn attach(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    partitions::drop_stray_triggers(&mut transaction).await?;
    transaction.execute("SELECT litespend.attach()").await?;
    // Every day is to be counted anyway.
    partitions::forget_wrong_days(&mut transaction).await?;
    remember(&mut transaction).await?;
    transaction.commit().await
}

/// Remembers that the rollups were installed for the schema of the log, so that it is noticed if they do not count the
/// log any more. `attach` does this, too.
pub async fn remember(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        r#"INSERT INTO litespend.settings (name, value)
           SELECT 'rollups', jsonb_build_object('schema', relnamespace::regnamespace::text)
           FROM pg_catalog.pg_class WHERE oid = to_regclass('"LiteLLM_SpendLogs"')
           ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value WHERE settings.value <> EXCLUDED.value"#,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Starts recording changes of LiteLLM's daily rows, whose sums are also kept. Does nothing if that has already
/// started, or if the table does not exist. The lock timeout is that of [`attach`].
pub async fn attach_activity(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute("SELECT litespend.attach_activity()").await?;
    transaction.commit().await
}

/// Stops counting, and drops the schema `litespend` with everything in it. Waits at most five seconds for each lock.
pub async fn remove(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET LOCAL lock_timeout = '5s'").await?;
    let installed: bool = sqlx::query_scalar("SELECT to_regprocedure('litespend.detach()') IS NOT NULL")
        .fetch_one(&mut *transaction)
        .await?;
    if installed {
        // A server that folds or counts meanwhile locks the same tables in another order.
        transaction.execute("SELECT pg_advisory_xact_lock(7811884301)").await?;
        transaction.execute("SELECT litespend.detach()").await?;
    }
    transaction.execute("DROP SCHEMA IF EXISTS litespend CASCADE").await?;
    transaction.commit().await
}
