//! Folders on the disk: choice, hash and archive.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

fn folder(files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if file.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::write(path, format!("contents of {file}")).unwrap();
        }
    }
    dir
}

fn open(dir: &TempDir, ignore: &str) -> Context {
    Context::open(dir.path(), Ignore::parse(ignore).unwrap(), Limits::default()).unwrap()
}

fn paths(context: &Context, sources: &[&str]) -> Vec<String> {
    let selection = context.select(sources).unwrap();
    selection.entries().iter().map(|entry| entry.path.clone()).collect()
}

#[test]
fn sources_name_files_as_docker_does() {
    let dir = folder(&["a.txt", "b.txt", "d/x", "d/e/y.txt", "f/", "z/d/x"]);
    let context = open(&dir, "");
    for (sources, wanted) in [
        (&["a.txt"][..], "a.txt"),
        (&["/a.txt"], "a.txt"),
        (&["*.txt"], "a.txt b.txt"),
        (&["d"], "d d/e d/e/y.txt d/x"),
        (&["d/*"], "d/e d/e/y.txt d/x"),
        (&["*/x"], "d/x"),
        (&["f"], "f"),
        (&["d", "a.txt"], "a.txt d d/e d/e/y.txt d/x"),
        (&["d", "d/x"], "d d/e d/e/y.txt d/x"),
        (&["."], "a.txt b.txt d d/e d/e/y.txt d/x f z z/d z/d/x"),
    ] {
        assert_eq!(paths(&context, sources).join(" "), wanted, "{sources:?}");
    }
}

#[test]
fn ignored_files_are_left_out_with_their_exceptions() {
    let dir = folder(&["a/b/c", "a/b/d", "a/x", "secret"]);
    assert_eq!(paths(&open(&dir, "secret"), &["."]).join(" "), "a a/b a/b/c a/b/d a/x");
    assert_eq!(paths(&open(&dir, "*\n!a/b/c"), &["."]).join(" "), "a a/b a/b/c");
    assert_eq!(paths(&open(&dir, "a/b"), &["a"]).join(" "), "a a/x");
    assert!(matches!(open(&dir, "secret").select(&["secret"]), Err(Error::Ignored(_))));
    assert!(matches!(open(&dir, "").select(&["nothing"]), Err(Error::Missing(_))));
    assert!(matches!(open(&dir, "").select(&["../x"]), Err(Error::Source(_))));
    assert!(open(&folder(&[]), "").select(&["."]).unwrap().entries().is_empty());
}

#[test]
fn links_are_kept_and_never_followed() {
    let outside = folder(&["passwd"]);
    let dir = folder(&["d/x"]);
    symlink(outside.path(), dir.path().join("out")).unwrap();
    symlink("gone", dir.path().join("d/broken")).unwrap();
    let context = open(&dir, "");
    let selection = context.select(&["."]).unwrap();
    let kinds: Vec<_> = selection.entries().iter().map(|e| (e.path.as_str(), e.kind)).collect();
    let wanted =
        [("d", Kind::Folder), ("d/broken", Kind::Link), ("d/x", Kind::File), ("out", Kind::Link)];
    assert_eq!(kinds, wanted);
    assert!(matches!(context.select(&["out/passwd"]), Err(Error::Missing(_))));
    assert!(selection.hash().is_ok());
}

#[test]
fn hash_sees_contents_modes_names_and_targets_alone() {
    let hash = |dir: &TempDir| open(dir, "").select(&["."]).unwrap().hash().unwrap();
    let (one, two) = (folder(&["a", "d/b"]), folder(&["a", "d/b"]));
    let first = hash(&one);
    assert!(crate::steps::is_hash(&first));
    assert_eq!(first, hash(&two));
    fs::write(two.path().join("a"), "other").unwrap();
    assert_ne!(first, hash(&two));
    fs::write(two.path().join("a"), "contents of a").unwrap();
    assert_eq!(first, hash(&two));
    fs::set_permissions(two.path().join("a"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_ne!(first, hash(&two));
    symlink("a", one.path().join("l")).unwrap();
    let linked = hash(&one);
    fs::remove_file(one.path().join("l")).unwrap();
    symlink("b", one.path().join("l")).unwrap();
    assert_ne!(linked, hash(&one));
}

#[test]
fn archive_holds_the_chosen_files() {
    let dir = folder(&["d/x", "d/e/y", "z"]);
    symlink("x", dir.path().join("d/l")).unwrap();
    let mut packed = Vec::new();
    open(&dir, "").select(&["d"]).unwrap().pack(&mut packed).unwrap();
    let listed = |name: &str| packed.chunks(512).any(|block| block.starts_with(name.as_bytes()));
    for name in ["d/", "d/e/", "d/e/y", "d/l", "d/x"] {
        assert!(listed(name), "{name}");
    }
    assert!(!listed("z") && packed.len() % 512 == 0);
    let mut again = Vec::new();
    open(&dir, "").select(&["d"]).unwrap().pack(&mut again).unwrap();
    assert_eq!(packed, again);
}

#[test]
fn bounds_are_named() {
    let dir = folder(&["a", "b", "c"]);
    let of = |limits| Context::open(dir.path(), Ignore::default(), limits).unwrap().select(&["."]);
    let entries = of(Limits { entries: 2, ..Limits::default() }).unwrap_err();
    assert_eq!(entries.to_string(), "the context has over 2 entries");
    let bytes = of(Limits { bytes: 20, ..Limits::default() }).unwrap_err();
    assert_eq!(bytes.to_string(), "the context has over 20 bytes");
    let deep = folder(&[&"d/".repeat(300)]);
    assert!(matches!(open(&deep, "").select(&["."]), Err(Error::Limit(_))));
    assert!(Context::open(&dir.path().join("a"), Ignore::default(), Limits::default()).is_err());
    let selection = of(Limits::default()).unwrap();
    fs::write(dir.path().join("a"), "").unwrap();
    assert!(matches!(selection.hash(), Err(Error::File { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The walk, which skips folders, keeps the same files as the judgement of each path.
    #[test]
    fn walk_agrees_with_the_ignore_file(
        lines in proptest::collection::vec("!?[ab*]{1,2}(/[ab*]{1,2}){0,2}", 0..5),
    ) {
        let files = ["a", "b/a", "b/b", "ab/a/b", "ab/b", "aa/a"];
        let dir = folder(&files);
        let text = lines.join("\n");
        let Ok(ignore) = Ignore::parse(&text) else { return Ok(()) };
        let context = open(&dir, &text);
        let kept: Vec<_> = context.select(&["."]).unwrap().entries().iter()
            .filter(|entry| entry.kind == Kind::File).map(|entry| entry.path.clone()).collect();
        let mut wanted: Vec<_> = files.iter().filter(|file| !ignore.ignores(file)).map(|f| (*f).to_owned()).collect();
        wanted.sort_by(|a, b| a.split('/').cmp(b.split('/')));
        prop_assert_eq!(kept, wanted, "{:?}", text);
    }
}
