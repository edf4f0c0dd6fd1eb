//! Cases of SQL functions that neither the tests of the routes nor the recordings reach.

use std::collections::BTreeSet;

use chrono::NaiveDate;
use litespend::identity::{Scope, hash_key};
use litespend::store::copying::{CopiedRows, Fields};
use litespend::store::key_metadata;
use litespend::store::key_metadata::KeyMetadata;
use litespend::store::log::{SpendLogFilter, reaches};
use litespend::store::reading::{ReadPool, Reading};
use litespend::store::{database, keys, midnight};
use serde_json::json;
use sqlx::PgConnection;

use crate::support::TestApp;

#[tokio::test]
async fn a_user_sees_the_teams_it_administers_and_those_that_let_their_members() {
    let app = TestApp::new().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_UserTable" (user_id, user_role, teams) VALUES
               ('u', 'internal_user', '{admin-of,member-of,reader-of,not-in,odd,gone}'), ('outsider', 'internal_user', '{}'),
               ('nobody', 'internal_user', NULL);
           INSERT INTO "LiteLLM_TeamTable" (team_id, members_with_roles, team_member_permissions) VALUES
               ('admin-of', '[{"user_id": "u", "role": "admin"}, {"user_id": "outsider", "role": "admin"}]', '{}'),
               ('member-of', '[{"user_id": "u", "role": "user"}]', '{/key/info}'),
               ('reader-of', '[{"user_id": "u", "role": "user"}, {"user_id": "u", "role": "user"}]', '{/spend/logs}'),
               ('not-in', '[{"user_id": "other", "role": "admin"}]', '{/spend/logs}'),
               ('odd', '{"user_id": "u", "role": "admin"}', NULL),
               ('not-listed', '[{"user_id": "u", "role": "admin"}]', '{}');
           INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, spend, "startTime", "endTime", "user", team_id, request_tags)
               SELECT team || owner, 'x', 1, now(), now(), owner, team, jsonb_build_array(team)
               FROM unnest(ARRAY['admin-of', 'member-of', 'reader-of', 'not-in', 'not-listed']) AS team,
                    unnest(ARRAY['u', 'other']) AS owner
               UNION ALL SELECT 'mine', 'x', 1, now(), now(), 'u', NULL, '["no team"]'"#,
    )
    .await;
    sqlx::query(r#"INSERT INTO "LiteLLM_VerificationToken" (token, user_id) VALUES ($1, 'u'), ($2, 'outsider')"#)
        .bind(hash_key("sk-of-u"))
        .bind(hash_key("sk-outsider"))
        .execute(&app.pool)
        .await
        .unwrap();
    let mut connection = app.pool.acquire().await.unwrap();
    let mut teams = async |user: Option<&str>| match keys::owned_scope(&mut connection, user).await.unwrap() {
        Scope::All => panic!("everything"),
        Scope::Owned { user_id, mut team_ids } => {
            assert_eq!(user_id.as_deref(), user.filter(|user| !user.is_empty()));
            team_ids.sort();
            team_ids
        }
    };
    assert_eq!(teams(Some("u")).await, ["admin-of", "reader-of"]);
    for user in [Some("outsider"), Some("nobody"), Some("unknown"), Some(""), None] {
        assert_eq!(teams(user).await, Vec::<String>::new(), "{user:?}");
    }
    let tags = app.get("/spend/tags", "sk-of-u").await.json();
    let mut seen: Vec<_> = tags
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| format!("{} {}", tag["individual_request_tag"].as_str().unwrap(), tag["log_count"]))
        .collect();
    seen.sort();
    // The user's own rows in every team, and everyone's rows in the teams that it may see.
    assert_eq!(seen, ["admin-of 2", "member-of 1", "no team 1", "not-in 1", "not-listed 1", "reader-of 2"]);
    assert_eq!(app.get("/spend/tags", "sk-outsider").await.json(), json!([]));
}

