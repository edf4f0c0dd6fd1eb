//! Pages of the dashboard's log over more archived rows than a page looks at. A second database with the same rows, in which
//! nothing is closed, says what the pages are.

use litespend::books::beside::{Limits, Needed};
use litespend::books::pruning;
use litespend::books::rows::ArchivedDays;
use litespend::identity::Scope;
use litespend::store::books as tables;
use litespend::store::log::filter::{LogFilter, Outcomes};
use serde_json::Value;
use sqlx::{Postgres, Transaction};

use crate::books::{Books, day};
use crate::support::MASTER_KEY;
use crate::support::answers::{Lists, difference};

/// More calls than are counted on two days. Many start at the same time.
/// Sessions have up to four calls, which may be days apart; some calls have none.
const CALLS: &str = r#"
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens,
        "startTime", "endTime", model, "user", metadata, request_tags, session_id, status, cache_hit, created_at, updated_at)
    SELECT md5(n::text), CASE WHEN n % 13 = 0 THEN 'asend_message' WHEN n % 7 = 0 THEN 'call_mcp_tool' ELSE 'acompletion' END,
           'k-' || n % 3, (n * 7919 % 1000) / 100.0, n % 900, n % 500, n % 150,
           timestamp '2026-05-01' + (n * 6857 % 12500 / 5) * interval '82 seconds', timestamp '2026-05-01' + n * interval '10 seconds',
           'model-' || n % 5, 'u-' || n % 4,
           CASE WHEN n % 500 = 1 THEN '{"error_information": {"error_code": "429", "error_message": "slow down"}}'::jsonb
                ELSE jsonb_build_object('user_api_key_alias', 'alias-' || n % 3) END,
           '[]', CASE WHEN n % 10 = 0 THEN NULL ELSE 's-' || n % 11500 END,
           CASE WHEN n % 500 = 1 THEN 'failure' WHEN n % 3 = 0 THEN NULL ELSE 'success' END,
           CASE WHEN n % 250 = 7 THEN 'True' ELSE 'None' END, '2026-05-03', '2026-05-03'
    FROM generate_series(1, 12500) AS n"#;

const SPAN: &str = "start_date=2026-05-01%2000:00:00&end_date=2026-05-31%2000:00:00";

fn pages() -> Vec<String> {
    let of_rows = [
        "ui",
        "v2&page=100&page_size=100",
        "ui&page=116&page_size=100",
        "v2&sort_order=asc&page=102&page_size=100",
        "ui&sort_by=spend",
        "v2&sort_by=spend&sort_order=asc&page=90&page_size=100",
        "v2&sort_by=ttft_ms",
        "ui&status_filter=failure",
        "v2&cache_hit_filter=hit",
        "ui&error_code=429",
        "v2&error_message=slow&sort_order=asc",
        "ui&span_type=mcp&sort_by=spend",
        "v2&session_id=s-77",
        "ui&search=s-78",
        "ui&group_by_session=true",
        "ui&group_by_session=true&page=95&page_size=100",
        "ui&group_by_session=true&status_filter=failure",
        "ui&group_by_session=true&sort_by=spend&page=3",
    ];
    of_rows
        .iter()
        .map(|page| {
            format!(
                "/spend/logs/{}",
                page.replacen("ui", &format!("ui?{SPAN}"), 1).replacen("v2", &format!("v2?{SPAN}"), 1)
            )
        })
        .collect()
}

async fn with_calls() -> Books {
    let books = Books::new().await;
    books.both(CALLS).await;
    books.settle().await;
    books
}

async fn prune(books: &Books) {
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-05-02"), |_| true).await.unwrap();
}

async fn expect(books: &Books, path: &str, step: &str) -> Value {
    let (ours, expected) = (books.app.get(path, MASTER_KEY).await, books.model.get(path, MASTER_KEY).await);
    assert_eq!(
        (ours.status, expected.status),
        (200.try_into().unwrap(), 200.try_into().unwrap()),
        "{path}: {}",
        ours.text
    );
    if let Some(difference) = difference(&ours.json(), &expected.json(), Lists::InOrder) {
        panic!("{step}: {path}: {difference}\nours: {:.2000}\nexpected: {:.2000}", ours.text, expected.text);
    }
    ours.json()
}

