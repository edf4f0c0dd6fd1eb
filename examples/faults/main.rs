//! Writers, readers and folding under faults. The servers and a PostgreSQL are killed, cut off, locked, given a full
//! disk and a wrong clock, while the test records what was acknowledged. After each fault everything is compared. Run
//! by `./dev test-faults`. A run continues where the last one ended, until the requested number of faults has happened.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test program fails by panicking"
)]

mod checks;
mod cluster;
mod inflict;
mod load;
mod servers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use cluster::Cluster;
use inflict::{FAULTS, Fault, World, inflict};
use load::{Ledger, OWNED, TEAMS, USERS};
use servers::MASTER_KEY;

/// How long everything that had begun may take to be acknowledged after a fault.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

/// The number of faults between two comparisons of the whole log, and of the rollups with it.
const WHOLE_CHECK: u64 = 25;

struct Options {
    minutes: u64,
    faults: u64,
    seed: Option<u64>,
    only: Option<String>,
    restart: bool,
}

impl Options {
    fn read() -> Self {
        let mut options = Self { minutes: 30, faults: 1000, seed: None, only: None, restart: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if name == "--restart" {
                options.restart = true;
                continue;
            }
            let value = arguments.next().expect("a value after each flag");
            let number = || value.parse().expect("a number");
            match name.as_str() {
                "--minutes" => options.minutes = number(),
                "--faults" => options.faults = number(),
                "--seed" => options.seed = Some(number()),
                "--only" => options.only = Some(value),
                _ => panic!("flags: --minutes N --faults N --seed S --only NAME --restart"),
            }
        }
        options
    }
}

/// What has happened so far in all runs.
#[derive(Default, Serialize, Deserialize)]
struct State {
    seed: u64,
    done: u64,
    kinds: BTreeMap<String, Kind>,
    records: u64,
    answered: u64,
    failed: u64,
    internal_errors: u64,
    deadlocks: i64,
    skipped: u64,
    violations: Vec<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Kind {
    times: u64,
    recovery_ms: Vec<u64>,
    violations: u64,
}

impl State {
    fn print(&self) {
        println!("\n| fault | times | median recovery, ms | longest, ms | broken promises |\n|---|---|---|---|---|");
        for (name, kind) in &self.kinds {
            let mut times = kind.recovery_ms.clone();
            times.sort_unstable();
            let middle = times.get(times.len() / 2).copied().unwrap_or_default();
            let longest = times.last().copied().unwrap_or_default();
            println!("| {name} | {} | {middle} | {longest} | {} |", kind.times, kind.violations);
        }
        println!(
            "\n{} faults, seed {}: {} records acknowledged, {} requests answered, {} failed or refused and sent again \
             or given up, {} of these with status 500, {} deadlocks, {} faults that this system does not allow, {} broken promises",
            self.done,
            self.seed,
            self.records,
            self.answered,
            self.failed,
            self.internal_errors,
            self.deadlocks,
            self.skipped,
            self.violations.len()
        );
        for violation in self.violations.iter().take(20) {
            println!("  {violation}");
        }
    }
}

/// A directory that is removed at the end, whatever happens in between.
fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("litespend-faults-").tempdir_in("/tmp").unwrap()
}

async fn prepare(world: &World) {
    let address = world.servers[0].address.clone();
    let client = load::client();
    let post = async |path: &str, body: serde_json::Value| {
        let request = client.post(format!("{address}{path}")).bearer_auth(MASTER_KEY).json(&body);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
    };
    for user in USERS {
        post("/user/new", json!({ "user_id": user, "user_role": "internal_user", "auto_create_key": false })).await;
    }
    for team in TEAMS {
        post("/team/new", json!({ "team_id": team, "team_alias": team })).await;
    }
    for (key, user, team) in OWNED {
        post("/key/generate", json!({ "key": key, "user_id": user, "team_id": team })).await;
    }
}

/// The fault with this number; it depends on the seed alone.
fn fault_of(seed: u64, number: u64, only: Option<&str>) -> (Fault, &'static str) {
    if let Some(found) = only.and_then(|only| FAULTS.iter().find(|(_, name, _)| name.contains(only))) {
        return (found.0, found.1);
    }
    let total: u32 = FAULTS.iter().map(|fault| fault.2).sum();
    let mut pick = StdRng::seed_from_u64(seed.wrapping_add(number)).random_range(0..total);
    for (fault, name, weight) in FAULTS {
        if pick < weight {
            return (fault, name);
        }
        pick -= weight;
    }
    unreachable!("the weights add up")
}

