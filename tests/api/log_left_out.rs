//! A row of the log whose stored JSON is extremely long as text does not make an answer that contains other rows fail.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Method;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use crate::support::{Answer, MASTER_KEY, TestApp, request};

const WINDOW: &str = "start_date=2026-02-01%2000:00:00&end_date=2026-02-28%2023:59:59";
const DAYS: &str = "start_date=2026-02-01&end_date=2026-02-28";

/// JSON of few stored bytes: half a gigabyte as text, and more than a gigabyte, which PostgreSQL cannot output. Its numbers
/// are JSON already, because PostgreSQL converts others by their text.
const MANY_DIGITS: &str = "SELECT jsonb_agg('1e308'::jsonb) FROM generate_series(1, 1800000)";
const LONG_DIGITS: &str = "SELECT jsonb_build_object('n', jsonb_agg('1e131071'::jsonb)) FROM generate_series(1, 9000)";

/// The same as [`MANY_DIGITS`], from the row that has it.
const MANY_DIGITS_AGAIN: &str = r#"SELECT request_tags FROM "LiteLLM_SpendLogs" WHERE request_id = 'c'"#;

/// JSON that is nested so deeply that PostgreSQL's functions fail on it.
const DEEP: &str = "SELECT (repeat('[', 12000) || repeat(']', 12000))::jsonb";

