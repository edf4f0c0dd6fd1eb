//! Closed days: their totals stay whatever happens to the log, and their rows are answered from the archive. A second
//! database with the same rows, in which nothing is closed, says what the answers are.

use std::path::PathBuf;

use chrono::NaiveDate;
use litespend::books;
use litespend::books::closing::ClosingOptions;
use litespend::books::{closing, pruning, reopening, verifying};
use litespend::rollups::folding;
use litespend::store::PooledConnection;
use litespend::store::books as tables;
use litespend::store::rollups::partitions;
use litespend_archive::{Archive, Options};
use serde_json::Value;
use tempfile::TempDir;

use crate::rollups::{READS, answers};
use crate::support::answers::{Lists, difference};
use crate::support::{MASTER_KEY, TestApp};

/// Reads of rows and of figures that come from the log itself.
const ROWS: [&str; 12] = [
    "/spend/logs",
    "/spend/logs?limit=7",
    "/spend/logs?start_date=2026-02-01&end_date=2026-02-28&summarize=false",
    "/spend/logs?user_id=u-int",
    "/spend/logs/v2?start_date=2026-01-01%2000:00:00&end_date=2026-04-30%2000:00:00&page_size=1000",
    "/spend/logs/v2?start_date=2026-01-01%2000:00:00&end_date=2026-04-30%2000:00:00&sort_by=spend&page_size=20&page=2",
    "/spend/logs/ui?start_date=2026-01-01%2000:00:00&end_date=2026-04-30%2000:00:00&page_size=1000",
    "/spend/logs/ui?start_date=2026-01-01%2000:00:00&end_date=2026-04-30%2000:00:00&group_by_session=true",
    "/global/activity?start_date=2026-01-01&end_date=2026-04-30",
    "/global/activity/model?start_date=2026-01-01&end_date=2026-04-30",
    "/global/spend/all_tag_names",
    "/global/all_end_users",
];

/// A database with closed days, and one without.
pub(crate) struct Books {
    pub app: TestApp,
    /// The same rows, with nothing closed.
    pub model: TestApp,
    pub archive: Archive,
    pub directory: TempDir,
}

pub(crate) fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

