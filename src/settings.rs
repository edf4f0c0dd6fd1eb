//! The checked settings of a running server, as plain values. `cli::args` reads flags and the environment;
//! [`config_file`] reads LiteLLM's `config.yaml`.

pub mod config_file;
pub mod network;
pub mod spend_metrics;
pub mod upstream;

use clap::ValueEnum;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use ipnetwork::IpNetwork;
use secrecy::SecretString;

pub use config_file::ConfigFile;
pub use spend_metrics::SpendMetricsSettings;
pub use upstream::Target;

/// The largest cost of one record in USD, whatever the settings are. The sum of many such costs stays far within the
/// range of a double.
pub const MAX_COST: f64 = 1e12;

/// The checked settings of a running server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The key that grants all rights.
    pub master_key: SecretString,
    /// `allowed_ips` of the config file. It applies until the database contains a list.
    pub allowed_ips: Option<Vec<String>>,
    /// Proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpNetwork>,
    /// Whether `X-Forwarded-For` is used at all.
    pub use_x_forwarded_for: bool,
    /// Whether summaries of `/spend/logs` include the whole end day.
    pub inclusive_end_date: bool,
    /// Whether `group_by=model` is accepted.
    pub group_by_model: bool,
    /// Whether strings in CSV are made safe for spreadsheets by default.
    pub csv_safe: bool,
    /// Whether `/metrics` and `/metrics/spend` are served without a key.
    pub metrics_public: bool,
    /// Which series `/metrics/spend` lists.
    pub spend_metrics: SpendMetricsSettings,
    /// Whether keys, teams and users may be changed in a database that LiteLLM owns.
    pub manage_litellm_keys: bool,
    /// The largest time until the first byte of an answer.
    pub request_timeout: Duration,
    /// Settings of authentication.
    pub authority: AuthoritySettings,
    /// The LiteLLM to which other requests are passed on, if there is one.
    pub upstream: Option<Target>,
    /// The paths that litespend serves if there is an upstream. Empty means all.
    pub serve_only: Vec<String>,
    /// Settings of the dashboard, if it is served.
    pub ui: Option<UiSettings>,
    /// Limits of client connections and of slow clients.
    pub connections: ConnectionLimits,
    /// Limits of booking.
    pub booking: BookingLimits,
    /// Limits of reads.
    pub reads: ReadSettings,
    /// What becomes of OpenTelemetry's traces.
    pub otlp: OtlpSettings,
}

/// Settings of authentication.
#[derive(Clone, Debug)]
pub struct AuthoritySettings {
    /// `LITESPEND_SECRET`, which signs the dashboard's tokens and seals its sessions.
    pub secret: Option<SecretString>,
    /// The largest number of database lookups of unknown keys per second. Default: 50.
    pub key_lookups: u32,
}

impl Default for AuthoritySettings {
    fn default() -> Self {
        Self { secret: None, key_lookups: 50 }
    }
}

/// Limits of client connections and of slow clients.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// The largest number of client connections. Default: 1024.
    pub connections: usize,
    /// The largest number of connections from one address. Default: 256.
    pub per_address: usize,
    /// The largest number of concurrent requests on one HTTP/2 connection. Default: 100.
    pub streams: u32,
    /// The largest time for a request head. Default: 15 s.
    pub head: Duration,
    /// The largest time for which a connection without a request is kept. Default: 75 s.
    pub idle: Duration,
    /// The largest time for which a stalled request body is waited for. Default: 10 s.
    pub body: Duration,
    /// The largest time for which a client that does not read its answer is waited for. Default: 60 s.
    pub answer: Duration,
}

impl Default for ConnectionLimits {
    /// The defaults of the command-line flags.
    fn default() -> Self {
        Self {
            connections: 1024,
            per_address: 256,
            streams: 100,
            head: Duration::from_secs(15),
            idle: Duration::from_secs(75),
            body: Duration::from_secs(10),
            answer: Duration::from_secs(60),
        }
    }
}

