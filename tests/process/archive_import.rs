//! `litespend import` of an archive of closed days.

use std::path::Path;

use serde_json::json;
use sqlx::PgPool;

use crate::support::{database, program, run};

/// A function that runs the program in a directory, with a database and arguments. It returns the exit code and what the
/// program said.
fn commands_in(home: &Path) -> impl Fn(&str, &[&str]) -> (Option<i32>, String) {
    move |database, arguments| {
        let mut command = program();
        command.args(arguments).env("DATABASE_URL", database).current_dir(home);
        let said = tokio::task::block_in_place(|| run(&mut command));
        (said.code, format!("{}{}", said.stdout, said.stderr))
    }
}

/// What the log has.
const ROWS: &str = r#"SELECT string_agg(row_to_json(log)::jsonb::text, E'\n' ORDER BY request_id)
                      FROM "LiteLLM_SpendLogs" AS log"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_of_an_archive_are_imported_once() {
    let (from, to) = (database().await, database().await);
    let home = tempfile::tempdir().unwrap();
    let archive = home.path().join("archive");
    let file = home.path().join("rows.jsonl");
    let mut lines = String::new();
    for n in 0..50 {
        let row = json!({"request_id": format!("r-{n:02}"), "api_key": "k1", "model": "gpt-4o", "spend": f64::from(n) / 64.0,
                         "prompt_tokens": n, "completion_tokens": 2, "startTime": format!("2026-02-{:02}T12:00:00.123", 1 + n % 3),
                         "endTime": "2026-02-03T13:00:00", "request_tags": ["a", "ü"], "metadata": {"user_api_key_alias": "alias"},
                         "user": "u-1", "team_id": "t-1", "end_user": "c-1", "session_id": "s-1", "call_type": "acompletion"});
        lines.push_str(&row.to_string());
        lines.push('\n');
    }
    std::fs::write(&file, lines).unwrap();
    let path = archive.to_str().unwrap();
    let command = commands_in(home.path());
    let (code, said) = command(from.url(), &["import", file.to_str().unwrap()]);
    assert!(code == Some(0) && said.contains("50 imported"), "{said}");
    let (code, said) = command(to.url(), &["import", path]);
    assert!(code == Some(2) && said.contains("cannot read"), "{code:?} {said}");
    let (code, said) = command(from.url(), &["books", "close", "--archive", path, "--through", "2026-02-28"]);
    assert!(code == Some(0) && said.contains("3 days closed, 50 rows archived"), "{said}");
    let (code, said) = command(to.url(), &["import", path]);
    assert!(code == Some(0) && said.contains("50 imported, 0 already there, 0 bad"), "{said}");
    for database in [&to, &from] {
        let (code, said) = command(database.url(), &["import", path]);
        assert!(code == Some(0) && said.contains("0 imported, 50 already there, 0 bad"), "{said}");
    }
    let mut rows = Vec::new();
    for database in [&from, &to] {
        let pool = PgPool::connect(database.url()).await.unwrap();
        rows.push(sqlx::query_scalar::<_, String>(ROWS).fetch_one(&pool).await.unwrap());
    }
    assert_eq!(rows[0], rows[1]);
    // The rows of closed days that left the log are known as well.
    let (code, said) = command(from.url(), &["books", "prune", "--archive", path, "--keep-days", "1"]);
    assert_eq!(code, Some(0), "{said}");
    let pool = PgPool::connect(from.url()).await.unwrap();
    let left = r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#;
    assert_eq!(sqlx::query_scalar::<_, i64>(left).fetch_one(&pool).await.unwrap(), 0);
    let (code, said) = command(from.url(), &["import", path]);
    assert!(code == Some(0) && said.contains("0 imported, 50 already there, 0 bad"), "{said}");
    assert_eq!(sqlx::query_scalar::<_, i64>(left).fetch_one(&pool).await.unwrap(), 0);
    let (code, said) = command(from.url(), &["rollups", "verify", "--archive", path]);
    assert!(code == Some(0) && said.contains("3 closed days: no difference"), "{said}");
    // A day that is open again has its rows in the log, and may be closed with others.
    let (code, said) = command(from.url(), &["books", "reopen", "2026-02-02", "--archive", path, "--why", "a test"]);
    assert_eq!(code, Some(0), "{said}");
    let third = database().await;
    let (code, said) = command(third.url(), &["import", path]);
    assert!(code == Some(0) && said.contains("not closed: 2026-02-02"), "{said}");
    assert!(said.contains("33 imported, 0 already there, 0 bad"), "{said}");
}

