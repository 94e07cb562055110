//! The members of an uploaded archive, placed by the sources of a COPY. The archive is hostile: no
//! member leads out of the context, and its parts are read one after another.

use super::place::{Attributes, Node, Placer, Spot};
use crate::error::{Error, Result};
use archive::{Entry, Kind, Reader};
use flate2::read::{GzDecoder, MultiGzDecoder};
use recipe::placement::Sources;
use std::ffi::{OsStr, OsString};
use std::io::{self, Cursor, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// First bytes of a gzip stream.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// First bytes of formats that are not unpacked, with their names.
const OTHERS: [(&[u8], &str); 3] = [
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (b"BZh", "bzip2"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
];
/// Bytes of a tar header.
const BLOCK: usize = 512;
/// Bytes at the begin of a file by which an archive is known.
pub(super) const HEAD: u64 = 64 * 1024;
/// Most names of a path. Each folder of a path has to be opened.
const DEPTH_MAX: usize = 200;

/// Places the members that the sources name. Marks the sources that named any in `used`.
pub(super) fn place(
    placer: &mut Placer<'_>,
    sources: &Sources,
    unpack: bool,
    used: &mut [bool],
    from: impl Read,
) -> Result<()> {
    let (head, from) = peek(from, GZIP.len() as u64)?;
    if head.is_empty() {
        return Ok(());
    }
    place_all(placer, sources, unpack, used, (head == GZIP, from))
}

/// Places the members of an archive, which may be compressed by gzip.
fn place_all(
    placer: &mut Placer<'_>,
    sources: &Sources,
    unpack: bool,
    used: &mut [bool],
    (gzip, from): (bool, impl Read),
) -> Result<()> {
    let from: Box<dyn Read + '_> = match gzip {
        true => Box::new(MultiGzDecoder::new(from)),
        false => Box::new(from),
    };
    let mut reader = Reader::new(from);
    while let Some(entry) = reader.next_entry()? {
        let spots = spots(sources, &names(&entry.path)?, used);
        place_one(placer, (sources, unpack), &spots, &entry, &mut reader)?;
    }
    Ok(())
}

/// Unpacks an archive of an archive, or of an origin, into the destination.
pub(super) fn unpack_all(placer: &mut Placer<'_>, gzip: bool, from: impl Read) -> Result<()> {
    let sources = Sources::docker(&["."]).map_err(|e| Error::internal(e.to_string()))?;
    place_all(placer, &sources, false, &mut [], (gzip, from))
}

fn place_one(
    placer: &mut Placer<'_>,
    (sources, unpack): (&Sources, bool),
    spots: &[Spot],
    entry: &Entry,
    reader: &mut Reader<impl Read>,
) -> Result<()> {
    let mut first: Option<PathBuf> = None;
    for spot in spots {
        if let Some(first) = &first {
            // Contents can be read only once.
            let mut again = placer.reopen(first)?;
            put_file(placer, spot, entry, &mut again)?;
            continue;
        }
        let mut contents = Contents(&mut *reader);
        match entry.kind {
            Kind::File if unpack && spot.below.as_os_str().is_empty() => {
                let (head, mut rest) = peek(contents, HEAD)?;
                match packed(&head)? {
                    Some(gzip) => return unpack_all(placer, gzip, rest),
                    None => first = Some(put_file(placer, spot, entry, &mut rest)?),
                }
            }
            Kind::File => first = Some(put_file(placer, spot, entry, &mut contents)?),
            Kind::Folder => {
                let path = placer.path(spot, true)?;
                placer.put(&path, Node::Folder, attributes(entry))?;
            }
            Kind::Link if entry.link.is_empty() => {
                return Err(refused(&entry.path, "is a link to nothing"));
            }
            Kind::Link => {
                let path = placer.path(spot, false)?;
                placer.put(&path, Node::Link(&entry.link), attributes(entry))?;
            }
            Kind::HardLink => put_hard_link(placer, sources, spot, entry)?,
            Kind::Other(_) => {
                let why = "is a device, a FIFO or of another kind that COPY does not take";
                return Err(refused(&entry.path, why));
            }
        }
    }
    Ok(())
}

fn attributes(entry: &Entry) -> Attributes {
    Attributes { mode: entry.mode, modified: Some(entry.modified) }
}

fn put_file(
    placer: &mut Placer<'_>,
    spot: &Spot,
    entry: &Entry,
    contents: &mut dyn Read,
) -> Result<PathBuf> {
    let path = placer.path(spot, false)?;
    placer.put(&path, Node::File(contents), attributes(entry))?;
    Ok(path)
}

fn put_hard_link(
    placer: &mut Placer<'_>,
    sources: &Sources,
    spot: &Spot,
    entry: &Entry,
) -> Result<()> {
    let path = placer.path(spot, false)?;
    let targets = spots(sources, &names(&entry.link)?, &mut []);
    let why = "is a hard link to a file that this step does not copy";
    let target = targets.first().ok_or_else(|| refused(&entry.path, why))?;
    let to = placer.path(target, false)?;
    // The link's own source may just have made the destination a folder.
    let path = if path == to { placer.path(spot, false)? } else { path };
    placer.put(&path, Node::HardLink(&to), attributes(entry))
}

/// Reports whether a file that begins with these bytes is a tar archive, and if so, whether it is
/// compressed by gzip. Returns `None` for any other file.
///
/// # Errors
/// Returns `invalid_argument` for a compressed file that is not unpacked.
pub(super) fn packed(head: &[u8]) -> Result<Option<bool>> {
    if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        let message = "unpack the archive first, or compress it with gzip";
        return Err(Error::invalid(format!("ADD does not unpack {name}: {message}")));
    }
    if !head.starts_with(&GZIP) {
        return Ok(is_tar(head).then_some(false));
    }
    let mut plain = Vec::new();
    // A head that ends within the stream is no fault.
    let _ = GzDecoder::new(head).take(BLOCK as u64).read_to_end(&mut plain);
    Ok(is_tar(&plain).then_some(true))
}

