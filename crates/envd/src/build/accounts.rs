//! Makes users of a step's root, as `useradd` does, by the tables alone. An image may have neither
//! that program nor the tables.

use crate::error::{Error, Result};
use crate::open::open_regular;
use connectrpc::ErrorCode;
use rustix::fs::FlockOperation;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, lchown};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// First and last id of users that are made, as with Debian's `useradd`.
const IDS: std::ops::RangeInclusive<u32> = 1000..=59_999;
/// Longest name, in bytes, as with `useradd`.
const NAME_MAX: usize = 32;
/// Bytes of each table that are read.
const TABLE_MAX: u64 = 1 << 20;
/// Time in which the lock of the tables must be free.
const LOCKED: Duration = Duration::from_secs(5);
/// Most files that a home begins with.
const SKELETON_MAX: u32 = 4096;
/// Deepest nesting of these files.
const SKELETON_DEPTH: u32 = 16;
/// User of E2B's templates, who may become root without a password where sudo exists.
const E2B_USER: &str = "user";

/// Makes a user with a group and a home, unless the name is known. Returns `true` if it was made.
/// With `sudo`, E2B's own user may become root, if the image has sudo.
///
/// # Errors
/// Returns `invalid_argument` for a name that no user can have.
pub(crate) fn make(root: &Path, name: &str, sudo: bool) -> Result<bool> {
    check(name)?;
    let etc = root.join("etc");
    fs::create_dir_all(&etc).map_err(|e| failed(&etc, &e))?;
    let _lock = lock(&etc)?;
    let mut tables = Tables::read(&etc)?;
    let is_new = !tables.passwd.has(name);
    if is_new {
        let (uid, gid) = tables.add(root, name)?;
        // The table of users comes last, since it makes the user known.
        for table in [&tables.gshadow, &tables.shadow, &tables.group, &tables.passwd] {
            table.write()?;
        }
        make_home(root, name, (uid, gid))?;
    }
    if sudo && name == E2B_USER {
        allow_sudo(root)?;
    }
    Ok(is_new)
}

fn check(name: &str) -> Result<()> {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let fits = name.starts_with(is_first) && name.chars().all(is_part) && name.len() <= NAME_MAX;
    let shown: String = name.chars().take(NAME_MAX).collect();
    let rule = "1 to 32 letters, digits, `_`, `-` or `.`, with a letter or `_` first";
    fits.then_some(()).ok_or_else(|| Error::invalid(format!("invalid username: '{shown}': {rule}")))
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::io(&format!("cannot write {}", path.display()), error)
}

