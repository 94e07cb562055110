//! A layer: a file with the guest pages in which a memory differs from the layers below. A layer is
//! written once and then never changed. Folders share it by hard links, so the file system counts
//! its users.
//!
//! ```text
//! data: whole pages, in the order of the index │ index │ footer
//! index: u32 runs, runs of (u64 first page, u32 pages, u32 0 data or 1 zeros), then a BLAKE3 hash
//!        for each 64 pages of data
//! footer, 56 bytes: BLAKE3 of the index, u64 its offset, u64 its length, "WRENNPG1"
//! ```
//! Numbers are little-endian. A page whose hash is wrong is never returned.

use super::checked::Stamp;
use super::damage::{as_damage, damaged};
use rustix::fs::{AtFlags, CWD};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// Pages that one hash covers.
const CHUNK: usize = 64;
const MAGIC: &[u8; 8] = b"WRENNPG1";
const FOOTER: usize = 56;
pub(crate) const ZERO: [u8; PAGE] = [0; PAGE];

/// Consecutive pages that are all data, or all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u64,
    pages: u32,
    /// Position of the run's data, in pages of the file; `None` for zeros.
    data: Option<u64>,
}

impl Run {
    fn end(&self) -> u64 {
        self.first + u64::from(self.pages)
    }
}

/// Writer of a layer, page by page in rising order.
pub(crate) struct Writer {
    file: File,
    buffer: Vec<u8>,
    runs: Vec<Run>,
    sums: Vec<u8>,
    data: u64,
}

impl Writer {
    pub(crate) fn new(file: File) -> Self {
        let buffer = Vec::with_capacity(CHUNK * PAGE);
        Self { file, buffer, runs: Vec::new(), sums: Vec::new(), data: 0 }
    }

