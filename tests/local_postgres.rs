//! Tests of the private PostgreSQL that start a real one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use litespend::store::embedded_roles::local_postgres_options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use private_postgres::{Durability, LocalPostgres, LocalPostgresOptions, default_home};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

#[path = "local_postgres/hostile_account.rs"]
mod hostile_account;
#[path = "api/support/place.rs"]
mod place;
#[path = "local_postgres/roles.rs"]
mod roles;

/// This variable is set in the process that runs [`serves_a_home_for_another_test`].
const SERVE: &str = "LITESPEND_TEST_SERVE";
const PATIENCE: Duration = Duration::from_secs(15);

fn options(home: &Path) -> LocalPostgresOptions {
    LocalPostgresOptions { home: Some(home.to_owned()), durability: Durability::Throwaway, ..local_postgres_options() }
}

fn start(home: &TemporaryHome) -> LocalPostgres {
    LocalPostgres::start(options(home.path())).unwrap()
}

/// A temporary directory. If this process is killed, a shell that watches it removes the directory.
struct TemporaryHome {
    directory: TempDir,
    watcher: Child,
}

impl TemporaryHome {
    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for TemporaryHome {
    fn drop(&mut self) {
        if let Some(mut input) = self.watcher.stdin.take() {
            let _ = input.write_all(b"done\n");
        }
        let _ = self.watcher.wait();
    }
}

fn temporary_home() -> TemporaryHome {
    temporary_directory(place::of_homes())
}

fn temporary_directory(parent: &Path) -> TemporaryHome {
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
    TemporaryHome { directory, watcher }
}

/// Runs one statement on a new connection and returns the first column of its first row.
fn query(url: &str, statement: &'static str) -> Result<String, sqlx::Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut connection = PgConnection::connect(url).await?;
        let answer = sqlx::query_scalar(statement).fetch_optional(&mut connection).await?;
        connection.close().await?;
        Ok(answer.unwrap_or_default())
    })
}

fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

fn is_alive(pid: u32) -> bool {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), None).is_ok()
}

/// Makes a command run as the account that PostgreSQL runs as, for processes that a test starts itself.
fn as_the_account(command: &mut Command) -> &mut Command {
    if geteuid().is_root() {
        let user = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).unwrap()).unwrap();
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir("/");
    }
    command
}

/// Starts another process that serves `home` until it is killed. The process is this test program again.
fn serve_elsewhere(command: &mut Command, home: &Path) -> (Child, String) {
    let mut child = command
        .args(["--exact", "serves_a_home_for_another_test", "--ignored", "--nocapture"])
        .env(SERVE, home)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("SERVES ")?.1.to_owned()));
    (child, said.unwrap_or_default())
}

fn this_program() -> Command {
    Command::new(std::env::current_exe().unwrap())
}

#[test]
#[ignore = "run by other tests, as a process to kill"]
fn serves_a_home_for_another_test() {
    let Some(home) = std::env::var_os(SERVE) else {
        return;
    };
    let server = LocalPostgres::start(options(&PathBuf::from(home))).unwrap();
    let answer = query(server.url(), "SELECT current_user::text || current_setting('fsync')").unwrap();
    println!("SERVES {} {answer} {}", server.pid().unwrap(), server.url());
    std::thread::sleep(Duration::from_secs(120));
}

#[test]
#[ignore = "run by another test, with an environment of its own"]
fn prints_the_default_home() {
    println!("HOME IS {}.", default_home().display());
}

#[test]
fn the_home_follows_the_environment() {
    let default = |variables: &[(&str, &str)]| {
        let output = this_program()
            .args(["--exact", "prints_the_default_home", "--ignored", "--nocapture"])
            .env_remove("LITESPEND_DATA_DIR")
            .env("XDG_DATA_HOME", "")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let (_, home) = said.split_once("HOME IS ").unwrap();
        home.split_once(".\n").unwrap().0.to_owned()
    };
    assert_eq!(default(&[("LITESPEND_DATA_DIR", "/srv/spend")]), "/srv/spend");
    let (in_xdg, in_home) = match geteuid().is_root() {
        true => ("/var/lib/litespend", "/var/lib/litespend"),
        false => ("/xdg/litespend", "/me/.local/share/litespend"),
    };
    assert_eq!(default(&[("HOME", "/me"), ("XDG_DATA_HOME", "/xdg")]), in_xdg);
    assert_eq!(default(&[("HOME", "/me")]), in_home);
}

