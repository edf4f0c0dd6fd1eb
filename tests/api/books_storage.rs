//! Archives of closed days behind S3's protocol that fails, stalls, breaks off and lies; texts that are emptied; damage
//! that is put right.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use hyper::Method;
use litespend::books;
use litespend::books::closing::ClosingOptions;
use litespend::books::{closing, pruning, reopening, verifying};
use litespend::store::books as tables;
use litespend_archive::{Archive, Options, Query};
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::books::{Books, LATE, day};
use crate::s3_store::{ARCHIVE_URL, Fault, Store};
use crate::support::{MASTER_KEY, TestApp, settings};

async fn open(store: &Store) -> Archive {
    // Nothing is kept in memory between two reads.
    let options = Options {
        settings: store.settings(),
        time_limit: Duration::from_secs(4),
        block_cache_bytes: 0,
        metadata_cache_bytes: 0,
        ..Options::default()
    };
    Archive::open(ARCHIVE_URL, options).await.unwrap()
}

/// Another server on the database with closed days, which knows nothing of the archive yet.
async fn another_server(books: &Books, archive: Archive) -> TestApp {
    let server = books.app.beside(settings());
    server.state.use_archive(archive);
    server.state.refresh_rollups().await.unwrap();
    server
}

/// Whether all reads of rows answer as those of the model, or say that the archive is not there: 503, or a connection that
/// is cut. A whole answer that is wrong is none of these.
async fn rows_or_refusal(books: &Books, server: &TestApp, step: &str) -> bool {
    let answer = server.get("/spend/logs?limit=1000", MASTER_KEY).await;
    if answer.status == 503 {
        return false;
    }
    assert_eq!(answer.status, 200, "{step}: {}", answer.text);
    let Ok(rows) = serde_json::from_str::<Value>(&answer.text) else { return false };
    assert_eq!(rows, books.model.get("/spend/logs?limit=1000", MASTER_KEY).await.json(), "{step}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_and_lies_costs_no_row_and_no_sum() {
    let store = Store::start().await;
    let books = Books::with(open(&store).await, tempfile::tempdir().unwrap()).await;
    books.settle().await;
    // The store refuses every write: nothing is closed.
    store.fail(Method::PUT, "", Fault::Fails, usize::MAX);
    let mut connection = books.connection().await;
    let closed = closing::close_through(
        &mut connection,
        Vec::new(),
        &books.archive,
        day("2026-02-28"),
        ClosingOptions::default(),
        |_| true,
    )
    .await;
    assert!(matches!(closed, Err(books::Error::Archive(_))), "{closed:?}");
    assert!(!tables::is_any_closed(&mut connection).await.unwrap());
    books.expect_sums("not closed").await;
    books.expect_rows("not closed").await;
    store.heal();
    // It changes what is read back: nothing is closed either.
    store.fail(Method::GET, ".parquet", Fault::Lies, usize::MAX);
    let closed = closing::close_through(
        &mut connection,
        Vec::new(),
        &books.archive,
        day("2026-02-28"),
        ClosingOptions::default(),
        |_| true,
    )
    .await;
    assert!(closed.is_err(), "{closed:?}");
    assert!(!tables::is_any_closed(&mut connection).await.unwrap());
    store.heal();
    for path in books.archive.damaged() {
        books.archive.clear_damage(&path).await.unwrap();
    }
    // It fails now and then, and loses the answers to manifests.
    for (method, path, fault) in [
        (Method::PUT, ".parquet", Fault::Fails),
        (Method::GET, "", Fault::Fails),
        (Method::PUT, "_manifest", Fault::LosesTheAnswer),
        (Method::GET, ".parquet", Fault::BreaksOff),
    ] {
        store.fail(method, path, fault, 2);
    }
    assert!(books.close("2026-02-28").await > 2);
    assert!(store.bucket().join("spend_logs/day=2026-02-02").is_dir());
    store.heal();
    books.verify().await.unwrap();
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    books.expect_rows("pruned").await;
    for fault in [Fault::Fails, Fault::Stalls, Fault::Drips, Fault::BreaksOff, Fault::Lies] {
        let step = format!("{fault:?}");
        // Once: asked again, and answered.
        let server = another_server(&books, open(&store).await).await;
        store.fail(Method::GET, ".parquet", fault, 1);
        assert!(
            rows_or_refusal(&books, &server, &step).await || matches!(fault, Fault::Stalls | Fault::Drips),
            "{step}, once"
        );
        store.heal();
        // Always: refused in time, and sums and what needs no archive go on.
        let server = another_server(&books, open(&store).await).await;
        store.fail(Method::GET, "", fault, usize::MAX);
        let started = Instant::now();
        assert!(!rows_or_refusal(&books, &server, &step).await, "{step}");
        assert!(started.elapsed() < Duration::from_secs(20), "{step}: {:?}", started.elapsed());
        assert_eq!(server.get("/spend/logs?archive=false", MASTER_KEY).await.status, 200, "{step}");
        books.expect_sums_of(&server, &step).await;
        store.heal();
        let healed = open(&store).await;
        for path in healed.damaged() {
            assert_eq!(fault, Fault::Lies, "{path}");
            healed.clear_damage(&path).await.unwrap();
        }
        books.expect_rows_of(&another_server(&books, healed).await, &format!("{step}, healed")).await;
    }
}

/// A session with a call of a day that is closed, and one of a day that stays open.
const SESSION_OF_BOTH: &str = r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime", "endTime",
        model, session_id, created_at, updated_at)
    SELECT 'of-both-' || at, 'acompletion', 'k-of-both', 0.5, 7, at, at, 'gpt-4o', 'of-both', at, at
    FROM (VALUES (timestamp '2026-02-02 12:00'), (timestamp '2026-06-29 12:00')) AS times (at)"#;

