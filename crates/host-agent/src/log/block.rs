//! Blocks: compressed lines of JSON, with the numbers and times of their entries. The first line is
//! the position of the log, and each further line an entry.
//!
//! ```text
//!  "WLG1" ‖ packed ‖ raw ‖ left ‖ first ‖ last ‖ min_ms ‖ max_ms ‖ check ‖ LZ4
//!    4       4       4      4       8       8       8        8       16     packed
//! ```
//! `left` counts the blocks of the same batch that follow. The check is a part of the hash of all
//! other bytes.

use super::entry::{Entry, Position};
use super::segment::Span;
use std::io;

const MAGIC: [u8; 4] = *b"WLG1";
/// Bytes before the compressed lines.
const HEAD: usize = 64;
/// Bytes of the head that the check covers.
const CHECKED: usize = 48;
/// Most bytes of a block's lines. A longer line would be the only one, and cannot come.
pub(super) const RAW_MAX: usize = 256 << 10;

/// Head of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    packed: usize,
    /// Bytes of the block's lines.
    pub raw: usize,
    /// Blocks of the same batch that follow.
    pub left: u32,
    pub span: Span,
}

impl Head {
    /// Returns the bytes of the whole block.
    pub(super) fn length(&self) -> usize {
        HEAD + self.packed
    }

    /// Reads the head of the block at the beginning of some bytes; `None` unless the whole block is
    /// there and intact.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if bytes.get(..4)? != MAGIC {
            return None;
        }
        let head = Self {
            packed: usize::try_from(u32_at(4)?).ok()?,
            raw: usize::try_from(u32_at(8)?).ok()?,
            left: u32_at(12)?,
            span: Span {
                first: u64_at(16)?,
                last: u64_at(24)?,
                min_ms: u64_at(32)?,
                max_ms: u64_at(40)?,
            },
        };
        let packed = bytes.get(HEAD..head.length())?;
        let intact = bytes.get(CHECKED..HEAD)? == check(&bytes[..CHECKED], packed);
        (intact && head.raw <= RAW_MAX).then_some(head)
    }

    /// Reads the lines of the block at the beginning of some bytes, whose head this is.
    pub(super) fn lines(&self, bytes: &[u8]) -> io::Result<Lines> {
        let packed = bytes.get(HEAD..self.length()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let text = lz4_flex::block::decompress(packed, self.raw).map_err(io::Error::other)?;
        let mut lines = text.split(|byte| *byte == b'\n');
        let position = serde_json::from_slice(lines.next().unwrap_or_default())?;
        let entries = lines.filter(|line| !line.is_empty()).map(serde_json::from_slice);
        Ok(Lines { position, entries: entries.collect::<Result<_, _>>()? })
    }
}

/// Contents of a block.
#[derive(Debug)]
pub(super) struct Lines {
    pub position: Position,
    pub entries: Vec<Entry>,
}

/// Returns a batch of blocks with some entries, and the entries' span. Without entries, the batch
/// has only the position, and `none` is its span.
pub(super) fn batch(
    position: &Position,
    entries: &[Entry],
    none: Span,
) -> io::Result<(Vec<u8>, Span)> {
    let mut first_line = serde_json::to_vec(position)?;
    first_line.push(b'\n');
    let mut blocks: Vec<(Vec<u8>, Option<Span>)> = vec![(first_line.clone(), None)];
    for entry in entries {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if let Some((text, span)) = blocks.last()
            && span.is_some()
            && text.len() + line.len() > RAW_MAX
        {
            blocks.push((first_line.clone(), None));
        }
        if let Some((text, span)) = blocks.last_mut() {
            text.extend_from_slice(&line);
            let of = Span::of(entry);
            *span = Some(span.as_ref().map_or(of.clone(), |span| span.joined(&of)));
        }
    }
    let mut bytes = Vec::new();
    let mut whole: Option<Span> = None;
    let mut left = u32::try_from(blocks.len()).map_err(io::Error::other)?;
    for (text, span) in blocks {
        left -= 1;
        let span = span.unwrap_or_else(|| none.clone());
        write(&mut bytes, &text, left, &span)?;
        whole = Some(whole.map_or(span.clone(), |whole| whole.joined(&span)));
    }
    Ok((bytes, whole.unwrap_or(none)))
}

fn write(to: &mut Vec<u8>, text: &[u8], left: u32, span: &Span) -> io::Result<()> {
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
    let packed = lz4_flex::block::compress(text);
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(&MAGIC);
    for number in [size(&packed)?, size(text)?, left] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    for number in [span.first, span.last, span.min_ms, span.max_ms] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    let check = check(&head, &packed);
    to.extend_from_slice(&head);
    to.extend_from_slice(&check);
    to.extend_from_slice(&packed);
    Ok(())
}

fn check(head: &[u8], packed: &[u8]) -> [u8; HEAD - CHECKED] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head);
    hasher.update(packed);
    let mut check = [0; HEAD - CHECKED];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..HEAD - CHECKED]);
    check
}

#[cfg(test)]
mod tests {
    use super::super::entry::Source;
    use super::*;

    fn entries(count: u64, text: &str) -> Vec<Entry> {
        let entry = |number| Entry {
            number,
            ..Entry::new(Source::Process, "stdout", 1000 + number, text.to_owned())
        };
        (1..=count).map(entry).collect()
    }

    #[test]
    fn batch_is_read_back_in_blocks_of_bounded_size() {
        let position = Position { piece: Some((u64::MAX, 3)), console: "0a".to_owned() };
        let all = entries(100, &"\u{0}".repeat(4096));
        let none = Span { first: 0, last: 0, min_ms: 0, max_ms: 0 };
        let (bytes, span) = batch(&position, &all, none).unwrap();
        assert_eq!((span.first, span.last, span.min_ms, span.max_ms), (1, 100, 1001, 1100));
        let (mut at, mut read, mut left) = (0, Vec::new(), u32::MAX);
        while at < bytes.len() {
            let head = Head::read(&bytes[at..]).unwrap();
            assert!(head.raw <= RAW_MAX && head.left < left);
            left = head.left;
            let lines = head.lines(&bytes[at..]).unwrap();
            assert_eq!(lines.position, position);
            read.extend(lines.entries);
            at += head.length();
        }
        assert_eq!((left, read), (0, all));
    }

    #[test]
    fn longest_line_of_control_characters_fits_a_block() {
        let mut entry = entries(1, &"\u{1}".repeat(protocol::log::LINE_MAX)).remove(0);
        entry.command = "\u{1}".repeat(protocol::log::COMMAND_MAX);
        assert!(serde_json::to_vec(&entry).unwrap().len() + 1024 < RAW_MAX);
    }

    #[test]
    fn damaged_or_cut_block_is_none() {
        let none = Span { first: 7, last: 7, min_ms: 9, max_ms: 9 };
        let (bytes, span) = batch(&Position::default(), &[], none.clone()).unwrap();
        assert_eq!(span, none);
        assert!(Head::read(&bytes).unwrap().lines(&bytes).unwrap().entries.is_empty());
        for length in 0..bytes.len() {
            assert_eq!(Head::read(&bytes[..length]), None, "{length}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(Head::read(&damaged), None, "{at}");
        }
    }
}
