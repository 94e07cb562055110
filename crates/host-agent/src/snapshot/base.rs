//! The memory of a machine at its beginning: an image, and the layers above it. Some drivers'
//! machines read these files by themselves, or late. Such a driver keeps links of them in a folder
//! of its own.
//!
//! ```text
//! memory           the image, as a file of the whole memory
//! above-N.pages    the layer number N above it, from 0
//! layers.json      hashes of the layers; missing when there are none
//! ```

use super::damage::{as_damage, damaged};
use super::layer::{Chunk, Layer, PAGE, index};
use super::ranges;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Name of the image in the folder.
pub(crate) const IMAGE: &str = "memory";
const LAYERS: &str = "layers.json";
/// Pages that are read at once.
const BATCH: u64 = 256;

/// Memory of a machine at its beginning, open for reading.
#[derive(Debug)]
pub(crate) struct Base {
    image: File,
    above: Vec<Layer>,
}

impl Base {
    /// Links an image and the layers above it into a folder. Nothing is copied.
    pub(crate) fn link(image: &Path, above: &[Layer], dir: &Path) -> io::Result<()> {
        fs::hard_link(image, dir.join(IMAGE))?;
        if above.is_empty() {
            return Ok(());
        }
        for (number, layer) in above.iter().enumerate() {
            layer.link(&place(dir, number))?;
        }
        let hashes: Vec<String> = above.iter().map(|layer| layer.hash().to_string()).collect();
        fs::write(dir.join(LAYERS), serde_json::to_vec(&hashes)?)
    }

    /// Opens the memory that is linked in a folder; `None` when the folder has none.
    pub(crate) fn open(dir: &Path) -> io::Result<Option<Self>> {
        let image = match File::open(dir.join(IMAGE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            image => image?,
        };
        let hashes: Vec<String> = match fs::read(dir.join(LAYERS)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            text => serde_json::from_slice(&text?)?,
        };
        let open = |(number, hash): (usize, String)| {
            let hash = blake3::Hash::from_hex(hash).map_err(|e| damaged(e.to_string()))?;
            Layer::open(File::open(place(dir, number)).map_err(as_damage)?, &hash)
        };
        let above = hashes.into_iter().enumerate().map(open).collect::<io::Result<_>>()?;
        Ok(Some(Self { image, above }))
    }

    /// Returns the pages, of a memory of `pages`, that may hold data. All others are zeros.
    pub(crate) fn data(&self, pages: u64) -> io::Result<Vec<Range<u64>>> {
        let mut found = ranges::data(&self.image, pages)?;
        found.extend(self.above.iter().flat_map(Layer::pages));
        let found = ranges::union(found);
        match found.last() {
            Some(last) if last.end > pages => {
                Err(damaged("a layer contains pages beyond the guest's memory"))
            }
            _ => Ok(found),
        }
    }

    /// Returns a reader of pages.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { base: self, chunks: self.above.iter().map(|_| Chunk::default()).collect() }
    }

    /// Calls `work` for each batch of pages that may hold data, in rising order.
    pub(crate) fn each(
        &self,
        pages: u64,
        mut work: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut reader, mut batch) = (self.reader(), vec![0; index(BATCH) * PAGE]);
        for range in self.data(pages)? {
            for first in range.clone().step_by(index(BATCH)) {
                let bytes = &mut batch[..index((range.end - first).min(BATCH)) * PAGE];
                reader.read(first, bytes)?;
                work(first, bytes)?;
            }
        }
        Ok(())
    }
}

/// Reader of a machine's first memory. Pages of a layer are checked before they are returned.
pub(crate) struct Reader<'a> {
    base: &'a Base,
    chunks: Vec<Chunk>,
}