/// Takes the lock of the tables (`lckpwdf(3)`).
fn lock(etc: &Path) -> Result<File> {
    let path = etc.join(".pwd.lock");
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(false).mode(0o600).custom_flags(flags);
    let file = options.open(&path).map_err(|e| failed(&path, &e))?;
    let until = Instant::now() + LOCKED;
    while let Err(error) = rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        if Instant::now() > until {
            let message = format!("another program holds {}: {error}", path.display());
            return Err(Error::new(ErrorCode::Unavailable, message));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(file)
}

/// A table of lines, whose first field is a name.
struct Table {
    path: std::path::PathBuf,
    text: String,
    /// Mode and owner of the file. `None` for a file that is missing.
    found: Option<(u32, u32, u32)>,
}

impl Table {
    fn read(path: std::path::PathBuf) -> Result<Self> {
        let file = match open_regular(&path) {
            Err(error) if error.code == ErrorCode::NotFound => {
                return Ok(Self { path, text: String::new(), found: None });
            }
            file => file?,
        };
        let fail = |e: std::io::Error| Error::io(&format!("cannot read {}", path.display()), &e);
        let found = file.metadata().map_err(fail)?;
        if found.len() > TABLE_MAX {
            let message = format!("{} has more than {TABLE_MAX} bytes", path.display());
            return Err(Error::invalid(message));
        }
        let mut bytes = Vec::new();
        file.take(TABLE_MAX).read_to_end(&mut bytes).map_err(fail)?;
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| Error::invalid(format!("{} is no text", path.display())))?;
        let found = Some((found.mode() & 0o7777, found.uid(), found.gid()));
        Ok(Self { path, text, found })
    }

    fn has(&self, name: &str) -> bool {
        self.text.lines().any(|line| line.split(':').next() == Some(name))
    }

    /// Returns the ids of all lines.
    fn ids(&self) -> impl Iterator<Item = u32> {
        self.text.lines().filter_map(|line| line.split(':').nth(2)?.parse().ok())
    }

    fn add(&mut self, line: &str) {
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Replaces the file as a whole. A table that is missing and empty stays so.
    fn write(&self) -> Result<()> {
        if self.found.is_none() && self.text.is_empty() {
            return Ok(());
        }
        let (mode, uid, gid) = self.found.unwrap_or((0o644, 0, 0));
        let staged = self.path.with_extension("wrenn-new");
        let _ = fs::remove_file(&staged);
        let written = File::create_new(&staged).and_then(|mut file| {
            file.write_all(self.text.as_bytes())?;
            fchown(&file, Some(uid), Some(gid))?;
            file.set_permissions(Permissions::from_mode(mode))?;
            fs::rename(&staged, &self.path)
        });
        written.map_err(|e| failed(&self.path, &e))
    }
}

/// The tables of users and groups.
struct Tables {
    passwd: Table,
    group: Table,
    shadow: Table,
    gshadow: Table,
}

impl Tables {
    fn read(etc: &Path) -> Result<Self> {
        let read = |name: &str| Table::read(etc.join(name));
        let mut tables = Self {
            passwd: read("passwd")?,
            group: read("group")?,
            shadow: read("shadow")?,
            gshadow: read("gshadow")?,
        };
        if tables.passwd.found.is_none() {
            tables.passwd.add("root:x:0:0:root:/root:/bin/sh");
        }
        if tables.group.found.is_none() {
            tables.group.add("root:x:0:");
        }
        Ok(tables)
    }

    /// Adds a user, and a group of the same name unless it exists. Returns their ids.
    fn add(&mut self, root: &Path, name: &str) -> Result<(u32, u32)> {
        let used: std::collections::HashSet<u32> =
            self.passwd.ids().chain(self.group.ids()).collect();
        let free = IDS.into_iter().find(|id| !used.contains(id));
        let uid =
            free.ok_or_else(|| Error::invalid("no user id between 1000 and 59999 is free"))?;
        let known = self.group.text.lines().find(|line| line.split(':').next() == Some(name));
        let known = known.and_then(|line| line.split(':').nth(2)?.parse().ok());
        let gid = known.unwrap_or(uid);
        if known.is_none() {
            self.group.add(&format!("{name}:x:{gid}:"));
            if self.gshadow.found.is_some() {
                self.gshadow.add(&format!("{name}:!::"));
            }
        }
        let shell = if root.join("bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
        self.passwd.add(&format!("{name}:x:{uid}:{gid}::/home/{name}:{shell}"));
        if self.shadow.found.is_some() && !self.shadow.has(name) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.shadow.add(&format!("{name}:!:{}:0:99999:7:::", now.as_secs() / 86_400));
        }
        Ok((uid, gid))
    }
}

/// Makes a home with the files of `/etc/skel`, unless it exists.
fn make_home(root: &Path, name: &str, owner: (u32, u32)) -> Result<()> {
    let home = root.join("home").join(name);
    if fs::symlink_metadata(&home).is_ok() {
        return Ok(());
    }
    let mut left = SKELETON_MAX;
    let made = fs::create_dir_all(root.join("home")).and_then(|()| {
        let skeleton = root.join("etc/skel");
        match skeleton.is_dir() {
            true => copy_folder(&skeleton, &home, owner, (SKELETON_DEPTH, &mut left)),
            false => fs::create_dir(&home),
        }?;
        fs::set_permissions(&home, Permissions::from_mode(0o755))?;
        chown(&home, Some(owner.0), Some(owner.1))
    });
    made.map_err(|e| failed(&home, &e))
}

fn copy_folder(
    from: &Path,
    to: &Path,
    owner: (u32, u32),
    (depth, left): (u32, &mut u32),
) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        *left = left.checked_sub(1).ok_or(ErrorKind::FileTooLarge)?;
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            copy_folder(&from, &to, owner, (depth - 1, left))?;
            fs::set_permissions(&to, entry.metadata()?.permissions())?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_file() {
            fs::copy(&from, &to)?;
        } else {
            continue;
        }
        lchown(&to, Some(owner.0), Some(owner.1))?;
    }
    Ok(())
}

