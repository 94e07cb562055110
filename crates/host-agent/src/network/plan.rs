//! Names, addresses and firewall rules of a capsule's network. Pure.

use super::error::Error;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use types::Egress;
use types::egress::Net;

/// Folder with a folder of namespaces for each agent. `/run/netns` does not serve: the first use of
/// `ip netns add` on the machine covers the mounts there. Covered namespaces cannot be removed any
/// more.
const NAMESPACES: &str = "/run/wrenn";
/// Name of the machine's tap, in every namespace.
pub(crate) const TAP: &str = "tap0";
/// Name of the link to the host, in every namespace.
pub(crate) const UPLINK: &str = "veth0";
/// Address of the gateway, for every guest.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
/// Address of the metadata service, for every guest.
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Address of the guest, in every namespace.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 2);
/// MAC address of the gateway. The address is fixed, since a restored guest remembers it.
pub(crate) const GATEWAY_MAC: [u8; 6] = [0x02, 0x57, 0x52, 0x00, 0x00, 0x01];
/// MAC address of the guest.
pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x00, 0x00, 0x02];

/// Ranges that no guest may reach: private, shared, link-local, loopback, test, multicast
/// and reserved (RFC 6890).
const DENIED: [&str; 13] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
];
/// Port at the gateway where the filter takes connections that are decided by name.
pub(crate) const FILTER_PORT: u16 = 15001;

/// Connections that one capsule may have at once. Each connection takes an entry, of about 300
/// bytes, in the namespace's connection-tracking table, and another in the host's.
pub(crate) const CONNECTIONS_MAX: u32 = 2048;
/// Connections that one capsule may open a second, once it has opened `CONNECTIONS_BURST`.
const CONNECTIONS_RATE: u32 = 100;
const CONNECTIONS_BURST: u32 = 1000;

/// Times for which the connection-tracking table keeps a capsule's connections, in seconds. Only
/// states in which a connection carries nothing are shortened. The kernel's own figure for a closed
/// TCP connection is 120, and for an answered datagram up to 120.
const TIMEOUTS: &str = "\
 ct timeout brief_tcp {
  protocol tcp
  l3proto ip
  policy = { syn_sent : 30, syn_recv : 30, fin_wait : 30, last_ack : 30, time_wait : 20, close : 5 }
 }
 ct timeout brief_udp {
  protocol udp
  l3proto ip
  policy = { unreplied : 20, replied : 60 }
 }
 ct timeout brief_dns {
  protocol udp
  l3proto ip
  policy = { unreplied : 5, replied : 5 }
 }
";
/// Gives a new connection its timeouts.
const SET_TIMEOUTS: &str = "  udp dport 53 ct timeout set \"brief_dns\" accept
  meta l4proto udp ct timeout set \"brief_udp\"
  meta l4proto tcp ct timeout set \"brief_tcp\"
 }
";

/// Names and addresses of one agent's networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Four characters that distinguish this agent's names from another agent's on the same
    /// machine.
    tag: String,
    base: u32,
    prefix: u8,
    dns: Vec<IpAddr>,
}

impl Plan {
    /// Reads a range such as `10.220.0.0/16`.
    pub(crate) fn new(tag: &str, range: &str, dns: &[IpAddr]) -> Result<Self, Error> {
        let bad = || Error::Range(format!("`{range}` is not an IPv4 range such as 10.220.0.0/16"));
        let (address, prefix) = range.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if !(8..=30).contains(&prefix) {
            return Err(Error::Range(format!("`{range}` must be between /8 and /30")));
        }
        let base = u32::from(address) & (u32::MAX << (32 - prefix));
        Ok(Self { tag: tag.to_owned(), base, prefix, dns: dns.to_vec() })
    }

    /// Returns the number of capsules that fit. Each link takes two addresses, and 65,536 is the
    /// most.
    pub(crate) fn slots(&self) -> u32 {
        (1u32 << (31 - self.prefix)).min(65_536)
    }

