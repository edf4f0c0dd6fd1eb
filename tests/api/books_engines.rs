//! What other engines read of an archive, by the names of its files: closed days, each once, and no others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use litespend::books::closing::ClosingOptions;
use litespend::books::{pruning, reopening};
use litespend::store::books as tables;
use litespend_archive::OwnedRow;

use crate::books::{Books, LATE, day};

/// The files of all days, by `*.parquet` without a leading underscore, or all others.
fn files(root: &Path, are_shown: bool) -> Vec<PathBuf> {
    let days = std::fs::read_dir(root.join("spend_logs")).into_iter().flatten();
    let files = days.flat_map(|day| std::fs::read_dir(day.unwrap().path()).unwrap());
    let files = files.map(|file| file.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let is_shown = |name: &str| name.ends_with(".parquet") && !name.starts_with('_');
    files.filter(|path| name(path).contains(".parquet") && is_shown(&name(path)) == are_shown).collect()
}

fn days(files: &[PathBuf]) -> BTreeSet<NaiveDate> {
    let of = |path: &PathBuf| path.parent().unwrap().file_name().unwrap().to_str().unwrap()["day=".len()..].to_owned();
    files.iter().map(|path| day(&of(path))).collect()
}

/// Whether exactly the files that the manifests of closed days list can be seen.
async fn expect_closed_days(books: &Books, step: &str) {
    let mut connection = books.connection().await;
    let closed = tables::closed_days(&mut connection, None).await.unwrap();
    let mut expected = BTreeSet::new();
    for closed in &closed {
        let manifest = books.archive.manifest(closed.day).await.unwrap().unwrap();
        assert_eq!(i64::from(manifest.revision), i64::from(closed.revision), "{step}");
        expected.extend(manifest.parts.iter().map(|part| books.directory.path().join(&part.object.path)));
    }
    assert_eq!(files(books.directory.path(), true).into_iter().collect::<BTreeSet<_>>(), expected, "{step}");
}

fn hidden(path: &Path) -> PathBuf {
    path.with_file_name(format!("_{}.hidden", path.file_name().unwrap().to_str().unwrap()))
}

#[tokio::test]
async fn other_engines_see_closed_days_once_and_no_open_ones() {
    let books = Books::new().await;
    books.settle().await;
    // Until a day is recorded, nobody sees it: here its writer ends before.
    let mut writer = books.archive.write_day(day("2026-02-02"), None, false).await.unwrap();
    let noon = day("2026-02-02").and_hms_opt(12, 0, 0).unwrap().and_utc().timestamp_micros();
    let row = OwnedRow { request_id: "made-up".to_owned(), start_time: noon, ..OwnedRow::default() };
    writer.push(&row.as_row()).await.unwrap();
    let prepared = writer.finish().await.unwrap();
    assert!(files(books.directory.path(), true).is_empty());
    books.archive.commit(&prepared, serde_json::Value::Null).await.unwrap();
    assert!(files(books.directory.path(), true).is_empty());
    assert!(books.close("2026-02-28").await > 2);
    expect_closed_days(&books, "closed").await;
    assert!(files(books.directory.path(), false).is_empty());
    books.both(LATE).await;
    books.settle().await;
    books.close("2026-02-28").await;
    expect_closed_days(&books, "late rows").await;
    // A day that is opened again is in the log, whose rows may change.
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    let opened = tables::closed_days(&mut connection, None).await.unwrap()[0].day;
    reopening::reopen(&mut connection, &books.archive, opened, "a test", false).await.unwrap();
    expect_closed_days(&books, "opened").await;
    assert_eq!(days(&files(books.directory.path(), false)), BTreeSet::from([opened]));
    let (published, left_out) = books.archive.published_days().await.unwrap();
    assert!(!published.is_empty() && left_out == [opened]);
    books.expect_sums("opened").await;
    books.expect_rows("opened").await;
    books.settle().await;
    books.close("2026-02-28").await;
    expect_closed_days(&books, "closed again").await;
    assert!(files(books.directory.path(), false).is_empty());
    books.verify().await.unwrap();
    books.expect_rows("closed again").await;
}

#[tokio::test]
async fn what_an_interrupted_command_left_is_put_right_by_the_next() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-28").await;
    let mut connection = books.connection().await;
    let closed = tables::closed_days(&mut connection, None).await.unwrap();
    // It ended after a day was recorded, and before anybody could see its files.
    let file = books.parquet_file(closed[1].day);
    std::fs::rename(&file, hidden(&file)).unwrap();
    books.verify().await.unwrap();
    books.close("2026-02-28").await;
    expect_closed_days(&books, "hidden").await;
    // It ended after a day was opened, and before its files were hidden; an earlier version never hid them.
    let opened = closed[0].day;
    reopening::reopen(&mut connection, &books.archive, opened, "a test", false).await.unwrap();
    let unseen = files(books.directory.path(), false);
    assert_eq!(days(&unseen), BTreeSet::from([opened]));
    books.archive.publish(opened).await.unwrap();
    // Its day is not closed by this run.
    books.close("2026-01-01").await;
    expect_closed_days(&books, "shown").await;
    // The days of another database stay as they are.
    let manifest = books.archive.manifest(opened).await.unwrap().unwrap();
    let mut foreign = books.archive.write_day(opened, None, false).await.unwrap();
    let row =
        OwnedRow { request_id: "theirs".to_owned(), start_time: manifest.parts[0].first_start, ..OwnedRow::default() };
    foreign.push(&row.as_row()).await.unwrap();
    let prepared = foreign.finish().await.unwrap();
    books.archive.commit(&prepared, serde_json::json!({"database": "another"})).await.unwrap();
    books.archive.publish(opened).await.unwrap();
    books.close("2026-01-01").await;
    assert!(days(&files(books.directory.path(), true)).contains(&opened));
}

