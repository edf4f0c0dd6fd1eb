//! The log of a database that litespend owns: partitioned by month from the start, or later while the server runs.

use std::time::{Duration, Instant};

use chrono::{Datelike, Months, NaiveDate, Utc};
use litespend::booking::months as keeper;
use litespend::booking::months::{KnownMonths, Maintained};
use litespend::rollups::folding;
use litespend::store::log::months;
use litespend::store::log::months::{Copying, Layout};
use litespend::store::rollups;
use serde_json::{Value, json};

use crate::partitions::{expect_exact, is_read_from_rollups};
use crate::support::{MASTER_KEY, TestApp};

const WHOLE: (&str, &str) = ("2026-01-20", "2026-03-20");

async fn names(app: &TestApp) -> Vec<String> {
    let mut connection = app.pool.acquire().await.unwrap();
    months::partitions(&mut connection).await.unwrap().into_iter().map(|partition| partition.name).collect()
}

async fn book(app: &TestApp, id: &str, day: NaiveDate) -> Value {
    let record =
        json!({"idempotency_key": id, "model": "gpt-4o", "cost": 0.25, "start_time": format!("{day}T10:00:00Z")});
    let answer = app.post("/spend/usage", MASTER_KEY, &record).await;
    if answer.status == 409 { Value::from("conflict") } else { answer.json()["results"][0]["status"].clone() }
}

fn name_of(day: NaiveDate) -> String {
    format!("LiteLLM_SpendLogs_{:04}_{:02}", day.year(), day.month())
}

#[tokio::test]
async fn a_new_log_has_a_partition_for_each_month_of_its_records_and_for_the_coming_months() {
    let app = TestApp::new().await;
    assert_eq!(names(&app).await, ["LiteLLM_SpendLogs_default"]);
    let today = Utc::now().date_naive();
    let old = NaiveDate::from_ymd_opt(2024, 2, 29).unwrap();
    assert_eq!(book(&app, "today", today).await, "recorded");
    assert_eq!(book(&app, "old", old).await, "recorded");
    let mut expected = vec![name_of(old), name_of(today), "LiteLLM_SpendLogs_default".to_owned()];
    assert_eq!(names(&app).await, expected);
    // An ID is one record, whichever month it is sent for.
    assert_eq!(book(&app, "old", today).await, "conflict");
    assert_eq!(book(&app, "old", old).await, "duplicate");

    let kept = keeper::maintain(&app.pool, today).await.unwrap();
    assert_eq!(kept, Maintained { created: months::AHEAD, misplaced: 0 });
    for ahead in 1..=months::AHEAD {
        expected.insert(1 + ahead as usize, name_of(today + Months::new(ahead)));
    }
    assert_eq!(names(&app).await, expected);
    assert_eq!(keeper::maintain(&app.pool, today).await.unwrap(), Maintained::default());
    // Nothing had to be counted again.
    assert!(is_read_from_rollups(&app, "2024-02-29", "2024-02-29").await);
    expect_exact(&app, "created").await;
}

#[tokio::test]
async fn rows_outside_the_months_wait_in_the_default_partition_until_they_are_moved() {
    let app = TestApp::seeded().await;
    let rest = r#"SELECT count(*)::text FROM "LiteLLM_SpendLogs_default""#;
    let all: i64 = app.scalar(rest).await.parse().unwrap();
    assert!(all > 100, "{all}");
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    // The server creates no partition for which it would have to move rows, but says that there are some.
    let kept = keeper::maintain(&app.pool, NaiveDate::from_ymd_opt(2026, 2, 10).unwrap()).await.unwrap();
    assert!((1..4).contains(&kept.created) && kept.misplaced > 100, "{kept:?}");
    assert_eq!(app.scalar(rest).await, all.to_string());
    for month in months::misplaced(&mut connection).await.unwrap() {
        assert!(months::add(&mut connection, month, true).await.unwrap(), "{month}");
    }
    assert_eq!(app.scalar(rest).await, "0");
    assert_eq!(app.scalar(r#"SELECT count(*)::text FROM "LiteLLM_SpendLogs""#).await, all.to_string());
    assert_eq!(rollups::status(&mut connection).await.unwrap().pending, 0, "moved rows were counted again");
    assert!(is_read_from_rollups(&app, WHOLE.0, WHOLE.1).await);
    expect_exact(&app, "moved").await;
    // The triggers of the default partition work again.
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model)
           VALUES ('early', 'acompletion', 'k', 1, '2001-02-03 10:00', '2001-02-03 10:01', 'm')"#,
    )
    .await;
    expect_exact(&app, "a row in the default partition").await;
    assert_eq!(months::misplaced_rows(&mut connection).await.unwrap(), 1);
}

