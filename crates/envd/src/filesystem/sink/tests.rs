//! Tests of writes that replace a file, that fail, or whose target is no regular file.

use super::*;
use crate::jobs::Jobs;
use std::os::unix::fs::symlink;

fn open_with(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Sink> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let user = User { name: "me".into(), uid, gid, groups: vec![], home: "/".into() };
    Sink::open(&Order { path, user: &user, metadata }, &Jobs::default().files)
}

fn open(path: &Path) -> Result<Sink> {
    open_with(path, &BTreeMap::new())
}

fn write(path: &Path, contents: &str) -> Result<()> {
    let mut sink = open(path)?;
    sink.write(contents.as_bytes())?;
    sink.commit()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn dropped_write_keeps_old_contents_and_leaves_no_staged_file() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::write(&old, "old").unwrap();
    for path in [&old, &new] {
        let mut sink = open(path).unwrap();
        sink.write(b"half").unwrap();
        assert_eq!(text(&old), "old");
        drop(sink);
    }
    assert_eq!((names(dir.path()), text(&old)), (vec!["old".to_owned()], "old".to_owned()));
}

#[tokio::test]
async fn write_dropped_on_serving_thread_is_removed_by_a_job() {
    let dir = tempfile::tempdir().unwrap();
    let sink = open(&dir.path().join("f")).unwrap();
    assert_eq!(names(dir.path()).len(), 1);
    drop(sink);
    let removed = async {
        while !names(dir.path()).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(jobs::LIMIT, removed).await.unwrap();
}

#[test]
fn overwrite_keeps_mode_and_links_and_replaces_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("f"), dir.path().join("link"));
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("f", &link).unwrap();
    let reader = File::open(&file).unwrap();
    write(&link, "new").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(text(&file), "new");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(io::read_to_string(reader).unwrap(), "old");
    assert_eq!(names(dir.path()), ["f", "link"]);
}

#[test]
fn new_file_is_created_with_parents_also_through_dangling_link() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    symlink("there/f", &link).unwrap();
    write(&link, "new").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(text(&dir.path().join("there/f")), "new");
    let looped = dir.path().join("loop");
    symlink("loop", &looped).unwrap();
    assert_eq!(write(&looped, "x").unwrap_err().code, ErrorCode::InvalidArgument);
}

#[test]
fn overwrite_of_hard_linked_file_keeps_the_link() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    fs::write(&one, "older and longer").unwrap();
    fs::hard_link(&one, &other).unwrap();
    write(&one, "new").unwrap();
    assert_eq!((text(&one), text(&other)), ("new".into(), "new".into()));
    drop(open(&one).unwrap());
    assert_eq!(text(&other), "new");
    assert_eq!(names(dir.path()), ["one", "other"]);
}

#[test]
fn write_to_pipe_socket_or_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (pipe, socket) = (dir.path().join("pipe"), dir.path().join("socket"));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for path in [pipe.as_path(), &socket, dir.path()] {
        let error = write(path, "x").unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{}", path.display());
        assert!(error.message.contains("not a regular file"), "{error}");
    }
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(names(dir.path()), ["pipe", "socket"]);
}

#[test]
fn null_device_accepts_contents_and_stays_a_device() {
    let null = Path::new("/dev/null");
    let before = fs::metadata(null).unwrap();
    let metadata = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    let mut sink = open_with(null, &metadata).unwrap();
    sink.write(b"x").unwrap();
    sink.commit().unwrap();
    let after = fs::metadata(null).unwrap();
    assert!(after.file_type().is_char_device());
    assert_eq!((before.uid(), before.mode()), (after.uid(), after.mode()));
    let full = write(Path::new("/dev/full"), "x").unwrap_err();
    assert_eq!(full.code, ErrorCode::ResourceExhausted);
}

#[test]
fn procfs_file_is_written_in_place() {
    write(Path::new("/proc/self/comm"), "written").unwrap();
    assert_eq!(text(Path::new("/proc/self/comm")), "written\n");
}

#[test]
fn copy_of_terabyte_hole_stays_sparse() {
    let dir = tempfile::tempdir().unwrap();
    let (sparse, tail) = (dir.path().join("sparse"), dir.path().join("tail"));
    File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
    fs::write(&tail, "tail").unwrap();
    let target = dir.path().join("whole");
    let mut sink = open(&target).unwrap();
    for path in [&sparse, &tail] {
        let mut source = Source::open(path).unwrap();
        while sink.copy(&mut source).unwrap() {}
    }
    sink.commit().unwrap();
    let found = fs::metadata(&target).unwrap();
    assert_eq!(found.len(), (1 << 40) + 4);
    assert!(found.blocks() < 1 << 16, "{} blocks", found.blocks());
    let mut source = Source::open(&target).unwrap();
    source.limit(1 << 40, 4).unwrap();
    assert_eq!(source.read().unwrap(), b"tail");
}

#[test]
fn replaced_staged_file_does_not_become_the_target() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("f");
    fs::write(&target, "old").unwrap();
    let mut sink = open(&target).unwrap();
    sink.write(b"new").unwrap();
    let staged = names(dir.path()).into_iter().find(|name| name != "f").unwrap();
    let staged = dir.path().join(staged);
    fs::remove_file(&staged).unwrap();
    symlink("/etc/passwd", &staged).unwrap();
    let error = sink.commit().unwrap_err();
    assert!(error.message.contains("cannot write"), "{error}");
    assert_eq!(text(&target), "old");
}

#[test]
fn copy_of_truncated_file_fails_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, "contents").unwrap();
    let mut source = Source::open(&from).unwrap();
    File::create(&from).unwrap();
    let error = open(&to).unwrap().copy(&mut source).unwrap_err();
    assert!(error.message.starts_with(&format!("cannot read {}: ", from.display())), "{error}");
}

#[test]
fn overwrite_replaces_metadata_and_keeps_other_attributes() {
    // The folder is beside the sources, since some temporary folders' file systems lack such
    // attributes.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("f");
    let file = File::create(&path).unwrap();
    for name in ["user.e2b.old", "user.kept"] {
        rustix::fs::fsetxattr(&file, name, b"1", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let metadata = BTreeMap::from([("new".to_owned(), "2".to_owned())]);
    open_with(&path, &metadata).unwrap().commit().unwrap();
    assert_eq!(entry::stat(&path).unwrap().metadata, metadata);
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(&path, "user.kept", &mut value[..]), Ok(1));
}
