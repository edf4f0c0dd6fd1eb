//! Pages of the log, single calls, and sessions.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::support::{MASTER_KEY, TestApp, insert};

const WINDOW: &str = "start_date=2026-01-30%2000:00:00&end_date=2026-03-01%2023:59:59";
const INT: &str = "sk-int-key-0001";
const IN_WINDOW: &str = r#""startTime" BETWEEN '2026-01-30 00:00:00' AND '2026-03-01 23:59:59'"#;

async fn app() -> TestApp {
    let app = TestApp::seeded().await;
    let call = |id: &str, fields: Value| {
        let mut row = json!({
            "request_id": id, "call_type": "acompletion", "startTime": "2026-02-10T10:00:00", "api_key": "k",
            "endTime": "2026-02-10T10:00:02", "model": "m", "session_id": "tools", "user": "u-tools", "spend": 0.5,
        });
        for (name, value) in fields.as_object().unwrap() {
            row[name] = value.clone();
        }
        row
    };
    let rows = json!([
        call("t1", json!({"completionStartTime": "2026-02-10T10:00:01"})),
        call("t2", json!({"call_type": "call_mcp_tool", "startTime": "2026-02-10T10:00:05", "cache_hit": "True"})),
        call(
            "t3",
            json!({"call_type": "asend_message", "startTime": "2026-02-10T09:00:00", "status": "failure",
            "metadata": {"error_information": {"error_code": "429", "error_message": "slow down"},
                         "user_api_key_alias": "a_b", "used_client_oauth_token": true}})
        ),
        call(
            "t4",
            json!({"call_type": "create_batch", "session_id": null, "litellm_call_id": "call-4",
            "model_id": "dep", "model_group": "grp-4", "end_user": "eu-4", "team_id": "team-beta"})
        ),
        call("t5", json!({"api_key": "litellm-internal-health-check", "session_id": ""})),
    ]);
    insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_SpendLogs", &rows).await;
    app
}

async fn total(app: &TestApp, condition: &str) -> i64 {
    let statement = format!(r#"SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE {IN_WINDOW} AND ({condition})"#);
    sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&app.pool).await.unwrap()
}

