//! Copies of disks and other sparse files, and the hash of a disk's contents. A copy shares its
//! source's blocks where the file system supports that. Elsewhere it gets all data that is not
//! zeros.

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Bytes that are read, hashed and written at once.
const BLOCK: usize = 64 * 1024;
/// Unit of a copy, in bytes. A unit of zeros is not written.
const PIECE: usize = 4096;

/// Copy of a disk that has its final size, and perhaps not all contents yet.
#[derive(Debug)]
pub(crate) struct BegunCopy {
    from: File,
    to: File,
    /// True if the copy shares all blocks, and so has all contents.
    shared: bool,
}

impl BegunCopy {
    /// Makes the file of a copy. No process may write to `from`.
    pub(crate) fn begin(from: File, to: &Path) -> io::Result<Self> {
        let to = File::options().read(true).write(true).create(true).truncate(true).open(to)?;
        let shared = rustix::fs::ioctl_ficlone(&to, &from).is_ok();
        if !shared {
            to.set_len(from.metadata()?.len())?;
        }
        Ok(Self { from, to, shared })
    }

    /// Reports whether the copy has all contents already.
    pub(crate) fn is_complete(&self) -> bool {
        self.shared
    }

    /// Returns the copied file.
    pub(crate) fn source(&self) -> &File {
        &self.from
    }

    /// Opens the copy once more.
    pub(crate) fn file(&self) -> io::Result<File> {
        self.to.try_clone()
    }

    /// Writes the contents that the copy lacks. Fails once `cancel` is cancelled.
    pub(crate) fn fill(&self, cancel: &CancellationToken) -> io::Result<()> {
        match self.shared {
            true => Ok(()),
            false => copy_data(&self.from, &self.to, cancel, |_, _| {}),
        }
    }

    /// Writes the contents that the copy lacks, and returns the hash of all contents. Fails once
    /// `cancel` is cancelled.
    pub(crate) fn finish(&self, cancel: &CancellationToken) -> io::Result<blake3::Hash> {
        if self.shared {
            return hash_disk(&self.from, cancel);
        }
        let mut hash = DiskHash::new(&self.from)?;
        copy_data(&self.from, &self.to, cancel, |at, block| hash.add(at, block))?;
        Ok(hash.finish())
    }
}

/// Copies a disk that no process writes to. Returns the copy, open for a machine, with the hash of
/// its contents. Fails once `cancel` is cancelled.
pub(crate) fn copy_disk(
    from: &File,
    to: &Path,
    cancel: &CancellationToken,
) -> io::Result<(File, blake3::Hash)> {
    let copy = BegunCopy::begin(from.try_clone()?, to)?;
    let hash = copy.finish(cancel)?;
    Ok((copy.to, hash))
}

/// Copies a sparse file without hashing it.
pub(crate) fn copy_sparse(from: &File, to: &Path) -> io::Result<File> {
    let copy = BegunCopy::begin(from.try_clone()?, to)?;
    copy.fill(&CancellationToken::new())?;
    Ok(copy.to)
}

/// Copies all data that is not zeros, and calls `seen` for each such block. The copy has its final
/// size already.
fn copy_data(
    from: &File,
    copy: &File,
    cancel: &CancellationToken,
    mut seen: impl FnMut(u64, &[u8]),
) -> io::Result<()> {
    each_block(from, cancel, |at, block| {
        seen(at, block);
        write_data(copy, at, block)
    })
}

/// Writes the units of a block that are not zeros, each row of them at once.
fn write_data(to: &File, at: u64, block: &[u8]) -> io::Result<()> {
    let zeros = [0; PIECE];
    let write = |from: usize, end: usize| to.write_all_at(&block[from..end], at + from as u64);
    let mut row = None;
    for (number, piece) in block.chunks(PIECE).enumerate() {
        let here = number * PIECE;
        match (*piece == zeros[..piece.len()], row) {
            (true, Some(from)) => {
                write(from, here)?;
                row = None;
            }
            (false, None) => row = Some(here),
            (true, None) | (false, Some(_)) => {}
        }
    }
    row.map_or(Ok(()), |from| write(from, block.len()))
}

/// Returns the hash of a disk's contents, which does not depend on how sparse its file is. Fails
/// once `cancel` is cancelled.
pub(crate) fn hash_disk(file: &File, cancel: &CancellationToken) -> io::Result<blake3::Hash> {
    let mut hash = DiskHash::new(file)?;
    each_block(file, cancel, |at, block| {
        hash.add(at, block);
        Ok(())
    })?;
    Ok(hash.finish())
}

