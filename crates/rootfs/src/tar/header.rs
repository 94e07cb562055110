//! A block of an archive as a header: the fields of V7, `ustar`, and GNU's form.

use super::{BLOCK, Entry, Kind, number};
use crate::error::Fault;

/// Offset of the checksum and its length. Its own bytes count as spaces.
const CHECKSUM: std::ops::Range<usize> = 148..156;
/// Bytes of one piece in GNU's old map of a sparse file: an offset and a length.
const PIECE: usize = 24;

/// A block that may be a header.
#[derive(Debug)]
pub(super) struct Block([u8; BLOCK]);

impl Block {
    pub(super) fn new(bytes: [u8; BLOCK]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Checks the checksum. Old writers summed signed bytes.
    ///
    /// # Errors
    /// Fails when neither sum fits.
    pub(super) fn verify(self) -> Result<Self, Fault> {
        let stored = number::field(self.field(CHECKSUM))?;
        let (mut unsigned, mut signed) = (0, 0);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if CHECKSUM.contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored == unsigned || stored == signed {
            Ok(self)
        } else {
            Err(Fault::Malformed("a header's checksum differs"))
        }
    }

    pub(super) fn flag(&self) -> u8 {
        self.field(156..157).first().copied().unwrap_or_default()
    }

    pub(super) fn size(&self) -> Result<u64, Fault> {
        number::natural(self.field(124..136))
    }

    pub(super) fn uid(&self) -> Result<u64, Fault> {
        number::natural(self.field(108..116))
    }

    pub(super) fn gid(&self) -> Result<u64, Fault> {
        number::natural(self.field(116..124))
    }

    pub(super) fn mtime(&self) -> Result<i64, Fault> {
        number::field(self.field(136..148))
    }

    /// Size of a sparse file in GNU's old form, with its holes.
    pub(super) fn real_size(&self) -> Result<u64, Fault> {
        number::natural(self.field(483..495))
    }

    /// Makes an entry without its size, owners, time and attributes: `pax` may replace those.
    ///
    /// # Errors
    /// Fails for wrong numbers and for an unknown kind.
    pub(super) fn entry(&self) -> Result<Entry, Fault> {
        let kind = match self.flag() {
            // A contiguous file (`7`) is a file to everyone, and so is a sparse one (`S`).
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Link,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            _ => return Err(Fault::Refused("its kind is unknown")),
        };
        let mode = number::natural(self.field(100..108))? & 0o7777;
        let mut device = (0, 0);
        if matches!(kind, Kind::Character | Kind::Block) {
            device = (self.device(329..337, 0xfff)?, self.device(337..345, 0xf_ffff)?);
        }
        Ok(Entry {
            kind,
            path: self.path(),
            link: number::text(self.field(157..257)).to_vec(),
            mode: u16::try_from(mode).unwrap_or_default(),
            uid: 0,
            gid: 0,
            mtime: 0,
            size: 0,
            device,
            xattrs: Vec::new(),
        })
    }

    /// Adds GNU's map of a sparse file, and returns `true` if a further block continues it.
    ///
    /// # Errors
    /// Fails for wrong numbers.
    pub(super) fn sparse(&self, pairs: &mut Vec<u64>) -> Result<bool, Fault> {
        read_map(self.field(386..482), pairs)?;
        Ok(self.field(482..483) != [0])
    }

    /// Adds a block that continues a map, and returns `true` if a further block follows.
    ///
    /// # Errors
    /// Fails for wrong numbers.
    pub(super) fn sparse_continued(&self, pairs: &mut Vec<u64>) -> Result<bool, Fault> {
        read_map(self.field(0..504), pairs)?;
        Ok(self.field(504..505) != [0])
    }

    /// Joins prefix and name. GNU's form and V7 have other fields at the prefix's place.
    fn path(&self) -> Vec<u8> {
        let name = number::text(self.field(0..100));
        let is_star = self.field(508..512) == b"tar\0";
        let prefix = match self.field(257..263) {
            b"ustar\0" if is_star => number::text(self.field(345..476)),
            b"ustar\0" => number::text(self.field(345..500)),
            _ => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Reads a number of a device, whose range is Linux's.
    fn device(&self, range: std::ops::Range<usize>, most: u32) -> Result<u32, Fault> {
        u32::try_from(number::natural(self.field(range))?)
            .ok()
            .filter(|number| *number <= most)
            .ok_or(Fault::Refused("its device number is beyond Linux's"))
    }

    fn field(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.0.get(range).unwrap_or_default()
    }
}

fn read_map(field: &[u8], pairs: &mut Vec<u64>) -> Result<(), Fault> {
    for piece in field.chunks_exact(PIECE) {
        let (offset, length) = piece.split_at(PIECE / 2);
        if offset.first() == Some(&0) {
            break;
        }
        pairs.push(number::natural(offset)?);
        pairs.push(number::natural(length)?);
    }
    Ok(())
}
