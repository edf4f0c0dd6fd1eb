//! Rows and days that come back: rows of closed days that are inserted again, late rows that were lost, and a database that is
//! restored to a time when its days were not closed yet.

use futures_util::TryStreamExt;
use litespend::books;
use litespend::books::closing::{ClosingOptions, Forgotten};
use litespend::books::{closing, pruning, reopening, verifying};
use litespend::rollups::folding;
use litespend::store::books as tables;
use litespend_archive::{Archive, Column, Options, Query};

use crate::books::{Books, LATE, day};
use crate::support::{MASTER_KEY, TestApp};

impl Books {
    /// The request IDs that the archive has of a day, in order.
    async fn archived_ids(&self, of: &str) -> Vec<String> {
        let archive = Archive::open(self.directory.path().to_str().unwrap(), Options::default()).await.unwrap();
        let newest = archive.manifest(day(of)).await.unwrap().unwrap();
        let query = Query { columns: vec![Column::RequestId], ..Query::default() };
        let rows = archive.scan(&[(day(of), newest.revision)], query);
        let mut ids: Vec<String> = rows.map_ok(|row| row.request_id).try_collect().await.unwrap();
        ids.sort_unstable();
        ids
    }

    async fn logged(&self, of: &str) -> i64 {
        tables::logged_rows(&mut *self.connection().await, day(of)).await.unwrap()
    }
}

/// The closed day that the tests change.
const DAY: &str = "2026-02-02";

#[tokio::test]
async fn a_row_that_was_moved_away_and_is_inserted_again_counts_again() {
    let books = Books::new().await;
    books.both(LATE).await;
    books.settle().await;
    books.close("2026-02-28").await;
    for step in [
        r#"CREATE TABLE kept AS SELECT * FROM "LiteLLM_SpendLogs" WHERE request_id = 'late-1'"#,
        r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = '2026-04-02 10:00' WHERE request_id = 'late-1'"#,
        r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = 'late-1'"#,
        r#"INSERT INTO "LiteLLM_SpendLogs" SELECT * FROM kept"#,
        // An update of what came back moves it once more.
        r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = '2026-04-03 10:00' WHERE request_id = 'late-1'"#,
        r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = 'late-1'"#,
        r#"INSERT INTO "LiteLLM_SpendLogs" SELECT * FROM kept"#,
    ] {
        books.both(step).await;
        books.settle().await;
        books.expect_sums(step).await;
        books.expect_rows(step).await;
    }
    books.close("2026-02-28").await;
    books.prune().await;
    assert_eq!(books.logged(DAY).await, 0);
    books.expect_sums("pruned").await;
    books.expect_rows("pruned").await;
    let found = books.app.get("/spend/logs?request_id=late-1", MASTER_KEY).await.json();
    assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
    books.verify().await.unwrap();
}

#[tokio::test]
async fn thousands_of_rows_may_come_into_closed_days_with_one_statement() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-28").await;
    let statement = r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens,
                           completion_tokens, "startTime", "endTime", model, "user", request_tags, end_user)
        SELECT 'many-' || n, 'acompletion', 'k-' || n % 3, 0.25, 30, 20, 10, timestamp '2026-02-01' + n % 2 * interval '1 day',
               '2026-02-02 01:00', 'gpt-4o', 'u-int', '["late"]', 'cust-1' FROM generate_series(1, 4500) AS n"#;
    books.both(statement).await;
    books.settle().await;
    books.expect_sums("many rows").await;
    books.close("2026-02-28").await;
    books.prune().await;
    books.expect_sums("archived").await;
    books.verify().await.unwrap();
}

