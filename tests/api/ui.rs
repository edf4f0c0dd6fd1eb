//! LiteLLM's dashboard without a LiteLLM: the login, the files, the lists, and the answers' shapes in a recorded
//! session.

use std::path::Path;

use axum::body::Body;
use axum::http::{Method, Request};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::support::{Answer, MASTER_KEY, TestApp, recording, request, seed, settings};

/// Creates an export with a page and an asset, and a secret file next to the folder.
fn export() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("secret.txt", "beside the folder");
    write("out/index.html", "<html>front</html>");
    write("out/index.txt", "front");
    write("out/usage/index.html", "<html>usage</html>");
    write("out/_next/static/app.js", "run()");
    write("out/favicon.ico", "icon");
    write("out/assets/logos/litellm_logo.png", "logo");
    directory
}

async fn app(directory: &Path) -> TestApp {
    let mut settings = settings();
    settings.ui = Some(litespend::settings::UiSettings {
        directory: directory.join("out"),
        username: "admin".into(),
        password: None,
    });
    TestApp::with(settings).await
}

async fn log_in(app: &TestApp, peer: &str, username: &str, password: &str) -> Answer {
    let body = json!({ "username": username, "password": password }).to_string();
    let request =
        Request::post("/v2/login").header("content-type", "application/json").header("host", "spend.example:4000");
    app.send_from(request.body(Body::from(body)).unwrap(), peer.parse().unwrap()).await
}

async fn bare(app: &TestApp, path: &str) -> Answer {
    app.send(Request::get(path).body(Body::empty()).unwrap()).await
}

fn claims(answer: &Answer) -> Value {
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn the_master_key_logs_in_and_the_session_is_an_admins() {
    let directory = export();
    let app = app(directory.path()).await;
    let answer = log_in(&app, "127.0.0.1:1", "admin", MASTER_KEY).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["redirect_url"], "http://spend.example:4000/ui?login=success");
    assert_eq!(answer.headers["cache-control"], "no-store");
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    let cookies: Vec<&str> =
        answer.headers.get_all("set-cookie").iter().map(|cookie| cookie.to_str().unwrap()).collect();
    assert_eq!(cookies.len(), 2);
    for (cookie, path) in cookies.iter().zip(["Path=/;", "Path=/ui;"]) {
        assert!(cookie.starts_with(&format!("token={token};")) && cookie.contains(path), "{cookie}");
        assert!(!cookie.contains("HttpOnly"), "the dashboard's scripts read it");
    }
    // The token has the recorded claims, and is signed with a secret other than the master key.
    let told = claims(&answer);
    let mut names: Vec<&str> = told.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let mut recorded = vec![
        "user_id",
        "key",
        "user_email",
        "user_role",
        "login_method",
        "premium_user",
        "auth_header_name",
        "disabled_non_admin_personal_key_creation",
        "server_root_path",
        "password_reset_required",
        "exp",
    ];
    recorded.sort_unstable();
    assert_eq!(names, recorded);
    let mut validation = jsonwebtoken::Validation::default();
    validation.set_required_spec_claims(&["exp"]);
    let key = jsonwebtoken::DecodingKey::from_secret(MASTER_KEY.as_bytes());
    assert!(jsonwebtoken::decode::<Value>(&token, &key, &validation).is_err());

    let session = told["key"].as_str().unwrap();
    assert_ne!(session, MASTER_KEY);
    assert_eq!(app.get("/get/allowed_ips", session).await.status, 200);
    assert_eq!(app.get("/management/v1/users/me", session).await.json()["user_role"], "proxy_admin");
    assert_eq!(app.post("/key/generate", session, &json!({})).await.status, 200);
    assert_eq!(app.post("/global/spend/reset", session, &json!({})).await.status, 401, "the master key's alone");
    // The session's key is not listed, and it lasts a day.
    let listed = app.get("/key/list?size=100", MASTER_KEY).await.json();
    assert_eq!(listed["total_count"], 1, "{listed}");
    let left = app
        .scalar(
            r#"SELECT (expires - now() AT TIME ZONE 'UTC' BETWEEN interval '23:59' AND interval '24:00')::text
               FROM "LiteLLM_VerificationToken" WHERE team_id = 'litellm-dashboard'"#,
        )
        .await;
    assert_eq!(left, "true");
}

