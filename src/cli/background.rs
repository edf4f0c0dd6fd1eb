//! The tasks that run beside a server.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The pause before a task that panicked starts again.
pub(super) const PAUSE: Duration = Duration::from_secs(60);

/// Runs a task until it ends. If it panics, which the hook for panics logs, `panicked` is called, and the task starts again
/// after a pause: otherwise what it does would silently not be done any more.
pub(super) async fn keep<T: Future<Output = ()> + Send + 'static>(
    name: &'static str,
    stop: CancellationToken,
    pause: Duration,
    mut start: impl FnMut() -> T,
    panicked: impl Fn(),
) {
    loop {
        match AbortOnDropHandle::new(tokio::spawn(start())).await {
            Err(error) if error.is_panic() => {}
            _ => return,
        }
        panicked();
        tracing::error!(task = name, "a background task panicked; it starts again in {pause:?}");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_counted_and_starts_again() {
        let (starts, panics) = (Arc::new(AtomicU32::new(0)), AtomicU32::new(0));
        let counted = Arc::clone(&starts);
        let task = move || {
            let start = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(start >= 2, "it panics twice") }
        };
        let panicked = || {
            panics.fetch_add(1, Ordering::Relaxed);
        };
        keep("a test", CancellationToken::new(), Duration::from_millis(1), task, panicked).await;
        assert_eq!((starts.load(Ordering::Relaxed), panics.load(Ordering::Relaxed)), (3, 2));
    }

    #[tokio::test]
    async fn a_task_that_panicked_does_not_start_again_after_the_end() {
        let stop = CancellationToken::new();
        let pause = Duration::from_secs(3_600);
        let running = keep("a test", stop.clone(), pause, || async { panic!("always") }, || stop.cancel());
        tokio::time::timeout(Duration::from_secs(10), running).await.unwrap();
    }
}
