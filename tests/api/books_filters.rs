//! Filters, orders, pages and cursors over rows of the log and of the archive: whatever is asked, the answer is the same before
//! days are closed, after they are closed, and while and after their rows leave the log.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::http::Method;
use chrono::{Days, NaiveDateTime, TimeDelta};
use litespend::books::closing::ClosingOptions;
use litespend::books::{closing, pruning};
use litespend::identity::hash_key;
use litespend::rollups::folding;
use litespend::store::books as tables;
use litespend::store::log::months;
use litespend_archive::{Archive, Options};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::books::day;
use crate::support::accounts::add_key;
use crate::support::answers::{Lists, difference};
use crate::support::{MASTER_KEY, TestApp, insert, request};

/// The first of the days with rows. A month ends among them.
const FIRST_DAY: &str = "2026-02-25";
/// Days with rows.
const DAYS: u64 = 10;
/// The last day that is pruned first. Its month is a partition of its own.
const HALF: &str = "2026-02-28";
/// The last day that is closed.
const LAST_CLOSED: &str = "2026-03-04";

const ROWS: u32 = 400;

/// A row of a closed day whose request ID is empty. Its session has an ID.
const NAMELESS: u32 = 21;

/// All rows.
const ALL: &str = "start_date=2026-02-25%2000:00:00&end_date=2026-03-07%2000:00:00";
/// Rows of closed and of open days, and of both months.
const PART: &str = "start_date=2026-02-26%2012:00:00&end_date=2026-03-05%2010:00:00";
/// Rows of the first closed days only.
const OLD: &str = "start_date=2026-02-25%2006:00:00&end_date=2026-02-27%2023:59:59";
/// From the last row of a closed day to the first row of an open one.
const BORDER: &str = "start_date=2026-03-04%2023:59:59&end_date=2026-03-05%2000:00:00";

/// A key of a user without teams.
const USER: &str = "sk-user-0001";
/// A key of a user who administers one team and is a member of another.
const TEAM_ADMIN: &str = "sk-team-admin-0002";
/// A key of a user whose team lets its members read its log.
const MEMBER: &str = "sk-member-0003";
/// A key without a user.
const NOBODY: &str = "sk-nobody-0004";

/// Filters of pages.
const FILTERS: [&str; 90] = [
    "",
    "user_id=u-1",
    "user_id=u-2",
    "user_id=shared",
    "user_id=",
    "user_id=of-nobody",
    "user_id=it%27s%20%22%25_%5C%22%20%C3%BC",
    "team_id=team-a",
    "team_id=team-b",
    "team_id=team-c",
    "team_id=",
    "api_key=key-b",
    "api_key=shared",
    "api_key=",
    "api_key=litellm-internal-health-check",
    "model=gpt-4o",
    "model=m-1",
    "model=",
    "model=%E3%83%A2%E3%83%87%E3%83%AB",
    "model_id=dep-1",
    "model_id=shared",
    "model_id=",
    "model_group=grp-1",
    "model_group=m-1",
    "model_group=",
    "end_user=eu-1",
    "end_user=shared",
    "end_user=",
    "session_id=s-",
    "session_id=s_",
    "session_id=100%25",
    "session_id=hare",
    "session_id=",
    "status_filter=success",
    "status_filter=failure",
    "status_filter=SUCCESS",
    "status_filter=",
    "cache_hit_filter=hit",
    "cache_hit_filter=miss",
    "span_type=llm",
    "span_type=agent",
    "span_type=mcp",
    "span_type=batch",
    "exclude_internal_health_checks=true",
    "min_spend=0",
    "min_spend=0.25",
    "max_spend=0",
    "max_spend=-0.5",
    "max_spend=1e-9",
    "min_spend=0.1&max_spend=0.3",
    "min_spend=-0.5&max_spend=0",
    "min_spend=inf",
    "max_spend=-inf",
    "key_alias=a_b",
    "key_alias=alias",
    "key_alias=50%25%20off",
    "key_alias=a%25b",
    "key_alias=back%5C%5Cslash",
    "error_code=429",
    "error_code=500",
    "error_message=slow",
    "error_message=100%25",
    "error_message=under_score",
    "error_message=d%25n",
    "used_client_oauth_token=true",
    "used_client_oauth_token=false",
    "request_id=call-0004",
    "request_id=call-0025",
    "request_id=own-0004",
    "user_id=u-1&team_id=team-a",
    "team_id=team-b&status_filter=failure",
    "model=gpt-4o&model_group=grp-1",
    "model_group=m-1&model=m-1",
    "api_key=key-b&end_user=eu-1&min_spend=0",
    "session_id=s-1&span_type=llm",
    "status_filter=success&cache_hit_filter=hit&max_spend=1",
    "key_alias=alias&error_code=429",
    "request_id=call-0010&user_id=u-1",
    "request_id=call-0010&user_id=u-2",
    "min_spend=nan",
    "max_spend=nan",
    "min_spend=nan&max_spend=nan",
    "min_spend=nan&max_spend=inf",
    "min_spend=inf&max_spend=inf",
    "min_spend=-inf&max_spend=inf",
    "min_spend=0.25&max_spend=nan",
    "min_spend=0.25&sort_by=spend",
    "request_id=",
    "request_id=&user_id=u-2",
    "request_id=&group_by_session=true",
];

