//! `/spend/logs` beyond 10,000 rows, as pages, lines and CSV; and the report's groupings that LiteLLM does not have.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};

use crate::support::{Answer, MASTER_KEY, TestApp, request};

/// Adds rows, three per second, with quotes, commas and line breaks in their strings.
async fn add_rows(app: &TestApp, count: i32) {
    sqlx::query(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime", "endTime",
                                            "user", team_id, model, request_tags, metadata)
           SELECT 'row-' || to_char(n, 'FM0000000'), 'acompletion', 'key', 0.001 * n, n,
                  timestamp '2026-02-01' + n / 3 * interval '1 second', timestamp '2026-02-02 10:00:00.25',
                  CASE WHEN n % 2 = 0 THEN 'even' ELSE 'odd, "quoted"' || chr(10) || 'twice' END, NULLIF('team-' || n % 3, 'team-2'),
                  'gpt-4o', '["a", "b,c"]', jsonb_build_object('text', 'x"y' || chr(10), 'n', n)
           FROM generate_series(0, $1 - 1) AS n"#,
    )
    .bind(count)
    .execute(&app.pool)
    .await
    .unwrap();
}

fn ids(answer: &Answer) -> Vec<String> {
    answer.json().as_array().unwrap().iter().map(|row| row["request_id"].as_str().unwrap().to_owned()).collect()
}

/// The path of the next page, if there is one.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.headers.get("link")?.to_str().unwrap();
    let (path, rest) = link.strip_prefix('<').unwrap().split_once('>').unwrap();
    assert_eq!(rest, "; rel=\"next\"");
    Some(path.to_owned())
}

/// The ids of all rows, read page by page, and the number of pages.
async fn walk(app: &TestApp, path: &str) -> (Vec<String>, usize) {
    let (mut path, mut found, mut pages) = (Some(path.to_owned()), Vec::new(), 0);
    while let Some(page) = path {
        let answer = app.get(&page, MASTER_KEY).await;
        assert_eq!(answer.status, 200, "{page}: {}", answer.text);
        found.extend(ids(&answer));
        pages += 1;
        path = next(&answer);
    }
    (found, pages)
}

