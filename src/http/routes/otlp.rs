//! Books inference spans: `POST /v1/traces`, by OpenTelemetry's OTLP over HTTP
//! (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use secrecy::ExposeSecret;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::booking::booker::Outcome;
use crate::booking::limits::Refusal;
use crate::booking::{Booking, Draft, span};
use crate::http::body_budget::Charge;
use crate::http::body_budget::unpacking::unpack_gzip;
use crate::http::error::{ApiError, ErrorType};
use crate::http::extract::read_body;
use crate::http::openapi::base::USAGE_TAG;
use crate::http::openapi::bodies::{TracesRefusal, TracesRequest, TracesResponse};
use crate::http::routes::booking::{SMALL_BODY, failure};
use crate::http::state::AppState;
use crate::identity::{Caller, hash_key};
use crate::metrics::{Metrics, Spans};
use crate::otlp::answer::{self, Encoding, Rejected};
use crate::otlp::inference::Inference;
use crate::otlp::{DecodeError, json, protobuf};
use crate::store::database;
use crate::store::database::DatabaseKind;

/// The routes of this file.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(export_traces))
}

/// Maximum size of a request body, and of what it unpacks to: 64 MiB. Exporters send up to 512 spans in one request, and
/// spans may carry the texts of their calls. Most exporters do not send a request again that is too large.
const TRACES_BODY_LIMIT: usize = 64 * 1024 * 1024;

/// The reason for refusing a span whose ids stand for another one.
const OTHER_SPAN: &str = "trace_id, span_id: the same key has sent a different span with these ids before";

/// The largest number of different reasons in the message about rejected spans.
const MAX_REASONS: usize = 5;

/// The largest number of characters of one reason.
const REASON_LENGTH: usize = 300;

/// Books the calls to models that OpenTelemetry's spans describe.
///
/// Spans whose `gen_ai.operation.name` is `chat`, `text_completion`, `generate_content` or `embeddings`, and inferences by
/// the conventions of OpenLLMetry and OpenInference, are booked for the key that sends them, at the cost in the price
/// table. All other spans are accepted and ignored. A span is booked once by its ids, however often it is exported. The
/// body may be gzip of at most 1,000 members, and may have at most 64 MiB unpacked and 10,000 inference spans. An
/// inference span that cannot be booked is counted in `partialSuccess`; do not send it again. A `partialSuccess` that
/// counts 0 is a warning. Viewers may not book. In a database that LiteLLM owns, spans are booked only if the server was started with `--otlp`, and
/// only from keys with the permission `book_usage`. With an upstream and without `--otlp`, the request is passed on.
/// Answers, and errors as a `google.rpc.Status`, are in the encoding of the request.
#[utoipa::path(post, path = "/v1/traces", tag = USAGE_TAG, operation_id = "export_traces",
    request_body(content = TracesRequest,
        description = "An `ExportTraceServiceRequest` in JSON, or in Protocol Buffers with `Content-Type: application/x-protobuf`"),
    responses((status = 200, description = "All inference spans were booked, except those that the answer counts as rejected", body = TracesResponse),
              (status = 400, description = "Not an ExportTraceServiceRequest, not gzip although declared so, or more than 1,000 gzip members", body = TracesRefusal),
              (status = 403, description = "The caller may not book", body = TracesRefusal),
              (status = 409, description = "The database is LiteLLM's, and the server was started without `--otlp`, or `litespend booking install` was not run", body = TracesRefusal),
              (status = 413, description = "More than 64 MiB, or more than 10,000 inference spans", body = TracesRefusal),
              (status = 415, description = "Neither JSON nor Protocol Buffers, or packed by something other than gzip", body = TracesRefusal),
              (status = 503, description = "The database is not available; sending again is safe", body = TracesRefusal)))]
