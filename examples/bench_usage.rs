//! Times booking usage through a running server with its embedded PostgreSQL, fsync on. Run by `./dev bench usage`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measuring program fails by panicking"
)]

#[path = "common/server.rs"]
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use litespend::identity::hash_key;
use litespend::store::database;
use litespend::store::database::PoolLimits;
use private_postgres::url_of_running;
use server::{MASTER_KEY, Server};
use sqlx::{Executor, PgPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const KEYS: u64 = 200;

struct Options {
    seconds: u64,
    rows: u64,
    singles: u64,
}

fn options() -> Options {
    let mut options = Options { seconds: 60, rows: 100_000, singles: 64 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse().ok()).expect("a number after each flag");
        match name.as_str() {
            "--seconds" => options.seconds = value,
            "--rows" => options.rows = value,
            "--singles" => options.singles = value,
            _ => panic!("flags: --seconds N --rows N --singles CLIENTS"),
        }
    }
    options
}

/// The host and port of a server.
fn host_of(server: &Server) -> &str {
    server.address.trim_start_matches("http://")
}

/// A client with one connection, which sends one request after another.
struct Client(TcpStream, Vec<u8>);

impl Client {
    async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream, Vec::new())
    }

    async fn book(&mut self, body: &str) {
        let head = format!(
            "POST /spend/usage HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {MASTER_KEY}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.0.write_all(head.as_bytes()).await.unwrap();
        self.0.write_all(body.as_bytes()).await.unwrap();
        self.1.clear();
        let mut buffer = [0; 64 * 1024];
        loop {
            let read = self.0.read(&mut buffer).await.unwrap();
            assert!(read > 0, "the server closed the connection");
            self.1.extend_from_slice(&buffer[..read]);
            if let Some(end) = complete(&self.1) {
                let text = String::from_utf8_lossy(&self.1[..end]);
                assert!(text.starts_with("HTTP/1.1 200"), "{text}");
                assert!(text.contains("\"error\":0}"), "{}", &text[text.len().saturating_sub(300)..]);
                return;
            }
        }
    }
}

/// The position of the end of an answer with a content length, once the whole answer has arrived.
fn complete(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&answer[..head]).unwrap().to_ascii_lowercase();
    let length: usize = text.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap();
    (answer.len() >= head + length).then_some(head + length)
}

fn record(number: u64) -> String {
    let key = number % KEYS;
    format!(
        r#"{{"api_key":"{}","model":"gpt-4o-{}","custom_llm_provider":"openai","usage":{{"prompt_tokens":{},"completion_tokens":{},"prompt_tokens_details":{{"cached_tokens":10}}}},"cost":{},"idempotency_key":"bench-{number:012}","tags":["team-{}","production"],"end_user_id":"customer-{}","session_id":"session-{}","start_time":"2026-03-{:02}T10:20:30.5Z","end_time":"2026-03-{:02}T10:20:32Z","metadata":{{"job":"nightly","attempt":{}}},"requester_ip_address":"10.0.0.7"}}"#,
        hash_key(&format!("sk-bench-{key}")),
        number % 7,
        number % 2000,
        number % 500,
        0.0001 * (number % 300) as f64,
        key % 10,
        number % 100,
        number % 1000,
        1 + number % 5,
        1 + number % 5,
        number % 3,
    )
}

