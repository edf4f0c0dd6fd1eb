//! Starts and stops the server: opens the database (embedded or given), finds or generates the master key, prints where
//! everything is, accepts connections, and shuts down in order.

use std::future::Future;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use litespend_archive::Archive;
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cli::args::{BooksArgs, DatabaseArgs, FETCH_UI, HealthcheckArgs, ServeArgs};
use crate::cli::database::{Failure, NamedUrl, OpenDatabase, home, read_config};
use crate::cli::output;
use crate::cli::output::say;
use crate::cli::{background, dashboard_export, demo};
use crate::clock::Clock;
use crate::http::dashboard;
use crate::http::replica::Replica;
use crate::http::router;
use crate::http::state::AppState;
use crate::http::{openapi, telemetry};
use crate::metrics::Metrics;
use crate::prices::{PriceSource, Prices};
use crate::settings::Settings;
use crate::settings::SpendMetricsSettings;
use crate::settings::UiSettings;
use crate::shutdown;
use crate::store::database;
use crate::store::database::{DatabaseKind, PoolLimits};
use crate::store::database_url::DatabaseUrl;

/// Reduces a message of the command-line parser to its first paragraph, in one line.
pub fn in_one_line(message: &str) -> String {
    let paragraph = message.trim_start_matches("error: ").lines().take_while(|line| !line.trim().is_empty());
    paragraph.map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Runs `litespend serve`.
pub fn serve(mut args: ServeArgs) -> Result<(), Failure> {
    let _log = telemetry::start(args.log_format);
    if args.demo.is_some() {
        demo::prepare(&mut args)?;
    }
    let config = read_config(&args.database)?;
    if !config.ignored.is_empty() {
        tracing::warn!(settings = config.ignored.join(", "), "litespend ignores some settings of the config file");
    }
    let given_key = crate::cli::master_key::given(args.master_key.as_ref(), config.general.master_key.as_ref())
        .map_err(Failure::Setting)?;
    let url = crate::cli::database::url(&args.database, &config);
    if given_key.is_none() && url.is_some() {
        return Err(Failure::Setting(anyhow::anyhow!(
            "no master key: set LITELLM_MASTER_KEY (or general_settings.master_key in the config file)"
        )));
    }
    let weaknesses = crate::cli::master_key::check_strength(given_key.as_ref().map(|given| &given.key), &args, &config)
        .map_err(Failure::Setting)?;
    let limits = limits(&args, url.as_ref().map(NamedUrl::parse).transpose()?.as_ref());
    let open = OpenDatabase::open(&args.database, &config, limits)?;
    let master_key = match given_key {
        Some(key) => key,
        None => crate::cli::master_key::of_home(open.home().context("the embedded database has a home")?)?,
    };
    let settings = Settings {
        master_key: master_key.key.clone(),
        allowed_ips: config.general.allowed_ips.clone(),
        trusted_proxies: args.trusted_proxies.clone(),
        use_x_forwarded_for: args.use_x_forwarded_for || config.general.use_x_forwarded_for == Some(true),
        inclusive_end_date: args.inclusive_end_date,
        group_by_model: args.group_by_model,
        csv_safe: args.csv_safe,
        metrics_public: args.metrics_public,
        spend_metrics: SpendMetricsSettings::new(
            &args.metrics_labels,
            usize::try_from(args.metrics_series).unwrap_or(usize::MAX),
        ),
        manage_litellm_keys: args.manage_litellm_keys,
        request_timeout: Duration::from_secs(args.request_timeout),
        authority: args.authority.settings(),
        upstream: args.upstream.clone(),
        serve_only: args.serve_only.clone(),
        ui: ui_settings(&args).map_err(Failure::Setting)?,
        connections: (&args.connections).into(),
        reads: args.reads.settings(),
        booking: args.booking.limits(),
        otlp: args.otlp.settings(),
    };
    let source = args.prices.as_deref().filter(|text| !text.is_empty()).map(PriceSource::parse);
    let prices = Arc::new(Prices::new(&config, source, Some(&home(&args.database)))?.trusting(args.prices_trust));
    // A short interval between checks of the sockets keeps a small request from waiting behind many steps of large
    // answers.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
        .context("no runtime")?;
    let result = runtime.block_on(run(&args, &open, settings, prices, &master_key.origin, &weaknesses));
    runtime.shutdown_timeout(Duration::from_secs(1));
    open.close()?;
    result
}

fn ui_settings(args: &ServeArgs) -> anyhow::Result<Option<UiSettings>> {
    let Some(mut directory) = args.ui.clone().filter(|directory| !directory.as_os_str().is_empty()) else {
        return Ok(None);
    };
    if directory.as_os_str() == FETCH_UI {
        directory = dashboard_export::folder()?;
    }
    anyhow::ensure!(
        dashboard::is_export(&directory),
        "--ui: {} is not the dashboard's static export (index.html and _next)",
        directory.display()
    );
    let password = args.ui_password.clone().filter(|password| !password.expose_secret().is_empty());
    Ok(Some(UiSettings { directory, username: args.ui_username.clone(), password }))
}

/// The limits of the pool of a URL: the flags decide, then the URL, then the defaults.
fn limits(args: &ServeArgs, url: Option<&DatabaseUrl>) -> PoolLimits {
    let connections = args.database_connections.or_else(|| Some(url?.connections?.clamp(2, 1000)));
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(60));
    let wait = args.database_wait.map(Duration::from_secs).or_else(|| Some(url?.wait?.clamp(least, most)));
    PoolLimits { connections: connections.unwrap_or(20), wait: wait.unwrap_or(Duration::from_secs(5)) }
}

