//! A stream of output with markers in it. After each run, the kernel writes a marker to its
//! standard output and its standard error. The run ends once both markers are read.

use super::utf8::Utf8;

/// Most digits of a run's number.
const DIGITS: usize = 20;

/// A part of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// The end of a run's output, by the run's number.
    Mark(u64),
}

/// Parts text from markers. A marker is NUL, a secret, a colon, the run's number, and NUL.
#[derive(Debug)]
pub(super) struct Drain {
    start: Vec<u8>,
    pending: Vec<u8>,
    text: Utf8,
}

/// The place of a marker in bytes.
enum Found {
    Whole {
        at: usize,
        end: usize,
        run: u64,
    },
    /// The bytes from here on may begin a marker.
    Begun(usize),
    Absent,
}

impl Drain {
    pub(super) fn new(secret: &str) -> Self {
        let start = format!("\0{secret}:").into_bytes();
        Self { start, pending: Vec::new(), text: Utf8::default() }
    }

    /// Returns the parts that end in a piece of the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        let mut pieces = Vec::new();
        loop {
            match find(rest, &self.start) {
                Found::Whole { at, end, run } => {
                    let text = self.text.push(&rest[..at]) + &self.text.finish();
                    pieces.extend(text_piece(text));
                    pieces.push(Piece::Mark(run));
                    rest = &rest[end..];
                }
                Found::Begun(at) => {
                    pieces.extend(text_piece(self.text.push(&rest[..at])));
                    self.pending = rest[at..].to_vec();
                    return pieces;
                }
                Found::Absent => {
                    pieces.extend(text_piece(self.text.push(rest)));
                    return pieces;
                }
            }
        }
    }

    /// Returns the text that waited for more.
    pub(super) fn finish(&mut self) -> String {
        let pending = std::mem::take(&mut self.pending);
        self.text.push(&pending) + &self.text.finish()
    }
}

fn text_piece(text: String) -> Option<Piece> {
    (!text.is_empty()).then_some(Piece::Text(text))
}

fn find(bytes: &[u8], start: &[u8]) -> Found {
    let mut from = 0;
    while let Some(offset) = bytes[from..].iter().position(|byte| *byte == 0) {
        let at = from + offset;
        match read(&bytes[at..], start) {
            Some(Some((run, length))) => return Found::Whole { at, end: at + length, run },
            Some(None) => return Found::Begun(at),
            None => from = at + 1,
        }
    }
    Found::Absent
}

/// Reads a marker at the start of bytes: its run and its length. Returns `None` for other bytes,
/// and `Some(None)` for bytes that end too early.
fn read(bytes: &[u8], start: &[u8]) -> Option<Option<(u64, usize)>> {
    let Some(rest) = bytes.strip_prefix(start) else {
        return start.starts_with(bytes).then_some(None);
    };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match rest.get(digits) {
        _ if digits > DIGITS => None,
        None => Some(None),
        Some(0) => {
            let run = std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()?;
            Some(Some((run, start.len() + digits + 1)))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(drain: &mut Drain, chunks: &[&[u8]]) -> (String, Vec<u64>) {
        let (mut text, mut marks) = (String::new(), Vec::new());
        for piece in chunks.iter().flat_map(|chunk| drain.push(chunk)) {
            match piece {
                Piece::Text(part) => text += &part,
                Piece::Mark(run) => marks.push(run),
            }
        }
        (text + &drain.finish(), marks)
    }

    #[test]
    fn marker_split_at_every_byte_is_found() {
        let stream = b"ab\0c\xc3\xa9\0secret:12\0d\0secret:13\0";
        for at in 0..=stream.len() {
            let (head, tail) = stream.split_at(at);
            let parts = collect(&mut Drain::new("secret"), &[head, tail]);
            assert_eq!(parts, ("ab\0céd".to_owned(), vec![12, 13]), "split at {at}");
        }
    }

    #[test]
    fn bytes_that_resemble_a_marker_are_text() {
        let long = "\0secret:123456789012345678901\0";
        for stream in ["\0secret:\0", "\0secret:1x\0", long, "\0\0\0"] {
            let (text, marks) = collect(&mut Drain::new("secret"), &[stream.as_bytes()]);
            assert_eq!((text.as_str(), marks), (stream, vec![]));
        }
    }

    #[test]
    fn character_cut_by_a_marker_is_replaced() {
        let pieces = Drain::new("s").push(b"a\xc3\0s:1\0b");
        let text = |text: &str| Piece::Text(text.to_owned());
        assert_eq!(pieces, [text("a\u{fffd}"), Piece::Mark(1), text("b")]);
    }

    #[test]
    fn text_is_not_held_back_without_cause() {
        let mut drain = Drain::new("s");
        assert_eq!(drain.push(b"abc"), [Piece::Text("abc".to_owned())]);
        assert_eq!(drain.push(b"d\0"), [Piece::Text("d".to_owned())]);
        assert_eq!(drain.finish(), "\0");
    }
}
