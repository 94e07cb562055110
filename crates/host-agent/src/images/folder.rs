//! The folders of kept images. An image appears by one rename, after all of its bytes are on the
//! disk, and never changes.
//!
//! ```text
//!  images/staging/{random}/            an image in the making; its maker holds a lock on the folder
//!  images/store/oci-{digest}-{format}/ image.erofs (0444), image.json, uses.json
//! ```

use super::record::{ImageRecord, Uses};
use crate::storage;
use registry::{Algorithm, Digest};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Name of the root image in its folder.
pub(super) const IMAGE: &str = "image.erofs";
const RECORD: &str = "image.json";
const USES: &str = "uses.json";
const PREFIX: &str = "oci-";
/// Time without a use after which an image without links is removed.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);
/// A record or list of uses is far smaller.
const JSON_MAX: u64 = 8 << 20;

/// Folders of images on this host.
#[derive(Debug, Clone)]
pub(super) struct Folders {
    images: PathBuf,
}

/// An image in the making. Its folder goes with this value, unless it was kept.
#[derive(Debug)]
pub(super) struct Staging {
    path: PathBuf,
    _lock: File,
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = storage::remove_all(&self.path);
    }
}

impl Staging {
    /// Makes the file of the root image.
    pub(super) fn create_image(&self) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).open(self.path.join(IMAGE))
    }

    /// Writes the root image through to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(self.path.join(IMAGE))?.sync_all()
    }
}

/// Returns the seconds of Unix time.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Folders {
    /// `images` is the folder `images` of the agent.
    pub(super) fn new(images: PathBuf) -> Self {
        Self { images }
    }

    /// Returns the folder of an image, which may not exist. Its name has 64 digits always.
    pub(super) fn of(&self, digest: &Digest) -> PathBuf {
        let digits = match digest.algorithm() {
            Algorithm::Sha256 => digest.digits().to_owned(),
            Algorithm::Sha512 => Digest::sha256(digest.to_string().as_bytes()).digits().to_owned(),
        };
        self.store().join(format!("{PREFIX}{digits}-{}", rootfs::FORMAT))
    }

    fn store(&self) -> PathBuf {
        self.images.join("store")
    }

    fn staging(&self) -> PathBuf {
        self.images.join("staging")
    }

    /// Makes a folder for an image in the making, on the file system of the finished images.
    pub(super) fn stage(&self) -> io::Result<Staging> {
        let path = self.staging().join(uuid::Uuid::new_v4().simple().to_string());
        fs::create_dir_all(&path)?;
        let lock = File::open(&path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Staging { path, _lock: lock })
    }

    /// Removes the folders whose makers died. Makers in other processes hold their locks.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.staging()).into_iter().flatten() {
            let path = entry?.path();
            let Ok(folder) = File::open(&path) else { continue };
            if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
                storage::remove_all(&path)?;
            }
        }
        Ok(())
    }

    /// Keeps a staged image, durably. If another process kept it meanwhile, that one stays.
    pub(super) fn keep(
        &self,
        staged: &Staging,
        record: &ImageRecord,
        uses: &Uses,
    ) -> io::Result<()> {
        let image = staged.path.join(IMAGE);
        fs::set_permissions(&image, fs::Permissions::from_mode(0o444))?;
        File::open(&image)?.sync_all()?;
        write_json(&staged.path, RECORD, record)?;
        write_json(&staged.path, USES, uses)?;
        sync(&staged.path)?;
        daemon::failpoint("image_staged")?;
        fs::create_dir_all(self.store())?;
        let to = self.of(&record.digest);
        match renameat_with(CWD, &staged.path, CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) if self.find(&record.digest).is_some() => {
                return write_json(&to, USES, uses);
            }
            // A folder without a whole image can only be damage, and is replaced.
            Err(rustix::io::Errno::EXIST) => {
                renameat_with(CWD, &staged.path, CWD, &to, RenameFlags::EXCHANGE)?;
            }
            Err(error) => return Err(error.into()),
        }
        sync(&self.store())
    }

    /// Returns an image's record, if the image is kept.
    pub(super) fn find(&self, digest: &Digest) -> Option<ImageRecord> {
        let path = self.of(digest);
        let record: ImageRecord = read_json(&path.join(RECORD))?;
        let size = path.join(IMAGE).metadata().ok()?.len();
        (record.digest == *digest && record.bytes == size).then_some(record)
    }

    /// Lists the records and uses of all images that the present writer made.
    pub(super) fn all(&self) -> Vec<(ImageRecord, Uses)> {
        let format = format!("-{}", rootfs::FORMAT);
        let paths = self.folders().into_iter();
        let paths = paths.filter(|path| path.to_string_lossy().ends_with(&format));
        paths.filter_map(|path| Some((read_json(&path.join(RECORD))?, uses_in(&path)))).collect()
    }

    pub(super) fn uses(&self, digest: &Digest) -> Uses {
        uses_in(&self.of(digest))
    }

    /// Replaces the list of an image's uses.
    pub(super) fn write_uses(&self, digest: &Digest, uses: &Uses) -> io::Result<()> {
        write_json(&self.of(digest), USES, uses)
    }

    /// Links an image to another name.
    pub(super) fn link(&self, digest: &Digest, to: &Path) -> io::Result<()> {
        let from = self.of(digest).join(IMAGE);
        match fs::hard_link(&from, to) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let same = fs::metadata(&from)?.ino() == fs::metadata(to)?.ino();
                if same { Ok(()) } else { Err(e) }
            }
            linked => linked,
        }
    }

    /// Puts an image into the templates, in place of an earlier template of this name.
    pub(super) fn publish(&self, digest: &Digest, name: &str) -> io::Result<()> {
        let staged = self.stage()?;
        self.link(digest, &staged.path.join("rootfs.erofs"))?;
        sync(&staged.path)?;
        let templates = self.images.join("templates");
        fs::create_dir_all(&templates)?;
        let to = templates.join(name);
        let flags = if fs::symlink_metadata(&to).is_ok() {
            RenameFlags::EXCHANGE
        } else {
            RenameFlags::NOREPLACE
        };
        renameat_with(CWD, &staged.path, CWD, &to, flags)?;
        sync(&templates)
    }

    /// Removes the images without links that were not used for a week before `now`. Returns their
    /// number.
    pub(super) fn remove_unused(&self, now: u64) -> io::Result<usize> {
        let mut removed = 0;
        for path in self.folders() {
            let links = path.join(IMAGE).metadata().map_or(1, |found| found.nlink());
            let unused = now.saturating_sub(uses_in(&path).used) > UNUSED.as_secs();
            if links > 1 || !unused {
                continue;
            }
            // A half-removed folder must not look like an image.
            let staged = self.stage()?;
            fs::rename(&path, staged.path.join("removed"))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Lists the images with their bytes on disk and the number of their links elsewhere.
    pub(super) fn sizes(&self) -> Vec<(Digest, u64, u64)> {
        let size = |path: PathBuf| {
            let record: ImageRecord = read_json(&path.join(RECORD))?;
            let found = path.join(IMAGE).metadata().ok()?;
            Some((record.digest, found.blocks() * 512, found.nlink().saturating_sub(1)))
        };
        self.folders().into_iter().filter_map(size).collect()
    }

    fn folders(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.store()).into_iter().flatten().flatten();
        let is_image = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
        };
        entries.map(|entry| entry.path()).filter(is_image).collect()
    }
}

fn uses_in(path: &Path) -> Uses {
    read_json(&path.join(USES)).unwrap_or_default()
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(JSON_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    daemon::write_private(&dir.join(name), &serde_json::to_vec(value)?)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
