//! Databases for tests: one throwaway PostgreSQL for all test processes of a run. It holds one migrated template, and a
//! copy of that for each test.
//!
//! The runner may start every test in a process of its own, and may be killed at any time. So no test process owns the
//! cluster. The first process that needs it starts a keeper: this test program again, detached, running only
//! [`keeps_the_throwaway_cluster`]. Every process that uses the cluster holds a shared lock, which the system releases
//! when the process ends, in whatever way. When no process holds the lock and the runner is gone (or no process has
//! come for [`IDLE_LIMIT`]), the keeper stops PostgreSQL and removes its directory.
//!
//! Cargo's directory for temporary files of tests contains:
//!
//! ```text
//!   cluster-users.lock  held shared by all users; the keeper takes it exclusively to check that there are none
//!   cluster-start.lock  held while a process looks for a keeper and starts one
//!   cluster-state       the home and the URL of the running cluster
//!   cluster.log         the output of the keeper
//! ```
//!
//! `TEST_DATABASE_URL` names another server to use; its user must be allowed to create databases. The template then
//! stays there for the next run.

use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use litespend::store::embedded_roles::local_postgres_options;
use private_postgres::{Durability, LocalPostgres, LocalPostgresOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::place;

/// Set only for the keeper's process, which recognizes its role by it. The value is the runner's process id.
const RUNNER: &str = "LITESPEND_TEST_CLUSTER_RUNNER";
const LOOK: Duration = Duration::from_millis(200);
/// How long the cluster stays up unused while the runner lives, because the runner may have other tests in between.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
const START_LIMIT: Duration = Duration::from_secs(60);
/// The number of the advisory lock. Any number works, if it is always the same.
const TEMPLATE_LOCK: i64 = 0x6c69_7465;

/// A test's own database, dropped with this value.
pub(crate) struct TestDatabase {
    url: String,
    name: String,
}

impl TestDatabase {
    /// The URL of the database.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TestDatabase {
    /// Best effort: a database that is not dropped disappears with the cluster.
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // The test's own async runtime may be ending right now.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                if let Ok(mut connection) = PgConnection::connect(server_url()).await {
                    let _ = connection.execute(AssertSqlSafe(statement)).await;
                }
            });
        });
        let _ = dropping.join();
    }
}

/// Names a template by what it is made from, such as the checksums of all migrations.
pub(crate) fn fingerprint<T: Hash>(parts: impl IntoIterator<Item = T>) -> String {
    let mut hasher = DefaultHasher::new();
    for part in parts {
        part.hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

/// Creates a copy of the template with this fingerprint. The first caller has `migrate` fill the template, given the
/// URL of an empty database. `migrate` must have closed its connections when it returns.
pub(crate) async fn create_database<M>(fingerprint: &str, migrate: M) -> TestDatabase
where
    M: AsyncFnOnce(&str),
{
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut server = PgConnection::connect(server_url()).await.unwrap();
    let template = format!("litespend_template_{fingerprint}");
    if !exists(&mut server, &template).await {
        create_template(&mut server, &template, migrate).await;
    }

    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("litespend_test_{}_{count}_{time}", std::process::id());
    let statement = format!("CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY");
    server.execute(AssertSqlSafe(statement)).await.unwrap();
    server.close().await.unwrap();
    TestDatabase { url: with_database(server_url(), &name), name }
}

async fn exists(server: &mut PgConnection, name: &str) -> bool {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(server)
        .await
        .unwrap()
}

/// The template has another name until it is complete. So a database with the final name is always complete.
async fn create_template<M>(server: &mut PgConnection, template: &str, migrate: M)
where
    M: AsyncFnOnce(&str),
{
    let lock = format!("SELECT pg_advisory_lock({TEMPLATE_LOCK})");
    server.execute(AssertSqlSafe(lock)).await.unwrap();
    if !exists(server, template).await {
        let new = format!("{template}_new");
        let mut run = async |statement: String| {
            server.execute(AssertSqlSafe(statement)).await.unwrap();
        };
        run(format!("DROP DATABASE IF EXISTS {new} WITH (FORCE)")).await;
        run(format!("CREATE DATABASE {new} TEMPLATE template0")).await;
        migrate(&with_database(server_url(), &new)).await;
        run(format!("ALTER DATABASE {new} ALLOW_CONNECTIONS false")).await;
        run(format!("ALTER DATABASE {new} RENAME TO {template}")).await;
    }
    let unlock = format!("SELECT pg_advisory_unlock({TEMPLATE_LOCK})");
    server.execute(AssertSqlSafe(unlock)).await.unwrap();
}

/// The same URL with another database name.
fn with_database(url: &str, name: &str) -> String {
    let (address, parameters) = match url.split_once('?') {
        Some((address, parameters)) => (address, format!("?{parameters}")),
        None => (url, String::new()),
    };
    let authority = address.find("://").map_or(0, |start| start + 3);
    let end = address[authority..].find('/').map_or(address.len(), |slash| authority + slash);
    format!("{}/{name}{parameters}", &address[..end])
}

/// The URL of the server that holds the databases.
fn server_url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| match std::env::var("TEST_DATABASE_URL") {
        Ok(url) if !url.is_empty() => url,
        _ => join_cluster(),
    })
}

