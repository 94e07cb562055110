//! A small editor of one line on a terminal, with a history in memory. `edit` is pure; only `read`
//! touches the terminal.

use crate::output;
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::terminal;

/// Most lines in the history.
const HISTORY: usize = 1000;
/// Most characters of a line.
const LINE_MAX: usize = 1 << 20;

/// Result of reading a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Line(String),
    /// Ctrl-C: the entry is abandoned.
    Abandoned,
    /// Ctrl-D in an empty line.
    End,
}

/// The editor with its history.
#[derive(Default)]
pub(super) struct Editor {
    history: Vec<String>,
    /// Lines of a paste that have not been read.
    pasted: std::collections::VecDeque<String>,
}

/// A line under edit.
#[derive(Default)]
struct Buffer {
    text: Vec<char>,
    at: usize,
    /// Line of the history that is shown, counted from its end. 0 is the new line.
    past: usize,
    /// The new line, while an older one is shown.
    draft: Vec<char>,
}

impl Editor {
    /// Reads a line. The terminal is in raw mode meanwhile.
    pub(super) fn read(&mut self, prompt: &str) -> anyhow::Result<Read> {
        if let Some(line) = self.pasted.pop_front() {
            output::raw(format!("{prompt}{line}\r\n").as_bytes())?;
            return Ok(Read::Line(line));
        }
        let _raw = Raw::enter()?;
        let mut buffer = Buffer::default();
        loop {
            output::raw(buffer.draw(prompt, output::Live::width()).as_bytes())?;
            let read = match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => self.edit(&mut buffer, key),
                Event::Paste(text) => self.paste(&mut buffer, &text),
                Event::Key(_)
                | Event::Mouse(_)
                | Event::Resize(..)
                | Event::FocusGained
                | Event::FocusLost => None,
            };
            if let Some(read) = read {
                buffer.at = buffer.text.len();
                let last = buffer.draw(prompt, output::Live::width());
                output::raw(format!("{last}\r\n").as_bytes())?;
                return Ok(read);
            }
        }
    }

    /// Remembers a line.
    pub(super) fn remember(&mut self, line: &str) {
        if line.trim().is_empty() || self.history.last().is_some_and(|last| last == line) {
            return;
        }
        if self.history.len() >= HISTORY {
            self.history.remove(0);
        }
        self.history.push(line.to_owned());
    }

    /// Forgets the lines of a paste that have not been read.
    pub(super) fn forget_paste(&mut self) {
        self.pasted.clear();
    }

    /// Inserts pasted text. Its first line end submits the line; further lines are read next.
    fn paste(&mut self, buffer: &mut Buffer, text: &str) -> Option<Read> {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let mut lines = text.split('\n');
        buffer.insert(lines.next().unwrap_or_default());
        let rest: Vec<&str> = lines.collect();
        // An empty last line means that the text ended with a line end.
        let further = rest.iter().take(rest.len().saturating_sub(1));
        self.pasted.extend(further.map(|line| (*line).to_owned()));
        match rest.last() {
            None => return None,
            Some(last) if !last.is_empty() => self.pasted.push_back((*last).to_owned()),
            Some(_) => {}
        }
        Some(Read::Line(buffer.line()))
    }

    /// Applies a key. Returns the result once the line is done.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other keys do nothing")]
    fn edit(&self, buffer: &mut Buffer, key: KeyEvent) -> Option<Read> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Some(Read::Abandoned),
                KeyCode::Char('d') if buffer.text.is_empty() => Some(Read::End),
                // A line feed comes so, from a paste into a terminal that does not mark pastes.
                KeyCode::Char('j') => Some(Read::Line(buffer.line())),
                KeyCode::Char(c) => {
                    buffer.control(c);
                    None
                }
                _ => None,
            };
        }
        match key.code {
            KeyCode::Enter => return Some(Read::Line(buffer.line())),
            KeyCode::Char(c) => buffer.insert(c.encode_utf8(&mut [0; 4])),
            KeyCode::Tab => buffer.insert("    "),
            KeyCode::Backspace => buffer.erase_before(),
            KeyCode::Delete => buffer.erase_at(),
            KeyCode::Left => buffer.at = buffer.at.saturating_sub(1),
            KeyCode::Right => buffer.at = (buffer.at + 1).min(buffer.text.len()),
            KeyCode::Home => buffer.at = 0,
            KeyCode::End => buffer.at = buffer.text.len(),
            KeyCode::Up => buffer.recall(&self.history, buffer.past + 1),
            KeyCode::Down if buffer.past > 0 => buffer.recall(&self.history, buffer.past - 1),
            _ => {}
        }
        None
    }
}

