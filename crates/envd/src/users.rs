//! Users and groups, read from `/etc/passwd` and `/etc/group` by this module. A static binary must
//! not call the C library's look-ups, which load modules that may not fit the image. An image may
//! have neither table.

use crate::error::{Error, Result};
use crate::open::open_regular;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of each table that are read. The guest decides how long its tables are.
const TABLE_MAX: u64 = 1 << 20;
/// Largest user or group number. The kernel takes the next number for "no change".
const ID_MAX: u32 = u32::MAX - 1;

/// Table of users.
const PASSWD: &str = "/etc/passwd";
/// Table of groups.
const GROUP: &str = "/etc/group";
/// User that is known even without a table.
const ROOT: &str = "root";
/// Root's home without a table, if the image has that folder.
const ROOT_HOME: &str = "/root";
/// Home of a user without a line in the table.
const NO_HOME: &str = "/";

/// A user of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Name of the user or, without a line in the table, the number.
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, with `gid` among them.
    pub groups: Vec<u32>,
    pub home: PathBuf,
}

/// Finds the user of an account: `name`, `uid`, `name:group` or `uid:gid`.
///
/// An account of digits alone is a number, even if a name in the table has the same digits. A
/// number needs no line in the table. A group that is named replaces all groups of the user.
///
/// # Errors
/// Returns `unauthenticated` for an unknown name and for a number above 4294967294, since callers
/// on the wire expect this code.
pub(crate) fn get(account: &str) -> Result<User> {
    let tables = Tables { passwd: read(PASSWD), group: read(GROUP) };
    tables.find(account).map_err(|refusal| refusal.error(account))
}

/// Reason why an account is no user.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    UnknownUser,
    UnknownGroup,
    /// The number is above [`ID_MAX`].
    LargeNumber,
}

impl Refusal {
    fn error(&self, account: &str) -> Error {
        let (user, group) = split(account);
        Error::unauthenticated(match self {
            Self::UnknownUser => return unknown(user, PASSWD),
            Self::UnknownGroup => format!("invalid group: '{}'", group.unwrap_or_default()),
            Self::LargeNumber => {
                format!("invalid username: '{account}': a number is at most {ID_MAX}")
            }
        })
    }
}

/// Makes the error for an unknown name. Adds the reason if the table cannot be read.
fn unknown(name: &str, table: &str) -> Error {
    let why = match open_regular(Path::new(table)) {
        // An image without users is no fault of its own.
        Err(error) if error.code != connectrpc::ErrorCode::NotFound => format!(": {error}"),
        _ => String::new(),
    };
    Error::unauthenticated(format!("invalid username: '{name}'{why}"))
}

/// Splits an account into its user and its group. An empty group is none.
fn split(account: &str) -> (&str, Option<&str>) {
    let (user, group) = account.split_once(':').unwrap_or((account, ""));
    (user, Some(group).filter(|group| !group.is_empty()))
}

/// Returns the number in a text of digits alone. Returns `None` for any other text, which is a name.
fn number(text: &str) -> std::result::Result<Option<u32>, Refusal> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    // A number that is cut to fewer bits could become root's.
    let id = text.parse().ok().filter(|id| *id <= ID_MAX);
    id.map(Some).ok_or(Refusal::LargeNumber)
}

/// A line of the table of users.
struct Line<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Line<'a> {
    /// Reads a line. Returns `None` for a line with too few fields, or a number that is none.
    fn read(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (number(fields.next()?).ok()??, number(fields.next()?).ok()??);
        let (_comment, home, _shell) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self { name, uid, gid, home })
    }
}

/// Texts of the two tables.
struct Tables {
    passwd: String,
    group: String,
}

impl Tables {
    fn find(&self, account: &str) -> std::result::Result<User, Refusal> {
        let (name, group) = split(account);
        let mut user = match number(name)? {
            Some(uid) => self.numbered(uid),
            None => self.named(name).ok_or(Refusal::UnknownUser)?,
        };
        if let Some(group) = group {
            user.gid = match number(group)? {
                Some(gid) => gid,
                None => self.group(group).ok_or(Refusal::UnknownGroup)?,
            };
            user.groups = vec![user.gid];
        }
        Ok(user)
    }

    /// Returns the user of a name. Root is known without a table, so that someone can repair it.
    fn named(&self, name: &str) -> Option<User> {
        let line = self.passwd.lines().filter_map(Line::read).find(|line| line.name == name);
        line.map(|line| self.user(&line)).or_else(|| (name == ROOT).then(root))
    }

    /// Returns the user of a number. A number without a line has root's group, as with Docker.
    fn numbered(&self, uid: u32) -> User {
        match self.passwd.lines().filter_map(Line::read).find(|line| line.uid == uid) {
            Some(line) => self.user(&line),
            None if uid == 0 => root(),
            None => {
                User { name: uid.to_string(), uid, gid: 0, groups: vec![0], home: NO_HOME.into() }
            }
        }
    }

    fn user(&self, line: &Line<'_>) -> User {
        let mut groups: Vec<u32> = self
            .groups()
            .filter(|(_, _, members)| members.split(',').any(|member| member == line.name))
            .map(|(_, gid, _)| gid)
            .collect();
        if !groups.contains(&line.gid) {
            groups.push(line.gid);
        }
        let home = if line.home.starts_with('/') { line.home } else { NO_HOME };
        let (name, home) = (line.name.to_owned(), PathBuf::from(home));
        User { name, uid: line.uid, gid: line.gid, groups, home }
    }

