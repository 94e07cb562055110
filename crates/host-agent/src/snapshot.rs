//! Snapshots of machines: the memory as layers, the state of the devices, and the disk.
//!
//! ```text
//!  folder `<to>.new`                                        folder `<to>`
//!  Staging::begin ─┬─ write_memory: layers ────┬─ commit: manifest, ─▶ Snapshot
//!                  ├─ seal_state: devices ─────┤  syncs, rename          │
//!                  ├─ take_disk or copy_disk ──┤                         │ remove: rename to
//!                  └─ link_all: another's ─────┘                         │ `<to>.new`
//!                         │                                              ▼
//!                         └─ removed by drop, or by a later           removed
//!                            begin or sweep
//!
//!  Layers::all, from the lowest; a later page hides the same page below it
//!  ┌──────────────────┬─────────────┬────────────────────┐
//!  │ [..shared] image │ first layer │ changes since then │
//!  └──────────────────┴─────────────┴────────────────────┘
//!    └─────── hard links ─────────┘   └─ written anew ─┘ by each write_memory
//! ```
//! Changes larger than half of the first layer form one layer with it. With `LAYERS_MAX` layers, or
//! a damaged layer, `write_memory` writes the whole memory as one layer.
//!
//! A snapshot is a folder that appears complete, by a rename, or not at all. After that it never
//! changes. A damaged snapshot is refused: every byte has a hash, and the manifest, which holds the
//! hashes, has a hash of its own.
//!
//! Snapshots share layers by hard links, so removing a folder frees only data that no other
//! snapshot needs. This module knows nothing of capsules, hosts or permissions.

pub(crate) mod base;
mod checked;
mod damage;
mod disk;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod images;
pub(crate) mod layer;
mod manifest;
pub(crate) mod memory;
pub(crate) mod ranges;

pub(crate) use crate::config::System;
pub(crate) use damage::{damaged, is_damage};
pub(crate) use disk::DiskCopy;
pub(crate) use manifest::{LayerRef, Layers, Manifest};

use crate::storage::remove_all;
use checked::Stamp;
use damage::as_damage;
use layer::Layer;
use memory::Memory;
use rustix::fs::{CWD, RenameFlags};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state";
const DISK: &str = "disk.ext4";
/// Most bytes of the devices' state, which usually has some 20,000.
const STATE_MAX: u64 = 64 << 20;
/// Most layers of a memory. The next save then writes the whole memory as one layer.
const LAYERS_MAX: usize = 6;

/// A complete snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub dir: PathBuf,
    pub manifest: Manifest,
}

impl Snapshot {
    /// Opens the snapshot in a folder. Checks the manifest at once, and other files when they are
    /// read.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let text = fs::read(dir.join(MANIFEST)).map_err(as_damage)?;
        Ok(Self { dir: dir.to_owned(), manifest: Manifest::read(&text)? })
    }

    /// Opens the devices' state after a check of its hash.
    pub(crate) fn state(&self) -> io::Result<File> {
        let mut file = File::open(self.dir.join(STATE)).map_err(as_damage)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let hash = blake3::hash(&bytes).to_hex().to_string();
        if self.manifest.state.as_ref() != Some(&hash) {
            return Err(damaged("the state of the devices differs from the written one"));
        }
        File::open(self.dir.join(STATE))
    }

    /// Begins to copy the disk to a file, for a machine; `None` for a machine without disks.
    pub(crate) fn begin_disk(&self, to: &Path) -> io::Result<Option<DiskCopy>> {
        let Some(wanted) = &self.manifest.disk else { return Ok(None) };
        let from = File::open(self.dir.join(DISK)).map_err(as_damage)?;
        DiskCopy::new(crate::storage::BegunCopy::begin(from, to)?, wanted).map(Some)
    }

    /// Returns the bytes that the snapshot's disk takes on the host's disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.dir.join(DISK).metadata().map_or(0, |found| found.blocks() * 512)
    }

    /// Returns the bytes on disk of all files but the template's disks, including shared files.
    pub(crate) fn bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let entries = entries.filter(|entry| !crate::storage::is_shared(&entry.file_name()));
        entries.filter_map(|e| Some(e.metadata().ok()?.blocks() * 512)).sum()
    }
}

/// A snapshot in the making. Dropping it before it is complete removes it.
pub(crate) struct Staging {
    dir: PathBuf,
    to: PathBuf,
    done: bool,
    /// Token whose cancellation makes all reads of a disk fail.
    cancel: CancellationToken,
}

impl Staging {
    /// Begins a snapshot whose final folder is `to`.
    pub(crate) fn begin(to: &Path) -> io::Result<Self> {
        let dir = staged(to);
        let cancel = CancellationToken::new();
        let this = Self { dir, to: to.to_owned(), done: false, cancel };
        this.remove()?;
        fs::create_dir_all(&this.dir)?;
        Ok(this)
    }

