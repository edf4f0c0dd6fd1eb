//! Booking exactly once: server processes are killed in the middle of batches and others start in their place. In the
//! end every record counts once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::sums::{assert_consistent, rows};
use crate::support::{MASTER_KEY, Server, database};

const KEYS: usize = 20;
const BATCH: usize = 60;

async fn post(address: SocketAddr, path: &str, body: &Value) -> reqwest::Result<(u16, Value)> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build()?;
    let sent = client.post(format!("http://{address}{path}")).bearer_auth(MASTER_KEY).json(body).send().await?;
    Ok((sent.status().as_u16(), sent.json().await?))
}

/// Creates keys of users in teams, through the API as a script would.
async fn create_keys(server: &Server) {
    let make = async |path: &str, body: Value| {
        let (status, answer) = post(server.address, path, &body).await.unwrap();
        assert_eq!(status, 200, "{path}: {answer}");
    };
    for team in 0..3 {
        make("/team/new", json!({"team_id": format!("team-{team}"), "team_alias": format!("Team {team}")})).await;
    }
    for user in 0..5 {
        make("/user/new", json!({"user_id": format!("user-{user}"), "user_role": "internal_user"})).await;
    }
    for key in 0..KEYS {
        let owners = json!({"key": format!("sk-writer-number-{key:04}"), "user_id": format!("user-{}", key % 5),
                            "team_id": format!("team-{}", key % 3)});
        make("/key/generate", owners).await;
    }
}

/// The record with this number; it is the same at every call.
fn record(number: usize) -> Value {
    json!({"api_key": format!("sk-writer-number-{:04}", number % KEYS), "model": format!("model-{}", number % 4),
           "prompt_tokens": number % 1000, "completion_tokens": 7, "cost": 0.001 * (number % 50) as f64,
           "idempotency_key": format!("record-{number}"), "tags": [format!("tag-{}", number % 5), "all"],
           "end_user_id": format!("customer-{}", number % 11), "start_time": "2026-03-01T12:00:00Z"})
}

/// A batch that overlaps with the next one.
fn batch(number: usize) -> Value {
    let start = number * BATCH / 2;
    json!({"records": (start..start + BATCH).map(record).collect::<Vec<_>>()})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_counted_twice_when_servers_are_killed() {
    let database = database().await;
    let mut servers = [Server::on(database.url(), &[]), Server::on(database.url(), &[])];
    create_keys(&servers[0]).await;
    let addresses = Arc::new(Mutex::new([servers[0].address, servers[1].address]));
    let (next, cut) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    // Servers are killed for four seconds, or longer if they are slow to start, so that some are.
    let start = Instant::now();
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (addresses, next, cut) = (Arc::clone(&addresses), Arc::clone(&next), Arc::clone(&cut));
            let over = Arc::clone(&over);
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let address = addresses.lock().unwrap()[writer % 2];
                    match post(address, "/spend/usage", &batch(next.fetch_add(1, Ordering::Relaxed))).await {
                        Ok((200, answer)) => assert_eq!(answer["error"], 0, "{answer}"),
                        Ok((503, _)) => {}
                        Ok((status, answer)) => panic!("{status}: {answer}"),
                        Err(_) => {
                            cut.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            })
        })
        .collect();
    let mut killed = 0;
    while start.elapsed() < Duration::from_secs(if killed < 5 { 60 } else { 4 }) {
        tokio::time::sleep(Duration::from_millis(150 + 61 * (killed % 5))).await;
        let index = usize::try_from(killed).unwrap() % 2;
        servers[index].signal(Signal::SIGKILL);
        servers[index].exit(Duration::from_secs(10));
        servers[index] = Server::on(database.url(), &[]);
        addresses.lock().unwrap()[index] = servers[index].address;
        killed += 1;
    }
    over.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let batches = next.load(Ordering::Relaxed);
    let pool = PgPool::connect(database.url()).await.unwrap();
    // The rows booked so far are consistent, whichever server was killed.
    assert_consistent(&pool).await;
    let before = rows(&pool).await;
    // Everything is sent again, half of it to each server.
    let repeat = async |server: &Server, numbers: std::ops::Range<usize>| {
        for number in numbers {
            let (status, answer) = post(server.address, "/spend/usage", &batch(number)).await.unwrap();
            assert_eq!((status, &answer["error"]), (200, &json!(0)), "{answer}");
        }
    };
    tokio::join!(repeat(&servers[0], 0..batches / 2), repeat(&servers[1], batches / 2..batches));
    let records = i64::try_from((batches + 1) * BATCH / 2).unwrap();
    assert_eq!(rows(&pool).await, records);
    assert_consistent(&pool).await;
    let cut = cut.load(Ordering::Relaxed);
    println!("{killed} servers killed, {cut} requests cut off, {before} of {records} records booked before repeating");
    assert!(killed >= 5 && cut >= 5, "{killed} killed, {cut} cut off");
    pool.close().await;
}
