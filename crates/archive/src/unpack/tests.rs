//! Tests of packing and unpacking, above all with archives that try to leave their folder.

use super::*;
use crate::format::{self, Entry};
use crate::pack;
use rustix::fs::makedev;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

fn options() -> Options {
    Options { owner: None, keep_set_id: false, staged: ".staged-", top: None }
}

fn entry(kind: Kind, path: &str, link: &str) -> Entry {
    let modified = Time { seconds: 1_600_000_000, nanos: 500 };
    let size = if kind == Kind::File { 4 } else { 0 };
    Entry { kind, path: path.into(), link: link.into(), mode: 0o644, modified, size }
}

/// Makes an archive of these entries. Each file holds `evil`.
fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        format::write_header(&mut bytes, entry).unwrap();
        if entry.size > 0 {
            bytes.extend_from_slice(b"evil");
            format::pad(&mut bytes, entry.size).unwrap();
        }
    }
    format::finish(&mut bytes).unwrap();
    bytes
}

/// Lists the names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// Makes a folder with a tree of every kind of entry.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("top/inner/empty")).unwrap();
    fs::write(at("top/small"), "small").unwrap();
    fs::write(at("top/nothing"), "").unwrap();
    fs::write(at("top/inner/large"), vec![7; 1_000_000]).unwrap();
    fs::write(at(&format!("top/inner/{}", "n".repeat(200))), "long").unwrap();
    symlink("../small", at("top/inner/link")).unwrap();
    symlink("/nonexistent", at("top/broken")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("top/pipe"), FileType::Fifo, mode(0o600), 0).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000, 123_456_789);
    for (name, bits) in [("small", 0o6755), ("inner/large", 0o400), ("inner", 0o750)] {
        let path = at("top").join(name);
        fs::File::open(&path).unwrap().set_modified(old).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
    }
    dir
}

fn packed(source: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(source, OsStr::new("top"), &mut bytes).unwrap();
    bytes
}

#[test]
fn tree_round_trips_with_modes_times_and_links() {
    let source = tree();
    let mut bytes = Vec::new();
    let packed = pack(&source.path().join("top"), OsStr::new("top"), &mut bytes).unwrap();
    assert_eq!((packed.bytes, packed.skipped), (1_000_009, 1));
    let target = tempfile::tempdir().unwrap();
    assert_eq!(unpack(target.path(), &bytes[..], options()).unwrap(), 1_000_009);
    let top = target.path().join("top");
    assert_eq!(names(&top), ["broken", "inner", "nothing", "small"]);
    assert_eq!(fs::read(top.join("inner/large")).unwrap(), vec![7; 1_000_000]);
    assert_eq!(fs::read_to_string(top.join("inner").join("n".repeat(200))).unwrap(), "long");
    assert_eq!(fs::read_link(top.join("broken")).unwrap(), Path::new("/nonexistent"));
    assert_eq!(fs::read_to_string(top.join("inner/link")).unwrap(), "small");
    for (name, bits) in [("small", 0o755), ("inner/large", 0o400), ("inner", 0o750)] {
        let found = fs::metadata(top.join(name)).unwrap();
        assert_eq!(found.mode() & 0o7777, bits, "{name}");
        assert_eq!((found.mtime(), found.mtime_nsec()), (1_500_000_000, 123_456_789), "{name}");
    }
    let again = tempfile::tempdir().unwrap();
    unpack(again.path(), &bytes[..], Options { keep_set_id: true, ..options() }).unwrap();
    assert_eq!(fs::metadata(again.path().join("top/small")).unwrap().mode() & 0o7777, 0o6755);
}

#[test]
fn top_level_symlink_is_packed_as_its_file() {
    let source = tree();
    for name in ["top/small", "top/inner/link"] {
        let target = tempfile::tempdir().unwrap();
        unpack(target.path(), &packed(&source.path().join(name))[..], options()).unwrap();
        let found = fs::symlink_metadata(target.path().join("top")).unwrap();
        assert!(found.is_file() && found.len() == 5, "{name}: {found:?}");
    }
    let pipe = pack(&source.path().join("top/pipe"), OsStr::new("top"), &mut Vec::new());
    assert!(matches!(pipe, Err(Error::Refused(_))), "{pipe:?}");
    let none = pack(&source.path().join("none"), OsStr::new("top"), &mut Vec::new());
    assert!(matches!(none, Err(Error::File { .. })), "{none:?}");
}

