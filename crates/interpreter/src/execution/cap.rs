//! The limit that a client sets for an execution's output. The first half goes out at once. The
//! last half is kept back until the end, when the size of the output in between is told.

use crate::kernel::Stream;
use crate::line::Line;
use bytes::Bytes;
use std::collections::VecDeque;

/// Length of a kept text up to which the next text of its stream is added to it, in bytes.
const MERGED: usize = 4096;
/// Most pieces that are kept.
const PIECES: usize = 16 * 1024;

/// A piece of output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(Stream, String),
    /// A result, which is kept or dropped whole.
    Line(Bytes),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Text(_, text) => text.len(),
            Self::Line(line) => line.len(),
        }
    }

    pub(super) fn encode(self) -> Bytes {
        match self {
            Self::Text(stream, text) => Line::text(stream, &text).encode(),
            Self::Line(line) => line,
        }
    }
}

/// The state of a limit.
#[derive(Debug)]
pub(super) struct Cap {
    /// Bytes that may still go out at once.
    head: usize,
    /// Most bytes of `tail`.
    room: usize,
    tail: VecDeque<Piece>,
    /// Bytes in `tail`.
    kept: usize,
    missing: u64,
}

impl Cap {
    pub(super) fn new(max: u64) -> Self {
        // The tail is in memory, so it has a limit of its own.
        let room = usize::try_from(max / 2).unwrap_or(usize::MAX).min(super::log::KEPT);
        let head = usize::try_from(max).unwrap_or(usize::MAX) - room;
        Self { head, room, tail: VecDeque::new(), kept: 0, missing: 0 }
    }

    /// Returns the part of a piece that goes out at once.
    pub(super) fn admit(&mut self, piece: Piece) -> Option<Piece> {
        if piece.len() <= self.head {
            self.head -= piece.len();
            return Some(piece);
        }
        let head = std::mem::take(&mut self.head);
        let (first, rest) = match piece {
            Piece::Text(stream, mut text) => {
                let rest = text.split_off(text.floor_char_boundary(head));
                ((!text.is_empty()).then_some(Piece::Text(stream, text)), Piece::Text(stream, rest))
            }
            Piece::Line(line) => (None, Piece::Line(line)),
        };
        self.keep(rest);
        first
    }

    fn keep(&mut self, piece: Piece) {
        self.kept += piece.len();
        match (self.tail.back_mut(), piece) {
            (Some(Piece::Text(of, last)), Piece::Text(stream, text))
                if *of == stream && last.len() < MERGED =>
            {
                last.push_str(&text);
            }
            (_, piece) => self.tail.push_back(piece),
        }
        while self.kept > self.room || self.tail.len() > PIECES {
            let whole = self.tail.len() > PIECES;
            let surplus = if whole { usize::MAX } else { self.kept - self.room };
            let Some(oldest) = self.tail.pop_front() else { return };
            let before = oldest.len();
            self.kept -= before;
            let rest = shorten(oldest, surplus);
            let after = rest.as_ref().map_or(0, Piece::len);
            self.kept += after;
            self.missing += (before - after) as u64;
            if let Some(rest) = rest {
                self.tail.push_front(rest);
            }
        }
    }

    /// Takes the kept output, and the size of the output that is missing before it.
    pub(super) fn flush(&mut self) -> (u64, VecDeque<Piece>) {
        self.kept = 0;
        (std::mem::take(&mut self.missing), std::mem::take(&mut self.tail))
    }
}

/// Removes bytes from the front of a piece: at least `surplus`, if any is left.
fn shorten(piece: Piece, surplus: usize) -> Option<Piece> {
    match piece {
        Piece::Text(stream, mut text) if surplus < text.len() => {
            let rest = text.split_off(text.ceil_char_boundary(surplus));
            (!rest.is_empty()).then_some(Piece::Text(stream, rest))
        }
        Piece::Text(..) | Piece::Line(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Piece {
        Piece::Text(Stream::Stdout, text.to_owned())
    }

    #[test]
    fn output_within_the_limit_is_whole() {
        let mut cap = Cap::new(8);
        assert_eq!(cap.admit(text("abc")), Some(text("abc")));
        assert_eq!(cap.admit(text("defg")), Some(text("d")));
        assert_eq!(cap.admit(text("h")), None);
        assert_eq!(cap.flush(), (0, VecDeque::from([text("efgh")])));
    }

    #[test]
    fn head_and_tail_are_kept_and_the_rest_is_counted() {
        let mut cap = Cap::new(8);
        assert_eq!(cap.admit(text("abcdefghij")), Some(text("abcd")));
        assert_eq!(cap.admit(text("klm")), None);
        assert_eq!(cap.flush(), (5, VecDeque::from([text("jklm")])));
        assert_eq!(cap.admit(text("n")), None);
        assert_eq!(cap.flush(), (0, VecDeque::from([text("n")])));
    }

    #[test]
    fn characters_are_never_cut() {
        let mut cap = Cap::new(10);
        assert_eq!(cap.admit(text("😀😀😀")), Some(text("😀")));
        assert_eq!(cap.admit(text("é😀")), None);
        // The last five bytes begin within a character, which is missing.
        assert_eq!(cap.flush(), (10, VecDeque::from([text("😀")])));
    }

    #[test]
    fn results_are_kept_or_dropped_whole() {
        let mut cap = Cap::new(8);
        let line = |text: &'static str| Piece::Line(Bytes::from_static(text.as_bytes()));
        assert_eq!(cap.admit(line("abc")), Some(line("abc")));
        assert_eq!(cap.admit(line("0123456789")), None);
        assert_eq!(cap.admit(line("xyz")), None);
        assert_eq!(cap.flush(), (10, VecDeque::from([line("xyz")])));
    }

    #[test]
    fn number_of_kept_pieces_is_limited() {
        let mut cap = Cap::new(4 << 20);
        assert!(cap.admit(text(&"x".repeat(2 << 20))).is_some());
        for _ in 0..PIECES {
            assert_eq!(cap.admit(text("a")), None);
            assert_eq!(cap.admit(Piece::Text(Stream::Stderr, "b".to_owned())), None);
        }
        let (missing, tail) = cap.flush();
        assert_eq!((missing, tail.len()), (PIECES as u64, PIECES));
    }

    #[test]
    fn limit_of_zero_keeps_nothing() {
        let mut cap = Cap::new(0);
        assert_eq!(cap.admit(text("abc")), None);
        assert_eq!(cap.flush(), (3, VecDeque::new()));
    }
}
