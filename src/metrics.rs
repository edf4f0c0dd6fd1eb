//! Prometheus metrics. This module defines all their names, and no other module records any.

use std::borrow::Cow;
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
const SPANS: &str = "litespend_otlp_spans_total";
const REFUSALS: &str = "litespend_refusals_total";
const DATABASE_WAITS: &str = "litespend_database_waits_total";
const DATABASE_WAIT_TIMEOUTS: &str = "litespend_database_wait_timeouts_total";
const SLOW_CLIENTS: &str = "litespend_slow_clients_disconnected_total";
const PRICES_AGE: &str = "litespend_prices_age_seconds";
const PRICES_MODELS: &str = "litespend_prices_models";
const PRICES_FAILED: &str = "litespend_prices_refresh_failed";

/// What a metric measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number that only grows.
    Counter,
    /// A number that rises and falls.
    Gauge,
    /// How often values fell into ranges, with their sum and their number.
    Histogram,
}

impl Kind {
    /// The name of the type in the text format of Prometheus.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The description of a metric: what the answer says of it, and the reference in `docs/metrics.md`.
#[derive(Clone, Debug)]
pub struct Description {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its type.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: Cow<'static, [&'static str]>,
    /// The unit of its values.
    pub unit: &'static str,
    /// What it says.
    pub help: Cow<'static, str>,
    /// When it is there.
    pub appears: Cow<'static, str>,
}

impl Description {
    /// The lines before the values, in the text format of Prometheus.
    pub fn head(&self) -> String {
        format!("# HELP {0} {1}\n# TYPE {0} {2}\n", self.name, self.help, self.kind.name())
    }
}

const fn describe(
    kind: Kind,
    name: &'static str,
    labels: &'static [&'static str],
    unit: &'static str,
    help: &'static str,
    appears: &'static str,
) -> Description {
    Description {
        name: Cow::Borrowed(name),
        kind,
        labels: Cow::Borrowed(labels),
        unit,
        help: Cow::Borrowed(help),
        appears: Cow::Borrowed(appears),
    }
}

const ALWAYS: &str = "always";
const AFTER_AN_ANSWER: &str = "after the first answer, for each route and class of status that occurred";
const WITH_ROLLUPS: &str = "with rollups, once the server has looked for work";

/// All metrics of `/metrics`.
#[rustfmt::skip]
pub static METRICS: [Description; 29] = [
    describe(Kind::Counter, REQUESTS, &["route", "status"], "requests",
        "Requests by route and by class of status (`2xx`, `4xx`, ...)", AFTER_AN_ANSWER),
    describe(Kind::Histogram, LATENCY, &["route", "status"], "seconds",
        "Time to the start of the answer by route and class of status", AFTER_AN_ANSWER),
    describe(Kind::Gauge, CONNECTIONS, &[], "connections", "Client connections that are open", "after the first connection"),
    describe(Kind::Counter, CONNECTIONS_REFUSED, &["limit"], "connections",
        "Client connections over a limit: refused at the limit of one address (`address`), refused at the limit of all \
         (`all`), or closed while idle to make room (`replaced`)", ALWAYS),
    describe(Kind::Gauge, POOL_SIZE, &[], "connections", "Database connections that are open", ALWAYS),
    describe(Kind::Gauge, POOL_IDLE, &[], "connections", "Database connections that are open and idle", ALWAYS),
    describe(Kind::Gauge, KEYS_CACHED, &[], "lookups", "Key lookups in the cache", ALWAYS),
    describe(Kind::Counter, LOG_DROPPED, &[], "lines",
        "Lines of the server's log that were dropped, because nobody read them in time", ALWAYS),
    describe(Kind::Gauge, DELTAS, &[], "changes", "Changes of the log that are not folded into the rollups yet", WITH_ROLLUPS),
    describe(Kind::Gauge, OLDEST_DELTA, &[], "seconds",
        "How long the oldest change has waited that is not folded into the rollups yet", WITH_ROLLUPS),
    describe(Kind::Gauge, DIRTY_DAYS, &[], "days", "Days to be counted again from the log", WITH_ROLLUPS),
    describe(Kind::Gauge, DAYS_TO_PACK, &[], "days", "Past days and months of the rollups that are not packed", WITH_ROLLUPS),
    describe(Kind::Gauge, DAYS_TO_SUM, &[], "days", "Past days of LiteLLM's daily rows that are not summed", WITH_ROLLUPS),
    describe(Kind::Counter, FOLDED, &[], "changes", "Changes of the log that this server folded", ALWAYS),
    describe(Kind::Counter, FOLD_FAILURES, &[], "failures",
        "Batches and days that this server failed to fold, count or pack", ALWAYS),
    describe(Kind::Gauge, LOCK_HELD, &[], "seconds",
        "How long another session has held the folding's lock while work waited", "after work had to wait for the lock"),
    describe(Kind::Gauge, MISPLACED_ROWS, &[], "rows",
        "Rows of the log that are in no partition of a month, at most 10,000",
        "with a log of litespend's own that is partitioned by month"),
    describe(Kind::Gauge, ROLLUPS_LOST, &[], "0 or 1",
        "1 if rollups are installed that do not count the log any more, or that the database role of the server may not read",
        "once the server has looked for rollups"),
    describe(Kind::Gauge, CLOSED_THROUGH, &[], "seconds since 1970",
        "The end of the last closed day, as seconds since 1970; 0 while no day is closed",
        "with `--close-after`, once the server has looked for days to close"),
    describe(Kind::Counter, BOOKS_FAILURES, &[], "failures",
        "Failures of this server to close, archive or prune days, and to read the archive", ALWAYS),
    describe(Kind::Counter, BOOKED, &["status"], "records",
        "Records that were sent to this server for booking, by outcome (`recorded`, `duplicate`, `error`)", ALWAYS),
    describe(Kind::Counter, SPANS, &["outcome"], "spans",
        "Spans of OpenTelemetry by what became of them: booked (`recorded`), booked before (`duplicate`), inferences that \
         cannot be booked (`rejected`), and ignored although they have token counts, because they do not say what they \
         describe (`unnamed`)", ALWAYS),
    describe(Kind::Counter, REFUSALS, &["reason"], "answers",
        "Answers that refuse a request or say that it failed, by what their status means (`unauthorized`, `invalid`, \
         `unavailable`, ...)", ALWAYS),
    describe(Kind::Counter, DATABASE_WAITS, &[], "requests", "Requests that waited for a database connection", ALWAYS),
    describe(Kind::Counter, DATABASE_WAIT_TIMEOUTS, &[], "requests",
        "Requests that waited in vain for a database connection", ALWAYS),
    describe(Kind::Counter, SLOW_CLIENTS, &[], "connections",
        "Connections that were closed because the client did not read its answer", ALWAYS),
    describe(Kind::Gauge, PRICES_AGE, &["source"], "seconds",
        "How long ago the price table was read, by source; 0 for the built-in one", ALWAYS),
    describe(Kind::Gauge, PRICES_MODELS, &["source"], "names", "Names in the price table in use, by source", ALWAYS),
    describe(Kind::Gauge, PRICES_FAILED, &[], "0 or 1", "1 if the last attempt to read newer prices failed", ALWAYS),
];

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

