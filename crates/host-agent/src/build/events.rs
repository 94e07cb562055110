//! Events of one build, in a file that only grows. Each line of the file is one event as JSON, with a
//! number from 1 and without gaps. A torn last line, as a crash leaves it, is cut off.
//!
//! An event is on the disk before a caller sees its number. So no number ever stands for two events.

use super::folders::now_ms;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Most events of one answer.
pub(crate) const ANSWER: usize = 1000;
/// Bytes after which an answer takes no further event.
const ANSWER_BYTES: u64 = 1 << 20;

/// Severity of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Contents of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Line { level: Level, step: Option<u32>, text: String },
    Phase { name: String },
    Step { number: u32, cached: bool, took_ms: u64 },
    Prepared { needs_capsule: bool, steps: u32 },
    Built { provenance: String, bytes: u64, starts: bool },
    Failed { step: String, message: String, output: Vec<String> },
}

/// Progress of a build, as far as later events depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    None,
    /// The version is there. The lines of its start may follow.
    Built,
    /// Nothing follows.
    Failed,
}

impl Kind {
    fn end(&self) -> End {
        match self {
            Self::Built { .. } => End::Built,
            Self::Failed { .. } => End::Failed,
            Self::Line { .. } | Self::Phase { .. } | Self::Step { .. } | Self::Prepared { .. } => {
                End::None
            }
        }
    }

    /// Reports whether the event may come after an end.
    fn may_follow(&self, end: End) -> bool {
        match end {
            End::None => true,
            End::Built => matches!(self, Self::Line { .. } | Self::Phase { .. }),
            End::Failed => false,
        }
    }
}

/// An event with its number and time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub number: u64,
    pub at_ms: u64,
    pub kind: Kind,
}

/// The events of one build.
#[derive(Debug)]
pub(crate) struct EventLog {
    file: File,
    /// Position of each event in the file, and the end of the last one.
    offsets: Vec<u64>,
    /// Bytes that are on the disk for certain.
    synced: u64,
    end: End,
    /// The end, if the disk had no room for it.
    unwritten: Option<Event>,
}

