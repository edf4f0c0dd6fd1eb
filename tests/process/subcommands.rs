//! `migrate`, `openapi`, `metrics-reference`, `healthcheck`, help and version.

use crate::support::{AS_LITELLM, Directory, Server, database, program, run};

#[tokio::test]
async fn migrate_says_what_it_did() {
    let (database, directory) = (database().await, Directory::new());
    let said = run(program().arg("migrate").env("DATABASE_URL", database.url()));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("up to date") && said.stdout.starts_with("PostgreSQL "), "{}", said.stdout);

    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(database.url()).await.unwrap();
    sqlx::raw_sql(AS_LITELLM).execute(&mut connection).await.unwrap();
    let said = run(program().arg("migrate").env("DATABASE_URL", database.url()));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("LiteLLM's tables, nothing to do"), "{}", said.stdout);
    let server = Server::on(database.url(), &[]);
    assert!(server.block.contains("LiteLLM's tables, left as they are"), "{}", server.block);
    assert_eq!(server.status("/spend/tags").await, 200);
    let schema: Option<String> =
        sqlx::query_scalar("SELECT to_regnamespace('litespend')::text").fetch_one(&mut connection).await.unwrap();
    assert_eq!(schema, None);

    // The embedded database is created, migrated, and stopped again.
    let home = directory.path().join("home");
    let said = run(program().args(["migrate", "--data-dir"]).arg(&home));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("up to date"), "{}", said.stdout);
    assert!(!home.join("data/postmaster.pid").exists());
}

#[test]
fn openapi_prints_the_committed_document() {
    let said = run(program().arg("openapi"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml")).unwrap();
    assert!(said.stdout == committed, "openapi.yaml is out of date: cargo run -- openapi >openapi.yaml");
}

#[test]
fn metrics_reference_prints_the_committed_reference() {
    let said = run(program().arg("metrics-reference"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    assert!(
        said.stdout == committed,
        "docs/metrics.md is out of date: cargo run -- metrics-reference >docs/metrics.md"
    );
}

#[tokio::test]
async fn healthcheck_tells_ready_from_not_ready() {
    let database = database().await;
    let mut server = Server::on(database.url(), &["--host", "0.0.0.0"]);
    let port = server.address.port().to_string();
    let ask = || run(program().args(["healthcheck", "--host", "0.0.0.0", "--port", &port]));
    let said = ask();
    assert_eq!((said.code, said.stdout.trim()), (Some(0), "ready"), "{}", said.stderr);
    assert_eq!(run(program().arg("healthcheck").env("PORT", &port)).code, Some(0));
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.exit(std::time::Duration::from_secs(10));
    let said = ask();
    assert_eq!(said.code, Some(1));
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
}

#[test]
fn help_shows_no_secret_of_the_environment() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["migrate", "--help"], &["--version"]] {
        let mut command = program();
        command.env("LITELLM_MASTER_KEY", "sk-hunter2").env("DATABASE_URL", "postgres://u:hunter2@h/d");
        let said = run(command.args(arguments));
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert!(said.stdout.contains("litespend") && !said.stdout.contains("hunter2"), "{}", said.stdout);
    }
}
