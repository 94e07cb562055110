//! Tests of watchers in folders of this machine. Each test drains its watcher itself.

use super::*;

/// A folder, its watcher, and the queue that the watcher fills.
struct Watched {
    dir: tempfile::TempDir,
    watcher: Watcher,
    queue: Arc<Queue>,
}

impl Watched {
    fn new(recursive: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let queue = Arc::new(Queue::new(Arc::default()).unwrap());
        let options = Options { recursive, ..Options::default() };
        let root = dir.path().to_owned();
        let watcher = Watcher::new(root, options, Arc::clone(&queue)).unwrap();
        Self { dir, watcher, queue }
    }

    /// Makes a new watcher, for a folder that has been prepared.
    fn again(self, recursive: bool) -> Self {
        let options = Options { recursive, ..Options::default() };
        let root = self.dir.path().to_owned();
        let watcher = Watcher::new(root, options, Arc::clone(&self.queue)).unwrap();
        Self { watcher, ..self }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn changes(&mut self) -> Vec<(String, Change)> {
        self.watcher.drain().unwrap();
        self.waiting()
    }

    fn waiting(&self) -> Vec<(String, Change)> {
        let batches = self.queue.take();
        let events = batches.iter().flat_map(Events::iter);
        events.map(|event| (event.name.to_owned(), event.change)).collect()
    }
}

fn count(seen: &[(String, Change)], name: &str, change: Change) -> usize {
    seen.iter().filter(|event| **event == (name.to_owned(), change)).count()
}

#[test]
fn entries_created_before_a_directorys_watch_are_reported_once() {
    let mut watched = Watched::new(true);
    fs::create_dir_all(watched.path("a/b")).unwrap();
    fs::write(watched.path("a/b/f"), "x").unwrap();
    fs::write(watched.path("a/empty"), "").unwrap();
    let seen = watched.changes();
    for name in ["a", "a/b", "a/b/f", "a/empty"] {
        assert_eq!(count(&seen, name, Change::Create), 1, "{name}: {seen:?}");
    }
    assert_eq!(count(&seen, "a/b/f", Change::Write), 1, "{seen:?}");
    assert_eq!(count(&seen, "a/empty", Change::Write), 0, "{seen:?}");
    fs::remove_file(watched.path("a/b/f")).unwrap();
    assert_eq!(watched.changes(), [("a/b/f".into(), Change::Remove)]);
    fs::write(watched.path("a/b/f"), "x").unwrap();
    let wanted = [("a/b/f".into(), Change::Create), ("a/b/f".into(), Change::Write)];
    assert_eq!(watched.changes(), wanted);
}

#[test]
fn writes_while_directories_appear_are_all_reported() {
    let mut watched = Watched::new(true);
    let root = watched.dir.path().to_owned();
    let writer = std::thread::spawn(move || {
        for n in 0..300 {
            fs::create_dir_all(root.join(format!("{n}/in"))).unwrap();
            fs::write(root.join(format!("{n}/in/f")), "x").unwrap();
        }
    });
    let mut seen = Vec::new();
    while !writer.is_finished() {
        seen.extend(watched.changes());
    }
    writer.join().unwrap();
    seen.extend(watched.changes());
    for n in 0..300 {
        let of = |name: &str, change| count(&seen, &format!("{n}{name}"), change);
        let created = ["", "/in", "/in/f"].map(|name| of(name, Change::Create));
        assert_eq!(created, [1; 3], "{n}");
        // Both a reading and the kernel may report a file that is still being written.
        assert!((1..=2).contains(&of("/in/f", Change::Write)), "{n}");
    }
}

#[test]
fn inotify_overflow_ends_watch_after_earlier_events() {
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let queue: usize = queue.trim().parse().unwrap();
    let mut watched = Watched::new(true);
    let (one, other) = (watched.path("one"), watched.path("other"));
    fs::write(&one, "x").unwrap();
    for _ in 0..=queue / 2 {
        // The kernel joins an event with an equal one just before it.
        fs::rename(&one, &other).unwrap();
        fs::rename(&other, &one).unwrap();
    }
    let error = watched.watcher.drain().unwrap_err();
    let seen = watched.waiting();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert!(error.message.contains("start a new watch"), "{error}");
    // Where this machine's kernel has a longer queue, envd's own bound comes first.
    let is_kernels = error.message.contains("overflowed");
    assert!(is_kernels || queue >= super::super::queue::EVENTS_MAX, "{error}");
    assert_eq!(seen[0], ("one".into(), Change::Create));
    assert!(seen.len() > queue.min(60_000) / 2, "{}", seen.len());
}

#[test]
fn unfetched_events_beyond_the_bound_end_the_watch() {
    let mut watched = Watched::new(false);
    let (one, other) = (watched.path("one"), watched.path("other"));
    fs::write(&one, "x").unwrap();
    let error = loop {
        for _ in 0..1000 {
            fs::rename(&one, &other).unwrap();
            fs::rename(&other, &one).unwrap();
        }
        if let Err(error) = watched.watcher.drain() {
            break error;
        }
    };
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert!(error.message.contains("not fetched"), "{error}");
    let waiting = watched.waiting().len();
    assert!(waiting > 32_000 && waiting <= super::super::queue::EVENTS_MAX, "{waiting}");
}

#[test]
fn nonrecursive_watch_reports_only_its_own_level() {
    let watched = Watched::new(false);
    fs::create_dir(watched.path("sub")).unwrap();
    let mut watched = watched.again(false);
    fs::write(watched.path("sub/f"), "x").unwrap();
    fs::rename(watched.path("sub"), watched.path("new")).unwrap();
    let seen = watched.changes();
    assert!(seen.contains(&("sub".into(), Change::Rename)), "{seen:?}");
    assert!(seen.contains(&("new".into(), Change::Create)), "{seen:?}");
    assert!(!seen.iter().any(|(name, _)| name.contains('/')), "{seen:?}");
    let queue = Arc::clone(&watched.queue);
    let file = Watcher::new(watched.path("new/f"), Options::default(), queue);
    assert!(file.is_err_and(|e| e.code == ErrorCode::InvalidArgument));
}

#[test]
fn upload_is_reported_as_create_and_write_of_its_final_name() {
    let mut watched = Watched::new(true);
    let staged = watched.path(&format!("{STAGED_PREFIX}1"));
    for _ in 0..2 {
        fs::write(&staged, "contents").unwrap();
        fs::rename(&staged, watched.path("f")).unwrap();
        let wanted = [Change::Create, Change::Chmod, Change::Write];
        assert_eq!(watched.changes(), wanted.map(|change| ("f".into(), change)));
    }
    fs::write(&staged, "given up").unwrap();
    fs::remove_file(&staged).unwrap();
    assert!(watched.changes().is_empty());
    // The watcher reads a new folder that has a staged file in it.
    fs::create_dir(watched.path("new")).unwrap();
    fs::write(watched.path(&format!("new/{STAGED_PREFIX}2")), "x").unwrap();
    assert_eq!(watched.changes(), [("new".into(), Change::Create)]);
}

#[test]
fn moved_directory_is_followed_only_within_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let watched = Watched::new(true);
    fs::create_dir_all(watched.path("a/b/c")).unwrap();
    let mut watched = watched.again(true);
    fs::rename(watched.path("a"), watched.path("z")).unwrap();
    let seen = watched.changes();
    assert_eq!(seen[..2], [("a".into(), Change::Rename), ("z".into(), Change::Create)]);
    fs::File::create(watched.path("z/b/c/f")).unwrap();
    assert_eq!(watched.changes(), [("z/b/c/f".into(), Change::Create)]);
    fs::rename(watched.path("z/b"), outside.path().join("b")).unwrap();
    assert_eq!(watched.changes(), [("z/b".into(), Change::Rename)]);
    fs::File::create(outside.path().join("b/c/g")).unwrap();
    assert!(watched.changes().is_empty());
    assert!(watched.watcher.leaving.is_empty());
    fs::rename(outside.path().join("b"), watched.path("b")).unwrap();
    let seen = watched.changes();
    assert_eq!(count(&seen, "b/c/g", Change::Create), 1, "{seen:?}");
    fs::File::create(watched.path("b/c/h")).unwrap();
    assert_eq!(watched.changes(), [("b/c/h".into(), Change::Create)]);
}

