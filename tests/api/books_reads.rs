//! Rows of closed days in answers: which rows of the archive and of the log are the same call, and what is answered while rows
//! leave the log or the archive is away. A second database with the same rows, in which nothing is closed, says what the
//! answers are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use litespend::books::pruning;
use litespend::store::log::months;
use litespend_archive::{Archive, Options};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::books::{Books, day};
use crate::support::accounts::add_key;
use crate::support::answers::{Lists, difference};
use crate::support::{Answer, MASTER_KEY, TestApp, randomness, request, settings};

const SPAN: &str = "start_date=2026-01-01%2000:00:00&end_date=2026-06-30%2000:00:00";

/// Keys that see everything, and keys of users who see their own rows.
const KEYS: [&str; 3] = [MASTER_KEY, "sk-int", "sk-intview"];

/// Every way to read rows.
fn lists() -> Vec<String> {
    let mut lists = vec![
        "/spend/logs".to_owned(),
        "/spend/logs?limit=5".to_owned(),
        "/spend/logs?limit=1000&start_date=2026-01-31&end_date=2026-03-01&summarize=false".to_owned(),
        "/spend/logs?user_id=u-int".to_owned(),
        "/spend/logs?user_id=u-int&limit=4".to_owned(),
        "/spend/logs?user_id=u-intview".to_owned(),
        "/spend/logs?request_id=".to_owned(),
        "/spend/logs/session/ui?session_id=s-2&page_size=100".to_owned(),
        "/spend/logs/session/ui?session_id=".to_owned(),
        format!("/spend/logs/ui?{SPAN}&request_id="),
        format!("/spend/logs/ui?{SPAN}&group_by_session=true&page_size=1000"),
        format!("/spend/logs/ui?{SPAN}&search=s-2"),
    ];
    for route in ["ui", "v2"] {
        for rest in [
            "page_size=1000",
            "page_size=7&page=3",
            "page_size=50&sort_by=spend&page=2",
            "user_id=u-int",
            "user_id=u-intview&page_size=1000",
        ] {
            lists.push(format!("/spend/logs/{route}?{SPAN}&{rest}"));
        }
    }
    lists
}

/// Every way to read the rows of one request.
fn lookups(id: &str) -> Vec<String> {
    let mut lookups = vec![
        format!("/spend/logs?request_id={id}"),
        format!("/spend/logs?request_id={id}&limit=1"),
        format!("/spend/logs?request_id={id}&start_date=2026-01-01&end_date=2026-06-30"),
        format!("/spend/logs?request_id={id}&start_date=2026-02-01&end_date=2026-03-02"),
        format!("/spend/logs/ui?request_id={id}"),
        format!("/spend/logs/ui?request_id={id}&model=of-no-call"),
        format!("/spend/logs/ui?request_id={id}&start_date=2026-06-29%2000:00:00&end_date=2026-06-30%2000:00:00"),
        format!("/spend/logs/ui?{SPAN}&search={id}"),
        format!("/spend/logs/v2?{SPAN}&request_id={id}"),
        format!("/spend/logs/ui/{id}"),
    ];
    lookups.push(format!("/spend/logs?request_id={id}&start_date=2026-01-01&end_date=2026-06-30&summarize=false"));
    lookups
}

async fn books() -> Books {
    let books = Books::new().await;
    for app in [&books.app, &books.model] {
        add_key(app, "sk-int", json!({"user_id": "u-int"})).await;
        add_key(app, "sk-intview", json!({"user_id": "u-intview"})).await;
    }
    books
}

async fn with_accept(app: &TestApp, path: &str, accept: &str) -> Answer {
    app.send(request(Method::GET, path, MASTER_KEY).header("accept", accept).body(Body::empty()).unwrap()).await
}

/// All rows of a list, page by page.
async fn all_pages(app: &TestApp, path: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next {
        let answer = app.get(&path, MASTER_KEY).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        rows.extend(answer.json().as_array().unwrap().iter().cloned());
        let link = answer.headers.get("link").map(|link| link.to_str().unwrap().to_owned());
        next = link.map(|link| link[1..link.find('>').unwrap()].to_owned());
    }
    rows
}

