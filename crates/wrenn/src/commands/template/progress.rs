//! The view that people have of a build. It is pure: lines of the log in, lines for people out.
//!
//! On a terminal, a step becomes a line once it ends, with its time or `CACHED`. The step under way
//! and its last output stand below. Elsewhere every line of output is printed, under its step.

mod text;

use std::collections::VecDeque;
use std::time::Duration;
use text::{Kind, clean, cut};
use time::OffsetDateTime;

pub(in crate::commands) use text::clean as printable;

/// Column in which times begin, on a terminal that is wide enough.
const TIME_COLUMN: usize = 60;
/// Room for a time and the space before it.
const TIME_WIDTH: usize = 10;
/// Widest step where nothing limits the width.
const PLAIN_WIDTH: usize = 120;
/// Lines of output that are shown again when a step fails.
const TAIL: usize = 20;

/// Form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Lines for a terminal of this width. Output shows only while its step runs, or fails.
    Moving { width: usize },
    /// All lines, in order.
    Plain,
}

/// Work that began and did not end yet.
#[derive(Debug)]
struct Work {
    title: String,
    since: OffsetDateTime,
    /// Set for steps. Other work shows its time only if it took long.
    is_step: bool,
}

/// State of the lines.
#[derive(Debug)]
pub(super) struct Progress {
    style: Style,
    work: Option<Work>,
    /// Last lines of the work's output.
    tail: VecDeque<String>,
    /// Time by which this machine's clock seems to be ahead of the platform's.
    ahead: Option<time::Duration>,
}

impl Progress {
    pub(super) fn new(style: Style) -> Self {
        Self { style, work: None, tail: VecDeque::new(), ahead: None }
    }

    /// Takes a line of the log at the time `now` of this machine. Returns lines that stay.
    pub(super) fn line(&mut self, line: &api::BuildLine, now: OffsetDateTime) -> Vec<String> {
        let ahead = now - line.at;
        self.ahead = Some(self.ahead.map_or(ahead, |known| known.min(ahead)));
        match text::read(&line.text) {
            Kind::Output(output) => self.output(output),
            Kind::Step { title, is_cached } => {
                let mut lines = self.finish(line.at, None);
                if is_cached {
                    lines.push(self.row(&title, "CACHED"));
                } else {
                    lines.extend(self.begin(title, line.at, true));
                }
                lines
            }
            // The end of the build says the same, with more. Only then it is known if the step
            // under way failed.
            Kind::End => Vec::new(),
            Kind::Other(text) => match line.level.as_str() {
                "debug" => Vec::new(),
                "warn" => vec![format!("warning: {text}")],
                _ => {
                    let mut lines = self.finish(line.at, None);
                    lines.extend(self.begin(text, line.at, false));
                    lines
                }
            },
        }
    }

    fn output(&mut self, output: &str) -> Vec<String> {
        let output = clean(output);
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(output.clone());
        match self.style {
            Style::Moving { .. } => Vec::new(),
            Style::Plain => vec![quoted(&output)],
        }
    }

    fn begin(&mut self, title: String, since: OffsetDateTime, is_step: bool) -> Option<String> {
        self.tail.clear();
        let line = matches!(self.style, Style::Plain).then(|| cut(&title, PLAIN_WIDTH));
        self.work = Some(Work { title, since, is_step });
        line
    }

    /// Ends the work under way. `failed` replaces the row's end.
    fn finish(&mut self, at: OffsetDateTime, failed: Option<&str>) -> Vec<String> {
        let Some(work) = self.work.take() else { return Vec::new() };
        let took = Duration::try_from(at - work.since).unwrap_or_default();
        let shows = work.is_step || took >= Duration::from_secs(1) || failed.is_some();
        let end = match failed {
            Some(failed) => format!("{failed} {}", crate::output::human(took)),
            None if shows => crate::output::human(took),
            None => String::new(),
        };
        match self.style {
            Style::Moving { .. } => vec![self.row(&work.title, &end)],
            Style::Plain if end.is_empty() => Vec::new(),
            Style::Plain => {
                // Output may stand between the step and its end, so the end names the step again.
                let name = work.title.split_once(']').map_or("", |(name, _)| name);
                let name = if name.is_empty() { String::new() } else { format!("{name}] ") };
                let done = if failed.is_some() { "" } else { "done in " };
                vec![format!("{name}{done}{end}")]
            }
        }
    }

    /// Makes a line of a title and its end.
    fn row(&self, title: &str, end: &str) -> String {
        let room = match self.style {
            Style::Moving { width } => width.saturating_sub(TIME_WIDTH + 1).max(20),
            Style::Plain => PLAIN_WIDTH,
        };
        let title = cut(title, room);
        let column = TIME_COLUMN.min(room);
        format!("{title:<column$}  {end}").trim_end().to_owned()
    }

    /// Returns the lines that show the work under way: the step with its time, and its last output.
    pub(super) fn live(&self, now: OffsetDateTime) -> Vec<String> {
        let (Style::Moving { width }, Some(work)) = (self.style, &self.work) else {
            return Vec::new();
        };
        let now = now - self.ahead.unwrap_or_default();
        let took = Duration::try_from(now - work.since).unwrap_or_default();
        let row = self.row(&work.title, &format!("{:.1} s", took.as_secs_f64()));
        let last = self.tail.iter().rev().find(|line| !line.trim().is_empty());
        [row].into_iter().chain(last.map(|line| cut(&quoted(line), width - 1))).collect()
    }

    /// Ends the progress. A failed build shows its step and the last lines of output.
    pub(super) fn end(&mut self, build: &api::Build) -> Vec<String> {
        let at = build.ended_at.or(self.work.as_ref().map(|work| work.since));
        let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let Some(error) = &build.error else { return self.finish(at, None) };
        let mut lines = self.finish(at, Some("FAILED"));
        if matches!(self.style, Style::Moving { .. }) {
            let given: Vec<String> = error.output.iter().map(|line| clean(line)).collect();
            let own = || self.tail.iter().cloned().collect();
            let tail: Vec<String> = if given.is_empty() { own() } else { given };
            lines.extend(tail.iter().map(|line| quoted(line)));
        }
        lines
    }
}

/// Marks a line as a program's.
fn quoted(line: &str) -> String {
    format!("  │ {line}").trim_end().to_owned()
}

#[cfg(test)]
mod tests;
