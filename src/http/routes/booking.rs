//! Books usage: `POST /spend/usage`, and `POST /spend/usage/litellm` for LiteLLM's `generic_api` callback.

use axum::Extension;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::booking::booker::{BookingError, Outcome};
use crate::booking::limits::Refusal;
use crate::booking::record::UsageRecord;
use crate::booking::standard_logging::Payload;
use crate::booking::{Booking, Draft, MAX_RECORDS, fields};
use crate::field_error::FieldError;
use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::{check_object, declares_json, read_body};
use crate::http::openapi::base::USAGE_TAG;
use crate::http::state::AppState;
use crate::identity::{Caller, hash_key};
use crate::metrics::Metrics;
use litespend_pricing::Pricer;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(record_usage)).routes(routes!(record_litellm_usage))
}

/// Maximum size of a request body: 16 MiB.
pub const USAGE_BODY_LIMIT: usize = 16 * 1024 * 1024;

/// Bodies of at most this many bytes are parsed on the async runtime. Larger ones would delay other requests there.
pub(super) const SMALL_BODY: usize = 64 * 1024;

/// One record, or a list of records.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum UsageRequest {
    /// Several records.
    Many {
        /// The records, at most 10,000.
        records: Vec<UsageRecord>,
    },
    /// One record.
    One(Box<UsageRecord>),
}

/// The body that LiteLLM's callback sends, in one of its three formats.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum CallbackRequest {
    /// The format `json_array`.
    Many(Vec<Payload>),
    /// The format `single`, or one line of the format `ndjson`.
    One(Box<Payload>),
}

/// Result for one record.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UsageResult {
    /// Request ID of the row in the log. It is the record's own ID, unless another row has that ID. For a refused
    /// record, it is the ID that the record named; null if it named none.
    request_id: Option<String>,
    /// `recorded`, `duplicate` (booked before, and not again) or `error`.
    #[schema(example = "recorded")]
    status: &'static str,
    /// Spend in USD, as booked.
    spend: Option<f64>,
    /// Reason why the record was not booked.
    error: Option<String>,
    /// HTTP status for a refused record: 403 (the sender may not book it), 409 (its ID stands for another record), 413
    /// or 422 (a field is too large or invalid), 429 (too many new names), 503 (send it again).
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

/// Results for all records.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UsageResponse {
    /// Results in the order of the records.
    results: Vec<UsageResult>,
    /// Number of records that this request booked.
    recorded: usize,
    /// Number of records that were booked before.
    duplicate: usize,
    /// Number of refused records.
    error: usize,
}

/// The refusal of a whole request, or of each of its records.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum UsageRefusal {
    /// Each record is refused, with its own reason.
    Records(UsageResponse),
    /// The whole request is refused.
    Request(crate::http::openapi::shared::ErrorResponse),
}

/// Books usage that was measured elsewhere.
///
/// One transaction inserts the row into the log and updates the daily rows and the counters of the key, user, team,
/// organisation, end user and team member. `idempotency_key` makes booking exactly-once: if a request fails, send it
/// again unchanged, and nothing is counted twice. A virtual key books for itself, its user and its team, at the cost in
/// the price table. The master key, admins, and keys with the permission `book_usage` may book for any key and state
/// costs. Viewers may not book. If every record is refused, the status of the response is that of the records, or 422
/// if they differ. If at least one was booked, now or before, it is 200.
#[utoipa::path(post, path = "/spend/usage", tag = USAGE_TAG, operation_id = "record_usage",
    request_body = UsageRequest,
    responses((status = 200, description = "The result of each record", body = UsageResponse),
              (status = 403, description = "The caller may not book, or may not book any of these records", body = UsageRefusal),
              (status = 409, description = "Every id stands for another record, or the database is LiteLLM's and `litespend booking install` was not run", body = UsageRefusal),
              (status = 413, description = "More than 16 MiB, or a field of every record is too large", body = UsageRefusal),
              (status = 422, description = "Not a record, nor a list of at most 10,000; or every record is wrong", body = UsageRefusal),
              (status = 429, description = "Every record brings more new names than the key may bring today", body = UsageRefusal),
              (status = 503, description = "The database is not available; sending again is safe", body = UsageRefusal)))]
async fn record_usage(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let (headers, body) = read(request).await?;
    let reads = drafts(&state, &caller, body, move |body| records(&headers, body), UsageRecord::read).await?;
    book(&state, &caller, reads).await
}

