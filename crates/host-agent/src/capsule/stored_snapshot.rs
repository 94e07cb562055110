//! The name that a capsule's snapshot has in the store. Each upload has a name of its own. So a
//! host that lost the capsule cannot overwrite an upload of the capsule's next host.

use types::CapsuleId;

/// Digits of the random part.
const DIGITS: usize = 16;

/// A snapshot of a capsule in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredSnapshot {
    /// Number of the snapshot.
    pub number: u64,
    /// The number, then a random part. A name of an earlier version has the number alone.
    name: String,
}

impl StoredSnapshot {
    /// Returns a name that no other upload has.
    pub(super) fn fresh(number: u64) -> Self {
        Self { number, name: format!("{number}-{:0DIGITS$x}", rand::random::<u64>()) }
    }

    /// Reads a name. Returns `None` unless [`StoredSnapshot::fresh`] or an earlier version made it.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (number, random) = name.split_once('-').unwrap_or((name, "0000000000000000"));
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let hex = random.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = number.parse().ok().filter(|number| *number > 0)?;
        (digits && hex && random.len() == DIGITS).then(|| Self { number, name: name.to_owned() })
    }

    /// Returns the snapshot of this number. An empty `name` stands for the number alone. Returns
    /// `None` for number 0, and when number and name differ.
    pub(crate) fn new(number: u64, name: &str) -> Option<Self> {
        let stored =
            if name.is_empty() { Self::parse(&number.to_string()) } else { Self::parse(name) };
        stored.filter(|stored| stored.number == number)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the snapshot's name in its team's namespace of the store.
    pub(super) fn path(&self, id: CapsuleId) -> String {
        format!("{}/{}", folder(id), self.name)
    }
}

/// Returns the folder of all stored snapshots of a capsule.
pub(crate) fn folder(id: CapsuleId) -> String {
    format!("capsules/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_name_round_trips_and_two_uploads_differ() {
        let (one, other) = (StoredSnapshot::fresh(7), StoredSnapshot::fresh(7));
        assert_eq!(StoredSnapshot::parse(one.name()), Some(one.clone()));
        assert_eq!((one.number, other.number), (7, 7));
        assert_ne!(one, other);
        assert_eq!(StoredSnapshot::new(7, one.name()), Some(one.clone()));
        assert_eq!(StoredSnapshot::new(8, one.name()), None);
        assert_eq!(StoredSnapshot::new(7, "").unwrap().name(), "7");
        assert_eq!(StoredSnapshot::new(0, ""), None);
    }

    #[test]
    fn stored_name_with_path_traversal_is_refused() {
        for name in ["", "0", "-", "../7", "7/8", "+7", "7-", "7-xyz", "7-00000000000000/0", "x-7"]
        {
            assert_eq!(StoredSnapshot::parse(name), None, "{name}");
        }
    }
}
