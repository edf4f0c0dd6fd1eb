//! The pool, the kind of database behind it, and its migrations.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres, Row};

use crate::store::STATEMENT_TIMEOUT_SECONDS;
use crate::store::database_url::{BadUrl, DatabaseUrl};

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
pub fn pool(url: &str, limits: PoolLimits) -> Result<PgPool, BadUrl> {
    let DatabaseUrl { options, schema, .. } = DatabaseUrl::parse(url)?;
    let options = options
        .application_name("litespend")
        .log_statements(tracing::log::LevelFilter::Trace)
        .log_slow_statements(tracing::log::LevelFilter::Off, Duration::ZERO);
    let pool = PgPoolOptions::new()
        .max_connections(limits.connections)
        .min_connections(0)
        .acquire_timeout(limits.wait)
        .idle_timeout(Duration::from_secs(600))
        .after_connect(move |connection, _| {
            let schema = schema.clone();
            Box::pin(async move { prepare_session(connection, &schema).await })
        })
        .after_release(|connection, _| Box::pin(is_free(connection)));
    Ok(pool.connect_lazy_with(options))
}

/// Takes a connection. A request that is given up meanwhile does not cost one: the pool would close what it was about to
/// lend.
pub async fn acquire(pool: &PgPool) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    let pool = pool.clone();
    tokio::spawn(async move { pool.acquire().await }).await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

/// How long a connection that comes back may still be busy with a query that nobody waits for any more.
const RELEASE_LIMIT: Duration = Duration::from_millis(200);

/// Whether a connection that comes back is ready for a query. One that is not is in the middle of a query whose request was
/// given up; it is closed, and the database ends the query at its next look at the socket. A transaction that nobody has
/// ended is rolled back: the driver forgets one whose beginning was given up.
async fn is_free(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let free = async {
        connection.flush().await?;
        // As one simple query: a statement is as old as its transaction, where that is its own.
        let alone = sqlx::raw_sql("SELECT now() = statement_timestamp()").fetch_one(&mut *connection).await;
        if matches!(alone.and_then(|row| row.try_get::<bool, _>(0)), Ok(true)) {
            return Ok(());
        }
        sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await.map(|_| ())
    };
    Ok(matches!(tokio::time::timeout(RELEASE_LIMIT, free).await, Ok(Ok::<(), sqlx::Error>(()))))
}

/// The search path is spelled out: the default one begins with the user's name, and a user `litespend` would find, and
/// create, everything in our own schema.
///
/// Without compiling of expressions (`jit`): that takes longer than the statements that are sent here.
async fn prepare_session(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    connection.execute("SET TIME ZONE 'UTC'").await?;
    sqlx::query(
        "SELECT set_config('search_path', quote_ident($2), false),
                set_config('client_min_messages', 'warning', false),
                set_config('statement_timeout', $1, false),
                set_config('idle_in_transaction_session_timeout', '60s', false),
                set_config('jit', 'off', false),
                CASE WHEN current_setting('server_version_num')::int >= 140000
                     THEN set_config('client_connection_check_interval', '500', false) END",
    )
    .bind(format!("{STATEMENT_TIMEOUT_SECONDS}s"))
    .bind(schema)
    .execute(connection)
    .await?;
    Ok(())
}

/// Whose tables these are. LiteLLM's ledger, or its tables without ours, make the database LiteLLM's; so do its tables in
/// this schema where ours are in another one.
pub async fn kind(connection: &mut PgConnection) -> Result<DatabaseKind, sqlx::Error> {
    let (prisma, spend_logs, ledger): (bool, bool, bool) = sqlx::query_as(
        "SELECT to_regclass('_prisma_migrations') IS NOT NULL,
                to_regclass('\"LiteLLM_SpendLogs\"') IS NOT NULL,
                to_regclass('litespend.litellm_migrations') IS NOT NULL",
    )
    .fetch_one(&mut *connection)
    .await?;
    let elsewhere = ledger && crate::store::rollups::counted_elsewhere(connection).await?.is_some();
    let foreign = prisma || (spend_logs && (!ledger || elsewhere));
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
        if let Some(schema) = crate::store::rollups::counted_elsewhere(connection).await? {
            anyhow::bail!(
                "litespend's tables of this database are in the schema {schema}: name it in the URL (?schema=)"
            );
        }
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
    crate::store::earlier_migrations::adopt(connection, &ours).await?;
    ours.run(connection).await?;
    Ok(())
}

/// Whether a connection failed because the server's certificate is not one to trust: waiting helps nobody.
pub fn is_distrusted(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Tls(_))
        || matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData)
}

/// Whether the database answers.
pub async fn ping(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(&mut *acquire(pool).await?).await.map(|_| ())
}

/// Opens a pool on a URL and brings its database up to date. For subcommands and tests.
pub async fn connect(url: &str, limits: PoolLimits) -> anyhow::Result<PgPool> {
    let pool = pool(url, limits)?;
    let mut connection = pool.acquire().await?;
    migrate(&mut connection).await?;
    drop(connection);
    Ok(pool)
}

/// Lets the statements of this session take as long as they take, as work at the command line may.
pub async fn lift_statement_timeout(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SET statement_timeout = 0").execute(connection).await.map(|_| ())
}
