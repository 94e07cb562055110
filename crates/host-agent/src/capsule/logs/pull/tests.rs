//! Tests of a guest's output on its way to a log: places in a console, hostile answers, and envd's
//! answers over a connection.

use super::*;
use crate::config::LogLimits;
use crate::context::AgentContext;
use crate::guest::Route;
use crate::log::{Logs, Query as LogQuery, Reading, local};
use crate::vmm::null::{NullDriver, NullMachine};
use axum::extract::Query as AxumQuery;
use axum::http::StatusCode;
use axum::routing::get;
use bytes::Bytes;
use daemon::{Tasks, lock};
use protocol::log::{Head, Piece};
use std::path::Path;
use std::sync::Mutex;

/// Returns all lines of a log, with their streams.
fn lines(dir: &Path, id: CapsuleId) -> Vec<(String, String)> {
    let logs = Logs::new(dir.join("logs"), LogLimits::default());
    let mut reading = Reading::new(LogQuery { limit: 1000, ..LogQuery::default() });
    for part in local(&logs.folder("team", id).unwrap()).unwrap() {
        match part.location {
            crate::log::Location::Bytes(bytes) => reading.scan(&bytes).unwrap(),
            crate::log::Location::File(path) => {
                reading.scan(&std::fs::read(path).unwrap()).unwrap()
            }
            crate::log::Location::Store => {}
        }
    }
    let entries = reading.finish().entries;
    entries.into_iter().map(|entry| (entry.stream, entry.text)).collect()
}

fn texts(dir: &Path, id: CapsuleId) -> Vec<String> {
    lines(dir, id).into_iter().map(|(_, text)| text).collect()
}

fn open(dir: &Path, id: CapsuleId) -> Arc<CapsuleLog> {
    Logs::new(dir.join("logs"), LogLimits::default()).open("team", id).unwrap()
}

fn machine(console: &[u8]) -> NullMachine {
    NullMachine { console: console.to_vec(), ..NullMachine::at(1) }
}

#[test]
fn complete_lines_are_taken_and_a_rest_that_is_too_long() {
    assert_eq!(complete(b"a\nbc", false), 2);
    assert_eq!(complete(b"a\nbc", true), 4);
    assert_eq!(complete(b"", true), 0);
    assert_eq!(complete(&[b'x'; LINE_MAX], false), 0);
    assert_eq!(complete(&[b'x'; LINE_MAX + 1], false), LINE_MAX + 1);
}

#[test]
fn quiet_console_is_looked_at_more_rarely() {
    let looks = (0..30).filter(|quiet| is_due(*quiet)).count();
    assert_eq!(looks, 10);
}

#[test]
fn guest_that_sends_marks_without_end_adds_bounded_entries() {
    let mark = || {
        let (mark, none) = piece(1, Kind::Dropped, 0, b"");
        (Piece { dropped: 1, ..mark }, none)
    };
    let pieces = (0..100_000).map(|_| mark()).collect();
    let head = Head { epoch: 5, after: 0, oom_kills: None };
    let (entries, _) = entries(&LogAnswer { head, pieces }, 1 << 41);
    assert!(entries.len() <= PULL_MAX / 64 + 1, "{}", entries.len());
    assert_eq!(entries.iter().map(|entry| entry.dropped).sum::<u64>(), 100_000);
}

#[test]
fn place_after_the_last_known_bytes_is_found() {
    let last = hex::encode(b"two\n");
    assert_eq!(locate(b"one\ntwo\nthree\n", &last), 8);
    assert_eq!(locate(b"two\ntwo\n", &last), 8, "the last of several");
    assert_eq!(locate(b"three\n", &last), 0);
    assert_eq!(locate(b"", &last), 0);
    for none in ["", "0", "zz", "ää"] {
        assert_eq!(locate(b"one\n", none), 0, "{none}");
    }
}

#[tokio::test]
async fn console_goes_on_where_the_log_ends_also_after_a_new_agent() {
    let dir = tempfile::tempdir().unwrap();
    let id = CapsuleId::new();
    {
        let log = open(dir.path(), id);
        console(&log, &machine(b"one\ntw"), false).await.unwrap();
        assert_eq!(texts(dir.path(), id), ["one"]);
        console(&log, &machine(b"one\ntwo\nthr"), false).await.unwrap();
        assert_eq!(texts(dir.path(), id), ["one", "two"]);
    }
    let log = open(dir.path(), id);
    assert!(console(&log, &machine(b"one\ntwo\nthree\npro"), false).await.unwrap());
    assert_eq!(texts(dir.path(), id), ["one", "two", "three"]);
    // An unfinished line that stands is a line.
    assert!(console(&log, &machine(b"one\ntwo\nthree\npro"), false).await.unwrap());
    assert!(!console(&log, &machine(b"one\ntwo\nthree\npro"), false).await.unwrap());
    console(&log, &machine(b"one\ntwo\nthree\nprompt"), true).await.unwrap();
    assert_eq!(texts(dir.path(), id), ["one", "two", "three", "pro", "mpt"]);
}

