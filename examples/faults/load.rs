//! The load while faults happen: feeds that book and record what was acknowledged, and readers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::servers::MASTER_KEY;

/// Feeds that use the master key, in addition to one feed for each virtual key.
const TRUSTED_FEEDS: u64 = 2;
const READERS: u64 = 2;

/// Virtual keys that book for themselves.
pub(crate) const KEYS: [&str; 2] = ["sk-faults-key-0001", "sk-faults-key-0002"];
/// The keys that the trusted feeds book for, each with its user and team.
pub(crate) const OWNED: [(&str, &str, &str); 5] = [
    ("sk-faults-key-0001", "user-a", "team-a"),
    ("sk-faults-key-0002", "user-b", "team-a"),
    ("sk-faults-key-0003", "user-c", "team-b"),
    ("sk-faults-key-0004", "user-a", "team-c"),
    ("sk-faults-key-0005", "user-b", "team-b"),
];
pub(crate) const TEAMS: [&str; 3] = ["team-a", "team-b", "team-c"];
pub(crate) const USERS: [&str; 3] = ["user-a", "user-b", "user-c"];

/// The reads that run at the same time.
const READS: [&str; 7] = [
    "/global/spend/report?start_date=2026-01-01&end_date=2026-02-28",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-02-28&group_by=customer",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-02-28&group_by=api_key",
    "/global/spend/tags?start_date=2026-01-01&end_date=2026-02-28",
    "/spend/logs?start_date=2026-01-01&end_date=2026-02-28",
    "/user/daily/activity/aggregated?start_date=2026-01-01&end_date=2026-02-28",
    "/spend/logs/ui?start_date=2026-01-01%2000:00:00&end_date=2026-02-28%2000:00:00",
];

/// The acknowledged records, and what else the load has observed.
#[derive(Default)]
pub(crate) struct Ledger {
    /// USD by id, of all acknowledged records.
    pub booked: Mutex<HashMap<String, f64>>,
    /// The records acknowledged since the last check.
    pub fresh: Mutex<Vec<(String, f64)>>,
    /// The keys and bodies of requests whose answer was lost on purpose. They are sent again.
    pub unanswered: Mutex<Vec<(String, String)>>,
    /// Observations that must never occur.
    pub violations: Mutex<Vec<String>>,
    /// Requests that were answered.
    pub answered: AtomicU64,
    /// Requests that failed or were refused, and were sent again.
    pub failed: AtomicU64,
    /// Answers with status 500.
    pub internal_errors: AtomicU64,
    /// The addresses of the servers.
    pub addresses: Mutex<Vec<String>>,
    pause: AtomicBool,
    stop: AtomicBool,
    /// Feeds that have something to send.
    busy: AtomicUsize,
    feeds: AtomicUsize,
    next: AtomicU64,
}

impl Ledger {
    pub(crate) fn violation(&self, text: impl Into<String>) {
        let text = text.into();
        eprintln!("VIOLATION: {text}");
        self.violations.lock().unwrap().push(text);
    }

    fn address(&self, random: &mut StdRng) -> Option<String> {
        self.addresses.lock().unwrap().choose(random).cloned()
    }

