//! The socket of a connection. It fails if the client receives too slowly, reports received and sent bytes to the
//! connection's state, and reads on briefly at the end if the client would lose an answer otherwise.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::http::connection::limiter::ConnectionSlot;
use crate::http::connection::progress_budget::ProgressBudget;
use crate::metrics::Metrics;

/// How long the server still reads from a client after its last answer.
const LINGER: Duration = Duration::from_secs(2);

/// A stream that fails once its written bytes have waited too long for the client.
pub struct StallLimit<S> {
    stream: S,
    budget: ProgressBudget,
    lingering: Option<Pin<Box<Sleep>>>,
    slot: ConnectionSlot,
}

impl<S> StallLimit<S> {
    /// Wraps `stream`. A write may wait for the client for `limit` ([`ProgressBudget`]).
    pub fn new(stream: S, limit: Duration, slot: ConnectionSlot) -> Self {
        Self { stream, budget: ProgressBudget::new(limit), lingering: None, slot }
    }

    /// Passes on the result of a write, or a timeout error once the budget has run out.
    fn watch(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.budget.progress(bytes);
                self.slot.state.sent();
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(self.budget.poll_out(context));
                Metrics::record_slow_client();
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read the response")))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> StallLimit<S> {
    /// Reads and discards bytes until the client closes its side, for at most [`LINGER`].
    fn read_out(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        if timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut bytes = [MaybeUninit::uninit(); 8192];
        loop {
            let mut buffer = ReadBuf::uninit(&mut bytes);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallLimit<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            this.slot.state.received();
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for StallLimit<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watch(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        chunks: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, chunks);
        this.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        if this.slot.state.lingers() {
            ready!(this.read_out(context));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::http::connection::limiter::ConnectionLimiter;
    use crate::settings::ConnectionLimits;

    fn slot() -> ConnectionSlot {
        let limiter = ConnectionLimiter::new(ConnectionLimits::default(), Vec::new());
        limiter.take(IpAddr::V4(Ipv4Addr::LOCALHOST)).expect("a slot")
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(100);
        let mut stream = StallLimit::new(ours, Duration::from_millis(200), slot());
        let slow = tokio::spawn(async move {
            let mut buffer = [0; 100];
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(80)).await;
                theirs.read_exact(&mut buffer).await.expect("is sent");
            }
            theirs
        });
        stream.write_all(&[0; 550]).await.expect("is taken, slowly");
        let _theirs = slow.await.expect("reads");
        let error = stream.write_all(&[0; 100]).await.expect_err("is not taken");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_client_that_takes_a_byte_now_and_then_is_given_up() {
        let (ours, mut theirs) = tokio::io::duplex(100);
        let mut stream = StallLimit::new(ours, Duration::from_millis(200), slot());
        tokio::spawn(async move {
            let mut buffer = [0; 1];
            while theirs.read_exact(&mut buffer).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let error = stream.write_all(&[0; 10_000]).await.expect_err("is not taken");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_refused_client_is_read_out_before_the_end() {
        let (ours, mut theirs) = tokio::io::duplex(100);
        let mut stream = StallLimit::new(ours, Duration::from_secs(5), slot());
        stream.slot.state.linger();
        let closing = tokio::spawn(async move { stream.shutdown().await });
        theirs.write_all(&[0; 5_000]).await.expect("is read");
        theirs.shutdown().await.expect("ends");
        closing.await.expect("no panic").expect("closed");
    }
}
