//! Whatever a client sends, the answer is not a server failure.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use litespend::route_table;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use serde_json::Value;

use crate::support::{MASTER_KEY, TestApp, randomness};

const CASES: u32 = 3_000;

const KEYS: [&str; 11] = [
    MASTER_KEY,
    MASTER_KEY,
    "sk-admin-key-0001",
    "sk-admin-key-0001",
    "sk-viewer-key-0001",
    "sk-int-key-0001",
    "sk-intview-key-01",
    "sk-norole-key-001",
    "sk-orphan-key-001",
    "sk-expired-key-01",
    "nonsense",
];

const PARAMETERS: [&str; 32] = [
    "start_date",
    "end_date",
    "api_key",
    "user_id",
    "request_id",
    "summarize",
    "tags",
    "group_by",
    "internal_user_id",
    "team_id",
    "customer_id",
    "model",
    "page",
    "page_size",
    "timezone",
    "include_current_utc_day",
    "force",
    "limit",
    "sort_by",
    "search",
    "id",
    "cursor",
    "session_cursor",
    "group_by_session",
    "min_spend",
    "max_spend",
    "status_filter",
    "session_id",
    "offset",
    "key",
    "team_ids",
    "model_group",
];

const HEADERS: [&str; 12] = [
    "accept-encoding",
    "content-type",
    "x-request-id",
    "x-forwarded-for",
    "accept",
    "range",
    "if-none-match",
    "expect",
    "transfer-encoding",
    "cookie",
    "content-length",
    "x-anything",
];

#[derive(Clone, Debug)]
struct Sent {
    method: String,
    target: String,
    key_header: &'static str,
    key: Option<Vec<u8>>,
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(vec![
            "2026-02-01", "2026-03-01", "0001-01-01", "9999-12-31", "2026-02-30", "2026-2-1", "+2026-01-01", "", "0",
            "1", "-1", "50", "1000", "1001", "9223372036854775807", "9223372036854775808", "-9223372036854775808",
            "1e9", "NaN", "true", "false", "maybe", "team", "customer", "api_key", "u-int", "team-alpha", "sk-1",
            "unattributed", "raw:unattributed", "raw:", "all-tags", "prod,all-tags", "unknown-model", "\0", "a\0b",
            "' OR 1=1 --", "%", "_", "\u{202e}", "\u{10ffff}", "null", "[]", "{}",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,40}",
        1 => (any::<i64>(), "\\PC{0,9}").prop_map(|(time, id)| URL_SAFE_NO_PAD.encode(format!("{time}.{id}"))),
        1 => (-262_000_i32..262_000, 1_u32..13, "[a-z|]{0,9}").prop_map(|(y, m, rest)| format!("{y:+05}-{m:02}-01 10:00:00|{rest}|x")),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => (-10_i32..10_100, 0_u32..14, 0_u32..33).prop_map(|(y, m, d)| format!("{y:04}-{m:02}-{d:02}")),
    ]
}

fn query() -> impl Strategy<Value = String> {
    let pair = (select(PARAMETERS.to_vec()), value());
    prop_oneof![
        6 => vec(pair, 0..8).prop_map(|pairs| form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()),
        1 => "[a-z_=&%+0-9;/?:@!$'()*,.~-]{0,80}",
    ]
}

fn target() -> impl Strategy<Value = String> {
    let known = select(route_table::api().map(|route| route.path).collect::<Vec<_>>());
    let path = prop_oneof![
        12 => (known, "[a-zA-Z0-9%._/-]{1,20}").prop_map(|(path, rest)| path.replace("{*rest}", &rest)),
        1 => "/[a-zA-Z0-9%._/{}*-]{0,40}",
    ];
    (path, query()).prop_map(|(path, query)| if query.is_empty() { path } else { format!("{path}?{query}") })
}

fn json_text() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<f64>().prop_map(|value| value.to_string()),
        select(vec!["1e400", "-0", "123456789012345678901234567890", "\"\\u0000\"", "\"\\ud800\"", "\"10.0.0.0/8\""])
            .prop_map(str::to_owned),
        value().prop_map(|text| Value::String(text).to_string()),
    ];
    let names =
        ["ip", "model", "messages", "completion_response", "usage", "role", "content", "prompt_tokens", "choices"];
    let tree = leaf.prop_recursive(4, 24, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(","))),
            vec((select(names.to_vec()), inner), 0..6).prop_map(|fields| {
                let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    });
    tree.prop_map(String::into_bytes)
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => json_text(),
        2 => value().prop_map(|ip| format!("{{\"ip\":{}}}", Value::String(ip)).into_bytes()),
        1 => select(vec!["10.0.0.0/8", "127.0.0.1", "::1", "0.0.0.0/0", "::/0"])
            .prop_map(|ip| format!("{{\"ip\":\"{ip}\"}}").into_bytes()),
        1 => vec(any::<u8>(), 0..200),
        1 => Just("[".repeat(5_000).into_bytes()),
        1 => Just(Vec::new()),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    let method = prop_oneof![
        8 => select(vec!["GET", "GET", "GET", "POST", "POST"]).prop_map(str::to_owned),
        1 => select(vec!["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"]).prop_map(str::to_owned),
        1 => "[A-Z]{1,12}",
    ];
    let key = prop_oneof![
        12 => select(KEYS.to_vec()).prop_map(|key| Some(key.as_bytes().to_vec())),
        1 => vec(any::<u8>(), 0..40).prop_map(Some),
        1 => Just(None),
    ];
    let key_headers = ["authorization", "x-litellm-api-key", "api-key", "x-api-key"];
    let header = (
        select(HEADERS.to_vec()),
        prop_oneof![
            select(vec![
                "gzip",
                "zstd, gzip",
                "application/json",
                "text/plain",
                "1.2.3.4, 5.6.7.8",
                "bytes=0-1",
                "*",
                "-1"
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
            vec(any::<u8>(), 0..60),
        ],
    );
    (method, target(), select(key_headers.to_vec()), key, vec(header, 0..5), body()).prop_map(
        |(method, target, key_header, key, headers, body)| Sent { method, target, key_header, key, headers, body },
    )
}

impl Sent {
    /// The request, if a client can send it at all.
    fn request(&self) -> Option<Request<Body>> {
        let method = Method::from_bytes(self.method.as_bytes()).ok()?;
        let mut builder = Request::builder().method(method).uri(&self.target);
        if let Some(key) = &self.key {
            let scheme: &[u8] = if self.key_header == "authorization" { b"Bearer " } else { b"" };
            builder = builder.header(self.key_header, HeaderValue::from_bytes(&[scheme, key].concat()).ok()?);
        }
        for (name, value) in &self.headers {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                builder = builder.header(HeaderName::from_static(name), value);
            }
        }
        builder.body(Body::from(self.body.clone())).ok()
    }
}

