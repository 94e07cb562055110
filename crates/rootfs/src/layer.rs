//! The plain bytes of a layer: decompressed, counted and hashed while they stream.
//!
//! The compression is found by its magic number. Each chunk is held against the limits before any
//! other code sees it. So a small layer with a huge content stops at the limit.

use crate::error::Fault;
use crate::limits::Budget;
use crate::source::Source;
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest, Sha256};
use std::io::{self, BufRead, Read};

/// Bytes of each read and of each chunk.
const CHUNK: usize = 64 * 1024;
/// Largest window of a zstd frame, which the decoder holds in memory. `zstd --ultra -22` and
/// `--long` need this much.
const WINDOW_MAX: u64 = 128 << 20;
/// Magic number of gzip (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Magic number of a zstd frame (RFC 8878).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Magic number of a skippable zstd frame, without the low half of its first byte (RFC 8878).
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// Magic numbers of compressions that OCI does not define.
const FOREIGN: [&[u8]; 3] = [b"BZh", b"\xfd7zX", b"\x04\x22\x4d\x18"];

/// A layer that is being read.
pub(crate) struct Layer<'b, R> {
    decoder: Decoder<'b, R>,
    budget: &'b Budget,
    hash: Sha256,
    plain: u64,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'b, R: Read> Layer<'b, R> {
    /// Reads the magic number, and prepares the decoder.
    ///
    /// # Errors
    /// Fails for a broken stream and for a foreign compression.
    pub(crate) fn open(reader: R, budget: &'b Budget) -> Result<Self, Fault> {
        let mut input = Input::new(reader, budget);
        let magic = input.peek().map_err(|source| explain(source, budget))?;
        if FOREIGN.iter().any(|foreign| magic.starts_with(foreign)) {
            return Err(Fault::Refused("its compression is neither gzip nor zstd"));
        }
        let decoder = if magic.starts_with(&GZIP) {
            Decoder::Gzip(Box::new(MultiGzDecoder::new(input)))
        } else if magic.starts_with(&ZSTD) || is_skippable(magic) {
            let mut frames = FrameDecoder::new();
            frames.set_max_window_size(WINDOW_MAX);
            Decoder::Zstd(Box::new(Zstd { input, frames, open: false }))
        } else {
            Decoder::Plain(input)
        };
        Ok(Self {
            decoder,
            budget,
            hash: Sha256::new(),
            plain: 0,
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
        })
    }

    /// Reads up to the end, and returns the digest and the number of all plain bytes.
    ///
    /// # Errors
    /// Fails for a broken stream and at a limit.
    pub(crate) fn finish(mut self) -> Result<([u8; 32], u64), Fault> {
        loop {
            let left = self.chunk()?.len();
            if left == 0 {
                break;
            }
            self.consume(left);
        }
        Ok((self.hash.finalize().into(), self.plain))
    }
}

impl<R: Read> Source for Layer<'_, R> {
    fn chunk(&mut self) -> Result<&[u8], Fault> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            let read = self.decoder.read(&mut self.buffer);
            let read = read.map_err(|source| explain(source, self.budget))?;
            self.budget.plain(read)?;
            self.plain = self.plain.saturating_add(read as u64);
            self.end = read.min(self.buffer.len());
            self.hash.update(self.buffer.get(..self.end).unwrap_or_default());
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or_default())
    }

    fn consume(&mut self, bytes: usize) {
        self.start = self.start.saturating_add(bytes).min(self.end);
    }
}

/// Names the limit if that was the reason. Decoders wrap the input's errors in their own.
fn explain(source: io::Error, budget: &Budget) -> Fault {
    budget.packed(0).err().unwrap_or(Fault::Read(source))
}

fn is_skippable(magic: &[u8]) -> bool {
    matches!(magic, [first, rest @ ..]
        if first & 0xf0 == SKIPPABLE[0] && rest.starts_with(&SKIPPABLE[1..]))
}

enum Decoder<'b, R> {
    Plain(Input<'b, R>),
    Gzip(Box<MultiGzDecoder<Input<'b, R>>>),
    Zstd(Box<Zstd<'b, R>>),
}

impl<R: Read> Read for Decoder<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(into),
            Self::Gzip(gzip) => gzip.read(into),
            Self::Zstd(zstd) => zstd.read(into),
        }
    }
}

/// Compressed bytes, counted.
struct Input<'b, R> {
    reader: R,
    budget: &'b Budget,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'b, R: Read> Input<'b, R> {
    fn new(reader: R, budget: &'b Budget) -> Self {
        Self { reader, budget, buffer: vec![0; CHUNK], start: 0, end: 0 }
    }

    /// Returns the next four bytes without consuming them, or fewer at the end.
    fn peek(&mut self) -> io::Result<&[u8]> {
        while self.end.saturating_sub(self.start) < 4 && self.more()? {}
        let held = self.buffer.get(self.start..self.end).unwrap_or_default();
        Ok(held.get(..4).unwrap_or(held))
    }

    /// Reads more behind the bytes that are held. Returns `false` at the end.
    fn more(&mut self) -> io::Result<bool> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        let free = self.buffer.get_mut(self.end..).unwrap_or_default();
        let read = loop {
            match self.reader.read(free) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.budget.packed(read).map_err(io::Error::other)?;
        self.end = self.end.saturating_add(read).min(self.buffer.len());
        Ok(read > 0)
    }
}

impl<R: Read> BufRead for Input<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.more()?;
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or_default())
    }

    fn consume(&mut self, bytes: usize) {
        self.start = self.start.saturating_add(bytes).min(self.end);
    }
}

impl<R: Read> Read for Input<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?.read(into)?;
        self.consume(bytes);
        Ok(bytes)
    }
}

/// A sequence of zstd frames.
struct Zstd<'b, R> {
    input: Input<'b, R>,
    frames: FrameDecoder,
    open: bool,
}

impl<R: Read> Zstd<'_, R> {
    /// Opens the next frame that has contents. Returns `false` at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            let magic = self.input.peek()?;
            if magic.is_empty() {
                return Ok(false);
            }
            if !is_skippable(magic) {
                break;
            }
            let mut head = [0; 8];
            self.input.read_exact(&mut head)?;
            let [.., a, b, c, d] = head;
            let length = u64::from(u32::from_le_bytes([a, b, c, d]));
            let skipped = io::copy(&mut self.input.by_ref().take(length), &mut io::sink())?;
            if skipped < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.frames.reset(&mut self.input).map_err(io::Error::other)?;
        self.open = true;
        Ok(true)
    }

    /// Closes a frame whose bytes are all taken.
    fn end_frame(&mut self) -> io::Result<()> {
        self.open = false;
        let stored = self.frames.get_checksum_from_data();
        if stored.is_some() && stored != self.frames.get_calculated_checksum() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a zstd checksum differs"));
        }
        Ok(())
    }
}

impl<R: Read> Read for Zstd<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.open && !self.next_frame()? {
                return Ok(0);
            }
            if self.frames.can_collect() > 0 {
                return self.frames.read(into);
            }
            if self.frames.is_finished() {
                self.end_frame()?;
            } else {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.frames.decode_blocks(&mut self.input, one).map_err(io::Error::other)?;
            }
        }
    }
}
