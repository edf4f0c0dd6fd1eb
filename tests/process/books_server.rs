//! What a server with `--close-after`, `--prune-after` and `--strip-after` does by itself. It looks at the books when it starts.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use chrono::{Days, NaiveDate, Utc};
use nix::sys::signal::Signal;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::answers::{Lists, difference};
use crate::support::{AS_LITELLM, MASTER_KEY, Run, Server, database, eventually, program, run};

/// How long a server may take to close and prune some days.
const LIMIT: Duration = Duration::from_secs(90);

/// The database and the archive of a test.
struct Books {
    connection: PgConnection,
    url: String,
    archive: String,
    /// All days count from here, whatever the time is when the test ends.
    today: NaiveDate,
}

/// A closed day as the database has it.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
struct Closed {
    day: NaiveDate,
    requests: i64,
    revision: i32,
    archived_rows: i64,
    is_pruned: bool,
}

impl Books {
    async fn new(url: &str, home: &Path) -> Self {
        let connection = PgConnection::connect(url).await.unwrap();
        let archive = home.join("archive").to_str().unwrap().to_owned();
        Self { connection, url: url.to_owned(), archive, today: Utc::now().date_naive() }
    }

    fn day(&self, ago: u64) -> NaiveDate {
        self.today - Days::new(ago)
    }