#[test]
fn many_directories_are_all_watched_and_each_scanned_once() {
    const FOLDERS: usize = 2000;
    let mut watched = Watched::new(true);
    fs::create_dir(watched.path("top")).unwrap();
    let seen = watched.changes();
    assert_eq!(seen, [("top".into(), Change::Create)]);
    for n in 0..FOLDERS {
        fs::create_dir_all(watched.path(&format!("top/{}/{n}", n % 7))).unwrap();
    }
    let mut seen = watched.changes();
    for n in 0..FOLDERS {
        fs::File::create(watched.path(&format!("top/{}/{n}/f", n % 7))).unwrap();
    }
    seen.extend(watched.changes());
    let all: HashSet<_> = seen.iter().map(|(name, _)| name).collect();
    assert_eq!((all.len(), seen.len()), (7 + 2 * FOLDERS, 7 + 2 * FOLDERS));
}

#[test]
fn moved_root_ends_the_watch() {
    let outside = tempfile::tempdir().unwrap();
    let mut watched = Watched::new(true);
    fs::File::create(watched.path("f")).unwrap();
    fs::rename(watched.dir.path(), outside.path().join("moved")).unwrap();
    let error = watched.watcher.drain().unwrap_err();
    assert_eq!(watched.waiting(), [("f".into(), Change::Create)]);
    assert_eq!(error.code, ErrorCode::NotFound);
    assert!(watched.watcher.check_root().is_err());
    fs::rename(outside.path().join("moved"), watched.dir.path()).unwrap();
    watched.watcher.check_root().unwrap();
}

#[test]
fn events_of_existing_files_include_their_entry() {
    let dir = tempfile::tempdir().unwrap();
    let queue = Arc::new(Queue::new(Arc::default()).unwrap());
    let options = Options { include_entry: true, ..Options::default() };
    let mut watcher = Watcher::new(dir.path().to_owned(), options, Arc::clone(&queue)).unwrap();
    fs::write(dir.path().join("f"), "abc").unwrap();
    fs::write(dir.path().join("gone"), "abc").unwrap();
    fs::remove_file(dir.path().join("gone")).unwrap();
    watcher.drain().unwrap();
    for event in queue.take().iter().flat_map(Events::iter) {
        let size = event.entry.map(|entry| entry.size);
        assert_eq!(size, (event.name == "f").then_some(3), "{event:?}");
    }
}

#[test]
fn inotify_errors_name_the_exceeded_limit() {
    let path = Path::new("/x");
    for (errno, limit) in [(libc::ENOSPC, "max_user_watches"), (libc::EMFILE, "instances")] {
        let error = refused(path, &io::Error::from_raw_os_error(errno));
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        assert!(error.message.contains(limit), "{error}");
    }
    let error = refused(path, &io::Error::from_raw_os_error(libc::ENOENT));
    assert_eq!(error.code, ErrorCode::NotFound);
}
