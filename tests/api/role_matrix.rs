//! Sends requests to every route as every kind of caller, in a world with everyone's rows and in one with only the
//! caller's own. A caller that may not see the others' rows must get the same answers in both worlds, and no answer
//! that names those rows.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Method;
use litespend::identity::hash_key;
use litespend::route_table::{Access, Part, ROUTES, Route};
use serde_json::{Value, json};

use crate::support::accounts::{add_key, session, with_dashboard};
use crate::support::{Answer, MASTER_KEY, TestApp, insert, request};

/// The owners of rows: name, role, team, and role in the team.
const OWNERS: [(&str, &str, &str, &str); 6] = [
    ("ada", "internal_user", "red", "admin"),
    ("ben", "internal_user", "red", "user"),
    ("cleo", "internal_user_viewer", "blue", "admin"),
    ("dora", "emperor", "blue", "user"),
    ("eve", "internal_user", "", ""),
    // Rows of keys without a user.
    ("", "", "green", ""),
];

/// A kind of caller, and the rows that it may see.
struct Kind {
    name: &'static str,
    key: String,
    role: Option<&'static str>,
    /// The owners whose rows the caller may see; `None` means all owners.
    sees: Option<&'static [&'static str]>,
    permitted: bool,
    only: Option<&'static str>,
    /// Whether the key has no rights at all.
    dead: bool,
}

/// A word that occurs only in the rows of one owner.
fn canary(owner: &str) -> String {
    format!("canary{}", if owner.is_empty() { "nobody" } else { owner })
}

fn key_of(owner: &str) -> String {
    format!("sk-key-of-{owner}")
}

/// Creates everyone's users, teams and keys, and the rows of these owners.
async fn world(owners: &[&str]) -> TestApp {
    let app = TestApp::with(with_dashboard()).await;
    let mut connection = app.pool.acquire().await.unwrap();
    for team in ["red", "blue", "green"] {
        let members: Vec<Value> = OWNERS
            .iter()
            .filter(|(owner, _, of, role)| *of == team && !owner.is_empty() && !role.is_empty())
            .map(|(owner, _, _, role)| json!({"user_id": owner, "role": role}))
            .collect();
        let row = json!([{"team_id": team, "team_alias": format!("alias of {team}"), "members_with_roles": members,
                          "created_at": "2026-01-01T00:00:00", "updated_at": "2026-01-01T00:00:00"}]);
        insert(&mut connection, "LiteLLM_TeamTable", &row).await;
    }
    for (owner, role, team, _) in OWNERS.iter().filter(|(owner, ..)| !owner.is_empty()) {
        let teams: Vec<&str> = Some(*team).filter(|team| !team.is_empty()).into_iter().collect();
        let row = json!([{"user_id": owner, "user_role": role, "teams": teams, "user_alias": canary(owner),
                          "user_email": format!("{}@example.com", canary(owner)), "created_at": "2026-01-01T00:00:00"}]);
        insert(&mut connection, "LiteLLM_UserTable", &row).await;
    }
    let admins = json!([{"user_id": "root", "user_role": "proxy_admin", "created_at": "2026-01-01T00:00:00"},
                        {"user_id": "vic", "user_role": "proxy_admin_viewer", "created_at": "2026-01-01T00:00:00"}]);
    insert(&mut connection, "LiteLLM_UserTable", &admins).await;
    for (number, (owner, _, team, _)) in OWNERS.iter().enumerate() {
        let user = Some(*owner).filter(|owner| !owner.is_empty());
        let columns = json!({"user_id": user, "updated_at": "2026-01-01T00:00:00", "team_id": Some(*team).filter(|team| !team.is_empty()), "key_alias": canary(owner),
                             "created_at": "2026-01-01T00:00:00"});
        add_key(&app, &key_of(owner), columns).await;
        if owners.contains(owner) {
            add_rows(&mut connection, number, owner, team).await;
        }
    }
    for (key, columns) in [
        ("sk-root", json!({"user_id": "root"})),
        ("sk-vic", json!({"user_id": "vic"})),
        ("sk-one-route", json!({"user_id": "ben", "team_id": "red", "allowed_routes": ["/spend/logs"]})),
        ("sk-permitted", json!({"user_id": "eve", "permissions": {"get_spend_routes": true}})),
        ("sk-nobody", json!({"user_id": "", "team_id": ""})),
        ("sk-no-such-user", json!({"user_id": "gone"})),
        ("sk-blocked", json!({"user_id": "ada", "blocked": true})),
        ("sk-expired", json!({"user_id": "ada", "expires": "2026-01-01T00:00:00"})),
    ] {
        let mut columns = columns;
        columns["created_at"] = json!("2026-01-01T00:00:00");
        columns["updated_at"] = json!("2026-01-01T00:00:00");
        add_key(&app, key, columns).await;
    }
    drop(connection);
    app
}