    /// Adds a page.
    pub(crate) fn add(&mut self, number: u64, page: &[u8]) -> io::Result<()> {
        let zeros = page == ZERO;
        match self.runs.last_mut() {
            Some(run) if run.end() == number && run.data.is_none() == zeros => run.pages += 1,
            _ => {
                let data = (!zeros).then_some(self.data);
                self.runs.push(Run { first: number, pages: 1, data });
            }
        }
        if !zeros {
            self.data += 1;
            self.buffer.extend_from_slice(page);
            if self.buffer.len() == CHUNK * PAGE {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.sums.extend_from_slice(blake3::hash(&self.buffer).as_bytes());
            self.file.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes the index, and syncs the file to the disk. Returns the hash of the index, which
    /// covers the hashes of all pages.
    pub(crate) fn finish(mut self) -> io::Result<blake3::Hash> {
        self.flush()?;
        let count = u32::try_from(self.runs.len()).map_err(io::Error::other)?;
        let mut index = count.to_le_bytes().to_vec();
        for run in &self.runs {
            index.extend_from_slice(&run.first.to_le_bytes());
            index.extend_from_slice(&run.pages.to_le_bytes());
            index.extend_from_slice(&u32::from(run.data.is_none()).to_le_bytes());
        }
        index.extend_from_slice(&self.sums);
        let hash = blake3::hash(&index);
        let mut footer = hash.as_bytes().to_vec();
        footer.extend_from_slice(&(self.data * PAGE as u64).to_le_bytes());
        footer.extend_from_slice(&(index.len() as u64).to_le_bytes());
        footer.extend_from_slice(MAGIC);
        self.file.write_all(&index)?;
        self.file.write_all(&footer)?;
        self.file.sync_all()?;
        Stamp::of(&self.file)?.note(hash);
        Ok(hash)
    }
}

/// A layer that is open for reading.
#[derive(Debug)]
pub(crate) struct Layer {
    file: File,
    runs: Vec<Run>,
    sums: Vec<u8>,
    /// Number of pages of data.
    data: u64,
    hash: blake3::Hash,
}

impl Layer {
    /// Opens a layer whose index has this hash.
    pub(crate) fn open(file: File, hash: &blake3::Hash) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let mut footer = [0; FOOTER];
        let at =
            length.checked_sub(FOOTER as u64).ok_or_else(|| damaged("a layer is truncated"))?;
        file.read_exact_at(&mut footer, at).map_err(as_damage)?;
        let number = |from: usize| -> u64 {
            footer[from..from + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
        };
        let (offset, size) = (number(32), number(40));
        if &footer[48..] != MAGIC || offset.checked_add(size) != Some(at) {
            return Err(damaged("a layer's footer is invalid"));
        }
        let mut index = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        file.read_exact_at(&mut index, offset).map_err(as_damage)?;
        if blake3::hash(&index) != *hash {
            return Err(damaged("a layer's index differs from the written one"));
        }
        let data = offset / PAGE as u64;
        let (runs, sums) =
            parse(&index, data).ok_or_else(|| damaged("a layer's index is invalid"))?;
        Ok(Self { file, runs, sums, data, hash: *hash })
    }

    /// Returns the hash of the index.
    pub(crate) fn hash(&self) -> &blake3::Hash {
        &self.hash
    }

    /// Returns the pages that the layer holds, in rising order.
    pub(crate) fn pages(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.iter().map(|run| run.first..run.end())
    }

    /// Checks all pages. A layer that this process has written or checked is not read again.
    ///
    /// # Errors
    /// Fails with damage when a page differs from the written one.
    pub(crate) fn check(&self) -> io::Result<()> {
        let stamp = Stamp::of(&self.file)?;
        if !stamp.has(&self.hash) {
            self.each(|_, _| Ok(()))?;
            stamp.note(self.hash);
        }
        Ok(())
    }

    /// Gives the layer's file another name on the same file system.
    pub(crate) fn link(&self, to: &Path) -> io::Result<()> {
        let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(rustix::fs::linkat(CWD, file, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
    }

    /// Calls `put` for each part of the layer, in rising order. Its arguments are the first page's
    /// number, and the data or, as an error, the number of pages of zeros.
    pub(crate) fn each(
        &self,
        mut put: impl FnMut(u64, Result<&[u8], u32>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut chunk = Chunk::default();
        for run in &self.runs {
            let Some(data) = run.data else {
                put(run.first, Err(run.pages))?;
                continue;
            };
            let (mut page, mut at) = (run.first, data);
            while page < run.end() {
                self.load(&mut chunk, at / CHUNK as u64)?;
                let skip = index(at % CHUNK as u64);
                let most = (chunk.bytes.len() / PAGE - skip).min(index(run.end() - page));
                put(page, Ok(&chunk.bytes[skip * PAGE..(skip + most) * PAGE]))?;
                page += most as u64;
                at += most as u64;
            }
        }
        Ok(())
    }

    /// Returns the contents of a page; `None` when the layer does not have it.
    pub(crate) fn page<'a>(
        &self,
        number: u64,
        chunk: &'a mut Chunk,
    ) -> io::Result<Option<&'a [u8]>> {
        let at = self.runs.partition_point(|run| run.end() <= number);
        let Some(run) = self.runs.get(at).filter(|run| run.first <= number) else {
            return Ok(None);
        };
        let Some(data) = run.data else { return Ok(Some(&ZERO)) };
        let at = data + (number - run.first);
        self.load(chunk, at / CHUNK as u64)?;
        let skip = index(at % CHUNK as u64);
        Ok(Some(&chunk.bytes[skip * PAGE..(skip + 1) * PAGE]))
    }

    /// Reads a chunk and checks its hash, unless `chunk` already holds it.
    fn load(&self, chunk: &mut Chunk, number: u64) -> io::Result<()> {
        if chunk.number == Some(number) {
            return Ok(());
        }
        chunk.number = None;
        let first = number * CHUNK as u64;
        let pages = index((self.data - first).min(CHUNK as u64));
        chunk.bytes.resize(pages * PAGE, 0);
        let read = self.file.read_exact_at(&mut chunk.bytes, first * PAGE as u64);
        read.map_err(as_damage)?;
        let sum = index(number) * 32;
        if blake3::hash(&chunk.bytes).as_bytes()[..] != self.sums[sum..sum + 32] {
            Stamp::of(&self.file)?.forget();
            return Err(damaged("pages of a layer differ from the written ones"));
        }
        chunk.number = Some(number);
        Ok(())
    }
}

/// The chunk of pages that was read last; each open layer has its own.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    number: Option<u64>,
    bytes: Vec<u8>,
}

/// Converts a number of pages. Each number fits, since this program runs on 64 bits.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Parses an index into runs and hashes, if their sizes agree with each other and with the data.
fn parse(bytes: &[u8], data: u64) -> Option<(Vec<Run>, Vec<u8>)> {
    let (count, rest) = bytes.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) as usize;
    let (table, sums) = rest.split_at_checked(count.checked_mul(16)?)?;
    let (mut runs, mut at, mut end) = (Vec::with_capacity(count), 0_u64, 0_u64);
    for entry in table.chunks_exact(16) {
        let first = u64::from_le_bytes(entry[..8].try_into().ok()?);
        let pages = u32::from_le_bytes(entry[8..12].try_into().ok()?);
        let zeros = u32::from_le_bytes(entry[12..].try_into().ok()?) == 1;
        let run = Run { first, pages, data: (!zeros).then_some(at) };
        if first < end {
            return None;
        }
        end = first.checked_add(u64::from(pages))?;
        at += if zeros { 0 } else { u64::from(pages) };
        runs.push(run);
    }
    let chunks = index(data.div_ceil(CHUNK as u64));
    (at == data && sums.len() == chunks * 32).then(|| (runs, sums.to_vec()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Writes a layer of pages, each filled with one byte.
    pub(crate) fn layer(path: &Path, pages: &[(u64, u8)]) -> Layer {
        let mut writer = Writer::new(File::create_new(path).unwrap());
        for (number, fill) in pages {
            writer.add(*number, &[*fill; PAGE]).unwrap();
        }
        let hash = writer.finish().unwrap();
        Layer::open(File::open(path).unwrap(), &hash).unwrap()
    }

    fn written(pages: &BTreeMap<u64, u8>) -> (tempfile::NamedTempFile, blake3::Hash) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = Writer::new(file.reopen().unwrap());
        for (number, fill) in pages {
            writer.add(*number, &[*fill; PAGE]).unwrap();
        }
        let hash = writer.finish().unwrap();
        (file, hash)
    }

    fn read(layer: &Layer) -> BTreeMap<u64, u8> {
        let mut out = BTreeMap::new();
        layer
            .each(|first, data| {
                match data {
                    Ok(data) => {
                        for (n, page) in data.chunks_exact(PAGE).enumerate() {
                            assert!(page.iter().all(|byte| *byte == page[0]));
                            out.insert(first + n as u64, page[0]);
                        }
                    }
                    Err(zeros) => {
                        out.extend((0..u64::from(zeros)).map(|n| (first + n, 0)));
                    }
                }
                Ok(())
            })
            .unwrap();
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn layer_pages_round_trip(pages in prop::collection::btree_map(0..400_u64, 0..3_u8, 0..300)) {
            let (file, hash) = written(&pages);
            let layer = Layer::open(file.reopen().unwrap(), &hash).unwrap();
            prop_assert_eq!(&read(&layer), &pages);
            let mut chunk = Chunk::default();
            for number in 0..400 {
                let found = layer.page(number, &mut chunk).unwrap().map(|page| page[0]);
                prop_assert_eq!(found, pages.get(&number).copied());
            }
        }

        #[test]
        fn corrupted_or_truncated_layer_is_detected(
            pages in prop::collection::btree_map(0..200_u64, 1..3_u8, 1..100),
            at in any::<prop::sample::Index>(),
            cut in any::<bool>(),
        ) {
            let (file, hash) = written(&pages);
            let mut bytes = std::fs::read(file.path()).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 0x10 }
            std::fs::write(file.path(), &bytes).unwrap();
            let all = Layer::open(file.reopen().unwrap(), &hash)
                .and_then(|layer| layer.each(|_, _| Ok(())));
            prop_assert!(all.is_err());
        }
    }

    #[test]
    fn layer_is_checked_again_after_damage_was_found_in_it() {
        let (file, hash) = written(&BTreeMap::from([(3, 1), (4, 2)]));
        let layer = Layer::open(file.reopen().unwrap(), &hash).unwrap();
        let at = file.as_file().metadata().unwrap().modified().unwrap();
        file.as_file().write_all_at(&[9], 5).unwrap();
        // Damage by the disk itself leaves the time as it is.
        file.as_file().set_modified(at).unwrap();
        layer.check().unwrap();
        assert!(layer.page(3, &mut Chunk::default()).is_err());
        assert!(super::super::damage::is_damage(&layer.check().unwrap_err()));
    }

    #[test]
    fn layer_is_checked_again_after_a_write_to_its_file() {
        let (file, hash) = written(&BTreeMap::from([(3, 1), (4, 2)]));
        let layer = Layer::open(file.reopen().unwrap(), &hash).unwrap();
        assert!(Stamp::of(&layer.file).unwrap().has(&hash), "the writer knows it");
        layer.check().unwrap();
        file.as_file().write_all_at(&[9], 5).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        file.as_file().set_modified(later).unwrap();
        for _ in 0..2 {
            assert!(super::super::damage::is_damage(&layer.check().unwrap_err()));
        }
        file.as_file().write_all_at(&[1], 5).unwrap();
        file.as_file().set_modified(later + std::time::Duration::from_secs(1)).unwrap();
        layer.check().unwrap();
        assert!(Stamp::of(&layer.file).unwrap().has(&hash));
    }
}
