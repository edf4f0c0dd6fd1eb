//! Arguments that several subcommands share, and those of `serve`: flags before the environment before LiteLLM's
//! `config.yaml`. A wrong setting is one clear line and exit code 2.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnetwork::IpNetwork;
use secrecy::{ExposeSecret, SecretString};

use crate::settings::AuthoritySettings;
use crate::settings::LogFormat;
use crate::settings::upstream::covers;

use crate::route_table;
use crate::settings::BookingLimits;
use crate::settings::ConnectionLimits;
use crate::settings::ReadSettings;
use crate::settings::network::parse_network;
use crate::settings::upstream::Target;

/// Where the database is.
#[derive(Clone, Debug, Args)]
pub struct DatabaseArgs {
    /// PostgreSQL to use. Without it, litespend runs a private one of its own.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// Directory of the private PostgreSQL and the generated master key.
    #[arg(long, env = "LITESPEND_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// LiteLLM's config.yaml.
    #[arg(long, short, env = "CONFIG_FILE_PATH", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Everything `serve` takes.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Database.
    #[command(flatten)]
    pub database: DatabaseArgs,

    /// Address to listen on.
    #[arg(long, env = "HOST", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,

    /// Port to listen on; 0 picks a free one.
    #[arg(long, env = "PORT", default_value_t = 4000)]
    pub port: u16,

    /// The master key, `sk-...`.
    #[arg(long = "master-key", env = "LITELLM_MASTER_KEY", hide_env_values = true, value_name = "KEY")]
    pub master_key: Option<SecretString>,

    /// Proxies whose X-Forwarded-For counts (addresses or CIDR ranges), where `use_x_forwarded_for` is on.
    #[arg(long, env = "TRUSTED_PROXIES", value_delimiter = ',', value_parser = network, value_name = "CIDR,...")]
    pub trusted_proxies: Vec<IpNetwork>,

    /// Take the client's address from X-Forwarded-For when a trusted proxy sent it.
    #[arg(long, env = "USE_X_FORWARDED_FOR", value_parser = clap::builder::FalseyValueParser::new())]
    pub use_x_forwarded_for: bool,

    /// Let summaries of /spend/logs count the whole end day. The reference stops at its midnight.
    #[arg(long, env = "INCLUSIVE_END_DATE", value_parser = clap::builder::FalseyValueParser::new())]
    pub inclusive_end_date: bool,

    /// Answer group_by=model on /global/spend/report, which LiteLLM refuses, as group_by=model_name.
    #[arg(long, env = "GROUP_BY_MODEL", value_parser = clap::builder::FalseyValueParser::new())]
    pub group_by_model: bool,

    /// In CSV, put a single quote before texts that a spreadsheet would take for a formula, unless a request says
    /// csv=plain.
    #[arg(long, env = "LITESPEND_CSV_SAFE", value_parser = clap::builder::FalseyValueParser::new())]
    pub csv_safe: bool,

    /// Serve /metrics without a key.
    #[arg(long, env = "METRICS_PUBLIC", value_parser = clap::builder::FalseyValueParser::new())]
    pub metrics_public: bool,

    /// Change keys, teams and users in a database that LiteLLM owns as well.
    #[arg(long, env = "MANAGE_LITELLM_KEYS", value_parser = clap::builder::FalseyValueParser::new())]
    pub manage_litellm_keys: bool,

    /// Seconds until the first byte of an answer; past it, 504.
    #[arg(long, env = "REQUEST_TIMEOUT", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub request_timeout: u64,

    /// Database connections at most.
    #[arg(long, env = "DATABASE_CONNECTIONS", default_value_t = 20, value_name = "N",
          value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub database_connections: u32,

    /// Seconds a request waits for a database connection; past it, 503.
    #[arg(long, env = "DATABASE_WAIT", default_value_t = 5, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=60))]
    pub database_wait: u64,

    /// A replica of the database, for reads that tolerate lag: reports, tags, logs and activity. While it is away, they
    /// go to the database itself.
    #[arg(long, env = "DATABASE_URL_READ_REPLICA", hide_env_values = true, value_name = "URL")]
    pub database_url_read_replica: Option<String>,

