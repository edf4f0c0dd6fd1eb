//! Databases that LiteLLM owns: litespend changes nothing in them, the right to read is enough, and columns that an
//! older LiteLLM does not have are not needed.

use std::sync::Arc;
use std::time::Duration;

use litespend::clock::Clock;
use litespend::store::database::{DatabaseKind, PoolLimits, kind, migrate};
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::support::{MASTER_KEY, TestApp, database, seed, settings};

/// A database in the state that LiteLLM's migrations produce: LiteLLM's tables and ledger, and none of litespend's
/// objects.
async fn of_litellm() -> TestApp {
    let app = TestApp::seeded().await;
    app.execute(
        r#"DROP SCHEMA litespend CASCADE;
           DROP INDEX "LiteLLM_SpendLogs_api_key_startTime_idx", "LiteLLM_SpendLogs_user_startTime_idx",
                      "LiteLLM_SpendLogs_litellm_call_id_idx";
           CREATE TABLE _prisma_migrations (id varchar(36) PRIMARY KEY, migration_name varchar(255) NOT NULL)"#,
    )
    .await;
    app
}

/// Every object defined in the database, and the newest transaction that defined one.
const CATALOG: &str = r#"
    SELECT md5(string_agg(line, E'\n' ORDER BY line)) FROM (
        SELECT 'schema ' || nspname || nspacl::text AS line FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'
        UNION ALL SELECT 'class ' || oid || relname || relkind::text || relhastriggers || xmin FROM pg_class
                  WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace)
        UNION ALL SELECT 'column ' || attrelid || attname || atttypid || attnotnull FROM pg_attribute
                  WHERE attrelid::regclass::text LIKE '%LiteLLM%'
        UNION ALL SELECT 'trigger ' || oid FROM pg_trigger
        UNION ALL SELECT 'function ' || oid FROM pg_proc
        UNION ALL SELECT 'constraint ' || oid FROM pg_constraint
        UNION ALL SELECT 'extension ' || extname FROM pg_extension
        UNION ALL SELECT 'role ' || rolname FROM pg_roles WHERE rolname NOT LIKE 'reader_%') AS lines"#;

const READS: [&str; 11] = [
    "/spend/logs",
    "/spend/logs?start_date=2026-02-01&end_date=2026-03-01",
    "/spend/logs?request_id=chatcmpl-7-0000",
    "/spend/tags",
    "/global/spend/tags?start_date=2026-01-01&end_date=2026-03-01",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-03-01",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-03-01&group_by=api_key",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-03-01&group_by=customer",
    "/user/daily/activity?start_date=2026-01-01&end_date=2026-03-01",
    "/get/allowed_ips",
    "/health/readiness",
];

#[tokio::test]
async fn migrating_a_database_of_litellms_changes_nothing() {
    let app = of_litellm().await;
    let before = app.scalar(CATALOG).await;
    let mut connection = app.pool.acquire().await.unwrap();
    for _ in 0..2 {
        assert_eq!(migrate(&mut connection).await.unwrap(), DatabaseKind::LiteLlm);
    }
    drop(connection);
    for path in READS {
        assert_eq!(app.get(path, MASTER_KEY).await.status, 200, "{path}");
        assert!(app.get(path, "sk-int-key-0001").await.status.as_u16() < 500, "{path}");
    }
    assert_eq!(app.scalar(CATALOG).await, before);
}

#[tokio::test]
async fn the_ledger_or_the_tables_alone_make_it_litellms() {
    let app = of_litellm().await;
    let mut connection = app.pool.acquire().await.unwrap();
    sqlx::raw_sql("DROP TABLE _prisma_migrations").execute(&mut *connection).await.unwrap();
    assert_eq!(kind(&mut connection).await.unwrap(), DatabaseKind::LiteLlm);
    drop(connection);
    // A database of litespend's own stays one when it is migrated again. If LiteLLM's ledger appears in it, the
    // database counts as LiteLLM's.
    let app = TestApp::new().await;
    let mut connection = app.pool.acquire().await.unwrap();
    assert_eq!(migrate(&mut connection).await.unwrap(), DatabaseKind::Own);
    sqlx::raw_sql("CREATE TABLE _prisma_migrations (id text)").execute(&mut *connection).await.unwrap();
    assert_eq!(kind(&mut connection).await.unwrap(), DatabaseKind::LiteLlm);
}

