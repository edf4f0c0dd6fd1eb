//! The thread that runs PostgreSQL: it starts the process, waits for it, restarts it when it dies, bounds its log, and
//! stops it.
//!
//! One thread does all of this because Linux ties "end when the parent ends" to the thread that started the process.
//! That thread must therefore live as long as PostgreSQL.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::account::Account;
use crate::home::telling_line;
use crate::rights::Rights;
use crate::{LocalPostgresError, PORT, pid_file};

/// How often a state that changes soon is polled.
pub(crate) const POLL: Duration = Duration::from_millis(10);
/// How often a running PostgreSQL is checked.
const WATCH: Duration = Duration::from_millis(200);
/// How long PostgreSQL may take for a fast shutdown (SIGINT), and then again for an immediate shutdown (SIGQUIT). It is
/// never killed, because that could leave processes and shared memory behind.
pub(crate) const SHUTDOWN_LIMIT: Duration = Duration::from_secs(15);
/// The largest number of restarts after unexpected ends within [`RESTART_WINDOW`].
const MAX_RESTARTS: usize = 6;
const RESTART_WINDOW: Duration = Duration::from_secs(60);
const FIRST_RESTART_DELAY: Duration = Duration::from_millis(100);
/// How long the processes of a killed PostgreSQL may take to notice that and end.
const SHARED_MEMORY_LIMIT: Duration = Duration::from_secs(10);
const LARGEST_LOG: u64 = 8 * 1024 * 1024;
const LOG_CHECK: Duration = Duration::from_secs(10);
/// The number of bytes at the end of the log that are searched for the reason why PostgreSQL ended.
const TELLING_PART: u64 = 16 * 1024;

/// Starts the PostgreSQL of one home.
#[derive(Debug)]
pub(crate) struct Launcher {
    pub(crate) postgres: PathBuf,
    pub(crate) account: Account,
    /// The rights with which the log is accessed.
    pub(crate) rights: Rights,
    pub(crate) data: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) socket_directory: PathBuf,
}

impl Launcher {
    fn launch(&self) -> Result<Child, LocalPostgresError> {
        let log = self.open_log()?;
        let errors = log.try_clone().map_err(|error| LocalPostgresError::file("open", &self.log, error))?;
        let mut command = self.account.command(&self.postgres);
        command
            .arg("-D")
            .arg(&self.data)
            .args(["-c", "listen_addresses=", "-c", "unix_socket_permissions=0700"])
            .args(["-p", &PORT.to_string(), "-k"])
            .arg(as_list_item(&self.socket_directory))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C must reach only the server, which stops PostgreSQL when it no longer needs it.
            .process_group(0);
        command.spawn().map_err(|source| LocalPostgresError::Run { program: self.postgres.clone(), source })
    }

    fn open_log(&self) -> Result<File, LocalPostgresError> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600);
        self.rights
            .run(|| self.rights.open_own(&mut options, &self.log))
            .map_err(|error| LocalPostgresError::file("open", &self.log, error))
    }

    fn log_length(&self) -> u64 {
        self.log.symlink_metadata().map_or(0, |metadata| metadata.len())
    }

    /// Moves a log that is too large to `postgres.log.1`. PostgreSQL appends to its log, so it continues at the start
    /// of the emptied file.
    fn bound_log(&self) {
        if self.log_length() <= LARGEST_LOG {
            return;
        }
        let earlier = self.log.with_extension("log.1");
        let turn_over = || {
            let mut log = self.rights.open_own(File::options().read(true).write(true), &self.log)?;
            // Whatever is there is removed without being opened, because it may be anything.
            match std::fs::remove_file(&earlier) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut copy = File::options().write(true).create_new(true).mode(0o600).open(&earlier)?;
            std::io::copy(&mut log, &mut copy)?;
            log.set_len(0)
        };
        let result = self.rights.run(turn_over);
        if let Err(error) = result {
            tracing::warn!(%error, log = %self.log.display(), "cannot rotate PostgreSQL's log");
        }
    }

    /// The reason why PostgreSQL ended, in one line, from the part of its log that begins at `start`.
    fn reason(&self, start: u64) -> String {
        let read = || {
            let mut file = self.rights.open_own(File::options().read(true), &self.log)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(start.max(end.saturating_sub(TELLING_PART))))?;
            let mut content = Vec::new();
            file.take(TELLING_PART).read_to_end(&mut content)?;
            Ok(content)
        };
        telling_line(&String::from_utf8_lossy(&self.rights.run(read).unwrap_or_default()))
    }
}

/// PostgreSQL expects a list of socket directories, in which quotes protect commas and spaces.
fn as_list_item(directory: &Path) -> String {
    format!("\"{}\"", directory.to_string_lossy().replace('"', "\"\""))
}

