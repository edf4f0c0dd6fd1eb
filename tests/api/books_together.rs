//! Closing, pruning and reopening while others write, count again and read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use litespend::books;
use litespend::books::closing::ClosingOptions;
use litespend::books::{closing, pruning, reopening};
use litespend::rollups::folding;
use litespend::store::books as tables;
use litespend::store::rollups;

use crate::books::{Books, LATE, day};
use crate::support::MASTER_KEY;

/// Rounds of closing, pruning and reopening. There are more until enough was rebuilt beside them.
const ROUNDS: u32 = 1;

/// The most rounds.
const MOST_ROUNDS: u32 = 10;

fn is_busy(error: &books::Error) -> bool {
    matches!(error, books::Error::Busy { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn closing_and_rebuilding_and_writing_together_lose_nothing() {
    let books = Arc::new(Books::new().await);
    books.settle().await;
    let stop = Arc::new(AtomicBool::new(false));
    let rebuilt = Arc::new(AtomicU32::new(0));
    let rebuilding = tokio::spawn({
        let (books, stop, rebuilt) = (Arc::clone(&books), Arc::clone(&stop), Arc::clone(&rebuilt));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let started = Instant::now();
                let mut connection = books.connection().await;
                rollups::mark_dirty(&mut connection, None).await.unwrap();
                folding::settle(&mut connection).await.unwrap();
                rebuilt.fetch_add(1, Ordering::Relaxed);
                // A day that is always being counted again would never be closed. On a busy machine, both take longer.
                tokio::time::sleep(Duration::from_millis(500).max(started.elapsed() * 2)).await;
            }
        }
    });
    let writing = tokio::spawn({
        let (books, stop) = (Arc::clone(&books), Arc::clone(&stop));
        async move {
            let mut number = 0_i32;
            while !stop.load(Ordering::Relaxed) {
                for pool in [&books.app.pool, &books.model.pool] {
                    sqlx::query(
                        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime",
                               "endTime", model, "user", created_at, updated_at)
                           SELECT 'together-' || $1, 'acompletion', 'k1', 0.25, 9, at, at, 'gpt-4o', 'u-int', at, at
                           FROM (SELECT timestamp '2026-02-01' + $1 % 120 * interval '307 minutes') AS times (at)"#,
                    )
                    .bind(number)
                    .execute(pool)
                    .await
                    .unwrap();
                }
                number += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            number
        }
    });
    let reading = tokio::spawn({
        let (books, stop) = (Arc::clone(&books), Arc::clone(&stop));
        async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                for path in ["/spend/logs", "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30"] {
                    let answer = books.app.get(path, MASTER_KEY).await;
                    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
                }
                number += 1;
            }
            number
        }
    });
    let mut connection = books.connection().await;
    for round in 0..MOST_ROUNDS {
        if round >= ROUNDS && rebuilt.load(Ordering::Relaxed) > 2 {
            break;
        }
        while let Err(error) = closing::close_through(
            &mut connection,
            Vec::new(),
            &books.archive,
            day("2026-02-28"),
            ClosingOptions::default(),
            |_| true,
        )
        .await
        {
            assert!(is_busy(&error), "{error}");
        }
        while let Err(error) = pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await {
            assert!(is_busy(&error), "{error}");
        }
        for closed in tables::closed_days(&mut connection, None).await.unwrap() {
            while let Err(error) = reopening::reopen(&mut connection, &books.archive, closed.day, "a test", false).await
            {
                assert!(is_busy(&error), "round {round}: {}: {error}", closed.day);
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    rebuilding.await.unwrap();
    let done = (rebuilt.load(Ordering::Relaxed), writing.await.unwrap(), reading.await.unwrap());
    println!("{done:?} rebuilds, writes and reads");
    assert!(done.0 > 2 && done.1 > 10 && done.2 > 2, "{done:?}");
    books.settle().await;
    books.expect_sums("at the end").await;
    books.expect_rows("at the end").await;
}

/// Waits until a session waits for a lock on a table, or the task is done.
async fn wait_for_lock<T>(books: &Books, table: &str, task: &tokio::task::JoinHandle<T>) {
    for _ in 0..600 {
        let waiting: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = to_regclass($1)::oid
                            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
        )
        .bind(table)
        .fetch_one(&books.app.pool)
        .await
        .unwrap();
        if waiting || task.is_finished() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody waits for {table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_waits_for_a_day_that_is_being_recorded_as_closed() {
    let books = Arc::new(Books::new().await);
    books.settle().await;
    // It stops the last step of closing, after the comparison with the rollups.
    let mut stopper = books.app.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE litespend.closed_days IN SHARE MODE").execute(&mut *stopper).await.unwrap();
    let closing = tokio::spawn({
        let books = Arc::clone(&books);
        async move { books.close("2026-02-02").await }
    });
    wait_for_lock(&books, "litespend.closed_days", &closing).await;
    let mut connection = books.connection().await;
    sqlx::query("SET lock_timeout = '700ms'").execute(&mut *connection).await.unwrap();
    rollups::mark_dirty(&mut connection, None).await.unwrap();
    // It must not count from a state in which the day is open. Where it has to wait, it gives up.
    let _ = rollups::recount(&mut connection).await;
    sqlx::query("RESET lock_timeout").execute(&mut *connection).await.unwrap();
    drop(connection);
    stopper.rollback().await.unwrap();
    assert!(closing.await.unwrap() > 2);
    books.settle().await;
    books.expect_sums("closed while a rebuild began").await;
    books.verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_is_not_opened_again_beside_a_writer_that_took_it_for_closed() {
    let books = Arc::new(Books::new().await);
    books.settle().await;
    books.close("2026-02-28").await;
    books.both(LATE).await;
    books.settle().await;
    // The closed day knows the rows, so the writer adds nothing to its sums.
    books.app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id LIKE 'late-%'"#).await;
    let mut writer = books.app.pool.begin().await.unwrap();
    sqlx::raw_sql(LATE).execute(&mut *writer).await.unwrap();
    let reopening = tokio::spawn({
        let books = Arc::clone(&books);
        async move {
            let mut connection = books.connection().await;
            reopening::reopen(&mut connection, &books.archive, day("2026-02-02"), "a test", false).await.unwrap();
            drop(connection);
            books.settle().await;
        }
    });
    wait_for_lock(&books, r#""LiteLLM_SpendLogs""#, &reopening).await;
    writer.commit().await.unwrap();
    reopening.await.unwrap();
    books.settle().await;
    books.expect_sums("opened again").await;
    books.expect_rows("opened again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_is_dropped_without_a_deadlock_with_readers() {
    let books = Arc::new(Books::new().await);
    {
        let mut connection = books.connection().await;
        litespend::store::log::months::add(&mut connection, day("2026-02-01"), true).await.unwrap();
    }
    books.settle().await;
    books.close("2026-02-28").await;
    // A reader that has the log, and is about to read its partitions.
    let mut reader = books.app.pool.begin().await.unwrap();
    sqlx::query(r#"LOCK TABLE ONLY "LiteLLM_SpendLogs" IN ACCESS SHARE MODE"#).execute(&mut *reader).await.unwrap();
    let pruning = tokio::spawn({
        let books = Arc::clone(&books);
        async move {
            let mut steps = Vec::new();
            let mut connection = books.connection().await;
            pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |step| {
                steps.push(step.clone());
                true
            })
            .await
            .unwrap();
            steps
        }
    });
    wait_for_lock(&books, r#""LiteLLM_SpendLogs""#, &pruning).await;
    let held: bool = sqlx::query_scalar(
        r#"SELECT EXISTS (SELECT FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock'
                          AND relation = to_regclass('"LiteLLM_SpendLogs_2026_02"')::oid)"#,
    )
    .fetch_one(&books.app.pool)
    .await
    .unwrap();
    assert!(!held, "the partition is locked before the log: a reader that has the log would wait for ever");
    sqlx::query(r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#).execute(&mut *reader).await.unwrap();
    reader.commit().await.unwrap();
    let steps = pruning.await.unwrap();
    assert!(steps.iter().any(|step| matches!(step, pruning::Step::Partition(_))), "{steps:?}");
    books.expect_rows("dropped").await;
}
