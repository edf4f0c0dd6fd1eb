//! A rate limit for lookups of keys that this server has not seen before: a token bucket that refills over time, holds
//! the tokens of one second, and refuses lookups when it is empty.

use std::time::Instant;

use parking_lot::Mutex;

/// A token bucket; one token allows one lookup.
pub(super) struct TokenBucket {
    per_second: f64,
    state: Mutex<(Instant, f64)>,
}

impl TokenBucket {
    /// Creates a full bucket that refills by `per_second` tokens a second.
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, state: Mutex::new((Instant::now(), per_second)) }
    }

    /// Takes one token; returns whether there was one.
    pub(super) fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        // The lock guards two numbers that are always written together, so a poisoned lock is usable.
        let mut state = self.state.lock();
        let (then, left) = *state;
        let left = self.per_second.min(left + now.saturating_duration_since(then).as_secs_f64() * self.per_second);
        let taken = left >= 1.0;
        *state = (now.max(then), if taken { left - 1.0 } else { left });
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_second_has_its_turns_and_no_more() {
        let bucket = TokenBucket::new(10);
        let start = Instant::now();
        let taken = |at: Duration| (0..50).filter(|_| bucket.take_at(start + at)).count();
        assert_eq!(taken(Duration::from_millis(1)), 10);
        assert_eq!(taken(Duration::from_millis(501)), 5);
        assert_eq!(taken(Duration::from_secs(3600)), 10);
    }
}
