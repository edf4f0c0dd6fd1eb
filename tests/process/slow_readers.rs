//! Clients that receive large answers slowly, not at all, or disconnect: none of them holds a database connection, and
//! meanwhile all other clients are served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use sqlx::{Connection, Executor, PgConnection};

use crate::cluster::TestDatabase;
use crate::http2;
use crate::slow_clients::others_are_served;
use crate::support::{MASTER_KEY, Server, database};

/// A database with `rows` rows of 4 kB, each later than the one before.
async fn database_with(rows: i32) -> (TestDatabase, PgConnection) {
    let database = database().await;
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::query(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", messages, request_tags)
           SELECT 'r' || n, 'x', now() - n * interval '1 second', now(), to_jsonb(repeat('x', 4000)), '["prod"]'
           FROM generate_series(1, $1) AS n"#,
    )
    .bind(rows)
    .execute(&mut connection)
    .await
    .unwrap();
    (database, connection)
}

/// The statements that the server's database sessions are running, except those of its own background work.
async fn busy(connection: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT state || ': ' || left(query, 200) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
           AND application_name = 'litespend' AND state <> 'idle' AND query NOT LIKE '%litespend.%'
           -- The look at the default partition.
           AND query NOT LIKE '%AS few'",
    )
    .fetch_all(connection)
    .await
    .unwrap()
}

