//! `POST /spend/usage` and `POST /spend/usage/litellm`.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use litespend::identity::hash_key;
use serde_json::{Value, json};

use crate::support::sums::{assert_consistent, rows};
use crate::support::{MASTER_KEY, TestApp, insert, owners, request};

const PATH: &str = "/spend/usage";
const LITELLM: &str = "/spend/usage/litellm";

async fn app() -> TestApp {
    let app = TestApp::new().await;
    owners::create(&app.pool, 6).await;
    app
}

/// Books one record and returns its result.
async fn one(app: &TestApp, key: &str, record: &Value) -> Value {
    let answer = app.post(PATH, key, record).await;
    let result = answer.json()["results"][0].clone();
    // If the request is a single record, the status of the answer reports its result.
    let code = result["code"].as_u64().unwrap_or(200);
    assert_eq!(u64::from(answer.status.as_u16()), code, "{}", answer.text);
    result
}

/// Adds a key that may state costs and book for others.
async fn feed(app: &TestApp, key: &str) {
    let row = json!([{"token": hash_key(key), "user_id": "user-0", "permissions": {"book_usage": true}}]);
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_VerificationToken", &row).await;
}

async fn number(app: &TestApp, query: &'static str) -> f64 {
    sqlx::query_scalar(query).fetch_one(&app.pool).await.unwrap()
}

