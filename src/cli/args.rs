//! The arguments that several subcommands share, and those of `serve`. A flag takes precedence over the environment,
//! and the environment over LiteLLM's `config.yaml`. A wrong setting is reported in one clear line, with exit code 2.

mod limits;

pub use crate::cli::args::limits::{BookingArgs, ConnectionArgs, ReadArgs};

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::Args;
use ipnetwork::IpNetwork;
use secrecy::{ExposeSecret, SecretString};

use crate::settings::AuthoritySettings;
use crate::settings::LogFormat;
use crate::settings::spend_metrics::Label;
use crate::settings::upstream::covers;

use crate::route_table;
use crate::settings::BooksSettings;
use crate::settings::OtlpSettings;
use crate::settings::network::parse_network;
use crate::settings::upstream::Target;

/// The arguments that name the database.
#[derive(Clone, Debug, Args)]
pub struct DatabaseArgs {
    /// PostgreSQL database to use. Without it, litespend runs a private PostgreSQL.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// URL of PostgreSQL itself, if `--database-url` leads to a connection pooler. litespend then connects to this one.
    #[arg(long, env = "DIRECT_URL", hide_env_values = true, value_name = "URL")]
    pub direct_url: Option<String>,

    /// Directory of the private PostgreSQL and the generated master key.
    #[arg(long, env = "LITESPEND_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Memory that the private PostgreSQL may use. Half of it becomes its `shared_buffers`. Default: a quarter of this
    /// machine's, or of its control group's.
    #[arg(long, env = "LITESPEND_DATABASE_MEMORY_MB", value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..))]
    pub database_memory_mb: Option<u32>,

    /// LiteLLM's config.yaml.
    #[arg(long, short, env = "CONFIG_FILE_PATH", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The argument that names the archive of closed days.
#[derive(Clone, Debug, Args)]
pub struct ArchiveArgs {
    /// Archive of closed days: a directory, or a URL that starts with s3://, gs:// or az://. Object stores take their
    /// settings from their usual environment variables.
    #[arg(long, env = "LITESPEND_ARCHIVE_URL", hide_env_values = true, value_name = "URL")]
    pub archive: Option<String>,
}

impl ArchiveArgs {
    /// The URL. An empty one counts as none.
    pub fn url(&self) -> Option<&str> {
        self.archive.as_deref().map(str::trim).filter(|url| !url.is_empty())
    }
}

/// The arguments for what a server does with closed days.
#[derive(Clone, Debug, Args)]
pub struct BooksArgs {
    /// The archive.
    #[command(flatten)]
    pub archive: ArchiveArgs,

    /// Close a day when it has been over for this number of days. Off by default.
    #[arg(long, env = "LITESPEND_CLOSE_AFTER", requires = "archive", value_name = "DAYS",
          value_parser = clap::value_parser!(u32).range(2..=36_500))]
    pub close_after: Option<u32>,

    /// Remove the rows of closed days from the log when they are older than this number of days. Off by default.
    #[arg(long, env = "LITESPEND_PRUNE_AFTER", requires = "close_after", value_name = "DAYS",
          value_parser = clap::value_parser!(u32).range(2..=36_500))]
    pub prune_after: Option<u32>,

    /// Empty messages, responses and requests of rows of the log that are older than this number of days. With
    /// --archive-bodies, only of closed days. Off by default.
    #[arg(long, env = "LITESPEND_STRIP_AFTER", requires = "close_after", value_name = "DAYS",
          value_parser = clap::value_parser!(u32).range(0..=36_500))]
    pub strip_after: Option<u32>,

    /// Archive messages, responses and requests, too.
    #[arg(long, env = "LITESPEND_ARCHIVE_BODIES", value_parser = clap::builder::FalseyValueParser::new())]
    pub archive_bodies: bool,

    /// Allow --prune-after and --strip-after to change a log that LiteLLM owns.
    #[arg(long, env = "LITESPEND_PRUNE_LITELLM_LOGS", value_parser = clap::builder::FalseyValueParser::new())]
    pub prune_litellm_logs: bool,
}

impl BooksArgs {
    /// The settings of a running server.
    pub fn settings(&self) -> BooksSettings {
        BooksSettings {
            close_after: self.close_after,
            prune_after: self.prune_after,
            strip_after: self.strip_after,
            archive_bodies: self.archive_bodies,
            prune_litellm_logs: self.prune_litellm_logs,
        }
    }
}