#[tokio::test]
async fn keys_are_recognised_wherever_something_is_known_of_them() {
    let app = TestApp::new().await;
    let hex = |character: &str| character.repeat(64);
    app.execute(
        r#"INSERT INTO "LiteLLM_UserTable" (user_id, user_email, teams) VALUES
               ('owner', 'owner@example.com', '{only}'), ('two', '', '{one,two}');
           INSERT INTO "LiteLLM_VerificationToken" (token, key_alias, team_id, user_id) VALUES
               ('live', 'Live', 'team', 'owner'), ('both', 'Now', NULL, NULL), ('plain', 'Twice', NULL, 'owner');
           INSERT INTO "LiteLLM_DeletedVerificationToken" (id, token, key_alias, user_id, deleted_at) VALUES
               ('1', 'both', 'Before', NULL, '2026-01-01'), ('2', 'dead', 'Older', 'owner', '2026-01-01'),
               ('3', 'dead', 'Newer', 'owner', '2026-02-01'), ('4', 'was plain', 'Gone twice', NULL, '2026-02-01');
           INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, "startTime", "endTime", metadata, team_id, "user")
               VALUES ('a', 'x', repeat('a', 64), '2026-02-01', '2026-02-01', '{"user_api_key_alias": "Logged"}', 't', 'owner'),
                      ('b', 'x', repeat('a', 64), '2026-02-02', '2026-02-02', '{"user_api_key_alias": "Logged"}', 't', NULL),
                      ('c', 'x', repeat('b', 64), '2026-02-01', '2026-02-01', '{"user_api_key_alias": "One"}', 't', NULL),
                      ('d', 'x', repeat('b', 64), '2026-02-02', '2026-02-02', '{"user_api_key_alias": "Other"}', 't', NULL),
                      ('e', 'x', repeat('c', 64), '2025-02-02', '2025-02-02', '{"user_api_key_alias": "Too old"}', 't', NULL);
           INSERT INTO "LiteLLM_DailyUserSpend" (id, user_id, date, api_key, updated_at) VALUES
               ('1', 'owner', '2026-02-01', repeat('d', 64), now()), ('2', 'owner', '2026-02-02', repeat('d', 64), now()),
               ('3', 'owner', '2026-02-01', repeat('e', 64), now()), ('4', 'two', '2026-02-02', repeat('e', 64), now())"#,
    )
    .await;
    let asked: BTreeSet<String> = [
        "live".to_owned(),
        "both".to_owned(),
        "dead".to_owned(),
        "cli-session-owner".to_owned(),
        "cli-session-two".to_owned(),
        "cli-session-".to_owned(),
        hash_key("plain"),
        hash_key("was plain"),
        hex("a"),
        hex("b"),
        hex("c"),
        hex("d"),
        hex("e"),
        "unknown".to_owned(),
    ]
    .into();
    let day = |month| midnight(NaiveDate::from_ymd_opt(2026, month, 1).unwrap());
    let mut connection = app.pool.acquire().await.unwrap();
    let found = key_metadata::find(&mut connection, &asked, Some((day(1), day(3)))).await.unwrap();
    let known = |alias: Option<&str>, team: Option<&str>, user: Option<&str>, exists: bool| KeyMetadata {
        key_alias: alias.map(str::to_owned),
        team_id: team.map(str::to_owned),
        user_id: user.map(str::to_owned),
        user_email: (user == Some("owner")).then(|| "owner@example.com".to_owned()),
        key_exists: Some(exists),
    };
    for (key, expected) in [
        ("live".to_owned(), Some(known(Some("Live"), Some("team"), Some("owner"), true))),
        ("both".to_owned(), Some(known(Some("Now"), None, None, true))),
        ("dead".to_owned(), Some(known(Some("Newer"), None, Some("owner"), false))),
        ("cli-session-owner".to_owned(), Some(known(Some("cli-session-owner"), Some("only"), Some("owner"), false))),
        ("cli-session-two".to_owned(), Some(known(Some("cli-session-two"), None, Some("two"), false))),
        ("cli-session-".to_owned(), None),
        (hash_key("plain"), Some(known(Some("Twice"), None, Some("owner"), false))),
        (hash_key("was plain"), Some(known(Some("Gone twice"), None, None, false))),
        (hex("a"), Some(known(Some("Logged"), Some("t"), Some("owner"), false))),
        (hex("b"), Some(known(None, Some("t"), None, false))),
        (hex("c"), None),
        (hex("d"), Some(known(None, None, Some("owner"), false))),
        (hex("e"), None),
        ("unknown".to_owned(), None),
    ] {
        assert_eq!(found.get(&key), expected.as_ref(), "{key}");
    }
    assert!(key_metadata::find(&mut connection, &BTreeSet::new(), None).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_cap_is_reached_at_exactly_as_many_rows() {
    let app = TestApp::new().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, "startTime", "endTime", api_key)
           SELECT n::text, 'x', now(), now(), CASE WHEN n <= 2 THEN 'k' ELSE '' END FROM generate_series(1, 5) AS n"#,
    )
    .await;
    let mut connection = app.pool.acquire().await.unwrap();
    let everything = SpendLogFilter::default();
    let of_key = SpendLogFilter { api_key: Some("k".into()), ..SpendLogFilter::default() };
    for (filter, limit, expected) in
        [(&everything, 5, true), (&everything, 6, false), (&of_key, 2, true), (&of_key, 3, false), (&of_key, 1, true)]
    {
        assert_eq!(reaches(&mut connection, filter, limit).await.unwrap(), expected, "{limit}");
    }
}

#[tokio::test]
async fn the_version_is_for_people() {
    let app = TestApp::new().await;
    let mut connection = app.pool.acquire().await.unwrap();
    let version = database::version(&mut connection).await.unwrap();
    let number = version.strip_prefix("PostgreSQL ").expect(&version);
    assert!(number.starts_with(|first: char| first.is_ascii_digit()) && !number.contains(' '), "{version}");
    database::ping(&app.pool).await.unwrap();
}

