//! Times inserts into the log, with the rollups' triggers and without. Run by `./dev bench writes`. With `--durable`, each
//! statement waits until it is on the disk, as PostgreSQL does by default.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a measuring program fails by panicking"
)]

use std::fmt::Write;
use std::time::{Duration, Instant};

use litespend::store::database::PoolLimits;
use litespend::store::embedded_roles::local_postgres_options;
use litespend::store::rollups;
use private_postgres::{Durability, LocalPostgres, LocalPostgresOptions};
use sqlx::{AssertSqlSafe, Executor, PgConnection};

/// Rows per statement.
const ROWS: u32 = 100;

/// Statements per round.
const STATEMENTS: u32 = 200;

/// A statement like those with which LiteLLM flushes its queue: whole rows, in a single statement.
fn statement(first: u32) -> String {
    let mut text = String::from(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens,
           completion_tokens, "startTime", "endTime", model, model_group, custom_llm_provider, "user", metadata, cache_hit,
           request_tags, team_id, end_user, status) VALUES "#,
    );
    for n in first..first + ROWS {
        let key = n % 200;
        let separator = if n == first { "" } else { ", " };
        write!(
            text,
            r#"{separator}('chatcmpl-{n:032}', 'acompletion', '{key:064}', {}, {}, {}, {}, timestamp '2026-03-01' + interval
               '{n} seconds', timestamp '2026-03-01' + interval '{n} seconds', 'gpt-4o-{}', 'gpt-4o', 'openai', 'user-{key}',
               '{{"user_api_key_alias": "key {key}", "usage_object": {{"prompt_tokens": 1000, "completion_tokens": 200}},
                  "applied_guardrails": [], "requester_ip_address": "10.0.0.{}"}}', 'False', '["prod", "job-{}"]', 'team-{}',
               'customer-{}', 'success')"#,
            0.0001 * f64::from(n % 1000),
            n % 5000,
            n % 4000,
            n % 1000,
            n % 8,
            n % 250,
            n % 50,
            key % 20,
            n % 3000
        )
        .unwrap();
    }
    text
}

/// The median time of a statement in one round. The log is emptied first.
async fn round(connection: &mut PgConnection, statements: &[String]) -> Duration {
    connection.execute(r#"TRUNCATE "LiteLLM_SpendLogs""#).await.unwrap();
    let mut times = Vec::new();
    for text in statements {
        let started = Instant::now();
        sqlx::raw_sql(AssertSqlSafe(text.as_str())).execute(&mut *connection).await.unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

async fn measure(url: &str, rounds: usize) {
    let limits = PoolLimits { connections: 2, wait: Duration::from_secs(30) };
    let pool = litespend::store::database::connect(url, limits).await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let statements: Vec<String> = (0..STATEMENTS).map(|n| statement(n * ROWS)).collect();
    connection.execute("SELECT litespend.detach()").await.unwrap();
    round(&mut connection, &statements).await;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        without.push(round(&mut connection, &statements).await);
        rollups::attach(&mut connection).await.unwrap();
        with.push(round(&mut connection, &statements).await);
        connection.execute("SELECT litespend.detach()").await.unwrap();
        connection.execute("TRUNCATE litespend.deltas").await.unwrap();
    }
    without.sort();
    with.sort();
    let ms = |times: &[Duration]| times[times.len() / 2].as_secs_f64() * 1000.0;
    println!("| inserts of {ROWS} rows, median of {STATEMENTS} statements, median of {rounds} rounds | ms |");
    println!("|---|---:|");
    println!("| without the triggers | {:.2} |", ms(&without));
    println!("| with them | {:.2} |", ms(&with));
    println!("\nratio {:.2}", ms(&with) / ms(&without));
}

fn main() {
    let (mut rounds, mut durability) = (7, Durability::Throwaway);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--durable" => durability = Durability::Durable,
            number => rounds = number.parse().expect("there are --durable and a number of rounds"),
        }
    }
    let home = tempfile::Builder::new().prefix("litespend-bench-").tempdir_in("/tmp").unwrap();
    let postgres = LocalPostgres::start(LocalPostgresOptions {
        home: Some(home.path().to_owned()),
        durability,
        ..local_postgres_options()
    })
    .unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(postgres.url(), rounds));
    postgres.stop().unwrap();
}
