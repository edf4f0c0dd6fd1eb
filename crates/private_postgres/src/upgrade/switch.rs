//! Puts an upgraded cluster in the place of the data, and keeps the data under another name.
//!
//! | name                | holds                                                                        |
//! |---------------------|------------------------------------------------------------------------------|
//! | `data`              | the data in use                                                              |
//! | `data.upgrading`    | the new cluster while it is made; without worth after an interruption        |
//! | `data.upgraded`     | the new cluster, complete; after the exchange, the earlier data for a moment |
//! | `data.postgresql15` | the data of PostgreSQL 15, kept until somebody removes it                    |
//!
//! `data` and `data.upgraded` exchange their names in one step. An interruption before that step leaves the earlier
//! data in use, and `data.upgraded` is made anew by the next attempt, because a server may have changed the data since.
//! An interruption after it leaves the new data in use, and the earlier data only has the wrong name. Where the file
//! system cannot exchange names, there is a moment without `data`. A server does not start then, and [`Switch::finish`]
//! gives `data.upgraded` its place.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::LocalPostgresError;
use crate::home::{DATA, Home, UPGRADED, UPGRADING, version_of};
use crate::rights::Rights;

/// The prefix of the names of kept data. The major version follows.
const KEPT: &str = "data.postgresql";

/// The directories of a home, and the rights to rename and to read them.
#[derive(Debug)]
pub(crate) struct Switch {
    home: PathBuf,
    /// The rights with which entries of the home are renamed and removed.
    rights: Rights,
    /// The rights with which the data directories are read.
    account: Rights,
    /// Whether the file system can exchange two names.
    can_exchange: bool,
}

impl Switch {
    pub(crate) fn of(home: &Home) -> Self {
        let (rights, account) = (home.rights(), home.account().rights());
        Self { home: home.path().to_owned(), rights, account, can_exchange: true }
    }

    /// Switches from `data` to the complete cluster in `data.upgrading`. Both are stopped.
    pub(crate) fn switch(&self) -> Result<(), LocalPostgresError> {
        while self.step()? {}
        self.finish()
    }

    /// One renaming of a switch. Returns `false` if only [`Switch::finish`] is left to do.
    fn step(&self) -> Result<bool, LocalPostgresError> {
        if exists(&self.at(UPGRADING)) {
            self.rename(UPGRADING, UPGRADED)?;
            return Ok(true);
        }
        if self.can_exchange {
            match self.exchange() {
                Err(error) if is_unsupported(&error) => {}
                result => {
                    let result = result.and_then(|()| self.rights.run(|| sync(&self.home)));
                    result.map_err(|error| LocalPostgresError::file("replace", &self.at(DATA), error))?;
                    return Ok(false);
                }
            }
        }
        if let Some(version) = version_of(&self.at(DATA), self.account)? {
            self.rename(DATA, &self.free_name(version))?;
        }
        Ok(false)
    }

    /// Finishes what an interrupted switch has begun, and removes what an interrupted attempt has left. Nothing of the
    /// home runs.
    pub(crate) fn finish(&self) -> Result<(), LocalPostgresError> {
        self.remove(UPGRADING)?;
        if !exists(&self.at(UPGRADED)) {
            return Ok(());
        }
        let Some(data) = version_of(&self.at(DATA), self.account)? else {
            return self.rename(UPGRADED, DATA);
        };
        match version_of(&self.at(UPGRADED), self.account)? {
            // The names are exchanged already: this is the earlier data.
            Some(earlier) if earlier < data => self.rename(UPGRADED, &self.free_name(earlier)),
            // The names are not exchanged yet.
            Some(newer) if newer > data => self.remove(UPGRADED),
            _ => {
                let error = io::Error::new(ErrorKind::InvalidData, "it holds no data of another version; move it away");
                Err(LocalPostgresError::file("use", &self.at(UPGRADED), error))
            }
        }
    }

    /// The directories that hold kept data, with their versions.
    pub(crate) fn kept(&self) -> Vec<(u32, PathBuf)> {
        let read = || Ok(self.home.read_dir()?.flatten().map(|entry| entry.file_name()).collect::<Vec<_>>());
        let names = self.rights.run(read).unwrap_or_default();
        let version = |name: &str| name.strip_prefix(KEPT)?.split('.').next()?.parse::<u32>().ok();
        let mut kept: Vec<(u32, PathBuf)> =
            names.iter().filter_map(|name| Some((version(name.to_str()?)?, self.home.join(name)))).collect();
        kept.sort();
        kept
    }

