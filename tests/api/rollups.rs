//! The rollups. The recorded answers are checked with and without them. Every answer is compared with plain SQL on the
//! log, while the log changes in every way.

use litespend::rollups::folding;
use litespend::store::{DateRange, rollups};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::conformance::replay;
use crate::support::answers::{Lists, difference};
use crate::support::{TestApp, randomness};

#[tokio::test]
async fn the_recorded_answers_match_while_deltas_wait() {
    let app = TestApp::seeded().await;
    assert!(app.state.has_rollups());
    replay(&app, "http_answers.json.gz").await;
}

#[tokio::test]
async fn the_recorded_answers_match_from_folded_rollups() {
    let app = TestApp::seeded().await;
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    let status = rollups::status(&mut connection).await.unwrap();
    assert_eq!((status.pending, status.dirty_days), (0, 0));
    assert!(status.days > 0);
    drop(connection);
    replay(&app, "http_answers.json.gz").await;
}

#[tokio::test]
async fn the_recorded_answers_match_without_rollups() {
    let app = TestApp::seeded().await;
    let mut connection = app.pool.acquire().await.unwrap();
    rollups::remove(&mut connection).await.unwrap();
    drop(connection);
    app.state.refresh_rollups().await.unwrap();
    assert!(!app.state.has_rollups());
    replay(&app, "http_answers.json.gz").await;
}

#[tokio::test]
async fn the_recorded_answers_match_while_days_are_dirty() {
    let app = TestApp::seeded().await;
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO litespend.deltas (sign, day) VALUES (0, '2026-02-01'), (0, '2026-02-28')")
        .execute(&mut *connection)
        .await
        .unwrap();
    drop(connection);
    replay(&app, "http_answers.json.gz").await;
}

/// Reads that use the rollups.
pub(crate) const READS: [&str; 23] = [
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30",
    "/global/spend/report?start_date=2026-02-01&end_date=2026-02-03&group_by=customer",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&group_by=customer",
    "/global/spend/report?start_date=0001-01-01&end_date=2026-12-31&group_by=customer",
    "/global/spend/report?start_date=0001-01-01&end_date=9999-12-31&group_by=user",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&group_by=api_key",
    "/global/spend/report?start_date=2026-02-01&end_date=2026-02-28&group_by=api_key",
    "/global/spend/report?start_date=2026-01-31&end_date=2026-03-01&group_by=api_key",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&internal_user_id=u-int",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&team_id=team-alpha",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&team_id=team-ghost&customer_id=cust-1",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&group_by=user",
    "/global/spend/report?start_date=2026-02-01&end_date=2026-04-30&group_by=user&team_id=team-alpha",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&group_by=model_name",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&group_by=model_name&team_id=team-alpha",
    "/global/spend/tags?start_date=2026-01-01&end_date=2026-04-30",
    "/spend/tags",
    "/spend/tags?end_date=2026-02-02",
    "/spend/logs?start_date=2026-01-01&end_date=2026-02-28",
    "/spend/logs?start_date=2026-01-31&end_date=2026-02-01&user_id=u-int",
    "/team/spend/report?start_date=2026-01-01&end_date=2026-04-30&team_id=team-alpha",
    "/user/spend/report?start_date=2026-01-31&end_date=2026-03-01&user_id=u-int",
    "/key/spend/report?start_date=2026-01-01&end_date=2026-04-30&api_key=k1",
];

/// An application's answers to all of [`READS`].
pub(crate) async fn answers(app: &TestApp) -> Vec<Value> {
    let mut answers = Vec::new();
    for path in READS {
        let answer = app.get(path, crate::support::MASTER_KEY).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answers.push(answer.json());
    }
    answers
}

/// A second application on the same database. It does not know of the rollups, so it uses plain SQL on the log.
fn plain(app: &TestApp) -> TestApp {
    app.beside(crate::support::settings())
}

const DAYS: [&str; 5] = ["2026-01-31", "2026-02-01", "2026-02-02", "2026-02-28", "2026-03-01"];

