//! Tests of rings, cursors and epochs, and of the choice of programs.

use super::*;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

const MOST: usize = 1 << 20;

fn log(mode: Mode) -> Arc<Log> {
    let log = Arc::<Log>::default();
    log.begin_epoch(7, true);
    log.set_mode(mode);
    log
}

fn spec(tag: Option<&str>, terminal: bool) -> Spec {
    let terminal = terminal.then_some((80, 24));
    Spec { cmd: "sh".to_owned(), tag: tag.map(str::to_owned), terminal, ..Spec::default() }
}

fn exit(code: i32) -> Exit {
    Exit::from(Ok(ExitStatus::from_raw(code << 8)))
}

fn from(epoch: u64, number: u64) -> Query {
    Query { epoch: Some(epoch), number: Some(number), most: MOST, wait_ms: 0 }
}

/// Takes a line with its end off the rest of an answer.
fn take_line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
    let (line, later) = rest.split_at(end + 1);
    *rest = later;
    line
}

/// Reads an answer as its head and its pieces with their bytes.
async fn read(log: &Log, query: &Query) -> (Head, Vec<(Piece, Vec<u8>)>) {
    let body = log.read(query).await;
    let mut rest = body.as_slice();
    let head = serde_json::from_slice(take_line(&mut rest)).unwrap();
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let piece: Piece = serde_json::from_slice(take_line(&mut rest)).unwrap();
        let (data, later) = rest.split_at(piece.bytes);
        pieces.push((piece, data.to_vec()));
        rest = later;
    }
    (head, pieces)
}

fn texts(pieces: &[(Piece, Vec<u8>)]) -> Vec<String> {
    pieces.iter().map(|(_, data)| String::from_utf8(data.clone()).unwrap()).collect()
}

#[tokio::test]
async fn only_background_programs_are_logged_unless_all_are() {
    for (mode, wanted) in [
        (Mode::None, Vec::new()),
        (Mode::Background, vec!["tagged\n", "left\n", "exit status 3"]),
        (Mode::All, vec!["tagged\n", "waits\n", "left\n", "exit status 3"]),
    ] {
        let log = log(mode);
        let tagged = log.writer(1, &spec(Some("server"), false));
        tagged.add(Output::Stdout, b"tagged\n");
        let left = log.writer(2, &spec(Some(""), false));
        let presence = Presence(Arc::clone(&left));
        left.add(Output::Stderr, b"waits\n");
        drop(presence);
        left.add(Output::Stderr, b"left\n");
        left.exit(&exit(3));
        let terminal = log.writer(3, &spec(Some("terminal"), true));
        terminal.add(Output::Pty, b"secret\n");
        terminal.exit(&exit(0));
        let (_, pieces) = read(&log, &from(7, 0)).await;
        assert_eq!(texts(&pieces), wanted, "{mode:?}");
    }
}

#[tokio::test]
async fn cursor_acknowledges_pieces_and_repeats_the_others() {
    let log = log(Mode::All);
    let writer = log.writer(9, &spec(None, false));
    writer.add(Output::Stdout, b"one\ntwo\nthr");
    writer.add(Output::Stderr, b"error\n");
    let (head, pieces) = read(&log, &from(7, 0)).await;
    assert_eq!((head.epoch, head.after), (7, 0));
    assert_eq!(texts(&pieces), ["one\ntwo\n", "error\n"]);
    assert_eq!((pieces[0].0.pid, pieces[0].0.command.as_str()), (9, "sh"));
    let (_, again) = read(&log, &from(7, 0)).await;
    assert_eq!(again, pieces, "a reader that failed loses nothing");
    let (_, later) = read(&log, &from(7, pieces[0].0.number)).await;
    assert_eq!(texts(&later), ["error\n"]);
    writer.add(Output::Stdout, b"ee\n");
    let (_, rest) = read(&log, &from(7, pieces[1].0.number)).await;
    assert_eq!(texts(&rest), ["three\n"]);
    let (_, none) = read(&log, &from(7, rest[0].0.number)).await;
    assert!(none.is_empty() && log.lock().rings.is_empty(), "acknowledged output takes memory");
    assert_eq!(log.lock().bytes, 0);
}

