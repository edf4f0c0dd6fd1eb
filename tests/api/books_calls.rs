//! Calls of closed days stay themselves: another call with the same id, a call that an update moved, and a call that the log
//! lost for a while.

use chrono::NaiveDateTime;
use litespend::books;
use litespend::books::closing::ClosingOptions;
use litespend::books::{closing, pruning, reopening};
use litespend::store::books as tables;
use litespend::store::books::pruning::Archived;
use serde_json::json;

use crate::books::{Books, LATE, day};
use crate::support::MASTER_KEY;

/// Number of rows with an id on a day of February 2026 in the log.
async fn logged(books: &Books, statement: &'static str) -> String {
    books.app.scalar(statement).await
}

/// Closes and prunes February.
async fn pruned() -> Books {
    let books = Books::new().await;
    books.both(LATE).await;
    books.settle().await;
    books.close("2026-02-28").await;
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    drop(connection);
    books
}

#[tokio::test]
async fn a_booking_with_the_id_of_a_pruned_call_is_a_call_of_its_own() {
    let books = pruned().await;
    let record = json!({"model": "gpt-4o", "prompt_tokens": 1000, "completion_tokens": 10, "idempotency_key": "late-1",
                        "start_time": "2026-02-02T07:00:00Z"});
    let booked = books.app.post("/spend/usage", MASTER_KEY, &record).await;
    assert_eq!(booked.status, 200, "{}", booked.text);
    let result = booked.json()["results"][0].clone();
    assert_eq!(result["status"], "recorded", "{result}");
    assert_ne!(result["request_id"], "late-1");
    // The model has no row with this id any more, and books it under its own name: only sums are compared.
    books.model.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE false"#).await;
    let again = books.app.post("/spend/usage", MASTER_KEY, &record).await.json()["results"][0].clone();
    assert_eq!((&again["status"], &again["request_id"]), (&json!("duplicate"), &result["request_id"]));
    let expected = books.model.post("/spend/usage", MASTER_KEY, &record).await;
    assert_eq!(expected.json()["results"][0]["status"], "recorded", "{}", expected.text);
    books.expect_sums("booked").await;
    books.settle().await;
    books.expect_sums("booked and folded").await;
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    books.expect_sums("pruned again").await;
    books.verify().await.unwrap();
}

#[tokio::test]
async fn a_call_of_another_day_with_the_same_id_takes_nothing_from_a_closed_day() {
    let books = pruned().await;
    books
        .both(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, total_tokens, "startTime", "endTime", model, created_at, updated_at)
               VALUES ('late-1', 'acompletion', 0.125, 3, '2026-05-05', '2026-05-05', 'gpt-4o', '2026-05-05', '2026-05-05')"#,
        )
        .await;
    books.settle().await;
    books.expect_sums("the same id on another day").await;
    let mut connection = books.connection().await;
    reopening::reopen(&mut connection, &books.archive, day("2026-02-02"), "a test", false).await.unwrap();
    books.settle().await;
    books.expect_sums("reopened").await;
    books.expect_rows("reopened").await;
}

#[tokio::test]
async fn a_call_that_moved_to_another_day_comes_back_once() {
    let books = Books::new().await;
    books.both(LATE).await;
    books.settle().await;
    books.close("2026-02-28").await;
    books
        .both(
            r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = '2026-02-01 05:00', spend = 2 WHERE request_id = 'late-1';
               UPDATE "LiteLLM_SpendLogs" SET "startTime" = '2026-02-02 13:00' WHERE request_id = 'late-2'"#,
        )
        .await;
    books.settle().await;
    books.expect_sums("moved").await;
    let mut connection = books.connection().await;
    let mut refused = 0;
    for of in ["2026-02-02", "2026-02-01"] {
        pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
        books.expect_sums("pruned").await;
        if tables::closed_day(&mut connection, day(of)).await.unwrap().is_none() {
            continue;
        }
        match reopening::reopen(&mut connection, &books.archive, day(of), "a test", false).await {
            Ok(_) => {}
            Err(books::Error::Refused(_)) => refused += 1,
            Err(error) => panic!("{of}: {error}"),
        }
        books.settle().await;
        books.expect_sums("reopened").await;
    }
    assert_eq!(refused, 0);
}