/// Makes one random change; returns its name.
async fn change(random: &mut StdRng, connection: &mut PgConnection, next_id: &mut u32) -> &'static str {
    let day = DAYS[random.random_range(0..DAYS.len())];
    match random.random_range(0..100) {
        0..45 => {
            let rows: Vec<Value> = (0..random.random_range(1..12)).map(|_| row(random, next_id)).collect();
            crate::support::insert(&mut *connection, "LiteLLM_SpendLogs", &Value::Array(rows)).await;
            "insert"
        }
        45..55 => {
            sqlx::query(
                r#"UPDATE "LiteLLM_SpendLogs" SET spend = spend + $1, request_tags = '["moved", "prod"]', "user" = 'u-moved'
                   WHERE "startTime"::date = $2::text::date AND total_tokens % 3 = 0"#,
            )
            .bind(random.random_range(0.0..0.5))
            .bind(day)
            .execute(connection)
            .await
            .unwrap();
            "update"
        }
        55..63 => {
            sqlx::query(r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = "startTime" + interval '1 day' WHERE total_tokens % 7 = 0"#)
                .execute(connection)
                .await
                .unwrap();
            "move to the next day"
        }
        63..75 => {
            sqlx::query(
                r#"DELETE FROM "LiteLLM_SpendLogs" WHERE "startTime"::date = $1::text::date AND total_tokens % 2 = 0"#,
            )
            .bind(day)
            .execute(connection)
            .await
            .unwrap();
            "delete"
        }
        75..78 => {
            connection.execute(r#"TRUNCATE "LiteLLM_SpendLogs""#).await.unwrap();
            "truncate"
        }
        78..84 => {
            rollups::fold(connection).await.unwrap();
            "fold"
        }
        84..88 => {
            for rollup in ["usage", "customer"] {
                let before = "2026-12-31".parse().unwrap();
                for _ in 0..random.random_range(1..8) {
                    rollups::pack(&mut *connection, rollup, before, &[]).await.unwrap();
                }
            }
            rollups::pack_month(&mut *connection, "2026-12-31".parse().unwrap(), &[]).await.unwrap();
            split_parts(connection).await;
            "pack"
        }
        88..92 => {
            let range = DateRange { start: day.parse().unwrap(), end: day.parse().unwrap() };
            rollups::mark_dirty(connection, Some(range)).await.unwrap();
            "mark a day dirty"
        }
        92..96 => {
            rollups::recount(connection).await.unwrap();
            "recount"
        }
        _ => {
            // A crash between two statements of a fold is the same as a rollback.
            let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
            transaction.execute("SELECT litespend.fold(7)").await.unwrap();
            transaction.rollback().await.unwrap();
            "crash while folding"
        }
    }
}

fn row(random: &mut StdRng, next_id: &mut u32) -> Value {
    *next_id += 1;
    let pick = |random: &mut StdRng, from: &[Option<&str>]| from[random.random_range(0..from.len())].map(str::to_owned);
    let day = DAYS[random.random_range(0..DAYS.len())];
    let times = ["00:00:00", "00:00:00.001", "12:34:56.789", "23:59:59.999"];
    let time = format!("{day}T{}", times[random.random_range(0..times.len())]);
    let tags = [
        json!([]),
        json!(["prod"]),
        json!(["prod", "prod"]),
        json!(["a,b", "équipe", null]),
        json!({"no": "list"}),
        Value::Null,
    ];
    let spend = if random.random_range(0..4) == 0 { 0.0 } else { random.random_range(0.0..1.0) };
    let (prompt, completion) = (random.random_range(0..5000), random.random_range(0..2000));
    json!({
        "request_id": format!("r-{next_id}"), "call_type": "acompletion", "startTime": time, "endTime": time,
        "api_key": pick(random, &[Some("k1"), Some("k2"), Some("litellm_proxy_master_key"), Some("")]),
        "model": pick(random, &[Some("gpt-4o"), Some("模型"), Some("")]), "spend": spend,
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "user": pick(random, &[Some("u-int"), Some("u-admin"), Some(""), None]),
        "team_id": pick(random, &[Some("team-alpha"), Some("team-ghost"), Some("team-dup1"), Some("team-dup2"), None]),
        "end_user": pick(random, &[Some("cust-1"), Some("cust-2"), Some(""), None]),
        "request_tags": tags[random.random_range(0..tags.len())],
    })
}

async fn compare(app: &TestApp, plain: &TestApp, step: &str) {
    let (ours, log) = (answers(app).await, answers(plain).await);
    for ((path, ours), log) in READS.iter().zip(&ours).zip(&log) {
        if let Some(difference) = difference(ours, log, Lists::AsSets) {
            panic!("after {step}: {path}: {difference}\nrollups: {ours}\nlog: {log}");
        }
    }
}

#[tokio::test]
async fn every_read_equals_plain_sql_on_the_log_whatever_happens_to_it() {
    let app = TestApp::new().await;
    let plain = plain(&app);
    let seed: serde_json::Map<String, Value> = serde_json::from_slice(&crate::support::recording("seed.json")).unwrap();
    for (list, table) in [("teams", "LiteLLM_TeamTable"), ("users", "LiteLLM_UserTable")] {
        crate::support::insert(&mut app.pool.acquire().await.unwrap(), table, &seed[list]).await;
    }
    let mut random = StdRng::seed_from_u64(randomness::seed());
    let mut next_id = 0;
    let mut steps = 0;
    let mut connection = app.pool.acquire().await.unwrap();
    // Writers whose transactions stay open over several steps, and end with a commit or a rollback.
    let mut open: Vec<PgConnection> = Vec::new();
    for round in 0..110 {
        let step = if random.random_range(0..5) == 0 && open.len() < 3 {
            let mut writer = PgConnection::connect(app.database.url()).await.unwrap();
            writer.execute("SET lock_timeout = '2s'").await.unwrap();
            writer.execute("BEGIN").await.unwrap();
            let rows: Vec<Value> = (0..3).map(|_| row(&mut random, &mut next_id)).collect();
            crate::support::insert(&mut writer, "LiteLLM_SpendLogs", &Value::Array(rows)).await;
            open.push(writer);
            "an open transaction"
        } else if !open.is_empty() && random.random_range(0..3) == 0 {
            let mut writer = open.remove(0);
            writer.execute(if random.random_range(0..2) == 0 { "COMMIT" } else { "ROLLBACK" }).await.unwrap();
            "the end of a transaction"
        } else if open.is_empty() {
            change(&mut random, &mut connection, &mut next_id).await
        } else {
            // Only inserts, because TRUNCATE would wait for the open writers.
            let rows: Vec<Value> = (0..4).map(|_| row(&mut random, &mut next_id)).collect();
            crate::support::insert(&mut connection, "LiteLLM_SpendLogs", &Value::Array(rows)).await;
            rollups::fold(&mut connection).await.unwrap();
            if round % 4 == 0 {
                rollups::recount(&mut connection).await.unwrap();
            }
            "insert and fold beside open transactions"
        };
        steps += 1;
        compare(&app, &plain, &format!("step {steps} ({step})")).await;
    }
    for mut writer in open {
        writer.execute("COMMIT").await.unwrap();
    }
    folding::settle(&mut connection).await.unwrap();
    compare(&app, &plain, "everything is folded").await;
    for day in DAYS {
        assert!(rollups::verify_day(&mut connection, day.parse().unwrap()).await.unwrap().is_none(), "{day}");
    }
    println!("{steps} steps, {} reads compared after each", READS.len());
}

#[tokio::test]
async fn verify_names_the_first_difference() {
    let app = TestApp::seeded().await;
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    let day = "2026-02-01".parse().unwrap();
    assert!(rollups::verify_day(&mut connection, day).await.unwrap().is_none());
    for table in ["day_usage", "day_customer", "day_tag", "day_tag_owner"] {
        let statement = format!("UPDATE litespend.{table} SET spend = spend + 0.01 WHERE day = '2026-02-01'");
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *connection).await.unwrap();
        let found = rollups::verify_day(&mut connection, day).await.unwrap().expect("a difference");
        assert_eq!(found.day, day);
        rollups::mark_dirty(&mut connection, Some(DateRange { start: day, end: day })).await.unwrap();
        folding::settle(&mut connection).await.unwrap();
        assert!(rollups::verify_day(&mut connection, day).await.unwrap().is_none(), "{table}");
    }
}

