//! The embedded default: litespend's own private PostgreSQL.
//!
//! Without `DATABASE_URL`, the server finds PostgreSQL's programs on the machine, creates a database cluster in its
//! home directory and runs the cluster as long as it runs itself. The cluster never listens on the network. It listens
//! on a Unix socket in a directory that no other user may enter.
//!
//! | module       | owns                                                                |
//! |--------------|---------------------------------------------------------------------|
//! | `binaries`   | finding `postgres` and `initdb`, and the version that fits the data |
//! | `account`    | the user that PostgreSQL runs as (it refuses root); a safe home     |
//! | `rights`     | accessing files with the rights of a given user                     |
//! | `secrets`    | secrets that are kept in the home                                   |
//! | `home`       | the home directory: its lock, creating the cluster, the socket      |
//! | `settings`   | the settings that the cluster runs with                             |
//! | `pid_file`   | `postmaster.pid`: readiness, and files of an earlier server         |
//! | `supervisor` | the thread that runs PostgreSQL and restarts it when it dies        |
//!
//! This crate never installs anything, never shares its home with a second server, never opens data of another major
//! version, and never kills PostgreSQL instead of letting it shut down.
//!
//! Every user who may enter the socket's directory (the account, and root) is trusted with every role of the cluster.
//! The server itself uses a role that owns its database and has no other rights.

#![deny(unsafe_code)]

mod account;
mod binaries;
mod home;
mod pid_file;
mod rights;
mod secrets;
mod settings;
mod supervisor;

pub use crate::secrets::keep_secret;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::account::Custody;
use crate::binaries::{Binaries, SearchPaths};
use crate::home::Home;
use crate::supervisor::{Launcher, Supervisor};

/// The name of the database in the private cluster.
const DATABASE: &str = "litespend";
/// The role that owns the database and has no other rights.
const APPLICATION_ROLE: &str = "litespend";
/// The role that created the cluster.
const SUPERUSER: &str = "litespend_superuser";
/// Only part of the socket's file name: the cluster listens on no network port.
const PORT: u16 = 5432;
const DEFAULT_MAX_CONNECTIONS: u16 = 50;

/// Options for running the private cluster.
#[derive(Clone, Debug)]
pub struct LocalPostgresOptions {
    /// The directory that holds everything. [`default_home`] if `None`.
    pub home: Option<PathBuf>,
    /// The directory of `postgres` and `initdb`. If `None`, `PG_BIN_DIR` is used, or else a search.
    pub bin_dir: Option<PathBuf>,
    /// Whether committed data must survive a crash of the machine.
    pub durability: Durability,
    /// PostgreSQL's `max_connections`.
    pub max_connections: u16,
    /// Called by every [`LocalPostgres::start`], after the cluster has started. It gives the application's role the
    /// attributes that it should have. The error is PostgreSQL's message.
    pub prepare: Option<Prepare>,
}

