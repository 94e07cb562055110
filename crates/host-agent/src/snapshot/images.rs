//! Images of memory that machines map and share. An image is made once for all machines of a team
//! that start from the same layers. Teams share none, since access times reveal which pages are
//! shared. The last used images are kept, since many capsules start from few templates.
//!
//! If machines map files by their paths, an image is a file in a folder. No process opens it for
//! writing after it is made. If machines get a descriptor, the image has no path at all.

use super::layer::Layer;
use super::manifest::Layers;
use super::memory::{self, Image};
use crate::storage::remove_all;
use daemon::{blocking, lock};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::OnceCell;

/// Number of images that are kept. A machine's own mapping outlives the image here.
const RETAINED: usize = 8;

/// An image that is made, or being made.
struct Entry {
    /// The team, the size of the memory, and the ids of the layers.
    key: Vec<String>,
    /// Bytes of the layers' data.
    bytes: u64,
    image: Cell,
}

/// The image, once it is made. Other users of the same image wait here meanwhile.
type Cell = Arc<OnceCell<Arc<Image>>>;

impl Entry {
    /// Returns the bytes of memory that the image takes. An image in the making counts with all
    /// data of its layers.
    fn used(&self) -> u64 {
        let Some(image) = self.image.get() else { return self.bytes };
        image.file.metadata().map_or(0, |found| found.blocks() * 512)
    }
}

/// The images, from the least to the most recently used.
#[derive(Default)]
pub(crate) struct Images {
    /// Entries of all images. The lock is free while an image is made.
    known: Mutex<Vec<Entry>>,
    /// Folder of the images that have a path.
    dir: Option<PathBuf>,
}

impl Images {
    /// Returns an empty set of images, and removes an earlier agent's images from the folder.
    pub(crate) fn new(dir: Option<PathBuf>) -> io::Result<Self> {
        if let Some(dir) = &dir {
            remove_all(dir)?;
            fs::create_dir_all(dir)?;
        }
        Ok(Self { known: Mutex::default(), dir })
    }

    /// Returns the bytes of memory that all images take: written pages, and empty pages that
    /// machines have touched since.
    pub(crate) fn used(&self) -> u64 {
        match self.dir {
            // The kernel can reclaim the memory of a file on a disk.
            Some(_) => 0,
            None => self.lock().iter().map(Entry::used).sum(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        lock(&self.known)
    }

    /// Forgets the images whose last layer is removed, since no machine will begin from them any
    /// more.
    pub(crate) fn forget(&self, gone: &Layers) {
        let last = gone.all.last().map(|layer| &layer.id);
        self.retain(|entry| entry.key.last() != last);
    }

    /// Forgets the images for which `stays` is false.
    fn retain(&self, stays: impl FnMut(&Entry) -> bool) {
        let gone: Vec<Entry> = {
            let mut known = self.lock();
            let (stay, gone) = std::mem::take(&mut *known).into_iter().partition(stays);
            *known = stay;
            gone
        };
        // The removal of a large file may take a while, so it happens without the lock.
        drop(gone);
    }

    /// Returns the cell of an image, and marks the image as used last.
    fn cell(&self, key: Vec<String>, bytes: u64) -> Cell {
        let mut known = self.lock();
        let found = known.iter().position(|entry| entry.key == key);
        let new = || Entry { key, bytes, image: Cell::default() };
        let entry = found.map(|at| known.remove(at)).unwrap_or_else(new);
        let cell = Arc::clone(&entry.image);
        known.push(entry);
        cell
    }

    /// Forgets the images that could not be made, and all but the last [`RETAINED`] used ones.
    fn trim(&self) {
        let made = self.lock().iter().filter(|entry| entry.image.initialized()).count();
        let mut over = made.saturating_sub(RETAINED);
        self.retain(|entry| match entry.image.initialized() {
            true if over > 0 => {
                over -= 1;
                false
            }
            true => true,
            // Another task makes the image, or waits for it.
            false => Arc::strong_count(&entry.image) > 1,
        });
    }

    /// Returns the image of the shared layers in `named`. `layers` are the same layers, opened.
    pub(crate) async fn get(
        &self,
        team: &str,
        named: &Layers,
        layers: Vec<Layer>,
        bytes: u64,
    ) -> io::Result<Arc<Image>> {
        let shared = &named.all[..named.shared];
        let ids = shared.iter().map(|layer| layer.id.clone());
        // Memories without shared layers differ in their size alone.
        let key: Vec<String> =
            [team.to_owned(), bytes.to_string()].into_iter().chain(ids).collect();
        let held = shared.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.bytes));
        let cell = self.cell(key, held.min(bytes));
        let path = self.dir.as_ref().map(|dir| dir.join(uuid::Uuid::new_v4().to_string()));
        let make = async move {
            let made = blocking(move || match path {
                None => Ok(Image { file: memory::image(&layers, bytes)?, path }),
                Some(path) => memory::image_at(&path, &layers, bytes),
            });
            made.await.map(Arc::new)
        };
        let image = cell.get_or_try_init(|| make).await.cloned();
        drop(cell);
        self.trim();
        image
    }
}