#[tokio::test]
async fn a_late_row_is_archived_once_however_often_it_comes() {
    let books = Books::new().await;
    books.close("2026-02-28").await;
    let before = books.archived_ids(DAY).await.len();
    let insert = async |ids: &str| {
        let list = ids.replace(',', "','");
        sqlx::query(sqlx::AssertSqlSafe(format!(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, model, spend, "startTime", "endTime")
               SELECT id, 'acompletion', 'k', 'm', 0.25, '{DAY} 10:00', '{DAY} 10:01' FROM unnest(ARRAY['{list}']) AS id"#
        )))
        .execute(&books.app.pool)
        .await
        .unwrap();
    };
    let delete = r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id IN ('again', 'lost', 'other')"#;
    insert("again,lost").await;
    books.app.execute(delete).await;
    // Both are known to be lost now.
    books.close("2026-02-28").await;
    insert("again,other").await;
    // A reopening archives what it finds before it is refused: the day counts a row that nobody has.
    let mut connection = books.connection().await;
    let refused = reopening::reopen(&mut connection, &books.archive, day(DAY), "a test", false).await;
    assert!(matches!(refused, Err(books::Error::Refused(_))), "{refused:?}");
    drop(connection);
    books.close("2026-02-28").await;
    books.close("2026-02-28").await;
    let ids = books.archived_ids(DAY).await;
    assert_eq!(ids.len(), before + 2, "{ids:?}");
    assert!(ids.is_sorted_by(|a, b| a < b), "an ID is archived twice: {ids:?}");
    books.verify().await.unwrap();
}

