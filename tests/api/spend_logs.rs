//! `/spend/logs`: the cap, streaming, the end of a summary, and clients that disconnect.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Method;
use http_body_util::BodyExt;
use litespend::http::router;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tower::ServiceExt;

use crate::support::{Answer, MASTER_KEY, TestApp, request, settings};

const TRUNCATED: &str = "x-litellm-spend-logs-truncated";

/// Adds rows, one per second from the start of a day, with `size` bytes in their messages.
async fn add_rows(app: &TestApp, count: i32, size: i32) {
    sqlx::query(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", "user", messages)
           SELECT 'row-' || to_char(n, 'FM000000'), 'acompletion', 'key', 0.25,
                  timestamp '2026-02-01' + n * interval '1 second', timestamp '2026-02-01' + n * interval '1 second',
                  CASE WHEN n % 2 = 0 THEN 'even' ELSE 'odd' END, jsonb_build_object('text', repeat('x', $2))
           FROM generate_series((SELECT count(*) FROM "LiteLLM_SpendLogs"),
                                (SELECT count(*) FROM "LiteLLM_SpendLogs") + $1 - 1) AS n"#,
    )
    .bind(count)
    .bind(size)
    .execute(&app.pool)
    .await
    .unwrap();
}

fn ids(answer: &Answer) -> Vec<String> {
    answer.json().as_array().unwrap().iter().map(|row| row["request_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_answer_holds_the_ten_thousand_newest_rows_and_says_so() {
    let app = TestApp::new().await;
    let all = "/spend/logs?start_date=2026-02-01&end_date=2026-02-02&summarize=false";
    add_rows(&app, 9_999, 1).await;
    for path in ["/spend/logs", all] {
        let answer = app.get(path, MASTER_KEY).await;
        assert_eq!(ids(&answer).len(), 9_999, "{path}");
        assert!(!answer.headers.contains_key(TRUNCATED), "{path}");
    }
    // The reference reports `truncated` as soon as the cap is reached, because it does not look further.
    add_rows(&app, 1, 1).await;
    let answer = app.get("/spend/logs", MASTER_KEY).await;
    assert_eq!(ids(&answer).len(), 10_000);
    assert_eq!(answer.headers[TRUNCATED], "true");
    add_rows(&app, 500, 1).await;
    for path in ["/spend/logs", all] {
        let answer = app.get(path, MASTER_KEY).await;
        let found = ids(&answer);
        assert_eq!(found.len(), 10_000, "{path}");
        assert_eq!(answer.headers[TRUNCATED], "true", "{path}");
        assert_eq!((found[0].as_str(), found[9_999].as_str()), ("row-010499", "row-000500"), "{path}");
        assert!(found.windows(2).all(|pair| pair[0] > pair[1]), "{path}");
    }
    // If a filter leaves fewer rows than the cap, the answer contains them all.
    let answer = app.get("/spend/logs?user_id=even", MASTER_KEY).await;
    assert_eq!(ids(&answer).len(), 5_250);
    assert!(!answer.headers.contains_key(TRUNCATED));
    let answer = app.get("/spend/logs?request_id=row-000007", MASTER_KEY).await;
    assert_eq!(ids(&answer), ["row-000007"]);
    assert!(!answer.headers.contains_key(TRUNCATED));
}

#[tokio::test]
async fn a_summary_stops_at_the_midnight_before_its_end_day_unless_told_otherwise() {
    for inclusive in [false, true] {
        let mut settings = settings();
        settings.inclusive_end_date = inclusive;
        let app = TestApp::with(settings).await;
        app.execute(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, "user")
               SELECT 'row-' || at, 'acompletion', 'key', 0.25, at::timestamp, at::timestamp, 'm', 'u' FROM unnest(ARRAY[
                   '2026-02-01 00:00:00', '2026-02-01 12:00:00', '2026-02-01 23:59:59.999',
                   '2026-02-02 00:00:00', '2026-02-02 00:00:00.000', '2026-02-02 23:59:59.999',
                   '2026-02-03 00:00:00.001', '2026-02-04 00:00:00']) WITH ORDINALITY AS times(at, n)
               ON CONFLICT DO NOTHING"#,
        )
        .await;
        let spend = |answer: Value| -> Vec<f64> {
            answer.as_array().unwrap().iter().map(|day| day["spend"].as_f64().unwrap()).collect()
        };
        let one = app.get("/spend/logs?start_date=2026-02-01&end_date=2026-02-01", MASTER_KEY).await.json();
        let all = app.get("/spend/logs?start_date=2026-02-01&end_date=2026-02-03", MASTER_KEY).await.json();
        assert_eq!(all.as_array().unwrap().len(), 3, "{all}");
        assert_eq!(all[2]["startTime"], "2026-02-03");
        if inclusive {
            assert_eq!(spend(one), [0.75]);
            assert_eq!(spend(all.clone()), [0.75, 0.75, 0.25]);
        } else {
            // The first instant of the end day counts, but the rest of the day does not.
            assert_eq!(spend(one), [0.25]);
            assert_eq!(spend(all.clone()), [0.75, 0.75, 0.0]);
        }
        let rows = app.get("/spend/logs?start_date=2026-02-01&end_date=2026-02-02&summarize=false", MASTER_KEY).await;
        // With either setting, lists of rows end where the reference's end.
        assert_eq!(ids(&rows).len(), 5);
    }
}

/// The number of other sessions in the database that run a query which mentions the spend log.
async fn running(app: &TestApp) -> i64 {
    sqlx::query_scalar(
        r#"SELECT count(*) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
             AND query LIKE '%LiteLLM_SpendLogs%'"#,
    )
    .fetch_one(&app.pool)
    .await
    .unwrap()
}

async fn becomes(app: &TestApp, expected: i64, limit: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < limit {
        if running(app).await == expected {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_ends_its_query_and_the_pool_recovers() {
    let app = TestApp::new().await;
    add_rows(&app, 2_000, 20_000).await;
    // More clients than the pool has connections, each of which reads a little.
    for _ in 0..8 {
        let mut asked = request(Method::GET, "/spend/logs", MASTER_KEY).body(Body::empty()).unwrap();
        asked.extensions_mut().insert(ConnectInfo("127.0.0.1:1".parse::<std::net::SocketAddr>().unwrap()));
        let mut response = router::build(app.state.clone()).oneshot(asked).await.unwrap();
        assert_eq!(response.status(), 200);
        response.body_mut().frame().await.unwrap().unwrap();
        drop(response);
    }
    assert!(becomes(&app, 0, Duration::from_secs(2)).await, "queries of clients that left still run");
    let answer = app.get("/spend/logs", MASTER_KEY).await;
    assert_eq!(ids(&answer).len(), 2_000);
}

#[tokio::test]
async fn a_request_given_up_before_its_answer_ends_its_query_whatever_the_route() {
    let app = TestApp::seeded().await;
    let other = app.another().await;
    let mut lock = other.pool.begin().await.unwrap();
    sqlx::raw_sql(r#"LOCK TABLE "LiteLLM_SpendLogs", litespend.deltas"#).execute(&mut *lock).await.unwrap();
    let dates = "start_date=2026-02-01&end_date=2026-02-02";
    for path in ["/spend/logs", "/spend/tags", "/global/spend/tags", "/global/spend/report"] {
        let path = format!("{path}?{dates}");
        let waiting = app.get(&path, MASTER_KEY);
        assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err(), "{path}");
        assert!(becomes(&other, 0, Duration::from_secs(2)).await, "{path}: the query still runs");
    }
    lock.rollback().await.unwrap();
    for path in ["/spend/logs", "/spend/tags", "/global/spend/tags", "/global/spend/report"] {
        assert_eq!(app.get(&format!("{path}?{dates}"), MASTER_KEY).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn times_numbers_and_nulls_are_written_as_the_reference_writes_them() {
    let app = TestApp::new().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, "startTime", "endTime", "completionStartTime",
                                            metadata, request_tags, messages, response, team_id)
           VALUES ('a', 'x', 1, '2026-03-01 18:30:00.5', '2026-03-01 18:30:01', NULL, NULL, '["a", null]', '"text"', '5', NULL)"#,
    )
    .await;
    let row = &app.get("/spend/logs", MASTER_KEY).await.json()[0];
    for (name, expected) in [
        ("startTime", json!("2026-03-01T18:30:00.500000Z")),
        ("endTime", json!("2026-03-01T18:30:01Z")),
        ("completionStartTime", json!(null)),
        ("metadata", json!(null)),
        ("request_tags", json!(["a", null])),
        ("messages", json!("text")),
        ("response", json!(5)),
        ("spend", json!(1.0)),
        ("team_id", json!(null)),
        ("api_key", json!("")),
        ("user", json!("")),
    ] {
        assert_eq!(row[name], expected, "{name}");
    }
}

#[tokio::test]
async fn values_without_a_json_number_are_null() {
    let app = TestApp::new().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, "startTime", "endTime", request_tags)
           VALUES ('a', 'x', 'NaN', '2026-03-01', '2026-03-01', '["t"]'), ('b', 'x', 'Infinity', '2026-03-01', '2026-03-01', '["t"]')"#,
    )
    .await;
    let dates = "start_date=2026-03-01&end_date=2026-03-02";
    let rows = app.get("/spend/logs", MASTER_KEY).await.json();
    assert_eq!((&rows[0]["spend"], &rows[1]["spend"]), (&json!(null), &json!(null)));
    for path in ["/spend/logs", "/spend/tags", "/global/spend/tags", "/global/spend/report"] {
        let answer = app.get(&format!("{path}?{dates}"), MASTER_KEY).await;
        assert_eq!(answer.status, 200, "{path}");
        answer.json();
    }
    let grouped = app.get(&format!("/global/spend/report?{dates}&group_by=api_key"), MASTER_KEY).await;
    assert_eq!(grouped.json()[0]["total_cost"], json!(null));
}

/// Values are bound, never inserted into the text of a statement, whatever they contain.
#[tokio::test]
async fn a_filter_is_a_value_whatever_stands_in_it() {
    let app = TestApp::new().await;
    add_rows(&app, 1, 1).await;
    let name = "x'; DROP TABLE \"LiteLLM_SpendLogs\"; --";
    let statement = format!(r#"UPDATE "LiteLLM_SpendLogs" SET "user" = '{}'"#, name.replace('\'', "''"));
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();
    let query: String = form_urlencoded::Serializer::new(String::new()).append_pair("user_id", name).finish();
    assert_eq!(ids(&app.get(&format!("/spend/logs?{query}"), MASTER_KEY).await).len(), 1);
}