#[cfg(test)]
mod tests {
    use super::super::layer::PAGE;
    use super::super::manifest::LayerRef;
    use super::super::memory::Memory;
    use super::*;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    const ONE: u64 = PAGE as u64;

    /// Returns a layer that holds one page.
    fn layer(id: &str) -> (Layers, Vec<Layer>) {
        let data = tempfile::tempfile().unwrap();
        data.write_all_at(&[7; PAGE], 0).unwrap();
        let memory = Memory::of_changes(data, None, 1, Vec::from([Range { start: 0, end: 1 }]));
        let file = tempfile::NamedTempFile::new().unwrap();
        let (hash, bytes) = memory.write(&[], &[], file.reopen().unwrap()).unwrap();
        let named = LayerRef { id: id.to_owned(), hash: hash.to_hex().to_string(), bytes };
        let opened = Layer::open(file.reopen().unwrap(), &hash).unwrap();
        (Layers { all: vec![named], shared: 1 }, vec![opened])
    }

    async fn get(images: &Images, team: &str, id: &str) -> Arc<Image> {
        let (named, opened) = layer(id);
        let got = images.get(team, &named, opened, 4 * ONE);
        tokio::time::timeout(Duration::from_secs(60), got).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn pending_image_is_counted_and_does_not_block_others() {
        let images = Images::default();
        let slow = images.cell(vec!["one".to_owned(), "a".to_owned()], ONE);
        let never = slow.get_or_try_init(std::future::pending::<io::Result<Arc<Image>>>);
        tokio::pin!(never);
        assert!(futures::poll!(&mut never).is_pending());
        assert_eq!(images.used(), ONE);
        get(&images, "two", "a").await;
        assert!(images.used() >= 2 * ONE);
        assert_eq!(images.lock().len(), 2);
    }

    #[tokio::test]
    async fn image_is_built_once_and_latest_images_are_retained() {
        let images = Images::default();
        let (named, opened) = layer("a");
        assert!(images.get("one", &named, opened, 0).await.is_err(), "it does not fit");
        assert!(images.lock().is_empty());
        let (one, other) = tokio::join!(get(&images, "one", "a"), get(&images, "one", "a"));
        assert!(Arc::ptr_eq(&one, &other));
        for number in 0..RETAINED {
            get(&images, "one", &number.to_string()).await;
        }
        let known: Vec<String> = images.lock().iter().map(|entry| entry.key[2].clone()).collect();
        assert_eq!(known, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    }

    #[tokio::test]
    async fn memories_of_two_sizes_without_shared_layers_have_two_images() {
        let images = Images::default();
        for pages in [4, 8] {
            let got = images.get("one", &Layers::default(), Vec::new(), pages * ONE).await;
            assert_eq!(got.unwrap().file.metadata().unwrap().len(), pages * ONE);
        }
        assert_eq!(images.lock().len(), 2);
    }
}
