//! Turns a host's events into one change of the build's row and log. Pure.

use crate::db::build_logs::Level;
use crate::db::build_runs::{Batch, Built, Line};
use crate::db::builds::{Build, Reason};
use protocol::host::__buffa::oneof::build_event::Event;
use protocol::host::BuildEvent;
use time::OffsetDateTime;
use types::CapsuleId;

/// Longest line of a log, in bytes.
const LINE_MAX: usize = 16 * 1024;
/// Most lines of output in the reason of a failure.
const OUTPUT_MAX: usize = 50;

/// Reason why events cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("the host lost events of the build")]
    Gap,
    #[error("the host described the version in an unreadable form")]
    Provenance,
}

/// Collects the effect of all events that the row has not seen. `fresh` makes the id of a capsule
/// that the build needs next.
pub(super) fn collect(
    build: &Build,
    events: Vec<BuildEvent>,
    fresh: impl Fn() -> CapsuleId,
) -> Result<Batch, Broken> {
    let mut batch = Batch { seen: build.events_seen, ..Batch::default() };
    for BuildEvent { number, at_ms, event, .. } in events {
        // A repeated answer may begin with events that the row has.
        if number <= batch.seen {
            continue;
        }
        if number != batch.seen + 1 {
            return Err(Broken::Gap);
        }
        batch.seen = number;
        // An event of a newer agent has no effect here.
        let Some(event) = event else { continue };
        match event {
            Event::Line(line) => batch.lines.push(Line {
                at: time_of(at_ms),
                level: line.level.parse().unwrap_or(Level::Info),
                step: line.step.and_then(|step| i32::try_from(step).ok()),
                text: legible(&line.text),
            }),
            Event::Phase(phase) => batch.phase = phase.name.parse().ok().or(batch.phase),
            Event::Step(step) => batch.step = Some(bounded(step.number)),
            Event::Prepared(prepared) => {
                batch.steps = Some(bounded(prepared.steps));
                if prepared.needs_capsule && build.capsule_id.is_none() {
                    batch.capsule = Some(Some(fresh()));
                }
            }
            Event::Built(built) => {
                let provenance = serde_json::from_slice(&built.provenance);
                let provenance = provenance.map_err(|_| Broken::Provenance)?;
                batch.built = Some(Built { provenance, bytes: built.bytes });
                batch.capsule = Some(built.starts.then(&fresh));
            }
            Event::Failed(failed) => {
                let output = failed.output.iter().rev().take(OUTPUT_MAX).rev();
                batch.failed.get_or_insert(Reason {
                    message: legible(&failed.message),
                    step: known_step(&failed.step),
                    output: output.map(|line| legible(line)).collect(),
                });
            }
        }
    }
    Ok(batch)
}

/// Returns the part of a failed step that clients understand.
fn known_step(step: &str) -> Option<String> {
    let known = matches!(step, "base" | "finalize") || step.parse::<u32>().is_ok();
    known.then(|| step.to_owned())
}

fn bounded(number: u32) -> u32 {
    number.min(i32::MAX.unsigned_abs())
}

fn time_of(at_ms: u64) -> OffsetDateTime {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000);
    at.unwrap_or_else(|_| OffsetDateTime::now_utc())
}

