//! Removal of whole trees, however deep and wide. Recursion would end the thread's stack in a deep
//! tree. An open folder for each level would use up envd's descriptors.

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat, unlinkat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Most subfolder names that a single reading of a folder collects.
const BATCH: usize = 1024;
/// Most names that all levels together collect, up to a small factor.
const NAMES: usize = 65_536;
/// Readings of a folder in a row that may list only missing names. Another removal of the same tree
/// may be faster. A file system that lists names it does not have would go on for ever.
const FRUITLESS: u32 = 64;

/// A folder on the way from the top of a tree to the folder that is being emptied.
struct Level {
    /// Name in the folder above.
    name: CString,
    /// Device and inode. They show when a folder was moved, which must not lead out of the tree.
    id: (u64, u64),
    /// Subfolders that are still to be removed.
    waiting: Vec<CString>,
    /// Readings since an entry of the folder was removed.
    fruitless: u32,
}

impl Level {
    fn new(name: CString, folder: &OwnedFd) -> io::Result<Self> {
        Ok(Self { name, id: id(folder)?, waiting: Vec::new(), fruitless: 0 })
    }
}

/// Removes a folder and all below it.
pub(super) fn tree(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder = openat(CWD, path, flags, Mode::empty())?;
    let mut level = Level::new(CString::default(), &folder)?;
    let mut above: Vec<Level> = Vec::new();
    loop {
        if level.waiting.is_empty() {
            let batch = (NAMES / (above.len() + 1)).clamp(1, BATCH);
            level.waiting = remove_files(&folder, batch)?;
            if level.fruitless > FRUITLESS && !level.waiting.is_empty() {
                return Err(io::Error::other("a folder lists names that do not exist"));
            }
            level.fruitless += 1;
        }
        if let Some(name) = level.waiting.pop() {
            match openat(&folder, &name, flags, Mode::empty()) {
                Ok(below) => {
                    let next = Level::new(name, &below)?;
                    above.push(std::mem::replace(&mut level, next));
                    folder = below;
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    remove_name(&folder, &name, AtFlags::empty())?;
                    level.fruitless = 0;
                }
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        let Some(parent) = above.pop() else { break };
        folder = openat(&folder, c"..", flags, Mode::empty())?;
        if id(&folder)? != parent.id {
            return Err(io::Error::other("a folder was moved during its removal"));
        }
        let emptied = std::mem::replace(&mut level, parent);
        remove_name(&folder, &emptied.name, AtFlags::REMOVEDIR)?;
        level.fruitless = 0;
    }
    std::fs::remove_dir(path)
}

/// Removes all entries of a folder but its subfolders. Returns at most `batch` names of subfolders.
/// An empty list means that the whole folder was read.
fn remove_files(folder: &OwnedFd, batch: usize) -> io::Result<Vec<CString>> {
    let mut folders = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => FileType::from_raw_mode(found.st_mode),
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            },
            kind @ (FileType::RegularFile
            | FileType::Directory
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice) => kind,
        };
        if kind != FileType::Directory {
            remove_name(folder, name, AtFlags::empty())?;
        } else if folders.len() < batch {
            folders.push(name.to_owned());
        } else {
            break;
        }
    }
    Ok(folders)
}

/// Removes a name. Succeeds too when another program was faster.
fn remove_name(folder: &OwnedFd, name: &CStr, flags: AtFlags) -> io::Result<()> {
    match unlinkat(folder, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        done => Ok(done?),
    }
}

fn id(folder: impl AsFd) -> io::Result<(u64, u64)> {
    let found = fstat(folder)?;
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = openat(CWD, &top, flags, Mode::empty()).unwrap();
        for _ in 0..5_000 {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            at = openat(&at, c"d", flags, Mode::empty()).unwrap();
        }
        let thread = std::thread::Builder::new().stack_size(256 * 1024);
        let removed = top.clone();
        thread.spawn(move || tree(&removed).unwrap()).unwrap().join().unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn concurrent_removals_of_a_wide_tree_all_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        for _ in 0..3 {
            for n in 0..3 * BATCH {
                std::fs::create_dir_all(top.join(format!("d{n}/e"))).unwrap();
            }
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| crate::filesystem::remove(&top).unwrap());
                }
            });
            assert!(!top.exists());
        }
    }

    #[test]
    fn removal_of_wide_tree_keeps_targets_of_links() {
        let dir = tempfile::tempdir().unwrap();
        let (top, kept) = (dir.path().join("top"), dir.path().join("kept"));
        std::fs::create_dir(&top).unwrap();
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("f"), "x").unwrap();
        for n in 0..BATCH + 10 {
            std::fs::create_dir(top.join(format!("d{n}"))).unwrap();
            std::fs::write(top.join(format!("f{n}")), "").unwrap();
        }
        std::os::unix::fs::symlink(&kept, top.join("link")).unwrap();
        std::os::unix::fs::symlink(&kept, top.join("d0/link")).unwrap();
        tree(&top).unwrap();
        assert!(!top.exists() && kept.join("f").exists());
    }
}
