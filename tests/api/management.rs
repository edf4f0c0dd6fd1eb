//! `/key/...`, `/team/...`, `/user/...`.

use axum::http::StatusCode;
use litespend::identity::hash_key;
use serde_json::{Value, json};

use crate::support::{Answer, MASTER_KEY, TestApp, insert, settings};

async fn made(app: &TestApp, path: &str, body: Value) -> Value {
    let answer = app.post(path, MASTER_KEY, &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    answer.json()
}

async fn refused(app: &TestApp, path: &str, body: Value, status: u16) -> Answer {
    let answer = app.post(path, MASTER_KEY, &body).await;
    assert_eq!(answer.status.as_u16(), status, "{path}: {}", answer.text);
    answer
}

#[tokio::test]
async fn a_key_lives_from_its_making_to_its_end() {
    let app = TestApp::new().await;
    made(&app, "/team/new", json!({"team_id": "t-1", "team_alias": "Team"})).await;
    made(&app, "/user/new", json!({"user_id": "u-1", "user_role": "internal_user", "auto_create_key": false})).await;
    let body =
        json!({"key_alias": "first", "user_id": "u-1", "team_id": "t-1", "duration": "30d", "metadata": {"a": 1}});
    let key = made(&app, "/key/generate", body.clone()).await;
    let raw = key["key"].as_str().unwrap();
    assert!(raw.starts_with("sk-") && raw.len() >= 25, "{raw}");
    assert_eq!(key["token"], hash_key(raw));
    assert_eq!(key["token_id"], key["token"]);
    assert_eq!(key["key_name"], format!("sk-...{}", &raw[raw.len() - 4..]));
    assert_eq!(
        (&key["user_id"], &key["team_id"], &key["created_by"]),
        (&json!("u-1"), &json!("t-1"), &json!("default_user_id"))
    );
    assert!(key["expires"].as_str().unwrap().ends_with('Z'));
    let taken = refused(&app, "/key/generate", body, 400).await.json();
    assert_eq!((&taken["error"]["type"], &taken["error"]["param"]), (&json!("bad_request_error"), &json!("key_alias")));

    // The raw key is shown only once; the database stores its hash.
    let info = app.get(&format!("/key/info?key={}", hash_key(raw)), MASTER_KEY).await;
    assert!(!info.text.contains(raw));
    let info = info.json();
    assert_eq!(info["key"], hash_key(raw));
    assert_eq!((&info["info"]["status"], &info["info"]["key_alias"]), (&json!("active"), &json!("first")));
    assert_eq!(info["info"]["token"], Value::Null);

    let reads = async || app.get("/spend/logs", raw).await.status.as_u16();
    assert_eq!(reads().await, 200);
    let blocked = made(&app, "/key/block", json!({"key": raw})).await;
    assert_eq!((&blocked["blocked"], &blocked["org_id"]), (&json!(true), &Value::Null));
    assert_eq!((&blocked["updated_by"], &key["settings_updated_at"]), (&json!("default_user_id"), &Value::Null));
    assert_eq!(blocked["settings_updated_at"], blocked["updated_at"]);
    assert_eq!(reads().await, 401);
    assert_eq!(app.get(&format!("/key/info?key={raw}"), MASTER_KEY).await.json()["info"]["status"], "revoked");
    assert_eq!(made(&app, "/key/unblock", json!({"key": hash_key(raw)})).await["blocked"], false);
    assert_eq!(reads().await, 200);
    let info_before = app.get(&format!("/key/info?key={raw}"), MASTER_KEY).await.json()["info"].clone();
    assert!(info_before["settings_updated_at"].is_string());
    assert_eq!(
        made(&app, "/key/delete", json!({"keys": [hash_key(raw)]})).await,
        json!({"deleted_keys": [hash_key(raw)]})
    );
    assert_eq!(reads().await, 401);
    let gone = app.get(&format!("/key/info?key={}", hash_key(raw)), MASTER_KEY).await.json();
    assert_eq!((&gone["info"]["status"], &gone["info"]["deleted_by"]), (&json!("deleted"), &json!("default_user_id")));
    assert_eq!(gone["info"].get("org_id"), Some(&json!(null)));
    assert_eq!(gone["info"]["deleted_by_api_key"], "litellm_proxy_master_key");
    for name in ["key_type", "settings_updated_at", "metadata", "expires", "created_at", "allowed_routes"] {
        assert_eq!(gone["info"][name], info_before[name], "{name}");
    }

    let missing = refused(&app, "/key/delete", json!({"keys": [raw]}), 404).await.json();
    assert_eq!(
        (&missing["error"]["type"], &missing["error"]["param"]),
        (&json!("invalid_request_error"), &Value::Null)
    );
    refused(&app, "/key/block", json!({"key": "sk-unknown"}), 404).await;
    refused(&app, "/key/generate", json!({"team_id": "none"}), 404).await;
    refused(&app, "/key/generate", json!({"duration": "soon"}), 422).await;
    refused(&app, "/key/generate", json!({"key": "short"}), 422).await;
    refused(&app, "/key/generate", json!({"key_alias": 7, "models": "gpt-4o"}), 422).await;
    refused(&app, "/key/generate", json!({"metadata": {"a": "\u{0}"}}), 422).await;
    assert_eq!(app.get("/key/info?key=unknown", MASTER_KEY).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_key_has_a_type_which_may_stand_for_routes() {
    let app = TestApp::new().await;
    for (body, key_type, routes) in [
        (json!({}), json!("default"), json!([])),
        (json!({"key_type": null, "allowed_routes": ["/spend/*"]}), Value::Null, json!(["/spend/*"])),
        (json!({"key_type": "default", "allowed_routes": ["/spend/*"]}), json!("default"), json!(["/spend/*"])),
        (json!({"key_type": "llm_api"}), json!("llm_api"), json!(["llm_api_routes"])),
        (json!({"key_type": "read_only", "allowed_routes": ["/x"]}), json!("read_only"), json!(["info_routes"])),
        (json!({"key_type": "management"}), json!("management"), json!(["management_routes"])),
    ] {
        let key = made(&app, "/key/generate", body.clone()).await;
        assert_eq!((&key["key_type"], &key["allowed_routes"]), (&key_type, &routes), "{body}");
        let info = app.get(&format!("/key/info?key={}", key["key"].as_str().unwrap()), MASTER_KEY).await.json();
        assert_eq!((&info["info"]["key_type"], &info["info"]["allowed_routes"]), (&key_type, &routes), "{body}");
        // The row has lists and objects; the answer about a new key has LiteLLM's unset fields.
        assert_eq!((&key["policies"], &info["info"]["policies"]), (&Value::Null, &json!([])));
        assert_eq!(
            (&key["router_settings"]["num_retries"], &info["info"]["router_settings"]),
            (&Value::Null, &json!({}))
        );
        assert_eq!(key["router_settings"].as_object().unwrap().len(), 21);
    }
    refused(&app, "/key/generate", json!({"key_type": "other"}), 422).await;

    // A validity of 0 ends at once.
    let ended = made(&app, "/key/generate", json!({"duration": "0d"})).await;
    let answer = app.get("/spend/logs", ended["key"].as_str().unwrap()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["type"]), (401, &json!("expired_key")));
}

#[tokio::test]
async fn each_wrong_part_of_a_body_is_named_once() {
    let app = TestApp::new().await;
    for (path, body, expected) in [
        ("/key/block", json!({}), json!([["body", "key"]])),
        ("/key/unblock", json!({"key": 7}), json!([["body", "key"]])),
        ("/key/delete", json!({}), json!([["body"]])),
        ("/key/delete", json!({"keys": []}), json!([["body"]])),
        ("/key/delete", json!({"keys": "text"}), json!([["body", "keys"]])),
        ("/key/delete", json!({"keys": ["a", 1]}), json!([["body", "keys", 1]])),
        ("/team/new", json!({"members_with_roles": {"a": 1}}), json!([["body", "members_with_roles"]])),
        ("/team/new", json!({"members_with_roles": [1]}), json!([["body", "members_with_roles", 0]])),
        ("/team/new", json!({"members_with_roles": [{"role": "user"}]}), json!([["body", "members_with_roles", 0]])),
        (
            "/team/new",
            json!({"members_with_roles": [{"user_id": "u", "role": "user"}, {"user_id": "v", "role": "boss"}]}),
            json!([["body", "members_with_roles", 1, "role"]]),
        ),
        (
            "/team/new",
            json!({"members_with_roles": [{"user_id": "u"}]}),
            json!([["body", "members_with_roles", 0, "role"]]),
        ),
        (
            "/team/new",
            json!({"members_with_roles": [{"user_id": 7, "role": "user"}]}),
            json!([["body", "members_with_roles", 0, "user_id"]]),
        ),
    ] {
        let answer = refused(&app, path, body.clone(), 422).await.json();
        let places: Vec<&Value> = answer["detail"].as_array().unwrap().iter().map(|error| &error["loc"]).collect();
        assert_eq!(json!(places), expected, "{path} {body}");
    }
}

#[tokio::test]
async fn a_deleted_key_takes_all_that_is_known_of_it_along() {
    let app = TestApp::new().await;
    let key = made(&app, "/key/generate", json!({"metadata": {"a": {"b": null}}, "models": ["m"]})).await;
    // LiteLLM may store a JSON null where the table of deleted keys wants an object.
    app.execute(
        r#"UPDATE "LiteLLM_VerificationToken" SET aliases = 'null', spend = 0.1, tpm_limit = 7, agent_id = 'agent',
               budget_duration = '1d', rotation_count = 3, allowed_routes = NULL, last_active = '2026-01-02 03:04:05.678'"#,
    )
    .await;
    assert_eq!(made(&app, "/key/delete", json!({"keys": [key["key"]]})).await["deleted_keys"], json!([key["key"]]));
    let row = app.scalar(r#"SELECT to_jsonb(t)::text FROM "LiteLLM_DeletedVerificationToken" AS t"#).await;
    let row: Value = serde_json::from_str(&row).unwrap();
    for (name, expected) in [
        ("token", key["token"].clone()),
        ("metadata", json!({"a": {"b": null}})),
        ("models", json!(["m"])),
        ("aliases", json!({})),
        ("spend", json!(0.1)),
        ("tpm_limit", json!(7)),
        ("agent_id", json!("agent")),
        ("budget_duration", json!("1d")),
        ("rotation_count", json!(3)),
        ("allowed_routes", Value::Null),
        ("last_active", json!("2026-01-02T03:04:05.678")),
        ("deleted_by_api_key", json!("litellm_proxy_master_key")),
    ] {
        assert_eq!(row[name], expected, "{name}");
    }
}

#[tokio::test]
async fn of_several_keys_all_are_deleted_or_none() {
    let app = TestApp::new().await;
    let keys: Vec<Value> = [
        made(&app, "/key/generate", json!({"key_alias": "a"})).await,
        made(&app, "/key/generate", json!({"key_alias": "b"})).await,
    ]
    .to_vec();
    refused(&app, "/key/delete", json!({"keys": [keys[0]["key"], "sk-unknown"]}), 404).await;
    assert_eq!(
        app.get(&format!("/key/info?key={}", keys[0]["token"].as_str().unwrap()), MASTER_KEY).await.json()["info"]["status"],
        "active"
    );
    refused(&app, "/key/delete", json!({"key_aliases": ["a", "unknown"]}), 404).await;
    assert_eq!(made(&app, "/key/delete", json!({"key_aliases": ["a", "b"]})).await["deleted_keys"], json!(["a", "b"]));
}

#[tokio::test]
async fn teams_have_members_and_users_have_teams() {
    let app = TestApp::new().await;
    let roster = json!([{"user_id": "boss", "role": "admin"}, {"user_id": "hand", "role": "user"}]);
    let team = made(&app, "/team/new", json!({"team_alias": "Team", "members_with_roles": roster})).await;
    // Who creates a team becomes an admin of it. Members who are not users yet become internal users.
    let listed = json!([
        {"user_id": "boss", "user_email": null, "role": "admin"},
        {"user_id": "hand", "user_email": null, "role": "user"},
        {"user_id": "default_user_id", "user_email": null, "role": "admin"},
    ]);
    assert_eq!((&team["members_with_roles"], &team["admins"]), (&listed, &json!([])));
    let id = team["team_id"].as_str().unwrap();
    let users = app
        .scalar(
            r#"SELECT string_agg(user_id || ' ' || user_role || ' ' || array_length(teams, 1) || ' ' || models::text, ', '
                                 ORDER BY user_id) FROM "LiteLLM_UserTable""#,
        )
        .await;
    assert_eq!(users, "boss internal_user 1 {}, default_user_id internal_user 1 {}, hand internal_user 1 {}");
    let lists = r#"SELECT members::text || admins::text FROM "LiteLLM_TeamTable""#;
    assert_eq!(app.scalar(lists).await, "{}{}");
    let taken = refused(&app, "/team/new", json!({"team_id": id}), 400).await.json();
    assert_eq!((&taken["error"]["type"], &taken["error"]["param"]), (&json!("invalid_request_error"), &Value::Null));

    let user =
        made(&app, "/user/new", json!({"user_email": "x@example.com", "user_role": "internal_user", "teams": [id]}))
            .await;
    assert!(user["key"].as_str().unwrap().starts_with("sk-"));
    assert_eq!((&user["teams"], &user["spend"]), (&json!([id]), &json!(0)));
    assert_eq!((&user["password"], &user["policies"]), (&Value::Null, &Value::Null));
    assert!(user["created_at"].is_string());
    for body in [json!({"user_email": "X@example.com"}), json!({"user_id": user["user_id"]})] {
        let taken = refused(&app, "/user/new", body, 409).await.json();
        assert_eq!(taken["error"]["type"], "invalid_request_error");
    }
    refused(&app, "/user/new", json!({"user_role": "emperor"}), 422).await;
    refused(&app, "/user/new", json!({"teams": ["none"]}), 404).await;

    let alone = made(&app, "/user/new", json!({"auto_create_key": false, "key_alias": "none"})).await;
    for name in ["token", "token_id", "expires", "key_name", "key_alias", "created_at", "teams", "model_max_budget"] {
        assert_eq!(alone.get(name), Some(&Value::Null), "{name}");
    }
    assert_eq!(alone["key"], "");

    let user_id = user["user_id"].as_str().unwrap();
    let info = app.get(&format!("/user/info?user_id={user_id}"), MASTER_KEY).await.json();
    assert_eq!(
        (&info["user_info"]["user_email"], &info["keys"][0]["token"]),
        (&json!("x@example.com"), &user["token"])
    );
    assert_eq!(info["teams"][0]["team_id"], id);
    let unknown = app.get("/user/info?user_id=none", MASTER_KEY).await;
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["type"]),
        (StatusCode::NOT_FOUND, &json!("invalid_request_error"))
    );
    assert_eq!(unknown.json()["error"]["message"], "User none not found");

    let teams = app.get("/team/list", MASTER_KEY).await.json();
    assert_eq!(teams[0]["members_with_roles"].as_array().unwrap().len(), 4);
    assert_eq!(
        teams[0]["members_with_roles"][3],
        json!({"user_id": user_id, "user_email": "x@example.com", "role": "user"})
    );
    assert_eq!(teams[0]["team_memberships"].as_array().unwrap().len(), 4);
    // A user who exists is listed with the address that the user has, and only once.
    let body = json!({"members_with_roles": [{"user_id": user_id, "role": "user"}, {"user_id": user_id, "role": "admin"},
                                             {"user_id": "default_user_id", "role": "user"}]});
    let second = made(&app, "/team/new", body).await;
    let listed = json!([
        {"user_id": user_id, "user_email": "x@example.com", "role": "user"},
        {"user_id": "default_user_id", "user_email": null, "role": "user"},
    ]);
    assert_eq!(second["members_with_roles"], listed);
    app.execute(r#"DELETE FROM "LiteLLM_TeamTable" WHERE team_alias IS NULL"#).await;
    let key = made(&app, "/key/generate", json!({"team_id": id})).await;
    let teams = app.get("/team/list?user_id=hand", MASTER_KEY).await.json();
    assert_eq!(teams[0]["keys"][0]["token"], key["token"]);
    assert_eq!(teams[0]["team_memberships"].as_array().unwrap().len(), 1);

    // Without a user id, the answer is about the caller and lists everything.
    let info = app.get("/user/info", MASTER_KEY).await.json();
    assert_eq!(
        (&info["user_id"], &info["user_info"]["user_id"]),
        (&json!("default_user_id"), &json!("default_user_id"))
    );
    assert!(info["keys"].as_array().unwrap().iter().any(|found| found["token"] == key["token"]));
    assert!(info["keys"].as_array().unwrap().iter().any(|found| found["token"] == user["token"]));
    assert_eq!(info["teams"][0]["team_id"], id);

    // A user's row may name a team that does not list the user. A team may list a user whose row does not name the
    // team.
    app.execute(
        r#"UPDATE "LiteLLM_UserTable" SET teams = '{}' WHERE user_id = 'hand';
           INSERT INTO "LiteLLM_UserTable" (user_id, teams)
           SELECT 'only-named', ARRAY[team_id] FROM "LiteLLM_TeamTable" LIMIT 1"#,
    )
    .await;
    for (user_id, listed, informed) in [("hand", 1, 1), ("only-named", 0, 1), ("nobody", 0, 0)] {
        let teams = app.get(&format!("/team/list?user_id={user_id}"), MASTER_KEY).await.json();
        assert_eq!(teams.as_array().unwrap().len(), listed, "{user_id}");
        let info = app.get(&format!("/user/info?user_id={user_id}"), MASTER_KEY).await.json();
        assert_eq!(info["teams"].as_array().map_or(0, Vec::len), informed, "{user_id}");
    }
}

#[tokio::test]
async fn only_admins_manage() {
    let app = TestApp::new().await;
    let mut keys = Vec::new();
    for role in ["proxy_admin", "proxy_admin_viewer", "internal_user"] {
        keys.push(
            made(&app, "/user/new", json!({"user_id": role, "user_role": role})).await["key"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    for (path, body) in [
        ("/key/generate", json!({})),
        ("/key/delete", json!({"keys": ["x"]})),
        ("/key/block", json!({"key": "x"})),
        ("/key/unblock", json!({"key": "x"})),
        ("/team/new", json!({})),
        ("/user/new", json!({})),
    ] {
        assert!([200, 404].contains(&app.post(path, &keys[0], &body).await.status.as_u16()), "{path}");
        assert_eq!(app.post(path, &keys[1], &body).await.status, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(app.post(path, &keys[2], &body).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for path in ["/key/info", "/team/list", "/user/info"] {
        assert_eq!(app.get(path, &keys[0]).await.status, StatusCode::OK, "{path}");
        assert_eq!(app.get(path, &keys[1]).await.status, StatusCode::OK, "{path}");
        assert_eq!(app.get(path, &keys[2]).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
}

#[tokio::test]
async fn what_litellm_owns_is_changed_only_when_told_so() {
    let app = TestApp::new().await;
    sqlx::query("CREATE TABLE public._prisma_migrations (id text)").execute(&app.pool).await.unwrap();
    for (path, body) in [
        ("/key/generate", json!({})),
        ("/key/delete", json!({"keys": ["x"]})),
        ("/key/block", json!({"key": "x"})),
        ("/team/new", json!({})),
        ("/user/new", json!({})),
    ] {
        let answer = refused(&app, path, body, 409).await;
        assert!(answer.text.contains("--manage-litellm-keys"), "{}", answer.text);
    }
    assert_eq!(app.get("/team/list", MASTER_KEY).await.status, StatusCode::OK);
    insert(
        &mut app.pool.acquire().await.unwrap(),
        "LiteLLM_VerificationToken",
        &json!([{"token": hash_key("sk-litellms")}]),
    )
    .await;
    let mut told = settings();
    told.manage_litellm_keys = true;
    let told = app.beside(told);
    assert_eq!(made(&told, "/key/block", json!({"key": "sk-litellms"})).await["blocked"], true);
}
