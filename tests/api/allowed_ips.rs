//! The list of allowed addresses.

use axum::body::Body;
use axum::http::{Method, Request};
use litespend::settings::network::parse_network;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, MASTER_KEY, TestApp, request, settings};

const HOME: &str = "127.0.0.1:1";
const ELSEWHERE: &str = "10.1.2.3:1";

async fn get_from(app: &TestApp, path: &str, peer: &str) -> Answer {
    app.send_from(request(Method::GET, path, MASTER_KEY).body(Body::empty()).unwrap(), peer.parse().unwrap()).await
}

async fn status_from(app: &TestApp, path: &str, peer: &str) -> u16 {
    get_from(app, path, peer).await.status.as_u16()
}

async fn change(app: &TestApp, path: &str, ip: impl Into<Value>) -> u16 {
    app.post(path, MASTER_KEY, &json!({ "ip": ip.into() })).await.status.as_u16()
}

async fn stored(app: &TestApp) -> Value {
    let text =
        app.scalar(r#"SELECT (param_value)::text FROM "LiteLLM_Config" WHERE param_name = 'general_settings'"#).await;
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn a_restriction_covers_every_route_but_the_liveness_probes() {
    let app = TestApp::new().await;
    assert_eq!(status_from(&app, "/spend/tags", ELSEWHERE).await, 200);
    assert_eq!(change(&app, "/add/allowed_ip", "127.0.0.1").await, 200);
    for path in ["/spend/tags", "/get/allowed_ips", "/no/such/path", "/", "/docs", "/openapi.json", "/health/readiness"]
    {
        let answer = get_from(&app, path, ELSEWHERE).await;
        assert_eq!(answer.status, 403, "{path}");
        assert_eq!(answer.json()["error"]["type"], "auth_error", "{path}");
    }
    assert_eq!(status_from(&app, "/metrics", ELSEWHERE).await, 403);
    for path in ["/health/liveliness", "/health/liveness"] {
        assert_eq!(status_from(&app, path, ELSEWHERE).await, 200, "{path}");
    }
    assert_eq!(status_from(&app, "/spend/tags", HOME).await, 200);
    assert_eq!(status_from(&app, "/no/such/path", HOME).await, 404);
    // If the address is refused, nothing else about the request matters: even a wrong method gets the same answer.
    let post = request(Method::POST, "/spend/tags", MASTER_KEY).body(Body::empty()).unwrap();
    assert_eq!(app.send_from(post, ELSEWHERE.parse().unwrap()).await.status, 403);
}

#[tokio::test]
async fn a_request_without_a_known_address_is_refused_once_there_is_a_restriction() {
    let app = TestApp::new().await;
    let send = || async {
        let request = request(Method::GET, "/spend/tags", MASTER_KEY).body(Body::empty()).unwrap();
        tower::ServiceExt::oneshot(litespend::http::router::build(app.state.clone()), request).await.unwrap().status()
    };
    assert_eq!(send().await, 200);
    change(&app, "/add/allowed_ip", "127.0.0.1").await;
    assert_eq!(send().await, 403);
}

#[tokio::test]
async fn ranges_and_mapped_addresses_are_understood() {
    let app = TestApp::new().await;
    for entry in ["::ffff:127.0.0.1", "10.1.0.0/16", "2001:db8::/32", "::ffff:172.16.0.0/108"] {
        assert_eq!(change(&app, "/add/allowed_ip", entry).await, 200, "{entry}");
    }
    for (peer, expected) in [
        ("127.0.0.1:1", 200),
        ("[::ffff:127.0.0.1]:1", 200),
        ("10.1.255.255:1", 200),
        ("[::ffff:10.1.2.3]:1", 200),
        ("10.2.0.0:1", 403),
        ("[2001:db8:1::5]:1", 200),
        ("[2001:db9::5]:1", 403),
        ("172.31.0.1:1", 200),
        ("172.32.0.1:1", 403),
    ] {
        assert_eq!(status_from(&app, "/spend/tags", peer).await, expected, "{peer}");
    }
    // Another spelling of an existing entry counts as that entry.
    for same in ["127.0.0.1", "127.0.0.1/32", "10.1.9.9/16", "2001:0db8::/32"] {
        assert_eq!(change(&app, "/add/allowed_ip", same).await, 400, "{same}");
    }
    assert_eq!(change(&app, "/delete/allowed_ip", "10.1.9.9/16").await, 200);
    assert_eq!(status_from(&app, "/spend/tags", "10.1.2.3:1").await, 403);
}

#[tokio::test]
async fn what_is_no_address_is_refused_and_not_stored() {
    let app = TestApp::new().await;
    for junk in ["", " ", "junk", "10.0.0.256", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "10.0.0.1:80", "[::1]", "::1%lo"] {
        let answer = app.post("/add/allowed_ip", MASTER_KEY, &json!({ "ip": junk })).await;
        assert_eq!(answer.status, 422, "{junk}");
        assert_eq!(answer.json()["detail"][0]["loc"], json!(["body", "ip"]), "{junk}");
    }
    for junk in [json!(null), json!(5), json!(["10.0.0.1"]), json!("10.0.0.1\u{0}"), json!("1".repeat(100_000))] {
        assert_eq!(change(&app, "/add/allowed_ip", junk.clone()).await, 422, "{junk:.40}");
    }
    assert_eq!(app.post("/add/allowed_ip", MASTER_KEY, &json!({})).await.status, 422);
    assert_eq!(change(&app, "/delete/allowed_ip", "junk\u{0}").await, 404);
    assert_eq!(app.get("/get/allowed_ips", MASTER_KEY).await.json(), json!({ "data": null }));
}

#[tokio::test]
async fn nobody_locks_itself_out_unless_it_insists() {
    let app = TestApp::new().await;
    let answer = app.post("/add/allowed_ip", MASTER_KEY, &json!({ "ip": "10.0.0.0/8" })).await;
    assert_eq!(answer.status, 409);
    assert!(answer.text.contains("127.0.0.1") && answer.text.contains("force=true"), "{}", answer.text);
    assert_eq!(app.get("/get/allowed_ips", MASTER_KEY).await.json(), json!({ "data": null }));
    assert_eq!(status_from(&app, "/spend/tags", "8.8.8.8:1").await, 200);

    assert_eq!(change(&app, "/add/allowed_ip?force=maybe", "10.0.0.0/8").await, 422);
    assert_eq!(change(&app, "/add/allowed_ip?force=true", "10.0.0.0/8").await, 200);
    assert_eq!(status_from(&app, "/spend/tags", HOME).await, 403);
    assert_eq!(status_from(&app, "/spend/tags", ELSEWHERE).await, 200);

    app.execute(r#"UPDATE "LiteLLM_Config" SET param_value = '{"allowed_ips": ["127.0.0.1", "10.0.0.0/8"]}'"#).await;
    app.state.refresh_allow_list().await.unwrap();
    assert_eq!(change(&app, "/delete/allowed_ip", "127.0.0.1").await, 409);
    assert_eq!(change(&app, "/delete/allowed_ip", "10.0.0.0/8").await, 200);
    // Removing the last entry lifts the restriction and locks nobody out.
    assert_eq!(change(&app, "/delete/allowed_ip", "127.0.0.1").await, 200);
    assert_eq!(stored(&app).await, json!({ "allowed_ips": [] }));
    assert_eq!(status_from(&app, "/spend/tags", "8.8.8.8:1").await, 200);
    assert_eq!(change(&app, "/delete/allowed_ip", "127.0.0.1").await, 404);
}

#[tokio::test]
async fn other_settings_of_the_row_stay_as_they_are() {
    let app = TestApp::new().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_Config" (param_name, param_value, reload_revision) VALUES
           ('general_settings', '{"alerting": ["slack"], "deep": {"a": [1, null]}}', 7), ('other', '{"x": 1}', 3)"#,
    )
    .await;
    assert_eq!(change(&app, "/add/allowed_ip", "127.0.0.1").await, 200);
    let expected = json!({ "alerting": ["slack"], "deep": { "a": [1, null] }, "allowed_ips": ["127.0.0.1"] });
    assert_eq!(stored(&app).await, expected);
    let other = app.scalar(r#"SELECT param_value::text FROM "LiteLLM_Config" WHERE param_name = 'other'"#).await;
    assert_eq!(other, r#"{"x": 1}"#);
    assert_eq!(change(&app, "/delete/allowed_ip", "127.0.0.1").await, 200);
    assert_eq!(stored(&app).await["alerting"], json!(["slack"]));
}

#[tokio::test]
async fn a_row_of_any_other_shape_is_no_list_and_can_be_made_one() {
    let app = TestApp::new().await;
    for value in
        ["NULL", "'null'", "'[1, 2]'", "'\"text\"'", "'5'", "'{\"allowed_ips\": null}'", "'{\"allowed_ips\": 3}'"]
    {
        let statement = format!(
            r#"INSERT INTO "LiteLLM_Config" (param_name, param_value) VALUES ('general_settings', {value})
               ON CONFLICT (param_name) DO UPDATE SET param_value = excluded.param_value"#
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();
        app.state.refresh_allow_list().await.unwrap();
        assert_eq!(status_from(&app, "/spend/tags", ELSEWHERE).await, 200, "{value}");
        assert_eq!(app.get("/get/allowed_ips", MASTER_KEY).await.json(), json!({ "data": null }), "{value}");
        assert_eq!(change(&app, "/delete/allowed_ip", "127.0.0.1").await, 404, "{value}");
        assert_eq!(change(&app, "/add/allowed_ip", "127.0.0.1").await, 200, "{value}");
        assert_eq!(stored(&app).await["allowed_ips"], json!(["127.0.0.1"]), "{value}");
    }
}

#[tokio::test]
async fn entries_that_litellm_stored_unchecked_allow_nobody_and_can_be_deleted() {
    let app = TestApp::new().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_Config" (param_name, param_value)
           VALUES ('general_settings', '{"allowed_ips": ["not an address", 5, "127.0.0.1"]}')"#,
    )
    .await;
    app.state.refresh_allow_list().await.unwrap();
    assert_eq!(status_from(&app, "/spend/tags", ELSEWHERE).await, 403);
    assert_eq!(status_from(&app, "/spend/tags", HOME).await, 200);
    assert_eq!(change(&app, "/delete/allowed_ip", "not an address").await, 200);
    assert_eq!(stored(&app).await["allowed_ips"], json!(["5", "127.0.0.1"]));
}

#[tokio::test]
async fn a_change_counts_at_once_here_and_soon_on_another_server() {
    let app = TestApp::new().await;
    let other = app.another().await;
    let stop = CancellationToken::new();
    let refresh = tokio::spawn(other.state.clone().keep_fresh(stop.clone()));
    assert_eq!(change(&app, "/add/allowed_ip", "127.0.0.1").await, 200);
    assert_eq!(status_from(&app, "/spend/tags", ELSEWHERE).await, 403);
    let changed = std::time::Instant::now();
    while status_from(&other, "/spend/tags", ELSEWHERE).await != 403 {
        assert!(changed.elapsed().as_secs_f64() < 5.0, "the other server does not know of the change");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    stop.cancel();
    refresh.await.unwrap();
}

#[tokio::test]
async fn concurrent_changes_by_two_servers_lose_nothing() {
    let app = TestApp::new().await;
    let other = app.another().await;
    change(&app, "/add/allowed_ip", "127.0.0.1").await;
    let requests = (0..40).map(|number| {
        let server = if number % 2 == 0 { &app } else { &other };
        async move { change(server, "/add/allowed_ip", format!("10.0.0.{number}")).await }
    });
    let answers = futures_util::future::join_all(requests).await;
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    assert_eq!(stored(&app).await["allowed_ips"].as_array().unwrap().len(), 41);
    // Each server holds the stored list as of its own last change.
    let (ours, theirs) = (app.state.allow_list.current(), other.state.allow_list.current());
    let longest = ours.entries.as_ref().unwrap().len().max(theirs.entries.as_ref().unwrap().len());
    assert_eq!(longest, 41);
    // Both servers add the same address: one of them answers that it exists already.
    let mut twice = [0, 1].map(|server| {
        let server = if server == 0 { &app } else { &other };
        Box::pin(change(server, "/add/allowed_ip", "10.9.9.9"))
    });
    let [first, second] = &mut twice;
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.min(second), 200);
    assert_eq!(first.max(second), 400);
}

#[tokio::test]
async fn the_config_files_list_counts_until_the_database_has_one() {
    let mut settings = settings();
    settings.allowed_ips = Some(vec!["127.0.0.1".into(), "10.1.0.0/16".into()]);
    let app = TestApp::with(settings).await;
    assert_eq!(status_from(&app, "/spend/tags", ELSEWHERE).await, 200);
    assert_eq!(status_from(&app, "/spend/tags", "8.8.8.8:1").await, 403);
    assert_eq!(app.get("/get/allowed_ips", MASTER_KEY).await.json(), json!({ "data": ["127.0.0.1", "10.1.0.0/16"] }));
    // The first change starts from the config file's list.
    assert_eq!(change(&app, "/add/allowed_ip", "8.8.8.8").await, 200);
    assert_eq!(stored(&app).await["allowed_ips"], json!(["127.0.0.1", "10.1.0.0/16", "8.8.8.8"]));
    assert_eq!(change(&app, "/delete/allowed_ip", "10.1.0.0/16").await, 200);
    app.state.refresh_allow_list().await.unwrap();
    assert_eq!(status_from(&app, "/spend/tags", ELSEWHERE).await, 403);
}

async fn status_forwarded(app: &TestApp, peer: &str, lines: &[&str]) -> u16 {
    let mut builder = Request::builder().uri("/spend/tags").header("api-key", MASTER_KEY);
    for line in lines {
        builder = builder.header("x-forwarded-for", axum::http::HeaderValue::from_bytes(line.as_bytes()).unwrap());
    }
    app.send_from(builder.body(Body::empty()).unwrap(), peer.parse().unwrap()).await.status.as_u16()
}

#[tokio::test]
async fn forwarded_addresses_count_behind_a_trusted_proxy_alone() {
    let mut with_proxies = settings();
    with_proxies.allowed_ips = Some(vec!["1.2.3.4".into()]);
    with_proxies.use_x_forwarded_for = true;
    with_proxies.trusted_proxies = vec![parse_network("10.0.0.0/8").unwrap(), parse_network("::1").unwrap()];
    let app = TestApp::with(with_proxies.clone()).await;
    for (peer, lines, expected) in [
        ("10.0.0.1:1", &["1.2.3.4"][..], 200),
        ("10.0.0.1:1", &["6.6.6.6, 1.2.3.4"], 200),
        ("10.0.0.1:1", &["1.2.3.4, 6.6.6.6"], 403),
        ("10.0.0.1:1", &["6.6.6.6, 1.2.3.4, 10.0.0.7"], 200),
        ("10.0.0.1:1", &["6.6.6.6", "1.2.3.4", "10.0.0.7"], 200),
        ("10.0.0.1:1", &["1.2.3.4", "6.6.6.6"], 403),
        ("10.0.0.1:1", &["1.2.3.4:5678"], 200),
        ("10.0.0.1:1", &["::ffff:1.2.3.4"], 200),
        ("10.0.0.1:1", &["[::ffff:1.2.3.4]:443"], 200),
        ("[::1]:1", &["1.2.3.4"], 200),
        ("[::ffff:10.0.0.1]:1", &["1.2.3.4"], 200),
        // An entry that is not an address, an unreadable line, no header line: the proxy itself counts as the client.
        ("10.0.0.1:1", &["1.2.3.4, unknown"], 403),
        ("10.0.0.1:1", &["1.2.3.4", "\u{fc}"], 403),
        ("10.0.0.1:1", &["1.2.3.4,"], 403),
        ("10.0.0.1:1", &[], 403),
        // The peer is not a trusted proxy.
        ("9.9.9.9:1", &["1.2.3.4"], 403),
        ("1.2.3.4:1", &["6.6.6.6"], 200),
    ] {
        assert_eq!(status_forwarded(&app, peer, lines).await, expected, "{peer} {lines:?}");
    }
    let mut switched_off = with_proxies;
    switched_off.use_x_forwarded_for = false;
    let app = TestApp::with(switched_off).await;
    assert_eq!(status_forwarded(&app, "10.0.0.1:1", &["1.2.3.4"]).await, 403);
}
