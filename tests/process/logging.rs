//! The log: one line per request, and no secrets at any level.

use std::time::Duration;

use litespend::identity::hash_key;
use litespend::route_table;
use serde_json::Value;

use crate::support::{MASTER_KEY, Server, database, eventually, program};

const KEY: &str = "sk-secret-virtual-key-7391";
const PROMPT: &str = "the-secret-prompt-5127";

async fn add_key(url: &str) {
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(url).await.unwrap();
    sqlx::query(
        r#"WITH admin AS (INSERT INTO "LiteLLM_UserTable" (user_id, user_role) VALUES ('u', 'proxy_admin') RETURNING user_id)
           INSERT INTO "LiteLLM_VerificationToken" (token, user_id) SELECT $1, user_id FROM admin"#,
    )
    .bind(hash_key(KEY))
    .execute(&mut connection)
    .await
    .unwrap();
}

#[tokio::test]
async fn every_request_is_one_line_of_json_with_its_fields() {
    let database = database().await;
    add_key(database.url()).await;
    let server = Server::on(database.url(), &["--log-format", "json"]);
    let client = reqwest::Client::new();
    let ask = async |path: &str, key: &str, id: &str| {
        client.get(server.url(path)).header("x-api-key", key).header("x-request-id", id).send().await.unwrap()
    };
    assert_eq!(ask("/spend/tags?start_date=2026-01-01", KEY, "id-1").await.headers()["x-request-id"], "id-1");
    ask("/spend/logs", MASTER_KEY, "id-2").await;
    ask("/global/spend/reset", KEY, "id-3").await;
    ask("/spend/tags", "sk-unknown", "id-4").await;
    ask("/no/such/path", KEY, "id-5").await;
    client
        .post(server.url("/global/spend/reset"))
        .header("x-api-key", KEY)
        .header("x-request-id", "id-6")
        .send()
        .await
        .unwrap();
    assert!(eventually(Duration::from_secs(3), async || server.log().contains("id-6")).await);

    let log = server.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let line = |id: &str| {
        let found: Vec<_> = lines.iter().filter(|line| line["request_id"] == id).collect();
        assert_eq!(found.len(), 1, "{id}: {log}");
        found[0].clone()
    };
    let prefix = &hash_key(KEY)[..8];
    for (id, method, route, status, key) in [
        ("id-1", "GET", "/spend/tags", 200, prefix),
        ("id-2", "GET", "/spend/logs", 200, "master"),
        ("id-3", "GET", "/global/spend/reset", 405, "-"),
        ("id-4", "GET", "/spend/tags", 401, "-"),
        ("id-5", "GET", "-", 404, "-"),
        ("id-6", "POST", "/global/spend/reset", 401, "-"),
    ] {
        let line = line(id);
        assert_eq!(line["method"], method, "{line}");
        assert_eq!(line["route"], route, "{line}");
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["key"], key, "{line}");
        assert_eq!(line["client"], "127.0.0.1", "{line}");
        assert!(line["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{line}");
        assert_eq!((&line["level"], &line["message"]), (&"INFO".into(), &"request".into()), "{line}");
        assert!(line["timestamp"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn a_failure_has_its_cause_in_the_log_and_not_in_the_answer() {
    let database = database().await;
    let server = Server::on(database.url(), &[]);
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(database.url()).await.unwrap();
    sqlx::raw_sql(r#"ALTER TABLE "LiteLLM_SpendLogs" RENAME TO elsewhere; DROP SCHEMA litespend CASCADE"#)
        .execute(&mut connection)
        .await
        .unwrap();
    let answer = server.get("/spend/tags").await;
    assert_eq!(answer.status(), 500);
    let body = answer.text().await.unwrap();
    assert!(!body.contains("LiteLLM_SpendLogs") && !body.contains("relation"), "{body}");
    // The fold task also finds its tables missing, and may log that first.
    let is_ours = |line: &&str| line.contains("does not exist") && line.contains("status=500");
    let said = async || server.log().lines().any(|line| is_ours(&line));
    assert!(eventually(Duration::from_secs(3), said).await, "{}", server.log());
    let log = server.log();
    let lines: Vec<_> = log.lines().filter(is_ours).collect();
    assert_eq!(lines.len(), 1, "the cause stands there once: {log}");
    assert!(lines[0].contains("status=500") && lines[0].contains("/spend/tags"), "{}", lines[0]);
}

#[tokio::test]
async fn nothing_secret_is_logged_at_any_level() {
    let database = database().await;
    add_key(database.url()).await;
    let url = database.url().replacen("litespend@", "litespend:secret-database-password@", 1);
    let url = format!("{url}&sslpassword=secret-url-parameter&connection_limit=5");
    let mut command = program();
    command.env("DATABASE_URL", url).env("LITELLM_MASTER_KEY", MASTER_KEY).env("RUST_LOG", "trace");
    let server = Server::start(command, &[]);
    let client = reqwest::Client::new();
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let body = format!(
        r#"{{"model":"gpt-4o","messages":[{{"role":"user","content":"{PROMPT}"}}],"ip":"{PROMPT}",
            "completion_response":{{"choices":[{{"message":{{"content":"{PROMPT}"}}}}]}}}}"#
    );
    let mut answered = 0;
    for route in route_table::api() {
        let path = route.path.replace("{*rest}", "index.html");
        for key in [KEY, MASTER_KEY, "sk-secret-unknown-key", "secret-malformed-key"] {
            for header in [
                "authorization",
                "x-litellm-api-key",
                "api-key",
                "x-api-key",
                "x-goog-api-key",
                "ocp-apim-subscription-key",
            ] {
                let value = if header == "authorization" { format!("Bearer {key}") } else { key.to_owned() };
                let query = format!(
                    "{path}?api_key={KEY}&user_id={PROMPT}&start_date={PROMPT}&end_date=2026-01-01&tags={PROMPT}"
                );
                let method = if route.method == "POST" { reqwest::Method::POST } else { reqwest::Method::GET };
                let request = client
                    .request(method, server.url(&query))
                    .header(header, value)
                    .header("content-type", "application/json")
                    .header("cookie", format!("session={PROMPT}"))
                    .body(body.clone());
                assert!(request.send().await.unwrap().status().as_u16() < 500, "{query}");
                answered += 1;
            }
        }
        for path in [format!("{path}?start_date=2026-01-01&end_date=2026-01-02&api_key={KEY}&user_id={PROMPT}"), path] {
            let request = client.get(server.url(&path)).bearer_auth(KEY);
            assert!(request.send().await.unwrap().status().as_u16() < 500, "{path}");
        }
        // Malformed bodies; and HTTP/2, whose library writes log lines of its own.
        let broken = client.post(server.url(route.path)).bearer_auth(KEY).header("content-type", "application/json");
        broken.body(format!("{{\"{PROMPT}\": {PROMPT}")).send().await.unwrap();
        {
            let request = http2.post(server.url(route.path)).bearer_auth(KEY).header("api-key", MASTER_KEY);
            request.body(body.clone()).send().await.unwrap();
        }
    }
    assert!(answered > 400);
    let _ = server.exchange(format!("GET /{KEY} HTTP/9.9\r\nAuthorization: {KEY}\r\n\r\n{PROMPT}").as_bytes());
    assert!(eventually(Duration::from_secs(3), async || server.log().matches("request_id").count() > 400).await);
    let log = server.log();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log is not at its lowest level");
    for secret in [
        KEY,
        MASTER_KEY,
        PROMPT,
        "secret-unknown-key",
        "secret-malformed-key",
        "secret-database-password",
        "secret-url-parameter",
    ] {
        let found = log.lines().find(|line| line.contains(secret));
        assert_eq!(found, None, "{secret}");
    }
    assert!(!log.contains(&hash_key(KEY)), "more of a hash than its first characters");
}
