//! Booking exactly once: whatever is cut off, killed or repeated, every record counts once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Method;
use http_body_util::BodyExt;
use litespend::clock::Clock;
use litespend::http::router;
use litespend::http::state::AppState;
use litespend::prices::Prices;
use litespend::settings::ConfigFile;
use litespend::store::database;
use litespend::store::database::PoolLimits;
use litespend::store::embedded_roles::local_postgres_options;
use private_postgres::{LocalPostgres, LocalPostgresOptions};
use serde_json::{Value, json};
use sqlx::PgPool;
use tower::ServiceExt;

use crate::support::sums::{assert_consistent, rows};
use crate::support::{MASTER_KEY, database as test_database, owners, request, settings};

const KEYS: usize = 20;

/// Creates a server on a database.
fn server(pool: &PgPool) -> Router {
    let prices = Arc::new(Prices::new(&ConfigFile::default(), None, None).unwrap());
    router::build(AppState::new(pool.clone(), settings(), prices, Clock::system()).unwrap())
}

async fn post(server: Router, body: &Value) -> (u16, String) {
    let mut request = request(Method::POST, "/spend/usage", MASTER_KEY).body(Body::from(body.to_string())).unwrap();
    request.extensions_mut().insert(ConnectInfo(std::net::SocketAddr::from(([127, 0, 0, 1], 50000))));
    let response = server.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

/// The record with this number; it is the same at every call.
fn record(number: usize) -> Value {
    json!({"api_key": owners::key(number % KEYS), "model": format!("model-{}", number % 4), "custom_llm_provider": "openai",
           "prompt_tokens": number % 1000, "completion_tokens": 7, "cost": 0.001 * (number % 50) as f64,
           "idempotency_key": format!("record-{number}"), "tags": [format!("tag-{}", number % 5), "all"],
           "end_user_id": format!("customer-{}", number % 11), "status": if number.is_multiple_of(13) { "failure" } else { "success" },
           "start_time": format!("2026-03-{:02}T12:00:00Z", 1 + number % 9)})
}

/// A batch that overlaps with the batches next to it, in its own order.
fn batch(start: usize, size: usize, seed: usize) -> Value {
    let step = [1, 3, 7, 9][seed % 4];
    json!({"records": (0..size).map(|index| record(start + (index * step + seed) % size)).collect::<Vec<_>>()})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_writers_on_two_servers_never_wait_for_each_other_in_a_circle() {
    let database = test_database().await;
    let limits = PoolLimits { connections: 4, wait: Duration::from_secs(30) };
    let pools = [database::pool(database.url(), limits).unwrap(), database::pool(database.url(), limits).unwrap()];
    owners::create(&pools[0], KEYS).await;
    let servers = pools.each_ref().map(server);
    let seconds = std::env::var("LITESPEND_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let end = Instant::now() + Duration::from_secs(seconds);
    let next = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let (server, next) = (servers[writer % 2].clone(), Arc::clone(&next));
            tokio::spawn(async move {
                let mut recorded = 0;
                while Instant::now() < end {
                    // About two writers send each range of records at the same time.
                    let start = next.fetch_add(1, Ordering::Relaxed) / 2 * 40;
                    let (status, text) = post(server.clone(), &batch(start, 60, writer)).await;
                    assert_eq!(status, 200, "{text}");
                    let answer: Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(answer["error"], 0, "{text}");
                    recorded += answer["recorded"].as_i64().unwrap();
                }
                recorded
            })
        })
        .collect();
    let mut recorded = 0;
    for writer in writers {
        recorded += writer.await.unwrap();
    }
    assert_eq!(rows(&pools[0]).await, recorded, "each row was recorded for one of its senders");
    assert_consistent(&pools[0]).await;
    let deadlocks: i64 =
        sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            .fetch_one(&pools[0])
            .await
            .unwrap();
    assert_eq!(deadlocks, 0);
    for pool in pools {
        pool.close().await;
    }
}

/// PostgreSQL is killed repeatedly, connections are cut, and requests are abandoned half-way. Then everything is sent
/// again until it is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_counted_twice_when_postgresql_and_requests_are_killed() {
    let home = tempfile::Builder::new().prefix("litespend-once-").tempdir_in("/tmp").unwrap();
    let options = LocalPostgresOptions { home: Some(home.path().to_owned()), ..local_postgres_options() };
    let postgres = Arc::new(tokio::task::spawn_blocking(|| LocalPostgres::start(options).unwrap()).await.unwrap());
    let limits = PoolLimits { connections: 6, wait: Duration::from_secs(2) };
    let pool = litespend::store::database::connect(postgres.url(), limits).await.unwrap();
    owners::create(&pool, KEYS).await;
    let servers = [server(&pool), server(&pool)];

    // The test runs for six seconds, or longer if PostgreSQL is slow to restart, so that it is killed a few times.
    let start = Instant::now();
    let over = Arc::new(AtomicBool::new(false));
    let (sent, unanswered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (server, sent, unanswered) = (servers[writer % 2].clone(), Arc::clone(&sent), Arc::clone(&unanswered));
            let over = Arc::clone(&over);
            tokio::spawn(async move {
                let mut round = writer;
                while !over.load(Ordering::Relaxed) {
                    let start = sent.fetch_add(1, Ordering::Relaxed) * 50;
                    let body = batch(start, 100, writer);
                    round += 1;
                    // The request is abandoned after 1 to 50 ms, or awaited.
                    let patience = if round % 3 == 0 {
                        Duration::from_millis(1 + (round * 7 % 50) as u64)
                    } else {
                        Duration::from_secs(60)
                    };
                    match tokio::time::timeout(patience, post(server.clone(), &body)).await {
                        Ok((200, _)) => {}
                        Ok((503, text)) => {
                            assert!(text.contains("safe to send"), "{text}");
                            unanswered.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok((status, text)) => panic!("{status}: {text}"),
                        Err(_) => {
                            unanswered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            })
        })
        .collect();
    let killer = {
        let postgres = Arc::clone(&postgres);
        tokio::task::spawn_blocking(move || {
            let mut kills = 0;
            let enough = |kills| if kills < 3 { Duration::from_secs(60) } else { Duration::from_secs(6) };
            while start.elapsed() < enough(kills) {
                std::thread::sleep(Duration::from_millis(300 + 170 * (kills % 4)));
                if let Some(pid) = postgres.pid().filter(|_| postgres.is_running()) {
                    // SIGQUIT ends PostgreSQL without a checkpoint, like a crash. PostgreSQL then recovers from its
                    // write-ahead log.
                    let _ = std::process::Command::new("kill").args(["-QUIT", &pid.to_string()]).status();
                    kills += 1;
                }
            }
            over.store(true, Ordering::Relaxed);
            postgres.wait_until_running(Duration::from_secs(30));
            kills
        })
    };
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(killer.await.unwrap() >= 3);

    // All requests that were cut off are sent again, by every writer at once and twice.
    let batches = sent.load(Ordering::Relaxed);
    for server in servers.iter().chain(&servers) {
        for start in 0..batches {
            let (status, text) = post(server.clone(), &batch(start * 50, 100, start)).await;
            assert_eq!(status, 200, "{text}");
        }
    }
    assert_eq!(rows(&pool).await, batches as i64 * 50 + 50, "{} unanswered", unanswered.load(Ordering::Relaxed));
    assert_consistent(&pool).await;
    pool.close().await;
    drop(servers);
    tokio::task::spawn_blocking(move || drop(postgres)).await.unwrap();
}