#[tokio::test]
async fn a_user_logs_in_with_a_key_and_sees_what_is_theirs() {
    let directory = export();
    let app = app(directory.path()).await;
    app.post("/team/new", MASTER_KEY, &json!({ "team_id": "search", "team_alias": "Search", "members_with_roles": [{ "user_id": "ben", "role": "user" }] })).await;
    app.post("/team/new", MASTER_KEY, &json!({ "team_id": "other" })).await;
    let made = app
        .post(
            "/user/new",
            MASTER_KEY,
            &json!({ "user_id": "ada", "user_email": "ada@example.com", "user_role": "internal_user" }),
        )
        .await
        .json();
    let key = made["key"].as_str().unwrap();
    app.execute(r#"UPDATE "LiteLLM_UserTable" SET user_role = 'internal_user' WHERE user_id = 'ben'"#).await;
    let bens = app.post("/key/generate", MASTER_KEY, &json!({ "user_id": "ben", "team_id": "search" })).await.json();
    for name in ["ada", "ada@example.com"] {
        let answer = log_in(&app, "127.0.0.1:1", name, key).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
        assert_eq!(claims(&answer)["user_role"], "internal_user");
    }
    let session = claims(&log_in(&app, "127.0.0.1:1", "ada", key).await)["key"].as_str().unwrap().to_owned();
    let own = app.get("/key/list?size=10", &session).await.json();
    assert_eq!((&own["total_count"], &own["keys"][0]["user_id"]), (&json!(1), &json!("ada")));
    assert_eq!(app.get("/v2/team/list", &session).await.json()["total"], 0);
    assert_eq!(app.get("/team/info?team_id=search", &session).await.status, 404);
    assert_eq!(app.get("/v2/user/info?user_id=ben", &session).await.status, 403);
    assert_eq!(app.get("/v2/user/info", &session).await.json()["user_email"], "ada@example.com");
    assert_eq!(app.get("/user/list", &session).await.status, 401);
    let of_ben = bens["key"].as_str().unwrap();
    assert_eq!(app.get("/v2/team/list", of_ben).await.json()["teams"][0]["team_id"], "search");
    assert_eq!(app.get("/team/info?team_id=search", of_ben).await.json()["keys"].as_array().unwrap().len(), 1);

    // Another user's name, a wrong key, a session's key, a blocked key, an empty email address.
    app.post("/key/block", MASTER_KEY, &json!({ "key": of_ben })).await;
    for (name, password) in [
        ("ben", key),
        ("ada", "sk-wrong-wrong-wrong"),
        ("ada", session.as_str()),
        ("ben", of_ben),
        ("", of_ben),
        ("admin", key),
        ("ada", MASTER_KEY),
        ("admin", ""),
        ("", ""),
    ] {
        let answer = log_in(&app, "127.0.0.2:1", name, password).await;
        assert_eq!(answer.status, 401, "{name}: {}", answer.text);
        assert_eq!(answer.json()["error"]["type"], "auth_error");
        assert!(!answer.headers.contains_key("set-cookie"));
    }
}

#[tokio::test]
async fn guessing_is_stopped_by_address_and_name() {
    let directory = export();
    let app = app(directory.path()).await;
    for _ in 0..10 {
        assert_eq!(log_in(&app, "10.0.0.1:1", "admin", "sk-guess").await.status, 401);
    }
    for password in ["sk-guess", MASTER_KEY] {
        let answer = log_in(&app, "10.0.0.1:2", "admin", password).await;
        assert_eq!(answer.status, 429, "{}", answer.text);
        assert_eq!(answer.headers["retry-after"], "300");
    }
    assert_eq!(log_in(&app, "10.0.0.1:2", "ada", "sk-guess").await.status, 401, "another behind the same address");
    assert_eq!(log_in(&app, "10.0.0.2:1", "admin", MASTER_KEY).await.status, 200);
    for body in ["", "[]", "{}", r#"{"username": 1, "password": "x"}"#, r#"{"username": "admin"}"#] {
        let request = Request::post("/v2/login").header("content-type", "application/json");
        assert_eq!(app.send(request.body(Body::from(body)).unwrap()).await.status, 400, "{body}");
    }
    let large = Request::post("/v2/login")
        .header("content-type", "application/json")
        .body(Body::from("x".repeat(100_000)))
        .unwrap();
    assert_eq!(app.send(large).await.status, 400);
}

#[tokio::test]
async fn another_password_takes_the_master_keys_place() {
    let directory = export();
    let mut settings = settings();
    settings.ui = Some(litespend::settings::UiSettings {
        directory: directory.path().join("out"),
        username: "boss".into(),
        password: Some("open sesame".into()),
    });
    let app = TestApp::with(settings).await;
    assert_eq!(log_in(&app, "127.0.0.1:1", "boss", "open sesame").await.status, 200);
    for (name, password) in [("boss", MASTER_KEY), ("admin", "open sesame"), ("admin", MASTER_KEY)] {
        assert_eq!(log_in(&app, "127.0.0.1:1", name, password).await.status, 401, "{name}");
    }
}

#[tokio::test]
async fn sessions_that_are_over_are_cleaned_up() {
    let directory = export();
    let app = app(directory.path()).await;
    log_in(&app, "127.0.0.1:1", "admin", MASTER_KEY).await;
    let session = claims(&log_in(&app, "127.0.0.1:1", "admin", MASTER_KEY).await)["key"].as_str().unwrap().to_owned();
    app.post("/key/generate", MASTER_KEY, &json!({ "key_alias": "stays", "duration": "1s" })).await;
    app.execute(r#"UPDATE "LiteLLM_VerificationToken" SET expires = now() AT TIME ZONE 'UTC' - interval '1 second'"#)
        .await;
    app.state.keys.forget_all();
    assert_eq!(app.get("/management/v1/users/me", &session).await.status, 401);
    assert_eq!(litespend::http::dashboard::clean_up(&app.state).await.unwrap(), 2);
    assert_eq!(app.scalar(r#"SELECT string_agg(key_alias, ',') FROM "LiteLLM_VerificationToken""#).await, "stays");
}

#[tokio::test]
async fn files_are_those_of_the_folder_and_no_others() {
    let directory = export();
    let app = app(directory.path()).await;
    for (path, content, kind) in [
        ("/ui/", "<html>front</html>", "text/html"),
        ("/ui/usage/", "<html>usage</html>", "text/html"),
        ("/_next/static/app.js", "run()", "text/javascript"),
        ("/litellm-asset-prefix/_next/static/app.js", "run()", "text/javascript"),
        ("/ui/_next/static/app.js", "run()", "text/javascript"),
        ("/get_favicon", "icon", "image/"),
        ("/get_image", "logo", "image/png"),
        ("/get_image/?theme=dark", "logo", "image/png"),
        ("/ui.txt?login=success", "front", "text/plain"),
    ] {
        let answer = bare(&app, path).await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, content), "{path}");
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with(kind), "{path}: {:?}", answer.headers);
        let forever = path.contains("_next") && !path.starts_with("/ui/");
        assert_eq!(answer.headers["cache-control"].to_str().unwrap().contains("immutable"), forever, "{path}");
        let again = app
            .send(
                Request::get(path)
                    .header("if-modified-since", &answer.headers["last-modified"])
                    .body(Body::empty())
                    .unwrap(),
            )
            .await;
        assert_eq!(again.status, 304, "{path}");
    }
    for (path, to) in
        [("/ui", "/ui/"), ("/ui?login=success", "/ui/?login=success"), ("/ui/usage?page=1", "/ui/usage/?page=1")]
    {
        let answer = bare(&app, path).await;
        assert_eq!((answer.status.as_u16(), answer.headers["location"].to_str().unwrap()), (307, to), "{path}");
    }
    for path in [
        "/ui/no-such-page",
        "/ui/../secret.txt",
        "/ui/%2e%2e/secret.txt",
        "/ui/..%2fsecret.txt",
        "/ui//etc/passwd",
        "/ui/%2fetc%2fpasswd",
        "/ui/usage/../../secret.txt",
        "/_next/../../secret.txt",
        "/ui/..%5csecret.txt",
        "/ui/%00",
    ] {
        let answer = bare(&app, path).await;
        assert!(answer.status.is_client_error(), "{path}: {}", answer.status);
        assert!(!answer.text.contains("beside the folder") && !answer.text.contains("root:"), "{path}");
    }
    assert_eq!(app.post("/ui/", MASTER_KEY, &json!({})).await.status, 405);
}

#[tokio::test]
async fn links_lead_to_files_of_the_folder_and_not_out_of_it() {
    let directory = export();
    let root = directory.path();
    std::fs::create_dir(root.join("private")).unwrap();
    std::fs::write(root.join("private/index.html"), "beside the folder").unwrap();
    let link = |to: &Path, from: &str| std::os::unix::fs::symlink(to, root.join("out").join(from)).unwrap();
    link(Path::new("../secret.txt"), "relative.txt");
    link(&root.join("secret.txt"), "absolute.txt");
    link(Path::new("../private"), "folder");
    link(&root.join("private"), "absolute-folder");
    link(Path::new(".."), "parent");
    link(Path::new("../../secret.txt"), "_next/relative.js");
    link(Path::new("/"), "system");
    link(Path::new("itself"), "itself");
    link(Path::new("static/app.js"), "_next/again.js");
    link(&root.join("out/usage"), "spelled");
    std::fs::remove_file(root.join("out/favicon.ico")).unwrap();
    link(Path::new("../secret.txt"), "favicon.ico");
    nix::unistd::mkfifo(&root.join("out/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // The folder itself may be a link, for example one that an update changes.
    std::os::unix::fs::symlink("out", root.join("current")).unwrap();
    for folder in ["out", "current"] {
        let mut settings = settings();
        let directory = root.join(folder);
        settings.ui = Some(litespend::settings::UiSettings { directory, username: "admin".into(), password: None });
        let app = TestApp::with(settings).await;
        for (path, content) in [
            ("/_next/again.js", "run()"),
            ("/ui/_next/again.js", "run()"),
            ("/ui/spelled/", "<html>usage</html>"),
            ("/ui/usage/", "<html>usage</html>"),
        ] {
            let answer = bare(&app, path).await;
            assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, content), "{folder} {path}");
        }
        for path in [
            "/ui/relative.txt",
            "/ui/absolute.txt",
            "/ui/folder",
            "/ui/folder/",
            "/ui/folder/index.html",
            "/ui/absolute-folder/",
            "/ui/parent/secret.txt",
            "/ui/parent/out/index.html/",
            "/ui/usage/../relative.txt",
            "/ui/%2e%2e/secret.txt",
            "/ui/usage/%2e%2e/%2e%2e/secret.txt",
            "/ui/parent/%2e%2e/secret.txt",
            "/ui/system/etc/passwd",
            "/ui/itself",
            "/ui/pipe",
            "/_next/relative.js",
            "/litellm-asset-prefix/_next/relative.js",
            "/get_favicon",
            "/favicon.ico",
        ] {
            for method in [Method::GET, Method::HEAD] {
                let request = Request::builder().method(&method).uri(path).body(Body::empty()).unwrap();
                let answer = app.send(request).await;
                assert_eq!(answer.status, 404, "{folder} {method} {path}: {}", answer.text);
                assert!(!answer.text.contains("beside the folder") && !answer.text.contains("root:"), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn without_the_dashboard_its_routes_are_not_there() {
    let app = TestApp::new().await;
    for path in ["/ui/", "/get/ui_settings", "/key/list", "/v2/team/list", "/models"] {
        assert_eq!(app.get(path, MASTER_KEY).await.status, 404, "{path}");
    }
    assert_eq!(log_in(&app, "127.0.0.1:1", "admin", MASTER_KEY).await.status, 404);
}

/// Compares two values as far as a page depends on them: the names of fields and the kinds of values, not the values.
fn same_kind(recorded: &Value, ours: &Value, place: &str, differences: &mut Vec<String>) {
    match (recorded, ours) {
        (Value::Object(recorded), Value::Object(ours)) => {
            for (name, value) in recorded {
                match ours.get(name) {
                    Some(found) => same_kind(value, found, &format!("{place}.{name}"), differences),
                    None => differences.push(format!("{place}.{name} is missing")),
                }
            }
        }
        (Value::Array(_), Value::Array(_)) | (Value::Null, _) | (_, Value::Null) => {}
        (recorded, ours) if std::mem::discriminant(recorded) == std::mem::discriminant(ours) => {}
        _ => differences.push(format!("{place} is {ours}, not like {recorded}")),
    }
}

#[tokio::test]
async fn the_requests_of_a_recorded_session_are_answered_in_their_shapes() {
    let directory = export();
    let app = app(directory.path()).await;
    seed(&app.pool).await;
    assert_eq!(log_in(&app, "127.0.0.1:1", "admin", MASTER_KEY).await.status, 200);
    let session: Vec<Value> = serde_json::from_slice(&recording("dashboard_session.json.gz")).unwrap();
    let mut matched = 0;
    let mut differences = Vec::new();
    for step in &session {
        let (method, path) = (step["method"].as_str().unwrap(), step["path"].as_str().unwrap());
        if method != "GET" {
            continue;
        }
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in step["query"].as_object().unwrap() {
            query.append_pair(name, value.as_str().unwrap());
        }
        // The session was recorded on other data, so rows that do not exist here cannot be opened.
        let path = path.replace("chatcmpl-11-0024", "chatcmpl-1-0001");
        let request = request(Method::GET, &format!("{path}?{}", query.finish()), MASTER_KEY);
        let answer = app.send(request.body(Body::empty()).unwrap()).await;
        if path.starts_with("/spend/logs/ui/") {
            assert!(answer.status.as_u16() < 500, "{path}");
            matched += 1;
            continue;
        }
        if answer.status != 200 {
            differences.push(format!("{path}: {} {}", answer.status, answer.text));
            continue;
        }
        let is_json = step["content_type"].as_str().unwrap().starts_with("application/json") && step["status"] == 200;
        let before = differences.len();
        if is_json {
            let ours: Value = serde_json::from_str(&answer.text).unwrap();
            // The pages use only a few fields of a row, so only the list's own fields must exist.
            let mut recorded = step["body"].clone();
            for name in ["team_info", "api_keys"] {
                if let Some(object) = recorded.as_object_mut() {
                    object.remove(name);
                }
            }
            same_kind(&recorded, &ours, &path, &mut differences);
        }
        matched += usize::from(differences.len() == before);
    }
    println!("dashboard_session.json.gz: {matched} requests answered in their recorded shapes");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(matched > 100, "{matched}");
}