async fn export_traces(
    State(state): State<AppState>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Response {
    let Some(encoding) = encoding_of(request.headers()) else {
        let message = "Content-Type must be application/x-protobuf or application/json";
        return refused(Encoding::Json, unsupported(message));
    };
    match book_traces(&state, &caller, encoding, request).await {
        Ok(rejected) => with_body(().into_response(), encoding, answer::accepted(encoding, &rejected)),
        Err(error) => refused(encoding, error),
    }
}

/// The encoding that `Content-Type` declares.
fn encoding_of(headers: &HeaderMap) -> Option<Encoding> {
    let declared = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    match declared.split(';').next()?.trim().to_ascii_lowercase().as_str() {
        "application/x-protobuf" => Some(Encoding::Protobuf),
        "application/json" => Some(Encoding::Json),
        _ => None,
    }
}

async fn book_traces(
    state: &AppState,
    caller: &Caller,
    encoding: Encoding,
    request: Request,
) -> Result<Rejected, ApiError> {
    check_enabled(state).await?;
    let body = read(request).await?;
    let Calls { drafts, mut refusals, unnamed } = calls(state, caller, encoding, body).await?;
    let (mut recorded, mut duplicate) = (0, 0);
    if !drafts.is_empty() {
        let outcomes = state.booker.book(&caller.key_hash, drafts).await.map_err(repeatable)?;
        state.folding.wake();
        for outcome in outcomes {
            match outcome {
                Outcome::Rejected(refusal) if refusal.code == 409 => refusals.push(Refusal::conflict(OTHER_SPAN)),
                Outcome::Rejected(refusal) => refusals.push(refusal),
                Outcome::Recorded { .. } => recorded += 1,
                Outcome::Duplicate { .. } => duplicate += 1,
            }
        }
    }
    Metrics::record_booked(recorded, duplicate, refusals.len());
    // What is to be sent again is not rejected.
    let rejected = refusals.iter().filter(|refusal| refusal.code != 503).count();
    Metrics::record_spans(&Spans { recorded, duplicate, rejected, unnamed });
    if recorded + duplicate + refusals.len() + unnamed > 0 {
        tracing::info!(recorded, duplicate, rejected = refusals.len(), unnamed, "traces");
    }
    check_refusals(&refusals)?;
    let summary = summary(&refusals, unnamed);
    if !summary.message.is_empty() {
        // Many exporters do not read the answer, so this line may be the only one that names the reasons.
        let key = if caller.is_master { "master" } else { caller.key_hash.get(..8).unwrap_or_default() };
        tracing::warn!(key, rejected, unnamed, reasons = summary.message, "spans were not booked");
    }
    Ok(summary)
}

/// Refuses spans on LiteLLM's database, unless the settings say otherwise: LiteLLM books the calls that it serves.
async fn check_enabled(state: &AppState) -> Result<(), ApiError> {
    if state.settings.otlp.on_litellm_database {
        return Ok(());
    }
    let mut connection = database::acquire(&state.pool).await?;
    if database::kind(&mut connection).await? == DatabaseKind::LiteLlm {
        return Err(ApiError::nested(
            StatusCode::CONFLICT,
            "LiteLLM owns this database, and books the calls that it serves. To book the calls of spans as well, start \
             litespend with --otlp (LITESPEND_OTLP=true).",
        ));
    }
    Ok(())
}

/// Reads and unpacks the body. Its share of the memory budget for bodies is held until the response.
async fn read(request: Request) -> Result<Bytes, ApiError> {
    let charge = request.extensions().get::<Arc<Charge>>().cloned();
    let is_gzip = is_gzip(request.headers())?;
    let body = read_body(request.into_body(), TRACES_BODY_LIMIT).await?;
    if is_gzip { unpack_gzip(body, TRACES_BODY_LIMIT, charge.as_deref()).await } else { Ok(body) }
}

fn is_gzip(headers: &HeaderMap) -> Result<bool, ApiError> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let Some(encoding) = encodings.next() else { return Ok(false) };
    let encoding = encoding.to_str().unwrap_or("?").trim().to_ascii_lowercase();
    match (encoding.as_str(), encodings.next()) {
        ("" | "identity", None) => Ok(false),
        ("gzip" | "x-gzip", None) => Ok(true),
        _ => Err(unsupported("Content-Encoding must be gzip or identity")),
    }
}

/// The calls of a request: those that can be booked, and the reasons for refusing the others.
#[derive(Default)]
struct Calls {
    drafts: Vec<Draft>,
    refusals: Vec<Refusal>,
    /// The number of spans that have token counts and do not say what they describe.
    unnamed: usize,
}

async fn calls(state: &AppState, caller: &Caller, encoding: Encoding, body: Bytes) -> Result<Calls, ApiError> {
    let master_hash = hash_key(state.settings.master_key.expose_secret());
    let (limits, settings) = (state.settings.booking, state.settings.otlp.clone());
    let (caller, pricer, now) = (caller.clone(), state.prices.current(), state.clock.now());
    let small = body.len() <= SMALL_BODY;
    let work = move || {
        let booking = Booking::of(&caller, &master_hash, limits).map_err(ApiError::forbidden)?;
        let traces = match encoding {
            Encoding::Protobuf => protobuf::decode(&body, &settings),
            Encoding::Json => json::decode(&body, &settings),
        };
        let traces = traces.map_err(undecodable)?;
        let mut calls = Calls { unnamed: traces.unnamed, ..Calls::default() };
        for resource in traces.resources {
            for span in &resource.spans {
                let inference = Inference::read(span, &resource.attributes, &settings, span::BOUNDS);
                let draft = inference.map_err(Refusal::from);
                match draft.and_then(|inference| span::draft(&inference, &booking, &pricer, now)) {
                    Ok(draft) => calls.drafts.push(draft),
                    Err(refusal) => calls.refusals.push(refusal),
                }
            }
        }
        Ok(calls)
    };
    if small {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::Internal(error.to_string()))?
}

