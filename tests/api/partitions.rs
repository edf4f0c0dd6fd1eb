//! LiteLLM's log, partitioned as its runbook does. The primary key includes the start of the call, so an ID may occur
//! twice; and PostgreSQL fires no trigger when a partition comes or goes.

use std::sync::Arc;
use std::time::Duration;

use litespend::clock::Clock;
use litespend::rollups::folding;
use litespend::store::booking::ids;
use litespend::store::books::pruning;
use litespend::store::database;
use litespend::store::database::{DatabaseKind, PoolLimits};
use litespend::store::error::is_denied;
use litespend::store::indexes;
use litespend::store::rollups;
use litespend::store::rollups::partitions;
use litespend::store::rollups::partitions::Changed;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::rollups::{READS, answers};
use crate::support::answers::{Lists, difference};
use crate::support::{MASTER_KEY, TestApp, settings};

/// A LiteLLM's database whose log has a partition for each day of the recordings' rows, and a default partition.
async fn partitioned() -> TestApp {
    let app = TestApp::seeded().await;
    app.execute("DROP SCHEMA litespend CASCADE").await;
    app.execute(include_str!("../fixtures/plain_log.sql")).await;
    app.execute(
        r#"ALTER TABLE "LiteLLM_SpendLogs" RENAME TO "LiteLLM_SpendLogs_legacy";
           CREATE TABLE "LiteLLM_SpendLogs" (LIKE "LiteLLM_SpendLogs_legacy" INCLUDING DEFAULTS INCLUDING STORAGE,
               PRIMARY KEY (request_id, "startTime")) PARTITION BY RANGE ("startTime");
           CREATE TABLE "LiteLLM_SpendLogs_default" PARTITION OF "LiteLLM_SpendLogs" DEFAULT;
           DO $$ DECLARE day date; BEGIN
               FOR day IN SELECT generate_series(date '2026-01-20', date '2026-03-20', '1 day')::date LOOP
                   EXECUTE format('CREATE TABLE %I PARTITION OF "LiteLLM_SpendLogs" FOR VALUES FROM (%L) TO (%L)',
                                  'LiteLLM_SpendLogs_p' || to_char(day, 'YYYYMMDD'), day, day + 1);
               END LOOP;
           END $$;
           INSERT INTO "LiteLLM_SpendLogs" SELECT * FROM "LiteLLM_SpendLogs_legacy";
           DROP TABLE "LiteLLM_SpendLogs_legacy";
           CREATE TABLE IF NOT EXISTS _prisma_migrations (id text)"#,
    )
    .await;
    app
}

pub(crate) async fn install(app: &TestApp) {
    let mut connection = app.pool.acquire().await.unwrap();
    database::migrate_schema(&mut connection).await.unwrap();
    rollups::attach(&mut connection).await.unwrap();
    rollups::attach_activity(&mut connection).await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    app.state.refresh_rollups().await.unwrap();
    assert!(app.state.has_rollups());
}

/// Every read answers what the log contains.
pub(crate) async fn expect_exact(app: &TestApp, step: &str) {
    let plain = app.beside(settings());
    for ((path, ours), log) in READS.iter().zip(answers(app).await).zip(answers(&plain).await) {
        if let Some(difference) = difference(&ours, &log, Lists::AsSets) {
            panic!("{step}: {path}: {difference}");
        }
    }
}

/// Whether reads of these days come from the rollups.
pub(crate) async fn is_read_from_rollups(app: &TestApp, first: &str, last: &str) -> bool {
    let mut connection = app.pool.acquire().await.unwrap();
    let range = litespend::store::DateRange { start: first.parse().unwrap(), end: last.parse().unwrap() };
    rollups::reads::snapshot(&mut connection, Some(range)).await.unwrap().is_some()
}

async fn follow(app: &TestApp) -> Changed {
    let mut connection = app.pool.acquire().await.unwrap();
    let changed = partitions::follow(&mut connection).await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    changed
}

