//! The sums of LiteLLM's daily rows. The recorded answers are checked with the sums in use. Every answer from the sums
//! is compared with one from the daily rows, while these change in every way.

use chrono::NaiveDate;
use litespend::rollups::folding;
use litespend::store::rollups;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};

use crate::conformance::{dashboard_app, replay};
use crate::support::answers::{Lists, difference};
use crate::support::{MASTER_KEY, TestApp, insert, randomness, settings};

/// Reads that use the sums. For some of them the sums cover only a part of the days, or none.
const READS: [&str; 8] = [
    "/user/daily/activity/aggregated?start_date=2026-01-01&end_date=2026-04-30",
    "/user/daily/activity/aggregated?start_date=2026-02-01&end_date=2026-02-28&api_key_limit=2",
    "/user/daily/activity/aggregated?start_date=2026-02-02&end_date=2026-02-02",
    "/user/daily/activity/aggregated?start_date=2026-01-01&end_date=2026-04-30&user_id=u-int",
    "/user/daily/activity/aggregated?start_date=2026-01-01&end_date=2026-04-30&model=gpt-4o",
    "/user/daily/activity/aggregated/keys?start_date=2026-01-01&end_date=2026-04-30",
    "/user/daily/activity/aggregated/keys?start_date=2026-02-01&end_date=2026-02-28&offset=1&limit=2",
    "/user/daily/activity/aggregated/users?start_date=2026-01-01&end_date=2026-04-30",
];

const DAYS: [&str; 5] = ["2026-01-31", "2026-02-01", "2026-02-02", "2026-02-28", "2026-03-01"];

fn row(random: &mut StdRng, next_id: &mut u32) -> Value {
    *next_id += 1;
    let pick = |random: &mut StdRng, from: &[Option<&str>]| from[random.random_range(0..from.len())].map(str::to_owned);
    let mut figure = || random.random_range(0..5000);
    let mut row = json!({
        "id": format!("d-{next_id}"), "mcp_namespaced_tool_name": format!("tool-{next_id}"),
        "prompt_tokens": figure(), "completion_tokens": figure(), "cache_read_input_tokens": figure(),
        "cache_creation_input_tokens": figure(), "compression_saved_tokens": figure(),
        "total_response_time_ms": figure(), "timed_requests": figure(), "api_requests": figure(),
        "successful_requests": figure(), "failed_requests": figure(), "updated_at": "2026-03-01T00:00:00",
    });
    for name in ["spend", "compression_savings_spend", "prompt_caching_savings_spend", "autorouter_savings_spend"] {
        row[name] = json!(random.random_range(0.0..1.0));
    }
    row["date"] = json!(DAYS[random.random_range(0..DAYS.len())]);
    row["user_id"] = json!(pick(random, &[Some("u-int"), Some("u-admin"), Some(""), None]));
    row["api_key"] = json!(pick(random, &[Some("k1"), Some("k2"), Some("k3"), Some("raw:x"), Some("")]));
    row["model"] = json!(pick(random, &[Some("gpt-4o"), Some("模型"), Some(""), None]));
    row["model_group"] = json!(pick(random, &[Some("group"), Some(""), None]));
    row["custom_llm_provider"] = json!(pick(random, &[Some("openai"), Some(""), None]));
    row["endpoint"] = json!(pick(random, &[Some("/chat/completions"), Some(""), None]));
    if random.random_range(0..3) > 0 {
        row["mcp_namespaced_tool_name"] = Value::Null;
    }
    row
}

async fn add(connection: &mut PgConnection, random: &mut StdRng, next_id: &mut u32) {
    let rows: Vec<Value> = (0..random.random_range(1..8)).map(|_| row(random, next_id)).collect();
    insert(connection, "LiteLLM_DailyUserSpend", &Value::Array(rows)).await;
}