/// Cuts a text to the longest line, and replaces NUL characters, which the database refuses.
fn legible(text: &str) -> String {
    let end = text.floor_char_boundary(LINE_MAX);
    text[..end].replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::build;
    use super::*;
    use crate::db::builds::BuildPhase;
    use protocol::host::build_event as wire;

    fn event(number: u64, event: Event) -> BuildEvent {
        BuildEvent { number, at_ms: 1000, event: Some(event), ..Default::default() }
    }

    fn line(number: u64, text: &str) -> BuildEvent {
        let (level, text) = ("warn".to_owned(), text.to_owned());
        let line = wire::Line { level, text, step: Some(2), ..Default::default() };
        event(number, Event::Line(Box::new(line)))
    }

    fn built(number: u64, starts: bool) -> BuildEvent {
        let provenance = serde_json::to_vec(&recipe::Provenance::default()).unwrap();
        let built = wire::Built { provenance, bytes: 7, starts, ..Default::default() };
        event(number, Event::Built(Box::new(built)))
    }

    #[test]
    fn repeated_events_are_left_out_and_a_gap_is_refused() {
        let mut row = build();
        row.events_seen = 2;
        let batch = collect(&row, vec![line(1, "a"), line(2, "b"), line(3, "c")], CapsuleId::new);
        let batch = batch.unwrap();
        assert_eq!((batch.seen, batch.lines.len()), (3, 1));
        assert_eq!((batch.lines[0].level, batch.lines[0].step), (Level::Warn, Some(2)));
        assert_eq!(collect(&row, vec![line(4, "d")], CapsuleId::new), Err(Broken::Gap));
    }

    #[test]
    fn hostile_line_is_cut_and_made_storable() {
        let long = format!("a\0{}", "ü".repeat(LINE_MAX));
        let batch = collect(&build(), vec![line(1, &long)], CapsuleId::new).unwrap();
        let text = &batch.lines[0].text;
        assert!(text.starts_with("a\u{fffd}ü") && text.len() <= LINE_MAX + 2, "{}", text.len());
    }

    #[test]
    fn capsule_is_named_for_steps_and_for_the_start_command_alone() {
        let id = CapsuleId::new();
        let needs = |needs_capsule| {
            let prepared = wire::Prepared { needs_capsule, steps: 3, ..Default::default() };
            event(1, Event::Prepared(Box::new(prepared)))
        };
        let of = |events| collect(&build(), events, || id).unwrap();
        assert_eq!(of(vec![needs(false)]).capsule, None);
        assert_eq!(of(vec![needs(true)]).capsule, Some(Some(id)));
        assert_eq!(of(vec![needs(true)]).steps, Some(3));
        // A build whose steps are all cached goes on at once.
        assert_eq!(of(vec![needs(true), built(2, false)]).capsule, Some(None));
        assert_eq!(of(vec![needs(false), built(2, true)]).capsule, Some(Some(id)));
        assert_eq!(of(vec![built(1, true)]).built.unwrap().bytes, 7);
    }

    #[test]
    fn first_failure_counts_and_unknown_words_are_ignored() {
        let failed = |number, step: &str, message: &str| {
            let (step, message) = (step.to_owned(), message.to_owned());
            let output = vec!["x".to_owned(); 100];
            let failed = wire::Failed { step, message, output, ..Default::default() };
            event(number, Event::Failed(Box::new(failed)))
        };
        let phase = |number, name: &str| {
            let phase = wire::Phase { name: name.to_owned(), ..Default::default() };
            event(number, Event::Phase(Box::new(phase)))
        };
        let unknown = BuildEvent { number: 3, ..Default::default() };
        let events = vec![phase(1, "steps"), phase(2, "later"), unknown, failed(4, "7", "a")];
        let batch = collect(&build(), events, CapsuleId::new).unwrap();
        assert_eq!((batch.phase, batch.seen), (Some(BuildPhase::Steps), 4));
        let reason = batch.failed.unwrap();
        assert_eq!((reason.step.as_deref(), reason.output.len()), (Some("7"), OUTPUT_MAX));
        let both = vec![failed(1, "odd", "first"), failed(2, "base", "second")];
        let reason = collect(&build(), both, CapsuleId::new).unwrap().failed.unwrap();
        assert_eq!((reason.step, reason.message.as_str()), (None, "first"));
    }

    #[test]
    fn unreadable_provenance_is_refused() {
        let provenance = b"{".to_vec();
        let built = wire::Built { provenance, ..Default::default() };
        let events = vec![event(1, Event::Built(Box::new(built)))];
        assert_eq!(collect(&build(), events, CapsuleId::new), Err(Broken::Provenance));
    }
}
