//! Authority: sessions, what keys may grant, patterns of routes, permissions, logins, and floods of unknown keys.

use axum::body::Body;
use axum::http::Request;
use chrono::{TimeDelta, Utc};
use litespend::identity::{MASTER_USER_ID, hash_key};
use litespend::settings::Settings;
use serde_json::{Value, json};

use crate::support::accounts::{add_key, add_user, claims, log_in_from, session, with_dashboard};
use crate::support::{Answer, MASTER_KEY, TestApp, settings};

const DATES: &str = "start_date=2026-01-01&end_date=2026-01-02";

async fn status(app: &TestApp, path: &str, key: &str) -> u16 {
    app.get(path, key).await.status.as_u16()
}

/// An application with the dashboard, an admin and a user.
async fn app() -> TestApp {
    let app = TestApp::with(with_dashboard()).await;
    add_user(&app, "root", Some("proxy_admin")).await;
    add_user(&app, "ada", Some("internal_user")).await;
    app
}

#[tokio::test]
async fn a_session_has_the_routes_the_permissions_and_the_end_of_its_key() {
    let app = app().await;
    let expires = (Utc::now() + TimeDelta::hours(1)).naive_utc();
    let columns = json!({"user_id": "root", "allowed_routes": ["/spend/tags"], "expires": expires, "models": ["gpt-4o"],
                         "max_budget": 2.5});
    add_key(&app, "sk-limited-admin", columns).await;
    let answer = log_in_from(&app, "127.0.0.1:1", "root", "sk-limited-admin").await;
    let told = claims(&answer);
    assert_eq!(told["exp"], expires.and_utc().timestamp());
    let session = told["key"].as_str().unwrap();
    assert_eq!(status(&app, "/spend/tags", session).await, 200);
    assert_eq!(status(&app, "/get/allowed_ips", session).await, 403);
    assert_eq!(app.post("/key/generate", session, &json!({})).await.status, 403);
    let stored = app
        .scalar(
            r#"SELECT jsonb_build_object('models', models, 'routes', allowed_routes, 'budget', max_budget)::text
               FROM "LiteLLM_VerificationToken" WHERE team_id = 'litellm-dashboard'"#,
        )
        .await;
    let stored: Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(stored, json!({"models": ["gpt-4o"], "routes": ["/spend/tags"], "budget": 2.5}));

    // A session lasts a day even if its key lives longer. A permission that the key loses is removed from the session
    // too.
    add_key(&app, "sk-reader", json!({"user_id": "ada", "permissions": {"get_spend_routes": true}, "team_id": "t-1"}))
        .await;
    let answer = log_in_from(&app, "127.0.0.1:1", "ada", "sk-reader").await;
    let left = claims(&answer)["exp"].as_i64().unwrap() - Utc::now().timestamp();
    assert!((86_390..=86_400).contains(&left), "{left}");
    let session = claims(&answer)["key"].as_str().unwrap().to_owned();
    let report = format!("/global/spend/report?{DATES}");
    assert_eq!(status(&app, &report, &session).await, 200);
    assert_eq!(status(&app, &format!("/team/spend/report?{DATES}"), &session).await, 200, "its key's team");
    app.execute(
        r#"UPDATE "LiteLLM_VerificationToken" SET permissions = '{}', allowed_routes = '{/global/*}'
                   WHERE team_id = 't-1'"#,
    )
    .await;
    app.state.keys.forget(&hash_key("sk-reader")).await;
    assert_eq!(status(&app, &report, &session).await, 401);
    assert_eq!(status(&app, "/spend/logs", &session).await, 403);
    // The session's key cannot open another session.
    assert_eq!(log_in_from(&app, "127.0.0.1:1", "ada", &session).await.status, 401);
}