/// Books the payloads that LiteLLM's `generic_api` callback sends: a JSON array, JSON lines, or one
/// `StandardLoggingPayload`.
///
/// From the master key, admins, and keys with the permission `book_usage`, the payload's own cost, key, user and team
/// are booked unchanged. From other keys, a payload that states a cost, or a key, user or team other than the sender's,
/// is refused with 403.
#[utoipa::path(post, path = "/spend/usage/litellm", tag = USAGE_TAG, operation_id = "record_litellm_usage",
    request_body = CallbackRequest,
    responses((status = 200, description = "The result of each payload", body = UsageResponse),
              (status = 403, description = "The caller may not book, or may not book any of these payloads", body = UsageRefusal),
              (status = 409, description = "Every id stands for another payload, or the database is LiteLLM's and `litespend booking install` was not run", body = UsageRefusal),
              (status = 413, description = "More than 16 MiB, or a field of every payload is too large", body = UsageRefusal),
              (status = 422, description = "Neither an array of at most 10,000 nor JSON lines; or every payload is wrong", body = UsageRefusal),
              (status = 429, description = "Every payload brings more new names than the key may bring today", body = UsageRefusal),
              (status = 503, description = "The database is not available; sending again is safe", body = UsageRefusal)))]
async fn record_litellm_usage(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let (headers, body) = read(request).await?;
    let reads = drafts(&state, &caller, body, move |body| payloads(&headers, body), Payload::read).await?;
    book(&state, &caller, reads).await
}

/// Reads the body. Its share of the memory budget for bodies is held until the response.
async fn read(request: Request) -> Result<(HeaderMap, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    Ok((parts.headers, read_body(body, USAGE_BODY_LIMIT).await?))
}

/// A record that can be booked; otherwise the ID that it named, and the reason for its refusal.
type Read = Result<Draft, (Option<String>, Refusal)>;

/// Splits a body into records and parses each of them.
async fn drafts(
    state: &AppState,
    caller: &Caller,
    body: Bytes,
    split: impl FnOnce(&[u8]) -> Result<Vec<&str>, ApiError> + Send + 'static,
    parse: fn(&str, &Booking<'_>, &Pricer, DateTime<Utc>) -> Result<Draft, Refusal>,
) -> Result<Vec<Read>, ApiError> {
    let master_hash = hash_key(state.settings.master_key.expose_secret());
    let limits = state.settings.booking;
    let (caller, pricer, now) = (caller.clone(), state.prices.current(), state.clock.now());
    let small = body.len() <= SMALL_BODY;
    let work = move || {
        let booking = Booking::of(&caller, &master_hash, limits).map_err(ApiError::forbidden)?;
        let read = |json: &str| parse(json, &booking, &pricer, now).map_err(|refusal| (named_id(json), refusal));
        Ok(split(&body)?.into_iter().map(read).collect())
    };
    if small {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::Internal(error.to_string()))?
}

/// The elements of a JSON list, unparsed. Only as many are kept as a request may have; the rest are only counted, so
/// that a list of millions is refused without being stored.
struct Elements<'a> {
    first: Vec<&'a str>,
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Elements<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Elements<'de>;
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a list of records")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Elements<'de>, A::Error> {
                let mut elements = Elements { first: Vec::new(), count: 0 };
                while let Some(item) = items.next_element::<&'de RawValue>()? {
                    elements.count += 1;
                    if elements.count <= MAX_RECORDS {
                        elements.first.push(item.get());
                    }
                }
                Ok(elements)
            }
        }
        deserializer.deserialize_seq(Visitor)
    }
}

impl<'a> Elements<'a> {
    fn at_most(self) -> Result<Vec<&'a str>, ApiError> {
        if self.count > MAX_RECORDS {
            let message = format!("List should have at most {MAX_RECORDS} items, not {}", self.count);
            return Err(field_error("too_long", message));
        }
        Ok(self.first)
    }
}

/// The records of `POST /spend/usage`, unparsed.
fn records<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Vec<&'a str>, ApiError> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        records: Option<Elements<'a>>,
    }
    let refused = || match check_object(headers, body) {
        Err(error) => error,
        Ok(()) => field_error("list_type", "Input should be a valid list"),
    };
    let text = std::str::from_utf8(body).map_err(|_| refused())?;
    let envelope: Envelope<'a> = serde_json::from_str(text).map_err(|_| refused())?;
    // Without this check, a JSON list would be accepted as the fields of the envelope.
    if !declares_json(headers) || !text.trim_start().starts_with('{') {
        return Err(refused());
    }
    envelope.records.map_or_else(|| Ok(vec![text]), Elements::at_most)
}

