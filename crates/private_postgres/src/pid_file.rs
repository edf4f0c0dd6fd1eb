//! Handles `postmaster.pid`, in which PostgreSQL writes its process id and whether it is ready, including a file that
//! an earlier server left behind.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::LocalPostgresError;
use crate::account::Account;
use crate::rights::Rights;
use crate::supervisor::{POLL, SHUTDOWN_LIMIT};

const FILE: &str = "postmaster.pid";
/// The eighth line of the file contains PostgreSQL's state.
const STATE_LINE: usize = 7;

/// Whether the server with this process id accepts connections. The id is compared because the file of an earlier
/// server may also say `ready`.
pub(crate) fn is_ready(data: &Path, account: Account, pid: u32) -> bool {
    let Ok(content) = account.rights().run(|| Rights::read(&data.join(FILE))) else {
        return false;
    };
    let state = content.lines().nth(STATE_LINE).map(str::trim);
    process_id(&content) == i32::try_from(pid).ok() && state == Some("ready")
}

/// Whether the file says `ready` and names a process that is alive.
pub(crate) fn says_ready(data: &Path, account: Account) -> bool {
    let Ok(content) = account.rights().run(|| Rights::read(&data.join(FILE))) else {
        return false;
    };
    content.lines().nth(STATE_LINE).map(str::trim) == Some("ready") && process_id(&content).is_some_and(is_alive)
}

/// The id of the PostgreSQL that works in `data`, whoever started it.
pub(crate) fn running(data: &Path, account: Account) -> Option<i32> {
    let content = account.rights().run(|| Rights::read(&data.join(FILE))).ok()?;
    process_id(&content).filter(|pid| is_alive(*pid) && Process::open(*pid).is_postgresql_of(data, account))
}

/// Stops an earlier server that still runs on `data`, and makes sure that the file it left behind does not prevent a
/// new server from starting. Only the holder of the home's lock may call this.
///
/// The account owns the file, so its content is not trusted. The file is accessed only with the account's rights. The
/// only process that is signalled is a PostgreSQL that belongs to the account and works in `data`.
pub(crate) fn clear_left_over(data: &Path, account: Account) -> Result<(), LocalPostgresError> {
    let file = data.join(FILE);
    let Some(content) =
        account.rights().run(|| content(&file)).map_err(|e| LocalPostgresError::file("read", &file, e))?
    else {
        return Ok(());
    };
    let Some(pid) = process_id(&content) else {
        // PostgreSQL refuses to start with an empty file. It results from a full disk or a crash of the machine at that
        // moment.
        let removed = account.rights().run(|| std::fs::remove_file(&file));
        return removed.map_err(|error| LocalPostgresError::file("remove", &file, error));
    };
    if !is_alive(pid) {
        // PostgreSQL itself replaces the file of a dead process once no process uses the shared memory that the file
        // names. The file stays because that check needs it.
        return Ok(());
    }
    let process = Process::open(pid);
    if process.is_postgresql_of(data, account) {
        tracing::warn!(pid, "stopping the PostgreSQL that an earlier server left behind");
        return stop(&process, data, account);
    }
    // The process id now belongs to another program, and PostgreSQL would treat that program as a running server.
    // PostgreSQL accepts the id of its own parent, so the file gets the id of this process.
    let rest = content.split_once('\n').map_or("", |(_, rest)| rest);
    let corrected = format!("{}\n{rest}", std::process::id());
    account
        .rights()
        .run(|| Rights::replace(&file, &corrected))
        .map_err(|error| LocalPostgresError::file("correct", &file, error))
}

/// The content of the file. `None` if there is no file. PostgreSQL creates a plain file, so anything else in its place
/// is removed.
fn content(file: &Path) -> std::io::Result<Option<String>> {
    match Rights::read(file) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound && file.symlink_metadata().is_err() => Ok(None),
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "removing an unreadable file at the path of PostgreSQL's file");
            std::fs::remove_file(file).map(|()| None)
        }
    }
}

fn process_id(content: &str) -> Option<i32> {
    // In the file of a single-user server, the id is negative.
    let number: i32 = content.lines().next()?.trim().parse().ok()?;
    number.checked_abs().filter(|pid| *pid > 0)
}

fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// A process. On systems that support it, a handle makes sure that a reused id is not mistaken for the process.
struct Process {
    id: i32,
    #[cfg(target_os = "linux")]
    handle: Option<std::os::fd::OwnedFd>,
}

