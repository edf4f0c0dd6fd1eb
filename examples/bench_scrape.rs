//! Times scrapes of `GET /metrics/spend` on a database with many series. Run by `./dev bench scrape`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measuring program fails by panicking"
)]

#[path = "common/figures.rs"]
mod figures;
#[path = "common/server.rs"]
mod server;

use std::time::{Duration, Instant};

use figures::percentile;
use futures_util::StreamExt;
use litespend::rollups::folding;
use litespend::store::database::PoolLimits;
use litespend::store::embedded_roles::local_postgres_options;
use private_postgres::{Durability, LocalPostgres, LocalPostgresOptions};
use server::{MASTER_KEY, Server};
use sqlx::{Executor, PgPool};

/// Models of each key.
const MODELS: i64 = 20;

/// Keys with 20 models each, in 200 teams, of 1,000 users. All have budgets.
const BUDGETS: [&str; 3] = [
    r#"INSERT INTO "LiteLLM_TeamTable" (team_id, team_alias, max_budget, spend, budget_reset_at, metadata)
       SELECT 'team-' || n, 'Team ' || n, 1000, n, now() + interval '9 days', '{}' FROM generate_series(0, 199) AS n
       WHERE $1 > 0"#,
    r#"INSERT INTO "LiteLLM_UserTable" (user_id, user_email, max_budget, spend, budget_reset_at)
       SELECT 'user-' || n, 'user-' || n || '@example.com', 100, n * 0.01, now() + interval '9 days'
       FROM generate_series(0, 999) AS n WHERE $1 > 0"#,
    r#"INSERT INTO "LiteLLM_VerificationToken" (token, key_alias, user_id, team_id, max_budget, spend, budget_reset_at)
       SELECT encode(sha256(('sk-bench-key-' || n)::bytea), 'hex'), 'key ' || n, 'user-' || n % 1000, 'team-' || n % 200, 10,
              n * 0.001, now() + interval '9 days'
       FROM generate_series(1, $1::bigint) AS n"#,
];

/// A call of each series, by a customer of its own.
const CALLS: &str = r#"
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens,
        "startTime", "endTime", model, "user", team_id, status, end_user, custom_llm_provider)
    SELECT 'chatcmpl-' || key || '-' || model, 'acompletion', encode(sha256(('sk-bench-key-' || key)::bytea), 'hex'),
           (key * 7 + model) * 0.000137, 1200 + key % 900, 1000 + key % 900, 200, now(), now(), 'provider/model-' || model,
           'user-' || key % 1000, 'team-' || key % 200, 'success', 'customer-' || key || '-' || model, 'provider-' || model
    FROM generate_series(1, $1::bigint) AS key, generate_series(1, $2::bigint) AS model"#;

struct Options {
    series: Vec<i64>,
    runs: usize,
    /// Labels instead of those by default.
    labels: Option<String>,
}

fn options() -> Options {
    let mut options = Options { series: Vec::new(), runs: 50, labels: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().expect("a value follows");
        match name.as_str() {
            "--series" => options.series.push(value.parse().expect("a number")),
            "--runs" => options.runs = value.parse().expect("a number"),
            "--labels" => options.labels = Some(value),
            other => {
                panic!("unknown argument {other}; there are --series N (also repeated), --runs N, --labels LABEL,...")
            }
        }
    }
    if options.series.is_empty() {
        options.series = vec![10_000, 100_000];
    }
    options
}

async fn load(pool: &PgPool, series: i64) {
    let started = Instant::now();
    let mut connection = pool.acquire().await.unwrap();
    connection.execute("SET statement_timeout = 0").await.unwrap();
    let keys = series / MODELS;
    for statement in BUDGETS {
        sqlx::query(statement).bind(keys).execute(&mut *connection).await.unwrap();
    }
    sqlx::query(CALLS).bind(keys).bind(MODELS).execute(&mut *connection).await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    connection.execute("VACUUM ANALYZE").await.unwrap();
    eprintln!("{series} series loaded and folded in {:.0} s", started.elapsed().as_secs_f64());
}

/// The milliseconds until the last byte, and the bytes as sent.
async fn scrape(client: &reqwest::Client, address: &str, encoding: &str) -> (f64, Vec<u8>) {
    let started = Instant::now();
    let request = client.get(format!("{address}/metrics/spend")).bearer_auth(MASTER_KEY);
    let response = request.header("accept-encoding", encoding).send().await.unwrap();
    assert!(response.status().is_success(), "{}", response.status());
    let encoded = response.headers().get("content-encoding").map_or("identity", |value| value.to_str().unwrap());
    assert_eq!(encoded, encoding);
    let (mut pieces, mut body) = (response.bytes_stream(), Vec::new());
    while let Some(piece) = pieces.next().await {
        body.extend_from_slice(&piece.unwrap());
    }
    (started.elapsed().as_secs_f64() * 1000.0, body)
}

async fn measure(url: &str, series: i64, options: &Options) {
    let limits = PoolLimits { connections: 4, wait: Duration::from_secs(60) };
    let pool = litespend::store::database::connect(url, limits).await.unwrap();
    load(&pool, series).await;
    let most = series.to_string();
    let mut arguments = vec!["--metrics-series", &most];
    if let Some(labels) = &options.labels {
        arguments.extend(["--metrics-labels", labels]);
    }
    let server = Server::start(&[("DATABASE_URL", url)], &arguments);
    let client = reqwest::Client::new();
    let (_, text) = scrape(&client, &server.address, "identity").await;
    let text = String::from_utf8(text).unwrap();
    let listed = text.lines().filter(|line| line.starts_with("litellm_spend_metric_total{")).count();
    if options.labels.is_none() {
        assert_eq!(i64::try_from(listed).unwrap(), series, "every series is listed");
    }
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    for (encoding, name) in [("identity", "plain"), ("gzip", "gzip")] {
        scrape(&client, &server.address, encoding).await;
        let (mut times, mut size) = (Vec::new(), 0);
        for _ in 0..options.runs {
            let (time, body) = scrape(&client, &server.address, encoding).await;
            times.push(time);
            size = body.len();
        }
        println!(
            "| {series} | {samples} | {name} | {:.1} | {:.1} | {:.1} |",
            percentile(&mut times, 0.5),
            percentile(&mut times, 0.99),
            size as f64 / 1e6,
        );
    }
    eprintln!("peak resident memory of the server: {:.0} MB", server.memory("VmHWM"));
}

fn main() {
    let options = options();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("| series | samples | encoding | median, ms | p99, ms | MB |");
    println!("|---:|---:|---|---:|---:|---:|");
    for series in options.series.iter().copied() {
        let home = tempfile::Builder::new().prefix("litespend-bench-").tempdir_in("/tmp").unwrap();
        let postgres = LocalPostgres::start(LocalPostgresOptions {
            home: Some(home.path().to_owned()),
            durability: Durability::Throwaway,
            ..local_postgres_options()
        })
        .unwrap();
        runtime.block_on(measure(postgres.url(), series, &options));
        postgres.stop().unwrap();
    }
}
