//! The reasons why the private cluster is not running, as messages for a person.

use std::io;
use std::path::{Path, PathBuf};

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
    /// PostgreSQL's programs are in a directory that the account that runs them can't enter.
    #[error(
        "PostgreSQL's account cannot run {}: install it for all users, or set PG_BIN_DIR, or set DATABASE_URL",
        program.display()
    )]
    OutOfReach {
        /// The path of `postgres`.
        program: PathBuf,
    },
    /// The data was written by a major version that is not installed.
    #[error(
        "the data in {} belongs to PostgreSQL {data_version}, but only {installed} is installed: \
         install PostgreSQL {data_version}, or set PG_BIN_DIR to its programs{}; or set LITESPEND_DATA_DIR to another \
         directory, or set DATABASE_URL",
        home.display(),
        newer.as_ref().map_or_else(String::new, |version| {
            format!(" (`litespend upgrade-database` then moves the data to {version})")
        })
    )]
    WrongVersion {
        /// The home directory.
        home: PathBuf,
        /// The major version that wrote the data.
        data_version: u32,
        /// The versions that are installed.
        installed: String,
        /// The newest of them, if it is newer than the data.
        newer: Option<String>,
    },
    /// An upgrade ended between its last two steps. The data is complete, but not in its place.
    #[error("an upgrade of the data in {} was interrupted: run `litespend upgrade-database`, which finishes it", home.display())]
    UpgradeInterrupted {
        /// The home directory.
        home: PathBuf,
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
        "{} is not a PostgreSQL data directory and is not empty: move it away, or set \
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
    #[error("cannot give the private database an owner without superuser rights: {reason}")]
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
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_postgresql_names_the_package_and_the_way_out() {
        let message = LocalPostgresError::NotInstalled.to_string();
        assert!(message.contains("package `postgresql`"), "{message}");
        assert!(message.contains("DATABASE_URL"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}
