//! A memory budget for responses that are held in memory as a whole before they are sent. Small responses need no
//! permit. A large response takes permits until it is sent. If there are too few, it waits for at most two seconds and
//! is then refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::error::ApiError;

/// Memory budget of all large responses together, in bytes.
const ALL: usize = 32 * 1024 * 1024;

/// Number of bytes that one permit stands for.
const UNIT: usize = 1024;

/// Maximum time that a response waits for permits.
const WAIT: Duration = Duration::from_secs(2);

/// The memory budget, shared by all responses. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AnswerBudget(Arc<Semaphore>);

impl Default for AnswerBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ALL / UNIT)))
    }
}

/// The permits of one response. Dropping it releases them.
#[derive(Debug)]
pub struct Share(OwnedSemaphorePermit);

impl AnswerBudget {
    /// Takes permits for `bytes`, at most the whole budget. 503 with `Retry-After` if they are not available within two
    /// seconds.
    pub async fn take(&self, bytes: usize) -> Result<Share, ApiError> {
        let units = u32::try_from(bytes.min(ALL).div_ceil(UNIT)).unwrap_or(u32::MAX);
        let permits = Arc::clone(&self.0).acquire_many_owned(units);
        match tokio::time::timeout(WAIT, permits).await {
            Ok(Ok(permit)) => Ok(Share(permit)),
            _ => Err(ApiError::Busy),
        }
    }
}

impl Share {
    /// Releases the permits beyond those for `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let spare = self.0.num_permits().saturating_sub(bytes.div_ceil(UNIT));
        drop(self.0.split(spare));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_waits_a_little_and_is_refused() {
        let budget = AnswerBudget::default();
        let mut first = budget.take(ALL / 2).await.expect("budget");
        let second = budget.take(ALL / 2).await.expect("budget");
        assert!(matches!(budget.take(1).await, Err(ApiError::Busy)));
        first.shrink(ALL / 4);
        let third = budget.take(ALL / 4).await.expect("what the first gave back");
        assert!(budget.take(UNIT).await.is_err());
        drop(second);
        assert!(budget.take(ALL / 2).await.is_ok());
        drop((first, third));
        // A request for more than the budget takes the whole budget.
        assert!(budget.take(usize::MAX).await.is_ok());
    }
}
