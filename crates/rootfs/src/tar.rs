//! Tar archives, read as a stream: POSIX's form (`ustar`, `pax`), GNU's and V7's.
//!
//! The reader understands what changes an entry's meaning, and refuses all else. It holds one
//! header's attributes in memory, up to a limit, and no contents. Sparse files come out as bytes
//! and holes. The module knows nothing of trees, whiteouts or images.

mod header;
mod number;
mod pax;
mod sparse;

use crate::error::Fault;
use crate::source::Source;
use header::Block;
use pax::Pax;
use sparse::{Map, Piece};

/// Size of a block. Each header is one block, and contents are padded to whole blocks.
pub(crate) const BLOCK: usize = 512;
/// Most bytes of the extension headers of one entry.
const EXTENSION_MAX: u64 = 1024 * 1024;
/// Most bytes of the attributes that global headers give to all later entries.
const GLOBAL_MAX: usize = 16 * 1024;

/// Kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    /// A symbolic link.
    Link,
    /// Another name of a file.
    HardLink,
    Character,
    Block,
    Fifo,
}

/// Description of an entry. Its contents follow in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub kind: Kind,
    /// Path as the archive has it.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970; earlier times are 0.
    pub mtime: u64,
    /// Bytes of a file's contents, with its holes.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes, sorted by their names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A part of a file's contents.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Data<'c> {
    Bytes(&'c [u8]),
    /// Number of zeros.
    Hole(u64),
}

/// A reader of one archive.
pub(crate) struct Reader<S> {
    source: S,
    /// Bytes of the entry's contents that are still in the stream.
    stored: u64,
    /// Bytes that pad the contents to whole blocks.
    padding: u64,
    /// Position in the file, and the pieces of a sparse one.
    position: u64,
    size: u64,
    map: Option<Map>,
    global: Pax,
}

impl<S: Source> Reader<S> {
    pub(crate) fn new(source: S) -> Self {
        let global = Pax::default();
        Self { source, stored: 0, padding: 0, position: 0, size: 0, map: None, global }
    }

    /// Returns the stream, for what follows the archive's end.
    pub(crate) fn into_source(self) -> S {
        self.source
    }