/// Opens the replica, if there is one. Refuses a pooler that does not give its clients sessions of their own.
async fn open_replica(args: &ServeArgs) -> Result<Option<Replica>, Failure> {
    const SETTING: &str = "DATABASE_URL_READ_REPLICA";
    let Some(url) = args.database_url_read_replica.as_deref().filter(|url| !url.trim().is_empty()) else {
        return Ok(None);
    };
    let wrong = |error: String| Failure::Setting(anyhow::anyhow!("{SETTING}: {error}"));
    let read = DatabaseUrl::parse(url).map_err(|error| wrong(error.to_string()))?;
    for warning in &read.warnings {
        tracing::warn!("{SETTING}: {warning}");
    }
    let pooling = database::pooling(url, REPLICA_LIMIT).await.ok().flatten();
    let instead = "name the replica itself";
    if let Some(refusal) = pooling.and_then(|pooling| pooling.refusal(&read.location(), instead)) {
        return Err(wrong(refusal));
    }
    Replica::new(url, limits(args, Some(&read))).map(Some).map_err(|error| wrong(error.to_string()))
}

/// How long the start of the server waits for the replica, to find out whether there is a pooler.
const REPLICA_LIMIT: Duration = Duration::from_secs(2);

async fn run(
    args: &ServeArgs,
    open: &OpenDatabase,
    settings: Settings,
    prices: Arc<Prices>,
    key_origin: &str,
    weaknesses: &[String],
) -> Result<(), Failure> {
    let mut stop_requested = shutdown::requested().context("cannot listen for signals")?;
    let pool = open.pool().map_err(Failure::Setting)?;
    let (kind, version) = tokio::select! {
        prepared = open.prepare(&pool) => prepared?,
        () = &mut stop_requested => return Ok(()),
    };
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
        .map_err(Failure::Setting)?;
    let address = listener.local_addr().context("no local address")?;
    let prices_in_order = prices.read_file().await;
    let state = AppState::new(pool.clone(), settings, prices, Clock::system())?;
    if let Some(replica) = open_replica(args).await? {
        state.use_replica(replica);
    }
    let books = open_books(&args.books, kind).await?;
    if let Some(archive) = &books {
        state.use_archive(archive.clone());
    }
    state.refresh_allow_list().await.context("cannot read the allow list")?;
    state.refresh_rollups().await.context("cannot read the state of the rollups")?;
    for weakness in weaknesses {
        tracing::warn!("{weakness}");
    }
    print_block(address, open, kind, &version, key_origin);

    let stop = CancellationToken::new();
    let tasks = Background { state: state.clone(), stop: stop.clone() };
    let refresh = tasks.run("refresh", |state, stop| state.keep_fresh(stop));
    let interval = args.prices_refresh.map(Duration::from_secs);
    let prices =
        tasks.run("prices", move |state, stop| Arc::clone(&state.prices).keep_fresh(prices_in_order, interval, stop));
    let fold = tasks.run("folding", |state, stop| {
        crate::rollups::folding::run(state.pool.clone(), Arc::clone(&state.folding), stop)
    });
    let ids = tasks
        .run("ids", |state, stop| crate::booking::retention::run(state.pool.clone(), state.settings.booking, stop));
    let months = tasks.run("months", |state, stop| crate::booking::months::run(state.pool.clone(), stop));
    let books = books.map(|archive| {
        let settings = args.books.settings();
        tasks.run("books", move |state, stop| {
            crate::books::background::run(state.pool.clone(), archive.clone(), settings, stop)
        })
    });
    let sessions = tasks.run("sessions", end_sessions);
    let watch = tasks.run("replica", |state, stop| async move {
        if let Some(replica) = state.replica() {
            replica.watch(stop).await;
            replica.close().await;
        }
    });
    crate::http::connection::accept::serve(listener, router::build(state.clone()), &state.settings, stop_requested)
        .await;
    stop.cancel();
    let _ = tokio::join!(refresh, fold, ids, months, watch, sessions, async { prices.abort() });
    if let Some(books) = books {
        let _ = books.await;
    }
    // A request that was cut off may still hold a connection. Do not wait for it any longer.
    let _ = tokio::time::timeout(Duration::from_secs(5), pool.close()).await;
    tracing::info!("stopped");
    Ok(())
}

