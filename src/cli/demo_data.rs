//! `litespend demo-data`: made-up usage of this month and the last one, booked like any other usage. The figures for a day
//! are always the same, so the command can be repeated: records that exist are not booked twice.

use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, TimeDelta, Utc};
use clap::Args;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::accounts::shortened;
use crate::booking::booker::Booker;
use crate::booking::price::price_record;
use crate::booking::{Draft, Identity, NewNames, Owner};
use crate::books::closing::ClosingOptions;
use crate::books::{GRACE_DAYS, last_closable};
use crate::cli::args::DatabaseArgs;
use crate::cli::database::Failure;
use crate::cli::database::{check_owner, with_pool};
use crate::cli::output::say;
use crate::cli::{archive, books};
use crate::identity::hash_key;
use crate::prices::Prices;
use crate::settings::BookingLimits;
use crate::settings::ConfigFile;
use crate::store::Pool;
use crate::store::accounts as store;
use crate::store::accounts::{NewKey, NewMember, NewTeam, NewUser};
use crate::store::booking::UsageRow;
use litespend_pricing::Usage;
use private_postgres::keep_secret;

/// The arguments of `demo-data`.
#[derive(Clone, Debug, Args)]
pub struct DemoDataArgs {
    /// Number of days. The last day is today. Default: from the first day of last month.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=366))]
    days: Option<u64>,
    /// Approximate number of calls on a working day.
    #[arg(long, default_value_t = USUAL_CALLS, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    calls: u32,
    /// Also close last month, with this archive: a directory, or a URL as for `books close`.
    #[arg(long, value_name = "URL")]
    archive: Option<String>,
    #[command(flatten)]
    database: DatabaseArgs,
    /// The home, if it belongs to `serve --demo`. It is marked before anything is booked.
    #[arg(skip)]
    home: Option<PathBuf>,
}

impl DemoDataArgs {
    /// Usage in the home of a demo, with last month closed into this archive. Without a number of calls, the usual one.
    pub fn of_demo(database: &DatabaseArgs, home: &Path, archive: &str, calls: Option<u32>) -> Self {
        Self {
            days: None,
            calls: calls.unwrap_or(USUAL_CALLS),
            archive: Some(archive.to_owned()),
            database: database.clone(),
            home: Some(home.to_owned()),
        }
    }
}

/// The file in a home that says that the home belongs to a demo.
const MARK: &str = "demo";

/// Whether there are data in a home that no demo made. What is there cannot be told from a demo's data if the home cannot be
/// read; then PostgreSQL does not start in it either.
pub fn has_other_data(home: &Path) -> bool {
    let has = |name: &str| home.join(name).symlink_metadata().is_ok();
    // An upgrade of the database that was interrupted has directories beside "data", and maybe not that one.
    let is_data = |name: &str| name == "archive" || name.starts_with("data.");
    let mut entries = home.read_dir().into_iter().flatten().flatten();
    let has_data = has("data") || entries.any(|entry| entry.file_name().to_str().is_some_and(is_data));
    has_data && !has(MARK)
}

/// Approximate number of calls on a working day, if none is given.
const USUAL_CALLS: u32 = 600;

/// The users and their roles.
const USERS: [(&str, &str); 7] = [
    ("ada", "proxy_admin"),
    ("vera", "proxy_admin_viewer"),
    ("ben", "internal_user"),
    ("chloe", "internal_user"),
    ("dmitri", "internal_user"),
    ("emma", "internal_user"),
    ("farid", "internal_user_viewer"),
];

/// The teams with their names and members. The first member is the team's admin.
const TEAMS: [(&str, &str, &[&str]); 4] = [
    ("search", "Search", &["ben", "chloe"]),
    ("support", "Customer Support", &["dmitri", "emma"]),
    ("research", "Research", &["chloe", "emma"]),
    ("platform", "Platform", &["ada", "ben"]),
];