/// The arguments of `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// The database to use.
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

    /// Proxies whose X-Forwarded-For is trusted (addresses or CIDR ranges), if `use_x_forwarded_for` is on.
    #[arg(long, env = "TRUSTED_PROXIES", value_delimiter = ',', value_parser = network, value_name = "CIDR,...")]
    pub trusted_proxies: Vec<IpNetwork>,

    /// Use the client address from X-Forwarded-For if a trusted proxy sent it.
    #[arg(long, env = "USE_X_FORWARDED_FOR", value_parser = clap::builder::FalseyValueParser::new())]
    pub use_x_forwarded_for: bool,

    /// Make summaries of /spend/logs include the whole end day. LiteLLM stops at the start of that day.
    #[arg(long, env = "INCLUSIVE_END_DATE", value_parser = clap::builder::FalseyValueParser::new())]
    pub inclusive_end_date: bool,

    /// Treat group_by=model on /global/spend/report, which LiteLLM refuses, as group_by=model_name.
    #[arg(long, env = "GROUP_BY_MODEL", value_parser = clap::builder::FalseyValueParser::new())]
    pub group_by_model: bool,

    /// In CSV, put a single quote in front of texts that a spreadsheet would treat as a formula, unless a request says
    /// csv=plain.
    #[arg(long, env = "LITESPEND_CSV_SAFE", value_parser = clap::builder::FalseyValueParser::new())]
    pub csv_safe: bool,

    /// Labels of the counters of /metrics/spend: hashed_api_key, api_key_alias, model, team, team_alias, user, user_email,
    /// end_user, api_provider, org_id, org_alias, requested_model, model_id. An alias or an email address brings its ID along.
    /// With end_user, the budgets of customers are listed, too.
    #[arg(long, env = "LITESPEND_METRICS_LABELS", value_delimiter = ',', value_enum, default_value = Label::DEFAULT,
          hide_possible_values = true, value_name = "LABEL,...")]
    pub metrics_labels: Vec<Label>,

    /// Most series of each metric of /metrics/spend. Later ones are summed in one series with the value `other` in all labels.
    #[arg(long, env = "LITESPEND_METRICS_SERIES", default_value_t = 10_000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub metrics_series: u32,

    /// Serve /metrics and /metrics/spend without a key.
    #[arg(long, env = "METRICS_PUBLIC", value_parser = clap::builder::FalseyValueParser::new())]
    pub metrics_public: bool,

    /// Allow changes of keys, teams and users in a database that LiteLLM owns.
    #[arg(long, env = "MANAGE_LITELLM_KEYS", value_parser = clap::builder::FalseyValueParser::new())]
    pub manage_litellm_keys: bool,

    /// Maximum seconds until the first byte of an answer; after that, 504.
    #[arg(long, env = "REQUEST_TIMEOUT", default_value_t = 30, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub request_timeout: u64,

    /// Maximum number of database connections. Default: connection_limit in the URL, or 20.
    #[arg(long, env = "DATABASE_CONNECTIONS", value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub database_connections: Option<u32>,

    /// Maximum seconds that a request waits for a database connection; after that, 503. Default: pool_timeout in the URL,
    /// or 5.
    #[arg(long, env = "DATABASE_WAIT", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=60))]
    pub database_wait: Option<u64>,

    /// Read replica of the database, for reads that tolerate lag: reports, tags, logs and activity. While the replica
    /// is unavailable, these reads use the database itself.
    #[arg(long, env = "DATABASE_URL_READ_REPLICA", hide_env_values = true, value_name = "URL")]
    pub database_url_read_replica: Option<String>,

    /// Newer prices: a file or URL in the form of LiteLLM's model_prices_and_context_window.json.
    #[arg(long, env = "LITELLM_MODEL_COST_MAP_URL", value_name = "FILE_OR_URL")]
    pub prices: Option<String>,

    /// Use newer prices even if many models are missing, or if a price has moved by more than 100 times.
    #[arg(long, env = "LITESPEND_PRICES_TRUST")]
    pub prices_trust: bool,

    /// Read --prices again after this many seconds. Off by default.
    #[arg(long, env = "PRICES_REFRESH", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(10..=604_800))]
    pub prices_refresh: Option<u64>,

    /// Serve made-up usage of this month and the last one, in a home of its own (default: litespend-demo beside the usual
    /// one). No other database is touched.
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    pub demo: Option<Option<PathBuf>>,

    /// With --demo: approximate number of calls on a working day. Default: 600.
    #[arg(long, requires = "demo", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub demo_calls: Option<u32>,

    /// Folder of the static export of LiteLLM's dashboard, which is served under /ui. Without a folder, it is fetched with
    /// Python's pip, and kept for the next start.
    #[arg(long, env = "LITELLM_UI_PATH", value_name = "DIR", num_args = 0..=1, default_missing_value = FETCH_UI)]
    pub ui: Option<PathBuf>,

    /// Name with which the admin logs in to the dashboard.
    #[arg(long, env = "UI_USERNAME", default_value = "admin", value_name = "NAME")]
    pub ui_username: String,

    /// Password of that admin. Default: the master key.
    #[arg(long, env = "UI_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    pub ui_password: Option<SecretString>,

    /// Secrets and limits of authentication.
    #[command(flatten)]
    pub authority: AuthorityArgs,

    /// URL of a LiteLLM, to which litespend passes all requests that it does not serve.
    #[arg(long, env = "LITELLM_UPSTREAM_URL", value_name = "URL", value_parser = Target::parse)]
    pub upstream: Option<Target>,

    /// With --upstream: serve only these paths (`/spend/logs`, `/spend/*`) and pass on the rest.
    #[arg(long, env = "SERVE_ONLY", value_delimiter = ',', requires = "upstream", value_parser = served_path,
          value_name = "PATH,...")]
    pub serve_only: Vec<String>,

    /// Closed days.
    #[command(flatten)]
    pub books: BooksArgs,
    /// Limits of client connections.
    #[command(flatten)]
    pub connections: ConnectionArgs,
    /// Limits of booking.
    #[command(flatten)]
    pub booking: BookingArgs,
    /// Limits of reads.
    #[command(flatten)]
    pub reads: ReadArgs,
    /// OpenTelemetry's traces.
    #[command(flatten)]
    pub otlp: OtlpArgs,

    /// Format of the log.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// The value of `--ui` without a folder. No folder has this name.