#[tokio::test]
async fn a_day_with_large_texts_comes_back() {
    let books = Books::new().await;
    let rows = r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens,
            completion_tokens, "startTime", "endTime", model, messages, response)
        SELECT 'large-' || n, 'acompletion', 'k-large', 0.5, 30, 20, 10, timestamp '2026-02-06' + n * interval '1 minute',
               timestamp '2026-02-06', 'gpt-4o', text.text, text.text
        FROM generate_series(1, 20) AS n,
             LATERAL (SELECT jsonb_build_object('text', repeat(md5(n::text), 32768)) AS text) AS text"#;
    books.both(rows).await;
    books.settle().await;
    let mut connection = books.connection().await;
    let through = day("2026-02-28");
    let close = litespend::books::closing::close_through;
    close(
        &mut connection,
        Vec::new(),
        &books.archive,
        through,
        ClosingOptions { bodies: true, ..ClosingOptions::default() },
        |_| true,
    )
    .await
    .unwrap();
    let texts = r#"SELECT md5(string_agg(messages::text || response::text, '' ORDER BY request_id))
                   FROM "LiteLLM_SpendLogs" WHERE request_id LIKE 'large-%'"#;
    let before: Option<String> = sqlx::query_scalar(texts).fetch_one(&mut *connection).await.unwrap();
    assert!(before.is_some());
    pruning::prune(&mut connection, &books.archive, through, |_| true).await.unwrap();
    let pruned: Option<String> = sqlx::query_scalar(texts).fetch_one(&mut *connection).await.unwrap();
    assert_eq!(pruned, None);
    let restored =
        reopening::reopen(&mut connection, &books.archive, day("2026-02-06"), "a test", false).await.unwrap();
    assert!(restored >= 20);
    let after: Option<String> = sqlx::query_scalar(texts).fetch_one(&mut *connection).await.unwrap();
    assert_eq!(after, before);
}
