//! What pruning does not take away: rows that are no longer as they were archived, and columns that the archive does not have.

use futures_util::TryStreamExt;
use litespend::books::closing::ClosingOptions;
use litespend::books::pruning::Step;
use litespend::books::{closing, pruning, reopening};
use litespend::store::books as tables;
use litespend_archive::Query;

use crate::books::{Books, day};
use crate::support::MASTER_KEY;

/// A day with four calls, each of which a test changes in another way.
const CALLS: &str = r#"
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime", "endTime", model, metadata,
        request_tags, status, messages, created_at, updated_at)
    SELECT name, 'acompletion', 'k', 0.5, 3, timestamp '2026-05-02' + interval '1 hour', '2026-05-02 02:00', 'gpt-4o',
           '{"by": "first"}', '["a"]', 'success', '{"text": "hello"}', '2026-05-02', '2026-05-02'
    FROM unnest('{costs, fails, told, moves, stays}'::text[]) AS name"#;

/// Changes of values that are summed, and of values that are not.
const CHANGES: &str = r#"
    UPDATE "LiteLLM_SpendLogs" SET spend = 2 WHERE request_id = 'costs';
    UPDATE "LiteLLM_SpendLogs" SET status = 'failure' WHERE request_id = 'fails';
    UPDATE "LiteLLM_SpendLogs" SET metadata = '{"by": "second"}' WHERE request_id = 'told';
    UPDATE "LiteLLM_SpendLogs" SET "startTime" = "startTime" + interval '1 minute' WHERE request_id = 'moves'"#;

async fn closed(bodies: bool) -> Books {
    let books = Books::new().await;
    books.both(CALLS).await;
    if !bodies {
        // The archive does not have them.
        books
            .model
            .execute(r#"UPDATE "LiteLLM_SpendLogs" SET messages = '{}' WHERE "startTime" >= '2026-05-02'"#)
            .await;
    }
    books.settle().await;
    let options = ClosingOptions { bodies, ..ClosingOptions::default() };
    let mut connection = books.connection().await;
    closing::close_through(&mut connection, Vec::new(), &books.archive, day("2026-05-02"), options, |_| true)
        .await
        .unwrap();
    drop(connection);
    books
}

async fn prune(books: &Books) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-05-02"), |step| {
        steps.push(step.clone());
        true
    })
    .await
    .unwrap();
    steps
}

const LOGGED: &str = r#"SELECT COALESCE(string_agg(request_id, ' ' ORDER BY request_id), '') FROM "LiteLLM_SpendLogs"
                        WHERE "startTime" >= '2026-05-02' AND "startTime" < '2026-05-03'"#;

fn kept(steps: &[Step]) -> i64 {
    steps.iter().map(|step| if let Step::Kept(_, rows) = step { *rows } else { 0 }).sum()
}

