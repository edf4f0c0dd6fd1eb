//! The reads that are timed, and how one is timed.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use futures_util::StreamExt;

use crate::server::MASTER_KEY;

/// A read of the API, and plain SQL that groups the same rows.
pub(crate) struct Read {
    pub name: &'static str,
    pub path: Cow<'static, str>,
    pub plain: Option<&'static str>,
}

const fn read(name: &'static str, path: &'static str, plain: Option<&'static str>) -> Read {
    Read { name, path: Cow::Borrowed(path), plain }
}

const BY_TEAM: &str = r#"SELECT s."startTime"::date, t.team_alias, s.model, s.api_key, sum(s.spend), sum(s.total_tokens)
    FROM "LiteLLM_SpendLogs" s LEFT JOIN "LiteLLM_TeamTable" t USING (team_id)
    WHERE s."startTime" >= '2026-03-01' AND s."startTime" < '2026-03-31' GROUP BY 1, 2, 3, 4 ORDER BY 1, 2"#;
const BY_TEAM_90: &str = r#"SELECT s."startTime"::date, t.team_alias, s.model, s.api_key, sum(s.spend), sum(s.total_tokens)
    FROM "LiteLLM_SpendLogs" s LEFT JOIN "LiteLLM_TeamTable" t USING (team_id)
    WHERE s."startTime" >= '2026-01-01' AND s."startTime" < '2026-04-01' GROUP BY 1, 2, 3, 4 ORDER BY 1, 2"#;
const BY_CUSTOMER: &str = r#"SELECT "startTime"::date, end_user, model, api_key, sum(spend), sum(total_tokens)
    FROM "LiteLLM_SpendLogs" WHERE "startTime" >= '2026-03-01' AND "startTime" < '2026-03-31'
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 2"#;
const BY_KEY: &str = r#"SELECT api_key, model, sum(spend), sum(prompt_tokens), sum(completion_tokens)
    FROM "LiteLLM_SpendLogs" WHERE "startTime" >= '2026-01-01' AND "startTime" < '2026-04-01' GROUP BY 1, 2"#;
const BY_USER: &str = r#"SELECT api_key, model, sum(spend), sum(prompt_tokens), sum(completion_tokens)
    FROM "LiteLLM_SpendLogs" WHERE "startTime" >= '2026-01-01' AND "startTime" < '2026-04-01' AND "user" = 'user-250'
    GROUP BY 1, 2"#;
const ONE_KEY: &str = r#"SELECT api_key, model, sum(spend), sum(prompt_tokens), sum(completion_tokens)
    FROM "LiteLLM_SpendLogs" WHERE "startTime" >= '2026-01-01' AND "startTime" < '2026-04-01'
    AND api_key = encode(sha256('sk-bench-key-7'), 'hex') GROUP BY 1, 2"#;
const PAIR: &str = r#"SELECT "startTime"::date, model, api_key, sum(spend), sum(total_tokens)
    FROM "LiteLLM_SpendLogs" WHERE "startTime" >= '2026-01-01' AND "startTime" < '2026-04-01'
    AND team_id = 'team-3' AND end_user = 'customer-9' GROUP BY 1, 2, 3 ORDER BY 1"#;
const TAGS: &str = r#"SELECT jsonb_array_elements_text(request_tags), count(*), sum(spend) FROM "LiteLLM_SpendLogs"
    WHERE "startTime" >= '2026-03-01' AND "startTime" < '2026-03-31' GROUP BY 1"#;
const TAGS_ALL: &str =
    r#"SELECT jsonb_array_elements_text(request_tags), count(*), sum(spend) FROM "LiteLLM_SpendLogs" GROUP BY 1"#;
const BY_DAY: &str = r#"SELECT "startTime"::date, api_key, "user", model, sum(spend) FROM "LiteLLM_SpendLogs"
    WHERE "startTime" >= '2026-03-01' AND "startTime" <= '2026-03-30' GROUP BY 1, 2, 3, 4 ORDER BY 1"#;
const BY_DAY_90: &str = r#"SELECT "startTime"::date, api_key, "user", model, sum(spend) FROM "LiteLLM_SpendLogs"
    WHERE "startTime" >= '2026-01-01' AND "startTime" <= '2026-03-31' GROUP BY 1, 2, 3, 4 ORDER BY 1"#;

