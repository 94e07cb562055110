//! COPY by both dialects, from archives of the tests and from folders in place of an origin.

use super::super::place::Placer;
use super::*;
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

/// Entry of a test's archive: kind of its header, path, and contents or the target of a link.
type Entry<'a> = (u8, &'a str, &'a str);

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, path, text) in entries {
        let mut block = vec![0_u8; 512];
        let is_file = *kind == b'0';
        let size = if is_file { text.len() } else { 0 };
        block[..path.len()].copy_from_slice(path.as_bytes());
        block[100..107].copy_from_slice(b"0004640");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[136..147].copy_from_slice(b"00000001750");
        block[148..156].copy_from_slice(b"        ");
        block[156] = *kind;
        if !is_file {
            block[157..157 + text.len()].copy_from_slice(text.as_bytes());
        }
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(block);
        if is_file {
            out.extend(text.as_bytes());
            out.resize(out.len().next_multiple_of(512), 0);
        }
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn order(dialect: &str, sources: &[&str], dest: &str) -> Order {
    let into = dest.ends_with('/') || sources.len() > 1;
    let dest = if dest == "/" { dest } else { dest.trim_end_matches('/') };
    let line = json!({
        "from": null, "files": null, "sources": sources, "inline": [], "dest": dest, "into": into,
        "owner": "7:8", "mode": null, "unpack": false, "dialect": dialect,
    });
    Order::read(&mut format!("{line}\nrest").as_bytes()).unwrap()
}

fn copy(root: &Path, order: &Order, entries: &[Entry<'_>]) -> Result<Copied> {
    let root = Root::open(root).unwrap();
    place(&root, order, (7, 8), archive(entries).as_slice(), Arc::default())
}

fn text(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

const TREE: [Entry<'static>; 5] = [
    (b'5', "d/", ""),
    (b'0', "d/a", "first"),
    (b'5', "d/e/", ""),
    (b'2', "d/e/link", "/etc/passwd"),
    (b'0', "other", "second"),
];

#[test]
fn folder_of_either_dialect_merges_its_contents() {
    for dialect in ["e2b", "dockerfile", "steps"] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("app/e")).unwrap();
        fs::write(dir.path().join("app/kept"), "x").unwrap();
        let copied = copy(dir.path(), &order(dialect, &["d"], "/app"), &TREE).unwrap();
        assert_eq!(copied, Copied { files: 4, bytes: 5 });
        assert_eq!(text(dir.path(), "app/a"), "first");
        assert_eq!(text(dir.path(), "app/kept"), "x");
        assert!(!dir.path().join("app/other").exists() && !dir.path().join("app/d").exists());
        let link = fs::read_link(dir.path().join("app/e/link")).unwrap();
        assert_eq!(link, Path::new("/etc/passwd"));
        let found = fs::metadata(dir.path().join("app/a")).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (7, 8, 0o4640));
        assert_eq!(found.mtime(), 1000);
        // Docker gives a folder that exists the source's mode, and E2B keeps it.
        let merged = fs::metadata(dir.path().join("app/e")).unwrap();
        assert_eq!(merged.uid(), if dialect == "e2b" { 0 } else { 7 }, "{dialect}");
        assert_eq!(merged.mtime() == 1000, dialect != "e2b", "{dialect}");
    }
}

#[test]
fn single_file_takes_the_exact_name_or_goes_into_a_folder() {
    for dialect in ["e2b", "dockerfile"] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("have")).unwrap();
        for (dest, wanted) in [("/x/y", "x/y"), ("/new/", "new/other"), ("/have", "have/other")] {
            copy(dir.path(), &order(dialect, &["other"], dest), &TREE).unwrap();
            assert_eq!(text(dir.path(), wanted), "second", "{dialect} {dest}");
        }
        assert_eq!(fs::metadata(dir.path().join("x")).unwrap().uid(), 7, "made parents");
    }
}

