//! Authority never grows: random chains of logins, and of keys and users that are created, blocked, unblocked and
//! deleted. The test finds out what a key can do by trying requests, not by computing it. `AUTHORITY_SEED` replays a
//! run.

use std::time::{Duration, Instant};

use litespend::identity::hash_key;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::support::accounts::{add_key, add_user, claims, log_in_from, with_dashboard};
use crate::support::{MASTER_KEY, TestApp};

/// How long the test creates chains.
const TIME: Duration = Duration::from_secs(8);
/// How long at most, if it has not created enough by then.
const LONGEST: Duration = Duration::from_secs(120);

/// Requests that show what a key may do. A missing right alone makes each of them fail with 401 or 403.
const PROBES: [(&str, &str); 11] = [
    ("GET", "/spend/tags"),
    ("GET", "/spend/logs"),
    ("GET", "/spend/logs/v2"),
    ("GET", "/get/allowed_ips"),
    ("GET", "/key/info"),
    ("GET", "/user/list"),
    ("GET", "/team/list"),
    ("GET", "/global/spend/tags"),
    ("GET", "/metrics"),
    ("POST", "/key/delete"),
    ("POST", "/add/allowed_ip"),
];

const ROUTES: [&str; 14] = [
    "",
    " ",
    "*",
    "/",
    "/*",
    "/spend/tags",
    "/spend/*",
    "/spend/logs",
    "/key/*",
    "/key/generate",
    "/user/new",
    "spend_tracking_routes",
    "management_routes",
    "info_routes",
];

#[derive(Clone, Debug)]
struct Holder {
    key: String,
    user: Option<String>,
    /// The key that opened it, if it is a session.
    opened_by: Option<String>,
    opens: [bool; PROBES.len()],
}

async fn opens(app: &TestApp, key: &str) -> [bool; PROBES.len()] {
    let mut opens = [false; PROBES.len()];
    for (open, (method, path)) in opens.iter_mut().zip(PROBES) {
        let answer = match method {
            "GET" => app.get(path, key).await,
            _ => app.post(path, key, &json!({})).await,
        };
        assert!(answer.status.as_u16() < 500, "{path}: {}", answer.text);
        *open = !matches!(answer.status.as_u16(), 401 | 403);
    }
    opens
}

fn some_routes(random: &mut StdRng) -> Vec<&'static str> {
    (0..random.random_range(0..3)).filter_map(|_| ROUTES.choose(random).copied()).collect()
}

/// A random request that creates a key or a user: its path and body.
fn making(random: &mut StdRng, number: u32, holders: &[Holder]) -> (&'static str, Value) {
    let someone = holders.choose(random).map(|holder| hash_key(&holder.key)).unwrap_or_default();
    let user = ["root", "ada", "vic", "ghost", "default_user_id", "none"].choose(random).copied().unwrap_or_default();
    let role = ["proxy_admin", "proxy_admin_viewer", "internal_user"].choose(random).copied().unwrap_or_default();
    match random.random_range(0..10) {
        0..5 => {
            let mut body = json!({"user_id": user, "allowed_routes": some_routes(random)});
            match random.random_range(0..5) {
                0 => body["permissions"] = json!({"get_spend_routes": true}),
                1 => body["metadata"] = json!({"litespend_session": {"parent": someone, "seal": "x"}}),
                2 => body["team_id"] = json!("litellm-dashboard"),
                3 => body["key_alias"] = json!(someone),
                _ => {}
            }
            ("/key/generate", body)
        }
        5..8 => {
            let user = if random.random() { user.to_owned() } else { format!("new-{number}") };
            ("/user/new", json!({"user_id": user, "user_role": role}))
        }
        8 => ("/team/new", json!({"members_with_roles": [{"user_id": user, "role": "admin"}]})),
        _ => ("/key/unblock", json!({"key": someone})),
    }
}

async fn start(app: &TestApp) -> Vec<Holder> {
    for (user, role) in [("root", "proxy_admin"), ("vic", "proxy_admin_viewer"), ("ada", "internal_user")] {
        add_user(app, user, Some(role)).await;
    }
    let mut holders = Vec::new();
    for (key, columns) in [
        ("sk-root", json!({"user_id": "root"})),
        ("sk-keys-only", json!({"user_id": "root", "allowed_routes": ["/key/*", "/user/new", "/team/new"]})),
        (
            "sk-spend",
            json!({"user_id": "root", "allowed_routes": ["/spend/*", "/key/generate"], "permissions": {"get_spend_routes": true}}),
        ),
        ("sk-manage", json!({"user_id": "root", "allowed_routes": ["management_routes"]})),
        ("sk-nothing", json!({"user_id": "root", "allowed_routes": [""]})),
        ("sk-viewer", json!({"user_id": "vic"})),
        ("sk-ada", json!({"user_id": "ada", "permissions": {"get_spend_routes": true}})),
        ("sk-ghost", json!({"user_id": "ghost"})),
        ("sk-blocked", json!({"user_id": "root", "blocked": true})),
    ] {
        add_key(app, key, columns.clone()).await;
        let user = columns["user_id"].as_str().map(str::to_owned);
        holders.push(Holder { key: key.into(), user, opened_by: None, opens: opens(app, key).await });
    }
    holders
}

