//! Aggregated activity of users, teams and tags: sums, scopes, limits, bad input.

use serde_json::{Value, json};

use crate::support::{MASTER_KEY, TestApp, insert};

const RANGE: &str = "start_date=2026-01-30&end_date=2026-03-01";
const INT: &str = "sk-int-key-0001";
const INT_HASH: &str = "f3fd4cad6f39d97f74132065d8e861d6832460f80aecd00c8b50a27afc006f2b";

fn daily(table: &str, entity: &str, index: usize, fields: Value) -> (String, Value) {
    let column = if table == "LiteLLM_DailyTagSpend" { "tag" } else { "team_id" };
    let mut row = json!({
        "id": index.to_string(), column: entity, "date": "2026-02-01", "api_key": "key", "model": "gpt-4o",
        "custom_llm_provider": "openai", "spend": 1.0, "prompt_tokens": 10, "completion_tokens": 5,
        "api_requests": 2, "successful_requests": 1, "failed_requests": 1, "updated_at": "2026-02-01T00:00:00",
    });
    for (name, value) in fields.as_object().unwrap() {
        row[name] = value.clone();
    }
    (table.to_owned(), row)
}

async fn app() -> TestApp {
    let app = TestApp::seeded().await;
    let team = "LiteLLM_DailyTeamSpend";
    let tag = "LiteLLM_DailyTagSpend";
    let rows = [
        daily(team, "team-alpha", 1, json!({"api_key": INT_HASH, "spend": 4.0})),
        daily(team, "team-alpha", 2, json!({"api_key": "other", "spend": 8.0, "model": ""})),
        daily(team, "team-beta", 3, json!({"api_key": "other", "spend": 16.0, "endpoint": "/chat/completions"})),
        daily(team, "", 4, json!({"api_key": "", "spend": 32.0, "date": "2026-02-02"})),
        daily(team, "team-alpha", 5, json!({"api_key": "__ptu_flat_cost__", "spend": 0.0})),
        daily(tag, "prod", 1, json!({"api_key": INT_HASH, "spend": 1.0})),
        daily(tag, "dev", 2, json!({"api_key": "other", "spend": 2.0})),
    ];
    for (table, row) in rows {
        insert(&mut app.pool.acquire().await.unwrap(), &table, &json!([row])).await;
    }
    app
}

