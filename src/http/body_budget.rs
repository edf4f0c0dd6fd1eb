//! The memory budget for request bodies, limited per key and for all keys together. A body is charged for its bytes as
//! they arrive, and the charge is held until the request is answered. A length that is only announced is not charged.
//! If the budget is used up, the body waits. The oldest body never waits, so bodies that wait for each other cannot
//! deadlock.

pub mod charging;
pub mod unpacking;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Most bytes of all large bodies together.
const ALL: usize = 128 * 1024 * 1024;

/// Most bytes of the large bodies of one key.
const PER_KEY: usize = ALL / 4;

/// A body of at most this many bytes is small. Small bodies have a budget of their own.
const SMALL: usize = 64 * 1024;

/// Most bytes of all small bodies together, in addition to [`ALL`].
const KEPT_FOR_SMALL: usize = 32 * 1024 * 1024;

/// Most bytes of the small bodies of one key, in addition to [`PER_KEY`].
const KEPT_FOR_SMALL_OF_KEY: usize = KEPT_FOR_SMALL / 4;

/// How long a body waits for budget before the request is refused.
const WAIT: Duration = Duration::from_secs(5);

/// The memory budget. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BodyBudget(Arc<Inner>);

impl Default for BodyBudget {
    fn default() -> Self {
        Self::with_wait(WAIT)
    }
}

#[derive(Debug)]
struct Inner {
    ledger: Mutex<Ledger>,
    freed: Notify,
    wait: Duration,
}

#[derive(Debug, Default)]
struct Ledger {
    next: u64,
    all: Used,
    by_key: HashMap<Arc<str>, Used>,
    /// Each body's key and bytes, ordered by age: a larger id is a younger body.
    bodies: BTreeMap<u64, (Arc<str>, usize)>,
}

/// Bytes in use by large bodies and by small ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Used {
    large: usize,
    small: usize,
}

impl Used {
    fn of(bytes: usize) -> Self {
        if bytes <= SMALL { Self { large: 0, small: bytes } } else { Self { large: bytes, small: 0 } }
    }

    /// The usage after one body has changed from `had` to `has` bytes.
    fn with(self, had: usize, has: usize) -> Self {
        let (had, has) = (Self::of(had), Self::of(has));
        Self {
            large: self.large.saturating_sub(had.large) + has.large,
            small: self.small.saturating_sub(had.small) + has.small,
        }
    }
}

impl Ledger {
    fn add(&mut self, id: u64, bytes: usize) -> bool {
        let Some((key, had)) = self.bodies.get(&id).map(|(key, had)| (Arc::clone(key), *had)) else { return false };
        let has = had + bytes;
        let all = self.all.with(had, has);
        let own = self.by_key.get(&key).copied().unwrap_or_default().with(had, has);
        let (fits, fits_key) = if has <= SMALL {
            (all.small <= KEPT_FOR_SMALL, own.small <= KEPT_FOR_SMALL_OF_KEY)
        } else {
            (all.large <= ALL, own.large <= PER_KEY)
        };
        let mut older = self.bodies.range(..id).filter(|(_, (_, bytes))| *bytes > 0);
        let oldest = older.clone().next().is_none();
        if !(fits || oldest) || (!fits_key && older.any(|(_, (whose, _))| *whose == key)) {
            return false;
        }
        self.put(id, key, all, own, has);
        true
    }

    fn put(&mut self, id: u64, key: Arc<str>, all: Used, own: Used, has: usize) {
        self.all = all;
        if let Some((_, held)) = self.bodies.get_mut(&id) {
            *held = has;
        }
        if own == Used::default() {
            self.by_key.remove(&key);
        } else {
            self.by_key.insert(key, own);
        }
    }

    fn remove(&mut self, id: u64) {
        let Some((key, had)) = self.bodies.remove(&id) else { return };
        let all = self.all.with(had, 0);
        let own = self.by_key.get(&key).copied().unwrap_or_default().with(had, 0);
        self.put(id, key, all, own, 0);
    }
}

impl BodyBudget {
    fn with_wait(wait: Duration) -> Self {
        Self(Arc::new(Inner { ledger: Mutex::default(), freed: Notify::new(), wait }))
    }

    /// Opens the charge for one body of a key, at 0 bytes.
    pub fn begin(&self, key: &str) -> Charge {
        let mut ledger = self.0.ledger.lock();
        let id = ledger.next;
        ledger.next += 1;
        ledger.bodies.insert(id, (Arc::from(key), 0));
        Charge { budget: Arc::clone(&self.0), id, refused: AtomicBool::new(false) }
    }
}

/// What one body uses of the budget. Dropping the charge gives it back.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Inner>,
    id: u64,
    refused: AtomicBool,
}

impl Charge {
    /// Whether a call of [`Self::add`] gave up waiting for budget.
    pub fn was_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Charges bytes that have arrived. Waits for budget for up to five seconds. Returns whether the bytes were
    /// charged.
    pub async fn add(&self, bytes: usize) -> bool {
        let waiting = async {
            loop {
                let freed = self.budget.freed.notified();
                if self.budget.ledger.lock().add(self.id, bytes) {
                    return;
                }
                freed.await;
            }
        };
        let fits = tokio::time::timeout(self.budget.wait, waiting).await.is_ok();
        self.refused.fetch_or(!fits, Ordering::Relaxed);
        fits
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.ledger.lock().remove(self.id);
        self.budget.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_fills_its_own_room_and_not_the_others() {
        let budget = BodyBudget::with_wait(Duration::from_millis(50));
        let (first, second) = (budget.begin("greedy"), budget.begin("greedy"));
        assert!(first.add(PER_KEY / 2).await && second.add(PER_KEY / 2).await);
        assert!(!second.add(SMALL + 1).await, "the younger of two waits");
        assert!(first.add(PER_KEY).await, "the older one goes on");
        assert!(budget.begin("honest").add(PER_KEY / 2).await);
        assert!(budget.begin("greedy").add(1000).await, "a small one of the same key");
        let waiting = async { second.add(SMALL + 1).await };
        let leaving = async move { drop(first) };
        assert!(tokio::join!(waiting, leaving).0, "budget is given back");
    }

    #[tokio::test]
    async fn all_keys_together_leave_room_for_small_bodies() {
        let budget = BodyBudget::with_wait(Duration::from_millis(50));
        let large: Vec<_> = ["a", "b", "c", "d"].iter().map(|key| budget.begin(key)).collect();
        for charge in &large {
            assert!(charge.add(PER_KEY).await);
        }
        let late = budget.begin("late");
        assert!(late.add(SMALL).await, "small so far");
        assert!(!late.add(SMALL).await, "large now");
        drop(large);
        assert!(late.add(SMALL).await);
        let announced: Vec<_> = (0..1000).map(|_| budget.begin("announces")).collect();
        assert!(budget.begin("announces").add(PER_KEY).await, "what has not arrived costs nothing");
        drop((announced, late));
        let ledger = budget.0.ledger.lock();
        assert_eq!((ledger.all, ledger.by_key.len(), ledger.bodies.len()), (Used::default(), 0, 0));
    }
}
