//! Measures an archive of made-up rows in a directory: `bench_archive [ROWS] [DIRECTORY]`.

use std::error::Error;
use std::time::{Duration, Instant};

use chrono::{Days, NaiveDate};
use futures_util::TryStreamExt;
use litespend_archive::{Archive, Column, IdKind, LogRow, Options, Order, Query};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Pseudo-random numbers (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A row with texts of its own.
struct Made {
    request_id: String,
    call_id: String,
    api_key: String,
    user: String,
    end_user: String,
    team: String,
    model: String,
    session: String,
    metadata: String,
    tags: &'static str,
    api_base: &'static str,
    spend: f64,
    prompt: i32,
    completion: i32,
    start: i64,
    duration: i32,
    failed: bool,
}

fn make(numbers: &mut Numbers, start: i64) -> Made {
    let (key, user, model) = (numbers.below(200), numbers.below(2_000), numbers.below(50));
    let (prompt, completion) = (100 + numbers.below(8_000) as i32, 10 + numbers.below(1_500) as i32);
    let cached = numbers.below(prompt as u64) as i32 / 2;
    let spend = f64::from(prompt) * 2.5e-6 + f64::from(completion) * 1e-5;
    let call_id = uuid(numbers);
    let api_key = format!("{:016x}{:016x}{:016x}{:016x}", key * 7919, key * 104_729, key * 1_299_709, key * 15_485_863);
    let metadata = format!(
        "{{\"user_api_key\": \"{api_key}\", \"user_api_key_alias\": \"app-{key}\", \"user_api_key_team_id\": \
         \"team-{}\", \"user_api_key_user_id\": \"user-{user}\", \"user_api_key_org_id\": null, \"requester_ip_address\": \
         \"10.0.{}.{}\", \"applied_guardrails\": [], \"status\": \"success\", \"mcp_tool_call_metadata\": null, \
         \"vector_store_request_metadata\": null, \"guardrail_information\": null, \"model_map_information\": \
         {{\"model_map_key\": \"model-{model}\", \"model_map_value\": null}}, \"usage_object\": {{\"completion_tokens\": \
         {completion}, \"prompt_tokens\": {prompt}, \"total_tokens\": {}, \"prompt_tokens_details\": \
         {{\"cached_tokens\": {cached}, \"audio_tokens\": null}}}}, \"cost_breakdown\": {{\"input_cost\": {:?}, \
         \"output_cost\": {:?}, \"total_cost\": {spend:?}}}, \"additional_usage_values\": {{}}, \
         \"litellm_overhead_time_ms\": {}.{}}}",
        key % 20,
        user % 256,
        key % 256,
        prompt + completion,
        f64::from(prompt) * 2.5e-6,
        f64::from(completion) * 1e-5,
        numbers.below(40),
        numbers.below(1000),
    );
    Made {
        request_id: format!("chatcmpl-{}", uuid(numbers)),
        session: uuid(numbers),
        call_id,
        api_key,
        user: format!("user-{user}"),
        end_user: format!("customer-{}", numbers.below(10_000)),
        team: format!("team-{}", key % 20),
        model: format!("model-{model}"),
        metadata,
        tags: match numbers.below(3) {
            0 => "[]",
            1 => "[\"prod\"]",
            _ => "[\"prod\", \"chat\"]",
        },
        api_base: if model % 2 == 0 { "https://api.openai.com" } else { "https://api.anthropic.com" },
        spend,
        prompt,
        completion,
        start,
        duration: 200 + numbers.below(20_000) as i32,
        failed: numbers.below(50) == 0,
    }
}

fn uuid(numbers: &mut Numbers) -> String {
    let (high, low) = (numbers.next(), numbers.next());
    let (a, b, c) = (high >> 32, (high >> 16) & 0xffff, high & 0xfff);
    format!("{a:08x}-{b:04x}-4{c:03x}-8{:03x}-{:012x}", low >> 52, low & 0xffff_ffff_ffff)
}

impl Made {
    fn row(&self) -> LogRow<'_> {
        let end = self.start + i64::from(self.duration) * 1000;
        LogRow {
            request_id: &self.request_id,
            call_type: "acompletion",
            api_key: &self.api_key,
            spend: self.spend,
            total_tokens: self.prompt + self.completion,
            prompt_tokens: self.prompt,
            completion_tokens: self.completion,
            start_time: self.start,
            end_time: Some(end),
            completion_start_time: Some(self.start + 100_000 + i64::from(self.prompt)),
            model: &self.model,
            model_id: Some(&self.model),
            model_group: Some(&self.model),
            custom_llm_provider: Some("openai"),
            api_base: Some(self.api_base),
            user: Some(&self.user),
            metadata: Some(&self.metadata),
            cache_hit: Some("False"),
            cache_key: Some("Cache OFF"),
            request_tags: Some(self.tags),
            team_id: Some(&self.team),
            end_user: Some(&self.end_user),
            requester_ip_address: Some("10.0.0.1"),
            session_id: Some(&self.session),
            status: Some(if self.failed { "failure" } else { "success" }),
            request_duration_ms: Some(self.duration),
            created_at: Some(end + 50_000),
            updated_at: Some(end + 50_000),
            litellm_call_id: Some(&self.call_id),
            ..LogRow::default()
        }
    }
}