#[test]
fn proc_file_without_size_is_packed_whole() {
    let wanted = fs::read("/proc/version").unwrap();
    let target = tempfile::tempdir().unwrap();
    unpack(target.path(), &packed(Path::new("/proc/version"))[..], options()).unwrap();
    assert_eq!(fs::read(target.path().join("top")).unwrap(), wanted);
}

#[test]
fn path_traversal_is_refused_and_writes_nothing_outside() {
    let file = |path| entry(Kind::File, path, "");
    for (entries, why) in [
        (vec![file("../out")], "leads out"),
        (vec![file("in/../../out")], "leads out"),
        (vec![file("/out")], "absolute"),
        (vec![entry(Kind::Link, "l", ".."), file("l/out")], "link"),
        (vec![entry(Kind::Link, "l", "../other"), file("l/kept")], "link"),
        (vec![entry(Kind::Link, "l", ".."), entry(Kind::Folder, "l", "")], "link"),
        (vec![entry(Kind::HardLink, "h", "../kept")], "leads out"),
        (vec![entry(Kind::Link, "l", ".."), entry(Kind::HardLink, "h", "l/kept")], "link"),
        (vec![entry(Kind::Link, "l", "../kept"), entry(Kind::HardLink, "h", "l")], "hard link"),
        (vec![entry(Kind::Link, "l", "")], "without a target"),
        (vec![entry(Kind::Other(b'3'), "null", "")], "device"),
        (vec![entry(Kind::Other(b'6'), "pipe", "")], "FIFO"),
        (vec![file(&"d/".repeat(300))], "too deep"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::create_dir_all(dir.path().join("other")).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(dir.path().join("kept"), "kept").unwrap();
        fs::write(dir.path().join("other/kept"), "kept").unwrap();
        let error = unpack(&target, &archive(&entries)[..], options()).unwrap_err();
        assert!(error.to_string().contains(why), "{entries:?}: {error}");
        assert_eq!(names(dir.path()), ["kept", "other", "target"], "{entries:?}");
        assert_eq!(fs::read_to_string(dir.path().join("kept")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(dir.path().join("other/kept")).unwrap(), "kept");
        assert!(names(&target).iter().all(|name| name == "l"), "{:?}", names(&target));
    }
}

#[test]
fn error_replaces_control_characters_of_entry_name() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = archive(&[entry(Kind::Other(b'6'), "a\x1b[2Jb", "")]);
    let said = unpack(dir.path(), &bytes[..], options()).unwrap_err().to_string();
    assert!(said.starts_with("a\u{fffd}[2Jb is a device"), "{said:?}");
}

#[test]
fn existing_symlink_is_replaced_and_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::write(dir.path().join("kept"), "kept").unwrap();
    symlink("../kept", target.join("f")).unwrap();
    unpack(&target, &archive(&[entry(Kind::File, "f", "")])[..], options()).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("kept")).unwrap(), "kept");
    assert!(fs::symlink_metadata(target.join("f")).unwrap().is_file());
    // A link that comes from the archive itself is replaced too.
    let twice = [entry(Kind::Link, "g", "../kept"), entry(Kind::File, "g", "")];
    unpack(&target, &archive(&twice)[..], options()).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(target.join("g")).unwrap(), "evil");
}

