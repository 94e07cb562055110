//! The places of an archive's members, for callers that read a few of them. Contents are skipped by
//! seeking, and nothing is unpacked.

use crate::format::{Kind, Reader};
use crate::{Error, Result};
use std::io::{self, Read, Seek, SeekFrom};

/// Contents of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// Bytes in the archive.
    Bytes { offset: u64, size: u64 },
    /// Another name of the member with this path.
    HardLink(Vec<u8>),
    /// A link with this text, which is relative to the member's folder.
    SymbolicLink(Vec<u8>),
}

/// A file or link in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Path as the archive has it, unchecked.
    pub path: Vec<u8>,
    pub contents: Contents,
}

/// Lists the files and links of an archive, in its order, and leaves out all other kinds. The
/// archive has no compression. Returns at most `most` entries.
///
/// # Errors
/// Returns `Refused` for a malformed archive, or for more entries of whatever kind. Returns `Stream`
/// for an archive that ends early. Contents may still end early, since none are read.
pub fn members(from: &mut (impl Read + Seek), most: usize) -> Result<Vec<Member>> {
    let mut found = Vec::new();
    let mut at: u64 = 0;
    for _ in 0..=most {
        from.seek(SeekFrom::Start(at)).map_err(Error::Stream)?;
        // A reader for each entry lets the contents be skipped without reading them.
        let mut reader = Reader::new(Counted { from: &mut *from, read: 0 });
        let Some(entry) = reader.next_entry()? else { return Ok(found) };
        let (read, rest) = (reader.stream().read, reader.until_next());
        let offset = at.saturating_add(read);
        at = offset.saturating_add(rest);
        let contents = match entry.kind {
            Kind::File => Contents::Bytes { offset, size: entry.size },
            Kind::HardLink => Contents::HardLink(entry.link),
            Kind::Link => Contents::SymbolicLink(entry.link),
            Kind::Folder | Kind::Other(_) => continue,
        };
        found.push(Member { path: entry.path, contents });
    }
    Err(Error::Refused(format!("the archive has more than {most} entries")))
}

/// A stream that counts its bytes.
struct Counted<R> {
    from: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.read = self.read.saturating_add(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Entry, Time, finish, pad, write_header};
    use std::io::{Cursor, Write};

    fn archive(entries: &[(Kind, &str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, path, contents) in entries {
            let is_file = *kind == Kind::File;
            let size = if is_file { contents.len() as u64 } else { 0 };
            let link = if is_file { vec![] } else { contents.to_vec() };
            let (path, modified) = (path.as_bytes().to_vec(), Time::default());
            let entry = Entry { kind: *kind, path, link, mode: 0o644, modified, size };
            write_header(&mut out, &entry).unwrap();
            if is_file {
                out.write_all(contents).unwrap();
            }
            pad(&mut out, size).unwrap();
        }
        finish(&mut out).unwrap();
        out
    }

    #[test]
    fn places_of_members_hold_their_contents() {
        let long = "long/".repeat(60) + "name";
        let bytes = archive(&[
            (Kind::Folder, "d/", b""),
            (Kind::File, "d/a", b"first"),
            (Kind::Link, "b", b"d/a"),
            (Kind::HardLink, "c", b"d/a"),
            (Kind::File, &long, &[7; 1000]),
            (Kind::File, "empty", b""),
        ]);
        let found = members(&mut Cursor::new(&bytes), 6).unwrap();
        let paths: Vec<_> = found.iter().map(|member| member.path.as_slice()).collect();
        assert_eq!(paths, [b"d/a", &b"b"[..], b"c", long.as_bytes(), b"empty"]);
        let contents = |at: usize| {
            let Contents::Bytes { offset, size } = found[at].contents else { panic!("no bytes") };
            let offset = usize::try_from(offset).unwrap();
            &bytes[offset..][..usize::try_from(size).unwrap()]
        };
        assert_eq!(contents(0), b"first");
        assert_eq!(contents(3), [7; 1000]);
        assert_eq!(contents(4), b"");
        assert_eq!(found[1].contents, Contents::SymbolicLink(b"d/a".to_vec()));
        assert_eq!(found[2].contents, Contents::HardLink(b"d/a".to_vec()));
    }

    #[test]
    fn archive_with_too_many_entries_or_cut_short_is_refused() {
        let bytes = archive(&[(Kind::Folder, "d/", b""), (Kind::File, "a", b"x")]);
        assert!(matches!(members(&mut Cursor::new(&bytes), 1), Err(Error::Refused(_))));
        assert!(members(&mut Cursor::new(&bytes), 2).is_ok());
        assert!(matches!(members(&mut Cursor::new(&bytes[..1024]), 9), Err(Error::Stream(_))));
        assert!(matches!(members(&mut Cursor::new(b""), 9), Err(Error::Stream(_))));
    }

    #[test]
    fn claimed_size_beyond_the_end_ends_the_list_with_an_error() {
        let mut bytes = Vec::new();
        let entry = Entry {
            kind: Kind::File,
            path: b"huge".to_vec(),
            link: vec![],
            mode: 0,
            modified: Time::default(),
            size: u64::MAX - 600,
        };
        write_header(&mut bytes, &entry).unwrap();
        finish(&mut bytes).unwrap();
        assert!(matches!(members(&mut Cursor::new(&bytes), 9), Err(Error::Stream(_))));
    }
}