#[tokio::test]
async fn a_trigger_that_fails_marks_the_day_and_the_insert_goes_on() {
    let app = TestApp::seeded().await;
    let plain = plain(&app);
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    // The column that only counting needs is missing. So the trigger's normal work fails, and its fallback does not.
    connection.execute("ALTER TABLE litespend.deltas RENAME COLUMN spend TO other").await.unwrap();
    connection.execute("ALTER TABLE litespend.deltas ADD CONSTRAINT refuse CHECK (sign = 0)").await.unwrap();
    let mut next_id = 0;
    let rows = Value::Array(vec![row(&mut StdRng::seed_from_u64(randomness::seed()), &mut next_id)]);
    crate::support::insert(&mut connection, "LiteLLM_SpendLogs", &rows).await;
    connection.execute("ALTER TABLE litespend.deltas DROP CONSTRAINT refuse").await.unwrap();
    connection.execute("ALTER TABLE litespend.deltas RENAME COLUMN other TO spend").await.unwrap();
    assert_eq!(rollups::status(&mut connection).await.unwrap().dirty_days, 1);
    compare(&app, &plain, "a failed trigger").await;
    folding::settle(&mut connection).await.unwrap();
    compare(&app, &plain, "the day was counted again").await;
}

#[tokio::test]
async fn rollups_count_a_partitioned_log() {
    let app = TestApp::seeded().await;
    let plain = plain(&app);
    let mut connection = app.pool.acquire().await.unwrap();
    rollups::remove(&mut connection).await.unwrap();
    // As in LiteLLM's runbook, the log becomes a table partitioned by startTime.
    sqlx::raw_sql(
        r#"ALTER TABLE "LiteLLM_SpendLogs" RENAME TO old;
           CREATE TABLE "LiteLLM_SpendLogs" (LIKE old INCLUDING DEFAULTS) PARTITION BY RANGE ("startTime");
           CREATE TABLE first PARTITION OF "LiteLLM_SpendLogs" FOR VALUES FROM (MINVALUE) TO ('2026-02-01');
           CREATE TABLE second PARTITION OF "LiteLLM_SpendLogs" FOR VALUES FROM ('2026-02-01') TO (MAXVALUE);
           INSERT INTO "LiteLLM_SpendLogs" SELECT * FROM old; DROP TABLE old;"#,
    )
    .execute(&mut *connection)
    .await
    .unwrap();
    litespend::store::database::migrate_schema(&mut connection).await.unwrap();
    rollups::attach(&mut connection).await.unwrap();
    compare(&app, &plain, "attaching").await;
    folding::settle(&mut connection).await.unwrap();
    compare(&app, &plain, "the backfill").await;
    let mut random = StdRng::seed_from_u64(randomness::seed());
    let mut next_id = 0;
    for step in 0..12 {
        let what = change(&mut random, &mut connection, &mut next_id).await;
        compare(&app, &plain, &format!("step {step} ({what}) on partitions")).await;
    }
    folding::settle(&mut connection).await.unwrap();
    let span = rollups::log_span(&mut connection).await.unwrap();
    for day in span.iter().flat_map(|span| span.start.iter_days().take_while(|day| *day <= span.end)) {
        assert!(rollups::verify_day(&mut connection, day).await.unwrap().is_none(), "{day}");
    }
}

