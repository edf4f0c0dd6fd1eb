//! The reasons why the data was not upgraded, as messages for a person.

use std::path::PathBuf;

use crate::LocalPostgresError;

/// The reason why the data was not upgraded. Each message is one line, written for a person. The data is as it was
/// before.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The home, its cluster or its programs cannot be used.
    #[error(transparent)]
    Postgres(#[from] LocalPostgresError),
    /// The home has no data.
    #[error("there is no database in {}: name the right directory with --data-dir", home.display())]
    NoDatabase {
        /// The home directory.
        home: PathBuf,
    },
    /// A PostgreSQL runs on the data without a litespend.
    #[error("PostgreSQL (process {pid}) runs on {}: stop it first", data.display())]
    Running {
        /// Its process id.
        pid: i32,
        /// The data directory.
        data: PathBuf,
    },
    /// An option names a directory without PostgreSQL's programs.
    #[error("{} ({option}) has no working `postgres` and `initdb`", directory.display())]
    Unusable {
        /// The option.
        option: &'static str,
        /// The directory that it names.
        directory: PathBuf,
    },
    /// An option names the programs of a version that does not fit.
    #[error("{} ({option}) has PostgreSQL {found}, but {wanted}", directory.display())]
    Unfit {
        /// The option.
        option: &'static str,
        /// The directory that it names.
        directory: PathBuf,
        /// The version of its programs.
        found: String,
        /// What does fit.
        wanted: String,
    },
    /// The programs of the version that wrote the data are missing.
    #[error(
        "the data in {} belongs to PostgreSQL {data_version}, and its upgrade to {newer} needs the programs of both: \
         install PostgreSQL {data_version}, or name the directory of its programs with --old-programs",
        home.display()
    )]
    OldProgramsMissing {
        /// The home directory.
        home: PathBuf,
        /// The major version that wrote the data.
        data_version: u32,
        /// The version to upgrade to.
        newer: String,
    },
    /// An installed PostgreSQL lacks a program that the upgrade runs.
    #[error(
        "{} has no `{program}`: install the server and the client programs of PostgreSQL {version} completely, or name \
         another directory with {option}",
        directory.display()
    )]
    Incomplete {
        /// The directory of the programs.
        directory: PathBuf,
        /// The missing program.
        program: &'static str,
        /// The major version.
        version: u32,
        /// The option that names another directory.
        option: &'static str,
    },
    /// `pg_upgrade` passes paths through a shell.
    #[error("`pg_upgrade` cannot use {}, because of a character in it: move it to a path without quotes, commas, `\\` and `$`", path.display())]
    OddPath {
        /// The path.
        path: PathBuf,
    },
    /// The disk has no room for a second copy of the data.
    #[error(
        "the upgrade needs {} MiB in {}, and {} MiB are free: make room first",
        needed / (1024 * 1024),
        home.display(),
        free / (1024 * 1024)
    )]
    NoRoom {
        /// The home directory.
        home: PathBuf,
        /// The number of bytes that are needed.
        needed: u64,
        /// The number of bytes that are free.
        free: u64,
    },
    /// The data has parts in other directories.
    #[error("the data in {} has tablespaces, which this upgrade does not move: use pg_dump and pg_restore", home.display())]
    Tablespaces {
        /// The home directory.
        home: PathBuf,
    },
    /// PostgreSQL refuses the settings of the data.
    #[error("PostgreSQL {version} refuses a setting of your own in {}, and the data is as before: {reason}", data.display())]
    Settings {
        /// The version.
        version: String,
        /// The data directory with the settings.
        data: PathBuf,
        /// PostgreSQL's message.
        reason: String,
    },
    /// One of PostgreSQL's programs failed.
    #[error("`{program}` failed, and the data is as before: {reason}{}", log.as_ref().map_or_else(String::new, |log| format!(" (see {})", log.display())))]
    Failed {
        /// The program.
        program: &'static str,
        /// Its message.
        reason: String,
        /// The file with all that it said.
        log: Option<PathBuf>,
    },
    /// The new cluster has something else in it than the data.
    #[error("the upgraded copy differs from the data, and was removed; the data is as before: {difference}")]
    Different {
        /// The first difference.
        difference: String,
    },
}
