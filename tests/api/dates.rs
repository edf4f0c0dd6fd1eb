//! Dates: strictly `YYYY-MM-DD`, and in UTC whatever the time zone of the database.

use std::sync::Arc;

use sqlx::AssertSqlSafe;

use crate::conformance::replay_some;
use crate::support::{MASTER_KEY, TestApp, database, seed, settings};

#[tokio::test]
async fn the_recorded_answers_match_on_a_database_in_another_zone() {
    let database = Arc::new(database().await);
    let app = TestApp::on(Arc::clone(&database), settings()).await;
    let name = app.scalar("SELECT current_database()::text").await;
    for setting in ["timezone = 'Asia/Kolkata'", "datestyle = 'SQL, DMY'", "intervalstyle = 'sql_standard'"] {
        let statement = format!("ALTER DATABASE {name} SET {setting}");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&app.pool).await.unwrap();
    }
    app.pool.close().await;

    let app = TestApp::on(database, settings()).await;
    let defaults = "SELECT array_to_string(setconfig, ',') FROM pg_db_role_setting
                    WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert!(app.scalar(defaults).await.contains("Asia/Kolkata"));
    assert_eq!(app.scalar("SELECT current_setting('timezone')").await, "UTC");
    seed(&app.pool).await;
    // Prices do not depend on the time zone.
    replay_some(&app, "http_answers.json.gz", |path| path != "/spend/calculate").await;
}

#[tokio::test]
async fn a_date_has_one_spelling() {
    let app = TestApp::new().await;
    for bad in ["2026-1-1", "20260101", "01/02/2026", "2026-01-01T00:00:00", "2026-02-30", "today", "", "%2000-01-01x"]
    {
        for path in ["/spend/logs", "/spend/tags", "/global/spend/tags", "/global/spend/report", "/user/daily/activity"]
        {
            for query in
                [format!("start_date={bad}&end_date=2026-01-02"), format!("start_date=2026-01-01&end_date={bad}")]
            {
                let answer = app.get(&format!("{path}?{query}"), MASTER_KEY).await;
                assert_eq!(answer.status, 400, "{path}?{query}: {}", answer.text);
            }
        }
    }
    for (start, end) in [("0001-01-01", "9999-12-31"), ("9999-12-31", "9999-12-31"), ("2026-01-02", "2026-01-01")] {
        for path in ["/spend/logs", "/spend/tags", "/global/spend/tags", "/global/spend/report", "/user/daily/activity"]
        {
            let answer = app.get(&format!("{path}?start_date={start}&end_date={end}"), MASTER_KEY).await;
            let reversed = path == "/user/daily/activity" && start > end;
            // A summary contains an empty entry for each day after the last spend.
            let endless = path == "/spend/logs" && (start, end) == ("0001-01-01", "9999-12-31");
            let expected = if reversed || endless { 400 } else { 200 };
            assert_eq!(answer.status, expected, "{path} {start} {end}: {}", answer.text);
        }
    }
}
