//! Closing days of logs whose columns their owner has changed, and what keeps a day open: rows that the archive cannot store,
//! sums that are not those of the log, sessions of the database that end, and an archive that fails in the middle of a day.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use litespend::books;
use litespend::books::closing::{Closed, ClosingOptions};
use litespend::books::{closing, pruning};
use litespend::store::books as tables;
use litespend::store::{Connection, DateRange, rollups};
use litespend_archive::{Archive, Options};
use sqlx::AssertSqlSafe;

use crate::books::{Books, LATE, day};
use crate::books_exporters::exporters;
use crate::partitions::install;
use crate::s3_store::{ARCHIVE_URL, Fault, Store};
use crate::support::MASTER_KEY;

/// The days up to the end of February that have rows.
const DAYS: [&str; 6] = ["2026-01-30", "2026-01-31", "2026-02-01", "2026-02-02", "2026-02-27", "2026-02-28"];

/// The last of them.
const LAST_DAY: &str = "2026-02-28";

/// The day that the tests keep open.
const DAY: &str = "2026-02-02";

const LEFT: &str = r#"SELECT COALESCE(string_agg(DISTINCT "startTime"::date::text, ' '), '') FROM "LiteLLM_SpendLogs" WHERE "startTime" < '2026-03-01'"#;

/// A database whose log is one table, as LiteLLM's migrations create it, but for what its owner has changed.
async fn changed(change: &'static str) -> Books {
    let books = Books::new().await;
    books.app.execute("DROP SCHEMA litespend CASCADE; CREATE TABLE IF NOT EXISTS _prisma_migrations (id text)").await;
    books.app.execute(include_str!("../fixtures/plain_log.sql")).await;
    books.app.execute(change).await;
    install(&books.app).await;
    books
}

async fn close(books: &Books, connection: &mut Connection, exporters: Vec<Connection>) -> Result<Closed, books::Error> {
    let options = ClosingOptions::default();
    closing::close_through(connection, exporters, &books.archive, day(LAST_DAY), options, |_| true).await
}

async fn prune(books: &Books, connection: &mut Connection) -> Result<(), books::Error> {
    pruning::prune(connection, &books.archive, day(LAST_DAY), |_| true).await
}

/// Whether all of [`DAYS`] are closed but [`DAY`], of which the archive has nothing that counts.
async fn expect_the_day_alone_open(books: &Books, step: &str) {
    let closed = tables::closed_days(&mut *books.connection().await, None).await.unwrap();
    let expected: Vec<_> = DAYS.into_iter().filter(|other| *other != DAY).map(day).collect();
    assert_eq!(closed.iter().map(|closed| closed.day).collect::<Vec<_>>(), expected, "{step}");
    assert!(books.archive.manifest(day(DAY)).await.unwrap().is_none(), "{step}");
}

/// Calls next to the midnights of UTC and of Kolkata.
const EDGES: &str = r#"
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime", "endTime",
        "completionStartTime", model, "user", team_id, metadata, created_at, updated_at)
    SELECT 'edge-' || n, 'acompletion', 'k-edge', 0.5, 3, at, at + interval '1500 milliseconds',
           at + interval '250 milliseconds', 'gpt-4o', 'u-int', 'team-alpha', '{}', at + interval '2 seconds',
           at + interval '3 seconds'
    FROM unnest('{2026-02-01 18:29:59.999+00, 2026-02-01 18:30+00, 2026-02-01 23:59:59.999+00, 2026-02-02 00:00+00,
                  2026-02-02 18:30+00, 2026-02-02 23:59:59.999+00}'::timestamptz[]) WITH ORDINALITY AS times (at, n)"#;

