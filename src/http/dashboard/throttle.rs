//! Wrong passwords are counted by client address and name together: too many within a minute, and every login with that
//! name from there is refused for five minutes, right or wrong, while others behind the same address go on. Larger counts
//! by name alone and by address alone slow down who guesses from many addresses or at many names; who has logged in from
//! an address lately is not slowed by them. Memory is bounded; the counts are of this process.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use moka::sync::Cache;

use crate::identity::hash_key;

/// Wrong passwords for a name that an address may send within [`WINDOW`].
pub const LIMIT: u32 = 10;

/// Wrong passwords for a name from all addresses, within the window.
const NAME_LIMIT: u32 = 50;

/// Wrong passwords from an address for all names, within the window.
const ADDRESS_LIMIT: u32 = 100;

/// How long a wrong password counts, from the first on.
const WINDOW: Duration = Duration::from_secs(60);

/// How long a name is refused from an address.
pub const BLOCK: Duration = Duration::from_secs(300);

/// How long a login speaks for the next one.
const TRUST: Duration = Duration::from_secs(24 * 3600);

/// Entries of each kind that are remembered at most.
const CAPACITY: u64 = 100_000;

/// An attempt: from where, with which name. Names are kept as digests, however long they are.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    source: IpAddr,
    name: String,
}

impl Attempt {
    /// From an address with a name.
    pub fn new(address: IpAddr, name: &str) -> Self {
        Self { source: source(address), name: hash_key(&name.trim().to_lowercase()) }
    }
}

/// The counts.
pub struct LoginThrottle {
    pairs: Cache<Attempt, Arc<AtomicU32>>,
    names: Cache<String, Arc<AtomicU32>>,
    sources: Cache<IpAddr, Arc<AtomicU32>>,
    blocked: Cache<Attempt, ()>,
    trusted: Cache<Attempt, ()>,
}

impl Default for LoginThrottle {
    fn default() -> Self {
        Self {
            pairs: counts(),
            names: counts(),
            sources: counts(),
            blocked: Cache::builder().max_capacity(CAPACITY).time_to_live(BLOCK).build(),
            trusted: Cache::builder().max_capacity(CAPACITY).time_to_live(TRUST).build(),
        }
    }
}

fn counts<K: Hash + Eq + Send + Sync + 'static>() -> Cache<K, Arc<AtomicU32>> {
    Cache::builder().max_capacity(CAPACITY).time_to_live(WINDOW).build()
}

impl LoginThrottle {
    /// Counts an attempt before its password is looked at, so that many at once count as well. Returns how long it has
    /// to wait, if it may not go on.
    pub fn begin(&self, attempt: &Attempt) -> Result<(), Duration> {
        if self.blocked.contains_key(attempt) {
            return Err(BLOCK);
        }
        let name = self.names.get_with_by_ref(&attempt.name, Arc::default);
        let source = self.sources.get_with_by_ref(&attempt.source, Arc::default);
        let many = name.load(Ordering::Relaxed) >= NAME_LIMIT || source.load(Ordering::Relaxed) >= ADDRESS_LIMIT;
        if many && !self.trusted.contains_key(attempt) {
            return Err(WINDOW);
        }
        let pair = self.pairs.get_with_by_ref(attempt, Arc::default);
        if pair.fetch_add(1, Ordering::Relaxed) < LIMIT {
            name.fetch_add(1, Ordering::Relaxed);
            source.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.blocked.insert(attempt.clone(), ());
        self.pairs.invalidate(attempt);
        Err(BLOCK)
    }

    /// Takes the attempt back: nothing was learned of its password.
    pub fn undo(&self, attempt: &Attempt) {
        let counts = [self.pairs.get(attempt), self.names.get(&attempt.name), self.sources.get(&attempt.source)];
        for count in counts.into_iter().flatten() {
            let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        }
    }

    /// Takes the attempt back: its password was right.
    pub fn succeeded(&self, attempt: &Attempt) {
        self.undo(attempt);
        self.trusted.insert(attempt.clone(), ());
    }
}

/// Who has one IPv6 address has all 2^64 of its network.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(address: &str, name: &str) -> Attempt {
        Attempt::new(address.parse().expect("an address"), name)
    }

    fn goes_on(throttle: &LoginThrottle, address: &str, name: &str) -> bool {
        throttle.begin(&attempt(address, name)).is_ok()
    }

    #[test]
    fn a_name_that_is_guessed_is_refused_there_and_others_are_not() {
        let throttle = LoginThrottle::default();
        for _ in 0..LIMIT {
            assert!(goes_on(&throttle, "10.0.0.1", "admin"));
        }
        for name in ["admin", "Admin ", "ADMIN"] {
            assert!(!goes_on(&throttle, "10.0.0.1", name));
        }
        assert!(!goes_on(&throttle, "::ffff:10.0.0.1", "admin"));
        assert!(goes_on(&throttle, "10.0.0.2", "admin"));
        assert!(goes_on(&throttle, "10.0.0.1", "ada"), "another one behind the same address");
        // Who knows the password may use it as often as they like.
        for _ in 0..ADDRESS_LIMIT * 2 {
            assert!(goes_on(&throttle, "10.0.0.3", "ben"));
            throttle.succeeded(&attempt("10.0.0.3", "ben"));
        }
        for n in 0..LIMIT {
            assert!(goes_on(&throttle, &format!("2001:db8::{n:x}"), "eve"));
        }
        assert!(!goes_on(&throttle, "2001:db8::ffff", "eve"));
        assert!(goes_on(&throttle, "2001:db8:0:1::1", "eve"));
    }

    #[test]
    fn guessing_at_one_name_from_everywhere_and_at_all_names_from_one_place_is_slowed() {
        let throttle = LoginThrottle::default();
        throttle.succeeded(&attempt("10.9.9.9", "admin"));
        let passed =
            (0..1000).filter(|n| goes_on(&throttle, &format!("10.1.{}.{}", n / 250, n % 250), "admin")).count();
        assert_eq!(passed, 50);
        assert!(!goes_on(&throttle, "10.8.8.8", "admin"));
        assert!(goes_on(&throttle, "10.9.9.9", "admin"), "who has logged in there");
        let passed = (0..1000).filter(|n| goes_on(&throttle, "10.2.0.1", &format!("name {n}"))).count();
        assert_eq!(passed, 100);
        assert!(throttle.pairs.entry_count() <= 200);
    }
}