impl Buffer {
    fn line(&self) -> String {
        self.text.iter().collect()
    }

    /// Inserts text without control characters. A tab becomes four spaces.
    fn insert(&mut self, text: &str) {
        let text = text.replace('\t', "    ");
        let room = LINE_MAX.saturating_sub(self.text.len());
        let new: Vec<char> = text.chars().filter(|c| !c.is_control()).take(room).collect();
        let end = self.at + new.len();
        drop(self.text.splice(self.at..self.at, new));
        self.at = end;
    }

    fn erase_before(&mut self) {
        if self.at > 0 {
            self.at -= 1;
            self.text.remove(self.at);
        }
    }

    fn erase_at(&mut self) {
        if self.at < self.text.len() {
            self.text.remove(self.at);
        }
    }

    /// Applies a control key, as shells have them.
    fn control(&mut self, c: char) {
        match c {
            'a' => self.at = 0,
            'e' => self.at = self.text.len(),
            'b' => self.at = self.at.saturating_sub(1),
            'f' => self.at = (self.at + 1).min(self.text.len()),
            'h' => self.erase_before(),
            'd' => self.erase_at(),
            'k' => self.text.truncate(self.at),
            'u' => {
                self.text.drain(..self.at);
                self.at = 0;
            }
            'w' => {
                let before = &self.text[..self.at];
                let word = before.iter().rev().skip_while(|c| c.is_whitespace());
                let kept = word.skip_while(|c| !c.is_whitespace()).count();
                self.text.drain(kept..self.at);
                self.at = kept;
            }
            _ => {}
        }
    }

    /// Shows a line of the history, or the new line again.
    fn recall(&mut self, history: &[String], past: usize) {
        if past > history.len() {
            return;
        }
        if self.past == 0 {
            self.draft = std::mem::take(&mut self.text);
        }
        self.text = match past {
            0 => std::mem::take(&mut self.draft),
            past => history[history.len() - past].chars().collect(),
        };
        (self.past, self.at) = (past, self.text.len());
    }

    /// Draws the line. A line that is wider than the terminal is shown in part, around the cursor.
    fn draw(&self, prompt: &str, width: usize) -> String {
        let room = width.saturating_sub(prompt.chars().count() + 1).max(8);
        let mut first = self.at;
        let mut used = 0;
        while first > 0 && used + columns(self.text[first - 1]) <= room * 3 / 4 {
            first -= 1;
            used += columns(self.text[first]);
        }
        let before: String = self.text[first..self.at].iter().collect();
        let fits = |c: &&char| {
            used += columns(**c);
            used <= room
        };
        let after: String = self.text[self.at..].iter().take_while(fits).collect();
        // The terminal remembers the cursor's place, since it alone knows the widths of characters.
        format!("\r\u{1b}[K{prompt}{before}\u{1b}7{after}\u{1b}8")
    }
}

/// Estimates the columns of a character. Wide ones begin with Hangul's.
fn columns(c: char) -> usize {
    if c < '\u{1100}' { 1 } else { 2 }
}