async fn add_rows(connection: &mut sqlx::PgConnection, number: usize, owner: &str, team: &str) {
    let (word, token) = (canary(owner), hash_key(&key_of(owner)));
    let spend = f64::from(1 << number) + 0.125;
    let logs: Vec<Value> = ["2026-01-01T10:00:00", "2026-01-02T10:00:00"]
        .iter()
        .enumerate()
        .map(|(row, time)| {
            json!({"request_id": format!("id-{number}-{row}"), "call_type": "completion", "api_key": token, "user": owner,
                   "team_id": team, "model": format!("model-{word}"), "model_group": format!("group-{word}"),
                   "model_id": format!("deployment-{word}"), "spend": spend, "total_tokens": 10 << number,
                   "prompt_tokens": 5, "completion_tokens": 5, "end_user": format!("customer-{word}"),
                   "request_tags": [format!("tag-{word}")], "session_id": format!("session-{number}"),
                   "messages": {"text": word}, "response": {"text": word}, "metadata": {"user_api_key_alias": word},
                   "startTime": time, "endTime": time})
        })
        .collect();
    insert(connection, "LiteLLM_SpendLogs", &json!(logs)).await;
    for (table, column, entity) in [
        ("LiteLLM_DailyUserSpend", "user_id", owner.to_owned()),
        ("LiteLLM_DailyTeamSpend", "team_id", team.to_owned()),
        ("LiteLLM_DailyTagSpend", "tag", format!("tag-{word}")),
    ] {
        let row = json!([{"id": format!("{table}-{number}"), column: entity, "date": "2026-01-01", "api_key": token,
                          "model": format!("model-{word}"), "model_group": format!("group-{word}"), "endpoint": format!("/{word}"),
                          "spend": spend, "api_requests": 1, "successful_requests": 1, "prompt_tokens": 10 << number,
                          "updated_at": "2026-01-01T00:00:00"}]);
        insert(connection, table, &row).await;
    }
}

fn kinds() -> Vec<Kind> {
    let kind = |name, key: &str, role, sees| Kind {
        name,
        key: key.to_owned(),
        role,
        sees,
        permitted: false,
        only: None,
        dead: false,
    };
    let (user, viewer) = (Some("internal_user"), Some("internal_user_viewer"));
    vec![
        kind("master key", MASTER_KEY, Some("master"), None),
        kind("admin", "sk-root", Some("proxy_admin"), None),
        kind("admin viewer", "sk-vic", Some("proxy_admin_viewer"), None),
        kind("session of the password", "admin", Some("proxy_admin"), None),
        kind("admin of a team", &key_of("ada"), user, Some(&["ada", "ben"])),
        kind("session of ada", "ada", user, Some(&["ada", "ben"])),
        kind("member of a team", &key_of("ben"), user, Some(&["ben"])),
        kind("viewer and admin of a team", &key_of("cleo"), viewer, Some(&["cleo", "dora"])),
        kind("user without a team", &key_of("eve"), user, Some(&["eve"])),
        Kind { permitted: true, ..kind("key with a permission", "sk-permitted", user, Some(&["eve"])) },
        Kind { only: Some("/spend/logs"), ..kind("key for one route", "sk-one-route", user, Some(&["ben"])) },
        kind("unknown role", &key_of("dora"), None, Some(&["dora"])),
        kind("key without a user", &key_of(""), None, Some(&[])),
        kind("key of the user of no name", "sk-nobody", None, Some(&[])),
        kind("key of a user who is gone", "sk-no-such-user", None, Some(&[])),
        Kind { dead: true, ..kind("blocked key", "sk-blocked", None, Some(&[])) },
        Kind { dead: true, ..kind("expired key", "sk-expired", None, Some(&[])) },
        Kind { dead: true, ..kind("unknown key", "sk-unknown", None, Some(&[])) },
    ]
}

