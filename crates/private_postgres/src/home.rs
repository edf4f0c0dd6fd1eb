//! The home directory of the private cluster:
//!
//! ```text
//! lock          held by the server that uses the home; contains its process id
//! data/         PostgreSQL's data directory; `data.new` while it is being created. `upgrade` names the others
//! run/          the socket; a link to a directory in /tmp if this path is too long for a socket
//! postgres.log  PostgreSQL's log; postgres.log.1 is the previous part of it
//! postgresql-*  a copy of PostgreSQL's programs, where its account could not run the original
//! ```
//!
//! If root runs the server, the home belongs to root, and root opens its own files there without following links.
//! `data` and the contents of `run` belong to PostgreSQL's account and are accessed only with that account's rights.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;

use crate::account::{Account, Custody};
use crate::binaries::Binaries;
use crate::rights::Rights;
use crate::{APPLICATION_ROLE, DATABASE, Durability, LocalPostgresError, PORT, SUPERUSER, pid_file, settings};

pub(crate) const DATA: &str = "data";
/// A cluster of a newer version while an upgrade makes it.
pub(crate) const UPGRADING: &str = "data.upgrading";
/// The same cluster, complete and compared, until it takes the place of the data.
pub(crate) const UPGRADED: &str = "data.upgraded";
/// The longest socket path that is used directly. The system's limit is 107 bytes on Linux and 103 on macOS.
const LONGEST_SOCKET_PATH: usize = 80;
const TEMPORARY: &str = "/tmp";
const TEMPORARY_PREFIX: &str = "litespend-";
/// The account's socket directory inside the temporary directory. Only the creator of the temporary directory can
/// replace it.
const SOCKETS: &str = "s";
/// Since this version, PostgreSQL has a built-in `C.UTF-8`, which is the same on every system.
const BUILTIN_LOCALE_SINCE: u32 = 17;

/// A home that only this process uses.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    account: Account,
    rights: Rights,
    temporary_socket_directory: Option<TempDir>,
    /// The lock on the home. It is held until the home is dropped or the process ends for any reason.
    _lock: File,
}