#[test]
fn what_is_stored_is_there_after_a_stop_and_a_second_start() {
    let home = temporary_home();
    let durable = || LocalPostgresOptions { durability: Durability::Durable, ..options(home.path()) };
    let begun = Instant::now();
    let server = LocalPostgres::start(durable()).unwrap();
    println!("first start: {:?}", begun.elapsed());
    let (url, pid) = (server.url().to_owned(), server.pid().unwrap());
    assert_eq!(server.home(), home.path());
    assert!(server.is_running());
    assert!(query(&url, "SHOW server_version").unwrap().starts_with(server.version()));
    for (statement, expected) in [
        ("SHOW fsync", "on"),
        ("SHOW synchronous_commit", "on"),
        ("SHOW full_page_writes", "on"),
        ("SHOW data_checksums", "on"),
        ("SHOW listen_addresses", ""),
        ("SHOW max_connections", "50"),
        ("SHOW TimeZone", "UTC"),
        ("SHOW server_encoding", "UTF8"),
        ("SHOW jit", "off"),
        ("SELECT lower('É')", "é"),
        ("SELECT current_database()::text", "litespend"),
    ] {
        assert_eq!(query(&url, statement).unwrap(), expected, "{statement}");
    }
    query(&url, "CREATE TABLE kept AS SELECT 'kept' AS value").unwrap();
    server.stop().unwrap();
    assert!(!is_alive(pid));
    assert!(query(&url, "SELECT 'away'").is_err());

    let begun = Instant::now();
    let server = LocalPostgres::start(durable()).unwrap();
    println!("second start: {:?}", begun.elapsed());
    assert_eq!(server.url(), url);
    assert_eq!(query(&url, "SELECT value FROM kept").unwrap(), "kept");
}

#[test]
fn dropping_it_stops_postgresql() {
    let home = temporary_home();
    let server = start(&home);
    let pid = server.pid().unwrap();
    drop(server);
    assert!(!is_alive(pid));
    assert!(!home.path().join("data/postmaster.pid").exists());
}

#[test]
fn a_second_server_on_the_same_home_is_refused() {
    let home = temporary_home();
    let server = start(&home);
    let refusal = LocalPostgres::start(options(home.path())).unwrap_err().to_string();
    assert_eq!(
        refusal,
        format!(
            "another litespend (process {}) already uses {}: stop it, or set LITESPEND_DATA_DIR \
             to another directory",
            std::process::id(),
            home.path().display()
        )
    );
    assert_eq!(query(server.url(), "SELECT 'unharmed'").unwrap(), "unharmed");
}

#[test]
fn nobody_else_may_enter_the_data_or_the_socket_directory() {
    use std::os::unix::fs::PermissionsExt;
    let home = temporary_home();
    let _server = start(&home);
    for directory in ["data", "run"] {
        let mode = home.path().join(directory).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{directory}");
    }
}

