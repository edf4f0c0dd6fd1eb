//! `litespend upgrade-database`. The upgrade itself needs the programs of a second, newer PostgreSQL, whose directory is
//! in `LITESPEND_TEST_NEWER_PG_BIN_DIR`. Without it, the tests that need it say so and do nothing.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};
use sqlx::Connection;

use crate::support::{Directory, MASTER_KEY, Run, Server, is_alive, program, run};

/// The directory of the programs that the tests use.
fn programs() -> PathBuf {
    let directory = std::env::var("PG_BIN_DIR").unwrap_or_else(|_| {
        let output = Command::new("pg_config").arg("--bindir").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    });
    PathBuf::from(directory)
}

fn major(programs: &Path) -> u32 {
    let output = Command::new(programs.join("postgres")).arg("--version").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let version = said.trim_start_matches("postgres (PostgreSQL) ");
    version.split(|character: char| !character.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// The directory of the newer programs, if there is one.
fn newer() -> Option<PathBuf> {
    let Some(directory) = std::env::var_os("LITESPEND_TEST_NEWER_PG_BIN_DIR").filter(|value| !value.is_empty()) else {
        eprintln!("skipped: LITESPEND_TEST_NEWER_PG_BIN_DIR names no programs of a newer PostgreSQL");
        return None;
    };
    let directory = PathBuf::from(directory);
    assert!(major(&directory) > major(&programs()), "{} is not newer", directory.display());
    Some(directory)
}

/// A command on a home. Of all programs, it knows only those in `programs`.
fn on(home: &Path, programs: &Path, arguments: &[&str]) -> Command {
    let mut command = program();
    command.env("LITESPEND_DATA_DIR", home).env("PG_BIN_DIR", programs).env("LITELLM_MASTER_KEY", MASTER_KEY);
    command.args(arguments);
    command
}

fn upgrade(home: &Path, newer: &Path) -> Command {
    let mut command = on(home, newer, &["upgrade-database", "--old-programs"]);
    command.arg(programs());
    command
}

fn version(home: &Path) -> String {
    std::fs::read_to_string(home.join("data/PG_VERSION")).unwrap().trim().to_owned()
}

/// The data directories in a home.
fn data_directories(home: &Path) -> Vec<String> {
    let names = home.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("data")).collect();
    names.sort();
    names
}

/// The one line that a refused command says.
fn refusal(said: &Run, code: i32) -> &str {
    assert_eq!(said.code, Some(code), "{said:?}");
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    said.stderr.trim_end()
}

async fn connect(home: &Path) -> sqlx::PgConnection {
    let sockets = std::fs::read_link(home.join("run")).unwrap_or_else(|_| home.join("run"));
    let url = format!("postgresql://litespend@localhost:5432/litespend?host={}&sslmode=disable", sockets.display());
    sqlx::PgConnection::connect(&url).await.unwrap()
}

fn serve(home: &Path, programs: &Path) -> Server {
    Server::start(on(home, programs, &[]), &[])
}

fn stop(mut server: Server) {
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit(Duration::from_secs(20)), Some(0), "{}", server.log());
}

/// A home with a log of a few thousand rows and what a database may have besides tables.
async fn filled(home: &Path) -> Vec<String> {
    let server = serve(home, &programs());
    let mut connection = connect(home).await;
    sqlx::raw_sql(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, messages)
           SELECT 'r' || n, 'x', 'k' || n % 7, n / 1024.0, now(), now(), 'm' || n % 5, to_jsonb(repeat('é', n % 4000))
           FROM generate_series(1, 3000) AS n;
           CREATE TABLE "odd ""name|" (entry text, t int GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT now());
           INSERT INTO "odd ""name|" (entry) SELECT NULLIF('x' || n, 'x3') FROM generate_series(1, 9) AS n;
           CREATE TABLE no_columns ();
           INSERT INTO no_columns DEFAULT VALUES;
           CREATE MATERIALIZED VIEW stored AS SELECT sum(spend) FROM "LiteLLM_SpendLogs";
           CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS one WITH NO DATA;
           CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS one;
           CREATE SEQUENCE numbers START 42"#,
    )
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    let answers = answers(&server).await;
    stop(server);
    answers
}

