//! The programs of both versions that an upgrade runs.

use std::path::{Path, PathBuf};

use crate::binaries::{Binaries, SearchPaths};
use crate::home::Home;
use crate::upgrade::UpgradeError;
use crate::{LocalPostgresError, packaged};

/// The option that names the directory of the earlier programs, and the one of the newer programs.
const OLD_PROGRAMS: &str = "--old-programs";
const PROGRAMS: &str = "--programs";

/// What `pg_upgrade` and this crate run of either version.
const OF_EARLIER: [&str; 4] = ["postgres", "pg_ctl", "pg_controldata", "pg_resetwal"];
const OF_NEWER: [&str; 11] = [
    "postgres",
    "initdb",
    "pg_upgrade",
    "pg_ctl",
    "pg_controldata",
    "pg_resetwal",
    "pg_dump",
    "pg_dumpall",
    "pg_restore",
    "psql",
    "vacuumdb",
];

/// The programs of both versions.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) earlier: Binaries,
    pub(crate) newer: Binaries,
}

/// Where to look for programs.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    /// The directories that the options name.
    pub(crate) earlier: Option<&'a Path>,
    pub(crate) newer: Option<&'a Path>,
    /// The paths that a server searches.
    pub(crate) paths: SearchPaths,
}

impl Programs {
    /// Finds the programs that wrote the data, and newer ones. `Err` in the `Ok` is the version that needs no upgrade,
    /// because it wrote the data and is the newest.
    pub(crate) fn find(
        places: Places<'_>,
        data_version: u32,
        home: &Path,
    ) -> Result<Result<Self, String>, UpgradeError> {
        let newer = match places.newer {
            Some(directory) => named(directory, PROGRAMS)?,
            None => Binaries::find(&places.paths, None, home)?,
        };
        if newer.major() == data_version {
            return Ok(Err(newer.version));
        }
        if newer.major() < data_version {
            let (Some(directory), found) = (places.newer, newer.version) else {
                // States what is installed.
                let error = Binaries::find(&places.paths, Some(data_version), home).err();
                return Err(error.unwrap_or(LocalPostgresError::NotInstalled).into());
            };
            let wanted = format!("the data in {} belongs to PostgreSQL {data_version}", home.display());
            return Err(UpgradeError::Unfit { option: PROGRAMS, directory: directory.to_owned(), found, wanted });
        }
        let earlier = match places.earlier {
            Some(directory) => {
                let earlier = named(directory, OLD_PROGRAMS)?;
                if earlier.major() != data_version {
                    let (directory, found) = (directory.to_owned(), earlier.version);
                    let wanted = format!("the data in {} belongs to PostgreSQL {data_version}", home.display());
                    return Err(UpgradeError::Unfit { option: OLD_PROGRAMS, directory, found, wanted });
                }
                earlier
            }
            None => match Binaries::find(&places.paths.everywhere(), Some(data_version), home) {
                Err(LocalPostgresError::WrongVersion { .. } | LocalPostgresError::NotInstalled) => {
                    let (home, newer) = (home.to_owned(), newer.version);
                    return Err(UpgradeError::OldProgramsMissing { home, data_version, newer });
                }
                result => result?,
            },
        };
        check_complete(&earlier, &OF_EARLIER, OLD_PROGRAMS)?;
        check_complete(&newer, &OF_NEWER, PROGRAMS)?;
        Ok(Ok(Self { earlier, newer }))
    }

    /// The same programs, where PostgreSQL's account can run them.
    pub(crate) fn within_reach(self, home: &Home) -> Result<Self, UpgradeError> {
        let reached = |binaries| packaged::within_reach(binaries, home);
        let programs = Self { earlier: reached(self.earlier)?, newer: reached(self.newer)? };
        // A copy that an earlier version of this program made may lack some.
        check_complete(&programs.earlier, &OF_EARLIER, OLD_PROGRAMS)?;
        check_complete(&programs.newer, &OF_NEWER, PROGRAMS)?;
        for path in [home.path(), programs.earlier.directory(), programs.newer.directory()] {
            check_path(path)?;
        }
        Ok(programs)
    }
}