    /// A name for the data of a version that nothing has yet.
    fn free_name(&self, version: u32) -> String {
        let mut name = format!("{KEPT}{version}");
        let mut number = 1;
        while exists(&self.at(&name)) {
            number += 1;
            name = format!("{KEPT}{version}.{number}");
        }
        name
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), LocalPostgresError> {
        let work = || std::fs::rename(self.at(from), self.at(to)).and_then(|()| sync(&self.home));
        self.rights.run(work).map_err(|error| LocalPostgresError::file("rename", &self.at(from), error))
    }

    fn remove(&self, name: &str) -> Result<(), LocalPostgresError> {
        let remove = || match std::fs::remove_dir_all(self.at(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        self.rights.run(remove).map_err(|error| LocalPostgresError::file("remove", &self.at(name), error))
    }

    /// Exchanges the names of `data` and `data.upgraded`.
    fn exchange(&self) -> io::Result<()> {
        self.rights.run(|| exchange(&self.at(DATA), &self.at(UPGRADED)))
    }
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn exchange(_one: &Path, _other: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Whether the kernel or the file system cannot exchange names.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput)
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(home: &Path, name: &str, version: u32) {
        std::fs::create_dir(home.join(name)).unwrap();
        std::fs::write(home.join(name).join("PG_VERSION"), format!("{version}\n")).unwrap();
    }

    fn version(home: &Path, name: &str) -> Option<u32> {
        version_of(&home.join(name), Rights::OWN).unwrap()
    }

    fn names(home: &Path) -> Vec<String> {
        let entries = home.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    fn switch(home: &Path, can_exchange: bool) -> Switch {
        Switch { home: home.to_owned(), rights: Rights::OWN, account: Rights::OWN, can_exchange }
    }

    #[test]
    fn an_interruption_at_any_point_leaves_the_earlier_data_in_use_or_is_finished() {
        let mut seen = Vec::new();
        for can_exchange in [true, false] {
            for steps in 0..=3 {
                let home = tempfile::tempdir().unwrap();
                let home = home.path();
                cluster(home, DATA, 15);
                cluster(home, UPGRADING, 18);
                let switch = switch(home, can_exchange);
                let mut goes_on = true;
                for _ in 0..steps {
                    goes_on = goes_on && switch.step().unwrap();
                }
                // The interruption. A server that starts now finds the earlier data, the new one, or is refused.
                seen.push((can_exchange, steps, version(home, DATA)));
                let in_use = version(home, DATA);
                assert!(in_use.is_some() || exists(&home.join(UPGRADED)));
                for _ in 0..2 {
                    switch.finish().unwrap();
                    if in_use == Some(15) {
                        assert_eq!(names(home), ["data"]);
                        assert_eq!(version(home, DATA), Some(15));
                    } else {
                        assert_eq!(names(home), ["data", "data.postgresql15"]);
                        assert_eq!(version(home, DATA), Some(18));
                        assert_eq!(version(home, "data.postgresql15"), Some(15));
                    }
                }
            }
        }
        let expected = [
            (true, 0, Some(15)),
            (true, 1, Some(15)),
            (true, 2, Some(18)),
            (true, 3, Some(18)),
            (false, 0, Some(15)),
            (false, 1, Some(15)),
            (false, 2, None),
            (false, 3, None),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_switch_keeps_the_earlier_data_beside_what_was_kept_before() {
        for can_exchange in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let home = home.path();
            cluster(home, DATA, 15);
            cluster(home, "data.postgresql15", 15);
            std::fs::write(home.join("data.postgresql15/mine"), "mine").unwrap();
            cluster(home, UPGRADING, 18);
            let switch = switch(home, can_exchange);
            switch.switch().unwrap();
            assert_eq!(names(home), ["data", "data.postgresql15", "data.postgresql15.2"]);
            assert_eq!(version(home, DATA), Some(18));
            assert!(home.join("data.postgresql15/mine").exists());
            assert!(!home.join("data.postgresql15.2/mine").exists());
            let kept: Vec<_> = switch.kept().into_iter().map(|(version, path)| (version, path.exists())).collect();
            assert_eq!(kept, [(15, true), (15, true)]);
        }
    }

    #[test]
    fn a_directory_that_an_upgrade_does_not_know_is_neither_removed_nor_used() {
        for content in [Some(15), None] {
            let home = tempfile::tempdir().unwrap();
            cluster(home.path(), DATA, 15);
            match content {
                Some(version) => cluster(home.path(), UPGRADED, version),
                None => std::fs::create_dir(home.path().join(UPGRADED)).unwrap(),
            }
            let error = switch(home.path(), true).finish().unwrap_err().to_string();
            assert!(error.contains("data.upgraded: it holds no data of another version"), "{error}");
            assert_eq!(names(home.path()), ["data", "data.upgraded"]);
        }
    }
}
