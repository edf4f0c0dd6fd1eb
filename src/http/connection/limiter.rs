//! Limits the number of connections, in total and per address. At a limit, a new connection replaces one on which no
//! request runs. A client that opens connections and sends nothing thus only displaces connections of the same kind.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use ipnetwork::IpNetwork;

use crate::http::client_ip::canonical;
use crate::http::connection::state::Life;
use crate::metrics::Metrics;
use crate::settings::ConnectionLimits;

/// The open connections; each one has a seat. Cheap to clone.
#[derive(Clone)]
pub struct Seats(Arc<Inner>);

struct Inner {
    limits: ConnectionLimits,
    exempt: Vec<IpNetwork>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    seats: HashMap<u64, (IpAddr, Arc<Life>)>,
}

impl Taken {
    /// Closes the most expendable connection, of one address if one is given. Returns whether there was one.
    fn free_one(&mut self, address: Option<IpAddr>) -> bool {
        let candidates = self.seats.iter().filter(|(_, (whose, _))| address.is_none_or(|address| *whose == address));
        let found = candidates.filter_map(|(id, (_, life))| Some((life.expendable()?, *id))).min();
        let Some((_, id)) = found else { return false };
        if let Some((_, life)) = self.seats.remove(&id) {
            life.end();
        }
        Metrics::connection_refused("replaced");
        true
    }
}

impl Seats {
    /// Creates a table without connections. Trusted proxies forward for many clients, so only the total limit applies
    /// to them.
    pub fn new(limits: ConnectionLimits, trusted_proxies: Vec<IpNetwork>) -> Self {
        Self(Arc::new(Inner { limits, exempt: trusted_proxies, taken: Mutex::default() }))
    }

    /// Registers a connection from `peer`. Returns `None` if a limit is reached and no connection can be replaced.
    /// Never waits.
    pub fn take(&self, peer: IpAddr) -> Option<Seat> {
        let address = of_whom(peer);
        let limits = &self.0.limits;
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.0.exempt.iter().any(|network| network.contains(canonical(peer))) {
            let own = taken.seats.values().filter(|(whose, _)| *whose == address).count();
            if own >= limits.per_address && !taken.free_one(Some(address)) {
                Metrics::connection_refused("address");
                return None;
            }
        }
        if taken.seats.len() >= limits.connections && !taken.free_one(None) {
            Metrics::connection_refused("all");
            return None;
        }
        let (id, life) = (taken.next, Life::new(limits));
        taken.next += 1;
        taken.seats.insert(id, (address, Arc::clone(&life)));
        Metrics::connections(taken.seats.len());
        Some(Seat { seats: self.clone(), id, life })
    }
}

/// The address that a connection is counted under. An IPv6 address counts as its /64 network, because one customer has
/// a whole network.
fn of_whom(peer: IpAddr) -> IpAddr {
    match canonical(peer) {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// The registration of one connection. Dropping it removes the connection from the count.
pub struct Seat {
    seats: Seats,
    id: u64,
    /// The connection's state.
    pub life: Arc<Life>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.seats.remove(&self.id);
        Metrics::connections(taken.seats.len());
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Version;

    use super::*;

    #[test]
    fn who_says_nothing_makes_room_and_who_asks_stays() {
        let limits = ConnectionLimits { connections: 6, per_address: 3, ..ConnectionLimits::default() };
        let seats = Seats::new(limits, vec!["10.9.0.0/16".parse().expect("a network")]);
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let one = address("192.0.2.1");
        let (busy, silent, idle) = (seats.take(one), seats.take(one), seats.take(one));
        let (busy, silent, idle) = (busy.expect("first"), silent.expect("second"), idle.expect("third"));
        let running = busy.life.begin(Version::HTTP_11);
        drop(idle.life.begin(Version::HTTP_11));
        let newcomer = seats.take(one).expect("the silent one goes");
        let _first = newcomer.life.begin(Version::HTTP_11);
        let next = seats.take(one).expect("the idle one goes");
        let _second = next.life.begin(Version::HTTP_11);
        assert!(seats.take(one).is_none(), "all three run a request");
        drop((silent, idle));
        assert!(seats.take(one).is_none(), "those that were pushed out count no more");
        let mut proxied: Vec<_> = (0..3).map(|_| seats.take(address("10.9.1.1")).expect("exempt")).collect();
        proxied.push(seats.take(address("10.9.1.1")).expect("in place of the first"));
        drop(running);
        drop(busy);
        assert!(seats.take(one).is_some());
        assert_eq!(of_whom(address("2001:db8::1")), of_whom(address("2001:db8::2")));
        assert_ne!(of_whom(address("2001:db8:0:1::1")), of_whom(address("2001:db8::1")));
        assert_eq!(of_whom(address("::ffff:192.0.2.1")), one);
    }
}
