//! Extended attributes, as they stand behind an inode.

use crate::error::Fault;
use crate::limits::{NAME_MAX, XATTRS_MAX};

/// Bytes of the head before the attributes.
const HEAD: usize = 12;
/// Attributes are padded to this.
const UNIT: usize = 4;

/// Names that an image may have: the begin of the name and its number in EROFS. `trusted.*` is
/// left out, since overlayfs takes its marks from there.
const PREFIXES: [(u8, &[u8]); 1] = [(1, b"user.")];
/// Further whole names: number in EROFS, name, and the part that is stored.
const WHOLE: [(u8, &[u8], &[u8]); 3] = [
    (2, b"system.posix_acl_access", b""),
    (3, b"system.posix_acl_default", b""),
    (6, b"security.capability", b"capability"),
];

/// Encodes the attributes that an image may have, in their order. Returns `None` without any.
///
/// # Errors
/// Fails for too long names and values, and for more than 64 KiB.
pub(crate) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<Option<Box<[u8]>>, Fault> {
    let mut bytes = vec![0; HEAD];
    for (name, value) in xattrs {
        let Some((index, suffix)) = index(name) else { continue };
        let limit = NAME_MAX as u64;
        let length = u8::try_from(suffix.len()).ok().filter(|_| name.len() <= NAME_MAX);
        let length = length.ok_or(Fault::Limit { limit, unit: "bytes in an attribute's name" })?;
        let limit = XATTRS_MAX as u64;
        let too_long = Fault::Limit { limit, unit: "bytes of extended attributes" };
        let Ok(size) = u16::try_from(value.len()) else {
            return Err(too_long);
        };
        bytes.extend([length, index]);
        bytes.extend(size.to_le_bytes());
        bytes.extend_from_slice(suffix);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(UNIT), 0);
        if bytes.len() > XATTRS_MAX {
            return Err(too_long);
        }
    }
    Ok((bytes.len() > HEAD).then(|| bytes.into_boxed_slice()))
}

/// Returns the inode's count for attributes of so many bytes: units behind the head, plus one.
pub(super) fn count(bytes: usize) -> u16 {
    match bytes.checked_sub(HEAD) {
        None => 0,
        Some(behind) => u16::try_from(behind / UNIT + 1).unwrap_or(u16::MAX),
    }
}

fn index(name: &[u8]) -> Option<(u8, &[u8])> {
    let whole = WHOLE.iter().find(|(_, whole, _)| *whole == name);
    if let Some((index, _, stored)) = whole {
        return Some((*index, stored));
    }
    PREFIXES.iter().find_map(|(index, prefix)| {
        name.strip_prefix(*prefix).filter(|rest| !rest.is_empty()).map(|rest| (*index, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &[u8]) -> bool {
        matches!(encode(&[(name.to_vec(), b"v".to_vec())]), Ok(Some(_)))
    }

    #[test]
    fn attributes_that_change_the_system_are_left_out() {
        for name in ["user.a", "user.overlay.opaque", "security.capability"] {
            assert!(kept(name.as_bytes()), "{name}");
        }
        assert!(kept(b"system.posix_acl_access") && kept(b"system.posix_acl_default"));
        let dropped = ["trusted.overlay.opaque", "security.selinux", "security.ima", "user.", "a"];
        for name in dropped {
            assert!(!kept(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn encoding_has_head_entry_and_padding() {
        let bytes = encode(&[(b"user.ab".to_vec(), b"xyz".to_vec())]).unwrap().unwrap();
        assert_eq!(bytes[12..], *b"\x02\x01\x03\x00abxyz\0\0\0");
        assert_eq!(count(bytes.len()), 4);
        assert_eq!(count(0), 0);
        let long = |bytes| encode(&[(b"user.a".to_vec(), vec![0; bytes])]);
        assert!(long(65_000).is_ok());
        assert!(long(65_535).is_err());
        assert!(long(70_000).is_err());
        assert!(encode(&[([b"user.".as_slice(), &[b'a'; 251]].concat(), vec![])]).is_err());
    }
}
