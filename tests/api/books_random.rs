//! Random changes of a log of which days are closed, pruned, reopened and verified, with crashes in between. A model in
//! plain code says which rows count and which are answered; a second database that has only the rows that count answers
//! the same reads without closed days.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use chrono::NaiveDate;
use litespend::books;
use litespend::books::closing::ClosingOptions;
use litespend::books::{closing, pruning, reopening, verifying};
use litespend::rollups::folding;
use litespend::store::books as tables;
use litespend::store::log::months;
use litespend::store::{Connection, rollups};
use litespend_archive::{Archive, Options};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rollups::{READS, answers};
use crate::support::answers::{Lists, difference};
use crate::support::{MASTER_KEY, TestApp, randomness};

/// January and February have partitions of their own; March is in the default partition.
const DAYS: [&str; 6] = ["2026-01-30", "2026-01-31", "2026-02-01", "2026-02-02", "2026-03-01", "2026-03-02"];

fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

fn day_of(row: &Value) -> NaiveDate {
    day(&row["startTime"].as_str().unwrap()[..10])
}

/// Which rows the log has, which count, and which are answered.
#[derive(Debug, Default)]
struct Model {
    log: BTreeMap<String, Value>,
    /// The rows that reports count: those of open days in the log, and all that a closed day ever had.
    counted: BTreeMap<String, Value>,
    /// The archived rows of closed days.
    closed: BTreeMap<NaiveDate, BTreeMap<String, Value>>,
    /// The rows that arrived after their day was closed and are not archived.
    late: BTreeSet<String>,
}

impl Model {
    fn is_closed(&self, row: &Value) -> bool {
        self.closed.contains_key(&day_of(row))
    }

    fn insert(&mut self, id: String, row: Value) {
        if self.is_closed(&row) && !self.counted.contains_key(&id) {
            self.late.insert(id.clone());
        }
        self.counted.entry(id.clone()).or_insert_with(|| row.clone());
        self.log.insert(id, row);
    }

    fn remove(&mut self, which: impl Fn(&str, &Value) -> bool) {
        let gone: Vec<String> = self.log.iter().filter(|(id, row)| which(id, row)).map(|(id, _)| id.clone()).collect();
        for id in gone {
            let row = self.log.remove(&id).unwrap();
            if !self.is_closed(&row) {
                self.counted.remove(&id);
            }
        }
    }

    /// Late rows that the log has are archived. Those that it lost count, and are archived if they come again.
    fn archive_late(&mut self, which: impl Fn(NaiveDate) -> bool) {
        for id in std::mem::take(&mut self.late) {
            let of = day_of(&self.counted[&id]);
            match self.log.get(&id) {
                Some(row) if which(of) => drop(self.closed.get_mut(&of).unwrap().insert(id, row.clone())),
                _ => drop(self.late.insert(id)),
            }
        }
    }

    fn close(&mut self, through: NaiveDate) {
        self.archive_late(|_| true);
        let closed_before: BTreeSet<NaiveDate> = self.closed.keys().copied().collect();
        for (id, row) in &self.log {
            let of = day_of(row);
            if of <= through && !closed_before.contains(&of) {
                self.closed.entry(of).or_default().insert(id.clone(), row.clone());
            }
        }
    }

    /// Rows leave the log only if the archive has them as they are. A row that does not go may keep its partition.
    fn prune(&mut self, through: NaiveDate, logged: &BTreeSet<String>) {
        self.archive_late(|of| of <= through);
        let month_of = |row: &Value| row["startTime"].as_str().unwrap()[..7].to_owned();
        let is_archived = |id: &String, row: &Value| {
            self.closed.get(&day_of(row)).is_some_and(|archived| archived.get(id) == Some(row))
        };
        let pruned = || self.log.iter().filter(|(_, row)| day_of(row) <= through && self.is_closed(row));
        let kept: BTreeSet<String> =
            pruned().filter(|(id, row)| !is_archived(id, row)).map(|(_, row)| month_of(row)).collect();
        for (id, row) in pruned() {
            if logged.contains(id) {
                assert!(kept.contains(&month_of(row)), "{id} stays in the log: {row}");
            } else {
                assert!(is_archived(id, row), "{id} has left the log: {row}");
            }
        }
        let left: BTreeSet<String> = self.log.keys().filter(|id| logged.contains(*id)).cloned().collect();
        assert_eq!(&left, logged, "rows of the log that nobody put there");
        let open = |row: &Value| day_of(row) > through || !self.is_closed(row);
        assert!(self.log.iter().all(|(id, row)| logged.contains(id) || !open(row)), "rows of open days have left");
        self.log.retain(|id, _| logged.contains(id));
    }

