//! Times every read of the API on a large log, next to plain SQL that returns the same result.
//! Run by `./dev bench reads`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measuring program fails by panicking"
)]

#[path = "common/data.rs"]
mod data;
#[path = "common/figures.rs"]
mod figures;
#[path = "common/reads.rs"]
mod reads;
#[path = "common/server.rs"]
mod server;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use data::{home, load};
use figures::percentile;
use futures_util::StreamExt;
use litespend::store::database::PoolLimits;
use litespend::store::embedded_roles::local_postgres_options;
use private_postgres::{LocalPostgres, LocalPostgresOptions};
use reads::{READS, Read, fetch};
use server::Server;
use sqlx::{Executor, PgPool};

/// A month of LiteLLM's daily rows that ends today, with four models per key as in the log for the other reads.
const DAILY: &str = r#"
    INSERT INTO "LiteLLM_DailyUserSpend" (id, user_id, date, api_key, model, model_group, custom_llm_provider, endpoint,
        prompt_tokens, completion_tokens, spend, api_requests, successful_requests, failed_requests, updated_at)
    SELECT key || '-' || ago || '-' || number, 'user-' || key % 700, to_char(current_date - ago, 'YYYY-MM-DD'),
           encode(sha256(('sk-bench-key-' || key)::bytea), 'hex'), 'model-' || (key * 7 + number) % 40,
           'model-' || (key * 7 + number) % 40, (ARRAY['openai', 'anthropic', 'gemini', 'azure'])[1 + (key + number) % 4],
           '/chat/completions', 1000 + number, 200 + key % 90, (key % 9973 + 1) * 0.001 + number * 0.0001, 10, 9, 1, now()
    FROM generate_series(0, 29) AS ago, generate_series(1, $1::bigint / 30 / 4) AS key, generate_series(0, 3) AS number
    ORDER BY ago DESC"#;
const DAILY_BY_MODEL: &str = r#"SELECT date, model, sum(spend), sum(prompt_tokens), sum(completion_tokens),
        sum(api_requests) FROM "LiteLLM_DailyUserSpend" GROUP BY 1, 2 ORDER BY 1"#;
const DAILY_BY_KEY: &str = r#"SELECT api_key, sum(spend) FROM "LiteLLM_DailyUserSpend" GROUP BY 1 ORDER BY 2 DESC"#;

/// The reads that are timed on a month of daily rows.
fn daily_reads() -> Vec<Read> {
    let today = chrono::Utc::now().date_naive();
    let range = format!("start_date={}&end_date={today}", today - chrono::Days::new(29));
    [
        ("aggregated month", "aggregated?", Some(DAILY_BY_MODEL)),
        ("keys of the month", "aggregated/keys?", Some(DAILY_BY_KEY)),
        ("users of the month", "aggregated/users?", None),
        ("keys of a model", "aggregated/model_top_keys?model_group=model-7&", None),
        ("aggregated month, one user", "aggregated?user_id=user-7&", None),
        ("daily activity, first page", "?", None),
    ]
    .map(|(name, path, plain)| {
        let path = if path == "?" { format!("?{range}") } else { format!("/{path}{range}") };
        Read { name, path: Cow::Owned(format!("/user/daily/activity{path}")), plain }
    })
    .into()
}

struct Options {
    daily: u64,
    rows: u64,
    runs: usize,
    mix: u64,
}

fn options() -> Options {
    let mut options = Options { daily: 0, rows: 1_000_000, runs: 20, mix: 0 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut number = || arguments.next().and_then(|value| value.parse().ok()).expect("a number follows");
        match name.as_str() {
            "--daily" => options.daily = number(),
            "--rows" => options.rows = number(),
            "--runs" => options.runs = usize::try_from(number()).unwrap(),
            "--mix" => options.mix = number(),
            other => panic!("unknown argument {other}; there are --rows N, --daily N, --runs N, --mix SECONDS"),
        }
    }
    options
}

async fn plain(pool: &PgPool, statement: &'static str) -> f64 {
    let started = Instant::now();
    let mut rows = pool.fetch(statement);
    while let Some(row) = rows.next().await {
        drop(row.unwrap());
    }
    started.elapsed().as_secs_f64() * 1000.0
}

