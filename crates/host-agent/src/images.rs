//! Container images on this host: pulled from registries or read from archives, converted in a
//! jailed child, and kept by the digests of their manifests. Each image is one file that guests
//! mount. This module knows neither templates' steps nor capsules.
//!
//! Reading an image and having a right to it are two matters. A kept image is given only to a caller
//! who may read it (`record.rs`).

mod child;
mod convert;
mod error;
mod folder;
mod protocol;
mod record;
pub(crate) mod settings;
#[cfg(test)]
mod tests;

pub use child::run_conversion_child;
pub use convert::Program;
pub use error::Error;

use crate::room::Room;
use daemon::{blocking, lock};
use folder::{Folders, Staging, now};
use recipe::Pull;
use record::{Access, ImageRecord};
use registry::{Archive, Digest, Login, Reference};
use settings::Registries;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Hidden command of `wrenn` that runs the conversion child.
pub const COMMAND: &str = "convert-image";
/// Time between two checks of the disk's room during a conversion.
const ROOM: Duration = Duration::from_millis(250);
/// Name of the source of all images in archives.
const ARCHIVE: &str = "archive";

/// Images of this host. A clone is the same store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    folders: Folders,
    registries: Registries,
    client: OnceLock<registry::Client>,
    program: Program,
    room: Room,
    /// Held while a list of uses is read and written again, and while images are removed.
    uses: Mutex<()>,
    /// Conversions under way, by the digest of the manifest.
    turns: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

/// Place of an image.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// A registry. Without a login, the operator's own counts.
    Reference { reference: Reference, login: Option<Login> },
    /// An archive (`oci-archive`, `docker save`) with the image of this name, or with only one.
    Archive { path: PathBuf, name: Option<String> },
}

/// An image that a caller wants.
#[derive(Debug, Clone)]
pub struct ImageRequest {
    pub source: ImageSource,
    pub pull: Pull,
    /// Team of the caller.
    pub team: String,
    pub limits: Limits,
}

/// Limits of one image.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most plain bytes of the layers, and of the root image.
    pub bytes: u64,
    /// Most compressed bytes of the layers. The registries' settings may have a lower limit.
    pub packed_bytes: u64,
    /// Most entries of the layers.
    pub entries: u32,
}

impl Default for Limits {
    /// 10 GiB, and 2,000,000 entries.
    fn default() -> Self {
        Self { bytes: 10 << 30, packed_bytes: 10 << 30, entries: 2_000_000 }
    }
}

/// A step of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The registry named the digest.
    Resolved { digest: Digest },
    /// The host keeps the image already.
    Kept,
    /// Another import converts the image at this time.
    Waiting,
    /// Bytes of layers, as they are stored. `layer` counts from 1.
    Pulling { layer: usize, layers: usize, done: u64, all: u64 },
    /// All layers are there, and the image is completed.
    Finishing,
}

/// An image on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptImage {
    /// Digest of the manifest for this host's platform.
    pub digest: Digest,
    /// Digest that the tag stood for: of an index or of the manifest itself.
    pub asked_digest: Digest,
    pub config_digest: Digest,
    /// Registry or mirror that sent the image; absent for an archive.
    pub from: Option<String>,
    pub config: recipe::Config,
    /// File of the root image. It never changes.
    pub path: PathBuf,
    /// Size of the file, with its holes.
    pub bytes: u64,
}

/// An image's share of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSize {
    pub digest: Digest,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Links from versions, capsules and snapshots.
    pub links: u64,
}

