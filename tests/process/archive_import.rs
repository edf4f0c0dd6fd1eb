//! `litespend import` of an archive of closed days.

use serde_json::json;
use sqlx::PgPool;

use crate::support::{database, program, run};

/// What the log has, without the times at which rows were written.
const ROWS: &str = r#"SELECT string_agg((row_to_json(log)::jsonb - 'created_at' - 'updated_at')::text, E'\n' ORDER BY request_id)
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
    let command = |database: &str, arguments: &[&str]| {
        let mut command = program();
        command.args(arguments).env("DATABASE_URL", database).current_dir(home.path());
        let said = tokio::task::block_in_place(|| run(&mut command));
        (said.code, format!("{}{}", said.stdout, said.stderr))
    };
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
