//! Lists of sessions over archived calls with long texts: calls that no session needs are removed beside the log when their bytes are
//! too many, however few they are.

use futures_util::TryStreamExt;
use litespend::books::beside::{Limits, Needed};
use litespend::books::pruning;
use litespend::store::log::filter::Outcomes;
use litespend::store::log::pages;
use litespend::store::log::pages::{ActiveSession, Order, SortKey};
use litespend::store::log::rows::PagedLog;
use litespend::store::{Connection, Statement};

use crate::books::{Books, day};
use crate::books_pages::{closed_days, in_may};

/// Number of sessions.
const SESSIONS: i64 = 40;

/// 100 calls of each session on two days, with 1.5 KB of metadata each: 6.2 MB in all.
const CALLS: &str = r#"
    INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime", "endTime", model, metadata,
        session_id, status, created_at, updated_at)
    SELECT md5(n::text), CASE WHEN n % 13 = 0 THEN 'asend_message' ELSE 'acompletion' END, 'k', n % 100 / 64.0, n % 900,
           timestamp '2026-05-01' + n * interval '40 seconds', timestamp '2026-05-01' + n * interval '41 seconds', 'model-' || n % 5,
           jsonb_build_object('note', repeat(md5('note-' || n), 48)), 's-' || n % 40,
           CASE WHEN n % 7 = 0 THEN 'failure' ELSE 'success' END, '2026-05-03', '2026-05-03'
    FROM generate_series(1, 4000) AS n"#;

/// The texts of the thousand rows that are added at once fit, and those of two thousand do not. No number of rows is a reason to
/// remove any.
const BY_BYTES: Limits = Limits { beside: 100_000, bytes: 2_500_000, look: 1_000_000, ..Limits::OF_PAGE };

/// The calls are closed, and left the log.
async fn pruned() -> Books {
    let books = Books::new().await;
    books.both(CALLS).await;
    books.settle().await;
    books.close("2026-05-31").await;
    let mut connection = books.connection().await;
    pruning::prune(&mut connection, &books.archive, day("2026-05-02"), |_| true).await.unwrap();
    let left = r#"SELECT count(*)::text FROM "LiteLLM_SpendLogs" WHERE "startTime" >= '2026-05-01'"#;
    assert_eq!(books.app.scalar(left).await, "0");
    books
}

/// Number of rows beside the log.
async fn beside(connection: &mut Connection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM pg_temp.litespend_archived_logs").fetch_one(connection).await.unwrap()
}

/// All sessions, in several orders, and their number.
async fn lists(connection: &mut Connection) -> Vec<String> {
    let filter = in_may();
    let mut found = vec![pages::count_sessions(connection, &filter).await.unwrap().to_string()];
    for ascending in [false, true] {
        let sessions = pages::active_sessions(connection, &filter, None, ascending, 0, 1_000).await.unwrap();
        found.extend(sessions.iter().map(|session| format!("{session:?}")));
        for key in [SortKey::Spend, SortKey::StartTime] {
            let (mut query, order) = (Statement::default(), Order { key, ascending });
            let rows: Vec<PagedLog> =
                pages::session_page(connection, &mut query, &filter, order, 0, 1_000).try_collect().await.unwrap();
            found.extend(rows.iter().map(|row| format!("{row:?}")));
        }
    }
    found
}

/// The rows that represent sessions.
async fn representing(connection: &mut Connection, sessions: &[ActiveSession]) -> Vec<String> {
    let (mut query, filter) = (Statement::default(), in_may());
    let rows: Vec<PagedLog> =
        pages::representatives(connection, &mut query, &filter, sessions).try_collect().await.unwrap();
    rows.iter().map(|row| format!("{row:?}")).collect()
}

#[tokio::test]
async fn calls_with_long_texts_that_no_session_needs_make_room_for_others() {
    let books = pruned().await;
    let mut model = books.model.pool.acquire().await.unwrap();

    // Where every call is needed, there are too many bytes.
    let mut transaction = books.app.pool.begin().await.unwrap();
    let days = closed_days(&books, &mut transaction).await;
    let needed = Needed::All(Outcomes::OfSessions);
    let refusal =
        days.put_beside_within(&mut transaction, &in_may(), needed, BY_BYTES).await.err().unwrap().to_string();
    assert!(refusal.contains("the archived rows that match are too large"), "{refusal}");
    drop(transaction);

    // Lists of all sessions need two calls of each.
    let mut transaction = books.app.pool.begin().await.unwrap();
    let days = closed_days(&books, &mut transaction).await;
    let left_out = days.put_beside_within(&mut transaction, &in_may(), Needed::Sessions, BY_BYTES).await.unwrap();
    assert!(left_out.is_none());
    let rows = beside(&mut transaction).await;
    assert!((SESSIONS..2_000).contains(&rows), "{rows}");
    let (ours, expected) = (lists(&mut transaction).await, lists(&mut model).await);
    assert_eq!(expected[0], SESSIONS.to_string());
    assert_eq!(ours, expected);
    drop(transaction);

    // The newest calls are enough to say which sessions are the newest. The others of these sessions come later.
    let mut transaction = books.app.pool.begin().await.unwrap();
    let days = closed_days(&books, &mut transaction).await;
    let needed = Needed::NewestSessions { after: None, counted: SESSIONS, shown: SESSIONS };
    let left_out = days.put_beside_within(&mut transaction, &in_may(), needed, BY_BYTES).await.unwrap().unwrap();
    let rows = beside(&mut transaction).await;
    assert!((SESSIONS..2_000).contains(&rows), "{rows}");
    let found = pages::active_sessions(&mut transaction, &in_may(), None, false, 0, SESSIONS).await.unwrap();
    let ids: Vec<&str> = found.iter().map(|session| session.session_key.as_str()).collect();
    assert_eq!(ids.len(), 40);
    left_out.add_sessions(&mut transaction, &ids).await.unwrap();
    let rows = beside(&mut transaction).await;
    assert!((SESSIONS..2_000).contains(&rows), "{rows}");
    assert_eq!(representing(&mut transaction, &found).await, representing(&mut model, &found).await);
    assert_eq!(lists(&mut transaction).await, lists(&mut model).await);
}