/// Whether this kind of caller may call the route. This repeats the rules of the access classes independently of the
/// code.
fn may_call(kind: &Kind, route: &Route) -> bool {
    if matches!(route.access, Access::Public | Access::Probe) {
        return true;
    }
    let under = |only: &str| route.path == only || route.path.starts_with(&format!("{only}/"));
    if kind.dead || kind.only.is_some_and(|only| !under(only)) {
        return false;
    }
    let admin = matches!(kind.role, Some("master" | "proxy_admin"));
    let sees = admin || kind.role == Some("proxy_admin_viewer");
    match route.access {
        Access::MasterKey => kind.role == Some("master"),
        Access::AdminWrite => admin,
        Access::AdminRead => sees,
        Access::GlobalSpend => sees || kind.permitted,
        Access::Spend => kind.role.is_some(),
        Access::InternalUsers => sees || kind.role == Some("internal_user"),
        _ => true,
    }
}

/// The query strings: none, days, and every foreign id that a filter accepts.
fn queries() -> Vec<String> {
    const DAYS: &str = "start_date=2026-01-01&end_date=2026-01-03";
    let mut queries =
        vec![String::new(), DAYS.to_owned(), format!("{DAYS}&summarize=false&group_by=customer&limit=50")];
    queries.push("start_date=2026-01-01%2000:00:00&end_date=2026-01-03%2000:00:00&group_by_session=true".to_owned());
    for (number, (owner, _, team, _)) in OWNERS.iter().enumerate() {
        let token = hash_key(&key_of(owner));
        queries.push(format!("{DAYS}&user_id={owner}&internal_user_id={owner}&user_ids={owner}"));
        queries.push(format!("{DAYS}&team_id={team}&team_ids={team}"));
        queries.push(format!(
            "{DAYS}&api_key={token}&key_hash={token}&request_id=id-{number}-0&session_id=session-{number}"
        ));
    }
    queries.dedup();
    queries
}

async fn ask(app: &TestApp, route: &Route, path: &str, key: &str) -> Answer {
    let method = route.method;
    let builder = request(Method::from_bytes(method.as_bytes()).unwrap(), path, key);
    app.send(
        builder
            .header("content-type", "application/json")
            .body(Body::from(if method == "GET" { "" } else { "{}" }))
            .unwrap(),
    )
    .await
}

/// The key that this kind of caller uses in this world.
async fn key_in(app: &TestApp, kind: &Kind) -> String {
    match kind.key.as_str() {
        "admin" => session(app, "admin", MASTER_KEY).await,
        "ada" => session(app, "ada", &key_of("ada")).await,
        key => key.to_owned(),
    }
}

fn foreign_words(kind: &Kind) -> Vec<String> {
    let sees = kind.sees.unwrap_or_default();
    OWNERS.iter().map(|(owner, ..)| *owner).filter(|owner| !sees.contains(owner)).map(canary).collect()
}