    async fn execute(&mut self, statements: &str) {
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut self.connection).await.unwrap();
    }

    /// Inserts rows that started some days ago, `rows` on each of these days, and the daily rows that match them.
    async fn add(&mut self, ago: &[u64], rows: u32) {
        for ago in ago {
            let day = self.day(*ago);
            self.execute(&format!(
                r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens,
                       completion_tokens, "startTime", "endTime", model, "user", team_id, end_user, session_id, request_tags,
                       messages, response, proxy_server_request, status, created_at, updated_at)
                   SELECT 'ago-{ago}-' || n, 'acompletion', 'key-' || n % 3, n * 0.001, n, n - n / 3, n / 3, at, at, 'model-' || n % 4,
                          (array['u-1', 'u-2', NULL])[1 + n % 3], 'team-' || n % 2, 'customer-' || n % 5, 'session-' || n % 7,
                          '["prod"]', '{{"text": "of a caller"}}', '{{"text": "of a model"}}', '{{"text": "of a client"}}',
                          (array['success', 'failure', NULL])[1 + n % 3], at, at
                   FROM generate_series(1, {rows}) AS n,
                        LATERAL (SELECT timestamp '{day}' + n * interval '1 second') AS times (at)"#
            ))
            .await;
        }
    }

    /// Empties the texts of all rows, as LiteLLM stores rows without them.
    async fn add_without_texts(&mut self, ago: &[u64], rows: u32) {
        self.add(ago, rows).await;
        self.execute(r#"UPDATE "LiteLLM_SpendLogs" SET messages = '{}', response = '{}', proxy_server_request = '{}'"#)
            .await;
    }

    fn server(&self, arguments: &[&str]) -> Server {
        Server::on(&self.url, &[&["--archive", &self.archive], arguments].concat())
    }

    fn litespend(&self, arguments: &[&str]) -> Run {
        let mut command = program();
        command.args(arguments).env("DATABASE_URL", &self.url).env("LITESPEND_ARCHIVE_URL", &self.archive);
        tokio::task::block_in_place(|| run(&mut command))
    }

    async fn count(&mut self, statement: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&mut self.connection).await.unwrap()
    }

    /// Number of rows of the log by the day on which they started, as days ago.
    async fn rows(&mut self) -> BTreeMap<i32, i64> {
        let statement = format!(
            r#"SELECT date '{}' - "startTime"::date, count(*) FROM "LiteLLM_SpendLogs" GROUP BY 1"#,
            self.today
        );
        let rows: Vec<(i32, i64)> =
            sqlx::query_as(AssertSqlSafe(statement)).fetch_all(&mut self.connection).await.unwrap();
        rows.into_iter().collect()
    }

    /// Closed days. None where the database can have none.
    async fn closed(&mut self) -> Vec<Closed> {
        let statement = "SELECT day, requests, revision, archived_rows, pruned_at IS NOT NULL AS is_pruned
                         FROM litespend.closed_days ORDER BY day";
        sqlx::query_as(statement).fetch_all(&mut self.connection).await.unwrap()
    }

    /// Waits until a statement counts as many.
    async fn wait_for(&mut self, statement: &str, count: i64, server: &Server) {
        let reached = eventually(LIMIT, async || self.count(statement).await == count).await;
        let found = self.count(statement).await;
        assert!(reached, "{statement}: {found} instead of {count}\n{}", server.log());
    }

    /// Waits until as many days are pruned, and the last of their rows is gone.
    async fn wait_until_pruned(&mut self, days: i64, server: &Server) {
        self.wait_for(PRUNED, days, server).await;
        let left = r#"SELECT count(*) FROM "LiteLLM_SpendLogs" JOIN litespend.closed_days ON day = "startTime"::date"#;
        self.wait_for(left, 0, server).await;
    }

    /// The lists of rows and the reports that closing, pruning and stripping must not change.
    fn reads(&self) -> Vec<String> {
        let (first, last) = (self.day(60), self.today);
        let instants = format!("start_date={first}%2000:00:00&end_date={last}%2023:59:59");
        let mut reads: Vec<String> =
            ["", "&group_by=customer", "&group_by=user", "&group_by=api_key", "&group_by=model_name"]
                .iter()
                .map(|group| format!("/global/spend/report?start_date={first}&end_date={last}{group}"))
                .collect();
        reads.extend(
            [
                "/global/spend/tags?start_date={first}&end_date={last}",
                "/spend/tags",
                "/spend/logs?start_date={first}&end_date={last}",
                "/spend/logs?start_date={first}&end_date={last}&user_id=u-1",
                "/global/activity?start_date={first}&end_date={last}",
                "/global/activity/model?start_date={first}&end_date={last}",
                "/global/all_end_users",
                "/spend/logs?limit=1000",
                "/spend/logs?user_id=u-1",
                "/spend/logs?limit=33&start_date={first}&end_date={last}&summarize=false",
                "/spend/logs?request_id=ago-40-7",
                "/spend/logs/v2?{instants}&page_size=1000",
                "/spend/logs/v2?{instants}&status_filter=failure&sort_by=spend&page=2&page_size=9",
                "/spend/logs/ui?{instants}&group_by_session=true&page_size=100",
                "/spend/logs/v2?{instants}&request_id=ago-40-7",
                "/spend/logs/ui/ago-40-7",
                "/spend/logs/session/ui?session_id=session-3&page_size=100",
            ]
            .map(|path| {
                let path = path.replace("{first}", &first.to_string()).replace("{last}", &last.to_string());
                path.replace("{instants}", &instants)
            }),
        );
        reads
    }

    async fn answers(&self, server: &Server) -> Vec<(String, Value)> {
        let mut answers = Vec::new();
        for path in self.reads() {
            let answer = server.get(&path).await;
            assert_eq!(answer.status(), 200, "{path}\n{}", server.log());
            answers.push((path, answer.json().await.unwrap()));
        }
        answers
    }

    async fn expect(&self, server: &Server, expected: &[(String, Value)], step: &str) {
        for ((path, ours), (_, expected)) in self.answers(server).await.iter().zip(expected) {
            let lists = if path.starts_with("/spend/logs") { Lists::InOrder } else { Lists::AsSets };
            if let Some(difference) = difference(ours, expected, lists) {
                panic!("{step}: {path}: {difference}\nours: {ours}\nbefore: {expected}");
            }
        }
    }

    /// Whether a server complains about nothing, but for rows that came before the partitions of their months.
    fn expect_no_complaint(server: &Server) {
        let log = server.log();
        let is_complaint = |line: &&str| line.contains("WARN") || line.contains("ERROR");
        let complaints = log.lines().filter(is_complaint).filter(|line| !line.contains("litespend log partition"));
        let complaints: Vec<&str> = complaints.collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    /// The number of manifests that the archive has of a day.
    fn manifests(&self, day: NaiveDate) -> usize {
        let mut folders = vec![Path::new(&self.archive).to_path_buf()];
        let mut count = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.to_str().unwrap().contains(&day.to_string())
                    && path.extension().is_some_and(|end| end == "json")
                {
                    count += 1;
                }
            }
        }
        count
    }
}