impl Books {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let archive = Archive::open(directory.path().to_str().unwrap(), Options::default()).await.unwrap();
        Self::with(archive, directory).await
    }

    pub(crate) async fn with(archive: Archive, directory: TempDir) -> Self {
        let (app, model) = (TestApp::seeded().await, TestApp::seeded().await);
        app.state.use_archive(archive.clone());
        Self { app, model, archive, directory }
    }

    pub(crate) async fn connection(&self) -> PooledConnection {
        self.app.pool.acquire().await.unwrap()
    }

    pub(crate) async fn close(&self, through: &str) -> u32 {
        let mut connection = self.connection().await;
        closing::close_through(
            &mut connection,
            Vec::new(),
            &self.archive,
            day(through),
            ClosingOptions::default(),
            |_| true,
        )
        .await
        .unwrap()
        .days
    }

    /// Folds all deltas. Tells the planner of many rows, as autovacuum would, which is off: without that, it takes plans for a
    /// few rows, which take twenty times as long.
    pub(crate) async fn settle(&self) {
        folding::settle(&mut *self.connection().await).await.unwrap();
        for app in [&self.app, &self.model] {
            if app.scalar(r#"SELECT (count(*) > 5000)::text FROM "LiteLLM_SpendLogs""#).await == "true" {
                app.execute(r#"ANALYZE "LiteLLM_SpendLogs" (request_id, api_key, "startTime", session_id, status)"#)
                    .await;
            }
        }
    }

    pub(crate) async fn both(&self, statement: &'static str) {
        self.app.execute(statement).await;
        self.model.execute(statement).await;
    }

    pub(crate) async fn expect_sums(&self, step: &str) {
        self.expect_sums_of(&self.app, step).await;
    }

    /// Whether a server on the database with closed days answers the sums of the other database.
    pub(crate) async fn expect_sums_of(&self, app: &TestApp, step: &str) {
        app.state.refresh_rollups().await.unwrap();
        let (ours, expected) = (answers(app).await, answers(&self.model).await);
        for ((path, ours), expected) in READS.iter().zip(&ours).zip(&expected) {
            if let Some(difference) = difference(ours, expected, Lists::AsSets) {
                panic!("{step}: {path}: {difference}\nours: {ours}\nexpected: {expected}");
            }
        }
    }

    pub(crate) async fn expect_rows(&self, step: &str) {
        self.expect_rows_of(&self.app, step).await;
    }

    /// Whether a server on the database with closed days answers the rows of the other database.
    pub(crate) async fn expect_rows_of(&self, app: &TestApp, step: &str) {
        for path in ROWS {
            let ours = app.get(path, MASTER_KEY).await;
            assert_eq!(ours.status, 200, "{step}: {path}: {}", ours.text);
            let expected = self.model.get(path, MASTER_KEY).await;
            if let Some(difference) = difference(&ours.json(), &expected.json(), Lists::InOrder) {
                panic!("{step}: {path}: {difference}");
            }
            assert_eq!(ours.headers.get("link").is_some(), expected.headers.get("link").is_some(), "{step}: {path}");
        }
    }

    /// A file with rows of the day in the archive.
    pub(crate) fn parquet_file(&self, day: NaiveDate) -> PathBuf {
        let folder = self.directory.path().join(format!("spend_logs/day={day}"));
        let mut files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.find(|path| path.extension().is_some_and(|end| end == "parquet")).unwrap()
    }

    pub(crate) async fn verify(&self) -> Result<(), books::Error> {
        let mut connection = self.connection().await;
        for closed in tables::closed_days(&mut connection, None).await.unwrap() {
            verifying::verify_day(&mut connection, &self.archive, &closed).await?;
        }
        Ok(())
    }
}

/// A row that arrives after its day was closed.
pub(crate) const LATE: &str = r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens,
        completion_tokens, "startTime", "endTime", model, "user", request_tags, end_user, created_at, updated_at)
    SELECT 'late-' || n, 'acompletion', 'k-late', 0.25, 30, 20, 10, timestamp '2026-02-02' + n * interval '6 hours',
           '2026-02-02 01:00', 'gpt-4o', 'u-int', '["late"]', 'cust-1', '2026-02-09', '2026-02-09' FROM generate_series(0, 3) AS n"#;

