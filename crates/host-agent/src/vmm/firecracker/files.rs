//! Files in a machine's root: their names, and the guarded way to open them.

use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io;
use std::path::Path;

pub(super) const SOCKET: &str = "api.sock";
pub(super) const LOG: &str = "log";
pub(super) const METRICS: &str = "metrics";
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRAMFS: &str = "initramfs";
pub(super) const MEMORY: &str = "memory";
pub(super) const STATE: &str = "state";
pub(super) const WRITTEN: &str = "written";

/// Opens a file that a machine may have replaced. Follows no link and does not block on a pipe.
/// Refuses a file of another kind, of another owner, or with a second name.
pub(super) fn open(path: &Path, access: OFlags, kind: FileType, owner: u32) -> io::Result<File> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = rustix::fs::fstat(&file)?;
    let same_kind = FileType::from_raw_mode(found.st_mode) == kind;
    if same_kind && found.st_uid == owner && found.st_nlink == 1 {
        return Ok(file);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(io::Error::other(format!("{name} is not the expected file")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use std::fs;

    #[test]
    fn jail_file_of_wrong_type_owner_or_link_count_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        let [file, pipe, link] = ["file", "pipe", "link"].map(|name| dir.path().join(name));
        let plain = |path: &Path, uid| open(path, OFlags::RDONLY, FileType::RegularFile, uid);
        fs::write(&file, "kept").unwrap();
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        plain(&file, own).unwrap();
        open(&pipe, OFlags::RDWR, FileType::Fifo, own).unwrap();
        assert!(plain(&file, own + 1).is_err());
        assert!(plain(&link, own).is_err());
        // No process has the other end of the pipe open.
        assert!(plain(&pipe, own).is_err());
        assert!(open(&file, OFlags::RDWR, FileType::Fifo, own).is_err());
        fs::hard_link(&file, dir.path().join("second")).unwrap();
        assert!(plain(&file, own).is_err());
    }
}
