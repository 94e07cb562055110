//! Changes of a machine's memory since it began, collected from Firecracker's differential
//! snapshots. Each of these holds the pages written since the snapshot before, and Firecracker then
//! forgets them. A mark records that a snapshot was requested. If the agent dies in between, the
//! mark stays, and the next snapshot is a full one. So no change is lost.
//!
//! ```text
//! changed  pages that may differ from the memory that the machine began with (`snapshot/base.rs`),
//!          each at its place; sparse
//! asked    the mark
//! ```
//! A machine with layers above its image has a mark at rest, too. An agent of an earlier version
//! does not know of such layers. It takes each mark for a request, and asks for all pages.

use super::files;
use crate::snapshot::base::{self, Base};
use crate::snapshot::layer::PAGE;
use crate::snapshot::memory::Memory;
use crate::snapshot::ranges::{self, extents};
use rustix::fs::{FileType, OFlags};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const CHANGED: &str = "changed";
const NEWEST: &str = "newest";
const ASKED: &str = "asked";
/// Contents of a mark at rest. A mark without contents is a request.
const REST: &[u8] = b"rest";

/// Kind of a snapshot, as Firecracker names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(super) enum Kind {
    /// Pages written since the snapshot before.
    Diff,
    /// All pages.
    Full,
}

/// Changes of one machine, in the driver's own folder.
#[derive(Debug, Clone)]
pub(super) struct Changes(pub PathBuf);

impl Changes {
    /// Returns the path of the file that a machine with one file of memory maps.
    pub(super) fn base(&self) -> PathBuf {
        self.0.join(base::IMAGE)
    }

    /// Marks a snapshot as requested, and returns the kind to request.
    pub(super) fn ask(&self) -> io::Result<Kind> {
        let mark = self.0.join(ASKED);
        match fs::read(&mark) {
            Ok(text) if text == REST => File::options().write(true).open(mark)?.set_len(0)?,
            Ok(_) => return Ok(Kind::Full),
            Err(e) if e.kind() == io::ErrorKind::NotFound => drop(File::create_new(mark)?),
            Err(e) => return Err(e),
        }
        Ok(Kind::Diff)
    }

    /// Marks that no snapshot is requested.
    pub(super) fn rest(&self) -> io::Result<()> {
        let mark = self.0.join(ASKED);
        match base::has_layers(&self.0) {
            true => fs::write(mark, REST),
            false => fs::remove_file(mark),
        }
    }

    /// Moves a requested snapshot out of the machine's root, and adds it to the changes.
    pub(super) fn add(&self, written: &Path, kind: Kind, uid: u32) -> io::Result<()> {
        let (newest, changed) = (self.0.join(NEWEST), self.0.join(CHANGED));
        fs::rename(written, &newest)?;
        // The machine could have put another file under this name, so the file is checked.
        let file = files::open(&newest, OFlags::RDONLY, FileType::RegularFile, uid)?;
        if kind == Kind::Full || !changed.exists() {
            fs::rename(&newest, &changed)?;
        } else {
            let all = File::options().read(true).write(true).open(&changed)?;
            let mut buffer = vec![0; 256 * PAGE];
            for range in extents(&file)? {
                let mut at = range.start;
                while at < range.end {
                    let size = usize::try_from(range.end - at).unwrap_or(usize::MAX);
                    let part = &mut buffer[..size.min(256 * PAGE)];
                    file.read_exact_at(part, at)?;
                    all.write_all_at(part, at)?;
                    at += part.len() as u64;
                }
            }
            fs::remove_file(&newest)?;
        }
        self.rest()
    }

    /// Returns the whole memory of the machine.
    pub(super) fn memory(&self, bytes: u64) -> io::Result<Memory> {
        let (changed, pages) = (File::open(self.0.join(CHANGED))?, bytes / PAGE as u64);
        let touched = ranges::data(&changed, pages)?;
        Ok(Memory::of_changes(changed, Base::open(&self.0)?, pages, touched))
    }
}

