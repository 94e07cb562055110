//! Keys of finished steps. Each key is a hash over the key before it and over all that the step
//! sees. Equal keys therefore mean equal work. Keys belong to a team, since hashes of files are chosen by
//! clients; the caller keeps teams apart.
//!
//! `k0 = H(format, identity of the base, architecture)` and `ki = H(k(i−1), fields of step i)`.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Version of the keys' contents. A change of the fields, or of the meaning of a step, raises it.
pub const FORMAT: u32 = 1;

/// Name of this use of the hash, so that no other hash of the platform can be a key.
const DOMAIN: &str = "wrenn 2026 key of a build's step";

/// A key of the cache. Its text has 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

/// A text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key has 64 hexadecimal digits")]
pub struct ParseKeyError;

impl Key {
    /// Makes the key of a base. The identity is an image's digest, a version's id, or `scratch`.
    #[must_use]
    pub fn base(identity: &str, architecture: &str) -> Self {
        let mut fields = Fields::new();
        fields.text("base").text(&FORMAT.to_string()).text(identity).text(architecture);
        fields.finish()
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Key {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&types::hex::encode(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Key {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        types::hex::decode(text).map(Self).ok_or(ParseKeyError)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// The fields of a key. Each has its length before it, so no two lists of fields hash alike.
pub(crate) struct Fields(blake3::Hasher);

impl Fields {
    fn new() -> Self {
        Self(blake3::Hasher::new_derive_key(DOMAIN))
    }

    /// Begins the key of a step.
    pub(crate) fn after(key: &Key) -> Self {
        let mut fields = Self::new();
        fields.text("step").bytes(&key.0);
        fields
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        self
    }

    /// Adds an optional field. An absent text differs from an empty one.
    pub(crate) fn option(&mut self, text: Option<&str>) -> &mut Self {
        let present = if text.is_some() { "1" } else { "0" };
        self.text(present).text(text.unwrap_or_default())
    }

    /// Adds a list with its count.
    pub(crate) fn list<'a>(&mut self, texts: impl IntoIterator<Item = &'a str>) -> &mut Self {
        let texts: Vec<&str> = texts.into_iter().collect();
        self.text(&texts.len().to_string());
        for text in texts {
            self.text(text);
        }
        self
    }

    pub(crate) fn finish(&self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }
}

/// Facts about a step that decide on its look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lookup {
    /// Key of the step; that of the step before where the step leaves no trace.
    pub key: Key,
    /// Tells that this step and all later ones run anew.
    pub force: bool,
}

/// Counts the steps at the begin of a stage that need not run: the longest prefix whose last key
/// is known. Steps from the first forced one on never count.
pub fn known_prefix(base: &Key, steps: &[Lookup], known: impl Fn(&Key) -> bool) -> usize {
    let forced = steps.iter().position(|step| step.force).unwrap_or(steps.len());
    let candidates = steps.iter().take(forced).enumerate().rev();
    let mut found = candidates.filter(|(_, step)| step.key == *base || known(&step.key));
    found.next().map_or(0, |(index, _)| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> Key {
        Key([byte; 32])
    }

    #[test]
    fn key_round_trips_through_text() {
        let base = Key::base("sha256:00", "amd64");
        assert_eq!(base.to_string().parse(), Ok(base));
        assert_eq!(
            serde_json::from_str::<Key>(&serde_json::to_string(&base).unwrap()).unwrap(),
            base
        );
        for bad in ["", "0", &"0".repeat(63), &"g".repeat(64)] {
            assert_eq!(bad.parse::<Key>(), Err(ParseKeyError), "{bad}");
        }
    }

    #[test]
    fn every_field_of_a_base_changes_its_key() {
        let base = Key::base("sha256:00", "amd64");
        assert_ne!(base, Key::base("sha256:01", "amd64"));
        assert_ne!(base, Key::base("sha256:00", "arm64"));
        assert_ne!(Key::base("ab", "c"), Key::base("a", "bc"));
        let of = |texts: &[&str]| Fields::after(&base).list(texts.iter().copied()).finish();
        assert_ne!(of(&["ab"]), of(&["a", "b"]));
        assert_ne!(of(&[]), of(&[""]));
        let option = |text| Fields::after(&base).option(text).finish();
        assert_ne!(option(None), option(Some("")));
    }

    #[test]
    fn longest_known_prefix_wins() {
        let step = |byte| Lookup { key: key(byte), force: false };
        let steps = [step(1), step(2), step(3)];
        let of =
            |known: &[u8]| known_prefix(&key(0), &steps, |key| known.contains(&key.as_bytes()[0]));
        assert_eq!((of(&[]), of(&[1]), of(&[2]), of(&[3])), (0, 1, 2, 3));
        assert_eq!((of(&[1, 3]), of(&[4])), (3, 0));
        let forced = [step(1), Lookup { force: true, ..step(2) }, step(3)];
        assert_eq!(known_prefix(&key(0), &forced, |_| true), 1);
        // Steps without a trace, before anything else, need nothing.
        let first = [step(0), step(0), step(1)];
        assert_eq!(known_prefix(&key(0), &first, |_| false), 2);
        assert_eq!(known_prefix(&key(0), &[], |_| true), 0);
    }

    proptest! {
        #[test]
        fn prefix_ends_at_a_known_key_and_before_force(
            known in proptest::collection::vec(any::<bool>(), 0..8),
            force in proptest::option::of(0usize..8),
        ) {
            let steps: Vec<Lookup> = (0u8..).zip(&known)
                .map(|(at, _)| Lookup { key: key(at + 1), force: force == Some(usize::from(at)) })
                .collect();
            let is_known = |key: &Key| known[usize::from(key.as_bytes()[0]) - 1];
            let prefix = known_prefix(&key(0), &steps, is_known);
            prop_assert!(prefix == 0 || known[prefix - 1]);
            let end = force.unwrap_or(known.len()).min(known.len());
            prop_assert!(prefix <= end);
            prop_assert!(!known[prefix..end].contains(&true));
        }
    }
}