pub const FETCH_UI: &str = "\u{1}";

/// The arguments for authentication.
#[derive(Clone, Debug, Args)]
pub struct AuthorityArgs {
    /// Secret that signs the dashboard's tokens and seals its sessions. At least 16 characters, the same on all servers
    /// of a database. Default: a secret stored in litespend's own database; on LiteLLM's database, a secret that only
    /// this process knows.
    #[arg(long = "secret", env = "LITESPEND_SECRET", hide_env_values = true, value_parser = secret, value_name = "SECRET")]
    pub secret: Option<SecretString>,

    /// Maximum number of unknown keys that are looked up in the database per second; beyond it, 429.
    #[arg(long, env = "KEY_LOOKUPS_PER_SECOND", default_value_t = 50, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub key_lookups_per_second: u32,

    /// Start even if the master key or UI_PASSWORD is easy to guess and others can reach the server.
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
        // An empty variable counts as no secret.
        0 | 16.. => Ok(text.to_owned().into()),
        _ => Err("must have at least 16 characters".to_owned()),
    }
}

/// The arguments for OpenTelemetry's traces.
#[derive(Clone, Debug, Args)]
pub struct OtlpArgs {
    /// Book the inference spans of POST /v1/traces in a database that LiteLLM owns, too. Calls that LiteLLM serves and
    /// books itself would count twice. In litespend's own database, spans are always booked.
    #[arg(long, env = "LITESPEND_OTLP", value_parser = clap::builder::FalseyValueParser::new())]
    pub otlp: bool,

    /// Attribute of spans or resources that names the customer. Repeatable: the first one that is there counts.
    #[arg(long, env = "LITESPEND_OTLP_CUSTOMER_ATTRIBUTE", value_delimiter = ',', value_parser = attribute,
          default_values = ["enduser.id", "user.id"], value_name = "NAME")]
    pub otlp_customer_attribute: Vec<String>,

    /// Attribute of spans or resources that becomes a tag, `NAME:VALUE`. Repeatable. For example service.name or
    /// deployment.environment.name.
    #[arg(long, env = "LITESPEND_OTLP_TAG_ATTRIBUTE", value_delimiter = ',', value_parser = attribute,
          value_name = "NAME")]
    pub otlp_tag_attribute: Vec<String>,
}

impl OtlpArgs {
    /// The settings of a running server.
    pub fn settings(&self) -> OtlpSettings {
        let names = |names: &[String]| names.iter().filter(|name| !name.is_empty()).cloned().collect();
        OtlpSettings {
            on_litellm_database: self.otlp,
            customer_attributes: names(&self.otlp_customer_attribute),
            tag_attributes: names(&self.otlp_tag_attribute),
        }
    }
}

/// The name of an attribute. An empty variable counts as no name.
fn attribute(text: &str) -> Result<String, String> {
    let name = text.trim();
    if name.len() > 100 || name.chars().any(|character| character.is_control() || character.is_whitespace()) {
        return Err("not the name of an attribute: at most 100 bytes, without spaces".to_owned());
    }
    Ok(name.to_owned())
}

/// The arguments of `healthcheck`.
#[derive(Clone, Debug, Args)]
pub struct HealthcheckArgs {
    /// Address of the server. For 0.0.0.0, 127.0.0.1 is used.
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
        Err("litespend does not serve this path".to_owned())
    }
}
