//! Servers as users run them: processes of the program that was built in the same directory as this one. Each has its
//! own clock, which the test can step.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The master key of these servers.
pub(crate) const MASTER_KEY: &str = "sk-faults-b2d63c5a90f147b8";

/// Paths at which distributions install libfaketime.
const CLOCKS: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
];

pub(crate) fn clock_library() -> Option<&'static str> {
    CLOCKS.into_iter().find(|path| Path::new(path).exists())
}

pub(crate) struct Server {
    child: Child,
    clock: PathBuf,
    log: PathBuf,
    /// `http://127.0.0.1:PORT`.
    pub address: String,
}

impl Server {
    /// Starts a server. If it ends, returns its output as the error.
    pub(crate) fn start(directory: &Path, number: usize, database: &str) -> Result<Self, String> {
        let (clock, log) = (directory.join(format!("clock-{number}")), directory.join(format!("server-{number}.log")));
        std::fs::write(&clock, "+0").unwrap();
        let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("litespend");
        let mut command = Command::new(program);
        command
            .args(["serve", "--port", "0", "--database-connections", "12"])
            // Settings of whoever runs this, which would lead to databases and archives of theirs.
            .env_remove("DIRECT_URL")
            .env_remove("DATABASE_URL_READ_REPLICA")
            .env_remove("CONFIG_FILE_PATH")
            .env_remove("LITESPEND_ARCHIVE_URL")
            .env("DATABASE_URL", database)
            .env("LITELLM_MASTER_KEY", MASTER_KEY)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log).unwrap())
            .process_group(0);
        if let Some(library) = clock_library() {
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", &clock)
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                .env("DONT_FAKE_MONOTONIC", "1");
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.split("address").nth(1)?.split_whitespace().next()?.to_owned()));
        std::thread::spawn(move || lines.for_each(drop));
        match address {
            Some(address) => Ok(Self { child, clock, log, address }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Err(said.lines().last().unwrap_or_default().to_owned())
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal);
    }

    /// Kills the server as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Stops the server gracefully; returns whether it ended in time.
    pub(crate) fn stop(mut self) -> bool {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
        false
    }

    /// Whether the process is running.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Steps the server's clock by an offset: `+3600`, `-86400`, `+0`.
    pub(crate) fn step_clock(&self, offset: &str) {
        let new = self.clock.with_extension("new");
        std::fs::write(&new, offset).unwrap();
        std::fs::rename(&new, &self.clock).unwrap();
    }

    /// The lines of the log that report a panic.
    pub(crate) fn panics(&self) -> Vec<String> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter(|line| line.contains("panic")).map(str::to_owned).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}