    /// Skips the rest of the entry, and reads the next header. Returns `None` at the end.
    ///
    /// A zero block ends the archive, and so does the end of the stream between two entries.
    ///
    /// # Errors
    /// Fails for a damaged archive, a broken stream, and an entry of an unknown kind.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Fault> {
        self.skip(self.stored)?;
        self.skip(self.padding)?;
        (self.stored, self.padding, self.map) = (0, 0, None);
        let mut pax = self.global.clone();
        let (mut long_name, mut long_link) = (None, None);
        let (mut extensions, mut within): (u64, bool) = (0, false);
        loop {
            let Some(block) = self.header(within)? else {
                return Ok(None);
            };
            let extension = matches!(block.flag(), b'x' | b'g' | b'L' | b'K');
            if !extension {
                return self.entry(&block, pax, long_name, long_link).map(Some);
            }
            let size = block.size()?;
            extensions = extensions.saturating_add(size).saturating_add(BLOCK as u64);
            if extensions > EXTENSION_MAX {
                let unit = "bytes in the headers of one entry";
                return Err(Fault::Limit { limit: EXTENSION_MAX, unit });
            }
            let body = self.body(size)?;
            within |= block.flag() != b'g';
            match block.flag() {
                b'x' => pax.read(&body, true)?,
                b'L' => long_name = Some(number::text(&body).to_vec()),
                b'K' => long_link = Some(number::text(&body).to_vec()),
                _ => {
                    self.global.read(&body, false)?;
                    if self.global.held() > GLOBAL_MAX {
                        let unit = "bytes in the global headers";
                        return Err(Fault::Limit { limit: GLOBAL_MAX as u64, unit });
                    }
                    pax.read(&body, false)?;
                }
            }
        }
    }

    /// Passes the contents on, part by part.
    ///
    /// # Errors
    /// Fails for a broken stream, at its early end, and when `take` fails.
    pub(crate) fn contents<E: From<Fault>>(
        &mut self,
        mut take: impl FnMut(Data<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.position < self.size {
            let left = self.size.saturating_sub(self.position);
            let run = self.map.as_mut().map_or(Piece::Bytes(left), |map| map.at(self.position));
            let bytes = match run {
                Piece::Hole(bytes) => {
                    let bytes = bytes.min(left);
                    take(Data::Hole(bytes))?;
                    bytes
                }
                Piece::Bytes(bytes) => self.pass(bytes.min(left), &mut take)?,
            };
            self.position = self.position.saturating_add(bytes);
        }
        Ok(())
    }

    /// Passes one chunk on, of at most so many bytes, and returns its length.
    fn pass<E: From<Fault>>(
        &mut self,
        most: u64,
        take: &mut impl FnMut(Data<'_>) -> Result<(), E>,
    ) -> Result<u64, E> {
        let chunk = self.source.chunk()?;
        let bytes = clamp(chunk.len(), most.min(self.stored));
        let chunk = chunk.get(..bytes).unwrap_or_default();
        if chunk.is_empty() {
            return Err(Fault::Truncated.into());
        }
        take(Data::Bytes(chunk))?;
        self.source.consume(bytes);
        self.stored = self.stored.saturating_sub(bytes as u64);
        Ok(bytes as u64)
    }

    /// Makes the entry of a header and of the extension headers before it.
    fn entry(
        &mut self,
        block: &Block,
        mut pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, Fault> {
        let mut entry = block.entry()?;
        let mut stored = match pax.size {
            Some(size) => size,
            None => block.size()?,
        };
        if let Some(path) = long_name.or(pax.path.take()) {
            entry.path = path;
        }
        if let Some(link) = long_link.or(pax.link.take()) {
            entry.link = link;
        }
        entry.uid = number::id(pax.uid.map_or_else(|| block.uid(), Ok)?)?;
        entry.gid = number::id(pax.gid.map_or_else(|| block.gid(), Ok)?)?;
        let mtime = pax.mtime.map_or_else(|| block.mtime(), Ok)?;
        entry.mtime = u64::try_from(mtime).unwrap_or(0);
        if matches!(block.flag(), 0 | b'0' | b'7') && entry.path.ends_with(b"/") {
            // V7 has no flag for folders.
            entry.kind = Kind::Folder;
        } else if entry.kind != Kind::File {
            // Some writers repeat a file's size in its other names; no contents follow there.
            stored = 0;
        }
        self.stored = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        (self.position, self.size) = (0, 0);
        if entry.kind == Kind::File {
            self.open(block, &mut entry, &mut pax)?;
        }
        entry.xattrs = std::mem::take(&mut pax.xattrs).into_iter().collect();
        Ok(entry)
    }

    /// Prepares the reading of a file's contents.
    fn open(&mut self, block: &Block, entry: &mut Entry, pax: &mut Pax) -> Result<(), Fault> {
        let (map, size) = if block.flag() == b'S' {
            self.old_map(block)?
        } else if pax.sparse.is_version_1() {
            (self.map_in_contents()?, pax.sparse.size)
        } else {
            (std::mem::take(&mut pax.sparse.pairs), pax.sparse.size)
        };
        if let Some(name) = pax.sparse.name.take() {
            entry.path = name;
        }
        entry.size = size.unwrap_or(self.stored);
        self.size = entry.size;
        if size.is_some() {
            self.map = Some(Map::new(&map, entry.size, self.stored)?);
        }
        Ok(())
    }

    /// Reads the map of a sparse file in GNU's old form: in the header and in blocks behind it.
    fn old_map(&mut self, block: &Block) -> Result<(Vec<u64>, Option<u64>), Fault> {
        let mut pairs = Vec::new();
        let mut more = block.sparse(&mut pairs)?;
        while more {
            sparse::check_count(pairs.len())?;
            let next = self.block()?.ok_or(Fault::Truncated)?;
            more = next.sparse_continued(&mut pairs)?;
        }
        Ok((pairs, Some(block.real_size()?)))
    }

    /// Reads the map of a sparse file in version 1.0: lines of numbers before the contents.
    fn map_in_contents(&mut self) -> Result<Vec<u64>, Fault> {
        let mut lines = sparse::Lines::default();
        while !lines.is_complete() {
            if self.stored < BLOCK as u64 {
                return Err(Fault::Malformed("a sparse file's map breaks off"));
            }
            let block = self.block()?.ok_or(Fault::Truncated)?;
            self.stored = self.stored.saturating_sub(BLOCK as u64);
            lines.read(block.bytes())?;
        }
        Ok(lines.into_pairs())
    }

    /// Reads a header. Returns `None` at the archive's end, which may not follow `within` an entry.
    fn header(&mut self, within: bool) -> Result<Option<Block>, Fault> {
        let block = self.block()?.filter(|block| !block.is_zero());
        match block {
            Some(block) => block.verify().map(Some),
            None if within => Err(Fault::Malformed("a header has no entry")),
            None => Ok(None),
        }
    }

    /// Reads a block. Returns `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<Block>, Fault> {
        let mut bytes = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let chunk = self.source.chunk()?;
            let free = bytes.get_mut(filled..).unwrap_or_default();
            let more = chunk.len().min(free.len());
            if more == 0 {
                return if filled == 0 { Ok(None) } else { Err(Fault::Truncated) };
            }
            free.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.source.consume(more);
            filled = filled.saturating_add(more);
        }
        Ok(Some(Block::new(bytes)))
    }

    /// Reads the body of an extension header with its padding. The caller has checked its size.
    fn body(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        let mut body = Vec::new();
        let mut left = size;
        while left > 0 {
            let block = self.block()?.ok_or(Fault::Truncated)?;
            let bytes = clamp(BLOCK, left);
            body.extend_from_slice(block.bytes().get(..bytes).unwrap_or_default());
            left = left.saturating_sub(bytes as u64);
        }
        Ok(body)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        let mut left = bytes;
        while left > 0 {
            let chunk = clamp(self.source.chunk()?.len(), left);
            if chunk == 0 {
                return Err(Fault::Truncated);
            }
            self.source.consume(chunk);
            left = left.saturating_sub(chunk as u64);
        }
        Ok(())
    }
}

/// Returns the smaller of a length and a number of bytes.
fn clamp(length: usize, most: u64) -> usize {
    usize::try_from(most).map_or(length, |most| length.min(most))
}
