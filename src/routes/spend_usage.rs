//! Booking usage: `POST /spend/usage` and, for LiteLLM's `generic_api` callback, `POST /spend/usage/litellm`.

use axum::Extension;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::app::AppState;
use crate::auth::{Caller, hash_key};
use crate::error::{ApiError, ErrorType, FieldError};
use crate::extract::{declares_json, parse_object, read_body};
use crate::pricing::Pricer;
use crate::usage::booker::{BookingError, Outcome};
use crate::usage::record::UsageRecord;
use crate::usage::standard_logging::Payload;
use crate::usage::{Booking, Draft, MOST_RECORDS, fields};

/// The largest body: 16 MiB.
pub const USAGE_BODY_LIMIT: usize = 16 * 1024 * 1024;

/// Bodies up to this many bytes are read where the request is served; larger ones would hold up its neighbours.
const SMALL_BODY: usize = 64 * 1024;

/// A record, or a list of them.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum UsageRequest {
    /// Several records.
    Many {
        /// At most 10,000.
        records: Vec<UsageRecord>,
    },
    /// One record.
    One(Box<UsageRecord>),
}

/// What LiteLLM's callback sends in its three formats.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum CallbackRequest {
    /// `json_array`.
    Many(Vec<Payload>),
    /// `single`, or a line of `ndjson`.
    One(Box<Payload>),
}

/// What became of a record.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UsageResult {
    /// Id of the row in the log; null where a record was refused that named none.
    request_id: Option<String>,
    /// `recorded`, `duplicate` (booked before, not again) or `error`.
    #[schema(example = "recorded")]
    status: &'static str,
    /// USD as booked.
    spend: Option<f64>,
    /// Why it was not booked.
    error: Option<String>,
}

/// What became of all records.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UsageResponse {
    /// In the order of the records.
    results: Vec<UsageResult>,
    /// How many were booked now.
    recorded: usize,
    /// How many had been booked before.
    duplicate: usize,
    /// How many were refused.
    error: usize,
}

/// Books usage that was measured elsewhere: the row of the log, the counters of key, user, team, organisation, end
/// user and team member, and the daily rows, in one transaction and exactly once by `idempotency_key`. Send a request
/// that failed again as it was: nothing is counted twice. Admins book for any key, a virtual key for itself.
#[utoipa::path(post, path = "/spend/usage", tag = crate::openapi::USAGE_TAG, operation_id = "record_usage",
    security(("APIKeyHeader" = [])), request_body = UsageRequest,
    responses((status = 200, description = "What became of each record", body = UsageResponse),
              (status = 413, description = "More than 16 MiB"),
              (status = 422, description = "Not a record, nor a list of at most 10,000"),
              (status = 503, description = "The database is away; safe to send again")))]
pub async fn record_usage(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<UsageResponse>, ApiError> {
    let (headers, body) = read(request).await?;
    let drafts = drafts(
        &state,
        &caller,
        body,
        move |body| records(&headers, body),
        |json, booking, pricer, now| fields::parse::<UsageRecord>(json)?.into_draft(booking, pricer, now),
    )
    .await?;
    book(&state, drafts).await
}

/// Books what LiteLLM's `generic_api` callback sends: a JSON array, JSON lines, or one `StandardLoggingPayload`. The
/// payload's own cost is booked. With the master key the payload's key, user and team are taken as they are; a
/// virtual key books for itself.
#[utoipa::path(post, path = "/spend/usage/litellm", tag = crate::openapi::USAGE_TAG,
    operation_id = "record_litellm_usage", security(("APIKeyHeader" = [])), request_body = CallbackRequest,
    responses((status = 200, description = "What became of each payload", body = UsageResponse),
              (status = 413, description = "More than 16 MiB"),
              (status = 422, description = "Neither an array of at most 10,000 nor JSON lines"),
              (status = 503, description = "The database is away; safe to send again")))]