#[tokio::test]
async fn reads_go_on_from_the_log_when_the_rollups_are_removed_under_them() {
    let app = TestApp::seeded().await;
    let plain = plain(&app);
    rollups::remove(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    assert!(app.state.has_rollups(), "not looked yet");
    compare(&app, &plain, "the removal").await;
}

/// The bytes that `store::rollups::packed` says. Another layout needs another number in the column `layout`.
#[tokio::test]
async fn packed_days_have_the_golden_bytes() {
    let app = TestApp::new().await;
    let mut connection = app.pool.acquire().await.unwrap();
    app.execute(
        "INSERT INTO litespend.day_usage (day, user_id, team_id, api_key, model, requests, spend, total_tokens,
                                          prompt_tokens, completion_tokens)
         VALUES ('2026-03-01', 1, 2, 3, -4, 5, 0.125, 6, 7, 8), ('2026-03-01', 1, 2, 3, 2147483647, 1, -1e300, 0, 0, -1)",
    )
    .await;
    app.execute(
        "INSERT INTO litespend.day_customer (day, end_user, team_id, api_key, model, requests, spend, total_tokens)
         VALUES ('2026-03-01', 1, 2, 3, -4, 5, 0.125, 6)",
    )
    .await;
    folding::settle(&mut connection).await.unwrap();
    let packed: Vec<(String, i16, String)> = sqlx::query_as(
        "SELECT rollup, layout, encode(entries, 'hex') FROM litespend.packed_days WHERE rollup <> 'usage_month' ORDER BY 1",
    )
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    let first = "000000010000000200000003fffffffc00000000000000053fc00000000000000000000000000006";
    let usage = format!(
        "{first}00000000000000070000000000000008\
         0000000100000002000000037fffffff0000000000000001fe37e43c8800759c0000000000000000\
         0000000000000000ffffffffffffffff"
    );
    assert_eq!(packed, [("customer".to_owned(), 1, first.to_owned()), ("usage".to_owned(), 1, usage)]);
    // A layout that nobody knows yet: the day is read from its rows.
    let report = "/global/spend/report?start_date=2026-03-01&end_date=2026-03-01&group_by=customer";
    let known = app.get(report, crate::support::MASTER_KEY).await.text;
    app.execute("UPDATE litespend.packed_days SET layout = 2, entries = '\\x00'").await;
    assert_eq!(app.get(report, crate::support::MASTER_KEY).await.text, known);
}

