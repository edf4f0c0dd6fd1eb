//! Rows and archives for the tests.

use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use futures_util::TryStreamExt;
use litespend_archive::{Archive, Manifest, Options, OwnedRow, Query};
use serde_json::Value;

pub(crate) const DAY_MICROSECONDS: i64 = 86_400_000_000;

pub(crate) fn day(number: u32) -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, 10, number).unwrap()
}

pub(crate) fn start(day: NaiveDate) -> i64 {
    day.and_hms_opt(0, 0, 0).unwrap().and_utc().timestamp_micros()
}

/// Small files and row groups, so that few rows have many of them.
pub(crate) fn small() -> Options {
    Options { rows_per_part: 20, rows_per_group: 7, ..Options::default() }
}

pub(crate) async fn open(root: &Path, options: Options) -> Archive {
    Archive::open(root.to_str().unwrap(), options).await.unwrap()
}

/// A row whose values depend on a number. Every column has values and, if it can, nulls.
pub(crate) fn row(number: u64, start_time: i64) -> OwnedRow {
    let some = |every: u64, text: String| (!number.is_multiple_of(every)).then_some(text);
    OwnedRow {
        request_id: format!("req-{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        call_type: ["acompletion", "aembedding", ""][number as usize % 3].to_owned(),
        api_key: format!("key-{}", number % 5),
        spend: (number % 11) as f64 * 0.1,
        total_tokens: (number % 100) as i32 * 3,
        prompt_tokens: (number % 100) as i32,
        completion_tokens: (number % 100) as i32 * 2,
        start_time,
        end_time: Some(start_time + 1_500_000),
        completion_start_time: (!number.is_multiple_of(4)).then_some(start_time + 500_000),
        model: format!("gpt-{}", number % 7),
        model_id: some(2, format!("deployment-{}", number % 7)),
        model_group: some(3, format!("group-{}", number % 2)),
        custom_llm_provider: some(5, "openai".to_owned()),
        api_base: some(2, "https://api.example".to_owned()),
        user: some(4, ["", "alice", "bob", "carol"][number as usize / 4 % 4].to_owned()),
        metadata: some(6, format!("{{\"number\": {number}, \"text\": \"größe\"}}")),
        cache_hit: some(2, "False".to_owned()),
        cache_key: some(7, format!("cache-{number}")),
        request_tags: some(3, format!("[\"tag-{}\"]", number % 3)),
        team_id: some(2, format!("team-{}", number % 3)),
        end_user: some(3, format!("customer-{}", number % 6)),
        requester_ip_address: some(5, "10.0.0.1".to_owned()),
        messages: some(2, format!("[{{\"content\": \"question {number}\"}}]")),
        response: some(2, format!("{{\"content\": \"answer {number}\"}}")),
        proxy_server_request: some(3, format!("{{\"request\": {number}}}")),
        session_id: some(4, format!("session-{}", number / 3)),
        status: some(9, if number % 10 == 1 { "failure" } else { "success" }.to_owned()),
        mcp_namespaced_tool_name: some(2, "tool/search".to_owned()),
        organization_id: some(2, "organisation".to_owned()),
        agent_id: some(2, format!("agent-{}", number % 2)),
        request_duration_ms: (!number.is_multiple_of(3)).then_some((number % 50) as i32 * 10),
        created_at: Some(start_time + 2_000_000),
        updated_at: number.is_multiple_of(2).then_some(start_time + 3_000_000),
        litellm_call_id: some(8, format!("call-{number}")),
        billing_agent_id: some(2, "billed".to_owned()),
    }
}

/// Rows of a day at a regular distance.
pub(crate) fn rows(day: NaiveDate, count: u64) -> Vec<OwnedRow> {
    let step = DAY_MICROSECONDS / count.max(1) as i64;
    (0..count).map(|number| row(number + start(day).unsigned_abs() % 1000, start(day) + number as i64 * step)).collect()
}

pub(crate) fn sort(rows: &mut [OwnedRow]) {
    rows.sort_by(|a, b| (a.start_time, &a.request_id).cmp(&(b.start_time, &b.request_id)));
}

/// Writes, verifies, commits and publishes a day with bodies.
pub(crate) async fn write(archive: &Archive, day: NaiveDate, base: Option<&Manifest>, rows: &[OwnedRow]) -> Manifest {
    let manifest = write_hidden(archive, day, base, rows).await;
    archive.publish(day).await.unwrap();
    manifest
}

/// The same, but for publishing.
pub(crate) async fn write_hidden(
    archive: &Archive,
    day: NaiveDate,
    base: Option<&Manifest>,
    rows: &[OwnedRow],
) -> Manifest {
    let mut writer = archive.write_day(day, base, true).await.unwrap();
    for row in rows {
        writer.push(&row.as_row()).await.unwrap();
    }
    let prepared = writer.finish().await.unwrap();
    prepared.verify().await.unwrap();
    Manifest::clone(&*archive.commit(&prepared, Value::Null).await.unwrap())
}

pub(crate) async fn read(
    archive: &Archive,
    days: &[(NaiveDate, u32)],
    query: Query,
) -> litespend_archive::Result<Vec<OwnedRow>> {
    archive.scan(days, query).try_collect().await
}

/// The files below a directory, relative to it.
pub(crate) fn files(root: &Path) -> Vec<String> {
    fn walk(directory: &Path, root: &Path, files: &mut Vec<String>) {
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, files);
            } else {
                files.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut files = Vec::new();
    walk(root, root, &mut files);
    files.sort();
    files
}

/// The files that other engines read: by `*.parquet`, and none with an underscore.
pub(crate) fn parquet_files(root: &Path) -> Vec<String> {
    files(root).into_iter().filter(|file| file.ends_with(".parquet")).collect()
}

/// The name of a file that other engines must not read.
pub(crate) fn hidden(file: &str) -> String {
    let (directory, name) = file.rsplit_once('/').unwrap();
    format!("{directory}/_{name}.hidden")
}

pub(crate) fn flip(path: &PathBuf, position: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[position] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}
