//! The arguments of `serve` that are limits: of connections, of booking and of reads.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::settings::{BookingLimits, ConnectionLimits, ReadSettings};

/// The arguments for the limits of client connections. All times are whole seconds.
#[derive(Clone, Debug, Args)]
pub struct ConnectionArgs {
    /// Maximum number of client connections. Beyond it, an idle connection is closed, or the new one is refused if none
    /// is idle.
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 1024, value_name = "N",
          value_parser = clap::value_parser!(u32).range(8..=100_000))]
    pub max_connections: u32,

    /// Maximum number of connections from one address (IPv6: from one /64 network). Trusted proxies have no such limit.
    #[arg(long, env = "MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 256, value_name = "N",
          value_parser = clap::value_parser!(u32).range(4..=100_000))]
    pub max_connections_per_address: u32,

    /// Maximum number of concurrent requests on one HTTP/2 connection.
    #[arg(long, env = "MAX_STREAMS", default_value_t = 100, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_streams: u32,

    /// Maximum seconds from accepting a connection to its first complete request head, and from the first to the last
    /// byte of a later head.
    #[arg(long, env = "HEAD_TIMEOUT", default_value_t = 15, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub head_timeout: u64,

    /// Seconds for which a connection without a request is kept.
    #[arg(long, env = "IDLE_TIMEOUT", default_value_t = 75, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub idle_timeout: u64,

    /// Seconds to wait for a request's body while nothing, or less than 1 KiB per second, arrives; after that, 408.
    #[arg(long, env = "BODY_TIMEOUT", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub body_timeout: u64,

    /// Seconds to wait for a client that reads nothing, or less than 1 KiB per second, of its answer.
    #[arg(long, env = "ANSWER_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub answer_timeout: u64,
}

impl From<&ConnectionArgs> for ConnectionLimits {
    fn from(args: &ConnectionArgs) -> Self {
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            connections: count(args.max_connections),
            per_address: count(args.max_connections_per_address),
            streams: args.max_streams,
            head: Duration::from_secs(args.head_timeout),
            idle: Duration::from_secs(args.idle_timeout),
            body: Duration::from_secs(args.body_timeout),
            answer: Duration::from_secs(args.answer_timeout),
        }
    }
}

/// The arguments for the limits of booking.
#[derive(Clone, Copy, Debug, Args)]
pub struct BookingArgs {
    /// Maximum cost of one booked record in USD. A larger cost is refused as a mistake.
    #[arg(long, env = "MOST_SPEND_PER_RECORD", default_value_t = 10_000.0, value_name = "USD", value_parser = usd)]
    pub most_spend_per_record: f64,

    /// Maximum number of tokens of one booked record.
    #[arg(long, env = "MOST_TOKENS_PER_RECORD", default_value_t = 100_000_000, value_name = "N",
          value_parser = clap::value_parser!(i64).range(1..=2_147_483_647))]
    pub most_tokens_per_record: i64,

    /// How many days back a booked record may be dated, unless its key has the permission book_usage.
    #[arg(long, env = "RECORDS_DAYS_BACK", default_value_t = 400, value_name = "DAYS",
          value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub records_days_back: u32,

    /// How many hours ahead a booked record may be dated.
    #[arg(long, env = "RECORDS_HOURS_AHEAD", default_value_t = 24, value_name = "HOURS",
          value_parser = clap::value_parser!(u32).range(1..=168))]
    pub records_hours_ahead: u32,

    /// Maximum number of new models, customers and tags that a key without the permission book_usage may add per day.
    #[arg(long, env = "NEW_NAMES_A_DAY", default_value_t = 10_000, value_name = "N")]
    pub new_names_a_day: u32,

    /// For how many days the ids of booked records are kept.
    #[arg(long, env = "KEEP_IDS_DAYS", default_value_t = 400, value_name = "DAYS",
          value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub keep_ids_days: u32,
}

impl BookingArgs {
    /// The limits in the form that booking uses.
    pub fn limits(&self) -> BookingLimits {
        BookingLimits {
            most_spend: self.most_spend_per_record,
            most_tokens: self.most_tokens_per_record,
            days_back: self.records_days_back,
            hours_ahead: self.records_hours_ahead,
            new_names_a_day: self.new_names_a_day,
            keep_ids_days: self.keep_ids_days,
        }
    }
}

fn usd(text: &str) -> Result<f64, String> {
    let amount = text.parse().ok().filter(|amount: &f64| *amount > 0.0 && *amount <= crate::settings::MAX_COST);
    amount.ok_or_else(|| "not an amount of USD between 0 and 1e12".to_owned())
}

/// The arguments for the limits of reads.
#[derive(Clone, Debug, Args)]
pub struct ReadArgs {
    /// Maximum number of answers above 64 KiB that are sent at the same time; beyond it, 503.
    #[arg(long, env = "LARGE_ANSWERS", default_value_t = 256, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub large_answers: u32,

    /// Maximum number of these answers for one key; beyond it, 429.
    #[arg(long, env = "LARGE_ANSWERS_PER_KEY", default_value_t = 32, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub large_answers_per_key: u32,

    /// Folder for answers that are read ahead for slow clients, in files without a name. Default: the system's folder
    /// for temporary files.
    #[arg(long, env = "SPOOL_DIR", value_name = "DIR")]
    pub spool_dir: Option<PathBuf>,

    /// Maximum MiB on disk that are read ahead for one client. A larger answer is cut off after waiting 10 seconds for
    /// its client.
    #[arg(long, env = "SPOOL_ANSWER_MB", default_value_t = 512, value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(0..=1_048_576))]
    pub spool_answer_mb: u64,

    /// Maximum MiB on disk that are read ahead for all clients.
    #[arg(long, env = "SPOOL_TOTAL_MB", default_value_t = 2048, value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(0..=1_048_576))]
    pub spool_total_mb: u64,
}

impl ReadArgs {
    /// The settings of a running server.
    pub fn settings(&self) -> ReadSettings {
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        ReadSettings {
            large_answers: count(self.large_answers),
            large_answers_per_key: count(self.large_answers_per_key),
            spool_dir: self.spool_dir.clone(),
            spool_answer: self.spool_answer_mb * 1024 * 1024,
            spool_total: self.spool_total_mb * 1024 * 1024,
        }
    }
}