/// The type of [`LocalPostgresOptions::prepare`].
pub type Prepare = fn(&Cluster<'_>) -> Result<(), String>;

/// A cluster that has just been started.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// The URL with which the application connects: [`LocalPostgres::url`].
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

/// A running private cluster. Dropping it stops PostgreSQL cleanly.
///
/// A dedicated thread runs PostgreSQL and restarts it whenever it dies, so [`url`] remains valid as long as this value
/// exists. If the server is killed, PostgreSQL stops too: on Linux at once, elsewhere when the next server starts on
/// the same home.
///
/// [`url`]: LocalPostgres::url
#[derive(Debug)]
pub struct LocalPostgres {
    // Declared before `home`, so that PostgreSQL stops before the lock and the socket directory are released.
    supervisor: Supervisor,
    home: Home,
    version: String,
    url: String,
    superuser_url: String,
}

impl LocalPostgres {
    /// Starts the cluster and waits until it accepts connections. Creates the cluster first if necessary.
    ///
    /// This blocks for about one and a half seconds the first time, and for half a second later. After a crash it takes
    /// longer, because PostgreSQL recovers.
    ///
    /// # Errors
    ///
    /// Every [`LocalPostgresError`] is one line that says what to do.
    pub fn start(options: LocalPostgresOptions) -> Result<Self, LocalPostgresError> {
        let path = options.home.clone().unwrap_or_else(default_home);
        let path = std::path::absolute(&path).map_err(|error| LocalPostgresError::file("resolve", &path, error))?;

        let bin_dir = options.bin_dir.clone();
        let paths = SearchPaths::of_this_machine(bin_dir);
        let binaries = Binaries::find(&paths, home::data_version(&path)?, &path)?;

        let mut home = Home::open(path)?;
        let account = home.account();
        home.stop_left_over_server()?;
        if !home.is_initialised()? {
            home.initialise(&binaries, options.durability)?;
        }
        crate::settings::write(&home.data(), account.rights(), &options)?;
        let socket_directory = home.prepare_socket_directory()?;

        let (url, superuser_url) = (url(APPLICATION_ROLE, &socket_directory), url(SUPERUSER, &socket_directory));
        let supervisor = Supervisor::start(Launcher {
            postgres: binaries.program("postgres"),
            account,
            rights: home.rights(),
            data: home.data(),
            log: home.log(),
            socket_directory,
        })?;
        if let Some(prepare) = options.prepare {
            let cluster = Cluster {
                url: &url,
                superuser: SUPERUSER,
                application_role: APPLICATION_ROLE,
                database: DATABASE,
                durability: options.durability,
            };
            prepare(&cluster).map_err(|reason| LocalPostgresError::Roles { reason })?;
        }
        tracing::info!(
            home = %home.path().display(),
            version = binaries.version,
            pid = supervisor.pid(),
            "private PostgreSQL is ready"
        );
        Ok(Self { supervisor, home, version: binaries.version, url, superuser_url })
    }

    /// The URL to connect to. It is complete: no `PG*` variable changes its target. Its role owns the database and has
    /// no other rights.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Like [`LocalPostgres::url`], for maintenance that requires a superuser.
    pub fn superuser_url(&self) -> &str {
        &self.superuser_url
    }

    /// PostgreSQL's version, such as `15.18`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The directory that holds the data, the log and the socket.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The process id of PostgreSQL. `None` while it is not running.
    pub fn pid(&self) -> Option<u32> {
        self.supervisor.pid()
    }

    /// Whether PostgreSQL accepts connections.
    pub fn is_running(&self) -> bool {
        self.supervisor.is_ready()
    }

    /// Waits until PostgreSQL accepts connections. Returns `false` if it does not within `limit`.
    pub fn wait_until_running(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while !self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(crate::supervisor::POLL);
        }
        true
    }

    /// Stops PostgreSQL until [`resume`](Self::resume), but keeps the home and its lock. For tests of a server whose
    /// database is unavailable.
    ///
    /// # Errors
    ///
    /// [`LocalPostgresError::DidNotStop`] if PostgreSQL does not stop in time.
    pub fn pause(&self) -> Result<(), LocalPostgresError> {
        self.supervisor.pause()
    }

    /// Starts PostgreSQL again after [`pause`](Self::pause), and waits until it accepts connections. Without a
    /// preceding pause, it only waits.
    ///
    /// # Errors
    ///
    /// [`LocalPostgresError::DidNotStart`], or an error if the program could not be run.
    pub fn resume(&self) -> Result<(), LocalPostgresError> {
        self.supervisor.resume()
    }

    /// Stops PostgreSQL. Close connection pools first: PostgreSQL disconnects all remaining clients.
    ///
    /// # Errors
    ///
    /// [`LocalPostgresError::DidNotStop`] if PostgreSQL does not stop in time.
    pub fn stop(mut self) -> Result<(), LocalPostgresError> {
        self.supervisor.stop()
    }
}

