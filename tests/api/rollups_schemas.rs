//! Two LiteLLMs in two schemas of one database. The rollups count one of them, and reads of the other never see its
//! sums.

use std::sync::Arc;
use std::time::Duration;

use litespend::cli;
use litespend::clock::Clock;
use litespend::rollups::folding;
use litespend::store::database;
use litespend::store::database::{DatabaseKind, PoolLimits};
use litespend::store::rollups;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::rollups::{READS, answers};
use crate::support::answers::{Lists, difference};
use crate::support::cluster::TestDatabase;
use crate::support::{MASTER_KEY, TestApp, settings};

fn pool(database: &TestDatabase, schema: &str) -> PgPool {
    let separator = if database.url().contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}schema={schema}", database.url());
    database::pool(&url, PoolLimits { connections: 3, wait: Duration::from_secs(30) }).unwrap()
}

async fn app(database: &Arc<TestDatabase>, schema: &str) -> TestApp {
    TestApp::on_pool(Arc::clone(database), pool(database, schema), settings(), Clock::system()).await
}

/// Creates the schemas `tenant_a` and `tenant_b` with LiteLLM's tables. One has the recordings' rows, the other has
/// some rows of another tenant.
async fn two_tenants() -> Arc<TestDatabase> {
    let app = TestApp::seeded().await;
    app.execute(
        r#"DROP SCHEMA litespend CASCADE;
           ALTER SCHEMA public RENAME TO tenant_a;
           CREATE SCHEMA public;
           CREATE SCHEMA tenant_b;
           DO $$ DECLARE name text; BEGIN
               FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'tenant_a' LOOP
                   EXECUTE format('CREATE TABLE tenant_b.%I (LIKE tenant_a.%I INCLUDING ALL)', name, name);
               END LOOP;
           END $$;
           INSERT INTO tenant_b."LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model,
                                                     "user", team_id, end_user, request_tags)
           SELECT 'b-' || n, 'acompletion', 'key-of-b', 0.25, timestamp '2026-02-01 10:00' + n * interval '1 hour',
                  '2026-02-01', 'model-of-b', 'user-of-b', 'team-of-b', 'customer-of-b', '["tag-of-b"]'
           FROM generate_series(1, 40) AS n;
           INSERT INTO tenant_b."LiteLLM_DailyUserSpend" (id, user_id, date, api_key, model, spend, api_requests, updated_at)
           VALUES ('b', 'user-of-b', '2026-02-01', 'key-of-b', 'model-of-b', 0.25, 1, now())"#,
    )
    .await;
    app.pool.close().await;
    app.database
}

/// Checks that a tenant's reads return what its own log contains, and nothing of the other tenant.
async fn expect_own(app: &TestApp, own: bool, step: &str) {
    let plain = app.beside(settings());
    for ((path, ours), log) in READS.iter().zip(answers(app).await).zip(answers(&plain).await) {
        if let Some(difference) = difference(&ours, &log, Lists::AsSets) {
            panic!("{step}: {path}: {difference}");
        }
        assert!(own || !ours.to_string().contains("-of-b"), "{step}: {path}: {ours}");
    }
    let activity = "/user/daily/activity/aggregated?start_date=2026-01-01&end_date=2026-04-30";
    let (ours, rows) = (app.get(activity, MASTER_KEY).await.json(), plain.get(activity, MASTER_KEY).await.json());
    assert_eq!(difference(&ours, &rows, Lists::AsSets), None, "{step}: {activity}");
    let spend = |answer: &Value| answer["metadata"]["total_spend"].as_f64();
    assert!(spend(&ours).is_some(), "{ours}");
}

