//! The recorded answers of the reference: every request is sent, every answer compared.

use axum::body::Body;
use axum::http::{Method, Request};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::support::answers::{Lists, difference};
use crate::support::{Answer, TestApp, insert, recording};

/// A recorded request with its answer.
#[derive(Deserialize)]
pub struct Recording {
    name: String,
    method: String,
    path: String,
    #[serde(default)]
    query: Map<String, Value>,
    #[serde(default)]
    headers: Map<String, Value>,
    body: Option<Value>,
    raw_body: Option<String>,
    answer: RecordedAnswer,
}

#[derive(Deserialize)]
struct RecordedAnswer {
    status: u16,
    #[serde(default)]
    headers: Map<String, Value>,
    body: Option<Value>,
}

/// Headers of an answer that count.
const HEADERS: [&str; 2] = ["x-litellm-spend-logs-truncated", "allow"];

impl Recording {
    fn request(&self) -> Request<Body> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in &self.query {
            match value {
                Value::Array(values) => {
                    for value in values {
                        query.append_pair(name, &text(value));
                    }
                }
                value => {
                    query.append_pair(name, &text(value));
                }
            }
        }
        let mut builder = Request::builder().method(Method::from_bytes(self.method.as_bytes()).unwrap()).uri(format!(
            "{}?{}",
            self.path,
            query.finish()
        ));
        let declares = self.headers.keys().any(|name| name.eq_ignore_ascii_case("content-type"));
        if !declares && (self.body.is_some() || self.raw_body.is_some()) {
            builder = builder.header("content-type", "application/json");
        }
        for (name, value) in &self.headers {
            builder = builder.header(name, text(value));
        }
        let body = self.raw_body.clone().or_else(|| self.body.as_ref().map(Value::to_string));
        builder.body(body.map_or_else(Body::empty, Body::from)).unwrap()
    }

    /// The status that ours must have: the recorded one, but for the deliberate differences.
    fn expected_status(&self) -> u16 {
        match self.answer.status {
            // The reference's client refused to send this header: it has no key, so 401.
            0 if self.name.starts_with("auth.") => 401,
            // The reference cut the connection, or failed, on bad input.
            0 | 500.. => 400,
            // A malformed date that PostgreSQL guessed at.
            200 if self.name.starts_with("gtags.bad") => 400,
            // Any text is an address there; here it is refused.
            200 if self.name.starts_with("ip.invalid") => 422,
            status => status,
        }
    }

    /// How our answer differs, if it does.
    fn check(&self, ours: &Answer) -> Option<String> {
        let expected = self.expected_status();
        if ours.status.as_u16() != expected {
            return Some(format!("status {} instead of {expected}: {}", ours.status, ours.text));
        }
        for name in HEADERS {
            let recorded = self.answer.headers.get(name).and_then(Value::as_str);
            let sent = ours.headers.get(name).map(|value| value.to_str().unwrap());
            if recorded != sent {
                return Some(format!("header {name}: {sent:?} instead of {recorded:?}"));
            }
        }
        let recorded = self.answer.body.as_ref()?;
        if self.method == "HEAD" {
            return (!ours.text.is_empty()).then(|| "a body for HEAD".to_owned());
        }
        if expected != self.answer.status && self.answer.status < 400 {
            return None;
        }
        if expected >= 400 { self.check_error(&ours.json(), recorded) } else { self.check_body(&ours.json(), recorded) }
    }

    fn check_error(&self, ours: &Value, recorded: &Value) -> Option<String> {
        for envelope in ["error", "detail"] {
            if ours.get(envelope).is_some() != recorded.get(envelope).is_some() {
                return Some(format!("envelope: {ours} instead of {recorded}"));
            }
        }
        if ours["error"]["type"] != recorded["error"]["type"] {
            return Some(format!("type: {ours} instead of {recorded}"));
        }
        let same_status = self.expected_status() == self.answer.status;
        if same_status && ours["error"]["code"] != recorded["error"]["code"] {
            return Some(format!("code: {ours} instead of {recorded}"));
        }
        if same_status && self.answer.status == 422 {
            let places = |value: &Value| -> Vec<Value> {
                value["detail"].as_array().unwrap().iter().map(|error| error["loc"].clone()).collect()
            };
            if places(ours) != places(recorded) {
                return Some(format!("loc: {ours} instead of {recorded}"));
            }
        }
        let leak = ["SELECT", "Traceback", ".py\"", "sk-master", "ERROR:"];
        leak.iter().find(|word| ours.to_string().contains(**word)).map(|word| format!("leaks {word:?}: {ours}"))
    }

    fn check_body(&self, ours: &Value, recorded: &Value) -> Option<String> {
        match self.path.as_str() {
            "/spend/logs/ui" | "/spend/logs/v2" => {
                let sort_by = self.query.get("sort_by").and_then(Value::as_str).unwrap_or("startTime");
                difference_of_pages(ours, recorded, sort_by)
            }
            "/spend/logs/session/ui" => difference_of_pages(ours, recorded, "startTime"),
            // The moment of loading differs; rows of equal spend stand in any order.
            "/spend/keys" | "/spend/users" => {
                let (mut ours, mut recorded) = (ours.clone(), recorded.clone());
                for row in [&mut ours, &mut recorded].into_iter().flat_map(|rows| rows.as_array_mut().unwrap()) {
                    let row = row.as_object_mut().unwrap();
                    row.remove("created_at");
                    row.remove("updated_at");
                }
                let all = self.path == "/spend/users" || column(&recorded, "user_id").iter().any(|id| id == "u-admin");
                let order = if all { difference_of_sequence(&ours, &recorded, "spend") } else { None };
                order.or_else(|| difference(&ours, &recorded, Lists::AsSets))
            }
            "/global/spend/all_tag_names" | "/global/all_end_users" => difference(ours, recorded, Lists::AsSets),
            "/global/activity/model" => difference_of_sequence(ours, recorded, "sum_api_requests")
                .or_else(|| difference(ours, recorded, Lists::AsSets)),
            // Rows: newest first; among equal times any order.
            "/spend/logs" if recorded[0].get("request_id").is_some() => {
                if column(ours, "startTime") != column(recorded, "startTime") {
                    return Some("order of startTime".to_owned());
                }
                difference(ours, recorded, Lists::AsSets)
            }
            "/spend/tags" | "/global/spend/tags" => difference(ours, recorded, Lists::AsSets),
            path if path.ends_with("/spend/report") => {
                if column(ours, "group_by_day") != column(recorded, "group_by_day") {
                    return Some("order of days".to_owned());
                }
                difference(ours, recorded, Lists::AsSets)
            }
            _ => difference(ours, recorded, Lists::InOrder),
        }
    }
}