/// Time spent, by the clock and by all processors.
struct Spent(Instant, Duration);

impl Spent {
    fn start() -> Self {
        Self(Instant::now(), processor_time())
    }

    fn report(&self, what: &str, rows: u64) -> (Duration, Duration) {
        let (clock, processors) = (self.0.elapsed(), processor_time() - self.1);
        println!(
            "{what:28} {:8.2} s  {:9.0} rows/s   {:8.2} s of processors  {:9.0} rows/s on one",
            clock.as_secs_f64(),
            rows as f64 / clock.as_secs_f64(),
            processors.as_secs_f64(),
            rows as f64 / processors.as_secs_f64(),
        );
        (clock, processors)
    }
}

fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: u64 = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}

fn memory(what: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with(what)).unwrap_or_default().to_owned()
}

async fn write(archive: &Archive, day: NaiveDate, rows: u64, numbers: &mut Numbers) -> Outcome<Vec<String>> {
    let first = day.and_hms_opt(0, 0, 0).ok_or("no time")?.and_utc().timestamp_micros();
    let step = 86_400_000_000 / rows as i64;
    let mut some = Vec::new();
    let mut writer = archive.write_day(day, None, false).await?;
    for number in 0..rows {
        let made = make(numbers, first + number as i64 * step);
        if number % (rows / 20).max(1) == 7 {
            some.push(made.request_id.clone());
        }
        writer.push(&made.row()).await?;
    }
    let prepared = writer.finish().await?;
    prepared.verify().await?;
    archive.commit(&prepared, serde_json::Value::Null).await?;
    Ok(some)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let rows: u64 = arguments.next().map_or(Ok(2_000_000), |rows| rows.parse())?;
    let temporary = tempfile::tempdir()?;
    let directory = arguments.next().unwrap_or_else(|| temporary.path().display().to_string());
    let archive = Archive::open(&directory, Options::default()).await?;
    archive.probe().await?;
    let day = NaiveDate::from_ymd_opt(2026, 10, 31).ok_or("no date")?;
    let first = day.and_hms_opt(0, 0, 0).ok_or("no time")?.and_utc().timestamp_micros();

    let mut numbers = Numbers(1);
    let spent = Spent::start();
    let mut bytes = 0;
    for number in 0..rows {
        let made = make(&mut numbers, first + number as i64);
        bytes += made.metadata.len();
    }
    println!("metadata: {} bytes on average", bytes as u64 / rows);
    let (making, making_processors) = spent.report("making rows alone", rows);

    let mut numbers = Numbers(1);
    let mut ids = Vec::new();
    let mut writer = archive.write_day(day, None, false).await?;
    let spent = Spent::start();
    for number in 0..rows {
        let made = make(&mut numbers, first + number as i64 * (86_400_000_000 / rows as i64));
        if number % (rows / 20).max(1) == 7 {
            ids.push((made.request_id.clone(), made.call_id.clone()));
        }
        writer.push(&made.row()).await?;
    }
    let prepared = writer.finish().await?;
    let (clock, writing) = spent.report("making and writing", rows);
    println!(
        "writing alone: {:.0} rows/s by the clock at best, {:.0} rows/s on one processor",
        rows as f64 / (clock.as_secs_f64() - making.as_secs_f64()).max(0.01),
        rows as f64 / (writing.as_secs_f64() - making_processors.as_secs_f64())
    );
    println!("{}", memory("VmHWM"));
    let spent = Spent::start();
    prepared.verify().await?;
    let (_, verifying) = spent.report("verify", rows);
    let both = writing.as_secs_f64() - making_processors.as_secs_f64() + verifying.as_secs_f64();
    println!("write and verify together: {:.0} rows/s on one processor", rows as f64 / both);
    let manifest = archive.commit(&prepared, serde_json::Value::Null).await?;
    let size: u64 = manifest.parts.iter().map(|part| part.object.bytes).sum();
    println!(
        "{:.1} bytes a row in Parquet, {:.1} in digests; {} parts",
        size as f64 / rows as f64,
        manifest.ids.bytes as f64 / rows as f64,
        manifest.parts.len()
    );
    println!("{}", memory("VmHWM"));

    let days = [(day, manifest.revision)];
    for (what, archive) in [("cold", Archive::open(&directory, Options::default()).await?), ("warm", archive.clone())] {
        for (round, (id, call)) in ids.iter().take(4).enumerate() {
            let start = Instant::now();
            let processors = processor_time();
            let row = archive.row(id, &days).await?.ok_or("the row is missing")?;
            let processors = processor_time() - processors;
            println!("{what} by request_id, {}: {:.1?} ({processors:.1?} of processors)", round + 1, start.elapsed());
            assert_eq!(row.litellm_call_id.as_deref(), Some(call.as_str()));
        }
        let start = Instant::now();
        let call = &ids.first().ok_or("no ids")?.1;
        let found = archive.find(IdKind::CallId, call, &days).await?;
        println!("{what} find by call id: {:.1?}, {} days", start.elapsed(), found.len());
    }

    let mut month = Vec::new();
    let spent = Spent::start();
    for number in 0..30 {
        let day = NaiveDate::from_ymd_opt(2026, 9, 1).ok_or("no date")? + Days::new(number);
        write(&archive, day, rows / 30, &mut numbers).await?;
        month.push((day, 1));
    }
    spent.report("30 days, made and committed", rows);
    let spent = Spent::start();
    archive.compact_month(NaiveDate::from_ymd_opt(2026, 9, 1).ok_or("no date")?).await?;
    spent.report("compact the month", rows);
    for (what, archive) in [("cold", Archive::open(&directory, Options::default()).await?), ("warm", archive.clone())] {
        for user in ["user-17", "user-17", "user-1234"] {
            let (start, processors) = (Instant::now(), processor_time());
            let query = Query {
                equals: vec![(Column::User, vec![user.to_owned()])],
                order: Order::Descending,
                limit: Some(1_000),
                ..Query::default()
            };
            let days = archive.find(IdKind::User, user, &month).await?;
            let found = start.elapsed();
            let days: Vec<_> = days.into_iter().map(|day| (day, 1)).collect();
            let read: Vec<_> = archive.scan(&days, query.clone()).try_collect().await?;
            let used = processor_time() - processors;
            println!(
                "{what} newest 1,000 of {user}: {:.1?} ({used:.1?} of processors, find {found:.1?}), {} rows",
                start.elapsed(),
                read.len()
            );
            let start = Instant::now();
            let columns: Vec<Column> = Column::ALL.into_iter().filter(|column| *column != Column::Metadata).collect();
            let read: Vec<_> = archive.scan(&days, Query { columns, ..query }).try_collect().await?;
            println!("{what}   without metadata: {:.1?}, {} rows", start.elapsed(), read.len());
        }
    }
    println!("{} {}", memory("VmHWM"), memory("VmRSS"));
    Ok(())
}
