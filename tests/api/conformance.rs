//! The recorded answers of the reference: every request is sent, every answer compared.

use axum::body::Body;
use axum::http::{Method, Request};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::support::answers::{Lists, difference};
use crate::support::{Answer, TestApp, recording};

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
        let column = |value: &Value, name: &str| -> Vec<Value> {
            value.as_array().into_iter().flatten().map(|item| item[name].clone()).collect()
        };
        match self.path.as_str() {
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
