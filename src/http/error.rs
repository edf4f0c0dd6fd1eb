//! Errors as clients see them. [`ApiError`] is the error type of every route. It has the reference's two envelopes:
//! `{"error": {message, type, param, code}}` and `{"detail": ...}`. Clients never see driver messages, SQL, paths or a
//! chain of sources; the request log gets the cause, once.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::field_error::FieldError;
use crate::store;
use crate::store::error::{is_denied, is_stale_plan, is_statement_timeout, is_unavailable};

/// The `type` of an error in the `error` envelope, by the reference's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// The key is missing, malformed, blocked or not allowed to do this; the client's address is not allowed; or the
    /// client sends too many requests.
    AuthError,
    /// The key is well formed but unknown.
    TokenNotFound,
    /// The key has expired.
    ExpiredKey,
    /// The named object does not exist.
    NotFound,
    /// A required parameter is missing, a parameter or body cannot be used, or the object exists already.
    BadRequest,
    /// The reference's type for an alias that another key has.
    AliasTaken,
    /// The content of the request cannot be used.
    InvalidRequest,
    /// The reference's type for a bad date on `/spend/*` and `/global/spend/tags`.
    InternalError,
    /// The reference's type for a bad date on `/global/spend/report`, for some other bad parameters, and for failures
    /// of the server.
    InternalServerError,
    /// The database cannot be reached, or all connections are in use.
    NoDatabaseConnection,
    /// The answer, or the request's body, did not come in time.
    Timeout,
    /// The upstream cannot be reached.
    UpstreamUnavailable,
}

impl ErrorType {
    /// The value of `type` in the answer.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuthError => "auth_error",
            Self::TokenNotFound => "token_not_found_in_db",
            Self::ExpiredKey => "expired_key",
            Self::NotFound => "not_found_error",
            Self::BadRequest => "bad_request",
            Self::AliasTaken => "bad_request_error",
            Self::InvalidRequest => "invalid_request_error",
            Self::InternalError => "internal_error",
            Self::InternalServerError => "internal_server_error",
            Self::NoDatabaseConnection => "no_db_connection",
            Self::Timeout => "timeout_error",
            Self::UpstreamUnavailable => "upstream_unavailable",
        }
    }
}

