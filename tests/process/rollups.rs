//! `litespend rollups` on a database that LiteLLM owns, while rows are written to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::{AS_LITELLM, Run, Server, database, eventually, program, run};

pub(crate) const REPORT: &str = "/global/spend/report?start_date=2026-03-01&end_date=2026-03-09&group_by=customer";
const ACTIVITY: &str = "/user/daily/activity/aggregated?start_date=2026-03-01&end_date=2026-03-09";

/// Lists all objects in the database that belong to litespend.
const TRACES: &str = r#"
    SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'litespend')
         + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'litespend%')
         + (SELECT count(*) FROM pg_proc WHERE proname LIKE '%litespend%')"#;

/// Inserts rows on nine days, `rows` on each, with ids that begin with `name`, and the daily rows that match them.
pub(crate) async fn add(connection: &mut PgConnection, name: &str, rows: u32) {
    sqlx::raw_sql(AssertSqlSafe(format!(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime", "endTime",
               model, end_user, team_id, request_tags)
           SELECT '{name}-' || day || '-' || number, 'acompletion', 'key-' || number % 7, 0.25, number,
                  date '2026-03-01' + day + interval '10 hours', date '2026-03-01' + day + interval '11 hours',
                  'model-' || number % 3, 'customer-' || number % 11, 'team-' || number % 2, '["prod"]'
           FROM generate_series(0, 8) AS day, generate_series(1, {rows}) AS number;
           INSERT INTO "LiteLLM_DailyUserSpend" (id, user_id, date, api_key, model, spend, api_requests, updated_at)
           SELECT '{name}-' || day || '-' || number, 'user-' || number % 5, (date '2026-03-01' + day)::text,
                  'key-' || number % 7, 'model-{name}-' || number, 0.25, 1, now()
           FROM generate_series(0, 8) AS day, generate_series(1, {rows}) AS number"#
    )))
    .execute(connection)
    .await
    .unwrap();
}

/// The number of objects in the database that belong to litespend.
pub(crate) async fn traces(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar(TRACES).fetch_one(connection).await.unwrap()
}

fn rollups(url: &str, arguments: &[&str]) -> Run {
    run(program().arg("rollups").args(arguments).env("DATABASE_URL", url))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollups_come_and_go_on_litellms_database_while_it_writes() {
    let database = database().await;
    let url = database.url();
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AS_LITELLM).execute(&mut connection).await.unwrap();
    assert_eq!(traces(&mut connection).await, 0);
    add(&mut connection, "before", 200).await;
    for arguments in [["status"], ["verify"], ["rebuild"]] {
        let said = rollups(url, &arguments);
        assert_eq!(said.code, Some(2), "{}", said.stderr);
        assert!(said.stderr.contains("litespend rollups install"), "{}", said.stderr);
    }

    // The rollups are installed and backfilled while a writer continues.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (stop, url) = (Arc::clone(&stop), url.to_owned());
        async move {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let mut statements = 0;
            while !stop.load(Ordering::Relaxed) {
                add(&mut connection, &format!("while-{statements}"), 5).await;
                statements += 1;
            }
            statements
        }
    });
    let said = tokio::task::block_in_place(|| rollups(url, &["install", "--pause", "20"]));
    stop.store(true, Ordering::Relaxed);
    let statements: i32 = writer.await.unwrap();
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout.contains("2026-03-09 counted, 8 days left") && said.stdout.contains("done: 9 days"),
        "{}",
        said.stdout
    );
    assert!(statements > 0);
    // A second installation changes nothing.
    let said = rollups(url, &["install"]);
    assert!(said.code == Some(0) && said.stdout.contains("done: 0 days"), "{} {}", said.stdout, said.stderr);
    let said = rollups(url, &["status"]);
    assert!(said.stdout.contains("9 (2026-03-01 to 2026-03-09)"), "{}", said.stdout);
    assert_eq!(rollups(url, &["verify"]).code, Some(0));

    // A server's answers are the same with the rollups and without, also after it has packed and summed the days.
    let server = Server::on(url, &[]);
    let summed = eventually(Duration::from_secs(20), async || {
        let days: (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(DISTINCT day) FROM litespend.packed_days WHERE rollup = 'customer'),
                    (SELECT count(*) FROM litespend.activity_days)",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        days == (9, 9)
    });
    assert!(summed.await, "{}", server.log());
    let said = rollups(url, &["verify"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let with = (sums(&server, REPORT).await, sums(&server, ACTIVITY).await);
    let rows = f64::from(9 * (200 + 5 * statements));
    assert_eq!(with, (rows * 0.25, rows * 0.25));

    // `verify` names sums that differ from the log, and they are counted again.
    connection.execute("UPDATE litespend.day_customer SET spend = spend + 1 WHERE day = '2026-03-04'").await.unwrap();
    let said = rollups(url, &["verify", "--from", "2026-03-02", "--to", "2026-03-05"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("by customer differs from the log on 2026-03-04"), "{}", said.stderr);
    assert_eq!(rollups(url, &["rebuild", "--from", "2026-03-04", "--to", "2026-03-04"]).code, Some(0));
    assert_eq!(rollups(url, &["verify"]).code, Some(0));

    let said = rollups(url, &["remove"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(traces(&mut connection).await, 0);
    assert_eq!((sums(&server, REPORT).await, sums(&server, ACTIVITY).await), with);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollups_of_one_schema_are_not_touched_from_another() {
    let database = database().await;
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::raw_sql(
        r#"DROP SCHEMA litespend CASCADE; CREATE TABLE public._prisma_migrations (id text);
           CREATE SCHEMA tenant; CREATE TABLE tenant._prisma_migrations (id text);
           CREATE TABLE tenant."LiteLLM_SpendLogs" (LIKE public."LiteLLM_SpendLogs" INCLUDING ALL);
           CREATE TABLE tenant."LiteLLM_DailyUserSpend" (LIKE public."LiteLLM_DailyUserSpend" INCLUDING ALL)"#,
    )
    .execute(&mut connection)
    .await
    .unwrap();
    add(&mut connection, "public", 20).await;
    let separator = if database.url().contains('?') { '&' } else { '?' };
    let tenant = format!("{}{separator}schema=tenant", database.url());
    let said = rollups(&tenant, &["install"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(rollups(&tenant, &["verify"]).code, Some(0));
    let installed = traces(&mut connection).await;
    for arguments in [["install"], ["status"], ["verify"], ["rebuild"], ["remove"]] {
        let said = rollups(database.url(), &arguments);
        assert_eq!(said.code, Some(2), "{arguments:?}: {}", said.stderr);
        assert!(said.stderr.contains("the schema tenant"), "{arguments:?}: {}", said.stderr);
    }
    assert_eq!(traces(&mut connection).await, installed);
    assert_eq!(rollups(&tenant, &["remove"]).code, Some(0));
    assert_eq!(rollups(database.url(), &["install"]).code, Some(0));
    assert_eq!(rollups(database.url(), &["verify"]).code, Some(0));
}

/// The sum of all spend that an answer lists.
pub(crate) async fn sums(server: &Server, path: &str) -> f64 {
    let answer = server.get(path).await;
    assert_eq!(answer.status(), 200, "{path}");
    let answer: serde_json::Value = answer.json().await.unwrap();
    if let Some(total) = answer.pointer("/metadata/total_spend") {
        return total.as_f64().unwrap();
    }
    let days = answer.as_array().unwrap().iter();
    days.flat_map(|day| day["customers"].as_array().unwrap())
        .map(|customer| customer["total_spend"].as_f64().unwrap())
        .sum()
}
