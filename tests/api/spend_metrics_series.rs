//! `GET /metrics/spend` with more series than are read at once, and with series that are remembered between scrapes.

use litespend::rollups::folding;
use litespend::settings::Settings;
use litespend::settings::spend_metrics::{Label, SpendMetricsSettings};
use litespend::store::spend_metrics::remembered::RememberedSeries;
use serde_json::json;

use crate::spend_metrics::{Samples, samples};
use crate::support::{MASTER_KEY, TestApp, settings};

#[tokio::test]
async fn more_series_than_are_read_at_once_are_all_listed() {
    let app = TestApp::new().await;
    app.state.refresh_rollups().await.unwrap();
    app.execute(
        "INSERT INTO litespend.words (word, digest)
         SELECT 'model-' || n, litespend.digest('model-' || n) FROM generate_series(1, 30000) AS n;
         INSERT INTO litespend.lifetime_usage (team_id, user_id, api_key, model, requests, spend, prompt_tokens,
                                               completion_tokens, total_tokens)
         SELECT 0, 0, 0, id, 1, 0.5, 2, 3, 5 FROM litespend.words WHERE word LIKE 'model-%' ORDER BY id",
    )
    .await;
    // What is not folded counts, whether its series is listed already or not.
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, model, spend, "startTime", "endTime")
           VALUES ('a', 'acompletion', '', 'model-29000', 2.0, '2026-02-01', '2026-02-01'),
                  ('b', 'acompletion', '', 'model-2', 4.0, '2026-02-01', '2026-02-01'),
                  ('c', 'acompletion', '', 'another', 8.0, '2026-02-01', '2026-02-01')"#,
    )
    .await;
    let settings = Settings { spend_metrics: SpendMetricsSettings::new(&[Label::Model], 40_000), ..settings() };
    let server = app.beside(settings);
    server.state.refresh_rollups().await.unwrap();
    let check = async |step: &str| {
        let found = samples(&server, "litellm_spend_metric_total").await;
        assert_eq!(found.len(), 30_001, "{step}");
        let of = |model: &str| found[&format!("model=\"{model}\"")];
        let some = [of("model-1"), of("model-2"), of("model-29000"), of("model-30000"), of("another")];
        assert_eq!(some, [0.5, 4.5, 2.5, 0.5, 8.0], "{step}");
    };
    check("not folded").await;
    folding::settle(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    check("folded").await;
}

/// A server that remembers series between scrapes says what one says that has just started.
#[tokio::test]
async fn series_that_are_remembered_are_those_of_the_database() {
    let app = TestApp::new().await;
    app.execute(
        "INSERT INTO litespend.words (word, digest)
         SELECT 'model-' || n, litespend.digest('model-' || n) FROM generate_series(1, 300) AS n;
         INSERT INTO litespend.lifetime_usage (team_id, user_id, api_key, model, requests, spend, prompt_tokens,
                                               completion_tokens, total_tokens)
         SELECT 0, 0, 0, id, 1, 0.5, 2, 3, 5 FROM litespend.words WHERE word LIKE 'model-%' ORDER BY id",
    )
    .await;
    app.state.refresh_rollups().await.unwrap();
    let check = async |step: &str, listed: usize, spend: f64| {
        let started = app.beside(settings());
        started.state.refresh_rollups().await.unwrap();
        let (remembered, read) =
            (app.get("/metrics/spend", MASTER_KEY).await, started.get("/metrics/spend", MASTER_KEY).await);
        assert_eq!(remembered.text, read.text, "{step}");
        let found = samples(&app, "litellm_spend_metric_total").await;
        assert_eq!((found.len(), found.values().sum::<f64>()), (listed, spend), "{step}");
    };
    check("read for the first time", 300, 150.0).await;
    check("nothing changed", 300, 150.0).await;
    // A transaction that began before others and ends after a scrape.
    let mut long = app.pool.begin().await.unwrap();
    let earlier = "UPDATE litespend.lifetime_usage SET spend = 1 WHERE number = (SELECT min(number) FROM litespend.lifetime_usage)";
    sqlx::raw_sql(earlier).execute(&mut *long).await.unwrap();
    app.execute("UPDATE litespend.lifetime_usage SET spend = 2 WHERE number = (SELECT max(number) FROM litespend.lifetime_usage)")
        .await;
    check("one is changed", 300, 151.5).await;
    long.commit().await.unwrap();
    check("an earlier transaction ended", 300, 152.0).await;
    // A series with a number before that of another one, which was seen first.
    let add =
        "WITH known AS (INSERT INTO litespend.words (word, digest) VALUES ($1, litespend.digest($1)) RETURNING id)
               INSERT INTO litespend.lifetime_usage (team_id, user_id, api_key, model, requests, spend, prompt_tokens,
                                                     completion_tokens, total_tokens)
               SELECT 0, 0, 0, id, 1, 4, 2, 3, 5 FROM known";
    let mut long = app.pool.begin().await.unwrap();
    sqlx::query(add).bind("slow").execute(&mut *long).await.unwrap();
    sqlx::query(add).bind("fast").execute(&app.pool).await.unwrap();
    check("the later series came first", 301, 156.0).await;
    long.commit().await.unwrap();
    check("the earlier series came later", 302, 160.0).await;
    app.execute("VACUUM (FREEZE) litespend.lifetime_usage").await;
    check("old rows are frozen", 302, 160.0).await;
    app.execute("DELETE FROM litespend.lifetime_usage WHERE spend = 4").await;
    check("series are gone", 300, 152.0).await;
    app.execute("UPDATE litespend.lifetime_usage SET spend = 8 WHERE spend = 2").await;
    app.execute("VACUUM FULL litespend.lifetime_usage").await;
    check("the table has another file", 300, 158.0).await;
    app.execute("DELETE FROM litespend.lifetime_usage WHERE spend = 8").await;
    sqlx::query(add).bind("instead").execute(&app.pool).await.unwrap();
    check("one is gone and one came", 300, 154.0).await;
    app.execute("TRUNCATE litespend.lifetime_usage").await;
    check("nothing is left", 0, 0.0).await;
}