/// Raw mode of the terminal, in which pastes come as one event. Dropping it restores the terminal.
struct Raw;

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        terminal::enable_raw_mode()?;
        let raw = Self;
        output::raw(b"\x1b[?2004h")?;
        Ok(raw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal, also while another thread reads a line.
pub(super) fn restore() {
    let _ = output::raw(b"\x1b[?2004l");
    let _ = terminal::disable_raw_mode();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(editor: &Editor, buffer: &mut Buffer, text: &str) -> Option<Read> {
        text.chars().find_map(|c| {
            let (code, modifiers) = match c {
                '\n' => (KeyCode::Enter, KeyModifiers::NONE),
                '↑' => (KeyCode::Up, KeyModifiers::NONE),
                '↓' => (KeyCode::Down, KeyModifiers::NONE),
                '←' => (KeyCode::Left, KeyModifiers::NONE),
                '⌫' => (KeyCode::Backspace, KeyModifiers::NONE),
                c if c.is_control() => {
                    let letter = u8::try_from(c).unwrap() + b'`';
                    (KeyCode::Char(char::from(letter)), KeyModifiers::CONTROL)
                }
                c => (KeyCode::Char(c), KeyModifiers::NONE),
            };
            editor.edit(buffer, KeyEvent::new(code, modifiers))
        })
    }

    fn typed(text: &str) -> Option<Read> {
        keys(&Editor::default(), &mut Buffer::default(), text)
    }

    fn line(text: &str) -> Option<Read> {
        Some(Read::Line(text.to_owned()))
    }

    #[test]
    fn keys_edit_the_line() {
        assert_eq!(typed("abc\n"), line("abc"));
        assert_eq!(typed("abd←⌫ü\n"), line("aüd"));
        assert_eq!(typed("bc\u{1}a\u{5}d\n"), line("abcd"));
        assert_eq!(typed("one two \u{17}three\n"), line("one three"));
        assert_eq!(typed("ab\u{1}\u{b}c\n"), line("c"));
        assert_eq!(typed("ab\u{15}c\n"), line("c"));
        assert_eq!(typed("ab\u{3}"), Some(Read::Abandoned));
        assert_eq!(typed("\u{4}"), Some(Read::End));
        assert_eq!(typed("ab\u{1}\u{4}\n"), line("b"));
    }

    #[test]
    fn history_is_recalled_and_the_draft_comes_back() {
        let mut editor = Editor::default();
        for text in ["one", "two", "two", " "] {
            editor.remember(text);
        }
        let type_in = |text| keys(&editor, &mut Buffer::default(), text);
        assert_eq!(type_in("↑\n"), line("two"));
        assert_eq!(type_in("↑↑!\n"), line("one!"));
        assert_eq!(type_in("↑↑↑↑\n"), line("one"));
        assert_eq!(type_in("x↑↓y\n"), line("xy"));
        for number in 0..=HISTORY {
            editor.remember(&number.to_string());
        }
        assert_eq!(editor.history.len(), HISTORY);
    }

    #[test]
    fn paste_of_lines_is_read_line_by_line() {
        let (mut editor, mut buffer) = (Editor::default(), Buffer::default());
        buffer.insert(">");
        let first = editor.paste(&mut buffer, "a\u{1b}b\r\n\tc\n\nd\n");
        assert_eq!(first, line(">ab"));
        assert_eq!(editor.pasted, ["\tc", "", "d"]);
        let mut buffer = Buffer::default();
        assert_eq!(editor.paste(&mut buffer, "no end"), None);
        assert_eq!(buffer.line(), "no end");
    }

    #[test]
    fn long_line_is_drawn_in_part_around_the_cursor() {
        let mut buffer = Buffer::default();
        buffer.insert(&"x".repeat(500));
        let drawn = buffer.draw(">>> ", 80);
        assert!(drawn.matches('x').count() < 76, "{drawn}");
        buffer.at = 0;
        let drawn = buffer.draw(">>> ", 80);
        assert!(drawn.starts_with("\r\u{1b}[K>>> \u{1b}7x") && drawn.ends_with("x\u{1b}8"));
        assert!(drawn.matches('x').count() <= 76, "{drawn}");
    }
}