#[test]
fn the_id_of_a_stranger_in_a_left_over_pid_file_hinders_nothing() {
    let home = temporary_home();
    start(&home).stop().unwrap();
    let mut stranger = as_the_account(Command::new("sleep").arg("60")).spawn().unwrap();
    let pid_file = home.path().join("data/postmaster.pid");
    let content = format!(
        "{}\n{}\n1700000000\n5432\n{}\n\n  123456    654321\nready   \n",
        stranger.id(),
        home.path().join("data").display(),
        home.path().join("run").display()
    );
    std::fs::write(&pid_file, &content).unwrap();
    std::fs::write(home.path().join("run/.s.PGSQL.5432.lock"), &content).unwrap();
    if geteuid().is_root() {
        let account = User::from_name("postgres").unwrap().or(User::from_name("nobody").unwrap());
        let owner = account.map(|user| user.uid.as_raw());
        std::os::unix::fs::chown(&pid_file, owner, None).unwrap();
    }

    let server = start(&home);
    assert_eq!(query(server.url(), "SELECT 'fine'").unwrap(), "fine");
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger was ended");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_postgresql_that_outlived_its_server_is_replaced() {
    let home = temporary_home();
    start(&home).stop().unwrap();
    let bin_dir = std::env::var("PG_BIN_DIR").unwrap_or_else(|_| {
        let output = Command::new("pg_config").arg("--bindir").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    });
    let mut command = Command::new(Path::new(&bin_dir).join("postgres"));
    command
        .arg("-D")
        .arg(home.path().join("data"))
        .args(["-c", "listen_addresses=", "-k"])
        .arg(home.path().join("run"))
        .env("LC_ALL", "C")
        .stderr(Stdio::null());
    let mut left_over = as_the_account(&mut command).spawn().unwrap();
    let pid_file = home.path().join("data/postmaster.pid");
    assert!(eventually(|| { std::fs::read_to_string(&pid_file).is_ok_and(|content| content.contains("ready")) }));

    let server = start(&home);
    assert_ne!(server.pid().unwrap(), left_over.id());
    assert!(eventually(|| left_over.try_wait().unwrap().is_some()));
    assert_eq!(query(server.url(), "SELECT 'fine'").unwrap(), "fine");
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_server_takes_postgresql_down_and_the_next_one_starts() {
    let home = temporary_home();
    let (mut server, said) = serve_elsewhere(&mut this_program(), home.path());
    let pid: u32 = said.split(' ').next().unwrap().parse().unwrap();
    server.kill().unwrap();
    server.wait().unwrap();

    // Starts the next one at once, while the other may still be shutting down.
    let next = start(&home);
    assert!(eventually(|| !is_alive(pid)));
    assert_eq!(query(next.url(), "SELECT 'fine'").unwrap(), "fine");
}

#[test]
fn a_server_killed_together_with_its_postgresql_leaves_a_usable_home() {
    let home = temporary_home();
    let (mut server, said) = serve_elsewhere(&mut this_program(), home.path());
    let pid: u32 = said.split(' ').next().unwrap().parse().unwrap();
    send(pid, Signal::SIGKILL);
    server.kill().unwrap();
    server.wait().unwrap();

    let next = start(&home);
    assert_eq!(query(next.url(), "SELECT 'recovered'").unwrap(), "recovered");
}

#[test]
fn the_users_own_postgresql_settings_lead_nowhere_else() {
    let home = temporary_home();
    let mut command = this_program();
    command
        .env("PGHOST", "elsewhere.invalid")
        .env("PGPORT", "1")
        .env("PGUSER", "somebody")
        .env("PGDATABASE", "something")
        .env("PGPASSWORD", "secret")
        .env("PGSSLMODE", "verify-full")
        .env("PGDATA", "/nowhere")
        .env("LANG", "xx_XX.UTF-8");
    let (mut server, said) = serve_elsewhere(&mut command, home.path());
    assert!(said.contains(" litespendoff "), "{said}");
    send(server.id(), Signal::SIGKILL);
    server.wait().unwrap();
    // Starting and stopping once more ends that server's PostgreSQL before its home is removed.
    start(&home).stop().unwrap();
}

#[test]
fn a_long_and_odd_path_is_fine_and_leaves_no_socket_directory_behind() {
    let home = temporary_home();
    let long = home.path().join(format!("it's, \"odd\" {}/home", "x".repeat(120)));
    if geteuid().is_root() {
        use std::os::unix::fs::PermissionsExt;
        for directory in [home.path(), long.parent().unwrap()] {
            std::fs::create_dir_all(directory).unwrap();
            std::fs::set_permissions(directory, PermissionsExt::from_mode(0o711)).unwrap();
        }
    }
    let server = LocalPostgres::start(options(&long)).unwrap();
    let sockets = long.join("run").read_link().unwrap();
    assert!(sockets.starts_with("/tmp"));
    assert_eq!(query(server.url(), "SELECT 'fine'").unwrap(), "fine");
    server.stop().unwrap();
    assert!(!sockets.exists());

    // The same after a server was killed, once the next one has started and stopped.
    let (mut killed, said) = serve_elsewhere(&mut this_program(), &long);
    assert!(said.contains("litespendoff"), "{said}");
    let sockets = long.join("run").read_link().unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    LocalPostgres::start(options(&long)).unwrap().stop().unwrap();
    assert!(!sockets.exists());
}

#[test]
fn an_odd_short_path_is_fine() {
    let home = temporary_home();
    let odd = home.path().join("a b,c\"d+e%20");
    let server = LocalPostgres::start(options(&odd)).unwrap();
    assert_eq!(query(server.url(), "SELECT 'fine'").unwrap(), "fine");
}

#[test]
fn data_of_another_version_and_what_is_no_data_are_refused_unharmed() {
    let home = temporary_home();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("mine"), "mine").unwrap();
    let refusal = LocalPostgres::start(options(home.path())).unwrap_err().to_string();
    assert!(refusal.contains("is not a PostgreSQL data directory"), "{refusal}");

    std::fs::write(data.join("PG_VERSION"), "9\n").unwrap();
    let refusal = LocalPostgres::start(options(home.path())).unwrap_err().to_string();
    assert!(refusal.contains("belongs to PostgreSQL 9, but only "), "{refusal}");
    assert!(refusal.contains("DATABASE_URL"), "{refusal}");
    assert_eq!(std::fs::read_to_string(data.join("mine")).unwrap(), "mine");
}