/// Lets E2B's user become root without a password, if the image has sudo.
fn allow_sudo(root: &Path) -> Result<()> {
    if !["usr/bin/sudo", "bin/sudo"].iter().any(|path| root.join(path).exists()) {
        return Ok(());
    }
    let path = root.join("etc/sudoers.d").join(E2B_USER);
    let rule = format!("{E2B_USER} ALL=(ALL:ALL) NOPASSWD: ALL\n");
    let written = fs::create_dir_all(root.join("etc/sudoers.d")).and_then(|()| {
        let _ = fs::remove_file(&path);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o440).open(&path)?;
        file.write_all(rule.as_bytes())
    });
    written.map_err(|e| failed(&path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(root: &Path, path: &str) -> String {
        fs::read_to_string(root.join(path)).unwrap()
    }

    #[test]
    fn user_of_an_image_with_tables_gets_the_next_free_id_and_its_skeleton() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("etc/skel/.config")).unwrap();
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::write(root.join("bin/bash"), "").unwrap();
        fs::write(root.join("etc/skel/.profile"), "x").unwrap();
        std::os::unix::fs::symlink(".profile", root.join("etc/skel/.link")).unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\na:x:1000:1000::/:/x")
            .unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nb:x:1001:\n").unwrap();
        fs::write(root.join("etc/shadow"), "root:*:1::::::\n").unwrap();
        fs::set_permissions(root.join("etc/shadow"), Permissions::from_mode(0o640)).unwrap();
        assert!(make(root, "user", true).unwrap());
        assert!(!make(root, "user", false).unwrap());
        let passwd = read(root, "etc/passwd");
        assert!(passwd.ends_with("/x\nuser:x:1002:1002::/home/user:/bin/bash\n"), "{passwd}");
        assert!(read(root, "etc/group").ends_with("b:x:1001:\nuser:x:1002:\n"));
        assert!(read(root, "etc/shadow").contains("\nuser:!:"));
        assert_eq!(fs::metadata(root.join("etc/shadow")).unwrap().mode() & 0o777, 0o640);
        assert!(!root.join("etc/gshadow").exists());
        assert!(!root.join("etc/sudoers.d").exists(), "the image has no sudo");
        for name in ["", ".profile", ".link", ".config"] {
            let found = fs::symlink_metadata(root.join("home/user").join(name)).unwrap();
            assert_eq!((found.uid(), found.gid()), (1002, 1002), "{name}");
        }
    }

    #[test]
    fn image_without_tables_gets_them_with_root() {
        let dir = tempfile::tempdir().unwrap();
        assert!(make(dir.path(), "app", false).unwrap());
        let passwd = read(dir.path(), "etc/passwd");
        assert_eq!(passwd, "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n");
        assert_eq!(read(dir.path(), "etc/group"), "root:x:0:\napp:x:1000:\n");
        assert!(!dir.path().join("etc/shadow").exists());
        assert!(make(dir.path(), "second", false).unwrap());
        assert!(read(dir.path(), "etc/passwd").contains("second:x:1001:1001:"));
    }

    #[test]
    fn only_the_user_of_e2b_gets_sudo_and_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        fs::write(dir.path().join("usr/bin/sudo"), "").unwrap();
        make(dir.path(), "app", true).unwrap();
        make(dir.path(), "user", false).unwrap();
        assert!(!dir.path().join("etc/sudoers.d").exists());
        make(dir.path(), "user", true).unwrap();
        assert_eq!(read(dir.path(), "etc/sudoers.d/user"), "user ALL=(ALL:ALL) NOPASSWD: ALL\n");
        let mode = fs::metadata(dir.path().join("etc/sudoers.d/user")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o440);
    }

    #[test]
    fn name_that_breaks_a_table_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long = "a".repeat(33);
        for bad in ["", "-a", "1", "a:b", "a\nb", "a/b", "a b", "ü", long.as_str()] {
            let error = make(dir.path(), bad, false).unwrap_err();
            assert!(error.message.starts_with("invalid username: '"), "{}", error.message);
        }
        assert!(!dir.path().join("etc").exists());
    }
}