/// What the server answers. The order within a day of the report follows from when the rollups were folded.
async fn answers(server: &Server) -> Vec<String> {
    let mut answers = Vec::new();
    for path in
        ["/spend/logs?limit=50", "/spend/tags", "/global/spend/report?start_date=2020-01-01&end_date=2040-01-01"]
    {
        let answer = server.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        answers.push(answer.text().await.unwrap());
    }
    let report = answers.pop().unwrap();
    let mut entries: Vec<String> = report.split(['{', '}']).map(str::to_owned).collect();
    assert!(entries.len() > 60, "{report}");
    entries.sort();
    answers.extend(entries);
    answers
}

#[tokio::test]
async fn a_database_moves_to_a_newer_postgresql_and_back_is_what_was_kept() {
    let Some(newer) = newer() else { return };
    let (from, to) = (major(&programs()), major(&newer));
    let directory = Directory::new();
    let home = directory.path().join("a home");
    let before = filled(&home).await;
    let conf = home.join("data/postgresql.conf");
    let settings = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, format!("{settings}work_mem = '3MB'\n")).unwrap();

    // The newer PostgreSQL alone refuses the data, and says what to do.
    let said = run(&mut on(&home, &newer, &["serve", "--port", "0"]));
    let line = said.stderr.lines().last().unwrap();
    assert_eq!(said.code, Some(2), "{line}");
    assert!(line.contains(&format!("install PostgreSQL {from}")), "{line}");
    assert!(line.contains("PG_BIN_DIR") && line.contains("`litespend upgrade-database`"), "{line}");

    let said = run(&mut upgrade(&home, &newer));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.stderr, "");
    assert!(said.stdout.contains("the same in both: "), "{}", said.stdout);
    let kept = format!("data.postgresql{from}");
    assert!(said.stdout.contains(&format!("is kept in {}", home.join(&kept).display())), "{}", said.stdout);
    assert_eq!(data_directories(&home), ["data", &kept]);
    assert_eq!(version(&home), to.to_string());

    // Again, there is nothing to do.
    let said = run(&mut on(&home, &newer, &["upgrade-database"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("nothing to upgrade") && said.stdout.contains(&kept), "{}", said.stdout);

    let server = serve(&home, &newer);
    assert_eq!(answers(&server).await, before);
    let mut connection = connect(&home).await;
    for (statement, expected) in [
        ("SHOW work_mem", "3MB"),
        ("SHOW data_checksums", "on"),
        ("SHOW listen_addresses", ""),
        ("SELECT datcollate FROM pg_database WHERE datname = current_database()", "C.UTF-8"),
        ("SELECT nextval('numbers')::text", "42"),
        ("SELECT one::text FROM unlogged", "1"),
        ("SELECT count(*)::text FROM \"odd \"\"name|\"", "9"),
        ("SELECT (rolsuper OR rolcreatedb)::text FROM pg_roles WHERE rolname = current_user", "false"),
        ("SELECT (reltuples > 0)::text FROM pg_class WHERE relname = 'odd \"name|'", "true"),
    ] {
        let value: String = sqlx::query_scalar(statement).fetch_one(&mut connection).await.unwrap();
        assert_eq!(value, expected, "{statement}");
    }
    connection.close().await.unwrap();
    stop(server);

    // What was kept is whole.
    std::fs::rename(home.join("data"), home.join("upgraded")).unwrap();
    std::fs::rename(home.join(&kept), home.join("data")).unwrap();
    let server = serve(&home, &programs());
    assert_eq!(answers(&server).await, before);
    stop(server);
}

#[tokio::test]
async fn an_upgrade_that_is_killed_changes_nothing_and_the_next_one_succeeds() {
    let Some(newer) = newer() else { return };
    let directory = Directory::new();
    let home = directory.path().join("home");
    let before = filled(&home).await;
    let from = major(&programs()).to_string();
    for step in ["reading every row with PostgreSQL", "creating a cluster", "checking both", "copying the data"] {
        let mut child =
            upgrade(&home, &newer).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        let mut lines = lines.map_while(Result::ok);
        assert!(lines.any(|line| line.starts_with(step)), "{step}");
        std::thread::sleep(Duration::from_millis(400));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(version(&home), from, "{step}");
        assert!(home.join("data.upgrading").exists(), "{step}");
        if step == "checking both" {
            // A server starts on the home as before, although `pg_upgrade` may have left a PostgreSQL.
            let server = serve(&home, &programs());
            assert_eq!(answers(&server).await, before);
            stop(server);
            assert_eq!(data_directories(&home), ["data"]);
        }
    }
    let said = run(&mut upgrade(&home, &newer));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(data_directories(&home), ["data".to_owned(), format!("data.postgresql{from}")]);
    let server = serve(&home, &newer);
    assert_eq!(answers(&server).await, before);
    stop(server);
}

#[tokio::test]
async fn what_the_newer_postgresql_refuses_is_named_and_the_data_stays_in_use() {
    let Some(newer) = newer() else { return };
    let directory = Directory::new();
    let home = directory.path().join("home");
    let before = filled(&home).await;
    let conf = home.join("data/postgresql.conf");
    let settings = std::fs::read_to_string(&conf).unwrap();
    // A setting that PostgreSQL 18 no longer has.
    std::fs::write(&conf, format!("{settings}old_snapshot_threshold = '-1'\n")).unwrap();
    let said = run(&mut upgrade(&home, &newer));
    let line = refusal(&said, 1);
    assert!(
        line.contains("refuses a setting of your own") && line.contains("parameter \"old_snapshot_threshold\""),
        "{line}"
    );
    std::fs::write(&conf, settings).unwrap();

    // A directory that no upgrade made.
    std::fs::create_dir(home.join("data.upgraded")).unwrap();
    let said = run(&mut upgrade(&home, &newer));
    assert!(refusal(&said, 1).contains("data.upgraded: it holds no data of another version"), "{}", said.stderr);
    std::fs::remove_dir(home.join("data.upgraded")).unwrap();

    // PostgreSQL 16 changed how this type is stored.
    let statement = async |statement: &'static str| {
        let server = serve(&home, &programs());
        let mut connection = connect(&home).await;
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let answers = answers(&server).await;
        stop(server);
        answers
    };
    statement("CREATE TABLE rights (entry aclitem)").await;
    let said = run(&mut upgrade(&home, &newer));
    let line = refusal(&said, 1);
    assert!(line.contains("`pg_upgrade` failed, and the data is as before: "), "{line}");
    assert!(line.contains("aclitem") && line.contains("litespend.rights.entry"), "{line}");
    let log = std::fs::read_to_string(home.join("upgrade.log")).unwrap();
    assert!(log.contains("Checking cluster versions") && log.contains("rights"), "{log}");
    assert_eq!(data_directories(&home), ["data"]);
    assert_eq!(statement("DROP TABLE rights").await, before);

    let said = run(&mut upgrade(&home, &newer));
    assert_eq!(said.code, Some(0), "{said:?}");
}

