//! Folding under adverse conditions: slow batches, many days, other sessions; and folding without any work.

use std::sync::Arc;
use std::time::Duration;

use chrono::NaiveDate;
use litespend::rollups::folding;
use litespend::rollups::folding::Batches;
use litespend::store::rollups;
use litespend::store::rollups::backlog;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::support::{MASTER_KEY, TestApp};

/// Adds rows of one day, each with a model and tags that no other row has.
async fn add_rows(app: &TestApp, rows: i32, tags: i32) {
    sqlx::query(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, request_tags)
           SELECT 'r' || n, 'acompletion', 'key', 0.5, '2026-02-01', '2026-02-01', 'model-' || n,
                  (SELECT jsonb_agg('tag-' || n || '-' || t) FROM generate_series(1, $2) AS t)
           FROM generate_series(1, $1) AS n"#,
    )
    .bind(rows)
    .bind(tags)
    .execute(&app.pool)
    .await
    .unwrap();
}

async fn expect_counted(connection: &mut PgConnection) {
    let day: NaiveDate = "2026-02-01".parse().unwrap();
    assert_eq!(rollups::status(&mut *connection).await.unwrap().pending, 0);
    let found = rollups::verify_day(&mut *connection, day).await.unwrap();
    assert!(found.is_none(), "{found:?}");
}

#[tokio::test]
async fn a_batch_of_deltas_with_many_tags_is_small() {
    let app = TestApp::new().await;
    add_rows(&app, 1_500, 100).await;
    let mut connection = app.pool.acquire().await.unwrap();
    let mut batches = Vec::new();
    loop {
        let folded = rollups::fold(&mut connection).await.unwrap();
        if folded == 0 {
            break;
        }
        batches.push(folded);
    }
    assert_eq!(batches.iter().sum::<i64>(), 1_500);
    assert!(batches.iter().all(|folded| *folded < 700), "{batches:?}");
    expect_counted(&mut connection).await;
}

#[tokio::test]
async fn a_batch_that_takes_too_long_is_halved_until_it_does_not() {
    let app = TestApp::new().await;
    add_rows(&app, 200, 1).await;
    // A database that is slow to add strings to the dictionary.
    app.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_sleep(0.003); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON litespend.words FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
    let mut connection = app.pool.acquire().await.unwrap();
    let limit = Duration::from_millis(400);
    let whole = rollups::fold_batch(&mut connection, rollups::BATCH, limit).await.unwrap_err();
    assert_eq!(whole.as_database_error().unwrap().code().as_deref(), Some("57014"));
    let mut batches = Batches::within(limit);
    let first = batches.fold(&mut connection).await.unwrap();
    assert!(first > 0 && first < 200, "{first}");
    assert!(batches.size() < 400, "{}", batches.size());
    while batches.fold(&mut connection).await.unwrap() > 0 {}
    expect_counted(&mut connection).await;
}

#[tokio::test]
async fn packing_a_day_does_not_look_at_the_others() {
    let app = TestApp::new().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, end_user)
           SELECT 'r' || day, 'acompletion', 'key', 0.5, day, day, 'model', 'customer'
           FROM generate_series(timestamp '2000-01-01', '2026-01-31', interval '1 day') AS day"#,
    )
    .await;
    let mut connection = app.pool.acquire().await.unwrap();
    while rollups::fold(&mut connection).await.unwrap() > 0 {}
    let before: NaiveDate = "2026-12-31".parse().unwrap();
    let waiting = backlog::backlog(&mut connection, before).await.unwrap();
    // Each day of two rollups, and each month.
    assert_eq!(waiting.days_to_pack, 2 * 9_528 + 313);
    // Measured in a new session, because the statistics of this one do not include what another session has just
    // counted.
    let mut session = sqlx::PgConnection::connect(app.database.url()).await.unwrap();
    for rollup in ["usage", "customer"] {
        let mut transaction = session.begin().await.unwrap();
        for _ in 0..20 {
            sqlx::query("SELECT litespend.pack($1, $2, NULL)")
                .bind(rollup)
                .bind(before)
                .execute(&mut *transaction)
                .await
                .unwrap();
        }
        let looked: i64 = sqlx::query_scalar(
            "SELECT sum(COALESCE(idx_scan, 0) + seq_scan)::bigint FROM pg_stat_xact_user_tables
             WHERE schemaname = 'litespend' AND relname IN ('day_usage', 'day_customer')",
        )
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
        assert!(looked <= 40, "{rollup}: {looked} scans for 20 days");
        transaction.commit().await.unwrap();
    }
    let packed = backlog::backlog(&mut connection, before).await.unwrap();
    assert_eq!(packed.days_to_pack, waiting.days_to_pack - 40);
    // A day that changes after it was packed waits; it is not due for a while.
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 1 WHERE "startTime" = '2026-01-31'"#).await;
    while rollups::fold(&mut connection).await.unwrap() > 0 {}
    let changed: NaiveDate = "2026-01-31".parse().unwrap();
    let waiting = backlog::backlog(&mut connection, before).await.unwrap();
    assert_eq!(waiting.days_to_pack, packed.days_to_pack + 2);
    assert_ne!(rollups::pack_due(&mut connection, "usage", before).await.unwrap(), Some(changed));
    assert_eq!(rollups::pack_any(&mut connection, "usage", before).await.unwrap(), Some(changed));
}

