//! A guest's memory, read while its machine stands still. A save writes the pages that differ from
//! the layers below. A restore makes a sealed image that machines map copy-on-write, or writes
//! pages into a machine that has not started.
//!
//! A page's contents are compared, never guessed from accesses. A cleared page is written as zeros.
//! A page that was overwritten with equal contents is not written at all.

use super::base::Base;
use super::damage::damaged;
use super::layer::{Chunk, Layer, PAGE, Writer, ZERO, index};
use super::ranges;
use rustix::fs::{MemfdFlags, Mode, SealFlags};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// Pages read at once.
const BATCH: u64 = 256;
/// Entries of `/proc/PID/pagemap` read at once.
const ENTRIES: u64 = 64 * 1024;

/// A saved memory that machines map.
#[derive(Debug)]
pub(crate) struct Image {
    pub file: File,
    /// Path of the image, if machines need one.
    pub path: Option<PathBuf>,
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Memory of a machine that stands still.
pub(crate) struct Memory {
    /// File with the touched pages.
    file: File,
    /// Start of the guest's memory in the file.
    offset: u64,
    pages: u64,
    /// Pages that may differ from the layers that the machine began with, in rising order.
    touched: Vec<Range<u64>>,
    rest: Rest,
    /// Token whose cancellation makes all reads of the memory fail.
    cancel: CancellationToken,
}

/// Source of the untouched pages.
enum Rest {
    /// The file with the touched pages.
    Same,
    /// The memory that the machine began with.
    Base(Base),
    /// All untouched pages are zeros.
    Zeros,
    /// Only the layers below have the untouched pages.
    Gone,
}

impl Memory {
    /// Reads the memory of a stopped VMM process, which maps it at `address`.
    pub(crate) fn of_process(pid: i32, address: u64, bytes: u64) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/mem"))?;
        let map = File::open(format!("/proc/{pid}/pagemap"))?;
        let pages = bytes / PAGE as u64;
        let touched = touched(&map, address / PAGE as u64, pages)?;
        let (rest, cancel) = (Rest::Same, CancellationToken::new());
        Ok(Self { file, offset: address, pages, touched, rest, cancel })
    }

    /// Builds a memory from a file of changes, which holds each `touched` page at its place. Other
    /// pages come from `base`, or are zeros without it.
    pub(crate) fn of_changes(
        file: File,
        base: Option<Base>,
        pages: u64,
        touched: Vec<Range<u64>>,
    ) -> Self {
        let rest = base.map_or(Rest::Zeros, Rest::Base);
        Self { file, offset: 0, pages, touched, rest, cancel: CancellationToken::new() }
    }

    /// Makes all reads of the memory fail once `cancel` is cancelled.
    pub(crate) fn until(self, cancel: CancellationToken) -> Self {
        Self { cancel, ..self }
    }

    /// Copies the touched pages, so that the machine can run again.
    pub(crate) fn copy(&self) -> io::Result<Self> {
        let file = memfd(self.pages)?;
        self.each(|first, bytes| file.write_all_at(bytes, first * PAGE as u64))?;
        let touched = self.touched.clone();
        let (rest, cancel) = (Rest::Gone, self.cancel.clone());
        Ok(Self { file, offset: 0, pages: self.pages, touched, rest, cancel })
    }

    /// Returns this memory with all pages marked as touched. For a copy, the untouched pages come
    /// from the layers that `below` opens.
    pub(crate) fn whole(&self, below: impl FnOnce() -> io::Result<Vec<Layer>>) -> io::Result<Self> {
        let all = || Vec::from([Range { start: 0, end: self.pages }]);
        let (file, offset) = match &self.rest {
            Rest::Same => (self.file.try_clone()?, self.offset),
            rest @ (Rest::Base(_) | Rest::Zeros | Rest::Gone) => {
                let file = memfd(self.pages)?;
                let put = |first: u64, bytes: &[u8]| file.write_all_at(bytes, first * PAGE as u64);
                match rest {
                    Rest::Gone => install(&below()?, &file, 0, self.pages * PAGE as u64)?,
                    Rest::Base(base) => base.each(self.pages, put)?,
                    Rest::Zeros | Rest::Same => {}
                }
                self.each(put)?;
                (file, 0)
            }
        };
        let (pages, rest, cancel) = (self.pages, Rest::Same, self.cancel.clone());
        Ok(Self { file, offset, pages, touched: all(), rest, cancel })
    }