/// Reverts a change of the allow list that locks the test out, so that every request reaches its route.
async fn lift_restriction(app: &TestApp) {
    if app.state.allow_list.current().entries.as_ref().is_some_and(|entries| !entries.is_empty()) {
        app.execute(r#"DELETE FROM "LiteLLM_Config""#).await;
        app.state.refresh_allow_list().await.unwrap();
    }
}

#[test]
fn no_request_makes_the_server_fail() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let app = runtime.block_on(async {
        let app = TestApp::seeded().await;
        // A few rows are enough, and faster.
        app.execute(
            r#"DELETE FROM "LiteLLM_SpendLogs" WHERE ctid NOT IN (SELECT ctid FROM "LiteLLM_SpendLogs" LIMIT 25);
               DELETE FROM "LiteLLM_DailyUserSpend" WHERE ctid NOT IN (SELECT ctid FROM "LiteLLM_DailyUserSpend" LIMIT 25)"#,
        )
        .await;
        app
    });
    let mut classes = [0_u32; 6];
    let classes_seen = std::cell::RefCell::new(&mut classes);
    randomness::check(CASES, sent(), |sent| {
        let Some(request) = sent.request() else { return Err(TestCaseError::reject("cannot be sent")) };
        // A panic or an incomplete body fails the test in `send`.
        let answer = runtime.block_on(async {
            let answer = app.send(request).await;
            lift_restriction(&app).await;
            answer
        });
        prop_assert!(answer.status.as_u16() < 500, "{}: {}", answer.status, answer.text);
        prop_assert!(answer.headers.contains_key("x-request-id"));
        let head = sent.method == "HEAD" || answer.headers.contains_key("content-encoding");
        let is_protobuf = answer.headers.get("content-type").is_some_and(|kind| kind == "application/x-protobuf");
        if answer.status.is_client_error() && !head && !is_protobuf {
            let error = answer.json();
            // OpenTelemetry's exporters get a `google.rpc.Status`.
            if sent.target.contains("/v1/traces") && error.get("message").is_some() {
                return Ok(());
            }
            prop_assert!(error.get("error").is_some() != error.get("detail").is_some(), "{error}");
        }
        classes_seen.borrow_mut()[usize::from(answer.status.as_u16() / 100)] += 1;
        Ok(())
    });
    println!("{CASES} requests: {} answered, {} refused", classes[2], classes[4]);
    assert!(classes[2] > CASES / 10, "too few requests were good: {classes:?}");
    assert_eq!(runtime.block_on(app.get("/spend/tags", MASTER_KEY)).status, 200);
}

#[tokio::test]
async fn values_at_the_edge_of_their_types_are_answered() {
    let app = TestApp::seeded().await;
    app.execute(
        r#"UPDATE "LiteLLM_DailyUserSpend" SET prompt_tokens = 9007199254740993, completion_tokens = 1,
                  api_requests = 9007199254740993;
           UPDATE "LiteLLM_SpendLogs" SET prompt_tokens = 2147483647, total_tokens = 2147483647"#,
    )
    .await;
    let dates = "start_date=0001-01-01&end_date=2026-12-31";
    for path in ["/user/daily/activity", "/global/spend/report", "/spend/logs", "/spend/tags", "/global/spend/tags"] {
        for extra in ["", "&group_by=api_key", "&group_by=customer"] {
            let answer = app.get(&format!("{path}?{dates}{extra}"), MASTER_KEY).await;
            assert_eq!(answer.status, 200, "{path} {extra}");
        }
    }
    for time in ["9999-12-31 23:59:59.999", "0001-01-01", "20000-01-01", "4713-01-01 00:00:00 BC"] {
        let statement = format!(r#"UPDATE "LiteLLM_SpendLogs" SET "startTime" = '{time}', "endTime" = '{time}'"#);
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();
        for path in ["/spend/logs".to_owned(), format!("/spend/logs?{dates}"), format!("/global/spend/report?{dates}")]
        {
            let answer = app.get(&path, MASTER_KEY).await;
            // There may be too many empty days between the last spend and the end of a summary.
            let filled = path.starts_with("/spend/logs?") && answer.text.contains("3660 days");
            assert!(
                answer.status == if filled { 400 } else { 200 },
                "{time} {path}: {} {}",
                answer.status,
                answer.text
            );
        }
    }
}
