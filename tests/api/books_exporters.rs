//! Days that are exported by connections of their own, ahead of those that are recorded, while their rows change. A second
//! database in which nothing is closed has the same changes, and says what is right.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::NaiveDate;
use futures_util::TryStreamExt;
use litespend::books;
use litespend::books::closing;
use litespend::books::closing::{Closed, ClosingOptions};
use litespend::store::books as tables;
use litespend::store::books::closing::totals;
use litespend::store::{Connection, database};
use litespend_archive::Query;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::{AssertSqlSafe, Executor};

use crate::books::{Books, day};
use crate::support::randomness;

/// The days that are closed.
const FIRST_DAY: &str = "2026-03-15";
const LAST_DAY: &str = "2026-03-26";
const DAYS: usize = 12;

/// Rows of each day.
const FILL: &str = r#"
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens,
        "startTime", "endTime", model, "user", team_id, end_user, request_tags, metadata, created_at, updated_at)
    SELECT 'filled-' || ago || '-' || n, 'acompletion', 'k' || n % 3, n * 0.001, n, n - n / 3, n / 3, at, at, 'model-' || n % 4,
           (array['u-int', 'u-2', NULL])[1 + n % 3], (array['team-alpha', 'team-b'])[1 + n % 2], 'cust-' || n % 5,
           '["prod"]', '{"user_api_key_alias": "an alias"}', at, at
    FROM generate_series(0, 11) AS ago, generate_series(1, 200) AS n,
         LATERAL (SELECT timestamp '2026-03-15' + ago * interval '1 day' + n * interval '431 seconds') AS times (at)"#;

fn days() -> impl Iterator<Item = NaiveDate> {
    day(FIRST_DAY).iter_days().take(DAYS)
}