#[tokio::test]
async fn nobody_is_told_of_rows_that_are_not_theirs() {
    let everybody: Vec<&str> = OWNERS.iter().map(|(owner, ..)| *owner).collect();
    let full = world(&everybody).await;
    let paths: Vec<&Route> = ROUTES.iter().collect();
    let mut failures = Vec::new();
    let mut told: BTreeSet<(&str, &str)> = BTreeSet::new();
    for kind in kinds() {
        let own = match kind.sees {
            Some(sees) => Some(world(sees).await),
            None => None,
        };
        let key = key_in(&full, &kind).await;
        let own_key = match &own {
            Some(own) => key_in(own, &kind).await,
            None => String::new(),
        };
        let foreign = foreign_words(&kind);
        for route in &paths {
            let is_get = route.method.starts_with("GET");
            let allowed = may_call(&kind, route);
            let open = matches!(route.access, Access::Public | Access::Probe);
            if open || (!is_get && allowed && kind.sees.is_none()) {
                // Other tests cover the requests that change something.
                continue;
            }
            // A stub gives everybody the same answer, whatever the query is.
            let asks = is_get && allowed && route.part != Part::Stub;
            let queries = if asks { queries() } else { vec![String::new()] };
            for (number, query) in queries.iter().enumerate() {
                let path = route.path.replace("{request_id}", &format!("id-{}-0", number % OWNERS.len()));
                let path = if query.is_empty() { path } else { format!("{path}?{query}") };
                let answer = ask(&full, route, &path, &key).await;
                let said = format!("{}: {} {path}: {} ", kind.name, route.method, answer.status);
                let refused = matches!(answer.status.as_u16(), 401 | 403);
                if answer.status.is_server_error() || (!allowed && !refused) || (allowed && answer.status == 401) {
                    failures.push(said.clone() + &answer.text);
                }
                let Some(own) = &own else {
                    told.extend(
                        everybody
                            .iter()
                            .filter(|owner| answer.text.contains(&canary(owner)))
                            .map(|_| (kind.name, route.path)),
                    );
                    continue;
                };
                if kind.permitted && route.access == Access::GlobalSpend {
                    continue;
                }
                // LiteLLM reports the spend of a key's whole team to every member.
                let of_team = route.path == "/team/spend/report" && kind.name == "member of a team";
                let everything = format!("{:?} {}", answer.headers, answer.text);
                failures.extend(
                    foreign
                        .iter()
                        .filter(|word| everything.contains(*word) && !(of_team && **word == canary("ada")))
                        .map(|word| format!("{said}{word} in {everything}")),
                );
                if kind.sees.is_some_and(|sees| sees.iter().any(|owner| answer.text.contains(&canary(owner)))) {
                    told.insert((kind.name, route.path));
                }
                let alone = ask(own, route, &path, &own_key).await;
                let differs = alone.status != answer.status || settled(&alone.text) != settled(&answer.text);
                // Answers may also differ because of the moment: the time when a key expired, or the hashes of the
                // sessions.
                if differs && !of_team && !kind.dead && !is_of_session(&kind, route) {
                    failures.push(format!("{said}differs without the others' rows:\n{}\n{}", answer.text, alone.text));
                }
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures
            .iter()
            .take(12)
            .map(|failure| failure.chars().take(3000).collect::<String>())
            .collect::<Vec<_>>()
            .join("\n")
    );
    // Proves that the words can be found at all.
    for (kind, at_least) in [
        ("master key", 20),
        ("admin viewer", 20),
        ("session of the password", 20),
        ("admin of a team", 10),
        ("session of ada", 10),
        ("member of a team", 8),
        ("viewer and admin of a team", 6),
        ("user without a team", 8),
        ("key for one route", 2),
    ] {
        let count = told.iter().filter(|(name, _)| *name == kind).count();
        println!("{kind}: own rows on {count} routes");
        assert!(count >= at_least, "{kind}: own rows on {count} routes only");
    }
}

/// The answer without the times at which this world's rows were created.
fn settled(text: &str) -> String {
    let mut settled = String::new();
    let mut rest = text;
    while let Some(place) = ["\"updated_at\":\"", "\"created_at\":\""].iter().filter_map(|name| rest.find(name)).min() {
        // Both names have the same length.
        let (before, after) = rest.split_at(place + "\"updated_at\":\"".len());
        settled += before;
        rest = after.find('"').map_or("", |end| &after[end..]);
    }
    settled + rest
}

/// Whether the answer contains the session's key, which differs between the worlds and is listed among its user's keys.
fn is_of_session(kind: &Kind, route: &Route) -> bool {
    kind.key == "ada" && ["/spend/keys", "/key/info"].contains(&route.path)
}
