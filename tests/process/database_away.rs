//! The database becomes unavailable and comes back: meanwhile requests get 503, nothing panics, and no restart is
//! needed.

use std::time::Duration;

use litespend::store::embedded_roles::local_postgres_options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use private_postgres::{Durability, LocalPostgres, LocalPostgresOptions};

use crate::support::{Directory, MASTER_KEY, Server, eventually, program};

const READS: [&str; 5] = [
    "/spend/logs",
    "/spend/tags",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-01-02",
    "/user/daily/activity?start_date=2026-01-01&end_date=2026-01-02",
    "/get/allowed_ips",
];

#[tokio::test]
async fn a_database_that_is_stopped_and_started_again_is_503_meanwhile() {
    let home = Directory::new();
    let options = LocalPostgresOptions {
        home: Some(home.path().join("database")),
        durability: Durability::Throwaway,
        ..local_postgres_options()
    };
    let database = LocalPostgres::start(options).unwrap();
    let mut server = Server::on(database.url(), &["--database-wait", "1"]);
    for path in READS {
        assert_eq!(server.status(path).await, 200, "{path}");
    }
    for _ in 0..2 {
        database.pause().unwrap();
        for path in READS {
            let answer = server.get(path).await;
            assert_eq!(answer.status(), 503, "{path}");
            assert_eq!(answer.headers()["retry-after"], "1", "{path}");
            let body = answer.text().await.unwrap();
            assert!(body.contains("no_db_connection") && !body.contains("postgres"), "{body}");
        }
        let client = reqwest::Client::new();
        let unknown_key =
            client.get(server.url("/spend/tags")).header("x-api-key", "sk-some-key").send().await.unwrap();
        assert_eq!(unknown_key.status(), 503);
        let reset =
            client.post(server.url("/global/spend/reset")).header("x-api-key", MASTER_KEY).send().await.unwrap();
        assert_eq!(reset.status(), 503);
        assert_eq!(server.status("/health/liveliness").await, 200);
        assert_eq!(server.status("/health/liveness").await, 200);
        assert_eq!(server.status("/openapi.json").await, 200);
        let readiness = server.get("/health/readiness").await;
        assert_eq!(readiness.status(), 503);
        let body = readiness.text().await.unwrap();
        assert!(body.contains(r#""status":"unhealthy","db":"unavailable""#), "{body}");

        database.resume().unwrap();
        assert!(eventually(Duration::from_secs(5), async || server.status("/health/readiness").await == 200).await);
        for path in READS {
            assert_eq!(server.status(path).await, 200, "{path}");
        }
    }
    let log = server.log();
    assert!(!log.contains("panic"), "{log}");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.exit(Duration::from_secs(10)), Some(0));
    database.stop().unwrap();
}

#[tokio::test]
async fn an_embedded_database_that_is_killed_comes_back_by_itself() {
    let home = Directory::new();
    let mut command = program();
    command.env("LITESPEND_DATA_DIR", home.path().join("home")).env("LITELLM_MASTER_KEY", MASTER_KEY);
    let server = Server::start(command, &["--database-wait", "1"]);
    assert_eq!(server.status("/spend/tags").await, 200);
    let text = std::fs::read_to_string(home.path().join("home/data/postmaster.pid")).unwrap();
    let pid: i32 = text.lines().next().unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let during = server.status("/spend/tags").await;
    assert!([200, 503].contains(&during), "{during}");
    assert_eq!(server.status("/health/liveliness").await, 200);
    assert!(
        eventually(Duration::from_secs(30), async || server.status("/spend/tags").await == 200).await,
        "{}",
        server.log()
    );
    assert!(!server.log().contains("panic"), "{}", server.log());
}