#[tokio::test]
async fn a_role_that_may_only_read_is_enough_for_reads() {
    let app = of_litellm().await;
    let role = format!("reader_{}", std::process::id());
    let statement = format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA public TO {role};
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};
         ALTER ROLE {role} SET default_transaction_read_only = on"
    );
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();

    let url = app.database.url();
    let (start, rest) = url.split_once("://").unwrap();
    let address = rest.split_once('@').map_or(rest, |(_, address)| address);
    let limits = PoolLimits { connections: 3, wait: Duration::from_secs(5) };
    let pool = litespend::store::database::pool(&format!("{start}://{role}@{address}"), limits).unwrap();
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(migrate(&mut connection).await.unwrap(), DatabaseKind::LiteLlm);
    drop(connection);
    let reader = TestApp::on_pool(Arc::clone(&app.database), pool.clone(), settings(), Clock::system()).await;
    for path in READS {
        let (ours, theirs) = (reader.get(path, MASTER_KEY).await, app.get(path, MASTER_KEY).await);
        assert_eq!(ours.status, 200, "{path}: {}", ours.text);
        // Readiness says whether there are rollups.
        let (ours, theirs) = [ours, theirs].map(|answer| answer.text.replace("not installed", "counting")).into();
        assert_eq!(ours.len(), theirs.len(), "{path}");
        assert_eq!(reader.get(path, "sk-admin-key-0001").await.status, 200, "{path}");
    }
    // Requests that write are refused with litespend's own message, and nothing is written.
    for (path, body) in [("/add/allowed_ip", json!({ "ip": "127.0.0.1" })), ("/global/spend/reset", json!({}))] {
        let answer = reader.post(path, MASTER_KEY, &body).await;
        assert!(answer.status.is_server_error(), "{path}");
        assert!(!answer.text.contains("permission") && !answer.text.contains("read-only"), "{}", answer.text);
    }
    pool.close().await;
    // A role that could write, but lacks the right, is the operator's mistake: 403 says so.
    let statement = format!("ALTER ROLE {role} RESET default_transaction_read_only");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();
    let pool = litespend::store::database::pool(&format!("{start}://{role}@{address}"), limits).unwrap();
    let reader = TestApp::on_pool(Arc::clone(&app.database), pool.clone(), settings(), Clock::system()).await;
    for (path, body) in [("/add/allowed_ip", json!({ "ip": "127.0.0.1" })), ("/global/spend/reset", json!({}))] {
        let answer = reader.post(path, MASTER_KEY, &body).await;
        assert_eq!(answer.status, 403, "{path}: {}", answer.text);
        assert!(answer.text.contains("right") && !answer.text.contains("LiteLLM_"), "{}", answer.text);
    }
    pool.close().await;
    let statement = format!("GRANT {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();
}

/// Removes all columns that LiteLLM added over time.
const OLD: &str = r#"
    ALTER TABLE "LiteLLM_SpendLogs"
        DROP request_duration_ms, DROP organization_id, DROP requester_ip_address, DROP messages, DROP response,
        DROP session_id, DROP status, DROP mcp_namespaced_tool_name, DROP billing_agent_id, DROP agent_id,
        DROP proxy_server_request, DROP litellm_call_id, DROP created_at, DROP updated_at, DROP model_id;
    ALTER TABLE "LiteLLM_DailyUserSpend"
        DROP endpoint, DROP mcp_namespaced_tool_name, DROP compression_saved_tokens, DROP compression_savings_spend,
        DROP prompt_caching_savings_spend, DROP gateway_injected_caching_savings_spend, DROP autorouter_savings_spend,
        DROP total_response_time_ms, DROP timed_requests;
    ALTER TABLE "LiteLLM_VerificationToken" DROP allowed_routes;
    ALTER TABLE "LiteLLM_TeamTable" DROP team_member_permissions"#;

