//! The tar format. Headers are written in POSIX's form (`ustar` and `pax`). The reader also takes
//! GNU's form of long names and large numbers. This module never touches the file system.

use crate::{Error, Result};
use std::io::{self, Read, Write};

/// Size of a block. Each header is one block, and contents are padded to whole blocks.
const BLOCK: usize = 512;
/// Longest extension header: room for a path and a link of 4,096 bytes each, and attributes.
const EXTENSION_MAX: u64 = 64 * 1024;
/// Longest path and link, as in Linux.
const PATH_MAX: usize = 4095;
/// Bytes that may follow the archive's end. GNU tar pads to 10 KiB by default.
const TRAILER_MAX: u64 = 1024 * 1024;
/// Largest size and time that the octal field of a header holds.
const OCTAL_MAX: u64 = 0o777_7777_7777;

/// Kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// Another name of a file that came before in the archive.
    HardLink,
    /// A kind that is never unpacked, with the byte of its header.
    Other(u8),
}

/// Time of a change: seconds since 1970, and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds that are added.
    pub nanos: u32,
}

/// Description of an entry. Its contents follow in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Kind, which decides about the other fields.
    pub kind: Kind,
    /// Path as the archive has it, unchecked.
    pub path: Vec<u8>,
    /// Target of a link; empty for all other kinds.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Time of the last change.
    pub modified: Time,
    /// Bytes of contents.
    pub size: u64,
}

/// Writes an entry's header.
///
/// # Errors
/// `Stream` when the stream cannot be written.
pub(crate) fn write_header(to: &mut impl Write, entry: &Entry) -> Result<()> {
    let mut extension = Vec::new();
    if entry.path.len() > 100 {
        record(&mut extension, "path", &entry.path);
    }
    if entry.link.len() > 100 {
        record(&mut extension, "linkpath", &entry.link);
    }
    if entry.size > OCTAL_MAX {
        record(&mut extension, "size", entry.size.to_string().as_bytes());
    }
    let Time { seconds, nanos } = entry.modified;
    if nanos > 0 || u64::try_from(seconds).map_or(true, |seconds| seconds > OCTAL_MAX) {
        record(&mut extension, "mtime", time_text(entry.modified).as_bytes());
    }
    if !extension.is_empty() {
        let length = extension.len() as u64;
        to.write_all(&header(b'x', b"pax", b"", (0o644, 0, length))).map_err(Error::Stream)?;
        to.write_all(&extension).map_err(Error::Stream)?;
        pad(to, length)?;
    }
    let flag = match entry.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Link => b'2',
        Kind::Folder => b'5',
        Kind::Other(flag) => flag,
    };
    let seconds = u64::try_from(seconds).unwrap_or(0);
    let block = header(flag, &entry.path, &entry.link, (entry.mode, seconds, entry.size));
    to.write_all(&block).map_err(Error::Stream)
}

/// Fills the last block of contents.
pub(crate) fn pad(to: &mut impl Write, length: u64) -> Result<()> {
    to.write_all(&[0; BLOCK][..padding(length)]).map_err(Error::Stream)
}

/// Writes the archive's end and flushes the stream.
pub(crate) fn finish(to: &mut impl Write) -> Result<()> {
    to.write_all(&[0; 2 * BLOCK]).and_then(|()| to.flush()).map_err(Error::Stream)
}

/// Counts the bytes from the end of contents to the end of their last block.
fn padding(length: u64) -> usize {
    usize::try_from(length.wrapping_neg() % BLOCK as u64).unwrap_or(0)
}

/// Appends a record of an extension header. Its first number is the length of the whole record.
fn record(to: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    to.extend_from_slice(format!("{length} {key}=").as_bytes());
    to.extend_from_slice(value);
    to.push(b'\n');
}

/// Renders a time as seconds with a fraction. Times before 1970 count backwards.
fn time_text(Time { seconds, nanos }: Time) -> String {
    if seconds >= 0 || nanos == 0 {
        return format!("{seconds}.{nanos:09}");
    }
    let (whole, part) = ((seconds + 1).unsigned_abs(), 1_000_000_000 - nanos);
    format!("-{whole}.{part:09}")
}

/// Reads a time of an extension header.
fn time_value(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = part.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    let seconds: i64 = whole.parse().ok()?;
    if !whole.starts_with('-') || nanos == 0 {
        return Some(Time { seconds, nanos });
    }
    Some(Time { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos })
}

