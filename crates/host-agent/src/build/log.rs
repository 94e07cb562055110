//! Log of one build: its events, with a limit for lines. Beyond the limit, only errors are written at
//! once, and the last lines follow at the end. Readers wait here for new events.

use super::Failure;
use super::events::{Event, EventLog, Kind, Level};
use super::output::lines_of;
use daemon::lock;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::watch;

/// Name of the file of events in a build's folder.
const EVENTS: &str = "events";
/// Most lines of a build, and their bytes, before the log is cut.
const LINES: usize = 10_000;
const BYTES: usize = 4 << 20;
/// Lines that follow a cut at the end.
const TAIL: usize = 200;
/// Errors that are written after a cut.
const ERRORS: usize = 1000;
/// Wait of a reader for further events after a first one.
const BATCH: Duration = Duration::from_millis(50);

/// Log of one build.
#[derive(Debug)]
pub(super) struct Log {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    events: EventLog,
    cap: Cap,
}

/// Count of lines so far, and the lines that a cut holds back.
#[derive(Debug, Default)]
struct Cap {
    lines: usize,
    bytes: usize,
    errors: usize,
    tail: VecDeque<Kind>,
}

impl Cap {
    /// Takes a line, and returns the events that are due now.
    fn admit(&mut self, level: Level, step: Option<u32>, text: String) -> Vec<Kind> {
        let was_cut = self.is_cut();
        self.lines += 1;
        self.bytes += text.len();
        let line = Kind::Line { level, step, text };
        match (self.is_cut(), was_cut) {
            (false, _) => return vec![line],
            (true, false) => {
                self.hold(line);
                let text = format!("log cut: over {LINES} lines or {} MiB", BYTES >> 20);
                return vec![Kind::Line { level: Level::Warn, step, text }];
            }
            (true, true) => {}
        }
        if level == Level::Error && self.errors < ERRORS {
            self.errors += 1;
            return vec![line];
        }
        self.hold(line);
        Vec::new()
    }

    fn is_cut(&self) -> bool {
        self.lines > LINES || self.bytes > BYTES
    }

    fn hold(&mut self, line: Kind) {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }
}

impl Log {
    /// Reports whether a build's folder has a log.
    pub(super) fn exists(dir: &Path) -> bool {
        dir.join(EVENTS).exists()
    }

    /// Opens the log in a build's folder.
    ///
    /// # Errors
    /// Fails when the file of events cannot be read or made.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let events = EventLog::open(&dir.join(EVENTS))?;
        let changed = watch::Sender::new(events.last());
        Ok(Self { inner: Mutex::new(Inner { events, cap: Cap::default() }), changed })
    }

    /// Writes a text as one or more lines.
    pub(super) fn line(&self, level: Level, step: Option<u32>, text: &str) {
        for text in lines_of(text) {
            self.change(|inner| {
                let due = inner.cap.admit(level, step, text);
                due.into_iter().for_each(|kind| inner.events.append(kind));
            });
        }
    }

    /// Writes a text as one line, whatever characters it has.
    pub(super) fn whole_line(&self, level: Level, step: Option<u32>, text: &str) {
        let text = text.replace('\0', "\u{fffd}");
        self.change(|inner| {
            let due = inner.cap.admit(level, step, text);
            due.into_iter().for_each(|kind| inner.events.append(kind));
        });
    }

    pub(super) fn info(&self, text: &str) {
        self.line(Level::Info, None, text);
    }

    /// Adds an event that is no line and no end.
    pub(super) fn event(&self, kind: Kind) {
        self.change(|inner| inner.events.append(kind));
    }

    pub(super) fn phase(&self, name: &str) {
        self.event(Kind::Phase { name: name.to_owned() });
    }

    /// Writes the last lines and a failure. Only the first end of a build counts.
    pub(super) fn fail(&self, failure: Failure) {
        let text = format!("Build failed: {}", failure.message);
        self.line(Level::Error, None, &text);
        let Failure { step, message, output } = failure;
        self.end(Kind::Failed { step, message: message.replace('\0', "\u{fffd}"), output });
    }

    /// Writes the last lines and the end.
    pub(super) fn end(&self, end: Kind) {
        self.change(|inner| {
            for kind in std::mem::take(&mut inner.cap.tail) {
                inner.events.append(kind);
            }
            inner.events.append(end);
            // The lines of a start have an allowance of their own.
            inner.cap = Cap::default();
        });
    }

    pub(super) fn is_ended(&self) -> bool {
        lock(&self.inner).events.is_ended()
    }

    fn is_failed(&self) -> bool {
        lock(&self.inner).events.is_failed()
    }

    fn change(&self, work: impl FnOnce(&mut Inner)) {
        let last = {
            let mut inner = lock(&self.inner);
            work(&mut inner);
            inner.events.last()
        };
        self.changed.send_replace(last);
    }

    /// Returns the events after `seen`. Waits up to `most` for one.
    ///
    /// # Errors
    /// Fails when the file cannot be read.
    pub(super) async fn watch(&self, seen: u64, most: Duration) -> io::Result<Vec<Event>> {
        let mut changed = self.changed.subscribe();
        if *changed.borrow() <= seen && !self.is_failed() {
            let waiting = async { changed.wait_for(|last| *last > seen).await.is_ok() };
            let waited = tokio::time::timeout(most, waiting).await;
            if waited.is_ok() && !self.is_failed() {
                tokio::time::sleep(BATCH).await;
            }
        }
        lock(&self.inner).events.read(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(log: &Log) -> Vec<String> {
        let (mut texts, mut seen) = (Vec::new(), 0);
        loop {
            let events = lock(&log.inner).events.read(seen).unwrap();
            let Some(last) = events.last() else { return texts };
            seen = last.number;
            for event in events {
                texts.push(if let Kind::Line { text, .. } = event.kind {
                    text
                } else {
                    format!("{:?}", event.kind)
                });
            }
        }
    }

    #[test]
    fn cut_log_keeps_errors_and_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path()).unwrap();
        (0..LINES).for_each(|n| log.info(&n.to_string()));
        assert_eq!(texts(&log).len(), LINES);
        (0..500).for_each(|n| log.info(&format!("late {n}")));
        log.line(Level::Error, None, "bad");
        let cut = texts(&log);
        assert_eq!(cut.len(), LINES + 2);
        assert!(cut[LINES].starts_with("log cut"), "{}", cut[LINES]);
        assert_eq!(cut[LINES + 1], "bad");
        log.fail(Failure::base("gone"));
        let ended = texts(&log);
        assert_eq!(ended[LINES + 2], "Build failed: gone");
        assert_eq!((&*ended[LINES + 3], ended.len()), ("late 300", LINES + 3 + TAIL + 1));
        assert!(ended.last().unwrap().contains("gone"));
    }

    #[test]
    fn log_of_large_lines_is_cut_by_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path()).unwrap();
        let line = "x".repeat(4000);
        (0..1100).for_each(|_| log.info(&line));
        assert_eq!(texts(&log).len(), BYTES / 4000 + 1);
    }

    #[tokio::test]
    async fn reader_waits_for_an_event_and_not_beyond_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path()).unwrap();
        let none = log.watch(0, Duration::from_millis(10)).await.unwrap();
        assert!(none.is_empty());
        let (events, ()) =
            tokio::join!(log.watch(0, Duration::from_secs(20)), async { log.info("a") });
        assert_eq!(events.unwrap().len(), 1);
        log.fail(Failure::base("x"));
        assert!(log.watch(3, Duration::from_secs(20)).await.unwrap().is_empty());
    }
}