impl Home {
    /// Creates the directory if it does not exist, makes sure that it is safe, and locks it.
    pub(crate) fn open(path: PathBuf) -> Result<Self, LocalPostgresError> {
        let custody = Custody::of(&path)?;
        let mode = if custody.account.is_another() { 0o711 } else { 0o700 };
        let is_missing = |parent: &&Path| !parent.as_os_str().is_empty() && !parent.exists();
        let mut missing: Vec<&Path> = path.ancestors().skip(1).take_while(is_missing).collect();
        // `new/..` is a directory that was there before.
        missing.retain(|parent| parent.file_name().is_some());
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&path)
            .map_err(|error| LocalPostgresError::file("create", &path, error))?;
        // A mask of this process must not keep PostgreSQL's account out.
        for parent in missing {
            std::fs::set_permissions(parent, Permissions::from_mode(mode))
                .map_err(|error| LocalPostgresError::file("create", parent, error))?;
        }
        custody.secure(&path)?;
        let lock = lock(&path, custody.rights)?;
        let Custody { account, rights, .. } = custody;
        Ok(Self { path, account, rights, temporary_socket_directory: None, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn account(&self) -> Account {
        self.account
    }

    /// Whether this process's own user owns the home, and no other user can replace files in it.
    pub(crate) fn belongs_to_this_process(&self) -> bool {
        self.rights == Rights::OWN
    }

    /// The rights with which the home's own files are accessed.
    pub(crate) fn rights(&self) -> Rights {
        self.rights
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    /// Stops a PostgreSQL that is still running although its server, or the upgrade that started it, has ended.
    pub(crate) fn stop_left_over_server(&self) -> Result<(), LocalPostgresError> {
        pid_file::clear_left_over(&self.path.join(UPGRADING), self.account)?;
        pid_file::clear_left_over(&self.data(), self.account)
    }

    /// Whether a cluster exists. It is an error if the directory contains anything else.
    pub(crate) fn is_initialised(&self) -> Result<bool, LocalPostgresError> {
        let data = self.data();
        let look = || match data.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => match data.join("PG_VERSION").symlink_metadata() {
                Ok(metadata) if metadata.is_file() => Ok(Some(true)),
                _ => Ok(data.read_dir()?.next().is_none().then_some(false)),
            },
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(false)),
            Err(error) => Err(error),
        };
        let found = self.account.rights().run(look).map_err(|error| LocalPostgresError::file("read", &data, error))?;
        found.ok_or_else(|| LocalPostgresError::NotADataDirectory { directory: data.clone() })
    }

    /// Creates the cluster and its database under another name, then moves it into place. An interrupted attempt leaves
    /// no cluster.
    pub(crate) fn initialise(&self, binaries: &Binaries, durability: Durability) -> Result<(), LocalPostgresError> {
        tracing::info!(home = %self.path.display(), "creating the database cluster");
        let new = self.path.join("data.new");
        let mut attempts = locales(binaries.major()).into_iter().peekable();
        while let Some(locale) = attempts.next() {
            self.create_private_directory(&new)?;
            let arguments: Vec<&str> = ["-E", "UTF8", "--data-checksums"].iter().chain(locale).copied().collect();
            match self.run_initdb(binaries, &new, &arguments, durability) {
                // Not every system has C.UTF-8.
                Err(LocalPostgresError::Initialise { reason, .. })
                    if attempts.peek().is_some() && reason.contains("locale") => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        settings::include(&new, self.account.rights())?;
        self.create_database(binaries, &new, durability)?;
        self.rights
            .run(|| std::fs::rename(&new, self.data()).and_then(|()| File::open(&self.path)?.sync_all()))
            .map_err(|error| LocalPostgresError::file("move into place", &new, error))
    }

    /// Creates a cluster in the empty directory `data`. Its encoding and locale are among the arguments.
    pub(crate) fn run_initdb(
        &self,
        binaries: &Binaries,
        data: &Path,
        arguments: &[&str],
        durability: Durability,
    ) -> Result<(), LocalPostgresError> {
        let program = binaries.program("initdb");
        let mut command = self.account.command(&program);
        command.arg("-D").arg(data).args(["-U", SUPERUSER, "--auth-local=trust", "--auth-host=reject"]).args(arguments);
        if durability == Durability::Throwaway {
            command.arg("--no-sync");
        }
        let output =
            command.stdin(Stdio::null()).output().map_err(|source| LocalPostgresError::Run { program, source })?;
        if output.status.success() {
            return Ok(());
        }
        Err(self.cannot_initialise(&String::from_utf8_lossy(&output.stderr)))
    }

    /// Creates the role and the database. PostgreSQL runs in single-user mode and reads the statements from standard
    /// input, which requires neither a socket nor a client.
    fn create_database(
        &self,
        binaries: &Binaries,
        data: &Path,
        durability: Durability,
    ) -> Result<(), LocalPostgresError> {
        let program = binaries.program("postgres");
        let mut command = self.account.command(&program);
        command.arg("--single").arg("-D").arg(data);
        if durability == Durability::Throwaway {
            command.arg("-F");
        }
        let statements = tempfile::tempfile()
            .and_then(|mut file| {
                // Single-user mode reads one statement per line.
                writeln!(file, "CREATE ROLE {APPLICATION_ROLE} LOGIN")?;
                writeln!(file, "CREATE DATABASE {DATABASE} OWNER {APPLICATION_ROLE}")?;
                file.rewind()?;
                Ok(file)
            })
            .map_err(|error| LocalPostgresError::file("use", &std::env::temp_dir(), error))?;
        let output = command
            .arg("postgres")
            .stdin(statements)
            .output()
            .map_err(|source| LocalPostgresError::Run { program, source })?;
        // PostgreSQL exits with success even if a statement fails.
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() && !said.contains("ERROR:") {
            return Ok(());
        }
        Err(self.cannot_initialise(&said))
    }

    fn cannot_initialise(&self, said: &str) -> LocalPostgresError {
        LocalPostgresError::Initialise { home: self.path.clone(), reason: telling_line(said) }
    }

    /// Creates an empty directory for the socket, and removes everything that an earlier server left there.
    pub(crate) fn prepare_socket_directory(&mut self) -> Result<PathBuf, LocalPostgresError> {
        let run = self.path.join("run");
        if let Ok(earlier) = run.read_link() {
            remove_temporary(&earlier, self.rights);
            self.rights
                .run(|| std::fs::remove_file(&run))
                .map_err(|error| LocalPostgresError::file("remove", &run, error))?;
        }
        let socket = run.join(format!(".s.PGSQL.{PORT}"));
        if socket.as_os_str().len() <= LONGEST_SOCKET_PATH {
            self.create_private_directory(&run)?;
            return Ok(run);
        }
        // Only an empty directory is removed; anything else there was not created by this crate.
        let _ = self.rights.run(|| std::fs::remove_dir(&run));
        let temporary = self
            .rights
            .run(|| {
                let mode = Permissions::from_mode(0o711);
                let directory = tempfile::Builder::new()
                    .prefix(TEMPORARY_PREFIX)
                    .permissions(mode.clone())
                    .tempdir_in(TEMPORARY)?;
                std::fs::set_permissions(directory.path(), mode)?;
                Ok(directory)
            })
            .map_err(|error| LocalPostgresError::file("use", Path::new(TEMPORARY), error))?;
        let path = temporary.path().join(SOCKETS);
        self.create_private_directory(&path)?;
        self.rights
            .run(|| std::os::unix::fs::symlink(&path, &run))
            .map_err(|error| LocalPostgresError::file("create", &run, error))?;
        self.temporary_socket_directory = Some(temporary);
        Ok(path)
    }

    /// Removes a directory with everything in it. If it does not exist, that is fine.
    pub(crate) fn remove_directory(&self, path: &Path) -> Result<(), LocalPostgresError> {
        let remove = || match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        self.rights.run(remove).map_err(|error| LocalPostgresError::file("remove", path, error))
    }

    /// Creates an empty directory that belongs to PostgreSQL's account. Removes what was there.
    pub(crate) fn create_private_directory(&self, path: &Path) -> Result<(), LocalPostgresError> {
        self.remove_directory(path)?;
        let create = || {
            DirBuilder::new().mode(0o700).create(path)?;
            if self.rights == Rights::OWN { self.account.take_over(path) } else { Ok(()) }
        };
        self.rights.run(create).map_err(|error| LocalPostgresError::file("create", path, error))
    }
}

/// The major version that wrote the data in `home`. `None` if there are no data.
pub(crate) fn data_version(home: &Path) -> Result<Option<u32>, LocalPostgresError> {
    version_of(&home.join(DATA), Custody::of(home)?.account.rights())
}

/// The major version that wrote a data directory. `None` if there are no data in it.
pub(crate) fn version_of(data: &Path, rights: Rights) -> Result<Option<u32>, LocalPostgresError> {
    let file = data.join("PG_VERSION");
    match rights.run(|| Rights::read(&file)) {
        Ok(content) => match content.trim().parse() {
            Ok(version) => Ok(Some(version)),
            Err(error) => {
                let error = std::io::Error::new(ErrorKind::InvalidData, error);
                Err(LocalPostgresError::file("read", &file, error))
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LocalPostgresError::file("read", &file, error)),
    }
}

/// The most informative line of PostgreSQL's output: the last line that is marked as an error, without the mark.
pub(crate) fn telling_line(said: &str) -> String {
    let mark = |line: &&str| ["PANIC:", "FATAL:", "ERROR:", "error:"].iter().any(|mark| line.contains(mark));
    let lines = || said.lines().filter(|line| !line.trim().is_empty());
    let line = lines().rfind(mark).or_else(|| lines().next_back());
    let line = line.unwrap_or("it printed no message");
    ["PANIC:", "FATAL:", "ERROR:", "error:"]
        .iter()
        .find_map(|mark| Some(line.split_once(mark)?.1))
        .unwrap_or(line)
        .trim()
        .to_owned()
}

fn locales(major: u32) -> Vec<&'static [&'static str]> {
    let mut locales: Vec<&[&str]> = vec![&["--locale=C.UTF-8"], &["--locale=C"]];
    if major >= BUILTIN_LOCALE_SINCE {
        locales.insert(0, &["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]);
    }
    locales
}

fn lock(home: &Path, rights: Rights) -> Result<File, LocalPostgresError> {
    let path = home.join("lock");
    let failed = |error| LocalPostgresError::file("lock", &path, error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = rights.run(|| rights.open_own(&mut options, &path)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).map_err(failed)?;
            writeln!(file, "{}", std::process::id()).map_err(failed)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            Err(LocalPostgresError::InUse {
                home: home.to_owned(),
                holder: if known { format!("process {}", holder.trim()) } else { "an unknown process".to_owned() },
            })
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Removes the temporary socket directory of a server that was killed, with the rights of the directory's owner. It
/// removes only a directory (not a link) in the place and with the name of such directories.
fn remove_temporary(sockets: &Path, rights: Rights) {
    let inner = sockets.file_name().is_some_and(|name| name == SOCKETS);
    let directory = if inner { sockets.parent().unwrap_or(sockets) } else { sockets };
    let name = directory.file_name().unwrap_or_default();
    let ours = directory.parent() == Some(Path::new(TEMPORARY)) && name.to_string_lossy().starts_with(TEMPORARY_PREFIX);
    let Ok(metadata) = directory.symlink_metadata() else { return };
    if !ours || !metadata.is_dir() {
        return;
    }
    // Earlier versions gave the directory itself to the account, which may since have replaced it with a link.
    let owner = if metadata.uid() == rights.user() { rights } else { Rights::of(metadata.uid(), metadata.gid()) };
    // If removal fails, the system's cleaning of /tmp removes the rest.
    let _ = owner.run(|| {
        for file in [format!(".s.PGSQL.{PORT}"), format!(".s.PGSQL.{PORT}.lock")] {
            // The file is usually gone already.
            let _ = std::fs::remove_file(directory.join(file));
        }
        if inner { std::fs::remove_dir_all(directory) } else { std::fs::remove_dir(directory) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_telling_line_is_the_last_error() {
        let log = "2026 [1] LOG:  starting\n2026 [1] FATAL:  lock file \"x\" already exists\n\
                   2026 [1] HINT:  Is another postmaster running?\n";
        assert_eq!(telling_line(log), "lock file \"x\" already exists");
        assert_eq!(telling_line("initdb: error: invalid locale name \"C.UTF-8\"\n"), "invalid locale name \"C.UTF-8\"");
        assert_eq!(telling_line("something else\n\n"), "something else");
        assert_eq!(telling_line(""), "it printed no message");
    }
}
