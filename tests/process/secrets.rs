//! Canaries: a key, passwords and a prompt are sent through every route and every kind of failure. None of them may
//! appear in the log, the metrics, the body of an error or a header, at the default log level or the most verbose one.

use std::time::Duration;

use litespend::identity::hash_key;
use litespend::route_table;
use litespend::store::embedded_roles::local_postgres_options;
use nix::sys::signal::Signal;
use private_postgres::{Durability, LocalPostgres, LocalPostgresOptions};
use reqwest::Method;
use sqlx::{Connection, PgConnection};

use crate::support::{Directory, Server, eventually, program, run};

const MASTER: &str = "sk-canary-master-key-5501";
const KEY: &str = "sk-canary-virtual-key-7391";
const PROMPT: &str = "canary-prompt-5127";
const UI_PASSWORD: &str = "canary-ui-password-8842";
const DATABASE_PASSWORD: &str = "canary-database-password-6613";
const URL_PARAMETER: &str = "canary-url-parameter-2290";
const UPSTREAM_PASSWORD: &str = "canary-upstream-password-3377";
const UNKNOWN_KEY: &str = "sk-canary-unknown-key-9120";
const MALFORMED_KEY: &str = "canary-malformed-key-4411";

const CANARIES: [&str; 9] =
    [MASTER, KEY, PROMPT, UI_PASSWORD, DATABASE_PASSWORD, URL_PARAMETER, UPSTREAM_PASSWORD, UNKNOWN_KEY, MALFORMED_KEY];

/// Fails if a text contains a canary, its distinctive part, or the full hash of a key.
fn assert_clean(text: &str, place: &str) {
    for canary in CANARIES {
        let part = canary.trim_start_matches("sk-");
        let found = text.lines().find(|line| line.contains(part));
        assert_eq!(found, None, "{canary} in {place}");
    }
    assert!(!text.contains(&hash_key(MASTER)), "the master key's hash in {place}");
}

struct Prober {
    server: Server,
    client: reqwest::Client,
    statuses: std::collections::BTreeMap<u16, u32>,
}

impl Prober {
    async fn send(&mut self, method: Method, path: &str, key: &str, body: Option<String>) -> u16 {
        let mut request = self
            .client
            .request(method.clone(), self.server.url(path))
            .header("x-litellm-api-key", key)
            .header("cookie", format!("token={PROMPT}"));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let answer = request.send().await.unwrap();
        let (status, place) = (answer.status(), format!("{} for {method} {path}", answer.status()));
        for (name, value) in answer.headers() {
            assert_clean(&String::from_utf8_lossy(value.as_bytes()), &format!("the header {name} of {place}"));
        }
        let body = answer.text().await.unwrap();
        if status.as_u16() >= 400 || path.starts_with("/metrics") || path.starts_with("/health") {
            assert_clean(&body, &format!("the body of {place}"));
        }
        *self.statuses.entry(status.as_u16()).or_default() += 1;
        status.as_u16()
    }

