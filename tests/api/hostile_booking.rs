//! Lying keys next to an honest feed: whatever they send under the feed's ids, and in whatever order the records
//! arrive, the feed's figures stay its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use litespend::identity::hash_key;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sqlx::FromRow;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::randomness::seed;
use crate::support::sums::assert_consistent;
use crate::support::{TestApp, insert, owners};

const FEED: &str = "sk-honest-feed";
/// Number of the feed's records.
const RECORDS: usize = 400;
/// The keys that the feed books for. The first two belong to the feed alone, the third is also a liar's own.
const HONEST_KEYS: [usize; 3] = [0, 3, 1];
/// The keys that lie. The second one has a user and a team that the feed never books for.
const LIARS: [usize; 2] = [1, 2];

/// USD of an honest record. Sums of these amounts are exact in any order.
fn cost(number: usize) -> f64 {
    (1 + number % 97) as f64 / 1024.0
}

fn key_of(number: usize) -> usize {
    HONEST_KEYS[number % HONEST_KEYS.len()]
}

fn day(number: usize) -> String {
    format!("2026-03-{:02}", 1 + number % 5)
}

fn id(number: usize) -> String {
    format!("call-{number}")
}

/// The honest record with this number; it is the same at every call.
fn record(number: usize) -> Value {
    json!({"api_key": owners::key(key_of(number)), "model": "gpt-4o", "custom_llm_provider": "openai",
           "prompt_tokens": number, "completion_tokens": 3, "cost": cost(number), "idempotency_key": id(number),
           "tags": ["prod"], "end_user_id": "customer", "start_time": format!("{}T12:00:00Z", day(number))})
}

