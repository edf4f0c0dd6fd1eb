//! The state of one connection: whether a request runs on it, since when it has been idle, and when it has to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::Version;
use tokio_util::sync::CancellationToken;

use crate::settings::ConnectionLimits;

/// The state of a connection. Its socket, its requests and the task that enforces its limits share it.
#[derive(Debug)]
pub struct ConnectionState {
    accepted: Instant,
    head_limit: Duration,
    idle_limit: Duration,
    running: AtomicUsize,
    served: AtomicBool,
    http2: AtomicBool,
    linger: AtomicBool,
    over: AtomicBool,
    /// Milliseconds from accept to the end of the last request or, for HTTP/1, to the last bytes sent after it; 0
    /// before that.
    idle_since: AtomicU64,
    /// Milliseconds from accept to the first byte of the request head that is arriving; 0 if none is.
    head_since: AtomicU64,
    close: CancellationToken,
}

impl ConnectionState {
    /// The state of a connection that has just been accepted.
    pub fn new(limits: &ConnectionLimits) -> Arc<Self> {
        Arc::new(Self {
            accepted: Instant::now(),
            head_limit: limits.head,
            idle_limit: limits.idle,
            running: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            linger: AtomicBool::new(false),
            over: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            close: CancellationToken::new(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// Records that a request begins. It counts as running until the returned guard is dropped.
    pub fn begin(self: &Arc<Self>, version: Version) -> Running {
        self.http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }

    /// Records that bytes arrived. Between two HTTP/1 requests they are the start of the next head. Between two HTTP/2
    /// requests they may be anything, so the idle limit stays in force.
    pub fn received(&self) {
        if self.is_idle() && !self.http2.load(Ordering::Relaxed) {
            let _ = self.head_since.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Records that bytes were sent. An HTTP/1 connection is not idle while the client is still receiving the end of an
    /// answer.
    pub fn sent(&self) {
        if self.is_idle() && !self.http2.load(Ordering::Relaxed) {
            self.idle_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Whether the connection is open and no request runs on it.
    pub fn is_idle(&self) -> bool {
        self.running.load(Ordering::Relaxed) == 0 && !self.over.load(Ordering::Relaxed)
    }

    /// If the connection may be closed in favour of a new one, its rank among such connections; the lowest rank is
    /// closed first. Connections that never sent a request come first, then those that have been idle longest.
    pub fn expendable(&self) -> Option<(bool, Instant)> {
        let since = self.accepted + Duration::from_millis(self.idle_since.load(Ordering::Relaxed));
        self.is_idle().then(|| (self.served.load(Ordering::Relaxed), since))
    }

    /// Closes the connection in favour of a new one.
    pub fn end(&self) {
        self.close.cancel();
    }

    /// Records that the HTTP connection has ended. If it became a tunnel, the tunnel is not watched.
    pub fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Asks for the socket to be read for a moment when the connection closes. If it closed with unread bytes, a client
    /// that has not yet read its answer would lose it.
    pub fn linger(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }

    /// Whether [`Self::linger`] was called.
    pub fn lingers(&self) -> bool {
        self.linger.load(Ordering::Relaxed)
    }

    /// The time left for the connection to send a request; zero if the limit is reached.
    fn send_timeout(&self) -> Duration {
        if !self.is_idle() {
            return self.idle_limit.min(self.head_limit);
        }
        let head_since = self.head_since.load(Ordering::Relaxed);
        let idle_since = self.idle_since.load(Ordering::Relaxed);
        let (since, limit) = match (self.served.load(Ordering::Relaxed), head_since) {
            // The limit runs from accept to the first complete head, whatever bytes arrive in between.
            (false, _) => (0, self.head_limit),
            (true, 0) => (idle_since, self.idle_limit),
            (true, head_since) => (head_since.max(idle_since), self.head_limit),
        };
        (Duration::from_millis(since) + limit).saturating_sub(self.accepted.elapsed())
    }

    /// Waits until the connection has to end, because it reached a limit or a new connection takes its place.
    pub async fn ended(&self) -> Ending {
        loop {
            let left = self.send_timeout();
            if left.is_zero() {
                return Ending::Limit;
            }
            // A request head may begin in the meantime, and its limit is shorter.
            let look_again = left.min((self.head_limit / 4).max(Duration::from_millis(10)));
            tokio::select! {
                () = self.close.cancelled() => return Ending::Replaced,
                () = tokio::time::sleep(look_again) => {}
            }
        }
    }
}

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The connection was without a request for too long.
    Limit,
    /// A new connection has taken its place.
    Replaced,
}

/// A guard: the request counts as running until the guard is dropped.
#[derive(Debug)]
pub struct Running(Arc<ConnectionState>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.head_since.store(0, Ordering::Relaxed);
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_wait_has_its_limit_and_a_running_request_none() {
        let limits = ConnectionLimits {
            head: Duration::from_millis(100),
            idle: Duration::from_millis(300),
            ..ConnectionLimits::default()
        };
        let took = async |state: &ConnectionState| {
            let started = Instant::now();
            assert_eq!(state.ended().await, Ending::Limit);
            started.elapsed().as_millis()
        };
        let state = ConnectionState::new(&limits);
        state.received();
        assert!((80..250).contains(&took(&state).await), "the first head");
        let state = ConnectionState::new(&limits);
        drop(state.begin(Version::HTTP_11));
        assert!((250..500).contains(&took(&state).await), "idle");
        let state = ConnectionState::new(&limits);
        drop(state.begin(Version::HTTP_11));
        state.received();
        assert!((80..250).contains(&took(&state).await), "a later head");
        let state = ConnectionState::new(&limits);
        drop(state.begin(Version::HTTP_2));
        state.received();
        assert!((250..500).contains(&took(&state).await), "a ping is no head");
        let running = state.begin(Version::HTTP_2);
        assert!(tokio::time::timeout(Duration::from_millis(700), state.ended()).await.is_err());
        assert!(state.expendable().is_none());
        drop(running);
        state.end();
        assert_eq!(state.ended().await, Ending::Replaced);
    }
}
