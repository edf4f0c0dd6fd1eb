//! `POST /global/spend/reset`.

use serde_json::json;

use crate::support::{MASTER_KEY, TestApp};

/// Every row of a table, with the location of its newest version.
async fn versions(app: &TestApp, statement: &'static str) -> Vec<(String, String, f64)> {
    sqlx::query_as(statement).fetch_all(&app.pool).await.unwrap()
}

const KEYS: &str =
    r#"SELECT token, xmin::text || ' ' || ctid::text, spend FROM "LiteLLM_VerificationToken" ORDER BY 1"#;
const TEAMS: &str = r#"SELECT team_id, xmin::text || ' ' || ctid::text, spend FROM "LiteLLM_TeamTable" ORDER BY 1"#;
const REST: &str = r#"
    SELECT md5(string_agg(line, '|' ORDER BY line)) FROM (
        SELECT xmin::text || ctid::text || "LiteLLM_SpendLogs"::text AS line FROM "LiteLLM_SpendLogs"
        UNION ALL SELECT xmin::text || ctid::text || "LiteLLM_DailyUserSpend"::text FROM "LiteLLM_DailyUserSpend"
        UNION ALL SELECT xmin::text || ctid::text || "LiteLLM_UserTable"::text FROM "LiteLLM_UserTable"
        UNION ALL SELECT xmin::text || ctid::text || "LiteLLM_DeletedVerificationToken"::text
                  FROM "LiteLLM_DeletedVerificationToken") AS lines"#;

#[tokio::test]
async fn keys_and_teams_with_spend_are_reset_in_one_transaction_and_nothing_else_is_touched() {
    let app = TestApp::seeded().await;
    app.execute(r#"UPDATE "LiteLLM_VerificationToken" SET spend = 0 WHERE token < '5'"#).await;
    let (keys, teams, rest) = (versions(&app, KEYS).await, versions(&app, TEAMS).await, app.scalar(REST).await);
    assert!(keys.iter().any(|key| key.2 == 0.0) && keys.iter().any(|key| key.2 > 0.0));

    let answer = app.post("/global/spend/reset", MASTER_KEY, &json!({})).await;
    assert_eq!(answer.status, 200);
    let expected = json!({ "message": "Spend for all API Keys and Teams reset successfully", "status": "success" });
    assert_eq!(answer.json(), expected);

    let mut transactions = std::collections::BTreeSet::new();
    for (before, after) in [(keys, versions(&app, KEYS).await), (teams, versions(&app, TEAMS).await)] {
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(after.2, 0.0);
            assert_eq!(before.1 == after.1, before.2 == 0.0, "{}", before.0);
            if before.2 != 0.0 {
                transactions.insert(after.1.split(' ').next().unwrap().to_owned());
            }
        }
    }
    assert_eq!(transactions.len(), 1, "keys and teams belong to one transaction");
    assert_eq!(app.scalar(REST).await, rest);

    // A second reset updates no row at all.
    let keys = versions(&app, KEYS).await;
    assert_eq!(app.post("/global/spend/reset", MASTER_KEY, &json!({})).await.status, 200);
    assert_eq!(versions(&app, KEYS).await, keys);
}

#[tokio::test]
async fn a_reset_that_fails_half_way_changes_nothing() {
    let app = TestApp::seeded().await;
    let keys = versions(&app, KEYS).await;
    app.execute(
        r#"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$no$$; END';
           CREATE TRIGGER refuse BEFORE UPDATE ON "LiteLLM_TeamTable" FOR EACH ROW EXECUTE FUNCTION refuse()"#,
    )
    .await;
    let answer = app.post("/global/spend/reset", MASTER_KEY, &json!({})).await;
    assert_eq!(answer.status, 500);
    assert_eq!(answer.json()["error"]["message"], "Internal server error");
    assert_eq!(versions(&app, KEYS).await, keys);
}

#[tokio::test]
async fn nobody_but_the_master_key_resets() {
    let app = TestApp::seeded().await;
    let before = versions(&app, KEYS).await;
    for key in ["sk-admin-key-0001", "sk-viewer-key-0001", "sk-int-key-0001", "sk-orphan-key-001", "sk-nobody"] {
        assert_eq!(app.post("/global/spend/reset", key, &json!({})).await.status, 401, "{key}");
    }
    assert_eq!(versions(&app, KEYS).await, before);
}
