//! What a client is told when something fails. Owns [`ApiError`], the one error type of every route, and
//! the two envelopes of the reference: `{"error": {message, type, param, code}}` and `{"detail": ...}`.
//! Clients never see driver text, SQL, paths or a source chain; the request log gets the cause, once.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::field_error::FieldError;
use crate::store;
use crate::store::error::{is_statement_timeout, is_unavailable};

/// The `type` of an error in the `error` envelope: the reference's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// The key is missing, malformed, blocked, or may not do this.
    AuthError,
    /// The key is well formed and unknown.
    TokenNotFound,
    /// The key has expired.
    ExpiredKey,
    /// What was named does not exist.
    NotFound,
    /// A required parameter is missing.
    BadRequest,
    /// The request's content can't be used.
    InvalidRequest,
    /// The reference's name for a bad date on `/spend/*` and `/global/spend/tags`.
    InternalError,
    /// The reference's name for a bad date on `/global/spend/report`, and for failures of the server.
    InternalServerError,
    /// The database can't be reached, or all connections are in use.
    NoDatabaseConnection,
    /// No answer in time.
    Timeout,
    /// The server behind this one can't be reached.
    UpstreamUnavailable,
}

impl ErrorType {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuthError => "auth_error",
            Self::TokenNotFound => "token_not_found_in_db",
            Self::ExpiredKey => "expired_key",
            Self::NotFound => "not_found_error",
            Self::BadRequest => "bad_request",
            Self::InvalidRequest => "invalid_request_error",
            Self::InternalError => "internal_error",
            Self::InternalServerError => "internal_server_error",
            Self::NoDatabaseConnection => "no_db_connection",
            Self::Timeout => "timeout_error",
            Self::UpstreamUnavailable => "upstream_unavailable",
        }
    }
}

/// Every way in which a request can fail.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A refusal in the `error` envelope.
    #[error("{message}")]
    Refused {
        /// Status of the answer, 4xx.
        status: StatusCode,
        /// The reference's name of the kind of error.
        kind: ErrorType,
        /// For the client, in words.
        message: String,
        /// The parameter at fault, where there is one.
        param: Option<String>,
    },
    /// A refusal in the `detail` envelope: `{"detail": "..."}`.
    #[error("{message}")]
    Detail {
        /// Status of the answer, 4xx.
        status: StatusCode,
        /// For the client, in words.
        message: String,
    },
    /// A refusal in the nested `detail` envelope: `{"detail": {"error": "..."}}`.
    #[error("{message}")]
    NestedDetail {
        /// Status of the answer, 4xx.
        status: StatusCode,
        /// For the client, in words.
        message: String,
    },
    /// Fields of the wrong type: 422 with their places.
    #[error("{} field(s) of the request could not be accepted", .0.len())]
    Validation(Vec<FieldError>),
    /// The method is not one of the path's: 405 with `Allow`.
    #[error("method not allowed")]
    MethodNotAllowed(&'static str),
    /// The body is larger than the route takes: 413.
    #[error("the request body is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The database can't be reached or has no connection to spare: 503 with `Retry-After`.
    #[error("the database is not available")]
    Unavailable(#[source] Option<store::Error>),
    /// Too many large answers at once: 503 with `Retry-After`.
    #[error("too many large answers at once")]
    Busy,
    /// Too many of these for now: 429 with `Retry-After`.
    #[error("{message}")]
    TooManyRequests {
        /// For the client, in words.
        message: &'static str,
        /// When to try again, in seconds.
        seconds: u64,
    },
    /// No answer within the limit: 504.
    #[error("no answer within {seconds} seconds")]
    Timeout {
        /// The limit, in seconds.
        seconds: u64,
    },
    /// The server behind this one can't be reached or gave no answer: 502.
    #[error("the upstream is not available")]
    Upstream(String),
    /// A failure of ours: 500 and nothing more.
    #[error("internal error: {0}")]
    Internal(String),
    /// A failure of the database that is not its absence: 500 and nothing more.
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

    /// 504 for a query that the session's statement timeout ended.
    pub fn statement_timeout() -> Self {
        Self::Timeout { seconds: crate::store::STATEMENT_TIMEOUT_SECONDS }
    }

    /// Status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Refused { status, .. } | Self::Detail { status, .. } | Self::NestedDetail { status, .. } => *status,
            Self::Validation(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable(_) | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream(_) => StatusCode::BAD_GATEWAY,
            Self::Internal(_) | Self::Database(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
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
                "Too many large answers are being sent. Try again shortly, or ask for fewer rows.",
                None,
            ),
            Self::TooManyRequests { message, .. } => envelope(ErrorType::AuthError, status, message, None),
            Self::Timeout { seconds } => {
                envelope(ErrorType::Timeout, status, &format!("No answer within the limit of {seconds} seconds."), None)
            }
            Self::Upstream(_) => {
                envelope(ErrorType::UpstreamUnavailable, status, "The upstream server is not available.", None)
            }
            Self::Internal(_) | Self::Database(_) => {
                envelope(ErrorType::InternalServerError, status, "Internal server error", None)
            }
        }
    }
}

fn envelope(kind: ErrorType, status: StatusCode, message: &str, param: Option<&str>) -> Value {
    json!({ "error": { "message": message, "type": kind.as_str(), "param": param, "code": status.as_u16().to_string() } })
}

/// The cause of a failed request, left in the response's extensions for the request log.
#[derive(Clone, Debug)]
pub struct Cause(pub String);

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
            Self::Upstream(cause) | Self::Internal(cause) => {
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
        Self::Database(error)
    }
}