#[tokio::test(flavor = "multi_thread")]
async fn pages_do_not_wait_for_an_archive_that_was_silent_a_moment_ago() {
    let store = Store::start().await;
    // Nothing is kept in memory between two reads, and no request ends before the page gives up.
    let options =
        Options { settings: store.settings(), block_cache_bytes: 0, metadata_cache_bytes: 0, ..Options::default() };
    let archive = Archive::open(ARCHIVE_URL, options).await.unwrap();
    let books = Books::with(archive.clone(), tempfile::tempdir().unwrap()).await;
    books.both(SESSION_OF_BOTH).await;
    books.settle().await;
    books.close("2026-02-28").await;
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    drop(connection);
    let path = "/spend/logs/ui?start_date=2026-06-29%2000:00:00&end_date=2026-06-29%2023:00:00";
    let calls = async |server: &TestApp| {
        let started = Instant::now();
        let answer = server.get(path, MASTER_KEY).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        (answer.json()["data"][0]["session_total_count"].clone(), started.elapsed())
    };
    assert_eq!(calls(&books.app).await.0, 2);
    store.fail(Method::GET, "", Fault::Stalls, usize::MAX);
    let (count, time) = calls(&books.app).await;
    assert!(count == 1 && (2..10).contains(&time.as_secs()), "{count} after {time:?}");
    let (count, time) = calls(&books.app).await;
    assert!(count == 1 && time < Duration::from_secs(2), "{count} after {time:?}");
    // The archive is back, and for a while this server does not ask it. Another one does.
    store.heal();
    let (count, time) = calls(&books.app).await;
    assert!(count == 1 && time < Duration::from_secs(2), "{count} after {time:?}");
    assert_eq!(calls(&another_server(&books, archive).await).await.0, 2);
}

#[tokio::test]
async fn damage_that_is_put_right_is_answered_from_again() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-28").await;
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    let closed = tables::closed_days(&mut connection, None).await.unwrap();
    let file = books.parquet_file(closed[0].day);
    let whole = std::fs::read(&file).unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    std::fs::write(&file, changed).unwrap();
    assert!(books.verify().await.is_err());
    assert_eq!(books.app.get("/spend/logs", MASTER_KEY).await.status, 503);
    std::fs::write(&file, whole).unwrap();
    // It stays set aside until somebody says that it is right, here another process.
    assert_eq!(books.app.get("/spend/logs", MASTER_KEY).await.status, 503);
    let other = Archive::open(books.directory.path().to_str().unwrap(), Options::default()).await.unwrap();
    for path in other.damaged() {
        other.clear_damage(&path).await.unwrap();
    }
    // A running server looks every few seconds.
    let stop = CancellationToken::new();
    let refreshing = tokio::spawn(books.app.state.clone().keep_fresh(stop.clone()));
    let started = Instant::now();
    while books.app.get("/spend/logs", MASTER_KEY).await.status == 503 && started.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.cancel();
    refreshing.await.unwrap();
    books.expect_rows("put right").await;
}