/// The limits of booking, which an installation can change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BookingLimits {
    /// The largest cost of one record in USD. A larger cost is refused as a mistake, whoever sends it. `litespend
    /// import` is exempt.
    pub most_spend: f64,
    /// The largest number of tokens of one record. The same rules apply.
    pub most_tokens: i64,
    /// How many days back a record may be dated, unless its sender is trusted.
    pub days_back: u32,
    /// How many hours ahead a record may be dated. This allows for a client's clock that is wrong.
    pub hours_ahead: u32,
    /// How many models, customers and tags that nobody has used before a key may add per day (UTC), unless its sender
    /// is trusted. Each new name is kept for ever.
    pub new_names_a_day: u32,
    /// For how many days ids are kept. If a record is sent again later, only the log is searched for it.
    pub keep_ids_days: u32,
}

impl Default for BookingLimits {
    fn default() -> Self {
        Self {
            most_spend: 10_000.0,
            most_tokens: 100_000_000,
            days_back: 400,
            hours_ahead: 24,
            new_names_a_day: 10_000,
            keep_ids_days: 400,
        }
    }
}

/// What becomes of OpenTelemetry's traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpSettings {
    /// Whether traces are booked in a database that LiteLLM owns, too. A LiteLLM that serves the same calls books them
    /// itself, so they would count twice.
    pub on_litellm_database: bool,
    /// The attributes that name the customer. The first one that a span or its resource has counts. Default:
    /// `enduser.id`, then `user.id`.
    pub customer_attributes: Vec<String>,
    /// The attributes that become tags. Default: none.
    pub tag_attributes: Vec<String>,
}

impl Default for OtlpSettings {
    fn default() -> Self {
        let customer_attributes = vec!["enduser.id".to_owned(), "user.id".to_owned()];
        Self { on_litellm_database: false, customer_attributes, tag_attributes: Vec::new() }
    }
}

/// What a server does with closed days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BooksSettings {
    /// Close a day when it has been over for this number of days. `None` means that the server closes none.
    pub close_after: Option<u32>,
    /// Remove the rows of closed days from the log when they are older than this number of days.
    pub prune_after: Option<u32>,
    /// Empty messages, responses and requests of rows that are older than this number of days.
    pub strip_after: Option<u32>,
    /// Whether the archive gets messages, responses and requests.
    pub archive_bodies: bool,
    /// Whether rows may leave a log that LiteLLM owns.
    pub prune_litellm_logs: bool,
}

/// Limits of reads.
#[derive(Clone, Debug)]
pub struct ReadSettings {
    /// The largest number of large answers that are sent at the same time. Default: 256.
    pub large_answers: usize,
    /// The largest number of large answers that are sent to one key at the same time. Default: 32.
    pub large_answers_per_key: usize,
    /// The folder for answers that are read ahead. `None` means the system's folder for temporary files.
    pub spool_dir: Option<PathBuf>,
    /// The largest number of bytes on disk for one answer. Default: 512 MiB.
    pub spool_answer: u64,
    /// The largest number of bytes on disk for all answers. Default: 2048 MiB.
    pub spool_total: u64,
}

impl Default for ReadSettings {
    fn default() -> Self {
        Self {
            large_answers: 256,
            large_answers_per_key: 32,
            spool_dir: None,
            spool_answer: 512 * 1024 * 1024,
            spool_total: 2048 * 1024 * 1024,
        }
    }
}

/// Where the dashboard is, and which admin may log in with a password.
#[derive(Clone, Debug)]
pub struct UiSettings {
    /// The folder of the dashboard's static export.
    pub directory: PathBuf,
    /// The admin's name (`UI_USERNAME`).
    pub username: String,
    /// The admin's password (`UI_PASSWORD`). `None` means that the master key is the password.
    pub password: Option<SecretString>,
}

/// Checks whether a key can serve as the master key.
pub fn check_master_key(key: &str) -> anyhow::Result<()> {
    if !key.starts_with("sk-") || key.len() < 6 || key.chars().any(char::is_whitespace) {
        bail!("the master key must start with 'sk-', have at least 6 characters and no spaces");
    }
    Ok(())
}

/// The format of the request log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines of text for people.
    Text,
    /// One JSON object per line.
    Json,
}
