//! Clients send cursors back. Whatever a client did to a cursor, the server continues from it or refuses it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use crate::support::{MASTER_KEY, TestApp, randomness};

/// Years at and beyond the limits of PostgreSQL's timestamps, and arbitrary others.
fn year() -> impl Strategy<Value = i64> {
    prop_oneof![
        -4_720..-4_700_i64,
        Just(0),
        1_990..2_040_i64,
        9_990..10_010_i64,
        249_990..250_010_i64,
        -262_000..262_000_i64
    ]
}

#[test]
fn a_cursor_leads_on_or_is_refused_and_never_fails() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let app = runtime.block_on(TestApp::seeded());
    let text = prop_oneof![
        (year(), "\\PC{0,9}").prop_map(|(year, id)| {
            let micros = (year - 1970).saturating_mul(31_556_952_000_000);
            (true, URL_SAFE_NO_PAD.encode(format!("{micros}.{id}")))
        }),
        "[A-Za-z0-9_=-]{0,30}".prop_map(|text| (true, text)),
        (year(), "\\PC{0,9}").prop_map(|(year, id)| (false, format!("{year:+05}-06-01 10:00:00.5|key|{id}"))),
        "[0-9:+|. -]{0,40}".prop_map(|text| (false, text)),
    ];
    randomness::check(250, text, |(is_of_rows, cursor)| {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair(if is_of_rows { "cursor" } else { "session_cursor" }, &cursor)
            .finish();
        let path = if is_of_rows {
            format!("/spend/logs?limit=3&{query}")
        } else {
            let dates = "start_date=2026-02-01+00:00:00&end_date=2026-03-01+00:00:00";
            format!("/spend/logs/ui?group_by_session=true&{dates}&{query}")
        };
        let answer = runtime.block_on(app.get(&path, MASTER_KEY));
        prop_assert!([200, 400, 422].contains(&answer.status.as_u16()), "{cursor}: {} {}", answer.status, answer.text);
        Ok(())
    });
}

#[tokio::test]
async fn the_link_to_the_next_page_holds_no_key() {
    let app = TestApp::seeded().await;
    let key = "sk-admin-key-0001";
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET api_key = encode(sha256('sk-admin-key-0001'), 'hex')"#).await;
    let first = app.get(&format!("/spend/logs?limit=2&api_key={key}"), MASTER_KEY).await;
    let link = first.headers["link"].to_str().unwrap();
    assert!(!link.contains(key), "{link}");
    let next = link.trim_start_matches('<').split('>').next().unwrap();
    let second = app.get(next, MASTER_KEY).await.json();
    assert_eq!(second.as_array().unwrap().len(), 2);
    assert_ne!(second[0]["request_id"], first.json()[0]["request_id"]);
}