    /// Newer prices: a file or URL in the form of LiteLLM's model_prices_and_context_window.json.
    #[arg(long, env = "LITELLM_MODEL_COST_MAP_URL", value_name = "FILE_OR_URL")]
    pub prices: Option<String>,

    /// Read --prices again this often; off without it.
    #[arg(long, env = "PRICES_REFRESH", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(10..=604_800))]
    pub prices_refresh: Option<u64>,

    /// LiteLLM's dashboard: the folder of its static export, to be served under /ui.
    #[arg(long, env = "LITELLM_UI_PATH", value_name = "DIR")]
    pub ui: Option<PathBuf>,

    /// Name of the admin who logs in there.
    #[arg(long, env = "UI_USERNAME", default_value = "admin", value_name = "NAME")]
    pub ui_username: String,

    /// Password of that admin; without it, the master key.
    #[arg(long, env = "UI_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    pub ui_password: Option<SecretString>,

    /// Who may do what: secrets and limits.
    #[command(flatten)]
    pub authority: AuthorityArgs,

    /// A LiteLLM to pass everything on to that litespend does not serve.
    #[arg(long, env = "LITELLM_UPSTREAM_URL", value_name = "URL", value_parser = Target::parse)]
    pub upstream: Option<Target>,

    /// With an upstream: serve these paths only (`/spend/logs`, `/spend/*`) and pass the rest on.
    #[arg(long, env = "SERVE_ONLY", value_delimiter = ',', requires = "upstream", value_parser = served_path,
          value_name = "PATH,...")]
    pub serve_only: Vec<String>,

    /// Limits of connections.
    #[command(flatten)]
    pub connections: ConnectionArgs,
    /// What may be booked.
    #[command(flatten)]
    pub booking: BookingArgs,
    /// What reads may take.
    #[command(flatten)]
    pub reads: ReadArgs,

    /// Form of the log.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Settings of who may do what.
#[derive(Clone, Debug, Args)]
pub struct AuthorityArgs {
    /// Secret that signs the dashboard's tokens and seals its sessions, 16 characters or more; the same on all servers of
    /// a database. Without it, one in our own database, or on LiteLLM's database one of this process.
    #[arg(long = "secret", env = "LITESPEND_SECRET", hide_env_values = true, value_parser = secret, value_name = "SECRET")]
    pub secret: Option<SecretString>,

    /// Keys that are not known here and are looked up in the database a second, at most; past it, 429.
    #[arg(long, env = "KEY_LOOKUPS_PER_SECOND", default_value_t = 50, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub key_lookups_per_second: u32,

    /// Start with a master key or UI_PASSWORD that anybody can guess although others can reach the server.
    #[arg(long, env = "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY",
          value_parser = clap::builder::FalseyValueParser::new())]
    pub dangerously_permit_weak_or_unset_master_key: bool,
}

impl AuthorityArgs {
    /// The settings of a running server.
    pub fn settings(&self) -> AuthoritySettings {
        let secret = self.secret.clone().filter(|secret| !secret.expose_secret().is_empty());
        AuthoritySettings { secret, key_lookups: self.key_lookups_per_second }
    }
}

fn secret(text: &str) -> Result<SecretString, String> {
    match text.len() {
        // An empty variable is none.
        0 | 16.. => Ok(text.to_owned().into()),
        _ => Err("a secret has 16 characters or more".to_owned()),
    }
}

/// Bounds of booking.
#[derive(Clone, Copy, Debug, Args)]
pub struct BookingArgs {
    /// USD of one booked record at most; more is taken for a mistake and refused.
    #[arg(long, env = "MOST_SPEND_PER_RECORD", default_value_t = 10_000.0, value_name = "USD", value_parser = usd)]
    pub most_spend_per_record: f64,