    fn reopen(&mut self, which: NaiveDate) {
        self.archive_late(|of| of == which);
        let Some(archived) = self.closed.remove(&which) else { return };
        self.late.retain(|id| day_of(&self.counted[id]) != which);
        for (id, row) in archived {
            self.log.entry(id).or_insert(row);
        }
        self.counted.retain(|_, row| day_of(row) != which);
        for (id, row) in self.log.iter().filter(|(_, row)| day_of(row) == which) {
            self.counted.insert(id.clone(), row.clone());
        }
    }

    /// The rows that are answered, with their spend.
    fn visible(&self) -> BTreeMap<String, f64> {
        let archived = self.closed.values().flatten();
        let all = archived.chain(&self.log);
        all.map(|(id, row)| (id.clone(), row["spend"].as_f64().unwrap())).collect()
    }
}

/// What is done with the books. Each is repeated until it was not interrupted.
#[derive(Clone, Copy, Debug)]
enum Work {
    Close(NaiveDate),
    Prune(NaiveDate),
    Reopen(NaiveDate),
    Verify,
}

struct World {
    random: StdRng,
    app: TestApp,
    /// Has the rows that count, and nothing closed.
    expected: TestApp,
    archive: TempDir,
    model: Model,
    next_id: u32,
}

impl World {
    async fn new() -> Self {
        let (app, database) = (TestApp::new().await, TestApp::new().await);
        let seed: serde_json::Map<String, Value> =
            serde_json::from_slice(&crate::support::recording("seed.json")).unwrap();
        for app in [&app, &database] {
            for (list, table) in [("teams", "LiteLLM_TeamTable"), ("users", "LiteLLM_UserTable")] {
                crate::support::insert(&mut app.pool.acquire().await.unwrap(), table, &seed[list]).await;
            }
        }
        let archive = tempfile::tempdir().unwrap();
        app.state.use_archive(Archive::open(archive.path().to_str().unwrap(), Options::default()).await.unwrap());
        for month in ["2026-01-01", "2026-02-01"] {
            months::add(&mut app.pool.acquire().await.unwrap(), day(month), true).await.unwrap();
        }
        // Without knowledge of rollups: plain SQL on the log.
        let expected = database.beside(crate::support::settings());
        let random = StdRng::seed_from_u64(randomness::seed());
        Self { random, app, expected, archive, model: Model::default(), next_id: 0 }
    }