#[tokio::test]
async fn what_happens_to_a_partition_is_never_missed() {
    let app = partitioned().await;
    install(&app).await;
    let whole = ("2026-01-20", "2026-03-20");
    assert!(is_read_from_rollups(&app, whole.0, whole.1).await);
    expect_exact(&app, "installed").await;
    // Statements that name a partition are counted like those that name the log.
    for (step, statement) in [
        (
            "insert",
            r#"INSERT INTO "LiteLLM_SpendLogs_p20260201" SELECT (r).* FROM (SELECT jsonb_populate_record(l, '{"request_id": "direct", "spend": 7.5}') AS r FROM "LiteLLM_SpendLogs_p20260201" l LIMIT 1) AS one"#,
        ),
        ("update", r#"UPDATE "LiteLLM_SpendLogs_p20260202" SET spend = spend + 1"#),
        (
            "delete",
            r#"DELETE FROM "LiteLLM_SpendLogs_p20260203" WHERE request_id IN (SELECT request_id FROM "LiteLLM_SpendLogs_p20260203" LIMIT 2)"#,
        ),
        ("truncate", r#"TRUNCATE "LiteLLM_SpendLogs_p20260204""#),
    ] {
        app.execute(statement).await;
        expect_exact(&app, step).await;
        assert_eq!(follow(&app).await, Changed::default(), "{step}");
        expect_exact(&app, step).await;
    }
    assert!(is_read_from_rollups(&app, whole.0, whole.1).await);
    // Partitions come and go without a trigger. Reads use the log until the rollups have followed.
    for (step, statement, changed) in [
        ("drop", r#"DROP TABLE "LiteLLM_SpendLogs_p20260201""#, Changed { came: 0, went: 1 }),
        (
            "detach",
            r#"ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION "LiteLLM_SpendLogs_p20260202""#,
            Changed { came: 0, went: 1 },
        ),
        (
            "attach",
            r#"ALTER TABLE "LiteLLM_SpendLogs" ATTACH PARTITION "LiteLLM_SpendLogs_p20260202" FOR VALUES FROM ('2026-02-02') TO ('2026-02-03')"#,
            Changed { came: 1, went: 0 },
        ),
        (
            "new",
            r#"CREATE TABLE "LiteLLM_SpendLogs_new" PARTITION OF "LiteLLM_SpendLogs" FOR VALUES FROM ('2027-02-02') TO ('2027-02-03')"#,
            Changed { came: 1, went: 0 },
        ),
        ("the default one", r#"DROP TABLE "LiteLLM_SpendLogs_default""#, Changed { came: 0, went: 1 }),
    ] {
        app.execute(statement).await;
        assert!(!is_read_from_rollups(&app, "2026-03-01", "2026-03-01").await, "{step}");
        expect_exact(&app, step).await;
        assert_eq!(follow(&app).await, changed, "{step}");
        assert!(is_read_from_rollups(&app, whole.0, whole.1).await, "{step}");
        expect_exact(&app, step).await;
    }
    // A detached partition is no part of the log: what is written to it is not counted.
    app.execute(r#"ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION "LiteLLM_SpendLogs_p20260202""#).await;
    follow(&app).await;
    app.execute(r#"UPDATE "LiteLLM_SpendLogs_p20260202" SET spend = spend + 100"#).await;
    expect_exact(&app, "a detached partition").await;
    assert!(is_read_from_rollups(&app, whole.0, whole.1).await);
}

#[tokio::test]
async fn a_partitions_days_alone_are_counted_again() {
    let app = partitioned().await;
    install(&app).await;
    app.execute(r#"DROP TABLE "LiteLLM_SpendLogs_p20260201"; TRUNCATE "LiteLLM_SpendLogs_p20260202""#).await;
    let mut connection = app.pool.acquire().await.unwrap();
    partitions::follow(&mut connection).await.unwrap();
    let status = rollups::status(&mut connection).await.unwrap();
    assert_eq!((status.dirty_days, status.all_dirty), (2, false));
}

#[tokio::test]
async fn days_are_utc_days_whatever_the_writers_time_zone() {
    let app = partitioned().await;
    app.execute(
        r#"DROP TABLE "LiteLLM_SpendLogs_default";
           DO $$ DECLARE part regclass; BEGIN
               FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = '"LiteLLM_SpendLogs"'::regclass LOOP
                   EXECUTE format('ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION %s', part);
               END LOOP;
           END $$;
           DROP TABLE "LiteLLM_SpendLogs";
           CREATE TABLE "LiteLLM_SpendLogs" (LIKE "LiteLLM_SpendLogs_p20260201" INCLUDING ALL);
           SET timezone = 'UTC';
           ALTER TABLE "LiteLLM_SpendLogs" ALTER "startTime" TYPE timestamptz"#,
    )
    .await;
    install(&app).await;
    app.execute(
        r#"SET timezone = 'Asia/Kolkata';
           INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model)
           SELECT 'kolkata-' || n, 'acompletion', 'k', 0.5, timestamptz '2026-02-10 00:10+00' + n * interval '1 hour',
                  '2026-02-10', 'm' FROM generate_series(0, 23) AS n"#,
    )
    .await;
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    let day = app.scalar("SELECT string_agg(DISTINCT day::text, ' ') FROM litespend.day_usage").await;
    assert_eq!(day, "2026-02-10");
}

#[tokio::test]
async fn a_renamed_log_is_noticed_and_counted_again() {
    let app = TestApp::seeded().await;
    app.execute("DROP SCHEMA litespend CASCADE; CREATE TABLE IF NOT EXISTS _prisma_migrations (id text)").await;
    app.execute(include_str!("../fixtures/plain_log.sql")).await;
    install(&app).await;
    app.execute(
        r#"ALTER TABLE "LiteLLM_SpendLogs" RENAME TO "LiteLLM_SpendLogs_legacy";
           CREATE TABLE "LiteLLM_SpendLogs" (LIKE "LiteLLM_SpendLogs_legacy" INCLUDING DEFAULTS,
               PRIMARY KEY (request_id, "startTime")) PARTITION BY RANGE ("startTime");
           CREATE TABLE "LiteLLM_SpendLogs_default" PARTITION OF "LiteLLM_SpendLogs" DEFAULT;
           INSERT INTO "LiteLLM_SpendLogs" SELECT * FROM "LiteLLM_SpendLogs_legacy" WHERE "startTime" < '2026-02-02'"#,
    )
    .await;
    app.state.refresh_rollups().await.unwrap();
    assert!(!app.state.has_rollups());
    expect_exact(&app, "renamed").await;
    let mut connection = app.pool.acquire().await.unwrap();
    let lost = rollups::lost(&mut connection).await.unwrap().unwrap();
    assert_eq!(lost.table.as_deref(), Some(r#""LiteLLM_SpendLogs_legacy""#));
    assert_eq!(rollups::installed_elsewhere(&mut connection).await.unwrap(), None);
    drop(connection);
    install(&app).await;
    expect_exact(&app, "installed again").await;
    app.execute(r#"UPDATE "LiteLLM_SpendLogs_legacy" SET spend = 1000; DROP TABLE "LiteLLM_SpendLogs_legacy""#).await;
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    assert!(is_read_from_rollups(&app, "2026-01-20", "2026-03-20").await);
    expect_exact(&app, "without the old log").await;
}

/// The state of the rollups as a server says it that has just looked.
async fn state_of_rollups(app: &TestApp) -> String {
    app.state.refresh_rollups().await.unwrap();
    let ready = app.get("/health/readiness", MASTER_KEY).await.json();
    ready["rollups"].as_str().unwrap().to_owned()
}

/// A LiteLLM's database with rollups, whose log is one table.
async fn plain_with_rollups() -> TestApp {
    let app = TestApp::seeded().await;
    app.execute("DROP SCHEMA litespend CASCADE; CREATE TABLE IF NOT EXISTS _prisma_migrations (id text)").await;
    app.execute(include_str!("../fixtures/plain_log.sql")).await;
    install(&app).await;
    app
}

/// Puts an empty partitioned log in place of the log, which gets another name.
const RENAME: &str = r#"
    ALTER TABLE "LiteLLM_SpendLogs" RENAME TO "LiteLLM_SpendLogs_legacy";
    CREATE TABLE "LiteLLM_SpendLogs" (LIKE "LiteLLM_SpendLogs_legacy" INCLUDING DEFAULTS) PARTITION BY RANGE ("startTime");
    CREATE TABLE "LiteLLM_SpendLogs_default" PARTITION OF "LiteLLM_SpendLogs" DEFAULT"#;

#[tokio::test]
async fn a_log_that_was_replaced_stays_lost_until_the_rollups_are_installed_or_removed() {
    for (step, statement) in [
        (
            "dropped",
            r#"INSERT INTO "LiteLLM_SpendLogs" SELECT * FROM "LiteLLM_SpendLogs_legacy";
               DROP TABLE "LiteLLM_SpendLogs_legacy""#,
        ),
        (
            "attached as a partition",
            r#"ALTER TABLE "LiteLLM_SpendLogs" ATTACH PARTITION "LiteLLM_SpendLogs_legacy"
               FOR VALUES FROM ('2000-01-01') TO ('2100-01-01')"#,
        ),
        (
            "moved to another schema",
            r#"INSERT INTO "LiteLLM_SpendLogs" SELECT * FROM "LiteLLM_SpendLogs_legacy" WHERE "startTime" < '2026-02-02';
               CREATE SCHEMA archive; ALTER TABLE "LiteLLM_SpendLogs_legacy" SET SCHEMA archive"#,
        ),
    ] {
        let app = plain_with_rollups().await;
        app.execute(RENAME).await;
        // A server that did not look before this is done notices it, too.
        app.execute(statement).await;
        let started_later = app.another().await;
        for server in [&app, &started_later] {
            assert_eq!(state_of_rollups(server).await, "lost", "{step}");
            expect_exact(server, step).await;
            assert_eq!(state_of_rollups(server).await, "lost", "{step}, a second time");
        }
        let mut connection = app.pool.acquire().await.unwrap();
        assert_eq!(rollups::installed_elsewhere(&mut connection).await.unwrap(), None, "{step}");
        // Removing booking does not take away the sums.
        litespend::cli::booking::remove(&mut connection, DatabaseKind::LiteLlm).await.unwrap();
        assert!(rollups::lost(&mut connection).await.unwrap().is_some(), "{step}");
        drop(connection);
        install(&app).await;
        assert_eq!(state_of_rollups(&app).await, "counting", "{step}");
        assert!(is_read_from_rollups(&app, "2026-01-20", "2026-03-20").await, "{step}");
        expect_exact(&app, step).await;
        let mut connection = app.pool.acquire().await.unwrap();
        rollups::remove(&mut connection).await.unwrap();
        drop(connection);
        assert_eq!(state_of_rollups(&app).await, "not installed", "{step}");
    }
    // Removed while lost. That booking was installed is no reason to miss the rollups.
    let app = plain_with_rollups().await;
    app.execute(RENAME).await;
    app.execute(r#"DROP TABLE "LiteLLM_SpendLogs_legacy""#).await;
    assert_eq!(state_of_rollups(&app).await, "lost");
    let mut connection = app.pool.acquire().await.unwrap();
    rollups::remove(&mut connection).await.unwrap();
    assert_eq!(state_of_rollups(&app).await, "not installed");
    litespend::cli::booking::install(&mut connection, DatabaseKind::LiteLlm).await.unwrap();
    assert_eq!(state_of_rollups(&app).await, "not installed");
}

#[tokio::test]
async fn rollups_that_an_earlier_version_installed_can_be_lost() {
    let app = plain_with_rollups().await;
    app.execute("DELETE FROM litespend.settings").await;
    app.execute(RENAME).await;
    assert_eq!(state_of_rollups(&app).await, "lost");
    app.execute(r#"DROP TABLE "LiteLLM_SpendLogs_legacy""#).await;
    assert_eq!(state_of_rollups(&app).await, "lost");
    // With a second log, nothing says which one was counted.
    app.execute(r#"CREATE SCHEMA other; CREATE TABLE other."LiteLLM_SpendLogs" (LIKE "LiteLLM_SpendLogs")"#).await;
    assert_eq!(state_of_rollups(&app).await, "not installed");
    install(&app).await;
    app.execute(r#"DROP TABLE "LiteLLM_SpendLogs"; ALTER TABLE other."LiteLLM_SpendLogs" SET SCHEMA public"#).await;
    assert_eq!(state_of_rollups(&app).await, "lost");
}

#[tokio::test]
async fn partitions_that_move_to_another_schema_are_followed() {
    let app = partitioned().await;
    install(&app).await;
    app.execute("CREATE SCHEMA archive").await;
    for (step, statement, changed) in [
        (
            "an attached partition moves",
            r#"ALTER TABLE "LiteLLM_SpendLogs_p20260201" SET SCHEMA archive;
               UPDATE archive."LiteLLM_SpendLogs_p20260201" SET spend = spend + 1"#,
            Changed::default(),
        ),
        (
            "a detached partition moves",
            r#"ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION "LiteLLM_SpendLogs_p20260202";
               ALTER TABLE "LiteLLM_SpendLogs_p20260202" SET SCHEMA archive;
               UPDATE archive."LiteLLM_SpendLogs_p20260202" SET spend = spend + 1000"#,
            Changed { came: 0, went: 1 },
        ),
        (
            "a partition elsewhere is detached",
            r#"ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION archive."LiteLLM_SpendLogs_p20260201";
               UPDATE archive."LiteLLM_SpendLogs_p20260201" SET spend = spend + 1000"#,
            Changed { came: 0, went: 1 },
        ),
        (
            "it is attached again",
            r#"ALTER TABLE "LiteLLM_SpendLogs" ATTACH PARTITION archive."LiteLLM_SpendLogs_p20260201"
               FOR VALUES FROM ('2026-02-01') TO ('2026-02-02')"#,
            Changed { came: 1, went: 0 },
        ),
    ] {
        app.execute(statement).await;
        assert_eq!(state_of_rollups(&app).await, "counting", "{step}");
        let mut connection = app.pool.acquire().await.unwrap();
        assert_eq!(rollups::installed_elsewhere(&mut connection).await.unwrap(), None, "{step}");
        assert!(rollups::abilities(&mut connection).await.unwrap().can_follow, "{step}");
        drop(connection);
        expect_exact(&app, step).await;
        assert_eq!(follow(&app).await, changed, "{step}");
        assert!(is_read_from_rollups(&app, "2026-01-20", "2026-03-20").await, "{step}");
        expect_exact(&app, step).await;
    }
    let triggered = "SELECT string_agg(DISTINCT tgrelid::regclass::text, ' ') FROM pg_trigger t
                     JOIN pg_class c ON c.oid = tgrelid WHERE relnamespace = 'archive'::regnamespace AND NOT tgisinternal";
    assert_eq!(app.scalar(triggered).await, r#"archive."LiteLLM_SpendLogs_p20260201""#);
    // Once more without a server: `rollups install` repairs it, and `rollups remove` leaves no trigger behind.
    app.execute(
        r#"ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION archive."LiteLLM_SpendLogs_p20260201";
           UPDATE archive."LiteLLM_SpendLogs_p20260201" SET spend = spend + 1000;
           ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION "LiteLLM_SpendLogs_p20260203";
           ALTER TABLE "LiteLLM_SpendLogs_p20260203" SET SCHEMA archive"#,
    )
    .await;
    install(&app).await;
    assert!(is_read_from_rollups(&app, "2026-01-20", "2026-03-20").await);
    expect_exact(&app, "installed again").await;
    app.execute(
        r#"ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION "LiteLLM_SpendLogs_p20260204";
           ALTER TABLE "LiteLLM_SpendLogs_p20260204" SET SCHEMA archive"#,
    )
    .await;
    rollups::remove(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(app.scalar("SELECT count(*)::text FROM pg_trigger WHERE tgname LIKE 'litespend%'").await, "0");
}

#[tokio::test]
async fn a_table_that_was_never_remembered_makes_every_day_dirty() {
    let app = plain_with_rollups().await;
    // As when a copy of the log is restored into another schema.
    app.execute(
        r#"CREATE SCHEMA archive;
           CREATE TABLE archive.restored (LIKE "LiteLLM_SpendLogs" INCLUDING DEFAULTS);
           SELECT litespend.create_triggers('archive.restored');
           INSERT INTO archive.restored SELECT * FROM "LiteLLM_SpendLogs""#,
    )
    .await;
    expect_exact(&app, "restored").await;
    assert_eq!(follow(&app).await, Changed::default());
    assert!(is_read_from_rollups(&app, "2026-01-20", "2026-03-20").await);
    expect_exact(&app, "followed").await;
}

#[tokio::test]
async fn an_own_database_stays_one_when_a_partition_moves_to_another_schema() {
    let app = TestApp::seeded().await;
    app.execute(
        r#"CREATE SCHEMA archive;
           SELECT litespend.add_month('"LiteLLM_SpendLogs"', '2026-02-01', true);
           ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION "LiteLLM_SpendLogs_2026_02";
           ALTER TABLE "LiteLLM_SpendLogs_2026_02" SET SCHEMA archive"#,
    )
    .await;
    let mut connection = app.pool.acquire().await.unwrap();
    assert_eq!(database::migrate(&mut connection).await.unwrap(), DatabaseKind::Own);
    drop(connection);
    book(&app, "moved", &chrono::Utc::now().to_rfc3339(), 0.5).await;
    assert_eq!(follow(&app).await, Changed { came: 0, went: 1 });
    expect_exact(&app, "followed").await;
}

#[tokio::test]
async fn bounds_of_another_column_are_no_days() {
    let app = plain_with_rollups().await;
    app.execute(
        r#"CREATE TABLE by_end (LIKE "LiteLLM_SpendLogs" INCLUDING DEFAULTS) PARTITION BY RANGE ("endTime");
           CREATE TABLE first_half PARTITION OF by_end FOR VALUES FROM ('2026-01-01') TO ('2026-02-05');
           CREATE TABLE second_half PARTITION OF by_end FOR VALUES FROM ('2026-02-05') TO ('2026-02-07');
           CREATE TABLE rest PARTITION OF by_end DEFAULT;
           UPDATE "LiteLLM_SpendLogs" SET "endTime" = "startTime" + interval '3 days';
           INSERT INTO by_end SELECT * FROM "LiteLLM_SpendLogs";
           DROP TABLE "LiteLLM_SpendLogs";
           ALTER TABLE by_end RENAME TO "LiteLLM_SpendLogs""#,
    )
    .await;
    let has_rows = "SELECT EXISTS (SELECT FROM second_half)::text";
    assert_eq!(app.scalar(has_rows).await, "true");
    install(&app).await;
    let days = "SELECT count(first_day)::text FROM litespend.partitions";
    assert_eq!(app.scalar(days).await, "0");
    for (step, statement, changed) in [
        ("truncated", "TRUNCATE second_half", Changed::default()),
        ("dropped", "DROP TABLE first_half", Changed { came: 0, went: 1 }),
        (
            "attached",
            r#"CREATE TABLE third (LIKE "LiteLLM_SpendLogs" INCLUDING DEFAULTS);
               INSERT INTO third SELECT * FROM rest WHERE "startTime" < '2026-02-12';
               UPDATE third SET "endTime" = '2026-01-02';
               ALTER TABLE "LiteLLM_SpendLogs" ATTACH PARTITION third FOR VALUES FROM ('2026-01-01') TO ('2026-02-05')"#,
            Changed { came: 1, went: 0 },
        ),
    ] {
        app.execute(statement).await;
        expect_exact(&app, step).await;
        assert_eq!(follow(&app).await, changed, "{step}");
        assert!(is_read_from_rollups(&app, "2026-01-20", "2026-03-20").await, "{step}");
        expect_exact(&app, step).await;
        assert_eq!(app.scalar(days).await, "0", "{step}");
    }
    // Days that an earlier version remembered are forgotten.
    app.execute("UPDATE litespend.partitions SET first_day = '2026-01-01', last_day = '2026-02-04'").await;
    assert_eq!(follow(&app).await, Changed::default());
    assert_eq!(app.scalar(days).await, "0");
    // A partition without rows of open days between its bounds may have rows of other days.
    app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE "startTime" < '2026-02-05'"#).await;
    follow(&app).await;
    app.execute(
        "INSERT INTO litespend.closed_days (day, requests, spend, prompt_tokens, completion_tokens, total_tokens, revision,
                                            archived_rows, buckets)
         VALUES ('2026-01-02', 0, 0, 0, 0, 0, 1, 0, 1)",
    )
    .await;
    let mut connection = app.pool.acquire().await.unwrap();
    let closed = pruning::closed_partitions(&mut connection, "2026-02-28".parse().unwrap()).await.unwrap();
    assert!(closed.is_empty(), "{closed:?}");
}

async fn book(app: &TestApp, id: &str, start: &str, cost: f64) -> Value {
    let record = json!({"idempotency_key": id, "model": "gpt-4o", "cost": cost, "start_time": start});
    let answer = app.post("/spend/usage", MASTER_KEY, &record).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    answer.json()
}

#[tokio::test]
async fn an_id_is_booked_once_although_the_log_does_not_keep_it_unique() {
    let app = partitioned().await;
    install(&app).await;
    let mut connection = app.pool.acquire().await.unwrap();
    assert!(ids::install(&mut connection).await.unwrap());
    let count = async |id: &'static str| {
        sqlx::query_scalar::<_, i64>(r#"SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE request_id LIKE $1"#)
            .bind(format!("{id}%"))
            .fetch_one(&app.pool)
            .await
            .unwrap()
    };
    let now = chrono::Utc::now();
    let yesterday = (now - chrono::Days::new(1)).to_rfc3339();
    for start in [now.to_rfc3339(), now.to_rfc3339()] {
        book(&app, "once", &start, 0.5).await;
    }
    assert_eq!(count("once").await, 1);
    // The stored IDs are gone. The row in the log is still the record's, on whichever day it was.
    app.execute("TRUNCATE litespend.booked_ids").await;
    let again = book(&app, "once", &yesterday, 0.5).await;
    assert_eq!(again["results"][0]["status"], "duplicate", "{again}");
    assert_eq!(count("once").await, 1);
    // A row that LiteLLM logged under this ID for another key: the record gets an ID of its own.
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model)
           VALUES ('taken', 'acompletion', 'somebody', 3, '2026-02-05 10:00', '2026-02-05 10:01', 'm')"#,
    )
    .await;
    book(&app, "taken", &now.to_rfc3339(), 0.25).await;
    assert_eq!(count("taken").await, 2);
    assert_eq!(
        app.scalar(
            r#"SELECT count(DISTINCT request_id)::text FROM "LiteLLM_SpendLogs" WHERE request_id LIKE 'taken%'"#
        )
        .await,
        "2"
    );
    // Many at once, with IDs that overlap.
    let sends = (0..8).map(|round| {
        let app = &app;
        async move {
            let start = (now - chrono::Days::new(round % 3)).to_rfc3339();
            let records: Vec<Value> = (0..40)
                .map(|number| json!({"idempotency_key": format!("many-{number}"), "model": "gpt-4o", "cost": 0.01, "start_time": start}))
                .collect();
            app.post("/spend/usage", MASTER_KEY, &json!({"records": records})).await.status
        }
    });
    for status in futures_util::future::join_all(sends).await {
        assert!(status.as_u16() < 500, "{status}");
    }
    assert_eq!(count("many-").await, 40);
    folding::settle(&mut connection).await.unwrap();
    expect_exact(&app, "booked").await;
}

#[tokio::test]
async fn indexes_are_built_partition_by_partition() {
    let app = partitioned().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model)
           SELECT 'row-' || n, 'acompletion', 'key-' || n % 1000, 0.5, timestamp '2026-02-01' + n * interval '20 seconds',
                  '2026-02-10', 'm' FROM generate_series(0, 60000) AS n;
           ANALYZE "LiteLLM_SpendLogs""#,
    )
    .await;
    let pool =
        database::pool(app.database.url(), PoolLimits { connections: 1, wait: Duration::from_secs(30) }).unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let valid = r#"SELECT count(*)::text FROM pg_index WHERE indexrelid::regclass::text LIKE 'litespend_spend_logs_%' AND indisvalid AND indrelid = '"LiteLLM_SpendLogs"'::regclass"#;
    for round in ["installed", "again"] {
        for wanted in &indexes::WANTED {
            for statement in indexes::creation(&mut connection, wanted).await.unwrap() {
                indexes::run(&mut connection, &statement).await.unwrap();
            }
        }
        assert_eq!(app.scalar(valid).await, "4", "{round}");
    }
    for wanted in &indexes::WANTED {
        assert_eq!(indexes::missing(&mut connection, wanted).await.unwrap(), None, "{}", wanted.name);
    }
    for wanted in &indexes::WANTED {
        indexes::drop(&mut connection, wanted).await.unwrap();
    }
    let left = app.scalar("SELECT count(*)::text FROM pg_class WHERE relname LIKE 'litespend_spend_logs%'").await;
    assert_eq!(left, "0");
}

#[tokio::test]
async fn indexes_of_partitions_of_partitions_block_no_writers() {
    let app = partitioned().await;
    app.execute(
        r#"CREATE SCHEMA archive;
           CREATE TABLE march PARTITION OF "LiteLLM_SpendLogs" FOR VALUES FROM ('2027-03-01') TO ('2027-04-01')
               PARTITION BY RANGE ("startTime");
           CREATE TABLE archive.early PARTITION OF march FOR VALUES FROM ('2027-03-01') TO ('2027-03-15')
               PARTITION BY HASH (request_id);
           CREATE TABLE archive.even PARTITION OF archive.early FOR VALUES WITH (MODULUS 2, REMAINDER 0);
           CREATE TABLE archive.odd PARTITION OF archive.early FOR VALUES WITH (MODULUS 2, REMAINDER 1);
           CREATE TABLE late PARTITION OF march FOR VALUES FROM ('2027-03-15') TO ('2027-04-01');
           ALTER TABLE "LiteLLM_SpendLogs_p20260201" SET SCHEMA archive"#,
    )
    .await;
    let pool =
        database::pool(app.database.url(), PoolLimits { connections: 1, wait: Duration::from_secs(30) }).unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let wanted = &indexes::WANTED[0];
    let statements = indexes::creation(&mut connection, wanted).await.unwrap();
    for statement in &statements {
        let is_harmless = statement.contains("CONCURRENTLY") || statement.contains("ON ONLY");
        assert!(is_harmless || !statement.starts_with("CREATE INDEX"), "{statement}");
    }
    // Interrupted anywhere, it can be finished, and it can be removed.
    for length in [1, 2, 4, statements.len() - 4, statements.len() - 1] {
        for statement in statements.iter().take(length) {
            indexes::run(&mut connection, statement).await.unwrap();
        }
        for statement in indexes::creation(&mut connection, wanted).await.unwrap() {
            indexes::run(&mut connection, &statement).await.unwrap();
        }
        let valid =
            "SELECT (indisvalid)::text FROM pg_index WHERE indexrelid = 'litespend_spend_logs_api_key'::regclass";
        assert_eq!(app.scalar(valid).await, "true", "{length}");
        assert_eq!(indexes::creation(&mut connection, wanted).await.unwrap().len(), 1, "{length}");
        indexes::drop(&mut connection, wanted).await.unwrap();
        for statement in statements.iter().take(length) {
            indexes::run(&mut connection, statement).await.unwrap();
        }
        indexes::drop(&mut connection, wanted).await.unwrap();
        let left = app.scalar("SELECT count(*)::text FROM pg_class WHERE relname LIKE 'litespend_spend_logs%'").await;
        assert_eq!(left, "0", "{length}");
    }
}

#[tokio::test]
async fn a_role_that_may_not_create_triggers_reads_exactly_all_the_same() {
    let app = partitioned().await;
    install(&app).await;
    let role = format!("follower_{}", std::process::id());
    let statement = format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA public, litespend TO {role};
         GRANT SELECT ON ALL TABLES IN SCHEMA public, litespend TO {role}"
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();
    let (start, rest) = app.database.url().split_once("://").unwrap();
    let address = rest.split_once('@').map_or(rest, |(_, address)| address);
    let limits = PoolLimits { connections: 3, wait: Duration::from_secs(5) };
    let pool = database::pool(&format!("{start}://{role}@{address}"), limits).unwrap();
    let reader = TestApp::on_pool(Arc::clone(&app.database), pool.clone(), settings(), Clock::system()).await;
    reader.state.refresh_rollups().await.unwrap();
    assert!(reader.state.has_rollups());
    app.execute(r#"DROP TABLE "LiteLLM_SpendLogs_p20260202""#).await;
    let mut connection = pool.acquire().await.unwrap();
    let refused = partitions::follow(&mut connection).await.unwrap_err();
    assert!(is_denied(&refused), "{refused}");
    expect_exact(&reader, "not followed").await;
    // Whoever owns the triggers follows.
    assert_eq!(follow(&app).await, Changed { came: 0, went: 1 });
    expect_exact(&reader, "followed").await;
    drop(connection);
    pool.close().await;
    let statement = format!("GRANT {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();
}