#[test]
fn a_directory_without_postgresql_is_refused_by_name() {
    let home = temporary_home();
    let refusal =
        LocalPostgres::start(LocalPostgresOptions { bin_dir: Some(home.path().to_owned()), ..options(home.path()) });
    let refusal = refusal.unwrap_err().to_string();
    assert!(refusal.contains("(PG_BIN_DIR) has no working `postgres`"), "{refusal}");
}

#[test]
fn a_cluster_cut_short_while_it_was_created_is_created_anew() {
    let home = temporary_home();
    std::fs::create_dir_all(home.path().join("data.new/base")).unwrap();
    std::fs::write(home.path().join("data.new/PG_VERSION"), "15\n").unwrap();
    let server = start(&home);
    assert_eq!(query(server.url(), "SELECT 'fine'").unwrap(), "fine");
    assert!(!home.path().join("data.new").exists());
}

#[test]
fn a_postgresql_that_dies_is_started_again() {
    let home = temporary_home();
    let server = start(&home);
    let url = server.url().to_owned();
    query(&url, "CREATE TABLE kept AS SELECT 'kept' AS value").unwrap();
    query(&url, "CHECKPOINT").unwrap();
    for signal in [Signal::SIGKILL, Signal::SIGINT, Signal::SIGQUIT] {
        let pid = server.pid().unwrap();
        send(pid, signal);
        assert!(eventually(|| server.pid().is_some_and(|new| new != pid)), "{signal}");
        assert!(server.wait_until_running(PATIENCE), "{signal}");
        assert_eq!(query(&url, "SELECT value FROM kept").unwrap(), "kept");
    }
}

#[test]
fn while_paused_it_is_away_and_resumed_it_is_back() {
    let home = temporary_home();
    let server = start(&home);
    let url = server.url().to_owned();
    server.pause().unwrap();
    assert!(!server.is_running());
    assert_eq!(server.pid(), None);
    assert!(query(&url, "SELECT 'away'").is_err());
    std::thread::sleep(Duration::from_millis(500));
    assert!(!server.is_running(), "nothing starts it but resume");
    server.resume().unwrap();
    assert_eq!(query(&url, "SELECT 'back'").unwrap(), "back");
    server.resume().unwrap();
    server.stop().unwrap();
}

#[test]
fn settings_of_the_users_own_win_and_a_wrong_one_is_named() {
    let home = temporary_home();
    start(&home).stop().unwrap();
    let file = home.path().join("data/postgresql.conf");
    let original = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{original}work_mem = '3MB'\nlisten_addresses = '*'\n")).unwrap();
    let server = start(&home);
    assert_eq!(query(server.url(), "SHOW work_mem").unwrap(), "3MB");
    assert_eq!(query(server.url(), "SHOW listen_addresses").unwrap(), "");
    server.stop().unwrap();

    std::fs::write(&file, format!("{original}no_such_setting = 1\n")).unwrap();
    let refusal = LocalPostgres::start(options(home.path())).unwrap_err().to_string();
    assert!(refusal.starts_with("PostgreSQL did not start: "), "{refusal}");
    assert!(refusal.contains("postgres.log"), "{refusal}");
    assert!(!refusal.contains('\n'), "{refusal}");
}

#[test]
fn no_value_of_a_statement_reaches_the_log() {
    let home = temporary_home();
    let server = start(&home);
    query(server.url(), "CREATE TABLE keys (token text PRIMARY KEY)").unwrap();
    query(server.url(), "INSERT INTO keys VALUES ('sk-secret')").unwrap();
    query(server.url(), "INSERT INTO keys VALUES ('sk-secret')").unwrap_err();
    server.stop().unwrap();
    let log = std::fs::read_to_string(home.path().join("postgres.log")).unwrap();
    assert!(log.contains("duplicate key value"), "{log}");
    assert!(!log.contains("sk-secret"), "{log}");
}

#[test]
fn root_and_an_ordinary_user_can_both_run_it() {
    let Some(nobody) = User::from_name("nobody").unwrap().filter(|_| geteuid().is_root()) else {
        return;
    };
    let home = temporary_home();
    std::os::unix::fs::chown(home.path(), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
    // The build directory may be closed to other users, and programs in memory may be forbidden.
    let program = temporary_directory(Path::new("/tmp"));
    std::os::unix::fs::chown(program.path(), Some(nobody.uid.as_raw()), None).unwrap();
    let copy = program.path().join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();

    let mut command = Command::new(&copy);
    command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw()).current_dir("/");
    let (mut server, said) = serve_elsewhere(&mut command, home.path());
    assert!(said.contains(" litespendoff "), "{said}");
    server.kill().unwrap();
    server.wait().unwrap();

    // Then root continues with the data that the user left.
    let server = start(&home);
    assert_eq!(query(server.url(), "SELECT 'fine'").unwrap(), "fine");
}
