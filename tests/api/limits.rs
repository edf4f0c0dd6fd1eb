//! What one request may use (bytes, time, connections), and the answer to a client that exceeds it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Method;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use litespend::clock::Clock;
use litespend::store::database::PoolLimits;
use serde_json::json;

use crate::support::{MASTER_KEY, TestApp, database, request, settings};

const ALL_READS: [&str; 6] = [
    "/spend/logs",
    "/spend/logs?start_date=2026-01-01&end_date=2026-01-02",
    "/spend/tags",
    "/global/spend/tags?start_date=2026-01-01&end_date=2026-01-02",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-01-02",
    "/user/daily/activity?start_date=2026-01-01&end_date=2026-01-02",
];

async fn with_time_limit(seconds: u64) -> TestApp {
    let mut settings = settings();
    settings.request_timeout = Duration::from_secs(seconds);
    TestApp::with(settings).await
}

#[tokio::test]
async fn a_body_over_one_mebibyte_is_413() {
    let app = TestApp::new().await;
    let body = |size: usize| json!({ "ip": "x".repeat(size - r#"{"ip":""}"#.len()) });
    assert_eq!(body(1024).to_string().len(), 1024);
    for (size, expected) in [(1024 * 1024, 422), (1024 * 1024 + 1, 413), (3 * 1024 * 1024, 413)] {
        let answer = app.post("/add/allowed_ip", MASTER_KEY, &body(size)).await;
        assert_eq!(answer.status, expected, "{size}");
        if expected == 413 {
            let error = answer.json();
            assert_eq!(error["error"]["type"], "invalid_request_error");
            assert!(error["error"]["message"].as_str().unwrap().contains("1048576"), "{error}");
        }
    }
    // This also holds if no length is declared, and the server does not read on past the limit.
    let piece = Bytes::from(vec![b' '; 64 * 1024]);
    let endless = stream::repeat_with(move || Ok::<_, Infallible>(piece.clone()));
    let builder = request(Method::POST, "/delete/allowed_ip", MASTER_KEY).header("content-type", "application/json");
    assert_eq!(app.send(builder.body(Body::from_stream(endless)).unwrap()).await.status, 413);
}

#[tokio::test]
async fn a_body_that_never_ends_is_504() {
    let app = with_time_limit(1).await;
    let start = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{"))]);
    let builder = request(Method::POST, "/add/allowed_ip", MASTER_KEY).header("content-type", "application/json");
    let started = Instant::now();
    let answer = app.send(builder.body(Body::from_stream(start.chain(stream::pending()))).unwrap()).await;
    assert_eq!(answer.status, 504);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn an_answer_that_does_not_begin_in_time_is_504_and_names_the_limit() {
    let app = with_time_limit(1).await;
    let other = app.another().await;
    let mut lock = other.pool.begin().await.unwrap();
    let tables = r#"LOCK TABLE "LiteLLM_SpendLogs", litespend.deltas, "LiteLLM_DailyUserSpend", "LiteLLM_VerificationToken", "LiteLLM_Config""#;
    sqlx::raw_sql(tables).execute(&mut *lock).await.unwrap();
    // All these reads wait for a locked table. Of the requests below, the one with `sk-some-key` waits in
    // authentication, and the last one for the row of the allow list.
    let reads = ALL_READS.iter().map(|path| (app.get(path, MASTER_KEY), *path));
    let (answers, paths): (Vec<_>, Vec<_>) = reads.unzip();
    let started = Instant::now();
    for (answer, path) in futures_util::future::join_all(answers).await.into_iter().zip(paths) {
        assert_eq!(answer.status, 504, "{path}");
        let error = answer.json();
        assert_eq!(error["error"]["message"], "The request took longer than the limit of 1 seconds.", "{path}");
        assert_eq!((&error["error"]["type"], &error["error"]["code"]), (&json!("timeout_error"), &json!("504")));
    }
    assert_eq!(app.get("/spend/tags", "sk-some-key").await.status, 504);
    assert_eq!(app.get("/get/allowed_ips", MASTER_KEY).await.status, 504);
    assert_eq!(app.post("/global/spend/reset", MASTER_KEY, &json!({})).await.status, 504);
    assert_eq!(app.post("/add/allowed_ip", MASTER_KEY, &json!({ "ip": "127.0.0.1" })).await.status, 504);
    assert!(started.elapsed() < Duration::from_secs(15));
    // Requests that need no table are answered meanwhile.
    assert_eq!(app.get("/health/readiness", MASTER_KEY).await.status, 200);
    assert_eq!(app.get("/health/liveliness", MASTER_KEY).await.status, 200);
    lock.rollback().await.unwrap();
    for path in ALL_READS {
        assert_eq!(app.get(path, MASTER_KEY).await.status, 200, "{path}");
    }
    assert_eq!(app.post("/add/allowed_ip", MASTER_KEY, &json!({ "ip": "127.0.0.1" })).await.status, 200);
}

#[tokio::test]
async fn every_connection_has_a_statement_timeout_and_speaks_utc() {
    let app = TestApp::new().await;
    let mut connections = Vec::new();
    for _ in 0..5 {
        let mut connection = app.pool.acquire().await.unwrap();
        let settings: (String, String, String, String) = sqlx::query_as(
            "SELECT current_setting('statement_timeout'), current_setting('timezone'),
                    current_setting('idle_in_transaction_session_timeout'), current_setting('search_path')",
        )
        .fetch_one(&mut *connection)
        .await
        .unwrap();
        assert_eq!((settings.0.as_str(), settings.1.as_str()), ("1min", "UTC"));
        assert_eq!((settings.2.as_str(), settings.3.as_str()), ("1min", "public"));
        connections.push(connection);
    }
}

#[tokio::test]
async fn a_statement_that_its_timeout_ends_is_504() {
    let app = TestApp::new().await;
    let other = app.another().await;
    let mut lock = other.pool.begin().await.unwrap();
    sqlx::raw_sql(r#"LOCK TABLE litespend.deltas, "LiteLLM_VerificationToken""#).execute(&mut *lock).await.unwrap();
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        // This ends the statement in the same way, and with the same code, as the timeout would.
        let ended: i64 = sqlx::query_scalar(
            "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&other.pool)
        .await
        .unwrap();
        assert!(ended >= 2);
    };
    let ((), answer, first, second) = tokio::join!(
        cancel,
        app.get("/spend/tags", MASTER_KEY),
        // Two requests that share one lookup.
        app.get("/spend/tags", "sk-one-key"),
        app.get("/spend/tags", "sk-one-key"),
    );
    for answer in [answer, first, second] {
        assert_eq!(answer.status, 504, "{}", answer.text);
        assert!(answer.text.contains("60 seconds"), "{}", answer.text);
    }
}

#[tokio::test]
async fn without_a_free_connection_the_answer_is_503_and_when_to_try_again() {
    let database = Arc::new(database().await);
    let limits = PoolLimits { connections: 2, wait: Duration::from_secs(1) };
    let app = TestApp::build(database, settings(), Clock::system(), limits).await;
    let held = [app.pool.acquire().await.unwrap(), app.pool.acquire().await.unwrap()];
    let started = Instant::now();
    let answers = futures_util::future::join_all(ALL_READS.iter().map(|path| app.get(path, MASTER_KEY))).await;
    for (answer, path) in answers.iter().zip(ALL_READS) {
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(answer.headers["retry-after"], "1", "{path}");
        assert_eq!(answer.json()["error"]["type"], "no_db_connection", "{path}");
    }
    // A key that must be looked up, also by several requests at once.
    for answer in futures_util::future::join_all((0..3).map(|_| app.get("/spend/tags", "sk-some-key"))).await {
        assert_eq!(answer.status, 503);
        assert_eq!(answer.headers["retry-after"], "1");
    }
    assert_eq!(app.get("/health/readiness", MASTER_KEY).await.status, 503);
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(app.get("/health/liveliness", MASTER_KEY).await.status, 200);
    drop(held);
    for path in ALL_READS {
        assert_eq!(app.get(path, MASTER_KEY).await.status, 200, "{path}");
    }
}
