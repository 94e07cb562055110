//! Tests of the places that copies go to.

use super::*;

fn file(name: &str) -> Source<'_> {
    Source { name: OsStr::new(name), is_folder: false, contents: false }
}

fn folder(name: &str) -> Source<'_> {
    Source { name: OsStr::new(name), is_folder: true, contents: false }
}

fn place(folder: &Path, name: &str) -> Target {
    Target::Place(Place { folder: folder.to_owned(), name: name.into() })
}

#[test]
fn local_targets_resolve_as_with_cp() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let at = |name: &str| root.join(name);
    std::fs::create_dir(at("dir")).unwrap();
    std::fs::write(at("dir/file"), "").unwrap();
    std::os::unix::fs::symlink("dir/file", at("link")).unwrap();
    std::os::unix::fs::symlink("dir", at("dirlink")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("broken")).unwrap();
    let fifo = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo.0, fifo.1, 0).unwrap();
    let of = |name: &str, source: &Source<'_>| local_target(&at(name), source);
    assert_eq!(of("new", &file("f")).unwrap(), place(&root, "new"));
    assert_eq!(of("new/", &folder("d")).unwrap(), place(&root, "new"));
    assert_eq!(of("dir", &file("f")).unwrap(), place(&at("dir"), "f"));
    assert_eq!(of("dirlink", &folder("d")).unwrap(), place(&at("dirlink"), "d"));
    assert_eq!(of("link", &file("f")).unwrap(), place(&at("dir"), "file"));
    assert_eq!(of("fifo", &file("f")).unwrap(), Target::Special);
    let contents = Source { contents: true, ..folder("d") };
    assert_eq!(of("dir", &contents).unwrap(), place(&root, "dir"));
    for (name, source, told) in [
        ("new/", file("f"), "is not a folder"),
        ("broken", file("f"), "is a broken link"),
        ("link", folder("d"), "is not a folder"),
        ("fifo", folder("d"), "is not a folder"),
    ] {
        let error = of(name, &source).unwrap_err();
        assert!(error.to_string().contains(told), "{name}: {error}");
    }
    let here = local_target(Path::new("surely-not-here"), &file("f")).unwrap();
    assert_eq!(here, place(Path::new("."), "surely-not-here"));
}

#[test]
fn copy_takes_source_name_and_nameless_source_needs_a_target_name() {
    for (path, name) in [
        ("/a/b", "b"),
        ("b/", "b"),
        ("~/b/.", "b"),
        ("/a/~", "~"),
        ("/", ROOT),
        ("~", ""),
        ("~/", ""),
        ("..", ""),
        (".", ""),
    ] {
        assert_eq!(own_name(path), name, "{path}");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = local_target(dir.path(), &folder("")).unwrap_err();
    assert!(error.to_string().starts_with("the source has no name"), "{error}");
}

fn entry(kind: &str, path: &str, link: Option<&str>) -> api::Entry {
    api::Entry {
        name: name_of(path).to_owned(),
        path: path.to_owned(),
        r#type: kind.to_owned(),
        size: 0,
        mode: 0o644,
        permissions: String::new(),
        owner: String::new(),
        group: String::new(),
        modified_at: 0,
        symlink_target: link.map(str::to_owned),
    }
}

#[test]
fn capsule_targets_resolve_as_with_cp() {
    let of = |to: &str, entry: Option<api::Entry>, source: Source<'_>| {
        remote_target(to, entry.as_ref(), &source)
            .map(|place| place.map(|place| (place.folder, place.name.into_string().unwrap())))
    };
    let at = |folder: &str, name: &str| Some((folder.to_owned(), name.to_owned()));
    let dir = || Some(entry("directory", "/home/dir", None));
    assert_eq!(of("dir", dir(), file("f")).unwrap(), at("/home/dir", "f"));
    assert_eq!(of("dir/", dir(), folder("d")).unwrap(), at("/home/dir", "d"));
    let contents = Source { contents: true, ..folder("d") };
    assert_eq!(of("dir", dir(), contents).unwrap(), at("/home", "dir"));
    assert_eq!(of("/a/b", None, file("f")).unwrap(), at("/a", "b"));
    assert_eq!(of("/b", None, file("f")).unwrap(), at("/", "b"));
    assert_eq!(of("b", None, file("f")).unwrap(), at(".", "b"));
    assert_eq!(of("~/b/", None, folder("d")).unwrap(), at("~", "b"));
    let found = Some(entry("file", "/home/f", None));
    assert_eq!(of("f", found, file("g")).unwrap(), at("/home", "f"));
    let link = Some(entry("file", "/home/l", Some("/etc/real")));
    assert_eq!(of("l", link, file("g")).unwrap(), at("/etc", "real"));
    let null = || Some(entry("other", "/dev/null", None));
    assert_eq!(of("/dev/null", null(), file("f")).unwrap(), None);
    assert!(of("/dev/null", null(), folder("d")).is_err());
    assert!(of("/none/", None, file("f")).is_err());
    assert!(of("/none/..", None, file("f")).is_err());
}

#[test]
fn directories_are_copied_only_with_the_recursive_flag() {
    assert!(check_folder(true, true, "x").is_ok());
    assert!(check_folder(false, false, "x").is_ok());
    let error = check_folder(true, false, "x").unwrap_err();
    assert_eq!(error.to_string(), "x is a folder; copy it with -r");
    assert!(means_contents("a/.") && means_contents(".") && !means_contents("a."));
}
