//! Images of memory that machines map and share, made once for all who start from the same
//! layers and are of one team: what is shared can be told by how long it takes. A few that were used
//! last are kept, since many capsules start from few templates.
//!
//! Where machines map files by their path, an image is a file in a folder, which nobody opens for
//! writing any more; where they are given a descriptor, it has no path at all.

use super::Layers;
use super::layer::Layer;
use super::memory;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Images that are kept; a machine's own mapping keeps its pages alive without it.
const KEPT: usize = 8;

/// A memory that machines map.
#[derive(Debug)]
pub(crate) struct Image {
    pub file: File,
    /// Where machines need one.
    pub path: Option<PathBuf>,
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// The images, the one used last at the end.
#[derive(Default)]
pub(crate) struct Images {
    made: Mutex<Vec<(Vec<String>, Arc<Image>)>>,
    /// Where those are that have a path.
    dir: Option<PathBuf>,
}

impl Images {
    /// Those of a driver; an earlier agent's in the folder are nobody's any more.
    pub(crate) fn new(dir: Option<PathBuf>) -> io::Result<Self> {
        if let Some(dir) = &dir {
            super::remove_all(dir)?;
            fs::create_dir_all(dir)?;
        }
        Ok(Self { made: Mutex::default(), dir })
    }

    /// Bytes of memory that the images take: what was written into them, and empty pages that
    /// machines have touched since.
    pub(crate) fn used(&self) -> u64 {
        let images = self.made.try_lock();
        // What is a file of the disk's, the kernel can take the memory of.
        let held = |image: &Image| image.path.is_none().then(|| image.file.metadata().ok());
        let bytes = |image: &Image| held(image).flatten().map_or(0, |found| found.blocks() * 512);
        images.map_or(0, |images| images.iter().map(|(_, image)| bytes(image)).sum())
    }

    /// Forgets the images that end in one of these layers: nobody will begin from them any more.
    pub(crate) async fn forget(&self, gone: &Layers) {
        let last = gone.all.last().map(|layer| &layer.id);
        self.made.lock().await.retain(|(key, _)| key.last() != last);
    }

    /// The image of the layers that are shared; `layers` are those, opened.
    pub(crate) async fn get(
        &self,
        team: &str,
        named: &Layers,
        layers: Vec<Layer>,
        bytes: u64,
    ) -> io::Result<Arc<Image>> {
        let ids = named.all[..named.shared].iter().map(|layer| layer.id.clone());
        let key: Vec<String> = std::iter::once(team.to_owned()).chain(ids).collect();
        // Held while one is made: who wants the same waits for it.
        let mut images = self.made.lock().await;
        if let Some(at) = images.iter().position(|(known, _)| *known == key) {
            let found = images.remove(at);
            let image = Arc::clone(&found.1);
            images.push(found);
            return Ok(image);
        }
        let path = self.dir.as_ref().map(|dir| dir.join(uuid::Uuid::new_v4().to_string()));
        let made = tokio::task::spawn_blocking(move || match path {
            None => Ok(Image { file: memory::image(&layers, bytes)?, path }),
            Some(path) => memory::image_at(&path, &layers, bytes),
        });
        let made = made.await;
        let image = Arc::new(made.unwrap_or_else(|e| Err(io::Error::other(e)))?);
        if images.len() == KEPT {
            images.remove(0);
        }
        images.push((key, Arc::clone(&image)));
        Ok(image)
    }
}