/// Sends a request and reads its answer.
async fn post(address: SocketAddr, path: &str, key: &str, body: &Value) -> (u16, Value) {
    let sent = reqwest::Client::new().post(format!("http://{address}{path}")).bearer_auth(key).json(body).send();
    let answer = sent.await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Sends a request or a part of it, and disconnects without reading the answer.
async fn cut_off(address: SocketAddr, key: &str, body: &Value, random: &mut StdRng) {
    let body = body.to_string();
    let head = format!(
        "POST /spend/usage HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let whole = format!("{head}{body}");
    let end = if random.random_bool(0.5) { whole.len() } else { random.random_range(1..whole.len()) };
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(&whole.as_bytes()[..end]).await;
    if random.random_bool(0.5) {
        // Disconnect late enough for the transaction to be running.
        let wait = Duration::from_micros(random.random_range(0..8_000));
        let _ = tokio::time::timeout(wait, stream.read(&mut [0; 16])).await;
    }
}

/// A liar's request about one of the feed's ids: its path and record.
fn lie(own: usize, random: &mut StdRng) -> (&'static str, Value) {
    let number = random.random_range(0..RECORDS);
    let plain = json!({"model": "gpt-4o", "prompt_tokens": random.random_range(0..50), "idempotency_key": id(number)});
    let with = |fields: Value| {
        let mut record = plain.clone();
        record.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        record
    };
    const OWN: &str = "/spend/usage";
    match random.random_range(0..14) {
        // An exact copy of the honest record.
        0 => (OWN, record(number)),
        1 => (OWN, with(json!({"cost": 0}))),
        2 => (OWN, with(json!({"cost": 9_999.0}))),
        3 => (OWN, with(json!({"cost": 1e300}))),
        4 => (OWN, with(json!({"cost": -1.0}))),
        5 => (OWN, with(json!({"api_key": owners::key(key_of(number))}))),
        6 => (OWN, with(json!({"api_key": hash_key(&owners::key(0)), "cost": cost(number)}))),
        7 => (
            OWN,
            with(json!({"metadata": {"user_api_key_user_id": "user-0", "user_api_key_team_id": "team-0",
                                            "user_api_key": hash_key(&owners::key(0))}})),
        ),
        8 => (OWN, with(json!({"user_id": "user-0", "team_id": "team-0"}))),
        9 => (OWN, with(json!({"prompt_tokens": 90_000_000}))),
        10 => (
            OWN,
            with(
                json!({"tags": ["prod"], "end_user_id": "customer", "start_time": format!("{}T12:00:00Z", day(number))}),
            ),
        ),
        11 => (OWN, with(json!({"api_key": owners::key(own)}))),
        12 => {
            let payload = json!({"id": id(number), "model": "gpt-4o", "response_cost": 0.0, "prompt_tokens": 1,
                                 "completion_tokens": 0, "total_tokens": 1, "status": "success",
                                 "startTime": 1_772_366_400.0, "endTime": 1_772_366_401.0,
                                 "metadata": {"user_api_key_hash": hash_key(&owners::key(0)), "user_api_key_user_id": "user-0"}});
            ("/spend/usage/litellm", json!([payload]))
        }
        _ => (OWN, plain),
    }
}

/// Sends lies until stopped; returns how many of its records the answers call recorded.
async fn lie_on(address: SocketAddr, own: usize, mut random: StdRng, stop: Arc<AtomicBool>) -> (usize, usize) {
    let (key, mut recorded, mut refused) = (owners::key(own), 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let (path, mut body) = lie(own, &mut random);
        if path == "/spend/usage" && random.random_bool(0.4) {
            // Several records in one request, with the same id more than once among them.
            let mut records: Vec<Value> = (0..random.random_range(1..6)).map(|_| lie(own, &mut random).1).collect();
            records.retain(Value::is_object);
            records.extend([body.clone(), body.clone()]);
            if random.random_bool(0.5) {
                body["completion_tokens"] = json!(1);
                records.push(body);
            }
            records.shuffle(&mut random);
            body = json!({ "records": records });
        }
        if path == "/spend/usage" && random.random_bool(0.2) {
            cut_off(address, &key, &body, &mut random).await;
            continue;
        }
        let (status, answer) = post(address, path, &key, &body).await;
        assert!(status < 500, "{status}: {answer}\n{body}");
        for result in answer["results"].as_array().into_iter().flatten() {
            match result["status"].as_str().unwrap() {
                "recorded" => recorded += 1,
                "error" => refused += 1,
                _ => {}
            }
            assert!(result["spend"].as_f64().unwrap_or_default() < 1_000.0, "{answer}");
        }
    }
    (recorded, refused)
}

/// Sends the records in pieces until each was answered. Some pieces are sent again, some are cut off in the middle.
/// Returns the rows that the records became.
async fn feed(address: SocketAddr, mut random: StdRng) -> BTreeMap<usize, String> {
    let mut waiting: Vec<usize> = (0..RECORDS).collect();
    waiting.shuffle(&mut random);
    let mut rows = BTreeMap::new();
    while !waiting.is_empty() {
        let size = random.random_range(1..=12).min(waiting.len());
        let mut piece: Vec<usize> = waiting[waiting.len() - size..].to_vec();
        // Some records that were sent before.
        piece.extend((0..random.random_range(0..4)).map(|_| random.random_range(0..RECORDS)));
        let body = json!({"records": piece.iter().copied().map(record).collect::<Vec<_>>()});
        if random.random_bool(0.25) {
            cut_off(address, FEED, &body, &mut random).await;
            continue;
        }
        let (status, answer) = post(address, "/spend/usage", FEED, &body).await;
        assert_eq!((status, &answer["error"]), (200, &json!(0)), "{answer}");
        for (number, result) in piece.iter().zip(answer["results"].as_array().unwrap()) {
            assert_eq!(result["spend"], json!(cost(*number)), "{result}");
            let row = result["request_id"].as_str().unwrap().to_owned();
            let before = rows.insert(*number, row.clone());
            assert!(before.is_none_or(|before| before == row), "record {number} is two rows");
        }
        waiting.retain(|number| !rows.contains_key(number));
        tokio::time::sleep(Duration::from_micros(random.random_range(0..5_000))).await;
    }
    rows
}

#[derive(FromRow)]
struct Row {
    request_id: String,
    api_key: String,
    spend: f64,
    prompt_tokens: i32,
    user: String,
    team_id: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn liars_change_nothing_of_what_an_honest_feed_books() {
    let app = TestApp::new().await;
    owners::create(&app.pool, 6).await;
    let row = json!([{"token": hash_key(FEED), "permissions": {"book_usage": true}}]);
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_VerificationToken", &row).await;
    let address = app.listen().await;
    let mut random = StdRng::seed_from_u64(seed());
    let stop = Arc::new(AtomicBool::new(false));
    let liars = LIARS.map(|own| {
        let random = StdRng::from_rng(&mut random);
        tokio::spawn(lie_on(address, own, random, Arc::clone(&stop)))
    });
    let booked =
        tokio::time::timeout(Duration::from_secs(120), feed(address, StdRng::from_rng(&mut random))).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    for liar in liars {
        let (recorded, refused) = liar.await.unwrap();
        println!("a liar: {recorded} of its own recorded, {refused} refused");
        assert!(recorded > 0 && refused > 0, "it has tried");
    }
    // The transactions of cut-off requests must end before anything is counted.
    tokio::time::sleep(Duration::from_millis(500)).await;

    // Sent again, every record still maps to the row that it became.
    let all = json!({"records": (0..RECORDS).map(record).collect::<Vec<_>>()});
    let (status, answer) = post(address, "/spend/usage", FEED, &all).await;
    assert_eq!((status, &answer["duplicate"]), (200, &json!(RECORDS)), "{answer}");
    for (number, result) in answer["results"].as_array().unwrap().iter().enumerate() {
        assert_eq!(result["request_id"], json!(booked[&number]));
    }
    let rows: Vec<Row> =
        sqlx::query_as(r#"SELECT request_id, api_key, spend, prompt_tokens, "user", team_id FROM "LiteLLM_SpendLogs""#)
            .fetch_all(&app.pool)
            .await
            .unwrap();
    let by_id: BTreeMap<&str, &Row> = rows.iter().map(|row| (row.request_id.as_str(), row)).collect();
    assert_eq!(by_id.len(), rows.len());
    for (number, id) in &booked {
        let (row, key) = (by_id[id.as_str()], key_of(*number));
        assert_eq!((row.spend, row.prompt_tokens), (cost(*number), i32::try_from(*number).unwrap()), "{id}");
        assert_eq!(row.api_key, hash_key(&owners::key(key)), "{id}");
        assert_eq!(
            (row.user.as_str(), row.team_id.as_str()),
            (&*format!("user-{}", key % 5), &*format!("team-{}", key % 3))
        );
    }
    let ids: std::collections::BTreeSet<&String> = booked.values().collect();
    assert_eq!(ids.len(), RECORDS, "each record is a row of its own");
    for row in rows.iter().filter(|row| !ids.contains(&row.request_id)) {
        assert!(LIARS.iter().any(|own| row.api_key == hash_key(&owners::key(*own))), "{} is no liar's", row.request_id);
    }

    // A key, a user, a team and days that belong to the feed alone.
    let sum = |rule: &dyn Fn(usize) -> bool| -> f64 { (0..RECORDS).filter(|number| rule(*number)).map(cost).sum() };
    let number = async |query: &'static str, id: &str| -> f64 {
        sqlx::query_scalar(query).bind(id).fetch_one(&app.pool).await.unwrap()
    };
    for key in [0, 3] {
        let expected = sum(&|number| key_of(number) == key);
        let (token, user) = (hash_key(&owners::key(key)), format!("user-{key}"));
        for (query, id) in [
            (r#"SELECT spend FROM "LiteLLM_VerificationToken" WHERE token = $1"#, &token),
            (r#"SELECT sum(spend) FROM "LiteLLM_SpendLogs" WHERE api_key = $1"#, &token),
            (r#"SELECT spend FROM "LiteLLM_UserTable" WHERE user_id = $1"#, &user),
            (r#"SELECT sum(spend) FROM "LiteLLM_DailyUserSpend" WHERE user_id = $1"#, &user),
            (r#"SELECT sum(spend) FROM "LiteLLM_DailyTeamSpend" WHERE api_key = $1"#, &token),
        ] {
            assert_eq!(number(query, id).await, expected, "{query} {id}");
        }
        let requests = r#"SELECT sum(api_requests)::float8 FROM "LiteLLM_DailyUserSpend" WHERE user_id = $1"#;
        assert_eq!(number(requests, &user).await, (0..RECORDS).filter(|number| key_of(*number) == key).count() as f64);
    }
    let expected = sum(&|number| key_of(number) != 1);
    assert_eq!(number(r#"SELECT spend FROM "LiteLLM_TeamTable" WHERE team_id = $1"#, "team-0").await, expected);
    for first in 0..5 {
        let expected = sum(&|number| key_of(number) != 1 && number % 5 == first);
        let query = r#"SELECT sum(spend) FROM "LiteLLM_DailyTeamSpend" WHERE team_id = 'team-0' AND date = $1"#;
        assert_eq!(number(query, &day(first)).await, expected, "{}", day(first));
    }
    // Where a liar shares key, user, team, customer and tag with the feed, only its own rows are added.
    assert_consistent(&app.pool).await;
}