fn in_cargos_directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn open_lock(name: &str) -> File {
    std::fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(in_cargos_directory(name)).unwrap()
}

/// Registers this process as a user of the running cluster, or of a new one.
fn join_cluster() -> String {
    static USER: OnceLock<File> = OnceLock::new();
    let users = open_lock("cluster-users.lock");
    users.lock_shared().unwrap();
    // From here on the keeper keeps the cluster running, until this process ends.
    USER.set(users).unwrap();
    end_with_the_runner();

    let start = open_lock("cluster-start.lock");
    start.lock().unwrap();
    running_cluster().unwrap_or_else(start_keeper)
}

/// Ends this process when the runner is gone: a test that outlives a killed runner would keep the cluster running.
fn end_with_the_runner() {
    let runner = parent_id();
    std::thread::spawn(move || {
        while parent_id() == runner {
            std::thread::sleep(LOOK);
        }
        std::process::exit(1);
    });
}

/// The URL of the cluster, if one is running. Removes what a killed keeper left behind.
fn running_cluster() -> Option<String> {
    let file = in_cargos_directory("cluster-state");
    let state = std::fs::read_to_string(&file).ok()?;
    let (home, url) = state.trim_end().split_once('\n')?;
    let home = Path::new(home);
    // As long as the keeper lives, it holds the lock on its cluster's home.
    let lock = File::open(home.join("lock")).map(|lock| lock.try_lock_shared());
    if matches!(lock, Ok(Err(TryLockError::WouldBlock))) {
        return Some(url.to_owned());
    }
    let _ = std::fs::remove_dir_all(home);
    let _ = std::fs::remove_file(&file);
    None
}

fn start_keeper() -> String {
    let log = in_cargos_directory("cluster.log");
    let output = File::create(&log).unwrap();
    let name = concat!(module_path!(), "::keeps_the_throwaway_cluster");
    let name = name.split_once("::").unwrap().1;
    let mut keeper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(RUNNER, parent_id().to_string())
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        // If this test's process group is ended, the cluster of the other tests must keep running.
        .process_group(0)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + START_LIMIT;
    while Instant::now() < deadline && keeper.try_wait().unwrap().is_none() {
        if let Some(url) = running_cluster() {
            return url;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    panic!("the cluster for tests did not start:\n{said}");
}

#[test]
#[ignore = "the process that keeps the cluster; other tests start it"]
fn keeps_the_throwaway_cluster() {
    let Ok(runner) = std::env::var(RUNNER) else {
        return;
    };
    let home = tempfile::Builder::new().prefix("litespend-tests-").tempdir_in(place::of_homes()).unwrap();
    let server = LocalPostgres::start(LocalPostgresOptions {
        home: Some(home.path().to_owned()),
        durability: Durability::Throwaway,
        max_connections: 200,
        ..local_postgres_options()
    })
    .unwrap();
    let state = in_cargos_directory("cluster-state");
    let new = in_cargos_directory("cluster-state.new");
    std::fs::write(&new, format!("{}\n{}\n", home.path().display(), server.url())).unwrap();
    std::fs::rename(&new, &state).unwrap();

    let users = open_lock("cluster-users.lock");
    let mut used = Instant::now();
    loop {
        std::thread::sleep(LOOK);
        match users.try_lock() {
            Ok(()) if used.elapsed() > IDLE_LIMIT || !is_running(&runner) => break,
            Ok(()) => users.unlock().unwrap(),
            Err(_) => used = Instant::now(),
        }
    }
    // The keeper still holds the exclusive lock: a test that starts now waits, and then finds no cluster.
    let _ = std::fs::remove_file(&state);
    users.unlock().unwrap();
    server.stop().unwrap();
    home.close().unwrap();
}

fn is_running(pid: &str) -> bool {
    let output = Command::new("ps").args(["-o", "stat=", "-p", pid]).output();
    match output {
        // A process that has ended but was not reaped yet is shown as Z.
        Ok(output) => output.status.success() && !output.stdout.starts_with(b"Z"),
        // Without `ps`, only the time limit decides.
        Err(_) => true,
    }
}
