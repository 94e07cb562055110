//! The unit by which client addresses are limited.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// The network that a single client controls: an IPv4 address, or the /64 of an IPv6 address.
///
/// A site gets at least a /64 (RFC 6177), so a limit per IPv6 address would limit nobody.
/// IPv4-mapped IPv6 addresses count as IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientNetwork(IpAddr);

impl From<IpAddr> for ClientNetwork {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

impl fmt::Display for ClientNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str) -> String {
        ClientNetwork::from(address.parse::<IpAddr>().unwrap()).to_string()
    }

    #[test]
    fn client_network_is_an_ipv6_64_or_a_single_ipv4_address() {
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(network("2001:db8:1:2::"), "2001:db8:1:2::/64");
        assert_eq!(network("2001:db8:1:3::"), "2001:db8:1:3::/64");
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
        assert_eq!(network("::ffff:192.0.2.7"), "192.0.2.7");
    }
}
