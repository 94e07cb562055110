//! The image's file: contents, written from front to back. Holes stay unwritten.

use super::{BLOCK, PIECE, TAIL_MAX, TAILS_MAX};
use crate::error::Fault;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes that are gathered for a write.
const BUFFER: usize = 256 * 1024;
/// Shortest run of zeros that stays unwritten.
const HOLE: u64 = 64 * 1024;
/// Offset of the superblock.
const SUPERBLOCK: u64 = 1024;

/// An image's file.
#[derive(Debug)]
pub(crate) struct Contents {
    file: File,
    buffer: Vec<u8>,
    /// Offset of the next byte, behind those in the buffer.
    at: u64,
    limit: u64,
    /// Bytes of tails that may still stand beside inodes.
    tails: u64,
    /// The next contents begin at a border of pieces.
    begins_layer: bool,
}

/// Place of a file's contents, as far as its size and attributes tell it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FilePlace {
    /// First block.
    pub block: u32,
    /// Bytes from the front that stand in blocks. All others are the tail beside the inode.
    pub in_blocks: u64,
}

impl Contents {
    /// Empties the file, and leaves the first block free.
    ///
    /// # Errors
    /// Fails when the file cannot be emptied.
    pub(super) fn new(file: File, limit: u64) -> Result<Self, Fault> {
        file.set_len(0).map_err(Fault::Write)?;
        let buffer = Vec::with_capacity(BUFFER);
        Ok(Self { file, buffer, at: BLOCK, limit, tails: TAILS_MAX, begins_layer: true })
    }

    /// Begins the contents of a layer.
    pub(crate) fn begin_layer(&mut self) {
        self.begins_layer = true;
    }

    /// Returns the place of a file's contents. They are written next, and then
    /// [`Contents::end_file`] is called. `beside` is the size of the inode's attributes.
    ///
    /// # Errors
    /// Fails at the limit of the image's size.
    pub(crate) fn begin_file(&mut self, size: u64, beside: usize) -> Result<FilePlace, Fault> {
        let tail = size % BLOCK;
        let fits = tail <= TAIL_MAX && tail <= self.tails && super::inode::fits(beside, tail);
        let in_blocks = if fits { size.saturating_sub(tail) } else { size };
        if fits {
            self.tails = self.tails.saturating_sub(tail);
        }
        if in_blocks == 0 {
            return Ok(FilePlace { block: 0, in_blocks });
        }
        if std::mem::take(&mut self.begins_layer) {
            self.align(PIECE)?;
        }
        Ok(FilePlace { block: self.block()?, in_blocks })
    }

    /// Pads a file's contents to whole blocks.
    ///
    /// # Errors
    /// As [`Contents::write`].
    pub(crate) fn end_file(&mut self) -> Result<(), Fault> {
        self.align(BLOCK)
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// Fails when the file cannot be written, and at the limit of its size.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.advance(bytes.len() as u64)?;
        if self.buffer.len().saturating_add(bytes.len()) > BUFFER {
            self.flush(bytes.len() as u64)?;
        }
        if bytes.len() >= BUFFER {
            let from = self.at.saturating_sub(bytes.len() as u64);
            return self.file.write_all_at(bytes, from).map_err(Fault::Write);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes zeros. A long run stays a hole of the file.
    ///
    /// # Errors
    /// As [`Contents::write`].
    pub(crate) fn write_zeros(&mut self, bytes: u64) -> Result<(), Fault> {
        self.advance(bytes)?;
        match usize::try_from(bytes) {
            Ok(short) if bytes < HOLE => {
                if self.buffer.len().saturating_add(short) > BUFFER {
                    self.flush(bytes)?;
                }
                self.buffer.resize(self.buffer.len().saturating_add(short), 0);
                Ok(())
            }
            _ => self.flush(bytes),
        }
    }

    /// Writes zeros up to a border.
    ///
    /// # Errors
    /// As [`Contents::write`].
    pub(super) fn align(&mut self, border: u64) -> Result<(), Fault> {
        let rest = self.at % border;
        if rest == 0 { Ok(()) } else { self.write_zeros(border.saturating_sub(rest)) }
    }

    /// Returns the number of the next block.
    ///
    /// # Errors
    /// Fails beyond 2³² blocks.
    pub(super) fn block(&self) -> Result<u32, Fault> {
        let limit = u64::from(u32::MAX);
        u32::try_from(self.at / BLOCK).map_err(|_| Fault::Limit { limit, unit: "blocks" })
    }

    /// Returns the number of bytes so far.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// Makes a range of earlier contents zero, and gives its room back to the file system.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub(super) fn zero(&mut self, from: u64, bytes: u64) -> Result<(), Fault> {
        self.flush(0)?;
        if bytes == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, flags, from, bytes).is_ok() {
            return Ok(());
        }
        // Some file systems have no holes. The bytes of the image are the same there.
        let zeros = vec![0; BUFFER];
        let mut done: u64 = 0;
        while done < bytes {
            let left = usize::try_from(bytes.saturating_sub(done)).unwrap_or(BUFFER).min(BUFFER);
            let part = zeros.get(..left).unwrap_or_default();
            self.file.write_all_at(part, from.saturating_add(done)).map_err(Fault::Write)?;
            done = done.saturating_add(left as u64);
        }
        Ok(())
    }

    /// Writes the superblock into the first block.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub(super) fn write_superblock(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file.write_all_at(bytes, SUPERBLOCK).map_err(Fault::Write)
    }

    /// Writes what is gathered, and returns the file's size.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub(super) fn finish(mut self) -> Result<u64, Fault> {
        self.flush(0)?;
        self.file.set_len(self.at).map_err(Fault::Write)?;
        Ok(self.at)
    }

    /// Counts bytes that are about to be written.
    fn advance(&mut self, bytes: u64) -> Result<(), Fault> {
        self.at = self.at.saturating_add(bytes);
        if self.at > self.limit {
            return Err(Fault::TooLarge { limit: self.limit, unit: "bytes in the image" });
        }
        Ok(())
    }

    /// Writes the buffer, whose end is `behind` bytes before the present offset.
    fn flush(&mut self, behind: u64) -> Result<(), Fault> {
        let from = self.at.saturating_sub(behind).saturating_sub(self.buffer.len() as u64);
        self.file.write_all_at(&self.buffer, from).map_err(Fault::Write)?;
        self.buffer.clear();
        Ok(())
    }
}
