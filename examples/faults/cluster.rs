//! The test's own PostgreSQL, with fsync on. If the system allows it, its data directory is on a small file system of
//! its own, so that the test can fill its disk.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use sqlx::{Connection, Executor, PgConnection};

/// Most connections of the cluster. The servers and the load use about half of them.
const MAX_CONNECTIONS: u32 = 70;

/// The size of the file system that holds the data directory.
const DISK: &str = "size=768m";

/// How long PostgreSQL may take to start again, including crash recovery.
const START_LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    programs: PathBuf,
    directory: PathBuf,
    account: Option<User>,
    postmaster: Option<Child>,
    own_disk: bool,
}

impl Cluster {
    /// Creates a cluster in `directory` and starts it.
    pub(crate) async fn create(programs: &Path, directory: &Path) -> Self {
        let account = geteuid().is_root().then(|| User::from_name("postgres").unwrap()).flatten();
        assert!(account.is_some() || !geteuid().is_root(), "PostgreSQL refuses root, and there is no user `postgres`");
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        let disk = directory.join("disk");
        std::fs::create_dir(&disk).unwrap();
        let mount = || Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&disk).status();
        let own_disk = geteuid().is_root() && mount().is_ok_and(|status| status.success());
        let mut cluster = Self {
            programs: programs.to_owned(),
            directory: directory.to_owned(),
            account,
            postmaster: None,
            own_disk,
        };
        for name in ["disk", "socket"] {
            let place = directory.join(name);
            std::fs::create_dir_all(&place).unwrap();
            if let Some(account) = &cluster.account {
                chown(&place, Some(account.uid.as_raw()), Some(account.gid.as_raw())).unwrap();
            }
        }
        let status = cluster
            .program("initdb")
            .args(["-E", "UTF8", "--locale=C.UTF-8", "-U", "postgres", "--auth=trust", "-D"])
            .arg(cluster.data())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "initdb failed");
        cluster.start().await;
        let mut admin = cluster.admin("postgres").await.unwrap();
        admin.execute("CREATE ROLE litespend LOGIN").await.unwrap();
        admin.execute("CREATE DATABASE litespend OWNER litespend").await.unwrap();
        cluster
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir("/").env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        if let Some(account) = &self.account {
            command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.directory.join("disk/data")
    }

    /// The URL that the servers use. Its role is not a superuser.
    pub(crate) fn url(&self) -> String {
        format!("postgresql://litespend@localhost/litespend?host={}&sslmode=disable", self.socket())
    }

    fn socket(&self) -> String {
        self.directory.join("socket").display().to_string()
    }

    /// A connection as a superuser, for whom PostgreSQL always reserves some connections.
    pub(crate) async fn admin(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        let url = format!("postgresql://postgres@localhost/{database}?host={}&sslmode=disable", self.socket());
        PgConnection::connect(&url).await
    }

    /// Whether the disk can be filled.
    pub(crate) fn has_own_disk(&self) -> bool {
        self.own_disk
    }

    /// Starts PostgreSQL if it is not running, and waits until it responds.
    pub(crate) async fn start(&mut self) {
        let deadline = Instant::now() + START_LIMIT;
        while self.admin("postgres").await.is_err() {
            assert!(Instant::now() < deadline, "PostgreSQL does not start; see {}", self.log().display());
            let ended = self.postmaster.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
            if ended {
                let log = File::options().create(true).append(true).open(self.log()).unwrap();
                let connections = format!("max_connections={MAX_CONNECTIONS}");
                let mut command = self.program("postgres");
                command.arg("-D").arg(self.data()).arg("-k").arg(self.socket());
                for setting in [
                    &connections,
                    "listen_addresses=",
                    "deadlock_timeout=100ms",
                    "max_wal_size=64MB",
                    "min_wal_size=32MB",
                    "checkpoint_timeout=60s",
                    "restart_after_crash=on",
                    "log_min_messages=warning",
                ] {
                    command.args(["-c", setting]);
                }
                let child = command.stdout(Stdio::null()).stderr(log).process_group(0).spawn();
                self.postmaster = Some(child.unwrap());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.join("postgresql.log")
    }

    /// Ends PostgreSQL at once, as in a power failure, except that the disk keeps its cache.
    pub(crate) fn stop_at_once(&mut self) {
        if let Some(mut child) = self.postmaster.take() {
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGQUIT);
            child.wait().unwrap();
        }
    }

    /// Fills the disk except for a few kilobytes. Dropping the returned value empties it again.
    pub(crate) fn fill_disk(&self) -> Ballast {
        let path = self.directory.join("disk/ballast");
        let mut file = File::create(&path).unwrap();
        for size in [1024 * 1024, 16 * 1024, 1024] {
            let block = vec![0; size];
            while file.write_all(&block).is_ok() {}
        }
        Ballast(path)
    }
}

/// A file that uses up the free space of the disk.
pub(crate) struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop_at_once();
        if self.own_disk {
            let _ = Command::new("umount").arg(self.directory.join("disk")).status();
        }
    }
}
