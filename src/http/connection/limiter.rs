//! Limits the number of connections, in total and per address. At a limit, a new connection replaces one on which no
//! request runs. A client that opens connections and sends nothing thus only displaces connections of the same kind.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use parking_lot::Mutex;

use crate::http::client_ip::canonical;
use crate::http::connection::state::ConnectionState;
use crate::metrics::Metrics;
use crate::settings::ConnectionLimits;

/// The open connections; each one has a slot. Cheap to clone.
#[derive(Clone)]
pub struct ConnectionLimiter(Arc<Inner>);

struct Inner {
    limits: ConnectionLimits,
    exempt: Vec<IpNetwork>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    slots: HashMap<u64, (IpAddr, Arc<ConnectionState>)>,
}

impl Taken {
    /// Closes the most expendable connection, of one address if one is given. Returns whether there was one.
    fn free_one(&mut self, address: Option<IpAddr>) -> bool {
        let candidates = self.slots.iter().filter(|(_, (whose, _))| address.is_none_or(|address| *whose == address));
        let found = candidates.filter_map(|(id, (_, state))| Some((state.expendable()?, *id))).min();
        let Some((_, id)) = found else { return false };
        if let Some((_, state)) = self.slots.remove(&id) {
            state.end();
        }
        Metrics::connection_refused("replaced");
        true
    }
}

impl ConnectionLimiter {
    /// Creates a table without connections. Trusted proxies forward for many clients, so only the total limit applies
    /// to them.
    pub fn new(limits: ConnectionLimits, trusted_proxies: Vec<IpNetwork>) -> Self {
        Self(Arc::new(Inner { limits, exempt: trusted_proxies, taken: Mutex::default() }))
    }

    /// Registers a connection from `peer`. Returns `None` if a limit is reached and no connection can be replaced.
    /// Never waits.
    pub fn take(&self, peer: IpAddr) -> Option<ConnectionSlot> {
        let address = network_of(peer);
        let limits = &self.0.limits;
        let mut taken = self.0.taken.lock();
        if !self.0.exempt.iter().any(|network| network.contains(canonical(peer))) {
            let own = taken.slots.values().filter(|(whose, _)| *whose == address).count();
            if own >= limits.per_address && !taken.free_one(Some(address)) {
                Metrics::connection_refused("address");
                return None;
            }
        }
        if taken.slots.len() >= limits.connections && !taken.free_one(None) {
            Metrics::connection_refused("all");
            return None;
        }
        let (id, state) = (taken.next, ConnectionState::new(limits));
        taken.next += 1;
        taken.slots.insert(id, (address, Arc::clone(&state)));
        Metrics::connections(taken.slots.len());
        Some(ConnectionSlot { limiter: self.clone(), id, state })
    }
}

/// The address that a connection is counted under. An IPv6 address counts as its /64 network, because one customer has
/// a whole network.
fn network_of(peer: IpAddr) -> IpAddr {
    match canonical(peer) {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// The registration of one connection. Dropping it removes the connection from the count.
pub struct ConnectionSlot {
    limiter: ConnectionLimiter,
    id: u64,
    /// The connection's state.
    pub state: Arc<ConnectionState>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.limiter.0.taken.lock();
        taken.slots.remove(&self.id);
        Metrics::connections(taken.slots.len());
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Version;

    use super::*;

    #[test]
    fn who_says_nothing_makes_room_and_who_asks_stays() {
        let limits = ConnectionLimits { connections: 6, per_address: 3, ..ConnectionLimits::default() };
        let limiter = ConnectionLimiter::new(limits, vec!["10.9.0.0/16".parse().expect("a network")]);
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let one = address("192.0.2.1");
        let (busy, silent, idle) = (limiter.take(one), limiter.take(one), limiter.take(one));
        let (busy, silent, idle) = (busy.expect("first"), silent.expect("second"), idle.expect("third"));
        let running = busy.state.begin(Version::HTTP_11);
        drop(idle.state.begin(Version::HTTP_11));
        let newcomer = limiter.take(one).expect("the silent one goes");
        let _first = newcomer.state.begin(Version::HTTP_11);
        let next = limiter.take(one).expect("the idle one goes");
        let _second = next.state.begin(Version::HTTP_11);
        assert!(limiter.take(one).is_none(), "all three run a request");
        drop((silent, idle));
        assert!(limiter.take(one).is_none(), "those that were pushed out count no more");
        let mut proxied: Vec<_> = (0..3).map(|_| limiter.take(address("10.9.1.1")).expect("exempt")).collect();
        proxied.push(limiter.take(address("10.9.1.1")).expect("in place of the first"));
        drop(running);
        drop(busy);
        assert!(limiter.take(one).is_some());
        assert_eq!(network_of(address("2001:db8::1")), network_of(address("2001:db8::2")));
        assert_ne!(network_of(address("2001:db8:0:1::1")), network_of(address("2001:db8::1")));
        assert_eq!(network_of(address("::ffff:192.0.2.1")), one);
    }
}