#[tokio::test]
async fn a_whole_number_of_tokens_may_be_written_with_a_fraction_of_zeros() {
    let app = app().await;
    let payload = |tokens: f64| {
        json!({"id": "call-1", "model": "gpt-4o", "response_cost": 0.1, "startTime": 1_772_000_000, "prompt_tokens": tokens,
               "completion_tokens": 2, "total_tokens": tokens + 2.0})
    };
    let record = |tokens: f64| json!({"model": "gpt-4o", "prompt_tokens": tokens, "idempotency_key": "call-2"});
    for (path, half, whole) in [(LITELLM, payload(271.5), payload(272.0)), (PATH, record(271.5), record(272.0))] {
        let answer = app.post(path, MASTER_KEY, &half).await.json();
        let error = answer["results"][0]["error"].as_str().unwrap_or_default();
        assert!(error.ends_with("invalid type: floating point `271.5`, expected a whole number"), "{answer}");
        assert_eq!(app.post(path, MASTER_KEY, &whole).await.json()["recorded"], 1);
    }
    assert_eq!(number(&app, r#"SELECT sum(prompt_tokens)::float8 FROM "LiteLLM_SpendLogs""#).await, 544.0);
}

#[tokio::test]
async fn a_record_becomes_a_row_and_counts_everywhere() {
    let app = app().await;
    let record = json!({
        "api_key": owners::key(0), "model": "gpt-4o", "usage": {"prompt_tokens": 1000, "completion_tokens": 200,
        "prompt_tokens_details": {"cached_tokens": 400}}, "cost": 0.0125, "start_time": "2026-03-01T23:59:59.9996Z",
        "end_time": "2026-03-02T00:00:01.5Z", "idempotency_key": "call-1", "tags": ["prod", "batch", "prod"],
        "end_user_id": "customer-7", "session_id": "session-1", "custom_llm_provider": "openai",
        "metadata": {"job": 17}, "requester_ip_address": "10.1.2.3"
    });
    let answer = app.post(PATH, MASTER_KEY, &record).await.json();
    assert_eq!(
        answer,
        json!({"results": [{"request_id": "call-1", "status": "recorded", "spend": 0.0125, "error": null}],
               "recorded": 1, "duplicate": 0, "error": 0})
    );
    let row = app.get("/spend/logs?request_id=call-1", MASTER_KEY).await.json()[0].clone();
    for (field, expected) in [
        ("api_key", json!(hash_key(&owners::key(0)))),
        ("spend", json!(0.0125)),
        ("total_tokens", json!(1200)),
        ("startTime", json!("2026-03-01T23:59:59.999000Z")),
        ("request_duration_ms", json!(1501)),
        ("model", json!("gpt-4o")),
        ("model_group", json!("gpt-4o")),
        ("custom_llm_provider", json!("openai")),
        ("user", json!("user-0")),
        ("team_id", json!("team-0")),
        ("organization_id", json!("org-1")),
        ("end_user", json!("customer-7")),
        ("session_id", json!("session-1")),
        ("request_tags", json!(["prod", "batch"])),
        ("status", json!("success")),
        ("call_type", json!("acompletion")),
        ("requester_ip_address", json!("10.1.2.3")),
    ] {
        assert_eq!(row[field], expected, "{field}");
    }
    assert_eq!(row["metadata"]["job"], 17);
    assert_eq!(row["metadata"]["usage_object"]["prompt_tokens_details"]["cached_tokens"], 400);
    assert_consistent(&app.pool).await;
    let daily: (String, String, String, i64, i64, i64) = sqlx::query_as(
        r#"SELECT date, endpoint, mcp_namespaced_tool_name, cache_read_input_tokens, total_response_time_ms, timed_requests
           FROM "LiteLLM_DailyUserSpend""#,
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    assert_eq!(daily, ("2026-03-01".into(), "/chat/completions".into(), String::new(), 400, 1501, 1));
    // A member on the team's roster whose membership row did not exist.
    assert_eq!(number(&app, r#"SELECT spend FROM "LiteLLM_TeamMembership" WHERE user_id = 'user-0'"#).await, 0.0125);
    let activity = app.get("/user/daily/activity?start_date=2026-03-01&end_date=2026-03-01", MASTER_KEY).await.json();
    assert_eq!(activity["metadata"]["total_spend"], 0.0125);
    assert_eq!(activity["metadata"]["total_cache_read_input_tokens"], 400);
}

#[tokio::test]
async fn what_was_booked_is_not_booked_again() {
    let app = app().await;
    let record = |id: &str, cost: f64| json!({"api_key": owners::key(1), "model": "m", "cost": cost, "idempotency_key": id, "tags": ["t"]});
    let first = json!({"records": [record("a", 1.0), record("b", 2.0), record("a", 1.0), record("a", 5.0)]});
    let answer = app.post(PATH, MASTER_KEY, &first).await.json();
    let statuses = |answer: &Value| -> Vec<String> {
        answer["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|result| format!("{} {}", result["status"].as_str().unwrap(), result["spend"]))
            .collect()
    };
    assert_eq!(statuses(&answer), ["recorded 1.0", "recorded 2.0", "duplicate 1.0", "error null"]);
    assert_eq!(answer["results"][3]["code"], 409);
    let second = json!({"records": [record("c", 4.0), record("b", 2.0), record("a", 1.0)]});
    let answer = app.post(PATH, MASTER_KEY, &second).await.json();
    assert_eq!(statuses(&answer), ["recorded 4.0", "duplicate 2.0", "duplicate 1.0"]);
    assert_eq!((&answer["recorded"], &answer["duplicate"], &answer["error"]), (&json!(1), &json!(2), &json!(0)));
    assert_consistent(&app.pool).await;
    assert_eq!(number(&app, r#"SELECT sum(spend) FROM "LiteLLM_SpendLogs""#).await, 7.0);

    // The same id for a different record is a conflict. The answer says so, and nothing changes.
    let other = one(&app, MASTER_KEY, &record("a", 9.0)).await;
    assert_eq!((&other["status"], &other["code"], &other["spend"]), (&json!("error"), &json!(409), &Value::Null));
    assert_eq!(number(&app, r#"SELECT sum(spend) FROM "LiteLLM_SpendLogs""#).await, 7.0);
}

#[tokio::test]
async fn another_senders_id_neither_refuses_nor_replaces_a_record() {
    let app = app().await;
    feed(&app, "sk-feed").await;
    // A lying key uses the id first, in its own name and at a price that it chose.
    let squat = json!({"model": "gpt-4o", "prompt_tokens": 1, "completion_tokens": 0, "idempotency_key": "call-7"});
    assert_eq!(one(&app, &owners::key(2), &squat).await["request_id"], "call-7");
    let real = json!({"api_key": owners::key(2), "model": "gpt-4o", "cost": 3.5, "idempotency_key": "call-7"});
    let recorded = one(&app, "sk-feed", &real).await;
    assert_eq!((&recorded["status"], &recorded["spend"]), (&json!("recorded"), &json!(3.5)));
    let id = recorded["request_id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("call-7~"), "{id}");
    // Sent again with its fields in another order and its number in another spelling, it counts as the same record.
    let again = r#"{"idempotency_key": "call-7", "cost": 3.50, "model": "gpt-4o", "api_key": "KEY"}"#;
    let (status, text) = post_text(&app, PATH, "sk-feed", &again.replace("KEY", &owners::key(2))).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &answer["duplicate"], &answer["results"][0]["request_id"]),
        (StatusCode::OK, &json!(1), &json!(id))
    );
    // A row that was there before ids were recorded: the same record is a duplicate of it, and a record of another key
    // under the same id is booked.
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", "user")
           SELECT 'old', '', token, 0.25, now(), now(), '' FROM "LiteLLM_VerificationToken" ORDER BY token = encode(sha256('sk-writer-0001'), 'hex') DESC LIMIT 1"#,
    )
    .await;
    let old = json!({"api_key": owners::key(1), "model": "m", "cost": 0.25, "idempotency_key": "old"});
    assert_eq!(one(&app, MASTER_KEY, &old).await["status"], "duplicate");
    assert_eq!(one(&app, MASTER_KEY, &old).await["status"], "duplicate");
    let other = json!({"api_key": owners::key(3), "model": "m", "cost": 0.25, "idempotency_key": "old"});
    assert_eq!(one(&app, "sk-feed", &other).await["status"], "recorded");
    app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = 'old'"#).await;
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn who_may_not_state_costs_books_at_the_table_s() {
    let app = app().await;
    let stated = json!({"model": "gpt-4o", "cost": 1e-6, "prompt_tokens": 1_000_000, "idempotency_key": "cheap"});
    let refused = one(&app, &owners::key(1), &stated).await;
    assert_eq!((&refused["code"], &refused["request_id"]), (&json!(403), &json!("cheap")));
    // A cost inside a provider's usage object does not bypass the rule.
    let usage = json!({"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000, "cost": 0.0});
    for record in [
        json!({"model": "perplexity/sonar-pro", "usage": usage}),
        json!({"completion_response": {"model": "perplexity/sonar-pro", "choices": [], "usage": usage}}),
        json!({"model": "sonar-pro", "custom_llm_provider": "perplexity", "usage": usage}),
    ] {
        let result = one(&app, &owners::key(1), &record).await;
        assert!(result["spend"].as_f64().is_some_and(|spend| spend > 1.0), "{record}: {result}");
    }
    for value in [json!(false), json!("true"), json!(1), json!({}), Value::Null] {
        let key = format!("sk-permission-{value}");
        let row = json!([{"token": hash_key(&key), "permissions": {"book_usage": value}}]);
        insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_VerificationToken", &row).await;
        assert_eq!(one(&app, &key, &json!({"model": "m", "cost": 1})).await["code"], 403, "{value}");
    }
    feed(&app, "sk-feed").await;
    assert_eq!(
        one(&app, "sk-feed", &json!({"api_key": owners::key(4), "model": "m", "cost": 1})).await["status"],
        "recorded"
    );
    for (record, code) in [
        (json!({"model": "m", "cost": 10_000.01}), 422),
        (json!({"model": "m", "cost": 1, "prompt_tokens": 100_000_001}), 422),
    ] {
        assert_eq!(one(&app, "sk-feed", &record).await["code"], code, "{record}");
    }
    let old = json!({"model": "gpt-4o", "prompt_tokens": 1, "start_time": "2020-01-01T00:00:00Z"});
    assert!(one(&app, &owners::key(1), &old).await["error"].as_str().unwrap().contains("400 days ago"));
    assert_eq!(one(&app, "sk-feed", &old).await["status"], "recorded");
    for viewer in ["proxy_admin_viewer", "internal_user_viewer"] {
        let key = format!("sk-{viewer}");
        let user = json!([{"user_id": viewer, "user_role": viewer}]);
        let row = json!([{"token": hash_key(&key), "user_id": viewer, "permissions": {"book_usage": true}}]);
        insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_UserTable", &user).await;
        insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_VerificationToken", &row).await;
        for path in [PATH, LITELLM] {
            let answer = app.post(path, &key, &json!({"model": "gpt-4o", "prompt_tokens": 1})).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{viewer} {path}");
        }
    }
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn what_would_grow_when_stored_is_refused_before_it_is() {
    let app = app().await;
    let repeated = |item: &str, count: usize| format!("[{}0]", format!("{item},").repeat(count));
    let usage =
        |name: &str, value: &str| format!(r#"{{"model": "gpt-4o", "{name}": {{"prompt_tokens": 1, "x": {value}}}}}"#);
    let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
    for (body, code) in [
        (usage("usage", &repeated("1e308", 1_800_000)), 422),
        (usage("usage", "1e308"), 422),
        (usage("usage", "1e-300"), 422),
        (usage("metadata", &repeated("[0]", 1_000_000)), 413),
        (usage("metadata", &repeated("1e60", 1500)), 413),
        (usage("metadata", &format!("\"{}\"", "x".repeat(100_000))), 413),
        (usage("metadata", &deep), 422),
        (usage("metadata", r#""\u0000""#), 422),
        (usage("metadata", r#""\ud800""#), 422),
        (usage("metadata", "1e400000"), 422),
        (
            format!(
                r#"{{"completion_response": {{"model": "gpt-4o", "usage": {{"prompt_tokens": 1, "x": {}}}}}}}"#,
                repeated("1", 5000)
            ),
            413,
        ),
        (format!(r#"{{"completion_response": {{"model": "gpt-4o", "x": {}}}}}"#, repeated("[0]", 1_000_000)), 413),
        (format!(r#"{{"model": "gpt-4o", "prompt_tokens": 1, "tags": {}}}"#, repeated(r#""a""#, 200_000)), 413),
    ] {
        let (status, text) = post_text(&app, PATH, &owners::key(0), &body).await;
        assert_eq!(status.as_u16(), code, "{}: {text}", &body[..body.len().min(200)]);
    }
    assert_eq!(rows(&app.pool).await, 0);
    // Records from LiteLLM's callback are booked anyway: a field that is too large is left out, and the answer names
    // it.
    let mut large = payload("large", 0.5);
    large["metadata"]["requester_metadata"] = json!({"x": vec![1e300; 20_000]});
    large["error_information"] = json!({"error_message": "e".repeat(100_000)});
    large["messages"] = json!(vec![json!([0]); 200_000]);
    let (status, text) = post_text(&app, LITELLM, MASTER_KEY, &large.to_string()).await;
    assert_eq!(status, 200, "{text}");
    let stored =
        app.scalar(r#"SELECT (metadata -> 'left_out')::text || length(metadata::text) FROM "LiteLLM_SpendLogs""#).await;
    assert!(stored.starts_with(r#"["requester_metadata"]"#) && stored.len() < 30, "{stored}");
    assert_eq!(app.get("/spend/logs?request_id=large", MASTER_KEY).await.status, 200);
}

#[tokio::test]
async fn new_names_are_bounded_by_key_and_day() {
    let mut settings = crate::support::settings();
    settings.booking.new_names_a_day = 5;
    let app = TestApp::with(settings).await;
    owners::create(&app.pool, 3).await;
    let record = |tag: usize| json!({"model": "gpt-4o", "prompt_tokens": 1, "tags": [format!("tag-{tag}")]});
    let many = json!({"records": (0..10).map(record).collect::<Vec<_>>()});
    let answer = app.post(PATH, &owners::key(0), &many).await.json();
    // The model is a new name, too.
    assert_eq!((&answer["recorded"], &answer["error"]), (&json!(4), &json!(6)), "{answer}");
    assert_eq!(answer["results"][4]["code"], 429);
    assert_eq!(one(&app, &owners::key(0), &record(9)).await["code"], 429);
    assert_eq!(one(&app, &owners::key(0), &record(1)).await["status"], "recorded");
    // Names are counted separately for each key. A name that any key has introduced is no longer new.
    assert_eq!(one(&app, &owners::key(1), &record(9)).await["status"], "recorded");
    assert_eq!(one(&app, &owners::key(0), &record(9)).await["status"], "recorded");
    let exempt = json!({"records": (100..150).map(record).collect::<Vec<_>>()});
    assert_eq!(app.post(PATH, MASTER_KEY, &exempt).await.json()["recorded"], 50);
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn a_bad_record_is_named_and_spoils_none() {
    let app = app().await;
    let bad = [
        (json!({"cost": 1}), "model: is missing"),
        (json!({"model": 7, "cost": 1}), "model: invalid type: integer `7`, expected a string"),
        (json!({"model": "m", "cost": -1}), "cost: must not be negative"),
        (json!({"model": "m", "cost": 1e300}), "cost: is larger than"),
        (json!({"model": "m", "cost": "1"}), "cost: invalid type"),
        (json!({"model": "m", "cost": 1, "prompt_tokens": -1}), "prompt_tokens: must not be negative"),
        (
            json!({"model": "m", "cost": 1, "prompt_tokens": 3_000_000_000_i64}),
            "prompt_tokens: is larger than 2147483647",
        ),
        (
            json!({"model": "m", "cost": 1, "prompt_tokens": 2_000_000_000, "completion_tokens": 2_000_000_000}),
            "total_tokens: is larger than",
        ),
        (
            json!({"model": "m", "cost": 1, "usage": {"prompt_tokens": "x"}}),
            "usage: The usage can't be read: prompt_tokens",
        ),
        (json!({"model": "m", "cost": 1, "start_time": "soon"}), "start_time: expected an RFC 3339"),
        (
            json!({"model": "m", "cost": 1, "start_time": 1_772_323_200_000_i64}),
            "epoch seconds are expected, not milliseconds",
        ),
        (json!({"model": "m", "cost": 1, "start_time": "2126-01-01T00:00:00Z"}), "more than a day in the future"),
        (
            json!({"model": "m", "cost": 1, "start_time": "2026-03-02T00:00:00Z", "end_time": "2026-03-01T00:00:00Z"}),
            "end_time: is before start_time",
        ),
        (json!({"model": "m\u{0}", "cost": 1}), "model: must not contain a NUL"),
        (json!({"model": "m", "cost": 1, "metadata": {"a": ["\u{0}"]}}), "metadata, usage: must not contain a NUL"),
        (
            json!({"model": "m", "cost": 1, "idempotency_key": "x".repeat(513)}),
            "idempotency_key: is longer than 512 bytes",
        ),
        (json!({"model": "m", "cost": 1, "tags": ["x".repeat(300)]}), "tags: is longer than 256 bytes"),
        (json!({"model": "m", "cost": 1, "status": "maybe"}), "status: expected success or failure"),
        (json!({"model": "m", "cost": 1, "api_key": "sk-unknown"}), "api_key: the key does not exist"),
        (json!({"model": "m", "cost": 1, "promt_tokens": 5}), "unknown field `promt_tokens`"),
        (json!({"model": "no-such-model-anywhere"}), "cost: "),
        (json!(17), "invalid type: integer `17`"),
        (json!(null), "invalid type: null"),
    ];
    let good = |id: usize| json!({"api_key": owners::key(0), "model": "m", "cost": 1, "idempotency_key": format!("good-{id}")});
    let mut records = Vec::new();
    for (index, (record, _)) in bad.iter().enumerate() {
        records.extend([good(index), record.clone()]);
    }
    let answer = app.post(PATH, MASTER_KEY, &json!({"records": records})).await.json();
    assert_eq!(answer["recorded"], bad.len());
    assert_eq!(answer["error"], bad.len());
    for (index, (record, expected)) in bad.iter().enumerate() {
        assert_eq!(answer["results"][2 * index]["request_id"], format!("good-{index}"));
        let result = &answer["results"][2 * index + 1];
        assert_eq!(result["status"], "error", "{record}");
        assert!(result["error"].as_str().unwrap().contains(expected), "{record}: {result}");
    }
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn numbers_that_no_double_holds_are_errors_of_their_record() {
    let app = app().await;
    let body = r#"{"records": [{"model": "m", "cost": 1}, {"model": "m", "cost": 1e999}, {"model": "m", "prompt_tokens": 99999999999999999999, "cost": 1}]}"#;
    let answer = post_text(&app, PATH, MASTER_KEY, body).await;
    let answer: Value = serde_json::from_str(&answer.1).unwrap();
    assert_eq!((&answer["recorded"], &answer["error"]), (&json!(1), &json!(2)), "{answer}");
}

async fn post_text(app: &TestApp, path: &str, key: &str, body: &str) -> (StatusCode, String) {
    let builder = request(Method::POST, path, key).header("content-type", "application/json");
    let answer = app.send(builder.body(Body::from(body.to_owned())).unwrap()).await;
    (answer.status, answer.text)
}

#[tokio::test]
async fn bodies_that_hold_no_records_are_refused() {
    let app = app().await;
    for (path, body, expected) in [
        (PATH, "", 422),
        (PATH, "{", 422),
        (PATH, "[]", 400),
        (PATH, "[[]]", 400),
        (PATH, "7", 400),
        (PATH, r#"{"records": 7}"#, 422),
        (PATH, r#"{"records": {"model": "m"}}"#, 422),
        (LITELLM, "", 422),
        (LITELLM, "[{]", 422),
    ] {
        let (status, text) = post_text(&app, path, MASTER_KEY, body).await;
        assert_eq!(status.as_u16(), expected, "{path} {body}: {text}");
    }
    let many = json!({"records": vec![json!({"model": "m", "cost": 0}); 10_001]});
    let answer = app.post(PATH, MASTER_KEY, &many).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer.text.contains("at most 10000"), "{}", answer.text);
    let large = format!(r#"{{"records": [], "x": "{}"}}"#, "x".repeat(16 * 1024 * 1024));
    assert_eq!(post_text(&app, PATH, MASTER_KEY, &large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(app.post(PATH, MASTER_KEY, &json!({"records": []})).await.json()["results"], json!([]));
    assert_eq!(rows(&app.pool).await, 0);
}

#[tokio::test]
async fn a_virtual_key_books_for_itself_only() {
    let app = app().await;
    let own = json!({"model": "gpt-4o", "prompt_tokens": 10, "idempotency_key": "own"});
    let own = one(&app, &owners::key(3), &own).await;
    assert_eq!(own["status"], "recorded");
    let same =
        json!({"api_key": hash_key(&owners::key(3)), "model": "gpt-4o", "prompt_tokens": 5, "idempotency_key": "same"});
    assert_eq!(one(&app, &owners::key(3), &same).await["status"], "recorded");
    let other = json!({"api_key": owners::key(4), "model": "m", "cost": 1});
    let other = one(&app, &owners::key(3), &other).await;
    assert_eq!(other["error"], "api_key: a virtual key can book for itself only");
    let row = app.get("/spend/logs?request_id=own", MASTER_KEY).await.json()[0].clone();
    assert_eq!((&row["user"], &row["team_id"]), (&json!("user-3"), &json!("team-0")));

    insert(
        &mut app.pool.acquire().await.unwrap(),
        "LiteLLM_UserTable",
        &json!([{"user_id": "viewer", "user_role": "proxy_admin_viewer"},
                                                   {"user_id": "admin", "user_role": "proxy_admin"}]),
    )
    .await;
    insert(
        &mut app.pool.acquire().await.unwrap(),
        "LiteLLM_VerificationToken",
        &json!([{"token": hash_key("sk-viewer"), "user_id": "viewer"},
                                                           {"token": hash_key("sk-admin"), "user_id": "admin"}]),
    )
    .await;
    let record = json!({"api_key": owners::key(4), "model": "m", "cost": 1, "idempotency_key": "by-admin"});
    assert_eq!(app.post(PATH, "sk-viewer", &record).await.status, StatusCode::FORBIDDEN);
    assert_eq!(one(&app, "sk-admin", &record).await["status"], "recorded");
    assert_eq!(app.post(PATH, "sk-nobody", &record).await.status, StatusCode::UNAUTHORIZED);
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn the_master_key_books_under_its_own_name_and_for_deleted_keys() {
    let app = app().await;
    for (id, body) in [
        ("m1", json!({"model": "m", "cost": 1, "idempotency_key": "m1"})),
        ("m2", json!({"api_key": MASTER_KEY, "model": "m", "cost": 1, "idempotency_key": "m2"})),
    ] {
        assert_eq!(one(&app, MASTER_KEY, &body).await["status"], "recorded");
        let row = app.get(&format!("/spend/logs?request_id={id}"), MASTER_KEY).await.json()[0].clone();
        assert_eq!((&row["api_key"], &row["user"]), (&json!("litellm_proxy_master_key"), &json!("default_user_id")));
    }
    let gone = json!([{"id": "d1", "token": hash_key("sk-gone"), "user_id": "user-1", "team_id": "team-1"}]);
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_DeletedVerificationToken", &gone).await;
    let late = json!({"api_key": "sk-gone", "model": "m", "cost": 1, "idempotency_key": "late"});
    assert_eq!(one(&app, MASTER_KEY, &late).await["status"], "recorded");
    let row = app.get("/spend/logs?request_id=late", MASTER_KEY).await.json()[0].clone();
    assert_eq!((&row["user"], &row["team_id"]), (&json!("user-1"), &json!("team-1")));
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn a_providers_answer_says_model_usage_and_id() {
    let app = app().await;
    let record = json!({"status": "failure", "completion_response": {
        "id": "chatcmpl-9", "model": "gpt-4o-mini", "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}}});
    assert_eq!(one(&app, &owners::key(0), &record).await["request_id"], "chatcmpl-9");
    assert_eq!(one(&app, &owners::key(0), &record).await["status"], "duplicate");
    let row = app.get("/spend/logs?request_id=chatcmpl-9", MASTER_KEY).await.json()[0].clone();
    assert_eq!(
        (&row["model"], &row["total_tokens"], &row["status"]),
        (&json!("gpt-4o-mini"), &json!(11), &json!("failure"))
    );
    assert_consistent(&app.pool).await;
    // Without an id, every record is a new one.
    let anonymous = json!({"model": "gpt-4o", "prompt_tokens": 1});
    assert_ne!(
        one(&app, &owners::key(0), &anonymous).await["request_id"],
        one(&app, &owners::key(0), &anonymous).await["request_id"]
    );
}

fn payload(id: &str, cost: f64) -> Value {
    json!({"id": id, "trace_id": "trace-1", "call_type": "acompletion", "stream": false, "response_cost": cost,
           "status": "success", "custom_llm_provider": "openai", "total_tokens": 30, "prompt_tokens": 10,
           "completion_tokens": 20, "startTime": 1_772_323_200.0, "endTime": 1_772_323_201.25,
           "completionStartTime": 1_772_323_200.5, "response_time": 1.25, "model": "gpt-4o", "model_id": null,
           "model_group": "gpt-4o", "api_base": "https://api.openai.com", "cache_hit": null, "cache_key": null,
           "saved_cache_cost": 0.0, "request_tags": ["User-Agent: x"], "end_user": "", "requester_ip_address": null,
           "messages": [{"role": "user", "content": "secret prompt"}], "response": {"secret": "answer"},
           "metadata": {"user_api_key_hash": null, "user_api_key_team_id": null, "usage_object": {"prompt_tokens": 10}},
           "error_information": null, "hidden_params": {}})
}

#[tokio::test]
async fn litellms_callback_is_understood_in_its_three_formats() {
    let app = app().await;
    let array = json!([payload("array-1", 0.5), payload("array-2", 0.25)]).to_string();
    let lines = format!("{}\n{}\n{{broken\n", payload("line-1", 0.125), payload("line-2", 0.0625));
    let single = serde_json::to_string_pretty(&payload("single-1", 1.0)).unwrap();
    for (body, recorded, errors) in [(array, 2, 0), (lines, 2, 1), (single, 1, 0)] {
        let (status, text) = post_text(&app, LITELLM, MASTER_KEY, &body).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&answer["recorded"], &answer["error"]), (&json!(recorded), &json!(errors)), "{text}");
    }
    let logs = app.get("/spend/logs?request_id=line-1", MASTER_KEY).await;
    assert!(!logs.text.contains("secret"), "{}", logs.text);
    let row = &logs.json()[0];
    assert_eq!(
        (&row["spend"], &row["session_id"], &row["request_duration_ms"]),
        (&json!(0.125), &json!("trace-1"), &json!(1250))
    );
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn litellms_owners_and_costs_are_believed_from_feeds_only() {
    let app = app().await;
    let mut foreign = payload("foreign", 0.5);
    foreign["metadata"] = json!({"user_api_key_hash": "0".repeat(64), "user_api_key_user_id": "someone",
                                 "user_api_key_team_id": "somewhere", "user_api_key_org_id": "org-9",
                                 "user_api_key_end_user_id": "customer"});
    assert_eq!(app.post(LITELLM, MASTER_KEY, &foreign).await.json()["recorded"], 1);
    let row = app.get("/spend/logs?request_id=foreign", MASTER_KEY).await.json()[0].clone();
    assert_eq!(
        (&row["user"], &row["team_id"], &row["end_user"]),
        (&json!("someone"), &json!("somewhere"), &json!("customer"))
    );

    foreign["id"] = json!("stolen");
    let refused = app.post(LITELLM, &owners::key(1), &foreign).await.json();
    assert_eq!(refused["results"][0]["error"], "api_key: a virtual key can book for itself only");
    let mut own = payload("own", 0.5);
    own["metadata"] = json!({"user_api_key_user_id": "someone", "user_api_key_team_id": "somewhere"});
    assert_eq!(app.post(LITELLM, &owners::key(1), &own).await.status, StatusCode::FORBIDDEN);
    own["response_cost"] = Value::Null;
    assert_eq!(app.post(LITELLM, &owners::key(1), &own).await.status, StatusCode::FORBIDDEN);
    own["metadata"] = json!({"user_api_key_user_id": "user-1", "user_api_key_team_id": "team-1"});
    assert_eq!(app.post(LITELLM, &owners::key(1), &own).await.json()["recorded"], 1);
    let row = app.get("/spend/logs?request_id=own", MASTER_KEY).await.json()[0].clone();
    assert_eq!((&row["user"], &row["team_id"]), (&json!("user-1"), &json!("team-1")));
    assert_consistent(&app.pool).await;
}

#[tokio::test]
async fn what_brings_no_cost_is_priced() {
    let app = app().await;
    let calculate = json!({"completion_response": {"model": "gpt-4o", "choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}});
    let expected = app.post("/spend/calculate", MASTER_KEY, &calculate).await.json()["cost"].clone();
    for record in [
        json!({"model": "gpt-4o", "prompt_tokens": 1000, "completion_tokens": 500}),
        json!({"model": "gpt-4o", "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}),
        json!({"model": "gpt-4o", "custom_llm_provider": "openai", "usage": {"input_tokens": 1000, "output_tokens": 500}}),
        calculate.clone(),
    ] {
        let result = one(&app, &owners::key(0), &record).await;
        assert_eq!((&result["status"], &result["spend"]), (&json!("recorded"), &expected), "{record}: {result}");
    }
    // Anthropic's prompt count excludes cached tokens; the row's count includes them.
    let anthropic = json!({"model": "claude-sonnet-4-5", "idempotency_key": "anthropic", "usage":
        {"input_tokens": 100, "output_tokens": 50, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 200}});
    assert_eq!(one(&app, &owners::key(0), &anthropic).await["status"], "recorded");
    let row = app.get("/spend/logs?request_id=anthropic", MASTER_KEY).await.json()[0].clone();
    assert_eq!(row["prompt_tokens"], 1300);
    assert!(row["spend"].as_f64().unwrap() > 0.0);
    for (record, expected) in [
        (json!({"model": "gpt-4o"}), "cost: is missing, and cannot be calculated"),
        (json!({"model": "gpt-4o", "usage": {"promt_tokens": 5}}), "usage: has none of the counts"),
        (
            json!({"model": "gpt-4o", "prompt_tokens": 1, "usage": {"prompt_tokens": 5}}),
            "either the token counts or a usage object",
        ),
        (json!({"model": "unheard-of", "prompt_tokens": 5}), "cost: is missing, and: "),
    ] {
        let result = one(&app, &owners::key(0), &record).await;
        assert!(result["error"].as_str().unwrap().contains(expected), "{record}: {result}");
    }
    assert_consistent(&app.pool).await;
}
