//! Stopping: on SIGTERM or Ctrl-C nothing new is accepted, what runs may finish until the deadline.

use std::time::Duration;

/// How long running requests may take to finish.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Completes at the first SIGTERM or Ctrl-C.
pub async fn requested() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending::<()>().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
