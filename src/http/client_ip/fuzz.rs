//! Property tests: whatever the forwarded headers contain, the client's address is the peer's or one from the headers,
//! and a header counts behind trusted proxies only.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::HeaderValue;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::randomness::check;

/// An address, and one of its spellings.
fn spelled() -> impl Strategy<Value = (IpAddr, String)> {
    let address = prop_oneof![
        // Trusted addresses are in 10.0.0.0/8 and fd00::/8.
        any::<[u8; 3]>().prop_map(|[a, b, c]| IpAddr::from([10, a, b, c])),
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from(bits))),
        any::<u64>().prop_map(|bits| IpAddr::from(Ipv6Addr::from((0xfd << 120) | u128::from(bits)))),
        any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from(bits).to_ipv6_mapped())),
    ];
    (address, 0..4_u8, any::<u16>()).prop_map(|(address, form, port)| {
        let text = match (form, address) {
            (0, IpAddr::V6(_)) => format!("[{address}]"),
            (1, _) => SocketAddr::new(address, port).to_string(),
            (2, _) => format!(" {address}\t"),
            _ => address.to_string(),
        };
        (canonical(address), text)
    })
}

fn trusted() -> Vec<IpNetwork> {
    ["10.0.0.0/8", "fd00::/8"].iter().map(|text| parse_network(text).unwrap()).collect()
}

#[test]
fn the_client_is_the_last_that_no_trusted_proxy_vouches_for() {
    let junk =
        select(vec!["", "unknown", "_hidden", "10.0.0.0/8", "1.2.3.4.5", "for=1.2.3.4", "::1%eth0", "999.1.1.1"]);
    let entry = prop_oneof![
        9 => spelled().prop_map(|(address, text)| (Some(address), text)),
        1 => junk.prop_map(|text| (None, text.to_owned())),
    ];
    let lines = vec(vec(entry, 1..4), 0..4);
    check(2_000, (spelled(), lines, any::<bool>()), |((peer, _), lines, switched_on)| {
        let trusted = trusted();
        let mut headers = HeaderMap::new();
        for line in &lines {
            let text = line.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(",");
            headers.append("x-forwarded-for", HeaderValue::try_from(text).unwrap());
        }
        let is_trusted = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets()[0] == 10,
            IpAddr::V6(v6) => v6.octets()[0] == 0xfd,
        };
        // The expected result, computed in a different way than in the code: follow the chain from the peer outwards
        // for as long as each address is trusted.
        let mut expected = peer;
        let mut chain = lines.iter().flatten().rev().map(|(address, _)| *address);
        while switched_on && is_trusted(expected) {
            match chain.next() {
                Some(Some(address)) => expected = address,
                _ => break,
            }
        }
        prop_assert_eq!(client_address(peer, &headers, switched_on, &trusted), expected);
        Ok(())
    });
}

#[test]
fn any_bytes_in_the_headers_leave_an_address() {
    let line = prop_oneof![vec(any::<u8>(), 0..40), "[0-9a-f.:\\[\\], /%-]{0,40}".prop_map(String::into_bytes)];
    check(2_000, (spelled(), vec(line, 0..4)), |((peer, _), lines)| {
        let mut headers = HeaderMap::new();
        for value in lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok()) {
            headers.append("x-forwarded-for", value);
        }
        let client = client_address(peer, &headers, true, &trusted());
        prop_assert_eq!(client, canonical(client));
        if !trusted().iter().any(|network| network.contains(peer)) {
            prop_assert_eq!(client, peer);
        }
        Ok(())
    });
}

#[test]
fn a_range_holds_its_own_address_and_other_texts_are_none() {
    let range = (spelled(), 0..=128_u8);
    check(2_000, (range, "\\PC{0,20}", "[0-9a-f.:/%]{0,20}"), |(((address, _), prefix), any, like)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let network = parse_network(&format!("{address}/{prefix}"));
        prop_assert_eq!(network.is_some(), prefix <= most);
        if let Some(network) = network {
            prop_assert!(network.contains(address));
            prop_assert_eq!(parse_network(&network.to_string()), Some(network));
        }
        for text in [any, like] {
            if let Some(network) = parse_network(&text) {
                let list = AllowedAddresses { entries: Some(vec![text.clone()]) };
                prop_assert!(list.allows(network.ip()));
                prop_assert_eq!(list.find(&network.to_string()), Some(text.as_str()));
            }
        }
        Ok(())
    });
}