async fn run(options: &Options, state: &mut State, file: &Path) {
    let programs = PathBuf::from(std::env::var_os("PG_BIN_DIR").expect("PG_BIN_DIR: where postgres and initdb are"));
    let home = directory();
    let cluster = Cluster::create(&programs, home.path()).await;
    let ledger = Arc::new(Ledger::default());
    let mut world = World {
        cluster,
        servers: Vec::new(),
        ledger: Arc::clone(&ledger),
        directory: home.path().to_owned(),
        started: 0,
    };
    world.start_server().await;
    prepare(&world).await;
    world.start_server().await;
    let tasks = load::start(&ledger, state.seed ^ state.done);
    let client = load::client();
    let end = Instant::now() + Duration::from_secs(options.minutes * 60);
    while state.done < options.faults && Instant::now() < end && state.violations.len() < 5 {
        let (fault, name) = fault_of(state.seed, state.done, options.only.as_deref());
        let mut random = StdRng::seed_from_u64(state.seed.wrapping_mul(31).wrapping_add(state.done));
        ledger.resume();
        tokio::time::sleep(Duration::from_millis(random.random_range(100..400))).await;
        let inflicted = inflict(&mut world, fault, &mut random).await;
        let healed = Instant::now();
        if !ledger.quiesce(RECOVERY_LIMIT).await {
            ledger.violation(format!("not everything was acknowledged {} s after", RECOVERY_LIMIT.as_secs()));
        }
        let recovery = healed.elapsed();
        check(&mut world, &client, state.done % WHOLE_CHECK == WHOLE_CHECK - 1).await;
        let found = std::mem::take(&mut *ledger.violations.lock().unwrap());
        let kind = state.kinds.entry(name.to_owned()).or_default();
        if inflicted {
            kind.times += 1;
            kind.recovery_ms.push(u64::try_from(recovery.as_millis()).unwrap());
        } else {
            state.skipped += 1;
        }
        kind.violations += u64::try_from(found.len()).unwrap();
        state.violations.extend(found.iter().map(|text| format!("after fault {} ({name}): {text}", state.done)));
        state.done += 1;
        state.records += u64::try_from(ledger.booked.lock().unwrap().len()).unwrap();
        count(&ledger, state);
        std::fs::write(file, serde_json::to_string_pretty(state).unwrap()).unwrap();
        state.records -= u64::try_from(ledger.booked.lock().unwrap().len()).unwrap();
        println!("{:>5} {name}: {} ms{}", state.done, recovery.as_millis(), if inflicted { "" } else { " (skipped)" });
        if !found.is_empty() {
            // The logs are kept, because they show the cause.
            let kept = file.with_file_name(format!("logs-{}", state.done));
            let _ = Command::new("sh")
                .arg("-c")
                .arg(format!("mkdir -p '{0}' && cp '{1}'/*.log '{0}'", kept.display(), home.path().display()))
                .status();
        }
    }
    state.records += u64::try_from(ledger.booked.lock().unwrap().len()).unwrap();
    if let Ok(mut admin) = world.cluster.admin("litespend").await {
        let deadlocks: i64 = sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = 'litespend'")
            .fetch_one(&mut admin)
            .await
            .unwrap();
        state.deadlocks += deadlocks;
    }
    ledger.stop();
    for task in tasks {
        let _ = task.await;
    }
    std::fs::write(file, serde_json::to_string_pretty(state).unwrap()).unwrap();
}

fn count(ledger: &Ledger, state: &mut State) {
    state.answered += ledger.answered.swap(0, Ordering::Relaxed);
    state.failed += ledger.failed.swap(0, Ordering::Relaxed);
    state.internal_errors += ledger.internal_errors.swap(0, Ordering::Relaxed);
}

async fn check(world: &mut World, client: &reqwest::Client, whole: bool) {
    let ledger = Arc::clone(&world.ledger);
    let mut ended = 0;
    for server in &mut world.servers {
        ended += usize::from(!server.is_running());
        for line in server.panics() {
            ledger.violation(line);
        }
    }
    if ended > 0 {
        ledger.violation(format!("{ended} servers ended by themselves"));
    }
    let mut admin = world.cluster.admin("litespend").await.unwrap();
    checks::check_log(&ledger, &mut admin, whole).await;
    checks::check_sums(&ledger, &mut admin).await;
    for server in &world.servers {
        checks::check_reads(&ledger, &mut admin, client, &server.address).await;
    }
    checks::check_sessions(&ledger, &mut admin).await;
    if whole {
        let program = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("litespend");
        let mut command = Command::new(program);
        command.args(["rollups", "verify"]).env_remove("DIRECT_URL").env("DATABASE_URL", world.cluster.url());
        let verify = command.output();
        let verify = verify.unwrap();
        if !verify.status.success() {
            ledger.violation(format!("rollups verify: {}", String::from_utf8_lossy(&verify.stdout)));
        }
    }
}

fn main() -> ExitCode {
    let options = Options::read();
    let target = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().parent().unwrap().join("faults");
    std::fs::create_dir_all(&target).unwrap();
    let file = target.join("state.json");
    let earlier = std::fs::read_to_string(&file).ok().filter(|_| !options.restart);
    let mut state: State = earlier.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    match options.seed {
        Some(seed) if state.done > 0 && state.seed != seed => {
            state = State { seed, ..State::default() };
        }
        Some(seed) => state.seed = seed,
        None if state.done == 0 => state.seed = rand::random::<u32>().into(),
        None => {}
    }
    println!(
        "seed {}, {} of {} faults done before; state in {}",
        state.seed,
        state.done,
        options.faults,
        file.display()
    );
    tokio::runtime::Runtime::new().unwrap().block_on(run(&options, &mut state, &file));
    state.print();
    if state.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