/// A call with texts.
const WITH_TEXTS: &str = r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, total_tokens, "startTime", "endTime", model,
        messages, response, proxy_server_request, created_at, updated_at)
    VALUES ('texts', 'acompletion', 0.5, 7, '2026-02-02', '2026-02-02', 'gpt-4o', '[{"role": "user", "content": "hé"}]',
            '{"choices": []}', '{"model": "gpt-4o"}', '2026-02-02', '2026-02-02')"#;

#[tokio::test]
async fn texts_are_emptied_without_a_change_of_sums_and_come_back_with_their_day() {
    let books = Books::new().await;
    books.both(WITH_TEXTS).await;
    books.settle().await;
    let mut connection = books.connection().await;
    let texts = r#"SELECT concat(messages, response, proxy_server_request) FROM "LiteLLM_SpendLogs" WHERE request_id = 'texts'"#;
    let before = books.app.scalar(texts).await;
    assert!(before.contains("hé"), "{before}");
    closing::close_through(
        &mut connection,
        Vec::new(),
        &books.archive,
        day("2026-02-28"),
        ClosingOptions { bodies: true, ..ClosingOptions::default() },
        |_| true,
    )
    .await
    .unwrap();
    let stripped = pruning::strip(&mut connection, day("2026-02-02"), true, || true).await.unwrap();
    assert!(stripped >= 1, "{stripped}");
    assert_eq!(books.app.scalar(texts).await, "{}{}{}");
    assert_eq!(pruning::strip(&mut connection, day("2026-02-28"), true, || true).await.unwrap(), 0, "nothing is left");
    books.expect_sums("emptied").await;
    books.settle().await;
    books.expect_sums("emptied and folded").await;
    assert!(tables::adjustments(&mut connection, None).await.unwrap().is_empty());
    reopening::reopen(&mut connection, &books.archive, day("2026-02-02"), "a test", false).await.unwrap();
    assert_eq!(books.app.scalar(texts).await, before);
    // Closed again without bodies, the archive keeps them all the same: it was the only place that had them.
    books.settle().await;
    assert_eq!(books.close("2026-02-28").await, 1);
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    let path = "/spend/logs/ui/texts?start_date=2026-02-01%2000:00:00";
    let (ours, expected) = (books.app.get(path, MASTER_KEY).await, books.model.get(path, MASTER_KEY).await);
    assert!(ours.text.contains("hé") && ours.text == expected.text, "{}\n{}", ours.text, expected.text);
    books.expect_sums("closed again and pruned").await;
}

#[tokio::test]
async fn open_days_keep_their_texts_if_only_closed_ones_are_emptied() {
    let books = Books::new().await;
    books.both(WITH_TEXTS).await;
    let mut connection = books.connection().await;
    assert_eq!(pruning::strip(&mut connection, day("2026-02-28"), true, || true).await.unwrap(), 0);
    assert!(pruning::strip(&mut connection, day("2026-02-01"), false, || true).await.is_ok());
    let texts = r#"SELECT messages::text FROM "LiteLLM_SpendLogs" WHERE request_id = 'texts'"#;
    assert!(books.app.scalar(texts).await.contains("hé"));
    assert!(pruning::strip(&mut connection, day("2026-02-02"), false, || true).await.unwrap() >= 1);
    assert_eq!(books.app.scalar(texts).await, "{}");
    books.expect_sums("emptied").await;
}

#[tokio::test]
async fn late_rows_that_replace_a_revision_break_no_read_of_it() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-28").await;
    let mut connection = books.connection().await;
    let of = day("2026-02-02");
    let revision = tables::closed_day(&mut connection, of).await.unwrap().unwrap().revision;
    let days = [(of, u32::try_from(revision).unwrap())];
    let before: Vec<_> = books.archive.scan(&days, Query::default()).try_collect().await.unwrap();
    let mut reading = books.archive.scan(&days, Query::default());
    let first = reading.try_next().await.unwrap().unwrap();
    books.both(LATE).await;
    assert_eq!(closing::archive_late_rows(&mut connection, &books.archive, of).await.unwrap(), 4);
    let mut rows = vec![first];
    rows.extend(reading.try_collect::<Vec<_>>().await.unwrap());
    assert!(rows == before, "{} rows, then {}", before.len(), rows.len());
    books.expect_rows("late rows").await;
}

