//! Tiers of isolation between a machine and its host. Each tier is better than those before it.

use crate::resources::OutOfRange;
use std::fmt;
use std::str::FromStr;

/// A tier of isolation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isolation {
    /// No machine at all, as in tests.
    #[default]
    None,
    /// A machine that software emulates.
    Tcg,
    /// A machine that the processor isolates.
    Kvm,
    /// A machine that the processor isolates, with its VMM in a jail: a root, a user and namespaces
    /// of its own.
    Jailed,
}

impl Isolation {
    /// All tiers, from the weakest.
    pub const ALL: [Self; 4] = [Self::None, Self::Tcg, Self::Kvm, Self::Jailed];

    /// Returns the tier's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
            Self::Jailed => "jailed",
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Isolation {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        Self::ALL.into_iter().find(|tier| tier.as_str() == text).ok_or_else(|| OutOfRange {
            field: "isolation",
            message: "must be none, tcg, kvm or jailed".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolation_tiers_are_ordered_and_round_trip() {
        assert!(Isolation::ALL.is_sorted());
        for tier in Isolation::ALL {
            assert_eq!(tier.to_string().parse(), Ok(tier));
        }
        assert_eq!("KVM".parse::<Isolation>().unwrap_err().field, "isolation");
    }
}
