//! Paths of entries: bytes, cleaned and checked, and their last names.

use crate::error::Fault;
use crate::limits::{DEPTH_MAX, NAME_MAX, PATH_MAX};

/// Begin of a whiteout's name (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Begin of the names of AUFS' own files, among them the mark of an opaque folder.
const AUFS: &[u8] = b".wh..wh.";
/// Name that hides the lower layers' contents of its folder.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Meaning of an entry's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name<'p> {
    /// The root itself.
    Root,
    /// An entry.
    Entry,
    /// A name of a lower layer that is hidden: its folder, and the name.
    Whiteout(&'p [u8], &'p [u8]),
    /// A folder whose contents in lower layers are hidden.
    Opaque(&'p [u8]),
    /// A file of AUFS itself, which no image has.
    Ignored,
}

/// Cleans a path: components joined by single slashes, without one at either end. The root is empty.
///
/// # Errors
/// Refuses `..`, zeros, and paths, components or depths beyond Linux's limits.
pub(crate) fn clean(path: &[u8]) -> Result<Vec<u8>, Fault> {
    if path.is_empty() {
        return Err(Fault::Refused("its path is empty"));
    }
    if path.len() > PATH_MAX {
        return Err(Fault::Limit { limit: PATH_MAX as u64, unit: "bytes in its path" });
    }
    let mut cleaned = Vec::with_capacity(path.len());
    let mut depth: usize = 0;
    for name in path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
        check(name)?;
        depth = depth.saturating_add(1);
        if !cleaned.is_empty() {
            cleaned.push(b'/');
        }
        cleaned.extend_from_slice(name);
    }
    if depth > DEPTH_MAX {
        return Err(Fault::Limit { limit: DEPTH_MAX as u64, unit: "folders on its way" });
    }
    Ok(cleaned)
}

fn check(name: &[u8]) -> Result<(), Fault> {
    if name == b".." {
        return Err(Fault::Refused("its path has \"..\""));
    }
    if name.contains(&0) {
        return Err(Fault::Refused("its path has a zero"));
    }
    if name.len() > NAME_MAX {
        return Err(Fault::Limit { limit: NAME_MAX as u64, unit: "bytes in a part of its path" });
    }
    Ok(())
}

/// Tells the meaning of a cleaned path.
///
/// # Errors
/// Refuses whiteouts of no name, of `.` and `..`, and paths below a whiteout.
pub(crate) fn name_of(path: &[u8]) -> Result<Name<'_>, Fault> {
    if path.is_empty() {
        return Ok(Name::Root);
    }
    let (folder, name) = split_last(path);
    if folder.split(|byte| *byte == b'/').any(|part| part.starts_with(AUFS)) {
        return Ok(Name::Ignored);
    }
    if folder.split(|byte| *byte == b'/').any(|part| part.starts_with(WHITEOUT)) {
        return Err(Fault::Refused("it is below a whiteout"));
    }
    if name == OPAQUE {
        return Ok(Name::Opaque(folder));
    }
    if name.starts_with(AUFS) {
        return Ok(Name::Ignored);
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(Name::Entry),
        Some(b"" | b"." | b"..") => Err(Fault::Refused("it is a whiteout of no name")),
        Some(hidden) => Ok(Name::Whiteout(folder, hidden)),
    }
}

/// Splits the last component off a cleaned path.
pub(super) fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        None => (&[], path),
        Some(slash) => {
            let (folder, name) = path.split_at_checked(slash).unwrap_or_default();
            (folder, name.get(1..).unwrap_or_default())
        }
    }
}

/// Splits the first component off a path, which may be a link's text. Empty ones and `.` are passed.
pub(super) fn split_first(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = path;
    while !rest.is_empty() {
        let slash = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (name, behind) = rest.split_at_checked(slash)?;
        rest = behind.get(1..).unwrap_or_default();
        if !matches!(name, b"" | b".") {
            return Some((name, rest));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_those_that_leave_are_refused() {
        let cases: [(&[u8], Option<&[u8]>); 12] = [
            (b"./a//b/./c/", Some(b"a/b/c")),
            (b"/a", Some(b"a")),
            (b"./", Some(b"")),
            (b"/", Some(b"")),
            (b"\xff\xfe/\n", Some(b"\xff\xfe/\n")),
            (b"...", Some(b"...")),
            (b"", None),
            (b"..", None),
            (b"a/../../b", None),
            (b"a/..", None),
            (b"/../etc/passwd", None),
            (b"a\0b", None),
        ];
        for (path, cleaned) in cases {
            assert_eq!(clean(path).ok().as_deref(), cleaned, "{}", path.escape_ascii());
        }
        assert!(clean(&[b'a'; 255]).is_ok());
        assert!(clean(&[b'a'; 256]).is_err());
        assert!(clean(&b"a/".repeat(256)).is_ok());
        assert!(clean(&b"a/".repeat(257)).is_err());
        assert!(clean(&b"a/".repeat(2049)).is_err());
    }

    #[test]
    fn names_of_whiteouts_are_told_apart() {
        let cases: [(&[u8], Option<Name>); 12] = [
            (b"", Some(Name::Root)),
            (b"a/b", Some(Name::Entry)),
            (b"a/.whiteout", Some(Name::Entry)),
            (b".wh.a", Some(Name::Whiteout(b"", b"a"))),
            (b"a/b/.wh.c", Some(Name::Whiteout(b"a/b", b"c"))),
            (b"a/.wh..wh..opq", Some(Name::Opaque(b"a"))),
            (b".wh..wh..opq", Some(Name::Opaque(b""))),
            (b".wh..wh.plnk", Some(Name::Ignored)),
            (b".wh..wh.plnk/1.2", Some(Name::Ignored)),
            (b"a/.wh.", None),
            (b"a/.wh...", None),
            (b".wh.a/b", None),
        ];
        for (path, name) in cases {
            assert_eq!(name_of(path).ok(), name, "{}", path.escape_ascii());
        }
        assert!(name_of(b".wh..").is_err());
    }
}
