//! A database role that may read some tables of the rollups and not others. What it is answered is all there is, or what the log
//! has, or a refusal, and never a part of the sums.

use std::sync::Arc;
use std::time::Duration;

use litespend::books::pruning;
use litespend::clock::Clock;
use litespend::settings::Settings;
use litespend::settings::spend_metrics::{Label, SpendMetricsSettings};
use litespend::store::database;
use litespend::store::database::PoolLimits;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};

use crate::books::{Books, day};
use crate::support::answers::{Lists, difference};
use crate::support::{MASTER_KEY, TestApp, settings};

/// Reads that use the rollups, or the log if the role may not read them.
const OF_ROLLUPS: [&str; 4] = [
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&group_by=customer",
    "/global/spend/tags?start_date=2026-01-01&end_date=2026-04-30",
    "/spend/logs?start_date=2026-01-01&end_date=2026-04-30",
];

/// Reads that look for closed days by themselves.
const OF_CLOSED_DAYS: [&str; 4] = [
    "/user/spend/report?start_date=2026-01-31&end_date=2026-03-31&internal_user_id=u-int",
    "/global/activity?start_date=2026-01-01&end_date=2026-04-30",
    "/global/all_end_users",
    "/spend/logs?start_date=2026-01-01&end_date=2026-04-30&summarize=false",
];

/// Tables from which these reads take something.
const TABLES_OF_CLOSED_DAYS: [&str; 10] = [
    "closed_activity",
    "closed_days",
    "day_customer",
    "day_usage",
    "deltas",
    "incomplete_days",
    "moved_ids",
    "partitions",
    "settings",
    "words",
];

/// Labels of counters, and the table that has their sums.
const LABELS: [(&[Label], &str); 2] =
    [(&[Label::Team], "lifetime_usage"), (&[Label::Team, Label::EndUser], "lifetime_detail")];

/// A call that is not folded.
const LATE: &str = r#"
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, model, team_id, "user", end_user, spend, total_tokens,
                                     request_tags, "startTime", "endTime")
    VALUES ('late', 'acompletion', 'k1', 'gpt-4o', 'team-alpha', 'u-int', 'cust-1', 0.5, 2, '["late"]', '2026-03-02 10:00',
            '2026-03-02 10:00')"#;

/// A database whose first two months are closed, and left the log.
async fn pruned() -> Books {
    let books = Books::new().await;
    books.settle().await;
    assert!(books.close("2026-02-28").await > 2);
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-02-28"), |_| true).await.unwrap();
    books.settle().await;
    books.app.execute(LATE).await;
    books.app.state.refresh_rollups().await.unwrap();
    books
}

/// The tables of the rollups.
async fn tables(owner: &TestApp) -> Vec<String> {
    let statement = "SELECT relname::text FROM pg_class
                     WHERE relnamespace = 'litespend'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1";
    sqlx::query_scalar(statement).fetch_all(&owner.pool).await.unwrap()
}

/// These tables without one.
fn without<'t>(tables: &'t [String], missing: &str) -> Vec<&'t str> {
    tables.iter().map(String::as_str).filter(|table| *table != missing).collect()
}

/// A role that may read LiteLLM's tables.
struct Role {
    name: String,
    pool: PgPool,
}

impl Role {
    async fn new(owner: &TestApp, name: &str) -> Self {
        let name = format!("{name}_{}", std::process::id());
        let statement = format!(
            "CREATE ROLE {name} LOGIN; GRANT USAGE ON SCHEMA public, litespend TO {name};
             GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&owner.pool).await.unwrap();
        let (start, rest) = owner.database.url().split_once("://").unwrap();
        let address = rest.split_once('@').map_or(rest, |(_, address)| address);
        let limits = PoolLimits { connections: 3, wait: Duration::from_secs(5) };
        let pool = database::pool(&format!("{start}://{name}@{address}"), limits).unwrap();
        Self { name, pool }
    }

    /// A server whose role this is.
    async fn server(&self, books: &Books, labels: &[Label]) -> TestApp {
        let settings = Settings { spend_metrics: SpendMetricsSettings::new(labels, 10_000), ..settings() };
        let database = Arc::clone(&books.app.database);
        let server = TestApp::on_pool(database, self.pool.clone(), settings, Clock::system()).await;
        server.state.use_archive(books.archive.clone());
        server
    }