/// The handle with which other threads control the supervising thread.
#[derive(Debug)]
pub(crate) struct Supervisor {
    orders: Sender<Order>,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

/// The state that the supervising thread publishes.
#[derive(Debug, Default)]
struct State {
    /// The process id of PostgreSQL. Zero while there is no process.
    pid: AtomicU32,
    ready: AtomicBool,
}

type Answer = Sender<Result<(), LocalPostgresError>>;

enum Order {
    Pause(Answer),
    Resume(Answer),
    Stop(Answer),
}

impl Supervisor {
    /// Starts PostgreSQL on a new thread and waits until it is ready.
    pub(crate) fn start(launcher: Launcher) -> Result<Self, LocalPostgresError> {
        let (orders, received) = channel();
        let (answer, started) = channel();
        let state = Arc::new(State::default());
        let mut watch = Watch::new(launcher, Arc::clone(&state));
        let thread = std::thread::Builder::new()
            .name("local-postgres".to_owned())
            .spawn(move || {
                let result = watch.start_and_wait();
                let go_on = result.is_ok();
                if answer.send(result).is_ok() && go_on {
                    watch.run(&received);
                }
            })
            .map_err(|_| LocalPostgresError::NoSupervisor)?;
        started.recv().unwrap_or(Err(LocalPostgresError::NoSupervisor))?;
        Ok(Self { orders, state, thread: Some(thread) })
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        Some(self.state.pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.state.ready.load(Ordering::Acquire)
    }

    pub(crate) fn pause(&self) -> Result<(), LocalPostgresError> {
        self.order(Order::Pause)
    }

    pub(crate) fn resume(&self) -> Result<(), LocalPostgresError> {
        self.order(Order::Resume)
    }

    pub(crate) fn stop(&mut self) -> Result<(), LocalPostgresError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let result = self.order(Order::Stop);
        // If that thread panicked, the panic has already been reported.
        let _ = thread.join();
        result
    }

    fn order(&self, order: fn(Answer) -> Order) -> Result<(), LocalPostgresError> {
        let (answer, answered) = channel();
        self.orders.send(order(answer)).map_err(|_| LocalPostgresError::NoSupervisor)?;
        answered.recv().unwrap_or(Err(LocalPostgresError::NoSupervisor))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "cannot stop the private PostgreSQL");
        }
    }
}

/// The state of the supervising thread.
struct Watch {
    launcher: Launcher,
    state: Arc<State>,
    child: Option<Child>,
    /// The length of the log when the current process started.
    log_start: u64,
    log_checked: Instant,
    paused: bool,
    restarts: VecDeque<Instant>,
    restart_at: Instant,
}

impl Watch {
    fn new(launcher: Launcher, state: Arc<State>) -> Self {
        let now = Instant::now();
        Self {
            launcher,
            state,
            child: None,
            log_start: 0,
            log_checked: now,
            paused: false,
            restarts: VecDeque::new(),
            restart_at: now,
        }
    }

    fn run(&mut self, orders: &Receiver<Order>) {
        loop {
            let settled = self.paused || self.state.ready.load(Ordering::Acquire);
            match orders.recv_timeout(if settled { WATCH } else { POLL }) {
                Err(RecvTimeoutError::Timeout) => self.look(),
                Ok(Order::Pause(answer)) => {
                    self.paused = true;
                    // If nobody waits for the answer any more, it is dropped. The same holds below.
                    let _ = answer.send(self.stop());
                }
                Ok(Order::Resume(answer)) => {
                    let result = self.start_and_wait();
                    self.paused = result.is_err();
                    let _ = answer.send(result);
                }
                Ok(Order::Stop(answer)) => {
                    let _ = answer.send(self.stop());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    // Nobody is left who could receive an error.
                    let _ = self.stop();
                    return;
                }
            }
        }
    }

