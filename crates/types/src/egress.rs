//! Rules for a capsule's connections to the outside: by address, by range and by name. The code
//! here only decides. The host enforces the rules.
//!
//! A rule that allows goes before a rule that denies. A target without a rule may be reached.
//! Private ranges are outside these rules, since no capsule reaches them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Most rules that a capsule may have, of each kind.
pub const RULES_MAX: usize = 256;
/// Longest name of a host, in bytes (RFC 1035, 2.3.4).
const NAME_MAX: usize = 253;

/// The rules of a capsule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Rule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Rule>,
    /// Number of this set of rules. A newer set has a higher number, so that an older change which
    /// arrives late is recognized.
    #[serde(default)]
    pub revision: u64,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Rule {
    /// An address, or a range.
    Net(Net),
    /// A name, or all names below a name.
    Name(Name),
}

/// IPv4 addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net {
    address: Ipv4Addr,
    prefix: u8,
}

/// A host's name, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    name: String,
    /// Set if the rule covers the names below this one, and not the name itself.
    below: bool,
}

/// A text that is no rule.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` must be an IPv4 address, a range such as 10.0.0.0/8 or a name such as *.example.com"
)]
pub struct BadRule(String);

impl Egress {
    /// Reports whether everything may be reached.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Reports whether a rule has a name. If so, every connection whose name can be read is
    /// inspected.
    #[must_use]
    pub fn has_names(&self) -> bool {
        self.allow.iter().chain(&self.deny).any(|rule| matches!(rule, Rule::Name(_)))
    }

    /// Reports whether a rule denies a name. If so, a connection whose name cannot be read is
    /// denied too.
    #[must_use]
    pub fn denies_names(&self) -> bool {
        self.deny.iter().any(|rule| matches!(rule, Rule::Name(_)))
    }

    /// Yields the ranges that are allowed under any name.
    pub fn allowed(&self) -> impl Iterator<Item = Net> + '_ {
        nets(&self.allow)
    }

    /// Yields the ranges that are denied unless a rule allows the target.
    pub fn denied(&self) -> impl Iterator<Item = Net> + '_ {
        nets(&self.deny)
    }

    /// Reports whether an address may be reached, whatever its name.
    #[must_use]
    pub fn admits_address(&self, address: Ipv4Addr) -> bool {
        let in_one = |rules: &[Rule]| nets(rules).any(|net| net.holds(address));
        in_one(&self.allow) || !in_one(&self.deny)
    }

    /// Reports whether rules by name allow a name. Returns `None` when no rule covers it.
    #[must_use]
    pub fn admits_name(&self, name: &str) -> Option<bool> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let in_one = |rules: &[Rule]| {
            rules.iter().any(|rule| matches!(rule, Rule::Name(one) if one.holds(&name)))
        };
        if in_one(&self.allow) {
            return Some(true);
        }
        in_one(&self.deny).then_some(false)
    }

    /// Reports whether everything is denied unless a rule allows it.
    #[must_use]
    pub fn denies_all(&self) -> bool {
        nets(&self.deny).any(|net| net.prefix == 0)
    }
}

fn nets(rules: &[Rule]) -> impl Iterator<Item = Net> + '_ {
    rules.iter().filter_map(|rule| match rule {
        Rule::Net(net) => Some(*net),
        Rule::Name(_) => None,
    })
}

impl Net {
    /// All addresses.
    pub const ALL: Self = Self { address: Ipv4Addr::UNSPECIFIED, prefix: 0 };

    /// Reports whether all addresses of `other` are in this range.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.holds(other.address)
    }

    /// Reports whether an address is in this range.
    #[must_use]
    pub fn holds(self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.address)) & mask(self.prefix) == 0
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0)
}

