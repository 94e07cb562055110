//! Addresses that a user's URL may lead to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Reports whether an address is a public one of the internet. Pure.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

/// A host name whose addresses are all special ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host name has no public address")]
pub struct NoPublicAddress;

/// Keeps the public addresses of a host name.
///
/// # Errors
/// Fails when none of them is public.
pub fn only_public(
    found: impl Iterator<Item = SocketAddr>,
) -> Result<Vec<SocketAddr>, NoPublicAddress> {
    let public: Vec<SocketAddr> = found.filter(|at| is_public(at.ip())).collect();
    if public.is_empty() { Err(NoPublicAddress) } else { Ok(public) }
}

/// Reports whether the host of a parsed URL is an IP address that is not public. No resolver sees
/// such a host, so it is checked by itself.
#[must_use]
pub fn is_private_literal(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.parse::<IpAddr>().is_ok_and(|ip| !is_public(ip))
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_broadcast()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        || a >= 240
        // Carrier-grade NAT, protocol assignments, 6to4 relays and benchmarks.
        || a == 100 && (64..128).contains(&b)
        || (a, b, c) == (192, 0, 0)
        || (a, b, c) == (192, 88, 99)
        || a == 198 && (b == 18 || b == 19);
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let part = ip.segments();
    // An IPv4-mapped address reaches its IPv4 address.
    if let Some(v4) = ip.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match part {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(v4(high, low)),
        [0x2002, high, low, ..] => is_public_v4(v4(high, low)),
        // Teredo and documentation addresses.
        [0x2001, 0 | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast addresses.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_public_addresses_are_refused() {
        for private in [
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "198.18.0.1",
            "192.0.0.8",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "203.0.113.9",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "::7f00:1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn only_the_public_addresses_of_a_name_are_kept() {
        let keep = |all: &[&str]| only_public(all.iter().map(|at| at.parse().unwrap()));
        let public = "1.1.1.1:443".parse().unwrap();
        assert_eq!(keep(&["10.0.0.1:443", "1.1.1.1:443"]), Ok(vec![public]));
        assert_eq!(keep(&["10.0.0.1:443", "[::1]:443"]), Err(NoPublicAddress));
        assert_eq!(keep(&[]), Err(NoPublicAddress));
    }

    #[test]
    fn private_literal_is_an_address_and_no_name() {
        for private in ["127.0.0.1", "[::1]", "::1", "[::ffff:10.1.1.1]"] {
            assert!(is_private_literal(private), "{private}");
        }
        for other in ["localhost", "1.1.1.1", "[2606:4700::1111]", ""] {
            assert!(!is_private_literal(other), "{other}");
        }
    }
}
