//! Finds `postgres` and `initdb`: in `PG_BIN_DIR` if it is set, otherwise in a Python package beside this program, through
//! `pg_config`, `PATH` and the directories of package managers. Existing data determine the major version; without data, the newest version is
//! used. To support another packaging, add its directory to [`VERSIONED_DIRECTORIES`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::LocalPostgresError;
use crate::packaged;

/// The first version with `CREATE DATABASE ... STRATEGY` and the other features that this crate needs.
const OLDEST_SUPPORTED: u32 = 15;

/// Where packages install versions side by side: a directory, the prefix of the entries in it that belong to a version,
/// and the subdirectory of each entry.
const VERSIONED_DIRECTORIES: [(&str, &str, &str); 8] = [
    ("/usr/lib/postgresql", "", "bin"),         // Debian, Ubuntu
    ("/usr", "pgsql-", "bin"),                  // PGDG on Fedora, RHEL
    ("/usr/lib", "postgresql", "bin"),          // openSUSE
    ("/usr/libexec", "postgresql", ""),         // Alpine
    ("/opt/homebrew/opt", "postgresql", "bin"), // Homebrew, Apple silicon
    ("/usr/local/opt", "postgresql", "bin"),    // Homebrew, Intel
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];

/// One installed PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binaries {
    directory: PathBuf,
    /// The full version, such as `15.18`.
    pub(crate) version: String,
    /// Major and minor version, such as `(15, 18)`.
    number: (u32, u32),
}

/// The paths to search.
#[derive(Debug)]
pub(crate) struct SearchPaths {
    /// If set, no other place is searched.
    only: Option<PathBuf>,
    /// Searched before all others.
    first: Option<PathBuf>,
    packaged: Option<PathBuf>,
    path: OsString,
    versioned: Vec<(PathBuf, &'static str, &'static str)>,
}

impl SearchPaths {
    /// Uses `bin_dir`, else `PG_BIN_DIR`, else all paths on this system.
    pub(crate) fn of_this_machine(bin_dir: Option<PathBuf>) -> Self {
        let variable = || std::env::var_os("PG_BIN_DIR").filter(|value| !value.is_empty());
        Self {
            only: bin_dir.or_else(|| variable().map(PathBuf::from)),
            first: None,
            packaged: packaged::directory(),
            path: std::env::var_os("PATH").unwrap_or_default(),
            versioned: VERSIONED_DIRECTORIES
                .into_iter()
                .map(|(directory, prefix, rest)| (PathBuf::from(directory), prefix, rest))
                .collect(),
        }
    }

    /// Only one directory.
    #[cfg(test)]
    pub(crate) fn only(directory: &Path) -> Self {
        let only = Some(directory.to_owned());
        Self { only, first: None, packaged: None, path: OsString::new(), versioned: Vec::new() }
    }

    /// The same paths, of which the directory that was named is only the first.
    pub(crate) fn everywhere(mut self) -> Self {
        self.first = self.only.take();
        self
    }

    fn directories(&self) -> Vec<PathBuf> {
        let on_path: Vec<PathBuf> =
            std::env::split_paths(&self.path).filter(|directory| directory.is_absolute()).collect();
        let mut found: Vec<PathBuf> = self.first.iter().chain(&self.packaged).cloned().collect();
        found.extend(on_path.iter().find_map(|directory| said_by_pg_config(&directory.join("pg_config"))));
        found.extend(on_path);
        for (parent, prefix, rest) in &self.versioned {
            let Ok(entries) = parent.read_dir() else {
                continue;
            };
            let matching = entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
                .map(|entry| entry.path().join(rest));
            found.extend(matching);
        }
        found
    }
}

impl Binaries {
    /// Finds the newest installed PostgreSQL, or the newest with the major version that wrote the data.
    pub(crate) fn find(
        paths: &SearchPaths,
        data_version: Option<u32>,
        home: &Path,
    ) -> Result<Self, LocalPostgresError> {
        let mut installed = match &paths.only {
            Some(directory) => match Self::in_directory(directory) {
                Some(binaries) => vec![binaries],
                None => {
                    return Err(LocalPostgresError::UnusableBinDir { directory: directory.clone() });
                }
            },
            None => paths.directories().iter().filter_map(|directory| Self::in_directory(directory)).collect(),
        };
        // The sort is stable and the list is reversed first. Among equal versions, the one that was found first
        // therefore comes last and is chosen.
        installed.reverse();
        installed.sort_by_key(|binaries| binaries.number);

        let Some(newest) = installed.last() else {
            return Err(LocalPostgresError::NotInstalled);
        };
        if newest.major() < OLDEST_SUPPORTED {
            return Err(LocalPostgresError::TooOld {
                found: newest.version.clone(),
                directory: newest.directory.clone(),
            });
        }
        let Some(data_version) = data_version else {
            return Ok(newest.clone());
        };
        let fitting = installed.iter().rfind(|binaries| binaries.major() == data_version);
        fitting.cloned().ok_or_else(|| {
            let mut versions: Vec<&str> = installed.iter().map(|binaries| binaries.version.as_str()).collect();
            versions.dedup();
            LocalPostgresError::WrongVersion {
                home: home.to_owned(),
                data_version,
                installed: versions.join(", "),
                newer: (newest.major() > data_version).then(|| newest.version.clone()),
            }
        })
    }

