//! Health probes and metrics.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::{ApiError, Cause};
use crate::http::reads::Reads;
use crate::http::state::AppState;
use crate::http::telemetry;
use crate::metrics::Now;
use crate::settings::spend_metrics::Label;
use crate::spend_metrics::{Directory, Gathered, HOLDERS, PIECE, render_budgets, render_not_listed, sums_for};
use crate::store;
use crate::store::spend_metrics::Holder;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(get_liveliness))
        .routes(routes!(get_liveness))
        .routes(routes!(get_readiness))
        .routes(routes!(get_metrics))
        .routes(routes!(get_spend_metrics))
}

/// Readiness: whether the server can use its database.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ReadinessResponse {
    /// `healthy` or `unhealthy`.
    #[schema(example = "healthy")]
    status: &'static str,
    /// `connected` or `unavailable`.
    #[schema(example = "connected")]
    db: &'static str,
    /// Version of litespend.
    litespend_version: &'static str,
    /// What reads of sums use: `counting` (the rollups), `not installed` (the log), `lost`: rollups are installed, but they
    /// do not count the log any more, so reads use the log until `litespend rollups install` is run; or `unreadable`: the
    /// database role of this server may not read the rollups, so reads use the log.
    #[schema(example = "counting")]
    rollups: &'static str,
    /// The price table in use.
    prices: PricesReadiness,
}

/// The price table in use.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PricesReadiness {
    /// `built in (LiteLLM VERSION)`, `file`, `url`, or `saved copy of a url`.
    #[schema(example = "built in (LiteLLM 1.110.2)")]
    source: String,
    /// Seconds since the table was read; null for the built-in table.
    #[schema(minimum = 0)]
    age_seconds: Option<u64>,
    /// Whether the last attempt to read a newer table failed.
    refresh_failed: bool,
}

/// Returns 200 if the process is alive. Checks nothing else.
#[utoipa::path(get, path = "/health/liveliness", tag = "Health", operation_id = "get_health_liveliness",
    responses((status = 200, description = "Alive", body = String, content_type = "application/json")))]
async fn get_liveliness() -> Json<&'static str> {
    Json("I'm alive!")
}

/// Returns 200 if the process is alive. Checks nothing else.
#[utoipa::path(get, path = "/health/liveness", tag = "Health", operation_id = "get_health_liveness",
    responses((status = 200, description = "Alive", body = String, content_type = "application/json")))]
async fn get_liveness() -> Json<&'static str> {
    Json("I'm alive!")
}

/// Returns 200 if the database responds to a query.
#[utoipa::path(get, path = "/health/readiness", tag = "Health", operation_id = "get_health_readiness",
    responses((status = 200, description = "Ready", body = ReadinessResponse),
              (status = 503, description = "The database is not available", body = ReadinessResponse)))]