#[tokio::test]
async fn columns_that_an_older_litellm_lacks_are_not_missed() {
    let app = of_litellm().await;
    app.execute(OLD).await;
    let app = TestApp::on(Arc::clone(&app.database), settings()).await;
    for path in READS {
        for key in [MASTER_KEY, "sk-admin-key-0001", "sk-viewer-key-0001"] {
            let answer = app.get(path, key).await;
            assert_eq!(answer.status, 200, "{path} {key}: {}", answer.text);
        }
        let answer = app.get(path, "sk-int-key-0001").await;
        assert!(answer.status.as_u16() < 500, "{path}: {}", answer.text);
    }
    let row = &app.get("/spend/logs?request_id=chatcmpl-7-0000", MASTER_KEY).await.json()[0];
    assert_eq!(row["request_id"], "chatcmpl-7-0000");
    for (name, expected) in [
        ("request_duration_ms", json!(null)),
        ("messages", json!({})),
        ("proxy_server_request", json!({})),
        ("created_at", json!(null)),
        ("model_id", json!(null)),
    ] {
        assert_eq!(row[name], expected, "{name}");
    }
    let days = app.get("/user/daily/activity?start_date=2026-01-01&end_date=2026-03-31", MASTER_KEY).await.json();
    assert!(days["metadata"]["total_spend"].as_f64().unwrap() > 0.0);
    assert_eq!(days["metadata"]["total_timed_requests"], 0);
    assert_eq!(app.post("/global/spend/reset", MASTER_KEY, &json!({})).await.status, 200);
    assert_eq!(app.post("/add/allowed_ip", MASTER_KEY, &json!({ "ip": "127.0.0.1" })).await.status, 200);
}

#[tokio::test]
async fn keys_are_managed_in_the_tables_of_an_older_litellm() {
    let app = of_litellm().await;
    app.execute(
        r#"ALTER TABLE "LiteLLM_VerificationToken"
               DROP key_type, DROP settings_updated_at, DROP tpd_limit, DROP total_spend, DROP router_settings, DROP policies;
           ALTER TABLE "LiteLLM_DeletedVerificationToken"
               DROP key_type, DROP settings_updated_at, DROP tpd_limit, DROP router_settings, DROP policies, DROP agent_id,
               DROP deleted_by_api_key"#,
    )
    .await;
    let mut managing = settings();
    managing.manage_litellm_keys = true;
    let app = TestApp::on(Arc::clone(&app.database), managing).await;
    let key = app.post("/key/generate", MASTER_KEY, &json!({"key_type": "default", "key_alias": "old"})).await;
    assert_eq!(key.status, 200, "{}", key.text);
    let key = key.json();
    assert_eq!((key.get("key_type"), key.get("router_settings"), key.get("policies")), (None, None, None));
    let blocked = app.post("/key/block", MASTER_KEY, &json!({"key": key["key"]})).await;
    assert_eq!((blocked.status.as_u16(), &blocked.json()["blocked"]), (200, &json!(true)), "{}", blocked.text);
    let deleted = app.post("/key/delete", MASTER_KEY, &json!({"keys": [key["key"]]})).await;
    assert_eq!(deleted.status, 200, "{}", deleted.text);
    let query = r#"SELECT key_alias || ' ' || blocked::text || ' ' || total_spend::text
                   FROM "LiteLLM_DeletedVerificationToken" WHERE key_alias = 'old'"#;
    assert_eq!(app.scalar(query).await, "old true 0");
}