/// All errors that a request can end with.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// An error in the `error` envelope.
    #[error("{message}")]
    Refused {
        /// The status of the answer: 4xx, 503 if the server has no capacity left for the request, or 500 if a booking
        /// failed.
        status: StatusCode,
        /// The `type` of the error.
        kind: ErrorType,
        /// The message for the client.
        message: String,
        /// The parameter at fault, if there is one.
        param: Option<String>,
    },
    /// An error in the `detail` envelope: `{"detail": "..."}`.
    #[error("{message}")]
    Detail {
        /// The status of the answer: 4xx, or 503 if the server has no capacity left for the request.
        status: StatusCode,
        /// The message for the client.
        message: String,
    },
    /// An error in the nested `detail` envelope: `{"detail": {"error": "..."}}`.
    #[error("{message}")]
    NestedDetail {
        /// The status of the answer: 4xx.
        status: StatusCode,
        /// The message for the client.
        message: String,
    },
    /// Fields that cannot be accepted: 422 with the location of each.
    #[error("{} field(s) of the request are invalid", .0.len())]
    Validation(Vec<FieldError>),
    /// The path does not support the method: 405. The value is the `Allow` header.
    #[error("method not allowed")]
    MethodNotAllowed(&'static str),
    /// The body is larger than the route accepts: 413.
    #[error("the request body is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The database cannot be reached, or no connection or permit is free: 503 with `Retry-After`.
    #[error("the database is not available")]
    Unavailable(#[source] Option<store::Error>),
    /// Too many large answers at the same time: 503 with `Retry-After`.
    #[error("too many large responses at the same time")]
    Busy,
    /// Too many requests of this kind for now: 429 with `Retry-After`.
    #[error("{message}")]
    TooManyRequests {
        /// The message for the client.
        message: &'static str,
        /// Seconds after which the client may try again.
        seconds: u64,
    },
    /// No answer within the time limit: 504.
    #[error("no response within {seconds} seconds")]
    Timeout {
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The upstream cannot be reached or gave no answer: 502. The value is the cause, for the log.
    #[error("the upstream is not available")]
    Upstream(String),
    /// An internal failure: 500 without details. The value is the cause, for the log.
    #[error("internal error: {0}")]
    Internal(String),
    /// The server's database role may not do this: 403.
    #[error("the database role lacks a right")]
    Denied(String),
    /// A migration of the tables is under way: 503 with `Retry-After`. A read is repeated before the client sees this.
    #[error("the tables have changed")]
    StalePlan(String),
    /// A database error other than unavailability: 500 without details.
    #[error("database error")]
    Database(#[source] store::Error),
}

impl ApiError {
    /// 401 in the `error` envelope, `type: auth_error`.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::Refused {
            status: StatusCode::UNAUTHORIZED,
            kind: ErrorType::AuthError,
            message: message.into(),
            param: None,
        }
    }

    /// 403 in the `error` envelope, `type: auth_error`.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::Refused {
            status: StatusCode::FORBIDDEN,
            kind: ErrorType::AuthError,
            message: message.into(),
            param: None,
        }
    }

    /// 400 in the `error` envelope.
    pub fn bad_request(kind: ErrorType, message: impl Into<String>) -> Self {
        Self::Refused { status: StatusCode::BAD_REQUEST, kind, message: message.into(), param: None }
    }

    /// The envelope `{"detail": "..."}`.
    pub fn detail(status: StatusCode, message: impl Into<String>) -> Self {
        Self::Detail { status, message: message.into() }
    }

    /// The envelope `{"detail": {"error": "..."}}`.
    pub fn nested(status: StatusCode, message: impl Into<String>) -> Self {
        Self::NestedDetail { status, message: message.into() }
    }

    /// The 504 for a query that the session's statement timeout has ended.
    pub fn statement_timeout() -> Self {
        Self::Timeout { seconds: crate::store::STATEMENT_TIMEOUT_SECONDS }
    }

    /// The HTTP status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused { status, .. } | Self::Detail { status, .. } | Self::NestedDetail { status, .. } => *status,
            Self::Validation(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::Unavailable(_) | Self::Busy | Self::StalePlan(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream(_) => StatusCode::BAD_GATEWAY,
            Self::Internal(_) | Self::Database(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The message that the client gets, without its envelope.
    pub fn public_message(&self) -> String {
        let body = self.body();
        let places = ["/error/message", "/detail/error", "/detail"];
        let message = places.iter().find_map(|place| body.pointer(place).and_then(Value::as_str));
        message.or(self.status().canonical_reason()).unwrap_or_default().to_owned()
    }

    fn body(&self) -> Value {
        let status = self.status();
        match self {
            Self::Refused { kind, message, param, .. } => envelope(*kind, status, message, param.as_deref()),
            Self::Detail { message, .. } => json!({ "detail": message }),
            Self::NestedDetail { message, .. } => json!({ "detail": { "error": message } }),
            Self::Validation(errors) => json!({ "detail": errors }),
            Self::MethodNotAllowed(_) => json!({ "detail": "Method Not Allowed" }),
            Self::TooLarge { limit } => envelope(
                ErrorType::InvalidRequest,
                status,
                &format!("The request body is larger than the limit of {limit} bytes."),
                Some("request_body"),
            ),
            Self::Unavailable(_) => envelope(
                ErrorType::NoDatabaseConnection,
                status,
                "The database is not available. Try again shortly.",
                None,
            ),
            Self::Busy => envelope(
                ErrorType::InternalServerError,
                status,
                "The server is sending too many large responses. Try again shortly, or request fewer rows.",
                None,
            ),
            Self::TooManyRequests { message, .. } => envelope(ErrorType::AuthError, status, message, None),
            Self::Timeout { seconds } => envelope(
                ErrorType::Timeout,
                status,
                &format!("The request took longer than the limit of {seconds} seconds."),
                None,
            ),
            Self::Upstream(_) => {
                envelope(ErrorType::UpstreamUnavailable, status, "The upstream server is not available.", None)
            }
            Self::Denied(_) => envelope(
                ErrorType::BadRequest,
                status,
                "The database role of this server lacks a right that the request needs.",
                None,
            ),
            Self::StalePlan(_) => envelope(
                ErrorType::NoDatabaseConnection,
                status,
                "The tables of the database have just changed. Try again.",
                None,
            ),
            Self::Internal(_) | Self::Database(_) => {
                envelope(ErrorType::InternalServerError, status, "Internal server error", None)
            }
        }
    }
}

fn envelope(kind: ErrorType, status: StatusCode, message: &str, param: Option<&str>) -> Value {
    json!({ "error": { "message": message, "type": kind.as_str(), "param": param, "code": status.as_u16().to_string() } })
}

/// The cause of a failed request, passed to the request log in the response's extensions.
#[derive(Clone, Debug)]
pub struct Cause(pub String);

/// Marks the response to a request that would succeed if it were sent again at once.
#[derive(Clone, Debug)]
pub struct Repeatable;

/// Marks an answer of the upstream that was passed on. What it refuses, this server did not refuse.
#[derive(Clone, Copy, Debug)]
pub struct PassedOn;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.body())).into_response();
        match &self {
            Self::MethodNotAllowed(allow) => {
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
            }
            Self::TooManyRequests { seconds, .. } => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
            }
            Self::Unavailable(cause) => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                if let Some(cause) = cause {
                    response.extensions_mut().insert(Cause(cause.to_string()));
                }
            }
            Self::Busy => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::StalePlan(cause) => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                response.extensions_mut().insert(Cause(cause.clone()));
                response.extensions_mut().insert(Repeatable);
            }
            Self::Upstream(cause) | Self::Internal(cause) | Self::Denied(cause) => {
                response.extensions_mut().insert(Cause(cause.clone()));
            }
            Self::Database(cause) => {
                response.extensions_mut().insert(Cause(cause.to_string()));
            }
            _ => {}
        }
        response
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        if is_unavailable(&error) {
            return Self::Unavailable(Some(error));
        }
        if is_statement_timeout(&error) {
            return Self::statement_timeout();
        }
        if is_denied(&error) {
            return Self::Denied(error.to_string());
        }
        if is_stale_plan(&error) {
            store::database::discard_prepared_statements();
            return Self::StalePlan(error.to_string());
        }
        Self::Database(error)
    }
}
