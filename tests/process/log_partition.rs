//! `litespend log partition`, killed and run again while a server books.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;

use crate::support::{MASTER_KEY, Server, database, eventually, program, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_partitioned_while_a_server_books_although_the_command_is_killed() {
    let database = database().await;
    let url = database.url().to_owned();
    let pool = PgPool::connect(&url).await.unwrap();
    sqlx::raw_sql(concat!(
        "SET search_path = public;",
        include_str!("../fixtures/plain_log.sql"),
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime", "endTime", model)
           SELECT 'row-' || n, 'acompletion', 'key-' || n % 7, 0.25, n, timestamp '2026-01-01' + n * interval '3 minutes',
                  '2026-06-01', 'model-' || n % 3 FROM generate_series(1, 60000) AS n;
           SELECT litespend.attach()"#
    ))
    .execute(&pool)
    .await
    .unwrap();
    let count = async |query: &'static str| sqlx::query_scalar::<_, i64>(query).fetch_one(&pool).await.unwrap();
    let server = Server::on(&url, &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let booking = tokio::spawn({
        let (stop, address) = (Arc::clone(&stop), server.url("/spend/usage"));
        async move {
            let (client, mut booked) = (reqwest::Client::new(), 0_i64);
            while !stop.load(Ordering::Relaxed) {
                let record = json!({"model": "gpt-4o", "cost": 0.5, "idempotency_key": format!("while-{booked}")});
                let sent = client.post(&address).bearer_auth(MASTER_KEY).json(&record).send().await.unwrap();
                if sent.status() != 200 {
                    return Err(sent.text().await.unwrap());
                }
                booked += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(booked)
        }
    });
    let command = |arguments: &[&str]| {
        let mut command = program();
        command.args(["log", "partition"]).args(arguments).env("DATABASE_URL", &url);
        command
    };
    // Killed after some of the rows.
    let mut killed = command(&["--pause", "400"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let copied =
        r#"SELECT COALESCE(max((value ->> 'copied')::bigint), 0) FROM litespend.settings WHERE name = 'log_by_month'"#;
    assert!(eventually(Duration::from_secs(60), async || count(copied).await >= 10_000).await);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(
        count(r#"SELECT count(*) FROM pg_class WHERE relname = 'LiteLLM_SpendLogs' AND relkind = 'r'"#).await,
        1
    );
    let kept = count(copied).await;
    assert!((10_000..60_000).contains(&kept), "{kept}");
    // The session of the killed process, and its lock, are gone a moment later.
    let mut said = tokio::task::block_in_place(|| run(&mut command(&[])));
    for _ in 0..20 {
        if said.code == Some(0) {
            break;
        }
        assert!(said.stderr.contains("another session is partitioning the log"), "{}", said.stderr);
        tokio::time::sleep(Duration::from_millis(500)).await;
        said = tokio::task::block_in_place(|| run(&mut command(&[])));
    }
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout.contains("continuing after") && said.stdout.contains("partitioned by month"),
        "{}",
        said.stdout
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let booked = booking.await.unwrap().unwrap_or_else(|answer| panic!("{answer}: {}", server.log()));
    assert!(booked > 20, "{booked}");
    assert_eq!(count(r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#).await, 60_000 + booked);
    assert_eq!(
        count(r#"SELECT count(*) FROM pg_class WHERE relname = 'LiteLLM_SpendLogs' AND relkind = 'p'"#).await,
        1
    );
    let said = run(program().args(["log", "status"]).env("DATABASE_URL", &url));
    assert!(said.stdout.contains("LiteLLM_SpendLogs_2026_02"), "{}{}", said.stdout, said.stderr);
    let said = tokio::task::block_in_place(|| run(program().args(["rollups", "verify"]).env("DATABASE_URL", &url)));
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    let said = run(&mut command(&[]));
    assert_eq!((said.code, said.stdout.trim()), (Some(0), "the log is already partitioned"), "{}", said.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_a_litellm_is_left_alone() {
    let database = database().await;
    let pool = PgPool::connect(database.url()).await.unwrap();
    sqlx::raw_sql("CREATE TABLE public._prisma_migrations (id text)").execute(&pool).await.unwrap();
    let said = run(program().args(["log", "partition"]).env("DATABASE_URL", database.url()));
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("this database is LiteLLM's"), "{}", said.stderr);
}