/// Rows that a record of usage cannot be: with long texts, large numbers and lists, all columns or as few as possible, and
/// values that make no sense.
const RARE_ROWS: &str = r#"
    INSERT INTO "LiteLLM_SpendLogs" (
        request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens, "startTime", "endTime",
        "completionStartTime", model, model_id, model_group, custom_llm_provider, api_base, "user", metadata, cache_hit, cache_key,
        request_tags, team_id, organization_id, end_user, requester_ip_address, messages, response, proxy_server_request,
        session_id, status, mcp_namespaced_tool_name, billing_agent_id, agent_id, litellm_call_id, request_duration_ms,
        created_at, updated_at)
    VALUES ('all', 'acompletion', 'k1', 0.125, 12, 10, 2, '2026-02-01 10:00:00.123', '2026-02-01 10:00:01.456',
            '2026-02-01 10:00:00.789', 'gpt-4o', 'deployment', 'group', 'openai', 'https://api', 'u-1',
            '{"usage_object": {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
              "number": 12345678901234567890.123456789012345678901}',
            'False', 'cached', '["a", "ü"]', 't-1', 'o-1', 'c-1', '10.0.0.1', '{"text": "asked"}', '{"text": "said"}',
            '{"text": "sent"}', 's-1', 'success', 'tools-search', 'billed', 'agent', 'call', 1333,
            '2026-02-01 10:00:02.001', '2026-02-03 11:00:00.002');
    INSERT INTO "LiteLLM_SpendLogs" (
        request_id, call_type, "startTime", "endTime", api_key, model_id, model_group, custom_llm_provider, api_base, "user",
        metadata, cache_hit, cache_key, request_tags, messages, response, proxy_server_request, created_at, updated_at)
    VALUES ('few', '', '2026-02-01 11:00', '2026-02-01 11:00', 'k1', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            NULL, NULL, '2026-02-01 11:00', '2026-02-01 11:00');
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", api_key, spend, model, messages, response,
                                     proxy_server_request, end_user, api_base, metadata)
    SELECT 'long', 'acompletion', '2026-02-02 10:00', '2026-02-02 10:00', 'k1', 0.25, 'gpt-4o',
           jsonb_build_object('text', repeat('ä', 1500000)), (SELECT jsonb_agg(n) FROM generate_series(1, 30000) AS n),
           jsonb_build_array(repeat('x', 1100000)), repeat('c', 1000), repeat('b', 3000),
           jsonb_build_object('text', repeat('m', 2000000), 'status', 'failure');
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", api_key, spend, model, total_tokens, status,
                                     request_tags)
    VALUES ('not-a-number', 'acompletion', '2026-02-02 12:00', '2026-02-02 12:00', 'k1', 'NaN', 'gpt-4o', 1, 'failure', '{}'),
           ('infinite', 'acompletion', '2026-02-02 12:01', '2026-02-02 12:01', 'k1', 'Infinity', 'gpt-4o', 1, 'success', '[]'),
           ('refund', 'acompletion', '2026-02-02 12:02', '2026-02-02 11:00', 'k1', -0.0625, 'gpt-4o', -3, 'cancelled', '["a", 1]')"#;

/// Every column of every row. Long values are shortened and hashed.
const VALUES: &str = r#"SELECT request_id || ' ' || key, left(value::text, 100) || ' ' || md5(value::text)
                        FROM "LiteLLM_SpendLogs" AS log, jsonb_each(to_jsonb(log)) ORDER BY request_id COLLATE "C", key COLLATE "C""#;

/// What is counted of the rows: the spend of their key, and the daily rows.
const COUNTED: &str = r#"
    SELECT (SELECT spend FROM "LiteLLM_VerificationToken" WHERE token = 'k1'), sum(spend), sum(api_requests)::bigint,
           sum(failed_requests)::bigint, sum(cache_read_input_tokens)::bigint,
           (SELECT sum(api_requests)::bigint FROM "LiteLLM_DailyTagSpend"), (SELECT spend FROM "LiteLLM_EndUserTable" WHERE user_id = 'c-1')
    FROM "LiteLLM_DailyUserSpend""#;

type Counted = (f64, f64, i64, i64, i64, i64, f64);