impl Books {
    async fn expect(&self, app: &TestApp, path: &str, key: &str, step: &str) {
        let (ours, expected) = (app.get(path, key).await, self.model.get(path, key).await);
        assert_eq!(ours.status, expected.status, "{step}: {path} with {key}: {}", ours.text);
        if !expected.status.is_success() {
            return;
        }
        if let Some(difference) = difference(&ours.json(), &expected.json(), Lists::InOrder) {
            panic!("{step}: {path} with {key}: {difference}\nours: {}\nexpected: {}", ours.text, expected.text);
        }
        assert_eq!(ours.headers.get("link"), expected.headers.get("link"), "{step}: {path} with {key}");
    }

    /// Whether all reads of rows answer what the other database does.
    async fn expect_all(&self, ids: &[&str], step: &str) {
        self.app.state.refresh_rollups().await.unwrap();
        for path in lists() {
            self.expect(&self.app, &path, MASTER_KEY, step).await;
        }
        let own = ["/spend/logs".to_owned(), "/spend/logs?limit=3".to_owned(), format!("/spend/logs/ui?{SPAN}")];
        let own = own.into_iter().chain(ids.iter().flat_map(|id| lookups(id)));
        for path in own {
            for key in KEYS {
                self.expect(&self.app, &path, key, step).await;
            }
        }
        for accept in ["application/x-ndjson", "text/csv"] {
            let path = "/spend/logs?limit=1000";
            let (ours, expected) =
                (with_accept(&self.app, path, accept).await, with_accept(&self.model, path, accept).await);
            assert_eq!(ours.text, expected.text, "{step}: {accept}");
        }
        for path in ["/spend/logs?limit=9", "/spend/logs?limit=2&user_id=u-int"] {
            assert_eq!(all_pages(&self.app, path).await, all_pages(&self.model, path).await, "{step}: {path}");
        }
    }

    pub(crate) async fn prune(&self) {
        let mut connection = self.connection().await;
        pruning::prune(&mut connection, &self.archive, day("2026-02-28"), |_| true).await.unwrap();
    }

    async fn close_and_prune(&self) {
        self.settle().await;
        self.close("2026-02-28").await;
        self.prune().await;
    }
}

