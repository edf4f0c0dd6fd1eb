//! The server's memory stays bounded, whatever rows the database holds and however many clients read them at once.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use litespend::route_table;
use sqlx::AssertSqlSafe;

use crate::support::{MASTER_KEY, Server, database};

/// Most resident memory of the server, in kB.
const CEILING: u64 = 300_000;

/// Readers at the same time.
const READERS: usize = 8;

/// How much is stored and read. Even of the smaller size, the longest answers of [`READERS`] do not fit under the [`CEILING`].
struct Size {
    /// Bytes that one reader receives before it disconnects: more than the server buffers for any answer.
    taken: usize,
    /// Rows with 1 MB of metadata.
    rows: u32,
    /// Rows with a thousand tags of their own.
    tagged: u32,
}

/// Very large rows: 16 MB of metadata, 100 MB of messages, 1 MB of metadata many times, very many long tags and models.
fn statements(size: &Size) -> String {
    ROWS.replace("{rows}", &size.rows.to_string()).replace("{tagged}", &size.tagged.to_string())
}

const ROWS: &str = r#"
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", session_id, metadata)
    SELECT 'large-' || n, 'x', '2026-02-10 10:00:00', '2026-02-10 10:00:01', 'one', large
    FROM (SELECT jsonb_build_object('a', string_agg(md5(n::text), '')) AS large FROM generate_series(1, 500000) AS n) AS made,
         generate_series(1, 8) AS n;
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", session_id, messages, response)
    SELECT 'texts-' || n, 'x', '2026-02-11 10:00:00', '2026-02-11 10:00:01', 'one',
           jsonb_build_array(repeat('x', 100000000)), jsonb_build_array(repeat('y', 12000000))
    FROM generate_series(1, 2) AS n;
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", session_id, metadata)
    SELECT 'row-' || n, 'x', '2026-02-12 10:00:00', '2026-02-12 10:00:01', 'one',
           jsonb_build_object('a', repeat('x', 1000000)) FROM generate_series(1, {rows}) AS n;
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", request_tags)
    SELECT 'tags-' || n, 'x', '2026-02-09 10:00:00', '2026-02-09 10:00:01',
           (SELECT jsonb_agg('tag ' || n || ' ' || tag || repeat('t', 200)) FROM generate_series(1, 1000) AS tag)
    FROM generate_series(1, {tagged}) AS n;
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", model, spend)
    SELECT 'model-' || n, 'x', '2026-02-08 10:00:00', '2026-02-08 10:00:01', 'model ' || n || repeat('m', 200), 0.1
    FROM generate_series(1, 100000) AS n;
    INSERT INTO "LiteLLM_DailyUserSpend" (id, user_id, date, api_key, model, spend, updated_at)
    SELECT n::text, 'u', '2026-02-08', 'k', 'model ' || n || repeat('m', 200), 0.1, now()
    FROM generate_series(1, 100000) AS n;
"#;

/// A request that makes the route read as much as it can.
fn request(path: &str) -> String {
    let days = "start_date=2026-02-01&end_date=2026-02-28";
    let window = "start_date=2026-02-01%2000:00:00&end_date=2026-02-28%2023:59:59";
    match path {
        "/spend/logs" => path.to_owned(),
        "/spend/logs/ui/{request_id}" => "/spend/logs/ui/texts-1".to_owned(),
        "/spend/logs/ui" | "/spend/logs/v2" => format!("{path}?{window}&page_size=1000"),
        "/spend/logs/session/ui" => format!("{path}?session_id=one&page_size=100&page=2"),
        "/user/daily/activity/aggregated/model_top_keys" => format!("{path}?{days}&model_group=m"),
        "/team/spend/report" => format!("{path}?{days}&team_id=t"),
        "/docs/{*rest}" => "/docs/index.html".to_owned(),
        _ => format!("{path}?{days}&page_size=1000&group_by=team"),
    }
}

/// Reads an answer, but not more than `taken` bytes and a piece; returns its status and length.
async fn read(client: &reqwest::Client, url: &str, taken: usize) -> (u16, usize) {
    let answer = client.get(url).header("x-api-key", MASTER_KEY).send().await.unwrap();
    let status = answer.status().as_u16();
    let mut length = 0;
    let mut pieces = answer.bytes_stream();
    while let Some(Ok(piece)) = pieces.next().await {
        length += piece.len();
        if length > taken {
            break;
        }
    }
    (status, length)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_readers_of_the_largest_rows_need_less_than_three_hundred_megabytes() {
    let size = Size { taken: 40_000_000, rows: 300, tagged: 150 };
    assert!(READERS * size.taken > usize::try_from(CEILING * 1024).unwrap());
    read_every_route(&size).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes minutes: ./dev test-slow"]
async fn eight_readers_of_the_largest_rows_need_less_than_three_hundred_megabytes_in_full() {
    read_every_route(&Size { taken: 100_000_000, rows: 1000, tagged: 250 }).await;
}

async fn read_every_route(size: &Size) {
    let database = database().await;
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(database.url()).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statements(size))).execute(&mut connection).await.unwrap();
    let server = Server::on(database.url(), &[]);
    let client = reqwest::Client::new();
    let (mut over, mut highest) = (Vec::new(), (0, ""));
    for route in route_table::api().filter(|route| route.method.starts_with("GET")) {
        let url = server.url(&request(route.path));
        // Each route has a peak of its own, so wait until the memory of the previous route has been released.
        for _ in 0..20 {
            if server.memory("VmRSS") < 110_000 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").unwrap();
        let mut answers = BTreeMap::<u16, (usize, usize)>::new();
        let reading = (0..READERS).map(|_| read(&client, &url, size.taken));
        for (status, length) in futures_util::future::join_all(reading).await {
            assert_ne!(status, 500, "{url}");
            let answer = answers.entry(status).or_default();
            *answer = (answer.0 + 1, answer.1.max(length));
        }
        let peak = server.memory("VmHWM");
        println!("{}: at most {peak} kB; (status, (answers, bytes)): {answers:?}", route.path);
        assert!(
            !answers.contains_key(&404) || route.path == "/key/info",
            "{url}: the master key has no row, all else is there"
        );
        highest = highest.max((peak, route.path));
        if peak > CEILING {
            over.push(route.path);
        }
    }
    println!("resident at most {} kB, at {}", highest.0, highest.1);
    assert!(over.is_empty(), "{over:?}");
}
