//! Prometheus metrics. This module defines all their names, and no other module records any.

use std::time::Duration;

use axum::http::StatusCode;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

const REQUESTS: &str = "litespend_http_requests_total";
const LATENCY: &str = "litespend_http_request_duration_seconds";
const POOL_SIZE: &str = "litespend_database_connections";
const POOL_IDLE: &str = "litespend_database_connections_idle";
const KEYS_CACHED: &str = "litespend_key_cache_entries";
const LOG_DROPPED: &str = "litespend_log_lines_dropped_total";
const CONNECTIONS: &str = "litespend_connections";
const CONNECTIONS_REFUSED: &str = "litespend_connections_refused_total";
const DELTAS: &str = "litespend_rollups_deltas_waiting";
const OLDEST_DELTA: &str = "litespend_rollups_oldest_delta_seconds";
const DIRTY_DAYS: &str = "litespend_rollups_days_to_count";
const DAYS_TO_PACK: &str = "litespend_rollups_days_to_pack";
const DAYS_TO_SUM: &str = "litespend_rollups_days_to_sum";
const FOLDED: &str = "litespend_rollups_deltas_folded_total";
const FOLD_FAILURES: &str = "litespend_rollups_failures_total";
const LOCK_HELD: &str = "litespend_rollups_lock_held_seconds";
const ROLLUPS_LOST: &str = "litespend_rollups_lost";
const MISPLACED_ROWS: &str = "litespend_log_default_partition_rows";
const CLOSED_THROUGH: &str = "litespend_books_closed_through_timestamp_seconds";
const BOOKS_FAILURES: &str = "litespend_books_failures_total";
const BOOKED: &str = "litespend_booked_records_total";
const REFUSALS: &str = "litespend_refusals_total";
const DATABASE_WAITS: &str = "litespend_database_waits_total";
const DATABASE_WAIT_TIMEOUTS: &str = "litespend_database_wait_timeouts_total";
const SLOW_CLIENTS: &str = "litespend_slow_clients_disconnected_total";
const PRICES_AGE: &str = "litespend_prices_age_seconds";
const PRICES_MODELS: &str = "litespend_prices_models";
const PRICES_FAILED: &str = "litespend_prices_refresh_failed";

/// Why requests are refused or fail.
const REASONS: [&str; 13] = [
    "invalid",
    "unauthorized",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "conflict",
    "too_large",
    "too_many_requests",
    "other",
    "failure",
    "upstream",
    "unavailable",
    "timeout",
];

fn reason(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 | 422 => "invalid",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        405 => "method_not_allowed",
        409 => "conflict",
        413 => "too_large",
        429 => "too_many_requests",
        500 => "failure",
        502 => "upstream",
        503 => "unavailable",
        504 => "timeout",
        _ => "other",
    }
}

/// The upper bounds of the latency histogram's buckets, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The backlog of the rollups.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting {
    /// Changes of the log that have not been folded.
    pub deltas: i64,
    /// How long the oldest of them has waited, in seconds.
    pub oldest_seconds: f64,
    /// Days that must be counted again from the log.
    pub dirty_days: i64,
    /// Days and months that are over and have not been packed.
    pub days_to_pack: i64,
    /// Days of daily rows that are over and have not been summed.
    pub days_to_sum: i64,
}

/// Values that are measured when Prometheus scrapes.
#[derive(Clone, Debug)]
pub struct Now {
    /// Connections to the database.
    pub connections: u32,
    /// Connections to the database that are idle.
    pub idle_connections: usize,
    /// Entries in the key cache.
    pub keys_cached: u64,
    /// Log lines that were dropped because nobody read them in time.
    pub log_lines_dropped: u64,
    /// Source of the price table in use.
    pub prices_source: String,
    /// Names in that table.
    pub prices_models: usize,
    /// How long ago it was read; `None` if it is the built-in one.
    pub prices_age: Option<Duration>,
    /// Whether the last attempt to read a newer one failed.
    pub prices_failed: bool,
}