impl EventLog {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// Fails when the file cannot be read or written.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).append(true).create(true).open(path)?;
        let (mut offsets, mut last_end) = (vec![0], End::None);
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)? as u64;
            let Ok(event) = serde_json::from_slice::<Event>(&line) else { break };
            if event.number != offsets.len() as u64 || !line.ends_with(b"\n") {
                break;
            }
            last_end = Some(event.kind.end()).filter(|end| *end != End::None).unwrap_or(last_end);
            offsets.push(offsets.last().copied().unwrap_or_default() + read);
        }
        let end = offsets.last().copied().unwrap_or_default();
        file.set_len(end)?;
        file.sync_all()?;
        Ok(Self { file, offsets, synced: end, end: last_end, unwritten: None })
    }

    /// Returns the number of the last event.
    pub(crate) fn last(&self) -> u64 {
        self.offsets.len() as u64 - 1 + u64::from(self.unwritten.is_some())
    }

    /// Reports whether the build has a version or has failed.
    pub(crate) fn is_ended(&self) -> bool {
        self.end != End::None
    }

    /// Reports whether no event will follow.
    pub(crate) fn is_failed(&self) -> bool {
        self.end == End::Failed
    }

    /// Adds an event. Nothing follows a failure, and only lines follow a version. Without room on the
    /// disk, the end stays in memory and other events are dropped.
    pub(crate) fn append(&mut self, kind: Kind) {
        if !kind.may_follow(self.end) || self.unwritten.is_some() {
            return;
        }
        let is_end = kind.end() != End::None;
        let event = Event { number: self.last() + 1, at_ms: now_ms(), kind };
        if is_end {
            self.end = event.kind.end();
        }
        if let Err(error) = self.write(&event) {
            tracing::warn!(%error, "cannot write an event of a build");
            let end = self.offsets.last().copied().unwrap_or_default();
            let _ = self.file.set_len(end);
            self.unwritten = Some(event).filter(|_| is_end);
        }
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        let end = self.offsets.last().copied().unwrap_or_default();
        self.offsets.push(end + line.len() as u64);
        Ok(())
    }

    /// Returns the events after `seen`, at most 1000 and about 1 MiB.
    ///
    /// # Errors
    /// Fails when the file cannot be synced or read.
    pub(crate) fn read(&mut self, seen: u64) -> io::Result<Vec<Event>> {
        let written = self.offsets.len() as u64 - 1;
        let first = usize::try_from(seen.min(written)).map_err(io::Error::other)?;
        let begin = self.offsets.get(first).copied().unwrap_or_default();
        let ends = self.offsets.iter().skip(first + 1).take(ANSWER);
        let end = ends.take_while(|end| **end <= begin + ANSWER_BYTES).last();
        // An event that is larger than an answer comes alone, or its reader would wait for ever.
        let next = self.offsets.get(first + 1);
        let end = end.or(next).copied().unwrap_or(begin);
        if end > self.synced {
            self.file.sync_data()?;
            self.synced = self.offsets.last().copied().unwrap_or_default();
        }
        let mut bytes = vec![0; usize::try_from(end - begin).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, begin)?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let mut events: Vec<Event> = lines.map(serde_json::from_slice).collect::<Result<_, _>>()?;
        if events.len() < ANSWER && events.last().map_or(seen, |last| last.number) == written {
            events.extend(self.unwritten.clone());
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn line(text: &str) -> Kind {
        Kind::Line { level: Level::Info, step: Some(1), text: text.to_owned() }
    }

    fn failed() -> Kind {
        Kind::Failed { step: "1".into(), message: "m".into(), output: vec!["a".into()] }
    }

    fn all(log: &mut EventLog) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let seen = events.last().map_or(0, |last| last.number);
            let more = log.read(seen).unwrap();
            if more.is_empty() {
                return events;
            }
            events.extend(more);
        }
    }

    #[test]
    fn only_lines_follow_a_version() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(&dir.path().join("events")).unwrap();
        log.append(Kind::Built { provenance: "{}".into(), bytes: 1, starts: true });
        log.append(failed());
        log.append(line("start"));
        assert!(log.is_ended() && !log.is_failed());
        assert_eq!(all(&mut log).len(), 2);
        let log = EventLog::open(&dir.path().join("events")).unwrap();
        assert!(log.is_ended() && !log.is_failed());
    }

    #[test]
    fn nothing_follows_the_failure_of_a_build() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(&dir.path().join("events")).unwrap();
        log.append(line("a"));
        log.append(failed());
        log.append(line("b"));
        assert!(log.is_failed());
        assert_eq!((log.last(), all(&mut log).len()), (2, 2));
        let log = EventLog::open(&dir.path().join("events")).unwrap();
        assert!(log.is_failed());
    }

    #[test]
    fn answer_has_at_most_a_thousand_events() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(&dir.path().join("events")).unwrap();
        (0..1500).for_each(|_| log.append(line("x")));
        assert_eq!((log.read(0).unwrap().len(), log.read(1000).unwrap().len()), (1000, 500));
        assert!(log.read(1500).unwrap().is_empty());
        assert!(log.read(9999).unwrap().is_empty());
        let large = "y".repeat(4000);
        (0..600).for_each(|_| log.append(line(&large)));
        let answer = log.read(1500).unwrap().len();
        assert!((200..300).contains(&answer), "{answer}");
        assert_eq!(all(&mut log).len(), 2100);
        log.append(line(&"z".repeat(2 << 20)));
        assert_eq!((log.read(2100).unwrap().len(), all(&mut log).len()), (1, 2101));
    }

    proptest! {
        #[test]
        fn cut_file_has_a_prefix_of_its_events_without_gaps(
            texts in proptest::collection::vec(".{0,40}", 1..20),
            share in 0.0f64..1.0,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("events");
            let mut log = EventLog::open(&path).unwrap();
            texts.iter().for_each(|text| log.append(line(text)));
            let written = all(&mut log);
            prop_assert_eq!(written.len(), texts.len());
            let length = fs::metadata(&path).unwrap().len();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a share of a small file")]
            let cut = (length as f64 * share) as u64;
            File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
            let mut log = EventLog::open(&path).unwrap();
            let left = usize::try_from(log.last()).unwrap();
            prop_assert_eq!(&all(&mut log), &written[..left]);
            log.append(failed());
            let numbers: Vec<u64> = all(&mut log).iter().map(|event| event.number).collect();
            prop_assert_eq!(numbers, (1..=left as u64 + 1).collect::<Vec<_>>());
        }
    }
}