/// What the log has of each model, as the counters say it: requests, tokens and spend.
async fn logged(app: &TestApp) -> [(&'static str, Samples); 3] {
    type Row = (String, i64, i64, f64);
    let rows: Vec<Row> = sqlx::query_as(
        r#"SELECT model, count(*), sum(total_tokens)::bigint, sum(spend)::float8 FROM "LiteLLM_SpendLogs" GROUP BY model"#,
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    let of_each = |value: fn(&Row) -> f64| -> Samples {
        rows.iter().map(|row| (format!(r#"model="{}""#, row.0), value(row))).collect()
    };
    [
        ("litellm_requests_metric_total", of_each(|row| row.1 as f64)),
        ("litellm_total_tokens_metric_total", of_each(|row| row.2 as f64)),
        ("litellm_spend_metric_total", of_each(|row| row.3)),
    ]
}

/// A server that remembers three series says what the log has, which no row has left, and what a server says that remembers all.
#[tokio::test]
async fn more_series_than_are_remembered_are_counted_as_well() {
    let by_model = || Settings { spend_metrics: SpendMetricsSettings::new(&[Label::Model], 10_000), ..settings() };
    let app = TestApp::with(by_model()).await;
    *app.state.spend_series.lock().await = RememberedSeries::at_most(3);
    let all = app.beside(by_model());
    all.state.refresh_rollups().await.unwrap();
    let mut booked = 0_u32;
    let mut book = async |model: &str| {
        booked += 1;
        let call = json!({"model": model, "cost": f64::from(booked) / 64.0, "prompt_tokens": booked,
                          "idempotency_key": booked.to_string()});
        let answer = app.post("/spend/usage", MASTER_KEY, &call).await;
        assert!(answer.status == 200 && answer.json()["recorded"] == 1, "{}", answer.text);
    };
    let settle = async || folding::settle(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    let check = async |step: &str, remembered: usize, of_all: usize| {
        // The second scrape begins with what the first one has left.
        for scrape in ["first", "second"] {
            for (counter, expected) in logged(&app).await {
                assert_eq!(samples(&app, counter).await, expected, "{step}, {scrape} scrape: {counter}");
            }
            let (few, all) = (app.get("/metrics/spend", MASTER_KEY).await, all.get("/metrics/spend", MASTER_KEY).await);
            assert_eq!(few.text, all.text, "{step}, {scrape} scrape");
        }
        let known = [&app, &all].map(|server| server.state.spend_series.try_lock().unwrap().series().len());
        assert_eq!(known, [remembered, of_all], "{step}");
    };
    for model in ["m1", "m2", "m3"] {
        book(model).await;
    }
    settle().await;
    check("as many as are remembered", 3, 3).await;
    book("m1").await;
    check("what is not folded", 3, 3).await;
    book("m4").await;
    check("a series that is not folded", 3, 3).await;
    settle().await;
    check("one more than are remembered", 0, 4).await;
    for model in ["m2", "m4", "m5"] {
        book(model).await;
    }
    check("further calls", 0, 4).await;
    settle().await;
    check("further calls that are folded", 0, 5).await;
    book("m5").await;
    book("m1").await;
    settle().await;
    check("of series that are there", 0, 5).await;
}