    /// Lets the feeds continue.
    pub(crate) fn resume(&self) {
        self.pause.store(false, Ordering::SeqCst);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Stops the feeds from beginning anything new, and waits until everything that had begun is acknowledged.
    pub(crate) async fn quiesce(&self, limit: Duration) -> bool {
        self.pause.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let idle = self.busy.load(Ordering::SeqCst) == 0 && self.unanswered.lock().unwrap().is_empty();
            if idle {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    fn acknowledge(&self, answer: &Value, body: &str) {
        for result in answer["results"].as_array().into_iter().flatten() {
            let (id, status) = (result["request_id"].as_str().unwrap_or_default(), result["status"].as_str());
            match (status, result["spend"].as_f64()) {
                (Some("recorded" | "duplicate"), Some(spend)) => {
                    let before = self.booked.lock().unwrap().insert(id.to_owned(), spend);
                    match before {
                        Some(before) if (before - spend).abs() > 1e-12 => {
                            self.violation(format!("{id} was acknowledged with {before} and then with {spend}"));
                        }
                        Some(_) => {}
                        None => self.fresh.lock().unwrap().push((id.to_owned(), spend)),
                    }
                }
                _ => self.violation(format!("{id} was refused: {result}; sent: {}", &body[..body.len().min(300)])),
            }
        }
    }
}

/// Starts the feeds and the readers.
pub(crate) fn start(ledger: &Arc<Ledger>, seed: u64) -> Vec<tokio::task::JoinHandle<()>> {
    let mut tasks = Vec::new();
    let mut keys: Vec<&'static str> = vec![MASTER_KEY; usize::try_from(TRUSTED_FEEDS).unwrap()];
    keys.extend(KEYS);
    ledger.feeds.store(keys.len(), Ordering::SeqCst);
    for (number, key) in keys.into_iter().enumerate() {
        let random = StdRng::seed_from_u64(seed ^ (number as u64 + 1));
        tasks.push(tokio::spawn(feed(Arc::clone(ledger), key, random)));
    }
    for number in 0..READERS {
        let random = StdRng::seed_from_u64(seed ^ (number + 100));
        tasks.push(tokio::spawn(read(Arc::clone(ledger), random)));
    }
    tasks
}

pub(crate) fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).connect_timeout(Duration::from_secs(2));
    client.build().unwrap()
}

/// Books one batch after another. A batch that was not acknowledged is sent again unchanged, to any server.
async fn feed(ledger: Arc<Ledger>, key: &'static str, mut random: StdRng) {
    let client = client();
    while !ledger.stop.load(Ordering::SeqCst) {
        ledger.busy.fetch_add(1, Ordering::SeqCst);
        let waiting = ledger.unanswered.lock().unwrap().pop();
        let (key, body) = match waiting {
            Some(waiting) => waiting,
            None if ledger.pause.load(Ordering::SeqCst) => {
                ledger.busy.fetch_sub(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            None => (key.to_owned(), body(&ledger, key, &mut random)),
        };
        while !ledger.stop.load(Ordering::SeqCst) && !book(&ledger, &client, &key, &body, &mut random).await {
            ledger.failed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ledger.busy.fetch_sub(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(random.random_range(10..120))).await;
    }
}

async fn book(ledger: &Ledger, client: &reqwest::Client, key: &str, body: &str, random: &mut StdRng) -> bool {
    let Some(address) = ledger.address(random) else { return false };
    let request = client.post(format!("{address}/spend/usage")).bearer_auth(key);
    let request = request.header("content-type", "application/json").body(body.to_owned());
    let Ok(answer) = request.send().await else { return false };
    let status = answer.status().as_u16();
    if status == 500 {
        ledger.internal_errors.fetch_add(1, Ordering::Relaxed);
    }
    if (400..500).contains(&status) && status != 429 && status != 408 {
        let text = answer.text().await.unwrap_or_default();
        ledger.violation(format!("a booking was refused with {status}: {text}"));
        return true;
    }
    if status != 200 {
        return false;
    }
    match answer.json::<Value>().await {
        Ok(answer) => {
            ledger.answered.fetch_add(1, Ordering::Relaxed);
            ledger.acknowledge(&answer, body);
            true
        }
        Err(_) => false,
    }
}

/// A batch of records. A trusted feed books for any key, with stated costs. A key books for itself, at the price
/// table's prices.
pub(crate) fn body(ledger: &Ledger, key: &str, random: &mut StdRng) -> String {
    let trusted = key == MASTER_KEY;
    let count = if random.random_bool(0.3) { random.random_range(2..25) } else { 1 };
    let records: Vec<Value> = (0..count)
        .map(|_| {
            let number = ledger.next.fetch_add(1, Ordering::SeqCst);
            let (day, hour) = (random.random_range(0..55), random.random_range(0..24));
            let start = chrono::NaiveDate::from_ymd_opt(2026, 1, 2).unwrap() + chrono::Days::new(day);
            let models = ["gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5"];
            let mut record = json!({
                "idempotency_key": format!("fault-{number:08}"),
                "model": models.choose(random).unwrap(),
                "prompt_tokens": random.random_range(0..2000),
                "completion_tokens": random.random_range(0..500),
                "end_user_id": format!("customer-{}", random.random_range(0..40)),
                "tags": [format!("tag-{}", random.random_range(0..12)), "all"],
                "start_time": format!("{start}T{hour:02}:00:00Z"),
            });
            if trusted {
                record["cost"] = json!(f64::from(random.random_range(1..4000)) / 8192.0);
                record["api_key"] = json!(OWNED.choose(random).unwrap().0);
            }
            record
        })
        .collect();
    json!({ "records": records }).to_string()
}

/// Reads without end. While something is broken an answer may be a refusal, but never a corrupt one.
async fn read(ledger: Arc<Ledger>, mut random: StdRng) {
    let client = client();
    while !ledger.stop.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(random.random_range(20..150))).await;
        let path = READS.choose(&mut random).unwrap();
        let Some(address) = ledger.address(&mut random) else { continue };
        let Ok(answer) = client.get(format!("{address}{path}")).bearer_auth(MASTER_KEY).send().await else {
            ledger.failed.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let status = answer.status().as_u16();
        let Ok(text) = answer.text().await else {
            ledger.failed.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        match status {
            200 if serde_json::from_str::<Value>(&text).is_err() => {
                ledger.violation(format!("{path}: a whole answer that is no JSON: {}", &text[..text.len().min(200)]));
            }
            200 => drop(ledger.answered.fetch_add(1, Ordering::Relaxed)),
            429 | 503 | 504 => drop(ledger.failed.fetch_add(1, Ordering::Relaxed)),
            500 => drop(ledger.internal_errors.fetch_add(1, Ordering::Relaxed)),
            _ => ledger.violation(format!("{path}: {status}: {}", &text[..text.len().min(200)])),
        }
    }
}
