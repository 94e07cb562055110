//! Users and groups, read from `/etc/passwd` and `/etc/group` by this module. A static binary must
//! not call the C library's look-ups, which load modules that may not fit the image.

use crate::error::{Error, Result};
use crate::open::open_regular;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of each table that are read. The guest decides how long its tables are.
const TABLE_MAX: u64 = 1 << 20;

/// Table of users.
const PASSWD: &str = "/etc/passwd";
/// User that is known even without a table.
const ROOT: &str = "root";

/// A user of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub home: PathBuf,
}

/// Finds the user called `name`.
///
/// # Errors
/// Returns `unauthenticated` for an unknown name, since callers on the wire expect this code.
pub(crate) fn get(name: &str) -> Result<User> {
    let passwd = read(PASSWD);
    let group = read("/etc/group");
    let known = parse(&passwd, &group, name).or_else(|| (name == ROOT).then(root));
    known.ok_or_else(|| unknown(name, PASSWD))
}

/// Returns root, who can repair an unreadable table.
fn root() -> User {
    User { name: ROOT.to_owned(), uid: 0, gid: 0, groups: vec![0], home: "/root".into() }
}

/// Makes the error for an unknown name. Adds the reason if the table cannot be read.
fn unknown(name: &str, table: &str) -> Error {
    let why = open_regular(Path::new(table)).err();
    let why = why.map_or_else(String::new, |error| format!(": {error}"));
    Error::unauthenticated(format!("invalid username: '{name}'{why}"))
}

/// Names of users and groups, read once for many look-ups.
pub(crate) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Reads both tables.
    pub(crate) fn load() -> Self {
        Self { users: names(&read(PASSWD)), groups: names(&read("/etc/group")) }
    }

    /// Returns the name of a user id or, without a name, its number.
    pub(crate) fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// Returns the name of a group id or, without a name, its number.
    pub(crate) fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

/// Reads a table. Anything but a regular file, such as a named pipe, counts as an empty table.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = open_regular(Path::new(path)) {
        let _ = file.take(TABLE_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn parse(passwd: &str, group: &str, name: &str) -> Option<User> {
    let fields: Vec<&str> = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 7 && fields[0] == name)?;
    let gid = fields[3].parse().ok()?;
    let mut groups: Vec<u32> = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let member = fields.get(3)?.split(',').any(|m| m == name);
            member.then(|| fields[2].parse().ok())?
        })
        .collect();
    if !groups.contains(&gid) {
        groups.push(gid);
    }
    Some(User {
        name: name.to_owned(),
        uid: fields[2].parse().ok()?,
        gid,
        groups,
        home: PathBuf::from(fields[5]),
    })
}

/// Maps ids to names. The first line with an id counts.
fn names(table: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in table.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(id)) = (fields.next(), fields.nth(1)) else { continue };
        if let Ok(id) = id.parse() {
            names.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\nbroken\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:user,other\nuser:x:1000:\n";

    #[test]
    fn user_lookup_includes_groups() {
        let user = parse(TABLE, GROUP, "user").unwrap();
        assert_eq!((user.uid, user.gid), (1000, 1000));
        assert_eq!(user.groups, [27, 1000]);
        assert_eq!(parse(TABLE, GROUP, "nobody"), None);
        assert_eq!(parse(TABLE, GROUP, "broken"), None);
    }

    #[test]
    fn root_user_is_known_without_passwd() {
        assert_eq!((root().uid, root().gid), (0, 0));
        assert_eq!(get(ROOT).unwrap().uid, 0);
        assert!(get("nosuchuser").is_err());
    }

    #[test]
    fn unknown_ids_are_shown_as_numbers() {
        let names = Names { users: names(TABLE), groups: names(GROUP) };
        assert_eq!((names.user(1000), names.user(7)), ("user".into(), "7".into()));
        assert_eq!((names.group(27), names.group(7)), ("sudo".into(), "7".into()));
    }

    #[test]
    fn passwd_that_is_a_named_pipe_reads_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("passwd");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert_eq!(read(&pipe.display().to_string()), "");
        let refused = unknown("user", &pipe.display().to_string()).message;
        assert!(refused.contains("'user': path is not a regular file"), "{refused}");
        assert_eq!(unknown("nobody", PASSWD).message, "invalid username: 'nobody'");
    }
}
