//! Tiers of isolation between a machine and its host. Each tier is better than those before it.

use crate::text_enum;

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

text_enum!(Isolation, "isolation", {
    None = "none",
    Tcg = "tcg",
    Kvm = "kvm",
    Jailed = "jailed",
});

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