/// Those of the filters that match no row.
const MATCH_NOTHING: [&str; 3] =
    ["user_id=of-nobody", "min_spend=nan&max_spend=inf", "request_id=call-0010&user_id=u-2"];

/// IDs to search for: request IDs, call IDs, keys, teams, users, end users, sessions and deployments.
const SEARCHED: [&str; 13] = [
    "call-0004",
    "call-0010",
    "call-0025",
    "own-0004",
    "key-b",
    "team-b",
    "u-1",
    "eu-1",
    "s-1",
    "dep-1",
    "shared",
    "none",
    "",
];

/// Request IDs and call IDs. Most of these request IDs are the call IDs of other calls, too, of the same day or of another.
const CALLS: [&str; 14] = [
    "call-0004",
    "call-0006",
    "call-0007",
    "call-0010",
    "call-0015",
    "call-0025",
    "call-0026",
    "call-0043",
    "call-0049",
    "call-0056",
    "own-0003",
    "own-0004",
    "own-0020",
    "own-0098",
];

/// A number that depends on a row and a column, and looks random.
fn mixed(row: u32, column: u32) -> usize {
    let mut number = (u64::from(row) << 8 | u64::from(column)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((number ^ (number >> 31)) >> 33).unwrap()
}

/// One of the choices for a column of a row.
fn one(row: u32, column: u32, choices: &Value) -> Value {
    let choices = choices.as_array().unwrap();
    choices[mixed(row, column) % choices.len()].clone()
}

fn start(row: u32) -> NaiveDateTime {
    let day = day(FIRST_DAY) + Days::new(u64::from(row) % DAYS);
    // Several rows start at the same moment, at both ends of a day, too.
    let milliseconds = match mixed(row, 1) % 12 {
        0 => 0,
        1 => 86_399_999,
        2 => 86_399_000,
        3 | 4 => 43_200_123,
        _ => i64::try_from(mixed(row, 2)).unwrap() % 86_400_000,
    };
    day.and_time(chrono::NaiveTime::MIN) + TimeDelta::milliseconds(milliseconds)
}

fn metadata(row: u32) -> Value {
    match mixed(row, 30) % 12 {
        0 => return Value::Null,
        1 => {
            return json!({"user_api_key_alias": "alias in a text", "error_information": {"error_code": "429"}})
                .to_string()
                .into();
        }
        _ => {}
    }
    let mut metadata = json!({"number": 1.50, "long": 123_456_789_012_345_678_u64, "text": "\u{1}ü\u{1f600}"});
    let aliases = json!([null, "alias a_b", "alias axb", "50% off", "back\\slash", 123]);
    let errors = json!([
        null,
        null,
        {"error_code": "429", "error_message": "slow down: 100%"},
        {"error_code": 500, "error_message": "under_score"},
        {"error_code": "500", "error_message": "underXscore \\ end"},
        {"error_code": null, "error_message": null},
    ]);
    for (name, value) in [
        ("user_api_key_alias", one(row, 31, &aliases)),
        ("error_information", one(row, 32, &errors)),
        ("used_client_oauth_token", one(row, 33, &json!([null, true, false, "true"]))),
    ] {
        if !mixed(row, 34).is_multiple_of(5) {
            metadata[name] = value;
        }
    }
    metadata
}

/// Some rows of closed and of open days have a spend that is not finite.
fn spend(row: u32) -> Value {
    match row {
        31 | 62 | 103 | 209 => json!("NaN"),
        44 | 131 | 218 => json!("Infinity"),
        75 | 151 => json!("-Infinity"),
        _ => one(row, 10, &json!([0.0, -0.5, 0.25, 0.1, 1e-9, 3.0, 0.300_000_000_000_000_04, 0.1])),
    }
}

/// A row with values that filters tell apart, NULL and the empty text among them.
fn row(row: u32) -> Value {
    let started = start(row);
    let ended = started + TimeDelta::milliseconds([0, 1, 250, 1500, 60_000][mixed(row, 3) % 5]);
    let first_token = [None, Some(ended), Some(started + TimeDelta::milliseconds(100))][mixed(row, 4) % 3];
    let time = |time: NaiveDateTime| time.format("%Y-%m-%dT%H:%M:%S%.3f").to_string();
    let (prompt, completion) = (mixed(row, 5) % 50, mixed(row, 6) % 20);
    let one = |column: u32, choices: Value| one(row, column, &choices);
    // Calls whose call ID is the request ID of another call, of the same day and of others.
    let call_id = match mixed(row, 7) % 6 {
        0 => Value::Null,
        1 => json!(""),
        2 => json!(format!("call-{row:04}")),
        3 => json!(format!("call-{:04}", row * 7 % ROWS)),
        4 => json!(format!("call-{:04}", (row + 10) % ROWS)),
        _ => json!(format!("own-{row:04}")),
    };
    let long = "long ".repeat(3_000);
    json!({
        "request_id": if row == NAMELESS { String::new() } else { format!("call-{row:04}") },
        "call_type": one(8, json!(["acompletion", "acompletion", "aembedding", "call_mcp_tool", "list_mcp_tools",
                                   "asend_message", "create_batch", "aretrieve_batch", ""])),
        "api_key": one(9, json!([hash_key(USER), "key-b", "shared", "", "litellm-internal-health-check",
                                 "2ee659761968def976c7905217d96fa6e765f300dfb066f6c73fd3c279b3435a"])),
        "spend": spend(row),
        "total_tokens": prompt + completion, "prompt_tokens": prompt, "completion_tokens": completion,
        "startTime": time(started), "endTime": time(ended), "completionStartTime": first_token.map(time),
        "request_duration_ms": one(11, json!([null, null, 5, 250, 99_999])),
        "model": one(12, json!(["gpt-4o", "m-1", "", "GPT-4o", "モデル"])),
        "model_id": one(13, json!([null, "dep-1", "dep-2", "shared", ""])),
        "model_group": one(14, json!([null, "grp-1", "m-1", "gpt-4o", ""])),
        "custom_llm_provider": one(15, json!([null, "openai", ""])),
        "api_base": one(16, json!([null, "https://example.com/v1", "", long])),
        "user": one(17, json!(["u-1", "u-1", "u-2", "u-team-admin", "shared", "", null, "it's \"%_\\\" ü"])),
        "metadata": metadata(row),
        "cache_hit": one(18, json!(["True", "true", "False", "None", "", null])),
        "cache_key": one(19, json!([null, "Cache OFF", "key of the cache"])),
        "request_tags": one(20, json!([["prod"], [], null, "text", ["a", "ü"], {"of": "no list"}])),
        "team_id": one(21, json!(["team-a", "team-b", "team-c", "shared", null, ""])),
        "organization_id": one(22, json!([null, "org-1", ""])),
        "end_user": one(23, json!(["eu-1", "eu-2", "shared", null, ""])),
        "requester_ip_address": one(24, json!([null, "10.0.0.1", ""])),
        "messages": one(25, json!([{}, {"of": row}, [{"role": "user", "content": "ü"}], null])),
        "response": one(26, json!([{}, {"answer": row}, "text", null])),
        "proxy_server_request": one(27, json!([{}, {"request": row}, null])),
        "session_id": one(28, json!(["s-1", "s-2", "s_2", "shared", "100%", "", null, null])),
        "status": one(29, json!(["success", "success", "failure", null, "", "SUCCESS"])),
        "mcp_namespaced_tool_name": one(35, json!([null, "server/tool"])),
        "billing_agent_id": one(36, json!([null, "billed-1"])),
        "agent_id": one(37, json!([null, "agent-1"])),
        "litellm_call_id": call_id,
        "created_at": time(ended), "updated_at": time(ended + TimeDelta::seconds(1)),
    })
}

/// A path, the key of the caller and the format of the answer.
type Asked = (String, &'static str, &'static str);

/// The status of an answer, its headers and its body.
type Answered = (u16, BTreeMap<&'static str, String>, String);

/// A server with an archive, and the answers that it gave before days were closed.
struct Filters {
    app: TestApp,
    archive: Archive,
    _directory: TempDir,
    answers: BTreeMap<Asked, Answered>,
}

/// What of two answers must be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Equal {
    /// Every byte.
    Text,
    /// All values of rows, and the sums of their sessions within 1e-9: in its last digits, a sum depends on the order.
    Page,
    /// All values within 1e-9.
    Sums,
}

impl Filters {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let archive = Archive::open(directory.path().to_str().unwrap(), Options::default()).await.unwrap();
        let app = TestApp::new().await;
        app.state.use_archive(archive.clone());
        let mut connection = app.pool.acquire().await.unwrap();
        months::add(&mut connection, day(HALF), true).await.unwrap();
        let teams = json!([
            {"team_id": "team-a", "members_with_roles": [{"role": "admin", "user_id": "u-team-admin"},
                                                         {"role": "user", "user_id": "u-2"}]},
            {"team_id": "team-b", "team_member_permissions": ["/spend/logs"],
             "members_with_roles": [{"role": "user", "user_id": "u-2"}]},
            {"team_id": "team-c", "members_with_roles": [{"role": "user", "user_id": "u-team-admin"}]},
        ]);
        insert(&mut connection, "LiteLLM_TeamTable", &with_defaults(teams)).await;
        let users = json!([
            {"user_id": "u-1", "user_role": "internal_user", "teams": []},
            {"user_id": "u-2", "user_role": "internal_user", "teams": ["team-a", "team-b"]},
            {"user_id": "u-team-admin", "user_role": "internal_user", "teams": ["team-a", "team-c"]},
        ]);
        insert(&mut connection, "LiteLLM_UserTable", &users).await;
        for (key, user) in
            [(USER, Some("u-1")), (TEAM_ADMIN, Some("u-team-admin")), (MEMBER, Some("u-2")), (NOBODY, None)]
        {
            add_key(&app, key, json!({"user_id": user})).await;
        }
        let rows: Vec<Value> = (0..ROWS).map(row).collect();
        insert(&mut connection, "LiteLLM_SpendLogs", &Value::Array(rows)).await;
        folding::settle(&mut connection).await.unwrap();
        drop(connection);
        app.state.refresh_rollups().await.unwrap();
        Self { app, archive, _directory: directory, answers: BTreeMap::new() }
    }

    /// Asks, and compares with what the first answer to the same question was.
    async fn ask(&mut self, step: &str, path: &str, key: &'static str, accept: &'static str, equal: Equal) -> String {
        let asked = request(Method::GET, path, key).header("accept", accept).body(Body::empty()).unwrap();
        let answer = self.app.send(asked).await;
        let names = ["link", "x-litellm-spend-logs-truncated", "x-litespend-left-out", "content-type"];
        let header = |name| Some((name, answer.headers.get(name)?.to_str().unwrap().to_owned()));
        let headers: BTreeMap<_, _> = names.into_iter().filter_map(header).collect();
        let (status, text) = (answer.status.as_u16(), answer.text);
        let first = self.answers.entry((path.to_owned(), key, accept));
        let first = first.or_insert_with(|| (status, headers.clone(), text.clone()));
        let what = format!("{step}: {path} with {key} as {accept}");
        assert_eq!(status, first.0, "{what}: {text}\nbefore: {}", first.2);
        assert_eq!(headers, first.1, "{what}");
        if equal == Equal::Text {
            assert_eq!(text, first.2, "{what}");
            return text;
        }
        let [ours, expected] = [&text, &first.2].map(|text| serde_json::from_str::<Value>(text).unwrap());
        if let Some(difference) = difference(&ours, &expected, Lists::InOrder) {
            panic!("{what}: {difference}\nours: {ours}\nbefore: {expected}");
        }
        if equal == Equal::Page {
            assert_eq!(without_sums(ours), without_sums(expected), "{what}");
        }
        text
    }

    async fn close(&self) {
        let mut connection = self.app.pool.acquire().await.unwrap();
        let options = ClosingOptions { bodies: true, ..ClosingOptions::default() };
        let through = day(LAST_CLOSED);
        let closed =
            closing::close_through(&mut connection, Vec::new(), &self.archive, through, options, |_| true).await;
        assert_eq!(closed.unwrap().days, 8);
        self.app.state.refresh_rollups().await.unwrap();
    }

    async fn prune(&self, through: &str) {
        let mut connection = self.app.pool.acquire().await.unwrap();
        let mut steps = Vec::new();
        let report = |step: &pruning::Step| {
            steps.push(step.clone());
            true
        };
        pruning::prune(&mut connection, &self.archive, day(through), report).await.unwrap();
        let is_kept = |step: &pruning::Step| matches!(step, pruning::Step::Kept(..));
        assert!(!steps.is_empty() && !steps.iter().any(is_kept), "{steps:?}");
        let closed = tables::closed_days(&mut connection, None).await.unwrap();
        assert!(closed.iter().all(|closed| closed.pruned_at.is_some() == (closed.day <= day(through))), "{closed:?}");
    }

    /// Takes the next step with the rows of closed days, and returns its name. `None` if there is none.
    async fn next_step(&self, number: usize) -> Option<&'static str> {
        match number {
            0 => {}
            1 => self.close().await,
            2 => {
                // Of the days that are not pruned yet, the log has some rows.
                let some =
                    r#"DELETE FROM "LiteLLM_SpendLogs" WHERE "startTime" < '2026-03-05' AND md5(request_id) < '6'"#;
                self.app.execute(some).await;
                self.prune(HALF).await;
            }
            3 => self.prune(LAST_CLOSED).await,
            _ => return None,
        }
        ["before", "closed", "half of the days are pruned", "all closed days are pruned"].get(number).copied()
    }
}