#[test]
fn link_at_the_destination_is_followed_by_docker_and_replaced_by_e2b() {
    for dialect in ["e2b", "dockerfile"] {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("links")).unwrap();
        fs::write(at("target"), "before").unwrap();
        symlink("../target", at("links/first")).unwrap();
        symlink("/links/first", at("old")).unwrap();
        symlink("../../../outside/new", at("dangling")).unwrap();
        for dest in ["/old", "/dangling"] {
            copy(dir.path(), &order(dialect, &["other"], dest), &TREE).unwrap();
        }
        let is_followed = dialect == "dockerfile";
        for (link, target) in [("old", "target"), ("dangling", "outside/new")] {
            let found = fs::symlink_metadata(at(link)).unwrap();
            assert_eq!(found.is_symlink(), is_followed, "{dialect} {link}");
            let wanted = if is_followed { target } else { link };
            assert_eq!(text(dir.path(), wanted), "second", "{dialect} {link}");
        }
        if is_followed {
            symlink("loop", at("loop")).unwrap();
            assert!(copy(dir.path(), &order(dialect, &["other"], "/loop"), &TREE).is_err());
        } else {
            assert_eq!(text(dir.path(), "target"), "before");
        }
    }
}

#[test]
fn several_matches_of_wildcards_make_the_destination_a_folder() {
    let entries: [Entry<'_>; 3] = [(b'0', "a.txt", "1"), (b'0', "b.txt", "2"), (b'0', "c", "3")];
    let dir = tempfile::tempdir().unwrap();
    copy(dir.path(), &order("dockerfile", &["*.txt"], "/dest"), &entries).unwrap();
    assert_eq!(
        (text(dir.path(), "dest/a.txt"), text(dir.path(), "dest/b.txt")),
        ("1".into(), "2".into())
    );
    assert_eq!(fs::read_dir(dir.path().join("dest")).unwrap().count(), 2);
    copy(dir.path(), &order("dockerfile", &["a.*"], "/one"), &entries).unwrap();
    assert_eq!(text(dir.path(), "one"), "1");
    copy(dir.path(), &order("e2b", &["*.txt"], "/all"), &entries[..2]).unwrap();
    assert_eq!(text(dir.path(), "all/b.txt"), "2");
}

#[test]
fn links_to_folders_are_followed_within_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
    symlink("usr/lib", dir.path().join("lib")).unwrap();
    symlink(outside.path(), dir.path().join("away")).unwrap();
    symlink("../../../../../..", dir.path().join("up")).unwrap();
    let entries: [Entry<'_>; 4] =
        [(b'5', "lib", ""), (b'0', "lib/x", "1"), (b'0', "away/y", "2"), (b'0', "up/z", "3")];
    copy(dir.path(), &order("dockerfile", &["."], "/"), &entries).unwrap();
    assert_eq!(text(dir.path(), "usr/lib/x"), "1");
    assert_eq!(text(dir.path(), "z"), "3");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let below = outside.path().strip_prefix("/").unwrap();
    assert_eq!(text(&dir.path().join(below), "y"), "2", "an absolute link begins at the root");
}

#[test]
fn hard_links_of_members_share_an_inode() {
    let entries: [Entry<'_>; 3] = [(b'0', "d/a", "x"), (b'1', "d/b", "d/a"), (b'0', "e", "y")];
    let dir = tempfile::tempdir().unwrap();
    copy(dir.path(), &order("e2b", &["d"], "/to"), &entries).unwrap();
    let inode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().ino();
    assert_eq!(inode("to/a"), inode("to/b"));
    let away: [Entry<'_>; 2] = [(b'0', "e", "y"), (b'1', "d/b", "e")];
    let error = copy(dir.path(), &order("e2b", &["d"], "/to"), &away).unwrap_err();
    assert!(error.message.contains("d/b is a hard link to a file"), "{}", error.message);
}

#[test]
fn hostile_members_and_missing_sources_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("app/a")).unwrap();
    let hostile: [(Entry<'_>, &str); 4] = [
        ((b'0', "../../etc/x", "1"), "leads out of the context"),
        ((b'3', "dev", ""), "is a device"),
        ((b'2', "link", ""), "is a link to nothing"),
        ((b'0', "a", "1"), "is a folder, which a file cannot replace"),
    ];
    for (entry, told) in hostile {
        let error = copy(dir.path(), &order("dockerfile", &["."], "/app"), &[entry]).unwrap_err();
        assert!(error.message.contains(told), "{}", error.message);
    }
    let error = copy(dir.path(), &order("steps", &["none"], "/x"), &TREE).unwrap_err();
    assert!(error.message.contains("`none` was not found"), "{}", error.message);
    let cut = &archive(&TREE)[..700];
    let root = Root::open(dir.path()).unwrap();
    let cut = place(&root, &order("e2b", &["d"], "/y"), (7, 8), cut, Arc::default());
    assert_eq!(cut.unwrap_err().code, connectrpc::ErrorCode::InvalidArgument);
}

#[test]
fn mode_is_applied_to_all_and_inline_files_follow_the_rules_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut order = order("dockerfile", &["d"], "/app");
    order.work.mode = Some(0o711);
    order.work.inline = vec![("config".to_owned(), "text".to_owned())];
    copy(dir.path(), &order, &TREE).unwrap();
    for path in ["app", "app/a", "app/e", "app/config"] {
        let found = fs::metadata(dir.path().join(path)).unwrap();
        assert_eq!(found.mode() & 0o7777, 0o711, "{path}");
    }
    order.work.sources.clear();
    order.work.dest = "/file".to_owned();
    copy(dir.path(), &order, &[]).unwrap();
    assert_eq!(text(dir.path(), "file"), "text");
}

#[test]
fn archives_are_unpacked_only_when_the_source_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let inner = archive(&[(b'5', "in/", ""), (b'0', "in/x", "deep"), (b'1', "in/y", "in/x")]);
    let inner = String::from_utf8(inner).unwrap();
    let entries: [Entry<'_>; 2] = [(b'0', "a.tar", &inner), (b'0', "d/b.tar", &inner)];
    let mut order = order("dockerfile", &["a.tar", "d"], "/to/");
    order.work.unpack = true;
    copy(dir.path(), &order, &entries).unwrap();
    assert_eq!(text(dir.path(), "to/in/x"), "deep");
    assert_eq!(fs::metadata(dir.path().join("to/in/y")).unwrap().nlink(), 2);
    assert_eq!(text(dir.path(), "to/b.tar"), inner, "a file below a folder stays packed");
}

#[test]
fn compressed_body_is_known_by_its_first_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &archive(&TREE)).unwrap();
    let root = Root::open(dir.path()).unwrap();
    let body = gzip.finish().unwrap();
    place(&root, &order("e2b", &["."], "/all"), (7, 8), body.as_slice(), Arc::default()).unwrap();
    assert_eq!(text(dir.path(), "all/d/a"), "first");
    assert_eq!(text(dir.path(), "all/other"), "second");
}