async fn get_as(app: &TestApp, path: &str, accept: &str) -> Answer {
    app.send(request(Method::GET, path, MASTER_KEY).header("accept", accept).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn pages_hold_every_row_once_whatever_their_size() {
    let app = TestApp::new().await;
    add_rows(&app, 11_000).await;
    let all: Vec<String> = (0..11_000).rev().map(|n| format!("row-{n:07}")).collect();
    for (limit, pages) in [(1_000_000, 1), (11_000, 1), (10_999, 2), (5_000, 3), (3_001, 4)] {
        let (found, walked) = walk(&app, &format!("/spend/logs?limit={limit}")).await;
        assert_eq!(found.len(), all.len(), "{limit}");
        assert!(found == all, "{limit}");
        assert_eq!(walked, pages, "{limit}");
    }
    // Page ends may fall between rows of the same instant. The link to the next page keeps filters and dates.
    let path = "/spend/logs?user_id=even&start_date=2026-02-01&end_date=2026-02-02&summarize=false&limit=777";
    let (found, pages) = walk(&app, path).await;
    assert_eq!((found.len(), pages), (5_500, 8));
    assert!(found.windows(2).all(|pair| pair[0] > pair[1]));
    // As in the reference: no link, the truncation header, and no more rows than its cap.
    let answer = app.get("/spend/logs", MASTER_KEY).await;
    assert_eq!((ids(&answer).len(), next(&answer)), (10_000, None));
    assert_eq!(answer.headers["x-litellm-spend-logs-truncated"], "true");
}

#[tokio::test]
async fn rows_that_come_and_go_between_pages_move_nothing() {
    let app = TestApp::new().await;
    add_rows(&app, 300).await;
    let first = app.get("/spend/logs?limit=100", MASTER_KEY).await;
    assert_eq!(ids(&first).last().unwrap(), "row-0000200");
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime")
           SELECT 'new-' || n, 'acompletion', '2026-02-03', '2026-02-03' FROM generate_series(1, 50) AS n;
           DELETE FROM "LiteLLM_SpendLogs" WHERE request_id IN ('row-0000200', 'row-0000250', 'row-0000150')"#,
    )
    .await;
    let (rest, _) = walk(&app, &next(&first).unwrap()).await;
    let expected: Vec<String> = (0..200).rev().filter(|n| *n != 150).map(|n| format!("row-{n:07}")).collect();
    assert_eq!(rest, expected);
    // The last page has no next page. A cursor without a limit gives the reference's number of rows.
    let answer = app.get(&next(&first).unwrap().replace("limit=100&", ""), MASTER_KEY).await;
    assert_eq!((ids(&answer).len(), next(&answer)), (199, None));
}

#[tokio::test]
async fn bad_pages_are_refused() {
    let app = TestApp::new().await;
    for (query, status, place) in [
        ("limit=0", 422, "limit"),
        ("limit=1000001", 422, "limit"),
        ("limit=ten", 422, "limit"),
        ("limit=-1", 422, "limit"),
        ("cursor=", 422, "cursor"),
        ("cursor=abc", 422, "cursor"),
        ("cursor=%00", 422, "cursor"),
        ("cursor=OTIyMzM3MjAzNjg1NDc3NTgwNy54", 422, "cursor"),
        ("limit=5&start_date=2026-02-01&end_date=2026-02-02", 400, "summarize=false"),
    ] {
        let answer = app.get(&format!("/spend/logs?{query}"), MASTER_KEY).await;
        assert_eq!(answer.status, status, "{query}: {}", answer.text);
        assert!(answer.text.contains(place), "{query}: {}", answer.text);
    }
    assert_eq!(app.get("/spend/logs?limit=5", MASTER_KEY).await.text, "[]");
}

#[tokio::test]
async fn lines_and_csv_hold_the_same_rows() {
    let app = TestApp::new().await;
    add_rows(&app, 12_000).await;
    let path = "/spend/logs?limit=11000";
    let rows = app.get(path, MASTER_KEY).await;
    assert_eq!(rows.headers["content-type"], "application/json");
    let rows: Vec<Value> = serde_json::from_str(&rows.text).unwrap();

    let lines = get_as(&app, path, "application/x-ndjson").await;
    assert_eq!(lines.headers["content-type"], "application/x-ndjson");
    assert!(next(&lines).is_some());
    assert!(lines.headers.get_all("vary").iter().any(|value| value == "accept"));
    let parsed: Vec<Value> = lines.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(parsed == rows && lines.text.ends_with('\n'));

    let table = get_as(&app, path, "text/csv").await;
    assert_eq!(table.headers["content-type"], "text/csv; charset=utf-8");
    let mut reader = csv::Reader::from_reader(table.text.as_bytes());
    let names: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    assert_eq!(names, rows[0].as_object().unwrap().keys().cloned().collect::<Vec<_>>());
    let mut count = 0;
    for (record, row) in reader.records().zip(&rows) {
        for (text, name) in record.unwrap().iter().zip(&names) {
            let expected = match &row[name] {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                Value::Number(number) => {
                    assert_eq!(text.parse::<f64>().unwrap(), number.as_f64().unwrap(), "{name}");
                    continue;
                }
                other => {
                    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), *other, "{name}");
                    continue;
                }
            };
            assert_eq!(text, expected, "{name}");
        }
        count += 1;
    }
    assert_eq!(count, 11_000);

    // Without rows: an empty list in JSON, no line in JSON lines, only the header line in CSV.
    let none = "/spend/logs?user_id=nobody";
    assert_eq!(get_as(&app, none, "application/json").await.text, "[]");
    assert_eq!(get_as(&app, none, "application/x-ndjson").await.text, "");
    assert_eq!(get_as(&app, none, "text/csv").await.text.lines().count(), 1);
    // A summary is always JSON. A client that accepts only other formats gets 406; one that accepts any format gets the
    // summary.
    let summary = "/spend/logs?start_date=2026-02-01&end_date=2026-02-02";
    assert_eq!(get_as(&app, summary, "text/csv").await.status, 406);
    assert_eq!(get_as(&app, summary, "text/csv, */*;q=0.1").await.status, 200);
}