/// Team rows with the columns that may not be null.
fn with_defaults(mut teams: Value) -> Value {
    for team in teams.as_array_mut().unwrap() {
        for (name, value) in [("blocked", json!(false)), ("spend", json!(0.0))] {
            team[name] = value;
        }
    }
    teams
}

/// An answer without the sums of sessions.
fn without_sums(mut answer: Value) -> Value {
    for row in answer.get_mut("data").and_then(Value::as_array_mut).into_iter().flatten() {
        row.as_object_mut().unwrap().retain(|name, _| {
            name == "session_id" || !name.starts_with("session_") && !name.starts_with("mcp_tool_call_")
        });
    }
    answer
}

fn escaped(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

const JSON: &str = "application/json";

#[tokio::test]
async fn every_filter_of_pages_finds_archived_rows_as_it_found_them_in_the_log() {
    let mut filters = Filters::new().await;
    let mut number = 0;
    while let Some(step) = filters.next_step(number).await {
        number += 1;
        let mut empty = BTreeSet::new();
        for (place, filter) in FILTERS.into_iter().enumerate() {
            let routes = [("ui", ALL), ("v2", ALL), ("v2", PART), ("ui", OLD)];
            for (route, window) in [routes[place % 2], routes[2 + place / 2 % 2]] {
                let path = format!("/spend/logs/{route}?{window}&{filter}&page_size=60");
                let answer = filters.ask(step, &path, MASTER_KEY, JSON, Equal::Page).await;
                let answer: Value = serde_json::from_str(&answer).unwrap();
                assert!(answer["total"].is_u64(), "{step}: {path}: {answer}");
                if window == ALL && answer["total"] == 0 {
                    empty.insert(filter);
                }
            }
        }
        assert_eq!(empty, BTreeSet::from(MATCH_NOTHING), "{step}: these match nothing");
        let reversed = "start_date=2026-03-02%2000:00:00&end_date=2026-03-01%2000:00:00";
        for (place, id) in SEARCHED.into_iter().enumerate() {
            for (window, route) in [(ALL, "ui"), (PART, "v2"), ([OLD, BORDER, reversed][place % 3], "ui")] {
                let rest = ["", "&status_filter=success", "&user_id=u-1", "&group_by_session=true"][place % 4];
                let path = format!("/spend/logs/{route}?{window}&search={id}{rest}");
                filters.ask(step, &path, MASTER_KEY, JSON, Equal::Page).await;
            }
        }
    }
    assert_eq!(number, 4);
}

#[tokio::test]
async fn users_and_team_members_find_archived_rows_as_they_found_them_in_the_log() {
    let mut filters = Filters::new().await;
    let users = [USER, TEAM_ADMIN, MEMBER];
    let mut number = 0;
    while let Some(step) = filters.next_step(number).await {
        number += 1;
        let mut with_rows = 0;
        for (place, filter) in FILTERS.iter().enumerate() {
            let (route, window) = [("ui", ALL), ("v2", ALL), ("v2", PART), ("ui", PART)][place % 4];
            let path = format!("/spend/logs/{route}?{window}&{filter}&page_size=60");
            let answer = filters.ask(step, &path, users[place % 3], JSON, Equal::Page).await;
            with_rows += u32::from(answer.contains("\"request_id\":"));
        }
        // The comparison says something: there are rows that these callers see.
        assert!(with_rows > 40, "{step}: {with_rows}");
        for key in [USER, TEAM_ADMIN, MEMBER, NOBODY] {
            for path in ["/spend/logs", "/spend/logs?limit=11&user_id=u-2", "/spend/logs?request_id=call-0010"] {
                filters.ask(step, path, key, JSON, Equal::Text).await;
            }
            for session in ["s-1", "", "shared&page=2&page_size=5"] {
                let path = format!("/spend/logs/session/ui?session_id={session}");
                filters.ask(step, &path, key, JSON, Equal::Text).await;
            }
            for rest in ["", "&team_id=team-a", "&team_id=team-b", "&group_by_session=true"] {
                let path = format!("/spend/logs/ui?{PART}{rest}");
                filters.ask(step, &path, key, JSON, Equal::Page).await;
            }
        }
        for (place, id) in CALLS.iter().enumerate() {
            for key in users {
                filters.ask(step, &format!("/spend/logs/ui/{id}"), key, JSON, Equal::Text).await;
            }
            let path = format!("/spend/logs/ui?request_id={id}");
            filters.ask(step, &path, users[place % 3], JSON, Equal::Page).await;
            let path = format!("/spend/logs/ui?{PART}&search={id}");
            filters.ask(step, &path, users[(place + 1) % 3], JSON, Equal::Page).await;
        }
    }
}

#[tokio::test]
async fn orders_pages_and_sessions_of_archived_rows_are_those_of_the_log() {
    let mut filters = Filters::new().await;
    let mut number = 0;
    while let Some(step) = filters.next_step(number).await {
        number += 1;
        for sort_by in ["spend", "total_tokens", "startTime", "endTime", "request_duration_ms", "model", "ttft_ms"] {
            for sort_order in ["asc", "desc"] {
                let order = format!("sort_by={sort_by}&sort_order={sort_order}&page_size=7");
                for page in 1..=3 {
                    let path = format!("/spend/logs/v2?{ALL}&{order}&page={page}");
                    filters.ask(step, &path, MASTER_KEY, JSON, Equal::Text).await;
                }
                for rest in ["&group_by_session=true&page=2", "&status_filter=success&page=3"] {
                    let path = format!("/spend/logs/ui?{PART}&{order}{rest}");
                    filters.ask(step, &path, MASTER_KEY, JSON, Equal::Page).await;
                }
            }
        }
        for (window, rest) in [
            (ALL, ""),
            (ALL, "&sort_order=asc"),
            (PART, ""),
            (OLD, "&sort_order=asc"),
            (ALL, "&status_filter=failure"),
            (ALL, "&status_filter=success&team_id=team-b"),
            (ALL, "&span_type=mcp"),
            (ALL, "&user_id=u-1&min_spend=0.1"),
        ] {
            let first = format!("/spend/logs/ui?{window}&group_by_session=true&page_size=20{rest}");
            let mut path = first.clone();
            let (mut sessions, mut pages) = (BTreeSet::new(), 0);
            loop {
                let page = filters.ask(step, &path, MASTER_KEY, JSON, Equal::Page).await;
                let page: Value = serde_json::from_str(&page).unwrap();
                for row in page["data"].as_array().unwrap() {
                    let session = row["session_id"].as_str().filter(|id| !id.is_empty());
                    let session = session.or(row["request_id"].as_str()).unwrap();
                    assert!(sessions.insert((session.to_owned(), row["api_key"].to_string())), "{step}: {path}");
                }
                pages += 1;
                let Some(cursor) = page["next_session_cursor"].as_str() else {
                    assert_eq!(page["total"], sessions.len(), "{step}: {first}");
                    break;
                };
                path = format!("{first}&session_cursor={}", escaped(cursor));
            }
            assert!(pages > 1, "{step}: {first}");
            filters.ask(step, &format!("{first}&page=2"), MASTER_KEY, JSON, Equal::Page).await;
        }
        for session in ["s-1", "s_2", "shared", "100%25", "", "of-nobody"] {
            for page in ["page_size=100", "page_size=7&page=2"] {
                let path = format!("/spend/logs/session/ui?session_id={session}&{page}");
                filters.ask(step, &path, MASTER_KEY, JSON, Equal::Text).await;
            }
        }
        for id in CALLS {
            filters.ask(step, &format!("/spend/logs/ui/{id}"), MASTER_KEY, JSON, Equal::Text).await;
            for rest in ["", "&user_id=u-1", "&group_by_session=true"] {
                let path = format!("/spend/logs/ui?request_id={id}{rest}");
                filters.ask(step, &path, MASTER_KEY, JSON, Equal::Page).await;
            }
            let path = format!("/spend/logs/v2?{OLD}&request_id={id}");
            filters.ask(step, &path, MASTER_KEY, JSON, Equal::Text).await;
        }
    }
}

const FORMATS: [&str; 3] = [JSON, "application/x-ndjson", "text/csv"];

#[tokio::test]
async fn lists_of_rows_are_the_same_in_every_format_with_every_parameter() {
    let mut filters = Filters::new().await;
    let lists = [
        String::new(),
        format!("api_key={USER}"),
        format!("api_key={}", hash_key(USER)),
        "api_key=key-b".to_owned(),
        "api_key=".to_owned(),
        "user_id=u-1".to_owned(),
        "user_id=".to_owned(),
        "user_id=shared&api_key=shared".to_owned(),
        "user_id=it%27s%20%22%25_%5C%22%20%C3%BC".to_owned(),
        "user_id=of-nobody".to_owned(),
        "request_id=call-0010".to_owned(),
        "request_id=own-0004".to_owned(),
        "request_id=".to_owned(),
        "request_id=&user_id=u-1".to_owned(),
        "request_id=call-0010&user_id=u-1".to_owned(),
        format!("request_id=call-0004&api_key={USER}"),
    ];
    let mut number = 0;
    while let Some(step) = filters.next_step(number).await {
        number += 1;
        for (place, list) in lists.iter().enumerate() {
            for (number, rest) in [
                "",
                "&limit=13",
                "&limit=1000",
                "&start_date=2026-02-26&end_date=2026-03-05&summarize=false",
                "&start_date=2026-03-04&end_date=2026-03-05&summarize=false&limit=5",
                "&start_date=2026-02-25&end_date=2026-02-25&summarize=false",
                "&start_date=2026-03-05&end_date=2026-02-25&summarize=false",
                "&start_date=2026-03-01&csv=safe",
            ]
            .into_iter()
            .enumerate()
            {
                let path = format!("/spend/logs?{list}{rest}");
                let accept = if rest.contains("csv") { "text/csv" } else { FORMATS[(place + number) % 3] };
                filters.ask(step, &path, MASTER_KEY, accept, Equal::Text).await;
            }
        }
        for accept in FORMATS {
            filters.ask(step, "/spend/logs", MASTER_KEY, accept, Equal::Text).await;
        }
        for (list, limit) in [("", 60), ("user_id=u-1", 20), ("api_key=key-b", 13), ("user_id=&api_key=", 2)] {
            for dates in ["", "&start_date=2026-02-26&end_date=2026-03-06&summarize=false"] {
                let mut path = format!("/spend/logs?{list}&limit={limit}{dates}");
                let (mut pages, mut seen) = (0, BTreeSet::new());
                loop {
                    let accept = FORMATS[pages % 2];
                    let page = filters.ask(step, &path, MASTER_KEY, accept, Equal::Text).await;
                    let rows: Vec<Value> = if accept == JSON {
                        serde_json::from_str(&page).unwrap()
                    } else {
                        page.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
                    };
                    for row in rows {
                        assert!(seen.insert(row["request_id"].to_string()), "{step}: {path}");
                    }
                    pages += 1;
                    let headers = &filters.answers[&(path.clone(), MASTER_KEY, accept)].1;
                    let Some(link) = headers.get("link") else { break };
                    path = link[1..link.find('>').unwrap()].to_owned();
                }
                assert!(pages > 2, "{step}: {list}{dates}");
            }
        }
        // Sums of days, and of one call on its days.
        for list in &lists {
            for (key, dates) in [
                (MASTER_KEY, "start_date=2026-02-25&end_date=2026-03-07"),
                (MEMBER, "start_date=2026-02-27&end_date=2026-03-05"),
            ] {
                filters.ask(step, &format!("/spend/logs?{list}&{dates}"), key, JSON, Equal::Sums).await;
            }
        }
    }
}
