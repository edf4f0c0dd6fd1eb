//! Days with more names than the cache keeps between reads. Every name must be in the answer: from rows and from packed
//! days, folded and not.

use chrono::NaiveDate;
use litespend::store::rollups;
use rustc_hash::FxHashMap;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::support::{MASTER_KEY, TestApp};

/// Adds entries of `last` names to a day, each with a customer, a user and a model of its own, and entries of ten of
/// these names to the next day. The names end with as many letters.
async fn add_names(connection: &mut PgConnection, last: u32, letters: usize, tables: &[&str]) {
    let letters = "x".repeat(letters);
    let mut statement = format!(
        "SET statement_timeout = '5min';
         INSERT INTO litespend.words (word, digest)
         SELECT name, litespend.digest(name) FROM generate_series(1, {last}) AS n, concat('name-', n, '{letters}') AS name
         ORDER BY n;
         INSERT INTO litespend.words (word, digest) VALUES ('one-key', litespend.digest('one-key'));
         CREATE TEMPORARY TABLE named AS
         SELECT '2026-02-01'::date AS day, id, (SELECT max(id) FROM litespend.words) AS key FROM litespend.words
         WHERE word <> 'one-key' ORDER BY id;
         INSERT INTO named SELECT '2026-02-02', id, key FROM named LIMIT 10;"
    );
    for table in tables {
        statement += match *table {
            "day_customer" => "INSERT INTO litespend.day_customer SELECT day, id, 0, key, id, 1, 0.5, 15 FROM named;",
            _ => "INSERT INTO litespend.day_usage SELECT day, 0, id, key, id, 1, 0.5, 10, 5, 15 FROM named;",
        };
    }
    statement += "DROP TABLE named";
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.unwrap();
}

/// Adds an unfolded call with a new name to the day with the names.
async fn add_delta(app: &TestApp, name: &str) {
    let statement = format!(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, "user", end_user)
           VALUES ('{name}', 'acompletion', 'one-key', 0.5, '2026-02-01', '2026-02-01', 'name-{name}', 'name-{name}', 'name-{name}')"#
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();
}

/// Checks that every name appears once a day, with its model, and that none is missing. Ten names have a second day.
async fn expect_names(app: &TestApp, grouping: &str, names: usize) {
    let path = format!("/global/spend/report?start_date=2026-02-01&end_date=2026-02-02&group_by={grouping}");
    let started = std::time::Instant::now();
    let answer = app.get(&path, MASTER_KEY).await;
    println!("{grouping}: {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(answer.status, 200, "{path}: {:.300}", answer.text);
    // A group and its model: each name appears in two of the quoted strings.
    let mut found: FxHashMap<&str, usize> = FxHashMap::default();
    for text in answer.text.split('"').filter(|text| text.starts_with("name-")) {
        *found.entry(text).or_default() += 1;
    }
    assert_eq!(found.len(), names, "{path}");
    assert_eq!(found.values().sum::<usize>(), 2 * (names + 10), "{path}");
    assert!(found.values().all(|count| count % 2 == 0), "{path}: a group without its model");
}

async fn expect_summary(app: &TestApp, names: usize) {
    let summary = app.get("/spend/logs?start_date=2026-02-01&end_date=2026-02-03", MASTER_KEY).await;
    assert_eq!(summary.status, 200, "{:.300}", summary.text);
    // Each name appears as a user and as a model.
    assert_eq!(summary.text.split('"').filter(|text| text.starts_with("name-")).count(), 2 * (names + 10));
}

async fn pack_all(connection: &mut PgConnection) {
    let before: NaiveDate = "2026-12-31".parse().unwrap();
    for rollup in ["usage", "customer"] {
        while rollups::pack(&mut *connection, rollup, before, &[]).await.unwrap().is_some() {}
    }
}

#[tokio::test]
async fn a_day_with_more_names_than_are_kept_is_answered_whole() {
    let app = TestApp::new().await;
    let mut connection = app.pool.acquire().await.unwrap();
    add_names(&mut connection, 200_001, 0, &["day_customer", "day_usage"]).await;
    expect_names(&app, "customer", 200_001).await;
    expect_names(&app, "user", 200_001).await;
    expect_summary(&app, 200_001).await;
    add_delta(&app, "first").await;
    expect_names(&app, "user", 200_002).await;
    while rollups::fold(&mut connection).await.unwrap() > 0 {}
    pack_all(&mut connection).await;
    expect_names(&app, "customer", 200_002).await;
    add_delta(&app, "second").await;
    expect_names(&app, "customer", 200_003).await;
    expect_summary(&app, 200_003).await;
}

async fn expect_a_day_of(names: u32, letters: usize) {
    let app = TestApp::new().await;
    let mut connection = app.pool.acquire().await.unwrap();
    sqlx::raw_sql("DROP INDEX litespend.day_customer_pair").execute(&mut *connection).await.unwrap();
    add_names(&mut connection, names, letters, &["day_customer"]).await;
    let names = usize::try_from(names).unwrap();
    expect_names(&app, "customer", names).await;
    pack_all(&mut connection).await;
    expect_names(&app, "customer", names).await;
}

/// There are more names than are kept between reads, and more text than one read keeps while it runs.
#[tokio::test]
async fn a_day_with_more_text_than_a_read_keeps_is_answered_whole() {
    expect_a_day_of(220_000, 40).await;
}

#[tokio::test]
#[ignore = "it takes a minute: ./dev test-slow"]
async fn a_day_with_a_million_names_is_answered_whole_in_full() {
    expect_a_day_of(1_000_000, 0).await;
}

#[tokio::test]
async fn long_names_are_not_kept_beyond_a_bound_and_none_is_lost() {
    let app = TestApp::new().await;
    let mut connection = app.pool.acquire().await.unwrap();
    // 12,000 names of 4 kB: few names, but more bytes than the cache keeps.
    add_names(&mut connection, 12_000, 0, &["day_customer"]).await;
    sqlx::raw_sql("UPDATE litespend.words SET word = word || '-' || repeat('x', 4000) WHERE word LIKE 'name-%'")
        .execute(&mut *connection)
        .await
        .unwrap();
    expect_names(&app, "customer", 12_000).await;
    pack_all(&mut connection).await;
    expect_names(&app, "customer", 12_000).await;
}