/// Checks that a file system tracks holes of sparse files by pages. With larger blocks, as some
/// file systems have, unwritten pages would pass for zeros.
pub(super) fn check(dir: &Path) -> io::Result<()> {
    const AT: u64 = (1 << 20) + PAGE as u64;
    let path = dir.join("sparse.new");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    let told = file
        .set_len(4 << 20)
        .and_then(|()| file.write_all_at(&[1; PAGE], AT))
        .and_then(|()| extents(&file));
    fs::remove_file(path)?;
    if told? == [Range { start: AT, end: AT + PAGE as u64 }] {
        return Ok(());
    }
    let why = "the file system stores sparse files in blocks over 4 KiB; use ext4, XFS or btrfs";
    Err(io::Error::other(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::layer::Layer;
    use rustix::fs::{CWD, Mode};

    const PAGES: u64 = 32;

    #[test]
    fn diff_file_system_must_allocate_page_by_page() {
        check(tempfile::tempdir().unwrap().path()).unwrap();
        // A tmpfs of huge pages serves if the kernel supports them and the test may mount it.
        let dir = tempfile::tempdir().unwrap();
        let (none, data) = (rustix::mount::MountFlags::empty(), c"huge=always");
        if rustix::mount::mount("tmpfs", dir.path(), "tmpfs", none, data).is_ok() {
            let by_pages = check(dir.path());
            rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
            let why = by_pages.err().map(|error| error.to_string());
            assert!(why.is_none_or(|why| why.contains("blocks over 4 KiB")));
        }
    }

    fn written(dir: &Path, pages: &[(u64, u8)]) -> PathBuf {
        let path = dir.join("written");
        let file = File::create_new(&path).unwrap();
        file.set_len(PAGES * PAGE as u64).unwrap();
        for (number, fill) in pages {
            file.write_all_at(&[*fill; PAGE], number * PAGE as u64).unwrap();
        }
        path
    }

    /// Returns the pages that a snapshot would hold above an image of zeros.
    fn seen(changes: &Changes) -> Vec<(u64, u8)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let memory = changes.memory(PAGES * PAGE as u64).unwrap();
        let (hash, _) = memory.write(&[], &[], file.reopen().unwrap()).unwrap();
        let layer = Layer::open(file.reopen().unwrap(), &hash).unwrap();
        let mut found = Vec::new();
        layer
            .each(|first, data| {
                let pages = data.unwrap().chunks_exact(PAGE).enumerate();
                found.extend(pages.map(|(n, page)| (first + n as u64, page[0])));
                Ok(())
            })
            .unwrap();
        found
    }

    #[test]
    fn later_diff_includes_pages_of_earlier_snapshots() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::getuid().as_raw();
        let changes = Changes(dir.path().to_owned());
        for pages in [&[(1, 1), (5, 5)][..], &[(5, 6), (9, 9)]] {
            assert_eq!(changes.ask().unwrap(), Kind::Diff);
            changes.add(&written(dir.path(), pages), Kind::Diff, own).unwrap();
        }
        assert_eq!(seen(&changes), [(1, 1), (5, 6), (9, 9)]);
    }

    #[test]
    fn unfinished_snapshot_makes_the_next_one_full() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::getuid().as_raw();
        let changes = Changes(dir.path().to_owned());
        assert_eq!(changes.ask().unwrap(), Kind::Diff);
        // The agent died here, and Firecracker may have forgotten the changes.
        for _ in 0..2 {
            assert_eq!(changes.ask().unwrap(), Kind::Full);
        }
        changes.add(&written(dir.path(), &[(2, 2), (3, 3)]), Kind::Full, own).unwrap();
        assert_eq!(seen(&changes), [(2, 2), (3, 3)]);
        assert_eq!(changes.ask().unwrap(), Kind::Diff);
    }

    #[test]
    fn diff_file_with_wrong_owner_or_links_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::getuid().as_raw();
        let changes = Changes(dir.path().to_owned());
        let kind = changes.ask().unwrap();
        let path = written(dir.path(), &[(1, 1)]);
        assert!(changes.add(&path, kind, own + 1).is_err());
        let path = written(dir.path(), &[(1, 1)]);
        fs::hard_link(&path, dir.path().join("elsewhere")).unwrap();
        assert!(changes.add(&path, Kind::Full, own).is_err());
        fs::remove_file(dir.path().join(NEWEST)).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(changes.add(&path, Kind::Full, own).is_err());
        // A pipe without a writer.
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(changes.add(&path, Kind::Full, own).is_err());
        assert_eq!(changes.ask().unwrap(), Kind::Full);
    }
}
