//! Watches the body of each request on its way to the handler. If the body arrives too slowly, the request is answered
//! 408, unless it is forwarded to the upstream. If the handler did not read the body to its end, the rest of a small
//! body is read here. Otherwise an HTTP/1 answer says that the connection closes: the rest of a refused body could be
//! taken for the next request, or break the connection while the client is still sending.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;

use crate::http::admission;
use crate::http::connection::progress_budget::ProgressBudget;
use crate::http::connection::state::ConnectionState;
use crate::http::error::{ApiError, ErrorType};
use crate::http::response_headers;
use crate::http::state::AppState;

/// Most bytes of an unread body that are read to keep the connection open.
const READ_OUT: u64 = 64 * 1024;

/// How long reading an unread body may take.
const READ_OUT_LIMIT: Duration = Duration::from_secs(1);

/// Middleware: watches the request's body. Refuses `CONNECT`.
pub async fn watch(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if request.method() == Method::CONNECT {
        let mut refusal = ApiError::MethodNotAllowed("GET,POST").into_response();
        response_headers::protect(None, &mut refusal);
        return refusal;
    }
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let http1 = request.version() < Version::HTTP_2;
    let connection = request.extensions().get::<Arc<ConnectionState>>().cloned();
    let waits_to_send = request.headers().contains_key(header::EXPECT);
    let limits = &state.settings.connections;
    // A forwarded request may be a two-way conversation, so the limit for answers applies to its body.
    let passed_on = !admission::is_served_here(&state.settings, &request);
    let limit = if passed_on { limits.answer } else { limits.body };
    let mut body = None;
    let request = request.map(|incoming| {
        let watched = WatchedBody::new(incoming, limit);
        body = Some(Arc::clone(&watched.0));
        Body::new(watched)
    });
    let mut response = next.run(request).await;
    // If a reader still holds the body, the answer has begun before the end of the request.
    let Some(body) = body.and_then(Arc::into_inner) else { return response };
    let mut body = body.into_inner();
    if body.stalled && !passed_on {
        response = stalled(limit);
    } else if !http1 || body.ended || ((body.polled || !waits_to_send) && body.read_out().await) {
        return response;
    }
    if http1 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Some(connection) = connection {
            connection.linger();
        }
    }
    response
}

/// The 408 answer to a request whose body did not arrive in time.
fn stalled(limit: Duration) -> Response {
    let mut response = ApiError::Refused {
        status: StatusCode::REQUEST_TIMEOUT,
        kind: ErrorType::Timeout,
        message: format!(
            "The request body arrived too slowly: less than 1 KiB per second for {} seconds.",
            limit.as_secs()
        ),
        param: Some("request_body".into()),
    }
    .into_response();
    response_headers::protect(None, &mut response);
    response
}

/// A request body that has to arrive at the rate that [`ProgressBudget`] demands.
struct WatchedBody(Arc<Mutex<Watched>>);

struct Watched {
    body: Body,
    budget: ProgressBudget,
    polled: bool,
    ended: bool,
    stalled: bool,
}

/// The error that ends a body which does not arrive in time.
#[derive(Debug, thiserror::Error)]
#[error("the client sends the request body too slowly")]
struct Stalled;

impl WatchedBody {
    fn new(body: Body, limit: Duration) -> Self {
        let budget = ProgressBudget::new(limit);
        Self(Arc::new(Mutex::new(Watched { body, budget, polled: false, ended: false, stalled: false })))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Watched) -> T) -> T {
        look(&mut self.0.lock())
    }
}

impl Watched {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.polled = true;
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            ready!(self.budget.poll_out(context));
            self.stalled = true;
            return Poll::Ready(Some(Err(axum::Error::new(Stalled))));
        };
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        self.budget.progress(bytes);
        self.ended = frame.is_none() || self.body.is_end_stream();
        Poll::Ready(frame)
    }

    /// Reads the rest of a small body. Returns whether it reached the end.
    async fn read_out(&mut self) -> bool {
        if self.body.size_hint().lower() > READ_OUT {
            return false;
        }
        let reading = async {
            let mut left = READ_OUT;
            while let Some(frame) = self.body.frame().await {
                let Ok(frame) = frame else { return false };
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let Some(rest) = left.checked_sub(u64::try_from(bytes).unwrap_or(u64::MAX)) else { return false };
                left = rest;
            }
            true
        };
        tokio::time::timeout(READ_OUT_LIMIT, reading).await.unwrap_or(false)
    }
}

impl hyper::body::Body for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.with(|watched| watched.poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.with(|watched| watched.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|watched| watched.body.size_hint())
    }
}