/// The metrics recorder. A process has one, which all its servers share.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Installs the recorder of this process, or returns the one that is already installed.
    pub fn install() -> anyhow::Result<Self> {
        static HANDLE: std::sync::OnceLock<Result<PrometheusHandle, String>> = std::sync::OnceLock::new();
        let handle = HANDLE.get_or_init(|| {
            let handle = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Full(LATENCY.to_owned()), &BUCKETS)
                .and_then(PrometheusBuilder::install_recorder)
                .map_err(|error| error.to_string())?;
            metrics::describe_counter!(REQUESTS, "Requests by route and class of status");
            metrics::describe_histogram!(LATENCY, metrics::Unit::Seconds, "Time to the start of the answer by route");
            metrics::describe_gauge!(POOL_SIZE, "Database connections open");
            metrics::describe_gauge!(POOL_IDLE, "Database connections open and idle");
            metrics::describe_gauge!(KEYS_CACHED, "Key lookups remembered");
            metrics::describe_counter!(LOG_DROPPED, "Lines of the log that nobody read in time");
            metrics::describe_gauge!(CONNECTIONS, "Client connections open");
            metrics::describe_counter!(
                CONNECTIONS_REFUSED,
                "Client connections over a limit: of an address, of all, or replaced while idle"
            );
            metrics::describe_gauge!(DELTAS, "Changes of the log that are not folded into the rollups");
            metrics::describe_gauge!(OLDEST_DELTA, metrics::Unit::Seconds, "How long the oldest of them has waited");
            metrics::describe_gauge!(DIRTY_DAYS, "Days to be counted again from the log");
            metrics::describe_gauge!(DAYS_TO_PACK, "Days and months of the rollups that are over and not packed");
            metrics::describe_gauge!(DAYS_TO_SUM, "Days of daily rows that are over and not summed");
            metrics::describe_counter!(FOLDED, "Changes of the log folded by this server");
            metrics::describe_counter!(
                FOLD_FAILURES,
                "Batches and days that this server failed to fold, count or pack"
            );
            metrics::describe_gauge!(
                MISPLACED_ROWS,
                "Rows of the log that are in no partition of a month, at most 10,000"
            );
            metrics::describe_gauge!(ROLLUPS_LOST, "1 if the rollups count a table that is not the log any more");
            metrics::describe_gauge!(
                CLOSED_THROUGH,
                metrics::Unit::Seconds,
                "The end of the last closed day, as seconds since 1970; 0 while no day is closed"
            );
            metrics::describe_counter!(
                BOOKS_FAILURES,
                "Failures of this server to close, archive or prune days, and to read the archive"
            );
            metrics::describe_gauge!(
                PRICES_AGE,
                metrics::Unit::Seconds,
                "How long ago the price table was read, by source; 0 for the built-in one"
            );
            metrics::describe_gauge!(PRICES_MODELS, "Names in the price table in use, by source");
            metrics::describe_gauge!(PRICES_FAILED, "1 if the last attempt to read newer prices failed");
            metrics::describe_counter!(BOOKED, "Records sent to this server for booking, by outcome");
            metrics::describe_counter!(REFUSALS, "Answers that refuse a request, or say that it failed, by reason");
            metrics::describe_counter!(DATABASE_WAITS, "Requests that waited for a database connection");
            metrics::describe_counter!(
                DATABASE_WAIT_TIMEOUTS,
                "Requests that waited in vain for a database connection"
            );
            metrics::describe_counter!(SLOW_CLIENTS, "Connections closed because the client did not read its answer");
            // A rate can't be computed of the first event if the counter begins with it.
            for counter in [FOLDED, FOLD_FAILURES, BOOKS_FAILURES, DATABASE_WAITS, DATABASE_WAIT_TIMEOUTS, SLOW_CLIENTS]
            {
                metrics::counter!(counter).increment(0);
            }
            for limit in ["address", "all", "replaced"] {
                metrics::counter!(CONNECTIONS_REFUSED, "limit" => limit).increment(0);
            }
            for status in ["recorded", "duplicate", "error"] {
                metrics::counter!(BOOKED, "status" => status).increment(0);
            }
            for reason in REASONS {
                metrics::counter!(REFUSALS, "reason" => reason).increment(0);
            }
            metrics::describe_gauge!(
                LOCK_HELD,
                metrics::Unit::Seconds,
                "How long another session has held the folding's lock while work waited"
            );
            Ok(handle)
        });
        handle.clone().map(|handle| Self { handle }).map_err(anyhow::Error::msg)
    }

    /// Counts one answer. `route` is the matched pattern, which bounds the number of series.
    pub fn record(route: &str, status: StatusCode, elapsed: Duration) {
        let class = match status.as_u16() / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        metrics::counter!(REQUESTS, "route" => route.to_owned(), "status" => class).increment(1);
        metrics::histogram!(LATENCY, "route" => route.to_owned(), "status" => class).record(elapsed.as_secs_f64());
    }

    /// Counts an answer that refuses a request or says that it failed.
    pub fn record_refusal(status: StatusCode) {
        metrics::counter!(REFUSALS, "reason" => reason(status)).increment(1);
    }

    /// Counts records that were sent for booking.
    pub fn record_booked(recorded: usize, duplicate: usize, error: usize) {
        for (status, count) in [("recorded", recorded), ("duplicate", duplicate), ("error", error)] {
            metrics::counter!(BOOKED, "status" => status).increment(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }

    /// Counts a request that waits for a database connection.
    pub fn record_database_wait() {
        metrics::counter!(DATABASE_WAITS).increment(1);
    }

    /// Counts a request that waited in vain for a database connection.
    pub fn record_database_wait_timeout() {
        metrics::counter!(DATABASE_WAIT_TIMEOUTS).increment(1);
    }

    /// Counts a connection that was closed because the client did not read its answer.
    pub fn record_slow_client() {
        metrics::counter!(SLOW_CLIENTS).increment(1);
    }

    /// Sets the number of open client connections.
    pub fn connections(count: usize) {
        metrics::gauge!(CONNECTIONS).set(count as f64);
    }

    /// Counts a connection that a limit refused (`address`, `all`), or that was closed for the benefit of a new one
    /// (`replaced`).
    pub fn connection_refused(limit: &'static str) {
        metrics::counter!(CONNECTIONS_REFUSED, "limit" => limit).increment(1);
    }

    /// Sets the backlog of the rollups.
    pub fn record_backlog(backlog: &Waiting) {
        metrics::gauge!(DELTAS).set(backlog.deltas as f64);
        metrics::gauge!(OLDEST_DELTA).set(backlog.oldest_seconds);
        metrics::gauge!(DIRTY_DAYS).set(backlog.dirty_days as f64);
        metrics::gauge!(DAYS_TO_PACK).set(backlog.days_to_pack as f64);
        metrics::gauge!(DAYS_TO_SUM).set(backlog.days_to_sum as f64);
    }

    /// Counts deltas that were folded.
    pub fn record_folded(deltas: i64) {
        metrics::counter!(FOLDED).increment(deltas.unsigned_abs());
    }

    /// Counts a failure of folding, counting or packing.
    pub fn record_fold_failure() {
        metrics::counter!(FOLD_FAILURES).increment(1);
    }

    /// Sets how long another session has held the lock for folding while work waited.
    pub fn record_lock_held(held: Duration) {
        metrics::gauge!(LOCK_HELD).set(held.as_secs_f64());
    }

    /// Sets how many rows of the log are in no partition of a month.
    pub fn record_misplaced_rows(rows: i64) {
        metrics::gauge!(MISPLACED_ROWS).set(rows as f64);
    }

    /// Sets the end of the last closed day, in seconds since 1970.
    pub fn record_closed_through(seconds: i64) {
        metrics::gauge!(CLOSED_THROUGH).set(seconds as f64);
    }

    /// Counts a failure to close, archive or prune days, or to read the archive.
    pub fn record_books_failure() {
        metrics::counter!(BOOKS_FAILURES).increment(1);
    }

    /// Records whether the rollups count a table that is not the log any more.
    pub fn record_rollups_lost(lost: bool) {
        metrics::gauge!(ROLLUPS_LOST).set(f64::from(u8::from(lost)));
    }

    /// The metrics in the text format of Prometheus.
    pub fn render(&self, now: &Now) -> String {
        metrics::gauge!(POOL_SIZE).set(f64::from(now.connections));
        metrics::gauge!(POOL_IDLE).set(now.idle_connections as f64);
        metrics::gauge!(KEYS_CACHED).set(now.keys_cached as f64);
        metrics::counter!(LOG_DROPPED).absolute(now.log_lines_dropped);
        let source = now.prices_source.clone();
        metrics::gauge!(PRICES_AGE, "source" => source.clone()).set(now.prices_age.unwrap_or_default().as_secs_f64());
        metrics::gauge!(PRICES_MODELS, "source" => source).set(now.prices_models as f64);
        metrics::gauge!(PRICES_FAILED).set(f64::from(u8::from(now.prices_failed)));
        self.handle.run_upkeep();
        self.handle.render()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The names that stand behind `before` in a text.
    fn names<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
        let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let starts = text.match_indices(before).map(|(at, _)| text.split_at(at + before.len()).1);
        let words = starts.map(|rest| rest.split(|character| !is_part(character)).next().unwrap_or_default());
        words.filter(|word| word.starts_with("litespend_")).collect()
    }

    #[test]
    fn the_manual_lists_every_metric_and_no_other() {
        let this = include_str!("metrics.rs").split("#[cfg(test)]").next().unwrap();
        let manual = include_str!("../docs/operations.md");
        let defined = names(this, "\"");
        assert!(defined.contains(super::REQUESTS), "{defined:?}");
        assert_eq!(names(manual, "\n| `"), defined, "the table in docs/operations.md, and the names in src/metrics.rs");
        assert!(names(manual, "`").is_subset(&defined), "docs/operations.md mentions a metric that does not exist");
    }
}