    /// From now on, the role may read these tables of the rollups and no others.
    async fn may_read(&self, owner: &TestApp, tables: &[&str]) {
        let mut statement = format!("REVOKE ALL ON ALL TABLES IN SCHEMA litespend FROM {};", self.name);
        if !tables.is_empty() {
            let tables: Vec<String> = tables.iter().map(|table| format!("litespend.{table}")).collect();
            statement += &format!("GRANT SELECT ON {} TO {}", tables.join(", "), self.name);
        }
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&owner.pool).await.unwrap();
    }

    async fn end(self, owner: &TestApp) {
        self.pool.close().await;
        let statement = format!("GRANT {0} TO CURRENT_USER; DROP OWNED BY {0}; DROP ROLE {0}", self.name);
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&owner.pool).await.unwrap();
    }
}

/// A read: what there is in all, and what the log has.
struct Read {
    path: &'static str,
    all: Value,
    log: Value,
}

/// Reads with the answers to the owner of the tables and to a role that may read none of them.
async fn reads(owner: &TestApp, none: &TestApp, paths: [&'static str; 4]) -> Vec<Read> {
    let mut reads = Vec::new();
    for path in paths {
        let (all, log) = (owner.get(path, MASTER_KEY).await, none.get(path, MASTER_KEY).await);
        assert!(all.status == 200 && log.status == 200, "{path}: {}\n{}", all.text, log.text);
        reads.push(Read { path, all: all.json(), log: log.json() });
    }
    assert!(reads.iter().any(|read| difference(&read.all, &read.log, Lists::AsSets).is_some()));
    reads
}

/// What a role must be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    All,
    Log,
    /// One of both, or a refusal.
    EitherOrRefusal,
}

async fn expect(server: &TestApp, reads: &[Read], expected: Expected, step: &str) {
    for read in reads {
        let answer = server.get(read.path, MASTER_KEY).await;
        if expected == Expected::EitherOrRefusal && answer.status == 403 {
            assert!(answer.text.contains("lacks a right"), "{step}: {}: {}", read.path, answer.text);
            continue;
        }
        assert_eq!(answer.status, 200, "{step}: {}: {}", read.path, answer.text);
        let found = answer.json();
        let is = |whole: &Value| difference(&found, whole, Lists::AsSets).is_none();
        let is_right = match expected {
            Expected::All => is(&read.all),
            Expected::Log => is(&read.log),
            Expected::EitherOrRefusal => is(&read.all) || is(&read.log),
        };
        assert!(is_right, "{step}: {}: not {expected:?}: {:.2000}", read.path, answer.text);
    }
}

/// The counters of a scrape.
async fn counters(server: &TestApp) -> Vec<String> {
    let answer = server.get("/metrics/spend", MASTER_KEY).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    counters_in(&answer.text)
}

fn counters_in(text: &str) -> Vec<String> {
    text.lines().filter(|line| line.contains("_metric_total{")).map(str::to_owned).collect()
}

/// The counters of the owner of the tables, for both kinds of labels.
async fn counters_of_owner(owner: &TestApp) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for (labels, _) in LABELS {
        let told = Settings { spend_metrics: SpendMetricsSettings::new(labels, 10_000), ..settings() };
        let server = owner.beside(told);
        server.state.refresh_rollups().await.unwrap();
        all.push(counters(&server).await);
        assert!(all.iter().all(|counters| counters.len() > 5), "{all:?}");
    }
    all
}

/// Tables of the rollups that reports do not read.
fn is_beside_reports(table: &str) -> bool {
    ["secrets", "migrations", "litellm_migrations"].contains(&table)
        || ["lifetime_", "expected_", "booked_"].iter().any(|start| table.starts_with(start))
}

