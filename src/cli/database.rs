//! Opens the database: the embedded one, or the one that a URL names.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cli::args::DatabaseArgs;
use crate::settings::ConfigFile;
use crate::store;
use crate::store::Pool;
use crate::store::database;
use crate::store::database::{DatabaseKind, PoolLimits};
use crate::store::database_url::DatabaseUrl;
use crate::store::embedded_roles::local_postgres_options;
use crate::store::error::is_unavailable;
use private_postgres::{LocalPostgres, LocalPostgresError, LocalPostgresOptions, url_of_running};

/// How long the server waits at its start for the database to become available.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a command waits for a server that is just starting on the same home.
const BESIDE_LIMIT: Duration = Duration::from_secs(10);

/// The reason why a subcommand failed.
#[derive(Debug)]
pub enum Failure {
    /// A setting is wrong: exit code 2.
    Setting(anyhow::Error),
    /// Everything else: exit code 1.
    Runtime(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Runtime(error)
    }
}

/// The database that this process uses.
pub struct OpenDatabase {
    local: Option<LocalPostgres>,
    named: NamedUrl,
    limits: PoolLimits,
}

/// A URL of a database, and the setting that names it.
#[derive(Clone, Debug)]
pub struct NamedUrl {
    /// The URL.
    pub url: String,
    /// The environment variable, for messages.
    pub setting: &'static str,
}

impl NamedUrl {
    /// Parses the URL.
    pub fn parse(&self) -> Result<DatabaseUrl, Failure> {
        DatabaseUrl::parse(&self.url).map_err(|error| Failure::Setting(anyhow::anyhow!("{}: {error}", self.setting)))
    }
}

/// The URL from the arguments or the config file. An empty URL counts as none. With `--direct-url`, that one: every
/// connection needs a session, which a pooler in front of PostgreSQL may not give. The schema is that of the first URL.
pub fn url(args: &DatabaseArgs, config: &ConfigFile) -> Option<NamedUrl> {
    let given = |url: &&String| !url.trim().is_empty();
    let url = args.database_url.as_ref().or(config.general.database_url.as_ref()).filter(given)?;
    Some(match args.direct_url.as_ref().filter(given) {
        Some(direct) => NamedUrl { url: DatabaseUrl::with_schema_of(direct, url), setting: "DIRECT_URL" },
        None => NamedUrl { url: url.clone(), setting: "DATABASE_URL" },
    })
}

/// Connections of the embedded database beside those of the pool: of background work, of commands beside a server, and those
/// that PostgreSQL keeps for superusers.
const FURTHER_CONNECTIONS: u32 = 30;

/// Time limit for finding out whether there is a pooler.
const POOLING_LIMIT: Duration = Duration::from_secs(3);

/// The URL of the embedded database.
fn embedded(url: &str) -> NamedUrl {
    NamedUrl { url: url.to_owned(), setting: "the embedded database" }
}

fn start(args: &DatabaseArgs, limits: PoolLimits) -> Result<LocalPostgres, LocalPostgresError> {
    let memory = args.database_memory_mb.map(|mebibytes| u64::from(mebibytes) * 1024 * 1024);
    let options = local_postgres_options();
    let connections = u16::try_from(limits.connections.saturating_add(FURTHER_CONNECTIONS)).unwrap_or(u16::MAX);
    let max_connections = options.max_connections.max(connections);
    LocalPostgres::start(LocalPostgresOptions { home: Some(home(args)), memory, max_connections, ..options })
}

/// A reason that another attempt does not remove is a wrong setting.
fn not_started(error: LocalPostgresError) -> Failure {
    use LocalPostgresError as Reason;
    match error {
        Reason::NotInstalled
        | Reason::TooOld { .. }
        | Reason::UnusableBinDir { .. }
        | Reason::OutOfReach { .. }
        | Reason::WrongVersion { .. }
        | Reason::UpgradeInterrupted { .. }
        | Reason::NotADataDirectory { .. }
        | Reason::NoAccount
        | Reason::UnsafeHome { .. } => Failure::Setting(error.into()),
        _ => Failure::Runtime(error.into()),
    }
}

impl OpenDatabase {
    /// Opens the database that the arguments or the config file name. If they name none, starts the embedded
    /// PostgreSQL. This blocks.
    pub fn open(args: &DatabaseArgs, config: &ConfigFile, limits: PoolLimits) -> Result<Self, Failure> {
        if let Some(named) = url(args, config) {
            for warning in named.parse()?.warnings {
                tracing::warn!("{}: {warning}", named.setting);
            }
            return Ok(Self { local: None, named, limits });
        }
        let local = start(args, limits).map_err(not_started)?;
        Ok(Self { named: embedded(local.url()), local: Some(local), limits })
    }

    /// Like [`OpenDatabase::open`]. If a server already runs on the embedded database, uses that server's PostgreSQL.
    pub fn open_beside(args: &DatabaseArgs, config: &ConfigFile, limits: PoolLimits) -> Result<Self, Failure> {
        if url(args, config).is_some() {
            return Self::open(args, config, limits);
        }
        match start(args, limits) {
            Ok(local) => Ok(Self { named: embedded(local.url()), local: Some(local), limits }),
            Err(error @ LocalPostgresError::InUse { .. }) => match url_of_running(&home(args), BESIDE_LIMIT) {
                Some(url) => Ok(Self { local: None, named: embedded(&url), limits }),
                None => Err(not_started(error)),
            },
            Err(error) => Err(not_started(error)),
        }
    }

