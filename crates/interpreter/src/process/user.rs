//! The user that kernels run as, read from `/etc/passwd` and `/etc/group` by this module. A static
//! binary must not call the C library's look-ups, which load modules that may not fit the image.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// Bytes of each table that are read. The guest decides how long its tables are.
const TABLE_MAX: u64 = 1 << 20;
/// Shell of a user without one.
const SHELL: &str = "/bin/sh";

/// A user of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, with `gid` among them.
    pub groups: Vec<u32>,
    pub home: PathBuf,
    pub shell: PathBuf,
}

impl User {
    /// Returns the user of a name. Without a name, returns the user of this process.
    ///
    /// # Errors
    /// Returns an error for a name that no line of `/etc/passwd` has.
    pub(crate) fn of(name: Option<&str>) -> io::Result<Self> {
        name.map_or_else(|| Ok(Self::current()), Self::find)
    }

    /// Finds a user by its name.
    ///
    /// # Errors
    /// Returns an error for a name that no line of `/etc/passwd` has.
    pub(crate) fn find(name: &str) -> io::Result<Self> {
        let found = find(&read(PASSWD), &read(GROUP), |line| line.name == name);
        let root = || (name == "root").then(|| bare(0, 0));
        found.or_else(root).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("user '{name}' is unknown"))
        })
    }

    /// Returns the user of this process.
    pub(crate) fn current() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let (uid, gid) = (uid.as_raw(), gid.as_raw());
        let found = find(&read(PASSWD), &read(GROUP), |line| line.uid == uid);
        found.unwrap_or_else(|| bare(uid, gid))
    }
}

/// Makes a user that no table knows.
fn bare(uid: u32, gid: u32) -> User {
    let (name, home) = if uid == 0 { ("root".to_owned(), "/root") } else { (uid.to_string(), "/") };
    User { name, uid, gid, groups: vec![gid], home: home.into(), shell: SHELL.into() }
}

/// A line of the table of users.
struct Line<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> Line<'a> {
    /// Reads a line. Returns `None` for a line with too few fields, or a number that is none.
    fn read(line: &'a str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _password, uid, gid, _comment, home, shell, ..] = fields.as_slice() else {
            return None;
        };
        Some(Self { name, uid: id(uid)?, gid: id(gid)?, home, shell })
    }
}

/// Reads a number of a user or group. The largest number means "no change" to the kernel.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn find(passwd: &str, group: &str, wanted: impl Fn(&Line<'_>) -> bool) -> Option<User> {
    let line = passwd.lines().filter_map(Line::read).find(wanted)?;
    let mut groups: Vec<u32> = group.lines().filter_map(|row| membership(row, line.name)).collect();
    if !groups.contains(&line.gid) {
        groups.push(line.gid);
    }
    let or =
        |path: &str, other: &str| PathBuf::from(if path.starts_with('/') { path } else { other });
    let (home, shell) = (or(line.home, "/"), or(line.shell, SHELL));
    Some(User { name: line.name.to_owned(), uid: line.uid, gid: line.gid, groups, home, shell })
}

/// Returns the number of a group if the user is named as its member.
fn membership(line: &str, user: &str) -> Option<u32> {
    let mut fields = line.split(':').skip(2);
    let (number, members) = (id(fields.next()?)?, fields.next()?);
    members.split(',').any(|member| member == user).then_some(number)
}

/// Reads a table. A table that cannot be read is empty. A named pipe in its place, which root in
/// the guest can put there, does not hold the reader up.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    if let Ok(file) = opened {
        let _ = file.take(TABLE_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n\
        odd:x:7:7::relative:\nwide:x:4294967295:1::/:/bin/sh\nbroken\n";
    const GROUPS: &str = "root:x:0:\nsudo:x:27:user,other\nuser:x:1000:\nbroken\n";

    fn named(name: &str) -> Option<User> {
        find(USERS, GROUPS, |line| line.name == name)
    }

    #[test]
    fn user_has_the_groups_that_name_it() {
        let user = named("user").unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (1000, 1000, vec![27, 1000]));
        assert_eq!(user.shell, PathBuf::from("/bin/bash"));
        let odd = named("odd").unwrap();
        assert_eq!((odd.home, odd.shell), ("/".into(), "/bin/sh".into()));
        assert_eq!((named("wide"), named("broken"), named("")), (None, None, None));
    }

    #[test]
    fn named_pipe_in_place_of_a_table_is_an_empty_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passwd");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        assert_eq!(read(path.to_str().unwrap()), "");
    }

    #[test]
    fn unknown_user_is_refused_by_name() {
        let error = User::find("no-such-user").unwrap_err().to_string();
        assert_eq!(error, "user 'no-such-user' is unknown");
        assert_eq!(User::find("root").unwrap().uid, 0);
        assert_eq!(User::of(None).unwrap(), User::current());
    }
}
