//! The connection pool, the kind of database behind it, and its migrations.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres, Row};

use crate::store::STATEMENT_TIMEOUT_SECONDS;
use crate::store::database_url::{BadUrl, DatabaseUrl};

/// Who owns the tables in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    /// litespend: it creates and migrates LiteLLM's tables and its own schema.
    Own,
    /// LiteLLM: litespend never creates anything in `public`.
    LiteLlm,
}

/// Limits of a connection pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Maximum number of connections.
    pub connections: u32,
    /// Maximum time that a request waits for a connection.
    pub wait: Duration,
}

/// A pool that connects on first use. Its sessions use UTC and have a statement timeout. If the client of a query
/// disconnects, PostgreSQL 14 and later end the query within half a second.
pub fn pool(url: &str, limits: PoolLimits) -> Result<PgPool, BadUrl> {
    let DatabaseUrl { options, schema, .. } = DatabaseUrl::parse(url)?;
    let options = options
        .application_name("litespend")
        // The default of PostgreSQL 12 and later. Poolers refuse the parameter.
        .extra_float_digits(None)
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
        .before_acquire(|_, metadata| Box::pin(async move { Ok(is_fresh(metadata.age)) }))
        .after_release(|connection, _| Box::pin(is_free(connection)));
    Ok(pool.connect_lazy_with(options))
}

/// When a migration of the tables was last noticed. Prepared statements of older connections may not fit the tables.
static TABLES_CHANGED: Mutex<Option<Instant>> = Mutex::new(None);

/// Closes every connection that was opened before now, once it is next used.
pub fn discard_prepared_statements() {
    *TABLES_CHANGED.lock() = Some(Instant::now());
}

fn is_fresh(age: Duration) -> bool {
    TABLES_CHANGED.lock().is_none_or(|changed| changed.elapsed() > age)
}

/// How a pooler such as pgbouncer lends the server's sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// A session belongs to one client. The same holds without a pooler.
    Session,
    /// A session belongs to a client for one transaction only.
    Transaction,
    /// A session belongs to a client for one statement only, and transactions of several statements are refused.
    Statement,
}

impl Pooling {
    /// Why this is refused, and what to do, if it is. litespend needs sessions of its own: for prepared statements,
    /// settings and advisory locks. `place` says where the pooler is, `instead` what else to do than to change it.
    pub fn refusal(self, place: &str, instead: &str) -> Option<String> {
        let mode = match self {
            Self::Session => return None,
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        };
        Some(format!(
            "a connection pooler in {mode} mode ({place}) does not give litespend sessions of its own: {instead}, or set \
             the pooler to pool_mode = session"
        ))
    }
}

/// How often [`pooling`] compares sessions. On a busy pooler, a client may get the same session twice by chance.
const COMPARISONS: u32 = 5;

/// Finds out how sessions are lent. `None` if that cannot be seen within the limit: the database does not answer, or a
/// pooler whose sessions are all in use.
pub async fn pooling(url: &str, limit: Duration) -> Result<Option<Pooling>, BadUrl> {
    let options = DatabaseUrl::parse(url)?.options.extra_float_digits(None).statement_cache_capacity(0);
    let compare = async {
        let mut first = PgConnection::connect_with(&options).await?;
        let own = session_of(&mut first, "").await?;
        let begun = match session_of(&mut first, "BEGIN; ").await {
            Ok(session) => session,
            // PostgreSQL itself begins every transaction.
            Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code == PROTOCOL_VIOLATION) => {
                return Ok(Pooling::Statement);
            }
            Err(error) => return Err(error),
        };
        if begun != own {
            return Ok(Pooling::Transaction);
        }
        sqlx::raw_sql("ROLLBACK").execute(&mut first).await?;
        let mut second = PgConnection::connect_with(&options).await?;
        let mut seen = None;
        for _ in 0..COMPARISONS {
            // An open transaction keeps its session. If that is the only one, the first client must not wait for it.
            let other = session_of(&mut second, "BEGIN; ").await?;
            if other == own || *seen.get_or_insert(other) != other || session_of(&mut first, "").await? != own {
                return Ok(Pooling::Transaction);
            }
            sqlx::raw_sql("ROLLBACK").execute(&mut second).await?;
        }
        Ok::<Pooling, sqlx::Error>(Pooling::Session)
    };
    Ok(tokio::time::timeout(limit, compare).await.ok().and_then(Result::ok))
}

/// The code of every refusal of pgbouncer.
const PROTOCOL_VIOLATION: &str = "08P01";