#[tokio::test]
async fn tables_that_an_older_litellm_lacks_are_not_missed_where_they_only_name_keys() {
    let app = of_litellm().await;
    app.execute(r#"DROP TABLE "LiteLLM_DeletedVerificationToken""#).await;
    let path = "/user/daily/activity?start_date=2026-01-01&end_date=2026-03-31";
    let answer = app.get(path, MASTER_KEY).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn our_migrations_can_run_from_several_servers_at_once() {
    let database = database().await;
    let app = TestApp::on(database, settings()).await;
    app.execute("DROP SCHEMA litespend CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    let runs = (0..4).map(|_| async {
        let mut connection = app.pool.acquire().await.unwrap();
        migrate(&mut connection).await.map_err(|error| format!("{error:#}"))
    });
    for run in futures_util::future::join_all(runs).await {
        assert_eq!(run, Ok(DatabaseKind::Own));
    }
    seed(&app.pool).await;
    assert_eq!(app.get("/spend/tags", MASTER_KEY).await.status, 200);
}

/// LiteLLM migrates its tables while servers run. The statements that a connection has prepared then no longer fit.
#[tokio::test]
async fn a_migration_of_the_tables_is_never_noticed_by_a_read() {
    let app = TestApp::seeded().await;
    let paths = [
        "/spend/logs?start_date=2026-02-01&end_date=2026-02-28&summarize=false",
        "/spend/logs?start_date=2026-02-01&end_date=2026-02-28",
        "/user/daily/activity?start_date=2026-02-01&end_date=2026-02-28",
        "/global/spend/report?start_date=2026-02-01&end_date=2026-02-28",
    ];
    for path in paths {
        assert_eq!(app.get(path, MASTER_KEY).await.status, 200, "{path}");
    }
    app.execute(
        r#"ALTER TABLE "LiteLLM_SpendLogs" ADD COLUMN added_by_a_migration text;
           ALTER TABLE "LiteLLM_DailyUserSpend" ADD COLUMN added_by_a_migration text;
           ALTER TABLE "LiteLLM_VerificationToken" ADD COLUMN added_by_a_migration text"#,
    )
    .await;
    for path in paths {
        let answer = app.get(path, MASTER_KEY).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.json());
    }
}

/// LiteLLM 0.2.0's migrations lack these columns: a booking leaves them out, and is still exactly once.
#[tokio::test]
async fn usage_is_booked_into_the_tables_of_an_older_litellm() {
    let app = of_litellm().await;
    app.execute(
        r#"ALTER TABLE "LiteLLM_SpendLogs" DROP COLUMN request_duration_ms, DROP COLUMN organization_id,
               DROP COLUMN mcp_namespaced_tool_name, DROP COLUMN agent_id, DROP COLUMN litellm_call_id;
           ALTER TABLE "LiteLLM_VerificationToken" DROP COLUMN total_spend, DROP COLUMN last_active;
           ALTER TABLE "LiteLLM_TeamMembership" DROP COLUMN total_spend;
           DROP TABLE "LiteLLM_DeletedVerificationToken";
           DO $$ DECLARE part record; BEGIN
               FOR part IN SELECT * FROM (VALUES ('LiteLLM_DailyUserSpend', 'user_id'), ('LiteLLM_DailyTeamSpend', 'team_id'),
                                                 ('LiteLLM_DailyTagSpend', 'tag')) AS t (name, owner) LOOP
                   EXECUTE format('DELETE FROM %I', part.name);
                   EXECUTE format('ALTER TABLE %I DROP COLUMN endpoint, DROP COLUMN mcp_namespaced_tool_name,
                                   DROP COLUMN total_response_time_ms, DROP COLUMN timed_requests', part.name);
                   EXECUTE format('CREATE UNIQUE INDEX ON %I (%I, date, api_key, model, custom_llm_provider)',
                                  part.name, part.owner);
               END LOOP;
           END $$"#,
    )
    .await;
    let mut connection = app.pool.acquire().await.unwrap();
    litespend::store::database::migrate_schema(&mut connection).await.unwrap();
    assert!(litespend::store::booking::ids::install(&mut connection).await.unwrap());
    let records: Vec<_> = ["acompletion", "aembedding"]
        .iter()
        .map(|call_type| json!({"idempotency_key": call_type, "model": "gpt-4o", "cost": 0.5, "tags": ["old"], "call_type": call_type}))
        .collect();
    for _ in 0..2 {
        let answer = app.post("/spend/usage", MASTER_KEY, &json!({ "records": records })).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let booked = app.scalar(r#"SELECT count(*) || ' ' || sum(spend) FROM "LiteLLM_SpendLogs" WHERE model = 'gpt-4o' AND request_id LIKE 'a%'"#);
    assert_eq!(booked.await, "2 1");
    for table in ["User", "Tag"] {
        let statement = format!(r#"SELECT sum(api_requests) || ' ' || sum(spend) FROM "LiteLLM_Daily{table}Spend""#);
        let sums: String = sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&app.pool).await.unwrap();
        assert_eq!(sums, "2 1", "{table}");
    }
}