#[tokio::test]
async fn every_filter_finds_what_its_condition_finds() {
    let app = app().await;
    for (query, condition) in [
        ("", "true"),
        ("user_id=u-int", r#""user" = 'u-int'"#),
        ("api_key=k", "api_key = 'k'"),
        ("team_id=team-beta", "team_id = 'team-beta'"),
        ("team_id=", "team_id = ''"),
        ("model=gpt-4o", "model = 'gpt-4o'"),
        ("model_id=dep", "model_id = 'dep'"),
        ("model_group=grp", "model_group = 'grp'"),
        ("end_user=cust-1", "end_user = 'cust-1'"),
        ("session_id=ool", "session_id LIKE '%ool%'"),
        ("session_id=%25", "false"),
        ("status_filter=success", "status = 'success' OR status IS NULL"),
        ("status_filter=failure", "status = 'failure'"),
        ("cache_hit_filter=hit", "lower(cache_hit) = 'true'"),
        ("cache_hit_filter=miss", "cache_hit IS NULL OR lower(cache_hit) <> 'true'"),
        ("span_type=mcp", "call_type = 'call_mcp_tool'"),
        ("span_type=agent", "call_type = 'asend_message'"),
        ("span_type=batch", "call_type = 'create_batch'"),
        ("span_type=llm", "call_type NOT IN ('call_mcp_tool', 'asend_message', 'create_batch')"),
        ("exclude_internal_health_checks=true", "api_key <> 'litellm-internal-health-check'"),
        ("min_spend=0.1&max_spend=0.4", "spend >= 0.1 AND spend <= 0.4"),
        ("key_alias=a_b", "metadata ->> 'user_api_key_alias' LIKE '%a_b%'"),
        ("error_code=429", "request_id = 't3'"),
        ("error_message=slow", "request_id = 't3'"),
        ("used_client_oauth_token=true", "request_id = 't3'"),
        ("used_client_oauth_token=false", "false"),
        ("search=eu-4", "request_id = 't4'"),
        ("search=u-tools", r#""user" = 'u-tools'"#),
        ("request_id=call-4", "request_id = 't4'"),
        ("user_id=u-tools&span_type=llm&min_spend=0.5", "request_id IN ('t1', 't5')"),
    ] {
        let expected = total(&app, condition).await;
        for route in ["/spend/logs/ui", "/spend/logs/v2"] {
            let answer = app.get(&format!("{route}?{WINDOW}&{query}"), MASTER_KEY).await;
            assert_eq!(answer.status, 200, "{route} {query}: {}", answer.text);
            assert_eq!(answer.json()["total"], expected, "{route} {query}");
        }
    }
}

#[tokio::test]
async fn pages_hold_every_row_once_in_each_order() {
    let app = app().await;
    let all = total(&app, "true").await;
    let count = usize::try_from(all).unwrap();
    for sort_by in ["spend", "total_tokens", "startTime", "endTime", "request_duration_ms", "model", "ttft_ms"] {
        for sort_order in ["asc", "DESC"] {
            let mut rows: Vec<Value> = Vec::new();
            for page in 1..=5 {
                let path = format!(
                    "/spend/logs/v2?{WINDOW}&page={page}&page_size=100&sort_by={sort_by}&sort_order={sort_order}"
                );
                let answer = app.get(&path, MASTER_KEY).await.json();
                assert_eq!(answer["total_pages"], (all + 99) / 100);
                rows.extend(answer["data"].as_array().unwrap().clone());
            }
            let ids: BTreeSet<&str> = rows.iter().map(|row| row["request_id"].as_str().unwrap()).collect();
            assert_eq!((rows.len(), ids.len()), (count, count), "{sort_by} {sort_order}");
            if ["spend", "total_tokens", "request_duration_ms"].contains(&sort_by) {
                let values: Vec<f64> = rows.iter().map(|row| row[sort_by].as_f64().unwrap()).collect();
                assert!(
                    values.windows(2).all(|two| if sort_order == "asc" { two[0] <= two[1] } else { two[0] >= two[1] }),
                    "{sort_by} {sort_order}"
                );
            }
        }
    }
}

#[tokio::test]
async fn sessions_stand_for_their_calls() {
    let app = app().await;
    let statement = format!(
        r#"SELECT count(DISTINCT (COALESCE(NULLIF(session_id, ''), request_id), api_key)) FROM "LiteLLM_SpendLogs"
           WHERE {IN_WINDOW}"#
    );
    let sessions: i64 = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&app.pool).await.unwrap();
    // Sorted by activity, read page by page.
    let (mut cursor, mut seen, mut activity) = (None::<String>, BTreeSet::new(), Vec::new());
    loop {
        let mut path = format!("/spend/logs/ui?{WINDOW}&group_by_session=true&page_size=20");
        if let Some(cursor) = &cursor {
            let cursor: String = form_urlencoded::byte_serialize(cursor.as_bytes()).collect();
            path.push_str(&format!("&session_cursor={cursor}"));
        }
        let page = app.get(&path, MASTER_KEY).await.json();
        assert_eq!(page["total"], sessions);
        for row in page["data"].as_array().unwrap() {
            let session =
                row["session_id"].as_str().filter(|id| !id.is_empty()).unwrap_or(row["request_id"].as_str().unwrap());
            assert!(seen.insert((session.to_owned(), row["api_key"].to_string())), "{session} twice");
            activity.push(row.clone());
        }
        cursor = page["next_session_cursor"].as_str().map(str::to_owned);
        assert_eq!(page["has_more"], cursor.is_some());
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), usize::try_from(sessions).unwrap());
    // The agent's answer represents the session, with the sums of all its calls.
    let tools = activity.iter().find(|row| row["session_id"] == "tools").unwrap();
    assert_eq!(tools["request_id"], "t3");
    for (field, expected) in [
        ("session_total_count", json!(3)),
        ("session_total_spend", json!(1.5)),
        ("mcp_tool_call_count", json!(1)),
        ("mcp_tool_call_spend", json!(0.5)),
        ("session_llm_count", json!(1)),
        ("session_agent_count", json!(1)),
        ("session_cache_hit_count", json!(1)),
        ("session_models", json!(["m"])),
        ("session_models_truncated", json!(false)),
    ] {
        assert_eq!(tools[field], expected, "{field}");
    }
    // The status of a session is that of the row that represents it.
    let failed = format!("/spend/logs/ui?{WINDOW}&group_by_session=true&user_id=u-tools&status_filter=failure");
    assert_eq!(app.get(&failed, MASTER_KEY).await.json()["total"], 1);
    let by_spend = format!("/spend/logs/ui?{WINDOW}&group_by_session=true&sort_by=spend&page_size=1000");
    assert_eq!(app.get(&by_spend, MASTER_KEY).await.json()["data"].as_array().unwrap().len(), seen.len());
    let second = format!("/spend/logs/ui?{WINDOW}&group_by_session=true&page_size=20&page=2");
    let second = app.get(&second, MASTER_KEY).await.json();
    assert_eq!(second["data"][0]["request_id"], activity[20]["request_id"]);
}

#[tokio::test]
async fn counts_stop_at_ten_thousand_and_say_so() {
    let app = app().await;
    sqlx::query(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", "user")
           SELECT 'many-' || n, 'acompletion', '2026-02-11', '2026-02-11', 'u-many' FROM generate_series(1, 10050) n"#,
    )
    .execute(&app.pool)
    .await
    .unwrap();
    for route in ["/spend/logs/ui", "/spend/logs/v2"] {
        let page = app.get(&format!("{route}?{WINDOW}&user_id=u-many&page=201"), MASTER_KEY).await.json();
        assert_eq!((&page["total"], &page["total_is_capped"]), (&json!(10_000), &json!(true)));
        assert_eq!((&page["total_pages"], page["data"].as_array().unwrap().len()), (&json!(200), 50));
    }
}