#[tokio::test]
async fn totals_of_closed_days_stay_whatever_happens_to_the_log() {
    let books = Books::new().await;
    books.settle().await;
    assert!(books.close("2026-04-30").await > 3);
    books.expect_sums("closed").await;
    books.verify().await.unwrap();
    books.app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE md5(request_id) < '8'"#).await;
    books.expect_sums("deleted").await;
    books.settle().await;
    books.expect_sums("deleted and folded").await;
    books.app.execute(r#"TRUNCATE "LiteLLM_SpendLogs""#).await;
    books.expect_sums("truncated").await;
    books.settle().await;
    books.expect_sums("truncated and counted").await;
    books.both(LATE).await;
    books.expect_sums("late rows").await;
    books.settle().await;
    books.expect_sums("late rows, folded").await;
    books.expect_rows("late rows").await;
    // The same rows again add nothing, neither before nor after they are archived.
    books.app.execute(r#"TRUNCATE "LiteLLM_SpendLogs""#).await;
    books.app.execute(LATE).await;
    books.settle().await;
    books.expect_sums("late rows again").await;
    assert_eq!(books.close("2026-04-30").await, 0);
    books.app.execute(r#"TRUNCATE "LiteLLM_SpendLogs""#).await;
    books.app.execute(LATE).await;
    books.settle().await;
    books.expect_sums("archived late rows again").await;
    books.expect_rows("archived late rows again").await;
    books.verify().await.unwrap();
    books
        .both(r#"UPDATE "LiteLLM_SpendLogs" SET spend = spend + 1, model_group = 'm' WHERE request_id LIKE 'late-%'"#)
        .await;
    books.expect_sums("updated").await;
    books.settle().await;
    books.expect_sums("updated and folded").await;
    let adjustments = tables::adjustments(&mut *books.connection().await, None).await.unwrap();
    let late = adjustments.iter().find(|adjustment| adjustment.kind == "late").unwrap();
    assert_eq!((late.totals.requests, late.totals.spend), (4, 1.0));
    let updated = adjustments.iter().find(|adjustment| adjustment.kind == "updated").unwrap();
    assert_eq!((updated.totals.requests, updated.totals.spend), (0, 4.0));
}

#[tokio::test]
async fn rows_leave_the_log_and_come_back() {
    let books = Books::new().await;
    books.settle().await;
    books.expect_rows("before").await;
    books.close("2026-02-28").await;
    books.expect_rows("closed").await;
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    let left =
        books.app.scalar(r#"SELECT count(*)::text FROM "LiteLLM_SpendLogs" WHERE "startTime" < '2026-03-01'"#).await;
    assert_eq!(left, "0");
    books.expect_sums("pruned").await;
    books.expect_rows("pruned").await;
    let id = books
        .model
        .scalar(r#"SELECT request_id FROM "LiteLLM_SpendLogs" WHERE "startTime" < '2026-03-01' LIMIT 1"#)
        .await;
    for path in [format!("/spend/logs?request_id={id}"), format!("/spend/logs/ui/{id}")] {
        assert_eq!(
            books.app.get(&path, MASTER_KEY).await.text,
            books.model.get(&path, MASTER_KEY).await.text,
            "{path}"
        );
    }
    let without = format!("/spend/logs?request_id={id}&archive=false");
    assert_eq!(books.app.get(&without, MASTER_KEY).await.json(), Value::Array(Vec::new()));
    let closed = tables::closed_days(&mut connection, None).await.unwrap();
    assert!(closed.iter().all(|closed| closed.pruned_at.is_some()), "{closed:?}");
    for closed in closed {
        reopening::reopen(&mut connection, &books.archive, closed.day, "a test", false).await.unwrap();
    }
    books.expect_sums("reopened").await;
    books.settle().await;
    books.expect_sums("reopened and counted").await;
    books.expect_rows("reopened").await;
    assert!(!tables::is_any_closed(&mut connection).await.unwrap());
}

#[tokio::test]
async fn a_damaged_file_is_named_and_not_answered_from() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-28").await;
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    let closed = tables::closed_days(&mut connection, None).await.unwrap();
    let file = books.parquet_file(closed[0].day);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = books.verify().await.unwrap_err().to_string();
    assert!(error.contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
    let answer = books.app.get("/spend/logs", MASTER_KEY).await;
    assert!(answer.status == 503 && answer.text.contains("damaged"), "{answer:?}");
    assert_eq!(books.app.get("/spend/logs?archive=false", MASTER_KEY).await.status, 200);
    books.expect_sums("damaged").await;
}

#[tokio::test]
async fn rows_that_come_by_other_ways_than_insert_count_and_are_archived() {
    let books = Books::new().await;
    books
        .both(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, total_tokens, "startTime", "endTime", model, created_at, updated_at)
               VALUES ('moved', 'acompletion', 0.5, 7, '2026-05-05', '2026-05-05', 'gpt-4o', '2026-05-05', '2026-05-05')"#,
        )
        .await;
    books.settle().await;
    books.close("2026-02-28").await;
    books.both(r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = '2026-02-02 05:00' WHERE request_id = 'moved'"#).await;
    books.expect_sums("moved into a closed day").await;
    books.settle().await;
    books.expect_sums("moved and folded").await;
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    books.expect_sums("moved and pruned").await;
    books.expect_rows("moved and pruned").await;
    // A partition brings a row that the closed day does not count, and one that it does.
    let row = r#"INSERT INTO "LiteLLM_SpendLogs_2026_02" (request_id, call_type, spend, total_tokens, "startTime", "endTime", model, created_at, updated_at)
        VALUES ('brought', 'acompletion', 0.25, 9, '2026-02-02', '2026-02-02', 'gpt-4o', '2026-02-02', '2026-02-02'),
               ('moved', 'acompletion', 0.5, 7, '2026-02-02 05:00', '2026-05-05', 'gpt-4o', '2026-05-05', '2026-05-05')"#;
    books
        .app
        .execute(
            r#"CREATE TABLE "LiteLLM_SpendLogs_2026_02" (LIKE "LiteLLM_SpendLogs" INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"#,
        )
        .await;
    books.app.execute(row).await;
    books
        .app
        .execute(
            r#"ALTER TABLE "LiteLLM_SpendLogs" ATTACH PARTITION "LiteLLM_SpendLogs_2026_02" FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')"#,
        )
        .await;
    books
        .model
        .execute(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, total_tokens, "startTime", "endTime", model, created_at, updated_at)
               VALUES ('brought', 'acompletion', 0.25, 9, '2026-02-02', '2026-02-02', 'gpt-4o', '2026-02-02', '2026-02-02')"#,
        )
        .await;
    partitions::follow(&mut connection).await.unwrap();
    books.expect_sums("brought by a partition").await;
    books.settle().await;
    books.expect_sums("brought and folded").await;
    let mut steps = Vec::new();
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |step| {
        steps.push(step.clone());
        true
    })
    .await
    .unwrap();
    assert!(matches!(steps.as_slice(), [pruning::Step::Partition(_)]), "{steps:?}");
    books.expect_sums("dropped").await;
    books.expect_rows("dropped").await;
    books.verify().await.unwrap();
}

#[tokio::test]
async fn rows_that_the_archive_does_not_have_are_never_pruned() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-28").await;
    // As by a writer that no trigger sees.
    books
        .app
        .execute(
            r#"ALTER TABLE "LiteLLM_SpendLogs" DISABLE TRIGGER USER;
               INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime")
               VALUES ('unseen', 'acompletion', '2026-02-02', '2026-02-02');
               ALTER TABLE "LiteLLM_SpendLogs" ENABLE TRIGGER USER"#,
        )
        .await;
    let mut kept = Vec::new();
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |step| {
        kept.extend(if let pruning::Step::Kept(day, rows) = step { Some((*day, *rows)) } else { None });
        true
    })
    .await
    .unwrap();
    assert_eq!(kept, [(day("2026-02-02"), 1)]);
    let left = r#"SELECT string_agg(request_id, ',') FROM "LiteLLM_SpendLogs" WHERE "startTime" < '2026-03-01'"#;
    assert_eq!(books.app.scalar(left).await, "unseen");
}

#[tokio::test]
async fn an_archive_belongs_to_one_database() {
    let books = Books::new().await;
    books.settle().await;
    books.close("2026-02-28").await;
    let mut connection = books.model.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    let closed = closing::close_through(
        &mut connection,
        Vec::new(),
        &books.archive,
        day("2026-02-28"),
        ClosingOptions::default(),
        |_| true,
    )
    .await;
    let Err(books::Error::Refused(refusal)) = closed else { panic!("{closed:?}") };
    assert!(refusal.contains("another database"), "{refusal}");
    assert!(!tables::is_any_closed(&mut connection).await.unwrap());
    books.verify().await.unwrap();
}

#[tokio::test]
async fn a_spend_that_is_not_finite_keeps_no_day_open() {
    for spend in ["Infinity", "NaN"] {
        let books = Books::new().await;
        sqlx::query(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, "startTime", "endTime", model)
               VALUES ('endless', 'acompletion', $1::text::float8, '2026-02-02', '2026-02-02', 'gpt-4o')"#,
        )
        .bind(spend)
        .execute(&books.app.pool)
        .await
        .unwrap();
        books.settle().await;
        assert!(books.close("2026-02-28").await > 2, "{spend}");
        books.verify().await.unwrap();
    }
}
