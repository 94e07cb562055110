//! Logs with fixed times, and the lines that people see of them.

use super::*;
use time::macros::datetime;

const START: OffsetDateTime = datetime!(2026-11-30 12:00 UTC);

/// Lines of a log, each with the tenths of a second at which it came.
fn feed(progress: &mut Progress, log: &[(i64, &str)]) -> Vec<String> {
    let mut shown = Vec::new();
    for ((tenths, text), seq) in log.iter().zip(1..) {
        let at = START + time::Duration::milliseconds(tenths * 100);
        let (level, text) = ("info".to_owned(), (*text).to_owned());
        let line = api::BuildLine { seq, at, level, step: None, text };
        shown.extend(progress.line(&line, at + AHEAD));
    }
    shown
}

/// Error of this machine's clock.
const AHEAD: time::Duration = time::Duration::hours(3);

fn build(tenths: i64, error: Option<api::BuildError>) -> api::Build {
    api::Build {
        id: "bld-x".to_owned(),
        template: "web".to_owned(),
        tags: Vec::new(),
        status: if error.is_some() { "error" } else { "ready" }.to_owned(),
        phase: None,
        step: 0,
        steps: 0,
        error,
        images: Vec::new(),
        vcpus: 1,
        memory_mib: 512,
        disk_mib: 1024,
        bytes: 0,
        provenance: None,
        created_at: START,
        started_at: Some(START),
        ended_at: Some(START + time::Duration::milliseconds(tenths * 100)),
    }
}

const LOG: &[(i64, &str)] = &[
    (0, "FROM python:3.12"),
    (21, "CACHED [builder 1/4] WORKDIR /app [0a1b2c3d4e5f]"),
    (21, "CACHED [builder 2/4] COPY requirements.txt /app/ [0a1b2c3d4e5f]"),
    (22, "[builder 3/4] RUN pip install -r requirements.txt [0a1b2c3d4e5f]"),
    (30, "[builder 3/4] [stdout]: Collecting flask"),
    (41, "[builder 3/4] [stderr]: \u{1b}[33mWARNING\u{1b}[0m: running as root"),
    (145, "[builder 4/4] COPY . /app [0a1b2c3d4e5f]"),
    (146, "Running start command: python server.py"),
    (146, "Waiting for template to be ready: curl -s localhost:8000"),
    (150, "[start] [stdout]: listening on 8000"),
    (180, "Template is ready"),
    (181, "Build finished, took 18s"),
];

#[test]
fn build_on_a_terminal_has_one_line_for_each_step() {
    let mut progress = Progress::new(Style::Moving { width: 80 });
    let mut shown = feed(&mut progress, LOG);
    shown.extend(progress.end(&build(181, None)));
    let expected = "\
FROM python:3.12                                              2.1 s
[1/4] WORKDIR /app                                            CACHED
[2/4] COPY requirements.txt /app/                             CACHED
[3/4] RUN pip install -r requirements.txt                     12.3 s
[4/4] COPY . /app                                             100 ms
Running start command: python server.py
Waiting for template to be ready: curl -s localhost:8000      3.4 s
Template is ready";
    assert_eq!(shown.join("\n"), expected);
}

#[test]
fn build_elsewhere_shows_all_output_in_order() {
    let mut progress = Progress::new(Style::Plain);
    let mut shown = feed(&mut progress, LOG);
    shown.extend(progress.end(&build(181, None)));
    let expected = "\
FROM python:3.12
done in 2.1 s
[1/4] WORKDIR /app                                            CACHED
[2/4] COPY requirements.txt /app/                             CACHED
[3/4] RUN pip install -r requirements.txt
  │ Collecting flask
  │ WARNING: running as root
[3/4] done in 12.3 s
[4/4] COPY . /app
[4/4] done in 100 ms
Running start command: python server.py
Waiting for template to be ready: curl -s localhost:8000
  │ listening on 8000
done in 3.4 s
Template is ready";
    assert_eq!(shown.join("\n"), expected);
}

#[test]
fn step_under_way_shows_its_time_and_last_output() {
    let mut progress = Progress::new(Style::Moving { width: 40 });
    feed(&mut progress, LOG.get(..6).unwrap());
    // The clock of this machine is wrong by hours, and the step has run for 4.8 seconds.
    let now = START + AHEAD + time::Duration::seconds(7);
    let expected = ["[3/4] RUN pip install -r req…  4.8 s", "  │ WARNING: running as root"];
    assert_eq!(progress.live(now), expected);
    assert!(expected.iter().all(|line| line.chars().count() < 40));
    let mut plain = Progress::new(Style::Plain);
    feed(&mut plain, LOG);
    assert!(plain.live(now).is_empty());
}

#[test]
fn failed_step_shows_the_last_lines_of_its_output() {
    let log = [
        (0, "[builder 1/2] RUN make [0a1b2c3d4e5f]"),
        (5, "[builder 1/2] [stderr]: make: \u{1b}]0;x\u{7}*** No rule"),
        (9, "Build failed: failed to run command 'make': exit status 2"),
    ];
    let error = |output: &[&str]| {
        Some(api::BuildError {
            message: "failed to run command 'make': exit status 2".to_owned(),
            step: Some("1".to_owned()),
            output: output.iter().map(|line| (*line).to_owned()).collect(),
        })
    };
    let mut progress = Progress::new(Style::Moving { width: 80 });
    assert!(feed(&mut progress, &log[..2]).is_empty());
    let shown = progress.end(&build(34, error(&["one\u{1b}[1m", "two"])));
    let row = format!("{:60}  FAILED 3.4 s", "[1/2] RUN make");
    assert_eq!(shown, [row.clone(), "  │ one".to_owned(), "  │ two".to_owned()]);
    // The log's own lines stand in for output that the reason does not have.
    let mut progress = Progress::new(Style::Moving { width: 80 });
    feed(&mut progress, &log[..2]);
    let shown = progress.end(&build(34, error(&[])));
    assert_eq!(shown, [row, "  │ make: \\x1b]0;x\\u{7}*** No rule".to_owned()]);
    // All lines were printed before.
    let mut progress = Progress::new(Style::Plain);
    let shown = feed(&mut progress, &log[..2]);
    assert_eq!(shown.len(), 2);
    assert_eq!(progress.end(&build(34, error(&["one"]))), ["[1/2] FAILED 3.4 s"]);
}

#[test]
fn failed_line_of_the_log_keeps_the_step_for_the_end() {
    let log = [(0, "[builder 1/2] RUN make [0a1b2c3d4e5f]"), (9, "Build failed: exit status 2")];
    let mut progress = Progress::new(Style::Plain);
    feed(&mut progress, &log);
    let error = api::BuildError { message: "x".to_owned(), step: None, output: Vec::new() };
    assert_eq!(progress.end(&build(9, Some(error))), ["[1/2] FAILED 900 ms"]);
}
