//! The files of a COPY, as anyone with a key may upload them, read by the guest's own parser. The
//! input has flags in its first byte. The sources follow, one a line, then a NUL and the archive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use place::Placer;
use recipe::placement::Sources;

// The guest's agent is no library, so its reader of archives is included. It needs the items below.
#[path = "../../crates/envd/src/build/members.rs"]
mod members;

/// Error of the included module.
mod error {
    /// Reason why an archive is refused.
    #[derive(Debug)]
    pub(crate) struct Error(pub String);

    pub(crate) type Result<T> = std::result::Result<T, Error>;

    impl Error {
        pub(crate) fn invalid(message: impl Into<String>) -> Self {
            Self(message.into())
        }

        pub(crate) fn internal(message: impl Into<String>) -> Self {
            Self(message.into())
        }
    }

    impl From<archive::Error> for Error {
        fn from(error: archive::Error) -> Self {
            Self(error.to_string())
        }
    }
}

/// Placer that checks places and writes no file.
mod place {
    use crate::error::{Error, Result};
    use archive::Time;
    use std::collections::BTreeSet;
    use std::ffi::{OsStr, OsString};
    use std::io::{self, Read};
    use std::path::{Component, Path, PathBuf};

    /// Destination of the COPY.
    const DEST: &str = "/dest";
    /// Most names of a path, as in the guest.
    const DEPTH_MAX: usize = 200;

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Spot {
        pub top: OsString,
        pub below: PathBuf,
    }

    pub(crate) enum Node<'a> {
        Folder,
        File(&'a mut dyn Read),
        Link(&'a [u8]),
        HardLink(&'a Path),
    }

    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Attributes {
        pub mode: u32,
        pub modified: Option<Time>,
    }

    pub(crate) struct Placer<'a> {
        /// Room for contents, in bytes.
        room: &'a mut u64,
        files: BTreeSet<PathBuf>,
        pub placed: usize,
    }

    impl<'a> Placer<'a> {
        pub(crate) fn new(room: &'a mut u64) -> Self {
            Self { room, files: BTreeSet::new(), placed: 0 }
        }

        pub(crate) fn path(&mut self, spot: &Spot, is_folder: bool) -> Result<PathBuf> {
            for path in [Path::new(&spot.top), &spot.below] {
                let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
                assert!(plain, "{} leads elsewhere", path.display());
            }
            assert!(spot.below.components().count() <= DEPTH_MAX, "a path is too deep");
            let name = Path::new(&spot.top).file_name().unwrap_or(OsStr::new(""));
            let name = if is_folder { OsStr::new("") } else { name };
            Ok(match spot.below.as_os_str().is_empty() {
                true => Path::new(DEST).join(name),
                false => Path::new(DEST).join(&spot.below),
            })
        }

        pub(crate) fn put(
            &mut self,
            path: &Path,
            node: Node<'_>,
            attributes: Attributes,
        ) -> Result<()> {
            let Attributes { mode, modified } = attributes;
            assert!(mode <= 0o7777 && modified.is_some(), "{attributes:?}");
            assert!(path.starts_with(DEST), "{} is outside", path.display());
            match node {
                Node::Folder => {}
                Node::File(contents) => {
                    let mut limited = contents.take(*self.room + 1);
                    let read = io::copy(&mut limited, &mut io::sink());
                    let read = read.map_err(|error| Error(error.to_string()))?;
                    let left = self.room.checked_sub(read);
                    *self.room = left.ok_or_else(|| Error::invalid("the disk is full"))?;
                    self.files.insert(path.to_owned());
                }
                Node::Link(text) => assert!(!text.is_empty(), "a link leads nowhere"),
                Node::HardLink(to) => assert!(to.starts_with(DEST), "{} is outside", to.display()),
            }
            self.placed += 1;
            Ok(())
        }

        pub(crate) fn reopen(&self, path: &Path) -> Result<io::Empty> {
            assert!(self.files.contains(path), "{} was never placed", path.display());
            Ok(io::empty())
        }
    }
}

/// Most bytes of contents that one input places.
const ROOM: u64 = 8 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((flags, rest)) = data.split_first() else { return };
    let Some(end) = rest.iter().position(|byte| *byte == 0) else { return };
    let (names, archive) = (&rest[..end], &rest[end + 1..]);
    let Ok(names) = std::str::from_utf8(names) else { return };
    let lines: Vec<&str> = names.lines().take(8).collect();
    let sources = match flags & 1 {
        0 => Sources::docker(&lines),
        _ => Sources::e2b(names),
    };
    let Ok(sources) = sources else { return };
    let mut used = vec![false; lines.len().max(1)];
    let mut room = ROOM;
    let mut placer = Placer::new(&mut room);
    let placed = members::place(&mut placer, &sources, flags & 2 != 0, &mut used, archive);
    assert!(placed.is_ok() || placed.is_err_and(|error| !error.0.is_empty()), "no reason");
    if placer.placed > 0 {
        assert!(used.contains(&true), "a member was placed that no source names");
    }
});