/// A key: the raw key, alias, user, team, relative frequency of use, indexes into [`MODELS`], and tags.
type DemoKey =
    (&'static str, &'static str, Option<&'static str>, &'static str, u32, &'static [usize], &'static [&'static str]);

const KEYS: [DemoKey; 8] = [
    (
        "sk-demo-search-production",
        "search-production",
        Some("ben"),
        "search",
        30,
        &[0, 6, 3],
        &["production", "ranking"],
    ),
    ("sk-demo-search-staging-01", "search-staging", Some("chloe"), "search", 8, &[0, 1], &["staging", "ranking"]),
    (
        "sk-demo-support-assistant",
        "support-assistant",
        Some("dmitri"),
        "support",
        26,
        &[2, 0, 3],
        &["production", "chat"],
    ),
    ("sk-demo-support-summaries", "support-summaries", Some("emma"), "support", 12, &[0, 3], &["production", "batch"]),
    ("sk-demo-research-notebook", "research-notebook", Some("emma"), "research", 9, &[4, 2, 1, 5], &["experiment"]),
    (
        "sk-demo-research-evaluate",
        "research-evaluation",
        Some("chloe"),
        "research",
        7,
        &[1, 2, 5, 4],
        &["experiment", "batch"],
    ),
    ("sk-demo-platform-gateway0", "platform-gateway", None, "platform", 6, &[0, 1, 3], &["internal"]),
    ("sk-demo-platform-nightly0", "platform-nightly", Some("ada"), "platform", 2, &[5, 6], &["internal", "batch"]),
];

/// The models with their providers, kinds of call, and typical numbers of prompt and answer tokens.
const MODELS: [(&str, &str, &str, u32, u32); 7] = [
    ("gpt-4o-mini", "openai", "acompletion", 900, 250),
    ("gpt-4o", "openai", "acompletion", 1400, 420),
    ("claude-sonnet-4-5", "anthropic", "acompletion", 2600, 600),
    ("gemini-2.5-flash", "gemini", "acompletion", 1800, 350),
    ("o3", "openai", "aresponses", 2200, 1800),
    ("claude-opus-4-1", "anthropic", "acompletion", 3200, 900),
    ("text-embedding-3-small", "openai", "aembedding", 700, 0),
];

const END_USERS: [&str; 6] = ["acme", "globex", "initech", "umbrella", "hooli", "stark"];

/// Runs `litespend demo-data`.
pub fn run(args: &DemoDataArgs) -> Result<(), Failure> {
    with_pool(&args.database, async |pool, kind| {
        check_owner(kind, false)?;
        if let Some(home) = &args.home {
            let text = || "The data in this directory is made up: litespend serve --demo.".to_owned();
            keep_secret(home, MARK, text).context("cannot mark the home as one of a demo")?;
        }
        owners(&pool).await?;
        let now = Utc::now();
        let today = now.date_naive();
        let first_of_month = today.with_day(1).context("the day is out of range")?;
        let days = match args.days {
            Some(days) => days,
            None => {
                let first = first_of_month.checked_sub_months(Months::new(1)).context("the day is out of range")?;
                (today - first).num_days().unsigned_abs() + 1
            }
        };
        let prices = Prices::new(&ConfigFile::default(), None, None)?;
        let booker = Booker::new(pool.clone(), BookingLimits::default());
        let mut booked = 0;
        for back in (0..days).rev() {
            let day = today.checked_sub_days(Days::new(back)).context("the day is out of range")?;
            let drafts = calls(day, args.calls, now, &prices.current());
            booked += drafts.len();
            booker.book("demo", drafts).await.context("cannot book the data")?;
        }
        say!("{booked} calls of {days} days by {} keys of {} teams", KEYS.len(), TEAMS.len());
        for (key, alias, ..) in KEYS {
            say!("  {key}  {alias}");
        }
        if let Some(url) = &args.archive {
            let last_of_month = first_of_month.pred_opt().context("the day is out of range")?;
            // In the first days of a month, the end of last month can't be closed yet.
            let through = last_of_month.min(last_closable(now, GRACE_DAYS));
            let archive = archive::open_writable("--archive:", url).await?;
            books::close_through(&pool, &archive, through, ClosingOptions::default()).await?;
        }
        Ok(())
    })
}

/// Creates the users, teams and keys. Existing ones stay unchanged.
async fn owners(pool: &Pool) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?;
    for (user, role) in USERS {
        let user = NewUser {
            user_id: user.into(),
            user_email: Some(format!("{user}@example.com")),
            user_role: Some(role.into()),
            ..NewUser::default()
        };
        let _ = store::create_user(&mut connection, &user).await?;
    }
    for (id, alias, members) in TEAMS {
        let member = |(index, user): (usize, &&str)| NewMember {
            user_id: (*user).to_owned(),
            user_email: None,
            role: if index == 0 { "admin" } else { "user" }.into(),
        };
        let team = NewTeam {
            team_id: id.into(),
            team_alias: Some(alias.into()),
            members: members.iter().enumerate().map(member).collect(),
            ..NewTeam::default()
        };
        let _ = store::create_team(&mut connection, &team).await?;
    }
    for (raw, alias, user, team, ..) in KEYS {
        let key = NewKey {
            token: hash_key(raw),
            key_name: shortened(raw),
            key_alias: Some(alias.into()),
            user_id: user.map(str::to_owned),
            team_id: Some(team.into()),
            created_by: "demo".into(),
            ..NewKey::default()
        };
        let _ = store::create_key(&mut connection, &key).await?;
    }
    Ok(())
}

/// The calls of one day: fewer at weekends and at night, more from week to week, and a few failures.
fn calls(day: NaiveDate, usual: u32, now: DateTime<Utc>, pricer: &litespend_pricing::Pricer) -> Vec<Draft> {
    let days = u64::try_from(day.num_days_from_ce()).unwrap_or(0);
    let mut random = StdRng::seed_from_u64(days);
    let weekend = day.weekday().number_from_monday() > 5;
    let growth = 0.8 + 0.4 * f64::from(u8::try_from(days % 31).unwrap_or(0)) / 31.0;
    let count = f64::from(usual) * growth * if weekend { 0.3 } else { 1.0 } * random.random_range(0.85..1.15);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
    let count = count.max(1.0) as u32;
    let weights: u32 = KEYS.iter().map(|key| key.4).sum();
    let mut drafts = Vec::new();
    for number in 0..count {
        let mut pick = random.random_range(0..weights);
        let key = KEYS.iter().find(|key| {
            let found = pick < key.4;
            pick = pick.saturating_sub(key.4);
            found
        });
        let Some((raw, _, _, _, _, models, tags)) = key else { continue };
        let start = day.and_time(NaiveTime::MIN) + TimeDelta::milliseconds(milliseconds_of_day(&mut random));
        let model = models.get(random.random_range(0..models.len())).and_then(|model| MODELS.get(*model));
        let Some((model, provider, call_type, prompt, completion)) = model else { continue };
        let spread = random.random_range(0.2..2.6_f64);
        let row = call(&mut random, pricer, now, (*model, *provider, *prompt, *completion), spread);
        if start.and_utc() > now {
            continue;
        }
        let end = start + TimeDelta::milliseconds(i64::from(row.request_duration_ms.unwrap_or(0)));
        let row = UsageRow {
            request_id: format!("demo-{day}-{number:05}"),
            call_type: (*call_type).to_owned(),
            api_key: hash_key(raw),
            start_time: start,
            end_time: end,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..row
        };
        drafts.push(Draft { row, owner: Owner::OfKey, identity: Identity::Logged, new_names: NewNames::Unlimited });
    }
    drafts
}

/// A random time of day, mostly within office hours.
fn milliseconds_of_day(random: &mut StdRng) -> i64 {
    let hour = (random.random_range(0.0..12.0_f64) + random.random_range(0.0..12.0_f64) + 2.0) % 24.0;
    #[expect(clippy::cast_possible_truncation, reason = "below a day")]
    let milliseconds = (hour * 3_600_000.0) as i64;
    milliseconds
}

/// The usage and the cost of one call.
fn call(
    random: &mut StdRng,
    pricer: &litespend_pricing::Pricer,
    now: DateTime<Utc>,
    (model, provider, prompt, completion): (&str, &str, u32, u32),
    spread: f64,
) -> UsageRow {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand")]
    let scaled = |tokens: u32| (f64::from(tokens) * spread) as u32;
    let failed = random.random_bool(0.02);
    let (prompt, completion) = (scaled(prompt), if failed { 0 } else { scaled(completion) });
    let cached = if random.random_bool(0.4) { prompt / 2 } else { 0 };
    let usage = json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
                       "prompt_tokens_details": {"cached_tokens": cached}});
    let used = usage.as_object().and_then(|usage| Usage::from_any(usage).ok()).unwrap_or_default();
    let spend = if failed { 0.0 } else { price_record(pricer, model, Some(provider), &used, now).unwrap_or(0.0) };
    let status = if failed { "failure" } else { "success" };
    let count = |tokens: u32| i32::try_from(tokens).unwrap_or(i32::MAX);
    UsageRow {
        spend,
        prompt_tokens: count(prompt),
        completion_tokens: count(completion),
        total_tokens: count(prompt + completion),
        request_duration_ms: Some(count(300 + completion * 12 + random.random_range(0..400))),
        model: model.to_owned(),
        model_group: model.to_owned(),
        custom_llm_provider: provider.to_owned(),
        end_user: if random.random_bool(0.5) {
            END_USERS.get(random.random_range(0..END_USERS.len())).copied().unwrap_or_default().to_owned()
        } else {
            String::new()
        },
        metadata: json!({"status": status, "usage_object": usage}).to_string(),
        cache_hit: "False".into(),
        status: status.into(),
        session_id: Some(format!("session-{:04}", random.random_range(0..4000))),
        requester_ip_address: Some(format!("10.0.{}.{}", random.random_range(0..4), random.random_range(1..250))),
        cache_read_tokens: i64::from(cached),
        ..UsageRow::default()
    }
}