#[tokio::test]
async fn the_same_id_on_another_day_is_another_call() {
    let books = books().await;
    let id = books
        .model
        .scalar(
            r#"SELECT request_id FROM "LiteLLM_SpendLogs" WHERE "user" = 'u-int' AND "startTime" < '2026-02-28' LIMIT 1"#,
        )
        .await;
    books.close_and_prune().await;
    // The last one belongs to a team whose log sk-int may read call by call, and not in lists.
    books.expect_all(&[&id, "chatcmpl-7-0171"], "pruned").await;
    for app in [&books.app, &books.model] {
        sqlx::query(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, total_tokens, "startTime", "endTime", model, "user",
                   messages, created_at, updated_at)
               VALUES ($1, 'acompletion', 0.5, 1, '2026-05-05', '2026-05-05', 'gpt-4o', 'u-intview', '{"of": "another"}',
                       '2026-05-05', '2026-05-05')"#,
        )
        .bind(&id)
        .execute(&app.pool)
        .await
        .unwrap();
    }
    books.expect_all(&[&id], "booked again by somebody else").await;
    let texts = |key| {
        let path = format!("/spend/logs/ui/{id}");
        let app = &books.app;
        async move { app.get(&path, key).await }
    };
    assert_eq!(texts("sk-int").await.json()["messages"], json!({}));
    assert_eq!(texts("sk-intview").await.json()["messages"], json!({"of": "another"}));
    assert_eq!(texts(MASTER_KEY).await.json()["messages"], json!({"of": "another"}), "the newest row");
    let rows = books.app.get(&format!("/spend/logs?request_id={id}"), MASTER_KEY).await.json();
    assert_eq!(rows.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn changed_rows_count_as_the_log_has_them() {
    let books = books().await;
    let ids = ["chatcmpl-7-0002", "chatcmpl-7-0009", "chatcmpl-7-0011"];
    books.both(r#"UPDATE "LiteLLM_SpendLogs" SET "user" = 'u-int' WHERE request_id IN ('chatcmpl-7-0002', 'chatcmpl-7-0011')"#).await;
    books.settle().await;
    books.close("2026-02-28").await;
    // The log lacks a row of each day, so each day needs the archive.
    books
        .app
        .execute(
            r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id IN (
                   SELECT max(request_id) FROM "LiteLLM_SpendLogs" WHERE "startTime" < '2026-03-01' GROUP BY "startTime"::date)"#,
        )
        .await;
    books.expect_all(&ids, "a row of each day is missing").await;
    for (step, change) in [
        ("another user", r#"UPDATE "LiteLLM_SpendLogs" SET "user" = 'u-intview' WHERE request_id = 'chatcmpl-7-0002'"#),
        (
            "another time of the day",
            r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = "startTime" + interval '1 second'
               WHERE request_id = 'chatcmpl-7-0009'"#,
        ),
        (
            "another closed day",
            r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = "startTime" - interval '1 day'
               WHERE request_id = 'chatcmpl-7-0009'"#,
        ),
        (
            "an open day",
            r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = '2026-04-04' WHERE request_id = 'chatcmpl-7-0011'"#,
        ),
        ("another ID", r#"UPDATE "LiteLLM_SpendLogs" SET request_id = 'renamed' WHERE request_id = 'chatcmpl-7-0002'"#),
    ] {
        books.both(change).await;
        let id = ids.into_iter().find(|id| change.contains(id)).unwrap();
        books.expect_all(&[id, "renamed"], step).await;
    }
    // Days of which the log has nothing any more stand between others.
    books
        .app
        .execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE "startTime"::date IN ('2026-02-01', '2026-02-28')"#)
        .await;
    books.expect_all(&[ids[0], ids[1], ids[2], "renamed"], "whole days are missing").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_leave_each_call_once() {
    let books = books().await;
    books.settle().await;
    books.close("2026-02-28").await;
    let mut random = StdRng::seed_from_u64(randomness::seed());
    let ids: Vec<String> = sqlx::query_scalar(r#"SELECT request_id FROM "LiteLLM_SpendLogs" ORDER BY 1"#)
        .fetch_all(&books.model.pool)
        .await
        .unwrap();
    let mut changed = BTreeSet::new();
    for round in 0..5 {
        for _ in 0..12 {
            let id = &ids[random.random_range(0..ids.len())];
            let statement = match random.random_range(0..8) {
                // Only what is in the archive as the log had it last comes back from there.
                0..4 => {
                    let archived: Vec<_> = ids.iter().filter(|id| !changed.contains(*id)).cloned().collect();
                    let from = random.random_range(0..archived.len());
                    let some = archived[from..(from + 25).min(archived.len())].join("', '");
                    let delete = format!(
                        r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id IN ('{some}') AND "startTime" < '2026-03-01'"#
                    );
                    sqlx::query(AssertSqlSafe(delete)).execute(&books.app.pool).await.unwrap();
                    continue;
                }
                4 => r#"SET "user" = 'u-int'"#.to_owned(),
                5 => r#"SET "startTime" = date_trunc('day', "startTime") + interval '11 hours 11 minutes 11.111 seconds'"#.to_owned(),
                6 => format!(r#"SET "startTime" = "startTime" + interval '{} days'"#, random.random_range(-3..60)),
                _ => format!("SET request_id = 'renamed-' || request_id || '-{}'", random.random_range(0..1_000_000)),
            };
            let has: bool =
                sqlx::query_scalar(r#"SELECT EXISTS (SELECT FROM "LiteLLM_SpendLogs" WHERE request_id = $1)"#)
                    .bind(id)
                    .fetch_one(&books.app.pool)
                    .await
                    .unwrap();
            if !has {
                continue;
            }
            changed.insert(id.clone());
            for app in [&books.app, &books.model] {
                let update = format!(r#"UPDATE "LiteLLM_SpendLogs" {statement} WHERE request_id = '{id}'"#);
                sqlx::query(AssertSqlSafe(update)).execute(&app.pool).await.unwrap();
            }
        }
        let some = [ids[random.random_range(0..ids.len())].as_str(), ids[random.random_range(0..ids.len())].as_str()];
        books.expect_all(&some, &format!("round {round}")).await;
    }
}

/// Waits until as many sessions wait for a lock on the log. Returns false after a second and a half.
async fn are_waiting(books: &Books, sessions: usize) -> bool {
    for _ in 0..150 {
        let waiting: i64 = sqlx::query_scalar(
            r#"SELECT count(DISTINCT pid) FROM pg_locks
               WHERE NOT granted AND relation = to_regclass('"LiteLLM_SpendLogs"')::oid
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"#,
        )
        .fetch_one(&books.app.pool)
        .await
        .unwrap();
        if usize::try_from(waiting).unwrap() >= sessions {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn reads_that_wait_for_a_partition_to_be_dropped_answer_its_rows() {
    let books = Arc::new(books().await);
    months::add(&mut *books.connection().await, day("2026-02-01"), true).await.unwrap();
    books.settle().await;
    books.close("2026-02-28").await;
    let id = books
        .model
        .scalar(r#"SELECT request_id FROM "LiteLLM_SpendLogs" WHERE "startTime"::date = '2026-02-27' AND session_id = 's-2' LIMIT 1"#)
        .await;
    assert!(!id.is_empty());
    let paths = [
        "/spend/logs?limit=1000".to_owned(),
        "/spend/logs".to_owned(),
        format!("/spend/logs/ui?{SPAN}&page_size=1000"),
        format!("/spend/logs?request_id={id}&start_date=2026-01-01&end_date=2026-06-30"),
    ];
    // A server for each, because each limits the long reads of one key.
    let mut servers = Vec::new();
    for _ in &paths {
        let server = books.app.another().await;
        server.state.use_archive(books.archive.clone());
        servers.push(server);
    }
    let mut holder = books.app.pool.begin().await.unwrap();
    sqlx::query(r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#).execute(&mut *holder).await.unwrap();
    let pruning = tokio::spawn({
        let books = Arc::clone(&books);
        async move { books.prune().await }
    });
    while !are_waiting(&books, 1).await {}
    let reads = servers.into_iter().zip(paths.clone());
    let reads = reads.map(|(server, path)| tokio::spawn(async move { server.get(&path, MASTER_KEY).await }));
    let reads: Vec<_> = reads.collect();
    // Pruning gives up after two seconds and tries again, so a slow machine may miss the moment.
    let met = are_waiting(&books, 1 + paths.len()).await;
    println!("all reads wait for the partition to be dropped: {met}");
    holder.rollback().await.unwrap();
    for (read, path) in reads.into_iter().zip(&paths) {
        let (ours, expected) = (read.await.unwrap(), books.model.get(path, MASTER_KEY).await);
        assert_eq!(ours.status, 200, "{path}: {}", ours.text);
        if let Some(difference) = difference(&ours.json(), &expected.json(), Lists::InOrder) {
            panic!("{path}: {difference}");
        }
    }
    pruning.await.unwrap();
    let dropped = books.app.scalar(r#"SELECT (to_regclass('"LiteLLM_SpendLogs_2026_02"') IS NULL)::text"#).await;
    assert_eq!(dropped, "true");
    books.expect_all(&[&id], "dropped").await;
}

#[tokio::test]
async fn the_summary_of_one_request_outlives_its_rows() {
    let books = books().await;
    books
        .both(
            r#"UPDATE "LiteLLM_SpendLogs" SET litellm_call_id = 'a-call'
               WHERE request_id IN ('chatcmpl-7-0000', 'chatcmpl-7-0002', 'chatcmpl-7-0009', 'chatcmpl-7-0011')
                  OR "user" = 'u-int'"#,
        )
        .await;
    books.settle().await;
    books.close("2026-02-28").await;
    books.expect_all(&["chatcmpl-7-0002", "a-call"], "closed").await;
    books.app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE "startTime" < '2026-02-02'"#).await;
    books.expect_all(&["chatcmpl-7-0002", "a-call"], "some rows are gone").await;
    books.prune().await;
    books.expect_all(&["chatcmpl-7-0002", "a-call"], "pruned").await;
    let path = "/spend/logs?start_date=2026-01-01&end_date=2026-03-02&request_id=chatcmpl-7-0002";
    let summary = books.app.get(path, MASTER_KEY).await.json();
    assert_eq!(summary[0]["spend"], json!(0.2790379), "{summary}");
    let without = books.app.get(&format!("{path}&archive=false"), MASTER_KEY).await;
    assert_eq!(without.json(), json!([]));
}

#[tokio::test]
async fn what_the_log_has_is_answered_while_the_archive_is_away() {
    let books = books().await;
    let open = books
        .model
        .scalar(
            r#"SELECT min(request_id) FROM "LiteLLM_SpendLogs" WHERE "startTime" >= '2026-03-01' AND "user" = 'u-int'"#,
        )
        .await;
    // For each team, a call of another team and another user.
    let strange: Vec<(String, String)> = sqlx::query_as(
        r#"SELECT team.team_id, min(log.request_id) FROM "LiteLLM_TeamTable" AS team
           JOIN "LiteLLM_SpendLogs" AS log ON log.team_id IS DISTINCT FROM team.team_id
           WHERE log."startTime" >= '2026-03-01' AND log."user" IS DISTINCT FROM 'u-int' GROUP BY 1"#,
    )
    .fetch_all(&books.model.pool)
    .await
    .unwrap();
    assert!(!open.is_empty() && !strange.is_empty());
    books.close_and_prune().await;
    // An archive that has read nothing yet, and can't any more.
    let url = books.directory.path().to_str().unwrap().to_owned();
    let away = books.app.another().await;
    away.state.use_archive(Archive::open(&url, Options::default()).await.unwrap());
    for entry in std::fs::read_dir(books.directory.path()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::rename(&path, path.with_extension("moved")).unwrap();
    }
    let none = TestApp::on(Arc::clone(&books.app.database), settings()).await;
    for app in [&away, &none] {
        for path in lookups(&open) {
            if path.contains("search=") {
                continue;
            }
            for key in [MASTER_KEY, "sk-int"] {
                books.expect(app, &path, key, "away").await;
            }
            // To others, it may be that the archive has a row with this ID that they may see.
            let other = app.get(&path, "sk-intview").await;
            assert_eq!(other.status, 503, "{path}: {}", other.text);
        }
        // Nobody learns whether there is a call that they may not see. Of some of these teams, sk-int may read the log.
        for (team, strange) in &strange {
            let asked = |id: &str| format!("/spend/logs/ui?request_id={id}&team_id={team}");
            let (there, not_there) =
                (app.get(&asked(strange), "sk-int").await, app.get(&asked("of-no-call"), "sk-int").await);
            assert_eq!(there.status, not_there.status, "{team}: {} {}", there.text, not_there.text);
        }
        // A short page may end before the closed days begin.
        let lists = lists().into_iter().filter(|path| !path.contains("limit=4") && !path.contains("limit=5"));
        for path in &lookups("chatcmpl-7-0002").into_iter().chain(lists).collect::<Vec<_>>() {
            let pruned = app.get(path, MASTER_KEY).await;
            assert_eq!(pruned.status, 503, "{path}: {}", pruned.text);
        }
    }
}
