//! The checks after each fault, once all bookings that had begun are acknowledged: the log contains exactly the
//! acknowledged records, the counters and daily rows are the log's sums, every server's reads equal plain SQL, and
//! nothing is left behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::load::Ledger;
use crate::servers::MASTER_KEY;

/// Sums of floating-point numbers in a different order differ in their last digits.
fn equal(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-9 * one.abs().max(other.abs()).max(1.0)
}

const RANGE: &str = "start_date=2026-01-01&end_date=2026-02-28";
const LOG: &str = r#"FROM "LiteLLM_SpendLogs" WHERE "startTime" >= '2026-01-01' AND "startTime" < '2026-03-01'"#;

/// A name and its sum, computed by plain SQL.
#[derive(FromRow)]
struct Sum {
    name: String,
    spend: f64,
    calls: i64,
}

async fn sums(connection: &mut PgConnection, statement: String) -> BTreeMap<String, (f64, i64)> {
    let rows: Vec<Sum> = sqlx::query_as(AssertSqlSafe(statement)).fetch_all(connection).await.unwrap();
    rows.into_iter().map(|row| (row.name, (row.spend, row.calls))).collect()
}

fn same(ledger: &Ledger, what: &str, found: &BTreeMap<String, (f64, i64)>, log: &BTreeMap<String, (f64, i64)>) {
    for name in found.keys().chain(log.keys()) {
        let (one, other) = (found.get(name).copied().unwrap_or_default(), log.get(name).copied().unwrap_or_default());
        if !equal(one.0, other.0) || one.1 != other.1 {
            ledger.violation(format!("{what}, {name:?}: {one:?}, by the log {other:?}"));
            return;
        }
    }
}

