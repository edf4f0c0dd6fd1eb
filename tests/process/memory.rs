//! Answers are streamed: what the server needs does not depend on how large they are.

use futures_util::StreamExt;

use crate::support::{Server, database};

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