#[tokio::test]
async fn a_session_dies_with_its_key() {
    let app = app().await;
    for (number, change) in [
        r#"UPDATE "LiteLLM_VerificationToken" SET blocked = true WHERE key_alias = 'k'"#,
        r#"DELETE FROM "LiteLLM_VerificationToken" WHERE key_alias = 'k'"#,
        r#"UPDATE "LiteLLM_VerificationToken" SET expires = now() AT TIME ZONE 'UTC' - interval '1 s' WHERE key_alias = 'k'"#,
        r#"UPDATE "LiteLLM_TeamTable" SET blocked = true WHERE team_id = 't-1'"#,
        r#"UPDATE "LiteLLM_VerificationToken" SET user_id = 'root' WHERE key_alias = 'k'"#,
        r#"DELETE FROM "LiteLLM_UserTable" WHERE user_id = 'ada'"#,
        r#"UPDATE "LiteLLM_VerificationToken" SET metadata = '{}' WHERE team_id = 'litellm-dashboard' AND false"#,
    ]
    .into_iter()
    .enumerate()
    {
        app.execute(
            r#"DELETE FROM "LiteLLM_TeamTable"; DELETE FROM "LiteLLM_VerificationToken";
               INSERT INTO "LiteLLM_TeamTable" (team_id) VALUES ('t-1');
               INSERT INTO "LiteLLM_UserTable" (user_id, user_role) VALUES ('ada', 'internal_user') ON CONFLICT DO NOTHING"#,
        )
        .await;
        let key = format!("sk-parent-{number}");
        add_key(&app, &key, json!({"user_id": "ada", "team_id": "t-1", "key_alias": "k"})).await;
        let session = session(&app, "ada", &key).await;
        assert_eq!(status(&app, "/spend/tags", &session).await, 200);
        app.execute(change).await;
        app.state.keys.forget_all();
        let expected = if change.ends_with("false") { 200 } else { 401 };
        assert_eq!(status(&app, "/spend/tags", &session).await, expected, "{change}");
    }
}

#[tokio::test]
async fn blocking_or_deleting_a_key_here_ends_its_sessions_at_once_and_for_good() {
    let app = app().await;
    for (path, back) in [("/key/block", "/key/unblock"), ("/key/delete", "/key/generate")] {
        let key = "sk-parent-and-again";
        let made = app.post("/key/generate", MASTER_KEY, &json!({"key": key, "user_id": "ada"})).await;
        assert_eq!(made.status, 200, "{}", made.text);
        let session = session(&app, "ada", key).await;
        assert_eq!(status(&app, "/spend/tags", &session).await, 200);
        let body = json!({"key": key, "keys": [key]});
        assert_eq!(app.post(path, MASTER_KEY, &body).await.status, 200);
        assert_eq!(status(&app, "/spend/tags", &session).await, 401, "{path}");
        let again = app.post(back, MASTER_KEY, &json!({"key": key, "user_id": "ada"})).await;
        assert_eq!(again.status, 200, "{}", again.text);
        assert_eq!(status(&app, "/spend/tags", key).await, 200);
        assert_eq!(status(&app, "/spend/tags", &session).await, 401, "{back}");
        app.post("/key/delete", MASTER_KEY, &json!({"keys": [key]})).await;
    }
}

