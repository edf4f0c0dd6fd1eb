//! Opening the database: the embedded one, or the one that a URL names.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::PgPool;

use crate::cli::args::DatabaseArgs;
use crate::cli::serve::{Failure, home};
use crate::settings::ConfigFile;
use crate::store::database;
use crate::store::database::{DatabaseKind, PoolLimits};
use crate::store::database_url::DatabaseUrl;
use crate::store::embedded_roles::local_postgres_options;
use crate::store::error::is_unavailable;
use private_postgres::{LocalPostgres, LocalPostgresError, LocalPostgresOptions, url_of_running};

/// How long a database may take to come up when the server starts.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a server that is just starting is waited for.
const BESIDE_LIMIT: Duration = Duration::from_secs(10);

/// The database of this process.
pub struct OpenDatabase {
    local: Option<LocalPostgres>,
    url: String,
    limits: PoolLimits,
}

/// The URL that the arguments or the config file name; an empty one is none.
pub fn url(args: &DatabaseArgs, config: &ConfigFile) -> Option<String> {
    args.database_url.clone().or_else(|| config.database_url.clone()).filter(|url| !url.trim().is_empty())
}

fn start(args: &DatabaseArgs) -> Result<LocalPostgres, LocalPostgresError> {
    LocalPostgres::start(LocalPostgresOptions { home: Some(home(args)), ..local_postgres_options() })
}

impl OpenDatabase {
    /// Opens what the arguments and the config file say; starts the embedded PostgreSQL where they name none. Blocks.
    pub fn open(args: &DatabaseArgs, config: &ConfigFile, limits: PoolLimits) -> Result<Self, Failure> {
        if let Some(url) = url(args, config) {
            let read =
                DatabaseUrl::parse(&url).map_err(|error| Failure::Setting(anyhow::anyhow!("DATABASE_URL: {error}")))?;
            for warning in read.warnings {
                tracing::warn!("DATABASE_URL: {warning}");
            }
            return Ok(Self { local: None, url, limits });
        }
        let local = start(args).map_err(|error| Failure::Runtime(error.into()))?;
        Ok(Self { url: local.url().to_owned(), local: Some(local), limits })
    }

    /// As [`OpenDatabase::open`], but where a server runs on the embedded database already, it uses that server's.
    pub fn open_beside(args: &DatabaseArgs, config: &ConfigFile, limits: PoolLimits) -> Result<Self, Failure> {
        if url(args, config).is_some() {
            return Self::open(args, config, limits);
        }
        match start(args) {
            Ok(local) => Ok(Self { url: local.url().to_owned(), local: Some(local), limits }),
            Err(error @ LocalPostgresError::InUse { .. }) => match url_of_running(&home(args), BESIDE_LIMIT) {
                Some(url) => Ok(Self { local: None, url, limits }),
                None => Err(Failure::Runtime(error.into())),
            },
            Err(error) => Err(Failure::Runtime(error.into())),
        }
    }

    /// Home of the embedded database.
    pub fn home(&self) -> Option<&Path> {
        self.local.as_ref().map(LocalPostgres::home)
    }

    /// A pool, not yet connected.
    pub fn pool(&self) -> anyhow::Result<PgPool> {
        database::pool(&self.url, self.limits).map_err(|error| anyhow::anyhow!("DATABASE_URL: {error}"))
    }

    /// Waits for the database, brings it up to date, and says whose it is and which version.
    pub async fn prepare(&self, pool: &PgPool) -> Result<(DatabaseKind, String), Failure> {
        let started = Instant::now();
        let mut connection = loop {
            match pool.acquire().await {
                Ok(connection) => break connection,
                Err(error) if database::is_distrusted(&error) => {
                    let message = format!("the database's certificate is not accepted ({})", self.place());
                    return Err(Failure::Runtime(anyhow::Error::new(error).context(message)));
                }
                Err(error) if is_unavailable(&error) && started.elapsed() < START_LIMIT => {
                    tracing::warn!(place = self.place(), cause = %error, "waiting for the database");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => {
                    let message = format!("the database cannot be reached ({})", self.place());
                    return Err(Failure::Runtime(anyhow::Error::new(error).context(message)));
                }
            }
        };
        let kind = database::migrate(&mut connection).await.context("the database cannot be brought up to date")?;
        let version = database::version(&mut connection).await.context("the database does not answer")?;
        Ok((kind, version))
    }

    /// Where the database is, without user or password.
    pub fn place(&self) -> String {
        if let Some(local) = &self.local {
            return format!("embedded in {}", local.home().display());
        }
        match DatabaseUrl::parse(&self.url) {
            Ok(DatabaseUrl { options, .. }) => {
                let name = options.get_database().unwrap_or("postgres");
                match options.get_socket() {
                    Some(socket) => format!("{name} at {}", socket.display()),
                    None => format!("{name} at {}:{}", options.get_host(), options.get_port()),
                }
            }
            Err(_) => "DATABASE_URL".to_owned(),
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