/// Reports whether bytes begin with a tar header, whose checksum is right.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..BLOCK) else { return false };
    if block.iter().all(|byte| *byte == 0) {
        return false;
    }
    let text: String = block[148..156].iter().map(|byte| char::from(*byte)).collect();
    let told = u32::from_str_radix(text.trim_matches([' ', '\0']), 8);
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    // The checksum's own bytes count as spaces.
    told.is_ok_and(|told| told == sum(block) - sum(&block[148..156]) + 8 * 32)
}

/// Reads the first bytes of a stream. Returns them with the whole stream.
pub(super) fn peek<R: Read>(mut from: R, most: u64) -> Result<(Vec<u8>, impl Read)> {
    let mut head = Vec::new();
    let read = from.by_ref().take(most).read_to_end(&mut head);
    read.map_err(|e| Error::invalid(format!("the files ended early: {e}")))?;
    Ok((head.clone(), Cursor::new(head).chain(from)))
}

/// Contents of the last entry.
struct Contents<'r, R>(&'r mut Reader<R>);

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(io::Error::other)
    }
}

/// Splits the path of a member into its names, from the top of the context.
fn names(path: &[u8]) -> Result<Vec<OsString>> {
    let mut names: Vec<OsString> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or_else(|| refused(path, "leads out of the context"))?;
            }
            name if name.contains(&0) || name.len() > 255 => {
                return Err(refused(path, "is no path"));
            }
            name => names.push(OsString::from_vec(name.to_vec())),
        }
    }
    match names.len() <= DEPTH_MAX {
        true => Ok(names),
        false => Err(refused(path, &format!("has more than {DEPTH_MAX} folders"))),
    }
}

/// Returns the places of a member. A name that is no text takes part with its readable bytes, and
/// keeps all bytes in the place.
fn spots(sources: &Sources, names: &[OsString], used: &mut [bool]) -> Vec<Spot> {
    let texts: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
    let member = texts.join("/");
    let mut spots = Vec::new();
    for placed in sources.places(&member) {
        let below = placed.below.split('/').filter(|name| !name.is_empty()).count();
        let (top, below) = names.split_at(names.len().saturating_sub(below));
        let top: PathBuf = top.iter().collect();
        let spot = Spot { top: top.into_os_string(), below: below.iter().collect() };
        if let Some(used) = used.get_mut(placed.source) {
            *used = true;
        }
        if !spots.contains(&spot) {
            spots.push(spot);
        }
    }
    spots
}

/// Makes the refusal of a member. A hostile name must not control a terminal.
fn refused(path: &[u8], why: &str) -> Error {
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let shown = Path::new(OsStr::from_bytes(path)).to_string_lossy();
    let shown: String = shown.chars().take(300).map(plain).collect();
    Error::invalid(format!("{shown} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_context_and_keep_their_bytes() {
        let joined = |path: &[u8]| names(path).map(|names| names.iter().collect::<PathBuf>());
        for (path, wanted) in
            [(&b"./a/b"[..], "a/b"), (b"/a//b/", "a/b"), (b"a/../b", "b"), (b".", "")]
        {
            assert_eq!(joined(path).unwrap(), Path::new(wanted));
        }
        for bad in [&b"../a"[..], b"a/../../b", b"a\0b"] {
            assert!(names(bad).is_err(), "{bad:?}");
        }
        assert!(names(&b"a/".repeat(DEPTH_MAX + 1)).is_err());
        let sources = Sources::docker(&["d"]).unwrap();
        let odd = names(b"d/\xff\xfe").unwrap();
        let placed = spots(&sources, &odd, &mut [false]);
        assert_eq!(placed[0].below.as_os_str().as_bytes(), b"\xff\xfe");
    }

    #[test]
    fn archives_are_known_by_their_first_bytes() {
        let mut block = vec![0_u8; BLOCK];
        block[0] = b'a';
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(packed(&block).unwrap(), Some(false));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &block).unwrap();
        assert_eq!(packed(&gzip.finish().unwrap()).unwrap(), Some(true));
        for plain in [&b""[..], b"text", &[0; 1024], &block[..100], &[0x1f, 0x8b, 1]] {
            assert_eq!(packed(plain).unwrap(), None);
        }
        assert!(packed(b"BZh91").unwrap_err().message.contains("bzip2"));
    }
}