/// Copies from a folder in place of a mounted origin.
fn copy_origin(from: &Path, to: &Path, sources: &[&str], dest: &str) -> Result<Copied> {
    let (from, to) = (Root::open(from).unwrap(), Root::open(to).unwrap());
    let order = order("dockerfile", sources, dest);
    let mut placer: Placer<'_> = placer(&to, &order, (7, 8), Arc::default()).unwrap();
    place_origin(&mut placer, &order, &from)?;
    end(placer, &order)
}

#[test]
fn origin_is_searched_with_wildcards_and_through_links() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |path: &str| from.path().join(path);
    fs::create_dir_all(at("usr/bin/sub")).unwrap();
    symlink("/usr/bin", at("bin")).unwrap();
    fs::write(at("usr/bin/a1"), "1").unwrap();
    fs::write(at("usr/bin/a2"), "2").unwrap();
    fs::hard_link(at("usr/bin/a1"), at("usr/bin/sub/again")).unwrap();
    symlink("a1", at("usr/bin/named")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("usr/bin/pipe"), Mode::RWXU).unwrap();
    let copy = |sources: &[&str], dest: &str| copy_origin(from.path(), to.path(), sources, dest);
    copy(&["bin/a*"], "/wild").unwrap();
    assert_eq!((text(to.path(), "wild/a1"), text(to.path(), "wild/a2")), ("1".into(), "2".into()));
    copy(&["/bin/named"], "/one").unwrap();
    assert_eq!(text(to.path(), "one"), "1");
    assert!(fs::symlink_metadata(to.path().join("one")).unwrap().is_file());
    copy(&["bin"], "/tree").unwrap();
    let found = |path: &str| fs::symlink_metadata(to.path().join(path)).unwrap();
    assert!(found("tree/named").is_symlink());
    assert_eq!(found("tree/a1").ino(), found("tree/sub/again").ino());
    assert_eq!((found("tree/sub").uid(), found("tree/pipe").uid()), (7, 7));
    for missing in ["none", "bin/none*", "none/*"] {
        assert!(copy(&[missing], "/x").unwrap_err().message.contains("was not found"), "{missing}");
    }
    let root = Root::open(to.path()).unwrap();
    assert!(root.at(Path::new("tree/pipe"), OFlags::PATH).is_ok());
}