#[tokio::test]
async fn a_late_row_that_only_the_archive_has_after_a_crash_is_not_archived_again() {
    let books = Books::new().await;
    books.close("2026-02-28").await;
    books.app.execute(LATE).await;
    books.settle().await;
    let before = books.archived_ids(DAY).await.len();
    books.app.execute("CREATE TABLE state AS SELECT * FROM litespend.closed_days").await;
    books.app.execute("CREATE TABLE ids AS SELECT * FROM litespend.late_ids").await;
    books.app.execute("CREATE TABLE known AS SELECT * FROM litespend.closed_ids").await;
    books.close("2026-02-28").await;
    // As if the process had died before it recorded in the database what the archive has.
    for statement in [
        "UPDATE litespend.closed_days AS c SET revision = s.revision, archived_rows = s.archived_rows, archived_spend = s.archived_spend,
             archived_total_tokens = s.archived_total_tokens, archived_prompt_tokens = s.archived_prompt_tokens,
             archived_completion_tokens = s.archived_completion_tokens
         FROM state AS s WHERE s.day = c.day",
        "INSERT INTO litespend.late_ids SELECT * FROM ids",
        "DELETE FROM litespend.closed_ids",
        "INSERT INTO litespend.closed_ids SELECT * FROM known",
        r#"CREATE TABLE kept AS SELECT * FROM "LiteLLM_SpendLogs" WHERE request_id LIKE 'late-%'"#,
        r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id LIKE 'late-%'"#,
    ] {
        books.app.execute(statement).await;
    }
    books.close("2026-02-28").await;
    books.app.execute(r#"INSERT INTO "LiteLLM_SpendLogs" SELECT * FROM kept"#).await;
    books.close("2026-02-28").await;
    let ids = books.archived_ids(DAY).await;
    assert_eq!(ids.len(), before + 4, "{ids:?}");
    assert!(ids.is_sorted_by(|a, b| a < b), "an ID is archived twice: {ids:?}");
    books.verify().await.unwrap();
}

#[tokio::test]
async fn a_restored_database_does_not_replace_days_that_the_archive_has() {
    let books = Books::new().await;
    books.both(LATE).await;
    books.settle().await;
    books.close("2026-02-28").await;
    let archived = books.archived_ids(DAY).await;
    let shown = books.parquet_file(day(DAY));
    // The backup was made before the days were closed, and before all rows had come.
    let restored = TestApp::seeded().await;
    sqlx::query(
        "INSERT INTO litespend.settings SELECT 'books', jsonb_build_object('schema', 'public', 'id', $1::text)",
    )
    .bind(tables::database_id(&mut *books.connection().await).await.unwrap())
    .execute(&restored.pool)
    .await
    .unwrap();
    let mut connection = restored.pool.acquire().await.unwrap();
    let close = async |connection: &mut litespend::store::Connection, options| {
        closing::close_through(connection, Vec::new(), &books.archive, day("2026-02-28"), options, |_| true).await
    };
    let Err(books::Error::Refused(said)) = close(&mut connection, ClosingOptions::default()).await else {
        panic!("it was not refused");
    };
    assert!(said.starts_with(DAY) && said.contains("--restore-archived"), "{said}");
    assert_eq!(books.archived_ids(DAY).await, archived);
    assert!(shown.is_file(), "it is hidden from other engines, and from those who would read it back");
    // Days of which the log has all rows are closed.
    let closed = tables::closed_days(&mut connection, None).await.unwrap();
    assert!(!closed.is_empty() && closed.iter().all(|closed| closed.day != day(DAY)));
    // Another backup, another choice.
    let options = |forgotten| ClosingOptions { forgotten, ..ClosingOptions::default() };
    assert_eq!(close(&mut connection, options(Forgotten::Restored)).await.unwrap().days, 1);
    assert_eq!(books.archived_ids(DAY).await, archived);
    assert_eq!(tables::logged_rows(&mut connection, day(DAY)).await.unwrap(), archived.len() as i64);
    restored
        .execute(
            r#"DELETE FROM litespend.closed_days; DELETE FROM litespend.closed_ids;
           DELETE FROM "LiteLLM_SpendLogs" WHERE request_id LIKE 'late-%'"#,
        )
        .await;
    folding::settle(&mut connection).await.unwrap();
    assert!(close(&mut connection, ClosingOptions::default()).await.is_err());
    assert_eq!(close(&mut connection, options(Forgotten::Replaced)).await.unwrap().days, 1);
    assert_eq!(books.archived_ids(DAY).await.len(), archived.len() - 4);
}

#[tokio::test]
async fn a_day_that_was_reopened_may_be_closed_with_fewer_rows() {
    let books = Books::new().await;
    books.both(LATE).await;
    books.settle().await;
    books.close("2026-02-28").await;
    let archived = books.archived_ids(DAY).await.len();
    let mut connection = books.connection().await;
    reopening::reopen(&mut connection, &books.archive, day(DAY), "a test", false).await.unwrap();
    drop(connection);
    books.both(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id LIKE 'late-%'"#).await;
    books.settle().await;
    assert_eq!(books.close("2026-02-28").await, 1);
    assert_eq!(books.archived_ids(DAY).await.len(), archived - 4);
    books.expect_sums("closed again").await;
}

#[tokio::test]
async fn a_manifest_is_read_from_the_store_before_rows_are_removed() {
    let books = Books::new().await;
    books.close("2026-02-28").await;
    let rows = books.logged(DAY).await;
    let manifest = books.directory.path().join(format!("spend_logs/day={DAY}/_manifest-00001.json"));
    let mut bytes = std::fs::read(&manifest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&manifest, bytes).unwrap();
    // It is in the memory of this process, which wrote it.
    let mut connection = books.connection().await;
    let closed = tables::closed_day(&mut connection, day(DAY)).await.unwrap().unwrap();
    let verified = verifying::verify_day(&mut connection, &books.archive, &closed).await;
    assert!(verified.is_err_and(|error| error.to_string().contains("_manifest-00001.json")));
    assert!(pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.is_err());
    assert_eq!(tables::logged_rows(&mut connection, day(DAY)).await.unwrap(), rows);
}

#[tokio::test]
async fn an_empty_request_id_is_an_id_like_others() {
    let books = Books::new().await;
    books.close("2026-02-28").await;
    books.prune().await;
    assert_eq!(books.logged(DAY).await, 0);
    let path = "/spend/logs?request_id=";
    let answer = books.app.get(path, MASTER_KEY).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, "[]"));
    // Without the archive, nobody knows whether a call of a closed day has it.
    let without = books.app.another().await;
    assert_eq!(without.get(path, MASTER_KEY).await.status, 503);
    assert_eq!(without.get(&format!("{path}&archive=false"), MASTER_KEY).await.text, "[]");
}
