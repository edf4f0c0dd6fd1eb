//! A time budget for a peer that sends or receives bytes. Waiting for the peer uses the budget up, and every byte that
//! is transferred earns some of it back. So one limit ends both peers that transfer nothing and peers that only trickle
//! bytes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep};

/// The rate, in bytes per second, below which the budget eventually runs out.
pub const LEAST_RATE: u64 = 1024;

/// The time budget for one peer.
pub struct ProgressBudget {
    most: Duration,
    left: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl ProgressBudget {
    /// Creates a full budget of `most`. It never grows beyond that.
    pub fn new(most: Duration) -> Self {
        Self { most, left: most, waiting: None }
    }

    /// Records that `bytes` were transferred, which ends the wait.
    pub fn progress(&mut self, bytes: usize) {
        let waited = self.waiting.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        let earned = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1_000_000) / LEAST_RATE;
        self.left = self.left.saturating_sub(waited).saturating_add(Duration::from_micros(earned)).min(self.most);
    }

    /// Ready once the budget has run out. The caller polls this only while no bytes are transferred.
    pub fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let left = self.left;
        let (_, timer) = self.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        timer.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn who_drips_runs_out_and_who_keeps_the_rate_does_not() {
        let step = Duration::from_millis(20);
        let mut fair = ProgressBudget::new(Duration::from_millis(100));
        let mut drips = ProgressBudget::new(Duration::from_millis(100));
        let mut steps = 0;
        for step_number in 0..30 {
            let waits = async |budget: &mut ProgressBudget| {
                tokio::select! {
                    () = poll_fn(|context| budget.poll_out(context)) => false,
                    () = sleep(step) => true,
                }
            };
            assert!(waits(&mut fair).await, "step {step_number}");
            fair.progress(1000);
            if steps == step_number && waits(&mut drips).await {
                drips.progress(1);
                steps += 1;
            }
        }
        assert!((2..=5).contains(&steps), "{steps} drips");
    }
}
