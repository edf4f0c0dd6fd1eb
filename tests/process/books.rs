//! `litespend books` on databases that LiteLLM owns.

use std::path::Path;
use std::time::Duration;

use litespend::store::embedded_roles::local_postgres_options;
use private_postgres::{Durability, LocalPostgres, LocalPostgresOptions};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};

use crate::rollups::{REPORT, add, sums, traces};
use crate::support::{AS_LITELLM, Directory, MASTER_KEY, Run, Server, database, eventually, program, run};

const COUNT: &str = r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#;

fn litespend(url: &str, archive: &Path, arguments: &[&str]) -> Run {
    run(program().args(arguments).env("DATABASE_URL", url).env("LITESPEND_ARCHIVE_URL", archive))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn litellms_rows_and_closed_totals_stay_unless_it_is_insisted() {
    let (database, home) = (database().await, tempfile::tempdir().unwrap());
    let (url, archive) = (database.url(), home.path().join("archive"));
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AS_LITELLM).execute(&mut connection).await.unwrap();
    add(&mut connection, "r", 20).await;
    let litespend = |arguments: &[&str]| tokio::task::block_in_place(|| litespend(url, &archive, arguments));
    let said = litespend(&["books", "close", "--through", "2026-03-08"]);
    assert!(said.code == Some(2) && said.stderr.contains("rollups install"), "{said:?}");
    assert_eq!(litespend(&["rollups", "install"]).code, Some(0));
    let said = litespend(&["books", "close", "--through", "2026-03-08"]);
    assert!(said.code == Some(0) && said.stdout.contains("8 days closed, 160 rows"), "{said:?}");
    for arguments in [["--keep-days", "0"], ["--strip-after", "0"]] {
        let said = litespend(&[["books", "prune"], arguments].concat());
        assert!(said.code == Some(2) && said.stderr.contains("--prune-litellm-logs"), "{said:?}");
    }
    let said = litespend(&["rollups", "remove"]);
    assert!(said.code == Some(2) && said.stderr.contains("--forget-closed-days"), "{said:?}");
    assert_eq!(sqlx::query_scalar::<_, i64>(COUNT).fetch_one(&mut connection).await.unwrap(), 180);
    let server = Server::on(url, &[]);
    let before = sums(&server, REPORT).await;
    let said = litespend(&["books", "prune", "--keep-days", "0", "--prune-litellm-logs"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(sqlx::query_scalar::<_, i64>(COUNT).fetch_one(&mut connection).await.unwrap(), 20);
    assert_eq!(sums(&server, REPORT).await, before);
    assert_eq!(litespend(&["rollups", "remove"]).code, Some(2));
    assert_eq!(litespend(&["rollups", "rebuild"]).code, Some(0));
    assert_eq!(sums(&server, REPORT).await, before);
    let said = litespend(&["rollups", "remove", "--forget-closed-days"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(traces(&mut connection).await, 0);
    // What is left of the days is what the log has.
    assert_eq!(sums(&server, REPORT).await, 20.0 * 0.25);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_days_of_one_schema_are_not_touched_from_another() {
    let (database, home) = (database().await, tempfile::tempdir().unwrap());
    let (tenants, publics) = (home.path().join("tenant"), home.path().join("public"));
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::raw_sql(
        r#"DROP SCHEMA litespend CASCADE; CREATE TABLE public._prisma_migrations (id text);
           CREATE SCHEMA tenant; CREATE TABLE tenant._prisma_migrations (id text);
           CREATE TABLE tenant."LiteLLM_SpendLogs" (LIKE public."LiteLLM_SpendLogs" INCLUDING ALL);
           CREATE TABLE tenant."LiteLLM_DailyUserSpend" (LIKE public."LiteLLM_DailyUserSpend" INCLUDING ALL)"#,
    )
    .execute(&mut connection)
    .await
    .unwrap();
    add(&mut connection, "public", 20).await;
    connection.execute("SET search_path = tenant").await.unwrap();
    add(&mut connection, "tenant", 10).await;
    let separator = if database.url().contains('?') { '&' } else { '?' };
    let tenant = format!("{}{separator}schema=tenant", database.url());
    let litespend = |url: &str, archive: &Path, arguments: &[&str]| {
        tokio::task::block_in_place(|| litespend(url, archive, arguments))
    };
    assert_eq!(litespend(&tenant, &tenants, &["rollups", "install"]).code, Some(0));
    let said = litespend(&tenant, &tenants, &["books", "close", "--through", "2026-03-08"]);
    assert!(said.code == Some(0) && said.stdout.contains("8 days closed, 80 rows"), "{said:?}");
    for arguments in [
        &["close", "--through", "2026-03-09"][..],
        &["status"],
        &["verify"],
        &["prune", "--keep-days", "0", "--prune-litellm-logs"],
        &["reopen", "2026-03-03", "--why", "a test"],
    ] {
        let said = litespend(database.url(), &publics, &[&["books"], arguments].concat());
        assert!(said.code == Some(2) && said.stderr.contains("schema tenant"), "{arguments:?}: {said:?}");
    }
    // A server in the background neither.
    let server = Server::on(
        database.url(),
        &["--archive", publics.to_str().unwrap(), "--close-after", "2", "--prune-after", "3", "--prune-litellm-logs"],
    );
    let refused = eventually(Duration::from_secs(10), async || server.log().contains("cannot close the books"));
    assert!(refused.await, "{}", server.log());
    let rows: i64 = sqlx::query_scalar(r#"SELECT count(*) FROM public."LiteLLM_SpendLogs""#)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(rows, 180);
    let said = litespend(&tenant, &tenants, &["books", "verify"]);
    assert!(said.code == Some(0) && said.stdout.contains("8"), "{said:?}");
}

/// The settings of a store that is not there.
fn away(command: &mut std::process::Command) -> &mut std::process::Command {
    for (name, value) in [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "made-up"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
    ] {
        command.env(name, value);
    }
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_starts_while_its_archive_is_away() {
    let (database, home) = (database().await, tempfile::tempdir().unwrap());
    let (url, archive) = (database.url(), home.path().join("archive"));
    let mut connection = PgConnection::connect(url).await.unwrap();
    add(&mut connection, "r", 20).await;
    let said = tokio::task::block_in_place(|| litespend(url, &archive, &["books", "close", "--through", "2026-03-08"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = tokio::task::block_in_place(|| litespend(url, &archive, &["books", "prune", "--keep-days", "0"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    for more in [&[][..], &["--close-after", "2"]] {
        let mut command = program();
        away(command.env("DATABASE_URL", url).env("LITELLM_MASTER_KEY", MASTER_KEY));
        let arguments = [&["--archive", "s3://bucket/place"], more].concat();
        let server = tokio::task::block_in_place(|| Server::start(command, &arguments));
        assert!(server.log().contains("the archive is away"), "{}", server.log());
        assert!(!server.log().contains("hunter2"), "{}", server.log());
        // Reports need no archive. Rows of closed days do.
        assert!(sums(&server, REPORT).await > 0.0);
        assert_eq!(server.status("/spend/tags").await, 200);
        assert_eq!(server.status("/spend/logs?archive=false").await, 200);
        assert_eq!(server.status("/spend/logs").await, 503);
    }
    // What does not get better by itself is found out at once.
    for (place, part) in
        [("ftp://bucket/place", "the scheme ftp is unknown"), ("/dev/null/archive", "/dev/null/archive")]
    {
        for more in [&[][..], &["--close-after", "2"]] {
            let arguments = [&["serve", "--port", "0", "--archive", place], more].concat();
            let mut command = program();
            away(command.args(&arguments).env("DATABASE_URL", url).env("LITELLM_MASTER_KEY", MASTER_KEY));
            let said = tokio::task::block_in_place(|| run(&mut command));
            let is_named = said.stderr.lines().filter(|line| line.starts_with("litespend: ")).count() == 1;
            assert!(said.code == Some(2) && is_named && said.stderr.contains(part), "{said:?}");
        }
    }
}

/// Rows with the same start, whose IDs a dictionary orders otherwise than their bytes.
const DICTIONARY: &str = r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model)
                            SELECT id, 'acompletion', 'k1', 0.25, at, at, 'gpt-4o'
                            FROM unnest(array['a', 'B', 'c', 'D']) AS id, (SELECT timestamp '2026-03-02 10:00') AS times (at)"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_is_closed_although_its_index_has_another_order_than_the_database_says() {
    let home = Directory::new();
    let postgres = tokio::task::block_in_place(|| {
        LocalPostgres::start(LocalPostgresOptions {
            home: Some(home.path().join("postgres")),
            durability: Durability::Throwaway,
            ..local_postgres_options()
        })
    });
    let postgres = postgres.unwrap();
    let mut superuser = PgConnection::connect(postgres.superuser_url()).await.unwrap();
    let create = "CREATE DATABASE words OWNER litespend TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'";
    superuser.execute(create).await.unwrap();
    let options: PgConnectOptions = postgres.url().parse().unwrap();
    let url = options.database("words").to_url_lossy().to_string();
    let archive = home.path().join("archive");
    let litespend = |arguments: &[&str]| tokio::task::block_in_place(|| litespend(&url, &archive, arguments));
    let said = litespend(&["migrate"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute(DICTIONARY).await.unwrap();
    drop(connection);
    // As after an upgrade of the system: the index keeps the order in which it was made.
    superuser
        .execute(
            "UPDATE pg_database SET datlocprovider = 'c', datcollversion = NULL WHERE datname = 'words';
             ALTER DATABASE words SET enable_sort = off; ALTER DATABASE words SET enable_seqscan = off;
             ALTER DATABASE words SET enable_bitmapscan = off",
        )
        .await
        .unwrap();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let read = r#"SELECT string_agg(request_id, '') FROM (SELECT request_id FROM "LiteLLM_SpendLogs"
                  WHERE "startTime" >= '2026-03-02' AND "startTime" < '2026-03-03' ORDER BY "startTime", request_id) AS log"#;
    assert_eq!(sqlx::query_scalar::<_, String>(read).fetch_one(&mut connection).await.unwrap(), "aBcD");
    let said = litespend(&["books", "close", "--through", "2026-03-02"]);
    assert!(said.code == Some(0) && said.stdout.contains("1 days closed, 4 rows archived"), "{said:?}");
    postgres.stop().unwrap();
}
