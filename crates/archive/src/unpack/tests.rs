//! Tests of packing and unpacking, above all with archives that try to leave their folder.

use super::*;
use crate::format::{self, Entry};
use crate::pack;
use rustix::fs::makedev;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime};

/// Bytes of a block of an archive.
const BLOCK: usize = 512;
/// Bytes of an archive's end.
const END: usize = 2 * BLOCK;
/// Bytes of the large file in a tree.
const LARGE: usize = 1_000_000;
/// Bytes of all files in a tree: the large one, `small` and `long`.
const TREE: u64 = LARGE as u64 + 5 + 4;
/// Bytes of a sparse file.
const SPARSE: u64 = 20 << 20;
/// Time of an old entry: seconds since 1970, and nanoseconds.
const OLD: (u32, u32) = (1_500_000_000, 123_456_789);

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

/// Makes a folder with a tree of files, folders, symbolic links, a FIFO and a socket.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("top/inner/empty")).unwrap();
    fs::write(at("top/small"), "small").unwrap();
    fs::write(at("top/nothing"), "").unwrap();
    fs::write(at("top/inner/large"), vec![7; LARGE]).unwrap();
    fs::write(at(&format!("top/inner/{}", "n".repeat(200))), "long").unwrap();
    symlink("../small", at("top/inner/link")).unwrap();
    symlink("/nonexistent", at("top/broken")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("top/pipe"), FileType::Fifo, mode(0o600), 0).unwrap();
    UnixListener::bind(at("top/socket")).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(OLD.0.into(), OLD.1);
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
    assert_eq!((packed.bytes, packed.skipped), (TREE, 2));
    let target = tempfile::tempdir().unwrap();
    assert_eq!(unpack(target.path(), &bytes[..], options()).unwrap(), TREE);
    let top = target.path().join("top");
    assert_eq!(names(&top), ["broken", "inner", "nothing", "small"]);
    assert_eq!(fs::read(top.join("inner/large")).unwrap(), vec![7; LARGE]);
    assert_eq!(fs::read_to_string(top.join("inner").join("n".repeat(200))).unwrap(), "long");
    assert_eq!(fs::read_link(top.join("broken")).unwrap(), Path::new("/nonexistent"));
    assert_eq!(fs::read_to_string(top.join("inner/link")).unwrap(), "small");
    for (name, bits) in [("small", 0o755), ("inner/large", 0o400), ("inner", 0o750)] {
        let found = fs::metadata(top.join(name)).unwrap();
        assert_eq!(found.mode() & 0o7777, bits, "{name}");
        let old = (i64::from(OLD.0), i64::from(OLD.1));
        assert_eq!((found.mtime(), found.mtime_nsec()), old, "{name}");
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
fn refused_entry_has_its_reason_and_writes_nothing_outside() {
    const OUT: &str = "leads out of the target folder";
    const ABSOLUTE: &str = "is an absolute or invalid path";
    const FOLLOWED: &str = "is not a folder, or is a link, which is not followed";
    const MISSING: &str = "is a hard link to a file that is not in the archive";
    const NO_TARGET: &str = "is a link without a target";
    const DEVICE: &str = "is a device or a FIFO, which cannot be unpacked";
    const UNKNOWN: &str = "has a type that cannot be unpacked";
    const DEEP: &str = "is nested too deeply";
    let file = |path: &str| entry(Kind::File, path, "");
    let link = |path: &str, to: &str| entry(Kind::Link, path, to);
    let hard_link = |path: &str, to: &str| entry(Kind::HardLink, path, to);
    let other = |flag: u8| entry(Kind::Other(flag), "other", "");
    for (entries, why) in [
        (vec![file("../out")], OUT),
        (vec![file("in/../../out")], OUT),
        (vec![file("/out")], ABSOLUTE),
        (vec![file(&format!("{}\0", "n".repeat(200)))], ABSOLUTE),
        (vec![link("l", ".."), file("l/out")], FOLLOWED),
        (vec![link("l", "../other"), file("l/kept")], FOLLOWED),
        (vec![link("l", ".."), entry(Kind::Folder, "l", "")], FOLLOWED),
        (vec![link("l", ".."), link("l/out", "kept")], FOLLOWED),
        (vec![link("../out", "kept")], OUT),
        (vec![hard_link("h", "../kept")], OUT),
        (vec![hard_link("h", "/kept")], ABSOLUTE),
        (vec![link("l", ".."), hard_link("h", "l/kept")], FOLLOWED),
        (vec![link("l", "../kept"), hard_link("h", "l")], MISSING),
        (vec![hard_link("h", "missing")], MISSING),
        (vec![link("l", "")], NO_TARGET),
        (vec![hard_link("h", "")], NO_TARGET),
        (vec![other(b'3')], DEVICE),
        (vec![other(b'4')], DEVICE),
        (vec![other(b'6')], DEVICE),
        (vec![other(b'S')], UNKNOWN),
        (vec![file(&"d/".repeat(DEPTH_MAX + 2))], DEEP),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::create_dir_all(dir.path().join("other")).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(dir.path().join("kept"), "kept").unwrap();
        fs::write(dir.path().join("other/kept"), "kept").unwrap();
        let error = unpack(&target, &archive(&entries)[..], options()).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{entries:?}: {error:?}");
        assert!(error.to_string().ends_with(why), "{entries:?}: {error}");
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
fn file_does_not_replace_folder_fifo_socket_or_device() {
    const FOLDER: &str = "is a folder, which a file cannot replace";
    const SPECIAL: &str = "is a device, a FIFO or a socket, which cannot be replaced";
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("f");
    let cwd = rustix::fs::CWD;
    let bytes = archive(&[entry(Kind::File, "f", "")]);
    let refuses = |why: &str| {
        let error = unpack(dir.path(), &bytes[..], options()).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error:?}");
        assert!(error.to_string().ends_with(why), "{error}");
        fs::symlink_metadata(&at).unwrap().file_type()
    };
    fs::create_dir(&at).unwrap();
    assert!(refuses(FOLDER).is_dir());
    fs::remove_dir(&at).unwrap();
    rustix::fs::mknodat(cwd, &at, FileType::Fifo, mode(0o600), 0).unwrap();
    assert!(refuses(SPECIAL).is_fifo());
    fs::remove_file(&at).unwrap();
    UnixListener::bind(&at).unwrap();
    assert!(refuses(SPECIAL).is_socket());
    fs::remove_file(&at).unwrap();
    // Only root makes devices.
    let device =
        rustix::fs::mknodat(cwd, &at, FileType::CharacterDevice, mode(0o666), makedev(1, 3));
    if device.is_ok() {
        assert!(refuses(SPECIAL).is_char_device());
    }
}

#[test]
fn truncated_archive_keeps_old_file_and_removes_staged_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "old").unwrap();
    let whole = archive(&[Entry { size: 4, ..entry(Kind::File, "f", "") }]);
    let contents = whole.len() - END - BLOCK;
    let cut = |length: usize| {
        let error = unpack(dir.path(), &whole[..length], options()).unwrap_err();
        let Error::Stream(source) = &error else { panic!("{length}: {error:?}") };
        assert_eq!(source.kind(), io::ErrorKind::UnexpectedEof, "{length}");
        assert_eq!(names(dir.path()), ["f"], "{length}");
        fs::read_to_string(&file).unwrap()
    };
    for length in [BLOCK / 2, contents, contents + 2] {
        assert_eq!(cut(length), "old");
    }
    // An entry that is complete stays.
    assert_eq!(cut(whole.len() - END), "evil");
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
        vec![entry(Kind::HardLink, "asked", "other")],
        vec![entry(Kind::Other(b'6'), "asked", "")],
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
    for kind in [Kind::Link, Kind::File, Kind::HardLink, Kind::Other(b'6')] {
        let refused = unpack(dir.path(), &archive(&[entry(kind, "asked", "/etc")])[..], top(true));
        assert!(refused.unwrap_err().to_string().contains("not the requested file"));
        assert!(names(dir.path()).is_empty());
    }
}

#[test]
fn zeros_become_holes_and_hard_links_share_an_inode() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = fs::File::create(dir.path().join("sparse")).unwrap();
    sparse.set_len(SPARSE).unwrap();
    let target = tempfile::tempdir().unwrap();
    unpack(target.path(), &packed(&dir.path().join("sparse"))[..], options()).unwrap();
    let found = fs::metadata(target.path().join("top")).unwrap();
    assert_eq!(found.len(), SPARSE);
    assert!(found.blocks() * 512 < SPARSE / 20, "{} blocks", found.blocks());
    let linked = [entry(Kind::File, "a", ""), entry(Kind::HardLink, "d/b", "a")];
    for _ in 0..2 {
        unpack(target.path(), &archive(&linked)[..], options()).unwrap();
        let number = |name: &str| fs::metadata(target.path().join(name)).unwrap().ino();
        assert_eq!(number("a"), number("d/b"));
        assert_eq!(names(&target.path().join("d")), ["b"]);
    }
}