/// Makes a header's block. Longer texts are cut: an extension holds the whole ones.
fn header(
    flag: u8,
    path: &[u8],
    link: &[u8],
    (mode, seconds, size): (u32, u64, u64),
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    let octal = |value: u64, digits: usize| format!("{:0digits$o}", value.min(OCTAL_MAX));
    put(0, &path[..path.len().min(100)]);
    put(100, octal(u64::from(mode & 0o7777), 7).as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, octal(size, 11).as_bytes());
    put(136, octal(seconds, 11).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum = format!("{:06o}\0 ", checksum(&block));
    block[148..156].copy_from_slice(sum.as_bytes());
    block
}

/// Sums a header's bytes, with spaces in place of the checksum itself.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let byte =
        |(at, byte): (usize, &u8)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) };
    block.iter().enumerate().map(byte).sum()
}

/// Reads an archive's entries in order.
pub struct Reader<R> {
    from: R,
    /// Bytes of the entry's contents that were not read yet.
    left: u64,
    /// Bytes after the contents up to the next header.
    padding: usize,
}

/// Fields of extension headers, which apply to the next entry.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<Time>,
}

impl<R: Read> Reader<R> {
    /// Begins at the first header of an archive without compression.
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// Reads the next entry. Skips contents of the last entry that nobody read. Returns `None` at
    /// the archive's end, once the stream has ended too.
    ///
    /// # Errors
    /// Returns `Refused` for a malformed archive, and `Stream` for one that ends early.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            self.from.read_exact(&mut block).map_err(Error::Stream)?;
            if block.iter().all(|byte| *byte == 0) {
                self.drain()?;
                return Ok(None);
            }
            if number(&block[148..156]).ok() != Some(u64::from(checksum(&block))) {
                return Err(refused("the archive is damaged or not a tar archive"));
            }
            let size = number(&block[124..136])?;
            match block[156] {
                b'x' => self.pax(size, &mut extension)?,
                b'L' => extension.path = Some(self.text(size)?),
                b'K' => extension.link = Some(self.text(size)?),
                // A global extension, such as git's, holds nothing that is needed here.
                b'g' => self.set_contents(size),
                _ => return self.entry(&block, size, extension).map(Some),
            }
        }
    }

    fn entry(&mut self, block: &[u8; BLOCK], size: u64, extension: Extension) -> Result<Entry> {
        let path = extension.path.unwrap_or_else(|| path(block));
        let kind = match block[156] {
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Folder,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Link,
            b'5' => Kind::Folder,
            other => Kind::Other(other),
        };
        let link = match kind {
            Kind::Link | Kind::HardLink => {
                extension.link.unwrap_or_else(|| until_nul(&block[157..257]).to_vec())
            }
            Kind::File | Kind::Folder | Kind::Other(_) => Vec::new(),
        };
        if path.len() > PATH_MAX || link.len() > PATH_MAX {
            return Err(refused("a path in the archive is longer than 4095 bytes"));
        }
        let size = match block[156] {
            // No contents follow links, devices, folders and FIFOs. Some tars write a size for
            // them, such as the linked file's. Readers of Go and Python ignore it.
            b'1'..=b'6' => 0,
            _ => extension.size.unwrap_or(size),
        };
        self.set_contents(size);
        let seconds = seconds(&block[136..148])?;
        let modified = extension.modified.unwrap_or(Time { seconds, nanos: 0 });
        let mode = u32::try_from(number(&block[100..108])? & 0o7777).unwrap_or(0);
        let size = if kind == Kind::File { size } else { 0 };
        Ok(Entry { kind, path, link, mode, modified, size })
    }

    /// Reads contents of the last entry. An empty answer marks their end.
    ///
    /// # Errors
    /// Returns `Stream` for an archive that ends early.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.from.read(&mut buffer[..most]).map_err(Error::Stream)?;
        if read == 0 {
            return Err(Error::Stream(io::ErrorKind::UnexpectedEof.into()));
        }
        self.left -= read as u64;
        Ok(read)
    }

    /// Returns the stream that is read.
    pub(crate) fn stream(&self) -> &R {
        &self.from
    }

    /// Returns the bytes from the place of the stream to the next header.
    pub(crate) fn until_next(&self) -> u64 {
        self.left.saturating_add(self.padding as u64)
    }

    fn set_contents(&mut self, size: u64) {
        (self.left, self.padding) = (size, padding(size));
    }

    fn skip(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        while self.read(&mut buffer)? > 0 {}
        let padding = std::mem::take(&mut self.padding);
        self.from.read_exact(&mut buffer[..padding]).map_err(Error::Stream)
    }

    /// Reads the stream to its end, so that a stream that breaks off there fails.
    fn drain(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        let mut after = 0;
        loop {
            match self.from.read(&mut buffer).map_err(Error::Stream)? {
                0 => return Ok(()),
                read => after += read as u64,
            }
            if after > TRAILER_MAX {
                return Err(refused("bytes follow the end of the archive"));
            }
        }
    }

    /// Reads the whole contents of an extension header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > EXTENSION_MAX {
            return Err(refused("an extension header in the archive is too large"));
        }
        self.set_contents(size);
        let mut whole = vec![0; usize::try_from(size).unwrap_or(0)];
        self.from.read_exact(&mut whole).map_err(Error::Stream)?;
        self.left = 0;
        Ok(whole)
    }

    /// Reads a long name in GNU's form.
    fn text(&mut self, size: u64) -> Result<Vec<u8>> {
        Ok(until_nul(&self.extension(size)?).to_vec())
    }

    /// Reads an extension header in POSIX' form.
    fn pax(&mut self, size: u64, extension: &mut Extension) -> Result<()> {
        let whole = self.extension(size)?;
        let mut rest = &whole[..];
        while !rest.is_empty() {
            let (key, value, after) =
                split_record(rest).ok_or_else(|| refused("an extension header is malformed"))?;
            rest = after;
            match key {
                b"path" => extension.path = Some(value.to_vec()),
                b"linkpath" => extension.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    extension.size =
                        Some(size.ok_or_else(|| refused("a size in the archive is not a number"))?);
                }
                b"mtime" => extension.modified = time_value(value),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(refused(
                        "the archive contains a sparse file; pack it without sparse files",
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Splits the first record off: its key, its value, and the bytes after it.
fn split_record(from: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = from.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&from[..space]).ok()?.parse().ok()?;
    let record = from.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &from[length..]))
}

fn refused(why: &str) -> Error {
    Error::Refused(why.to_owned())
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Reads the path of an entry that has no extension.
fn path(block: &[u8; BLOCK]) -> Vec<u8> {
    let (name, prefix) = (until_nul(&block[..100]), until_nul(&block[345..500]));
    // GNU's own form has other fields in place of the prefix.
    if prefix.is_empty() || &block[257..263] != b"ustar\0" {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// Reads a time. A time before 1970 is in GNU's form, as two's complement.
fn seconds(field: &[u8]) -> Result<i64> {
    if field[0] & 0xc0 != 0xc0 {
        return Ok(i64::try_from(number(field)?).unwrap_or(i64::MAX));
    }
    let digit = |sum: i64, byte: &u8| Some(sum.checked_mul(256)? | i64::from(*byte));
    let read = field.iter().try_fold(-1, digit);
    read.ok_or_else(|| refused("a time in the archive is malformed"))
}

/// Reads a number. It consists of octal digits or, in GNU's form, of bytes after a set highest bit.
fn number(field: &[u8]) -> Result<u64> {
    let wrong = || refused("a number in the archive is malformed");
    if field[0] & 0x80 != 0 {
        let (first, rest) = (u64::from(field[0] & 0x7f), &field[1..]);
        return rest.iter().try_fold(first, |sum, byte| {
            let sum = sum.checked_mul(256).ok_or_else(wrong)?;
            Ok(sum | u64::from(*byte))
        });
    }
    let text = std::str::from_utf8(until_nul(field)).map_err(|_| wrong())?.trim();
    if text.is_empty() { Ok(0) } else { u64::from_str_radix(text, 8).map_err(|_| wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, path: &str) -> Entry {
        let modified = Time { seconds: 1_700_000_000, nanos: 0 };
        Entry { kind, path: path.into(), link: vec![], mode: 0o644, modified, size: 0 }
    }

    #[test]
    fn entries_of_every_kind_round_trip() {
        let long = "deep/".repeat(200) + "end";
        let entries = [
            Entry { size: 700, ..entry(Kind::File, "f") },
            Entry { mode: 0o7755, ..entry(Kind::Folder, "d/") },
            Entry { link: b"../f".to_vec(), ..entry(Kind::Link, "l") },
            Entry { link: long.clone().into_bytes(), ..entry(Kind::Link, &long) },
            Entry { modified: Time { seconds: 5, nanos: 7 }, ..entry(Kind::File, "precise") },
            Entry { modified: Time { seconds: -5, nanos: 7 }, ..entry(Kind::File, "before") },
            Entry { modified: Time { seconds: -1, nanos: 7 }, ..entry(Kind::File, "just") },
            Entry { modified: Time { seconds: -5, nanos: 0 }, ..entry(Kind::File, "whole") },
            Entry { link: b"f".to_vec(), ..entry(Kind::HardLink, "h") },
            entry(Kind::Other(b'3'), "device"),
        ];
        let mut bytes = Vec::new();
        for entry in &entries {
            write_header(&mut bytes, entry).unwrap();
            bytes.extend(vec![b'c'; usize::try_from(entry.size).unwrap()]);
            pad(&mut bytes, entry.size).unwrap();
        }
        finish(&mut bytes).unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut reader = Reader::new(&bytes[..]);
        for wanted in &entries {
            assert_eq!(reader.next_entry().unwrap().as_ref(), Some(wanted));
            let mut contents = [0; 1000];
            assert_eq!(reader.read(&mut contents).unwrap() as u64, wanted.size);
        }
        assert_eq!(reader.next_entry().unwrap(), None);
    }

    #[test]
    fn size_beyond_octal_field_round_trips() {
        let size = 1 << 40;
        let mut bytes = Vec::new();
        write_header(&mut bytes, &Entry { size, ..entry(Kind::File, "terabyte") }).unwrap();
        assert_eq!(Reader::new(&bytes[..]).next_entry().unwrap().unwrap().size, size);
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x01\0\0\0\0").unwrap(), 1 << 32);
        assert!(number(&[0xff; 12]).is_err());
    }

    #[test]
    fn negative_gnu_mtime_is_read() {
        let with_time = |field: [u8; 12]| {
            let mut block = header(b'0', b"old", b"", (0o644, 0, 0));
            block[136..148].copy_from_slice(&field);
            let sum = format!("{:06o}\0 ", checksum(&block));
            block[148..156].copy_from_slice(sum.as_bytes());
            Reader::new(&block[..]).next_entry()
        };
        let negative = |seconds: i64| {
            let mut field = [0xff; 12];
            field[4..].copy_from_slice(&seconds.to_be_bytes());
            field
        };
        for seconds in [-1, -86_400, -2_208_988_800, i64::MIN] {
            let read = with_time(negative(seconds)).unwrap().unwrap();
            assert_eq!(read.modified, Time { seconds, nanos: 0 });
        }
        let mut beyond = negative(0);
        beyond[3] = 0xfe;
        assert!(matches!(with_time(beyond), Err(Error::Refused(_))));
    }

    #[test]
    fn size_of_link_or_directory_is_ignored() {
        for flag in *b"12345" {
            let mut extension = Vec::new();
            record(&mut extension, "size", b"700");
            let length = extension.len() as u64;
            let mut bytes = header(b'x', b"pax", b"", (0o644, 0, length)).to_vec();
            bytes.extend(&extension);
            pad(&mut bytes, length).unwrap();
            bytes.extend(header(flag, b"link", b"f", (0o644, 0, 3)));
            let after = Entry { size: 1, ..entry(Kind::File, "after") };
            write_header(&mut bytes, &after).unwrap();
            let mut reader = Reader::new(&bytes[..]);
            let read = reader.next_entry().unwrap().unwrap();
            assert_eq!((read.path.as_slice(), read.size), (&b"link"[..], 0));
            assert_eq!(reader.next_entry().unwrap(), Some(after), "{}", char::from(flag));
        }
    }

    #[test]
    fn truncated_or_damaged_archive_is_an_error() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, &Entry { size: 600, ..entry(Kind::File, "f") }).unwrap();
        let next = |bytes: &[u8]| {
            let mut reader = Reader::new(bytes);
            reader.next_entry().and_then(|_| reader.next_entry())
        };
        assert!(matches!(next(&bytes), Err(Error::Stream(_))));
        assert!(matches!(next(b""), Err(Error::Stream(_))));
        assert!(matches!(next(&[b'x'; BLOCK]), Err(Error::Refused(_))));
        let mut large = Vec::new();
        large.extend_from_slice(&header(b'L', b"long", b"", (0, 0, 1 << 40)));
        assert!(matches!(next(&large), Err(Error::Refused(_))));
        let mut trailed = vec![0; 2 * BLOCK];
        trailed.extend(vec![1; 2 << 20]);
        assert!(matches!(next(&trailed), Err(Error::Refused(_))));
    }

    /// Every change leads to entries or an error, and never to a panic.
    #[test]
    fn archive_with_any_byte_changed_never_panics() {
        let mut whole = Vec::new();
        let long = Entry { link: vec![b'l'; 150], ..entry(Kind::Link, &"p/".repeat(90)) };
        for entry in [long, Entry { size: 3, ..entry(Kind::File, "f") }] {
            write_header(&mut whole, &entry).unwrap();
            whole.extend(vec![b'c'; usize::try_from(entry.size).unwrap()]);
            pad(&mut whole, entry.size).unwrap();
        }
        finish(&mut whole).unwrap();
        for at in 0..whole.len() {
            for byte in [0, b' ', b'7', b'9', b'L', b'x', 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                // Without a corrected checksum, the reader would refuse every change alike.
                for block in bytes.chunks_exact_mut(BLOCK) {
                    let header: &mut [u8; BLOCK] = block.try_into().unwrap();
                    if &header[257..262] == b"ustar" && !(148..156).contains(&(at % BLOCK)) {
                        let sum = format!("{:06o}\0 ", checksum(header));
                        header[148..156].copy_from_slice(sum.as_bytes());
                    }
                }
                let mut reader = Reader::new(&bytes[..]);
                while let Ok(Some(_)) = reader.next_entry() {}
            }
        }
    }
}
