//! Shutdown: after SIGTERM or Ctrl-C the server accepts nothing new, and running requests may finish until the
//! deadline.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// How long running requests may take to finish after a signal.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Starts listening for signals immediately. The future completes at the first SIGTERM or Ctrl-C.
pub fn requested() -> io::Result<impl Future<Output = ()> + Unpin> {
    // This must not happen inside the future: a signal that nobody listens for ends the process at once.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(Box::pin(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }))
}
