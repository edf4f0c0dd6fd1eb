//! Answers are streamed: the memory that the server needs depends neither on their size nor on earlier requests.

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
