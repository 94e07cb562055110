//! Lines of a program's output. Control characters stay, since readers escape them. Bytes that are
//! no text become replacement characters, and so does NUL, which no database stores as text.

use std::collections::VecDeque;

/// Longest line, in bytes. A longer one becomes several lines.
pub(super) const LINE_MAX: usize = 4096;
/// Lines of a failed command that its error shows.
const LAST: usize = 20;

/// Splits a stream of bytes into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Adds bytes. Calls `each` with every line that is complete.
    pub(super) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(String)) {
        for byte in bytes {
            if *byte == b'\n' {
                each(text(&self.rest));
                self.rest.clear();
                continue;
            }
            self.rest.push(*byte);
            if self.rest.len() >= LINE_MAX {
                let whole = whole(&self.rest);
                each(text(&self.rest[..whole]));
                self.rest.drain(..whole);
            }
        }
    }

    /// Returns the last line, if it has no end.
    pub(super) fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.rest);
        (!rest.is_empty()).then(|| text(&rest))
    }
}

/// Returns the length of the bytes without a character that has only begun.
fn whole(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}")
}

/// Splits a text of any length into lines for the log.
pub(super) fn lines_of(text: &str) -> Vec<String> {
    let (mut lines, mut all) = (Lines::default(), Vec::new());
    lines.push(text.as_bytes(), |line| all.push(line));
    all.extend(lines.finish());
    all
}

/// The last lines of a command.
#[derive(Debug, Default)]
pub(super) struct Last(VecDeque<String>);

impl Last {
    pub(super) fn push(&mut self, line: &str) {
        if self.0.len() == LAST {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    pub(super) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_keep_control_characters_and_lose_nul() {
        assert_eq!(lines_of("a\x1b[1m\tb\r\n\nx\0y"), ["a\x1b[1m\tb\r", "", "x\u{fffd}y"]);
        let mut last = Last::default();
        (0..30).for_each(|n| last.push(&n.to_string()));
        assert_eq!(last.take(), (10..30).map(|n| n.to_string()).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn text_survives_any_cut_into_pieces(text in "[a-é\\n]{0,9000}", size in 1usize..5000) {
            let text = text.replace('\0', "");
            let (mut lines, mut all) = (Lines::default(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                lines.push(piece, |line| all.push(line));
            }
            all.extend(lines.finish());
            prop_assert!(all.iter().all(|line| line.len() <= LINE_MAX));
            prop_assert_eq!(all.concat(), text.replace('\n', ""));
        }
    }
}
