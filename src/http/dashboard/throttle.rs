//! Rate limits for logins. Wrong passwords are counted per pair of client address and user name. After too many within
//! a minute, every login with that name from that address is refused for five minutes, right or wrong; other users
//! behind the same address are not affected. Higher limits per name alone and per address alone slow down guessing from
//! many addresses or of many names. They do not apply to an address and name that have logged in successfully within
//! the last day. Memory is bounded. Each process counts for itself.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use moka::sync::Cache;

use crate::identity::hash_key;

/// Most wrong passwords for one name from one address within `WINDOW`.
pub const LIMIT: u32 = 10;

/// Most wrong passwords for one name from all addresses within the window.
const NAME_LIMIT: u32 = 50;

/// Most wrong passwords from one address for all names within the window.
const ADDRESS_LIMIT: u32 = 100;

/// The length of a counting window, which begins with its first attempt.
const WINDOW: Duration = Duration::from_secs(60);

/// How long logins with a name from an address are refused.
pub const BLOCK: Duration = Duration::from_secs(300);

/// How long a successful login exempts its name and address from the two higher limits.
const TRUST: Duration = Duration::from_secs(24 * 3600);

/// Most entries of each cache.
const CAPACITY: u64 = 100_000;

/// A login attempt: its address and name. The name is stored as a digest, so that its length does not matter.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    source: IpAddr,
    name: String,
}

impl Attempt {
    /// An attempt from an address with a name.
    pub fn new(address: IpAddr, name: &str) -> Self {
        Self { source: source(address), name: hash_key(&name.trim().to_lowercase()) }
    }
}

/// The counters of login attempts.
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
    /// Counts an attempt. This happens before the password is checked, so that parallel attempts count too. If the
    /// attempt is refused, the error is the time to wait.
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

    /// Takes an attempt back, because it revealed nothing about its password.
    pub fn undo(&self, attempt: &Attempt) {
        let counts = [self.pairs.get(attempt), self.names.get(&attempt.name), self.sources.get(&attempt.source)];
        for count in counts.into_iter().flatten() {
            let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        }
    }

    /// Takes an attempt back, because its password was right. Exempts its name and address from the higher limits.
    pub fn succeeded(&self, attempt: &Attempt) {
        self.undo(attempt);
        self.trusted.insert(attempt.clone(), ());
    }
}

/// The address that an attempt is counted under. An IPv6 address counts as its /64 network, because whoever has one
/// address has all 2^64 of the network.
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
        // A user who knows the password may log in as often as they like.
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
