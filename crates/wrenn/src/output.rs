//! Everything that the commands print: results on standard output, progress and errors on standard
//! error. Colours and moving progress appear only on a terminal.
#![expect(clippy::print_stderr, reason = "this is where printing is done")]

use crate::client::{BadAnswer, Refused};
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite;

/// Format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Human,
    Json,
}

/// Prints a line.
pub(crate) fn line(text: &str) {
    // A closed pipe is no error: readers such as `head` leave early.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a line of a result that has no end.
///
/// # Errors
/// Fails when the reader has left, so that the command ends too.
pub(crate) fn stream_line(text: &str) -> anyhow::Result<()> {
    raw(format!("{text}\n").as_bytes())
}

/// Prints a line for people, on standard error beside the result.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(text));
}

/// Prints lines for people, on standard error beside the result.
pub(crate) fn notes(lines: &[String]) {
    for text in lines {
        note(text);
    }
}

/// Lines at the end of a terminal that change while work goes on, below lines that stay. Nothing
/// changes outside of a terminal.
pub(crate) struct Live(Option<indicatif::ProgressBar>);

impl Live {
    /// Begins without lines. `moves` is false where lines may not change.
    pub(crate) fn start(moves: bool) -> Self {
        let bar = (moves && std::io::stderr().is_terminal()).then(|| {
            let bar = indicatif::ProgressBar::new_spinner();
            // The template is a valid constant, so no error is expected.
            if let Ok(style) = indicatif::ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self(bar)
    }

    /// Reports whether the lines move.
    pub(crate) fn moves(&self) -> bool {
        self.0.is_some()
    }

    /// Prints lines that stay.
    pub(crate) fn keep(&self, lines: &[String]) {
        match &self.0 {
            Some(bar) => lines.iter().for_each(|text| bar.println(printable(text))),
            None => notes(lines),
        }
    }

    /// Replaces the lines that change.
    pub(crate) fn show(&self, lines: &[String]) {
        if let Some(bar) = &self.0 {
            bar.set_message(printable(&lines.join("\n")));
            bar.tick();
        }
    }

    /// Removes the lines that change.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }

    /// Returns the width of the terminal, in columns. Some terminals do not tell it, or tell 0.
    pub(crate) fn width() -> usize {
        let told = crossterm::terminal::size().ok().map(|(columns, _)| usize::from(columns));
        told.filter(|columns| *columns >= 20).unwrap_or(80)
    }
}

/// Removes control characters, except newlines and tabs. Names and messages may come from a guest.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// Reports whether standard output is a terminal.
pub(crate) fn on_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Clears the terminal, for a table that changes.
pub(crate) fn clear_screen() -> anyhow::Result<()> {
    raw(b"\x1b[H\x1b[2J\x1b[3J")
}

/// Returns the height of the terminal, in lines. Some terminals do not tell it, or tell 0.
pub(crate) fn height() -> usize {
    let told = crossterm::terminal::size().ok().map(|(_, lines)| usize::from(lines));
    told.filter(|lines| *lines >= 5).unwrap_or(24)
}

/// Writes bytes to standard output unchanged.
pub(crate) fn raw(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    Ok(out.write_all(bytes).and_then(|()| out.flush())?)
}

/// Reports whether an error means that the reader of our output is gone.
pub(crate) fn reader_left(error: &anyhow::Error) -> bool {
    let broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.downcast_ref::<std::io::Error>().is_some_and(broken)
}

/// Writes bytes to standard error unchanged.
pub(crate) fn raw_error(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stderr();
    Ok(out.write_all(bytes).and_then(|()| out.flush())?)
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Reports whether an error is a refusal by the server with this code.
pub(crate) fn is_refused(error: &anyhow::Error, code: &str) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == code)
}

/// Builds the error for a name that nothing has.
pub(crate) fn not_found(message: String) -> anyhow::Error {
    failed("not_found", message)
}

/// Builds the error of work that failed, with a code for programs.
pub(crate) fn failed(code: &str, message: String) -> anyhow::Error {
    Refused { code: code.to_owned(), message, request_id: None, status: None }.into()
}

/// Adds a subject to an error's message, for commands that act on several subjects.
pub(crate) fn about(what: &str, error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<Refused>() {
        Ok(refused) => {
            Refused { message: format!("{what}: {}", refused.message), ..refused }.into()
        }
        Err(error) => error.context(what.to_owned()),
    }
}

/// Error of a command with wrong arguments.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Builds the error of a command with wrong arguments.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// Renders an error in the API's own error format. Programs read `code`.
fn failure(error: &anyhow::Error) -> serde_json::Value {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        let Refused { code, message, request_id, status: _ } = refused;
        return serde_json::json!({
            "error": { "code": code, "message": message, "request_id": request_id },
        });
    }
    // This error is no refusal by the platform, so the code names the kind of failure.
    let code = if error.is::<Usage>() {
        "usage"
    } else if error.is::<BadAnswer>() {
        "bad_answer"
    } else {
        let causes: Vec<_> = error.chain().collect();
        let http = causes.iter().find_map(|cause| cause.downcast_ref::<reqwest::Error>());
        match http {
            Some(http) if http.is_decode() => "bad_answer",
            Some(_) => "unreachable",
            None if causes.iter().any(|cause| cause.is::<tungstenite::Error>()) => "unreachable",
            None => "failed",
        }
    };
    serde_json::json!({
        "error": { "code": code, "message": format!("{error:#}"), "request_id": null },
    })
}