#[tokio::test]
async fn authority_never_grows_and_revocation_cascades() {
    let seed = std::env::var("AUTHORITY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("AUTHORITY_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let app = TestApp::with(with_dashboard()).await;
    let mut holders = start(&app).await;
    let (started, mut made, mut sessions, mut step) = (Instant::now(), 0, 0, 0_u32);
    // The test runs for `TIME`, or longer on a busy machine, until it has created enough to judge.
    let enough = |made, sessions| made > 5 && sessions > 3;
    while step < 400 && started.elapsed() < if enough(made, sessions) { TIME } else { LONGEST } {
        step += 1;
        let maker = holders.choose(&mut random).unwrap().clone();
        let said = format!("AUTHORITY_SEED={seed}, step {step}, by {} {:?}", maker.key, maker.user);
        match random.random_range(0..10) {
            0..3 => {
                let Some(user) = &maker.user else { continue };
                let answer =
                    log_in_from(&app, &format!("10.0.{}.{}:1", step / 250, step % 250), user, &maker.key).await;
                if answer.status == 200 {
                    assert!(maker.opened_by.is_none(), "{said}: a session opened a session");
                    let key = claims(&answer)["key"].as_str().unwrap().to_owned();
                    let session = Holder {
                        opens: opens(&app, &key).await,
                        opened_by: Some(maker.key.clone()),
                        key,
                        ..maker.clone()
                    };
                    assert_within(&session.opens, &maker.opens, &format!("{said}: login"));
                    holders.push(session);
                    sessions += 1;
                }
            }
            3..9 => {
                let (path, body) = making(&mut random, step, &holders);
                let answer = app.post(path, &maker.key, &body).await;
                assert!(answer.status.as_u16() < 500, "{said}: {path} {body}: {}", answer.text);
                let said = format!("{said}: {path} {body}: {}", answer.text);
                for holder in &mut holders {
                    let now = opens(&app, &holder.key).await;
                    let before: Vec<bool> =
                        holder.opens.iter().zip(maker.opens).map(|(had, gives)| *had || gives).collect();
                    assert_within(&now, &before, &format!("{said}: {} grew", holder.key));
                    holder.opens = now;
                }
                let key = answer.json()["key"]
                    .as_str()
                    .filter(|key| key.starts_with("sk-") && path != "/key/unblock")
                    .map(str::to_owned);
                if let Some(key) = key {
                    let user = answer.json()["user_id"].as_str().map(str::to_owned);
                    let child = Holder { opens: opens(&app, &key).await, key, user, opened_by: None };
                    assert_within(&child.opens, &maker.opens, &said);
                    holders.push(child);
                    made += 1;
                }
            }
            _ => revoke(&app, &mut holders, &maker, &mut random, &said).await,
        }
        while holders.len() > 16 {
            // The first holder is the administrator, without whom nothing more can be created.
            let gone = random.random_range(1..holders.len());
            holders.swap_remove(gone);
        }
        if holders.is_empty() {
            break;
        }
    }
    println!("{step} steps, {made} keys made, {sessions} sessions");
    assert!(enough(made, sessions), "{made} keys, {sessions} sessions: the chains prove nothing");
}

/// Blocks or deletes a key. From then on the key and its sessions may do nothing.
async fn revoke(app: &TestApp, holders: &mut Vec<Holder>, revoked: &Holder, random: &mut StdRng, said: &str) {
    if revoked.key == "sk-root" {
        return;
    }
    let path = ["/key/block", "/key/delete"].choose(random).copied().unwrap();
    let hash = hash_key(&revoked.key);
    let answer = app.post(path, MASTER_KEY, &json!({"key": hash, "keys": [hash]})).await;
    assert!([200, 404].contains(&answer.status.as_u16()), "{}", answer.text);
    for holder in holders.iter() {
        if holder.key == revoked.key || holder.opened_by.as_ref() == Some(&revoked.key) {
            assert_eq!(opens(app, &holder.key).await, [false; PROBES.len()], "{said}: {path} left {holder:?} alive");
        }
    }
    holders.retain(|holder| path == "/key/block" || holder.key != revoked.key);
    for holder in holders.iter_mut() {
        holder.opens = opens(app, &holder.key).await;
    }
}

fn assert_within(opens: &[bool], limit: &[bool], said: &str) {
    let more: Vec<_> = PROBES
        .iter()
        .zip(opens.iter().zip(limit))
        .filter(|(_, (has, may))| **has && !**may)
        .map(|(probe, _)| probe)
        .collect();
    assert!(more.is_empty(), "{said}: opens {more:?}");
}