    /// Starts PostgreSQL unless it runs, and waits until it is ready, without a time limit. After a crash, PostgreSQL
    /// has to recover first, and interrupting that would gain nothing.
    fn start_and_wait(&mut self) -> Result<(), LocalPostgresError> {
        let begun = Instant::now();
        let mut reported = begun;
        loop {
            if self.child.is_none() {
                self.launch()?;
            }
            if let Some(status) = self.ended() {
                let reason = self.launcher.reason(self.log_start);
                let in_use = reason.contains("shared memory block");
                if !in_use || begun.elapsed() > SHARED_MEMORY_LIMIT {
                    tracing::debug!(%status, "PostgreSQL ended while it started");
                    return Err(LocalPostgresError::DidNotStart { reason, log: self.launcher.log.clone() });
                }
                std::thread::sleep(FIRST_RESTART_DELAY);
                continue;
            }
            if self.is_ready() {
                return Ok(());
            }
            if reported.elapsed() > LOG_CHECK {
                reported = Instant::now();
                tracing::info!("PostgreSQL is still starting");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Checks the log's size, detects an unexpected end, restarts PostgreSQL when it is time, and detects readiness.
    fn look(&mut self) {
        if self.log_checked.elapsed() > LOG_CHECK {
            self.log_checked = Instant::now();
            self.launcher.bound_log();
        }
        if self.paused {
            return;
        }
        if let Some(status) = self.ended() {
            self.plan_restart();
            tracing::warn!(
                %status,
                reason = self.launcher.reason(self.log_start),
                restart_in = ?self.restart_at.saturating_duration_since(Instant::now()),
                "the private PostgreSQL ended unexpectedly"
            );
        }
        if self.child.is_some() {
            if !self.state.ready.load(Ordering::Acquire) && self.is_ready() {
                tracing::info!("the private PostgreSQL is ready again");
            }
        } else if Instant::now() >= self.restart_at {
            self.restarts.push_back(Instant::now());
            if let Err(error) = self.launch() {
                self.plan_restart();
                tracing::error!(%error, "cannot restart the private PostgreSQL");
            }
        }
    }

    /// Determines the time of the next restart. The delay doubles with every restart in the window. After too many
    /// restarts, it lasts until the first of them has left the window.
    fn plan_restart(&mut self) {
        let now = Instant::now();
        while self.restarts.front().is_some_and(|start| now.duration_since(*start) > RESTART_WINDOW) {
            self.restarts.pop_front();
        }
        self.restart_at = match self.restarts.front() {
            Some(first) if self.restarts.len() >= MAX_RESTARTS => *first + RESTART_WINDOW,
            _ => now + FIRST_RESTART_DELAY * (1 << self.restarts.len()),
        };
    }

    fn launch(&mut self) -> Result<(), LocalPostgresError> {
        pid_file::clear_left_over(&self.launcher.data, self.launcher.account)?;
        self.launcher.bound_log();
        self.log_start = self.launcher.log_length();
        let child = self.launcher.launch()?;
        self.state.pid.store(child.id(), Ordering::Release);
        self.child = Some(child);
        Ok(())
    }

    /// The exit status of PostgreSQL, if it has ended.
    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        self.state.ready.store(false, Ordering::Release);
        self.state.pid.store(0, Ordering::Release);
        Some(status)
    }

    fn is_ready(&self) -> bool {
        let ready = self
            .child
            .as_ref()
            .is_some_and(|child| pid_file::is_ready(&self.launcher.data, self.launcher.account, child.id()));
        self.state.ready.store(ready, Ordering::Release);
        ready
    }

    fn stop(&mut self) -> Result<(), LocalPostgresError> {
        self.state.ready.store(false, Ordering::Release);
        for signal in [Signal::SIGINT, Signal::SIGQUIT] {
            let Some(pid) = self.child.as_ref().map(Child::id) else {
                return Ok(());
            };
            if let Ok(pid) = i32::try_from(pid) {
                // The process has not been waited for, so the id is still its own. An error means that it has ended by
                // itself.
                let _ = kill(Pid::from_raw(pid), signal);
            }
            let deadline = Instant::now() + SHUTDOWN_LIMIT;
            while Instant::now() < deadline {
                if self.ended().is_some() {
                    return Ok(());
                }
                std::thread::sleep(POLL);
            }
        }
        match self.child.as_ref().map(Child::id) {
            Some(pid) => Err(LocalPostgresError::DidNotStop { pid }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(directory: &Path) -> Watch {
        let launcher = Launcher {
            postgres: directory.join("postgres"),
            account: Account::SELF,
            rights: Rights::OWN,
            data: directory.join("data"),
            log: directory.join("postgres.log"),
            socket_directory: directory.join("run"),
        };
        Watch::new(launcher, Arc::default())
    }

    #[test]
    fn restarts_come_ever_later_and_only_so_many_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = watch(directory.path());
        let begun = Instant::now();
        let mut delays = Vec::new();
        for _ in 0..=MAX_RESTARTS {
            watch.plan_restart();
            delays.push(watch.restart_at.duration_since(begun).as_millis() / 100);
            watch.restarts.push_back(Instant::now());
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 600]);
    }

    #[test]
    fn a_large_log_is_turned_over() {
        let directory = tempfile::tempdir().unwrap();
        let launcher = watch(directory.path()).launcher;
        let mut content = vec![b'x'; 8 * 1024 * 1024];
        std::fs::write(&launcher.log, &content).unwrap();
        launcher.bound_log();
        assert_eq!(launcher.log_length(), LARGEST_LOG);
        content.push(b'\n');
        std::fs::write(&launcher.log, &content).unwrap();
        launcher.bound_log();
        assert_eq!(launcher.log_length(), 0);
        let earlier = directory.path().join("postgres.log.1");
        assert_eq!(earlier.metadata().unwrap().len(), LARGEST_LOG + 1);
    }
}
