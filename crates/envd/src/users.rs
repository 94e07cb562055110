//! Users and groups, read from `/etc/passwd` and `/etc/group` by hand: a static binary must
//! not call the C library's look-ups, which load modules that the image may not fit.

use crate::error::{Error, Result};
use std::path::PathBuf;

/// An account of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub home: PathBuf,
}

/// Finds the account called `name`.
///
/// # Errors
/// `unauthenticated` when there is none: the wire's callers look for that.
pub(crate) fn get(name: &str) -> Result<User> {
    let passwd = read("/etc/passwd");
    let group = read("/etc/group");
    parse(&passwd, &group, name)
        .ok_or_else(|| Error::unauthenticated(format!("invalid username: '{name}'")))
}

/// The name of a user id, or its number.
pub(crate) fn user_name(uid: u32) -> String {
    name_of(&read("/etc/passwd"), uid)
}

/// The name of a group id, or its number.
pub(crate) fn group_name(gid: u32) -> String {
    name_of(&read("/etc/group"), gid)
}

fn read(path: &str) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
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

fn name_of(table: &str, id: u32) -> String {
    table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 3 && fields[2].parse() == Ok(id))
        .map_or_else(|| id.to_string(), |fields| fields[0].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\nbroken\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:user,other\nuser:x:1000:\n";

    #[test]
    fn accounts_come_with_their_groups() {
        let user = parse(PASSWD, GROUP, "user").unwrap();
        assert_eq!((user.uid, user.gid), (1000, 1000));
        assert_eq!(user.groups, [27, 1000]);
        assert_eq!(parse(PASSWD, GROUP, "nobody"), None);
        assert_eq!(parse(PASSWD, GROUP, "broken"), None);
    }

    #[test]
    fn unknown_ids_are_shown_as_numbers() {
        assert_eq!(name_of(PASSWD, 1000), "user");
        assert_eq!(name_of(PASSWD, 7), "7");
    }
}
