//! Keys: which are valid, which headers carry them, what they may do, and how long a lookup is cached.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use chrono::{TimeZone, Utc};
use litespend::clock::Clock;
use litespend::http::auth::lookup;
use litespend::identity::hash_key;
use litespend::store::database::PoolLimits;
use serde_json::{Value, json};

use crate::support::{Answer, MASTER_KEY, TestApp, database, insert, request, settings};

const KEY: &str = "sk-test-key-0001";

/// Adds a key with these columns in addition to the usual ones.
async fn add_key(app: &TestApp, key: &str, columns: Value) {
    let mut row = json!({ "token": hash_key(key), "key_name": "sk-...0001", "models": [], "permissions": {} });
    row.as_object_mut().unwrap().extend(columns.as_object().unwrap().clone());
    for (column, default) in [
        ("soft_budget_cooldown", json!(false)),
        ("spend", json!(0.0)),
        ("aliases", json!({})),
        ("config", json!({})),
        ("metadata", json!({})),
    ] {
        row.as_object_mut().unwrap().entry(column).or_insert(default);
    }
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_VerificationToken", &json!([row])).await;
}

async fn add_user(app: &TestApp, user: &str, role: Option<&str>, metadata: Value) {
    let row = json!({ "user_id": user, "user_role": role, "metadata": metadata, "spend": 0.0, "teams": [] });
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_UserTable", &json!([row])).await;
}

