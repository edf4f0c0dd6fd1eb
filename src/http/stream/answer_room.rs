//! Memory for answers that are read as a whole before they are sent: small ones cost nothing, large ones take a share of a
//! fixed room until they are sent, wait a little where there is none, and are then refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::error::ApiError;

/// Bytes of all large answers.
const ALL: usize = 32 * 1024 * 1024;

/// The unit in which room is taken, in bytes.
const UNIT: usize = 1024;

/// How long an answer waits for room.
const WAIT: Duration = Duration::from_secs(2);

/// The room. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AnswerRoom(Arc<Semaphore>);

impl Default for AnswerRoom {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ALL / UNIT)))
    }
}

/// What one answer holds of the room; gives it back when dropped.
#[derive(Debug)]
pub struct Share(OwnedSemaphorePermit);

impl AnswerRoom {
    /// Takes room for `bytes`; 503 with `Retry-After` where there is none for a while.
    pub async fn take(&self, bytes: usize) -> Result<Share, ApiError> {
        let units = u32::try_from(bytes.min(ALL).div_ceil(UNIT)).unwrap_or(u32::MAX);
        let turn = Arc::clone(&self.0).acquire_many_owned(units);
        match tokio::time::timeout(WAIT, turn).await {
            Ok(Ok(permit)) => Ok(Share(permit)),
            _ => Err(ApiError::Busy),
        }
    }
}

impl Share {
    /// Gives back what goes beyond `bytes`.
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
        let room = AnswerRoom::default();
        let mut first = room.take(ALL / 2).await.expect("room");
        let second = room.take(ALL / 2).await.expect("room");
        assert!(matches!(room.take(1).await, Err(ApiError::Busy)));
        first.shrink(ALL / 4);
        let third = room.take(ALL / 4).await.expect("what the first gave back");
        assert!(room.take(UNIT).await.is_err());
        drop(second);
        assert!(room.take(ALL / 2).await.is_ok());
        drop((first, third));
        // However much is asked for: never more than there is.
        assert!(room.take(usize::MAX).await.is_ok());
    }
}