    /// Writes a layer of the pages that differ from the layers below. A page that no layer holds
    /// counts as zeros. The machine began with the layers `over` above those. Their pages count
    /// where the machine has not touched them. Returns the layer's hash and bytes of data.
    pub(crate) fn write(
        &self,
        below: &[Layer],
        over: &[Layer],
        to: File,
    ) -> io::Result<(blake3::Hash, u64)> {
        let mut difference = Difference::new(below, to);
        let held = ranges::union(over.iter().flat_map(Layer::pages).collect());
        let mut held = ranges::without(&held, &self.touched).into_iter().peekable();
        let mut chunks: Vec<Chunk> = over.iter().map(|_| Chunk::default()).collect();
        self.each(|first, batch| {
            while let Some(range) = held.next_if(|range| range.start < first) {
                difference.add_held(range, over, &mut chunks)?;
            }
            let mut pages = (first..).zip(batch.chunks_exact(PAGE));
            pages.try_for_each(|(number, page)| difference.add(number, page))
        })?;
        for range in held {
            self.check_cancelled()?;
            difference.add_held(range, over, &mut chunks)?;
        }
        Ok((difference.writer.finish()?, difference.bytes))
    }

    /// Fails once the token is cancelled.
    fn check_cancelled(&self) -> io::Result<()> {
        match self.cancel.is_cancelled() {
            true => Err(io::Error::other("the copy of the memory was cancelled")),
            false => Ok(()),
        }
    }

    /// Calls `work` for each batch of touched pages.
    fn each(&self, mut work: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut batch = vec![0; index(BATCH) * PAGE];
        for range in &self.touched {
            let mut first = range.start;
            while first < range.end {
                self.check_cancelled()?;
                let count = (range.end - first).min(BATCH);
                let bytes = &mut batch[..index(count) * PAGE];
                self.file.read_exact_at(bytes, self.offset + first * PAGE as u64)?;
                work(first, bytes)?;
                first += count;
            }
        }
        Ok(())
    }
}

/// A layer in the making, of the pages that differ from the layers below.
struct Difference<'a> {
    below: &'a [Layer],
    chunks: Vec<Chunk>,
    writer: Writer,
    /// Bytes of data in the layer.
    bytes: u64,
}

impl<'a> Difference<'a> {
    fn new(below: &'a [Layer], to: File) -> Self {
        let chunks = below.iter().map(|_| Chunk::default()).collect();
        Self { below, chunks, writer: Writer::new(to), bytes: 0 }
    }

    /// Adds a page, unless the layers below hold exactly this page.
    fn add(&mut self, number: u64, page: &[u8]) -> io::Result<()> {
        if holds(self.below, &mut self.chunks, number, page)? {
            return Ok(());
        }
        self.bytes += if page == ZERO { 0 } else { PAGE as u64 };
        self.writer.add(number, page)
    }

