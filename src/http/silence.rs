//! Whether something that the server asks did not answer a moment ago, so that nobody waits for it again.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long nobody asks after there was no answer.
const PAUSE: Duration = Duration::from_secs(30);

/// Whether there was no answer a moment ago.
#[derive(Debug, Default)]
pub struct Silence {
    until: Mutex<Option<Instant>>,
}

impl Silence {
    /// Notes that there was no answer in time.
    pub fn begin(&self) {
        *self.until.lock() = Some(Instant::now() + PAUSE);
    }

    /// Whether nobody should ask now.
    pub fn is_on(&self) -> bool {
        self.until.lock().is_some_and(|until| Instant::now() < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_ends_by_itself_and_begins_again_with_every_answer_that_is_missing() {
        let silence = Silence::default();
        assert!(!silence.is_on());
        silence.begin();
        for seconds in [20, 9] {
            assert!(silence.is_on());
            tokio::time::advance(Duration::from_secs(seconds)).await;
        }
        assert!(silence.is_on());
        silence.begin();
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(silence.is_on());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!silence.is_on());
    }
}