impl ImageStore {
    /// Returns the store in an agent's folder. Nothing is read before the first call.
    #[must_use]
    pub fn new(dir: &Path, registries: Registries, program: Program) -> Self {
        let inner = Inner {
            folders: Folders::new(dir.join("images")),
            registries,
            client: OnceLock::new(),
            program,
            room: Room::new(dir, false),
            uses: Mutex::default(),
            turns: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Returns the operator's limits of one image.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let limits = &self.inner.registries.settings.limits;
        let (bytes, packed_bytes) = (limits.unpacked_bytes, limits.image_bytes);
        Limits { bytes, packed_bytes, ..Limits::default() }
    }

    /// Checks the settings of registries, and removes what earlier processes left half-made.
    ///
    /// # Errors
    /// Fails with the settings' field at fault, and when leftovers cannot be removed.
    pub fn open(&self) -> anyhow::Result<()> {
        self.client()?;
        Ok(self.inner.folders.sweep()?)
    }

    /// Makes sure that the host keeps an image, and returns it.
    ///
    /// # Errors
    /// Fails with the registry's or archive's error, with a limit, and when the import is
    /// cancelled. Nothing half-made stays.
    pub async fn prepare(
        &self,
        request: ImageRequest,
        progress: impl Fn(Progress) + Send + Sync,
        cancel: &CancellationToken,
    ) -> Result<KeptImage, Error> {
        let prepared = async {
            match request.source.clone() {
                ImageSource::Reference { reference, login } => {
                    self.pull(&request, &reference, login, &progress).await
                }
                ImageSource::Archive { path, name } => {
                    self.read(&request, &path, name.as_deref(), &progress).await
                }
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::Cancelled),
            done = prepared => done,
        }
    }

    /// Returns an image by the digest of its manifest. The caller has checked the right to it.
    #[must_use]
    pub fn find(&self, digest: &Digest) -> Option<KeptImage> {
        let record = self.inner.folders.find(digest)?;
        Some(self.kept(record, digest))
    }

    /// Links an image's file to another name on the same file system. A name that is such a link
    /// already is success.
    ///
    /// # Errors
    /// Returns `NotKept`, and the file system's errors.
    pub fn link(&self, digest: &Digest, to: &Path) -> Result<(), Error> {
        let _uses = lock(&self.inner.uses);
        if self.inner.folders.find(digest).is_none() {
            return Err(Error::NotKept(digest.to_string()));
        }
        let linked = self.inner.folders.link(digest, to);
        linked.map_err(Error::files(format!("cannot link the image to {}", to.display())))
    }

    /// Makes an image an operator's template of this name, in place of an earlier one.
    ///
    /// # Errors
    /// Returns `NotKept`, and the file system's errors.
    pub fn publish(&self, digest: &Digest, name: &str) -> Result<(), Error> {
        let _uses = lock(&self.inner.uses);
        if self.inner.folders.find(digest).is_none() {
            return Err(Error::NotKept(digest.to_string()));
        }
        let made = self.inner.folders.publish(digest, name);
        made.map_err(Error::files(format!("cannot make the template {name}")))
    }

    /// Removes the images without links that nobody used for 7 days. Returns their number.
    ///
    /// # Errors
    /// Fails when a folder cannot be moved or removed.
    pub fn remove_unused(&self) -> Result<usize, Error> {
        let _uses = lock(&self.inner.uses);
        let removed = self.inner.folders.remove_unused(now());
        removed.map_err(Error::files("cannot remove unused images"))
    }

    /// Lists the images with their bytes on the disk.
    #[must_use]
    pub fn sizes(&self) -> Vec<ImageSize> {
        let sizes = self.inner.folders.sizes().into_iter();
        sizes.map(|(digest, bytes, links)| ImageSize { digest, bytes, links }).collect()
    }

    fn client(&self) -> anyhow::Result<&registry::Client> {
        if let Some(client) = self.inner.client.get() {
            return Ok(client);
        }
        let made = self.inner.registries.client()?;
        Ok(self.inner.client.get_or_init(|| made))
    }

    fn platform(&self) -> String {
        let platform = self.inner.registries.platform();
        format!("{}/v{}", platform.architecture, platform.level)
    }

    fn kept(&self, record: ImageRecord, asked: &Digest) -> KeptImage {
        KeptImage {
            path: self.inner.folders.of(&record.digest).join(folder::IMAGE),
            digest: record.digest,
            asked_digest: asked.clone(),
            config_digest: record.config_digest,
            from: record.from,
            config: record.config,
            bytes: record.bytes,
        }
    }

    /// Gets an image from a registry, unless it is kept.
    async fn pull(
        &self,
        request: &ImageRequest,
        reference: &Reference,
        login: Option<Login>,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<KeptImage, Error> {
        let source = reference.name();
        let tag = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        if request.pull == Pull::Missing
            && let Some(kept) = self.look_up_known(&source, &tag, &request.team).await?
        {
            progress(Progress::Kept);
            return Ok(kept);
        }
        let client = self.client().map_err(|e| settings(&e))?;
        let client = client.with_image_bytes(request.limits.packed_bytes);
        let resolved = client.resolve(reference, login).await?;
        progress(Progress::Resolved { digest: resolved.digest().clone() });
        let access = Access {
            source,
            proof: Some(resolved.proof()),
            team: request.team.clone(),
            tag: Some(tag),
        };
        let (asked, by) = (resolved.digest().clone(), access.clone());
        if let Some(kept) = self.off_thread(move |this| this.asked(&asked, &by)).await? {
            progress(Progress::Kept);
            return Ok(kept);
        }
        let image = client.image(&resolved).await?;
        let name = reference.to_string();
        let waited = self.turn(&image.digest, progress).await;
        if let Some(kept) = self.look_up_granted(&image, &access).await? {
            progress(Progress::Kept);
            return Ok(kept);
        }
        // The time limit of the pull began before the wait.
        let image = if waited.had_to_wait { client.image(&resolved).await? } else { image };
        let (staged, bytes) = self.convert(&name, &image, request.limits, progress).await?;
        // A layer may have needed a login that the look-up of the digest did not need.
        let access = Access { proof: Some(resolved.proof()), ..access };
        self.keep(staged, &image, bytes, access).await
    }

    /// Gets an image from an archive, unless it is kept.
    async fn read(
        &self,
        request: &ImageRequest,
        path: &Path,
        name: Option<&str>,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<KeptImage, Error> {
        let limits = &self.inner.registries.settings.limits;
        let image_bytes = limits.image_bytes.min(request.limits.packed_bytes);
        let limits = registry::Limits { image_bytes, ..limits.clone() };
        let archive = Archive::open(path, &limits).await?;
        let archive = archive.with_platform(self.inner.registries.platform());
        let image = archive.image(name).await?;
        progress(Progress::Resolved { digest: image.asked_digest.clone() });
        let access = Access {
            source: ARCHIVE.to_owned(),
            proof: None,
            team: request.team.clone(),
            tag: None,
        };
        let _turn = self.turn(&image.digest, progress).await;
        if let Some(kept) = self.look_up_granted(&image, &access).await? {
            progress(Progress::Kept);
            return Ok(kept);
        }
        let shown = name.unwrap_or(ARCHIVE).to_owned();
        let (staged, bytes) = self.convert(&shown, &image, request.limits, progress).await?;
        self.keep(staged, &image, bytes, access).await
    }

    /// Converts an image into a folder of its own. Returns that folder, and the root image's size.
    async fn convert(
        &self,
        name: &str,
        image: &registry::Image,
        limits: Limits,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<(Staging, u64), Error> {
        self.inner.room.claim(0).map_err(|why| Error::no_room(name, &why))?;
        let folders = self.inner.folders.clone();
        let staged = blocking(move || {
            let staged = folders.stage()?;
            let out = staged.create_image()?;
            Ok((staged, out))
        });
        let (staged, out) = staged.await.map_err(Error::files("cannot stage an image"))?;
        let converted = convert::convert(&self.inner.program, name, image, (out, limits), progress);
        let bytes = tokio::select! {
            done = converted => done?,
            why = self.no_room() => return Err(Error::no_room(name, &why)),
        };
        Ok((staged, bytes))
    }

    /// Keeps a converted image, durably.
    async fn keep(
        &self,
        staged: Staging,
        image: &registry::Image,
        bytes: u64,
        access: Access,
    ) -> Result<KeptImage, Error> {
        let record = ImageRecord {
            digest: image.digest.clone(),
            config_digest: image.config_digest.clone(),
            from: image.from.clone(),
            config: record::config(&image.config),
            bytes,
            diff_ids: image.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
        };
        let (this, asked) = (self.clone(), image.asked_digest.clone());
        let kept = blocking(move || {
            let platform = this.platform();
            // The sync takes long, and comes before the lock.
            staged.sync()?;
            let _uses = lock(&this.inner.uses);
            let mut uses = this.inner.folders.uses(&record.digest);
            uses.note_whole(&access);
            uses.note(&access, &asked, &platform, now());
            this.inner.folders.keep(&staged, &record, &uses)?;
            Ok(this.kept(record, &asked))
        });
        kept.await.map_err(Error::files("cannot keep an image"))
    }

    /// Waits until the disk has no more room.
    async fn no_room(&self) -> crate::room::NoRoom {
        loop {
            tokio::time::sleep(ROOM).await;
            if let Err(why) = self.inner.room.claim(0) {
                return why;
            }
        }
    }

    /// Does work that waits for files.
    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let this = self.clone();
        let done = blocking(move || Ok(work(&this))).await;
        done.map_err(Error::files("cannot read the images"))?
    }

    async fn look_up_known(
        &self,
        source: &str,
        tag: &str,
        team: &str,
    ) -> Result<Option<KeptImage>, Error> {
        let words = [source, tag, team].map(str::to_owned);
        self.off_thread(move |this| {
            let [source, tag, team] = &words;
            this.known(source, tag, team)
        })
        .await
    }

    async fn look_up_granted(
        &self,
        image: &registry::Image,
        access: &Access,
    ) -> Result<Option<KeptImage>, Error> {
        let (digest, asked) = (image.digest.clone(), image.asked_digest.clone());
        let access = access.clone();
        self.off_thread(move |this| this.granted(&digest, &asked, &access)).await
    }

    /// Finds the image that a tag stood for last, if the caller may have it without a question to
    /// the registry.
    fn known(&self, source: &str, tag: &str, team: &str) -> Result<Option<KeptImage>, Error> {
        let platform = self.platform();
        let _uses = lock(&self.inner.uses);
        let all = self.inner.folders.all().into_iter();
        let known = all.filter_map(|(record, uses)| {
            let time = uses.known(source, tag, team)?;
            let asked = uses.asked.iter().find(|(_, known)| **known == platform)?.0;
            Some((time, asked.parse::<Digest>().ok()?, record, uses))
        });
        let Some((_, asked, record, mut uses)) = known.max_by_key(|(time, ..)| *time) else {
            return Ok(None);
        };
        uses.used = now();
        let noted = self.inner.folders.write_uses(&record.digest, &uses);
        noted.map_err(Error::files("cannot note the image's use"))?;
        Ok(self.inner.folders.find(&record.digest).map(|record| self.kept(record, &asked)))
    }

    /// Finds the image that a digest from a registry leads to, if the caller may have it.
    fn asked(&self, asked: &Digest, access: &Access) -> Result<Option<KeptImage>, Error> {
        let (platform, text) = (self.platform(), asked.to_string());
        let mut all = self.inner.folders.all().into_iter();
        let found = all.find(|(_, uses)| uses.is_asked(&text, &platform));
        match found {
            Some((record, _)) => self.granted(&record.digest, asked, access),
            None => Ok(None),
        }
    }

    /// Returns a kept image if the caller may have it, and notes its use.
    fn granted(
        &self,
        digest: &Digest,
        asked: &Digest,
        access: &Access,
    ) -> Result<Option<KeptImage>, Error> {
        let _uses = lock(&self.inner.uses);
        let Some(record) = self.inner.folders.find(digest) else { return Ok(None) };
        let mut uses = self.inner.folders.uses(digest);
        if !uses.serves(access) {
            return Ok(None);
        }
        uses.note(access, asked, &self.platform(), now());
        let noted = self.inner.folders.write_uses(digest, &uses);
        noted.map_err(Error::files("cannot note the image's use"))?;
        Ok(Some(self.kept(record, asked)))
    }

    /// Waits for the turn to convert an image.
    async fn turn(&self, digest: &Digest, progress: &(dyn Fn(Progress) + Sync)) -> Turn {
        let turn = {
            let mut turns = lock(&self.inner.turns);
            turns.retain(|_, turn| turn.strong_count() > 0);
            match turns.get(digest).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    turns.insert(digest.clone(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        if let Ok(guard) = Arc::clone(&turn).try_lock_owned() {
            return Turn { _guard: guard, had_to_wait: false };
        }
        progress(Progress::Waiting);
        Turn { _guard: turn.lock_owned().await, had_to_wait: true }
    }
}

/// The turn to convert an image, which ends with this value.
struct Turn {
    _guard: tokio::sync::OwnedMutexGuard<()>,
    had_to_wait: bool,
}

fn settings(error: &anyhow::Error) -> Error {
    Error::Files {
        what: "cannot use the settings of registries".to_owned(),
        source: std::io::Error::other(format!("{error:#}")),
    }
}
