//! Helpers for tests of the program: running it, sending requests, and reading its output.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use litespend::store::database::PoolLimits;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cluster::{self, TestDatabase};
use crate::place;

/// The master key of the tests' servers.
pub(crate) const MASTER_KEY: &str = "sk-process-master-key";

/// A temporary directory. If this process is killed, a shell that watches it removes the directory.
pub(crate) struct Directory {
    directory: TempDir,
    watcher: Child,
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self::under(place::of_homes())
    }

    /// A directory in which programs can be run. From a file system in memory, that may be forbidden.
    pub(crate) fn of_programs() -> Self {
        Self::under(Path::new("/tmp"))
    }

    fn under(parent: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("litespend-test-").tempdir_in(parent).unwrap();
        let watcher = Command::new("sh")
            .args(["-c", "read answer || { sleep 3; rm -rf \"$0\"; }"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Self { directory, watcher }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file into the directory; returns its path.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Some(mut input) = self.watcher.stdin.take() {
            let _ = input.write_all(b"done\n");
        }
        let _ = self.watcher.wait();
    }
}

/// Makes a database of litespend's own one that LiteLLM owns: its ledger, its log as one table, and nothing of litespend.
pub(crate) const AS_LITELLM: &str = concat!(
    "SET search_path = public; DROP SCHEMA litespend CASCADE; CREATE TABLE public._prisma_migrations (id text);",
    include_str!("../fixtures/plain_log.sql")
);

/// An empty database with all migrations applied.
pub(crate) async fn database() -> TestDatabase {
    // A separate template, because the program's own migrations create it.
    cluster::create_database(&cluster::fingerprint(["process", env!("CARGO_PKG_VERSION")]), async |url| {
        let limits = PoolLimits { connections: 2, wait: Duration::from_secs(30) };
        litespend::store::database::connect(url, limits).await.unwrap().close().await;
    })
    .await
}

/// A command that runs the program without any environment variables that would configure it.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_litespend"));
    command.env_clear();
    for name in ["PATH", "PG_BIN_DIR", "HOME"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// The output and exit code of a run that has ended by itself.
#[derive(Debug)]
pub(crate) struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program to its end, which must come within a time limit.
pub(crate) fn run(command: &mut Command) -> Run {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        text
    });
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).unwrap();
        text
    });
    let status = wait(&mut child, Duration::from_secs(60)).expect("the program ends by itself");
    Run { code: status.code(), stdout: reading.join().unwrap(), stderr: errors.join().unwrap() }
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    pub address: SocketAddr,
    /// The block of information that the server printed at start.
    pub block: String,
    log: PathBuf,
    /// The time from the start of the process to the block.
    pub started_in: Duration,
    _directory: Directory,
}

impl Server {
    /// Starts a server on an existing database, with the tests' master key.
    pub(crate) fn on(url: &str, arguments: &[&str]) -> Self {
        let mut command = program();
        command.env("DATABASE_URL", url).env("LITELLM_MASTER_KEY", MASTER_KEY);
        Self::start(command, arguments)
    }

    /// Starts a server with what the command has set already.
    pub(crate) fn start(command: Command, arguments: &[&str]) -> Self {
        Self::try_start(command, arguments).unwrap_or_else(|said| panic!("the server did not start: {said}"))
    }

    pub(crate) fn try_start(mut command: Command, arguments: &[&str]) -> Result<Self, String> {
        let directory = Directory::new();
        let log = directory.path().join("log");
        let started = Instant::now();
        let mut child = command
            .args(["serve", "--port", "0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut block = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            block.push_str(&line);
            block.push('\n');
            if line.contains("master key") {
                break;
            }
        }
        let address = block.split("listening on ").nth(1).and_then(|rest| rest.split(')').next()?.parse().ok());
        match address {
            Some(address) => {
                Ok(Self { child, address, block, log, started_in: started.elapsed(), _directory: directory })
            }
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(std::fs::read_to_string(&log).unwrap())
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log of the server so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a `GET` with the master key.
    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        reqwest::Client::new().get(self.url(path)).header("x-api-key", MASTER_KEY).send().await.unwrap()
    }

    pub(crate) async fn status(&self, path: &str) -> u16 {
        self.get(path).await.status().as_u16()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes on a new connection and reads until the connection ends.
    pub(crate) fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // A server may close the connection while the rest is still being sent.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits for the process to end and returns its exit code; `None` if it does not end within the limit.
    pub(crate) fn exit(&mut self, limit: Duration) -> Option<i32> {
        wait(&mut self.child, limit)?.code()
    }

    /// The value of a line of `/proc/PID/status`, in kB.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|found| found.starts_with(line)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal(Signal::SIGTERM);
            let _ = wait(&mut self.child, Duration::from_secs(10));
        }
    }
}

/// Whether a process exists.
pub(crate) fn is_alive(pid: u32) -> bool {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), None).is_ok()
}

pub(crate) async fn eventually(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if condition().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}
