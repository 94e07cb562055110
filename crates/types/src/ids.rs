//! Ids of every entity: a UUID inside, and on the wire a prefix with 25 characters of base36.
//!
//! Base36 (digits, then lower-case letters) keeps a capsule's id inside one DNS label. 2^128 − 1
//! needs 25 characters, so every id has this length. In the database an id is a UUID.

use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// Length of the part after the prefix.
pub const ENCODED_LEN: usize = 25;
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Reasons why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The text does not begin with the prefix of its kind.
    #[error("the id must begin with `{0}`")]
    Prefix(&'static str),
    /// The part after the prefix is not exactly 25 characters of `[0-9a-z]`.
    #[error("the id must have 25 characters of 0-9 and a-z after its prefix")]
    Malformed,
    /// The number is larger than 2^128 − 1.
    #[error("the id is larger than the largest valid id")]
    TooLarge,
}

/// Writes a UUID as 25 characters of base36, left-padded with `0`.
#[must_use]
pub fn encode(id: Uuid) -> String {
    let mut value = id.as_u128();
    let mut out = [b'0'; ENCODED_LEN];
    for slot in out.iter_mut().rev() {
        let digit = usize::try_from(value % 36).unwrap_or(0);
        *slot = ALPHABET[digit];
        value /= 36;
    }
    out.iter().map(|byte| char::from(*byte)).collect()
}

/// Reads 25 characters of base36 as a UUID.
///
/// # Errors
/// Returns `Malformed` for any other length or character, and `TooLarge` above 2^128 − 1.
pub fn decode(text: &str) -> Result<Uuid, ParseIdError> {
    if text.len() != ENCODED_LEN {
        return Err(ParseIdError::Malformed);
    }
    let mut value: u128 = 0;
    for byte in text.bytes() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'z' => byte - b'a' + 10,
            _ => return Err(ParseIdError::Malformed),
        };
        value = value
            .checked_mul(36)
            .and_then(|v| v.checked_add(u128::from(digit)))
            .ok_or(ParseIdError::TooLarge)?;
    }
    Ok(Uuid::from_u128(value))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "sqlx", derive(sqlx::Type), sqlx(transparent))]
        pub struct $name(pub Uuid);

        impl $name {
            /// Prefix of every id of this kind on the wire.
            pub const PREFIX: &'static str = $prefix;

            /// Makes a new random id. Version 4 reveals no time.
            #[must_use]
            #[expect(clippy::new_without_default, reason = "a default id would not be random")]
            pub fn new() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let rest = text.strip_prefix($prefix).ok_or(ParseIdError::Prefix($prefix))?;
                decode(rest).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(/// A microVM of a team.
    CapsuleId, "cl-");
id!(/// A person.
    UserId, "usr-");
id!(/// The owner of capsules, templates and keys.
    TeamId, "team-");
id!(/// A credential of a team.
    ApiKeyId, "key-");
id!(/// A machine that runs capsules.
    HostId, "host-");
id!(/// A host's registration token.
    HostTokenId, "htok-");
id!(/// Files that capsules start from.
    TemplateId, "tpl-");
id!(/// A build of a template.
    BuildId, "bld-");
id!(/// A saved state of a capsule.
    SnapshotId, "snap-");
id!(/// An entry of the audit log.
    AuditLogId, "log-");
id!(/// A user's sign-in.
    SessionId, "ses-");
id!(/// An invitation to join a team.
    InvitationId, "inv-");
id!(/// A URL that receives a team's events.
    ChannelId, "chn-");
id!(/// The delivery of an event to a channel.
    DeliveryId, "dlv-");

/// The team that owns shared templates and platform resources. It has no members.
pub const PLATFORM_TEAM: TeamId = TeamId(Uuid::nil());

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn smallest_and_largest_ids_have_known_encodings() {
        assert_eq!(encode(Uuid::nil()), "0".repeat(25));
        assert_eq!(encode(Uuid::max()), "f5lxx1zz5pnorynqglhzmsp33");
        assert_eq!(decode("f5lxx1zz5pnorynqglhzmsp33"), Ok(Uuid::max()));
    }

    #[test]
    fn malformed_id_is_an_error() {
        assert_eq!(decode("f5lxx1zz5pnorynqglhzmsp34"), Err(ParseIdError::TooLarge));
        assert_eq!(decode(&"z".repeat(25)), Err(ParseIdError::TooLarge));
        for bad in
            ["", "0", &"0".repeat(24), &"0".repeat(26), &"A".repeat(25), "é00000000000000000000000"]
        {
            assert_eq!(decode(bad), Err(ParseIdError::Malformed), "{bad}");
        }
        assert!("team-0000000000000000000000000".parse::<CapsuleId>().is_err());
        assert_eq!(PLATFORM_TEAM.to_string(), format!("team-{}", "0".repeat(25)));
    }

    proptest! {
        #[test]
        fn id_round_trips(value: u128) {
            let id = CapsuleId(Uuid::from_u128(value));
            prop_assert_eq!(id.to_string().len(), 28);
            prop_assert_eq!(id.to_string().parse::<CapsuleId>(), Ok(id));
        }

        #[test]
        fn id_parser_never_panics_and_accepts_only_canonical_text(text in ".{0,40}") {
            if let Ok(id) = text.parse::<CapsuleId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
