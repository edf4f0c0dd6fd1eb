//! Shared by the tests: a database for each test, the application on it, sending requests, and comparing answers.

pub(crate) mod accounts;
pub(crate) mod answers;
pub(crate) mod cluster;
pub(crate) mod owners;
pub(crate) mod place;
pub(crate) mod randomness;
pub(crate) mod sums;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use litespend::clock::Clock;
use litespend::http::router;
use litespend::http::state::AppState;
use litespend::prices::Prices;
use litespend::settings::BookingLimits;
use litespend::settings::ConnectionLimits;
use litespend::settings::OtlpSettings;
use litespend::settings::ReadSettings;
use litespend::settings::{ConfigFile, Settings};
use litespend::store::database;
use litespend::store::database::PoolLimits;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};
use tower::ServiceExt;

use cluster::TestDatabase;

/// The master key of every test server.
pub(crate) const MASTER_KEY: &str = "sk-master-1234";

/// An application on its own database.
pub(crate) struct TestApp {
    pub state: AppState,
    pub pool: PgPool,
    router: Router,
    // This is the last field, so that the pool is closed before the database is dropped.
    pub database: Arc<TestDatabase>,
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body as JSON. Panics with the text if the body is not JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

/// The settings of a test server.
pub(crate) fn settings() -> Settings {
    Settings {
        master_key: MASTER_KEY.to_owned().into(),
        allowed_ips: None,
        trusted_proxies: Vec::new(),
        use_x_forwarded_for: false,
        inclusive_end_date: false,
        group_by_model: false,
        csv_safe: false,
        metrics_public: false,
        spend_metrics: Default::default(),
        manage_litellm_keys: false,
        request_timeout: Duration::from_secs(30),
        authority: Default::default(),
        upstream: None,
        serve_only: Vec::new(),
        ui: None,
        connections: ConnectionLimits::default(),
        reads: ReadSettings::default(),
        booking: BookingLimits::default(),
        otlp: OtlpSettings::default(),
    }
}

/// An empty database with all migrations applied.
pub(crate) async fn database() -> TestDatabase {
    let parts = ["litellm", "litespend"].iter().flat_map(|directory| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("migrations").join(directory);
        let mut files: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|file| std::fs::read(file).unwrap())
    });
    cluster::create_database(&cluster::fingerprint(parts), async |url| {
        let limits = PoolLimits { connections: 2, wait: Duration::from_secs(30) };
        let pool = litespend::store::database::connect(url, limits).await.unwrap();
        pool.close().await;
    })
    .await
}

impl TestApp {
    /// An application with the usual settings, an empty database and the system clock.
    pub(crate) async fn new() -> Self {
        Self::with(settings()).await
    }

    /// An application with other settings.
    pub(crate) async fn with(settings: Settings) -> Self {
        let database = database().await;
        Self::on(database, settings).await
    }

    /// An application on an existing database.
    pub(crate) async fn on(database: impl Into<Arc<TestDatabase>>, settings: Settings) -> Self {
        let limits = PoolLimits { connections: 5, wait: Duration::from_secs(30) };
        Self::build(database.into(), settings, Clock::system(), limits).await
    }

    /// An application with every part given.
    pub(crate) async fn build(
        database: Arc<TestDatabase>,
        settings: Settings,
        clock: Clock,
        limits: PoolLimits,
    ) -> Self {
        let pool = database::pool(database.url(), limits).unwrap();
        Self::on_pool(database, pool, settings, clock).await
    }

    /// An application on an existing pool.
    pub(crate) async fn on_pool(database: Arc<TestDatabase>, pool: PgPool, settings: Settings, clock: Clock) -> Self {
        let prices = Arc::new(Prices::new(&ConfigFile::default(), None, None).unwrap());
        let state = AppState::new(pool.clone(), settings, prices, clock).unwrap();
        state.refresh_allow_list().await.unwrap();
        state.refresh_rollups().await.unwrap();
        Self { router: router::build(state.clone()), state, pool, database }
    }

