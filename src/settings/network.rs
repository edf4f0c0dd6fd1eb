//! Parses addresses and address ranges.

use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;

/// Parses an address or CIDR range. IPv4-mapped IPv6 is converted to IPv4. Returns `None` if the text is neither.
pub fn parse_network(text: &str) -> Option<IpNetwork> {
    // A prefix length consists of digits only: no dotted netmask and no sign.
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
