//! Wrong passwords are counted by client address: too many within a minute, and every login from there is refused for
//! five minutes, right or wrong. Memory is bounded; the counts are of this process.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use moka::sync::Cache;

/// Wrong passwords that an address may send within [`WINDOW`].
pub const LIMIT: u32 = 10;

/// How long a wrong password counts, from the first on.
const WINDOW: Duration = Duration::from_secs(60);

/// How long an address is refused.
pub const BLOCK: Duration = Duration::from_secs(300);

/// Addresses that are remembered at most.
const CAPACITY: u64 = 100_000;

/// The counts.
pub struct LoginThrottle {
    failures: Cache<IpAddr, Arc<AtomicU32>>,
    blocked: Cache<IpAddr, ()>,
}

impl Default for LoginThrottle {
    fn default() -> Self {
        Self {
            failures: Cache::builder().max_capacity(CAPACITY).time_to_live(WINDOW).build(),
            blocked: Cache::builder().max_capacity(CAPACITY).time_to_live(BLOCK).build(),
        }
    }
}

impl LoginThrottle {
    /// Counts an attempt before its password is looked at, so that many at once count as well. Returns whether it may
    /// go on.
    pub fn begin(&self, address: IpAddr) -> bool {
        let source = source(address);
        if self.blocked.contains_key(&source) {
            return false;
        }
        let count = self.failures.get_with(source, Arc::default);
        if count.fetch_add(1, Ordering::Relaxed) < LIMIT {
            return true;
        }
        self.blocked.insert(source, ());
        self.failures.invalidate(&source);
        false
    }

    /// Takes the attempt back: its password was right.
    pub fn succeeded(&self, address: IpAddr) {
        if let Some(count) = self.failures.get(&source(address)) {
            let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        }
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

    #[test]
    fn an_address_that_guesses_is_refused_and_others_are_not() {
        let throttle = LoginThrottle::default();
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        for _ in 0..LIMIT {
            assert!(throttle.begin(address("10.0.0.1")));
        }
        assert!(!throttle.begin(address("10.0.0.1")));
        assert!(!throttle.begin(address("::ffff:10.0.0.1")));
        assert!(throttle.begin(address("10.0.0.2")));
        // Who knows the password may use it as often as they like.
        for _ in 0..LIMIT * 3 {
            assert!(throttle.begin(address("10.0.0.3")));
            throttle.succeeded(address("10.0.0.3"));
        }
        for n in 0..LIMIT {
            assert!(throttle.begin(address(&format!("2001:db8::{n:x}"))));
        }
        assert!(!throttle.begin(address("2001:db8::ffff")));
        assert!(throttle.begin(address("2001:db8:0:1::1")));
    }
}