    /// The home of the embedded database. `None` if a URL names the database.
    pub fn home(&self) -> Option<&Path> {
        self.local.as_ref().map(LocalPostgres::home)
    }

    /// Creates a pool, which is not yet connected.
    pub fn pool(&self) -> anyhow::Result<Pool> {
        database::pool(&self.named.url, self.limits).map_err(|error| anyhow::anyhow!("{}: {error}", self.named.setting))
    }

    /// Waits for the database and brings it up to date. Returns who owns it, and its version.
    pub async fn prepare(&self, pool: &Pool) -> Result<(DatabaseKind, String), Failure> {
        let started = Instant::now();
        let mut has_sessions = self.local.is_some();
        let mut connection = loop {
            if !has_sessions {
                has_sessions = self.check_pooling().await?;
            }
            match pool.acquire().await {
                Ok(connection) => break connection,
                Err(error) if database::is_distrusted(&error) => {
                    let message = format!("cannot verify the database's certificate ({})", self.location());
                    return Err(Failure::Runtime(anyhow::Error::new(error).context(message)));
                }
                Err(error) if is_unavailable(&error) && started.elapsed() < START_LIMIT => {
                    tracing::warn!(location = self.location(), cause = %error, "waiting for the database");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => {
                    let message = format!("cannot reach the database ({})", self.location());
                    return Err(Failure::Runtime(anyhow::Error::new(error).context(message)));
                }
            }
        };
        let kind = database::migrate(&mut connection).await.context("cannot bring the database up to date")?;
        let version = database::version(&mut connection).await.context("the database does not answer")?;
        Ok((kind, version))
    }

    /// Refuses a pooler that does not give its clients sessions of their own. Returns whether that could be found out.
    async fn check_pooling(&self) -> Result<bool, Failure> {
        let found = database::pooling(&self.named.url, POOLING_LIMIT).await.ok().flatten();
        let instead = "set DIRECT_URL to the URL of PostgreSQL itself";
        match found.and_then(|pooling| pooling.refusal(&self.location(), instead)) {
            Some(refusal) => Err(Failure::Setting(anyhow::anyhow!("{}: {refusal}", self.named.setting))),
            None => Ok(found.is_some()),
        }
    }

    /// Where the database is, without user and password.
    pub fn location(&self) -> String {
        if let Some(local) = &self.local {
            return format!("embedded in {}", local.home().display());
        }
        match DatabaseUrl::parse(&self.named.url) {
            Ok(url) => url.location(),
            Err(_) => self.named.setting.to_owned(),
        }
    }

    /// Stops the embedded PostgreSQL. Close the pool first.
    pub fn close(self) -> Result<(), Failure> {
        match self.local {
            Some(local) => local.stop().map_err(|error| Failure::Runtime(error.into())),
            None => Ok(()),
        }
    }
}

/// Reads the config file that the arguments name, if any.
pub fn read_config(args: &DatabaseArgs) -> Result<ConfigFile, Failure> {
    args.config
        .as_deref()
        .map_or_else(|| Ok(ConfigFile::default()), |path| ConfigFile::read(path).map_err(Failure::Setting))
}

/// The home of the embedded database for these arguments.
pub fn home(args: &DatabaseArgs) -> PathBuf {
    args.data_dir.clone().unwrap_or_else(private_postgres::default_home)
}

/// Opens the database of the arguments, next to a running server if there is one. Brings it up to date if litespend owns it,
/// and runs `work` on one connection.
pub fn with_connection<F>(
    args: &DatabaseArgs,
    work: impl FnOnce(store::PooledConnection, DatabaseKind) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let config = read_config(args)?;
    let open = OpenDatabase::open_beside(args, &config, PoolLimits { connections: 2, wait: Duration::from_secs(30) })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let result = runtime.block_on(async {
        let pool = open.pool().map_err(Failure::Setting)?;
        let (kind, _) = open.prepare(&pool).await?;
        let mut connection = pool.acquire().await.context("no connection")?;
        database::lift_statement_timeout(&mut connection).await.context("cannot prepare the session")?;
        let result = work(connection, kind).await;
        pool.close().await;
        result
    });
    open.close()?;
    result
}

/// Opens a pool on the database of the arguments, next to a running server if there is one. Brings the database up to
/// date if litespend owns it, and runs `work`.
pub fn with_pool<F>(args: &DatabaseArgs, work: impl FnOnce(Pool, DatabaseKind) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let config = read_config(args)?;
    let limits = PoolLimits { connections: 4, wait: Duration::from_secs(30) };
    let open = OpenDatabase::open_beside(args, &config, limits)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    let result = runtime.block_on(async {
        let pool = open.pool().map_err(Failure::Setting)?;
        let (kind, _) = open.prepare(&pool).await?;
        let result = work(pool.clone(), kind).await;
        pool.close().await;
        result
    });
    drop(runtime);
    open.close()?;
    result
}

/// Refuses a change if LiteLLM owns the tables and `--manage-litellm-keys` is not set.
pub fn check_owner(kind: DatabaseKind, manage_litellm_keys: bool) -> Result<(), Failure> {
    if kind == DatabaseKind::LiteLlm && !manage_litellm_keys {
        return Err(Failure::Runtime(anyhow::anyhow!(crate::accounts::LITELLM_OWNS)));
    }
    Ok(())
}