    /// Tokens of one booked record at most.
    #[arg(long, env = "MOST_TOKENS_PER_RECORD", default_value_t = 100_000_000, value_name = "N",
          value_parser = clap::value_parser!(i64).range(1..=2_147_483_647))]
    pub most_tokens_per_record: i64,

    /// Days that a booked record may lie back, where its key has no permission book_usage.
    #[arg(long, env = "RECORDS_DAYS_BACK", default_value_t = 400, value_name = "DAYS",
          value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub records_days_back: u32,

    /// Hours that a booked record may lie ahead.
    #[arg(long, env = "RECORDS_HOURS_AHEAD", default_value_t = 24, value_name = "HOURS",
          value_parser = clap::value_parser!(u32).range(1..=168))]
    pub records_hours_ahead: u32,

    /// Models, customers and tags never used before that a key without the permission book_usage may bring a day.
    #[arg(long, env = "NEW_NAMES_A_DAY", default_value_t = 10_000, value_name = "N")]
    pub new_names_a_day: u32,

    /// Days for which the ids of booked records are remembered.
    #[arg(long, env = "KEEP_IDS_DAYS", default_value_t = 400, value_name = "DAYS",
          value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub keep_ids_days: u32,
}

impl BookingArgs {
    /// As booking takes them.
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

/// Bounds of reads.
#[derive(Clone, Debug, Args)]
pub struct ReadArgs {
    /// Answers above 64 KiB that are sent at the same time, at most; past it, 503.
    #[arg(long, env = "LARGE_ANSWERS", default_value_t = 256, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub large_answers: u32,

    /// Of these for one key; past it, 429.
    #[arg(long, env = "LARGE_ANSWERS_PER_KEY", default_value_t = 32, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub large_answers_per_key: u32,

    /// Folder for what is read ahead of slow clients, in files without a name; the system's for temporary files.
    #[arg(long, env = "SPOOL_DIR", value_name = "DIR")]
    pub spool_dir: Option<PathBuf>,

    /// MiB that are read ahead of one client; a larger answer is cut short after 10 seconds of waiting for its client.
    #[arg(long, env = "SPOOL_ANSWER_MB", default_value_t = 512, value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(0..=1_048_576))]
    pub spool_answer_mb: u64,

    /// MiB that are read ahead of all clients.
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

fn usd(text: &str) -> Result<f64, String> {
    let amount = text.parse().ok().filter(|amount: &f64| *amount > 0.0 && *amount <= crate::settings::MOST_COST);
    amount.ok_or_else(|| "not an amount of USD between 0 and 1e12".to_owned())
}

/// Where `healthcheck` asks.
#[derive(Clone, Debug, Args)]
pub struct HealthcheckArgs {
    /// Address of the server; 0.0.0.0 is asked on 127.0.0.1.
    #[arg(long, env = "HOST", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,

    /// Port of the server.
    #[arg(long, env = "PORT", default_value_t = 4000)]
    pub port: u16,
}

fn network(text: &str) -> Result<IpNetwork, String> {
    parse_network(text.trim()).ok_or_else(|| "not an address or CIDR range".to_owned())
}

fn served_path(text: &str) -> Result<String, String> {
    let text = text.trim();
    if route_table::api().any(|route| covers(text, route.path)) {
        Ok(text.to_owned())
    } else {
        Err("litespend serves no such path".to_owned())
    }
}

/// The flags. Lengths of time are whole seconds.
#[derive(Clone, Debug, Args)]
pub struct ConnectionArgs {
    /// Client connections at most; beyond, one that is idle makes room, else the new one is refused.
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 1024, value_name = "N",
          value_parser = clap::value_parser!(u32).range(8..=100_000))]
    pub max_connections: u32,

    /// Of these from one address (IPv6: one /64 network); trusted proxies have no such limit.
    #[arg(long, env = "MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 256, value_name = "N",
          value_parser = clap::value_parser!(u32).range(4..=100_000))]
    pub max_connections_per_address: u32,

    /// Requests at the same time on one HTTP/2 connection.
    #[arg(long, env = "MAX_STREAMS", default_value_t = 100, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_streams: u32,

    /// Seconds from accepting a connection to its first whole request head, and from the first byte of a later head
    /// to its last.
    #[arg(long, env = "HEAD_TIMEOUT", default_value_t = 15, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub head_timeout: u64,

    /// Seconds that a connection without a request is kept.
    #[arg(long, env = "IDLE_TIMEOUT", default_value_t = 75, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub idle_timeout: u64,

    /// Seconds that a request's body is waited for while nothing, or less than 1 KiB a second, comes; past it, 408.
    #[arg(long, env = "BODY_TIMEOUT", default_value_t = 10, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub body_timeout: u64,

    /// Seconds that a client is waited for which takes nothing, or less than 1 KiB a second, of its answer.
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
