//! The home directory of the private cluster:
//!
//! ```text
//! lock          held by the server that uses the home; says its process id
//! data/         PostgreSQL's data directory; `data.new` while it is being created
//! run/          the socket; a link to a directory in /tmp when this path is too long for one
//! postgres.log  what PostgreSQL says, and postgres.log.1 before that
//! ```

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;

use super::account::Account;
use super::binaries::Binaries;
use super::{DATABASE, Durability, LocalPostgresError, PORT, pid_file, settings};

pub(super) const DATA: &str = "data";
/// The system's limit for a socket's path is 107 bytes on Linux and 103 on macOS.
const LONGEST_SOCKET_PATH: usize = 80;
const TEMPORARY: &str = "/tmp";
const TEMPORARY_PREFIX: &str = "litespend-";
/// From this version on PostgreSQL brings a `C.UTF-8` of its own, the same on every system.
const BUILTIN_LOCALE_SINCE: u32 = 17;

/// A home that this process alone uses.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    account: Account,
    temporary_socket_directory: Option<TempDir>,
    /// Held until the home is dropped or the process ends, however it does.
    _lock: File,
}

impl Home {
    /// Creates the directory if need be, and locks it.
    pub(super) fn open(path: PathBuf, account: Account) -> Result<Self, LocalPostgresError> {
        let mode = if account.is_another() { 0o711 } else { 0o700 };
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&path)
            .map_err(|error| LocalPostgresError::file("create", &path, error))?;
        if account.is_another() {
            let_through(&path)?;
        }
        let lock = lock(&path)?;
        Ok(Self { path, account, temporary_socket_directory: None, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    /// Ends a PostgreSQL that outlived its server.
    pub(super) fn stop_left_over_server(&self) -> Result<(), LocalPostgresError> {
        pid_file::clear_left_over(&self.data())
    }

    /// Whether there is a cluster. A directory with anything else in it is an error.
    pub(super) fn is_initialised(&self) -> Result<bool, LocalPostgresError> {
        let data = self.data();
        if data.join("PG_VERSION").is_file() {
            return Ok(true);
        }
        match data.read_dir().map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(false),
            Ok(false) => Err(LocalPostgresError::NotADataDirectory { directory: data }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(LocalPostgresError::file("read", &data, error)),
        }
    }

    /// Creates the cluster and the database in it, aside, so that one cut short leaves none.
    pub(super) fn initialise(&self, binaries: &Binaries, durability: Durability) -> Result<(), LocalPostgresError> {
        tracing::info!(home = %self.path.display(), "creating the database cluster");
        let new = self.path.join("data.new");
        let mut attempts = locales(binaries.major()).into_iter().peekable();
        while let Some(locale) = attempts.next() {
            self.create_private_directory(&new)?;
            match self.run_initdb(binaries, &new, locale, durability) {
                // Not every system knows C.UTF-8.
                Err(LocalPostgresError::Initialise { reason, .. })
                    if attempts.peek().is_some() && reason.contains("locale") => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        settings::include(&new)?;
        self.create_database(binaries, &new, durability)?;
        std::fs::rename(&new, self.data())
            .and_then(|()| File::open(&self.path)?.sync_all())
            .map_err(|error| LocalPostgresError::file("move into place", &new, error))
    }

    fn run_initdb(
        &self,
        binaries: &Binaries,
        data: &Path,
        locale: &[&str],
        durability: Durability,
    ) -> Result<(), LocalPostgresError> {
        let program = binaries.program("initdb");
        let mut command = self.account.command(&program);
        command
            .arg("-D")
            .arg(data)
            .args(["-U", DATABASE, "-E", "UTF8", "--data-checksums"])
            .args(["--auth-local=trust", "--auth-host=reject"])
            .args(locale);
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

    /// A server for one user runs on standard input, which needs no socket and no client.
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
                writeln!(file, "CREATE DATABASE {DATABASE}")?;
                file.rewind()?;
                Ok(file)
            })
            .map_err(|error| LocalPostgresError::file("use", &std::env::temp_dir(), error))?;
        let output = command
            .arg("postgres")
            .stdin(statements)
            .output()
            .map_err(|source| LocalPostgresError::Run { program, source })?;
        // It ends well even if the statement does not.
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() && !said.contains("ERROR:") {
            return Ok(());
        }
        Err(self.cannot_initialise(&said))
    }

    fn cannot_initialise(&self, said: &str) -> LocalPostgresError {
        LocalPostgresError::Initialise { home: self.path.clone(), reason: telling_line(said) }
    }

    /// An empty directory for the socket. Whatever an earlier server left there is gone after.
    pub(super) fn prepare_socket_directory(&mut self) -> Result<PathBuf, LocalPostgresError> {
        let run = self.path.join("run");
        if let Ok(earlier) = run.read_link() {
            remove_temporary(&earlier);
            std::fs::remove_file(&run).map_err(|error| LocalPostgresError::file("remove", &run, error))?;
        }
        let socket = run.join(format!(".s.PGSQL.{PORT}"));
        if socket.as_os_str().len() <= LONGEST_SOCKET_PATH {
            self.create_private_directory(&run)?;
            return Ok(run);
        }
        // Anything but an empty directory there is not ours to remove.
        let _ = std::fs::remove_dir(&run);
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .tempdir_in(TEMPORARY)
            .map_err(|error| LocalPostgresError::file("use", Path::new(TEMPORARY), error))?;
        self.account.take_over(temporary.path())?;
        std::os::unix::fs::symlink(temporary.path(), &run)
            .map_err(|error| LocalPostgresError::file("create", &run, error))?;
        let path = temporary.path().to_owned();
        self.temporary_socket_directory = Some(temporary);
        Ok(path)
    }

    fn create_private_directory(&self, path: &Path) -> Result<(), LocalPostgresError> {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(LocalPostgresError::file("remove", path, error));
            }
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(path).map_err(|error| LocalPostgresError::file("create", path, error))?;
        self.account.take_over(path)
    }
}

/// The major version that wrote the data in `home`; `None` when there is none.
pub(super) fn data_version(home: &Path) -> Result<Option<u32>, LocalPostgresError> {
    let file = home.join(DATA).join("PG_VERSION");
    match std::fs::read_to_string(&file) {
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

/// The line that tells a person most: the last one that is marked as an error, without its mark.
pub(super) fn telling_line(said: &str) -> String {
    let mark = |line: &&str| ["PANIC:", "FATAL:", "ERROR:", "error:"].iter().any(|mark| line.contains(mark));
    let lines = || said.lines().filter(|line| !line.trim().is_empty());
    let line = lines().rfind(mark).or_else(|| lines().next_back());
    let line = line.unwrap_or("it ended without a word");
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

/// PostgreSQL's account has to get through to the directories that belong to it.
fn let_through(path: &Path) -> Result<(), LocalPostgresError> {
    let failed = |error| LocalPostgresError::file("open to PostgreSQL", path, error);
    let mode = path.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o001 == 0 {
        std::fs::set_permissions(path, Permissions::from_mode(mode | 0o011)).map_err(failed)?;
    }
    Ok(())
}

fn lock(home: &Path) -> Result<File, LocalPostgresError> {
    let path = home.join("lock");
    let failed = |error| LocalPostgresError::file("lock", &path, error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
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

/// Removes the socket directory of a server that was killed, if it is one.
fn remove_temporary(directory: &Path) {
    let name = directory.file_name().unwrap_or_default();
    let ours = directory.parent() == Some(Path::new(TEMPORARY)) && name.to_string_lossy().starts_with(TEMPORARY_PREFIX);
    if ours {
        for file in [format!(".s.PGSQL.{PORT}"), format!(".s.PGSQL.{PORT}.lock")] {
            // Usually gone already; what cannot be removed is left to the system's cleaning.
            let _ = std::fs::remove_file(directory.join(file));
        }
        let _ = std::fs::remove_dir(directory);
    }
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
        assert_eq!(telling_line(""), "it ended without a word");
    }
}
