//! The embedded default: litespend's own private PostgreSQL.
//!
//! Without `DATABASE_URL`, the server finds PostgreSQL's programs on the machine, creates a database cluster in its
//! home directory and runs the cluster as long as it runs itself. The cluster never listens on the network. It listens
//! on a Unix socket in a directory that no other user may enter.
//!
//! | module       | owns                                                                |
//! |--------------|---------------------------------------------------------------------|
//! | `binaries`   | finding `postgres` and `initdb`, and the version that fits the data |
//! | `packaged`   | programs from a Python package beside this program                  |
//! | `account`    | the user that PostgreSQL runs as (it refuses root); a safe home     |
//! | `rights`     | accessing files with the rights of a given user                     |
//! | `secrets`    | secrets that are kept in the home                                   |
//! | `home`       | the home directory: its lock, creating the cluster, the socket      |
//! | `settings`   | the settings that the cluster runs with                             |
//! | `pid_file`   | `postmaster.pid`: readiness, and files of an earlier server         |
//! | `supervisor` | the thread that runs PostgreSQL and restarts it when it dies        |
//! | `upgrade`    | moving the data of an earlier major version to a newer one          |
//! | `options`    | the options for running the cluster                                 |
//! | `error`      | the reasons why the cluster is not running                          |
//!
//! This crate never installs anything, never shares its home with a second server, upgrades data of another major
//! version only when asked to, and never kills PostgreSQL instead of letting it shut down.
//!
//! Every user who may enter the socket's directory (the account, and root) is trusted with every role of the cluster.
//! The server itself uses a role that owns its database and has no other rights.

#![deny(unsafe_code)]

mod account;
mod binaries;
mod error;
mod home;
mod options;
mod packaged;
mod pid_file;
mod rights;
mod secrets;
mod settings;
mod supervisor;
mod upgrade;

pub use crate::error::LocalPostgresError;
pub use crate::options::{Cluster, Durability, LocalPostgresOptions, Prepare};
pub use crate::secrets::keep_secret;
pub use crate::upgrade::{KeptData, UpgradeError, UpgradeOptions, Upgraded, upgrade};

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
        let data_version = home::data_version(&path)?;
        if data_version.is_none() && path.join(home::UPGRADED).symlink_metadata().is_ok() {
            return Err(LocalPostgresError::UpgradeInterrupted { home: path });
        }
        let binaries = Binaries::find(&paths, data_version, &path)?;

        let mut home = Home::open(path)?;
        let binaries = packaged::within_reach(binaries, &home)?;
        home.stop_left_over_server()?;
        upgrade::tidy(&home);
        if !home.is_initialised()? {
            home.initialise(&binaries, options.durability)?;
        }
        let data = home.data();
        let (supervisor, socket_directory) = run_cluster(&mut home, &binaries, data, &options)?;
        let (url, superuser_url) = (url(APPLICATION_ROLE, &socket_directory), url(SUPERUSER, &socket_directory));
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

/// Runs the cluster in `data`, with the settings and roles of `options`. Returns the directory of its socket, too.
fn run_cluster(
    home: &mut Home,
    binaries: &Binaries,
    data: PathBuf,
    options: &LocalPostgresOptions,
) -> Result<(Supervisor, PathBuf), LocalPostgresError> {
    let account = home.account();
    crate::settings::write(&data, account.rights(), options)?;
    let socket_directory = home.prepare_socket_directory()?;
    let supervisor = Supervisor::start(Launcher {
        postgres: binaries.program("postgres"),
        account,
        rights: home.rights(),
        data,
        log: home.log(),
        socket_directory: socket_directory.clone(),
    })?;
    if let Some(prepare) = options.prepare {
        let cluster = Cluster {
            url: &url(APPLICATION_ROLE, &socket_directory),
            superuser: SUPERUSER,
            application_role: APPLICATION_ROLE,
            database: DATABASE,
            durability: options.durability,
        };
        prepare(&cluster).map_err(|reason| LocalPostgresError::Roles { reason })?;
    }
    Ok((supervisor, socket_directory))
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
    absolute_directory("LITESPEND_DATA_DIR").unwrap_or_else(|| default_home_of("litespend"))
}

/// A home beside the default one, for data of another kind: the directory `name` in `/var/lib` for root, and in the XDG data
/// directory for other users.
pub fn default_home_of(name: &str) -> PathBuf {
    let shared = || PathBuf::from("/var/lib");
    if nix::unistd::geteuid().is_root() {
        return shared().join(name);
    }
    absolute_directory("XDG_DATA_HOME")
        .or_else(|| Some(std::env::home_dir()?.join(".local/share")))
        .unwrap_or_else(shared)
        .join(name)
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
}