fn named(directory: &Path, option: &'static str) -> Result<Binaries, UpgradeError> {
    let unusable = || UpgradeError::Unusable { option, directory: directory.to_owned() };
    Binaries::in_directory(directory).ok_or_else(unusable)
}

fn check_complete(binaries: &Binaries, names: &[&'static str], option: &'static str) -> Result<(), UpgradeError> {
    let is_missing = |name: &&&str| !binaries.program(name).is_file();
    match names.iter().find(is_missing) {
        None => Ok(()),
        Some(program) => Err(UpgradeError::Incomplete {
            directory: binaries.directory().to_owned(),
            program,
            version: binaries.major(),
            option,
        }),
    }
}

/// `pg_upgrade` puts paths into commands of a shell, between double quotes, and into a list of directories.
fn check_path(path: &Path) -> Result<(), UpgradeError> {
    let is_odd = |character: char| "\"'`$\\,".contains(character) || character.is_control();
    match path.to_str() {
        Some(text) if !text.contains(is_odd) => Ok(()),
        _ => Err(UpgradeError::OddPath { path: PathBuf::from(path) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn install(directory: &Path, version: &str, programs: &[&str]) {
        std::fs::create_dir_all(directory).unwrap();
        for program in programs.iter().chain(&["initdb"]) {
            let file = directory.join(program);
            std::fs::write(&file, format!("#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn find(earlier: Option<&Path>, newer: Option<&Path>, only: &Path, data: u32) -> Result<String, String> {
        let places = Places { earlier, newer, paths: SearchPaths::only(only) };
        match Programs::find(places, data, Path::new("/home/x")) {
            Ok(Ok(programs)) => Ok(format!("{} to {}", programs.earlier.version, programs.newer.version)),
            Ok(Err(version)) => Ok(format!("{version} already")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn both_versions_are_found_or_the_message_says_what_to_install() {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("15"), root.path().join("18"));
        install(&old, "15.18", &OF_EARLIER);
        install(&new, "18.6", &OF_NEWER);
        // The new programs are those that a server would use; the old ones are anywhere.
        assert_eq!(find(Some(&old), None, &new, 15), Ok("15.18 to 18.6".to_owned()));
        assert_eq!(find(None, Some(&new), &old, 15), Ok("15.18 to 18.6".to_owned()));
        assert_eq!(find(None, None, &new, 18), Ok("18.6 already".to_owned()));

        let missing = find(None, None, &new, 15).unwrap_err();
        assert!(
            missing.contains("install PostgreSQL 15, or name the directory of its programs with --old"),
            "{missing}"
        );
        let unfit = find(Some(&old), None, &new, 16).unwrap_err();
        assert!(unfit.contains("(--old-programs) has PostgreSQL 15.18, but the data"), "{unfit}");
        let older = find(None, Some(&old), &new, 18).unwrap_err();
        assert!(older.contains("(--programs) has PostgreSQL 15.18, but the data"), "{older}");
        let older = find(None, None, &old, 18).unwrap_err();
        assert!(older.contains("install PostgreSQL 18"), "{older}");
        let unusable = find(Some(root.path()), None, &new, 15).unwrap_err();
        assert!(unusable.contains("(--old-programs) has no working `postgres`"), "{unusable}");

        std::fs::remove_file(new.join("pg_upgrade")).unwrap();
        let incomplete = find(Some(&old), None, &new, 15).unwrap_err();
        assert!(incomplete.contains("has no `pg_upgrade`: install the server"), "{incomplete}");
    }

    #[test]
    fn paths_that_a_shell_would_change_are_refused() {
        check_path(Path::new("/srv/a b+c/ü")).unwrap();
        for odd in ["/a\"b", "/a$b", "/a`b", "/a\\b", "/a'b", "/a,b", "/a\nb"] {
            let said = check_path(Path::new(odd)).unwrap_err().to_string();
            assert!(said.contains("move it to a path"), "{said}");
        }
    }
}