#[tokio::test]
async fn a_packed_day_is_unpacked_by_any_change_and_says_the_same() {
    let app = TestApp::seeded().await;
    let plain = plain(&app);
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    let packed = async |connection: &mut PgConnection| -> Vec<(String, chrono::NaiveDate)> {
        sqlx::query_as(
            "SELECT rollup, day FROM litespend.packed_days WHERE part = 0 AND rollup <> 'usage_month' ORDER BY 1, 2",
        )
        .fetch_all(connection)
        .await
        .unwrap()
    };
    let all = packed(&mut connection).await;
    let days: i64 = sqlx::query_scalar("SELECT count(DISTINCT day) FROM litespend.day_usage")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    assert_eq!(i64::try_from(all.len()).unwrap(), 2 * days);
    compare(&app, &plain, "packing").await;
    let months: i64 = sqlx::query_scalar("SELECT count(*) FROM litespend.packed_days WHERE rollup = 'usage_month'")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    assert!(months > 0);
    // Reads really use the packed days: if one holds something else, the answer shows that.
    sqlx::query("UPDATE litespend.packed_days SET entries = ''").execute(&mut *connection).await.unwrap();
    for path in [READS[0], "/global/spend/report?start_date=2026-02-01&end_date=2026-02-28&group_by=api_key"] {
        assert_eq!(app.get(path, crate::support::MASTER_KEY).await.text, "[]", "{path}");
    }
    sqlx::query("DELETE FROM litespend.packed_days").execute(&mut *connection).await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    compare(&app, &plain, "packing again").await;

    // When a new row of one day is folded, both packed values of that day are removed, and no others.
    let mut next_id = 0;
    let mut row = row(&mut StdRng::seed_from_u64(randomness::seed()), &mut next_id);
    row["startTime"] = json!("2026-02-01T10:00:00");
    crate::support::insert(&mut connection, "LiteLLM_SpendLogs", &json!([row])).await;
    compare(&app, &plain, "a delta beside packed days").await;
    rollups::fold(&mut connection).await.unwrap();
    let left = packed(&mut connection).await;
    assert_eq!(left.len(), all.len() - 2);
    assert!(left.iter().all(|(_, day)| day.to_string() != "2026-02-01"));
    let february: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM litespend.packed_days WHERE rollup = 'usage_month' AND day = '2026-02-01'",
    )
    .fetch_one(&mut *connection)
    .await
    .unwrap();
    assert_eq!(february, 0);
    compare(&app, &plain, "folding beside packed days").await;
    folding::settle(&mut connection).await.unwrap();
    assert_eq!(packed(&mut connection).await, all);
    sqlx::query("TRUNCATE litespend.day_customer").execute(&mut *connection).await.unwrap();
    assert_eq!(packed(&mut connection).await.len(), all.len() / 2);
}