/// Prints the error of an unreadable command line, and returns the exit code.
pub(crate) fn unreadable(error: &clap::Error, form: Form) -> ExitCode {
    if form == Form::Human || !error.use_stderr() {
        // A closed pipe is no error: the reader may leave early.
        let _ = error.print();
    } else {
        let text = error.render().to_string();
        let text = text.trim().trim_start_matches("error: ");
        self::error(&usage(text), form);
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Prints an error with its causes.
pub(crate) fn error(error: &anyhow::Error, form: Form) {
    let text = printable(&format!("{error:#}"));
    match form {
        Form::Human if std::io::stderr().is_terminal() => {
            eprintln!("\u{1b}[31merror:\u{1b}[0m {text}");
        }
        Form::Human => eprintln!("error: {text}"),
        Form::Json => eprintln!("{}", failure(error)),
    }
}

/// Prints rows in columns under a header.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    // Users who want no colours set `NO_COLOR` (no-color.org).
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let bold = |text: &&str| {
        let cell = Cell::new(text);
        if colours { cell.add_attribute(Attribute::Bold) } else { cell }
    };
    if header.iter().any(|text| !text.is_empty()) {
        table.set_header(header.iter().map(bold));
    }
    for row in rows {
        table.add_row(row.into_iter().map(|text| match (colours, status_colour(&text)) {
            (true, Some(colour)) => Cell::new(text).fg(colour),
            _ => Cell::new(text),
        }));
    }
    for text in table.lines() {
        line(text.trim_end());
    }
}

fn status_colour(text: &str) -> Option<Color> {
    Some(match text {
        "running" | "online" | "ok" => Color::Green,
        "starting" | "stopping" | "pausing" | "paused" | "resuming" => Color::Yellow,
        "error" | "missing" | "offline" | "failed" => Color::Red,
        _ => return None,
    })
}

/// Progress of work that may take a while. A terminal shows it at once, other outputs when the work
/// is done.
pub(crate) struct Progress {
    what: String,
    since: Instant,
    bar: indicatif::ProgressBar,
}

impl Progress {
    pub(crate) fn start(what: &str) -> Self {
        let bar = indicatif::ProgressBar::new_spinner().with_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { what: what.to_owned(), since: Instant::now(), bar }
    }

    /// Shows the present step on a terminal.
    pub(crate) fn step(&self, step: &str) {
        self.bar.set_message(format!("{}: {}", self.what, printable(step)));
    }

    /// Ends the progress with a line that gives the elapsed time.
    pub(crate) fn done(self) {
        let took = self.since.elapsed();
        self.bar.finish_and_clear();
        note(&format!("  {:<44} {}", self.what, human(took)));
    }

    /// Ends the progress without a line.
    pub(crate) fn clear(self) {
        self.bar.finish_and_clear();
    }
}

/// Progress of a transfer, shown only on a terminal.
#[derive(Clone)]
pub(crate) struct Transfer(indicatif::ProgressBar);

impl Transfer {
    /// Starts the progress. `length` is in bytes, when known.
    pub(crate) fn start(what: &str, length: Option<u64>) -> Self {
        let bar =
            length.map_or_else(indicatif::ProgressBar::no_length, indicatif::ProgressBar::new);
        let template = "{msg}  {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        // The template is a valid constant, so no error is expected.
        if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Self(bar)
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Ends the progress without a line, and returns the number of bytes.
    pub(crate) fn finish(self) -> u64 {
        self.0.finish_and_clear();
        self.0.position()
    }
}

/// Formats a duration for people.
pub(crate) fn human(took: Duration) -> String {
    let (seconds, millis) = (took.as_secs_f64(), took.as_millis());
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..100_000 => format!("{seconds:.1} s"),
        _ => format!("{seconds:.0} s"),
    }
}

/// Formats a number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// Formats the time since `then` for people.
pub(crate) fn ago(then: time::OffsetDateTime) -> String {
    let seconds = (time::OffsetDateTime::now_utc() - then).whole_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds}s ago"),
        120..7200 => format!("{}m ago", seconds / 60),
        7200..172_800 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2J\u{9b}b\r\n\tü"), "a[2Jb\n\tü");
    }
}
