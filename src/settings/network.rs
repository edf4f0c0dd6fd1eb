//! Addresses and ranges of addresses.

use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;

/// An address or CIDR range, with IPv4-mapped IPv6 reduced to IPv4; `None` where the text is neither.
pub fn parse_network(text: &str) -> Option<IpNetwork> {
    // A prefix length is digits: no netmask in dots, no sign.
    if text.split_once('/').is_some_and(|(_, prefix)| !prefix.bytes().all(|byte| byte.is_ascii_digit())) {
        return None;
    }
    let network = IpNetwork::from_str(text).ok()?;
    match network {
        IpNetwork::V6(v6) if v6.prefix() >= 96 => match v6.ip().to_ipv4_mapped() {
            Some(v4) => IpNetwork::new(IpAddr::V4(v4), v6.prefix() - 96).ok(),
            None => Some(network),
        },
        _ => Some(network),
    }
}
