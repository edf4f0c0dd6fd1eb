//! The client's address, and whether it is allowed. The address is the peer's or, behind trusted proxies, the one that
//! they forward. The allow list is kept here as it was last read.

use crate::settings::Settings;
use crate::settings::network::parse_network;
use axum::extract::{ConnectInfo, Request};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use axum::http::HeaderMap;
use ipnetwork::IpNetwork;
use parking_lot::RwLock;

/// Converts an IPv4 address written as IPv6 (`::ffff:10.0.0.1`) to IPv4.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The address that the request comes from. `X-Forwarded-For` counts only if it is enabled and the peer is a trusted
/// proxy. In that case the client is the right-most entry that is not a trusted proxy itself. An entry that is not an
/// address ends the search; the client is then the last proxy to the right of that entry.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, use_forwarded_for: bool, trusted: &[IpNetwork]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = canonical(peer);
    if !use_forwarded_for || !is_trusted(client) {
        return client;
    }
    // A header line that is not valid text must not be skipped: the entries to its left would count then.
    let lines = headers.get_all("x-forwarded-for").iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
    let lines: Vec<_> = lines.collect();
    for entry in lines.iter().rev().flat_map(|line| line.split(',').rev()) {
        let Some(address) = parse_forwarded(entry.trim()) else { break };
        client = canonical(address);
        if !is_trusted(client) {
            break;
        }
    }
    client
}

/// The address that a request comes from; `None` if the connection's peer is unknown.
pub fn of_request(settings: &Settings, request: &Request) -> Option<IpAddr> {
    let ConnectInfo(peer) = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
    Some(client_address(peer.ip(), request.headers(), settings.use_x_forwarded_for, &settings.trusted_proxies))
}

/// Parses an entry of `X-Forwarded-For`: an address, with or without a port or brackets.
fn parse_forwarded(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    bare.parse().ok().or_else(|| SocketAddr::from_str(entry).ok().map(|socket| socket.ip()))
}

/// The list of allowed addresses, as it was last read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AllowedAddresses {
    /// The entries as stored; `None` if there has never been a list.
    pub entries: Option<Vec<String>>,
}

impl AllowedAddresses {
    /// Whether `address` is allowed. An empty list means no restriction. An entry that is not an address (the reference
    /// stores any text) allows no address.
    pub fn allows(&self, address: IpAddr) -> bool {
        match &self.entries {
            None => true,
            Some(entries) if entries.is_empty() => true,
            Some(entries) => {
                let address = canonical(address);
                entries.iter().filter_map(|entry| parse_network(entry)).any(|network| network.contains(address))
            }
        }
    }

    /// The stored entry that denotes the same address or range as `text`.
    pub fn find(&self, text: &str) -> Option<&str> {
        // Address bits after the prefix are ignored.
        let meaning = |text: &str| parse_network(text).map(|network| (network.network(), network.prefix()));
        let wanted = meaning(text);
        self.entries
            .iter()
            .flatten()
            .find(|entry| *entry == text || (wanted.is_some() && meaning(entry) == wanted))
            .map(String::as_str)
    }
}

/// The current allow list. All requests share it, and it is always replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct AllowList {
    list: Arc<RwLock<Arc<AllowedAddresses>>>,
    refreshing: Arc<tokio::sync::Mutex<()>>,
}

impl AllowList {
    /// The current list.
    pub fn current(&self) -> Arc<AllowedAddresses> {
        Arc::clone(&self.list.read())
    }

    /// Locks changes of the list. The caller holds the lock from reading or changing the stored list until it has
    /// called [`Self::replace`], so that the newest list wins.
    pub async fn lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.refreshing.lock().await
    }

    /// Replaces the whole list.
    pub fn replace(&self, list: AllowedAddresses) {
        *self.list.write() = Arc::new(list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> AllowedAddresses {
        AllowedAddresses { entries: Some(entries.iter().map(|entry| (*entry).to_owned()).collect()) }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn ranges_and_mapped_addresses_match() {
        let allowed = list(&["10.0.0.0/8", "::1", "::ffff:192.168.1.5", "junk"]);
        for (address, expected) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("::1", true),
            ("192.168.1.5", true),
            ("192.168.1.6", false),
            ("11.0.0.1", false),
        ] {
            assert_eq!(allowed.allows(ip(address)), expected, "{address}");
        }
        assert!(list(&[]).allows(ip("1.2.3.4")));
        assert!(!list(&["junk"]).allows(ip("1.2.3.4")));
        assert!(AllowedAddresses::default().allows(ip("1.2.3.4")));
        assert_eq!(allowed.find("192.168.1.5"), Some("::ffff:192.168.1.5"));
        assert_eq!(allowed.find("10.9.9.9/8"), Some("10.0.0.0/8"));
        assert_eq!(allowed.find("10.0.0.0"), None);
    }

    #[test]
    fn forwarded_addresses_count_behind_trusted_proxies_only() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "6.6.6.6, 1.2.3.4".parse().expect("a header"));
        headers.append("x-forwarded-for", "10.0.0.2".parse().expect("a header"));
        let trusted = [parse_network("10.0.0.0/8").expect("a range")];
        let address = |peer: &str, on: bool| client_address(ip(peer), &headers, on, &trusted).to_string();
        assert_eq!(address("10.0.0.1", true), "1.2.3.4");
        assert_eq!(address("10.0.0.1", false), "10.0.0.1");
        assert_eq!(address("9.9.9.9", true), "9.9.9.9");
        assert_eq!(address("::ffff:10.0.0.1", true), "1.2.3.4");
    }

    #[test]
    fn an_unreadable_forwarded_line_does_not_uncover_the_one_before() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "6.6.6.6".parse().expect("a header"));
        let unreadable = axum::http::HeaderValue::from_bytes(b"\xff, 1.2.3.4").expect("a header");
        headers.append("x-forwarded-for", unreadable);
        let trusted = [parse_network("10.0.0.0/8").expect("a range")];
        assert_eq!(client_address(ip("10.0.0.1"), &headers, true, &trusted), ip("1.2.3.4"));
    }

    #[test]
    fn prefixes_are_digits() {
        for text in ["10.0.0.0/255.0.0.0", "10.0.0.0/+8", "10.0.0.0/", "10.0.0.0/33", " 10.0.0.1", "10.1", "::1%lo", ""]
        {
            assert_eq!(parse_network(text), None, "{text:?}");
        }
    }
}

#[cfg(test)]
mod fuzz;
