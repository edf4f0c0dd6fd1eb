//! Reads over the whole log and over LiteLLM's tables, and which callers may make them.

use serde_json::json;

use crate::support::{MASTER_KEY, TestApp};

const RANGE: &str = "start_date=2026-01-30&end_date=2026-03-01";

#[tokio::test]
async fn each_role_reads_what_it_may() {
    let app = TestApp::seeded().await;
    let keys = [
        MASTER_KEY,
        "sk-admin-key-0001",
        "sk-viewer-key-0001",
        "sk-int-key-0001",
        "sk-norole-key-001",
        "sk-intview-key-01",
        "sk-orphan-key-001",
        "sk-team-only-0001",
    ];
    for (path, statuses) in [
        ("/global/activity", [200, 200, 200, 200, 200, 401, 401, 401]),
        ("/global/activity/model", [200, 200, 200, 200, 200, 401, 401, 401]),
        ("/global/spend/provider", [200, 200, 200, 401, 401, 401, 401, 401]),
        ("/global/spend/all_tag_names", [200, 200, 200, 401, 401, 401, 401, 401]),
        ("/global/all_end_users", [200, 200, 200, 401, 401, 401, 401, 401]),
        ("/spend/keys", [200, 200, 200, 200, 200, 200, 401, 401]),
        ("/spend/users", [200, 200, 200, 200, 200, 200, 401, 401]),
        ("/key/spend/report", [200, 200, 200, 200, 200, 200, 401, 401]),
        ("/user/spend/report", [200, 200, 200, 200, 200, 200, 401, 401]),
        ("/team/spend/report", [400, 400, 400, 200, 400, 200, 401, 401]),
        ("/user/daily/activity/aggregated", [200, 200, 200, 200, 200, 200, 403, 403]),
    ] {
        let found: Vec<u16> = {
            let mut found = Vec::new();
            for key in keys {
                found.push(app.get(&format!("{path}?{RANGE}"), key).await.status.as_u16());
            }
            found
        };
        assert_eq!(found, statuses, "{path}");
    }
}

#[tokio::test]
async fn a_user_that_is_no_admin_counts_its_own_calls() {
    let app = TestApp::seeded().await;
    let own: i64 = sqlx::query_scalar(
        r#"SELECT count(*) FROM "LiteLLM_SpendLogs"
           WHERE "user" = 'u-int' AND "startTime" >= '2026-01-30' AND "startTime" < '2026-03-02'"#,
    )
    .fetch_one(&app.pool)
    .await
    .unwrap();
    let found = app.get(&format!("/global/activity?{RANGE}"), "sk-int-key-0001").await.json();
    assert_eq!(found["sum_api_requests"], own);
    let models = app.get(&format!("/global/activity/model?{RANGE}"), "sk-int-key-0001").await.json();
    let sum: i64 = models.as_array().unwrap().iter().map(|model| model["sum_api_requests"].as_i64().unwrap()).sum();
    assert_eq!(sum, own);
}

#[tokio::test]
async fn passwords_and_unknown_columns_are_not_answered() {
    let app = TestApp::seeded().await;
    sqlx::raw_sql(
        r#"UPDATE "LiteLLM_UserTable" SET password = 'scrypt:secret';
           ALTER TABLE "LiteLLM_UserTable" ADD recovery_code text DEFAULT 'secret';
           ALTER TABLE "LiteLLM_VerificationToken" ADD raw text DEFAULT 'secret'"#,
    )
    .execute(&app.pool)
    .await
    .unwrap();
    for path in ["/spend/users", "/spend/users?user_id=u-int", "/spend/keys"] {
        for key in [MASTER_KEY, "sk-int-key-0001"] {
            let answer = app.get(path, key).await;
            assert_eq!(answer.status, 200);
            assert!(
                !answer.text.contains("secret") && !answer.text.contains("\"password\""),
                "{path}: {}",
                answer.text
            );
        }
    }
    assert_eq!(app.get("/spend/users?user_id=nobody", MASTER_KEY).await.json(), json!([null]));
    let other = app.get("/spend/users?user_id=u-admin", "sk-int-key-0001").await;
    assert_eq!((other.status.as_u16(), other.json()["detail"]["error"].is_string()), (403, true));
}

#[tokio::test]
async fn reports_are_of_the_caller_unless_it_is_an_admin() {
    let app = TestApp::seeded().await;
    for (path, status) in [
        ("/key/spend/report?api_key=other", 403),
        ("/key/spend/report?api_key=sk-int-key-0001", 200),
        ("/key/spend/report?api_key=", 200),
        ("/user/spend/report?internal_user_id=u-admin", 403),
        ("/user/spend/report?internal_user_id=u-int", 200),
        ("/team/spend/report?team_id=team-beta", 403),
        ("/team/spend/report?team_id=team-alpha", 200),
    ] {
        let answer = app.get(&format!("{path}&{RANGE}"), "sk-int-key-0001").await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        assert_eq!(app.get(&format!("{path}&{RANGE}"), MASTER_KEY).await.status.as_u16(), 200, "{path}");
    }
    let refused = app.get(&format!("/key/spend/report?api_key=other&{RANGE}"), "sk-int-key-0001").await.json();
    assert!(refused["detail"].is_string());
}

#[tokio::test]
async fn bad_dates_are_refused() {
    let app = TestApp::seeded().await;
    for (path, envelope) in [
        ("/global/activity", "error"),
        ("/global/activity/model", "error"),
        ("/global/spend/provider", "error"),
        ("/key/spend/report", "detail"),
        ("/user/spend/report", "detail"),
        ("/team/spend/report", "detail"),
    ] {
        for dates in [
            "start_date=2026-13-01&end_date=2026-02-01",
            "start_date=&end_date=2026-02-01",
            "start_date=2026-02-01T00:00:00&end_date=2026-02-02",
            "start_date=01/02/2026&end_date=2026-02-01",
        ] {
            let answer = app.get(&format!("{path}?{dates}"), MASTER_KEY).await;
            assert_eq!(answer.status, 400, "{path}?{dates}");
            assert!(answer.json().get(envelope).is_some(), "{path}?{dates}: {}", answer.text);
        }
        let missing = app.get(path, MASTER_KEY).await;
        assert_eq!((missing.status.as_u16(), missing.json().get("detail").is_some()), (400, true), "{path}");
    }
    let long = app.get("/key/spend/report?start_date=2024-01-01&end_date=2026-01-01", MASTER_KEY).await;
    assert_eq!(long.status, 400);
}
