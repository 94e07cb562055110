//! Tests of whole logs: crashes, limits, ages, cursors, reads and hostile names.

use super::read::page;
use super::*;

const BIG: u64 = 64 << 20;

fn logs(dir: &Path, limits: LogLimits) -> Logs {
    Logs::new(dir.join("logs"), limits)
}

fn line(text: &str) -> Entry {
    Entry::new(Source::Process, "stdout", now_ms(), text.to_owned())
}

fn piece(number: u64) -> Advance {
    Advance::Piece(7, number)
}

/// Returns text that hardly compresses.
fn noise(bytes: usize) -> String {
    (0..bytes.div_ceil(2)).map(|_| format!("{:02x}", rand::random::<u8>())).collect()
}

fn all(limit: usize) -> Query {
    Query { limit, ..Query::default() }
}

fn texts(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|entry| entry.text.as_str()).collect()
}

#[test]
fn lines_and_cursor_survive_a_killed_agent_and_a_cut_batch_counts_for_neither() {
    let dir = tempfile::tempdir().unwrap();
    let (id, limits) = (CapsuleId::new(), LogLimits::default());
    let folder = {
        let logs = logs(dir.path(), limits);
        let log = logs.open("team", id).unwrap();
        log.append(vec![line("one")], &piece(1)).unwrap();
        log.append(vec![line("two")], &Advance::Console("0a".to_owned())).unwrap();
        logs.folder("team", id).unwrap()
    };
    let open = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&open).unwrap();
    {
        let log = logs(dir.path(), limits).open("team", id).unwrap();
        let entries = vec![line(&noise(200 << 10)), line(&noise(200 << 10)), line("three")];
        log.append(entries, &piece(4)).unwrap();
    }
    assert_eq!(texts(&page(&folder, all(9)).unwrap()).len(), 5);
    // The second agent closed the first one's segment, and made one of its own.
    let found = segment::list(&folder).unwrap();
    assert_eq!((found.len(), found[0].bytes), (2, whole.len() as u64));
    let last = fs::read(&found[1].path).unwrap();
    for cut in [1, 63, last.len() / 2, last.len() - 1] {
        fs::write(&found[1].path, &last[..cut]).unwrap();
        assert_eq!(texts(&page(&folder, all(9)).unwrap()), ["one", "two"], "cut at {cut}");
    }
    let log = logs(dir.path(), limits).open("team", id).unwrap();
    let position = log.position();
    assert_eq!((position.piece, position.console.as_str()), (Some((7, 1)), "0a"));
    log.append(vec![line("again")], &piece(4)).unwrap();
    let read = page(&folder, all(9)).unwrap();
    assert_eq!(texts(&read), ["one", "two", "again"]);
    assert!(read.entries.is_sorted_by_key(|entry| entry.number));
}

#[test]
fn appends_that_add_no_line_cost_no_disk_but_a_new_epoch_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let logs = logs(dir.path(), LogLimits::default());
    let log = logs.open("team", CapsuleId::new()).unwrap();
    log.append(Vec::new(), &Advance::Nothing).unwrap();
    assert!(log.is_empty());
    log.append(Vec::new(), &piece(0)).unwrap();
    assert!(!log.is_empty());
    log.close().unwrap();
    log.append(Vec::new(), &piece(9)).unwrap();
    assert_eq!(log.position().piece, Some((7, 9)));
    assert_eq!(*log.watch().borrow(), 0);
}

#[test]
fn oldest_segments_go_when_the_log_is_full_and_the_store_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { capsule_mib: 4, ..LogLimits::default() };
    let logs = logs(dir.path(), limits);
    let id = CapsuleId::new();
    let log = logs.open("team", id).unwrap();
    for number in 0..40 {
        log.append(vec![line(&format!("{number} {}", noise(200 << 10)))], &piece(number)).unwrap();
        for segment in logs.pending().unsent {
            assert!(logs.mark_sent(&segment).unwrap());
        }
    }
    let folder = logs.folder("team", id).unwrap();
    let found = segment::list(&folder).unwrap();
    let bytes: u64 = found.iter().map(|found| found.bytes).sum();
    assert!(bytes <= 4 << 20, "{bytes}");
    assert!(found.len() > 1 && found.iter().all(|found| found.bytes <= SEGMENT_MAX));
    // The store is told also after another agent has begun.
    drop(log);
    let logs = Logs::new(dir.path().join("logs"), limits);
    let gone = logs.pending().gone;
    assert!(!gone.is_empty() && gone.iter().all(|segment| segment.id == id));
    for segment in gone {
        logs.mark_lost(&segment).unwrap();
        logs.mark_lost(&segment).unwrap();
    }
    assert!(logs.pending().gone.is_empty());
    let newest = page(&folder, Query { backward: true, ..all(1) }).unwrap();
    assert!(newest.entries[0].text.starts_with("39 "));
}