#[tokio::test]
async fn resume_goes_on_at_the_cursor_and_a_copy_or_an_older_snapshot_repeats_nothing() {
    let log = log(Mode::All);
    let writer = log.writer(1, &spec(None, false));
    writer.add(Output::Stdout, b"read\n");
    writer.add(Output::Stdout, b"unread\n");
    log.begin_epoch(8, false);
    let (head, pieces) = read(&log, &from(7, 1)).await;
    assert_eq!((head.epoch, texts(&pieces)), (8, vec!["unread\n".to_owned()]));
    // A reader that followed another epoch begins with this one.
    let (_, pieces) = read(&log, &from(77, 1)).await;
    assert!(pieces.is_empty());
    writer.add(Output::Stdout, b"new\n");
    let (_, pieces) = read(&log, &Query { most: MOST, ..Query::default() }).await;
    assert_eq!(texts(&pieces), ["new\n"]);
    log.begin_epoch(9, true);
    let (_, pieces) = read(&log, &from(8, 0)).await;
    assert!(pieces.is_empty(), "a copy repeats lines");
}

#[tokio::test]
async fn full_ring_drops_its_oldest_pieces_and_counts_their_bytes() {
    let log = log(Mode::All);
    let quiet = log.writer(1, &spec(None, false));
    quiet.add(Output::Stdout, b"kept\n");
    let line = [b'x'; 8191];
    let mut written = 0;
    for number in 0..6 {
        let loud = log.writer(10 + number, &spec(None, false));
        for _ in 0..200 {
            loud.add(Output::Stdout, &line);
            loud.add(Output::Stdout, b"\n");
            written += line.len() as u64 + 1;
        }
    }
    assert!(log.lock().bytes <= ALL_MAX);
    assert!(log.lock().rings.values().all(|ring| ring.bytes <= PROGRAM_MAX));
    let (mut cursor, mut seen, mut dropped, mut kept) = (0, 0, 0, false);
    loop {
        let (_, pieces) = read(&log, &from(7, cursor)).await;
        let Some((last, _)) = pieces.last() else { break };
        cursor = last.number;
        for (piece, data) in &pieces {
            dropped += piece.dropped;
            match piece.pid {
                1 => kept = data == b"kept\n",
                _ => seen += data.len() as u64,
            }
        }
    }
    assert!(kept, "a loud program drops lines of a quiet one");
    assert_eq!(seen + dropped, written);
}

#[tokio::test(start_paused = true)]
async fn read_waits_for_a_piece_and_an_unfinished_line_becomes_one() {
    let log = log(Mode::All);
    let writer = log.writer(1, &spec(None, false));
    let query = Query { wait_ms: 10_000, ..from(7, 0) };
    let writes = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        writer.add(Output::Stdout, b"prompt> ");
    };
    let ((_, pieces), ()) = tokio::join!(read(&log, &query), writes);
    assert_eq!(texts(&pieces), ["prompt> "]);
    let (_, none) = read(&log, &Query { wait_ms: 1000, ..from(7, 1) }).await;
    assert!(none.is_empty());
    // A line without an end takes bounded memory.
    writer.add(Output::Stdout, &[b'y'; LINE_MAX]);
    let (_, pieces) = read(&log, &from(7, 1)).await;
    assert_eq!(pieces[0].1.len(), LINE_MAX);
}

#[test]
fn count_of_oom_kills_is_parsed() {
    assert_eq!(parse_oom_kills("nr_free_pages 1\noom_kill 12\nnuma_hit 3\n"), Some(12));
    assert_eq!(parse_oom_kills("oom_killer 1\n"), None);
}