/// Splits packed days of customers into parts of two entries each, as if the days were thousands of times larger.
async fn split_parts(connection: &mut PgConnection) -> u64 {
    let long = "rollup = 'customer' AND length(entries) > 80";
    let split = format!(
        "WITH long AS (DELETE FROM litespend.packed_days WHERE {long} RETURNING *)
         INSERT INTO litespend.packed_days
         SELECT rollup, day, 1000 + number, substring(entries FROM number * 80 + 1 FOR 80)
         FROM long, generate_series(0, (length(entries) - 1) / 80) AS number"
    );
    let parts = sqlx::raw_sql(sqlx::AssertSqlSafe(split)).execute(&mut *connection).await.unwrap().rows_affected();
    sqlx::query("UPDATE litespend.packed_days SET part = part - 1000 WHERE part >= 1000")
        .execute(connection)
        .await
        .unwrap();
    parts
}

#[tokio::test]
async fn packed_days_in_many_parts_say_the_same() {
    let app = TestApp::seeded().await;
    let plain = plain(&app);
    let mut connection = app.pool.acquire().await.unwrap();
    // One customer's calls with one key and one model in two teams. These entries are a single one in a report,
    // whatever parts they are in.
    let (mut random, mut next_id) = (StdRng::seed_from_u64(randomness::seed()), 0);
    for team in ["team-a", "team-b", "team-c", "team-d", "team-e"] {
        for customer in ["customer-a", "customer-b"] {
            let mut row = row(&mut random, &mut next_id);
            row["startTime"] = json!("2026-02-01T10:00:00");
            row["end_user"] = json!(customer);
            row["team_id"] = json!(team);
            row["api_key"] = json!("one-key");
            row["model"] = json!("one-model");
            crate::support::insert(&mut connection, "LiteLLM_SpendLogs", &json!([row])).await;
        }
    }
    folding::settle(&mut connection).await.unwrap();
    assert!(split_parts(&mut connection).await > 10);
    compare(&app, &plain, "days in many parts").await;

    // More strings than the dictionary cache keeps between reads.
    sqlx::query(
        "INSERT INTO litespend.words (word, digest)
         SELECT 'word ' || number, litespend.digest('word ' || number) FROM generate_series(1, 200001) AS number",
    )
    .execute(&mut *connection)
    .await
    .unwrap();
    compare(&app, &plain, "more texts than are kept").await;
    split_parts(&mut connection).await;
    let mut row = row(&mut random, &mut next_id);
    row["startTime"] = json!("2026-02-01T11:00:00");
    crate::support::insert(&mut connection, "LiteLLM_SpendLogs", &json!([row])).await;
    compare(&app, &plain, "more texts than are kept, and a delta").await;
}

#[tokio::test]
async fn rollups_that_were_installed_anew_keep_their_own_words() {
    let app = TestApp::seeded().await;
    let plain = plain(&app);
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    compare(&app, &plain, "the first installation").await;
    // The dictionary's numbers start over and are given to other strings first. The server has not checked in between.
    rollups::remove(&mut connection).await.unwrap();
    sqlx::query(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, "user", team_id, end_user)
           VALUES ('early', 'acompletion', 'a-new-key', 1.5, '2026-01-02', '2026-01-02', 'a-new-model', 'a-new-user', 'a-new-team', 'a-new-customer')"#,
    )
    .execute(&mut *connection)
    .await
    .unwrap();
    litespend::store::database::migrate_schema(&mut connection).await.unwrap();
    rollups::attach(&mut connection).await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    assert!(app.state.has_rollups());
    compare(&app, &plain, "the second installation").await;
}