#[test]
fn capsule_that_pauses_often_has_bounded_segments() {
    let dir = tempfile::tempdir().unwrap();
    let log = CapsuleLog::load(dir.path().to_owned(), 4 << 20).unwrap();
    for _ in 0..200 {
        log.append(vec![line("x")], &Advance::Nothing).unwrap();
        log.close().unwrap();
    }
    let count = segment::list(dir.path()).unwrap().len();
    assert!((60..=66).contains(&count), "{count}");
}

#[test]
fn surplus_comes_from_the_largest_team_and_begins_with_its_oldest_log() {
    let log = |team: &str, newest_ms, bytes| Held {
        key: (team.to_owned(), CapsuleId::new()),
        newest_ms,
        bytes,
    };
    let held = vec![log("a", 1, 10), log("b", 5, 40), log("b", 3, 40), log("b", 4, 40)];
    let newest = |count, bytes| -> Vec<u64> {
        surplus(held.clone(), count, bytes).iter().map(|log| log.newest_ms).collect()
    };
    assert!(newest(4, 130).is_empty());
    assert_eq!(newest(4, 100), [3]);
    assert_eq!(newest(4, 50), [3, 4]);
    assert_eq!(newest(1, 130), [3, 4, 5]);
    assert_eq!(newest(0, 0).len(), 4);
}

#[test]
fn segment_that_is_closed_and_sent_during_a_read_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = CapsuleLog::load(dir.path().to_owned(), BIG).unwrap();
    log.append(vec![line("one")], &Advance::Nothing).unwrap();
    let open = fs::read(&segment::list(dir.path()).unwrap()[0].path).unwrap();
    log.append(vec![line("two")], &Advance::Nothing).unwrap();
    let closed = fs::read(&segment::list(dir.path()).unwrap()[0].path).unwrap();
    for (backward, wanted) in [(false, ["one", "two"]), (true, ["two", "one"])] {
        let mut reading = Reading::new(Query { backward, ..all(9) });
        let mut both = [&open, &closed];
        if backward {
            both.reverse();
        }
        for bytes in both {
            reading.scan(bytes).unwrap();
        }
        assert_eq!(texts(&reading.finish()), wanted);
    }
}

#[test]
fn old_segments_are_retired_and_the_folder_with_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let logs = logs(dir.path(), LogLimits { days: 1, ..LogLimits::default() });
    let id = CapsuleId::new();
    let old = Entry { at_ms: now_ms() - 25 * 3600 * 1000, ..line("old") };
    logs.open("team", id).unwrap().append(vec![old], &Advance::Nothing).unwrap();
    logs.retire(&|_| false);
    assert!(!logs.folder("team", id).unwrap().exists());
    logs.open("team", id).unwrap().append(vec![line("new")], &Advance::Nothing).unwrap();
    logs.retire(&|_| false);
    assert_eq!(logs.pending().unsent.len(), 1, "a segment that nobody writes is closed");
}

#[test]
fn logs_with_the_oldest_last_lines_go_when_there_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let logs = logs(dir.path(), LogLimits::default());
    let ids: Vec<CapsuleId> = (0..LOGS_MAX + 3).map(|_| CapsuleId::new()).collect();
    let begin = now_ms() - 1000;
    for (at_ms, id) in (begin..).zip(&ids) {
        let entry = Entry { at_ms, ..line("x") };
        logs.open("team", *id).unwrap().append(vec![entry], &Advance::Nothing).unwrap();
    }
    logs.retire(&|_| false);
    let is_left = |id: &CapsuleId| logs.folder("team", *id).unwrap().exists();
    assert!(!ids[..3].iter().any(is_left) && ids[3..].iter().all(is_left));
}

#[test]
fn pages_follow_each_other_in_both_directions_without_gaps() {
    let dir = tempfile::tempdir().unwrap();
    let log = CapsuleLog::load(dir.path().to_owned(), BIG).unwrap();
    for part in 0..10 {
        let lines = (0..10).map(|number| line(&format!("{}", part * 10 + number)));
        log.append(lines.collect(), &Advance::Nothing).unwrap();
        if part % 3 == 0 {
            log.close().unwrap();
        }
    }
    for backward in [false, true] {
        let (mut query, mut seen) = (Query { backward, ..all(7) }, Vec::new());
        loop {
            let found = page(dir.path(), query.clone()).unwrap();
            seen.extend(found.entries.iter().map(|entry| entry.text.parse::<u32>().unwrap()));
            query.cursor = found.cursor;
            if !found.more {
                assert_eq!(found.cursor.is_none(), backward);
                break;
            }
        }
        let wanted: Vec<u32> = if backward { (0..100).rev().collect() } else { (0..100).collect() };
        assert_eq!(seen, wanted);
    }
}