async fn values(pool: &PgPool) -> Vec<(String, String)> {
    sqlx::query_as(VALUES).fetch_all(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archived_rows_are_imported_as_they_are() {
    let (from, to) = (database().await, database().await);
    let home = tempfile::tempdir().unwrap();
    let archive = home.path().join("archive");
    let path = archive.to_str().unwrap();
    let command = commands_in(home.path());
    let log = PgPool::connect(from.url()).await.unwrap();
    sqlx::raw_sql(RARE_ROWS).execute(&log).await.unwrap();
    let close = ["books", "close", "--archive", path, "--archive-bodies", "--through", "2026-02-28"];
    let (code, said) = command(from.url(), &close);
    assert!(code == Some(0) && said.contains("2 days closed, 6 rows archived"), "{said}");
    let other = PgPool::connect(to.url()).await.unwrap();
    sqlx::raw_sql(r#"INSERT INTO "LiteLLM_VerificationToken" (token) VALUES ('k1')"#).execute(&other).await.unwrap();
    let (code, said) = command(to.url(), &["import", path]);
    assert!(code == Some(0) && said.contains("6 imported, 0 already there, 0 bad"), "{said}");
    let expected = values(&log).await;
    let counted: Counted = (0.3125, 0.3125, 6, 2, 4, 3, 0.125);
    let expect = async |step: &str| {
        let imported = values(&other).await;
        for (imported, expected) in imported.iter().zip(&expected) {
            assert_eq!(imported, expected, "{step}");
        }
        assert_eq!(imported.len(), expected.len(), "{step}");
        let found: Counted = sqlx::query_as(COUNTED).fetch_one(&other).await.unwrap();
        assert_eq!(found, counted, "{step}");
    };
    expect("imported").await;
    // Again, also when the IDs of records are no longer kept.
    for statement in ["SELECT 1", "DELETE FROM litespend.booked_ids"] {
        sqlx::raw_sql(statement).execute(&other).await.unwrap();
        let (code, said) = command(to.url(), &["import", path]);
        assert!(code == Some(0) && said.contains("0 imported, 6 already there, 0 bad"), "{said}");
        expect(statement).await;
    }
    // A row that the log lost comes back, and counts again.
    sqlx::raw_sql(
        r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = 'long'; DELETE FROM litespend.booked_ids;
           UPDATE "LiteLLM_VerificationToken" SET spend = spend - 0.25"#,
    )
    .execute(&other)
    .await
    .unwrap();
    let (code, said) = command(to.url(), &["import", path]);
    assert!(code == Some(0) && said.contains("1 imported, 5 already there, 0 bad"), "{said}");
    assert_eq!(values(&other).await.len(), expected.len());
    let spend = r#"SELECT spend FROM "LiteLLM_VerificationToken""#;
    assert_eq!(sqlx::query_scalar::<_, f64>(spend).fetch_one(&other).await.unwrap().to_bits(), counted.0.to_bits());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn archived_rows_that_tables_cannot_hold_are_reported() {
    let (from, to) = (database().await, database().await);
    let home = tempfile::tempdir().unwrap();
    let archive = home.path().join("archive");
    let path = archive.to_str().unwrap();
    let command = commands_in(home.path());
    let log = PgPool::connect(from.url()).await.unwrap();
    // LiteLLM's own log has no index on this column.
    let index = r#"SELECT indexrelid::regclass::text FROM pg_index
                   WHERE indrelid = '"LiteLLM_SpendLogs"'::regclass AND pg_get_indexdef(indexrelid) LIKE '%litellm_call_id%'"#;
    for index in sqlx::query_scalar::<_, String>(index).fetch_all(&log).await.unwrap() {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP INDEX {index}"))).execute(&log).await.unwrap();
    }
    sqlx::raw_sql(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", model)
           VALUES ('short', 'acompletion', '2026-02-01 10:00', '2026-02-01 10:00', 'gpt-4o'),
                  ('long', 'acompletion', '2026-02-01 10:00', '2026-02-01 10:00', repeat('m', 300)),
                  ('refused', 'acompletion', '2026-02-01 10:00', '2026-02-01 10:00', 'not here');
           INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", "completionStartTime")
           VALUES ('ages', 'acompletion', '2026-02-01 10:00', '12026-02-01 10:00', '0044-03-15 12:00:00.123 BC');
           INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", litellm_call_id)
           SELECT 'call', 'acompletion', '2026-02-01 10:00', '2026-02-01 10:00', string_agg(md5(n::text), '')
           FROM generate_series(1, 128) AS n;
           INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime")
           SELECT 'other-' || n, 'acompletion', '2026-02-01 11:00', '2026-02-01 11:00' FROM generate_series(1, 20) AS n"#,
    )
    .execute(&log)
    .await
    .unwrap();
    let imported = PgPool::connect(to.url()).await.unwrap();
    let (code, said) = command(from.url(), &["books", "close", "--archive", path, "--through", "2026-02-28"]);
    assert_eq!(code, Some(0), "{said}");
    sqlx::raw_sql(r#"ALTER TABLE "LiteLLM_SpendLogs" ADD CHECK (model <> 'not here')"#)
        .execute(&imported)
        .await
        .unwrap();
    let (code, said) = command(to.url(), &["import", path]);
    assert!(code == Some(1) && said.contains("22 imported, 0 already there, 3 bad"), "{code:?} {said}");
    let report = std::fs::read_to_string(home.path().join("archive.errors.jsonl")).unwrap();
    for expected in [
        "model: is longer than 256 bytes",
        r#"\"request_id\":\"long\""#,
        "litellm_call_id: is longer than 2048 bytes",
        "the database cannot store a value of this record",
        "refused",
    ] {
        assert!(report.contains(expected), "{expected}: {report}");
    }
    let ages = r#"SELECT "endTime"::text || ' ' || "completionStartTime"::text FROM "LiteLLM_SpendLogs" WHERE request_id = 'ages'"#;
    let mut found = Vec::new();
    for database in [&log, &imported] {
        found.push(sqlx::query_scalar::<_, String>(ages).fetch_one(database).await.unwrap());
    }
    assert_eq!(found, ["12026-02-01 10:00:00 0044-03-15 12:00:00.123 BC"; 2]);
}