/// Adds a row with these JSON columns and ordinary values otherwise.
async fn add(app: &TestApp, id: &str, columns: &[(&str, &str)]) {
    let value = |name: &str, ordinary: &str| {
        let given = columns.iter().find(|(column, _)| *column == name).map(|(_, statement)| format!("({statement})"));
        given.unwrap_or_else(|| format!("'{ordinary}'::jsonb"))
    };
    let statement = format!(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", session_id, model,
               "user", metadata, request_tags, messages, response, proxy_server_request)
           VALUES ('{id}', 'acompletion', 'k', 0.25, '2026-02-10 10:00:00', '2026-02-10 10:00:01', 'one', 'm', 'u',
                   {}, {}, {}, {}, {})"#,
        value("metadata", r#"{"a": "whole"}"#),
        value("request_tags", r#"["prod"]"#),
        value("messages", r#"["hello"]"#),
        value("response", r#"{"ok": true}"#),
        value("proxy_server_request", "{}"),
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();
}

async fn poisoned() -> TestApp {
    let app = TestApp::new().await;
    add(&app, "a", &[]).await;
    add(&app, "b", &[("metadata", LONG_DIGITS)]).await;
    add(&app, "c", &[("request_tags", MANY_DIGITS)]).await;
    add(&app, "d", &[("messages", LONG_DIGITS), ("response", MANY_DIGITS_AGAIN)]).await;
    add(&app, "e", &[("metadata", DEEP), ("proxy_server_request", LONG_DIGITS)]).await;
    let long_alias = format!(
        "SELECT jsonb_build_object('user_api_key_alias', ({MANY_DIGITS_AGAIN}),
                                   'error_information', jsonb_build_object('error_message', 1))"
    );
    add(&app, "f", &[("metadata", &long_alias)]).await;
    add(&app, "z", &[]).await;
    app
}

/// Lists the columns that are null, by row.
fn nulls(rows: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for row in rows.as_array().unwrap() {
        for name in ["metadata", "request_tags", "messages", "response", "proxy_server_request"] {
            if row.get(name).is_some_and(Value::is_null) {
                found.push(format!("{}/{name}", row["request_id"].as_str().unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn whole(rows: &Value, id: &str) -> bool {
    let row = rows.as_array().unwrap().iter().find(|row| row["request_id"] == id).unwrap();
    row["metadata"]["a"] == "whole" && row["request_tags"][0] == "prod"
}

async fn ok(app: &TestApp, path: &str) -> Answer {
    let answer = app.get(path, MASTER_KEY).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer
}

#[tokio::test]
async fn a_row_that_cannot_be_written_fails_no_list() {
    let app = poisoned().await;
    let everywhere = ["b/metadata", "c/request_tags", "e/metadata", "f/metadata"];
    let mut in_rows = everywhere.to_vec();
    in_rows.extend(["d/messages", "d/response", "e/proxy_server_request"]);
    in_rows.sort_unstable();
    for path in
        ["/spend/logs", "/spend/logs?limit=7", "/spend/logs?start_date=2026-02-01&end_date=2026-02-28&summarize=false"]
    {
        let rows = ok(&app, path).await.json();
        assert_eq!(rows.as_array().unwrap().len(), 7, "{path}");
        assert!(whole(&rows, "a") && whole(&rows, "z"), "{path}");
        assert_eq!(nulls(&rows), in_rows, "{path}");
    }
    for path in [
        format!("/spend/logs/ui?{WINDOW}"),
        format!("/spend/logs/ui?{WINDOW}&sort_by=spend"),
        format!("/spend/logs/v2?{WINDOW}"),
        "/spend/logs/session/ui?session_id=one".to_owned(),
    ] {
        let answer = ok(&app, &path).await;
        let page = answer.json();
        assert_eq!(page["total"], 7, "{path}");
        assert!(whole(&page["data"], "a") && whole(&page["data"], "z"), "{path}");
        assert_eq!(nulls(&page["data"]), everywhere, "{path}");
        let named = answer.headers["x-litespend-left-out"].to_str().unwrap();
        let mut named: Vec<_> = named.split(", ").collect();
        named.sort_unstable();
        assert_eq!(named, everywhere, "{path}");
    }
    let sessions = ok(&app, &format!("/spend/logs/ui?{WINDOW}&group_by_session=true")).await;
    assert_eq!(sessions.json()["data"].as_array().unwrap().len(), 1);
    assert!(!ok(&app, "/spend/logs/ui?request_id=a").await.headers.contains_key("x-litespend-left-out"));
}

#[tokio::test]
async fn a_row_that_cannot_be_written_fails_no_lines_texts_filters_or_tags() {
    let app = poisoned().await;
    for (accept, lines) in [("application/x-ndjson", 7), ("text/csv", 8)] {
        let sent = request(Method::GET, "/spend/logs", MASTER_KEY).header("accept", accept).body(Body::empty());
        let answer = app.send(sent.unwrap()).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.text.lines().count(), lines, "{accept}");
        assert_eq!(answer.text.matches("whole").count(), 4, "{accept}");
    }
    let texts = ok(&app, "/spend/logs/ui/d").await;
    assert_eq!(texts.text, r#"{"messages":null,"response":null,"proxy_server_request":{}}"#);
    assert_eq!(texts.headers["x-litespend-left-out"], "d/messages, d/response");
    let texts = ok(&app, "/spend/logs/ui/b").await;
    assert_eq!(texts.text, r#"{"messages":["hello"],"response":{"ok": true},"proxy_server_request":{}}"#);
    for filter in ["key_alias=x", "key_alias=x_y", "error_message=1", "error_code=4", "used_client_oauth_token=true"] {
        let found = ok(&app, &format!("/spend/logs/ui?{WINDOW}&{filter}")).await.json();
        assert_eq!(found["total"], i32::from(filter == "error_message=1"), "{filter}");
    }
    for path in [
        "/spend/tags".to_owned(),
        format!("/spend/tags?{DAYS}"),
        format!("/global/spend/tags?{DAYS}"),
        format!("/global/spend/tags?{DAYS}&tags=prod"),
        "/global/spend/all_tag_names".to_owned(),
        format!("/spend/logs?{DAYS}"),
        format!("/global/activity?{DAYS}"),
        format!("/global/spend/report?{DAYS}&group_by=team"),
    ] {
        assert!(ok(&app, &path).await.text.len() < 2_000_000, "{path}");
    }
}

#[tokio::test]
async fn long_fields_are_left_out_of_lists_and_given_by_the_call_and_the_log() {
    let app = TestApp::new().await;
    let text = |bytes: usize| format!("SELECT jsonb_build_object('a', repeat('x', {bytes}))");
    // Values stored uncompressed and compressed, below and above the limits; and ordinary JSON of numbers that is long.
    add(&app, "short", &[("metadata", &text(1_000_000))]).await;
    add(
        &app,
        "long",
        &[("metadata", &text(1_100_000)), ("messages", &text(9_000_000)), ("response", &text(6_000_000))],
    )
    .await;
    add(&app, "numbers", &[("response", "SELECT jsonb_agg(n * 0.1234567) FROM generate_series(1, 100000) AS n")]).await;
    let page = ok(&app, &format!("/spend/logs/v2?{WINDOW}")).await;
    assert_eq!(nulls(&page.json()["data"]), ["long/metadata"]);
    let rows = ok(&app, "/spend/logs").await.json();
    assert_eq!(nulls(&rows), ["long/messages"]);
    let texts = ok(&app, "/spend/logs/ui/long").await.json();
    assert_eq!(texts["messages"]["a"].as_str().unwrap().len(), 9_000_000);
    assert_eq!(texts["response"]["a"].as_str().unwrap().len(), 6_000_000);
    let texts = ok(&app, "/spend/logs/ui/numbers").await.json();
    assert_eq!(texts["response"].as_array().unwrap().len(), 100_000);
}

#[tokio::test]
async fn a_page_is_bounded_as_a_whole() {
    let app = TestApp::new().await;
    sqlx::raw_sql(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", metadata, model)
           SELECT 'r' || n, 'x', '2026-02-10 10:00:00', '2026-02-10 10:00:01',
                  jsonb_build_object('a', repeat('x', 900000)), repeat('m', 100000) FROM generate_series(1, 60) AS n"#,
    )
    .execute(&app.pool)
    .await
    .unwrap();
    let answer = ok(&app, &format!("/spend/logs/v2?{WINDOW}&page_size=100")).await;
    assert!((15_000_000..18_000_000).contains(&answer.text.len()), "{}", answer.text.len());
    let page = answer.json();
    let given = page["data"].as_array().unwrap().iter().filter(|row| row["metadata"].is_object()).count();
    assert_eq!((page["data"].as_array().unwrap().len(), given), (60, 18));
    assert!(answer.headers["x-litespend-left-out"].to_str().unwrap().ends_with(", and 22 more"));
    assert_eq!(page["data"][0]["model"].as_str().unwrap().chars().count(), 1_001);
}

#[tokio::test]
async fn searches_are_of_a_thousand_characters_at_most() {
    let app = TestApp::new().await;
    let (most, more) = ("x".repeat(1_000), "x".repeat(60_000));
    for route in ["/spend/logs/ui", "/spend/logs/v2"] {
        for name in ["key_alias", "error_message", "session_id", "search"] {
            ok(&app, &format!("{route}?{WINDOW}&{name}={most}")).await;
            let answer = app.get(&format!("{route}?{WINDOW}&{name}={more}"), MASTER_KEY).await;
            assert_eq!(answer.status, 400, "{route} {name}");
            assert_eq!(answer.json()["error"]["param"], name);
        }
    }
}

#[tokio::test]
async fn the_worst_search_takes_hardly_longer_than_any() {
    let app = TestApp::new().await;
    add(
        &app,
        "a",
        &[(
            "metadata",
            "SELECT jsonb_build_object('error_information', jsonb_build_object('error_message', repeat('a', 4000000)))",
        )],
    )
    .await;
    let time = async |part: String| {
        let part: String = form_urlencoded::byte_serialize(part.as_bytes()).collect();
        let path = format!("/spend/logs/v2?{WINDOW}&error_message={part}");
        ok(&app, &path).await;
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let start = Instant::now();
            ok(&app, &path).await;
            best = best.min(start.elapsed());
        }
        best
    };
    let benign = time("zzz".to_owned()).await;
    for worst in [
        format!("{}b", "a".repeat(999)),
        format!("b{}", "a".repeat(999)),
        format!("{}b", "_".repeat(999)),
        format!("{}b", "a_".repeat(499)),
        format!("{}b", "a%".repeat(499)),
        format!("{}b", "%a_".repeat(333)),
    ] {
        let took = time(worst.clone()).await;
        println!("{:?} against {benign:?}: {}", took, &worst[..6]);
        assert!(took < Duration::from_secs(1), "{took:?} {worst}");
        assert!(took < benign * 20, "{took:?} against {benign:?} {worst}");
    }
}

#[tokio::test]
async fn searches_of_the_dashboards_lists_are_bounded_and_find_parts_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = crate::support::settings();
    settings.ui = Some(litespend::settings::UiSettings {
        directory: directory.path().to_owned(),
        username: "admin".into(),
        password: None,
    });
    let app = TestApp::with(settings).await;
    sqlx::raw_sql(
        r#"INSERT INTO "LiteLLM_TeamTable" (team_id, team_alias) VALUES ('t-1', 'Grün 100%'), ('t-2', 'Blau');
           INSERT INTO "LiteLLM_UserTable" (user_id, user_email) VALUES ('u_1', 'ANN@example.com'), ('u-2', NULL);
           INSERT INTO "LiteLLM_VerificationToken" (token, key_alias) VALUES ('h', 'Back\slash')"#,
    )
    .execute(&app.pool)
    .await
    .unwrap();
    for (path, total) in [
        ("/v2/team/list?search=gr%C3%BCN", 1),
        ("/v2/team/list?team_alias=0%25", 1),
        ("/v2/team/list?team_alias=%25", 1),
        ("/v2/team/list?search=T-", 2),
        ("/user/list?user_email=ann@", 1),
        ("/user/list?user_email=_", 0),
        ("/user/list?user_id=U_", 1),
        ("/key/list?key_alias=k%5CS", 1),
    ] {
        let answer = ok(&app, path).await.json();
        let found = answer.get("total").or(answer.get("total_count")).unwrap();
        assert_eq!(found, total, "{path}");
    }
    let (most, more) = ("x".repeat(1_000), "x".repeat(60_000));
    for path in [
        "/v2/team/list?search",
        "/v2/team/list?team_alias",
        "/user/list?user_email",
        "/user/list?user_id",
        "/key/list?key_alias",
    ] {
        ok(&app, &format!("{path}={most}")).await;
        assert_eq!(app.get(&format!("{path}={more}"), MASTER_KEY).await.status, 400, "{path}");
    }
}