#[test]
fn unpacked_file_does_not_replace_device_fifo_or_directory() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("f");
    let cwd = rustix::fs::CWD;
    rustix::fs::mknodat(cwd, &pipe, FileType::Fifo, mode(0o600), 0).unwrap();
    let bytes = archive(&[entry(Kind::File, "f", "")]);
    let error = unpack(dir.path(), &bytes[..], options()).unwrap_err();
    assert!(error.to_string().contains("cannot be replaced"), "{error}");
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    fs::remove_file(&pipe).unwrap();
    fs::create_dir(&pipe).unwrap();
    let error = unpack(dir.path(), &bytes[..], options()).unwrap_err();
    assert!(error.to_string().contains("a file cannot replace"), "{error}");
    fs::remove_dir(&pipe).unwrap();
    // Only root makes devices.
    let device =
        rustix::fs::mknodat(cwd, &pipe, FileType::CharacterDevice, mode(0o666), makedev(1, 3));
    if device.is_ok() {
        let error = unpack(dir.path(), &bytes[..], options()).unwrap_err();
        assert!(error.to_string().contains("cannot be replaced"), "{error}");
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_char_device());
    }
}

#[test]
fn truncated_archive_keeps_old_file_and_removes_staged_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "old").unwrap();
    let whole = archive(&[Entry { size: 4, ..entry(Kind::File, "f", "") }]);
    // The archive breaks off in its header, in contents, and before its end.
    for length in [300, whole.len() - 1534] {
        let error = unpack(dir.path(), &whole[..length], options()).unwrap_err();
        assert!(matches!(error, Error::Stream(_)), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), "old", "{length}");
        assert_eq!(names(dir.path()), ["f"]);
    }
    let error = unpack(dir.path(), &whole[..whole.len() - 1024], options()).unwrap_err();
    assert!(matches!(error, Error::Stream(_)), "{error}");
}

#[test]
fn only_requested_top_entry_is_unpacked_under_new_name() {
    let dir = tempfile::tempdir().unwrap();
    let top = |folder| {
        let top = Top { from: "asked".into(), to: "here".into(), folder };
        Options { top: Some(top), ..options() }
    };
    let file = |path| entry(Kind::File, path, "");
    unpack(dir.path(), &archive(&[file("asked")])[..], top(false)).unwrap();
    assert_eq!(names(dir.path()), ["here"]);
    fs::remove_file(dir.path().join("here")).unwrap();
    for entries in [
        vec![file(".bashrc")],
        vec![file("asked/below")],
        vec![entry(Kind::Folder, "asked", "")],
        vec![entry(Kind::Link, "asked", "/etc/passwd")],
        vec![entry(Kind::Folder, ".", "")],
    ] {
        let refused = unpack(dir.path(), &archive(&entries)[..], top(false)).unwrap_err();
        assert!(refused.to_string().contains("not the requested file"), "{entries:?}: {refused}");
        assert!(names(dir.path()).is_empty(), "{entries:?}");
    }
    let tree = [entry(Kind::Folder, "asked", ""), file("asked/f"), file("other/f")];
    assert!(unpack(dir.path(), &archive(&tree)[..], top(true)).is_err());
    assert_eq!(names(dir.path()), ["here"]);
    assert_eq!(names(&dir.path().join("here")), ["f"]);
    fs::remove_dir_all(dir.path().join("here")).unwrap();
    for kind in [Kind::Link, Kind::File] {
        let refused = unpack(dir.path(), &archive(&[entry(kind, "asked", "/etc")])[..], top(true));
        assert!(refused.unwrap_err().to_string().contains("not the requested file"));
        assert!(names(dir.path()).is_empty());
    }
}

#[test]
fn zeros_become_holes_and_hard_links_share_an_inode() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = fs::File::create(dir.path().join("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    let target = tempfile::tempdir().unwrap();
    unpack(target.path(), &packed(&dir.path().join("sparse"))[..], options()).unwrap();
    let found = fs::metadata(target.path().join("top")).unwrap();
    assert_eq!(found.len(), 20 << 20);
    assert!(found.blocks() * 512 < 1 << 20, "{} blocks", found.blocks());
    let linked = [entry(Kind::File, "a", ""), entry(Kind::HardLink, "d/b", "a")];
    for _ in 0..2 {
        unpack(target.path(), &archive(&linked)[..], options()).unwrap();
        let number = |name: &str| fs::metadata(target.path().join(name)).unwrap().ino();
        assert_eq!(number("a"), number("d/b"));
        assert_eq!(names(&target.path().join("d")), ["b"]);
    }
}
