//! How long somebody is waited for who sends or takes bytes. Waiting uses patience up and every byte earns some back,
//! so that one limit ends both who does nothing and who does next to nothing for ever.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep};

/// Bytes a second below which patience runs out in the end.
pub const LEAST_RATE: u64 = 1024;

/// The patience with one sender or taker of bytes.
pub struct Patience {
    most: Duration,
    left: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Patience {
    /// At first, and at most, so long.
    pub fn new(most: Duration) -> Self {
        Self { most, left: most, waiting: None }
    }

    /// So many bytes went through.
    pub fn progress(&mut self, bytes: usize) {
        let waited = self.waiting.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        let earned = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1_000_000) / LEAST_RATE;
        self.left = self.left.saturating_sub(waited).saturating_add(Duration::from_micros(earned)).min(self.most);
    }

    /// Ready once it has run out; to be asked while nothing goes through.
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
        let mut fair = Patience::new(Duration::from_millis(100));
        let mut drips = Patience::new(Duration::from_millis(100));
        let mut steps = 0;
        for step_number in 0..30 {
            let waits = async |patience: &mut Patience| {
                tokio::select! {
                    () = poll_fn(|context| patience.poll_out(context)) => false,
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
