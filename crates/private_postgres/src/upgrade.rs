//! Moves the data of an earlier major version to a newer one, with `pg_upgrade`.
//!
//! | module     | owns                                                                    |
//! |------------|-------------------------------------------------------------------------|
//! | `programs` | the programs of both versions                                           |
//! | `cluster`  | the new cluster: creating it like the earlier one, filling it           |
//! | `contents` | what a cluster holds, for the comparison                                |
//! | `switch`   | the names of the directories, and how they change without a gap         |
//! | `error`    | the reasons why the data was not upgraded                               |
//!
//! The data is copied, never changed. The copy replaces it only when every row was read in both and is the same.

mod cluster;
mod contents;
mod error;
mod programs;
mod switch;

pub use crate::upgrade::error::UpgradeError;

use std::path::{Path, PathBuf};

use crate::binaries::{Binaries, SearchPaths};
use crate::home::{DATA, Home, UPGRADED, UPGRADING, data_version};
use crate::upgrade::cluster::NewCluster;
use crate::upgrade::contents::{Client, Contents};
use crate::upgrade::programs::{Places, Programs};
use crate::upgrade::switch::Switch;
use crate::{LocalPostgresError, LocalPostgresOptions, default_home, pid_file, run_cluster};

/// Options of an upgrade.
#[derive(Clone, Debug, Default)]
pub struct UpgradeOptions {
    /// The home, and how its clusters are run. `bin_dir` is where a server would look for the newer programs.
    pub cluster: LocalPostgresOptions,
    /// The directory of the programs that wrote the data. Searched for if `None`.
    pub old_programs: Option<PathBuf>,
    /// The directory of the newer programs. Those of a server without data if `None`.
    pub programs: Option<PathBuf>,
}

/// The state of a home after an upgrade.
#[derive(Debug)]
pub struct Upgraded {
    /// The home directory.
    pub home: PathBuf,
    /// The full version that the data came from. `None` if there was nothing to do.
    pub from: Option<String>,
    /// The full version of the data now.
    pub version: String,
    /// The data of earlier versions that upgrades have kept.
    pub kept: Vec<KeptData>,
}

/// Data of an earlier version that an upgrade has kept.
#[derive(Debug)]
pub struct KeptData {
    /// Its major version.
    pub version: u32,
    /// Its directory.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Upgrades the data of a home, or does nothing if it belongs to the newest version. Passes on what it is doing.
///
/// # Errors
///
/// Every [`UpgradeError`] is one line. The data is then as before.
pub fn upgrade(options: &UpgradeOptions, report: &mut dyn FnMut(&str)) -> Result<Upgraded, UpgradeError> {
    let path = options.cluster.home.clone().unwrap_or_else(default_home);
    let path = std::path::absolute(&path).map_err(|error| LocalPostgresError::file("resolve", &path, error))?;
    let exists = |name: &str| path.join(name).symlink_metadata().is_ok();
    if !exists(DATA) && !exists(UPGRADED) {
        return Err(UpgradeError::NoDatabase { home: path });
    }
    // The home's account follows from the data. If that is not in its place, this puts it there first.
    if !exists(DATA) {
        Switch::of(&Home::open(path.clone())?).finish()?;
    }
    let home = Home::open(path.clone())?;
    if !exists(UPGRADING)
        && let Some(pid) = pid_file::running(&home.data(), home.account())
    {
        return Err(UpgradeError::Running { pid, data: home.data() });
    }
    home.stop_left_over_server()?;
    let switch = Switch::of(&home);
    switch.finish()?;
    let Some(version) = data_version(&path)? else {
        return Err(UpgradeError::NoDatabase { home: path });
    };
    let places = Places {
        earlier: options.old_programs.as_deref(),
        newer: options.programs.as_deref(),
        paths: SearchPaths::of_this_machine(options.cluster.bin_dir.clone()),
    };
    let (from, version) = match Programs::find(places, version, &path)? {
        Err(version) => (None, version),
        Ok(programs) => {
            let mut work = Work { programs: programs.within_reach(&home)?, home, options };
            let result = work.run(&switch, report);
            if result.is_err() {
                // The message of the failure matters more than that of a failed removal.
                let _ = work.home.stop_left_over_server();
                let _ = work.home.remove_directory(&path.join(UPGRADING));
            }
            result?;
            (Some(work.programs.earlier.version), work.programs.newer.version)
        }
    };
    let account = crate::account::Custody::of(&path)?.account;
    let kept = switch.kept().into_iter().map(|(version, path)| {
        let bytes = cluster::size(&path, account.rights()).unwrap_or_default();
        KeptData { version, path, bytes }
    });
    Ok(Upgraded { kept: kept.collect(), home: path, from, version })
}

/// Removes what an interrupted upgrade has left in a home on which nothing runs, before a server starts on it.
pub(crate) fn tidy(home: &Home) {
    if let Err(error) = Switch::of(home).finish() {
        tracing::warn!(%error, "cannot remove what an interrupted upgrade has left");
    }
}

/// An upgrade that has begun.
struct Work<'a> {
    programs: Programs,
    home: Home,
    options: &'a UpgradeOptions,
}