const CLOSED: &str = "SELECT count(*) FROM litespend.closed_days";
const PRUNED: &str = "SELECT count(*) FROM litespend.closed_days WHERE pruned_at IS NOT NULL";
const WITH_TEXTS: &str = r#"SELECT count(*) FROM "LiteLLM_SpendLogs"
    WHERE messages <> '{}' OR response <> '{}' OR proxy_server_request <> '{}'"#;

fn stop(mut server: Server) {
    server.signal(Signal::SIGTERM);
    assert_eq!(tokio::task::block_in_place(|| server.exit(Duration::from_secs(20))), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_closes_and_prunes_days_and_archives_late_rows_by_itself() {
    let (database, home) = (database().await, tempfile::tempdir().unwrap());
    let mut books = Books::new(database.url(), home.path()).await;
    books.add_without_texts(&[1, 6, 7, 8, 9, 40], 50).await;
    let server = books.server(&[]);
    let before = books.answers(&server).await;
    assert!(books.closed().await.is_empty());
    stop(server);

    let server = books.server(&["--close-after", "2", "--prune-after", "3"]);
    books.wait_until_pruned(5, &server).await;
    assert_eq!(books.count(CLOSED).await, 5);
    assert_eq!(books.rows().await, BTreeMap::from([(1, 50)]), "{}", server.log());
    let closed = books.closed().await;
    assert_eq!(closed.iter().map(|closed| closed.day).collect::<Vec<_>>(), [40, 9, 8, 7, 6].map(|ago| books.day(ago)));
    for closed in &closed {
        assert_eq!((closed.requests, closed.revision, closed.archived_rows), (50, 1, 50), "{closed:?}");
    }
    books.expect(&server, &before, "pruned").await;
    Books::expect_no_complaint(&server);
    assert!(server.log().matches("closed a day").count() == 5, "{}", server.log());
    let metrics = server.get("/metrics").await.text().await.unwrap();
    let through = books.day(5).and_hms_opt(0, 0, 0).unwrap().and_utc().timestamp();
    assert!(metrics.contains(&format!("litespend_books_closed_through_timestamp_seconds {through}\n")), "{metrics}");
    let said = books.litespend(&["books", "verify"]);
    assert!(said.code == Some(0) && said.stdout.contains('5'), "{said:?}");
    stop(server);

    // A late row is counted at once, and archived and removed by the next server.
    let late = books.day(8);
    books
        .execute(&format!(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, "user")
               VALUES ('late', 'acompletion', 'key-1', 100, '{late} 12:00', '{late} 12:00', 'model-1', 'u-1')"#
        ))
        .await;
    let server = books.server(&[]);
    let with_late = books.answers(&server).await;
    assert_ne!(with_late[0], before[0]);
    stop(server);
    let server = books.server(&["--close-after", "2", "--prune-after", "3"]);
    books
        .wait_for("SELECT count(*) FROM litespend.closed_days WHERE revision = 2 AND archived_rows = 51", 1, &server)
        .await;
    let left = format!(r#"SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE "startTime" < '{}'"#, books.day(2));
    books.wait_for(&left, 0, &server).await;
    books.expect(&server, &with_late, "late").await;
    Books::expect_no_complaint(&server);
    let found: Vec<Value> = server.get("/spend/logs?request_id=late").await.json().await.unwrap();
    assert_eq!(found.len(), 1);
    for closed in books.closed().await {
        let revision = if closed.day == late { 2 } else { 1 };
        assert!(closed.is_pruned && closed.revision == revision, "{closed:?}");
    }
    let kinds = "SELECT count(*) FROM litespend.adjustments WHERE kind = 'late' AND requests = 1 AND spend = 100";
    assert_eq!(books.count(kinds).await, 1);
    let said = books.litespend(&["books", "verify"]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_prunes_the_log_of_litellm_only_if_it_is_told_to() {
    let (database, home) = (database().await, tempfile::tempdir().unwrap());
    let mut books = Books::new(database.url(), home.path()).await;
    books.execute(AS_LITELLM).await;
    books.add_without_texts(&[0, 1, 6, 7, 40], 50).await;
    assert_eq!(books.litespend(&["rollups", "install"]).code, Some(0));
    let server = books.server(&[]);
    let before = books.answers(&server).await;
    stop(server);
    let close = ["--close-after", "2"];
    for rest in ["--prune-after", "--strip-after"] {
        let mut command = program();
        command.args(["serve", "--port", "0", "--archive", &books.archive, "--close-after", "2", rest, "3"]);
        command.env("DATABASE_URL", &books.url).env("LITELLM_MASTER_KEY", MASTER_KEY);
        let said = tokio::task::block_in_place(|| run(&mut command));
        assert!(said.code == Some(2) && said.stderr.contains("--prune-litellm-logs"), "{said:?}");
    }
    assert!(books.closed().await.is_empty());

    // Closing changes nothing in LiteLLM's table.
    let all = r#"SELECT md5(string_agg(to_jsonb(log)::text, '' ORDER BY request_id)) FROM "LiteLLM_SpendLogs" AS log"#;
    let rows: String = sqlx::query_scalar(all).fetch_one(&mut books.connection).await.unwrap();
    let server = books.server(&close);
    books.wait_for(CLOSED, 3, &server).await;
    books.expect(&server, &before, "closed").await;
    assert_eq!(sqlx::query_scalar::<_, String>(all).fetch_one(&mut books.connection).await.unwrap(), rows);
    Books::expect_no_complaint(&server);
    stop(server);

    let server = books.server(&[&close[..], &["--prune-after", "3", "--prune-litellm-logs"]].concat());
    books.wait_until_pruned(3, &server).await;
    assert_eq!(books.rows().await, BTreeMap::from([(0, 50), (1, 50)]), "{}", server.log());
    books.expect(&server, &before, "pruned").await;
    Books::expect_no_complaint(&server);
    assert!(books.closed().await.iter().all(|closed| closed.revision == 1 && closed.archived_rows == 50));
    assert_eq!(books.litespend(&["rollups", "verify"]).code, Some(0));
}

/// A hash of everything in the log but texts, by day.
const WITHOUT_TEXTS: &str = r#"
    SELECT string_agg(md5((to_jsonb(log) - 'messages' - 'response' - 'proxy_server_request')::text), '' ORDER BY request_id)
    FROM "LiteLLM_SpendLogs" AS log"#;

/// Days with texts: the numbers of rows by days ago.
async fn with_texts(books: &mut Books) -> BTreeMap<i32, i64> {
    let statement = format!(
        r#"SELECT date '{}' - "startTime"::date, count(*) FROM "LiteLLM_SpendLogs"
           WHERE messages <> '{{}}' OR response <> '{{}}' OR proxy_server_request <> '{{}}' GROUP BY 1"#,
        books.today
    );
    let days: Vec<(i32, i64)> =
        sqlx::query_as(AssertSqlSafe(statement)).fetch_all(&mut books.connection).await.unwrap();
    days.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_are_emptied_and_nothing_else_is() {
    let (database, home) = (database().await, tempfile::tempdir().unwrap());
    let mut books = Books::new(database.url(), home.path()).await;
    // More rows than one statement empties.
    books.add(&[0, 3, 8], 700).await;
    let rows: String = sqlx::query_scalar(WITHOUT_TEXTS).fetch_one(&mut books.connection).await.unwrap();
    let server = books.server(&[]);
    let before = books.answers(&server).await;
    stop(server);
    let server = books.server(&["--close-after", "4", "--strip-after", "1"]);
    // Of the closed day, and of the open one that is old enough.
    books.wait_for(WITH_TEXTS, 700, &server).await;
    assert_eq!(with_texts(&mut books).await, BTreeMap::from([(0, 700)]));
    assert_eq!(books.count(CLOSED).await, 1);
    assert_eq!(sqlx::query_scalar::<_, String>(WITHOUT_TEXTS).fetch_one(&mut books.connection).await.unwrap(), rows);
    assert_eq!(books.count("SELECT count(*) FROM litespend.adjustments").await, 0);
    for (path, ours) in books.answers(&server).await {
        let expected = &before.iter().find(|(other, _)| *other == path).unwrap().1;
        let lists = if path.starts_with("/spend/logs") { Lists::InOrder } else { Lists::AsSets };
        let [ours, expected] = [ours, expected.clone()].map(emptied);
        if let Some(difference) = difference(&ours, &expected, lists) {
            panic!("{path}: {difference}");
        }
    }
    Books::expect_no_complaint(&server);
}

/// An answer without texts.
fn emptied(mut answer: Value) -> Value {
    for row in answer.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        for column in ["messages", "response", "proxy_server_request"] {
            row.remove(column);
        }
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_archived_texts_only_those_are_emptied_that_the_archive_has() {
    let (database, home) = (database().await, tempfile::tempdir().unwrap());
    let mut books = Books::new(database.url(), home.path()).await;
    books.add(&[0, 3, 8, 9], 60).await;
    let server = books.server(&[]);
    let before = books.answers(&server).await;
    let texts: Value = server.get("/spend/logs/ui/ago-8-7").await.json().await.unwrap();
    assert_eq!(texts["messages"]["text"], "of a caller");
    stop(server);
    let options = ["--archive-bodies", "--close-after", "4"];
    let server = books.server(&options);
    books.wait_for(CLOSED, 2, &server).await;
    stop(server);
    // The archive does not have these: a row that no trigger saw.
    let unseen = books.day(9);
    books
        .execute(&format!(
            r#"ALTER TABLE "LiteLLM_SpendLogs" DISABLE TRIGGER USER;
               INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", messages)
               VALUES ('unseen', 'acompletion', '{unseen} 13:00', '{unseen} 13:00', '{{"text": "kept"}}');
               ALTER TABLE "LiteLLM_SpendLogs" ENABLE TRIGGER USER"#
        ))
        .await;
    let strip = [&options[..], &["--strip-after", "1"]].concat();
    let server = books.server(&strip);
    books.wait_for(WITH_TEXTS, 60 + 60 + 1, &server).await;
    assert_eq!(with_texts(&mut books).await, BTreeMap::from([(0, 60), (3, 60), (9, 1)]));
    assert_eq!(books.count("SELECT count(*) FROM litespend.adjustments").await, 0);
    Books::expect_no_complaint(&server);
    stop(server);
    let server = books.server(&[&strip[..], &["--prune-after", "5"]].concat());
    let left = format!(r#"SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE "startTime" < '{}'"#, books.day(5));
    books.wait_for(&left, 1, &server).await;
    assert_eq!(with_texts(&mut books).await, BTreeMap::from([(0, 60), (3, 60), (9, 1)]));
    let said = eventually(LIMIT, async || server.log().contains("stay in the log")).await;
    assert!(said, "{}", server.log());
    // Pruned rows are answered with the texts that they had.
    books.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = 'unseen'"#).await;
    books.expect(&server, &before, "pruned").await;
    assert_eq!(server.get("/spend/logs/ui/ago-8-7").await.json::<Value>().await.unwrap(), texts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_servers_close_each_day_once() {
    let (database, home) = (database().await, tempfile::tempdir().unwrap());
    let mut books = Books::new(database.url(), home.path()).await;
    books.add_without_texts(&[1, 6, 7, 8, 9, 10, 11, 12, 13, 40], 100).await;
    let server = books.server(&[]);
    let before = books.answers(&server).await;
    stop(server);
    let starting: Vec<_> = (0..3)
        .map(|_| {
            let (url, archive) = (books.url.clone(), books.archive.clone());
            let start = move || Server::on(&url, &["--archive", &archive, "--close-after", "2", "--prune-after", "3"]);
            tokio::task::spawn_blocking(start)
        })
        .collect();
    let mut servers = Vec::new();
    for server in starting {
        servers.push(server.await.unwrap());
    }
    books.wait_until_pruned(9, &servers[0]).await;
    let closed = books.closed().await;
    assert_eq!(closed.len(), 9);
    for closed in closed {
        assert!(closed.is_pruned, "{closed:?}");
        assert_eq!((closed.requests, closed.revision, closed.archived_rows), (100, 1, 100), "{closed:?}");
        assert_eq!(books.manifests(closed.day), 1, "{closed:?}");
    }
    assert_eq!(books.rows().await, BTreeMap::from([(1, 100)]));
    let said: usize = servers.iter().map(|server| server.log().matches("closed a day").count()).sum();
    assert_eq!(said, 9);
    for server in &servers {
        Books::expect_no_complaint(server);
        books.expect(server, &before, "pruned").await;
    }
    let said = books.litespend(&["books", "verify"]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_goes_on_where_another_was_killed() {
    let (database, home) = (database().await, tempfile::tempdir().unwrap());
    let mut books = Books::new(database.url(), home.path()).await;
    let days: Vec<u64> = (6..31).collect();
    books.add_without_texts(&days, 300).await;
    let server = books.server(&[]);
    let before = books.answers(&server).await;
    stop(server);
    let options = ["--close-after", "2", "--prune-after", "3"];
    // Killed while it closes days, and again while it prunes them.
    for reached in [CLOSED, PRUNED] {
        let mut server = books.server(&options);
        let count = format!("SELECT least(1, ({reached}))");
        books.wait_for(&count, 1, &server).await;
        server.signal(Signal::SIGKILL);
        server.exit(Duration::from_secs(10));
        println!("killed with {} days closed and {} pruned", books.count(CLOSED).await, books.count(PRUNED).await);
        // The database ends the session of a client that is gone, and with it the lock.
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        books.wait_for(locks, 0, &server).await;
        let server = books.server(&[]);
        books.expect(&server, &before, "killed").await;
        stop(server);
    }
    let server = books.server(&options);
    books.wait_until_pruned(25, &server).await;
    assert!(books.rows().await.is_empty());
    books.expect(&server, &before, "done").await;
    Books::expect_no_complaint(&server);
    for closed in books.closed().await {
        assert_eq!((closed.requests, closed.archived_rows), (300, 300), "{closed:?}");
    }
    let said = books.litespend(&["books", "verify"]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_looks_again_soon_after_another_session_had_the_lock() {
    let (database, home) = (database().await, tempfile::tempdir().unwrap());
    let mut books = Books::new(database.url(), home.path()).await;
    books.add_without_texts(&[6, 7], 20).await;
    // As the session of a server that died, until the database ends it.
    let mut other = PgConnection::connect(&books.url).await.unwrap();
    assert!(litespend::store::books::lock(&mut other).await.unwrap());
    let server = books.server(&["--close-after", "2"]);
    // The server looks when it starts.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(books.closed().await.is_empty(), "{}", server.log());
    other.close().await.unwrap();
    books.wait_for(CLOSED, 2, &server).await;
    Books::expect_no_complaint(&server);
}