#[tokio::test]
async fn an_admins_session_ends_with_the_password_and_the_secret() {
    let app = app().await;
    let session = session(&app, "admin", MASTER_KEY).await;
    assert_eq!(status(&app, "/get/allowed_ips", &session).await, 200);
    assert_eq!(app.beside(with_dashboard()).get("/get/allowed_ips", &session).await.status, 200, "the same settings");
    let other_password = || {
        let mut settings = with_dashboard();
        settings.ui.as_mut().unwrap().password = Some("another password".into());
        settings
    };
    let other_secret = || {
        let mut settings = with_dashboard();
        settings.authority.secret = Some("0123456789abcdef".into());
        settings
    };
    for settings in
        [Settings { master_key: "sk-another-master".into(), ..with_dashboard() }, other_password(), other_secret()]
    {
        let other = app.beside(settings);
        assert_eq!(status(&other, "/get/allowed_ips", &session).await, 401);
    }
    // Two servers with the same secret accept each other's sessions, also on LiteLLM's database.
    app.execute("CREATE TABLE _prisma_migrations (id text)").await;
    let managing = |settings: Settings| Settings { manage_litellm_keys: true, ..settings };
    let (one, other) = (app.beside(managing(other_secret())), app.beside(managing(other_secret())));
    let shared = crate::support::accounts::session(&one, "admin", MASTER_KEY).await;
    assert_eq!(status(&other, "/get/allowed_ips", &shared).await, 200);
    // Without a secret, sessions end with the process.
    let (one, other) = (app.beside(managing(with_dashboard())), app.beside(managing(with_dashboard())));
    let own = crate::support::accounts::session(&one, "admin", MASTER_KEY).await;
    assert_eq!(status(&one, "/get/allowed_ips", &own).await, 200);
    assert_eq!(status(&other, "/get/allowed_ips", &own).await, 401);
}