fn batch(first: u64, size: u64) -> String {
    let records: Vec<String> = (first..first + size).map(record).collect();
    format!(r#"{{"records":[{}]}}"#, records.join(","))
}

async fn owners(pool: &PgPool) {
    for statement in [
        r#"INSERT INTO "LiteLLM_TeamTable" (team_id, members_with_roles) SELECT 'team-' || n, '[]' FROM generate_series(0, 9) n"#,
        r#"INSERT INTO "LiteLLM_UserTable" (user_id) SELECT 'user-' || n FROM generate_series(0, 49) n"#,
        r#"INSERT INTO "LiteLLM_VerificationToken" (token, user_id, team_id)
           SELECT encode(sha256(('sk-bench-' || n)::bytea), 'hex'), 'user-' || n % 50, 'team-' || n % 10
           FROM generate_series(0, 199) n"#,
    ] {
        pool.execute(statement).await.unwrap();
    }
}

/// Copies the booked rows with `COPY` into the table `bare`, which `create` makes; returns rows per second.
async fn copy(pool: &PgPool, create: &'static str) -> f64 {
    let mut connection = pool.acquire().await.unwrap();
    connection.execute("DROP TABLE IF EXISTS bare").await.unwrap();
    connection.execute(create).await.unwrap();
    let pieces: Vec<_> = {
        let stream = connection.copy_out_raw(r#"COPY "LiteLLM_SpendLogs" TO STDOUT"#).await.unwrap();
        stream.try_collect().await.unwrap()
    };
    let started = Instant::now();
    let mut input = connection.copy_in_raw("COPY bare FROM STDIN").await.unwrap();
    for piece in &pieces {
        input.send(piece.as_ref()).await.unwrap();
    }
    let rows = input.finish().await.unwrap();
    rows as f64 / started.elapsed().as_secs_f64()
}

/// `clients` clients send requests of `size` records until the time is over. Returns records and requests per second.
async fn load(server: &Server, next: &Arc<AtomicU64>, clients: u64, size: u64, time: Duration) -> (f64, f64) {
    let end = Instant::now() + time;
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (address, next) = (host_of(server).to_owned(), Arc::clone(next));
            tokio::spawn(async move {
                let mut client = Client::connect(&address).await;
                let mut requests = 0_u64;
                while Instant::now() < end {
                    let first = next.fetch_add(size, Ordering::Relaxed);
                    let body = if size == 1 { record(first) } else { batch(first, size) };
                    client.book(&body).await;
                    requests += 1;
                }
                requests
            })
        })
        .collect();
    let mut requests = 0;
    for task in futures_util::stream::iter(tasks).buffer_unordered(1000).collect::<Vec<_>>().await {
        requests += task.unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    ((requests * size) as f64 / seconds, requests as f64 / seconds)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let options = options();
    let home = tempfile::Builder::new().prefix("litespend-bench-").tempdir_in("/tmp").unwrap();
    let server = Server::start(&[("LITESPEND_DATA_DIR", home.path().to_str().unwrap())], &[]);
    let url = url_of_running(home.path(), Duration::from_secs(5)).expect("the server's PostgreSQL");
    let pool = database::pool(&url, PoolLimits { connections: 2, wait: Duration::from_secs(30) }).unwrap();
    owners(&pool).await;

    let next = Arc::new(AtomicU64::new(0));
    let bodies: Vec<String> = (0..options.rows.div_ceil(10_000)).map(|place| batch(place * 10_000, 10_000)).collect();
    next.store(bodies.len() as u64 * 10_000, Ordering::Relaxed);
    let mut client = Client::connect(host_of(&server)).await;
    client.book(&batch(u64::from(u32::MAX), 1000)).await;
    let started = Instant::now();
    for body in &bodies {
        client.book(body).await;
    }
    let bulk = (bodies.len() * 10_000) as f64 / started.elapsed().as_secs_f64();
    drop(bodies);
    let indexed = copy(&pool, r#"CREATE TABLE bare (LIKE "LiteLLM_SpendLogs" INCLUDING ALL)"#).await;
    let heap = copy(&pool, r#"CREATE TABLE bare (LIKE "LiteLLM_SpendLogs")"#).await;
    pool.execute("DROP TABLE bare").await.unwrap();
    println!("| booking | rows/s | |");
    println!("|---|---|---|");
    println!("| plain COPY into the bare table, its indexes on it | {indexed:.0} | |");
    println!("| plain COPY into the bare table without indexes | {heap:.0} | |");
    println!(
        "| POST /spend/usage, one client, 10,000 records a request | {bulk:.0} | {:.0} % of COPY |",
        bulk / indexed * 100.0
    );

    let time = Duration::from_secs(options.seconds);
    let before = server.memory("VmRSS");
    let _ = load(&server, &next, 4, 1000, time / 10).await;
    let warm = server.memory("VmRSS");
    let (records, _) = load(&server, &next, 4, 1000, time).await;
    let after = server.memory("VmRSS");
    println!(
        "| four clients, 1,000 records a request, {} s | {records:.0} | memory {before:.0} MiB before, {warm:.0} MiB warm, {after:.0} MiB at the end |",
        options.seconds
    );
    let clients = options.singles;
    let (singles, _) = load(&server, &next, clients, 1, time / 4).await;
    println!("| {clients} clients, single records | {singles:.0} | memory {:.0} MiB |", server.memory("VmRSS"));
    let rows: i64 = sqlx::query_scalar(r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#).fetch_one(&pool).await.unwrap();
    println!("\n{rows} rows in the log; fsync on.");
    pool.close().await;
}
