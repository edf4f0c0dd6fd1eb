//! Reads go to a replica while it responds, and to the primary while it does not.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use litespend::store::embedded_roles::local_postgres_options;
use private_postgres::{LocalPostgres, LocalPostgresOptions};
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{Directory, MASTER_KEY, Server, eventually, program};

const TAGS: &str = "/spend/tags";
const REPORT: &str = "/global/spend/report?start_date=2026-03-01&end_date=2026-03-02";

fn start(home: &Path) -> LocalPostgres {
    LocalPostgres::start(LocalPostgresOptions { home: Some(home.to_owned()), ..local_postgres_options() }).unwrap()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Creates a replica of `primary` in `home`. The home is an ordinary one whose data directory is a copy that follows
/// the primary.
async fn follow(primary: &LocalPostgres, home: &Path) -> LocalPostgres {
    start(home).stop().unwrap();
    let data = home.join("data");
    let (owner, group) = data.metadata().map(|metadata| (metadata.uid(), metadata.gid())).unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    let mut connection = PgConnection::connect(primary.superuser_url()).await.unwrap();
    let programs: String = sqlx::query_scalar("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    run(Command::new(Path::new(&programs).join("pg_basebackup"))
        .args(["--no-sync", "--checkpoint=fast", "--write-recovery-conf", "--dbname"])
        .arg(primary.superuser_url().split('?').collect::<Vec<_>>().join("?"))
        .arg("--pgdata")
        .arg(&data));
    run(Command::new("chown").args(["-R", &format!("{owner}:{group}")]).arg(&data));
    start(home)
}

async fn add(connection: &mut PgConnection, id: &str) {
    sqlx::query(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", request_tags, model)
           VALUES ($1, 'acompletion', 'key', 0.5, '2026-03-01 10:00', '2026-03-01 10:00:01', '["prod"]', 'gpt-4o')"#,
    )
    .bind(id)
    .execute(connection)
    .await
    .unwrap();
}

/// How many requests the server counts under the only tag.
async fn counted(server: &Server) -> i64 {
    let answer = server.get(TAGS).await;
    assert_eq!(answer.status(), 200);
    let tags: Value = answer.json().await.unwrap();
    tags.pointer("/0/log_count").and_then(Value::as_i64).unwrap_or_default()
}

#[tokio::test]
async fn reads_go_to_the_replica_while_it_answers() {
    let directory = Directory::new();
    let primary = start(&directory.path().join("primary"));
    let mut command = program();
    command.env("DATABASE_URL", primary.url()).env("LITELLM_MASTER_KEY", MASTER_KEY);
    drop(Server::start(command, &[]));
    let replica = follow(&primary, &directory.path().join("replica")).await;
    let mut on_primary = PgConnection::connect(primary.url()).await.unwrap();
    let mut on_replica = PgConnection::connect(replica.superuser_url()).await.unwrap();
    let follows: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&mut on_replica).await.unwrap();
    assert!(follows);
    add(&mut on_primary, "first").await;

    let mut command = program();
    command.env("DATABASE_URL", primary.url()).env("LITELLM_MASTER_KEY", MASTER_KEY);
    command.env("DATABASE_URL_READ_REPLICA", replica.url());
    let server = Server::start(command, &[]);
    assert!(eventually(Duration::from_secs(10), async || server.log().contains("reads go to the replica")).await);
    assert!(eventually(Duration::from_secs(10), async || counted(&server).await == 1).await);

    // A replica that no longer follows still answers with the data that it has. Reads that must be current come from
    // the primary.
    on_replica.execute("SELECT pg_wal_replay_pause()").await.unwrap();
    add(&mut on_primary, "second").await;
    assert_eq!(counted(&server).await, 1);
    let rows: serde_json::Value = server.get("/spend/logs").await.json().await.unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 1);
    let client = reqwest::Client::new();
    let key: serde_json::Value = client
        .post(server.url("/key/generate"))
        .header("x-api-key", MASTER_KEY)
        .json(&serde_json::json!({ "user_id": "ada", "user_role": "proxy_admin" }))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let info = client.get(server.url("/key/info")).header("x-api-key", MASTER_KEY);
    let info = info.query(&[("key", key["key"].as_str().unwrap())]).send().await.unwrap();
    assert_eq!(info.status(), 200, "a key that the replica has not seen is known");
    on_replica.execute("SELECT pg_wal_replay_resume()").await.unwrap();
    assert!(eventually(Duration::from_secs(10), async || counted(&server).await == 2).await);
    // The replica also answers from the rollups: a grouping of the whole range, whose deltas the primary has folded.
    assert_eq!(server.status(REPORT).await, 200);

    // While the replica is unavailable, no request fails, and the log says so once. When it is back, it is used again.
    drop(on_replica);
    replica.pause().unwrap();
    add(&mut on_primary, "third").await;
    for _ in 0..20 {
        assert_eq!(counted(&server).await, 3);
        assert_eq!(server.status(REPORT).await, 200);
    }
    let said = |text: &str| server.log().matches(text).count();
    assert!(eventually(Duration::from_secs(10), async || said("the replica does not answer") == 1).await);
    replica.resume().unwrap();
    assert!(eventually(Duration::from_secs(15), async || said("reads go to the replica") == 2).await);
    assert!(eventually(Duration::from_secs(10), async || counted(&server).await == 3).await);
    let mut on_replica = PgConnection::connect(replica.superuser_url()).await.unwrap();
    let sessions: i64 =
        sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'litespend'")
            .fetch_one(&mut on_replica)
            .await
            .unwrap();
    assert!(sessions > 0, "the server's sessions are on the replica");
    assert_eq!(said("panic"), 0);
    drop((server, on_replica, on_primary));
    replica.stop().unwrap();
    primary.stop().unwrap();
}

#[tokio::test]
async fn a_replica_that_never_was_there_changes_nothing() {
    let database = crate::support::database().await;
    let server =
        Server::on(database.url(), &["--database-url-read-replica", "postgres://nobody:secret@127.0.0.1:1/none"]);
    assert!(eventually(Duration::from_secs(10), async || server.log().contains("the replica does not answer")).await);
    for path in [TAGS, REPORT, "/spend/logs"] {
        assert_eq!(server.status(path).await, 200, "{path}");
    }
    assert!(!server.log().contains("secret"));
    let refused = crate::support::run(
        program()
            .args(["serve", "--port", "0", "--database-url-read-replica", "mysql://x"])
            .env("DATABASE_URL", database.url())
            .env("LITELLM_MASTER_KEY", MASTER_KEY),
    );
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("DATABASE_URL_READ_REPLICA"), "{}", refused.stderr);
}