#[tokio::test]
async fn prismas_schema_parameter_says_where_the_tables_are() {
    let app = TestApp::seeded().await;
    app.execute(r#"ALTER SCHEMA public RENAME TO "Lite LLM"; CREATE SCHEMA public"#).await;
    let url = app.database.url();
    let separator = if url.contains('?') { '&' } else { '?' };
    let limits = database::PoolLimits { connections: 2, wait: std::time::Duration::from_secs(5) };
    let pool = database::pool(&format!("{url}{separator}schema=Lite%20LLM"), limits).unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let rows: i64 =
        sqlx::query_scalar(r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#).fetch_one(&mut *connection).await.unwrap();
    assert_eq!(rows, 420);
    drop(connection);
    pool.close().await;
}

#[tokio::test]
async fn a_reading_that_is_given_up_has_its_query_cancelled_and_its_connection_is_the_next_ones() {
    let app = TestApp::new().await;
    let limits = database::PoolLimits { connections: 1, wait: std::time::Duration::from_secs(5) };
    let pool = database::pool(app.database.url(), limits).unwrap();
    let reads = ReadPool::new(pool.clone());
    let backend = async |reading: &mut Reading| -> i32 {
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(reading.connection()).await.unwrap()
    };
    let mut reading = reads.start(Vec::new()).await.unwrap();
    let first = backend(&mut reading).await;
    reading.finish().await.unwrap();
    for snapshot in [false, true] {
        // A connection that runs a query, one that is sending rows, and an idle one.
        for statement in [
            "SELECT 1 FROM pg_sleep(60)",
            "SELECT repeat('x', 1000) FROM generate_series(1, 100000000)",
            "SELECT 1 / 0",
            "SELECT 1",
        ] {
            let start = std::time::Instant::now();
            let mut reading = reads.start(Vec::new()).await.unwrap();
            if snapshot {
                reading = reading.snapshot().await.unwrap();
            }
            let rows = sqlx::query(statement).fetch_all(reading.connection());
            let _ = tokio::time::timeout(std::time::Duration::from_millis(100), rows).await;
            drop(reading);
            let mut next = reads.start(Vec::new()).await.unwrap();
            assert_eq!(backend(&mut next).await, first, "{statement}");
            assert!(start.elapsed() < std::time::Duration::from_secs(4), "{statement}");
            let error = sqlx::raw_sql("SAVEPOINT only_in_a_transaction").execute(next.connection()).await.unwrap_err();
            assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("25P01"), "{statement}");
            next.finish().await.unwrap();
        }
    }
    reads.close().await;
}

#[tokio::test]
async fn a_transaction_whose_beginning_was_given_up_does_not_stay() {
    use std::future::Future;
    let app = TestApp::new().await;
    let limits = database::PoolLimits { connections: 1, wait: std::time::Duration::from_secs(5) };
    let pool = database::pool(app.database.url(), limits).unwrap();
    for polls in 1..6 {
        let mut connection = pool.acquire().await.unwrap();
        let mut begin = Box::pin(sqlx::Connection::begin(&mut *connection));
        for _ in 0..polls {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            if let std::task::Poll::Ready(begun) = begin.as_mut().poll(&mut context) {
                // A failed statement, so that a transaction that stays open is noticed.
                let _ = sqlx::raw_sql("SELECT 1 / 0").execute(&mut *begun.unwrap()).await;
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        drop(begin);
        drop(connection);
        let mut next = pool.acquire().await.unwrap();
        let error = sqlx::raw_sql("SAVEPOINT only_in_a_transaction").execute(&mut *next).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("25P01"), "{polls} polls");
    }
    pool.close().await;
}

async fn copied(connection: &mut PgConnection, select: &str) -> Result<usize, sqlx::Error> {
    let mut rows = CopiedRows::start(connection, select).await?;
    let mut count = 0;
    while rows.next().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

#[tokio::test]
async fn a_copy_that_ends_early_leaves_nothing_to_the_next_statement() {
    let app = TestApp::new().await;
    let mut connection = app.pool.acquire().await.unwrap();
    let numbers = "SELECT n, NULL::text, 'a' || n FROM generate_series(1, 5000) AS n";
    {
        let mut rows = CopiedRows::start(&mut connection, numbers).await.unwrap();
        let row = rows.next().await.unwrap().unwrap();
        let mut fields = Fields::of(&row, 3).unwrap();
        assert_eq!(fields.int(), Some(Some(1)));
        assert_eq!(fields.text(), Some(None));
        assert_eq!(fields.text(), Some(Some("a1")));
        rows.skip_rest().await.unwrap();
        assert!(rows.next().await.unwrap().is_none());
    }
    assert_eq!(copied(&mut connection, numbers).await.unwrap(), 5000);
    assert_eq!(copied(&mut connection, "SELECT 1 WHERE false").await.unwrap(), 0);
    for failing in ["SELECT missing", "SELECT 1 / (n - 4000) FROM generate_series(1, 5000) AS n"] {
        copied(&mut connection, failing).await.unwrap_err();
        let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&mut *connection).await.unwrap();
        assert_eq!(one, 1, "after {failing}");
    }
}