#[tokio::test]
async fn one_call_is_found_at_any_time_by_who_may_see_it() {
    let app = app().await;
    let found = app.get("/spend/logs/ui?request_id=t4", MASTER_KEY).await.json();
    assert_eq!((&found["total"], &found["data"][0]["litellm_call_id"]), (&json!(1), &json!("call-4")));
    assert_eq!(app.get("/spend/logs/v2?request_id=t4", MASTER_KEY).await.status, 400);
    // Calls of a team that the user administers are found. Calls of strangers are not, and a call that does not exist
    // is not.
    assert_eq!(app.get("/spend/logs/ui/t4", INT).await.json(), Value::Null);
    sqlx::query(r#"UPDATE "LiteLLM_UserTable" SET teams = '{team-beta}' WHERE user_id = 'u-int'"#)
        .execute(&app.pool)
        .await
        .unwrap();
    assert_eq!(app.get("/spend/logs/ui/t4", INT).await.json()["messages"], json!({}));
    assert_eq!(app.get("/spend/logs/ui?request_id=call-4", INT).await.json()["total"], 1);
    for path in ["/spend/logs/ui/t1", "/spend/logs/ui/none"] {
        let refused = app.get(path, INT).await;
        assert_eq!(refused.status, 403, "{path}");
        assert!(refused.json()["detail"]["error"].is_string());
    }
    let refused = app.get("/spend/logs/ui?request_id=t1", INT).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["type"]), (403, &json!("auth_error")));
    assert_eq!(app.get("/spend/logs/ui/none", MASTER_KEY).await.text, "null");
    assert_eq!(app.get("/spend/logs/ui/%00", MASTER_KEY).await.text, "null");
    assert_eq!(app.get("/spend/logs/ui/%ff", MASTER_KEY).await.status, 400);
    // Only its admin may read a team's log. The rows of another user stay hidden.
    assert_eq!(app.get(&format!("/spend/logs/v2?{WINDOW}&team_id=team-beta"), INT).await.status, 200);
    assert_eq!(app.get(&format!("/spend/logs/v2?{WINDOW}&team_id=team-alpha"), INT).await.status, 403);
    assert_eq!(app.get(&format!("/spend/logs/v2?{WINDOW}&user_id=u-tools"), INT).await.json()["total"], 1);
    let session = app.get("/spend/logs/session/ui?session_id=tools", MASTER_KEY).await.json();
    assert_eq!((&session["total"], &session["data"][0]["request_id"]), (&json!(3), &json!("t2")));
    assert_eq!(app.get("/spend/logs/session/ui?session_id=tools", INT).await.json()["total"], 0);
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let app = app().await;
    for (query, status, kind) in [
        ("", 400, "bad_request"),
        ("start_date=2026-02-01%2000:00:00", 400, "bad_request"),
        ("start_date=x&end_date=2026-02-01%2000:00:00", 400, "invalid_request_error"),
        ("start_date=2026-02-30%2000:00:00&end_date=2026-03-01%2000:00:00", 400, "invalid_request_error"),
        ("sort_by=user", 400, "bad_request"),
        ("sort_order=up", 400, "bad_request"),
        ("cache_hit_filter=maybe", 400, "bad_request"),
        ("span_type=tool", 400, "bad_request"),
        ("page=0", 422, ""),
        ("page_size=1001", 422, ""),
        ("min_spend=much", 422, ""),
        ("used_client_oauth_token=2", 422, ""),
        ("search=%00", 422, ""),
    ] {
        for route in ["/spend/logs/ui", "/spend/logs/v2"] {
            let answer = app.get(&format!("{route}?{query}"), MASTER_KEY).await;
            assert_eq!(answer.status, status, "{route} {query}: {}", answer.text);
            let body = answer.json();
            assert_eq!(body["error"]["type"].as_str().unwrap_or_default(), kind, "{route} {query}");
        }
    }
    for (path, status) in [
        ("/spend/logs/ui?start_date=2026-02-01&end_date=2026-02-02", 400),
        ("/spend/logs/v2?start_date=2026-02-01&end_date=2026-02-02", 200),
        ("/spend/logs/ui/t1?start_date=2026-02-01", 400),
        ("/spend/logs/session/ui", 422),
        ("/spend/logs/session/ui?session_id=s&page_size=101", 422),
    ] {
        assert_eq!(app.get(path, MASTER_KEY).await.status, status, "{path}");
    }
    let numbers = format!("/spend/logs/v2?{WINDOW}&min_spend=nan&max_spend=inf&page=9223372036854775807");
    assert_eq!(app.get(&numbers, MASTER_KEY).await.status, 200);
    let cursor = format!("/spend/logs/ui?{WINDOW}&group_by_session=true&session_cursor=x%7Ck%7Cs");
    assert_eq!(app.get(&cursor, MASTER_KEY).await.status, 400);
}