fn piece(number: u64, kind: Kind, at_ms: u64, data: &'static [u8]) -> (Piece, Bytes) {
    let bytes = data.len();
    let command = "sh -c x".to_owned();
    let piece = Piece { number, at_ms, pid: 7, command, kind, bytes, dropped: 0 };
    (piece, Bytes::from_static(data))
}

#[test]
fn answer_of_a_lying_guest_becomes_bounded_entries() {
    let now = 1 << 41;
    let (mut mark, none) = piece(9, Kind::Dropped, now, b"");
    mark.dropped = u64::MAX;
    mark.command = "ü".repeat(COMMAND_MAX);
    let pieces = vec![
        piece(1, Kind::Stdout, 0, b"from 1970\n"),
        piece(u64::MAX, Kind::Stderr, u64::MAX, b"\x1b[2J\xff\n"),
        piece(3, Kind::Exit, now, b"exit status 3"),
        (mark, none),
    ];
    let head = Head { epoch: 5, after: 0, oom_kills: None };
    let (entries, number) = entries(&LogAnswer { head, pieces }, now);
    assert_eq!(number, u64::MAX);
    assert!(entries.iter().all(|entry| entry.at_ms <= now && entry.at_ms >= now - AGE_MAX_MS));
    let streams: Vec<&str> = entries.iter().map(|entry| entry.stream.as_str()).collect();
    assert_eq!(streams, ["stdout", "stderr", "exit", "dropped"]);
    assert_eq!(entries[1].text, "\u{1b}[2J\u{fffd}");
    assert_eq!((entries[3].dropped, entries[3].pid), (DROPPED_MAX, Some(7)));
    assert!(entries[3].command.len() <= COMMAND_MAX);
}

/// Serves answers of envd by `answer`. Returns the guest.
async fn guest(answer: impl Fn(&Query) -> Option<Vec<u8>> + Send + Sync + 'static) -> Guest {
    let answer = Arc::new(answer);
    let serve = move |AxumQuery(query): AxumQuery<Query>| {
        let answer = Arc::clone(&answer);
        async move { answer(&query).ok_or(StatusCode::INTERNAL_SERVER_ERROR) }
    };
    let router = axum::Router::new().route(protocol::log::PATH, get(serve));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let tasks = Tasks::default();
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    Guest::new(Route::Loopback(at), "token", 8, tasks)
}

fn body(epoch: u64, pieces: &[(Piece, Bytes)]) -> Vec<u8> {
    let mut body = serde_json::to_vec(&Head { epoch, after: 0, oom_kills: Some(1) }).unwrap();
    body.push(b'\n');
    for (piece, data) in pieces {
        body.extend(serde_json::to_vec(piece).unwrap());
        body.push(b'\n');
        body.extend_from_slice(data);
    }
    body
}

#[tokio::test]
async fn pull_passes_the_cursor_that_the_log_has_and_a_failed_pull_moves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let context = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }));
    let host = Host::new(Arc::new(context), None);
    let id = CapsuleId::new();
    let seen = Arc::<Mutex<Vec<Query>>>::default();
    let asked = Arc::clone(&seen);
    let guest = guest(move |query| {
        lock(&asked).push(query.clone());
        match query.number {
            None => Some(body(5, &[piece(4, Kind::Stdout, 0, b"one\ntwo\n")])),
            Some(4) if lock(&asked).len() < 3 => None,
            Some(_) => Some(body(5, &[piece(6, Kind::Exit, 0, b"exit status 0")])),
        }
    })
    .await;
    let log = host.context.logs.open("team", id).unwrap();
    let pull = async || process(&host, &log, &guest, "token", Duration::ZERO).await;
    assert!(matches!(pull().await, Ok(Pulled::Read(Some(1)))));
    assert!(pull().await.is_err());
    assert!(pull().await.is_ok());
    let cursors: Vec<_> = lock(&seen).iter().map(|query| (query.epoch, query.number)).collect();
    assert_eq!(cursors, [(None, None), (Some(5), Some(4)), (Some(5), Some(4))]);
    assert_eq!(log.position().piece, Some((5, 6)));
    assert_eq!(texts(dir.path(), id), ["one", "two", "exit status 0"]);
    // An append that was begun for an earlier cursor adds nothing.
    let entry = Entry::new(Source::Process, "stdout", 0, "again".to_owned());
    log.append_after(Some((5, 4)), vec![entry], &Advance::Piece(5, 6)).unwrap();
    assert_eq!(texts(dir.path(), id).len(), 3);
}

#[tokio::test]
async fn answer_of_too_many_bytes_or_of_another_form_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let context = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }));
    let host = Host::new(Arc::new(context), None);
    let id = CapsuleId::new();
    let log = host.context.logs.open("team", id).unwrap();
    for answer in [vec![b'x'; 4 << 20], b"{}\n".to_vec(), Vec::new()] {
        let guest = guest(move |_| Some(answer.clone())).await;
        assert!(process(&host, &log, &guest, "token", Duration::ZERO).await.is_err());
    }
    assert!(texts(dir.path(), id).is_empty());
}