async fn filled() -> Books {
    let books = Books::new().await;
    books.app.execute(r#"TRUNCATE "LiteLLM_SpendLogs""#).await;
    books.model.execute(r#"TRUNCATE "LiteLLM_SpendLogs""#).await;
    books.both(FILL).await;
    books.settle().await;
    books
}

/// As many connections as `litespend books close` uses, in the state in which it uses them.
pub(crate) async fn exporters(books: &Books) -> Vec<Connection> {
    let mut exporters = Vec::new();
    for _ in 0..2 {
        let mut connection = books.connection().await.detach();
        database::lift_statement_timeout(&mut connection).await.unwrap();
        exporters.push(connection);
    }
    exporters
}

/// Closes all days. A day of which the log kept changing stays open, and the next call closes it.
async fn close(books: &Books, report: impl FnMut(&tables::ClosedDay) -> bool) -> Result<Closed, books::Error> {
    let mut connection = books.connection().await;
    let (exporters, options) = (exporters(books).await, ClosingOptions::default());
    closing::close_through(&mut connection, exporters, &books.archive, day(LAST_DAY), options, report).await
}

/// Compares each closed day with the log of the other database: its totals, and its rows in the archive but for those whose
/// values changed after they were archived.
async fn expect_days(books: &Books, changed: &BTreeSet<String>) {
    let mut ours = books.connection().await;
    let mut model = books.model.pool.acquire().await.unwrap();
    let closed = tables::closed_days(&mut ours, None).await.unwrap();
    assert_eq!(closed.iter().map(|closed| closed.day).collect::<Vec<_>>(), days().collect::<Vec<_>>());
    for closed in closed {
        let day = closed.day;
        let logged = tables::logged_totals(&mut model, day).await.unwrap();
        let counted = totals(&mut ours, day).await.unwrap();
        assert!(counted.agrees_with(&logged), "{day}: {counted:?} instead of {logged:?}");
        let adjusted = tables::adjustments(&mut ours, Some(day)).await.unwrap();
        let recorded = adjusted.iter().fold(closed.totals, |sum, adjustment| sum.plus(&adjustment.totals));
        assert!(recorded.agrees_with(&logged), "{day}: {recorded:?} are recorded instead of {logged:?}: {adjusted:?}");
        let mut archived = BTreeMap::new();
        let revision = u32::try_from(closed.revision).unwrap();
        let mut rows = books.archive.scan(&[(day, revision)], Query::default());
        while let Some(row) = rows.try_next().await.unwrap() {
            let values = (row.spend, row.total_tokens, row.user, row.metadata.unwrap());
            assert!(archived.insert(row.request_id, values).is_none(), "{day}: twice in the archive");
        }
        let logged: Vec<(String, f64, i32, Option<String>, String)> = sqlx::query_as(
            r#"SELECT request_id, spend, total_tokens, "user", metadata::text FROM "LiteLLM_SpendLogs"
               WHERE "startTime" >= $1 AND "startTime" < $1 + 1 ORDER BY request_id"#,
        )
        .bind(day)
        .fetch_all(&mut *model)
        .await
        .unwrap();
        assert_eq!(
            archived.keys().collect::<Vec<_>>(),
            logged.iter().map(|(id, ..)| id).collect::<Vec<_>>(),
            "{day}: archived rows"
        );
        for (id, spend, tokens, user, metadata) in logged.into_iter().filter(|(id, ..)| !changed.contains(id)) {
            assert_eq!(archived[&id], (spend, tokens, user, metadata), "{day}: {id}");
        }
    }
}

/// Changes a day that is exported and not recorded yet: as it is recorded, it must be as the log has it then.
async fn change_after_export(books: &Books, day: NaiveDate) {
    for _ in 0..3_000 {
        if books.archive.manifest(day).await.unwrap().is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let manifest = books.archive.manifest(day).await.unwrap();
    assert_eq!(manifest.unwrap().revision, 1, "{day}");
    assert!(tables::closed_day(&mut *books.connection().await, day).await.unwrap().is_none());
    let ago = (day - self::day(FIRST_DAY)).num_days();
    let changes = [
        format!(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime", "endTime",
                   model, "user", metadata, created_at, updated_at)
               SELECT 'more-' || at, 'acompletion', 'k1', 0.5, 3, at, at, 'gpt-4o', 'u-int', '{{}}', at, at
               FROM (VALUES (timestamp '{day}' + interval '5 hours')) AS times (at)"#
        ),
        format!(
            r#"UPDATE "LiteLLM_SpendLogs" SET spend = 7, total_tokens = 70, "user" = 'u-int'
               WHERE request_id = 'filled-{ago}-20'"#
        ),
        format!(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = 'filled-{ago}-30'"#),
    ];
    // Each kind of change by itself, and all of them.
    for (place, change) in changes.into_iter().enumerate() {
        if ago % 4 == 0 || usize::try_from(ago % 4).unwrap() == place + 1 {
            for app in [&books.app, &books.model] {
                app.pool.execute(AssertSqlSafe(change.as_str())).await.unwrap();
            }
        }
    }
    // Also where the rollups have the changes already.
    if ago % 3 > 0 {
        books.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_day_that_changes_after_it_was_exported_ahead_is_closed_as_it_is_when_it_is_recorded() {
    let books = filled().await;
    let runtime = tokio::runtime::Handle::current();
    let mut closed = Vec::new();
    let done = close(&books, |one| {
        closed.push((one.day, one.revision));
        let next = one.day.succ_opt().unwrap();
        if next <= day(LAST_DAY) {
            tokio::task::block_in_place(|| runtime.block_on(change_after_export(&books, next)));
        }
        true
    });
    let done = done.await.unwrap();
    assert_eq!(usize::try_from(done.days).unwrap(), DAYS);
    assert_eq!(closed.iter().map(|(day, _)| *day).collect::<Vec<_>>(), days().collect::<Vec<_>>());
    // All days but the first were exported a second time.
    assert!(closed.iter().enumerate().all(|(place, (_, revision))| (*revision > 1) == (place > 0)), "{closed:?}");
    expect_days(&books, &BTreeSet::new()).await;
    books.expect_sums("closed").await;
    books.expect_rows("closed").await;
    books.verify().await.unwrap();
    let mut connection = books.connection().await;
    books::pruning::prune(&mut connection, &books.archive, day(LAST_DAY), |_| true).await.unwrap();
    assert_eq!(books.app.scalar(r#"SELECT count(*)::text FROM "LiteLLM_SpendLogs""#).await, "0");
    books.expect_sums("pruned").await;
    books.expect_rows("pruned").await;
    let adjustments = tables::adjustments(&mut connection, None).await.unwrap();
    assert!(adjustments.is_empty(), "{adjustments:?}");
}

/// What a writer did to the rows of some days.
#[derive(Debug, Default)]
struct Written {
    /// The rows that the log has, by day.
    rows: BTreeMap<NaiveDate, Vec<String>>,
    /// Rows that arrived after their day was closed.
    late: BTreeSet<String>,
    /// Rows that were changed after their day was closed.
    changed: BTreeSet<String>,
    /// Numbers of changes: of open days, and of closed ones.
    inserted: [u32; 2],
    updated: [u32; 2],
    deleted: [u32; 2],
}

impl Written {
    /// Makes a change to both databases. Rows that are deleted after their day was closed go on counting, so the other
    /// database keeps them.
    async fn change(&mut self, books: &Books, random: &mut StdRng, number: u32) {
        let day = days().nth(random.random_range(0..DAYS)).unwrap();
        let mut ours = books.app.pool.begin().await.unwrap();
        // Whoever records a day as closed waits for this lock, so the day stays as it is until the change is committed.
        sqlx::query(r#"LOCK TABLE "LiteLLM_SpendLogs" IN ROW EXCLUSIVE MODE"#).execute(&mut *ours).await.unwrap();
        let is_closed = tables::closed_day(&mut ours, day).await.unwrap().is_some();
        let place = usize::from(is_closed);
        let rows = self.rows.entry(day).or_default();
        let at = random.random_range(0..rows.len());
        let mut is_kept = false;
        let statement = match random.random_range(0..3) {
            0 => {
                let id = format!("written-{number}");
                let seconds = random.random_range(0..86_400);
                let statement = format!(
                    r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime",
                           "endTime", model, "user", team_id, metadata, created_at, updated_at)
                       SELECT '{id}', 'acompletion', 'k1', 0.25, 9, at, at, 'gpt-4o', 'u-int', 'team-alpha', '{{}}', at, at
                       FROM (VALUES (timestamp '{day}' + {seconds} * interval '1 second')) AS times (at)"#
                );
                self.inserted[place] += 1;
                if is_closed {
                    self.late.insert(id.clone());
                }
                rows.push(id);
                statement
            }
            1 => {
                let id = &rows[at];
                self.updated[place] += 1;
                if is_closed {
                    self.changed.insert(id.clone());
                }
                format!(
                    r#"UPDATE "LiteLLM_SpendLogs" SET spend = spend + 0.125, total_tokens = total_tokens + 1, "user" = 'u-2'
                       WHERE request_id = '{id}'"#
                )
            }
            // What leaves the log before it is archived, or after it was changed, is not in the archive as it was.
            _ if self.late.contains(&rows[at]) || self.changed.contains(&rows[at]) => return,
            _ => {
                let id = rows.swap_remove(at);
                self.deleted[place] += 1;
                is_kept = is_closed;
                format!(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = '{id}'"#)
            }
        };
        let done = sqlx::query(AssertSqlSafe(statement.as_str())).execute(&mut *ours).await.unwrap();
        assert_eq!(done.rows_affected(), 1, "{statement}");
        ours.commit().await.unwrap();
        if !is_kept {
            let done = books.model.pool.execute(AssertSqlSafe(statement.as_str())).await.unwrap();
            assert_eq!(done.rows_affected(), 1, "{statement}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn many_days_are_closed_with_two_exporters_while_rows_come_change_and_go() {
    let books = Arc::new(filled().await);
    let mut written = Written::default();
    for (ago, day) in days().enumerate() {
        written.rows.insert(day, (1..=200).map(|n| format!("filled-{ago}-{n}")).collect());
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (books, stop) = (Arc::clone(&books), Arc::clone(&stop));
        let mut random = StdRng::seed_from_u64(randomness::seed());
        async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                written.change(&books, &mut random, number).await;
                number += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            written
        }
    });
    let (mut rounds, mut closed) = (0, 0);
    loop {
        let done = close(&books, |_| {
            closed += 1;
            true
        });
        rounds += 1;
        match done.await {
            Ok(_) => break,
            // Days that keep changing stay open until the next round. Nothing else may happen.
            Err(error) => assert!(matches!(error, books::Error::Busy { .. }), "{error}"),
        }
    }
    assert_eq!(closed, DAYS);
    // Changes of closed days, too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let written = writing.await.unwrap();
    println!("{rounds} rounds beside {:?} {:?} {:?}", written.inserted, written.updated, written.deleted);
    let counts = [written.inserted, written.updated, written.deleted];
    assert!(counts.iter().flatten().all(|count| *count > 0), "{counts:?}");
    books.expect_sums("closed").await;
    books.settle().await;
    assert_eq!(close(&books, |_| true).await.unwrap().days, 0, "late rows only");
    expect_days(&books, &written.changed).await;
    books.expect_sums("late rows are archived").await;
    books.expect_rows("late rows are archived").await;
    books.verify().await.unwrap();
    let mut connection = books.connection().await;
    books::pruning::prune(&mut connection, &books.archive, day(LAST_DAY), |_| true).await.unwrap();
    // Rows stay of which the archive has earlier values.
    let left: Vec<String> =
        sqlx::query_scalar(r#"SELECT request_id FROM "LiteLLM_SpendLogs""#).fetch_all(&books.app.pool).await.unwrap();
    assert!(left.iter().all(|id| written.changed.contains(id)), "{left:?}");
    books.settle().await;
    books.expect_sums("pruned").await;
    books.expect_rows("pruned").await;
    expect_days(&books, &written.changed).await;
}