#[tokio::test]
async fn a_month_is_pruned_by_dropping_its_partition() {
    let app = TestApp::seeded().await;
    let mut connection = app.pool.acquire().await.unwrap();
    for month in months::misplaced(&mut connection).await.unwrap() {
        assert!(months::add(&mut connection, month, true).await.unwrap(), "{month}");
    }
    app.execute(r#"DROP TABLE "LiteLLM_SpendLogs_2026_01""#).await;
    expect_exact(&app, "dropped").await;
    rollups::partitions::follow(&mut connection).await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    assert!(is_read_from_rollups(&app, WHOLE.0, WHOLE.1).await);
    expect_exact(&app, "followed").await;
}

/// A log as earlier versions created it, counted by the rollups.
async fn plain() -> TestApp {
    let app = TestApp::seeded().await;
    app.execute(include_str!("../fixtures/plain_log.sql")).await;
    app.execute("SELECT litespend.attach()").await;
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    assert_eq!(months::layout(&mut connection).await.unwrap(), Layout::Plain);
    drop(connection);
    app
}

const CHANGES: [&str; 4] = [
    r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model)
       SELECT 'while-' || n || random(), 'acompletion', 'k', 0.125, timestamp '2026-01-20' + n * interval '11 hours',
              '2026-02-10', 'm' FROM generate_series(0, 200) AS n"#,
    r#"UPDATE "LiteLLM_SpendLogs" SET spend = spend + 1 WHERE "startTime" BETWEEN '2026-02-01' AND '2026-02-03'"#,
    r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = "startTime" + interval '40 days' WHERE "startTime" < '2026-01-25'"#,
    r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id IN (
           SELECT request_id FROM "LiteLLM_SpendLogs" ORDER BY md5(request_id) LIMIT 40)"#,
];