/// The cells of these columns of a CSV, by the rows' ids.
fn cells(answer: &Answer, columns: &[&str]) -> BTreeMap<String, Vec<String>> {
    let mut reader = csv::Reader::from_reader(answer.text.as_bytes());
    let names: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let place = |name: &str| names.iter().position(|found| found == name).unwrap();
    let row = |record: csv::StringRecord| {
        let id = record[place("request_id")].trim_start_matches('\'').to_owned();
        (id, columns.iter().map(|name| record[place(name)].to_owned()).collect())
    };
    reader.records().map(|record| row(record.unwrap())).collect()
}

#[tokio::test]
async fn csv_that_is_safe_holds_no_formula() {
    let app = TestApp::with(crate::support::accounts::with_dashboard()).await;
    let formulas = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "-", "=\"a\"\"b\",\n"];
    let harmless = ["", "gpt-4o", "a=1", " =1", "'=1", "1-1", "{=1}", "ü"];
    let texts: Vec<&str> = formulas.iter().chain(&harmless).copied().collect();
    for (n, text) in texts.iter().enumerate() {
        sqlx::query(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, request_duration_ms,
                   "startTime", "endTime", "user", model, team_id, end_user, session_id, metadata)
               VALUES ('row-' || $2, $1, $1, -0.5, -3, -1, '2026-02-01', '2026-02-01', $1, $1, $1, $1, $1, '-7')"#,
        )
        .bind(text)
        .bind(n.to_string())
        .execute(&app.pool)
        .await
        .unwrap();
    }
    let columns = ["call_type", "api_key", "user", "model", "team_id", "end_user", "session_id"];
    let numbers = ["spend", "total_tokens", "request_duration_ms"];
    let check = |answer: &Answer, safe: bool, who: &str| {
        assert_eq!(answer.status, 200, "{who}: {}", answer.text);
        assert_eq!(answer.headers["content-type"], "text/csv; charset=utf-8");
        let found = cells(answer, &columns);
        assert_eq!(found.len(), texts.len(), "{who}");
        for (n, text) in texts.iter().enumerate() {
            let expected = if safe && n < formulas.len() { format!("'{text}") } else { (*text).to_owned() };
            assert!(found[&format!("row-{n}")].iter().all(|cell| *cell == expected), "{who}: {text:?}: {found:?}");
        }
        for row in cells(answer, &numbers).values() {
            assert_eq!(row.iter().map(String::as_str).collect::<Vec<_>>(), ["-0.5", "-3", "-1"], "{who}");
        }
        assert_eq!(cells(answer, &["metadata"])["row-0"], [if safe { "'-7" } else { "-7" }], "{who}");
    };
    let path = "/spend/logs?limit=1000";
    let get = async |app: &TestApp, path: &str, key: &str| {
        app.send(request(Method::GET, path, key).header("accept", "text/csv").body(Body::empty()).unwrap()).await
    };
    check(&get(&app, path, MASTER_KEY).await, false, "by default");
    check(&get(&app, &format!("{path}&csv=plain"), MASTER_KEY).await, false, "plain");
    let safe = get(&app, &format!("{path}&csv=safe"), MASTER_KEY).await;
    check(&safe, true, "safe");
    assert!(safe.text.lines().all(|line| !line.starts_with(formulas[0])) && safe.text.starts_with("\"request_id\","));

    let session = crate::support::accounts::session(&app, "admin", MASTER_KEY).await;
    check(&get(&app, path, &session).await, true, "a session");
    check(&get(&app, &format!("{path}&csv=plain"), &session).await, false, "a session that says plain");
    let mut settings = crate::support::settings();
    settings.csv_safe = true;
    let set = app.beside(settings);
    check(&get(&set, path, MASTER_KEY).await, true, "the setting");
    check(&get(&set, &format!("{path}&csv=plain"), MASTER_KEY).await, false, "the setting, and plain");

    // The next page has the same form as the first. Other formats are not changed. Other values of `csv` are refused.
    let first = get(&app, "/spend/logs?limit=3&csv=safe", MASTER_KEY).await;
    assert!(next(&first).unwrap().contains("csv=safe"));
    let rows = app.get(&format!("{path}&csv=safe"), MASTER_KEY).await;
    assert!(rows.json().as_array().unwrap().iter().any(|row| row["user"] == "=1+1"));
    for word in ["", "Safe", "yes", "safe%20"] {
        let answer = get(&app, &format!("{path}&csv={word}"), MASTER_KEY).await;
        assert_eq!(answer.status, 422, "{word}: {}", answer.text);
        assert!(answer.text.contains("csv") && answer.text.contains("'safe' or 'plain'"), "{word}: {}", answer.text);
    }
}