async fn install(app: &TestApp) {
    let mut connection = app.pool.acquire().await.unwrap();
    database::migrate_schema(&mut connection).await.unwrap();
    rollups::attach(&mut connection).await.unwrap();
    rollups::attach_activity(&mut connection).await.unwrap();
    folding::settle(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_tenant_never_reads_the_sums_of_another_schema() {
    let database = two_tenants().await;
    let (a, b) = (app(&database, "tenant_a").await, app(&database, "tenant_b").await);
    install(&b).await;
    b.state.refresh_rollups().await.unwrap();
    a.state.refresh_rollups().await.unwrap();
    assert_eq!((a.state.has_rollups(), b.state.has_rollups()), (false, true));
    expect_own(&a, false, "the other tenant's rollups").await;
    expect_own(&b, true, "its own rollups").await;

    // Writers in the other schema leave nothing in the rollups; its rows are counted nowhere.
    a.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = spend + 1"#).await;
    let mut connection = b.pool.acquire().await.unwrap();
    assert_eq!(rollups::status(&mut connection).await.unwrap().pending, 0);
    assert!(rollups::verify_day(&mut connection, "2026-02-02".parse().unwrap()).await.unwrap().is_none());

    // A second installation is refused, with a message that names the schema that has the rollups.
    let mut other = a.pool.acquire().await.unwrap();
    assert_eq!(rollups::counted_elsewhere(&mut other).await.unwrap().as_deref(), Some("tenant_b"));
    let refused = rollups::attach(&mut other).await.unwrap_err().to_string();
    assert!(refused.contains("tenant_b"), "{refused}");
    assert_eq!(rollups::counted_elsewhere(&mut connection).await.unwrap(), None);

    // The rollups move to the other tenant. The first tenant's server has not checked yet.
    rollups::remove(&mut connection).await.unwrap();
    install(&a).await;
    assert!(b.state.has_rollups(), "not looked yet");
    expect_own(&b, true, "rollups that have moved").await;
    a.state.refresh_rollups().await.unwrap();
    expect_own(&a, false, "its own rollups after a while").await;
}

#[tokio::test]
async fn a_log_with_triggers_of_the_same_rollups_as_another_is_read_itself() {
    let database = two_tenants().await;
    let b = app(&database, "tenant_b").await;
    install(&b).await;
    // The state after a schema was renamed and a dump was restored next to it.
    b.execute(
        r#"CREATE TRIGGER litespend_inserted AFTER INSERT ON tenant_a."LiteLLM_SpendLogs" REFERENCING NEW TABLE AS added
           FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_inserted();
           UPDATE litespend.day_usage SET spend = 1000"#,
    )
    .await;
    b.state.refresh_rollups().await.unwrap();
    assert!(!b.state.has_rollups());
    expect_own(&b, true, "sums of two logs").await;
}

#[tokio::test]
async fn tables_of_a_second_schema_are_litellms() {
    let app = TestApp::seeded().await;
    app.execute(
        r#"CREATE SCHEMA other;
           CREATE TABLE other."LiteLLM_SpendLogs" (LIKE public."LiteLLM_SpendLogs" INCLUDING ALL);
           CREATE SCHEMA empty"#,
    )
    .await;
    let (other, empty) = (pool(&app.database, "other"), pool(&app.database, "empty"));
    let found = database::migrate(&mut other.acquire().await.unwrap()).await.unwrap();
    assert_eq!(found, DatabaseKind::LiteLlm);
    // One database has one migration ledger: tables that exist according to it cannot be created a second time.
    let refused = database::migrate(&mut empty.acquire().await.unwrap()).await.unwrap_err().to_string();
    assert!(refused.contains("public"), "{refused}");
    let own = database::migrate(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(own, DatabaseKind::Own);
}

#[tokio::test]
async fn no_command_of_one_schema_takes_away_what_another_has() {
    let database = two_tenants().await;
    let (a, b) = (app(&database, "tenant_a").await, app(&database, "tenant_b").await);
    let state =
        "SELECT (SELECT count(*) FROM litespend.booked_ids) || ' ' || (SELECT count(*) FROM litespend.day_usage)
                        || ' ' || (SELECT count(*) FROM litespend.settings WHERE name = 'booking')";
    install(&a).await;
    let remove = async |app: &TestApp| {
        let mut connection = app.pool.acquire().await.unwrap();
        cli::booking::remove(&mut connection, DatabaseKind::LiteLlm).await
    };
    // Nobody installed booking: the other schema's rollups stay.
    let days = a.scalar("SELECT count(*)::text FROM litespend.day_usage").await;
    remove(&b).await.unwrap();
    assert_eq!(a.scalar("SELECT count(*)::text FROM litespend.day_usage").await, days);
    assert!(days != "0");

    cli::booking::install(&mut a.pool.acquire().await.unwrap(), DatabaseKind::LiteLlm).await.unwrap();
    let record = json!({"model": "gpt-4o", "cost": 0.5, "idempotency_key": "of-a"});
    assert_eq!(a.post("/spend/usage", MASTER_KEY, &record).await.json()["recorded"], 1);
    let before = a.scalar(state).await;
    let Err(cli::database::Failure::Setting(refusal)) = remove(&b).await else { panic!("removed") };
    assert!(refusal.to_string().contains("another schema"), "{refusal}");
    assert!(cli::booking::install(&mut b.pool.acquire().await.unwrap(), DatabaseKind::LiteLlm).await.is_err());
    assert_eq!(a.scalar(state).await, before);

    // Its own schema removes booking, and the rollups stay; without them, the schema goes.
    remove(&a).await.unwrap();
    assert_eq!(a.scalar("SELECT count(*)::text FROM litespend.booked_ids").await, "0");
    assert!(a.scalar("SELECT count(*)::text FROM litespend.day_usage").await != "0");
    rollups::remove(&mut a.pool.acquire().await.unwrap()).await.unwrap();
    remove(&a).await.unwrap();
    assert_eq!(a.scalar("SELECT (to_regnamespace('litespend') IS NULL)::text").await, "true");
}
