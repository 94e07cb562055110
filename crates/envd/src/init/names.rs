//! The files by which programs find addresses: `hosts(5)` and `resolv.conf(5)`.
//!
//! Each boot adds the platform's lines and keeps every other line. Root in the guest may have made
//! anything of these paths. So nothing here waits for a file or fails a boot.

use crate::console::console;
use anyhow::Context;
use rustix::fs::{AtFlags, statat};
use std::fs::{self, Metadata, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

const HOSTS: &str = "/etc/hosts";
const RESOLVER: &str = "/etc/resolv.conf";
/// Path of a resolver's file, written by a boot or a user, on the capsule's own disk.
const OWN_RESOLVER: &str = "upper/etc/resolv.conf";
const LOCALHOST: &str = "127.0.0.1 localhost\n::1 localhost\n";
const CAPSULE: &str = "127.0.0.1 capsule\n";
const BOTH: &str = "127.0.0.1 localhost capsule\n::1 localhost\n";
const BEGIN: &str = "# Wrenn: name servers of the host. Each boot writes this block anew.\n";
const END: &str = "# Wrenn: end of the block. Other lines are kept.\n";
/// Prefixes of the block's first and last line, by which a boot finds the block.
const BEGIN_MARK: &[u8] = b"# Wrenn: name servers";
const END_MARK: &[u8] = b"# Wrenn: end";
/// Largest file that a boot reads, in bytes. A larger file stays as it is.
const MAX: u64 = 1 << 20;

/// Returns the contents of both files for a root that has none of its own: hosts and resolver.
pub(super) fn contents(servers: &[IpAddr]) -> (Vec<u8>, Vec<u8>) {
    (BOTH.into(), with_servers(b"", servers).unwrap_or_default())
}

/// Brings both files up to date. The console names a file for which this fails.
pub(super) fn update(disk: &impl AsFd, servers: &[IpAddr]) {
    // A file that only the template's image has comes from the machine that built the image.
    let own = statat(disk, OWN_RESOLVER, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    let files = [
        (HOSTS, update_hosts(Path::new(HOSTS))),
        (RESOLVER, update_resolver(Path::new(RESOLVER), own, servers)),
    ];
    for (path, updated) in files {
        if let Err(error) = updated {
            console(&format!("envd: cannot update {path}: {error:#}"));
        }
    }
}

fn update_hosts(path: &Path) -> anyhow::Result<()> {
    let found = read(path)?;
    let current = found.as_ref().map_or(&b""[..], |(contents, _)| contents.as_slice());
    match with_hosts(current) {
        Some(wanted) => replace(path, &wanted, found.as_ref().map(|(_, file)| file)),
        None => Ok(()),
    }
}

/// Updates a resolver's file. Keeps its contents if they are the capsule's `own`.
fn update_resolver(path: &Path, own: bool, servers: &[IpAddr]) -> anyhow::Result<()> {
    let link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    if link && own && fs::metadata(path).is_ok() {
        return Ok(());
    }
    // A link that leads nowhere at boot, such as systemd's, would leave programs without names.
    let found = if link || !own { None } else { read(path)? };
    let current = found.as_ref().map_or(&b""[..], |(contents, _)| contents.as_slice());
    match with_servers(current, servers) {
        Some(wanted) => replace(path, &wanted, found.as_ref().map(|(_, file)| file)),
        None => Ok(()),
    }
}

/// Returns a `hosts(5)` with the names that programs need. Returns `None` if it has them.
fn with_hosts(current: &[u8]) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(current);
    let has = |name: &str| text.lines().any(|line| gives(line, name));
    let missing = match (has("localhost"), has("capsule")) {
        (true, true) => return None,
        (true, false) => CAPSULE,
        (false, true) => LOCALHOST,
        (false, false) => BOTH,
    };
    Some(append(current.to_vec(), missing.as_bytes()))
}

/// Reports whether a line of a `hosts(5)` gives `name` an address.
fn gives(line: &str, name: &str) -> bool {
    let line = line.split_once('#').map_or(line, |(line, _)| line);
    let mut words = line.split_whitespace();
    let address = words.next().is_some_and(|word| word.parse::<IpAddr>().is_ok());
    address && words.any(|word| word == name)
}

/// Returns a `resolv.conf(5)` with a block of these servers. Returns `None` if the file may stay as
/// it is: its block is up to date, or it has no block and names a server.
fn with_servers(current: &[u8], servers: &[IpAddr]) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = current.split_inclusive(|byte| *byte == b'\n').collect();
    let at = |mark: &[u8]| lines.iter().position(|line| line.starts_with(mark));
    let block = at(BEGIN_MARK).zip(at(END_MARK)).filter(|(begin, end)| begin < end);
    let (before, after) = match block {
        Some((begin, end)) => (lines[..begin].concat(), lines[end + 1..].concat()),
        None if at(b"nameserver").is_some() => return None,
        None => (current.to_vec(), Vec::new()),
    };
    let servers: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let mut wanted = append(before, format!("{BEGIN}{servers}{END}").as_bytes());
    wanted.extend(after);
    (wanted != current).then_some(wanted)
}

/// Appends lines to a text whose last line may lack its end.
fn append(mut text: Vec<u8>, lines: &[u8]) -> Vec<u8> {
    if text.last().is_some_and(|byte| *byte != b'\n') {
        text.push(b'\n');
    }
    text.extend(lines);
    text
}

/// Reads a regular file. Returns `None` if nothing is at the path.
fn read(path: &Path) -> anyhow::Result<Option<(Vec<u8>, Metadata)>> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        found => found.context("cannot inspect the file")?,
    };
    // A device or a named pipe is not even opened.
    anyhow::ensure!(found.is_file(), "the file is not a regular file");
    anyhow::ensure!(found.len() <= MAX, "the file is too large ({} bytes)", found.len());
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let mut contents = Vec::new();
    file.and_then(|file| file.take(MAX).read_to_end(&mut contents))
        .context("cannot read the file")?;
    Ok(Some((contents, found)))
}

