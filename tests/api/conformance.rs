//! Sends every recorded request and compares the answer with the reference's recorded one.

use axum::body::Body;
use axum::http::{Method, Request};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::support::answers::{Lists, difference};
use crate::support::{Answer, TestApp, fixture, insert, recording};

/// A recorded request with its answer.
#[derive(Deserialize)]
pub(crate) struct Recording {
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

/// The headers of an answer that are compared.
const HEADERS: [&str; 2] = ["x-litellm-spend-logs-truncated", "allow"];

/// The promised answer where it differs from the recorded one.
struct Replacement {
    status: u16,
    /// The only field of the body: `error` or `detail`.
    envelope: &'static str,
    /// `error.type`.
    kind: Option<&'static str>,
    /// The parameter or field at fault, which the refusal has to name.
    at: Option<&'static str>,
}

impl Replacement {
    /// How our answer differs from the promised one, if it does. If the recorded answer is a refusal, with whatever
    /// status, ours must have the same form.
    fn check(&self, ours: &Answer, recorded: Option<&Value>) -> Option<String> {
        let body = ours.json();
        let differs = |what: &str| Some(format!("{what}: {} {body}", ours.status));
        if ours.status.as_u16() != self.status {
            return differs(&format!("not {}", self.status));
        }
        if body.as_object().unwrap().keys().collect::<Vec<_>>() != [self.envelope] {
            return differs(&format!("not one field {}", self.envelope));
        }
        if self.envelope == "error" {
            let error = &body["error"];
            if error["type"].as_str() != self.kind || error["code"] != json!(self.status.to_string()) {
                return differs(&format!("type or code is not that of {:?}", self.kind));
            }
            if error["message"].as_str().is_none_or(str::is_empty) {
                return differs("no message");
            }
        }
        let refused = recorded.filter(|recorded| recorded.get("error").or(recorded.get("detail")).is_some());
        if refused.is_some_and(|recorded| recorded["error"]["type"] != body["error"]["type"]) {
            return differs("not the recorded type");
        }
        if self.at.is_some_and(|name| !body.to_string().contains(name)) {
            return differs("does not name what is at fault");
        }
        if self.status == 422 && body["detail"][0]["loc"] != json!(["body", self.at]) {
            return differs("loc");
        }
        leak(&ours.text)
    }
}

/// Finds content that a refusal must not reveal.
fn leak(text: &str) -> Option<String> {
    let words = ["SELECT", "Traceback", ".py\"", "sk-master", "ERROR:"];
    words.iter().find(|word| text.contains(**word)).map(|word| format!("leaks {word:?}: {text}"))
}

/// Everything that a request may change, as one string.
async fn stored(app: &TestApp) -> String {
    app.scalar(
        r#"SELECT md5(concat(
               (SELECT string_agg(row(config.*)::text, ',' ORDER BY param_name) FROM "LiteLLM_Config" config),
               (SELECT string_agg(row(k.token, k.spend, k.blocked)::text, ',' ORDER BY token) FROM "LiteLLM_VerificationToken" k),
               (SELECT string_agg(row(u.user_id, u.spend, u.user_role)::text, ',' ORDER BY user_id) FROM "LiteLLM_UserTable" u),
               (SELECT string_agg(row(t.team_id, t.spend)::text, ',' ORDER BY team_id) FROM "LiteLLM_TeamTable" t),
               (SELECT row(count(*), sum(spend))::text FROM "LiteLLM_SpendLogs")))"#,
    )
    .await
}

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

    /// What our answer must be where it deliberately differs from the recorded one; `docs/compatibility.md` has the
    /// reasons.
    fn replacement(&self) -> Option<Replacement> {
        let refused = |kind, param| Replacement { status: 400, envelope: "error", kind: Some(kind), at: param };
        let replacement = match (self.answer.status, self.name.as_str()) {
            // The client that recorded the answers refused to send this header, so the request has no key.
            (0, name) if name.starts_with("auth.") => {
                Replacement { status: 401, envelope: "error", kind: Some("auth_error"), at: None }
            }
            // The reference closed the connection. Expected is its answer to other bad dates on the same route.
            (0, name) if name.starts_with("report.bad") => refused("internal_server_error", Some("date")),
            (0, "daily.nodates") => Replacement { status: 400, envelope: "detail", kind: None, at: Some("date") },
            // The reference failed on this bad input.
            (500.., name) if name.starts_with("logs.bad") || name.starts_with("gtags.bad") => {
                refused("internal_error", Some("date"))
            }
            (500.., name) if name.starts_with("report.bad") => refused("internal_server_error", Some("date")),
            (500.., "calc.err4") => refused("internal_server_error", Some("model")),
            // PostgreSQL guessed at this malformed date.
            (200, name) if name.starts_with("gtags.bad") => refused("internal_error", Some("date")),
            // The reference accepts any string as an address; litespend refuses it.
            (200, name) if name.starts_with("ip.invalid") => {
                Replacement { status: 422, envelope: "detail", kind: None, at: Some("ip") }
            }
            _ => return None,
        };
        Some(replacement)
    }

    /// Whether the request must change nothing: true for every refusal and every read.
    fn changes_nothing(&self) -> bool {
        let status = self.replacement().map_or(self.answer.status, |replacement| replacement.status);
        status >= 400 || self.method == "GET" || self.path == "/spend/calculate"
    }

    /// How our answer differs from the expected one, if it does.
    fn check(&self, ours: &Answer) -> Option<String> {
        if let Some(replacement) = self.replacement() {
            return replacement.check(ours, self.answer.body.as_ref());
        }
        let expected = self.answer.status;
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
        if self.method == "HEAD" {
            return (!ours.text.is_empty()).then(|| "a body for HEAD".to_owned());
        }
        let Some(recorded) = &self.answer.body else { return Some("nothing was recorded to compare with".to_owned()) };
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
        if ours["error"]["code"] != recorded["error"]["code"] {
            return Some(format!("code: {ours} instead of {recorded}"));
        }
        if self.answer.status == 422 {
            let places = |value: &Value| -> Vec<Value> {
                value["detail"].as_array().unwrap().iter().map(|error| error["loc"].clone()).collect()
            };
            if places(ours) != places(recorded) {
                return Some(format!("loc: {ours} instead of {recorded}"));
            }
        }
        leak(&ours.to_string())
    }

    fn check_body(&self, ours: &Value, recorded: &Value) -> Option<String> {
        match self.path.as_str() {
            "/spend/logs/ui" | "/spend/logs/v2" => {
                let sort_by = self.query.get("sort_by").and_then(Value::as_str).unwrap_or("startTime");
                difference_of_pages(ours, recorded, sort_by)
            }
            "/spend/logs/session/ui" => difference_of_pages(ours, recorded, "startTime"),
            // The times of loading differ. Rows of equal spend may be in any order.
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
            // Rows, newest first. Rows of the same time may be in any order.
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

/// How the sequence of values in one column differs.
fn difference_of_sequence(ours: &Value, recorded: &Value, name: &str) -> Option<String> {
    let (ours, recorded) = (Value::Array(column(ours, name)), Value::Array(column(recorded, name)));
    difference(&ours, &recorded, Lists::InOrder).map(|found| format!("order of {name}: {found}"))
}

/// Compares pages of rows: the paging, the sequence of the sort key, and every row that is in both. Rows with equal
/// sort keys may be in any order, so the last rows of a page may differ.
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

/// Sends every recorded request in order, and prints how many answers match.
pub(crate) async fn replay(app: &TestApp, file: &str) {
    replay_some(app, file, |_| true).await;
}

/// Sends the recorded requests whose path is `wanted`.
pub(crate) async fn replay_some(app: &TestApp, file: &str, wanted: impl Fn(&str) -> bool) {
    let mut recordings: Vec<Recording> = serde_json::from_slice(&recording(file)).unwrap();
    recordings.retain(|recording| wanted(&recording.path));
    // Today's LiteLLM answers some requests differently. `tests/reference/record_changed.sh` asks its own code for these
    // answers, and stores the reason with each.
    let changed = fixture("changed_answers.json.gz");
    let changed: Value = serde_json::from_slice(&changed).unwrap();
    for recording in &mut recordings {
        if let Some(answer) = changed["answers"][file].get(&recording.name) {
            recording.answer.body = Some(answer["body"].clone());
        }
    }
    let mut failures = Vec::new();
    let mut before = stored(app).await;
    for recording in &recordings {
        let answer = app.send(recording.request()).await;
        let after = stored(app).await;
        let changed = (recording.changes_nothing() && after != before).then(|| "it changed what is stored".to_owned());
        before = after;
        if let Some(difference) = recording.check(&answer).or(changed) {
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

/// The application with the data on which the dashboard's reads were recorded.
pub(crate) async fn dashboard_app() -> TestApp {
    let app = TestApp::seeded().await;
    // Two rows that the reference itself had created: the master key's user, and the key of a session of its dashboard.
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