/// The reads, in the order of the table.
pub(crate) static READS: [Read; 22] = [
    read("report team 30d", "/global/spend/report?start_date=2026-03-01&end_date=2026-03-30", Some(BY_TEAM)),
    read("report team 90d", "/global/spend/report?start_date=2026-01-01&end_date=2026-03-31", Some(BY_TEAM_90)),
    read(
        "report customer 30d",
        "/global/spend/report?start_date=2026-03-01&end_date=2026-03-30&group_by=customer",
        Some(BY_CUSTOMER),
    ),
    read(
        "report api_key 90d",
        "/global/spend/report?start_date=2026-01-01&end_date=2026-03-31&group_by=api_key",
        Some(BY_KEY),
    ),
    read(
        "report one user 90d",
        "/global/spend/report?start_date=2026-01-01&end_date=2026-03-31&internal_user_id=user-250",
        Some(BY_USER),
    ),
    read(
        "report one key 90d",
        "/global/spend/report?start_date=2026-01-01&end_date=2026-03-31&api_key=sk-bench-key-7",
        Some(ONE_KEY),
    ),
    read(
        "report team+customer 90d",
        "/global/spend/report?start_date=2026-01-01&end_date=2026-03-31&team_id=team-3&customer_id=customer-9",
        Some(PAIR),
    ),
    read("report user 30d", "/global/spend/report?start_date=2026-03-01&end_date=2026-03-30&group_by=user", None),
    read(
        "report model 30d",
        "/global/spend/report?start_date=2026-03-01&end_date=2026-03-30&group_by=model_name",
        None,
    ),
    read("global tags 30d", "/global/spend/tags?start_date=2026-03-01&end_date=2026-03-30", Some(TAGS)),
    read(
        "global tags 90d filtered",
        "/global/spend/tags?start_date=2026-01-01&end_date=2026-03-31&tags=prod,job-3",
        Some(TAGS_ALL),
    ),
    read("tags all", "/spend/tags", Some(TAGS_ALL)),
    read("tags 30d", "/spend/tags?start_date=2026-03-01&end_date=2026-03-30", Some(TAGS)),
    read("logs by day 30d", "/spend/logs?start_date=2026-03-01&end_date=2026-03-30", Some(BY_DAY)),
    read("logs by day 90d", "/spend/logs?start_date=2026-01-01&end_date=2026-03-31", Some(BY_DAY_90)),
    read("logs by day 90d one user", "/spend/logs?start_date=2026-01-01&end_date=2026-03-31&user_id=user-250", None),
    read("logs rows, newest 10000", "/spend/logs", None),
    read("logs rows, one user", "/spend/logs?user_id=user-250", None),
    read("logs one request", "/spend/logs?request_id=chatcmpl-c4ca4238a0b923820dcc509a6f75849b", None),
    read(
        "daily activity 30d p1000",
        "/user/daily/activity?start_date=2026-03-01&end_date=2026-03-30&page_size=1000",
        None,
    ),
    read("daily activity 7d p50", "/user/daily/activity?start_date=2026-03-01&end_date=2026-03-07", None),
    read(
        "daily activity one user 90d",
        "/user/daily/activity?start_date=2026-01-01&end_date=2026-03-31&user_id=user-250&page_size=1000",
        None,
    ),
];

/// The milliseconds to the first byte and to the last byte, and the number of bytes.
pub(crate) async fn fetch(client: &reqwest::Client, url: &str) -> (f64, f64, usize) {
    let started = Instant::now();
    let response = client.get(url).header("authorization", format!("Bearer {MASTER_KEY}")).send().await.unwrap();
    assert!(response.status().is_success(), "{url}: {}", response.status());
    let mut body = response.bytes_stream();
    let (mut first, mut bytes) = (None, 0);
    while let Some(piece) = body.next().await {
        first.get_or_insert_with(|| started.elapsed());
        bytes += piece.unwrap().len();
    }
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    (ms(first.unwrap_or_else(|| started.elapsed())), ms(started.elapsed()), bytes)
}