/// Replaces a file in a single step. The new file has the mode and owner of the old one.
fn replace(path: &Path, contents: &[u8], before: Option<&Metadata>) -> anyhow::Result<()> {
    let staged = path.with_extension("wrenn-new");
    // An interrupted boot may have left such a file.
    let _ = fs::remove_file(&staged);
    let written = write(&staged, contents, before).and_then(|()| fs::rename(&staged, path));
    if written.is_err() {
        let _ = fs::remove_file(&staged);
    }
    written.context("cannot write the file")
}

fn write(path: &Path, contents: &[u8], like: Option<&Metadata>) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(contents)?;
    if let Some(like) = like {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
    }
    let mode = like.map_or(0o644, |like| like.mode() & 0o7777);
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, mkfifoat};
    use std::os::unix::fs::symlink;

    fn servers(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|server| server.parse().unwrap()).collect()
    }

    fn resolver(current: &str, list: &[&str]) -> Option<String> {
        with_servers(current.as_bytes(), &servers(list))
            .map(|text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn hosts_file_with_both_names_is_unchanged() {
        assert_eq!(with_hosts(BOTH.as_bytes()), None);
        assert_eq!(with_hosts(b"10.0.0.1 db\n127.0.0.1 localhost # x\n127.0.1.1 a capsule"), None);
    }

    #[test]
    fn hosts_file_without_a_name_gains_its_line_and_keeps_others() {
        let added = |current: &[u8]| String::from_utf8(with_hosts(current).unwrap()).unwrap();
        assert_eq!(added(b""), BOTH);
        assert_eq!(added(b"10.0.0.1 db"), format!("10.0.0.1 db\n{BOTH}"));
        let local = "127.0.0.1 localhost\n10.0.0.1 db # capsule\n";
        assert_eq!(added(local.as_bytes()), format!("{local}{CAPSULE}"));
        assert_eq!(added(b"::1 capsule\n#\n"), format!("::1 capsule\n#\n{LOCALHOST}"));
        let odd = with_hosts(b"10.0.0.1 \xff\n").unwrap();
        assert!(odd.starts_with(b"10.0.0.1 \xff\n"), "bytes that are no text are kept");
    }

    #[test]
    fn resolver_block_follows_host_servers_and_keeps_other_lines() {
        let block = |server: &str| format!("{BEGIN}nameserver {server}\n{END}");
        let first = resolver("", &["1.1.1.1"]).unwrap();
        assert_eq!(first, block("1.1.1.1"));
        assert_eq!(resolver(&first, &["1.1.1.1"]), None);
        let edited = format!("search a.test\n{first}nameserver 9.9.9.9\noptions rotate");
        let next = resolver(&edited, &["8.8.8.8"]).unwrap();
        let wanted =
            format!("search a.test\n{}nameserver 9.9.9.9\noptions rotate", block("8.8.8.8"));
        assert_eq!(next, wanted);
        assert_eq!(resolver(&next, &["8.8.8.8"]), None);
    }

    #[test]
    fn user_resolver_that_names_a_server_is_unchanged() {
        assert_eq!(resolver("nameserver 9.9.9.9\n", &["1.1.1.1"]), None);
        let no_server = resolver("search a.test", &["1.1.1.1"]).unwrap();
        assert_eq!(no_server, format!("search a.test\n{BEGIN}nameserver 1.1.1.1\n{END}"));
        // A block that a user has cut or turned around is no block.
        assert_eq!(resolver(&format!("{BEGIN}nameserver 9.9.9.9\n"), &["1.1.1.1"]), None);
        let turned = format!("{END}{BEGIN}");
        assert!(resolver(&turned, &["1.1.1.1"]).unwrap().starts_with(&turned));
    }

    #[test]
    fn image_resolver_and_dangling_link_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let list = servers(&["1.1.1.1"]);
        let wanted = format!("{BEGIN}nameserver 1.1.1.1\n{END}");
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        update_resolver(&path, false, &list).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), wanted);
        for own in [true, false] {
            fs::remove_file(&path).unwrap();
            symlink("../run/systemd/resolve/stub-resolv.conf", &path).unwrap();
            update_resolver(&path, own, &list).unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().is_file());
            assert_eq!(fs::read_to_string(&path).unwrap(), wanted);
        }
        // A user's link to another file stays.
        let other = dir.path().join("other");
        fs::write(&other, "nameserver 9.9.9.9\n").unwrap();
        fs::remove_file(&path).unwrap();
        symlink("other", &path).unwrap();
        update_resolver(&path, true, &list).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 9.9.9.9\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing staged is left");
    }

    #[test]
    fn pipe_directory_or_link_at_hosts_path_is_skipped_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, folder, link) =
            (dir.path().join("pipe"), dir.path().join("folder"), dir.path().join("link"));
        mkfifoat(CWD, &pipe, Mode::from_raw_mode(0o644)).unwrap();
        fs::create_dir(&folder).unwrap();
        symlink(&pipe, &link).unwrap();
        for path in [&pipe, &folder, &link] {
            assert!(update_hosts(path).is_err(), "{}", path.display());
        }
        for path in [&pipe, &folder] {
            assert!(update_resolver(path, true, &[]).is_err(), "{}", path.display());
        }
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn replaced_hosts_file_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        fs::write(&path, "10.0.0.1 db\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        // An interrupted boot has left its file.
        fs::write(path.with_extension("wrenn-new"), "half").unwrap();
        update_hosts(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("10.0.0.1 db\n{BOTH}"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