impl Process {
    fn open(id: i32) -> Self {
        Self {
            id,
            // Available since Linux 5.3.
            #[cfg(target_os = "linux")]
            handle: rustix::process::Pid::from_raw(id)
                .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()),
        }
    }

    /// Whether the process is the PostgreSQL of this data directory and runs as its account.
    #[cfg(target_os = "linux")]
    fn is_postgresql_of(&self, data: &Path, account: Account) -> bool {
        let of = |name: &str| Path::new("/proc").join(self.id.to_string()).join(name);
        let (Ok(directory), Ok(program), Ok(status), Ok(data)) = (
            std::fs::read_link(of("cwd")),
            std::fs::read_link(of("exe")),
            std::fs::read_to_string(of("status")),
            data.canonicalize(),
        ) else {
            return false;
        };
        // The real, effective, saved and file-system user ids.
        let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let mut users = users.split_whitespace().map(str::parse::<u32>).peekable();
        let all_its_own = users.peek().is_some() && users.all(|user| user == Ok(account.rights().user()));
        // If an update replaced the running program's file, the link ends in ` (deleted)`.
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        directory == data && all_its_own && name.trim_end_matches(" (deleted)") == "postgres"
    }

    /// Whether the process is the PostgreSQL of this data directory and runs as its account.
    #[cfg(not(target_os = "linux"))]
    fn is_postgresql_of(&self, data: &Path, account: Account) -> bool {
        let output = std::process::Command::new("/bin/ps")
            .args(["-ww", "-o", "uid=,command=", "-p"])
            .arg(self.id.to_string())
            .output();
        output.is_ok_and(|output| {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let user = said.split_whitespace().next().and_then(|user| user.parse().ok());
            user == Some(account.rights().user()) && said.contains(&format!("-D {} ", data.display()))
        })
    }

    #[cfg(target_os = "linux")]
    fn signal(&self, signal: Signal) {
        use rustix::process::{Signal as Known, pidfd_send_signal};
        let known = if signal == Signal::SIGINT { Known::INT } else { Known::QUIT };
        // An error means that the process has ended by itself.
        match &self.handle {
            Some(handle) => drop(pidfd_send_signal(handle, known)),
            None => drop(kill(Pid::from_raw(self.id), signal)),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn signal(&self, signal: Signal) {
        // An error means that the process has ended by itself.
        let _ = kill(Pid::from_raw(self.id), signal);
    }
}

fn stop(process: &Process, data: &Path, account: Account) -> Result<(), LocalPostgresError> {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        if !process.is_postgresql_of(data, account) {
            return Ok(());
        }
        process.signal(signal);
        let deadline = Instant::now() + SHUTDOWN_LIMIT;
        while Instant::now() < deadline {
            if !is_alive(process.id) || is_zombie(process.id) {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }
    Err(LocalPostgresError::DidNotStop { pid: process.id.unsigned_abs() })
}

/// Whether the process has ended and its parent has not yet collected its exit status. In a container, the parent may
/// never do so. Always `false` on systems without `/proc`.
fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_some_and(|rest| rest.starts_with('Z'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account::SELF
    }

    fn data_with(content: &str) -> tempfile::TempDir {
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join(FILE), content).unwrap();
        data
    }

    #[test]
    fn only_the_state_of_the_asked_process_counts() {
        let content = "42\n/data\n1\n5432\n/run\n\n  1 2\nready   \n";
        assert!(is_ready(data_with(content).path(), account(), 42));
        assert!(!is_ready(data_with(content).path(), account(), 43));
        let starting = content.replace("ready", "starting");
        assert!(!is_ready(data_with(&starting).path(), account(), 42));
        assert!(!is_ready(data_with("42\n").path(), account(), 42));
    }

    #[test]
    fn the_id_of_a_stranger_is_replaced_and_the_rest_kept() {
        let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let data = data_with(&format!("{}\n/data\n1\n", stranger.id()));
        clear_left_over(data.path(), account()).unwrap();
        assert_eq!(
            std::fs::read_to_string(data.path().join(FILE)).unwrap(),
            format!("{}\n/data\n1\n", std::process::id())
        );
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn an_empty_file_is_removed_and_none_is_fine() {
        let data = data_with("");
        clear_left_over(data.path(), account()).unwrap();
        assert!(!data.path().join(FILE).exists());
        clear_left_over(data.path(), account()).unwrap();
    }
}
