//! Answers are streamed: what the server needs does not depend on how large they are, nor how slowly they are taken.

use std::io::{Read, Write};

use futures_util::StreamExt;

use crate::support::{MASTER_KEY, Server, database};

#[tokio::test]
async fn an_answer_of_two_hundred_megabytes_needs_less_than_one_hundred() {
    let database = database().await;
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(database.url()).await.unwrap();
    sqlx::raw_sql(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", messages)
           SELECT 'r' || n, 'x', now(), now(), to_jsonb(repeat('x', 100000)) FROM generate_series(1, 2000) AS n"#,
    )
    .execute(&mut connection)
    .await
    .unwrap();
    let server = Server::on(database.url(), &[]);
    let before = server.memory("VmHWM");
    let mut length = 0_usize;
    let mut pieces = server.get("/spend/logs").await.bytes_stream();
    while let Some(piece) = pieces.next().await {
        length += piece.unwrap().len();
    }
    assert!(length > 200_000_000, "{length}");
    let peak = server.memory("VmHWM");
    println!("{length} bytes answered; resident at most {peak} kB, {before} kB before");
    assert!(peak < 100_000, "{peak} kB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_long_answers_slowly_leaves_connections_for_short_ones() {
    let database = database().await;
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(database.url()).await.unwrap();
    sqlx::raw_sql(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", messages, request_tags)
           SELECT 'r' || n, 'x', now(), now(), to_jsonb(repeat('x', 4000)), '["prod"]' FROM generate_series(1, 12000) AS n"#,
    )
    .execute(&mut connection)
    .await
    .unwrap();
    let server = Server::on(database.url(), &["--database-connections", "4", "--database-wait", "2"]);
    // More of them than there are connections; of each only the head is read.
    let request = format!("GET /spend/logs?limit=12000 HTTP/1.1\r\nHost: x\r\nApi-Key: {MASTER_KEY}\r\n\r\n");
    let slow: Vec<_> = (0..6)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    for mut stream in slow.iter().take(2) {
        let mut head = [0; 15];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
    }
    for _ in 0..20 {
        assert_eq!(server.status("/spend/tags").await, 200);
    }
    // Who waited has its turn when another one leaves.
    let mut slow = slow.into_iter();
    drop((slow.next(), slow.next()));
    let mut head = [0; 15];
    let waiting: Vec<_> = slow.collect();
    let mut answered = 0;
    for mut stream in &waiting {
        stream.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
        answered += usize::from(stream.read_exact(&mut head).is_ok());
    }
    assert_eq!(answered, 2, "half of the four connections are for long answers");
    assert_eq!(server.status("/spend/tags").await, 200);
}

#[tokio::test]
async fn memory_of_a_burst_is_given_back() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    let record = |number: usize| {
        let metadata: Vec<_> = (0..40).map(|n| format!("value {number} {n} of some length")).collect();
        serde_json::json!({ "model": "gpt-4o", "cost": 0.5, "metadata": { "values": metadata } })
    };
    let body = serde_json::json!({ "records": (0..2000).map(record).collect::<Vec<_>>() }).to_string();
    let before = server.memory("VmRSS");
    let client = reqwest::Client::new();
    let burst = (0..6).map(|_| {
        let request = client.post(server.url("/spend/usage")).header("x-api-key", MASTER_KEY);
        request.header("content-type", "application/json").body(body.clone()).send()
    });
    for answer in futures_util::future::join_all(burst).await {
        assert_eq!(answer.unwrap().status(), 200);
    }
    let peak = server.memory("VmHWM");
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(server.status("/spend/tags").await, 200);
    let after = server.memory("VmRSS");
    println!(
        "resident: {before} kB before, at most {peak} kB, {after} kB two seconds after {} kB",
        6 * body.len() / 1024
    );
    assert!(after < before + 60_000, "{before} kB before, {peak} kB at most, {after} kB after");
}
