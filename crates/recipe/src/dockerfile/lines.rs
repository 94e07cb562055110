//! The lines of a Dockerfile as instructions: directives, comments, continuations and
//! here-documents. The module knows no instruction but those that take here-documents.

use super::words;
use crate::expand::Escape;
use crate::fault::{Fault, shorten};

/// Most instructions of a file.
const INSTRUCTIONS_MAX: usize = 4000;

/// An instruction with its arguments as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instruction {
    /// Line of its begin, from 1.
    pub line: u32,
    /// Name in upper case.
    pub name: String,
    /// Everything after the name, without blanks around it.
    pub rest: String,
    /// Here-documents in the order of their words.
    pub documents: Vec<Document>,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    /// Word that announces the document, such as `<<-EOF`.
    pub word: String,
    /// Name of the document: its last line.
    pub name: String,
    /// Tells that variables are expanded, since the name has no quotes.
    pub expand: bool,
    /// Tells that leading tabs are removed.
    pub strips_tabs: bool,
    /// Lines without the last one, as they stand.
    pub text: String,
}

impl Instruction {
    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(self.line, &self.name, message)
    }
}

impl Document {
    /// Returns the contents, without leading tabs where the document says so.
    pub(super) fn contents(&self) -> String {
        if !self.strips_tabs {
            return self.text.clone();
        }
        self.text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// Splits a file into its escape and its instructions.
pub(super) fn read(text: &str) -> Result<(Escape, Vec<Instruction>), Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some((before, _)) = text.split_once('\0') {
        return Err(Fault::new(number(before.lines().count()), "file", "the file holds a NUL"));
    }
    let escape = directives(text)?;
    let mut reader = Reader { lines: text.lines(), line: 0, escape };
    let mut instructions = Vec::new();
    while let Some(instruction) = reader.instruction()? {
        if instructions.len() == INSTRUCTIONS_MAX {
            let message = format!("the file has over {INSTRUCTIONS_MAX} instructions");
            return Err(instruction.fault(message));
        }
        instructions.push(instruction);
    }
    Ok((escape, instructions))
}

/// Reads the directives, which are comments of the form `# name=value` before anything else.
fn directives(text: &str) -> Result<Escape, Fault> {
    let mut seen: Vec<String> = Vec::new();
    let mut escape = Escape::Backslash;
    for (line, at) in text.lines().zip(1..) {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|l| l.split_once('='))
        else {
            break;
        };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) || name.is_empty() {
            break;
        }
        let fault = |message: String| Err(Fault::new(at, &format!("# {name}"), message));
        if seen.contains(&name) {
            return fault("the directive stands there twice".to_owned());
        }
        match (name.as_str(), value) {
            ("escape", "\\") | ("check", _) => {}
            ("escape", "`") => escape = Escape::Backtick,
            ("escape", _) => return fault("the escape is neither `\\` nor a backtick".to_owned()),
            ("syntax", value) if is_docker(value) => {}
            ("syntax", value) => {
                let value = shorten(value);
                return fault(format!("the syntax `{value}` is not Docker's own"));
            }
            // Any other name makes a comment, and ends the directives.
            _ => break,
        }
        seen.push(name);
    }
    Ok(escape)
}

/// Reports whether a frontend's image is Docker's own, of any version.
fn is_docker(image: &str) -> bool {
    let image = image.strip_prefix("docker.io/").unwrap_or(image);
    let name = image.split([':', '@']).next().unwrap_or_default();
    matches!(name, "docker/dockerfile" | "docker/dockerfile-upstream")
}

fn number(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

struct Reader<'a> {
    lines: std::str::Lines<'a>,
    /// Count of lines that were taken.
    line: u32,
    escape: Escape,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a str> {
        self.line = self.line.saturating_add(1);
        self.lines.next()
    }

    fn instruction(&mut self) -> Result<Option<Instruction>, Fault> {
        let mut text = String::new();
        let mut begin = None;
        while let Some(line) = self.next() {
            let bare = line.trim();
            // Blank lines and comments also stand between the lines of one instruction.
            if bare.is_empty() || bare.starts_with('#') {
                continue;
            }
            let line = if begin.is_some() { line } else { line.trim_start() };
            let _ = begin.get_or_insert(self.line);
            match continued(line, self.escape) {
                Some(part) => text.push_str(part),
                None => {
                    text.push_str(line);
                    break;
                }
            }
        }
        let Some(begin) = begin else { return Ok(None) };
        let text = text.trim();
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let (name, rest) = (name.to_ascii_uppercase(), rest.trim().to_owned());
        let mut instruction = Instruction { line: begin, name, rest, documents: Vec::new() };
        if matches!(instruction.name.as_str(), "RUN" | "COPY" | "ADD") {
            for word in words::raw(&instruction.rest, self.escape) {
                if let Some(document) = announced(word) {
                    let document = self.document(document, &instruction)?;
                    instruction.documents.push(document);
                }
            }
        }
        Ok(Some(instruction))
    }

    /// Takes the lines of a document up to its name.
    fn document(&mut self, mut of: Document, instruction: &Instruction) -> Result<Document, Fault> {
        while let Some(line) = self.next() {
            let bare = if of.strips_tabs { line.trim_start_matches('\t') } else { line };
            if bare == of.name {
                return Ok(of);
            }
            of.text.push_str(line);
            of.text.push('\n');
        }
        let message = format!("the here-document `{}` does not end", shorten(&of.name));
        Err(instruction.fault(message))
    }
}

/// Removes the escape that continues a line. A doubled escape continues nothing.
fn continued(line: &str, escape: Escape) -> Option<&str> {
    let part = line.trim_end_matches([' ', '\t']).strip_suffix(escape.char())?;
    (!part.ends_with(escape.char())).then_some(part)
}

/// Reads a word such as `<<EOF`, `<<-"EOF"` or `3<<EOF`.
fn announced(word: &str) -> Option<Document> {
    let marks = word.trim_start_matches(|char: char| char.is_ascii_digit()).strip_prefix("<<")?;
    let (strips_tabs, quoted) = match marks.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, marks),
    };
    if quoted.contains('<') {
        return None;
    }
    let name: String = quoted.chars().filter(|char| !matches!(char, '"' | '\'')).collect();
    let expand = name.len() == quoted.len();
    let (word, text) = (word.to_owned(), String::new());
    (!name.is_empty()).then_some(Document { word, name, expand, strips_tabs, text })
}
