//! What the URLs of the database mean: the schema, the size of the pool, and the parameters of Prisma.

use std::time::{Duration, Instant};

use litespend::store::database::{Pooling, pooling};
use nix::sys::signal::Signal;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{AS_LITELLM, MASTER_KEY, Server, database, eventually, program, run};

fn with(url: &str, parameters: &str) -> String {
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}{parameters}")
}

#[tokio::test]
async fn the_schema_of_database_url_counts_although_the_connection_is_that_of_direct_url() {
    let database = database().await;
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    let rename = "ALTER SCHEMA public RENAME TO litellm; CREATE SCHEMA public";
    let row = r#"INSERT INTO litellm."LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime")
                 VALUES ('of-litellm', 'acompletion', '2026-03-01', '2026-03-01')"#;
    for statement in [AS_LITELLM, rename, row] {
        connection.execute(sqlx::raw_sql(statement)).await.unwrap();
    }
    let start = |direct: &str| {
        let mut command = program();
        // Nothing listens there: every connection is a direct one.
        command.env("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none?pgbouncer=true&schema=litellm");
        command.env("DIRECT_URL", direct).env("LITELLM_MASTER_KEY", MASTER_KEY);
        Server::start(command, &[])
    };
    for direct in [database.url().to_owned(), with(database.url(), "schema=public")] {
        let server = start(&direct);
        assert!(server.block.contains("LiteLLM's tables, left as they are"), "{}", server.block);
        let rows = server.get("/spend/logs?request_id=of-litellm").await.text().await.unwrap();
        assert!(rows.contains("of-litellm"), "{rows}");
    }
    let created = "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'litespend')";
    let created: i64 = sqlx::query_scalar(created).fetch_one(&mut connection).await.unwrap();
    assert_eq!(created, 0, "tables outside LiteLLM's schema");
}

#[tokio::test]
async fn the_pool_is_as_prismas_parameters_say_unless_a_flag_does() {
    let database = database().await;
    let url = with(database.url(), "connection_limit=3&pool_timeout=1&pgbouncer=true&connect_timeout=9");
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    let mut lock = connection.begin().await.unwrap();
    lock.execute(r#"LOCK TABLE "LiteLLM_SpendLogs" IN ACCESS EXCLUSIVE MODE"#).await.unwrap();
    let reads = async |server: &Server| {
        let started = Instant::now();
        let waiting: Vec<_> = (0..6)
            .map(|_| {
                let request = reqwest::Client::new().get(server.url("/spend/logs")).header("x-api-key", MASTER_KEY);
                tokio::spawn(request.timeout(Duration::from_secs(3)).send())
            })
            .collect();
        let mut refused = 0;
        for answer in waiting {
            refused += u32::from(answer.await.unwrap().is_ok_and(|answer| answer.status() == 503));
        }
        (refused, started.elapsed())
    };
    // Of three connections, reads of one key get two at most.
    let server = Server::on(&url, &[]);
    let named = "litespend ignores some parameters of the URL: connect_timeout, pgbouncer";
    assert!(eventually(Duration::from_secs(5), async || server.log().matches(named).count() == 1).await);
    let (refused, took) = reads(&server).await;
    assert!(refused >= 4, "{refused} in {took:?}");
    // It would wait for its reads, which wait for the lock.
    server.signal(Signal::SIGKILL);
    drop(server);
    let server = Server::on(&url, &["--database-connections", "20", "--database-wait", "60"]);
    assert_eq!(reads(&server).await.0, 0);
    lock.rollback().await.unwrap();
}

#[tokio::test]
async fn a_server_without_a_pooler_has_sessions_and_one_that_is_away_is_not_judged() {
    let database = database().await;
    let limit = Duration::from_secs(10);
    assert_eq!(pooling(database.url(), limit).await.unwrap(), Some(Pooling::Session));
    assert_eq!(pooling("postgresql://nobody@127.0.0.1:1/none", limit).await.unwrap(), None);
    assert!(pooling("mysql://nobody@127.0.0.1:1/none", limit).await.is_err());
    let said = run(program().args(["migrate", "--direct-url", "x"]).env("DATABASE_URL", database.url()));
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.starts_with("litespend: DIRECT_URL: not a PostgreSQL URL"), "{}", said.stderr);
}
