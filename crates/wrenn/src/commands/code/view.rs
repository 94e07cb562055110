//! The view of an execution: output as it comes, results as text or pictures, and errors with their
//! tracebacks on standard error.

use super::line::Line;
use super::pictures::Picture;
use crate::cli::{self, Pictures};
use crate::output::{self, Form};
use serde_json::{Map, Value};
use std::process::ExitCode;

/// Exit code of code that reached its time limit, as `timeout(1)` has it.
const TIMED_OUT: u8 = 124;

/// View of one execution.
pub(super) struct View {
    form: Form,
    pictures: Option<Pictures>,
    /// Name of the error that the code ended with.
    failure: Option<String>,
}

impl View {
    /// Begins a view. Pictures are shown only on a terminal.
    pub(super) fn new(form: Form) -> Self {
        let pictures = if output::on_terminal() { cli::pictures() } else { None };
        Self { form, pictures, failure: None }
    }

    /// Prints a line.
    pub(super) fn show(&mut self, bytes: &[u8], line: Line) -> anyhow::Result<()> {
        if let Line::Error { name, .. } = &line {
            self.failure = Some(name.clone());
        }
        if self.form == Form::Json {
            return output::raw(&[bytes, b"\n"].concat());
        }
        match line {
            Line::Stdout { text } => output::raw(text.as_bytes()),
            Line::Stderr { text } => output::raw_error(text.as_bytes()),
            Line::Result(result) => self.result(&result),
            Line::Error { name, value, traceback } => {
                output::raw_error(failure(&name, &value, &traceback).as_bytes())
            }
            Line::Omitted { bytes, .. } => {
                output::note(&format!("[about {bytes} bytes of output are missing here]"));
                Ok(())
            }
            Line::ExecutionStarted { .. }
            | Line::Keepalive
            | Line::EndOfExecution
            | Line::Other => Ok(()),
        }
    }

    fn result(&self, result: &Map<String, Value>) -> anyhow::Result<()> {
        match picture(result) {
            Some(picture) => picture.show(self.pictures),
            None => match text(result) {
                Some(text) => output::raw(with_end(text).as_bytes()),
                None => Ok(()),
            },
        }
    }

    /// Returns the exit code of the execution.
    pub(super) fn exit(&self) -> ExitCode {
        match self.failure.as_deref() {
            None => ExitCode::SUCCESS,
            Some("ExecutionTimeout") => ExitCode::from(TIMED_OUT),
            Some(_) => ExitCode::FAILURE,
        }
    }
}

/// Returns the text of an error. Tracebacks of some languages do not end with the error itself.
fn failure(name: &str, value: &str, traceback: &str) -> String {
    let last = if value.is_empty() { name.to_owned() } else { format!("{name}: {value}") };
    match traceback.trim_end() {
        "" => with_end(last),
        traceback if traceback.contains(&last) => with_end(traceback.to_owned()),
        traceback => with_end(format!("{traceback}\n{last}")),
    }
}

fn with_end(mut text: String) -> String {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// Returns the picture of a result, if it has one. SVG and PDF count only where there is no text,
/// which a terminal shows better.
fn picture(result: &Map<String, Value>) -> Option<Picture> {
    let field = |kind: &str| result.get(kind)?.as_str();
    let decoded = |kind: &'static str| Picture::decode(kind, field(kind)?);
    if let Some(picture) = decoded("png").or_else(|| decoded("jpeg")) {
        return Some(picture);
    }
    if result.contains_key("text") {
        return None;
    }
    let svg = field("svg").map(|svg| Picture { kind: "svg", bytes: svg.as_bytes().to_vec() });
    svg.or_else(|| decoded("pdf"))
}

/// Returns the text of a result: its plain text, else the next most readable format.
fn text(result: &Map<String, Value>) -> Option<String> {
    let texts = ["text", "markdown", "latex", "html", "javascript"];
    let found = texts.iter().find_map(|kind| result.get(*kind)?.as_str());
    if let Some(text) = found {
        return Some(text.to_owned());
    }
    let values = ["json", "data", "chart"].iter().find_map(|kind| result.get(*kind));
    values.and_then(|value| serde_json::to_string_pretty(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else { panic!("{value} is no object") };
        map
    }

    #[test]
    fn result_with_picture_is_shown_as_picture() {
        let figure = map(json!({ "text": "<Figure>", "png": "AQID", "is_main_result": true }));
        let shown = picture(&figure).unwrap();
        assert_eq!((shown.kind, &*shown.bytes), ("png", &[1, 2, 3][..]));
        let table = map(json!({ "text": "a  b", "html": "<table>", "svg": "<svg>" }));
        assert!(picture(&table).is_none());
        assert_eq!(text(&table).as_deref(), Some("a  b"));
        assert_eq!(picture(&map(json!({ "svg": "<svg>" }))).unwrap().kind, "svg");
    }

    #[test]
    fn invalid_picture_does_not_hide_the_text() {
        let figure = map(json!({ "text": "<Figure>", "png": "no! base64" }));
        assert!(picture(&figure).is_none());
        assert_eq!(text(&figure).as_deref(), Some("<Figure>"));
    }

    #[test]
    fn result_without_text_has_its_most_readable_format() {
        let text = |value| text(&map(value)).unwrap_or_default();
        assert_eq!(text(json!({ "latex": "$x$", "html": "<b>x</b>" })), "$x$");
        assert_eq!(text(json!({ "json": [1] })), "[\n  1\n]");
        assert_eq!(text(json!({ "extra": {} })), "");
    }

    #[test]
    fn error_is_told_once() {
        let traceback = "Traceback\n  line 1\nValueError: bad";
        assert_eq!(failure("ValueError", "bad", traceback), format!("{traceback}\n"));
        assert_eq!(failure("KernelDied", "signal 11", ""), "KernelDied: signal 11\n");
        assert_eq!(failure("E", "v", "at line 1\n"), "at line 1\nE: v\n");
    }

    #[test]
    fn exit_code_tells_success_failure_and_timeout() {
        let code = |name: Option<&str>| {
            let failure = name.map(str::to_owned);
            let view = View { form: Form::Human, pictures: None, failure };
            format!("{:?}", view.exit())
        };
        assert_eq!(code(None), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code(Some("ValueError")), format!("{:?}", ExitCode::FAILURE));
        assert_eq!(code(Some("ExecutionTimeout")), format!("{:?}", ExitCode::from(124)));
    }
}