#[tokio::test]
async fn a_late_row_that_is_lost_after_a_crash_leaves_its_day_verifiable() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-28").await;
    books.both(LATE).await;
    books.settle().await;
    let mut connection = books.connection().await;
    let of = day("2026-02-02");
    // The archive gets the late rows, and the crash comes before the database records it.
    let newest = books.archive.manifest(of).await.unwrap().unwrap();
    let mut writer = books.archive.write_day(of, Some(&newest), newest.bodies).await.unwrap();
    {
        let statement = tables::exporting::export_statement(tables::exporting::Selection::Late, newest.bodies, false);
        let mut rows = tables::exporting::rows(&mut connection, of, &statement);
        while let Some(row) = rows.try_next().await.unwrap() {
            writer.push(&tables::exporting::exported(&row).unwrap()).await.unwrap();
        }
    }
    let prepared = writer.finish().await.unwrap();
    let database = tables::database_id(&mut connection).await.unwrap();
    books.archive.commit(&prepared, json!({"database": database})).await.unwrap();
    books.app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id IN ('late-1', 'late-2')"#).await;
    books.settle().await;
    closing::archive_late_rows(&mut connection, &books.archive, of).await.unwrap();
    let closed = tables::closed_day(&mut connection, of).await.unwrap().unwrap();
    verifying::verify_day(&mut connection, &books.archive, &closed).await.unwrap();
    books.expect_sums("after the crash").await;
    books.expect_rows("after the crash").await;
}

#[tokio::test]
async fn a_day_is_not_recorded_as_closed_when_a_row_gave_its_place_to_another_one_of_the_same_sums() {
    let books = Books::new().await;
    books.settle().await;
    let mut connection = books.connection().await;
    let of = day("2026-02-02");
    let export = async |connection: &mut PgConnection| {
        let totals = tables::closing::totals(connection, of).await.unwrap();
        let fingerprint = tables::closing::fingerprint(connection, of).await.unwrap();
        tables::closing::Closing { day: of, totals, fingerprint, revision: 1, archived: totals, buckets: 1 }
    };
    let exported = export(&mut connection).await;
    assert!(exported.totals.requests > 0);
    books
        .app
        .execute(
            r#"WITH taken AS (DELETE FROM "LiteLLM_SpendLogs" WHERE request_id IN (
                   SELECT request_id FROM "LiteLLM_SpendLogs"
                   WHERE "startTime" >= '2026-02-02' AND "startTime" < '2026-02-03' LIMIT 1) RETURNING *)
               INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens,
                   completion_tokens, "startTime", "endTime", model, "user", team_id, end_user, request_tags)
               SELECT 'swapped', call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens, "startTime",
                      "endTime", model, "user", team_id, end_user, request_tags FROM taken"#,
        )
        .await;
    books.settle().await;
    assert_eq!(tables::closing::totals(&mut connection, of).await.unwrap(), exported.totals);
    assert!(!tables::closing::close(&mut connection, &exported).await.unwrap());
    let exported = export(&mut connection).await;
    books.settle().await;
    assert!(tables::closing::close(&mut connection, &exported).await.unwrap());
}

#[tokio::test]
async fn a_day_that_cannot_be_closed_keeps_no_other_day_open() {
    let books = Books::new().await;
    books.settle().await;
    // As by a writer that no trigger sees: the rollups do not have the row.
    books
        .app
        .execute(
            r#"ALTER TABLE "LiteLLM_SpendLogs" DISABLE TRIGGER USER;
               INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime")
               VALUES ('unseen', 'acompletion', '2026-02-02', '2026-02-02');
               ALTER TABLE "LiteLLM_SpendLogs" ENABLE TRIGGER USER"#,
        )
        .await;
    let mut connection = books.connection().await;
    let closed = closing::close_through(
        &mut connection,
        Vec::new(),
        &books.archive,
        day("2026-02-28"),
        ClosingOptions::default(),
        |_| true,
    )
    .await;
    let Err(books::Error::Differs(found)) = closed else { panic!("{closed:?}") };
    assert_eq!(found.day, day("2026-02-02"));
    let days: Vec<_> =
        tables::closed_days(&mut connection, None).await.unwrap().iter().map(|closed| closed.day).collect();
    assert!(days.len() > 1 && !days.contains(&day("2026-02-02")), "{days:?}");
    assert!(days.iter().any(|closed| *closed > day("2026-02-02")), "{days:?}");
}