impl Work<'_> {
    fn run(&mut self, switch: &Switch, report: &mut dyn FnMut(&str)) -> Result<(), UpgradeError> {
        let programs = self.programs.clone();
        let Programs { earlier, newer } = &programs;
        let (data, new) = (self.home.data(), self.home.path().join(UPGRADING));
        let bytes = cluster::check_room(&self.home)?;
        report(&format!(
            "PostgreSQL {} to {}, in {}: {} MiB",
            earlier.version,
            newer.version,
            self.home.path().display(),
            bytes.div_ceil(1024 * 1024)
        ));
        // From here on, whatever runs on the home was started by an upgrade.
        self.home.create_private_directory(&new)?;

        report(&format!("reading every row with PostgreSQL {}", earlier.version));
        let (before, locale) =
            self.with_cluster(earlier, &data, |client| Ok((client.contents()?, cluster::Locale::of_earlier(client)?)))?;

        report(&format!("creating a cluster of PostgreSQL {}", newer.version));
        let cluster = NewCluster { home: &mut self.home, programs: &programs, data: &data, new: &new };
        let mut cluster = cluster.create(&locale, &self.options.cluster)?;
        report("checking both with pg_upgrade");
        cluster.upgrade(true)?;
        report("copying the data with pg_upgrade");
        let extensions = cluster.upgrade(false)?;

        report(&format!("reading every row with PostgreSQL {}", newer.version));
        self.with_cluster(newer, &new, |client| {
            let after = client.contents()?;
            compare(&before, &after)?;
            let (tables, rows) = after.size();
            report(&format!("the same in both: {rows} rows of {tables} tables"));
            if let Some(statements) = extensions {
                report("updating extensions");
                client.ask("postgres", &statements)?;
            }
            report("gathering statistics");
            cluster::analyze(client, &programs)
        })?;
        switch.switch()?;
        Ok(())
    }

    /// Runs a cluster for as long as `work` takes.
    fn with_cluster<T>(
        &mut self,
        binaries: &Binaries,
        data: &Path,
        work: impl FnOnce(&Client<'_>) -> Result<T, UpgradeError>,
    ) -> Result<T, UpgradeError> {
        let (mut supervisor, socket_directory) =
            run_cluster(&mut self.home, binaries, data.to_owned(), &self.options.cluster)?;
        let client = Client {
            psql: self.programs.newer.program("psql"),
            account: self.home.account(),
            socket_directory: &socket_directory,
        };
        // After a checkpoint, PostgreSQL stops within the time that a stop may take. `pg_upgrade` needs a clean stop.
        let result = work(&client).and_then(|result| client.ask("postgres", "CHECKPOINT").map(|_| result));
        supervisor.stop()?;
        result
    }
}

fn compare(before: &Contents, after: &Contents) -> Result<(), UpgradeError> {
    match before.difference(after) {
        None => Ok(()),
        Some(difference) => Err(UpgradeError::Different { difference }),
    }
}