/// How many spans of a request became what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spans {
    /// Inferences that were booked.
    pub recorded: usize,
    /// Inferences that had been booked before.
    pub duplicate: usize,
    /// Inferences that cannot be booked, now or later.
    pub rejected: usize,
    /// Spans that have token counts and do not say what they describe.
    pub unnamed: usize,
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
            for Description { name, kind, help, .. } in &METRICS {
                match kind {
                    Kind::Counter => metrics::describe_counter!(name.clone(), help.clone()),
                    Kind::Gauge => metrics::describe_gauge!(name.clone(), help.clone()),
                    Kind::Histogram => metrics::describe_histogram!(name.clone(), help.clone()),
                }
            }
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
            Self::record_spans(&Spans::default());
            for reason in REASONS {
                metrics::counter!(REFUSALS, "reason" => reason).increment(0);
            }
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

    /// Counts the spans of a request.
    pub fn record_spans(spans: &Spans) {
        let Spans { recorded, duplicate, rejected, unnamed } = *spans;
        let counts = [("recorded", recorded), ("duplicate", duplicate), ("rejected", rejected), ("unnamed", unnamed)];
        for (outcome, count) in counts {
            metrics::counter!(SPANS, "outcome" => outcome).increment(u64::try_from(count).unwrap_or(u64::MAX));
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

    /// Records whether rollups are installed that do not count the log any more.
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
    fn every_metric_is_described() {
        let this = include_str!("metrics.rs").split("#[cfg(test)]").next().unwrap();
        let defined = names(this, "\"");
        assert!(defined.contains(super::REQUESTS), "{defined:?}");
        let described = super::METRICS.iter().map(|metric| metric.name.as_ref()).collect();
        assert_eq!(defined, described, "the names in src/metrics.rs, and the table METRICS");
    }

    #[test]
    fn the_manuals_mention_no_other_metric() {
        let described: BTreeSet<&str> = super::METRICS.iter().map(|metric| metric.name.as_ref()).collect();
        let reference = include_str!("../docs/metrics.md");
        let (of_server, _) = reference.split_once("## `/metrics/spend`").unwrap();
        assert_eq!(names(of_server, "\n| `"), described, "the first table in docs/metrics.md");
        let listed = names(reference, "\n| `");
        for manual in [include_str!("../docs/operations.md"), include_str!("../docs/opentelemetry.md")] {
            assert!(names(manual, "`").is_subset(&listed), "a manual mentions a metric that does not exist");
        }
    }
}
