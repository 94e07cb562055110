//! Files of snapshots whose contents this process has hashed. An unchanged file is not hashed
//! again. The table is in memory alone, so each agent process checks every file at its first use.

use daemon::lock;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

/// Most files in the table. A full table is emptied, which costs only further checks.
const MOST: usize = 4096;

static CHECKED: Mutex<BTreeMap<Stamp, blake3::Hash>> = Mutex::new(BTreeMap::new());

/// A file at the time of its last write. Links and renames leave the stamp as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Time of the last write, in seconds and nanoseconds.
    written: (i64, i64),
}

impl Stamp {
    /// Returns the stamp of a file. A stamp for [`Self::note`] is taken before the file is read.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            written: (found.mtime(), found.mtime_nsec()),
        })
    }

    /// Reports whether this process has found the hash in the file before.
    pub(super) fn has(&self, hash: &blake3::Hash) -> bool {
        lock(&CHECKED).get(self) == Some(hash)
    }

    /// Records the hash that this process has computed of the file.
    pub(super) fn note(self, hash: blake3::Hash) {
        let mut checked = lock(&CHECKED);
        if checked.len() >= MOST {
            checked.clear();
        }
        checked.insert(self, hash);
    }

    /// Forgets a file in which damage was found since. So its next check reads it again.
    pub(super) fn forget(&self) {
        lock(&CHECKED).remove(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::{Duration, SystemTime};

    #[test]
    fn file_is_known_until_it_is_written_or_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("file");
        fs::write(&at, "contents").unwrap();
        let stamp = || Stamp::of(&File::open(&at).unwrap()).unwrap();
        let hash = blake3::hash(b"contents");
        assert!(!stamp().has(&hash));
        stamp().note(hash);
        assert!(stamp().has(&hash) && !stamp().has(&blake3::hash(b"other")));
        // Another name is the same file.
        fs::hard_link(&at, dir.path().join("link")).unwrap();
        fs::rename(&at, dir.path().join("moved")).unwrap();
        fs::rename(dir.path().join("moved"), &at).unwrap();
        assert!(stamp().has(&hash));
        let later = SystemTime::now() + Duration::from_secs(1);
        File::options().write(true).open(&at).unwrap().set_modified(later).unwrap();
        assert!(!stamp().has(&hash), "it was written");
        fs::remove_file(&at).unwrap();
        fs::write(&at, "contents").unwrap();
        assert!(!stamp().has(&hash), "it is another file");
    }
}
