//! Closes the days of a large log, empties the log, and times reads before and after. Run by `./dev bench books`.

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

use std::path::Path;
use std::time::{Duration, Instant};

use figures::percentile;
use litespend::store::database::PoolLimits;
use litespend::store::embedded_roles::local_postgres_options;
use private_postgres::{LocalPostgres, LocalPostgresOptions};
use reads::{READS, fetch};
use server::Server;
use sqlx::PgPool;

/// The last day of the data.
const LAST_DAY: &str = "2026-03-31";

/// How often a server is started for the requests that find nothing in memory.
const STARTS: usize = 5;

fn rows() -> u64 {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => 1_000_000,
        (Some("--rows"), Some(number)) => number.parse().expect("a number follows"),
        other => panic!("unknown arguments {other:?}; there is --rows N"),
    }
}

/// Reads of sums. They must take as long, and answer the same, when the log has no rows any more.
fn sums() -> impl Iterator<Item = &'static str> {
    READS.iter().filter(|read| read.plain.is_some() || read.name.starts_with("report")).map(|read| &*read.path)
}

/// The median of some runs, in milliseconds, of each read of sums, with the number of bytes of the answer.
async fn time_sums(server: &Server) -> Vec<(f64, usize)> {
    let client = reqwest::Client::new();
    let mut all = Vec::new();
    for path in sums() {
        let url = format!("{}{path}", server.address);
        fetch(&client, &url).await;
        let (mut times, mut size) = (Vec::new(), 0);
        for _ in 0..20 {
            let (_, total, bytes) = fetch(&client, &url).await;
            times.push(total);
            size = bytes;
        }
        all.push((percentile(&mut times, 0.5), size));
    }
    all
}

/// Empties the operating system's cache of files, where it allows that.
fn forget_files() -> bool {
    std::fs::write("/proc/sys/vm/drop_caches", "1").is_ok()
}

/// The size of all files in a directory, in bytes.
fn size(directory: &Path) -> u64 {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() { size(&entry.path()) } else { metadata.len() }
        })
        .sum()
}

/// The time and the peak resident memory (in MB) of a command of litespend.
fn command(url: &str, arguments: &[&str]) -> (Duration, f64) {
    let started = Instant::now();
    let mut child =
        server::command().args(arguments).env("DATABASE_URL", url).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut peak = 0.0_f64;
    loop {
        peak = peak.max(server::memory_of(child.id(), "VmHWM"));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{arguments:?}: {status}");
            return (started.elapsed(), peak);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Paths of requests by ID, spread over all rows.
async fn requests_by_id(pool: &PgPool, rows: u64) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT '/spend/logs?request_id=chatcmpl-' || md5((n::bigint * 7990271 % $1 + 1)::text) FROM generate_series(1, 400) AS n",
    )
    .bind(i64::try_from(rows).unwrap())
    .fetch_all(pool)
    .await
    .unwrap()
}

async fn close(pool: &PgPool, url: &str, archive: &str, rows: u64) {
    let before: (i64, i64) = sqlx::query_as(
        r#"SELECT sum(pg_total_relation_size(relid))::bigint, sum(pg_relation_size(relid))::bigint
           FROM pg_partition_tree('"LiteLLM_SpendLogs"')"#,
    )
    .fetch_one(pool)
    .await
    .unwrap();
    let (took, peak) = command(url, &["books", "close", "--archive", archive, "--through", LAST_DAY]);
    let written = size(Path::new(archive));
    println!(
        "close: {:.1} s, {:.0} rows/s, {peak:.0} MB resident",
        took.as_secs_f64(),
        rows as f64 / took.as_secs_f64()
    );
    println!(
        "size: table with indexes {} MB, archive {} MB (1/{:.1})",
        before.0 / 1_000_000,
        written / 1_000_000,
        before.0 as f64 / written as f64
    );
    let (took, peak) = command(url, &["books", "verify", "--archive", archive]);
    println!("verify: {:.1} s, {peak:.0} MB resident", took.as_secs_f64());
    // Closed days keep their totals. Dropping partitions takes no longer than this.
    sqlx::query(r#"TRUNCATE "LiteLLM_SpendLogs""#).execute(pool).await.unwrap();
}

async fn time_rows(pool: &PgPool, url: &str, archive: &str, rows: u64) {
    let client = reqwest::Client::new();
    let start = || Server::start(&[("DATABASE_URL", url)], &["--archive", archive]);
    let mut paths = requests_by_id(pool, rows).await;
    let (mut cold, mut warm, mut forgot) = (Vec::new(), Vec::new(), true);
    for path in paths.split_off(paths.len() - STARTS) {
        let server = start();
        // The connections to the database are there; the archive is untouched.
        fetch(&client, &format!("{}/spend/tags", server.address)).await;
        forgot &= forget_files();
        cold.push(fetch(&client, &format!("{}{path}", server.address)).await.1);
    }
    let server = start();
    for path in &paths {
        warm.push(fetch(&client, &format!("{}{path}", server.address)).await.1);
    }
    // By then, the files of all days have been opened.
    let mut warm = warm.split_off(paths.len() / 2);
    println!(
        "by ID, first request of a server{}: {:.0} ms at most; later: median {:.1} ms, p99 {:.1} ms",
        if forgot { ", files not in memory" } else { "" },
        percentile(&mut cold, 1.0),
        percentile(&mut warm, 0.5),
        percentile(&mut warm, 0.99),
    );
    for user in [20, 250, 490] {
        let url = format!("{}/spend/logs?user_id=user-{user}&limit=1000", server.address);
        let first = fetch(&client, &url).await.1;
        let (mut times, mut bytes) = (Vec::new(), 0);
        for _ in 0..20 {
            let (_, total, size) = fetch(&client, &url).await;
            times.push(total);
            bytes = size;
        }
        println!(
            "newest 1,000 rows of user-{user}: first {first:.0} ms, then median {:.0} ms, {} kB",
            percentile(&mut times, 0.5),
            bytes / 1000
        );
    }
    println!("peak resident memory of the server: {:.0} MB", server.memory("VmHWM"));
}

async fn measure(rows: u64, url: &str, archive: &str) {
    let limits = PoolLimits { connections: 4, wait: Duration::from_secs(60) };
    let pool = litespend::store::database::connect(url, limits).await.unwrap();
    let closed: i64 = sqlx::query_scalar("SELECT count(*) FROM litespend.closed_days").fetch_one(&pool).await.unwrap();
    if closed == 0 {
        data::load(&pool, url, rows).await;
        let before = time_sums(&Server::start(&[("DATABASE_URL", url)], &[])).await;
        close(&pool, url, archive, rows).await;
        let after = time_sums(&Server::start(&[("DATABASE_URL", url)], &["--archive", archive])).await;
        println!("\n| read of sums | before, ms | closed, log empty, ms |\n|---|---:|---:|");
        for ((path, before), after) in sums().zip(&before).zip(&after) {
            assert_eq!(before.1, after.1, "{path}: bytes");
            println!("| `{path}` | {:.1} | {:.1} |", before.0, after.0);
        }
    } else {
        eprintln!("the days are closed already; timing reads of rows only");
    }
    println!();
    time_rows(&pool, url, archive, rows).await;
}

fn main() {
    let rows = rows();
    let home = data::home(&format!("books-{rows}"));
    let archive = data::home(&format!("books-{rows}-archive"));
    let postgres = LocalPostgres::start(LocalPostgresOptions { home: Some(home), ..local_postgres_options() }).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(rows, postgres.url(), archive.to_str().unwrap()));
    postgres.stop().unwrap();
}