#[tokio::test]
async fn a_row_leaves_the_log_only_if_the_archive_has_it_as_it_is() {
    for bodies in [false, true] {
        let books = closed(bodies).await;
        books.both(CHANGES).await;
        books.app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET updated_at = now() WHERE request_id = 'stays'"#).await;
        books.settle().await;
        let preview =
            pruning::preview(&mut *books.connection().await, &books.archive, day("2026-05-02")).await.unwrap();
        assert_eq!(kept(&preview), 4, "{preview:?}");
        assert_eq!(kept(&prune(&books).await), 4);
        assert_eq!(books.app.scalar(LOGGED).await, "costs fails moves told");
        books.expect_sums("pruned").await;
        if bodies {
            books.expect_rows("pruned").await;
        }
        // The day is closed again with what the rows say now.
        let mut connection = books.connection().await;
        reopening::reopen(&mut connection, &books.archive, day("2026-05-02"), "calls changed", false).await.unwrap();
        drop(connection);
        books.settle().await;
        books.close("2026-05-02").await;
        assert_eq!(kept(&prune(&books).await), 0);
        assert_eq!(books.app.scalar(LOGGED).await, "");
        books.expect_sums("closed and pruned again").await;
        books.expect_rows("closed and pruned again").await;
        books.verify().await.unwrap();
        let revision =
            tables::closed_day(&mut *books.connection().await, day("2026-05-02")).await.unwrap().unwrap().revision;
        let rows = books.archive.scan(&[(day("2026-05-02"), revision.unsigned_abs())], Query::default());
        let rows: Vec<_> = rows.try_collect().await.unwrap();
        let told = rows.iter().find(|row| row.request_id == "told").unwrap();
        assert_eq!(told.metadata.as_deref(), Some(r#"{"by": "second"}"#));
        assert_eq!(told.messages.is_some(), bodies);
    }
}

#[tokio::test]
async fn a_partition_with_a_changed_row_stays() {
    let books = Books::new().await;
    books.app.execute("SELECT litespend.add_month(to_regclass('\"LiteLLM_SpendLogs\"'), '2026-02-01', true)").await;
    books.settle().await;
    books.close("2026-02-28").await;
    books
        .both(
            r#"UPDATE "LiteLLM_SpendLogs" SET status = 'another'
               WHERE request_id = (SELECT min(request_id) FROM "LiteLLM_SpendLogs"
                                   WHERE "startTime" >= '2026-02-02' AND "startTime" < '2026-02-03')"#,
        )
        .await;
    books.settle().await;
    let mut connection = books.connection().await;
    let is_partition = |step: &Step| matches!(step, Step::Partition(partition) if partition.table.contains("2026_02"));
    let mut steps = Vec::new();
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |step| {
        steps.push(step.clone());
        true
    })
    .await
    .unwrap();
    assert!(!steps.iter().any(is_partition), "{steps:?}");
    assert!(steps.iter().any(|step| matches!(step, Step::Kept(of, 1) if *of == day("2026-02-02"))), "{steps:?}");
    books.expect_rows("pruned").await;
    // The partition goes when its rows are archived as they are.
    reopening::reopen(&mut connection, &books.archive, day("2026-02-02"), "a call changed", false).await.unwrap();
    books.settle().await;
    books.close("2026-02-28").await;
    steps.clear();
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |step| {
        steps.push(step.clone());
        true
    })
    .await
    .unwrap();
    assert!(steps.iter().any(is_partition), "{steps:?}");
    books.expect_sums("dropped").await;
    books.expect_rows("dropped").await;
}

#[tokio::test]
async fn stripped_rows_leave_the_log() {
    for bodies in [false, true] {
        let books = closed(bodies).await;
        let stripped =
            pruning::strip(&mut *books.connection().await, day("2026-05-02"), bodies, || true).await.unwrap();
        assert!(stripped >= 5, "{stripped}");
        assert_eq!(kept(&prune(&books).await), 0);
        assert_eq!(books.app.scalar(LOGGED).await, "");
    }
}

#[tokio::test]
async fn rows_of_a_log_with_unknown_columns_stay() {
    let books = closed(false).await;
    let mut connection = books.connection().await;
    pruning::expect_known_columns(&mut connection).await.unwrap();
    books.app.execute(r#"ALTER TABLE "LiteLLM_SpendLogs" ADD COLUMN carbon_grams float8 DEFAULT 3"#).await;
    let refused = pruning::expect_known_columns(&mut connection).await.unwrap_err().to_string();
    assert!(refused.contains("carbon_grams"), "{refused}");
    // Days are closed as before.
    assert_eq!(books.close("2026-05-02").await, 0);
}

#[tokio::test]
async fn a_server_without_an_archive_says_that_rows_are_missing_whoever_removed_them() {
    let books = closed(false).await;
    let path = "/spend/logs?request_id=stays";
    let alone = books.app.another().await;
    assert_eq!(alone.get(path, MASTER_KEY).await.json().as_array().unwrap().len(), 1);
    // As LiteLLM's retention does.
    books.app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = 'stays'"#).await;
    assert_eq!(books.app.get(path, MASTER_KEY).await.json().as_array().unwrap().len(), 1);
    let refused = alone.get(path, MASTER_KEY).await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("--archive"), "{}", refused.text);
    assert_eq!(alone.get(&format!("{path}&archive=false"), MASTER_KEY).await.text, "[]");
}

#[tokio::test]
async fn the_index_of_a_month_is_made_up_for() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-04-30").await;
    let indexes = || {
        let files = std::fs::read_dir(books.directory.path().join("ids")).unwrap();
        let mut names: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".json"))
            .collect();
        names.sort();
        names
    };
    let all = indexes();
    assert!(all.len() >= 2, "{all:?}");
    // As if an earlier run had been interrupted.
    for name in &all {
        std::fs::remove_file(books.directory.path().join("ids").join(name)).unwrap();
    }
    assert_eq!(books.close("2026-04-30").await, 0);
    assert_eq!(indexes().len(), all.len(), "{:?}", indexes());
}