#[tokio::test]
async fn a_plain_log_is_partitioned_while_it_changes() {
    let app = plain().await;
    let mut connection = app.pool.acquire().await.unwrap();
    months::begin_copy(&mut connection).await.unwrap();
    for change in CHANGES {
        app.execute(change).await;
    }
    let mut state = Copying { copied: 0, after: None, broken: false };
    for _ in 0..3 {
        (_, state) = months::copy_batch(&mut connection, &state).await.unwrap();
        for change in CHANGES {
            app.execute(change).await;
        }
    }
    // What was copied is known after an interruption.
    let known = months::copying(&mut connection).await.unwrap().unwrap();
    assert_eq!((known.copied, &known.after), (state.copied, &state.after));
    while let (1.., next) = months::copy_batch(&mut connection, &state).await.unwrap() {
        state = next;
    }
    months::complete_copy(&mut connection, NaiveDate::from_ymd_opt(2026, 3, 1).unwrap()).await.unwrap();
    for change in CHANGES {
        app.execute(change).await;
    }
    for month in months::months_of_either(&mut connection).await.unwrap() {
        assert!(months::copy_agrees(&mut connection, month).await.unwrap(), "{month}");
    }
    let rows = app.scalar(r#"SELECT count(*) || ' ' || round(sum(spend)::numeric, 9) FROM "LiteLLM_SpendLogs""#).await;
    folding::settle(&mut connection).await.unwrap();
    assert!(months::swap(&mut connection).await.unwrap());
    assert_eq!(months::layout(&mut connection).await.unwrap(), Layout::Partitioned);
    assert_eq!(
        app.scalar(r#"SELECT count(*) || ' ' || round(sum(spend)::numeric, 9) FROM "LiteLLM_SpendLogs""#).await,
        rows
    );
    // The rollups still hold, and nothing is counted again.
    assert_eq!(rollups::status(&mut connection).await.unwrap().pending, 0);
    assert!(is_read_from_rollups(&app, WHOLE.0, WHOLE.1).await);
    expect_exact(&app, "replaced").await;
    for change in CHANGES {
        app.execute(change).await;
    }
    folding::settle(&mut connection).await.unwrap();
    assert!(is_read_from_rollups(&app, WHOLE.0, WHOLE.1).await);
    expect_exact(&app, "changed after").await;
    let left = app
        .scalar(
            "SELECT COALESCE(string_agg(relname, ' '), '') FROM pg_class WHERE relname LIKE '%\\_month%' AND relname LIKE 'LiteLLM\\_SpendLogs%'",
        )
        .await;
    assert_eq!(left, "");
}

#[tokio::test]
async fn a_copy_that_missed_a_change_is_not_used() {
    let app = plain().await;
    let mut connection = app.pool.acquire().await.unwrap();
    months::begin_copy(&mut connection).await.unwrap();
    app.execute(r#"ALTER TABLE "LiteLLM_SpendLogs_by_month" ADD CHECK (spend < 1000)"#).await;
    // The writer does not fail.
    app.execute(
        r#"UPDATE "LiteLLM_SpendLogs" SET spend = 1000 WHERE request_id = (SELECT min(request_id) FROM "LiteLLM_SpendLogs")"#,
    )
    .await;
    assert!(months::copying(&mut connection).await.unwrap().unwrap().broken);
    assert!(!months::swap(&mut connection).await.unwrap());
    months::cancel_copy(&mut connection).await.unwrap();
    assert_eq!(months::layout(&mut connection).await.unwrap(), Layout::Plain);
    let left = r#"SELECT (SELECT count(*) FROM pg_class WHERE relname LIKE '%by\_month%')
                      || ' ' || (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'litespend\_mirror%')"#;
    assert_eq!(app.scalar(left).await, "0 0");
    expect_exact(&app, "cancelled").await;
}

#[tokio::test]
async fn a_month_whose_name_is_taken_holds_nobody_up() {
    let app = TestApp::new().await;
    let today = Utc::now().date_naive();
    let old = NaiveDate::from_ymd_opt(2024, 2, 29).unwrap();
    assert_eq!(book(&app, "first", old).await, "recorded");
    app.execute(r#"ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION "LiteLLM_SpendLogs_2024_02""#).await;
    // Another server, which has not seen the partition.
    let other = app.another().await;
    assert_eq!(book(&other, "second", old).await, "recorded");
    let kept = keeper::maintain(&app.pool, today).await.unwrap();
    assert_eq!(kept, Maintained { created: 1 + months::AHEAD, misplaced: 1 });
    expect_exact(&app, "a detached month").await;
}

#[tokio::test]
async fn who_may_read_the_log_may_read_the_partitioned_one() {
    let app = plain().await;
    app.execute(r#"GRANT SELECT ON "LiteLLM_SpendLogs" TO pg_monitor"#).await;
    let mut connection = app.pool.acquire().await.unwrap();
    months::begin_copy(&mut connection).await.unwrap();
    let mut state = Copying { copied: 0, after: None, broken: false };
    while let (1.., next) = months::copy_batch(&mut connection, &state).await.unwrap() {
        state = next;
    }
    // An index that came meanwhile would be lost.
    app.execute(r#"CREATE INDEX later ON "LiteLLM_SpendLogs" (model)"#).await;
    assert!(months::swap(&mut connection).await.unwrap_err().to_string().contains("indexes of the log changed"));
    app.execute("DROP INDEX later").await;
    assert!(months::swap(&mut connection).await.unwrap());
    let may = r#"SELECT has_table_privilege('pg_monitor', '"LiteLLM_SpendLogs"', 'SELECT')::text"#;
    assert_eq!(app.scalar(may).await, "true");
}

#[tokio::test]
async fn a_row_that_comes_while_its_partition_is_created_gets_into_it() {
    let app = TestApp::new().await;
    let month = NaiveDate::from_ymd_opt(2024, 5, 1).unwrap();
    // A reader of the default partition keeps the new partition waiting.
    let mut reader = app.pool.begin().await.unwrap();
    sqlx::query(r#"SELECT FROM "LiteLLM_SpendLogs_default""#).execute(&mut *reader).await.unwrap();
    let (mut creator, writer) = (app.pool.acquire().await.unwrap(), app.pool.clone());
    let created = tokio::spawn(async move {
        sqlx::query_scalar::<_, bool>(r#"SELECT litespend.add_month(to_regclass('"LiteLLM_SpendLogs"'), $1, false)"#)
            .bind(month)
            .fetch_one(&mut *creator)
            .await
    });
    let waiting = "SELECT count(*)::text FROM pg_locks
                   WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while app.scalar(waiting).await != "1" {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let written = tokio::spawn(async move {
        sqlx::query(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime")
               VALUES ('while', 'acompletion', '2024-05-10', '2024-05-10')"#,
        )
        .execute(&writer)
        .await
    });
    while app.scalar(waiting).await != "2" {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    reader.commit().await.unwrap();
    assert!(created.await.unwrap().unwrap());
    written.await.unwrap().unwrap();
    let place = r#"SELECT tableoid::regclass::text FROM "LiteLLM_SpendLogs""#;
    assert_eq!(app.scalar(place).await, r#""LiteLLM_SpendLogs_2024_05""#);
}

/// Reads the default partition, as a long report does, until the transaction ends.
async fn long_report(app: &TestApp) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut reader = app.pool.begin().await.unwrap();
    sqlx::query(r#"SELECT FROM "LiteLLM_SpendLogs_default""#).execute(&mut *reader).await.unwrap();
    reader
}

#[tokio::test]
async fn a_booking_waits_a_moment_for_a_report_that_holds_up_the_partition_of_its_month() {
    let app = TestApp::new().await;
    let old = NaiveDate::from_ymd_opt(2024, 5, 10).unwrap();
    let reader = long_report(&app).await;
    let report = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        reader.commit().await.unwrap();
    };
    let (booked, ()) = tokio::join!(book(&app, "while", old), report);
    assert_eq!(booked, "recorded");
    assert_eq!(names(&app).await, [name_of(old), "LiteLLM_SpendLogs_default".to_owned()]);
}

#[tokio::test]
async fn a_month_whose_partition_could_not_be_created_is_tried_again_later() {
    let app = TestApp::new().await;
    let (old, now) = (NaiveDate::from_ymd_opt(2024, 5, 10).unwrap(), Instant::now());
    let known = KnownMonths::default();
    let create = async |seconds: u64| {
        let mut connection = app.pool.acquire().await.unwrap();
        known.create(&mut connection, [old].into_iter(), now + Duration::from_secs(seconds)).await.unwrap();
        names(&app).await.len() == 2
    };
    let reader = long_report(&app).await;
    assert!(!create(0).await);
    reader.commit().await.unwrap();
    // For a minute, bookings do not wait again.
    assert!(!create(59).await);
    assert!(create(61).await);
}