#[test]
fn query_finds_by_time_source_and_text_and_counts_drops() {
    let dir = tempfile::tempdir().unwrap();
    let log = CapsuleLog::load(dir.path().to_owned(), BIG).unwrap();
    let at = |at_ms, entry: Entry| Entry { at_ms, ..entry };
    let created = Entry::new(Source::Lifecycle, "create", 0, "The capsule started".to_owned());
    let lines = vec![
        at(10, created),
        at(20, line("say \"hello\" \u{1b}[1m")),
        at(30, Entry::dropped(Source::Process, 0, 12)),
        at(40, line("hello again")),
    ];
    log.append(lines, &Advance::Nothing).unwrap();
    let count = |query: Query| page(dir.path(), query).unwrap().entries.len();
    assert_eq!(count(Query { search: "\"hello\"".to_owned(), ..all(9) }), 1);
    assert_eq!(count(Query { search: "\u{1b}[".to_owned(), ..all(9) }), 1);
    assert_eq!(count(Query { search: "Hello".to_owned(), ..all(9) }), 0);
    assert_eq!(count(Query { sources: vec![Source::Lifecycle], ..all(9) }), 1);
    assert_eq!(count(Query { since_ms: Some(20), until_ms: Some(30), ..all(9) }), 2);
    let late = page(dir.path(), Query { since_ms: Some(20), ..all(9) }).unwrap();
    assert_eq!((late.entries.len(), late.dropped, late.more), (3, 12, false));
    // A search that finds nothing still moves on.
    let none = page(dir.path(), Query { search: "absent".to_owned(), ..all(9) }).unwrap();
    assert_eq!(none.cursor, late.cursor);
    assert!(none.cursor.is_some());
}

#[test]
fn read_of_many_bytes_ends_early_and_goes_on_at_its_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let log = CapsuleLog::load(dir.path().to_owned(), BIG).unwrap();
    for _ in 0..24 {
        let lines = vec![line(&"x".repeat(100 << 10)); 8];
        log.append(lines, &Advance::Nothing).unwrap();
    }
    log.append(vec![line("needle")], &Advance::Nothing).unwrap();
    let (mut query, mut reads) = (Query { search: "needle".to_owned(), ..all(9) }, 0);
    let found = loop {
        let found = page(dir.path(), query.clone()).unwrap();
        reads += 1;
        if !found.more {
            break found;
        }
        assert!(found.cursor > query.cursor);
        query.cursor = found.cursor;
    };
    assert_eq!((texts(&found), reads), (vec!["needle"], 2));
}

#[test]
fn erase_leaves_no_line_and_repeats_none() {
    let dir = tempfile::tempdir().unwrap();
    let logs = logs(dir.path(), LogLimits::default());
    let [id, other] = [CapsuleId::new(), CapsuleId::new()];
    let log = logs.open("team", id).unwrap();
    log.append(vec![line("secret")], &piece(5)).unwrap();
    logs.open("team", other).unwrap().append(vec![line("kept")], &piece(1)).unwrap();
    logs.erase("team", Some(id), &|_| true).unwrap();
    let folder = logs.folder("team", id).unwrap();
    assert!(page(&folder, all(9)).unwrap().entries.is_empty());
    assert_eq!(log.position().piece, Some((7, 5)));
    // An agent that is killed then knows what the log had.
    let later = CapsuleLog::load(folder.clone(), BIG).unwrap();
    assert_eq!(later.position().piece, Some((7, 5)));
    drop(later);
    let log = {
        drop(log);
        logs.open("team", id).unwrap()
    };
    log.append(vec![line("later")], &piece(6)).unwrap();
    assert_eq!(texts(&page(&folder, all(9)).unwrap()), ["later"]);
    logs.erase("team", None, &|_| false).unwrap();
    assert!(!logs.folder("team", other).unwrap().exists());
    logs.erase("team", None, &|_| false).unwrap();
    logs.erase("nobody", Some(id), &|_| false).unwrap();
}

#[test]
fn log_has_one_writer_and_teams_have_plain_names() {
    let dir = tempfile::tempdir().unwrap();
    let logs = logs(dir.path(), LogLimits::default());
    let id = CapsuleId::new();
    let log = logs.open("team", id).unwrap();
    assert!(Arc::ptr_eq(&log, &logs.open("team", id).unwrap()));
    assert!(logs.find("other", id).is_none());
    drop(log);
    assert!(logs.find("team", id).is_none());
    for team in ["", ".", "..", "a/b", "a\0", &"x".repeat(65)] {
        assert!(
            logs.open(team, id).is_err() && logs.erase(team, None, &|_| false).is_ok(),
            "{team}"
        );
    }
}