#[tokio::test]
async fn a_forged_link_or_one_moved_to_another_key_opens_nothing() {
    let app = app().await;
    add_key(&app, "sk-root", json!({"user_id": "root"})).await;
    let session = session(&app, "admin", MASTER_KEY).await;
    let link: String = app
        .scalar(r#"SELECT metadata::text FROM "LiteLLM_VerificationToken" WHERE team_id = 'litellm-dashboard'"#)
        .await;
    let copied: Value = serde_json::from_str(&link).unwrap();
    for (number, metadata) in [
        copied,
        json!({"litespend_session": {"parent": hash_key("sk-root"), "seal": ""}}),
        json!({"litespend_session": {"parent": hash_key("sk-root")}}),
        json!({"litespend_session": {"seal": "x"}}),
        json!({"litespend_session": null}),
        json!({"litespend_session": []}),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("sk-forged-{number}");
        add_key(&app, &key, json!({"user_id": MASTER_USER_ID, "metadata": metadata, "team_id": "litellm-dashboard"}))
            .await;
        assert_eq!(status(&app, "/get/allowed_ips", &key).await, 401, "{metadata}");
    }
    assert_eq!(status(&app, "/get/allowed_ips", &session).await, 200);
    for (path, body) in [
        ("/key/generate", json!({"metadata": {"litespend_session": {"parent": hash_key("sk-root")}}})),
        ("/key/generate", json!({"team_id": "litellm-dashboard"})),
        ("/team/new", json!({"team_id": "litellm-dashboard"})),
        ("/user/new", json!({"teams": ["litellm-dashboard"]})),
    ] {
        let answer = app.post(path, MASTER_KEY, &body).await;
        assert_eq!(answer.status, 422, "{path} {body}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_login_writes_no_role_and_the_masters_account_is_had_with_the_master_key_alone() {
    let app = app().await;
    add_user(&app, MASTER_USER_ID, Some("internal_user")).await;
    add_key(&app, "sk-of-the-account", json!({"user_id": MASTER_USER_ID})).await;
    assert_eq!(log_in_from(&app, "127.0.0.1:1", MASTER_USER_ID, "sk-of-the-account").await.status, 401);
    assert_eq!(app.post("/key/generate", "sk-of-the-account", &json!({})).await.status, 401);
    let admin = session(&app, "admin", MASTER_KEY).await;
    assert_eq!(status(&app, "/get/allowed_ips", &admin).await, 200);
    assert_eq!(app.get("/v2/user/info", &admin).await.json()["user_id"], MASTER_USER_ID);
    let role = r#"SELECT user_role FROM "LiteLLM_UserTable" WHERE user_id = 'default_user_id'"#;
    assert_eq!(app.scalar(role).await, "internal_user");
    // A login does not create a user either.
    app.execute(r#"DELETE FROM "LiteLLM_UserTable""#).await;
    app.state.keys.forget_all();
    let admin = session(&app, "admin", MASTER_KEY).await;
    assert_eq!(status(&app, "/get/allowed_ips", &admin).await, 200);
    assert_eq!(app.scalar(r#"SELECT count(*)::text FROM "LiteLLM_UserTable""#).await, "0");
    // Where keys and users are created, the account still belongs to the master key.
    assert_eq!(app.post("/key/generate", &admin, &json!({"user_id": MASTER_USER_ID})).await.status, 200);
}

/// Sends a body, and checks the status of the answer.
async fn gives(app: &TestApp, path: &str, key: &str, body: Value, expected: u16) -> Answer {
    let answer = app.post(path, key, &body).await;
    assert_eq!(answer.status.as_u16(), expected, "{path} {body}: {}", answer.text);
    answer
}

#[tokio::test]
async fn nobody_gives_what_they_do_not_have() {
    let app = app().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_TeamTable" (team_id) VALUES ('own'), ('member'), ('foreign');
           UPDATE "LiteLLM_UserTable" SET teams = '{member}' WHERE user_id = 'root'"#,
    )
    .await;
    let routes = json!(["/key/generate", "/key/unblock", "/user/new", "/team/new", "/spend/*"]);
    let columns =
        json!({"user_id": "root", "team_id": "own", "allowed_routes": routes, "permissions": {"book_usage": true}});
    add_key(&app, "sk-maker", columns).await;
    let maker = session(&app, "root", "sk-maker").await;
    add_key(&app, "sk-of-ghost", json!({"user_id": "ghost"})).await;
    add_key(&app, "sk-blocked-free", json!({"user_id": "root", "blocked": true})).await;
    add_key(&app, "sk-blocked-narrow", json!({"user_id": "root", "blocked": true, "allowed_routes": ["/spend/tags"]}))
        .await;
    let session_key = maker.clone();
    for key in ["sk-maker", session_key.as_str()] {
        for (path, body, expected) in [
            ("/key/generate", json!({"allowed_routes": ["/spend/tags"]}), 200),
            ("/key/generate", json!({"allowed_routes": ["/spend/tags", "/key/delete"]}), 403),
            ("/key/generate", json!({"allowed_routes": ["*"]}), 403),
            ("/key/generate", json!({"allowed_routes": ["management_routes"]}), 403),
            ("/key/generate", json!({"allowed_routes": ["/spend*"]}), 403),
            ("/key/generate", json!({"permissions": {"book_usage": true}}), 200),
            ("/key/generate", json!({"permissions": {"get_spend_routes": true}}), 403),
            ("/key/generate", json!({"permissions": {"get_spend_routes": false}}), 200),
            ("/key/generate", json!({"permissions": {"book_usage": 1}}), 403),
            ("/key/generate", json!({"team_id": "own"}), 200),
            ("/key/generate", json!({"team_id": "member"}), 200),
            ("/key/generate", json!({"team_id": "foreign"}), 403),
            ("/key/generate", json!({"user_id": MASTER_USER_ID}), 403),
            ("/user/new", json!({"user_id": MASTER_USER_ID}), 403),
            ("/user/new", json!({"user_id": "ghost", "user_role": "proxy_admin"}), 403),
            ("/user/new", json!({"teams": ["foreign"]}), 403),
            ("/user/new", json!({"user_id": "root", "user_role": "proxy_admin"}), 403),
            ("/team/new", json!({"team_id": "chosen"}), 403),
            ("/team/new", json!({"members_with_roles": [{"user_id": "ghost", "role": "admin"}]}), 403),
            ("/team/new", json!({"members_with_roles": [{"user_id": MASTER_USER_ID, "role": "user"}]}), 403),
            ("/team/new", json!({}), 200),
            ("/key/unblock", json!({"key": "sk-blocked-free"}), 403),
            ("/key/unblock", json!({"key": "sk-blocked-narrow"}), 200),
        ] {
            gives(&app, path, key, body, expected).await;
        }
        // A new key without routes gets its creator's routes; so does the key of a new user.
        for (path, body) in
            [("/key/generate", json!({"user_id": "root"})), ("/user/new", json!({"user_role": "proxy_admin"}))]
        {
            let made = gives(&app, path, key, body, 200).await.json();
            let made = made["key"].as_str().unwrap();
            assert_eq!(status(&app, "/get/allowed_ips", made).await, 403, "{path}");
            assert_eq!(status(&app, "/spend/tags", made).await, 200, "{path}");
            gives(&app, "/key/generate", made, json!({"allowed_routes": ["*"]}), 403).await;
        }
    }
    assert_eq!(status(&app, "/spend/tags", "sk-of-ghost").await, 401, "the ghost is nobody still");
    // A caller with all rights can grant everything, except the master key's account.
    add_key(&app, "sk-free", json!({"user_id": "root"})).await;
    gives(
        &app,
        "/key/generate",
        "sk-free",
        json!({"allowed_routes": ["/key/delete"], "permissions": {"x": true}}),
        200,
    )
    .await;
    gives(&app, "/key/generate", "sk-free", json!({"user_id": MASTER_USER_ID}), 403).await;
    gives(&app, "/key/generate", MASTER_KEY, json!({"user_id": MASTER_USER_ID}), 200).await;
    // Names and keys that could be mistaken for others.
    for body in [
        json!({"key_alias": hash_key("sk-free")}),
        json!({"key_alias": "sk-free"}),
        json!({"key_alias": "litellm_proxy_master_key"}),
    ] {
        gives(&app, "/key/generate", "sk-free", body, 422).await;
    }
    let long_master = Settings { master_key: "sk-master-of-more-than-16".into(), ..settings() };
    let other = app.beside(long_master);
    gives(&other, "/key/generate", "sk-master-of-more-than-16", json!({"key": "sk-master-of-more-than-16"}), 400).await;
    gives(&other, "/user/new", "sk-master-of-more-than-16", json!({"key": "sk-master-of-more-than-16"}), 400).await;
}

#[tokio::test]
async fn a_pattern_without_content_opens_nothing_and_is_refused_where_it_is_written() {
    let app = app().await;
    let blank = ["", " ", "\t", "/", "\n*", " *", "**", "//", "\u{a0}"];
    for (number, pattern) in blank.into_iter().enumerate() {
        let key = format!("sk-blank-{number}");
        add_key(&app, &key, json!({"user_id": "root", "allowed_routes": [pattern]})).await;
        for path in ["/spend/tags", "/get/allowed_ips", "/key/info", "/user/list", "/metrics"] {
            assert_eq!(status(&app, path, &key).await, 403, "{pattern:?} {path}");
        }
        let session = session(&app, "root", &key).await;
        assert_eq!(status(&app, "/spend/tags", &session).await, 403, "{pattern:?}");
        if !["/", "//"].contains(&pattern) {
            gives(&app, "/key/generate", MASTER_KEY, json!({"allowed_routes": ["/spend/tags", pattern]}), 422).await;
        }
    }
    app.execute(
        r#"UPDATE "LiteLLM_VerificationToken" SET allowed_routes = ARRAY[NULL]::text[] WHERE user_id = 'root'"#,
    )
    .await;
    app.state.keys.forget_all();
    assert_eq!(status(&app, "/spend/tags", "sk-blank-0").await, 403, "a list of nothing is a list");
}

#[tokio::test]
async fn a_permission_counts_by_its_value() {
    let app = app().await;
    for (number, (value, expected)) in [
        (json!(true), 200),
        (json!(false), 401),
        (json!(null), 401),
        (json!("false"), 401),
        (json!(0), 401),
        (json!([]), 401),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("sk-permission-{number}");
        add_key(&app, &key, json!({"user_id": "ada", "permissions": {"get_spend_routes": value}})).await;
        assert_eq!(status(&app, &format!("/global/spend/tags?{DATES}"), &key).await, expected, "{value}");
    }
    add_key(&app, "sk-list", json!({"user_id": "ada", "permissions": ["get_spend_routes"]})).await;
    assert_eq!(status(&app, &format!("/global/spend/tags?{DATES}"), "sk-list").await, 401);
}

#[tokio::test]
async fn keys_without_a_user_or_a_team_share_nothing() {
    let app = app().await;
    add_key(&app, "sk-nobody-1", json!({"user_id": "", "team_id": ""})).await;
    add_key(&app, "sk-nobody-2", json!({"user_id": "", "team_id": "", "key_alias": "canary"})).await;
    add_key(&app, "sk-ada-no-team", json!({"user_id": "ada", "team_id": ""})).await;
    // Even if a user with an empty id exists.
    add_user(&app, "", Some("internal_user")).await;
    app.execute(
        r#"UPDATE "LiteLLM_UserTable" SET user_alias = 'canary', teams = '{t-0,""}' WHERE user_id = '';
           INSERT INTO "LiteLLM_TeamTable" (team_id, team_alias) VALUES ('t-0', 'canary');
           INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, "user", team_id, model, spend, "startTime", "endTime")
           VALUES ('canary', 'x', 'canary', '', '', 'canary', 7, '2026-01-01', '2026-01-01');
           INSERT INTO "LiteLLM_DailyUserSpend" (id, user_id, date, api_key, model, endpoint, spend, successful_requests, updated_at)
           VALUES ('1', '', '2026-01-01', 'canary', 'canary', '/canary', 7, 1, now())"#,
    )
    .await;
    for path in [
        "/spend/logs",
        "/spend/tags",
        "/spend/keys",
        "/spend/users",
        "/key/list",
        "/v2/team/list",
        "/team/info?team_id=t-0",
        "/team/info?team_id=",
        "/v2/user/info",
        "/v2/user/info?user_id=",
        "/management/v1/users/me",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain(
        [
            "/gateway/daily/activity",
            "/user/daily/activity",
            "/global/activity",
            "/team/spend/report",
            "/user/spend/report",
            "/team/daily/activity",
            "/spend/logs/v2",
            "/spend/logs/ui",
        ]
        .map(|path| format!("{path}?{DATES}")),
    ) {
        for key in ["sk-nobody-1", "sk-ada-no-team"] {
            let answer = app.get(&path, key).await;
            assert!(!answer.text.contains("canary"), "{key} {path}: {}", answer.text);
            assert!(answer.status.as_u16() < 500, "{key} {path}: {}", answer.text);
        }
    }
}

#[tokio::test]
async fn a_flood_of_unknown_keys_is_refused_and_known_ones_go_on() {
    let mut settings = settings();
    settings.authority.key_lookups = 5;
    let app = TestApp::with(settings).await;
    add_user(&app, "ada", Some("internal_user")).await;
    add_key(&app, "sk-known", json!({"user_id": "ada"})).await;
    add_key(&app, "sk-seen-before", json!({"user_id": "ada"})).await;
    for key in ["sk-known", "sk-seen-before"] {
        assert_eq!(status(&app, "/spend/tags", key).await, 200);
    }
    let started = std::time::Instant::now();
    let mut refused: u64 = 0;
    for number in 0..300 {
        let answer = app.get("/spend/tags", &format!("sk-guess-{number}")).await;
        if answer.status == 429 {
            assert_eq!(answer.headers["retry-after"], "1");
            refused += 1;
        } else {
            assert_eq!(answer.status, 401);
        }
        assert_eq!(status(&app, "/spend/tags", "sk-known").await, 200);
    }
    let turns = 5 + 5 * (started.elapsed().as_secs() + 1);
    assert!(300 - refused <= turns, "{refused} refused in {:?}", started.elapsed());
    // Meanwhile an existing key can be looked up again. An unknown key that was answered before is answered from the
    // cache.
    app.state.keys.forget(&hash_key("sk-seen-before")).await;
    assert_eq!(status(&app, "/spend/tags", "sk-seen-before").await, 200);
    assert_eq!(status(&app, "/spend/tags", "sk-guess-0").await, 401);
}

async fn log_in_with(app: &TestApp, headers: &[(&str, &str)], peer: &str) -> Answer {
    let mut request = Request::post("/v2/login");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = json!({"username": "admin", "password": MASTER_KEY}).to_string();
    app.send_from(request.body(Body::from(body)).unwrap(), peer.parse().unwrap()).await
}

#[tokio::test]
async fn a_login_is_json_from_this_servers_own_pages() {
    let app = app().await;
    const JSON: (&str, &str) = ("content-type", "application/json");
    for (headers, expected) in [
        (&[JSON][..], 200),
        (&[("content-type", "application/json; charset=utf-8")], 200),
        (&[], 415),
        (&[("content-type", "text/plain")], 415),
        (&[("content-type", "application/x-www-form-urlencoded")], 415),
        (&[JSON, ("host", "a.example"), ("origin", "http://a.example")], 200),
        (&[JSON, ("host", "a.example:443"), ("origin", "https://A.example")], 200),
        (&[JSON, ("host", "a.example"), ("origin", "http://b.example")], 403),
        (&[JSON, ("host", "a.example"), ("origin", "null")], 403),
        (&[JSON, ("host", "a.example"), ("origin", "http://a.example.b.example")], 403),
        (&[JSON, ("host", "a.example"), ("origin", "http://a.example@b.example")], 403),
        (&[JSON, ("host", "a.example"), ("origin", "file://a.example")], 403),
        (&[JSON, ("host", "a.example"), ("origin", "http://b.example"), ("x-forwarded-host", "b.example")], 403),
        (&[JSON, ("sec-fetch-site", "same-origin")], 200),
        (&[JSON, ("sec-fetch-site", "none")], 200),
        (&[JSON, ("sec-fetch-site", "cross-site")], 403),
        (&[JSON, ("sec-fetch-site", "same-site")], 403),
        (&[JSON, ("sec-fetch-site", "same-origin, cross-site")], 403),
    ] {
        let answer = log_in_with(&app, headers, "127.0.0.1:1").await;
        assert_eq!(answer.status.as_u16(), expected, "{headers:?}: {}", answer.text);
        assert_eq!(answer.headers.contains_key("set-cookie"), expected == 200);
    }
}

#[tokio::test]
async fn what_a_proxy_says_of_a_login_counts_from_trusted_ones_and_hosts_are_hosts() {
    let mut settings = with_dashboard();
    settings.use_x_forwarded_for = true;
    settings.trusted_proxies = vec!["10.0.0.1/32".parse().unwrap()];
    let app = TestApp::with(settings).await;
    const JSON: (&str, &str) = ("content-type", "application/json");
    let https = [JSON, ("host", "a.example"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "b.example")];
    for (peer, url, secure) in [
        ("10.0.0.1:1", "https://b.example/ui?login=success", true),
        ("10.0.0.2:1", "http://a.example/ui?login=success", false),
    ] {
        let answer = log_in_with(&app, &https, peer).await;
        assert_eq!(answer.json()["redirect_url"], url);
        let cookie = answer.headers["set-cookie"].to_str().unwrap().to_owned();
        assert_eq!(cookie.contains("Secure"), secure, "{peer}: {cookie}");
    }
    for host in ["a.example/path", "user@a.example", "a.example?x", "javascript:alert(1)", "a b", "", "a.example#"] {
        let answer = log_in_with(&app, &[JSON, ("host", host)], "10.0.0.2:1").await;
        assert_eq!(answer.json()["redirect_url"], "/ui?login=success", "{host}");
    }
    let two = log_in_with(&app, &[JSON, ("host", "a.example"), ("host", "b.example")], "10.0.0.2:1").await;
    assert_eq!(two.json()["redirect_url"], "/ui?login=success");
}
