//! The memory budget for request bodies, limited per key and for all keys together. A body is charged for its bytes as
//! they arrive, and the charge is held until the request is answered. A length that is only announced is not charged.
//! If the budget is used up, the body waits. The oldest body never waits, so bodies that wait for each other cannot
//! deadlock. A body is as old as its first byte, so there is one oldest body until it is answered, and only that one
//! exceeds the budget.

pub mod charging;
pub mod unpacking;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
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
    /// Each body's key and bytes, ordered by age: a larger id is a younger body. Bodies of which nothing was charged are not
    /// here.
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
    /// Charges bytes to a body. Returns its id, which is new if these are its first bytes, or `None` if there is no room.
    fn add(&mut self, id: Option<u64>, key: &Arc<str>, bytes: usize) -> Option<u64> {
        let id = id.unwrap_or(self.next);
        let had = self.bodies.get(&id).map_or(0, |(_, had)| *had);
        let has = had + bytes;
        let all = self.all.with(had, has);
        let own = self.by_key.get(key).copied().unwrap_or_default().with(had, has);
        let (fits, fits_key) = if has <= SMALL {
            (all.small <= KEPT_FOR_SMALL, own.small <= KEPT_FOR_SMALL_OF_KEY)
        } else {
            (all.large <= ALL, own.large <= PER_KEY)
        };
        let mut older = self.bodies.range(..id);
        let oldest = older.clone().next().is_none();
        if !(fits || oldest) || (!fits_key && older.any(|(_, (whose, _))| whose == key)) {
            return None;
        }
        self.next = self.next.max(id + 1);
        self.bodies.insert(id, (Arc::clone(key), has));
        self.put(Arc::clone(key), all, own);
        Some(id)
    }

    fn put(&mut self, key: Arc<str>, all: Used, own: Used) {
        self.all = all;
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
        self.put(key, all, own);
    }
}

impl BodyBudget {
    fn with_wait(wait: Duration) -> Self {
        Self(Arc::new(Inner { ledger: Mutex::default(), freed: Notify::new(), wait }))
    }

    /// Opens the charge for one body of a key, at 0 bytes.
    pub fn begin(&self, key: &str) -> Charge {
        Charge {
            budget: Arc::clone(&self.0),
            key: Arc::from(key),
            id: OnceLock::new(),
            refused: AtomicBool::new(false),
        }
    }
}

/// What one body uses of the budget. Dropping the charge gives it back.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Inner>,
    key: Arc<str>,
    /// `None` until the first bytes are charged.
    id: OnceLock<u64>,
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
        if bytes == 0 {
            return true;
        }
        let waiting = async {
            loop {
                let freed = self.budget.freed.notified();
                let charged = self.budget.ledger.lock().add(self.id.get().copied(), &self.key, bytes);
                if let Some(id) = charged {
                    self.id.get_or_init(|| id);
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
        if let Some(id) = self.id.get() {
            self.budget.ledger.lock().remove(*id);
        }
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
    async fn one_body_exceeds_the_budget_whatever_the_order_in_which_they_were_announced() {
        let budget = BodyBudget::with_wait(Duration::from_millis(50));
        let announced: Vec<_> = ["a", "b", "a", "c"].iter().map(|key| budget.begin(key)).collect();
        let mut charged = Vec::new();
        for charge in announced.iter().rev() {
            charged.push(charge.add(0).await && charge.add(ALL).await);
        }
        assert_eq!(charged, [true, false, false, false]);
        assert!(announced[3].add(ALL).await, "it came first, and goes on");
        assert_eq!(budget.0.ledger.lock().all.large, 2 * ALL);
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