fn undecodable(error: DecodeError) -> ApiError {
    let status = match error {
        DecodeError::Malformed(_) => StatusCode::BAD_REQUEST,
        DecodeError::TooManySpans => StatusCode::PAYLOAD_TOO_LARGE,
    };
    ApiError::Refused { status, kind: ErrorType::InvalidRequest, message: error.to_string(), param: None }
}

fn unsupported(message: &str) -> ApiError {
    let (status, kind) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorType::InvalidRequest);
    ApiError::Refused { status, kind, message: message.to_owned(), param: None }
}

/// The answer to a request of which nothing was booked. Exporters send a batch again after 503, but not after 500, and
/// sending again is safe.
fn repeatable(error: crate::booking::booker::BookingError) -> ApiError {
    match failure(error) {
        ApiError::Refused { status: StatusCode::INTERNAL_SERVER_ERROR, kind, message, param } => {
            ApiError::Refused { status: StatusCode::SERVICE_UNAVAILABLE, kind, message, param }
        }
        other => other,
    }
}

/// Refuses the whole request if sending it again helps, or if the key may book nothing. What was booked stays booked, and
/// is not booked again.
fn check_refusals(refusals: &[Refusal]) -> Result<(), ApiError> {
    if refusals.iter().any(|refusal| refusal.code == 503) {
        return Err(ApiError::Unavailable(None));
    }
    // The rights of a key are the same for all its spans.
    match refusals.iter().find(|refusal| refusal.code == 403) {
        Some(refusal) => Err(ApiError::forbidden(refusal.message.clone())),
        None => Ok(()),
    }
}

/// Counts the refusals, and summarises their reasons: at most [`MAX_REASONS`], each cut after [`REASON_LENGTH`] characters.
/// They name fields, models and providers, and never quote texts of a call. Warns of spans that may have been inferences.
fn summary(refusals: &[Refusal], unnamed: usize) -> Rejected {
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for refusal in refusals {
        if let Some((_, count)) = reasons.iter_mut().find(|(reason, _)| *reason == refusal.message) {
            *count += 1;
        } else if reasons.len() < MAX_REASONS {
            reasons.push((&refusal.message, 1));
        }
    }
    let others = refusals.len() - reasons.iter().map(|(_, count)| count).sum::<usize>();
    let mut parts: Vec<String> = reasons
        .into_iter()
        .map(|(reason, count)| {
            let reason: String = reason.chars().take(REASON_LENGTH).collect();
            if count == 1 { reason } else { format!("{reason} ({count} spans)") }
        })
        .collect();
    if others > 0 {
        parts.push(format!("and {others} more"));
    }
    if unnamed > 0 {
        let (spans, were) = if unnamed == 1 { ("span", "was") } else { ("spans", "were") };
        parts.push(format!(
            "{unnamed} {spans} with token counts but without a known gen_ai.operation.name {were} ignored"
        ));
    }
    Rejected { spans: u64::try_from(refusals.len()).unwrap_or(u64::MAX), message: parts.join("; ") }
}

/// The answer to a refused request, with a `google.rpc.Status` as its body.
fn refused(encoding: Encoding, error: ApiError) -> Response {
    let message = error.public_message();
    let response = error.into_response();
    let body = answer::refused(encoding, response.status().as_u16(), &message);
    with_body(response, encoding, body)
}

fn with_body(response: Response, encoding: Encoding, body: Vec<u8>) -> Response {
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(encoding.content_type()));
    Response::from_parts(parts, Body::from(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_summarised() {
        let refusal = |message: &str| Refusal::from(message);
        let refusals: Vec<Refusal> = ["a", "b", "a", "c", "d", "e", "f", "g"].map(refusal).into();
        let rejected = summary(&refusals, 0);
        assert_eq!((rejected.spans, rejected.message.as_str()), (8, "a (2 spans); b; c; d; e; and 2 more"));
        assert_eq!(summary(&[], 0), Rejected::default());
        let long = summary(&[refusal(&"é".repeat(1000))], 0);
        assert_eq!(long.message.chars().count(), REASON_LENGTH);
        let warned = summary(&[refusal("a")], 3);
        let warning = "3 spans with token counts but without a known gen_ai.operation.name were ignored";
        assert_eq!((warned.spans, warned.message), (1, format!("a; {warning}")));
        assert_eq!(summary(&[], 3), Rejected { spans: 0, message: warning.to_owned() });
    }
}