/// The sums of a report's groups over all days. Also checks the groups' own sums.
fn sums(report: &Value, list: &str, name: &str) -> BTreeMap<(String, String), f64> {
    let mut sums = BTreeMap::new();
    for day in report.as_array().unwrap() {
        for group in day[list].as_array().unwrap() {
            let total: f64 =
                group["metadata"].as_array().unwrap().iter().map(|entry| entry["spend"].as_f64().unwrap()).sum();
            assert!((total - group["total_spend"].as_f64().unwrap()).abs() < 1e-9, "{group}");
            let place = (day["group_by_day"].as_str().unwrap()[..10].to_owned(), group[name].to_string());
            assert!(sums.insert(place, total).is_none(), "{day}");
        }
    }
    sums
}

#[tokio::test]
async fn the_report_groups_by_user_and_by_model_too() {
    let app = TestApp::seeded().await;
    let dates = "start_date=2026-01-01&end_date=2026-04-30";
    for (group_by, list, name, column) in
        [("user", "users", "user", r#""user""#), ("model_name", "models", "model", "model")]
    {
        for (filter, condition) in [("", "true"), ("&team_id=team-alpha", "team_id = 'team-alpha'")] {
            let answer =
                app.get(&format!("/global/spend/report?{dates}&group_by={group_by}{filter}"), MASTER_KEY).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let found = sums(&answer.json(), list, name);
            let statement = format!(
                r#"SELECT "startTime"::date::text, COALESCE(to_json({column})::text, 'null'), sum(spend)
                   FROM "LiteLLM_SpendLogs" WHERE "startTime" >= '2026-01-01' AND "startTime" < '2026-05-01' AND {condition}
                   GROUP BY 1, 2"#
            );
            let expected: Vec<(String, String, f64)> =
                sqlx::query_as(sqlx::AssertSqlSafe(statement)).fetch_all(&app.pool).await.unwrap();
            assert!(expected.len() > 2, "{group_by}{filter}");
            assert_eq!(found.len(), expected.len(), "{group_by}{filter}");
            for (day, member, spend) in expected {
                let place = (day, member);
                assert!((found[&place] - spend).abs() < 1e-9, "{place:?}: {} is not {spend}", found[&place]);
            }
        }
    }
    // A grouping that LiteLLM refuses is refused, unless the operator has enabled it.
    let by_model = format!("/global/spend/report?{dates}&group_by=model");
    assert_eq!(app.get(&by_model, MASTER_KEY).await.status, 422);
    let mut settings = crate::support::settings();
    settings.group_by_model = true;
    let allowed = app.beside(settings);
    let answer = allowed.get(&by_model, MASTER_KEY).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json(), allowed.get(&format!("{by_model}_name"), MASTER_KEY).await.json());
    let answer = app.get(&format!("/global/spend/report?{dates}&group_by=user&customer_id=cust-1"), MASTER_KEY).await;
    assert_eq!((answer.status.as_u16(), answer.text.contains("customer_id")), (400, true));
    let pair = format!("/global/spend/report?{dates}&group_by=user&team_id=team-alpha&customer_id=cust-1");
    assert!(app.get(&pair, MASTER_KEY).await.json()[0]["teams_customers"] != json!(null));
}