pub async fn record_litellm_usage(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<UsageResponse>, ApiError> {
    let (headers, body) = read(request).await?;
    let drafts = drafts(
        &state,
        &caller,
        body,
        move |body| payloads(&headers, body),
        |json, booking, pricer, now| fields::parse::<Payload>(json)?.into_draft(booking, pricer, now),
    )
    .await?;
    book(&state, drafts).await
}

/// Reads the body; the room that it takes is held until the answer.
async fn read(request: Request) -> Result<(HeaderMap, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    Ok((parts.headers, read_body(body, USAGE_BODY_LIMIT).await?))
}

/// A record that can be booked, or the id it named and what is wrong with it.
type Read = Result<Draft, (Option<String>, String)>;

/// Splits a body into records and reads each.
async fn drafts(
    state: &AppState,
    caller: &Caller,
    body: Bytes,
    split: impl FnOnce(&[u8]) -> Result<Vec<&str>, ApiError> + Send + 'static,
    parse: fn(&str, &Booking<'_>, &Pricer, DateTime<Utc>) -> Result<Draft, String>,
) -> Result<Vec<Read>, ApiError> {
    let master_hash = hash_key(state.settings.master_key.expose_secret());
    let (caller, pricer, now) = (caller.clone(), state.prices.current(), state.clock.now());
    let small = body.len() <= SMALL_BODY;
    let work = move || {
        let Some(booking) = Booking::of(&caller, &master_hash) else {
            return Err(ApiError::forbidden(
                "proxy_admin_viewer sees everything and changes nothing: it can't book usage",
            ));
        };
        let read = |json: &str| parse(json, &booking, &pricer, now).map_err(|error| (named_id(json), error));
        Ok(split(&body)?.into_iter().map(read).collect())
    };
    if small {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::Internal(error.to_string()))?
}

/// The records of `POST /spend/usage`, unread.
fn records<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Vec<&'a str>, ApiError> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        records: Option<Vec<&'a RawValue>>,
    }
    let refused = || match parse_object(headers, body) {
        Err(error) => error,
        Ok(_) => field_error("list_type", "Input should be a valid list"),
    };
    let text = std::str::from_utf8(body).map_err(|_| refused())?;
    let envelope: Envelope<'a> = serde_json::from_str(text).map_err(|_| refused())?;
    // A list of lists would pass as the fields of an envelope.
    if !declares_json(headers) || !text.trim_start().starts_with('{') {
        return Err(refused());
    }
    match envelope.records {
        Some(records) => at_most(records.into_iter().map(RawValue::get).collect()),
        None => Ok(vec![text]),
    }
}

/// The payloads of LiteLLM's callback, unread. All its formats are declared as JSON, so the text decides.
fn payloads<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Vec<&'a str>, ApiError> {
    let Ok(text) = std::str::from_utf8(body) else {
        return Err(field_error("json_invalid", "JSON decode error: not UTF-8"));
    };
    let text = text.trim();
    if text.is_empty() {
        return parse_object(headers, b"").map(|_| Vec::new());
    }
    if text.starts_with('[') {
        let items: Vec<&'a RawValue> = serde_json::from_str(text)
            .map_err(|error| field_error("json_invalid", format!("JSON decode error at line {}", error.line())))?;
        return at_most(items.into_iter().map(RawValue::get).collect());
    }
    if serde_json::from_str::<&RawValue>(text).is_ok() {
        return Ok(vec![text]);
    }
    at_most(text.lines().map(str::trim).filter(|line| !line.is_empty()).collect())
}

fn at_most(records: Vec<&str>) -> Result<Vec<&str>, ApiError> {
    if records.len() > MOST_RECORDS {
        let message = format!("List should have at most {MOST_RECORDS} items, not {}", records.len());
        return Err(field_error("too_long", message));
    }
    Ok(records)
}

fn field_error(kind: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::Validation(vec![FieldError::body("records", kind, message)])
}

/// The id that a refused record names, so that its sender finds it.
fn named_id(json: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(alias = "id")]
        idempotency_key: Option<String>,
    }
    serde_json::from_str::<Named>(json).ok()?.idempotency_key.filter(|id| id.len() <= fields::ID_BYTES)
}

async fn book(state: &AppState, reads: Vec<Read>) -> Result<Json<UsageResponse>, ApiError> {
    let drafts: Vec<Draft> = reads.iter().flatten().cloned().collect();
    let mut outcomes = state.booker.book(drafts).await.map_err(failure)?.into_iter();
    state.folding.notify_one();
    let mut response = UsageResponse { results: Vec::with_capacity(reads.len()), recorded: 0, duplicate: 0, error: 0 };
    for read in reads {
        let (request_id, outcome) = match read {
            Ok(draft) => (
                Some(draft.row.request_id),
                outcomes.next().ok_or_else(|| ApiError::Internal("a record without an outcome".into()))?,
            ),
            Err((id, error)) => (id, Outcome::Rejected(error)),
        };
        let (status, spend, error) = match outcome {
            Outcome::Recorded(spend) => ("recorded", Some(spend), None),
            Outcome::Duplicate(spend) => ("duplicate", Some(spend), None),
            Outcome::Rejected(error) => ("error", None, Some(error)),
        };
        match status {
            "recorded" => response.recorded += 1,
            "duplicate" => response.duplicate += 1,
            _ => response.error += 1,
        }
        response.results.push(UsageResult { request_id, status, spend, error });
    }
    Ok(Json(response))
}

fn failure(error: BookingError) -> ApiError {
    tracing::error!(cause = %error, "usage was not booked");
    let again = "It is safe to send the same records again: those with an idempotency_key (for LiteLLM: an id) are \
                 never counted twice.";
    match error {
        BookingError::Unavailable(_) => ApiError::Refused {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: ErrorType::NoDatabaseConnection,
            message: format!("The database is not available, so the records could not be booked. {again}"),
            param: None,
        },
        BookingError::OldTables(columns) => ApiError::nested(
            StatusCode::CONFLICT,
            format!("Usage can't be booked into this database: LiteLLM is too old, its tables have no {columns}."),
        ),
        BookingError::Failed(_) => ApiError::Refused {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: ErrorType::InternalServerError,
            message: format!("The transaction failed and nothing was booked. {again}"),
            param: None,
        },
    }
}
