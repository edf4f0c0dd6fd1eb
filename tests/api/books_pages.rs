//! Pages of the dashboard's log over more archived rows than a page looks at. A second database with the same rows, in which
//! nothing is closed, says what the pages are.

use chrono::NaiveTime;
use futures_util::TryStreamExt;
use litespend::books::beside::{Limits, Needed};
use litespend::books::pruning;
use litespend::books::rows::ArchivedDays;
use litespend::identity::Scope;
use litespend::store::books as tables;
use litespend::store::log::filter::{Column, LogFilter, Outcomes};
use litespend::store::log::pages;
use litespend::store::log::pages::{Order, SessionCursor, SortKey};
use litespend::store::log::rows::PagedLog;
use litespend::store::{Connection, Statement};
use serde_json::Value;

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

fn paths() -> Vec<String> {
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
    for path in paths() {
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

/// The calls of the test.
pub(crate) fn in_may() -> LogFilter {
    let at = |text: &str| day(text).and_time(NaiveTime::MIN);
    LogFilter { window: Some((at("2026-05-01"), at("2026-05-31"))), ..LogFilter::of(Scope::All) }
}

/// All closed days with their archive.
pub(crate) async fn closed_days(books: &Books, connection: &mut Connection) -> ArchivedDays {
    let closed = tables::closed_days(connection, None).await.unwrap();
    let days = closed.iter().map(|closed| (closed.day, u32::try_from(closed.revision).unwrap())).collect();
    ArchivedDays::new(books.archive.clone(), days, true)
}

/// Few rows, so that rows are removed several times.
const FEW: Limits = Limits { beside: 5_000, bytes: 64 * 1024 * 1024, read: 20_000, look: 1_000 };

/// Puts archived rows beside the log, in a transaction of its own. Returns whether rows were left out, and the number of rows
/// beside the log, or the refusal.
async fn put_beside(books: &Books, needed: Needed<'_>, limits: Limits) -> Result<(bool, i64), String> {
    let mut transaction = books.app.pool.begin().await.unwrap();
    let days = closed_days(books, &mut transaction).await;
    match days.put_beside_within(&mut transaction, &in_may(), needed, limits).await {
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
    let rows = Needed::All(Outcomes::OfRows);
    // The calls of two days. The log has those of the third one.
    let all = put_beside(&books, rows, Limits { beside: 20_000, ..FEW }).await;
    assert_eq!(all, Ok((false, 10_540)));
    // The rows that stand beside the log.
    let refusal = put_beside(&books, rows, FEW).await.unwrap_err();
    assert!(refusal.contains("more than 5000 archived rows match: choose a shorter time"), "{refusal}");
    let sessions = put_beside(&books, Needed::Sessions, FEW).await.unwrap();
    assert!(!sessions.0 && sessions.1 < FEW.beside, "{sessions:?}");
    // The rows that are looked at.
    for needed in [rows, Needed::Sessions] {
        let refusal = put_beside(&books, needed, Limits { beside: 20_000, read: 12_000, ..FEW }).await.unwrap_err();
        assert!(refusal.contains("more than 12000 archived rows would have to be looked at"), "{refusal}");
    }
    // The bytes of long columns.
    let refusal = put_beside(&books, rows, Limits { bytes: 100_000, ..FEW }).await.unwrap_err();
    assert!(refusal.contains("the archived rows that match are too large"), "{refusal}");
    // If there are not as many sessions as are counted, those that the page shows are enough.
    let newest = |counted, shown| Needed::NewestSessions { after: None, counted, shown };
    assert!(put_beside(&books, newest(5_001, 51), FEW).await.unwrap().0);
    assert!(!put_beside(&books, newest(5_001, 5_001), FEW).await.unwrap().0);
}

/// What lists of sessions have, by the statements of their pages.
async fn lists(connection: &mut Connection, filter: &LogFilter) -> Vec<String> {
    let mut found = vec![pages::count_sessions(connection, filter).await.unwrap().to_string()];
    for ascending in [false, true] {
        let sessions = pages::active_sessions(connection, filter, None, ascending, 0, 1_000).await.unwrap();
        found.extend(sessions.iter().map(|session| format!("{session:?}")));
        for key in [SortKey::Spend, SortKey::Model, SortKey::StartTime] {
            let (mut query, order) = (Statement::default(), Order { key, ascending });
            let rows: Vec<PagedLog> =
                pages::session_page(connection, &mut query, filter, order, 0, 1_000).try_collect().await.unwrap();
            found.extend(rows.iter().map(|row| format!("{row:?}")));
        }
    }
    found
}

fn expect_same(ours: &[String], expected: &[String], what: &str) {
    for (ours, expected) in ours.iter().zip(expected) {
        assert_eq!(ours, expected, "{what}");
    }
    assert_eq!(ours.len(), expected.len(), "{what}");
}

#[tokio::test]
async fn sessions_are_the_same_when_rows_that_they_do_not_need_are_removed() {
    let books = with_calls().await;
    books.both(IN_SESSIONS).await;
    // Calls without a session, of which the request IDs are the names of sessions: they belong to these, and represent them.
    books
        .both(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, created_at,
                   updated_at)
               SELECT session_id, 'asend_message', min(api_key), 1, '2026-05-01', '2026-05-01', 'agent', '2026-05-01', '2026-05-01'
               FROM "LiteLLM_SpendLogs" WHERE session_id LIKE 's-%' GROUP BY session_id"#,
        )
        .await;
    books.settle().await;
    books.close("2026-05-31").await;
    prune(&books).await;
    let mut model = books.model.pool.acquire().await.unwrap();
    for status in [None, Some("failure"), Some("success")] {
        let filter = LogFilter { status: status.map(str::to_owned), ..in_may() };
        let mut transaction = books.app.pool.begin().await.unwrap();
        let days = closed_days(&books, &mut transaction).await;
        let left_out = days.put_beside_within(&mut transaction, &filter, Needed::Sessions, FEW).await.unwrap();
        assert!(left_out.is_none());
        let (ours, expected) = (lists(&mut transaction, &filter).await, lists(&mut model, &filter).await);
        assert!(expected.len() > 500, "{} lines", expected.len());
        expect_same(&ours, &expected, &format!("{status:?}"));
    }
    // Rows that were left out are added for the sessions of a page.
    let filter = in_may();
    let mut transaction = books.app.pool.begin().await.unwrap();
    let days = closed_days(&books, &mut transaction).await;
    let needed = Needed::NewestSessions { after: None, counted: 5_001, shown: 51 };
    let left_out = days.put_beside_within(&mut transaction, &filter, needed, FEW).await.unwrap().unwrap();
    let found = pages::active_sessions(&mut transaction, &filter, None, false, 0, 50).await.unwrap();
    let ids: Vec<&str> = found.iter().map(|session| session.session_key.as_str()).collect();
    left_out.add_sessions(&mut transaction, &ids).await.unwrap();
    let mut representing = Vec::new();
    for connection in [&mut *transaction, &mut *model] {
        let mut query = Statement::default();
        let rows: Vec<PagedLog> =
            pages::representatives(connection, &mut query, &filter, &found).try_collect().await.unwrap();
        representing.push(rows.iter().map(|row| format!("{row:?}")).collect::<Vec<_>>());
    }
    assert_eq!(representing[0].len(), 50);
    expect_same(&representing[0], &representing[1], "a page");
}

/// Two calls of each of 1,000 sessions on a closed day, and calls of 1,500 others on the day before. The first sessions have a
/// later call in the log, all at the same time and of another user. Some of their calls, archived or later, have the name of
/// the session as their request ID, and no session.
const ON_BOTH_SIDES: &str = r#"
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, "startTime", "endTime", model, "user", session_id,
        created_at, updated_at)
    SELECT CASE WHEN is_named THEN name ELSE id END, 'acompletion', 'k-' || of % 2, 1, at, at, 'm', owner,
           CASE WHEN is_named THEN '' ELSE name END, at, at
    FROM (SELECT (n + 1) / 2 AS of, 'busy-' || (n + 1) / 2 AS name, 'early-' || n AS id, n % 6 = 1 AS is_named, 'u-1' AS owner,
                 timestamp '2026-05-02' + n * interval '10 seconds' AS at
          FROM generate_series(1, 2000) AS n
          UNION ALL
          SELECT n, 'busy-' || n, 'late-' || n, n % 3 = 2, 'u-2', '2026-05-20' FROM generate_series(1, 1000) AS n
          UNION ALL
          SELECT n, 'quiet-' || n, 'archived-' || n, n % 2 = 0, 'u-1', timestamp '2026-05-01' + n * interval '10 seconds'
          FROM generate_series(1, 1500) AS n) AS calls"#;

#[tokio::test]
async fn pages_by_cursor_have_the_sessions_after_those_with_later_calls_in_the_log() {
    let books = Books::new().await;
    books.both(ON_BOTH_SIDES).await;
    books.settle().await;
    books.close("2026-05-02").await;
    prune(&books).await;
    let mut model = books.model.pool.acquire().await.unwrap();
    let cursor = |time: &str, api_key: &str, session_key: &str| SessionCursor {
        last_activity: time.parse().unwrap(),
        api_key: api_key.to_owned(),
        session_key: session_key.to_owned(),
    };
    let few = Limits { look: 500, ..FEW };
    let full = Limits { beside: 3_000, ..few };
    let of_user = LogFilter { equal: vec![(Column::User, "u-1".to_owned())], ..in_may() };
    let between = cursor("2026-05-15T00:00:00", "k-1", "x");
    let among = cursor("2026-05-20T00:00:00", "k-0", "busy-110");
    for (filter, cursor, limits, counted, rows, what) in [
        // The sessions with later calls come before the cursor.
        (in_may(), &between, few, 901, 3_000, "between"),
        // Of the calls at the time of the cursor, some come before it and some after.
        (in_may(), &among, few, 901, 3_000, "among"),
        // The later calls do not match the filter, so they do not count.
        (of_user, &between, few, 901, 2_000, "filtered"),
        // As long as there is room for more rows, sessions are counted that the page does not show.
        (in_may(), &between, few, 2_001, 3_500, "all"),
        (in_may(), &between, full, 2_001, 3_000, "full"),
    ] {
        let mut transaction = books.app.pool.begin().await.unwrap();
        let days = closed_days(&books, &mut transaction).await;
        let needed = Needed::NewestSessions { after: Some(cursor), counted, shown: 51 };
        let left_out = days.put_beside_within(&mut transaction, &filter, needed, limits).await.unwrap();
        let beside = sqlx::query_scalar("SELECT count(*) FROM pg_temp.litespend_archived_logs");
        let beside: i64 = beside.fetch_one(&mut *transaction).await.unwrap();
        assert_eq!((beside, left_out.is_some()), (rows, rows < 3_500), "{what}");
        let mut pages = Vec::new();
        for connection in [&mut *transaction, &mut *model] {
            let found = pages::active_sessions(connection, &filter, Some(cursor), false, 0, 51).await.unwrap();
            pages.push(found.iter().map(|session| format!("{session:?}")).collect::<Vec<_>>());
        }
        assert_eq!(pages[1].len(), 51, "{what}");
        expect_same(&pages[0], &pages[1], what);
    }
}