#[tokio::test]
async fn times_with_a_zone_are_archived_as_the_log_answered_them() {
    for zone in ["UTC", "Asia/Kolkata"] {
        let mut books = changed(
            r#"ALTER TABLE "LiteLLM_SpendLogs" ALTER "startTime" TYPE timestamptz, ALTER "endTime" TYPE timestamptz,
                   ALTER "completionStartTime" TYPE timestamptz, ALTER created_at TYPE timestamptz,
                   ALTER updated_at TYPE timestamptz"#,
        )
        .await;
        let name = books.app.scalar("SELECT current_database()::text").await;
        for statement in [
            format!("ALTER DATABASE {name} SET timezone = '{zone}'"),
            // As a writer whose session has that zone.
            format!("BEGIN; SET LOCAL timezone = '{zone}'; {EDGES}; COMMIT"),
        ] {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&books.app.pool).await.unwrap();
        }
        books.model.execute(EDGES).await;
        // Its sessions begin in the zone of the database.
        books.app = books.app.another().await;
        books.app.state.use_archive(books.archive.clone());
        books.settle().await;
        let paths: Vec<_> = (1..=6).map(|number| format!("/spend/logs?request_id=edge-{number}")).collect();
        let mut logged = Vec::new();
        for path in &paths {
            let answer = books.app.get(path, MASTER_KEY).await;
            assert!(answer.status == 200 && answer.text.contains("edge-"), "{zone}: {path}: {answer:?}");
            logged.push(answer.text);
        }
        assert_eq!(books.close(LAST_DAY).await, 6, "{zone}");
        books.verify().await.unwrap();
        books.both(LATE).await;
        books.settle().await;
        assert_eq!(books.close(LAST_DAY).await, 0, "{zone}: late rows only");
        books.verify().await.unwrap();
        prune(&books, &mut *books.connection().await).await.unwrap();
        assert_eq!(books.app.scalar(LEFT).await, "", "{zone}");
        for (path, logged) in paths.iter().zip(&logged) {
            assert_eq!(&books.app.get(path, MASTER_KEY).await.text, logged, "{zone}: {path}");
        }
        books.expect_sums(zone).await;
        books.expect_rows(zone).await;
    }
}

const BIGINT: &str = r#"ALTER TABLE "LiteLLM_SpendLogs" ALTER total_tokens TYPE bigint, ALTER prompt_tokens TYPE bigint,
                                                        ALTER completion_tokens TYPE bigint"#;

#[tokio::test]
async fn tokens_that_are_bigint_are_archived_with_the_sums_that_the_log_had() {
    let books = changed(BIGINT).await;
    books.settle().await;
    assert_eq!(books.close(LAST_DAY).await, 6);
    books.verify().await.unwrap();
    let mut connection = books.connection().await;
    let mut model = books.model.pool.acquire().await.unwrap();
    for closed in tables::closed_days(&mut connection, None).await.unwrap() {
        let logged = tables::logged_totals(&mut model, closed.day).await.unwrap();
        assert!(logged.total_tokens > 0 && closed.totals.agrees_with(&logged), "{closed:?}: {logged:?}");
        assert!(closed.archived().unwrap().agrees_with(&logged), "{closed:?}: {logged:?}");
    }
    prune(&books, &mut connection).await.unwrap();
    assert_eq!(books.app.scalar(LEFT).await, "");
    let path = "/spend/logs?request_id=chatcmpl-7-0000";
    let (ours, expected) = (books.app.get(path, MASTER_KEY).await, books.model.get(path, MASTER_KEY).await);
    assert!(ours.text.contains("chatcmpl-7-0000") && ours.text == expected.text, "{ours:?}\n{expected:?}");
}

