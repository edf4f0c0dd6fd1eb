//! Inserts keys and users into the tables, and logs in to the dashboard.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::body::Body;
use axum::http::Request;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use litespend::identity::hash_key;
use litespend::settings::Settings;
use litespend::settings::UiSettings;
use serde_json::{Value, json};

use super::{Answer, TestApp, insert, settings};

/// Settings with the dashboard. The login needs none of the dashboard's files.
pub(crate) fn with_dashboard() -> Settings {
    let ui = UiSettings { directory: PathBuf::from("/nonexistent"), username: "admin".into(), password: None };
    Settings { ui: Some(ui), ..settings() }
}

/// Adds a key with these columns.
pub(crate) async fn add_key(app: &TestApp, key: &str, columns: Value) {
    let mut row = json!({"token": hash_key(key), "key_name": "sk-..."});
    row.as_object_mut().unwrap().extend(columns.as_object().unwrap().clone());
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_VerificationToken", &json!([row])).await;
}

/// Adds a user.
pub(crate) async fn add_user(app: &TestApp, user: &str, role: Option<&str>) {
    let row = json!({"user_id": user, "user_role": role});
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_UserTable", &json!([row])).await;
}

/// Sends a login from an address.
pub(crate) async fn log_in_from(app: &TestApp, peer: &str, username: &str, password: &str) -> Answer {
    let body = json!({"username": username, "password": password}).to_string();
    let request = Request::post("/v2/login").header("content-type", "application/json");
    app.send_from(request.body(Body::from(body)).unwrap(), peer.parse::<SocketAddr>().unwrap()).await
}

/// Logs in, which must succeed; returns the session's key.
pub(crate) async fn session(app: &TestApp, username: &str, password: &str) -> String {
    let answer = log_in_from(app, "127.0.0.1:1", username, password).await;
    assert_eq!(answer.status, 200, "{username}: {}", answer.text);
    claims(&answer)["key"].as_str().unwrap().to_owned()
}

/// The claims in the token of a login.
pub(crate) fn claims(answer: &Answer) -> Value {
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}