async fn get_readiness(State(state): State<AppState>) -> Response {
    let result = store::database::ping(&state.pool).await;
    let (code, status, db) = match &result {
        Ok(()) => (StatusCode::OK, "healthy", "connected"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy", "unavailable"),
    };
    let prices = state.prices.status();
    let body = ReadinessResponse {
        status,
        db,
        litespend_version: env!("CARGO_PKG_VERSION"),
        rollups: state.rollups_state(),
        prices: PricesReadiness {
            age_seconds: prices.age().map(|age| age.as_secs()),
            source: prices.source,
            refresh_failed: prices.failure.is_some(),
        },
    };
    let mut response = (code, Json(body)).into_response();
    if let Err(error) = result {
        response.extensions_mut().insert(Cause(error.to_string()));
    }
    response
}

/// The text format of Prometheus.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns metrics in the text format of Prometheus.
///
/// The metrics cover requests and latency by route and status class, the connection pool, and the key cache.
#[utoipa::path(get, path = "/metrics", tag = "Health", operation_id = "get_metrics",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain")))]
async fn get_metrics(State(state): State<AppState>) -> Response {
    let prices = state.prices.status();
    let text = state.metrics.render(&Now {
        connections: state.pool.size(),
        idle_connections: state.pool.num_idle(),
        keys_cached: state.keys.remembered(),
        log_lines_dropped: telemetry::dropped_lines(),
        prices_age: prices.age(),
        prices_source: prices.source,
        prices_models: prices.models,
        prices_failed: prices.failure.is_some(),
    });
    ([(header::CONTENT_TYPE, TEXT)], text).into_response()
}

/// Returns spend, tokens, requests and budgets as metrics in the text format of Prometheus.
///
/// Names, types and labels are LiteLLM's. The counters have everything that was ever logged, whichever server is asked: they do
/// not fall when rows of the log are deleted. Without rollups there are no counters.
#[utoipa::path(get, path = "/metrics/spend", tag = "Health", operation_id = "get_spend_metrics",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain")))]
async fn get_spend_metrics(State(state): State<AppState>, reads: Reads) -> Result<Response, ApiError> {
    let settings = &state.settings.spend_metrics;
    let wait = tokio::time::timeout(SCRAPE_WAIT, SCRAPES.acquire()).await;
    let busy = ApiError::TooManyRequests { message: BUSY, seconds: 5 };
    let permit = wait.ok().and_then(Result::ok).ok_or(busy)?;
    // One scrape at a time uses what is remembered, so that the snapshots follow each other. Another one reads everything.
    let mut remembered = state.spend_series.try_lock().ok();
    let mut reading = reads.start_on_primary().await?.snapshot().await?;
    let connection = reading.connection();
    let mut counters = None;
    let kept =
        if state.has_rollups() { store::spend_metrics::kept(connection, sums_for(settings)).await? } else { None };
    if let Some(sums) = kept {
        let mut names = Directory::default();
        if settings.has(Label::ApiKeyAlias) {
            names.name_keys(store::spend_metrics::key_aliases(connection).await?);
        }
        if settings.has(Label::TeamAlias) {
            names.name_teams(store::spend_metrics::team_aliases(connection).await?);
        }
        if settings.has(Label::UserEmail) {
            names.name_users(store::spend_metrics::user_emails(connection).await?);
        }
        if settings.has(Label::OrgAlias) {
            names.name_organizations(store::spend_metrics::organization_aliases(connection).await?);
        }
        let mut gathered = Gathered::new(settings, names);
        gathered.read(&mut reading, sums, remembered.as_deref_mut()).await?;
        counters = Some(gathered.pieces());
    }
    drop(remembered);
    let limit = i64::try_from(settings.series()).unwrap_or(i64::MAX);
    let (mut budgets, mut not_listed) = (String::new(), Vec::new());
    for of in HOLDERS {
        if of != Holder::Customer || settings.has(Label::EndUser) {
            let of_kind = store::spend_metrics::budgets(reading.connection(), of, limit).await?;
            budgets += &render_budgets(of, &of_kind.listed);
            not_listed.push((of, of_kind.not_listed));
        }
    }
    reading.finish().await?;
    budgets += &render_not_listed(&not_listed);
    let mut budgets = Bytes::from(budgets);
    let budgets = std::iter::from_fn(move || {
        let piece = budgets.split_to(budgets.len().min(PIECE));
        (!piece.is_empty()).then_some(piece)
    });
    // The permit is held until the text is written, because the series are in memory until then. It is read ahead of a slow
    // client, so that nobody keeps others from scraping.
    let pieces = counters.into_iter().flatten().map(Bytes::from).chain(budgets).map(move |piece| {
        let _held = &permit;
        Ok(piece)
    });
    reads.send(stream::iter(pieces), TEXT).await
}

/// The scrapes of spend that are answered at once. Each has all listed series in memory.
static SCRAPES: Semaphore = Semaphore::const_new(2);

const BUSY: &str = "Other scrapes of spend are being answered. Try again in a few seconds.";

/// How long a scrape waits for another one.
const SCRAPE_WAIT: Duration = Duration::from_secs(10);