    /// Adds pages from the last of the layers `over` that holds each.
    fn add_held(
        &mut self,
        pages: Range<u64>,
        over: &[Layer],
        chunks: &mut [Chunk],
    ) -> io::Result<()> {
        for number in pages {
            for (layer, chunk) in over.iter().zip(&mut *chunks).rev() {
                if let Some(page) = layer.page(number, chunk)? {
                    self.add(number, page)?;
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Reports whether the layers hold exactly this page. Later layers take precedence.
fn holds(layers: &[Layer], chunks: &mut [Chunk], number: u64, page: &[u8]) -> io::Result<bool> {
    for (layer, chunk) in layers.iter().zip(chunks).rev() {
        if let Some(held) = layer.page(number, chunk)? {
            return Ok(held == page);
        }
    }
    Ok(page == ZERO)
}

/// Lists the pages of a mapping that belong to the process alone (`proc_pid_pagemap(5)`): present
/// and not of a file, or swapped out.
fn touched(map: &File, first: u64, pages: u64) -> io::Result<Vec<Range<u64>>> {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_FILE: u64 = 1 << 61;
    let mut out: Vec<Range<u64>> = Vec::new();
    let mut bytes = vec![0; index(ENTRIES.min(pages)) * 8];
    let mut at = 0;
    while at < pages {
        let count = (pages - at).min(ENTRIES);
        let part = &mut bytes[..index(count) * 8];
        map.read_exact_at(part, (first + at) * 8)?;
        let (entries, _) = part.as_chunks::<8>();
        for (number, entry) in (at..).zip(entries) {
            let entry = u64::from_le_bytes(*entry);
            let own = entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT;
            match out.last_mut() {
                _ if !own => {}
                Some(last) if last.end == number => last.end += 1,
                _ => out.push(number..number + 1),
            }
        }
        at += count;
    }
    Ok(out)
}

fn memfd(pages: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("wrenn-memory", flags)?);
    file.set_len(pages * PAGE as u64)?;
    Ok(file)
}

/// Makes a sealed file with the memory of these layers. Machines map it copy-on-write, so nobody
/// can change it.
pub(crate) fn image(layers: &[Layer], bytes: u64) -> io::Result<File> {
    let file = memfd(bytes / PAGE as u64)?;
    install(layers, &file, 0, bytes)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(file)
}

/// Makes the memory of these layers as a read-only file that machines open by its path.
pub(crate) fn image_at(path: &Path, layers: &[Layer], bytes: u64) -> io::Result<Image> {
    let image = Image { file: File::create_new(path)?, path: Some(path.to_owned()) };
    image.file.set_len(bytes)?;
    install(layers, &image.file, 0, bytes)?;
    rustix::fs::fchmod(&image.file, Mode::RUSR | Mode::RGRP | Mode::ROTH)?;
    Ok(image)
}

/// Writes the pages of layers, in order, into a file whose guest memory begins at `offset`. A page
/// beyond `bytes` is damage.
pub(crate) fn install(layers: &[Layer], to: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let pages = bytes / PAGE as u64;
    for layer in layers {
        layer.each(|first, data| {
            let count = data.map_or_else(u64::from, |data| (data.len() / PAGE) as u64);
            if first.checked_add(count).is_none_or(|end| end > pages) {
                return Err(damaged("a layer contains pages beyond the guest's memory"));
            }
            let at = offset + first * PAGE as u64;
            match data {
                Ok(data) => to.write_all_at(data, at),
                Err(zeros) => (0..u64::from(zeros))
                    .try_for_each(|n| to.write_all_at(&ZERO, at + n * PAGE as u64)),
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGES: u64 = 64;

    /// Returns a memory whose pages are each filled with one byte.
    fn memory(pages: &[u8]) -> Memory {
        let file = tempfile::tempfile().unwrap();
        for (number, fill) in pages.iter().enumerate() {
            file.write_all_at(&[*fill; PAGE], (number * PAGE) as u64).unwrap();
        }
        Memory {
            file,
            offset: 0,
            pages: PAGES,
            touched: Vec::from([Range { start: 0, end: PAGES }]),
            rest: Rest::Same,
            cancel: CancellationToken::new(),
        }
    }

    fn read(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; index(PAGES) * PAGE];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes.chunks_exact(PAGE).map(|page| page[0]).collect()
    }

    #[test]
    fn cancelled_memory_copy_fails() {
        let cancel = CancellationToken::new();
        let memory = memory(&[7; 64]).until(cancel.clone());
        memory.copy().unwrap();
        cancel.cancel();
        assert!(memory.copy().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// A memory comes back unchanged however often it is saved, including its cleared pages.
        #[test]
        fn memory_round_trips_through_layers(
            states in prop::collection::vec(prop::collection::vec(0..3_u8, 64), 1..5)
        ) {
            let mut layers = Vec::new();
            for state in &states {
                let file = tempfile::NamedTempFile::new().unwrap();
                let written = memory(state).write(&layers, &[], file.reopen().unwrap()).unwrap();
                layers.push(Layer::open(file.reopen().unwrap(), &written.0).unwrap());
                let made = image(&layers, PAGES * PAGE as u64).unwrap();
                prop_assert_eq!(&read(&made), state);
                prop_assert!(made.write_all_at(b"x", 0).is_err(), "an image can be changed");
                let before = memory(&states[0]).file;
                install(&layers[1..], &before, 0, PAGES * PAGE as u64).unwrap();
                prop_assert_eq!(&read(&before), state);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// A save may drop layers that the machine began with. Their pages come back unless the
        /// machine has touched them.
        #[test]
        fn dropped_layers_are_a_part_of_the_next_layer(
            states in prop::collection::vec(prop::collection::vec(0..3_u8, 64), 1..4),
            changes in prop::collection::btree_map(0..PAGES, 0..4_u8, 0..40),
            retained in any::<prop::sample::Index>(),
        ) {
            let open = |file: &tempfile::NamedTempFile, hash: &blake3::Hash| {
                Layer::open(file.reopen().unwrap(), hash).unwrap()
            };
            let (mut layers, mut wanted) = (Vec::new(), vec![0; 64]);
            for state in states {
                let file = tempfile::NamedTempFile::new().unwrap();
                let written = memory(&state).write(&layers, &[], file.reopen().unwrap()).unwrap();
                layers.push(open(&file, &written.0));
                wanted = state;
            }
            let changed = tempfile::tempfile().unwrap();
            for (number, fill) in &changes {
                changed.write_all_at(&[*fill; PAGE], number * PAGE as u64).unwrap();
                wanted[index(*number)] = *fill;
            }
            let touched = ranges::union(changes.keys().map(|at| *at..at + 1).collect());
            let memory = Memory::of_changes(changed, None, PAGES, touched);
            let over = layers.split_off(retained.index(layers.len() + 1));
            let file = tempfile::NamedTempFile::new().unwrap();
            let written = memory.write(&layers, &over, file.reopen().unwrap()).unwrap();
            layers.push(open(&file, &written.0));
            let made = image(&layers, PAGES * PAGE as u64).unwrap();
            prop_assert_eq!(read(&made), wanted);
        }
    }

    #[test]
    fn unchanged_pages_are_not_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = memory(&[1; 64]).write(&[], &[], file.reopen().unwrap()).unwrap();
        assert_eq!(first.1, PAGES * PAGE as u64);
        let layers = [Layer::open(file.reopen().unwrap(), &first.0).unwrap()];
        let mut pages = [1; 64];
        pages[7] = 2;
        pages[9] = 0;
        let second = memory(&pages).write(&layers, &[], tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(second.1, PAGE as u64);
    }

    #[test]
    fn whole_memory_includes_untouched_pages() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (mut base, mut changed) = ([3; 64], [0; 64]);
        let written = memory(&base).write(&[], &[], file.reopen().unwrap()).unwrap();
        let below = || Ok(vec![Layer::open(file.reopen()?, &written.0)?]);
        let whole = |memory: &Memory| read(&memory.whole(below).unwrap().file);
        changed[7] = 9;
        let changes = |base| {
            let touched = Vec::from([Range { start: 7, end: 8 }]);
            Memory::of_changes(memory(&changed).file, base, PAGES, touched)
        };
        assert_eq!(whole(&changes(None)), changed);
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = base.iter().flat_map(|fill| [*fill; PAGE]).collect();
        fs::write(dir.path().join(crate::snapshot::base::IMAGE), bytes).unwrap();
        let above = changes(Base::open(dir.path()).unwrap());
        base[7] = 9;
        assert_eq!(whole(&above), base);
        // A copy has only the touched pages.
        assert_eq!(whole(&above.copy().unwrap()), base);
    }

    #[test]
    fn touched_pages_of_a_process_are_found() {
        // This process maps an image, as QEMU does.
        let file = tempfile::NamedTempFile::new().unwrap();
        let made = memory(&[5; 64]).write(&[], &[], file.reopen().unwrap()).unwrap();
        let layer = Layer::open(file.reopen().unwrap(), &made.0).unwrap();
        let image = image(&[layer], PAGES * PAGE as u64).unwrap();
        let address = crate::sys::map_private(&image, index(PAGES) * PAGE).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let mem = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
        mem.write_all_at(&[9; PAGE], address + 3 * PAGE as u64).unwrap();
        let seen = Memory::of_process(own, address, PAGES * PAGE as u64).unwrap();
        assert_eq!(seen.touched, [Range { start: 3, end: 4 }]);
        assert_eq!(seen.copy().unwrap().touched, seen.touched);
    }
}