/// Loads the daily rows and sums them as a running server does: all days except the last two.
async fn load_daily(pool: &PgPool, rows: u64) {
    let started = Instant::now();
    let mut connection = pool.acquire().await.unwrap();
    let rows = i64::try_from(rows).unwrap();
    connection.execute(r#"TRUNCATE "LiteLLM_DailyUserSpend""#).await.unwrap();
    sqlx::query(DAILY).bind(rows).execute(&mut *connection).await.unwrap();
    connection.execute("VACUUM ANALYZE").await.unwrap();
    eprintln!("loaded in {:.0} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let before = chrono::Utc::now().date_naive() - chrono::Days::new(1);
    while litespend::store::rollups::sum_activity(&mut connection, before, &[]).await.unwrap().is_some() {}
    connection.execute("VACUUM ANALYZE").await.unwrap();
    eprintln!("summed in {:.0} s", started.elapsed().as_secs_f64());
}

async fn measure(options: &Options, url: &str) {
    let limits = PoolLimits { connections: 4, wait: Duration::from_secs(60) };
    let pool = litespend::store::database::connect(url, limits).await.unwrap();
    sqlx::query("SET statement_timeout = 0").execute(&pool).await.unwrap();
    if options.daily > 0 {
        load_daily(&pool, options.daily).await;
        let server = Server::start(&[("DATABASE_URL", url)], &[]);
        println!("\n{} daily rows, {} runs a read; milliseconds", options.daily, options.runs);
        time_reads(&server, &pool, &daily_reads(), options.runs).await;
        return;
    }
    load(&pool, url, options.rows).await;
    let server = Server::start(&[("DATABASE_URL", url)], &[]);
    println!("\n{} rows, {} runs a read; milliseconds", options.rows, options.runs);
    time_reads(&server, &pool, &READS, options.runs).await;
    if options.mix > 0 {
        mix(&server, options.mix).await;
        println!("peak resident memory of the server after the mix: {:.0} MB", server.memory("VmHWM"));
    }
}

async fn time_reads(server: &Server, pool: &PgPool, reads: &[Read], runs: usize) {
    let client = reqwest::Client::new();
    println!("| read | median | p99 | first byte | kB | MB/s | plain SQL | ratio |");
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for read in reads {
        let url = format!("{}{}", server.address, read.path);
        fetch(&client, &url).await;
        let (mut firsts, mut totals, mut size) = (Vec::new(), Vec::new(), 0);
        for _ in 0..runs {
            let (first, total, bytes) = fetch(&client, &url).await;
            firsts.push(first);
            totals.push(total);
            size = bytes;
        }
        let total = percentile(&mut totals, 0.5);
        let plain = match read.plain {
            Some(statement) => Some(plain(pool, statement).await),
            None => None,
        };
        println!(
            "| {} | {total:.1} | {:.1} | {:.1} | {:.1} | {:.0} | {} | {} |",
            read.name,
            percentile(&mut totals, 0.99),
            percentile(&mut firsts, 0.5),
            size as f64 / 1000.0,
            size as f64 / 1000.0 / total,
            plain.map_or_else(|| "-".to_owned(), |plain| format!("{plain:.0}")),
            plain.map_or_else(|| "-".to_owned(), |plain| format!("{:.1}x", plain / total)),
        );
    }
    println!("\npeak resident memory of the server: {:.0} MB", server.memory("VmHWM"));
}

/// 32 clients send all the reads, mixed, while a probe requests `/health/liveliness`.
async fn mix(server: &Server, seconds: u64) {
    let until = Instant::now() + Duration::from_secs(seconds);
    let stop = Arc::new(AtomicBool::new(false));
    // The probe has its own thread, so that it measures the server and not the queue of the 32 clients.
    let probe = std::thread::spawn({
        let (stop, url) = (Arc::clone(&stop), format!("{}/health/liveliness", server.address));
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = reqwest::Client::new();
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    times.push(fetch(&client, &url).await.1);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                times
            })
        }
    });
    let clients: Vec<_> = (0..32)
        .map(|index: usize| {
            let address = server.address.clone();
            tokio::spawn(async move {
                let client = reqwest::Client::new();
                let (mut small, mut large, mut next) = (Vec::new(), Vec::new(), index);
                while Instant::now() < until {
                    let (_, total, bytes) =
                        fetch(&client, &format!("{address}{}", READS[next % READS.len()].path)).await;
                    if bytes < 100_000 {
                        small.push(total)
                    } else {
                        large.push(total)
                    }
                    next += 1;
                }
                (small, large)
            })
        })
        .collect();
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for client in clients {
        let (a, b) = client.await.expect("no request fails");
        small.extend(a);
        large.extend(b);
    }
    stop.store(true, Ordering::Relaxed);
    let mut probes = probe.join().unwrap();
    println!(
        "\n32 clients for {seconds} s: {} answers, no error; small answers p99 {:.0} ms, large p99 {:.0} ms, liveness p50 {:.1} ms, p99 {:.1} ms",
        small.len() + large.len(),
        percentile(&mut small, 0.99),
        percentile(&mut large, 0.99),
        percentile(&mut probes, 0.5),
        percentile(&mut probes, 0.99)
    );
}

fn main() {
    let options = options();
    let name = if options.daily > 0 { "daily".to_owned() } else { options.rows.to_string() };
    let home = home(&name);
    let postgres = LocalPostgres::start(LocalPostgresOptions { home: Some(home), ..local_postgres_options() }).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(&options, postgres.url()));
    postgres.stop().unwrap();
}