/// The payloads of LiteLLM's callback, unparsed. LiteLLM declares all its formats as JSON, so the text itself decides
/// which format it is.
fn payloads<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Vec<&'a str>, ApiError> {
    let Ok(text) = std::str::from_utf8(body) else {
        return Err(field_error("json_invalid", "JSON decode error: not UTF-8"));
    };
    let text = text.trim();
    if text.is_empty() {
        return check_object(headers, b"").map(|()| Vec::new());
    }
    if text.starts_with('[') {
        let items: Elements<'a> = serde_json::from_str(text)
            .map_err(|error| field_error("json_invalid", format!("JSON decode error at line {}", error.line())))?;
        return items.at_most();
    }
    if serde_json::from_str::<&RawValue>(text).is_ok() {
        return Ok(vec![text]);
    }
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    Elements { first: lines().take(MAX_RECORDS).collect(), count: lines().count() }.at_most()
}

fn field_error(kind: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::Validation(vec![FieldError::body("records", kind, message)])
}

/// The ID that a refused record names, so that the sender can find the record.
fn named_id(json: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(alias = "id")]
        idempotency_key: Option<String>,
    }
    serde_json::from_str::<Named>(json).ok()?.idempotency_key.filter(|id| id.len() <= fields::ID_BYTES)
}

async fn book(state: &AppState, caller: &Caller, reads: Vec<Read>) -> Result<Response, ApiError> {
    let mut drafts = Vec::with_capacity(reads.len());
    let mut positions = Vec::with_capacity(reads.len());
    for read in reads {
        positions.push(match read {
            Ok(draft) => {
                let id = draft.row.request_id.clone();
                drafts.push(draft);
                Ok(id)
            }
            Err(refused) => Err(refused),
        });
    }
    let mut outcomes = state.booker.book(&caller.key_hash, drafts).await.map_err(failure)?.into_iter();
    state.folding.wake();
    let mut results = Vec::with_capacity(positions.len());
    for position in positions {
        results.push(match position {
            Ok(id) => {
                let outcome = outcomes.next();
                result(id, outcome.ok_or_else(|| ApiError::Internal("a record without an outcome".into()))?)
            }
            Err((id, refusal)) => refused(id, refusal),
        });
    }
    let count = |status: &str| results.iter().filter(|result| result.status == status).count();
    let (recorded, duplicate, error) = (count("recorded"), count("duplicate"), count("error"));
    Metrics::record_booked(recorded, duplicate, error);
    let status = status(&results);
    Ok((status, Json(UsageResponse { results, recorded, duplicate, error })).into_response())
}

fn result(id: String, outcome: Outcome) -> UsageResult {
    let (request_id, status, spend) = match outcome {
        Outcome::Recorded { request_id, spend } => (request_id, "recorded", spend),
        Outcome::Duplicate { request_id, spend } => (request_id, "duplicate", spend),
        Outcome::Rejected(refusal) => return refused(Some(id), refusal),
    };
    UsageResult { request_id: Some(request_id), status, spend: Some(spend), error: None, code: None }
}

fn refused(request_id: Option<String>, refusal: Refusal) -> UsageResult {
    UsageResult { request_id, status: "error", spend: None, error: Some(refusal.message), code: Some(refusal.code) }
}

/// 200 if anything was booked, now or before. Otherwise the status of all records, or 422 if they differ.
fn status(results: &[UsageResult]) -> StatusCode {
    let Some(first) = results.first().and_then(|result| result.code) else { return StatusCode::OK };
    if results.iter().any(|result| result.code.is_none()) {
        return StatusCode::OK;
    }
    let alike = results.iter().all(|result| result.code == Some(first));
    StatusCode::from_u16(first).ok().filter(|_| alike).unwrap_or(StatusCode::UNPROCESSABLE_ENTITY)
}

/// The answer to a request of which nothing was booked.
pub(super) fn failure(error: BookingError) -> ApiError {
    tracing::error!(cause = %error, "cannot book usage");
    let again = "It is safe to send the same records again: those with an idempotency_key (for LiteLLM: an id) are \
                 never counted twice.";
    match error {
        BookingError::Unavailable(_) => ApiError::Refused {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: ErrorType::NoDatabaseConnection,
            message: format!("The database is not available, so the records could not be booked. {again}"),
            param: None,
        },
        BookingError::NotInstalled => ApiError::nested(
            StatusCode::CONFLICT,
            "LiteLLM owns this database, and booking is not enabled for it. To enable it, run `litespend booking \
             install`; to disable it again, run `litespend booking remove`.",
        ),
        BookingError::Denied(cause) => ApiError::Denied(cause),
        BookingError::Failed(_) | BookingError::Refused(_) => ApiError::Refused {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: ErrorType::InternalServerError,
            message: format!("The transaction failed and nothing was booked. {again}"),
            param: None,
        },
    }
}