/// Starts tasks that work until the server stops.
struct Background {
    state: AppState,
    stop: CancellationToken,
}

impl Background {
    fn run<T: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        start: impl Fn(AppState, CancellationToken) -> T + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        let (state, stop) = (self.state.clone(), self.stop.clone());
        let panicked = move || {
            if name == "books" {
                Metrics::record_books_failure();
            }
        };
        let again = stop.clone();
        let start = move || start(state.clone(), again.clone());
        tokio::spawn(background::keep(name, stop, background::PAUSE, start, panicked))
    }
}

/// Opens the archive, if one is given, and checks that it can be used.
async fn open_books(args: &BooksArgs, kind: DatabaseKind) -> Result<Option<Archive>, Failure> {
    if args.archive.url().is_none() {
        return Ok(None);
    }
    let removes = args.prune_after.is_some() || args.strip_after.is_some();
    if kind == DatabaseKind::LiteLlm && removes && !args.prune_litellm_logs {
        return Err(Failure::Setting(anyhow::anyhow!(
            "the log belongs to LiteLLM: --prune-litellm-logs says that --prune-after and --strip-after may change it"
        )));
    }
    crate::cli::archive::open_for_server(&args.archive, args.close_after.is_some()).await
}

/// The number of task steps between two checks of the sockets.
const EVENT_INTERVAL: u32 = 8;

/// How often the keys of ended sessions are deleted.
const SESSION_CLEANUP: Duration = Duration::from_secs(600);

async fn end_sessions(state: AppState, stop: CancellationToken) {
    while state.settings.ui.is_some() {
        match dashboard::clean_up(&state).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "deleted the keys of ended dashboard sessions"),
            Err(error) => tracing::debug!(cause = ?error, "cannot delete the keys of ended dashboard sessions"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SESSION_CLEANUP) => {}
        }
    }
}

/// Prints one readable block that shows where everything is.
fn print_block(address: SocketAddr, open: &OpenDatabase, kind: DatabaseKind, version: &str, key_origin: &str) {
    let host = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    let url = format!("http://{}", SocketAddr::new(host, address.port()));
    let owner = match kind {
        DatabaseKind::Own => "litespend's own tables",
        DatabaseKind::LiteLlm => "LiteLLM's tables, left as they are",
    };
    let block = format!(
        "litespend {}\n  address     {url} (listening on {address})\n  database    {version}, {}, {owner}\n  docs        {url}/\n  master key  {key_origin}\n",
        env!("CARGO_PKG_VERSION"),
        open.location(),
    );
    output::offer(&block);
}

/// Runs `litespend migrate`.
pub fn migrate(args: &DatabaseArgs) -> Result<(), Failure> {
    let config = read_config(args)?;
    let limits = PoolLimits { connections: 2, wait: Duration::from_secs(30) };
    let open = OpenDatabase::open(args, &config, limits)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let result = runtime.block_on(async {
        let pool = open.pool().map_err(Failure::Setting)?;
        let (kind, version) = open.prepare(&pool).await?;
        match kind {
            DatabaseKind::Own => say!("{version}, {}: up to date", open.location()),
            DatabaseKind::LiteLlm => say!("{version}, {}: LiteLLM's tables, nothing to do", open.location()),
        }
        pool.close().await;
        Ok(())
    });
    open.close()?;
    result
}

/// Runs `litespend openapi`.
pub fn print_openapi() -> Result<(), Failure> {
    let text = openapi::yaml()?;
    output::text(format_args!("{text}"));
    Ok(())
}

/// Runs `litespend healthcheck`, for the health check of a container.
pub fn healthcheck(args: &HealthcheckArgs) -> Result<(), Failure> {
    use std::io::Read;
    let host = if args.host.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { args.host };
    let address = SocketAddr::new(host, args.port);
    let limit = Duration::from_secs(5);
    let mut answer = String::new();
    let asked = std::net::TcpStream::connect_timeout(&address, limit).and_then(|mut stream| {
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET /health/readiness HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        stream.take(64 * 1024).read_to_string(&mut answer)
    });
    asked.with_context(|| format!("no answer from {address}"))?;
    if answer.starts_with("HTTP/1.1 200") {
        say!("ready");
        return Ok(());
    }
    let status = answer.lines().next().unwrap_or("no status");
    Err(Failure::Runtime(anyhow::anyhow!("{address} is not ready: {status}")))
}
