//! The server that is measured.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// The master key of the measured servers.
pub(crate) const MASTER_KEY: &str = "sk-bench-master";

/// Settings of whoever runs this, which would lead to databases and archives of theirs.
const FOREIGN: [&str; 5] =
    ["DATABASE_URL", "DATABASE_URL_READ_REPLICA", "DIRECT_URL", "CONFIG_FILE_PATH", "LITESPEND_ARCHIVE_URL"];

/// The program, built in the same directory as this one.
pub(crate) fn command() -> Command {
    let path = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("litespend");
    let mut command = Command::new(path);
    for name in FOREIGN {
        command.env_remove(name);
    }
    command
}

/// A server, built in the same directory as this program; stopped when dropped.
pub(crate) struct Server {
    child: Child,
    /// Its URL, without a slash at the end.
    pub address: String,
}

impl Server {
    /// Starts a server on a free port, with this environment and these additional arguments.
    pub(crate) fn start(environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut child = command()
            .args(["serve", "--port", "0"])
            .args(arguments)
            .env("LITELLM_MASTER_KEY", MASTER_KEY)
            .env("RUST_LOG", "warn")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.by_ref().map(Result::unwrap).find(|line| line.contains("http://")).expect("the server starts");
        let address = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// A line of the server's [`memory_of`].
    pub(crate) fn memory(&self, line: &str) -> f64 {
        memory_of(self.child.id(), line)
    }
}

/// The value of a line of `/proc/PID/status` in megabytes (Linux): `VmRSS` is the resident memory, `VmHWM` its peak.
pub(crate) fn memory_of(process: u32, line: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let found = status.lines().find(|found| found.starts_with(line)).unwrap_or("0 0 kB");
    found.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}
