//! The error of a Dockerfile: line, instruction and reason.

/// A Dockerfile that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {instruction}: {message}")]
pub struct Fault {
    /// Line where the instruction begins, from 1.
    pub line: u32,
    /// Name of the instruction in upper case, or of another part of the file.
    pub instruction: String,
    /// Reason, in the present tense, without line or instruction.
    pub message: String,
}

impl Fault {
    /// Makes a fault. Cuts the instruction's name, which may be arbitrary text, to 40 characters.
    pub(crate) fn new(line: u32, instruction: &str, message: impl Into<String>) -> Self {
        let instruction = instruction.chars().take(40).collect();
        Self { line, instruction, message: message.into() }
    }
}

/// Shortens a text of the caller's for a message.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}