    /// A second application on the same database. It has not checked the database yet, so it does not know of any
    /// rollups.
    pub(crate) fn beside(&self, settings: Settings) -> Self {
        let prices = Arc::new(Prices::new(&ConfigFile::default(), None, None).unwrap());
        let state = AppState::new(self.pool.clone(), settings, prices, Clock::system()).unwrap();
        let (pool, database) = (self.pool.clone(), Arc::clone(&self.database));
        Self { router: router::build(state.clone()), state, pool, database }
    }

    /// An application with the recordings' rows.
    pub(crate) async fn seeded() -> Self {
        let app = Self::new().await;
        seed(&app.pool).await;
        app
    }

    /// Another server on the same database.
    pub(crate) async fn another(&self) -> Self {
        Self::on(Arc::clone(&self.database), settings()).await
    }

    /// Runs a statement.
    pub(crate) async fn execute(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(&self.pool).await.unwrap();
    }

    /// The first column of a query's first row, as text.
    pub(crate) async fn scalar(&self, statement: &'static str) -> String {
        let value: Option<String> = sqlx::query_scalar(statement).fetch_one(&self.pool).await.unwrap();
        value.unwrap_or_default()
    }

    /// Listens on a free port of 127.0.0.1, for tests that need a real connection. Ends with the test.
    pub(crate) async fn listen(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = self.router.clone().into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        address
    }

    /// Sends a request from 127.0.0.1.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        self.send_from(request, "127.0.0.1:50000".parse().unwrap()).await
    }

    /// Sends a request from an address.
    pub(crate) async fn send_from(&self, mut request: Request<Body>, peer: SocketAddr) -> Answer {
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, text: String::from_utf8_lossy(&bytes).into_owned() }
    }

    /// Sends a `GET` with a key.
    pub(crate) async fn get(&self, path: &str, key: &str) -> Answer {
        self.send(request(Method::GET, path, key).body(Body::empty()).unwrap()).await
    }

    /// Sends a `POST` with a JSON body and a key.
    pub(crate) async fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        let builder = request(Method::POST, path, key).header("content-type", "application/json");
        self.send(builder.body(Body::from(body.to_string())).unwrap()).await
    }
}

/// Starts a request with a key.
pub(crate) fn request(method: Method, path: &str, key: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header("authorization", format!("Bearer {key}"))
}

/// The content of a file of the recordings, decompressed if it ends in `.gz`.
pub(crate) fn recording(name: &str) -> Vec<u8> {
    content("tests/conformance", name)
}

/// The content of a file of the tests' own, decompressed if it ends in `.gz`.
pub(crate) fn fixture(name: &str) -> Vec<u8> {
    content("tests/fixtures", name)
}

fn content(folder: &str, name: &str) -> Vec<u8> {
    use std::io::Read;
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if !name.ends_with(".gz") {
        return bytes;
    }
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut text).unwrap();
    text
}

/// Inserts the recordings' rows into a database.
pub(crate) async fn seed(pool: &PgPool) {
    let seed: serde_json::Map<String, Value> = serde_json::from_slice(&recording("seed.json")).unwrap();
    for (list, table) in [
        ("teams", "LiteLLM_TeamTable"),
        ("users", "LiteLLM_UserTable"),
        ("keys", "LiteLLM_VerificationToken"),
        ("deleted_keys", "LiteLLM_DeletedVerificationToken"),
        ("spend_logs", "LiteLLM_SpendLogs"),
        ("daily_user_spend", "LiteLLM_DailyUserSpend"),
    ] {
        insert(&mut pool.acquire().await.unwrap(), table, &seed[list]).await;
    }
}

/// Inserts rows given as a list of JSON objects. Columns that no object names get their defaults.
pub(crate) async fn insert(connection: &mut PgConnection, table: &str, rows: &Value) {
    let mut columns: Vec<&String> = Vec::new();
    for column in rows.as_array().unwrap().iter().flat_map(|row| row.as_object().unwrap().keys()) {
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    let columns = columns.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ");
    let statement = format!(
        "INSERT INTO \"{table}\" ({columns}) SELECT {columns} FROM jsonb_populate_recordset(NULL::\"{table}\", $1)"
    );
    let query = sqlx::query(AssertSqlSafe(statement)).bind(sqlx::types::Json(rows.clone()));
    connection.execute(query).await.unwrap();
}