    /// Sends requests to every route with every kind of key, with good and bad queries and bodies.
    async fn every_route(&mut self, keys: &[&str]) {
        for route in route_table::api() {
            let path = route.path.replace("{*rest}", "index.html").replace("{request_id}", "call");
            let query = format!(
                "{path}?start_date=2026-02-01&end_date=2026-02-03&api_key={KEY}&key={KEY}&limit=1&summarize=false&search={PROMPT}"
            );
            let bad_query =
                format!("{path}?start_date={PROMPT}&end_date={KEY}&cursor={PROMPT}&page={KEY}&limit={PROMPT}");
            for key in keys {
                if route.method == "POST" {
                    for body in bodies() {
                        self.send(Method::POST, &path, key, Some(body)).await;
                    }
                } else {
                    self.send(Method::GET, &query, key, None).await;
                    self.send(Method::GET, &bad_query, key, None).await;
                }
            }
            self.send(Method::DELETE, &query, KEY, Some(PROMPT.into())).await;
        }
        self.send(Method::GET, &format!("/no/such/{PROMPT}?key={KEY}"), KEY, None).await;
        // With an upstream, other wrong methods are forwarded.
        self.send(Method::TRACE, &format!("/no/such/{PROMPT}?key={KEY}"), KEY, None).await;
        self.send(
            Method::POST,
            &format!("/v1/{KEY}/chat/completions"),
            KEY,
            Some(format!(r#"{{"prompt":"{PROMPT}"}}"#)),
        )
        .await;
    }
}

/// Bodies that contain a prompt and a key: valid ones, invalid ones of every kind, and a body that is too large.
fn bodies() -> Vec<String> {
    let whole = format!(
        r#"{{"model":"gpt-4o","messages":[{{"role":"user","content":"{PROMPT}"}}],"ip":"{PROMPT}","key":"{UNKNOWN_KEY}",
            "keys":["{UNKNOWN_KEY}"],"user_role":"{PROMPT}","duration":"{PROMPT}","username":"{PROMPT}","password":"{KEY}",
            "records":[{{"model":"{PROMPT}","api_key":"{UNKNOWN_KEY}","metadata":{{"prompt":"{PROMPT}"}},"cost":"{PROMPT}"}}]}}"#
    );
    vec![
        whole.replacen(PROMPT, "\\u0000", 1),
        whole.chars().take(whole.len() - 3).collect(),
        format!("{PROMPT} {KEY}"),
        format!(r#"{{"model":["{PROMPT}"],"ip":{{"{KEY}":"{PROMPT}"}},"records":"{KEY}","{PROMPT}":1}}"#),
        format!(r#"{{"records":[{{"{PROMPT}":"{KEY}"}}],"completion_response":{{"usage":"{PROMPT}"}}}}"#),
        whole,
    ]
}

async fn prepare(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query(
        r#"WITH admin AS (INSERT INTO "LiteLLM_UserTable" (user_id, user_role) VALUES ('u', 'proxy_admin') RETURNING user_id)
           INSERT INTO "LiteLLM_VerificationToken" (token, user_id) SELECT $1, user_id FROM admin"#,
    )
    .bind(hash_key(KEY))
    .execute(&mut connection)
    .await
    .unwrap();
    // This makes a next page exist, whose link repeats the query.
    sqlx::query(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime")
           SELECT n::text, 'acompletion', $1, 1, timestamp '2026-02-02', timestamp '2026-02-02' FROM generate_series(1, 3) AS n"#,
    )
    .bind(hash_key(KEY))
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
}

async fn probe(level: Option<&str>) {
    let home = Directory::new();
    let options = LocalPostgresOptions {
        home: Some(home.path().join("database")),
        durability: Durability::Throwaway,
        ..local_postgres_options()
    };
    let database = LocalPostgres::start(options).unwrap();
    let url = database.url().replacen("litespend@", &format!("litespend:{DATABASE_PASSWORD}@"), 1);
    let separator = if url.contains('?') { '&' } else { '?' };
    let mut command = program();
    command
        .env("DATABASE_URL", format!("{url}{separator}sslpassword={URL_PARAMETER}"))
        .env("LITELLM_MASTER_KEY", MASTER)
        .env("UI_PASSWORD", UI_PASSWORD)
        // No server listens on this port.
        .env("LITELLM_UPSTREAM_URL", "http://127.0.0.1:1/prefix");
    if let Some(level) = level {
        command.env("RUST_LOG", level);
    }
    let server = Server::start(command, &["--database-wait", "1", "--request-timeout", "2"]);
    assert_clean(&server.block, "what it prints");
    prepare(database.url()).await;
    let address = server.address;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let mut prober = Prober { server, client, statuses: std::collections::BTreeMap::new() };
    prober
        .every_route(&[KEY, MASTER, UNKNOWN_KEY, MALFORMED_KEY, UI_PASSWORD, DATABASE_PASSWORD, UPSTREAM_PASSWORD])
        .await;
    let large = format!(r#"{{"ip":"{PROMPT}","{}":"{KEY}"}}"#, "x".repeat(20 * 1024 * 1024));
    for path in ["/add/allowed_ip", "/spend/calculate", "/spend/usage", "/key/generate"] {
        prober.send(Method::POST, path, KEY, Some(large.clone())).await;
    }
    // A body that never arrives, and input that is not an HTTP request.
    let head =
        format!("POST /spend/calculate?key={KEY} HTTP/1.1\r\nHost: x\r\nApi-Key: {KEY}\r\nConnection: close\r\n");
    let late = prober.server.exchange(format!("{head}Content-Length: 100\r\n\r\n{{\"a\":\"{PROMPT}").as_bytes());
    assert!(late.starts_with("HTTP/1.1 504") || late.starts_with("HTTP/1.1 408"), "{late}");
    for broken in [
        late,
        prober.server.exchange(format!("GET /{KEY} HTTP/9.9\r\nAuthorization: {KEY}\r\n\r\n{PROMPT}").as_bytes()),
        prober
            .server
            .exchange(format!("GET /spend/tags?{KEY} HTTP/1.1\r\nApi-Key {KEY}\r\n{PROMPT}\r\n\r\n").as_bytes()),
    ] {
        assert_clean(&broken, "the answer to a broken request");
    }
    // First the tables are missing, then the whole database.
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::raw_sql(r#"ALTER TABLE "LiteLLM_SpendLogs" RENAME TO elsewhere"#).execute(&mut connection).await.unwrap();
    prober.every_route(&[KEY]).await;
    connection.close().await.unwrap();
    database.pause().unwrap();
    prober.every_route(&[UNKNOWN_KEY, KEY]).await;
    database.resume().unwrap();

    let statuses = prober.statuses.clone();
    for status in [200, 400, 401, 404, 405, 413, 422, 500, 502, 503] {
        assert!(statuses.contains_key(&status), "no {status} among {statuses:?}");
    }
    let probed: u32 = statuses.values().sum();
    let mut server = prober.server;
    assert_eq!(address, server.address);
    let complete = async || server.log().matches("request_id").count() as u32 >= probed;
    assert!(eventually(Duration::from_secs(5), complete).await, "not all requests are in the log");
    server.signal(Signal::SIGTERM);
    server.exit(Duration::from_secs(10));
    let log = server.log();
    assert_eq!(log.contains("DEBUG"), level.is_some());
    assert_clean(&log, "the log");
    assert!(!log.contains(&hash_key(KEY)), "more of a hash than its first characters");
    database.stop().unwrap();
}

#[tokio::test]
async fn no_secret_leaves_by_the_log_the_metrics_or_an_error() {
    probe(None).await;
}

#[tokio::test]
async fn no_secret_leaves_at_the_lowest_level_of_the_log() {
    probe(Some("trace")).await;
}

/// Runs a command, which fails and says no secret.
fn expect_clean_failure(arguments: &[&str], variables: &[(&str, &str)]) {
    let said = run(program().args(arguments).env("DATABASE_WAIT", "1").envs(variables.iter().copied()));
    assert_ne!(said.code, Some(0), "{arguments:?} with {variables:?}");
    assert_clean(&format!("{}{}", said.stdout, said.stderr), &format!("{arguments:?} with {variables:?}"));
}

#[test]
fn no_secret_is_in_what_a_command_says_when_it_fails() {
    let unreachable = format!("postgresql://u:{DATABASE_PASSWORD}@127.0.0.1:1/d?sslpassword={URL_PARAMETER}");
    let wrong = [
        format!("postgresql://u:{DATABASE_PASSWORD}@[bad/d"),
        format!("postgresql://u:{DATABASE_PASSWORD}@host:port/d"),
        format!("postgresql://u:{DATABASE_PASSWORD}@127.0.0.1:1/d?sslmode={URL_PARAMETER}"),
        format!("mysql://u:{DATABASE_PASSWORD}@127.0.0.1/d"),
        format!("{DATABASE_PASSWORD} and nothing else"),
    ];
    let commands: [&[&str]; 5] =
        [&["serve", "--port", "0"], &["key", "list"], &["user", "list"], &["import", "-"], &["rollups", "status"]];
    let of_url = |arguments: &[&str], url: &str| {
        let own = [("DATABASE_URL", url), ("LITELLM_MASTER_KEY", MASTER), ("UI_PASSWORD", UI_PASSWORD)];
        expect_clean_failure(arguments, &own);
    };
    let of_variable = |name: &str, value: &str| {
        let own = [("DATABASE_URL", "postgresql://u@127.0.0.1:1/d"), (name, value)];
        expect_clean_failure(&["serve", "--port", "0"], &own);
    };
    std::thread::scope(|scope| {
        // If no server listens, these wait half a minute for the database to come up, while the others fail at once.
        scope.spawn(|| of_url(&["key", "list"], &unreachable));
        scope.spawn(|| of_variable("LITELLM_MASTER_KEY", MALFORMED_KEY));
        for url in &wrong {
            for arguments in commands {
                of_url(arguments, url);
            }
        }
        for (name, value) in [
            ("LITELLM_UPSTREAM_URL", format!("ftp://u:{UPSTREAM_PASSWORD}@127.0.0.1")),
            ("LITELLM_UPSTREAM_URL", format!("http://u:{UPSTREAM_PASSWORD}@127.0.0.1:port")),
            ("LITELLM_UPSTREAM_URL", format!("http://u:{UPSTREAM_PASSWORD}@127.0.0.1/a?b={URL_PARAMETER}")),
            ("DATABASE_URL_READ_REPLICA", format!("postgresql://u:{DATABASE_PASSWORD}@[bad/d")),
        ] {
            of_variable(name, &value);
        }
    });
}