/// Hash of a disk in progress. The hash covers the disk's length, and positions and contents of all
/// blocks that are not zeros.
struct DiskHash(blake3::Hasher);

impl DiskHash {
    fn new(disk: &File) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&disk.metadata()?.len().to_le_bytes());
        Ok(Self(hasher))
    }

    fn add(&mut self, at: u64, block: &[u8]) {
        self.0.update(&at.to_le_bytes());
        self.0.update(block);
    }

    fn finish(&self) -> blake3::Hash {
        self.0.finalize()
    }
}

/// Calls `work` for each block that is not zeros, until `cancel` is cancelled.
fn each_block(
    file: &File,
    cancel: &CancellationToken,
    mut work: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (length, zeros, mut block) = (file.metadata()?.len(), vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = 0;
    loop {
        if cancel.is_cancelled() {
            return Err(io::Error::other("the copy of the disk was cancelled"));
        }
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data - data % BLOCK as u64,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let size = usize::try_from((length - at).min(BLOCK as u64)).map_err(io::Error::other)?;
        file.read_exact_at(&mut block[..size], at)?;
        if block[..size] != zeros[..size] {
            work(at, &block[..size])?;
        }
        at += BLOCK as u64;
        if at >= length {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn disk_copy_is_equal_and_sparse_with_the_same_hash() {
        let dir = tempfile::tempdir().unwrap();
        let disk = File::create_new(dir.path().join("disk")).unwrap();
        disk.set_len(64 << 20).unwrap();
        disk.write_all_at(b"one", 5).unwrap();
        disk.write_all_at(&[7; 300_000], 9 << 20).unwrap();
        disk.write_all_at(&[0; 1 << 20], 20 << 20).unwrap();
        disk.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let disk = File::open(dir.path().join("disk")).unwrap();
        let cancel = CancellationToken::new();
        let (copy, hash) = copy_disk(&disk, &dir.path().join("copy"), &cancel).unwrap();
        let hash_of = |file: &File| hash_disk(file, &cancel).unwrap();
        assert_eq!(hash_of(&copy), hash);
        assert_eq!(hash_of(&disk), hash);
        assert!(
            fs::read(dir.path().join("copy")).unwrap()
                == fs::read(dir.path().join("disk")).unwrap()
        );
        copy.write_all_at(b"x", 40 << 20).unwrap();
        assert_ne!(hash_of(&copy), hash);
        copy.set_len(63 << 20).unwrap();
        assert_ne!(hash_of(&copy), hash);
    }

    #[test]
    fn begun_copy_has_its_size_at_once_and_its_contents_when_filled() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("disk");
        let mut contents = vec![0; 5 * BLOCK + 17];
        // Single units, rows of units, rows up to a block's end, and an incomplete unit.
        for (from, end) in [(0, 1), (PIECE, 3 * PIECE), (BLOCK - PIECE, BLOCK + 2 * PIECE)] {
            contents[from..end].fill(7);
        }
        *contents.last_mut().unwrap() = 9;
        fs::write(&at, &contents).unwrap();
        let copied = dir.path().join("copy");
        let copy = BegunCopy::begin(File::open(&at).unwrap(), &copied).unwrap();
        let size = |file: File| file.metadata().unwrap().len();
        assert_eq!(size(copy.file().unwrap()), contents.len() as u64);
        assert_eq!(fs::read(&copied).unwrap() == contents, copy.is_complete());
        let cancel = CancellationToken::new();
        copy.fill(&cancel).unwrap();
        assert!(fs::read(&copied).unwrap() == contents);
        assert_eq!(copy.finish(&cancel).unwrap(), hash_disk(copy.source(), &cancel).unwrap());
        assert!(fs::read(&copied).unwrap() == contents);
    }

    #[test]
    fn cancelled_disk_read_stops() {
        let dir = tempfile::tempdir().unwrap();
        let disk = tempfile::tempfile().unwrap();
        disk.write_all_at(&[7; 3 * BLOCK], 0).unwrap();
        let cancel = CancellationToken::new();
        let mut blocks = 0;
        let read = each_block(&disk, &cancel, |_, _| {
            blocks += 1;
            cancel.cancel();
            Ok(())
        });
        assert!(read.is_err());
        assert_eq!(blocks, 1);
        assert!(hash_disk(&disk, &cancel).is_err());
        assert!(copy_disk(&disk, &dir.path().join("copy"), &cancel).is_err());
    }
}
