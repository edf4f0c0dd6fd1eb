//! The settings of a running server: plain values, checked. Flags and the environment are read by `cli::args`, LiteLLM's
//! `config.yaml` by [`config_file`].

pub mod config_file;
pub mod network;
pub mod upstream;

use clap::ValueEnum;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use ipnetwork::IpNetwork;
use secrecy::SecretString;

pub use config_file::ConfigFile;
pub use upstream::Target;

/// USD of one record, whatever the settings say; a sum of many stays far from what a double can't hold.
pub const MOST_COST: f64 = 1e12;

/// The settings of a running server, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The master key.
    pub master_key: SecretString,
    /// `allowed_ips` of the config file: used until the database has a list.
    pub allowed_ips: Option<Vec<String>>,
    /// Proxies whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNetwork>,
    /// Whether it counts at all.
    pub use_x_forwarded_for: bool,
    /// Whether summaries of `/spend/logs` count the whole end day.
    pub inclusive_end_date: bool,
    /// Whether `group_by=model` is answered.
    pub group_by_model: bool,
    /// Whether the texts of a CSV are made safe for spreadsheets where a request does not say.
    pub csv_safe: bool,
    /// Whether `/metrics` needs no key.
    pub metrics_public: bool,
    /// Whether keys, teams and users may be changed in a database that LiteLLM owns.
    pub manage_litellm_keys: bool,
    /// Time to the first byte of an answer.
    pub request_timeout: Duration,
    /// Who may do what.
    pub authority: AuthoritySettings,
    /// The LiteLLM behind, if there is one.
    pub upstream: Option<Target>,
    /// With one: the paths served here; empty means all.
    pub serve_only: Vec<String>,
    /// The dashboard, if it is served.
    pub ui: Option<UiSettings>,
    /// Limits of connections and of what clients send and take.
    pub connections: ConnectionLimits,
    /// Bounds of booking.
    pub booking: BookingLimits,
    /// Bounds of reads.
    pub reads: ReadSettings,
}

/// Who may do what, in a running server.
#[derive(Clone, Debug)]
pub struct AuthoritySettings {
    /// `LITESPEND_SECRET`.
    pub secret: Option<SecretString>,
    /// Lookups of unknown keys a second.
    pub key_lookups: u32,
}

impl Default for AuthoritySettings {
    fn default() -> Self {
        Self { secret: None, key_lookups: 50 }
    }
}

/// The limits of a running server.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address.
    pub per_address: usize,
    /// Requests at the same time on one HTTP/2 connection.
    pub streams: u32,
    /// For a request head.
    pub head: Duration,
    /// Without a request.
    pub idle: Duration,
    /// Patience with a request's body.
    pub body: Duration,
    /// Patience with who takes an answer.
    pub answer: Duration,
}

impl Default for ConnectionLimits {
    /// The defaults of the flags.
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

/// The bounds of booking that an installation can move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BookingLimits {
    /// USD of one record; more is taken for a mistake, whoever sends it. `litespend import` is exempt.
    pub most_spend: f64,
    /// Tokens of one record, likewise.
    pub most_tokens: i64,
    /// Days that a record may lie back, where its sender is not a permitted feed.
    pub days_back: u32,
    /// Hours that a record may lie ahead: how far a client's clock may be off.
    pub hours_ahead: u32,
    /// Models, customers and tags that nobody used before, by key and day (UTC), where the sender is not a permitted
    /// feed. Each is kept for ever.
    pub new_names_a_day: u32,
    /// Days for which ids are remembered: a record sent again after that is looked for in the log alone.
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

/// Settings of reads.
#[derive(Clone, Debug)]
pub struct ReadSettings {
    /// Large answers that are being sent, of all keys and of one.
    pub large_answers: usize,
    /// The same of one key.
    pub large_answers_per_key: usize,
    /// Folder for what is read ahead; the system's for temporary files where none is named.
    pub spool_dir: Option<PathBuf>,
    /// Bytes on disk of one answer.
    pub spool_answer: u64,
    /// Bytes on disk of all answers.
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

/// Where the dashboard is, and who may log in with a password.
#[derive(Clone, Debug)]
pub struct UiSettings {
    /// The folder of the static export.
    pub directory: PathBuf,
    /// `UI_USERNAME`: the admin's name.
    pub username: String,
    /// `UI_PASSWORD`; without it, the master key is the password.
    pub password: Option<SecretString>,
}

/// A key that can serve as the master key, or why not.
pub fn check_master_key(key: &str) -> anyhow::Result<()> {
    if !key.starts_with("sk-") || key.len() < 6 || key.chars().any(char::is_whitespace) {
        bail!("the master key must start with 'sk-', have at least 6 characters and no spaces");
    }
    Ok(())
}

/// How the request log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
