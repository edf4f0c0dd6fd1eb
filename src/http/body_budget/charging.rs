//! The middleware layer that charges the body of each request to the memory budget.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};

use crate::http::body_budget::Charge;
use crate::http::client_ip;
use crate::http::error::{ApiError, ErrorType};
use crate::http::state::AppState;
use crate::identity::Caller;

/// Middleware: charges the request's body to its key or, for a request without a key, to the client's address. Answers
/// 503 if a body does not get budget in time.
pub async fn charge(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let key = match request.extensions().get::<Caller>() {
        Some(caller) => caller.key_hash.clone(),
        None => client_ip::of_request(&state.settings, &request).map(|address| address.to_string()).unwrap_or_default(),
    };
    let charge = Arc::new(state.body_budget.begin(&key));
    let mut request = request.map(|body| Body::new(ChargedBody { body, charge: Arc::clone(&charge), waiting: None }));
    // A handler that unpacks the body charges what it unpacks.
    request.extensions_mut().insert(Arc::clone(&charge));
    let response = next.run(request).await;
    if charge.was_refused() { budget_exhausted() } else { response }
}

fn budget_exhausted() -> Response {
    ApiError::Refused {
        status: StatusCode::SERVICE_UNAVAILABLE,
        kind: ErrorType::InternalServerError,
        message: "The server is receiving too many large request bodies. It did not process this request. Try again \
                  shortly."
            .into(),
        param: Some("request_body".into()),
    }
    .into_response()
}

/// A request body whose bytes are passed on once they are charged.
struct ChargedBody {
    body: Body,
    charge: Arc<Charge>,
    waiting: Option<Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>>,
}

/// The error that ends a body for which there is no budget.
#[derive(Debug, thiserror::Error)]
#[error("the memory budget has no space for the request body")]
struct BudgetExhausted;

impl hyper::body::Body for ChargedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(waiting) = &mut this.waiting {
                let bytes = ready!(waiting.as_mut().poll(context));
                this.waiting = None;
                let frame = bytes.map(Frame::data).ok_or_else(|| axum::Error::new(BudgetExhausted));
                return Poll::Ready(Some(frame));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => {
                        let charge = Arc::clone(&this.charge);
                        this.waiting = Some(Box::pin(async move { charge.add(bytes.len()).await.then_some(bytes) }));
                    }
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.waiting.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}