/// The URL of the PostgreSQL that another litespend runs on this home. Waits until it accepts connections; returns
/// `None` if none does within `limit`. For commands that run beside a server, which holds the home's lock.
pub fn url_of_running(home: &Path, limit: Duration) -> Option<String> {
    let home = std::path::absolute(home).ok()?;
    let account = Custody::of(&home).ok()?.account;
    let deadline = Instant::now() + limit;
    loop {
        if crate::pid_file::says_ready(&home.join(home::DATA), account) {
            // If the home's path is too long for a socket, `run` is a link to a directory with a shorter path.
            let run = home.join("run");
            return Some(url(APPLICATION_ROLE, &run.read_link().unwrap_or(run)));
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(crate::supervisor::POLL);
    }
}

/// The default home: `LITESPEND_DATA_DIR` if it is set. Otherwise `/var/lib/litespend` for root, because PostgreSQL's
/// account could not enter root's own home. For other users, `litespend` in the XDG data directory.
pub fn default_home() -> PathBuf {
    if let Some(home) = absolute_directory("LITESPEND_DATA_DIR") {
        return home;
    }
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/litespend");
    }
    absolute_directory("XDG_DATA_HOME")
        .or_else(|| Some(std::env::home_dir()?.join(".local/share")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("litespend")
}

fn absolute_directory(variable: &str) -> Option<PathBuf> {
    let value = std::env::var_os(variable).filter(|value| !value.is_empty())?;
    std::path::absolute(value).ok()
}

/// Builds a connection URL. It states the port and `sslmode`, because clients otherwise use `PGPORT` and `PGSSLMODE`.
fn url(role: &str, socket_directory: &Path) -> String {
    let mut host = String::new();
    for byte in socket_directory.as_os_str().as_encoded_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                host.push(char::from(*byte));
            }
            _ => host.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("postgresql://{role}@localhost:{PORT}/{DATABASE}?host={host}&sslmode=disable")
}

/// The reason why the private cluster is not running. Each message is one line, written for a person.
#[derive(Debug, thiserror::Error)]
pub enum LocalPostgresError {
    /// No usable PostgreSQL was found.
    #[error(
        "PostgreSQL is not installed: install the package `postgresql` (Debian, Ubuntu), \
         `postgresql-server` (Fedora) or `postgresql@17` (Homebrew), or set PG_BIN_DIR to the \
         directory of `postgres` and `initdb`, or set DATABASE_URL to a server of your own"
    )]
    NotInstalled,
    /// All versions that were found are older than the oldest supported one.
    #[error(
        "PostgreSQL {found} in {} is too old: install 15 or newer, or set DATABASE_URL",
        directory.display()
    )]
    TooOld {
        /// The version that was found.
        found: String,
        /// The directory in which it was found.
        directory: PathBuf,
    },
    /// The requested directory has no working `postgres` and `initdb`.
    #[error(
        "{} (PG_BIN_DIR) has no working `postgres` and `initdb`: correct it, or unset it to search",
        directory.display()
    )]
    UnusableBinDir {
        /// The requested directory.
        directory: PathBuf,
    },
    /// The data was written by a major version that is not installed.
    #[error(
        "the data in {} belongs to PostgreSQL {data_version}, but only {installed} is installed: \
         install PostgreSQL {data_version}, or set LITESPEND_DATA_DIR to begin elsewhere, or set \
         DATABASE_URL",
        home.display()
    )]
    WrongVersion {
        /// The home directory.
        home: PathBuf,
        /// The major version that wrote the data.
        data_version: u32,
        /// The versions that are installed.
        installed: String,
    },
    /// Another server runs on the same home.
    #[error(
        "another litespend ({holder}) already uses {}: stop it, or set LITESPEND_DATA_DIR to \
         another directory",
        home.display()
    )]
    InUse {
        /// The home directory.
        home: PathBuf,
        /// The process that holds the lock, if it is known.
        holder: String,
    },
    /// The data directory contains something, but not a cluster.
    #[error(
        "{} is not a PostgreSQL data directory and not empty: move it away, or set \
         LITESPEND_DATA_DIR",
        directory.display()
    )]
    NotADataDirectory {
        /// The directory.
        directory: PathBuf,
    },
    /// PostgreSQL refuses to run as root, and there is no other account to run it as.
    #[error(
        "PostgreSQL does not run as root, and this system has neither a user `postgres` nor \
         `nobody`: start litespend as an ordinary user, or set DATABASE_URL"
    )]
    NoAccount,
    /// A user other than root could redirect root's file accesses in this home.
    #[error(
        "root cannot keep the database in {} safely: {reason}; set LITESPEND_DATA_DIR to a directory that only root can \
         write, or start litespend as the directory's owner",
        home.display()
    )]
    UnsafeHome {
        /// The home directory.
        home: PathBuf,
        /// The danger that was found.
        reason: String,
    },
    /// The roles of the cluster could not be set up.
    #[error("cannot give the private database an owner without a superuser's rights: {reason}")]
    Roles {
        /// PostgreSQL's message.
        reason: String,
    },
    /// A file or directory could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// The attempted action.
        action: &'static str,
        /// The path that it was attempted on.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {}: {source}", program.display())]
    Run {
        /// The path of the program.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The cluster could not be created.
    #[error("cannot create the database cluster in {}: {reason}", home.display())]
    Initialise {
        /// The home directory.
        home: PathBuf,
        /// PostgreSQL's message.
        reason: String,
    },
    /// PostgreSQL ended before it accepted connections.
    #[error("PostgreSQL did not start: {reason} (see {})", log.display())]
    DidNotStart {
        /// PostgreSQL's message.
        reason: String,
        /// PostgreSQL's log file.
        log: PathBuf,
    },
    /// PostgreSQL did not stop in time. It was not killed.
    #[error("PostgreSQL (process {pid}) did not stop in time")]
    DidNotStop {
        /// Its process id.
        pid: u32,
    },
    /// The supervising thread no longer exists or could not be created.
    #[error("the thread that supervises PostgreSQL is not running")]
    NoSupervisor,
}

impl LocalPostgresError {
    fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_spells_out_everything_and_escapes_the_path() {
        assert_eq!(
            url("litespend", Path::new("/srv/a b+c/run")),
            "postgresql://litespend@localhost:5432/litespend?host=/srv/a%20b%2Bc/run&sslmode=disable"
        );
    }

    #[test]
    fn a_missing_postgresql_names_the_package_and_the_way_out() {
        let message = LocalPostgresError::NotInstalled.to_string();
        assert!(message.contains("package `postgresql`"), "{message}");
        assert!(message.contains("DATABASE_URL"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}
