//! Reads of a file's contents. Opening never waits for another program. The file system alone can
//! hold it up, so every call here belongs on a thread that may block.

use super::CHUNK;
use super::closer::Closer;
use crate::error::{Error, Result};
use crate::jobs::Pool;
use crate::open::open;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// File systems whose contents the kernel makes up at each read (`statfs(2)`). Their sizes are
/// meaningless: 0, or a whole page.
const MADE_UP: [u64; 12] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6367_7270, // cgroup2
    0x0027_e0eb, // cgroup
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x6265_6570, // configfs
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x6165_676c, // pstore
    0xcafe_4a11, // bpf
    0x4249_4e4d, // binfmt_misc
];

/// Reports whether a file is on a file system whose contents the kernel makes up.
pub(super) fn is_made_up(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|s| MADE_UP.contains(&s.f_type.unsigned_abs()))
}

/// Reports whether a path is on a file system whose contents the kernel makes up.
pub(super) fn on_made_up(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| MADE_UP.contains(&s.f_type.unsigned_abs()))
}

/// An open file that is read piece by piece.
pub(crate) struct Source {
    file: Arc<File>,
    path: PathBuf,
    /// Size in bytes. `None` when only reading shows it, as for files that the kernel makes up.
    pub size: Option<u64>,
    /// Most bytes that are still to be read.
    left: u64,
    /// An error that came after bytes of the same piece.
    failed: Option<io::Error>,
    /// Closes the file. Stands last, so that it is dropped last.
    closer: Option<Closer>,
}

impl Source {
    /// Opens a regular file.
    ///
    /// # Errors
    /// Returns `not_found`, or `invalid_argument` for anything but a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (file, found) = open(path)?;
        let size = (found.len() > 0 && !is_made_up(&file)).then_some(found.len());
        let (file, left) = (Arc::new(file), size.unwrap_or(u64::MAX));
        Ok(Self { file, path: path.to_owned(), size, left, failed: None, closer: None })
    }

    /// Makes the error of a failed read, which names the file.
    pub(crate) fn failure(&self, error: &io::Error) -> Error {
        Error::io(&format!("cannot read {}", self.path.display()), error)
    }

    /// Has a thread of `pool` close the file, whichever thread drops the source.
    pub(crate) fn closed_by(mut self, pool: &Pool) -> Self {
        self.closer = Some(Closer::new(&self.file, pool));
        self
    }

    /// Limits reading to `length` bytes from `first`.
    pub(crate) fn limit(&mut self, first: u64, length: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(first))?;
        self.left = length;
        Ok(())
    }

    /// Reads the next piece of at most [`CHUNK`] bytes. An empty piece marks the end.
    ///
    /// # Errors
    /// Returns `UnexpectedEof` when the file has become shorter than its size was.
    pub(crate) fn read(&mut self) -> io::Result<Vec<u8>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(CHUNK);
        let mut piece = vec![0; wanted];
        let mut filled = 0;
        while filled < wanted {
            match self.file.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Files such as /proc/kmsg may have more later. The copy of their contents ends
                // here.
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if filled == 0 => return Err(e),
                Err(e) => {
                    self.failed = Some(e);
                    break;
                }
            }
        }
        if filled == 0 && wanted > 0 && self.size.is_some() {
            let message = "the file became shorter during the read";
            return Err(io::Error::new(ErrorKind::UnexpectedEof, message));
        }
        piece.truncate(filled);
        self.left -= filled as u64;
        Ok(piece)
    }

    /// Skips a hole of a sparse file and returns its length in bytes. Only for a source without a
    /// limit.
    pub(crate) fn skip_hole(&mut self) -> u64 {
        let Some(size) = self.size else { return 0 };
        let at = size.saturating_sub(self.left);
        let data = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, size),
            // The rest of the file is a hole.
            Err(rustix::io::Errno::NXIO)
                if self.file.metadata().is_ok_and(|found| found.len() >= size) =>
            {
                size
            }
            // The file system knows no holes, or the file became shorter.
            Err(_) => at,
        };
        self.left -= data - at;
        data - at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use connectrpc::ErrorCode;
    use std::os::unix::net::UnixListener;

    fn whole(source: &mut Source) -> io::Result<Vec<u8>> {
        let mut contents = Vec::new();
        loop {
            let piece = source.read()?;
            if piece.is_empty() {
                return Ok(contents);
            }
            contents.extend(piece);
        }
    }

    #[test]
    fn non_regular_file_is_refused_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let _listener = UnixListener::bind(&socket).unwrap();
        for path in [pipe.as_path(), &socket, dir.path(), Path::new("/dev/zero")] {
            let error = Source::open(path).err().unwrap();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{}", path.display());
            assert!(error.message.contains("not a regular file"), "{error}");
        }
        let link = dir.path().join("loop");
        std::os::unix::fs::symlink(&link, &link).unwrap();
        assert_eq!(Source::open(&link).err().unwrap().code, ErrorCode::InvalidArgument);
    }

    #[test]
    fn procfs_files_are_read_to_their_end() {
        for path in ["/proc/self/status", "/proc/self/cmdline"] {
            let mut source = Source::open(Path::new(path)).unwrap();
            assert_eq!(source.size, None, "{path}");
            assert!(!whole(&mut source).unwrap().is_empty(), "{path}");
        }
    }

    #[test]
    fn file_truncated_during_read_ends_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = File::create(&path).unwrap();
        file.set_len(3 * CHUNK as u64).unwrap();
        let mut source = Source::open(&path).unwrap();
        assert_eq!(source.read().unwrap().len(), CHUNK);
        file.set_len(0).unwrap();
        assert_eq!(source.read().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn holes_of_terabytes_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let mut source = Source::open(&path).unwrap();
        source.limit((1 << 40) - 5, 5).unwrap();
        assert_eq!(whole(&mut source).unwrap(), [0; 5]);
        let mut source = Source::open(&path).unwrap();
        assert_eq!(source.skip_hole(), 1 << 40);
        assert!(source.read().unwrap().is_empty());
    }
}
