//! A snapshot's disk on its way to a machine. The file has its size at once. Its contents are
//! complete and checked later, so that other work goes on meanwhile.

use super::checked::Stamp;
use super::damage::damaged;
use crate::storage::BegunCopy;
use std::fs::File;
use std::io;
use tokio_util::sync::CancellationToken;

/// Copy of a snapshot's disk. Nobody may trust the contents before [`Self::finish`].
#[derive(Debug)]
pub(crate) struct DiskCopy {
    copy: BegunCopy,
    /// Hash of the contents.
    wanted: blake3::Hash,
}

impl DiskCopy {
    /// Takes over a begun copy. `wanted` is the hash in the snapshot's manifest.
    pub(super) fn new(copy: BegunCopy, wanted: &str) -> io::Result<Self> {
        let wanted = blake3::Hash::from_hex(wanted).map_err(|e| damaged(e.to_string()))?;
        Ok(Self { copy, wanted })
    }

    /// Reports whether the copy has all contents, checked or not.
    pub(crate) fn is_complete(&self) -> bool {
        self.copy.is_complete()
    }

    /// Opens the copy for a machine.
    pub(crate) fn file(&self) -> io::Result<File> {
        self.copy.file()
    }

    /// Writes the contents that the copy lacks, and checks all. A source that this process has
    /// checked is not hashed again.
    ///
    /// # Errors
    /// Fails with damage when the contents differ from the written ones, and once `cancel` is
    /// cancelled.
    pub(crate) fn finish(&self, cancel: &CancellationToken) -> io::Result<()> {
        let stamp = Stamp::of(self.copy.source())?;
        if stamp.has(&self.wanted) {
            return self.copy.fill(cancel);
        }
        if self.copy.finish(cancel)? != self.wanted {
            return Err(damaged("the disk differs from the written one"));
        }
        stamp.note(self.wanted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::damage::is_damage;
    use super::*;
    use crate::storage;
    use std::fs;
    use std::path::Path;

    fn begin(from: &Path, to: &Path, wanted: &str) -> DiskCopy {
        let copy = BegunCopy::begin(File::open(from).unwrap(), to).unwrap();
        DiskCopy::new(copy, wanted).unwrap()
    }

    #[test]
    fn disk_copy_is_complete_and_checked_after_finish() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, vec![3; 100_000]).unwrap();
        let cancel = CancellationToken::new();
        let hash = storage::hash_disk(&File::open(&from).unwrap(), &cancel).unwrap();
        // The second copy finds the source known.
        for _ in 0..2 {
            let copy = begin(&from, &to, hash.to_hex().as_str());
            assert_eq!(copy.file().unwrap().metadata().unwrap().len(), 100_000);
            copy.finish(&cancel).unwrap();
            assert_eq!(fs::read(&to).unwrap(), vec![3; 100_000]);
        }
        assert!(Stamp::of(&File::open(&from).unwrap()).unwrap().has(&hash));
    }

    #[test]
    fn disk_copy_of_other_contents_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "contents").unwrap();
        let other = blake3::hash(b"other").to_hex();
        let copy = begin(&from, &to, other.as_str());
        for _ in 0..2 {
            let refused = copy.finish(&CancellationToken::new()).unwrap_err();
            assert!(is_damage(&refused), "{refused}");
        }
        let copy = BegunCopy::begin(File::open(&from).unwrap(), &to).unwrap();
        assert!(is_damage(&DiskCopy::new(copy, "no hash").unwrap_err()));
    }
}
