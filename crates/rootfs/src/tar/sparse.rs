//! Maps of sparse files. A map is a list of numbers: the offset and length of each piece.

use super::number;
use crate::error::Fault;

/// Most pieces of one file.
const PIECES_MAX: usize = 65_536;
/// Longest line of a map in version 1.0: the digits of 63 bits.
const LINE_MAX: usize = 19;

/// Next part of a sparse file: bytes of the stream or zeros, each up to the next border.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Bytes(u64),
    Hole(u64),
}

/// The checked map of one file.
#[derive(Debug)]
pub(super) struct Map {
    /// Begin and end of each piece that is not empty, ascending.
    pieces: Vec<(u64, u64)>,
    next: usize,
}

impl Map {
    /// Checks a map: its pieces ascend, lie in the file, and need all stored bytes.
    ///
    /// # Errors
    /// Fails for any other map.
    pub(super) fn new(pairs: &[u64], size: u64, stored: u64) -> Result<Self, Fault> {
        check_count(pairs.len())?;
        let (mut pieces, mut from, mut sum) = (Vec::new(), 0_u64, 0_u64);
        for pair in pairs.chunks(2) {
            let [offset, length] = pair else {
                return Err(Fault::Malformed("a sparse file's map has an odd number"));
            };
            let end = offset.checked_add(*length).filter(|end| *end <= size && from <= *offset);
            from = end.ok_or(Fault::Malformed("a sparse file's pieces overlap or pass its end"))?;
            sum = sum.saturating_add(*length);
            if *length > 0 {
                pieces.push((*offset, from));
            }
        }
        if sum != stored {
            return Err(Fault::Malformed("a sparse file's map does not fit its contents"));
        }
        Ok(Self { pieces, next: 0 })
    }

    /// Returns what follows at a position. Positions never go back.
    pub(super) fn at(&mut self, position: u64) -> Piece {
        while let Some((begin, end)) = self.pieces.get(self.next) {
            if position < *begin {
                return Piece::Hole(begin.saturating_sub(position));
            }
            if position < *end {
                return Piece::Bytes(end.saturating_sub(position));
            }
            self.next = self.next.saturating_add(1);
        }
        Piece::Hole(u64::MAX)
    }
}

/// Refuses a map with too many numbers.
///
/// # Errors
/// Fails beyond 65,536 pieces.
pub(super) fn check_count(numbers: usize) -> Result<(), Fault> {
    if numbers / 2 > PIECES_MAX {
        return Err(Fault::Limit { limit: PIECES_MAX as u64, unit: "pieces of a sparse file" });
    }
    Ok(())
}

/// The map of version 1.0: a line with the number of pieces, and two lines for each.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    /// Numbers that the map has; unknown until the first line.
    expected: Option<usize>,
    pairs: Vec<u64>,
}

impl Lines {
    pub(super) fn is_complete(&self) -> bool {
        self.expected == Some(self.pairs.len())
    }

    /// Reads a block. Bytes behind the last line are padding.
    ///
    /// # Errors
    /// Fails for wrong lines and for too many pieces.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<(), Fault> {
        for byte in block {
            if self.is_complete() {
                break;
            }
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > LINE_MAX {
                    return Err(Fault::Malformed("a sparse file's map has a long line"));
                }
                continue;
            }
            let number = number::decimal(&self.line)?;
            self.line.clear();
            if self.expected.is_some() {
                self.pairs.push(number);
            } else {
                let numbers = usize::try_from(number).unwrap_or(usize::MAX).saturating_mul(2);
                check_count(numbers)?;
                self.expected = Some(numbers);
            }
        }
        Ok(())
    }

    pub(super) fn into_pairs(self) -> Vec<u64> {
        self.pairs
    }
}