impl Name {
    fn holds(&self, name: &str) -> bool {
        if self.below {
            let rest = name.strip_suffix(self.name.as_str());
            return self.name.is_empty() || rest.is_some_and(|rest| rest.ends_with('.'));
        }
        name == self.name
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Net {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let bad = || BadRule(text.chars().take(300).collect());
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let digits = prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32 && digits).ok_or_else(bad)?;
        Ok(Self { address: Ipv4Addr::from(u32::from(address) & mask(prefix)), prefix })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix == 32 => write!(f, "{}", net.address),
            Self::Net(net) => net.fmt(f),
            Self::Name(Name { name, below: true }) if name.is_empty() => f.write_str("*"),
            Self::Name(Name { name, below: true }) => write!(f, "*.{name}"),
            Self::Name(Name { name, below: false }) => f.write_str(name),
        }
    }
}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        if let Ok(net) = text.parse() {
            return Ok(Self::Net(net));
        }
        let bad = || BadRule(text.chars().take(300).collect());
        let (name, below) = match text.strip_prefix('*') {
            Some("") => return Ok(Self::Name(Name { name: String::new(), below: true })),
            Some(rest) => (rest.strip_prefix('.').ok_or_else(bad)?, true),
            None => (text, false),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let label = |label: &str| {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=63).contains(&label.len()) && label.bytes().all(legal)
        };
        // A last label of digits belongs to an address, or to a text that only looks like one.
        let last = name.rsplit('.').next().unwrap_or("");
        let number = last.bytes().all(|byte| byte.is_ascii_digit());
        if name.len() > NAME_MAX || !name.split('.').all(label) || number {
            return Err(bad());
        }
        Ok(Self::Name(Name { name, below }))
    }
}

impl TryFrom<String> for Rule {
    type Error = BadRule;

    fn try_from(text: String) -> Result<Self, BadRule> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn egress(allow: &[&str], deny: &[&str]) -> Egress {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Egress { allow: rules(allow), deny: rules(deny), revision: 0 }
    }

    #[test]
    fn egress_rules_round_trip() {
        for (text, shown) in [
            ("1.2.3.4", "1.2.3.4"),
            ("1.2.3.4/32", "1.2.3.4"),
            ("10.9.8.7/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("Example.COM.", "example.com"),
            ("*.Example.com", "*.example.com"),
            ("localhost", "localhost"),
            ("*", "*"),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), shown);
            assert_eq!(shown.parse::<Rule>().unwrap(), rule);
        }
        let long = format!("{}.com", "a".repeat(64));
        for bad in [
            "",
            ".",
            "1.2.3",
            "1.2.3.4/33",
            "1.2.3.4/+8",
            "1.2.3.4/",
            "::/0",
            "::1",
            "a..b",
            "a b",
            "*a.com",
            "a.*.com",
            "*.",
            "http://a.com",
            "a.com:80",
            "é.com",
            "256.1.1.1",
            &long,
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn egress_allow_precedes_deny() {
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        assert!(Egress::default().admits_address(ip("9.9.9.9")));
        let rules = egress(&["1.1.1.1", "8.8.0.0/16", "*.example.com"], &["0.0.0.0/0", "x.org"]);
        assert!(rules.admits_address(ip("1.1.1.1")) && rules.admits_address(ip("8.8.4.4")));
        assert!(!rules.admits_address(ip("1.1.1.2")) && rules.denies_all() && rules.has_names());
        assert_eq!(rules.admits_name("A.example.com."), Some(true));
        for other in ["example.com", "badexample.com", "example.com.evil.org"] {
            assert_eq!(rules.admits_name(other), None, "{other}");
        }
        assert_eq!(rules.admits_name("x.org"), Some(false));
        assert_eq!(egress(&["*"], &["x.org"]).admits_name("x.org"), Some(true));
        let some = egress(&[], &["9.0.0.0/8"]);
        assert!(!some.admits_address(ip("9.1.1.1")) && some.admits_address(ip("8.1.1.1")));
        assert!(!some.denies_all() && !some.has_names() && !some.is_open());
        assert!(rules.denies_names() && !some.denies_names());
        assert!(!egress(&["a.com"], &["0.0.0.0/0"]).denies_names());
    }
}