    pub(crate) fn in_directory(directory: &Path) -> Option<Self> {
        if !directory.join("initdb").is_file() || !directory.join("postgres").is_file() {
            return None;
        }
        let directory = std::path::absolute(directory).ok()?;
        let output = output_of(&directory.join("postgres"), "--version")?;
        let version = output.strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
        Some(Self { number: parse_version(version)?, version: version.to_owned(), directory })
    }

    /// The path of one of PostgreSQL's programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory of the programs.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The major version, such as 15.
    pub(crate) fn major(&self) -> u32 {
        self.number.0
    }
}

fn said_by_pg_config(program: &Path) -> Option<PathBuf> {
    let output = output_of(program, "--bindir")?;
    Some(PathBuf::from(output.trim_end())).filter(|directory| directory.is_absolute())
}

fn output_of(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).ok())?
}

/// Parses a version: `15.18` is `(15, 18)`, `18beta1` is `(18, 0)`.
fn parse_version(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    Some((leading_number(major)?, leading_number(minor).unwrap_or(0)))
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn install(directory: &Path, version: &str) {
        std::fs::create_dir_all(directory).unwrap();
        for program in ["postgres", "initdb"] {
            let file = directory.join(program);
            let script = format!("#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n");
            std::fs::write(&file, script).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn paths(root: &Path) -> SearchPaths {
        SearchPaths {
            only: None,
            first: None,
            packaged: Some(root.join("packaged")),
            path: root.join("path").into_os_string(),
            versioned: vec![(root.join("debian"), "", "bin"), (root.join("homebrew"), "postgresql@", "bin")],
        }
    }

    fn find(paths: &SearchPaths, data: Option<u32>) -> Result<String, String> {
        match Binaries::find(paths, data, Path::new("/home/x")) {
            Ok(binaries) => Ok(binaries.version),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_newest_wins_unless_the_data_asks_for_another() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("path"), "9.6.2");
        install(&root.path().join("debian/15/bin"), "15.18 (Debian 15.18-0)");
        install(&root.path().join("debian/16/bin"), "16.9");
        install(&root.path().join("homebrew/postgresql@17/bin"), "17.2");
        let paths = paths(root.path());

        assert_eq!(find(&paths, None), Ok("17.2".to_owned()));
        install(&root.path().join("packaged"), "18.6");
        assert_eq!(find(&paths, None), Ok("18.6".to_owned()));
        std::fs::remove_dir_all(root.path().join("packaged")).unwrap();
        assert_eq!(find(&paths, Some(15)), Ok("15.18".to_owned()));
        assert_eq!(
            find(&paths, Some(14)),
            Err("the data in /home/x belongs to PostgreSQL 14, but only 9.6.2, 15.18, 16.9, 17.2 \
                 is installed: install PostgreSQL 14, or set PG_BIN_DIR to its programs \
                 (`litespend upgrade-database` then moves the data to 17.2); or set \
                 LITESPEND_DATA_DIR to another directory, or set DATABASE_URL"
                .to_owned())
        );
        let newer_data = find(&paths, Some(19)).unwrap_err();
        assert!(newer_data.contains("install PostgreSQL 19, or set PG_BIN_DIR to its programs; or"), "{newer_data}");
    }

    #[test]
    fn the_named_directory_is_the_only_one_or_the_first() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("named"), "18.6");
        install(&root.path().join("debian/15/bin"), "15.18");
        install(&root.path().join("debian/18/bin"), "18.6");
        let mut paths = paths(root.path());
        paths.only = Some(root.path().join("named"));
        find(&paths, Some(15)).unwrap_err();
        let paths = paths.everywhere();
        assert_eq!(find(&paths, Some(15)), Ok("15.18".to_owned()));
        let newest = Binaries::find(&paths, None, root.path()).unwrap();
        assert_eq!(newest.directory(), root.path().join("named"));
    }

    #[test]
    fn pg_config_on_the_path_leads_to_a_directory_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = root.path().join("elsewhere");
        install(&elsewhere, "18beta1");
        let program = root.path().join("path/pg_config");
        std::fs::create_dir_all(root.path().join("path")).unwrap();
        std::fs::write(&program, format!("#!/bin/sh\necho {}\n", elsewhere.display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();

        assert_eq!(find(&paths(root.path()), None), Ok("18beta1".to_owned()));
    }

    #[test]
    fn nothing_too_old_and_a_wrong_pg_bin_dir_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let mut paths = paths(root.path());
        let nothing = find(&paths, None).unwrap_err();
        assert!(nothing.starts_with("PostgreSQL is not installed"), "{nothing}");

        install(&root.path().join("path"), "13.4");
        let too_old = find(&paths, None).unwrap_err();
        assert!(too_old.starts_with("PostgreSQL 13.4 in "), "{too_old}");

        paths.only = Some(root.path().join("absent"));
        let unusable = find(&paths, None).unwrap_err();
        assert!(unusable.contains("(PG_BIN_DIR) has no working"), "{unusable}");
    }
}