#[tokio::test]
async fn a_call_that_moved_and_came_back_belongs_to_its_day_again() {
    let books = Books::new().await;
    books.both(LATE).await;
    books.settle().await;
    books.close("2026-02-28").await;
    books.both(r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = '2026-05-05' WHERE request_id = 'late-1'"#).await;
    books.settle().await;
    let moved = "SELECT count(*)::text FROM litespend.moved_ids";
    assert_eq!(books.app.scalar(moved).await, "1");
    books.both(r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = '2026-02-02 06:00' WHERE request_id = 'late-1'"#).await;
    books.settle().await;
    assert_eq!(books.app.scalar(moved).await, "0");
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    books.expect_sums("pruned").await;
    books.expect_rows("pruned").await;
    reopening::reopen(&mut connection, &books.archive, day("2026-02-02"), "a test", false).await.unwrap();
    books.settle().await;
    books.expect_sums("reopened").await;
}

#[tokio::test]
async fn a_late_call_that_the_log_lost_and_has_again_is_archived_before_it_is_pruned() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-28").await;
    books.both(LATE).await;
    books.settle().await;
    // Lost before the archive has them, as by a partition that is detached.
    books.app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id IN ('late-1', 'late-2')"#).await;
    assert_eq!(books.close("2026-02-28").await, 0);
    books.verify().await.unwrap();
    books.app.execute(LATE_AGAIN).await;
    books.settle().await;
    books.expect_sums("there again").await;
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    books.expect_sums("pruned").await;
    books.expect_rows("pruned").await;
    books.verify().await.unwrap();
}

/// Two of the late rows once more.
const LATE_AGAIN: &str = r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens,
        completion_tokens, "startTime", "endTime", model, "user", request_tags, end_user, created_at, updated_at)
    SELECT 'late-' || n, 'acompletion', 'k-late', 0.25, 30, 20, 10, timestamp '2026-02-02' + n * interval '6 hours',
           '2026-02-02 01:00', 'gpt-4o', 'u-int', '["late"]', 'cust-1', '2026-02-09', '2026-02-09' FROM generate_series(1, 2) AS n"#;

#[tokio::test]
async fn a_lost_late_call_that_nobody_archived_is_never_dropped_with_its_partition() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-28").await;
    books.both(LATE).await;
    books.settle().await;
    books.app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id IN ('late-1', 'late-2')"#).await;
    assert_eq!(books.close("2026-02-28").await, 0);
    books.app.execute(LATE_AGAIN).await;
    // Without a look at what is there again: the rows must stay.
    let mut connection = books.connection().await;
    let rows: Vec<(String, NaiveDateTime, String)> = sqlx::query_as(
        r#"SELECT request_id, "startTime", xmin::text FROM "LiteLLM_SpendLogs"
           WHERE "startTime" >= '2026-02-02' AND "startTime" < '2026-02-03'"#,
    )
    .fetch_all(&books.app.pool)
    .await
    .unwrap();
    let rows: Vec<Archived> = rows
        .into_iter()
        .map(|(request_id, start_time, version)| Archived { request_id, start_time, version })
        .collect();
    let deleted = tables::pruning::delete_rows(&mut connection, day("2026-02-02"), &rows).await.unwrap();
    assert_eq!(deleted, rows.len() as u64 - 2);
    let left = r#"SELECT string_agg(request_id, ',' ORDER BY request_id) FROM "LiteLLM_SpendLogs"
                  WHERE "startTime" >= '2026-02-02' AND "startTime" < '2026-02-03'"#;
    assert_eq!(logged(&books, left).await, "late-1,late-2");
}

#[tokio::test]
async fn a_day_whose_rows_have_other_sums_is_opened_only_if_that_is_said() {
    let books = pruned().await;
    let mut connection = books.connection().await;
    // The total of the day has what the archive does not: a late row that was lost.
    books
        .app
        .execute(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, total_tokens, "startTime", "endTime", model)
               VALUES ('lost', 'acompletion', 4, 9, '2026-02-02', '2026-02-02', 'gpt-4o')"#,
        )
        .await;
    books.app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = 'lost'"#).await;
    books.settle().await;
    let refused = reopening::reopen(&mut connection, &books.archive, day("2026-02-02"), "a test", false).await;
    let Err(books::Error::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert!(refusal.contains("--accept-difference"), "{refusal}");
    assert!(tables::closed_day(&mut connection, day("2026-02-02")).await.unwrap().is_some());
    reopening::reopen(&mut connection, &books.archive, day("2026-02-02"), "a test", true).await.unwrap();
    books.settle().await;
    books.expect_sums("opened").await;
}

