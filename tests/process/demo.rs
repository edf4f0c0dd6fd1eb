//! `litespend serve --demo`: made-up usage in a home of its own, beside homes that stay as they are.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::{Days, Utc};
use serde_json::Value;

use crate::support::{Directory, MASTER_KEY, Server, program, run};

/// A home of a server, as far as a look at it shows: nothing in it is a database that PostgreSQL could open.
fn home_of_a_server(path: &Path) {
    std::fs::create_dir_all(path.join("data/base")).unwrap();
    for (file, content) in [("data/PG_VERSION", "15\n"), ("data/base/1", "rows"), ("master_key", "sk-of-the-home\n")] {
        std::fs::write(path.join(file), content).unwrap();
    }
}

/// Everything in a directory: where it is, its size, its rights, and when it was changed.
fn content(directory: &Path) -> Vec<(PathBuf, u64, u32, i64, i64)> {
    let (mut found, mut next) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(path) = next.pop() {
        let about = path.symlink_metadata().unwrap();
        if about.is_dir() {
            next.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, about.len(), about.mode(), about.ctime(), about.ctime_nsec()));
    }
    found.sort_unstable();
    found
}

/// A demo whose environment names another database and another archive.
fn demo() -> Command {
    let mut command = program();
    command
        .env("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/another")
        .env("LITESPEND_ARCHIVE_URL", "/dev/null/archive")
        .env("LITELLM_MASTER_KEY", MASTER_KEY);
    command
}

/// The number of calls in the days of a demo, by what the log says of each day.
async fn calls(server: &Server) -> usize {
    let today = Utc::now().date_naive();
    let first = today.checked_sub_days(Days::new(61)).unwrap();
    let path = format!("/spend/logs?start_date={first}&end_date={today}&summarize=false");
    let answer = server.get(&path).await;
    assert_eq!(answer.status(), 200);
    let rows: Value = answer.json().await.unwrap();
    let rows = rows.as_array().unwrap();
    assert!(rows.iter().all(|row| row["request_id"].as_str().unwrap().starts_with("demo-")), "{rows:?}");
    rows.len()
}

#[tokio::test]
async fn a_demo_lies_beside_the_data_directory_which_stays_as_it_is() {
    let directory = Directory::new();
    let home = directory.path().join("home");
    home_of_a_server(&home);
    let before = content(&home);
    let few = ["--demo-calls", "1"];
    let beside = directory.path().join("litespend-demo");
    let booked = {
        let server = Server::start(demo(), &[&["--demo", "--data-dir", home.to_str().unwrap()][..], &few].concat());
        assert!(server.block.contains(&format!("embedded in {}", beside.display())), "{}", server.block);
        assert!(server.block.contains(&format!("The data is in {} ", beside.display())), "{}", server.block);
        let booked = calls(&server).await;
        // Last month, whose days are closed, and those of this month that are over.
        assert!(booked >= 28, "{booked}");
        booked
    };
    assert!(beside.join("data/PG_VERSION").exists() && beside.join("archive").exists());
    assert_eq!(content(&home), before);
    // The home of a demo is known as such, and the same calls are not booked again. Two of them, around midnight, may be new.
    let server = Server::start(demo(), &[&["--demo", beside.to_str().unwrap()][..], &few].concat());
    let again = calls(&server).await;
    assert!((booked..=booked + 2).contains(&again), "{booked}, then {again}");
}

#[test]
fn a_demo_refuses_a_home_with_other_data() {
    let directory = Directory::new();
    let (given, beside) = (directory.path().join("given"), directory.path().join("litespend-demo"));
    for home in [&given, &beside] {
        home_of_a_server(home);
    }
    // What an upgrade that was interrupted can leave, and the archive of a server with a database elsewhere.
    let (upgraded, archive) = (directory.path().join("upgraded"), directory.path().join("archived"));
    std::fs::create_dir_all(upgraded.join("data.upgraded")).unwrap();
    std::fs::create_dir_all(archive.join("archive")).unwrap();
    let before = content(directory.path());
    let usual = directory.path().join("home");
    for (arguments, refused) in [
        (vec!["--demo", given.to_str().unwrap()], &given),
        (vec!["--demo", upgraded.to_str().unwrap()], &upgraded),
        (vec!["--demo", archive.to_str().unwrap()], &archive),
        // The home of the demo is beside this directory, and has other data.
        (vec!["--demo", "--data-dir", usual.to_str().unwrap()], &beside),
    ] {
        let said = run(demo().args(["serve", "--port", "0"]).args(&arguments));
        let expected = format!(
            "--demo: {} has data that no demo of this version made: name another directory, as in --demo DIR, or remove \
             this one if it is an earlier demo or one whose first start was interrupted",
            refused.display()
        );
        assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{arguments:?}: {}", said.stderr);
        assert!(said.stderr.trim_end().ends_with(&expected) && said.stderr.lines().count() == 1, "{}", said.stderr);
    }
    assert_eq!(content(directory.path()), before);
}