    /// Returns name, number and members of each group.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, gid) = (fields.next()?, fields.nth(1)?);
            Some((name, number(gid).ok()??, fields.next().unwrap_or_default()))
        })
    }

    fn group(&self, name: &str) -> Option<u32> {
        self.groups().find(|(known, ..)| *known == name).map(|(_, gid, _)| gid)
    }
}

/// Returns root as it is without a table.
fn root() -> User {
    let home = if Path::new(ROOT_HOME).is_dir() { ROOT_HOME } else { NO_HOME };
    User { name: ROOT.to_owned(), uid: 0, gid: 0, groups: vec![0], home: home.into() }
}

/// Returns the account that acts for callers who name none: `wanted`, or root in an image without
/// that user. The error tells why it is root.
pub(crate) fn or_root(wanted: String) -> (String, Option<Error>) {
    match get(&wanted) {
        Ok(_) => (wanted, None),
        Err(error) => (ROOT.to_owned(), Some(error)),
    }
}

/// Names of users and groups, read once for many look-ups.
pub(crate) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Reads both tables.
    pub(crate) fn load() -> Self {
        Self { users: names(&read(PASSWD)), groups: names(&read(GROUP)) }
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

    const TABLE: &str = "root:x:0:0:root:/root:/bin/bash\n\
        user:x:1000:1000::/home/user:/bin/bash\n\
        1001:x:5:5::/five:/bin/sh\n\
        odd:x:7:7::relative:/bin/sh\n\
        wide:x:4294967295:1::/:/bin/sh\nbroken\n";
    const GROUPS: &str = "root:x:0:\nsudo:x:27:user,other\nuser:x:1000:\n1000:x:9:\nbroken\n";

    fn tables() -> Tables {
        Tables { passwd: TABLE.to_owned(), group: GROUPS.to_owned() }
    }

    fn find(account: &str) -> std::result::Result<User, Refusal> {
        tables().find(account)
    }

    fn ids(account: &str) -> (u32, u32, Vec<u32>) {
        let user = find(account).unwrap();
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn user_lookup_includes_groups() {
        assert_eq!(ids("user"), (1000, 1000, vec![27, 1000]));
        assert_eq!(ids("1000"), ids("user"), "a number with a line has that line's groups");
        assert_eq!(find("1000").unwrap().name, "user");
        for unknown in ["nobody", "broken", "wide", "", "-1", "+0", "0x0", "1000 "] {
            assert_eq!(find(unknown), Err(Refusal::UnknownUser), "{unknown}");
        }
        assert_eq!(find("odd").unwrap().home, Path::new("/"));
    }

    #[test]
    fn account_of_digits_is_always_a_number_within_its_range() {
        // A user called 1001 exists, and has another number.
        let bare = find("1001").unwrap();
        assert_eq!((bare.name.as_str(), bare.uid, bare.gid), ("1001", 1001, 0));
        assert_eq!((bare.groups, bare.home), (vec![0], PathBuf::from("/")));
        assert_eq!(ids("4294967294"), (ID_MAX, 0, vec![0]));
        assert_eq!(ids("000"), (0, 0, vec![0]));
        for large in ["4294967295", "4294967296", "18446744073709551616", "1000:4294967295"] {
            assert_eq!(find(large), Err(Refusal::LargeNumber), "{large}");
            let error = Refusal::LargeNumber.error(large);
            assert_eq!(error.code, connectrpc::ErrorCode::Unauthenticated);
            assert!(error.message.contains(large) && error.message.contains("4294967294"));
        }
    }

    #[test]
    fn named_group_replaces_all_groups() {
        assert_eq!(ids("user:sudo"), (1000, 27, vec![27]));
        assert_eq!(ids("user:5"), (1000, 5, vec![5]));
        assert_eq!(ids("1234:1000"), (1234, 1000, vec![1000]), "digits are no group's name");
        assert_eq!(ids("user:"), ids("user"));
        for unknown in ["user:nobody", "user:a:b", "0:-1"] {
            assert_eq!(find(unknown), Err(Refusal::UnknownGroup), "{unknown}");
        }
        let error = Refusal::UnknownGroup.error("user:nobody");
        assert_eq!(error.message, "invalid group: 'nobody'");
        assert_eq!(find(":sudo"), Err(Refusal::UnknownUser));
    }

    #[test]
    fn root_user_is_known_without_passwd() {
        let empty = Tables { passwd: String::new(), group: String::new() };
        for account in ["root", "0"] {
            let user = empty.find(account).unwrap();
            assert_eq!((user.name.as_str(), user.uid, user.gid), ("root", 0, 0));
            assert!(user.home.is_dir(), "{}", user.home.display());
        }
        assert_eq!(empty.find("root:7").unwrap().gid, 7);
        assert_eq!(empty.find("user"), Err(Refusal::UnknownUser));
        assert_eq!(get(ROOT).unwrap().uid, 0);
        assert!(get("nosuchuser").is_err());
    }

    #[test]
    fn missing_default_user_is_replaced_by_root() {
        let (account, why) = or_root("nosuchuser".to_owned());
        assert_eq!(account, ROOT);
        assert_eq!(why.unwrap().message, "invalid username: 'nosuchuser'");
        assert!(or_root(ROOT.to_owned()).1.is_none());
    }

    #[test]
    fn unknown_ids_are_shown_as_numbers() {
        let names = Names { users: names(TABLE), groups: names(GROUPS) };
        assert_eq!((names.user(1000), names.user(70)), ("user".into(), "70".into()));
        assert_eq!((names.group(27), names.group(70)), ("sudo".into(), "70".into()));
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
        let missing = unknown("nobody", &dir.path().join("none").display().to_string()).message;
        assert_eq!(missing, "invalid username: 'nobody'");
    }
}
