//! The pool, the kind of database behind it, and its migrations.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Executor, PgConnection, PgPool};

use super::STATEMENT_TIMEOUT_SECONDS;

/// Whose tables the database holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    /// Ours: litespend creates and migrates LiteLLM's tables and its own schema.
    Own,
    /// LiteLLM's: litespend creates nothing in `public`, ever.
    LiteLlm,
}

/// Limits of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Connections at most.
    pub connections: u32,
    /// How long a request waits for one.
    pub wait: Duration,
}

/// A pool that connects when it is first used. Its sessions are UTC, their statements limited in time, and a query
/// whose client has gone ends within half a second (PostgreSQL 14 and later).
pub fn pool(url: &str, limits: PoolLimits) -> Result<PgPool, sqlx::Error> {
    let options: PgConnectOptions = url.parse()?;
    let options = options
        .application_name("litespend")
        .log_statements(tracing::log::LevelFilter::Trace)
        .log_slow_statements(tracing::log::LevelFilter::Off, Duration::ZERO);
    let pool = PgPoolOptions::new()
        .max_connections(limits.connections)
        .min_connections(0)
        .acquire_timeout(limits.wait)
        .idle_timeout(Duration::from_secs(600))
        .after_connect(|connection, _| Box::pin(prepare_session(connection)));
    Ok(pool.connect_lazy_with(options))
}

async fn prepare_session(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute("SET TIME ZONE 'UTC'").await?;
    // A role named litespend would otherwise find our own schema before LiteLLM's tables.
    connection.execute("SET search_path = public").await?;
    sqlx::query(
        "SELECT set_config('statement_timeout', $1, false),
                set_config('idle_in_transaction_session_timeout', '60s', false),
                CASE WHEN current_setting('server_version_num')::int >= 140000
                     THEN set_config('client_connection_check_interval', '500', false) END",
    )
    .bind(format!("{STATEMENT_TIMEOUT_SECONDS}s"))
    .execute(connection)
    .await?;
    Ok(())
}

/// Whose tables these are. LiteLLM's ledger, or its tables without ours, make the database LiteLLM's.
pub async fn kind(connection: &mut PgConnection) -> Result<DatabaseKind, sqlx::Error> {
    let (prisma, spend_logs, ledger): (bool, bool, bool) = sqlx::query_as(
        "SELECT to_regclass('public._prisma_migrations') IS NOT NULL,
                to_regclass('public.\"LiteLLM_SpendLogs\"') IS NOT NULL,
                to_regclass('litespend.litellm_migrations') IS NOT NULL",
    )
    .fetch_one(connection)
    .await?;
    let foreign = prisma || (spend_logs && !ledger);
    Ok(if foreign { DatabaseKind::LiteLlm } else { DatabaseKind::Own })
}

/// `PostgreSQL 15.18`, for people.
pub async fn version(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let number: String = sqlx::query_scalar("SHOW server_version").fetch_one(connection).await?;
    Ok(format!("PostgreSQL {}", number.split_whitespace().next().unwrap_or_default()))
}

/// Brings a database of our own up to date; of LiteLLM's, does nothing. Safe to run from several servers at once.
pub async fn migrate(connection: &mut PgConnection) -> Result<DatabaseKind, anyhow::Error> {
    let found = kind(connection).await?;
    if found == DatabaseKind::Own {
        migrate_schema(connection).await?;
        let mut tables = sqlx::migrate!("./migrations/litellm");
        tables.dangerous_set_table_name("litespend.litellm_migrations");
        tables.run(&mut *connection).await?;
    }
    Ok(found)
}

/// Brings the schema `litespend` up to date, in either kind of database.
pub async fn migrate_schema(connection: &mut PgConnection) -> Result<(), anyhow::Error> {
    let mut ours = sqlx::migrate!("./migrations/litespend");
    ours.dangerous_set_table_name("litespend.migrations");
    ours.create_schema("litespend");
    ours.run(connection).await?;
    Ok(())
}

/// Whether the database answers.
pub async fn ping(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(pool).await.map(|_| ())
}