/// The process of the server's session that runs this query, after another statement in the same message.
async fn session_of(connection: &mut PgConnection, statement: &'static str) -> Result<i32, sqlx::Error> {
    let query = format!("{statement}SELECT pg_backend_pid()");
    // To the end: a pooler may refuse the transaction after the row.
    let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(query)).fetch_all(connection).await?;
    rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}

/// Acquires a connection. If the caller is cancelled meanwhile, the pool keeps the connection: a cancelled `acquire` of
/// the pool itself would close the connection that it was about to return.
pub async fn acquire(pool: &PgPool) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    let pool = pool.clone();
    tokio::spawn(async move { pool.acquire().await }).await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

/// Time limit for a returned connection to finish a query that nobody waits for any more.
const RELEASE_LIMIT: Duration = Duration::from_millis(200);

/// Whether a returned connection is ready for a query. A connection that is not ready is in the middle of a query whose
/// request was cancelled. The pool closes it, and the database ends the query when it next checks the socket. An open
/// transaction is rolled back here, because the driver forgets a transaction if its start was cancelled.
async fn is_free(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let free = async {
        connection.flush().await?;
        // Sent as one simple query. Outside a transaction block, a statement starts at the same time as its own
        // transaction.
        let alone = sqlx::raw_sql("SELECT now() = statement_timestamp()").fetch_one(&mut *connection).await;
        if matches!(alone.and_then(|row| row.try_get::<bool, _>(0)), Ok(true)) {
            return Ok(());
        }
        sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await.map(|_| ())
    };
    Ok(matches!(tokio::time::timeout(RELEASE_LIMIT, free).await, Ok(Ok::<(), sqlx::Error>(()))))
}

/// Sets the session's parameters.
///
/// The search path is set explicitly. PostgreSQL's default search path starts with the user's name, so a user named
/// `litespend` would find and create everything in litespend's own schema.
///
/// JIT compilation (`jit`) is off, because it takes longer than the statements of this server.
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

/// Finds out who owns the tables. The database is LiteLLM's in three cases: it has LiteLLM's migration ledger; it has
/// LiteLLM's tables but not litespend's ledger; or the search path's schema has LiteLLM's tables while litespend's own
/// are in another schema.
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

/// Name and version of the server for display, for example `PostgreSQL 15.18`.
pub async fn version(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let number: String = sqlx::query_scalar("SHOW server_version").fetch_one(connection).await?;
    Ok(format!("PostgreSQL {}", number.split_whitespace().next().unwrap_or_default()))
}

/// Migrates a database that litespend owns. Does nothing in a database that LiteLLM owns. Several servers can run this
/// at once.
pub async fn migrate(connection: &mut PgConnection) -> Result<DatabaseKind, anyhow::Error> {
    let found = kind(connection).await?;
    if found == DatabaseKind::Own {
        if let Some(schema) = crate::store::rollups::counted_elsewhere(connection).await? {
            anyhow::bail!(
                "litespend's tables in this database are in the schema {schema}: set it in the URL (?schema=)"
            );
        }
        migrate_schema(connection).await?;
        let mut tables = sqlx::migrate!("./migrations/litellm");
        tables.dangerous_set_table_name("litespend.litellm_migrations");
        tables.run(&mut *connection).await?;
    }
    Ok(found)
}

/// Migrates the schema `litespend`, in either kind of database.
pub async fn migrate_schema(connection: &mut PgConnection) -> Result<(), anyhow::Error> {
    let mut ours = sqlx::migrate!("./migrations/litespend");
    ours.dangerous_set_table_name("litespend.migrations");
    ours.create_schema("litespend");
    crate::store::earlier_migrations::adopt(connection, &ours).await?;
    ours.run(connection).await?;
    Ok(())
}

/// Whether a connection failed because the server's certificate is not trusted. A retry cannot help in that case.
pub fn is_distrusted(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Tls(_))
        || matches!(error, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData)
}

/// Checks that the database responds to a query.
pub async fn ping(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(&mut *acquire(pool).await?).await.map(|_| ())
}

/// Opens a pool for a URL and migrates the database. For subcommands and tests.
pub async fn connect(url: &str, limits: PoolLimits) -> anyhow::Result<PgPool> {
    let pool = pool(url, limits)?;
    let mut connection = pool.acquire().await?;
    migrate(&mut connection).await?;
    drop(connection);
    Ok(pool)
}

/// Removes the session's statement timeout, for work on the command line.
pub async fn lift_statement_timeout(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SET statement_timeout = 0").execute(connection).await.map(|_| ())
}