/// Makes one random change; returns its name.
async fn change(random: &mut StdRng, connection: &mut PgConnection, next_id: &mut u32) -> &'static str {
    let day = DAYS[random.random_range(0..DAYS.len())];
    let (statement, name) = match random.random_range(0..100) {
        0..30 => {
            add(connection, random, next_id).await;
            return "insert";
        }
        30..40 => (
            r#"UPDATE "LiteLLM_DailyUserSpend" SET spend = spend + 0.25, api_requests = api_requests + 1 WHERE date = $1"#,
            "update",
        ),
        40..45 => (
            r#"UPDATE "LiteLLM_DailyUserSpend" SET date = '2026-02-02' WHERE date = $1 AND prompt_tokens % 2 = 0"#,
            "move to another day",
        ),
        45..50 => {
            (r#"DELETE FROM "LiteLLM_DailyUserSpend" WHERE date = $1 AND completion_tokens % 3 = 0"#, "delete some")
        }
        50..53 => (r#"DELETE FROM "LiteLLM_DailyUserSpend" WHERE date = $1"#, "delete a day"),
        53..55 => {
            connection.execute(r#"TRUNCATE "LiteLLM_DailyUserSpend""#).await.unwrap();
            return "truncate";
        }
        55..58 => {
            let day = day.parse().unwrap();
            rollups::mark_dirty(connection, Some(litespend::store::DateRange { start: day, end: day })).await.unwrap();
            return "mark a day";
        }
        58..60 => {
            rollups::mark_dirty(connection, None).await.unwrap();
            return "mark all";
        }
        _ => {
            sum(connection).await;
            return "sum a day";
        }
    };
    sqlx::query(statement).bind(day).execute(connection).await.unwrap();
    name
}

async fn sum(connection: &mut PgConnection) -> Option<NaiveDate> {
    rollups::sum_activity(connection, "2026-12-31".parse().unwrap(), &[]).await.unwrap()
}

async fn summed(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM litespend.activity_summed('2026-01-01', '2026-12-31')")
        .fetch_one(connection)
        .await
        .unwrap()
}

async fn compare(app: &TestApp, plain: &TestApp, step: &str) {
    for path in READS {
        let (ours, rows) = (app.get(path, MASTER_KEY).await, plain.get(path, MASTER_KEY).await);
        assert_eq!(ours.status, 200, "{path}: {}", ours.text);
        assert_eq!(rows.status, 200, "{path}: {}", rows.text);
        if let Some(difference) = difference(&ours.json(), &rows.json(), Lists::AsSets) {
            panic!("after {step}: {path}: {difference}\nsums: {}\nrows: {}", ours.text, rows.text);
        }
    }
}

#[tokio::test]
async fn every_read_equals_the_daily_rows_whatever_happens_to_them() {
    let app = TestApp::new().await;
    let plain = app.beside(settings());
    let (mut random, mut next_id) = (StdRng::seed_from_u64(randomness::seed()), 0);
    let mut connection = app.pool.acquire().await.unwrap();
    // Writers whose transactions stay open over several steps, and end with a commit or a rollback.
    let mut open: Vec<PgConnection> = Vec::new();
    let (mut steps, mut with_sums) = (0, 0);
    for _ in 0..90 {
        let step = if random.random_range(0..5) == 0 && open.len() < 3 {
            let mut writer = PgConnection::connect(app.database.url()).await.unwrap();
            writer.execute("BEGIN").await.unwrap();
            add(&mut writer, &mut random, &mut next_id).await;
            open.push(writer);
            "an open transaction"
        } else if !open.is_empty() && random.random_range(0..3) == 0 {
            let mut writer = open.remove(0);
            writer.execute(if random.random_range(0..2) == 0 { "COMMIT" } else { "ROLLBACK" }).await.unwrap();
            "the end of a transaction"
        } else if open.is_empty() {
            change(&mut random, &mut connection, &mut next_id).await
        } else {
            // Not TRUNCATE, which would wait for the open writers.
            sum(&mut connection).await;
            if random.random_range(0..3) == 0 {
                add(&mut connection, &mut random, &mut next_id).await;
            }
            "sum a day beside open transactions"
        };
        steps += 1;
        with_sums += i32::from(summed(&mut connection).await > 0);
        compare(&app, &plain, &format!("step {steps} ({step})")).await;
    }
    for mut writer in open {
        writer.execute("COMMIT").await.unwrap();
    }
    add(&mut connection, &mut random, &mut next_id).await;
    folding::settle(&mut connection).await.unwrap();
    assert!(summed(&mut connection).await > 1);
    compare(&app, &plain, "everything is summed").await;
    for day in DAYS {
        assert!(rollups::verify_day(&mut connection, day.parse().unwrap()).await.unwrap().is_none(), "{day}");
    }
    assert!(with_sums > steps / 4, "only {with_sums} of {steps} steps had sums to read");
    println!("{steps} steps, {} reads compared after each; {with_sums} with sums", READS.len());
}

#[tokio::test]
async fn the_recorded_dashboard_reads_match_from_sums() {
    let app = dashboard_app().await;
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    assert!(summed(&mut connection).await > 1);
    drop(connection);
    replay(&app, "dashboard_reads.json.gz").await;
}

#[tokio::test]
async fn sums_are_what_is_read_and_verify_finds_them_wrong() {
    let app = TestApp::seeded().await;
    let mut connection = app.pool.acquire().await.unwrap();
    let (mut random, mut next_id) = (StdRng::seed_from_u64(randomness::seed()), 0);
    connection.execute(r#"TRUNCATE "LiteLLM_DailyUserSpend""#).await.unwrap();
    let mut row = row(&mut random, &mut next_id);
    row["date"] = json!("2026-02-01");
    row["spend"] = json!(0.5);
    insert(&mut connection, "LiteLLM_DailyUserSpend", &json!([row])).await;
    folding::settle(&mut connection).await.unwrap();
    let path = "/user/daily/activity/aggregated?start_date=2026-02-01&end_date=2026-02-28";
    let day: NaiveDate = "2026-02-01".parse().unwrap();
    for (table, name) in [("activity_groups", "group of daily rows"), ("activity_members", "member of daily rows")] {
        assert!(rollups::verify_day(&mut connection, day).await.unwrap().is_none());
        let wrong = format!("UPDATE litespend.{table} SET spend = 7");
        sqlx::query(sqlx::AssertSqlSafe(wrong)).execute(&mut *connection).await.unwrap();
        let found = rollups::verify_day(&mut connection, day).await.unwrap().expect("a difference");
        assert_eq!(found.rollup, name);
        if table == "activity_groups" {
            assert_eq!(app.get(path, MASTER_KEY).await.json()["metadata"]["total_spend"], json!(7.0));
        }
        rollups::mark_dirty(&mut connection, None).await.unwrap();
        assert_eq!(app.get(path, MASTER_KEY).await.json()["metadata"]["total_spend"], json!(0.5));
        folding::settle(&mut connection).await.unwrap();
    }
    // The sums are removed with the rollups, nothing of them remains on the table, and they can be installed again.
    rollups::remove(&mut connection).await.unwrap();
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'litespend%'")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    assert_eq!(left, 0);
    assert_eq!(app.get(path, MASTER_KEY).await.json()["metadata"]["total_spend"], json!(0.5));
}