/// Waits until all of the server's database sessions are idle.
async fn all_rest(connection: &mut PgConnection, limit: Duration) {
    let started = Instant::now();
    loop {
        let busy = busy(connection).await;
        if busy.is_empty() {
            return;
        }
        assert!(started.elapsed() < limit, "backends are still busy: {busy:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The log lines of requests that failed here.
fn failures(server: &Server) -> String {
    server.log().lines().filter(|line| line.contains(" 500 ") || line.contains("cause")).collect::<Vec<_>>().join("\n")
}

fn ask(server: &Server, path: &str) -> TcpStream {
    let mut stream = server.connect();
    stream
        .write_all(
            format!("GET {path} HTTP/1.1\r\nHost: x\r\nApi-Key: {MASTER_KEY}\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .unwrap();
    stream
}

#[tokio::test]
async fn who_takes_large_answers_slowly_holds_no_connection() {
    let (database, mut connection) = database_with(12_000).await;
    let server = Server::on(database.url(), &["--database-connections", "6", "--database-wait", "5"]);
    let mut first = ask(&server, "/spend/logs?limit=12000");
    let mut head = [0; 15];
    first.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let key = [("x-api-key", MASTER_KEY)];
    let requests: Vec<u8> = (0..10).flat_map(|n| http2::get(2 * n + 1, "/spend/logs?limit=12000", &key)).collect();
    let closed_window = http2::connect(server.address, 0, &requests);
    // More clients than there are connections. Each of them reads only a little.
    let mut slow: Vec<_> = (0..20).map(|_| ask(&server, "/spend/logs?limit=12000")).collect();
    for _ in 0..10 {
        others_are_served(&server).await;
        for stream in &mut slow {
            stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            let _ = stream.read(&mut [0; 2000]);
        }
    }
    all_rest(&mut connection, Duration::from_secs(60)).await;
    println!("resident: {} kB with 30 answers of 50 MB that are taken slowly", server.memory("VmHWM"));
    assert!(server.memory("VmHWM") < 200_000);
    others_are_served(&server).await;
    // An answer that was read ahead arrives completely.
    drop((slow, closed_window));
    first.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut taken = 0;
    let mut buffer = vec![0; 1 << 20];
    while taken < 48_000_000 {
        let count = first.read(&mut buffer).unwrap();
        assert!(count > 0, "the answer ends after {taken} bytes");
        taken += count;
    }
    others_are_served(&server).await;
}

#[tokio::test]
async fn without_room_on_disk_half_of_the_connections_wait_for_slow_clients_and_not_for_long() {
    let (database, mut connection) = database_with(12_000).await;
    let server = Server::on(database.url(), &["--database-connections", "6", "--spool-total-mb", "0"]);
    let slow: Vec<_> = (0..12).map(|_| ask(&server, "/spend/logs?limit=12000")).collect();
    for _ in 0..10 {
        others_are_served(&server).await;
        assert!(busy(&mut connection).await.len() <= 4);
    }
    all_rest(&mut connection, Duration::from_secs(25)).await;
    // An answer that was cut short ends without its last chunk.
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.ends_with(b"0\r\n\r\n") || answer.starts_with(b"HTTP/1.1 429"));
    }
    others_are_served(&server).await;
}

#[tokio::test]
async fn hang_ups_cost_nobody_else_an_answer_and_no_backend() {
    let (database, mut connection) = database_with(20_000).await;
    let server = Server::on(database.url(), &["--database-connections", "6"]);
    others_are_served(&server).await;
    let paths = [
        "/spend/logs?limit=20000",
        "/spend/logs/ui?start_date=2020-01-01%2000:00:00&end_date=2036-01-01%2000:00:00&page_size=100",
        "/spend/tags",
        "/global/spend/report?start_date=2026-01-01&end_date=2036-12-31&group_by=customer",
        "/global/activity?start_date=2020-01-01&end_date=2036-12-31",
        "/user/daily/activity/aggregated?start_date=2026-01-01&end_date=2026-12-31",
    ];
    let before: i32 =
        sqlx::query_scalar("SELECT max(pid) FROM pg_stat_activity").fetch_one(&mut connection).await.unwrap();
    let address = server.address;
    let ended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flood: Vec<_> = (0..4)
        .map(|worker: usize| {
            let ended = ended.clone();
            std::thread::spawn(move || {
                let mut count = 0;
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    let Ok(mut stream) = TcpStream::connect(address) else { continue };
                    let path = paths[(count + worker) % paths.len()];
                    let _ = stream.write_all(
                        format!("GET {path} HTTP/1.1\r\nHost: x\r\nApi-Key: {MASTER_KEY}\r\n\r\n").as_bytes(),
                    );
                    std::thread::sleep(Duration::from_millis((count % 7) as u64));
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut honest = 0;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(6) {
        for path in ["/health/readiness", "/spend/logs?limit=1"] {
            let answer = server.get(path).await;
            assert_eq!(answer.status(), 200, "{path}: {}\n{}", answer.text().await.unwrap(), failures(&server));
            honest += 1;
        }
    }
    ended.store(true, std::sync::atomic::Ordering::Relaxed);
    let hang_ups: usize = flood.into_iter().map(|worker| worker.join().unwrap()).sum();
    all_rest(&mut connection, Duration::from_secs(10)).await;
    let backends: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'litespend'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let sessions: i64 = sqlx::query_scalar("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    println!(
        "{hang_ups} hang-ups beside {honest} honest reads; {sessions} sessions in all, {backends} open, pids from {before}"
    );
    assert!(hang_ups > 200 && sessions < 60, "{hang_ups} hang-ups made {sessions} sessions");
}

#[tokio::test]
async fn a_read_that_was_told_504_runs_no_longer() {
    let (database, mut connection) = database_with(10).await;
    let server = Server::on(database.url(), &["--request-timeout", "1"]);
    let mut locking = PgConnection::connect(database.url()).await.unwrap();
    locking
        .execute(r#"BEGIN; LOCK TABLE "LiteLLM_SpendLogs", "LiteLLM_DailyUserSpend" IN ACCESS EXCLUSIVE MODE"#)
        .await
        .unwrap();
    for path in [
        "/spend/logs?limit=5",
        "/spend/logs/v2?start_date=2020-01-01%2000:00:00&end_date=2036-01-01%2000:00:00",
        "/global/activity?start_date=2020-01-01&end_date=2036-12-31",
        "/user/daily/activity?start_date=2026-01-01&end_date=2026-12-31",
        "/user/daily/activity/aggregated?start_date=2026-01-01&end_date=2026-12-31",
    ] {
        assert_eq!(server.status(path).await, 504, "{path}");
        all_rest(&mut connection, Duration::from_secs(3)).await;
    }
    locking.execute("ROLLBACK").await.unwrap();
    others_are_served(&server).await;
}
