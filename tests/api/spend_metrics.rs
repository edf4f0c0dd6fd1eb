//! `GET /metrics/spend`: counters of everything that was ever logged, and budgets.

use std::collections::BTreeMap;

use litespend::books::pruning;
use litespend::identity::hash_key;
use litespend::rollups::folding;
use litespend::settings::Settings;
use litespend::settings::spend_metrics::{Label, SpendMetricsSettings};
use litespend::store::log::months;
use litespend::store::rollups;
use litespend::store::rollups::partitions;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::books::Books;
use crate::support::{MASTER_KEY, TestApp, insert, randomness, settings};

/// The samples of a metric by their labels.
pub(crate) type Samples = BTreeMap<String, f64>;

pub(crate) async fn samples(app: &TestApp, metric: &str) -> Samples {
    let answer = app.get("/metrics/spend", MASTER_KEY).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let lines = answer.text.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
    lines
        .map(|line| {
            let (labels, value) = line.rsplit_once("} ").unwrap();
            (labels.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn labels(team: &str, user: &str, key: &str, model: &str) -> String {
    let none = |text: &str| if text.is_empty() { "None".to_owned() } else { text.to_owned() };
    format!(
        r#"hashed_api_key="{}",api_key_alias="None",model="{}",team="{}",team_alias="None",user="{}""#,
        none(key),
        none(model),
        none(team),
        none(user)
    )
}

/// The labels by default.
const DEFAULT: [Label; 6] =
    [Label::HashedApiKey, Label::ApiKeyAlias, Label::Model, Label::Team, Label::TeamAlias, Label::User];

/// Labels that the sums by team, user, key and model do not have.
const FURTHER: [Label; 5] = [Label::EndUser, Label::ApiProvider, Label::OrgId, Label::RequestedModel, Label::ModelId];

struct World {
    random: StdRng,
    app: TestApp,
    other: TestApp,
    /// A server with all labels.
    divided: TestApp,
    /// Rows of the log: their series with the labels by default and with all labels, and what they count.
    log: BTreeMap<String, ([String; 2], f64, i64)>,
    /// What was ever logged of each series: spend, tokens and requests.
    ever: [BTreeMap<String, (f64, i64, i64)>; 2],
    /// What deleted rows had spent.
    deleted: f64,
    next_id: u32,
}

impl World {
    async fn change(&mut self) -> &'static str {
        match self.random.random_range(0..100) {
            0..45 => {
                let mut rows = Vec::new();
                for _ in 0..self.random.random_range(1..8) {
                    self.next_id += 1;
                    let id = format!("r-{}", self.next_id);
                    let mut pick = |from: &[&'static str]| from[self.random.random_range(0..from.len())];
                    let (team, user) = (pick(&["t1", "t2", ""]), pick(&["u1", ""]));
                    let (key, model) = (pick(&["k1", "k2"]), pick(&["gpt-4o", "模型 \\\"\n", ""]));
                    let day = pick(&["2026-01-31", "2026-02-01", "2026-03-01"]);
                    let (customer, provider) = (pick(&["c1", "c2", ""]), pick(&["openai", "azure"]));
                    let (organization, group) = (pick(&["o1", ""]), pick(&["gpt", "模型"]));
                    let deployment = pick(&["d1", "d2"]);
                    let spend = f64::from(self.random.random_range(0..64_u32)) / 64.0;
                    let tokens = self.random.random_range(1..100_i64);
                    let time = format!("{day}T12:00:00");
                    rows.push(json!({"request_id": id, "call_type": "acompletion", "startTime": time, "endTime": time,
                        "api_key": key, "model": model, "user": user, "team_id": team, "spend": spend,
                        "prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens, "end_user": customer,
                        "custom_llm_provider": provider, "organization_id": organization, "model_group": group,
                        "model_id": deployment}));
                    let escaped = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                    let series = labels(team, user, key, &escaped);
                    let known = |text: &'static str| if text.is_empty() { "None" } else { text };
                    let divided = format!(
                        r#"{series},end_user="{}",api_provider="{provider}",org_id="{}",requested_model="{group}",model_id="{deployment}""#,
                        known(customer),
                        known(organization)
                    );
                    let series = [series, divided];
                    for (series, ever) in series.iter().zip(&mut self.ever) {
                        let ever = ever.entry(series.clone()).or_default();
                        *ever = (ever.0 + spend, ever.1 + tokens, ever.2 + 1);
                    }
                    self.log.insert(id, (series, spend, tokens));
                }
                insert(&mut self.app.pool.acquire().await.unwrap(), "LiteLLM_SpendLogs", &rows.into()).await;
                "insert"
            }
            45..60 => {
                let digit = self.random.random_range(0..4);
                sqlx::query(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE prompt_tokens % 4 = $1"#)
                    .bind(digit)
                    .execute(&self.app.pool)
                    .await
                    .unwrap();
                self.forget(|tokens| tokens % 4 == i64::from(digit));
                "delete"
            }
            60..75 => {
                sqlx::query(r#"UPDATE "LiteLLM_SpendLogs" SET spend = spend + 0.5 WHERE prompt_tokens % 3 = 0"#)
                    .execute(&self.app.pool)
                    .await
                    .unwrap();
                for (series, spend, tokens) in self.log.values_mut().filter(|(_, _, tokens)| tokens % 3 == 0) {
                    assert!(*tokens > 0);
                    *spend += 0.5;
                    for (series, ever) in series.iter().zip(&mut self.ever) {
                        ever.get_mut(series).unwrap().0 += 0.5;
                    }
                }
                "update"
            }
            75..80 => {
                self.app.execute(r#"TRUNCATE "LiteLLM_SpendLogs""#).await;
                self.forget(|_| true);
                "truncate"
            }
            80..88 => {
                rollups::mark_dirty(&mut self.app.pool.acquire().await.unwrap(), None).await.unwrap();
                "mark all days dirty"
            }
            88..94 => {
                let range = Some(litespend::store::DateRange {
                    start: "2026-02-01".parse().unwrap(),
                    end: "2026-02-01".parse().unwrap(),
                });
                rollups::mark_dirty(&mut self.app.pool.acquire().await.unwrap(), range).await.unwrap();
                "mark a day dirty"
            }
            _ => {
                let mut connection = self.app.pool.acquire().await.unwrap();
                months::add(&mut connection, "2026-01-01".parse().unwrap(), true).await.unwrap();
                "add a partition"
            }
        }
    }

    fn forget(&mut self, which: impl Fn(i64) -> bool) {
        let deleted = &mut self.deleted;
        self.log.retain(|_, (_, spend, tokens)| {
            let goes = which(*tokens);
            if goes {
                *deleted += *spend;
            }
            !goes
        });
    }

    async fn compare(&self, step: &str) {
        for (server, ever) in [&self.app, &self.divided].into_iter().zip(&self.ever) {
            server.state.refresh_rollups().await.unwrap();
            let expected = |value: fn(&(f64, i64, i64)) -> f64| -> Samples {
                ever.iter().map(|(labels, ever)| (labels.clone(), value(ever))).collect()
            };
            let tokens = expected(|ever| ever.1 as f64);
            for (counter, expected) in [
                ("litellm_spend_metric_total", expected(|ever| ever.0)),
                ("litellm_total_tokens_metric_total", tokens.clone()),
                ("litellm_input_tokens_metric_total", tokens),
                ("litellm_requests_metric_total", expected(|ever| ever.2 as f64)),
            ] {
                assert_eq!(samples(server, counter).await, expected, "{step}: {counter}");
            }
        }
        let report = self.app.get("/global/spend/report?start_date=2026-01-01&end_date=2026-04-01", MASTER_KEY).await;
        let report = report.json();
        let teams = report.as_array().unwrap().iter().flat_map(|day| day["teams"].as_array().unwrap());
        let reported: f64 = teams.map(|team| team["total_spend"].as_f64().unwrap()).sum();
        let counted: f64 = samples(&self.app, "litellm_spend_metric_total").await.values().sum();
        assert_eq!(counted, reported + self.deleted, "{step}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_have_everything_that_was_ever_logged() {
    let app = TestApp::new().await;
    let other = app.beside(settings());
    let all = [DEFAULT.as_slice(), &FURTHER].concat();
    let divided = app.beside(Settings { spend_metrics: SpendMetricsSettings::new(&all, 10_000), ..settings() });
    let random = StdRng::seed_from_u64(randomness::seed());
    let (log, ever) = (BTreeMap::new(), [BTreeMap::new(), BTreeMap::new()]);
    let mut world = World { random, app, other, divided, log, ever, deleted: 0.0, next_id: 0 };
    for _ in 0..80 {
        let step = world.change().await;
        println!("{step}");
        if world.random.random_range(0..3) == 0 {
            folding::settle(&mut world.app.pool.acquire().await.unwrap()).await.unwrap();
        }
        if world.random.random_range(0..2) == 0 {
            world.compare(step).await;
        }
    }
    world.compare("at the end").await;
    folding::settle(&mut world.app.pool.acquire().await.unwrap()).await.unwrap();
    world.compare("folded").await;
    // Every server says the same.
    world.other.state.refresh_rollups().await.unwrap();
    let (one, two) =
        (world.app.get("/metrics/spend", MASTER_KEY).await, world.other.get("/metrics/spend", MASTER_KEY).await);
    assert_eq!(one.text, two.text);
}

#[tokio::test]
async fn a_counter_never_falls_when_spend_is_corrected() {
    let app = TestApp::new().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, model, spend, "startTime", "endTime")
           VALUES ('r', 'acompletion', 'k', 'm', 2.0, '2026-02-01', '2026-02-01')"#,
    )
    .await;
    app.state.refresh_rollups().await.unwrap();
    let spend = async || samples(&app, "litellm_spend_metric_total").await.into_values().sum::<f64>();
    let settle = async || folding::settle(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(spend().await, 2.0);
    settle().await;
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 0.5"#).await;
    assert_eq!(spend().await, 2.0);
    settle().await;
    assert_eq!(spend().await, 2.0);
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 3.0"#).await;
    assert_eq!(spend().await, 3.0);
    settle().await;
    assert_eq!(spend().await, 3.0);
    // The same before anything is folded, of a new series and of one that is known.
    for model in ["m2", "m"] {
        let before = spend().await;
        sqlx::query(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, model, spend, "startTime", "endTime")
               VALUES ('r-' || $1, 'acompletion', 'k', $1, 4.0, '2026-02-01', '2026-02-01')"#,
        )
        .bind(model)
        .execute(&app.pool)
        .await
        .unwrap();
        assert_eq!(spend().await, before + 4.0);
        app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 1.0 WHERE spend = 4.0"#).await;
        assert_eq!(spend().await, before + 4.0);
        settle().await;
        assert_eq!(spend().await, before + 4.0);
    }
    // What is no finite number is no part of a counter.
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 'NaN'"#).await;
    assert_eq!(spend().await, 11.0);
    settle().await;
    assert_eq!(spend().await, 11.0);
}

/// A server with these labels of counters, beside another one.
fn with_labels(app: &TestApp, labels: &[Label]) -> TestApp {
    app.beside(Settings { spend_metrics: SpendMetricsSettings::new(labels, 10_000), ..settings() })
}

/// Inserts a row of the log on the first of February for each ID, team, customer and provider.
async fn log_rows(app: &TestApp, rows: &[(&str, &str, &str, &str)]) {
    for (id, team, customer, provider) in rows {
        sqlx::query(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, model, team_id, end_user, custom_llm_provider,
                                                spend, total_tokens, "startTime", "endTime")
               VALUES ($1, 'acompletion', 'k', 'm', $2, $3, $4, 1, 2, '2026-02-01', '2026-02-01')"#,
        )
        .bind(id)
        .bind(team)
        .bind(customer)
        .bind(provider)
        .execute(&app.pool)
        .await
        .unwrap();
    }
}

/// What the counter of spend has by team, customer and provider.
async fn divided_spend(server: &TestApp) -> Vec<(String, f64)> {
    server.state.refresh_rollups().await.unwrap();
    samples(server, "litellm_spend_metric_total").await.into_iter().collect()
}

fn divided(team: &str, customer: &str, provider: &str, spend: f64) -> (String, f64) {
    (format!(r#"team="{team}",end_user="{customer}",api_provider="{provider}""#), spend)
}

const BY_CUSTOMER: [Label; 3] = [Label::Team, Label::EndUser, Label::ApiProvider];

#[tokio::test]
async fn what_was_logged_before_there_were_rollups_is_divided_as_well() {
    let app = TestApp::new().await;
    let server = with_labels(&app, &BY_CUSTOMER);
    let mut connection = app.pool.acquire().await.unwrap();
    rollups::remove(&mut connection).await.unwrap();
    log_rows(&app, &[("1", "t1", "c1", "openai"), ("2", "t1", "c2", "azure"), ("3", "t1", "c1", "openai")]).await;
    litespend::store::database::migrate_schema(&mut connection).await.unwrap();
    rollups::attach(&mut connection).await.unwrap();
    // Rows that come before the day is counted are counted once.
    log_rows(&app, &[("4", "t1", "c1", "openai"), ("5", "t2", "c1", "openai")]).await;
    folding::settle(&mut connection).await.unwrap();
    let expected =
        [divided("t1", "c1", "openai", 3.0), divided("t1", "c2", "azure", 1.0), divided("t2", "c1", "openai", 1.0)];
    assert_eq!(divided_spend(&server).await, expected);
}

/// Rows that no trigger saw are divided where nothing else was counted of their team, user, key and model on their day.
#[tokio::test]
async fn rows_that_no_trigger_saw_are_found_when_their_day_is_counted_again() {
    let app = TestApp::new().await;
    let server = with_labels(&app, &BY_CUSTOMER);
    let mut connection = app.pool.acquire().await.unwrap();
    log_rows(&app, &[("1", "t1", "c1", "openai")]).await;
    folding::settle(&mut connection).await.unwrap();
    app.execute(r#"ALTER TABLE "LiteLLM_SpendLogs" DISABLE TRIGGER USER"#).await;
    log_rows(&app, &[("2", "t1", "c2", "azure"), ("3", "t2", "c2", "azure")]).await;
    app.execute(r#"ALTER TABLE "LiteLLM_SpendLogs" ENABLE TRIGGER USER"#).await;
    log_rows(&app, &[("4", "t2", "c2", "openai")]).await;
    rollups::mark_dirty(&mut connection, None).await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    let expected = [
        divided("t1", "None", "None", 1.0),
        divided("t1", "c1", "openai", 1.0),
        divided("t2", "c2", "azure", 1.0),
        divided("t2", "c2", "openai", 1.0),
    ];
    assert_eq!(divided_spend(&server).await, expected);
    rollups::mark_dirty(&mut connection, None).await.unwrap();
    folding::settle(&mut connection).await.unwrap();
    assert_eq!(divided_spend(&server).await, expected);
}

/// An older LiteLLM's log has no organisations and no deployments.
#[tokio::test]
async fn columns_that_the_log_lacks_are_none() {
    let app = TestApp::new().await;
    let server = with_labels(&app, &FURTHER);
    app.execute(r#"ALTER TABLE "LiteLLM_SpendLogs" DROP COLUMN organization_id, DROP COLUMN model_id"#).await;
    log_rows(&app, &[("1", "t1", "c1", "openai")]).await;
    let labels = r#"end_user="c1",api_provider="openai",org_id="None",requested_model="None",model_id="None""#;
    assert_eq!(divided_spend(&server).await, [(labels.to_owned(), 1.0)]);
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 2"#).await;
    rollups::mark_dirty(&mut app.pool.acquire().await.unwrap(), None).await.unwrap();
    folding::settle(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(divided_spend(&server).await, [(labels.to_owned(), 2.0)]);
    // An upgrade of LiteLLM adds them.
    app.execute(r#"ALTER TABLE "LiteLLM_SpendLogs" ADD COLUMN organization_id text, ADD COLUMN model_id text"#).await;
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, model, organization_id, spend, "startTime", "endTime")
           VALUES ('2', 'acompletion', 'k', 'm', 'o', 1, '2026-02-01', '2026-02-01')"#,
    )
    .await;
    let upgraded = r#"end_user="None",api_provider="None",org_id="o",requested_model="None",model_id="None""#;
    assert_eq!(divided_spend(&server).await, [(upgraded.to_owned(), 1.0), (labels.to_owned(), 2.0)]);
}

/// Leaves a database as it was before the migration that divides the sums.
pub(crate) const UNDO_DIVIDING: &str = "
    DROP TABLE litespend.lifetime_detail, litespend.expected_detail;
    ALTER TABLE litespend.expected_usage DROP COLUMN is_divided;
    ALTER TABLE litespend.deltas DROP COLUMN custom_llm_provider, DROP COLUMN organization_id, DROP COLUMN model_group,
                                 DROP COLUMN model_id;
    ALTER TYPE litespend.late_row DROP ATTRIBUTE custom_llm_provider, DROP ATTRIBUTE organization_id;
    DROP FUNCTION litespend.add_further_words, litespend.divided_sums, litespend.numbers_of_words, litespend.add_uncounted";

/// What was logged before the sums were divided has none of the further labels, and the counters go on.
#[tokio::test]
async fn an_upgrade_keeps_what_was_ever_logged() {
    let app = TestApp::new().await;
    let server = with_labels(&app, &BY_CUSTOMER);
    log_rows(&app, &[("1", "t1", "c1", "openai"), ("2", "t2", "c1", "openai")]).await;
    folding::settle(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 0.5 WHERE team_id = 't1'"#).await;
    log_rows(&app, &[("3", "t1", "c1", "openai")]).await;
    // As it was before: what is folded and what is not.
    app.execute(UNDO_DIVIDING).await;
    assert_eq!(divided_spend(&server).await, [], "others would fall when the sums appear");
    app.execute(include_str!("../../migrations/litespend/0020_lifetime_detail.sql")).await;
    // What is not folded has its customer.
    let [first, second] = [divided("t1", "None", "None", 1.0), divided("t1", "c1", "None", 1.0)];
    let third = divided("t2", "None", "None", 1.0);
    assert_eq!(divided_spend(&server).await, [first.clone(), second.clone(), third.clone()]);
    log_rows(&app, &[("4", "t1", "c1", "openai")]).await;
    let after = [first, second, divided("t1", "c1", "openai", 1.0), third];
    assert_eq!(divided_spend(&server).await, after);
    folding::settle(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(divided_spend(&server).await, after);
}

/// What waited for its day to be counted again, when the sums were not divided yet, counts once.
#[tokio::test]
async fn an_upgrade_while_a_day_is_to_be_counted_counts_nothing_twice() {
    let app = TestApp::new().await;
    let server = with_labels(&app, &BY_CUSTOMER);
    log_rows(&app, &[("1", "t1", "c1", "openai"), ("2", "t2", "c1", "openai")]).await;
    rollups::mark_dirty(&mut app.pool.acquire().await.unwrap(), None).await.unwrap();
    app.execute(UNDO_DIVIDING).await;
    app.execute(include_str!("../../migrations/litespend/0020_lifetime_detail.sql")).await;
    folding::settle(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    let expected = [divided("t1", "c1", "None", 1.0), divided("t2", "c1", "None", 1.0)];
    assert_eq!(divided_spend(&server).await, expected);
}

/// A row that no trigger saw, and that is gone before its day is counted again, was logged all the same: its deletion shows it. What
/// is noted of a deletion has not all labels.
#[tokio::test]
async fn a_row_that_no_trigger_saw_counts_when_its_deletion_is_seen() {
    let app = TestApp::new().await;
    let server = with_labels(&app, &BY_CUSTOMER);
    let plain = with_labels(&app, &[Label::Team]);
    app.execute(r#"ALTER TABLE "LiteLLM_SpendLogs" DISABLE TRIGGER USER"#).await;
    log_rows(&app, &[("1", "t1", "c1", "openai")]).await;
    app.execute(r#"ALTER TABLE "LiteLLM_SpendLogs" ENABLE TRIGGER USER"#).await;
    rollups::mark_dirty(&mut app.pool.acquire().await.unwrap(), None).await.unwrap();
    log_rows(&app, &[("2", "t1", "c2", "openai")]).await;
    app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = '1'"#).await;
    folding::settle(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    let expected = [divided("t1", "None", "None", 1.0), divided("t1", "c2", "openai", 1.0)];
    assert_eq!(divided_spend(&server).await, expected);
    assert_eq!(divided_spend(&plain).await, [(r#"team="t1""#.to_owned(), 2.0)]);
}

#[tokio::test]
async fn labels_and_the_number_of_series_are_chosen() {
    let app = TestApp::seeded().await;
    let chosen = |labels: &[Label], series| Settings {
        spend_metrics: SpendMetricsSettings::new(labels, series),
        metrics_public: true,
        ..settings()
    };
    folding::settle(&mut app.pool.acquire().await.unwrap()).await.unwrap();
    let server = app.beside(chosen(&[Label::Team, Label::UserEmail, Label::EndUser, Label::Team], 3));
    server.state.refresh_rollups().await.unwrap();
    let few = samples(&server, "litellm_spend_metric_total").await;
    assert_eq!(few.len(), 4, "{few:?}");
    // Each label is there once, and the email address brings the user along.
    assert!(few.contains_key(r#"team="other",user="other",user_email="other",end_user="other""#), "{few:?}");
    let all = app.beside(chosen(&[Label::Team, Label::UserEmail], 1_000));
    all.state.refresh_rollups().await.unwrap();
    let all = samples(&all, "litellm_spend_metric_total").await;
    assert!(all.len() > 4 && all.keys().any(|labels| labels.contains('@')), "{all:?}");
    assert!((all.values().sum::<f64>() - few.values().sum::<f64>()).abs() < 1e-9);
    let answer = server.get("/metrics/spend", "").await;
    assert!(
        answer.status == 200 && answer.text.contains("litellm_remaining_customer_budget_metric"),
        "{}",
        answer.text
    );
    assert_eq!(app.get("/metrics/spend", "").await.status, 401);
}

/// What a key, a team and a user that are there, were renamed or were deleted have spent stays in the series of their ID.
#[tokio::test]
async fn names_of_what_was_renamed_and_deleted_move_no_spend_to_another_series() {
    let chosen = [Label::ApiKeyAlias, Label::TeamAlias, Label::Model];
    let told = Settings { spend_metrics: SpendMetricsSettings::new(&chosen, 1_000), ..settings() };
    let app = TestApp::with(told).await;
    let (mut keys, mut teams) = (Vec::new(), Vec::new());
    for alias in ["first", "second"] {
        let team = app.post("/team/new", MASTER_KEY, &json!({"team_alias": format!("team {alias}")})).await.json();
        let key = app.post("/key/generate", MASTER_KEY, &json!({"key_alias": alias})).await.json();
        teams.push(team["team_id"].as_str().unwrap().to_owned());
        keys.push(hash_key(key["key"].as_str().unwrap()));
    }
    for ((key, team), spend) in keys.iter().zip(&teams).zip([1.0, 2.0]) {
        let row = json!([{"request_id": key, "call_type": "acompletion", "startTime": "2026-02-01T00:00:00",
            "endTime": "2026-02-01T00:00:00", "api_key": key, "team_id": team, "model": "m", "spend": spend}]);
        insert(&mut app.pool.acquire().await.unwrap(), "LiteLLM_SpendLogs", &row).await;
    }
    app.state.refresh_rollups().await.unwrap();
    let check = async |aliases: [&str; 2], team_aliases: [&str; 2], step: &str| {
        let expected: Samples = (0..2)
            .map(|at| {
                let (key, alias, team, team_alias) = (&keys[at], aliases[at], &teams[at], team_aliases[at]);
                let key = format!(r#"hashed_api_key="{key}",api_key_alias="{alias}""#);
                (format!(r#"{key},team="{team}",team_alias="{team_alias}",model="m""#), [1.0, 2.0][at])
            })
            .collect();
        assert_eq!(samples(&app, "litellm_spend_metric_total").await, expected, "{step}");
    };
    let team_aliases = ["team first", "team second"];
    check(["first", "second"], team_aliases, "as they were").await;
    let delete = async |key: &str| {
        assert_eq!(app.post("/key/delete", MASTER_KEY, &json!({"keys": [key]})).await.status, 200);
    };
    delete(&keys[0]).await;
    check(["first", "second"], team_aliases, "deleted").await;
    // Several deletions of one key, of which the last counts.
    app.execute(
        r#"INSERT INTO "LiteLLM_DeletedVerificationToken" (id, token, key_alias, deleted_at)
           SELECT 'earlier', token, 'before', deleted_at - interval '1 day' FROM "LiteLLM_DeletedVerificationToken""#,
    )
    .await;
    check(["first", "second"], team_aliases, "deleted twice").await;
    // A key that is there counts, with a name and without.
    app.execute(
        r#"INSERT INTO "LiteLLM_VerificationToken" (token, key_alias)
           SELECT token, 'second' FROM "LiteLLM_DeletedVerificationToken" WHERE id <> 'earlier'"#,
    )
    .await;
    check(["second", "second"], team_aliases, "the same name").await;
    app.execute(r#"UPDATE "LiteLLM_VerificationToken" SET key_alias = NULL"#).await;
    check(["None", "None"], team_aliases, "without a name").await;
    // LiteLLM keeps deleted teams since 1.80. A database of litespend's own has no such table.
    app.execute(
        r#"CREATE TABLE "LiteLLM_DeletedTeamTable" (id text, team_id text, team_alias text, deleted_at timestamp(3));
           WITH gone AS (DELETE FROM "LiteLLM_TeamTable" WHERE team_alias = 'team first' RETURNING *)
           INSERT INTO "LiteLLM_DeletedTeamTable" SELECT 'x', team_id, team_alias, now() FROM gone;
           UPDATE "LiteLLM_TeamTable" SET team_alias = 'team new'"#,
    )
    .await;
    check(["None", "None"], ["team first", "team new"], "a deleted team").await;
    app.execute(r#"DROP TABLE "LiteLLM_DeletedTeamTable", "LiteLLM_DeletedVerificationToken""#).await;
    check(["None", "None"], ["None", "team new"], "without tables of what was deleted").await;
}

#[tokio::test]
async fn budgets_of_all_kinds_are_listed() {
    let app = TestApp::new().await;
    // The tables of litespend's own database have no budgets of organisations.
    app.execute(
        r#"INSERT INTO "LiteLLM_TeamTable" (team_id, team_alias, max_budget, spend, budget_reset_at)
           VALUES ('t', 'Team', 10, 4, now() AT TIME ZONE 'UTC' + interval '90 minutes'), ('free', NULL, NULL, 4, NULL);
           INSERT INTO "LiteLLM_UserTable" (user_id, max_budget, spend) VALUES ('u', 1, 3);
           INSERT INTO "LiteLLM_VerificationToken" (token, key_alias, max_budget, spend, team_id)
           VALUES ('hash', 'key', 5, 1.5, 't'), ('session', NULL, 1, 0, 'litellm-dashboard');
           CREATE TABLE "LiteLLM_BudgetTable" (budget_id text PRIMARY KEY, max_budget float8, budget_reset_at timestamp(3));
           INSERT INTO "LiteLLM_BudgetTable" VALUES ('b', 7);
           INSERT INTO "LiteLLM_OrganizationTable" (organization_id, organization_alias, budget_id, spend, metadata, models,
               created_by, updated_by)
           VALUES ('o', 'Org', 'b', 2, '{}', '{}', '', '')"#,
    )
    .await;
    let text = app.get("/metrics/spend", MASTER_KEY).await.text;
    for line in [
        r#"litellm_remaining_team_budget_metric{team="t",team_alias="Team"} 6"#,
        r#"litellm_remaining_team_budget_metric{team="free",team_alias=""} +Inf"#,
        r#"litellm_team_max_budget_metric{team="t",team_alias="Team"} 10"#,
        r#"litellm_remaining_user_budget_metric{user="u"} -2"#,
        r#"litellm_remaining_api_key_budget_metric{hashed_api_key="hash",api_key_alias="key"} 3.5"#,
        r#"litellm_remaining_org_budget_metric{org_id="o",org_alias="Org"} 5"#,
        r#"litellm_org_max_budget_metric{org_id="o",org_alias="Org"} 7"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("session"), "{text}");
    let hours = samples(&app, "litellm_team_budget_remaining_hours_metric").await;
    let (labels, hours) = hours.first_key_value().unwrap();
    assert!(labels.contains("Team") && (hours - 1.5).abs() < 0.1, "{labels} {hours}");
}

#[tokio::test]
async fn budgets_beyond_the_limit_are_counted() {
    let told = Settings { spend_metrics: SpendMetricsSettings::new(&[Label::EndUser], 2), ..settings() };
    let app = TestApp::with(told).await;
    app.execute(
        r#"INSERT INTO "LiteLLM_TeamTable" (team_id, max_budget) SELECT 't' || n, 1 FROM generate_series(1, 5) AS n;
           INSERT INTO "LiteLLM_UserTable" (user_id) VALUES ('u1'), ('u2');
           INSERT INTO "LiteLLM_VerificationToken" (token, team_id)
           VALUES ('a', NULL), ('b', NULL), ('c', NULL), ('session', 'litellm-dashboard')"#,
    )
    .await;
    let expected: Samples = [("team", 3.0), ("org", 0.0), ("api_key", 1.0), ("user", 0.0), ("customer", 0.0)]
        .map(|(kind, count)| (format!(r#"kind="{kind}""#), count))
        .into();
    assert_eq!(samples(&app, "litespend_budgets_not_listed").await, expected);
    assert_eq!(samples(&app, "litellm_team_max_budget_metric").await.len(), 2);
}

/// The counters of two servers on the database: one that has run for long, and one that was just started.
async fn counters_of_servers(books: &Books) -> [BTreeMap<&'static str, Samples>; 2] {
    let started = books.app.another().await;
    let mut all = [BTreeMap::new(), BTreeMap::new()];
    for (server, counters) in [&books.app, &started].into_iter().zip(&mut all) {
        server.state.refresh_rollups().await.unwrap();
        for counter in [
            "litellm_spend_metric_total",
            "litellm_requests_metric_total",
            "litellm_total_tokens_metric_total",
            "litellm_input_tokens_metric_total",
            "litellm_output_tokens_metric_total",
        ] {
            counters.insert(counter, samples(server, counter).await);
        }
    }
    all
}

#[tokio::test]
async fn counters_stay_when_days_are_closed_and_pruned_partitions_dropped_and_servers_started() {
    let books = Books::new().await;
    let mut connection = books.connection().await;
    for month in ["2026-01-01", "2026-02-01", "2026-03-01"] {
        months::add(&mut connection, month.parse().unwrap(), true).await.unwrap();
    }
    let mut booked = 0;
    let mut book = async || {
        booked += 1;
        let call = json!({"model": "gpt-4o", "prompt_tokens": 12, "completion_tokens": 3, "idempotency_key": booked.to_string()});
        let answer = books.app.post("/spend/usage", MASTER_KEY, &call).await;
        assert!(answer.status == 200 && answer.json()["recorded"] == 1, "{}", answer.text);
    };
    book().await;
    books.settle().await;
    let [expected, started] = counters_of_servers(&books).await;
    assert_eq!(expected, started);
    let sum = |counter: &str, all: &BTreeMap<&str, Samples>| all[counter].values().sum::<f64>();
    let requests = sum("litellm_requests_metric_total", &expected);
    let rows = async |range: &'static str| books.app.scalar(range).await.parse::<u32>().unwrap();
    const UNTIL_MARCH: &str = r#"SELECT count(*)::text FROM "LiteLLM_SpendLogs" WHERE "startTime" < '2026-03-01'"#;
    const IN_MARCH: &str = r#"SELECT count(*)::text FROM "LiteLLM_SpendLogs"
        WHERE "startTime" >= '2026-03-01' AND "startTime" < '2026-04-01'"#;
    assert!(rows(UNTIL_MARCH).await > 10 && rows(IN_MARCH).await > 0 && requests > 10.0);
    let check = async |step: &str| {
        for _ in 0..2 {
            for counters in counters_of_servers(&books).await {
                assert_eq!(counters, expected, "{step}");
            }
            books.settle().await;
        }
    };
    assert!(books.close("2026-02-28").await > 2);
    check("closed").await;
    let mut dropped = 0;
    pruning::prune(&mut connection, &books.archive, "2026-02-28".parse().unwrap(), |step| {
        dropped += usize::from(matches!(step, pruning::Step::Partition(_)));
        true
    })
    .await
    .unwrap();
    assert!(dropped > 0 && rows(UNTIL_MARCH).await == 0, "{dropped}");
    check("pruned").await;
    // A partition of days that are not closed.
    books.app.execute(r#"DROP TABLE "LiteLLM_SpendLogs_2026_03""#).await;
    assert_eq!(rows(IN_MARCH).await, 0);
    check("a partition was dropped").await;
    partitions::follow(&mut connection).await.unwrap();
    check("the rollups know that it was dropped").await;
    book().await;
    for counters in counters_of_servers(&books).await {
        assert_eq!(sum("litellm_requests_metric_total", &counters), requests + 1.0);
        for counter in ["litellm_spend_metric_total", "litellm_total_tokens_metric_total"] {
            assert!(sum(counter, &counters) > sum(counter, &expected), "{counter}");
        }
    }
}

/// A read of the log would wait for the lock.
#[tokio::test]
async fn a_scrape_reads_no_row_of_the_log() {
    let app = TestApp::seeded().await;
    app.state.refresh_rollups().await.unwrap();
    let mut transaction = app.pool.begin().await.unwrap();
    sqlx::raw_sql(r#"LOCK TABLE "LiteLLM_SpendLogs" IN ACCESS EXCLUSIVE MODE"#)
        .execute(&mut *transaction)
        .await
        .unwrap();
    let scrape = app.get("/metrics/spend", MASTER_KEY);
    let answer = tokio::time::timeout(std::time::Duration::from_secs(10), scrape).await.expect("nothing waits");
    assert!(answer.text.contains("litellm_spend_metric_total{"), "{}", answer.text);
}

/// Folds this number of changes.
async fn fold(app: &TestApp, changes: i32) {
    let folded: i64 = sqlx::query_scalar("SELECT litespend.fold($1)").bind(changes).fetch_one(&app.pool).await.unwrap();
    assert_eq!(folded, i64::from(changes));
}

#[tokio::test]
async fn amounts_are_the_same_in_whatever_order_they_are_folded() {
    // Without the key as a label, several series are summed.
    let mut settings = settings();
    settings.spend_metrics = SpendMetricsSettings::new(&[Label::Team], 10_000);
    let app = TestApp::with(settings).await;
    let insert = async |rows: &[(&str, &str, f64)]| {
        for (team, key, spend) in rows {
            sqlx::query(
                r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, team_id, api_key, model, spend, "startTime", "endTime")
                   VALUES (gen_random_uuid()::text, 'acompletion', $1, $2, 'm', $3, '2026-02-01', '2026-02-01')"#,
            )
            .bind(team)
            .bind(key)
            .bind(spend)
            .execute(&app.pool)
            .await
            .unwrap();
        }
    };
    insert(&[("t1", "k1", 0.1)]).await;
    fold(&app, 1).await;
    // As floating-point numbers, 0.1 + 0.2 + 0.3 is more than 0.1 + 0.5. The new series of the other team come in another order.
    insert(&[("t1", "k1", 0.2), ("t1", "k1", 0.3)]).await;
    insert(&[("t2", "k9", 0.7), ("t2", "k3", 1e9), ("t2", "k5", 0.1), ("t2", "k2", 1e-9), ("t2", "k1", 0.1)]).await;
    let expected = samples(&app, "litellm_spend_metric_total").await;
    assert_eq!(expected.values().copied().collect::<Vec<_>>(), [0.6, 1_000_000_000.9]);
    for _ in 0..7 {
        fold(&app, 1).await;
        assert_eq!(samples(&app, "litellm_spend_metric_total").await, expected);
    }
}

#[tokio::test]
async fn an_update_that_is_folded_in_parts_is_never_counted_twice() {
    let app = TestApp::new().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, model, spend, "startTime", "endTime")
           SELECT 'r-' || n, 'acompletion', 'k', 'm', 1, '2026-02-01', '2026-02-01' FROM generate_series(1, 10) AS n"#,
    )
    .await;
    fold(&app, 10).await;
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 1.5"#).await;
    // Space that is used again has another order than the one in which the changes came: what was added is first here.
    app.execute("UPDATE litespend.deltas SET day = day WHERE sign < 0").await;
    for _ in 0..5 {
        assert_eq!(samples(&app, "litellm_spend_metric_total").await.into_values().sum::<f64>(), 15.0);
        assert_eq!(samples(&app, "litellm_requests_metric_total").await.into_values().sum::<f64>(), 10.0);
        fold(&app, 4).await;
    }
    assert_eq!(samples(&app, "litellm_spend_metric_total").await.into_values().sum::<f64>(), 15.0);
    assert_eq!(samples(&app, "litellm_requests_metric_total").await.into_values().sum::<f64>(), 10.0);
}

#[tokio::test]
async fn updates_that_are_folded_in_parts_keep_the_sums_of_their_days() {
    let app = TestApp::new().await;
    app.execute(
        r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, model, spend, total_tokens, request_tags,
                                            "startTime", "endTime")
           VALUES ('a', 'acompletion', 'k', 'm', 3, 30, '["t"]', '2026-02-01', '2026-02-01'),
                  ('b', 'acompletion', 'k', 'm', 10, 0, '["t"]', '2026-02-01', '2026-02-01')"#,
    )
    .await;
    fold(&app, 2).await;
    let sums = "SELECT concat_ws(', ', (SELECT sum(requests) || ' ' || sum(spend) || ' ' || sum(total_tokens) FROM litespend.day_usage),
                    (SELECT sum(requests) || ' ' || sum(spend) FROM litespend.day_customer),
                    (SELECT sum(log_count) || ' ' || sum(spend) FROM litespend.day_tag),
                    (SELECT sum(log_count) || ' ' || sum(spend) FROM litespend.day_tag_owner))";
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 4 WHERE request_id = 'a'"#).await;
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 5 WHERE request_id = 'a'"#).await;
    fold(&app, 2).await;
    fold(&app, 2).await;
    assert_eq!(app.scalar(sums).await, "2 15 30, 2 15, 2 15, 2 15");
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 6 WHERE request_id = 'a'"#).await;
    app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = 'a'"#).await;
    for _ in 0..3 {
        fold(&app, 1).await;
    }
    assert_eq!(app.scalar(sums).await, "1 10 0, 1 10, 1 10, 1 10");
    // What was updated last leaves nothing behind, either.
    app.execute(r#"UPDATE "LiteLLM_SpendLogs" SET spend = 7 WHERE request_id = 'b'"#).await;
    app.execute(r#"DELETE FROM "LiteLLM_SpendLogs" WHERE request_id = 'b'"#).await;
    for _ in 0..3 {
        fold(&app, 1).await;
    }
    assert_eq!(app.scalar(sums).await, "");
}

#[tokio::test]
async fn a_session_that_folded_before_an_upgrade_folds_after_it() {
    let app = TestApp::new().await;
    // As it was before the sums became exact.
    app.execute(
        "ALTER TABLE litespend.lifetime_usage ALTER COLUMN spend TYPE double precision,
                                              ALTER COLUMN most_spend TYPE double precision;
         DROP FUNCTION litespend.is_counted(date, text, integer)",
    )
    .await;
    let mut session = app.pool.acquire().await.unwrap();
    let mut call = async |id: &str| {
        sqlx::query(
            r#"INSERT INTO "LiteLLM_SpendLogs" (request_id, call_type, api_key, model, spend, "startTime", "endTime")
               VALUES ($1, 'acompletion', 'k', 'm', 0.1, '2026-02-01', '2026-02-01')"#,
        )
        .bind(id)
        .execute(&app.pool)
        .await
        .unwrap();
        let folded: i64 = sqlx::query_scalar("SELECT litespend.fold(10)").fetch_one(&mut *session).await.unwrap();
        assert_eq!(folded, 1);
    };
    call("before").await;
    app.execute(include_str!("../../migrations/litespend/0019_exact_lifetime.sql")).await;
    call("after").await;
    assert_eq!(samples(&app, "litellm_spend_metric_total").await.into_values().sum::<f64>(), 0.2);
}
