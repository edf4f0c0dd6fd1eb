//! The rollups: the recorded answers with and without them, and every answer against plain SQL on the log while the log
//! changes in every way.

use litespend::folding;
use litespend::store::rollups;
use serde_json::Value;

use crate::conformance::replay;
use crate::support::TestApp;

#[tokio::test]
async fn the_recorded_answers_match_while_deltas_wait() {
    let app = TestApp::seeded().await;
    assert!(app.state.has_rollups());
    replay(&app, "http_answers.json.gz").await;
}

#[tokio::test]
async fn the_recorded_answers_match_from_folded_rollups() {
    let app = TestApp::seeded().await;
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    let status = rollups::status(&mut connection).await.unwrap();
    assert_eq!((status.pending, status.dirty_days), (0, 0));
    assert!(status.days > 0);
    drop(connection);
    replay(&app, "http_answers.json.gz").await;
}

#[tokio::test]
async fn the_recorded_answers_match_without_rollups() {
    let app = TestApp::seeded().await;
    let mut connection = app.pool.acquire().await.unwrap();
    rollups::remove(&mut connection).await.unwrap();
    drop(connection);
    app.state.refresh_rollups().await.unwrap();
    assert!(!app.state.has_rollups());
    replay(&app, "http_answers.json.gz").await;
}

#[tokio::test]
async fn the_recorded_answers_match_while_days_are_dirty() {
    let app = TestApp::seeded().await;
    let mut connection = app.pool.acquire().await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO litespend.deltas (sign, day) VALUES (0, '2026-02-01'), (0, '2026-02-28')")
        .execute(&mut *connection)
        .await
        .unwrap();
    drop(connection);
    replay(&app, "http_answers.json.gz").await;
}

/// Reads that the rollups answer.
pub const READS: [&str; 12] = [
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30",
    "/global/spend/report?start_date=2026-02-01&end_date=2026-02-03&group_by=customer",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&group_by=customer",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&group_by=api_key",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&internal_user_id=u-int",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&team_id=team-alpha",
    "/global/spend/report?start_date=2026-01-01&end_date=2026-04-30&team_id=team-ghost&customer_id=cust-1",
    "/global/spend/tags?start_date=2026-01-01&end_date=2026-04-30",
    "/spend/tags",
    "/spend/tags?end_date=2026-02-02",
    "/spend/logs?start_date=2026-01-01&end_date=2026-02-28",
    "/spend/logs?start_date=2026-01-31&end_date=2026-02-01&user_id=u-int",
];

/// The answers of an application, one a read.
pub async fn answers(app: &TestApp) -> Vec<Value> {
    let mut answers = Vec::new();
    for path in READS {
        let answer = app.get(path, crate::support::MASTER_KEY).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answers.push(answer.json());
    }
    answers
}