async fn set_teams(app: &TestApp, user: &str, teams: &[&str]) {
    sqlx::query(r#"UPDATE "LiteLLM_UserTable" SET teams = $2 WHERE user_id = $1"#)
        .bind(user)
        .bind(teams.iter().map(|team| (*team).to_owned()).collect::<Vec<_>>())
        .execute(&app.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_sums_are_those_of_the_pages_below() {
    let app = app().await;
    let whole = app.get(&format!("/user/daily/activity/aggregated?{RANGE}&api_key_limit=2"), MASTER_KEY).await.json();
    let pages = app.get(&format!("/user/daily/activity?{RANGE}&page_size=1000"), MASTER_KEY).await.json();
    for field in ["total_prompt_tokens", "total_api_requests", "total_failed_requests"] {
        assert_eq!(whole["metadata"][field], pages["metadata"][field], "{field}");
    }
    // The answer lists two keys, but every other sum covers all keys.
    assert_eq!(whole["metadata"]["api_key_limit"], 2);
    assert_eq!(whole["metadata"]["total_api_keys"], 11);
    for (day, other) in whole["results"].as_array().unwrap().iter().zip(pages["results"].as_array().unwrap()) {
        assert_eq!(day["date"], other["date"]);
        assert!(day["breakdown"]["api_keys"].as_object().unwrap().len() <= 2);
        for (name, group) in other["breakdown"]["models"].as_object().unwrap() {
            let ours = &day["breakdown"]["models"][name]["metrics"]["total_tokens"];
            assert_eq!(ours, &group["metrics"]["total_tokens"], "{name}");
        }
    }
}

#[tokio::test]
async fn teams_are_listed_with_their_names_and_how_many_keys_they_have() {
    let app = app().await;
    let found = app.get(&format!("/team/daily/activity/aggregated?{RANGE}"), MASTER_KEY).await.json();
    assert_eq!(found["metadata"]["total_spend"], 60.0);
    assert_eq!(found["metadata"]["total_api_keys"], 3);
    let keys = json!({"Unassigned": 1, "team-alpha": 2, "team-beta": 1});
    assert_eq!(found["metadata"]["entity_total_api_keys"], keys);
    assert_eq!(found["results"][0]["date"], "2026-02-02");
    let entities = &found["results"][1]["breakdown"]["entities"];
    assert_eq!(entities["team-alpha"]["metadata"], json!({"team_alias": "Alpha Team"}));
    assert_eq!(entities["team-alpha"]["metrics"]["spend"], 12.0);
    assert_eq!(entities["team-alpha"]["api_key_breakdown"].as_object().unwrap().len(), 2);
    assert_eq!(found["results"][1]["breakdown"]["models"]["unknown-model"]["metrics"]["spend"], 8.0);
    assert_eq!(found["results"][0]["breakdown"]["api_keys"]["unattributed"]["metadata"]["key_alias"], "Unattributed");
    let page = app.get(&format!("/team/daily/activity?{RANGE}&page_size=100"), MASTER_KEY).await.json();
    assert_eq!(page["metadata"]["total_spend"], 60.0);
    assert_eq!(page["results"][1]["breakdown"]["entities"]["team-beta"]["metrics"]["spend"], 16.0);
    let some =
        format!("/team/daily/activity/aggregated?{RANGE}&team_ids=team-alpha,team-beta&exclude_team_ids=team-beta");
    assert_eq!(app.get(&some, MASTER_KEY).await.json()["metadata"]["total_spend"], 12.0);
}

#[tokio::test]
async fn who_is_no_admin_sees_its_own_teams_and_there_its_own_keys() {
    let app = app().await;
    let path = format!("/team/daily/activity/aggregated?{RANGE}");
    let spend = async |query: &str, key: &str| {
        let answer = app.get(&format!("{path}{query}"), key).await;
        answer.json()["metadata"]["total_spend"].clone()
    };
    // A user in no team gets nothing. A team that is not the user's: 404. A key without a user: 404.
    assert_eq!(spend("", INT).await, 0.0);
    assert_eq!(app.get(&format!("{path}&team_ids=team-alpha"), INT).await.status, 404);
    assert_eq!(app.get(&path, "sk-orphan-key-001").await.status, 404);
    assert!(app.get(&path, "sk-orphan-key-001").await.json()["detail"]["error"].is_string());
    // A user who does not administer all of the teams sees only its own keys, in all of them.
    set_teams(&app, "u-int", &["team-alpha", "team-beta"]).await;
    assert_eq!(spend("", INT).await, 4.0);
    assert_eq!(spend("&api_key=other", INT).await, 0.0);
    // If only the team that it administers is asked for, it sees everything.
    assert_eq!(spend("&team_ids=team-beta", INT).await, 16.0);
    let page = app.get(&format!("/team/daily/activity?{RANGE}&team_ids=team-beta"), INT).await.json();
    assert_eq!(page["metadata"]["total_spend"], 16.0);
    assert_eq!(spend("", "sk-viewer-key-0001").await, 60.0);
}

#[tokio::test]
async fn tags_are_of_the_callers_keys() {
    let app = app().await;
    let path = format!("/tag/daily/activity/aggregated?{RANGE}");
    assert_eq!(app.get(&path, MASTER_KEY).await.json()["metadata"]["total_spend"], 3.0);
    assert_eq!(app.get(&format!("{path}&tags=dev"), MASTER_KEY).await.json()["metadata"]["total_spend"], 2.0);
    let own = app.get(&path, INT).await.json();
    assert_eq!(own["metadata"]["total_spend"], 1.0);
    assert_eq!(own["metadata"]["entity_total_api_keys"], json!({"prod": 1}));
    assert_eq!(app.get(&format!("{path}&api_key=other"), INT).await.json()["results"], json!([]));
    assert_eq!(app.get(&path, "sk-intview-key-01").await.json()["results"], json!([]));
    assert_eq!(app.get(&path, "sk-orphan-key-001").await.status, 401);
}

#[tokio::test]
async fn lists_of_keys_and_users_come_in_pages() {
    let app = app().await;
    let whole = app.get(&format!("/user/daily/activity/aggregated/keys?{RANGE}&limit=100"), MASTER_KEY).await.json();
    let all = whole["api_keys"].as_array().unwrap();
    assert_eq!(whole["total_api_keys"], all.len());
    let mut seen = Vec::new();
    for offset in (0..all.len() + 3).step_by(3) {
        let path = format!("/user/daily/activity/aggregated/keys?{RANGE}&limit=3&offset={offset}");
        let page = app.get(&path, MASTER_KEY).await.json();
        assert_eq!(page["total_api_keys"], all.len());
        seen.extend(page["api_keys"].as_array().unwrap().clone());
    }
    assert_eq!(&seen, all);
    let own = app.get(&format!("/user/daily/activity/aggregated/users?{RANGE}"), INT).await.json();
    assert_eq!((own["total_users"].clone(), own["users"][0]["user_id"].clone()), (json!(1), json!("u-int")));
    let path = format!("/user/daily/activity/aggregated/model_top_keys?{RANGE}&model_group=gpt-4o&limit=2");
    let top = app.get(&path, MASTER_KEY).await.json();
    assert_eq!((top["model"].clone(), top["by_model_group"].clone()), (json!("gpt-4o"), json!(true)));
    assert_eq!(top["api_keys"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let app = app().await;
    let base = "/user/daily/activity/aggregated";
    for (path, status) in [
        (base.to_owned(), 400),
        (format!("{base}?start_date=2026-02-01"), 400),
        (format!("{base}?start_date=2026-2-1&end_date=2026-02-02"), 400),
        (format!("{base}?start_date=2026-02-01&end_date=2026-02-30"), 400),
        (format!("{base}?start_date=2020-01-01&end_date=2026-02-01"), 200),
        (format!("{base}?start_date=0001-01-01&end_date=9999-12-31"), 200),
        (format!("{base}?{RANGE}&api_key_limit=0"), 422),
        (format!("{base}?{RANGE}&api_key_limit=1001"), 422),
        (format!("{base}?{RANGE}&timezone=x"), 422),
        (format!("{base}/keys?start_date=2020-01-01&end_date=2026-02-01"), 400),
        (format!("{base}/keys?{RANGE}&limit=101"), 422),
        (format!("{base}/keys?{RANGE}&offset=-1"), 422),
        (format!("{base}/users?{RANGE}&offset=9223372036854775807"), 200),
        (format!("{base}/model_top_keys?{RANGE}"), 422),
        (format!("{base}/model_top_keys?{RANGE}&model_group="), 422),
        ("/team/daily/activity/aggregated?start_date=2020-01-01&end_date=2026-02-01".to_owned(), 400),
        ("/tag/daily/activity/aggregated?start_date=x&end_date=2026-02-01".to_owned(), 400),
        (format!("/team/daily/activity?{RANGE}&page=0"), 400),
        (format!("/team/daily/activity?{RANGE}&page_size=0"), 400),
        (format!("/team/daily/activity?{RANGE}&page=9223372036854775807"), 200),
    ] {
        let answer = app.get(&path, MASTER_KEY).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        assert_eq!(answer.json().get("detail").is_some(), status != 200, "{path}");
    }
    let other = app.get(&format!("{base}?{RANGE}&user_id=u-admin"), INT).await;
    assert_eq!(other.status, 403);
    let both = app.get(&format!("{base}?{RANGE}&timezone=x&api_key_limit=0"), MASTER_KEY).await.json();
    assert_eq!(both["detail"].as_array().unwrap().len(), 2);
}