/// A `pg_upgrade` that makes a mistake in one row: the copy has as many rows as before, with one other value.
#[tokio::test]
async fn a_copy_with_another_value_in_it_is_not_used() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let Some(newer) = newer() else { return };
    let directory = Directory::new();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let home = directory.path().join("home");
    let before = filled(&home).await;
    let wrong = directory.path().join("wrong");
    std::fs::create_dir(&wrong).unwrap();
    for entry in newer.read_dir().unwrap() {
        let name = entry.unwrap().file_name();
        if name != "pg_upgrade" {
            symlink(newer.join(&name), wrong.join(&name)).unwrap();
        }
    }
    let script = format!(
        "#!/bin/sh\n\
         '{0}/pg_upgrade' \"$@\" || exit\n\
         case \" $* \" in *' --check '*) exit 0 ;; esac\n\
         while [ \"$1\" != --new-datadir ]; do shift; done\n\
         echo 'UPDATE litespend.\"odd \"\"name|\" SET entry = 7 WHERE t = 1' | '{0}/postgres' --single -D \"$2\" litespend\n",
        newer.display()
    );
    let pg_upgrade = directory.file("wrong/pg_upgrade", &script);
    for path in [&wrong, &pg_upgrade] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let said = run(&mut upgrade(&home, &wrong));
    let line = refusal(&said, 1);
    assert!(line.contains("the upgraded copy differs from the data, and was removed"), "{line}");
    let table = "table litespend.odd \"name| of the database litespend was 9 rows, checksum ";
    assert!(line.contains(table) && line.contains(" and became 9 rows, checksum "), "{line}");
    assert_eq!(data_directories(&home), ["data"]);
    let server = serve(&home, &programs());
    assert_eq!(answers(&server).await, before);
    stop(server);
}