/// Checks that the log contains every acknowledged record once, and no others.
pub(crate) async fn check_log(ledger: &Ledger, connection: &mut PgConnection, whole: bool) {
    let fresh = std::mem::take(&mut *ledger.fresh.lock().unwrap());
    let expected: Vec<(String, f64)> = match whole {
        true => ledger.booked.lock().unwrap().iter().map(|(id, spend)| (id.clone(), *spend)).collect(),
        false => fresh,
    };
    let ids: Vec<&str> = expected.iter().map(|(id, _)| id.as_str()).collect();
    let rows: Vec<(String, f64)> =
        sqlx::query_as(r#"SELECT request_id, spend FROM "LiteLLM_SpendLogs" WHERE request_id = ANY ($1)"#)
            .bind(&ids)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
    let found: BTreeMap<&str, f64> = rows.iter().map(|(id, spend)| (id.as_str(), *spend)).collect();
    for (id, spend) in &expected {
        match found.get(id.as_str()) {
            None => ledger.violation(format!("{id} was acknowledged and is lost")),
            Some(stored) if !equal(*stored, *spend) => {
                ledger.violation(format!("{id} was acknowledged with {spend} and stored with {stored}"));
            }
            Some(_) => {}
        }
    }
    let count: i64 =
        sqlx::query_scalar(r#"SELECT count(*) FROM "LiteLLM_SpendLogs""#).fetch_one(connection).await.unwrap();
    let booked = ledger.booked.lock().unwrap().len();
    if usize::try_from(count) != Ok(booked) {
        ledger.violation(format!("{count} rows in the log for {booked} records that were acknowledged"));
    }
}

/// Checks that the counters and the daily rows are the sums of the log.
pub(crate) async fn check_sums(ledger: &Ledger, connection: &mut PgConnection) {
    let by = |column: &str| {
        format!(
            r#"SELECT {column} AS name, sum(spend) AS spend, 0::bigint AS calls FROM "LiteLLM_SpendLogs"
               WHERE {column} <> '' GROUP BY 1"#
        )
    };
    for (table, id, column) in [
        ("LiteLLM_TeamTable", "team_id", "team_id"),
        ("LiteLLM_UserTable", "user_id", "\"user\""),
        ("LiteLLM_EndUserTable", "user_id", "end_user"),
        ("LiteLLM_VerificationToken", "token", "api_key"),
    ] {
        let counters = format!(r#"SELECT {id} AS name, spend, 0::bigint AS calls FROM "{table}" WHERE spend <> 0"#);
        let found = sums(connection, counters).await;
        let mut log = sums(connection, by(column)).await;
        if table == "LiteLLM_VerificationToken" {
            // Bookings with the master key count for no key in the table.
            log.retain(|name, _| name != "litellm_proxy_master_key");
        }
        if table == "LiteLLM_UserTable" {
            log.retain(|name, _| name.starts_with("user-"));
        }
        let found = found.into_iter().filter(|(name, _)| log.contains_key(name)).collect();
        same(ledger, table, &found, &log);
    }
    let daily = |table: &str| {
        format!(
            r#"SELECT date AS name, sum(spend) AS spend, sum(api_requests)::bigint AS calls FROM "{table}" GROUP BY 1"#
        )
    };
    let day = r#"to_char("startTime", 'YYYY-MM-DD')"#;
    let log = format!(
        r#"SELECT {day} AS name, sum(spend) AS spend, count(*)::bigint AS calls FROM "LiteLLM_SpendLogs" GROUP BY 1"#
    );
    let tags = format!(
        r#"SELECT {day} AS name, sum(spend) AS spend, count(*)::bigint AS calls
           FROM "LiteLLM_SpendLogs", jsonb_array_elements_text(request_tags) GROUP BY 1"#
    );
    for (table, log) in
        [("LiteLLM_DailyUserSpend", &log), ("LiteLLM_DailyTeamSpend", &log), ("LiteLLM_DailyTagSpend", &tags)]
    {
        let (found, log) = (sums(connection, daily(table)).await, sums(connection, log.clone()).await);
        same(ledger, table, &found, &log);
    }
}

/// Checks that every read of a server returns the same as plain SQL.
pub(crate) async fn check_reads(
    ledger: &Ledger,
    connection: &mut PgConnection,
    client: &reqwest::Client,
    address: &str,
) {
    let log = |name: &str, from: &str| {
        let from = LOG.replace("WHERE", &format!("{from} WHERE"));
        format!("SELECT {name} AS name, sum(spend) AS spend, count(*)::bigint AS calls {from} GROUP BY 1")
    };
    let day = r#"to_char("startTime", 'YYYY-MM-DD')"#;
    let teams = r#"COALESCE(NULLIF(team_id, ''), 'Unassigned Team')"#;
    let reports = [
        ("team", "teams", "team_name", log(&format!("{day} || ' ' || {teams}"), "")),
        ("customer", "customers", "customer", log(&format!("{day} || ' ' || end_user"), "")),
        ("user", "users", "user", log(&format!("{day} || ' ' || \"user\""), "")),
        ("model_name", "models", "model", log(&format!("{day} || ' ' || model"), "")),
    ];
    let get = async |path: String| -> Option<Value> {
        let request = client.get(format!("{address}{path}")).bearer_auth(MASTER_KEY);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => {
                ledger.violation(format!("{path}: {error}"));
                return None;
            }
        };
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        let parsed = serde_json::from_str(&text).ok().filter(|_| status == 200);
        if parsed.is_none() {
            ledger.violation(format!("{path}: {status}: {}", text.chars().take(300).collect::<String>()));
        }
        parsed
    };
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for (group, list, label, statement) in reports {
        let Some(report) = get(format!("/global/spend/report?{RANGE}&group_by={group}")).await else { continue };
        let mut found = BTreeMap::new();
        for entry in items(&report) {
            let day = text(&entry["group_by_day"]).chars().take(10).collect::<String>();
            for item in items(&entry[list]) {
                let name = format!("{day} {}", text(&item[label]));
                found.insert(name, (item["total_spend"].as_f64().unwrap_or(f64::NAN), 0));
            }
        }
        let mut expected = sums(connection, statement).await;
        expected.values_mut().for_each(|sum| sum.1 = 0);
        same(ledger, &format!("report by {group}"), &found, &expected);
    }
    if let Some(report) = get(format!("/global/spend/report?{RANGE}&group_by=api_key")).await {
        let found =
            items(&report).into_iter().map(|key| (text(&key["api_key"]), (key["total_cost"].as_f64().unwrap(), 0)));
        let mut expected = sums(connection, log("api_key", "")).await;
        expected.values_mut().for_each(|sum| sum.1 = 0);
        same(ledger, "report by api_key", &found.collect(), &expected);
    }
    if let Some(tags) = get(format!("/spend/tags?{RANGE}")).await {
        let found = items(&tags).into_iter().map(|tag| {
            let name = text(&tag["individual_request_tag"]);
            (name, (tag["total_spend"].as_f64().unwrap(), tag["log_count"].as_i64().unwrap()))
        });
        let expected = sums(connection, log("tag", ", jsonb_array_elements_text(request_tags) AS tag")).await;
        same(ledger, "tags", &found.collect(), &expected);
    }
    if let Some(days) = get(format!("/spend/logs?{RANGE}")).await {
        let days = items(&days);
        let days = days.iter().filter(|day| day["spend"].as_f64() != Some(0.0));
        let found = days.map(|day| (text(&day["startTime"]), (day["spend"].as_f64().unwrap(), 0)));
        // A summary ends at the start of its last day.
        let statement = log(day, "").replace("'2026-03-01'", "'2026-02-28'");
        let mut expected = sums(connection, statement).await;
        expected.retain(|_, sum| sum.0 != 0.0);
        expected.values_mut().for_each(|sum| sum.1 = 0);
        same(ledger, "summaries of the log", &found.collect(), &expected);
    }
    if let Some(activity) = get(format!("/user/daily/activity/aggregated?{RANGE}")).await {
        let found = items(&activity["results"]).into_iter().map(|day| {
            let metrics = &day["metrics"];
            (text(&day["date"]), (metrics["spend"].as_f64().unwrap(), metrics["api_requests"].as_i64().unwrap()))
        });
        let expected = sums(connection, log(day, "")).await;
        same(ledger, "activity", &found.collect(), &expected);
    }
}

/// Checks that no session of a server is in a transaction that has been abandoned, and that no idle session holds a
/// lock.
pub(crate) async fn check_sessions(ledger: &Ledger, connection: &mut PgConnection) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let left: Vec<(i32, String, String)> = sqlx::query_as(
            "SELECT pid, state, coalesce(query, '') FROM pg_stat_activity a
             WHERE application_name LIKE 'litespend%' AND pid <> pg_backend_pid()
               AND (state LIKE 'idle in transaction%'
                    OR (state = 'idle' AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype <> 'virtualxid')))",
        )
        .fetch_all(&mut *connection)
        .await
        .unwrap();
        if left.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            return ledger.violation(format!("sessions that rest in a transaction or with locks: {left:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