impl Reader<'_> {
    /// Fills a buffer of whole pages with the memory from the page `first`.
    pub(crate) fn read(&mut self, first: u64, to: &mut [u8]) -> io::Result<()> {
        let Base { image, above } = self.base;
        image.read_exact_at(to, first * PAGE as u64).map_err(as_damage)?;
        for (number, page) in (first..).zip(to.chunks_exact_mut(PAGE)) {
            for (layer, chunk) in above.iter().zip(&mut self.chunks).rev() {
                if let Some(held) = layer.page(number, chunk)? {
                    page.copy_from_slice(held);
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Reports whether the memory that is linked in a folder has layers above its image.
pub(crate) fn has_layers(dir: &Path) -> bool {
    dir.join(LAYERS).exists()
}

fn place(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("above-{number}.pages"))
}

#[cfg(test)]
mod tests {
    use super::super::damage::is_damage;
    use super::super::memory::{self, Image};
    use super::*;
    use crate::snapshot::layer::tests::layer;
    use std::os::unix::fs::MetadataExt;

    const PAGES: u64 = 600;
    const BYTES: u64 = PAGES * PAGE as u64;

    /// Makes an image with one layer, and two layers above it, in a folder.
    fn linked(dir: &Path) -> (Image, PathBuf) {
        let lowest = layer(&dir.join("lowest"), &[(1, 1), (2, 2), (300, 3), (599, 4)]);
        let first = layer(&dir.join("first"), &[(2, 5), (300, 0), (301, 6)]);
        let second = layer(&dir.join("second"), &[(0, 7), (301, 8)]);
        let image = memory::image_at(&dir.join("image"), &[lowest], BYTES).unwrap();
        let own = dir.join("own");
        fs::create_dir(&own).unwrap();
        Base::link(image.path.as_ref().unwrap(), &[first, second], &own).unwrap();
        (image, own)
    }

    #[test]
    fn memory_is_read_from_the_topmost_layer_that_has_the_page() {
        let dir = tempfile::tempdir().unwrap();
        let (_image, own) = linked(dir.path());
        let base = Base::open(&own).unwrap().unwrap();
        let mut whole = vec![9; index(PAGES) * PAGE];
        base.reader().read(0, &mut whole).unwrap();
        let fills: Vec<u8> = whole.chunks_exact(PAGE).map(|page| page[17]).collect();
        let data: Vec<(usize, u8)> =
            fills.iter().copied().enumerate().filter(|(_, fill)| *fill != 0).collect();
        assert_eq!(data, [(0, 7), (1, 1), (2, 5), (301, 8), (599, 4)]);
        // The batches have the same contents.
        let mut copy = vec![0; whole.len()];
        let put = |first: u64, bytes: &[u8]| {
            copy[index(first) * PAGE..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        };
        base.each(PAGES, put).unwrap();
        assert!(copy == whole);
    }

    #[test]
    fn linked_memory_takes_no_room_and_outlives_its_first_names() {
        let dir = tempfile::tempdir().unwrap();
        let (image, own) = linked(dir.path());
        let same = |one: &Path, other: &str| {
            one.metadata().unwrap().ino() == own.join(other).metadata().unwrap().ino()
        };
        assert!(same(&dir.path().join("image"), IMAGE));
        assert!(same(&dir.path().join("first"), "above-0.pages"));
        assert!(same(&dir.path().join("second"), "above-1.pages"));
        drop(image);
        fs::remove_file(dir.path().join("first")).unwrap();
        let mut page = [0; PAGE];
        Base::open(&own).unwrap().unwrap().reader().read(2, &mut page).unwrap();
        assert_eq!(page[0], 5);
    }

    #[test]
    fn folder_of_an_earlier_version_has_one_file_of_the_whole_memory() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Base::open(dir.path()).unwrap().is_none());
        let file = File::create_new(dir.path().join(IMAGE)).unwrap();
        file.set_len(BYTES).unwrap();
        file.write_all_at(&[3; PAGE], 8 * PAGE as u64).unwrap();
        let base = Base::open(dir.path()).unwrap().unwrap();
        assert!(base.data(PAGES).unwrap().contains(&Range { start: 8, end: 9 }));
    }

    #[test]
    fn damaged_or_missing_layer_is_damage_and_is_never_read() {
        let dir = tempfile::tempdir().unwrap();
        let (_image, own) = linked(dir.path());
        assert!(is_damage(&Base::open(&own).unwrap().unwrap().data(301).unwrap_err()));
        let at = own.join("above-0.pages");
        let mut bytes = fs::read(&at).unwrap();
        bytes[5] ^= 1;
        fs::write(&at, bytes).unwrap();
        let base = Base::open(&own).unwrap().unwrap();
        let mut page = [0; PAGE];
        assert!(is_damage(&base.reader().read(2, &mut page).unwrap_err()));
        assert!(page.iter().all(|byte| *byte != 5));
        fs::remove_file(&at).unwrap();
        assert!(is_damage(&Base::open(&own).unwrap_err()));
    }
}