async fn with_headers(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut builder = Request::builder().uri(path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    app.send(builder.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_key_is_taken_from_every_header_that_carries_one() {
    let app = TestApp::new().await;
    add_user(&app, "u", Some("internal_user"), json!({})).await;
    add_key(&app, KEY, json!({ "user_id": "u" })).await;
    for key in [KEY, MASTER_KEY] {
        for (name, value) in [
            ("Authorization", format!("Bearer {key}")),
            ("authorization", format!("bearer {key}")),
            ("Authorization", format!("BEARER {key}")),
            ("x-litellm-api-key", key.to_owned()),
            ("X-LiteLLM-API-Key", format!("Bearer {key}")),
            ("api-key", key.to_owned()),
            ("x-api-key", key.to_owned()),
            ("x-goog-api-key", key.to_owned()),
            ("Ocp-Apim-Subscription-Key", key.to_owned()),
        ] {
            assert_eq!(with_headers(&app, "/spend/tags", &[(name, &value)]).await.status, 200, "{name}: {value}");
        }
    }
    // LiteLLM's own header takes precedence.
    let both = [("authorization", "Bearer sk-unknown"), ("x-litellm-api-key", KEY)];
    assert_eq!(with_headers(&app, "/spend/tags", &both).await.status, 200);
    let both = [("authorization", &*format!("Bearer {KEY}")), ("x-litellm-api-key", "sk-unknown")];
    assert_eq!(with_headers(&app, "/spend/tags", &both).await.status, 401);
}

#[tokio::test]
async fn keys_that_do_not_count_are_401_and_say_why() {
    let app = TestApp::seeded().await;
    for (headers, kind) in [
        (&[][..], "auth_error"),
        (&[("authorization", "")], "auth_error"),
        (&[("authorization", KEY)], "auth_error"),
        (&[("authorization", "Bearer ")], "auth_error"),
        (&[("authorization", "Bearer not-a-key")], "auth_error"),
        (&[("x-litellm-api-key", "")], "auth_error"),
        (&[("authorization", "Bearer sk-unknown")], "token_not_found_in_db"),
        (&[("authorization", "Bearer sk-expired-key-01")], "expired_key"),
        (&[("authorization", "Bearer sk-blocked-key-01")], "auth_error"),
    ] {
        let answer = with_headers(&app, "/spend/tags", headers).await;
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(answer.json()["error"]["type"], kind, "{headers:?}");
        assert_eq!(answer.json()["error"]["code"], "401", "{headers:?}");
    }
    // The hash of a key is not accepted as a key.
    let hash = hash_key("sk-admin-key-0001");
    assert_eq!(app.get("/spend/tags", &hash).await.status, 401);
    assert_eq!(app.get("/spend/tags", &format!("{MASTER_KEY}x")).await.status, 401);
}

#[tokio::test]
async fn a_blocked_or_deleted_key_stops_working_within_ten_seconds() {
    let app = TestApp::new().await;
    let other = app.another().await;
    add_user(&app, "u", Some("internal_user"), json!({})).await;
    for key in ["sk-blocked-later", "sk-deleted-later"] {
        add_key(&app, key, json!({ "user_id": "u" })).await;
        assert_eq!(app.get("/spend/tags", key).await.status, 200);
        assert_eq!(other.get("/spend/tags", key).await.status, 200);
    }
    sqlx::query(r#"UPDATE "LiteLLM_VerificationToken" SET blocked = true WHERE token = $1"#)
        .bind(hash_key("sk-blocked-later"))
        .execute(&app.pool)
        .await
        .unwrap();
    sqlx::query(r#"DELETE FROM "LiteLLM_VerificationToken" WHERE token = $1"#)
        .bind(hash_key("sk-deleted-later"))
        .execute(&app.pool)
        .await
        .unwrap();
    let changed = Instant::now();
    // The lookup is still cached, whatever the table says.
    assert_eq!(app.get("/spend/tags", "sk-deleted-later").await.status, 200);
    for server in [&app, &other] {
        for key in ["sk-blocked-later", "sk-deleted-later"] {
            // Constant requests do not extend the cached lookup.
            while server.get("/spend/tags", key).await.status != 401 {
                assert!(changed.elapsed() < Duration::from_secs(10), "{key} still works");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    assert!(lookup::LIFETIME < Duration::from_secs(10));
}

#[tokio::test]
async fn the_end_of_a_keys_validity_counts_at_once() {
    let database = Arc::new(database().await);
    let at = |second| Utc.with_ymd_and_hms(2026, 3, 1, 12, 0, second).unwrap();
    let limits = PoolLimits { connections: 3, wait: Duration::from_secs(5) };
    for (second, expected) in [(0, 200), (10, 200), (11, 401)] {
        let clock = Clock::fixed(at(second));
        let app = TestApp::build(Arc::clone(&database), settings(), clock, limits).await;
        if second == 0 {
            add_user(&app, "u", Some("internal_user"), json!({})).await;
            add_key(&app, KEY, json!({ "user_id": "u", "expires": "2026-03-01T12:00:10" })).await;
        }
        let answer = app.get("/spend/tags", KEY).await;
        assert_eq!(answer.status, expected, "{second}");
        if expected == 401 {
            let error = answer.json();
            assert_eq!(error["error"]["type"], "expired_key");
            assert_eq!(error["error"]["param"], "sk-...0001");
            assert!(!answer.text.contains(KEY), "{}", answer.text);
        }
    }
    // This also holds for a key whose lookup is cached: it was valid when it was looked up.
    let app = TestApp::on(database, settings()).await;
    let key = "sk-expires-soon";
    add_key(&app, key, json!({ "user_id": "u", "expires": Utc::now().naive_utc() + Duration::from_millis(700) })).await;
    assert_eq!(app.get("/spend/tags", key).await.status, 200);
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(app.get("/spend/tags", key).await.status, 401);
}

#[tokio::test]
async fn an_unknown_key_is_remembered_so_that_guessing_does_not_reach_the_database() {
    let app = TestApp::new().await;
    add_user(&app, "u", Some("internal_user"), json!({})).await;
    assert_eq!(app.get("/spend/tags", KEY).await.status, 401);
    // The answer stays the same although the key exists now, because no lookup is made.
    add_key(&app, KEY, json!({ "user_id": "u" })).await;
    assert_eq!(app.get("/spend/tags", KEY).await.status, 401);
    app.state.keys.forget(&hash_key(KEY)).await;
    assert_eq!(app.get("/spend/tags", KEY).await.status, 200);
    // A cached lookup needs no database at all.
    app.execute(r#"ALTER TABLE "LiteLLM_VerificationToken" RENAME TO away"#).await;
    assert_eq!(app.get("/user/daily/activity", KEY).await.status, 400);
    assert_eq!(app.get("/spend/tags", "sk-never-seen").await.status, 500);
    app.execute(r#"ALTER TABLE away RENAME TO "LiteLLM_VerificationToken""#).await;
    // A failed lookup is not cached.
    assert_eq!(app.get("/spend/tags", "sk-never-seen").await.status, 401);
}

#[tokio::test]
async fn many_requests_with_one_new_key_look_it_up_once() {
    let app = TestApp::new().await;
    add_user(&app, "u", Some("internal_user"), json!({})).await;
    add_key(&app, KEY, json!({ "user_id": "u" })).await;
    app.execute("CREATE SEQUENCE lookups").await;
    app.execute(
        r#"ALTER TABLE "LiteLLM_VerificationToken" RENAME TO stored_keys;
           CREATE VIEW "LiteLLM_VerificationToken" AS SELECT * FROM stored_keys WHERE nextval('lookups') > 0"#,
    )
    .await;
    let path = "/user/daily/activity";
    let answers = futures_util::future::join_all((0..50).map(|_| app.get(path, KEY))).await;
    assert!(answers.iter().all(|answer| answer.status == 400));
    assert_eq!(app.scalar("SELECT last_value::text FROM lookups").await, "1");
}

#[tokio::test]
async fn a_key_is_limited_to_its_allowed_routes() {
    let app = TestApp::new().await;
    add_user(&app, "admin", Some("proxy_admin"), json!({})).await;
    let routes = ["/spend/tags", "/spend/logs", "/global/spend/tags", "/get/allowed_ips"];
    for (number, allowed, expected) in [
        (1, json!([]), [200, 200, 400, 200]),
        (2, json!(null), [200, 200, 400, 200]),
        (3, json!(["/spend/tags"]), [200, 403, 403, 403]),
        (4, json!(["/spend/*", "/get/allowed_ips"]), [200, 200, 403, 200]),
        (5, json!(["spend_tracking_routes"]), [200, 200, 403, 403]),
        (6, json!(["global_spend_tracking_routes"]), [403, 403, 400, 403]),
        (7, json!(["llm_api_routes"]), [403, 403, 403, 403]),
    ] {
        let key = format!("sk-limited-{number}");
        add_key(&app, &key, json!({ "user_id": "admin", "allowed_routes": allowed })).await;
        for (route, expected) in routes.iter().zip(expected) {
            let answer = app.get(route, &key).await;
            assert_eq!(answer.status, expected, "{allowed} {route}");
            assert_eq!(
                answer.status == 403,
                answer.json().get("detail").is_some_and(Value::is_string),
                "{}",
                answer.text
            );
        }
    }
}

#[tokio::test]
async fn the_permission_get_spend_routes_opens_the_global_reads_alone() {
    let app = TestApp::new().await;
    add_user(&app, "u", Some("internal_user"), json!({})).await;
    add_key(&app, KEY, json!({ "user_id": "u", "permissions": { "get_spend_routes": true } })).await;
    add_key(&app, "sk-without", json!({ "user_id": "u", "permissions": { "other": 1 } })).await;
    let dates = "start_date=2026-01-01&end_date=2026-01-02";
    for path in ["/global/spend/tags", "/global/spend/report"] {
        let path = format!("{path}?{dates}");
        assert_eq!(app.get(&path, KEY).await.status, 200, "{path}");
        assert_eq!(app.get(&path, "sk-without").await.status, 401, "{path}");
    }
    assert_eq!(app.get("/get/allowed_ips", KEY).await.status, 401);
    assert_eq!(app.post("/global/spend/reset", KEY, &json!({})).await.status, 401);
}

#[tokio::test]
async fn keys_of_blocked_teams_and_deactivated_users_do_not_count() {
    let app = TestApp::new().await;
    add_user(&app, "active", Some("internal_user"), json!({ "scim_active": true })).await;
    add_user(&app, "gone", Some("proxy_admin"), json!({ "scim_active": false })).await;
    let team = |id, blocked| {
        json!({ "team_id": id, "blocked": blocked, "members_with_roles": [], "models": [], "admins": [],
                "members": [], "spend": 0.0, "metadata": {}, "model_spend": {}, "model_max_budget": {},
                "allow_team_guardrail_config": false, "created_at": "2026-01-01T00:00:00",
                "updated_at": "2026-01-01T00:00:00" })
    };
    insert(
        &mut app.pool.acquire().await.unwrap(),
        "LiteLLM_TeamTable",
        &json!([team("open", false), team("shut", true)]),
    )
    .await;
    for (key, columns, expected) in [
        ("sk-1", json!({ "user_id": "active", "team_id": "open" }), 200),
        ("sk-2", json!({ "user_id": "active", "team_id": "shut" }), 401),
        ("sk-3", json!({ "user_id": "active", "team_id": "no such team" }), 200),
        ("sk-4", json!({ "user_id": "gone" }), 401),
        ("sk-5", json!({ "user_id": "active", "blocked": true }), 401),
        ("sk-6", json!({ "user_id": "active", "blocked": false }), 200),
        // A key without a user may not read spend; a key whose user does not exist may not either.
        ("sk-7", json!({ "team_id": "open" }), 401),
        ("sk-8", json!({ "user_id": "nobody" }), 401),
    ] {
        add_key(&app, key, columns).await;
        let answer = app.get("/spend/tags", key).await;
        assert_eq!(answer.status, expected, "{key}: {}", answer.text);
    }
}

#[tokio::test]
async fn the_master_key_needs_no_table() {
    let app = TestApp::new().await;
    app.execute(r#"DROP TABLE "LiteLLM_VerificationToken""#).await;
    let builder = request(axum::http::Method::GET, "/spend/tags", MASTER_KEY);
    assert_eq!(app.send(builder.body(Body::empty()).unwrap()).await.status, 200);
}
