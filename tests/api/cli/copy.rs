//! Copies of files and folders by `wrenn capsule cp`. The tests look at modes, times, links and
//! special targets on this machine. Further tests use guests that send unexpected data.

use super::text;
use crate::capsule;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime};
use tests::{Platform, Upstream};

fn cp(platform: &Platform, args: &[&str]) -> Output {
    platform.run(&[&["capsule", "cp"], args].concat())
}

fn copies(platform: &Platform, args: &[&str]) {
    let out = cp(platform, args);
    assert!(out.status.success(), "{args:?}: {out:?}");
}

fn fails(platform: &Platform, args: &[&str], holding: &str) {
    let out = cp(platform, args);
    let told = text(&out.stderr);
    assert!(!out.status.success() && told.contains(holding), "{args:?}: {told}");
}

/// Sets a path's mode, and a time long ago.
fn mark(path: &Path, mode: u32) {
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000, 123_000_000);
    fs::File::open(path).unwrap().set_modified(then).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn is_marked(path: &Path, mode: u32) {
    let found = fs::metadata(path).unwrap();
    let seen = (found.mode() & 0o7777, found.mtime(), found.mtime_nsec());
    assert_eq!(seen, (mode, 1_500_000_000, 123_000_000), "{}", path.display());
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn copied_file_keeps_mode_and_time_both_ways() {
    let (platform, _, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let local = |name: &str| at(name).display().to_string();
    let inside = |name: &str| format!("{id}:{}", at(name).display());
    fs::write(at("script"), "#!/bin/sh\n").unwrap();
    mark(&at("script"), 0o751);
    copies(&platform, &[&local("script"), &inside("in")]);
    is_marked(&at("in"), 0o751);
    copies(&platform, &[&inside("in"), &local("out")]);
    is_marked(&at("out"), 0o751);
    assert_eq!(fs::read(at("out")).unwrap(), b"#!/bin/sh\n");
    // An existing file gets the mode of the source.
    fs::write(at("old"), "something longer than the script").unwrap();
    copies(&platform, &[&inside("in"), &local("old")]);
    is_marked(&at("old"), 0o751);
    copies(&platform, &[&local("script"), &inside("old")]);
    assert_eq!(fs::read(at("old")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(names(dir.path()), ["in", "old", "out", "script"]);
    // Set-id programs come out without the set-id bits.
    mark(&at("in"), 0o6755);
    copies(&platform, &[&inside("in"), &local("plain")]);
    is_marked(&at("plain"), 0o755);
    platform.finish();
}

#[tokio::test]
async fn copied_folder_keeps_modes_times_and_links_both_ways() {
    let (platform, _, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let local = |name: &str| at(name).display().to_string();
    let inside = |name: &str| format!("{id}:{}", at(name).display());
    fs::create_dir_all(at("tree/sub/empty")).unwrap();
    fs::write(at("tree/sub/large"), vec![5; 3_000_000]).unwrap();
    fs::write(at("tree/run"), "x").unwrap();
    symlink("sub/large", at("tree/link")).unwrap();
    symlink("/no/where", at("tree/broken")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, at("tree/pipe"), fifo, mode, 0).unwrap();
    mark(&at("tree/run"), 0o700);
    mark(&at("tree/sub"), 0o750);
    let is_copy = |name: &str| {
        let top = at(name);
        assert_eq!(names(&top), ["broken", "link", "run", "sub"], "{name}");
        assert_eq!(names(&top.join("sub")), ["empty", "large"], "{name}");
        assert_eq!(fs::read_link(top.join("link")).unwrap(), Path::new("sub/large"));
        assert_eq!(fs::read_link(top.join("broken")).unwrap(), Path::new("/no/where"));
        assert!(fs::read(top.join("sub/large")).unwrap() == vec![5; 3_000_000], "{name}");
        is_marked(&top.join("run"), 0o700);
        is_marked(&top.join("sub"), 0o750);
    };
    fails(&platform, &[&local("tree"), &inside("in")], "is a folder; copy it with -r");
    let told = cp(&platform, &["-r", &local("tree"), &inside("in")]);
    assert!(told.status.success(), "{told:?}");
    assert!(text(&told.stderr).contains("skipped 1 FIFOs"), "{told:?}");
    is_copy("in");
    fails(&platform, &[&inside("in"), &local("out")], "is a folder; copy it with -r");
    copies(&platform, &["-r", &inside("in"), &local("out")]);
    is_copy("out");
    // A copy into an existing folder goes below the source's own name. With `/.`, only the contents
    // are copied.
    fs::create_dir(at("into")).unwrap();
    copies(&platform, &["-r", &inside("in"), &local("into")]);
    is_copy("into/in");
    copies(&platform, &["-r", &local("into/in/."), &inside("into")]);
    assert_eq!(names(&at("into")), ["broken", "in", "link", "run", "sub"]);
    fails(&platform, &["-r", &inside("in"), &local("into/run")], "is not a folder");
    fails(&platform, &["-r", &local("tree"), &inside("into/run")], "is not a folder");
    fails(&platform, &[&local("tree/run"), &inside("none/")], "is not a folder");
    fails(&platform, &[&inside("in/run"), &local("none/")], "is not a folder");
    platform.finish();
}

#[tokio::test]
async fn copy_out_writes_into_special_files_and_follows_target_links() {
    let (platform, _, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let local = |name: &str| at(name).display().to_string();
    let from = format!("{id}:{}", at("f").display());
    fs::write(at("f"), "contents").unwrap();
    fs::write(at("real"), "old").unwrap();
    symlink("real", at("link")).unwrap();
    copies(&platform, &[&from, &local("link")]);
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("real"));
    assert_eq!(fs::read_to_string(at("real")).unwrap(), "contents");
    let cwd = rustix::fs::CWD;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(cwd, at("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let fifo = at("fifo");
    let reader = std::thread::spawn(move || fs::read_to_string(fifo).unwrap());
    copies(&platform, &[&from, &local("fifo")]);
    assert_eq!(reader.join().unwrap(), "contents");
    assert!(fs::symlink_metadata(at("fifo")).unwrap().file_type().is_fifo());
    // Only root can make this null device.
    let kind = rustix::fs::FileType::CharacterDevice;
    let device = rustix::fs::makedev(1, 3);
    let opens = || fs::OpenOptions::new().write(true).open(at("null")).is_ok();
    if rustix::fs::mknodat(cwd, at("null"), kind, mode, device).is_ok() && opens() {
        copies(&platform, &[&from, &local("null")]);
        let found = fs::symlink_metadata(at("null")).unwrap();
        assert!(found.file_type().is_char_device());
        assert_eq!((found.rdev(), found.mode() & 0o777), (device, 0o600));
    }
    platform.finish();
}

/// Makes a tar archive of one file, after a link where one is given.
fn tar(name: &str, link: Option<(&str, &str)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some((name, target)) = link {
        bytes.extend(header(name, b'2', target, 0));
    }
    bytes.extend(header(name, b'0', "", 4));
    bytes.extend(b"evil");
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    bytes
}

fn header(name: &str, kind: u8, link: &str, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put =
        |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000777");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(157, link);
    put(257, "ustar");
    block[156] = kind;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

/// Copies `/f` to `target` from a hostile platform. The platform claims a file or folder at `path`,
/// and sends this archive.
fn copy_of_hostile(
    kind: &'static str,
    path: &'static str,
    archive: Vec<u8>,
    target: &Path,
) -> Output {
    let upstream = hostile(kind, path, archive);
    std::process::Command::new(tests::binary("wrenn"))
        .args(["capsule", "cp", "-r", &format!("cl-{}:/f", "0".repeat(25))])
        .arg(target)
        .env("WRENN_CLIENT_FILE", target.join("none"))
        .env("WRENN_BASE_URL", format!("http://127.0.0.1:{}", upstream.port))
        .env("WRENN_API_KEY", "wrn_none")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Starts a server that claims a file or folder at `path`. With an empty archive, its agent is of
/// an earlier version.
fn hostile(kind: &'static str, path: &'static str, archive: Vec<u8>) -> Upstream {
    Upstream::start(move |mut wire| {
        while let Some(head) = wire.head() {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            wire.take(length.unwrap_or(0));
            if archive.is_empty() && head.contains("/files/archive") {
                let error = json!({ "error": { "code": "not_supported", "message": "too old",
                    "request_id": "" } });
                wire.answer("501 Not Implemented", "", error.to_string().as_bytes());
            } else if archive.is_empty() && head.starts_with("GET") {
                wire.answer("200 OK", "", b"contents");
            } else if head.starts_with("POST") {
                let entry = json!({ "entry": { "name": "f", "path": path, "type": kind, "size": 4,
                    "mode": 420, "permissions": "", "owner": "", "group": "", "modified_at": 0 } });
                let json = "content-type: application/json\r\n";
                wire.answer("200 OK", json, entry.to_string().as_bytes());
            } else {
                wire.answer("200 OK", "", &archive);
            }
        }
    })
}

#[test]
fn hostile_archive_writes_only_requested_files() {
    for (kind, archive, told) in [
        ("file", tar(".bashrc", None), "not the requested file"),
        ("file", tar("f/below", None), "not the requested file"),
        ("file", tar("../outside", None), "leads out"),
        ("directory", tar("other/f", None), "not the requested file"),
        ("directory", tar("f/../../outside", None), "leads out"),
        ("directory", tar("f/outside", Some(("f", ".."))), "not the requested file"),
        ("directory", tar("f/l/outside", Some(("f/l", ".."))), "link"),
        ("directory", tar("/f", None), "absolute"),
        ("file", tar("f", None)[..600].to_vec(), "ended early"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("kept"), "kept").unwrap();
        let out = copy_of_hostile(kind, "/f", archive, &target);
        assert!(!out.status.success() && text(&out.stderr).contains(told), "{told}: {out:?}");
        assert_eq!(names(dir.path()), ["target"], "{told}");
        assert!(names(&target).iter().all(|name| name == "kept" || name == "f"), "{told}");
        assert_eq!(fs::read_to_string(target.join("kept")).unwrap(), "kept");
    }
}

#[test]
fn hostile_archive_does_not_choose_copy_name() {
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join(".bashrc"), "kept").unwrap();
    let out = copy_of_hostile("file", "/.bashrc", tar(".bashrc", None), target.path());
    assert!(out.status.success(), "{out:?}");
    assert_eq!(names(target.path()), [".bashrc", "f"]);
    assert_eq!(fs::read_to_string(target.path().join(".bashrc")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(target.path().join("f")).unwrap(), "evil");
}

#[test]
fn file_copy_works_with_agent_without_archive_support() {
    let target = tempfile::tempdir().unwrap();
    let out = copy_of_hostile("file", "/f", Vec::new(), target.path());
    assert!(out.status.success(), "{out:?}");
    assert_eq!(names(target.path()), ["f"]);
    assert_eq!(fs::read_to_string(target.path().join("f")).unwrap(), "contents");
    let out = copy_of_hostile("directory", "/f", Vec::new(), target.path());
    assert!(!out.status.success() && text(&out.stderr).contains("too old"), "{out:?}");
}
