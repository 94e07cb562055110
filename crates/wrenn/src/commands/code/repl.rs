//! The REPL: reads an entry, which may have several lines, runs it, and shows its results.

use super::editor::{self, Editor, Read};
use super::{Interrupts, Session, entry};
use crate::output;
use std::process::ExitCode;

/// Exit code of a REPL that SIGTERM ended.
const TERMINATED: u8 = 143;

/// Result of reading an entry.
enum Entry {
    Code(String),
    Abandoned,
    End,
}

/// Runs entries until the user ends the input. The terminal is raw only while a line is read, so
/// that Ctrl-C interrupts an execution as a signal.
pub(super) async fn repl(
    session: &Session<'_>,
    interrupts: &mut Interrupts,
) -> anyhow::Result<ExitCode> {
    let language = language(session).await?;
    output::note(&format!("{language}; Ctrl-C interrupts, Ctrl-D ends"));
    let mut editor = Editor::default();
    loop {
        let of = language.clone();
        // A read of the terminal cannot be cancelled, so a thread of its own makes it.
        let reading = tokio::task::spawn_blocking(move || {
            let read = read(&mut editor, &of);
            (editor, read)
        });
        let (back, read) = tokio::select! {
            read = reading => read?,
            () = interrupts.terminated() => {
                editor::restore();
                return Ok(ExitCode::from(TERMINATED));
            }
        };
        editor = back;
        match read? {
            Entry::Code(code) => {
                interrupts.forget();
                if let Err(error) = session.execute(code, interrupts).await {
                    output::error(&error, session.form);
                    editor.forget_paste();
                }
            }
            Entry::Abandoned => editor.forget_paste(),
            Entry::End => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// Returns the language of the entries.
async fn language(session: &Session<'_>) -> anyhow::Result<String> {
    let language = match &session.context {
        Some(id) => {
            let id: uuid::Uuid = id.parse().map_err(|_| {
                output::usage(format!("--context: `{id}` is not the id of a context"))
            })?;
            let path = format!("{}/contexts/{id}", session.path);
            session.client.get::<api::CodeContext>(&path).await?.language
        }
        None => session.language.clone().unwrap_or_else(|| "python".to_owned()),
    };
    Ok(match language.trim().to_ascii_lowercase().as_str() {
        "js" => "javascript".to_owned(),
        "ts" => "typescript".to_owned(),
        other => other.to_owned(),
    })
}

/// Reads the lines of an entry. Entries without code are passed over.
fn read(editor: &mut Editor, language: &str) -> anyhow::Result<Entry> {
    let (first, next) = match language {
        "python" => (">>> ", "... "),
        _ => ("> ", "| "),
    };
    let mut lines: Vec<String> = Vec::new();
    loop {
        let prompt = if lines.is_empty() { first } else { next };
        match editor.read(prompt)? {
            Read::Line(line) => {
                editor.remember(&line);
                lines.push(line);
            }
            Read::Abandoned => return Ok(Entry::Abandoned),
            Read::End => return Ok(Entry::End),
        }
        let text = lines.join("\n");
        if entry::is_complete(language, &text) {
            if text.trim().is_empty() {
                lines.clear();
            } else {
                return Ok(Entry::Code(text));
            }
        }
    }
}