    /// Makes all reads of a disk fail once `cancel` is cancelled.
    pub(crate) fn until(mut self, cancel: &CancellationToken) -> Self {
        self.cancel = cancel.clone();
        self
    }

    fn remove(&self) -> io::Result<()> {
        remove_all(&self.dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Creates the file for the devices' state.
    pub(crate) fn state_file(&self) -> io::Result<File> {
        File::options().write(true).create_new(true).open(self.dir.join(STATE))
    }

    /// Writes the state file to the disk and returns its hash.
    pub(crate) fn seal_state(&self) -> io::Result<String> {
        let file = File::open(self.dir.join(STATE))?;
        let mut bytes = Vec::new();
        (&file).take(STATE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.is_empty() || bytes.len() as u64 > STATE_MAX {
            return Err(io::Error::other("the VMM wrote an empty or oversized state"));
        }
        file.sync_all()?;
        Ok(blake3::hash(&bytes).to_hex().to_string())
    }

    /// Links the disk of a stopped machine. The disk must not change any more.
    pub(crate) fn take_disk(&self, dir: &Path) -> io::Result<String> {
        fs::hard_link(dir.join(DISK), self.dir.join(DISK))?;
        let file = File::open(self.dir.join(DISK))?;
        crate::storage::link_below(dir, &self.dir)?;
        file.sync_all()?;
        let stamp = Stamp::of(&file)?;
        let hash = crate::storage::hash_disk(&file, &self.cancel)?;
        stamp.note(hash);
        Ok(hash.to_hex().to_string())
    }

    /// Copies the disk of a machine, which must stand still only until this returns.
    pub(crate) fn copy_disk(&self, dir: &Path) -> io::Result<String> {
        let from = File::open(dir.join(DISK))?;
        crate::storage::link_below(dir, &self.dir)?;
        let to = self.dir.join(DISK);
        let (copy, hash) = crate::storage::copy_disk(&from, &to, &self.cancel)?;
        Stamp::of(&copy)?.note(hash);
        Ok(hash.to_hex().to_string())
    }

    /// Writes the disk's copy through to the host's disk.
    pub(crate) fn sync_disk(&self) -> io::Result<()> {
        match File::open(self.dir.join(DISK)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            disk => disk?.sync_all(),
        }
    }

    /// Writes the pages that differ from the layers in `base`, whose files are in `from`, and
    /// links those layers. A memory has at most two layers of its own: the first one, and the
    /// changes since. If the changes exceed half of the first layer, both become one layer.
    pub(crate) fn write_memory(
        &self,
        memory: &Memory,
        base: &Layers,
        from: &Path,
    ) -> io::Result<Layers> {
        let written = match base.all.len() < LAYERS_MAX {
            true => self.write_above(memory, base, from),
            false => self.write_whole(memory, base, from),
        };
        match written {
            // The layers below cannot be read, but the machine still has the whole memory.
            Err(error) if is_damage(&error) => {
                tracing::warn!(%error, "a layer is damaged; writing the whole memory");
                self.write_whole(memory, base, from)
            }
            written => written,
        }
    }

    fn write_above(&self, memory: &Memory, base: &Layers, from: &Path) -> io::Result<Layers> {
        let below = base.open(from)?;
        let own = base.shared + usize::from(base.all.len() > base.shared);
        let mut retained = own;
        let mut added = self.add_layer(memory, below.split_at(own))?;
        if own > base.shared && added.bytes > base.all[base.shared].bytes / 2 {
            retained = base.shared;
            fs::remove_file(self.dir.join(added.file()))?;
            added = self.add_layer(memory, below.split_at(retained))?;
        }
        let mut layers = Layers { all: base.all[..retained].to_vec(), shared: base.shared };
        layers.link(from, &self.dir)?;
        layers.all.push(added);
        Ok(layers)
    }

    fn write_whole(&self, memory: &Memory, base: &Layers, from: &Path) -> io::Result<Layers> {
        let whole = memory.whole(|| base.open(from))?;
        let none: &[Layer] = &[];
        Ok(Layers { all: vec![self.add_layer(&whole, (none, none))?], shared: 0 })
    }

    /// Writes a layer. The second of the two lists has the layers that it replaces.
    fn add_layer(
        &self,
        memory: &Memory,
        (below, over): (&[Layer], &[Layer]),
    ) -> io::Result<LayerRef> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let mut added = LayerRef { id, hash: String::new(), bytes: 0 };
        let path = self.dir.join(added.file());
        let (hash, bytes) = memory.write(below, over, File::create_new(path)?)?;
        added.hash = hash.to_hex().to_string();
        added.bytes = bytes;
        Ok(added)
    }

    /// Links all files of a complete snapshot, except its manifest.
    pub(crate) fn link_all(&self, from: &Snapshot) -> io::Result<()> {
        for entry in fs::read_dir(&from.dir)? {
            let entry = entry?;
            if entry.file_name() != MANIFEST {
                fs::hard_link(entry.path(), self.dir.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Writes the manifest and moves the snapshot to its final folder, durably.
    ///
    /// # Errors
    /// When the snapshot cannot be written, or its rename cannot be made durable. The final folder
    /// does not exist then.
    pub(crate) fn commit(mut self, manifest: Manifest) -> io::Result<Snapshot> {
        let body = serde_json::to_vec(&manifest)?;
        let mut file = File::create(self.dir.join(MANIFEST))?;
        file.write_all(blake3::hash(&body).to_hex().as_bytes())?;
        file.write_all(b"\n")?;
        file.write_all(&body)?;
        file.sync_all()?;
        File::open(&self.dir)?.sync_all()?;
        // The parents may be new too. They are opened first, so that little can fail after the
        // rename.
        let parents = self.to.ancestors().skip(1).take(3).map(File::open);
        let parents = parents.collect::<io::Result<Vec<_>>>()?;
        daemon::failpoint("snapshot.staged")?;
        rename(&self.dir, &self.to)?;
        self.done = true;
        let synced = || {
            daemon::failpoint("snapshot.renamed")?;
            parents.iter().try_for_each(File::sync_all)
        };
        match synced() {
            Ok(()) => {}
            // The caller goes on as if there were no snapshot, so there must be none.
            Err(error) if rename(&self.to, &self.dir).is_ok() => {
                self.done = false;
                return Err(error);
            }
            Err(error) => tracing::error!(%error, "cannot sync the folder of a snapshot"),
        }
        Ok(Snapshot { dir: self.to.clone(), manifest })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = self.remove()
        {
            tracing::warn!(%error, "cannot remove an incomplete snapshot");
        }
    }
}

/// Renames a folder. The new name must be free.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Returns the folder in which a snapshot for `to` is made.
fn staged(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Removes a snapshot. A rename first makes it incomplete, so a crash leaves no half of a snapshot.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    match fs::rename(dir, staged(dir)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        // The folder has no room for the new name. Removing the manifest makes the snapshot
        // incomplete just as well.
        Err(e) if e.kind() == io::ErrorKind::StorageFull => {
            fs::remove_file(dir.join(MANIFEST))?;
            remove_all(dir)?;
        }
        // A removal or a making that was cut short has left a folder of that name.
        Err(_) => remove_all(&staged(dir)).and_then(|()| fs::rename(dir, staged(dir)))?,
        Ok(()) => {}
    }
    remove_all(&staged(dir))
}

/// Lists the complete snapshots in a folder, and removes incomplete ones.
pub(crate) fn sweep(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names = Vec::new();
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A folder that cannot be read is not taken for an incomplete one.
        let has_manifest = entry.path().join(MANIFEST).try_exists().unwrap_or(true);
        if !name.ends_with(".new") && has_manifest {
            names.push(name);
        } else if let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(%error, name, "cannot remove an incomplete snapshot");
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use layer::PAGE;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;

    const PAGES: u64 = 16;

    /// Returns a memory with a single touched page, which is filled with `fill`.
    fn touched(number: u64, fill: u8) -> Memory {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[fill; PAGE], number * PAGE as u64).unwrap();
        Memory::of_changes(file, None, PAGES, Vec::from([Range { start: number, end: number + 1 }]))
    }

    /// Each fork begins from all layers of the fork before, and copies only the pages that it
    /// touched.
    #[test]
    fn deep_fork_chain_keeps_untouched_pages() {
        let dir = tempfile::tempdir().unwrap();
        let (mut base, mut from) = (Layers::default(), dir.path().to_owned());
        let fill = |number: u64| u8::try_from(1 + number).unwrap();
        for depth in 0..2 * LAYERS_MAX as u64 {
            let staging = Staging::begin(&dir.path().join(depth.to_string())).unwrap();
            let memory = touched(depth, fill(depth)).copy().unwrap();
            base = staging.write_memory(&memory, &base, &from).unwrap();
            base.shared = base.all.len();
            from = staging.path().to_owned();
            std::mem::forget(staging);
            let layers = base.open(&from).unwrap();
            let image = memory::image(&layers, PAGES * PAGE as u64).unwrap();
            let mut page = [0; PAGE];
            for number in 0..=depth {
                image.read_exact_at(&mut page, number * PAGE as u64).unwrap();
                assert_eq!(page[0], fill(number), "page {number} of the fork {depth} deep");
            }
        }
    }

    #[test]
    fn sweep_removes_folders_without_manifest_and_lists_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        for (name, has_manifest) in [("1", true), ("2", false), ("3.new", true)] {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            if has_manifest {
                File::create(folder.join(MANIFEST)).unwrap();
            }
        }
        assert_eq!(sweep(dir.path()), ["1"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