#[tokio::test]
async fn a_number_of_tokens_that_the_archive_cannot_hold_keeps_its_day_alone_open() {
    let books = changed(BIGINT).await;
    books
        .app
        .execute(r#"UPDATE "LiteLLM_SpendLogs" SET total_tokens = 3000000000 WHERE request_id = 'chatcmpl-7-0264'"#)
        .await;
    books.settle().await;
    let rows = r#"SELECT md5(string_agg(log::text, ' ' ORDER BY request_id)) FROM "LiteLLM_SpendLogs" AS log"#;
    let before = books.app.scalar(rows).await;
    let mut connection = books.connection().await;
    for exporters in [Vec::new(), exporters(&books).await] {
        let step = format!("{} exporters", exporters.len());
        let closed = close(&books, &mut connection, exporters).await;
        let Err(error) = closed else { panic!("{step}: {closed:?}") };
        let said = error.to_string();
        assert!(said.starts_with(DAY), "{step}: {said}");
        let books::Error::Unreadable { cause, .. } = error else { panic!("{step}: {said}") };
        // Out of range.
        assert_eq!(cause.as_database_error().unwrap().code().unwrap(), "22003", "{step}: {said}");
        expect_the_day_alone_open(&books, &step).await;
    }
    assert_eq!(books.app.scalar(rows).await, before);
    books.app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET total_tokens = 3 WHERE request_id = 'chatcmpl-7-0264'"#).await;
    books.settle().await;
    assert_eq!(close(&books, &mut connection, Vec::new()).await.unwrap().days, 1);
    books.verify().await.unwrap();
}

/// Takes the model of one of the rows of [`LATE`]. LiteLLM's log has no row without one.
const WITHOUT_MODEL: &str = r#"ALTER TABLE "LiteLLM_SpendLogs" ALTER model DROP NOT NULL;
                               UPDATE "LiteLLM_SpendLogs" SET model = NULL WHERE request_id = 'late-1'"#;

const WITH_MODEL: &str = r#"UPDATE "LiteLLM_SpendLogs" SET model = 'gpt-4o' WHERE request_id = 'late-1'"#;

/// Whether the row of [`WITHOUT_MODEL`] is named.
fn expect_named<T: std::fmt::Debug>(result: Result<T, books::Error>, step: &str) {
    let Err(books::Error::Row { day, request_id }) = &result else { panic!("{step}: {result:?}") };
    assert_eq!((*day, request_id.as_str()), (self::day(DAY), "late-1"), "{step}");
    let said = result.unwrap_err().to_string();
    assert!(said.contains(DAY) && said.contains("late-1"), "{step}: {said}");
}

#[tokio::test]
async fn a_row_that_the_archive_cannot_store_is_named_and_keeps_its_day_alone_open() {
    let books = Books::new().await;
    books.both(LATE).await;
    books.app.execute(WITHOUT_MODEL).await;
    books.settle().await;
    let mut connection = books.connection().await;
    for exporters in [Vec::new(), exporters(&books).await] {
        let step = format!("{} exporters", exporters.len());
        expect_named(close(&books, &mut connection, exporters).await, &step);
        expect_the_day_alone_open(&books, &step).await;
    }
    books.app.execute(WITH_MODEL).await;
    books.settle().await;
    assert_eq!(close(&books, &mut connection, Vec::new()).await.unwrap().days, 1);
    books.verify().await.unwrap();
    books.expect_sums("mended").await;
    books.expect_rows("mended").await;
}

#[tokio::test]
async fn a_late_row_that_the_archive_cannot_store_keeps_no_other_day_from_being_closed_and_pruned() {
    let books = Books::new().await;
    books.settle().await;
    assert_eq!(books.close(DAY).await, 4);
    books.both(LATE).await;
    books.app.execute(WITHOUT_MODEL).await;
    books.settle().await;
    let mut connection = books.connection().await;
    expect_named(close(&books, &mut connection, Vec::new()).await, "closing");
    let closed = tables::closed_days(&mut connection, None).await.unwrap();
    assert_eq!(closed.iter().map(|closed| closed.day).collect::<Vec<_>>(), DAYS.map(day));
    expect_named(prune(&books, &mut connection).await, "pruning");
    assert_eq!(books.app.scalar(LEFT).await, DAY);
    books.app.execute(WITH_MODEL).await;
    books.settle().await;
    assert_eq!(close(&books, &mut connection, Vec::new()).await.unwrap().days, 0);
    prune(&books, &mut connection).await.unwrap();
    assert_eq!(books.app.scalar(LEFT).await, "");
    books.verify().await.unwrap();
    books.expect_sums("mended").await;
    books.expect_rows("mended").await;
}

#[tokio::test]
async fn sums_that_somebody_has_changed_keep_their_day_open_until_it_is_counted_again() {
    let books = Books::new().await;
    books.both(LATE).await;
    books.settle().await;
    let mut connection = books.connection().await;
    for (rollup, change) in [
        ("usage", "UPDATE litespend.day_usage SET requests = requests + 1 WHERE day = '2026-02-02'"),
        ("usage", "UPDATE litespend.day_usage SET prompt_tokens = prompt_tokens + 1 WHERE day = '2026-02-02'"),
        ("customer", "UPDATE litespend.day_customer SET spend = spend + 1 WHERE day = '2026-02-02'"),
        ("customer", "UPDATE litespend.day_customer SET total_tokens = total_tokens + 1 WHERE day = '2026-02-02'"),
        ("tag", "UPDATE litespend.day_tag SET log_count = log_count + 1 WHERE day = '2026-02-02'"),
        ("tag of owner", "UPDATE litespend.day_tag_owner SET spend = spend + 1 WHERE day = '2026-02-02'"),
    ] {
        books.app.execute(change).await;
        let closed = close(&books, &mut connection, Vec::new()).await;
        let Err(books::Error::Differs(found)) = closed else { panic!("{rollup}: {closed:?}") };
        assert_eq!((found.day, found.rollup.as_str()), (day(DAY), rollup));
        assert_ne!(found.counted, found.logged, "{rollup}");
        expect_the_day_alone_open(&books, rollup).await;
        // As `rollups rebuild` does.
        let days = DateRange { start: day(DAY), end: day(DAY) };
        rollups::mark_dirty(&mut connection, Some(days)).await.unwrap();
        books.settle().await;
    }
    assert_eq!(close(&books, &mut connection, Vec::new()).await.unwrap().days, 1);
    books.verify().await.unwrap();
    books.expect_sums("counted again").await;
}

/// A log that is read until a row in the middle of [`DAY`], and then waits for [`LOCK`]: the times of its ends have a type of their
/// own.
const WAITING: &str = r#"
    CREATE TYPE ending AS (at timestamp, request_id text);
    CREATE FUNCTION time_of(ending) RETURNS timestamp LANGUAGE plpgsql IMMUTABLE AS $$
    BEGIN
        IF ($1).request_id = 'chatcmpl-7-0264' THEN
            PERFORM pg_advisory_xact_lock_shared(20260202);
        END IF;
        RETURN ($1).at;
    END $$;
    CREATE CAST (ending AS timestamp) WITH FUNCTION time_of(ending);
    ALTER TABLE "LiteLLM_SpendLogs" ALTER "endTime" TYPE ending USING ROW("endTime", request_id)::ending"#;

/// An advisory lock. Any number works.
const LOCK: i64 = 20_260_202;

/// Calls a function with the process that waits for [`LOCK`], as soon as one does.
async fn call_with_the_waiting_process(books: &Books, function: &str) {
    let statement = format!(
        "SELECT {function}(pid) FROM pg_locks
         WHERE locktype = 'advisory' AND NOT granted AND objid::bigint = $1
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    for _ in 0..600 {
        let called: Option<bool> = sqlx::query_scalar(AssertSqlSafe(statement.clone()))
            .bind(LOCK)
            .fetch_optional(&books.app.pool)
            .await
            .unwrap();
        if called == Some(true) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody waits for the lock");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_is_cancelled_leaves_its_day_open_and_its_session_usable() {
    let books = Arc::new(changed(WAITING).await);
    books.settle().await;
    let mut holder = books.connection().await;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut *holder).await.unwrap();
    let closing = tokio::spawn({
        let books = Arc::clone(&books);
        async move {
            let mut connection = books.connection().await;
            let closed = close(&books, &mut connection, Vec::new()).await;
            (connection, closed)
        }
    });
    call_with_the_waiting_process(&books, "pg_cancel_backend").await;
    let (mut connection, closed) = closing.await.unwrap();
    let Err(books::Error::Database(error)) = closed else { panic!("{closed:?}") };
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "57014", "{error}");
    // The connection that was cancelled tells.
    assert!(tables::closed_day(&mut connection, day("2026-02-01")).await.unwrap().is_some());
    assert!(tables::closed_day(&mut connection, day(DAY)).await.unwrap().is_none());
    assert!(books.archive.manifest(day(DAY)).await.unwrap().is_none());
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(LOCK).execute(&mut *holder).await.unwrap();
    assert_eq!(close(&books, &mut connection, Vec::new()).await.unwrap().days, 3);
    books.verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_whose_exporter_loses_its_session_is_closed_all_the_same() {
    let books = Arc::new(changed(WAITING).await);
    books.settle().await;
    let mut holder = books.connection().await;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut *holder).await.unwrap();
    let closing = tokio::spawn({
        let books = Arc::clone(&books);
        async move {
            let (mut connection, exporters) = (books.connection().await, exporters(&books).await);
            close(&books, &mut connection, exporters).await
        }
    });
    call_with_the_waiting_process(&books, "pg_terminate_backend").await;
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(LOCK).execute(&mut *holder).await.unwrap();
    assert_eq!(closing.await.unwrap().unwrap().days, 6);
    books.verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_fails_in_the_middle_of_a_day_leaves_the_session_usable() {
    let store = Store::start().await;
    // The first file of a day is sent before the last rows of the day are read.
    let options = Options {
        settings: store.settings(),
        time_limit: Duration::from_secs(4),
        rows_per_part: 10,
        ..Options::default()
    };
    let archive = Archive::open(ARCHIVE_URL, options).await.unwrap();
    let books = Books::with(archive, tempfile::tempdir().unwrap()).await;
    books.settle().await;
    let mut connection = books.connection().await;
    store.fail(Method::PUT, ".parquet", Fault::Fails, usize::MAX);
    let closed = close(&books, &mut connection, Vec::new()).await;
    assert!(matches!(closed, Err(books::Error::Archive(litespend_archive::Error::Unavailable(_)))), "{closed:?}");
    assert!(!tables::is_any_closed(&mut connection).await.unwrap());
    assert!(books.archive.manifest(day(DAYS[0])).await.unwrap().is_none());
    store.heal();
    assert_eq!(close(&books, &mut connection, Vec::new()).await.unwrap().days, 6);
    books.verify().await.unwrap();
    books.expect_sums("closed").await;
    books.expect_rows("closed").await;
}