#[tokio::test]
async fn a_fold_that_would_overlook_a_day_packed_meanwhile_begins_again() {
    let app = TestApp::seeded().await;
    let mut folder = app.pool.acquire().await.unwrap();
    let mut packer = app.pool.acquire().await.unwrap();
    folding::settle(&mut packer).await.unwrap();
    app.execute("DELETE FROM litespend.packed_days").await;
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model)
           VALUES ('late', 'acompletion', 'key', 0.5, '2026-03-01', '2026-03-01', 'model')"#,
    )
    .await;
    let mut fold = folder.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    fold.execute("SELECT 1 FROM litespend.turn").await.unwrap();
    let day = rollups::pack_any(&mut packer, "usage", "2026-12-31".parse().unwrap()).await.unwrap();
    assert_eq!(day, "2026-03-01".parse().ok());
    let overtaken = fold.execute("SELECT litespend.fold(100)").await.unwrap_err();
    assert_eq!(overtaken.as_database_error().unwrap().code().as_deref(), Some("40001"));
    fold.rollback().await.unwrap();
    assert_eq!(rollups::fold(&mut folder).await.unwrap(), 1);
    let stale: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM litespend.packed_days WHERE rollup = 'usage' AND day = '2026-03-01')",
    )
    .fetch_one(&mut *folder)
    .await
    .unwrap();
    assert!(!stale);
}

#[tokio::test]
async fn several_that_count_fold_and_compare_at_once_do_not_fail() {
    let app = TestApp::seeded().await;
    let url = app.database.url();
    let work = async || {
        let mut connection = PgConnection::connect(url).await.unwrap();
        connection.execute("SET TIME ZONE 'UTC'").await.unwrap();
        for _ in 0..15 {
            rollups::mark_dirty(&mut connection, None).await.unwrap();
            rollups::recount(&mut connection).await.unwrap();
            rollups::fold(&mut connection).await.unwrap();
            rollups::recount(&mut connection).await.unwrap();
            rollups::verify_day(&mut connection, "2026-02-01".parse().unwrap()).await.unwrap();
        }
    };
    tokio::join!(work(), work(), work());
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    expect_counted(&mut connection).await;
}

/// The number of transactions in the test's database so far.
async fn transactions(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")
        .fetch_one(connection)
        .await
        .unwrap()
}

#[tokio::test]
async fn nothing_to_fold_is_almost_no_statements_and_a_booking_is_folded_soon() {
    let app = TestApp::new().await;
    let stop = CancellationToken::new();
    let task = tokio::spawn(folding::run(app.pool.clone(), Arc::clone(&app.state.folding), stop.clone()));
    let mut watching = PgConnection::connect(app.database.url()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    // The start may take longer on a busy machine.
    let mut ran = Vec::new();
    while ran.len() < 3 && ran.last().is_none_or(|last| *last > 10) {
        let first = transactions(&mut watching).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        ran.push(transactions(&mut watching).await - first);
    }
    assert!(ran.last().is_some_and(|last| *last <= 10), "{ran:?} transactions in ten seconds each");

    let record = json!({"model": "m", "cost": 0.5, "prompt_tokens": 1, "completion_tokens": 1});
    let answer = app.post("/spend/usage", MASTER_KEY, &json!({"records": [record]})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let mut pending = 1;
    for _ in 0..50 {
        pending = rollups::status(&mut watching).await.unwrap().pending;
        if pending == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(pending, 0, "not folded within five seconds");
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn who_holds_the_lock_while_deltas_wait_is_named_and_measured() {
    let app = TestApp::seeded().await;
    let mut other = PgConnection::connect(app.database.url()).await.unwrap();
    other.execute("SET application_name = 'a-stranger'").await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut other).await.unwrap();
    let mut connection = app.pool.acquire().await.unwrap();
    assert_eq!(backlog::lock_holder(&mut connection).await.unwrap(), None);
    other.execute("SELECT pg_advisory_lock(7811884301)").await.unwrap();
    let holder = backlog::lock_holder(&mut connection).await.unwrap().expect("a holder");
    assert_eq!((holder.pid, holder.application.as_str()), (pid, "a-stranger"));
    assert!(!holder.role.is_empty());
    drop(connection);

    let stop = CancellationToken::new();
    let task = tokio::spawn(folding::run(app.pool.clone(), Arc::clone(&app.state.folding), stop.clone()));
    let metric = async |name: &str| -> f64 {
        let answer = app.get("/metrics", MASTER_KEY).await;
        let line = answer.text.lines().find(|line| line.starts_with(&format!("{name} "))).map(str::to_owned);
        line.and_then(|line| line.split(' ').nth(1).map(|value| value.parse().unwrap())).unwrap_or(-1.0)
    };
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(metric("litespend_rollups_lock_held_seconds").await > 1.0);
    assert!(metric("litespend_rollups_deltas_waiting").await > 1.0);
    assert!(metric("litespend_rollups_oldest_delta_seconds").await >= 0.0);
    other.close().await.unwrap();
    stop.cancel();
    task.await.unwrap();
}
