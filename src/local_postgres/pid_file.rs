//! `postmaster.pid`, in which PostgreSQL says who it is and whether it is ready, and what to do
//! about the one that an earlier server left behind.

use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::LocalPostgresError;
use super::supervisor::{POLL, SHUTDOWN_LIMIT};

const FILE: &str = "postmaster.pid";
/// The eighth line is PostgreSQL's state.
const STATE_LINE: usize = 7;

/// Whether the server with this process id accepts connections. The id is compared because the
/// file of an earlier server may say that, too.
pub(super) fn is_ready(data: &Path, pid: u32) -> bool {
    let Ok(content) = std::fs::read_to_string(data.join(FILE)) else {
        return false;
    };
    let state = content.lines().nth(STATE_LINE).map(str::trim);
    process_id(&content) == i32::try_from(pid).ok() && state == Some("ready")
}

/// Whether a server that lives accepts connections.
pub(super) fn says_ready(data: &Path) -> bool {
    let Ok(content) = std::fs::read_to_string(data.join(FILE)) else {
        return false;
    };
    content.lines().nth(STATE_LINE).map(str::trim) == Some("ready") && process_id(&content).is_some_and(is_alive)
}

/// Sees to it that no earlier server runs on `data` any more, and that the file it left behind
/// keeps no new one from starting. Only the holder of the home's lock may call this.
pub(super) fn clear_left_over(data: &Path) -> Result<(), LocalPostgresError> {
    let file = data.join(FILE);
    let Ok(content) = std::fs::read_to_string(&file) else {
        return Ok(());
    };
    let Some(pid) = process_id(&content) else {
        // PostgreSQL refuses an empty one: the disk was full, or the machine stopped, just then.
        return std::fs::remove_file(&file).map_err(|error| LocalPostgresError::file("remove", &file, error));
    };
    if !is_alive(pid) {
        // PostgreSQL takes over from a dead process by itself, once nobody uses the shared memory
        // that the file names. That check is why the file stays.
        return Ok(());
    }
    if works_in(pid, data) {
        tracing::warn!(pid, "stopping the PostgreSQL that an earlier server left behind");
        return stop(pid);
    }
    // The id now belongs to some other program, which PostgreSQL would take for a server of its
    // own. It takes nothing amiss in the id of its parent.
    let rest = content.split_once('\n').map_or("", |(_, rest)| rest);
    std::fs::write(&file, format!("{}\n{rest}", std::process::id()))
        .map_err(|error| LocalPostgresError::file("correct", &file, error))
}

fn process_id(content: &str) -> Option<i32> {
    // Negative in the file of a single-user server.
    let number: i32 = content.lines().next()?.trim().parse().ok()?;
    number.checked_abs().filter(|pid| *pid > 0)
}

fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// Whether the process is the PostgreSQL of this data directory.
#[cfg(target_os = "linux")]
fn works_in(pid: i32, data: &Path) -> bool {
    let (Ok(working_directory), Ok(data)) = (std::fs::read_link(format!("/proc/{pid}/cwd")), data.canonicalize())
    else {
        return false;
    };
    working_directory == data
}

/// Whether the process is the PostgreSQL of this data directory.
#[cfg(not(target_os = "linux"))]
fn works_in(pid: i32, data: &Path) -> bool {
    let output =
        std::process::Command::new("/bin/ps").args(["-ww", "-o", "command=", "-p"]).arg(pid.to_string()).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(&format!("-D {} ", data.display())))
}

fn stop(pid: i32) -> Result<(), LocalPostgresError> {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        // It may have ended by itself meanwhile.
        let _ = kill(Pid::from_raw(pid), signal);
        let deadline = Instant::now() + SHUTDOWN_LIMIT;
        while Instant::now() < deadline {
            if !is_alive(pid) || is_zombie(pid) {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }
    Err(LocalPostgresError::DidNotStop { pid: pid.unsigned_abs() })
}

/// Whether it has ended, and only its parent has not asked for it yet, which in a container may
/// never happen. Never true where there is no `/proc`.
fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_some_and(|rest| rest.starts_with('Z'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_with(content: &str) -> tempfile::TempDir {
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join(FILE), content).unwrap();
        data
    }

    #[test]
    fn only_the_state_of_the_asked_process_counts() {
        let content = "42\n/data\n1\n5432\n/run\n\n  1 2\nready   \n";
        assert!(is_ready(data_with(content).path(), 42));
        assert!(!is_ready(data_with(content).path(), 43));
        let starting = content.replace("ready", "starting");
        assert!(!is_ready(data_with(&starting).path(), 42));
        assert!(!is_ready(data_with("42\n").path(), 42));
    }

    #[test]
    fn the_id_of_a_stranger_is_replaced_and_the_rest_kept() {
        let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let data = data_with(&format!("{}\n/data\n1\n", stranger.id()));
        clear_left_over(data.path()).unwrap();
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
        clear_left_over(data.path()).unwrap();
        assert!(!data.path().join(FILE).exists());
        clear_left_over(data.path()).unwrap();
    }
}