    fn any_day(&mut self) -> &'static str {
        DAYS[self.random.random_range(0..DAYS.len())]
    }

    fn row(&mut self) -> (String, Value) {
        self.next_id += 1;
        let id = format!("r-{}", self.next_id);
        let day = self.any_day();
        let mut pick = |from: &[Option<&str>]| from[self.random.random_range(0..from.len())].map(str::to_owned);
        let time = pick(&[Some("00:00:00"), Some("00:00:00.001"), Some("12:34:56.789"), Some("23:59:59.999")]);
        let time = format!("{day}T{}", time.unwrap());
        let row = json!({
            "request_id": id, "call_type": "acompletion", "startTime": time, "endTime": time,
            "api_key": pick(&[Some("k1"), Some("k2"), Some("litellm_proxy_master_key"), Some("")]),
            "model": pick(&[Some("gpt-4o"), Some("模型"), Some("")]),
            "model_group": pick(&[Some("group"), Some(""), None]),
            "user": pick(&[Some("u-int"), Some("u-admin"), Some(""), None]),
            "team_id": pick(&[Some("team-alpha"), Some("team-ghost"), Some("team-dup1"), Some("team-dup2"), None]),
            "end_user": pick(&[Some("cust-1"), Some("cust-2"), Some(""), None]),
            "request_tags": match pick(&[Some("[]"), Some(r#"["prod"]"#), Some(r#"["prod", "équipe"]"#), None]) {
                Some(text) => serde_json::from_str(&text).unwrap(),
                None => Value::Null,
            },
            "metadata": {"user_api_key_alias": pick(&[Some("alias 1"), Some("alias 2"), None])},
            // Exact in binary, so that sums do not depend on their order.
            "spend": f64::from(self.random.random_range(0..64_u32)) / 64.0,
            "prompt_tokens": self.random.random_range(0..5000), "completion_tokens": 7,
            "total_tokens": self.random.random_range(7..5007),
            "created_at": time, "updated_at": time,
        });
        (id, row)
    }

    async fn put(&mut self, rows: Vec<(String, Value)>) {
        let list = Value::Array(rows.iter().map(|(_, row)| row.clone()).collect());
        crate::support::insert(&mut self.app.pool.acquire().await.unwrap(), "LiteLLM_SpendLogs", &list).await;
        for (id, row) in rows {
            self.model.insert(id, row);
        }
    }

    /// Inserts new rows.
    async fn insert(&mut self) {
        let rows = (0..self.random.random_range(1..10)).map(|_| self.row()).collect();
        self.put(rows).await;
    }

    /// Changes the log in a random way, and the model in the same way. Returns what was done.
    async fn change(&mut self) -> String {
        let any_day = self.any_day();
        match self.random.random_range(0..100) {
            0..40 => {
                self.insert().await;
                "insert".to_owned()
            }
            40..55 => {
                sqlx::query(
                    r#"UPDATE "LiteLLM_SpendLogs" SET spend = spend + 0.5, model = 'changed', end_user = 'cust-2'
                       WHERE "startTime"::date = $1::text::date AND prompt_tokens % 3 = 0"#,
                )
                .bind(any_day)
                .execute(&self.app.pool)
                .await
                .unwrap();
                for (id, row) in &mut self.model.log {
                    if day_of(row) == day(any_day) && row["prompt_tokens"].as_u64().unwrap() % 3 == 0 {
                        row["spend"] = json!(row["spend"].as_f64().unwrap() + 0.5);
                        (row["model"], row["end_user"]) = (json!("changed"), json!("cust-2"));
                        self.model.counted.insert(id.clone(), row.clone());
                    }
                }
                format!("update {any_day}")
            }
            55..70 => {
                sqlx::query(
                    r#"DELETE FROM "LiteLLM_SpendLogs" WHERE "startTime"::date = $1::text::date AND prompt_tokens % 2 = 0"#,
                )
                .bind(any_day)
                .execute(&self.app.pool)
                .await
                .unwrap();
                self.model
                    .remove(|_, row| day_of(row) == day(any_day) && row["prompt_tokens"].as_u64().unwrap() % 2 == 0);
                format!("delete on {any_day}")
            }
            70..82 => {
                // Rows that a closed day counts come again, as from a copy of the log.
                let missing = self.model.counted.iter().filter(|(id, _)| !self.model.log.contains_key(*id));
                let rows: Vec<_> = missing.take(7).map(|(id, row)| (id.clone(), row.clone())).collect();
                let count = rows.len();
                if count > 0 {
                    self.put(rows).await;
                }
                format!("{count} rows again")
            }
            82..86 => {
                self.app.execute(r#"TRUNCATE "LiteLLM_SpendLogs""#).await;
                self.model.remove(|_, _| true);
                "truncate".to_owned()
            }
            86..92 => {
                // It may be missing; rows of January are in the default partition then.
                months::add(&mut self.app.pool.acquire().await.unwrap(), day("2026-01-01"), true).await.unwrap();
                self.app.execute(r#"DROP TABLE "LiteLLM_SpendLogs_2026_01""#).await;
                self.model.remove(|_, row| row["startTime"].as_str().unwrap().starts_with("2026-01"));
                "drop the partition of January".to_owned()
            }
            92..96 => {
                months::add(&mut self.app.pool.acquire().await.unwrap(), day("2026-01-01"), true).await.unwrap();
                "add the partition of January".to_owned()
            }
            _ => {
                rollups::mark_dirty(&mut self.app.pool.acquire().await.unwrap(), None).await.unwrap();
                "mark all days dirty".to_owned()
            }
        }
    }

    /// A connection of its own, with the lock of the books.
    async fn connection(&self) -> Connection {
        let mut connection = self.app.pool.acquire().await.unwrap().detach();
        while !tables::lock(&mut connection).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        connection
    }

    /// Works on the books as a command does, and dies after this number of steps, if it is not done by then.
    async fn try_work(&self, work: Work, steps: usize) -> Option<Result<(), books::Error>> {
        let mut connection = self.connection().await;
        let work = async {
            let url = self.archive.path().to_str().unwrap();
            let archive = Archive::open(url, Options::default()).await.unwrap();
            match work {
                Work::Close(through) => closing::close_through(
                    &mut connection,
                    Vec::new(),
                    &archive,
                    through,
                    ClosingOptions::default(),
                    |_| true,
                )
                .await
                .map(drop),
                Work::Prune(through) => pruning::prune(&mut connection, &archive, through, |_| true).await,
                Work::Reopen(day) => reopening::reopen(&mut connection, &archive, day, "a test", true).await.map(drop),
                Work::Verify => {
                    folding::settle(&mut connection).await.unwrap();
                    for closed in tables::closed_days(&mut connection, None).await.unwrap() {
                        verifying::verify_day(&mut connection, &archive, &closed).await?;
                    }
                    Ok(())
                }
            }
        };
        let (mut work, mut taken) = (pin!(work), 0);
        poll_fn(|context| {
            if taken == steps {
                return Poll::Ready(None);
            }
            taken += 1;
            work.as_mut().poll(context).map(Some)
        })
        .await
    }

    /// Works on the books, with crashes. Returns what was done.
    async fn work(&mut self, work: Work) -> String {
        let mut crashes = 0;
        while self.random.random_range(0..3) > 0 && crashes < 4 {
            let steps = self.random.random_range(1..400);
            if let Some(done) = self.try_work(work, steps).await {
                self.expect_done(work, done);
                break;
            }
            crashes += 1;
            if self.random.random_range(0..2) == 0 {
                self.insert().await;
            }
            if self.random.random_range(0..2) == 0 {
                folding::settle(&mut self.app.pool.acquire().await.unwrap()).await.unwrap();
            }
        }
        let done = self.try_work(work, usize::MAX).await.unwrap();
        self.expect_done(work, done);
        match work {
            Work::Close(through) => self.model.close(through),
            Work::Prune(through) => {
                let ids = r#"SELECT request_id FROM "LiteLLM_SpendLogs""#;
                let logged: Vec<String> = sqlx::query_scalar(ids).fetch_all(&self.app.pool).await.unwrap();
                self.model.prune(through, &logged.into_iter().collect());
            }
            Work::Reopen(day) => self.model.reopen(day),
            Work::Verify => {}
        }
        format!("{work:?} with {crashes} crashes")
    }

    fn expect_done(&self, work: Work, done: Result<(), books::Error>) {
        match (work, done) {
            (_, Ok(())) => {}
            // It was open, or the last attempt was interrupted when it was done.
            (Work::Reopen(_), Err(books::Error::Refused(text))) if text.ends_with("is not closed") => {}
            (_, Err(error)) => panic!("{work:?}: {error}"),
        }
    }

    async fn compare(&self, step: &str) {
        self.app.state.refresh_rollups().await.unwrap();
        self.expected.execute(r#"TRUNCATE "LiteLLM_SpendLogs""#).await;
        if !self.model.counted.is_empty() {
            let counted = Value::Array(self.model.counted.values().cloned().collect());
            let mut connection = self.expected.pool.acquire().await.unwrap();
            crate::support::insert(&mut connection, "LiteLLM_SpendLogs", &counted).await;
        }
        let (ours, expected) = (answers(&self.app).await, answers(&self.expected).await);
        for ((path, ours), expected) in READS.iter().zip(&ours).zip(&expected) {
            if let Some(difference) = difference(ours, expected, Lists::AsSets) {
                panic!("{step}: {path}: {difference}\nours: {ours}\nexpected: {expected}");
            }
        }
        let answer = self.app.get("/spend/logs?limit=1000", MASTER_KEY).await;
        assert_eq!(answer.status, 200, "{step}: {}", answer.text);
        let rows = answer.json();
        let rows = rows.as_array().unwrap();
        let mut visible = BTreeMap::new();
        for row in rows {
            visible.insert(row["request_id"].as_str().unwrap().to_owned(), row["spend"].as_f64().unwrap());
        }
        assert_eq!(visible, self.model.visible(), "{step}");
        assert_eq!(visible.len(), rows.len(), "{step}: a row is answered twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_days_keep_their_totals_through_changes_and_crashes() {
    let mut world = World::new().await;
    let rounds = 60;
    let mut steps: Vec<String> = Vec::new();
    for _ in 0..rounds {
        let any_day = day(world.any_day());
        let step = match world.random.random_range(0..100) {
            0..60 => world.change().await,
            60..78 => world.work(Work::Close(any_day)).await,
            78..88 => world.work(Work::Prune(any_day)).await,
            88..95 => world.work(Work::Reopen(any_day)).await,
            _ => world.work(Work::Verify).await,
        };
        println!("{step}");
        steps.push(step.clone());
        if world.random.random_range(0..3) == 0 {
            folding::settle(&mut world.app.pool.acquire().await.unwrap()).await.unwrap();
        }
        if world.random.random_range(0..2) == 0 {
            world.compare(&step).await;
        }
    }
    world.work(Work::Close(day(DAYS[5]))).await;
    world.compare("close all").await;
    world.work(Work::Prune(day(DAYS[5]))).await;
    world.compare("prune all").await;
    world.work(Work::Verify).await;
    for day in DAYS {
        world.work(Work::Reopen(day.parse().unwrap())).await;
        world.compare("reopen all").await;
    }
}
