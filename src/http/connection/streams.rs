//! HTTP/2 streams. Each stream has its own time limit: a client can stop receiving one of them (a window of 0) while
//! the socket still makes progress. The executor that runs a stream's future gives the answer's body access to a record
//! of whether the server waits for the client. It drops the future, which resets the stream, once the server has waited
//! for too long.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;

use crate::http::connection::progress_budget::ProgressBudget;
use crate::http::connection::state::Running;

tokio::task_local! {
    /// The stream whose future is being polled.
    static STREAM: Arc<Mutex<Stream>>;
}

/// Answers of at most this many bytes end with their last chunk, even if it has not been sent yet.
const SMALL: u64 = 16 * 1024;

/// Whether the server waits for the client, and for how long it still may.
struct Stream {
    budget: ProgressBudget,
    /// The size of the last chunk, from when hyper took it until hyper asks for the next one. In that time the server
    /// waits for the client.
    handed_out: Option<usize>,
}

/// Runs the futures of HTTP/2 streams as tokio tasks.
#[derive(Clone, Debug)]
pub struct StreamExecutor {
    /// How long a stream may wait for a client to receive its answer ([`ProgressBudget`]).
    pub answer_limit: Duration,
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, future: F) {
        let stream = Stream { budget: ProgressBudget::new(self.answer_limit), handed_out: None };
        tokio::spawn(Watched { future: Box::pin(future), stream: Arc::new(Mutex::new(stream)) });
    }
}

struct Watched<F> {
    future: Pin<Box<F>>,
    stream: Arc<Mutex<Stream>>,
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let future = this.future.as_mut();
        if STREAM.sync_scope(Arc::clone(&this.stream), || future.poll(context)).is_ready() {
            return Poll::Ready(());
        }
        let mut stream = this.stream.lock();
        if stream.handed_out.is_some() && stream.budget.poll_out(context).is_ready() {
            tracing::debug!("reset the stream of a client that does not read the response");
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// The body of an answer. Its request counts as running until the last byte has been sent.
pub struct Outgoing {
    body: Body,
    running: Arc<Running>,
    /// Large answers over HTTP/2 end once all chunks have been sent, so that the stream is watched until then.
    unsent: Option<Arc<Unsent>>,
    ended: bool,
}

impl Outgoing {
    /// The body of the answer to the request that `running` stands for.
    pub fn new(body: Body, http2: bool, running: Running) -> Self {
        let large = hyper::body::Body::size_hint(&body).exact().is_none_or(|size| size > SMALL);
        Self { body, running: Arc::new(running), unsent: (http2 && large).then(Arc::default), ended: false }
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Chunk;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, axum::Error>>> {
        let this = self.get_mut();
        if !this.ended {
            note(|stream| {
                if let Some(bytes) = stream.handed_out.take() {
                    stream.budget.progress(bytes);
                }
            });
            let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
            let Some(frame) = frame.transpose()? else {
                this.ended = true;
                return this.poll_left(context).map(|()| None);
            };
            let frame = frame.map_data(|bytes| {
                note(|stream| stream.handed_out = Some(bytes.len()));
                Chunk::new(bytes, this)
            });
            return Poll::Ready(Some(Ok(frame)));
        }
        this.poll_left(context).map(|()| None)
    }

    fn is_end_stream(&self) -> bool {
        self.unsent.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Updates the record of the stream that is being polled, if there is one.
fn note(write: impl FnOnce(&mut Stream)) {
    let _ = STREAM.try_with(|stream| write(&mut stream.lock()));
}

impl Outgoing {
    /// Ready once all chunks have been sent.
    fn poll_left(&self, context: &mut Context<'_>) -> Poll<()> {
        let Some(unsent) = &self.unsent else { return Poll::Ready(()) };
        let mut unsent = unsent.0.lock();
        if unsent.0 == 0 {
            return Poll::Ready(());
        }
        unsent.1 = Some(context.waker().clone());
        note(|stream| stream.handed_out = Some(0));
        Poll::Pending
    }
}

/// The number of chunks that have not been sent, and the waker of the task that waits for them.
#[derive(Default)]
struct Unsent(Mutex<(usize, Option<Waker>)>);

/// A chunk of an answer that reports when it has been sent. hyper drops a chunk at that time.
pub struct Chunk {
    bytes: Bytes,
    unsent: Option<Arc<Unsent>>,
    _running: Arc<Running>,
}

impl Chunk {
    fn new(bytes: Bytes, of: &Outgoing) -> Self {
        if let Some(unsent) = &of.unsent {
            unsent.0.lock().0 += 1;
        }
        Self { bytes, unsent: of.unsent.clone(), _running: Arc::clone(&of.running) }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let Some(unsent) = &self.unsent else { return };
        let mut unsent = unsent.0.lock();
        unsent.0 = unsent.0.saturating_sub(1);
        if unsent.0 == 0
            && let Some(waker) = unsent.1.take()
        {
            waker.wake();
        }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}
