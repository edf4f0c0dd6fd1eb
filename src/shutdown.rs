//! Stopping: on SIGTERM or Ctrl-C nothing new is accepted, what runs may finish until the deadline.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// How long running requests may take to finish.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Listens from now on; the future completes at the first SIGTERM or Ctrl-C.
pub fn requested() -> io::Result<impl Future<Output = ()> + Unpin> {
    // Here and not in the future: until they are listened to, signals end the process at once.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(Box::pin(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }))
}