    /// Returns the range, as text.
    pub(crate) fn range(&self) -> String {
        format!("{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }

    /// Reports whether a range of the host shares addresses with this one.
    pub(crate) fn overlaps(&self, address: Ipv4Addr, prefix: u8) -> bool {
        let bits = self.prefix.min(prefix);
        let mask = u32::MAX.checked_shl(u32::from(32 - bits)).unwrap_or(0);
        bits > 0 && (self.base ^ u32::from(address)) & mask == 0
    }

    /// Returns the host's and the namespace's end of a link, which are in one /31.
    pub(crate) fn link(&self, slot: u32) -> (Ipv4Addr, Ipv4Addr) {
        let first = self.base + 2 * slot;
        (Ipv4Addr::from(first), Ipv4Addr::from(first + 1))
    }

    /// Returns the slot whose link has an address; `None` for an address outside the range.
    pub(crate) fn slot_of(&self, address: Ipv4Addr) -> Option<u32> {
        let slot = u32::from(address).checked_sub(self.base)? / 2;
        (slot < self.slots()).then_some(slot)
    }

    /// Returns the name of the host's end of a link; at most 15 characters.
    pub(crate) fn host_link(&self, slot: u32) -> String {
        format!("{}{slot}", self.link_prefix())
    }

    /// Returns the common prefix of the names of all the host's ends.
    pub(crate) fn link_prefix(&self) -> String {
        format!("wr{}-", self.tag)
    }

    /// Returns the folder of this agent's namespaces.
    pub(crate) fn namespaces(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.tag)
    }

    /// Returns the path where a namespace is bound.
    pub(crate) fn namespace(&self, slot: u32) -> PathBuf {
        self.namespaces().join(slot.to_string())
    }

    /// Returns the name servers of guests.
    pub(crate) fn dns(&self) -> &[IpAddr] {
        &self.dns
    }

    /// Reports whether no guest may reach an address, regardless of the guest's own rules.
    pub(crate) fn is_denied(&self, address: Ipv4Addr) -> bool {
        let mut ranges = DENIED.iter().filter_map(|range| range.parse::<Net>().ok());
        ranges.any(|range| range.holds(address)) || self.overlaps(address, 32)
    }

    /// Returns the rules inside a namespace, for a capsule with the rules in `egress`. They name no
    /// address of the host, so only `egress` makes them differ between slots. Applying them again
    /// replaces them in one step. The new rules then apply to open connections too.
    pub(crate) fn namespace_rules(&self, egress: &Egress) -> String {
        let (allowed, denied) = (listed(egress.allowed()), listed(egress.denied()));
        let mut out =
            String::from("table ip capsule\ndelete table ip capsule\ntable ip capsule {\n");
        if egress.has_names() {
            out += " chain names {\n  type nat hook prerouting priority -100;\n";
            let _ = writeln!(out, "  iifname != \"{TAP}\" return");
            let _ = writeln!(out, "  ip daddr {METADATA} return");
            let _ = writeln!(out, "  meta l4proto {{ tcp, udp }} th dport 53 dnat to {GATEWAY}");
            if let Some(allowed) = &allowed {
                let _ = writeln!(out, "  ip daddr {{ {allowed} }} return");
            }
            let _ = writeln!(out, "  tcp dport {{ 80, 443 }} dnat to {GATEWAY}:{FILTER_PORT}\n }}");
        }
        out += " chain incoming {\n  type filter hook input priority 0; policy drop;\n";
        out += "  iifname \"lo\" accept\n  ct state established,related accept\n";
        let service =
            format!("iifname \"{TAP}\" ip saddr {GUEST} ip daddr {METADATA} tcp dport 80");
        // Each new connection costs the agent some work.
        let _ = writeln!(out, "  {service} limit rate 50/second burst 100 packets accept");
        if egress.has_names() {
            let to_us = format!("iifname \"{TAP}\" ip saddr {GUEST} ip daddr {GATEWAY}");
            let most = "limit rate 500/second burst 1000 packets accept";
            let _ = writeln!(out, "  {to_us} tcp dport {{ 53, {FILTER_PORT} }} {most}");
            let _ = writeln!(out, "  {to_us} udp dport 53 {most}");
        }
        out += " }\n chain permitted {\n";
        for rule in self.dns_exceptions() {
            let _ = writeln!(out, "  {rule}");
        }
        let _ = writeln!(out, "  ip daddr {{ {} }} drop", DENIED.join(", "));
        let _ = writeln!(out, "  oifname \"{UPLINK}\" accept\n }}");
        out += " chain through {\n  type filter hook forward priority 0; policy drop;\n";
        let _ = writeln!(out, "  iifname \"{UPLINK}\" ct state established,related accept");
        let _ = writeln!(out, "  iifname != \"{TAP}\" drop");
        let _ = writeln!(out, "  ip saddr != {GUEST} drop");
        if egress.has_names() {
            // New questions go to the capsule's own name server, but an older flow would bypass it.
            out += "  meta l4proto { tcp, udp } th dport 53 reject\n";
        }
        if let Some(allowed) = allowed {
            let _ = writeln!(out, "  ip daddr {{ {allowed} }} goto permitted");
        }
        if egress.denies_names() {
            // The filter gets each new connection. A connection older than the rules, and a QUIC
            // datagram, would bypass it.
            out += "  tcp dport { 80, 443 } reject with tcp reset\n";
            out += "  udp dport { 80, 443 } reject\n";
        }
        if let Some(denied) = denied {
            let _ = writeln!(out, "  ip daddr {{ {denied} }} drop");
        }
        out += "  goto permitted\n }\n";
        out += " chain outgoing {\n  type nat hook postrouting priority 100;\n";
        let _ = writeln!(out, "  oifname \"{UPLINK}\" masquerade\n }}\n}}");
        out
    }

    /// Returns the rules of the host, for all capsules of this agent. Applying them again replaces
    /// them in one step.
    pub(crate) fn host_rules(&self) -> String {
        let (table, links) =
            (format!("wrenn_{}", self.tag), format!("\"{}*\"", self.link_prefix()));
        let mut out = format!("table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n");
        out += TIMEOUTS;
        out += " chain brief {\n  type filter hook prerouting priority -150;\n";
        let _ = writeln!(out, "  iifname != {links} accept\n  ct state != new accept");
        out += SET_TIMEOUTS;
        out += " chain incoming {\n  type filter hook input priority 0; policy accept;\n";
        let _ = writeln!(out, "  iifname {links} ct state established,related accept");
        let _ = writeln!(out, "  iifname {links} drop\n }}");
        out += " chain through {\n  type filter hook forward priority 0; policy accept;\n";
        let _ = writeln!(out, "  iifname {links} oifname {links} drop");
        for rule in self.dns_exceptions() {
            let _ = writeln!(out, "  iifname {links} {rule}");
        }
        let _ = writeln!(out, "  iifname {links} ip daddr {{ {} }} drop", DENIED.join(", "));
        let _ = writeln!(out, "  oifname {links} ct state established,related accept");
        let _ = writeln!(out, "  oifname {links} drop\n }}");
        out += " chain outgoing {\n  type nat hook postrouting priority 100;\n";
        let _ = writeln!(out, "  ip saddr {} oifname != {links} masquerade\n }}\n}}", self.range());
        out
    }

    /// Returns the commands that remove the table of [`Self::host_rules`].
    pub(crate) fn host_rules_removal(&self) -> String {
        format!("table ip wrenn_{0}\ndelete table ip wrenn_{0}\n", self.tag)
    }

    /// Returns rules that permit port 53 of the name servers, which may be in private ranges.
    fn dns_exceptions(&self) -> Vec<String> {
        let private = self.dns.iter().filter(|ip| ip.is_ipv4() && !ip.is_loopback());
        private
            .map(|ip| format!("ip daddr {ip} meta l4proto {{ tcp, udp }} th dport 53 accept"))
            .collect()
    }
}

/// Returns rules that limit a capsule's entries in connection-tracking tables. The rules see every
/// connection that the guest opens, before any other rule does. A connection that they drop takes
/// no entry anywhere. The rules have a table of their own, made once for each namespace, because
/// replacing a rule restarts its count.
pub(crate) fn namespace_limits() -> String {
    let mut out = format!("table ip limits {{\n{TIMEOUTS}");
    out += " chain opened {\n  type filter hook prerouting priority -150;\n";
    let _ = writeln!(out, "  iifname != \"{TAP}\" accept\n  ct state != new accept");
    // A flow of unanswered datagrams stays `new`, but already has its entry.
    out += "  ct status confirmed accept\n";
    let burst = format!("burst {CONNECTIONS_BURST} packets");
    let _ = writeln!(out, "  limit rate over {CONNECTIONS_RATE}/second {burst} drop");
    let _ = writeln!(out, "  ct count over {CONNECTIONS_MAX} drop");
    out + SET_TIMEOUTS + "}\n"
}

/// Returns ranges as the elements of an nftables set, which may not overlap; `None` without ranges.
fn listed(nets: impl Iterator<Item = Net>) -> Option<String> {
    let nets: Vec<Net> = nets.collect();
    let covered = |net: &Net| nets.iter().any(|other| other != net && other.covers(*net));
    let mut kept: Vec<String> = Vec::new();
    for net in nets.iter().filter(|net| !covered(net)) {
        let text = net.to_string();
        if !kept.contains(&text) {
            kept.push(text);
        }
    }
    (!kept.is_empty()).then(|| kept.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(range: &str) -> Plan {
        Plan::new("abcd", range, &["10.0.0.53".parse().unwrap()]).unwrap()
    }

    #[test]
    fn network_ranges_are_parsed_and_invalid_ones_refused() {
        assert_eq!(plan("10.220.7.9/16").range(), "10.220.0.0/16");
        assert_eq!(plan("10.220.0.0/16").slots(), 32_768);
        for bad in ["", "10.0.0.0", "10.0.0.0/31", "10.0.0.0/x", "::/16", "10.0.0.0/7"] {
            assert!(Plan::new("a", bad, &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn range_overlap_is_symmetric_and_ignores_default_route() {
        let plan = plan("10.220.0.0/16");
        assert!(plan.overlaps("10.220.5.0".parse().unwrap(), 24));
        assert!(plan.overlaps("10.0.0.0".parse().unwrap(), 8));
        assert!(!plan.overlaps("10.221.0.0".parse().unwrap(), 16));
        assert!(!plan.overlaps("0.0.0.0".parse().unwrap(), 0));
    }

    #[test]
    fn nft_rules_deny_before_they_allow() {
        let plan = plan("10.220.0.0/16");
        for rules in [plan.namespace_rules(&Egress::default()), plan.host_rules()] {
            let denied = rules.find(&DENIED.join(", ")).unwrap();
            assert!(rules.find("10.0.0.53").unwrap() < denied, "{rules}");
            assert!(rules.find("established,related accept").is_some());
        }
    }

    #[test]
    fn egress_allow_rules_precede_deny_rules_and_names_use_the_proxy() {
        let plan = plan("10.220.0.0/16");
        let rules = |allow: &[&str], deny: &[&str]| {
            let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            plan.namespace_rules(&Egress { allow: read(allow), deny: read(deny), revision: 0 })
        };
        let open = rules(&[], &[]);
        assert!(!open.contains("dnat") && !open.contains("daddr { 0.0.0.0/0 }"), "{open}");
        let some = rules(&["1.1.1.1", "1.1.1.0/24", "1.1.1.0/24"], &["0.0.0.0/0"]);
        let at = |text: &str| some.find(text).unwrap_or_else(|| panic!("{text} in {some}"));
        assert!(at("daddr { 1.1.1.0/24 } goto permitted") < at("daddr { 0.0.0.0/0 } drop"));
        assert!(!some.contains("dnat"));
        let names = rules(&["*.example.com", "9.9.9.9"], &["0.0.0.0/0"]);
        assert!(names.contains("dport 53 dnat to 169.254.0.1\n"), "{names}");
        assert!(names.find("9.9.9.9/32 } return") < names.find("{ 80, 443 } dnat"));
        assert!(
            names.contains("th dport 53 reject") && !names.contains("dport { 80, 443 } reject")
        );
        let denied = rules(&["9.9.9.9"], &["bad.com"]);
        let at = |text: &str| denied.find(text).unwrap_or_else(|| panic!("{text} in {denied}"));
        assert!(at("9.9.9.9/32 } goto permitted") < at("tcp dport { 80, 443 } reject"));
        assert!(at("udp dport { 80, 443 } reject") < denied.rfind("goto permitted").unwrap());
        assert!(!open.contains("reject"));
        assert!(plan.is_denied(GATEWAY) && plan.is_denied("10.220.0.7".parse().unwrap()));
        assert!(!plan.is_denied("9.9.9.9".parse().unwrap()));
    }

    #[test]
    fn guest_connections_are_limited_and_have_short_timeouts() {
        let rules = namespace_limits();
        let at = |text: &str| rules.find(text).unwrap_or_else(|| panic!("{text} in {rules}"));
        assert!(at("iifname != \"tap0\" accept") < at("limit rate over 100/second"));
        assert!(at("limit rate over 100/second") < at("ct count over 2048 drop"));
        assert!(at("ct count over 2048 drop") < at("set \"brief_tcp\""));
        let plan = plan("10.220.0.0/16");
        assert!(plan.host_rules().contains("ct timeout set \"brief_tcp\""));
        // A change of rules must not restart the count.
        assert!(!plan.namespace_rules(&Egress::default()).contains("ct count"));
    }

    proptest! {
        #[test]
        fn slot_links_are_disjoint_and_inside_the_range(a in 0u32..32_768, b in 0u32..32_768) {
            let plan = plan("10.220.0.0/16");
            let (x, y) = (plan.link(a), plan.link(b));
            prop_assert_eq!(u32::from(x.0) ^ 1, u32::from(x.1));
            prop_assert!(plan.overlaps(x.1, 32));
            prop_assert_eq!(a == b, x == y);
            prop_assert!(plan.host_link(a).len() <= 15);
            prop_assert_eq!((plan.slot_of(x.0), plan.slot_of(x.1)), (Some(a), Some(a)));
        }
    }
}