fn column(rows: &Value, name: &str) -> Vec<Value> {
    rows.as_array().into_iter().flatten().map(|row| row[name].clone()).collect()
}

/// How the sequence of one column differs.
fn difference_of_sequence(ours: &Value, recorded: &Value, name: &str) -> Option<String> {
    let (ours, recorded) = (Value::Array(column(ours, name)), Value::Array(column(recorded, name)));
    difference(&ours, &recorded, Lists::InOrder).map(|found| format!("order of {name}: {found}"))
}

/// Pages of rows: the paging, the sequence of the sort key, and every row that is in both. Rows that tie may stand in
/// any order, and at the end of a page one or the other.
fn difference_of_pages(ours: &Value, recorded: &Value, sort_by: &str) -> Option<String> {
    let without_rows = |page: &Value| {
        let mut page = page.clone();
        page["data"] = Value::Null;
        page
    };
    let rest = difference(&without_rows(ours), &without_rows(recorded), Lists::InOrder);
    rest.or_else(|| difference_of_sequence(&ours["data"], &recorded["data"], sort_by)).or_else(|| {
        ours["data"].as_array().unwrap().iter().find_map(|row| {
            let same = |other: &&Value| other["request_id"] == row["request_id"];
            let other = recorded["data"].as_array().unwrap().iter().find(same)?;
            difference(row, other, Lists::InOrder)
        })
    })
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Sends every recorded request in order and says how many answers match.
pub async fn replay(app: &TestApp, file: &str) {
    replay_some(app, file, |_| true).await;
}

/// Sends those recorded requests whose path is wanted.
pub async fn replay_some(app: &TestApp, file: &str, wanted: impl Fn(&str) -> bool) {
    let mut recordings: Vec<Recording> = serde_json::from_slice(&recording(file)).unwrap();
    recordings.retain(|recording| wanted(&recording.path));
    let mut failures = Vec::new();
    for recording in &recordings {
        let answer = app.send(recording.request()).await;
        if let Some(difference) = recording.check(&answer) {
            failures.push(format!("{}: {}", recording.name, difference.chars().take(300).collect::<String>()));
        }
    }
    println!("{file}: {} / {} recorded answers match", recordings.len() - failures.len(), recordings.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn the_recorded_http_answers_match() {
    let app = TestApp::seeded().await;
    replay(&app, "http_answers.json.gz").await;
}

/// The seeded application as the dashboard's reads were recorded on.
pub async fn dashboard_app() -> TestApp {
    let app = TestApp::seeded().await;
    // Two rows that the reference had made itself: the master key's user, and the key of a session of its dashboard.
    let user = serde_json::json!([{
        "user_id": "default_user_id", "user_role": "proxy_admin", "spend": 0.0, "models": null, "metadata": {}
    }]);
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_UserTable", &user).await;
    let session = serde_json::json!([{
        "token": "3e841233a23a14d102f7a268bf9726105e8276c64808dea74520afe918e86edc", "key_name": "sk-...4eAQ",
        "user_id": "default_user_id", "team_id": "litellm-dashboard", "max_budget": 1.0, "models": [],
        "expires": "2026-11-24T15:48:39.342"
    }]);
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_VerificationToken", &session).await;
    app
}

#[tokio::test]
async fn the_recorded_dashboard_reads_match() {
    replay(&dashboard_app().await, "dashboard_reads.json.gz").await;
}