#[tokio::test]
async fn damage_of_one_day_stops_neither_closing_nor_pruning_of_others() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-02").await;
    books.both(LATE).await;
    books.settle().await;
    let folder = books.directory.path().join("spend_logs/day=2026-02-02");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let mut connection = books.connection().await;
    let archive = litespend_archive::Archive::open(
        books.directory.path().to_str().unwrap(),
        litespend_archive::Options::default(),
    )
    .await
    .unwrap();
    let before = tables::closed_days(&mut connection, None).await.unwrap().len();
    let closed = closing::close_through(
        &mut connection,
        Vec::new(),
        &archive,
        day("2026-04-30"),
        ClosingOptions::default(),
        |_| true,
    )
    .await;
    assert!(matches!(closed, Err(books::Error::Archive(_))), "{closed:?}");
    let after = tables::closed_days(&mut connection, None).await.unwrap().len();
    assert!(after > before, "{before} days closed, then {after}");
    let pruned = pruning::prune(&mut connection, &archive, day("2026-04-30"), |_| true).await;
    assert!(matches!(pruned, Err(books::Error::Archive(_))), "{pruned:?}");
    let left = r#"SELECT string_agg(DISTINCT "startTime"::date::text, ',') FROM "LiteLLM_SpendLogs"
                  WHERE "startTime" < '2026-05-01'"#;
    assert_eq!(logged(&books, left).await, "2026-02-02");
    let closed = tables::closed_days(&mut connection, None).await.unwrap();
    let unpruned: Vec<_> = closed.iter().filter(|closed| closed.pruned_at.is_none()).map(|closed| closed.day).collect();
    assert_eq!(unpruned, [day("2026-02-02")]);
    books.expect_sums("damaged").await;
}

#[tokio::test]
async fn texts_of_late_rows_stay_until_the_archive_has_them() {
    let books = Books::new().await;
    books.settle().await;
    let mut connection = books.connection().await;
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
    books
        .app
        .execute(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, total_tokens, "startTime", "endTime", model, messages)
               VALUES ('texts', 'acompletion', 4, 9, '2026-02-02', '2026-02-02', 'gpt-4o', '["kept"]')"#,
        )
        .await;
    pruning::strip(&mut connection, day("2026-02-28"), true, || true).await.unwrap();
    let texts = r#"SELECT messages::text FROM "LiteLLM_SpendLogs" WHERE request_id = 'texts'"#;
    assert_eq!(logged(&books, texts).await, r#"["kept"]"#);
    closing::archive_late_rows(&mut connection, &books.archive, day("2026-02-02")).await.unwrap();
    pruning::strip(&mut connection, day("2026-02-28"), true, || true).await.unwrap();
    assert_eq!(logged(&books, texts).await, "{}");
}

#[tokio::test]
async fn emptying_texts_leaves_no_trace_in_the_sums() {
    let books = Books::new().await;
    // Sums of these spends, in whatever order, are not exact.
    books
        .app
        .execute(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, total_tokens, "startTime", "endTime", model, messages)
               SELECT 'many-' || n, 'acompletion', 0.1 * n + 1e-7, n, '2026-02-02', '2026-02-02', 'gpt-4o', '["a"]'
               FROM generate_series(1, 200) AS n"#,
        )
        .await;
    books.settle().await;
    let mut connection = books.connection().await;
    closing::close_through(
        &mut connection,
        Vec::new(),
        &books.archive,
        day("2026-02-28"),
        ClosingOptions::default(),
        |_| true,
    )
    .await
    .unwrap();
    let state = "SELECT concat_ws(' ', (SELECT count(*) FROM litespend.adjustments), (SELECT count(*) FROM litespend.deltas),
                                  (SELECT count(*) FROM litespend.closed_activity), (SELECT count(*) FROM litespend.closed_midnights))";
    let before = logged(&books, state).await;
    assert!(pruning::strip(&mut connection, day("2026-02-28"), false, || true).await.unwrap() >= 200);
    assert_eq!(logged(&books, state).await, before);
}

#[tokio::test]
async fn a_preview_says_which_rows_stay() {
    let books = Books::new().await;
    books.app.execute("SELECT litespend.add_month(to_regclass('\"LiteLLM_SpendLogs\"'), '2026-02-01', true)").await;
    books.settle().await;
    books.close("2026-02-28").await;
    books
        .app
        .execute(
            r#"ALTER TABLE "LiteLLM_SpendLogs_2026_02" DISABLE TRIGGER USER;
               INSERT INTO "LiteLLM_SpendLogs_2026_02" (request_id, call_type, "startTime", "endTime")
               VALUES ('unseen', 'acompletion', '2026-02-02', '2026-02-02');
               ALTER TABLE "LiteLLM_SpendLogs_2026_02" ENABLE TRIGGER USER"#,
        )
        .await;
    let mut connection = books.connection().await;
    let steps = pruning::preview(&mut connection, &books.archive, day("2026-02-28")).await.unwrap();
    assert!(
        steps.iter().any(|step| matches!(step, pruning::Step::Kept(of, 1) if *of == day("2026-02-02"))),
        "{steps:?}"
    );
    assert!(!steps.iter().any(|step| matches!(step, pruning::Step::Partition(_))), "{steps:?}");
}