#[test]
fn a_home_in_use_is_refused_and_stays_in_use() {
    let directory = Directory::new();
    let home = directory.path().join("home");
    let server = serve(&home, &programs());
    let said = run(&mut on(&home, &programs(), &["upgrade-database"]));
    assert!(refusal(&said, 1).contains("another litespend (process "), "{}", said.stderr);
    stop(server);

    // The same for a PostgreSQL that somebody else started.
    let mut command = Command::new(programs().join("postgres"));
    command.arg("-D").arg(home.join("data")).args(["-c", "listen_addresses=", "-k"]).arg(home.join("run"));
    command.env("LC_ALL", "C").stderr(Stdio::null()).stdin(Stdio::null());
    if geteuid().is_root() {
        use std::os::unix::fs::MetadataExt;
        let owner = home.join("data").metadata().unwrap();
        command.uid(owner.uid()).gid(owner.gid()).current_dir("/");
    }
    let mut other = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let pid_file = home.join("data/postmaster.pid");
    while !std::fs::read_to_string(&pid_file).is_ok_and(|content| content.contains("ready")) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = run(&mut on(&home, &programs(), &["upgrade-database"]));
    assert!(refusal(&said, 1).contains(&format!("PostgreSQL (process {}) runs on", other.id())), "{}", said.stderr);
    assert!(is_alive(other.id()));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(other.id()).unwrap()), Signal::SIGINT).unwrap();
    other.wait().unwrap();
}

#[test]
fn without_a_database_or_without_programs_one_line_says_what_to_do() {
    let directory = Directory::new();
    let home = directory.path().join("home");
    let said = run(&mut on(&home, &programs(), &["upgrade-database"]));
    assert!(refusal(&said, 1).contains("there is no database in"), "{}", said.stderr);
    assert!(!home.exists());

    let said = run(&mut on(&home, &programs(), &["migrate"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = run(&mut on(&home, &programs(), &["upgrade-database"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("nothing to upgrade"), "{}", said.stdout);

    for option in ["--programs", "--old-programs"] {
        // The old programs are looked at when there are newer ones.
        let Some(newer) = (if option == "--programs" { Some(programs()) } else { newer() }) else { continue };
        let said = run(on(&home, &newer, &["upgrade-database", option]).arg(directory.path()));
        assert!(refusal(&said, 2).contains(&format!("({option}) has no working `postgres`")), "{}", said.stderr);
    }
    assert_eq!(data_directories(&home), ["data"]);
}

/// An interruption in the middle of a switch, on a file system that cannot exchange names.
#[test]
fn a_server_does_not_start_between_two_data_directories() {
    let directory = Directory::new();
    let home = directory.path().join("home");
    let said = run(&mut on(&home, &programs(), &["migrate"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    std::fs::rename(home.join("data"), home.join("data.upgraded")).unwrap();
    let said = run(&mut on(&home, &programs(), &["migrate"]));
    assert!(refusal(&said, 2).contains("was interrupted: run `litespend upgrade-database`"), "{}", said.stderr);
    assert_eq!(data_directories(&home), ["data.upgraded"]);

    let said = run(&mut on(&home, &programs(), &["upgrade-database"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(data_directories(&home), ["data"]);
    let said = run(&mut on(&home, &programs(), &["migrate"]));
    assert_eq!(said.code, Some(0), "{said:?}");
}

/// An ordinary user upgrades its own data. The other tests run as whoever runs them, which may be root.
#[tokio::test]
async fn an_ordinary_user_can_upgrade() {
    let Some(newer) = newer() else { return };
    let Some(nobody) = User::from_name("nobody").unwrap().filter(|_| geteuid().is_root()) else {
        eprintln!("skipped: the other tests run as an ordinary user");
        return;
    };
    let directory = Directory::new();
    std::os::unix::fs::chown(directory.path(), Some(nobody.uid.as_raw()), Some(nobody.gid.as_raw())).unwrap();
    // The build directory may be closed to other users.
    let programs_of_nobody = Directory::of_programs();
    std::os::unix::fs::chown(programs_of_nobody.path(), Some(nobody.uid.as_raw()), None).unwrap();
    let copy = programs_of_nobody.path().join("litespend");
    std::fs::copy(env!("CARGO_BIN_EXE_litespend"), &copy).unwrap();
    let home = directory.path().join("home");
    let command = |programs: &Path, arguments: &[&str]| {
        let mut command = Command::new(&copy);
        command.env_clear().env("LITESPEND_DATA_DIR", &home).env("PG_BIN_DIR", programs).args(arguments);
        command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw()).current_dir("/");
        command
    };
    let said = run(&mut command(&programs(), &["migrate"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = run(command(&newer, &["upgrade-database", "--old-programs"]).arg(programs()));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(version(&home), major(&newer).to_string());
    let said = run(&mut command(&newer, &["migrate"]));
    assert_eq!(said.code, Some(0), "{said:?}");
}