#[tokio::test]
async fn a_role_that_may_read_some_tables_of_the_rollups_gets_no_part_of_the_sums() {
    let books = pruned().await;
    let owner = &books.app;
    let role = Role::new(owner, "some_tables").await;
    let [(usage, _), (detail, _)] = LABELS;
    let servers = [role.server(&books, usage).await, role.server(&books, detail).await];
    let [server, _] = &servers;
    let (tables, expected) = (tables(owner).await, counters_of_owner(owner).await);
    let of_rollups = reads(owner, server, OF_ROLLUPS).await;
    let of_closed_days = reads(owner, server, OF_CLOSED_DAYS).await;
    // Whether the servers say what they may read, and which of the counters each has.
    let scrape = async |state: &str, has: [bool; 2], step: &str| {
        for ((server, has), expected) in servers.iter().zip(has).zip(&expected) {
            server.state.refresh_rollups().await.unwrap();
            assert_eq!(server.state.rollups_state(), state, "{step}");
            let found = counters(server).await;
            assert!(if has { found == *expected } else { found.is_empty() }, "{step}: {has}: {found:?}");
        }
    };
    for missing in &tables {
        let step = format!("without {missing}");
        role.may_read(owner, &without(&tables, missing)).await;
        let is_whole = is_beside_reports(missing);
        let has = LABELS.map(|(_, table)| is_whole && missing != table);
        scrape(if is_whole { "counting" } else { "unreadable" }, has, &step).await;
        expect(server, &of_rollups, if is_whole { Expected::All } else { Expected::Log }, &step).await;
        if is_whole {
            expect(server, &of_closed_days, Expected::All, &step).await;
        } else if TABLES_OF_CLOSED_DAYS.contains(&missing.as_str()) {
            expect(server, &of_closed_days, Expected::EitherOrRefusal, &step).await;
        }
    }
    for alone in [
        &["words"][..],
        &["day_usage", "words"],
        &["deltas", "words", "lifetime_usage", "lifetime_detail"],
        &["closed_days", "incomplete_days", "settings"],
        &["closed_days", "incomplete_days", "settings", "closed_activity"],
    ] {
        let step = format!("with {alone:?} alone");
        role.may_read(owner, alone).await;
        scrape("unreadable", [false; 2], &step).await;
        expect(server, &of_rollups, Expected::Log, &step).await;
        expect(server, &of_closed_days, Expected::EitherOrRefusal, &step).await;
    }
    // All tables, in a schema that the role may not use.
    role.may_read(owner, &without(&tables, "")).await;
    let schema = async |change: &str, word: &str| {
        let statement = format!("{change} USAGE ON SCHEMA litespend {word} {}", role.name);
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&owner.pool).await.unwrap();
    };
    schema("REVOKE", "FROM").await;
    scrape("unreadable", [false; 2], "without the schema").await;
    expect(server, &of_rollups, Expected::Log, "without the schema").await;
    expect(server, &of_closed_days, Expected::EitherOrRefusal, "without the schema").await;
    schema("GRANT", "TO").await;
    scrape("counting", [true; 2], "with everything").await;
    expect(server, &of_rollups, Expected::All, "with everything").await;
    expect(server, &of_closed_days, Expected::All, "with everything").await;
    role.end(owner).await;
}

/// A server looks every three seconds whether it may read the rollups.
#[tokio::test]
async fn rights_that_were_taken_away_a_moment_ago_leave_no_part_of_the_sums() {
    let books = pruned().await;
    let owner = &books.app;
    let role = Role::new(owner, "taken_away").await;
    let [(usage, _), _] = LABELS;
    let server = role.server(&books, usage).await;
    let (tables, expected) = (tables(owner).await, counters_of_owner(owner).await);
    let of_rollups = reads(owner, &server, OF_ROLLUPS).await;
    let of_closed_days = reads(owner, &server, OF_CLOSED_DAYS).await;
    let mut refused = 0;
    for missing in
        ["words", "deltas", "day_usage", "day_customer", "day_tag", "packed_days", "partitions", "lifetime_usage"]
    {
        let step = format!("{missing} taken away");
        role.may_read(owner, &without(&tables, "")).await;
        server.state.refresh_rollups().await.unwrap();
        assert_eq!(counters(&server).await, expected[0], "{step}");
        role.may_read(owner, &without(&tables, missing)).await;
        assert_eq!(server.state.rollups_state(), "counting", "{step}");
        let answer = server.get("/metrics/spend", MASTER_KEY).await;
        assert!(answer.status == 200 || answer.status == 403, "{step}: {}", answer.text);
        let found = counters_in(&answer.text);
        assert!(found.is_empty() || found == expected[0], "{step}: {found:?}");
        refused += usize::from(found.is_empty());
        expect(&server, &of_rollups, Expected::EitherOrRefusal, &step).await;
        expect(&server, &of_closed_days, Expected::EitherOrRefusal, &step).await;
    }
    assert!(refused >= 2, "{refused}");
    role.end(owner).await;
}
