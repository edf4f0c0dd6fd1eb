//! The options for running the private cluster.

use std::path::PathBuf;

const DEFAULT_MAX_CONNECTIONS: u16 = 50;

/// Options for running the private cluster.
#[derive(Clone, Debug)]
pub struct LocalPostgresOptions {
    /// The directory that holds everything. [`default_home`](crate::default_home) if `None`.
    pub home: Option<PathBuf>,
    /// The directory of `postgres` and `initdb`. If `None`, `PG_BIN_DIR` is used, or else a search.
    pub bin_dir: Option<PathBuf>,
    /// Whether committed data must survive a crash of the machine.
    pub durability: Durability,
    /// PostgreSQL's `max_connections`.
    pub max_connections: u16,
    /// Memory that PostgreSQL may use, in bytes, of which half becomes `shared_buffers`. A quarter of this machine's, or of
    /// its control group's, if `None`. A throwaway cluster is small in any case.
    pub memory: Option<u64>,
    /// Called by every [`LocalPostgres::start`], after the cluster has started. It gives the application's role the
    /// attributes that it should have. The error is PostgreSQL's message.
    ///
    /// [`LocalPostgres::start`]: crate::LocalPostgres::start
    pub prepare: Option<Prepare>,
}

/// The type of [`LocalPostgresOptions::prepare`].
pub type Prepare = fn(&Cluster<'_>) -> Result<(), String>;

/// A cluster that has just been started.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// The URL with which the application connects: [`LocalPostgres::url`](crate::LocalPostgres::url).
    pub url: &'a str,
    /// The role that created the cluster, in clusters that this version created.
    pub superuser: &'static str,
    /// The role that the application uses.
    pub application_role: &'static str,
    /// The application's database.
    pub database: &'static str,
    /// The durability that the cluster was started with. Tests use [`Durability::Throwaway`].
    pub durability: Durability,
}

impl Default for LocalPostgresOptions {
    fn default() -> Self {
        Self {
            home: None,
            bin_dir: None,
            durability: Durability::Durable,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            memory: None,
            prepare: None,
        }
    }
}

/// Whether committed data must survive a crash of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Every commit is on disk before it is acknowledged.
    #[default]
    Durable,
    /// For tests: no operation waits for the disk, and no background maintenance runs.
    Throwaway,
}