#[tokio::test]
async fn pages_over_many_archived_rows_are_those_of_the_log() {
    let books = with_calls().await;
    books.close("2026-05-31").await;
    prune(&books).await;
    assert_eq!(books.app.scalar(r#"SELECT bool_or("startTime" < '2026-05-03')::text FROM "LiteLLM_SpendLogs" WHERE "startTime" > '2026-05-01'"#).await, "false");
    for path in pages() {
        expect(&books, &path, "pruned").await;
    }
    // Two pages by cursor, and one deep in the list.
    let mut path = format!("/spend/logs/ui?{SPAN}&group_by_session=true&page_size=100");
    for _ in 0..2 {
        let page = expect(&books, &path, "by cursor").await;
        let cursor = page["next_session_cursor"].as_str().unwrap();
        path = format!(
            "/spend/logs/ui?{SPAN}&group_by_session=true&page_size=100&session_cursor={}",
            cursor.replace(' ', "%20")
        );
    }
    let deep = books
        .model
        .get(&format!("/spend/logs/ui?{SPAN}&group_by_session=true&page_size=1000&page=8"), MASTER_KEY)
        .await;
    let cursor = deep.json()["next_session_cursor"].as_str().unwrap().replace(' ', "%20");
    expect(&books, &format!("/spend/logs/ui?{SPAN}&group_by_session=true&session_cursor={cursor}"), "deep").await;
}

/// Gives each session many calls, of several days, of all kinds and with both outcomes.
const IN_SESSIONS: &str = r#"
    UPDATE "LiteLLM_SpendLogs" SET session_id = 's-' || abs(hashtext(request_id)) % 150,
           status = CASE WHEN abs(hashtext('status' || request_id)) % 3 = 0 THEN 'failure' ELSE status END
    WHERE "startTime" >= '2026-05-01'"#;

#[tokio::test]
async fn lists_of_sessions_with_many_archived_calls_are_those_of_the_log() {
    let books = with_calls().await;
    books.both(IN_SESSIONS).await;
    books.settle().await;
    books.close("2026-05-31").await;
    prune(&books).await;
    // Sessions whose calls are on both sides: the log has some, and only the archive has others.
    books
        .both(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, session_id,
                   status, created_at, updated_at)
               SELECT 'late-' || n, CASE WHEN n % 2 = 0 THEN 'asend_message' ELSE 'acompletion' END, 'k-' || n % 3, n, at, at,
                      'model-late', 's-' || n, CASE WHEN n % 5 = 0 THEN 'failure' END, at, at
               FROM generate_series(1, 60) AS n,
                    LATERAL (SELECT timestamp '2026-05-01' + n % 7 * interval '1 day') AS times (at)"#,
        )
        .await;
    books.settle().await;
    for page in [
        "ui?",
        "ui?status_filter=failure",
        "ui?status_filter=success&page=2",
        "ui?status_filter=failure&sort_order=asc",
        "ui?sort_order=asc&page=7",
        "ui?sort_by=spend",
        "ui?sort_by=spend&sort_order=asc&status_filter=success&page=3",
        "ui?sort_by=ttft_ms",
        "ui?sort_by=model&span_type=llm",
        "v2?",
        "v2?sort_order=asc&page=2",
        "v2?sort_by=total_tokens&status_filter=failure",
        "v2?sort_by=endTime&user_id=u-1",
    ] {
        let page = page.replacen('?', &format!("?{SPAN}&group_by_session=true&"), 1);
        expect(&books, &format!("/spend/logs/{page}"), "sessions").await;
    }
    // All pages in ascending order, by their cursors.
    let first =
        format!("/spend/logs/ui?{SPAN}&group_by_session=true&page_size=100&sort_order=asc&status_filter=success");
    let (mut path, mut pages) = (first.clone(), 1);
    loop {
        let page = expect(&books, &path, "by cursor").await;
        let Some(cursor) = page["next_session_cursor"].as_str() else { break };
        path = format!("{first}&session_cursor={}", cursor.replace(' ', "%20"));
        pages += 1;
    }
    assert!(pages > 2, "{pages}");
}

/// Puts archived rows beside the log, in a transaction of its own. Returns whether rows were left out, and the number of rows
/// beside the log, or the refusal.
async fn put_beside(books: &Books, needed: Needed<'_>, limits: Limits) -> Result<(bool, i64), String> {
    let mut transaction: Transaction<'static, Postgres> = books.app.pool.begin().await.unwrap();
    let closed = tables::closed_days(&mut transaction, None).await.unwrap();
    let days = closed.iter().map(|closed| (closed.day, u32::try_from(closed.revision).unwrap())).collect();
    let days = ArchivedDays::new(books.archive.clone(), days, true);
    let filter = LogFilter::of(Scope::All);
    match days.put_beside_within(&mut transaction, &filter, needed, limits).await {
        Ok(left_out) => {
            let count = sqlx::query_scalar("SELECT count(*) FROM pg_temp.litespend_archived_logs");
            Ok((left_out.is_some(), count.fetch_one(&mut *transaction).await.unwrap()))
        }
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test]
async fn pages_end_at_the_bounds_of_archived_rows() {
    let books = with_calls().await;
    books.both(IN_SESSIONS).await;
    books.settle().await;
    books.close("2026-05-31").await;
    prune(&books).await;
    let limits = Limits { beside: 5_000, bytes: 64 * 1024 * 1024, read: 20_000, look: 1_000 };
    let rows = Needed::All(Outcomes::OfRows);
    let all = put_beside(&books, rows, Limits { beside: 20_000, ..limits }).await.unwrap();
    assert!(!all.0 && all.1 >= 12_500, "{all:?}");
    // The rows that stand beside the log. Of sessions, two rows each stand there: less than those that match.
    let refusal = put_beside(&books, rows, limits).await.unwrap_err();
    assert!(refusal.contains("more than 5000 archived rows match: choose a shorter time"), "{refusal}");
    let sessions = put_beside(&books, Needed::Sessions, limits).await.unwrap();
    assert!(!sessions.0 && sessions.1 < limits.beside, "{sessions:?}");
    // The rows that are looked at.
    for needed in [rows, Needed::Sessions] {
        let few = Limits { beside: 20_000, read: 12_000, ..limits };
        let refusal = put_beside(&books, needed, few).await.unwrap_err();
        assert!(refusal.contains("more than 12000 archived rows would have to be looked at"), "{refusal}");
    }
    // The bytes of long columns.
    let small = Limits { beside: 20_000, bytes: 100_000, ..limits };
    let refusal = put_beside(&books, rows, small).await.unwrap_err();
    assert!(refusal.contains("the archived rows that match are too large"), "{refusal}");
    // If there are not as many sessions as are counted, those that the page shows are enough.
    let newest = |shown| Needed::NewestSessions { after: None, counted: 10_001, shown };
    assert!(put_beside(&books, newest(51), limits).await.unwrap().0);
    assert!(!put_beside(&books, newest(5_001), limits).await.unwrap().0);
}
