//! Images in tar archives: OCI layouts, and the archives that `docker save` writes. An archive with
//! both is read as an OCI layout.
//!
//! The archive is as hostile as a registry. Only members that its own lists name are read, at their
//! places in the file. Nothing is unpacked.

use crate::blob::{Blob, Place};
use crate::config::CONFIG_MAX;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::image::{Image, Parts, assemble, config_blob};
use crate::manifest::{
    self, Bounds, Compression, Descriptor, Document, MANIFEST_MAX, Manifest, Refusal, shown,
};
use crate::platform::Platform;
use crate::settings::Limits;
use archive::Contents;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// Most entries of an archive. An image of 128 layers has about 500.
const ENTRIES_MAX: usize = 10_000;
/// Most links that lead to a member.
const LINKS_MAX: usize = 8;
/// Room in an archive for all that is no layer.
const REST_MAX: u64 = 64 << 20;
/// Most names that an error lists.
const NAMES_MAX: usize = 16;
/// Annotations that name an image in a layout: the one of OCI, and containerd's with the whole name.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// An archive of one or more images.
pub struct Archive {
    file: Arc<File>,
    /// Places by normalized path.
    members: BTreeMap<String, Contents>,
    bounds: Bounds,
    platform: Platform,
}

/// Part of a file.
#[derive(Debug, Clone, Copy)]
struct Span {
    offset: u64,
    size: u64,
}

#[derive(Deserialize)]
struct Layout {
    manifests: Vec<LayoutEntry>,
}

#[derive(Deserialize)]
struct LayoutEntry {
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Archive {
    /// Opens an archive in a file.
    ///
    /// # Errors
    /// Returns `Archive` if it is no tar archive without compression, and `TooLarge`.
    pub async fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let shown = path.display().to_string();
        let path = path.to_owned();
        let opened = blocking(move || {
            // The type is known before the open, which a named pipe would hold up.
            if !std::fs::metadata(&path)?.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            File::open(&path)
        });
        let file = opened.await.map_err(|e| fault(format!("{shown}: {e}")))?;
        Self::new(file, limits).await
    }

    /// Copies a stream to an unnamed file in `folder`, and opens it.
    ///
    /// # Errors
    /// As `open`, and `Archive` if the stream fails. The copy ends where the limit is passed.
    pub async fn receive(
        mut from: impl AsyncRead + Unpin,
        folder: &Path,
        limits: &Limits,
    ) -> Result<Self> {
        let folder = folder.to_owned();
        let file = blocking(move || tempfile::tempfile_in(folder)).await;
        let file = file.map_err(|e| fault(format!("its copy cannot be made: {e}")))?;
        let mut to = tokio::fs::File::from_std(file);
        let limit = size_max(limits);
        let copied = tokio::io::copy(&mut (&mut from).take(limit.saturating_add(1)), &mut to).await;
        if copied.map_err(|e| fault(format!("its stream broke off: {e}")))? > limit {
            return Err(Error::TooLarge { what: "the image archive".to_owned(), limit });
        }
        to.flush().await.map_err(|e| fault(format!("its copy cannot be written: {e}")))?;
        Self::new(to.into_std().await, limits).await
    }

    async fn new(file: File, limits: &Limits) -> Result<Self> {
        let limit = size_max(limits);
        let file = Arc::new(file);
        let scanned = file.clone();
        let scan = blocking(move || {
            if scanned.metadata()?.len() > limit {
                return Ok(Err(Error::TooLarge { what: "the image archive".to_owned(), limit }));
            }
            Ok(scan(&scanned))
        });
        let members = scan.await.map_err(|e| fault(e.to_string()))??;
        let bounds = Bounds { layers: limits.layers, image_bytes: limits.image_bytes };
        Ok(Self { file, members, bounds, platform: Platform::current() })
    }

    /// Chooses another platform than this machine's.
    #[must_use]
    pub fn with_platform(self, platform: Platform) -> Self {
        Self { platform, ..self }
    }

    /// Reads an image: the one with this name or tag, or the only one.
    ///
    /// # Errors
    /// Returns `Archive` if the archive has no such image or more than one, and the errors of
    /// [`crate::Client::image`].
    pub async fn image(&self, name: Option<&str>) -> Result<Image> {
        if self.members.contains_key("index.json") {
            self.layout(name).await
        } else if self.members.contains_key("manifest.json") {
            self.saved(name).await
        } else {
            let why = "it has neither `index.json` (OCI layout) nor `manifest.json` (docker save)";
            Err(fault(why.to_owned()))
        }
    }

    async fn layout(&self, name: Option<&str>) -> Result<Image> {
        let layout: Layout = self.json("index.json").await?;
        let names = |entry: &LayoutEntry| -> Vec<String> {
            let all = entry.annotations.iter().flatten();
            let named = all.filter(|(key, _)| NAMES.contains(&key.as_str()));
            named.map(|(_, value)| value.clone()).collect()
        };
        let entry = choose(layout.manifests, names, name)?;
        let asked = Descriptor { digest: entry.digest, size: entry.size };
        let (digest, manifest) = match self.document(&asked).await? {
            Document::Manifest(manifest) => (asked.digest.clone(), manifest),
            Document::Index(index) => {
                let chosen = index.choose(&self.platform).map_err(refused)?;
                match self.document(&chosen).await? {
                    Document::Manifest(manifest) => (chosen.digest, manifest),
                    Document::Index(_) => return Err(refused(Refusal::NestedIndex)),
                }
            }
        };
        let layers = manifest.layers.iter().enumerate();
        let places = layers.map(|(at, (layer, _))| self.blob(&format!("layer {at}"), layer));
        let places = places.collect::<Result<Vec<_>>>()?;
        let config = self.blob("the configuration", &manifest.config)?;
        let config = config_blob(&manifest, config)?.whole().await?;
        let parts = Parts { asked: asked.digest, digest, manifest, from: None };
        assemble(parts, &config, places, &self.platform).map_err(refused)
    }

    async fn saved(&self, name: Option<&str>) -> Result<Image> {
        let images: Vec<Saved> = self.json("manifest.json").await?;
        let saved = choose(images, |saved| saved.repo_tags.clone().unwrap_or_default(), name)?;
        let config = self.small(&saved.config, CONFIG_MAX).await?;
        let digest = Digest::sha256(&config);
        let paths = saved.layers.unwrap_or_default();
        if paths.len() > self.bounds.layers {
            let (found, limit) = (paths.len(), self.bounds.layers);
            return Err(refused(Refusal::TooMany { what: "layers", found, limit }));
        }
        // The configuration is read twice: at first for the digests of plain layers.
        let plain = crate::config::parse(&config, &self.platform, paths.len()).map_err(refused)?;
        let (mut layers, mut places, mut total) = (Vec::new(), Vec::new(), 0u64);
        for (path, diff_id) in paths.iter().zip(&plain.diff_ids) {
            let span = self.span(path)?;
            total = total.saturating_add(span.size);
            if total > self.bounds.image_bytes {
                let (found, limit) = (total, self.bounds.image_bytes);
                return Err(refused(Refusal::TooLarge { found, limit }));
            }
            let compression = compression(&self.read(span, 4).await?);
            let digest = match compression {
                Compression::None => diff_id.clone(),
                // The archive names no digest of compressed bytes.
                Compression::Gzip | Compression::Zstd => self.digest(span).await?,
            };
            layers.push((Descriptor { digest, size: span.size }, compression));
            places.push(self.place(span));
        }
        let size = config.len() as u64;
        let manifest = Manifest { config: Descriptor { digest: digest.clone(), size }, layers };
        let parts = Parts { asked: digest.clone(), digest, manifest, from: None };
        assemble(parts, &config, places, &self.platform).map_err(refused)
    }

    /// Reads and checks a manifest or index in a layout.
    async fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        let what = format!("manifest {}", descriptor.digest);
        if descriptor.size > MANIFEST_MAX {
            return Err(Error::TooLarge { what, limit: MANIFEST_MAX });
        }
        let place = self.blob(&what, descriptor)?;
        let blob = Blob::new(what, descriptor.digest.clone(), descriptor.size, place);
        manifest::parse(&blob.whole().await?, None, self.bounds).map_err(refused)
    }

    /// Finds a blob of a layout, and compares its size.
    fn blob(&self, what: &str, descriptor: &Descriptor) -> Result<Place> {
        let algorithm = match descriptor.digest.algorithm() {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        };
        let span = self.span(&format!("blobs/{algorithm}/{}", descriptor.digest.digits()))?;
        if span.size != descriptor.size {
            let (expected, found) = (descriptor.size, span.size);
            return Err(Error::WrongSize { what: what.to_owned(), expected, found });
        }
        Ok(self.place(span))
    }

    fn place(&self, span: Span) -> Place {
        Place::File { file: self.file.clone(), offset: span.offset }
    }

    /// Finds a member by its path, through links inside the archive.
    fn span(&self, path: &str) -> Result<Span> {
        let missing = || fault(format!("it lacks `{}`, which its list names", shown(path)));
        let mut path_now = normal(path).ok_or_else(missing)?;
        for _ in 0..LINKS_MAX {
            let next = match self.members.get(&path_now).ok_or_else(missing)? {
                Contents::Bytes { offset, size } => {
                    return Ok(Span { offset: *offset, size: *size });
                }
                Contents::HardLink(target) => normal(&String::from_utf8_lossy(target)),
                Contents::SymbolicLink(target) => {
                    let folder = path_now.rsplit_once('/').map_or("", |(folder, _)| folder);
                    normal(&format!("{folder}/{}", String::from_utf8_lossy(target)))
                }
            };
            path_now = next.ok_or_else(missing)?;
        }
        Err(fault(format!("`{}` is behind too many links", shown(path))))
    }

    async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let bytes = self.small(path, MANIFEST_MAX).await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| fault(format!("`{path}` is malformed: {}", shown(&e.to_string()))))
    }

    /// Reads a member that is small by its nature.
    async fn small(&self, path: &str, limit: u64) -> Result<Bytes> {
        let span = self.span(path)?;
        if span.size > limit {
            let what = format!("`{}` of the image archive", shown(path));
            return Err(Error::TooLarge { what, limit });
        }
        self.read(span, limit).await
    }

    /// Reads the first bytes of a span.
    async fn read(&self, span: Span, most: u64) -> Result<Bytes> {
        let (file, offset) = (self.file.clone(), span.offset);
        // A claimed size beyond the end of the file costs no memory.
        let length = span.size.min(most);
        let read = blocking(move || {
            let end = file.metadata()?.len();
            if offset.checked_add(length).is_none_or(|last| last > end) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            file.read_exact_at(&mut bytes, offset).map(|()| Bytes::from(bytes))
        });
        read.await.map_err(|e| fault(format!("it cannot be read: {e}")))
    }

    /// Computes the digest of a span.
    async fn digest(&self, span: Span) -> Result<Digest> {
        let file = self.file.clone();
        let hashed = blocking(move || {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            let mut chunk = vec![0; 256 * 1024];
            let mut done = 0;
            while done < span.size {
                let left = usize::try_from(span.size - done).unwrap_or(usize::MAX);
                let length = left.min(chunk.len());
                let part = chunk.get_mut(..length).unwrap_or_default();
                file.read_exact_at(part, span.offset.saturating_add(done))?;
                hasher.update(part);
                done += part.len() as u64;
            }
            Ok(hasher.finish())
        });
        hashed.await.map_err(|e| fault(format!("it cannot be read: {e}")))
    }
}

/// Lists an archive's members by their normalized paths. The last of equal paths counts, as for tar.
fn scan(file: &File) -> Result<BTreeMap<String, Contents>> {
    let mut magic = [0; 4];
    let length = file.read_at(&mut magic, 0).map_err(|e| fault(e.to_string()))?;
    if compression(magic.get(..length).unwrap_or_default()) != Compression::None {
        let why = "it is compressed; decompress it first, by `gunzip` or `unzstd`";
        return Err(fault(why.to_owned()));
    }
    let mut reader = file;
    let found = archive::members(&mut reader, ENTRIES_MAX);
    let found = found.map_err(|e| fault(format!("it is no whole tar archive: {e}")))?;
    let named = found.into_iter().filter_map(|member| {
        Some((normal(&String::from_utf8(member.path).ok()?)?, member.contents))
    });
    Ok(named.collect())
}

/// Normalizes a path inside the archive. Returns `None` for one that leads outside.
fn normal(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// Finds the compression of a stream by its first bytes.
fn compression(magic: &[u8]) -> Compression {
    if magic.starts_with(&[0x1f, 0x8b]) {
        Compression::Gzip
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Compression::Zstd
    } else {
        Compression::None
    }
}

/// Chooses the image with a name, or the only one. A name may be a tag alone.
fn choose<T>(all: Vec<T>, names: impl Fn(&T) -> Vec<String>, name: Option<&str>) -> Result<T> {
    let known: Vec<String> = all.iter().flat_map(&names).take(NAMES_MAX).collect();
    let known = if known.is_empty() { "none".to_owned() } else { shown(&known.join(", ")) };
    let fits = |have: &str, wanted: &str| have == wanted || have.ends_with(&format!(":{wanted}"));
    let mut fitting = all
        .into_iter()
        .filter(|one| name.is_none_or(|wanted| names(one).iter().any(|have| fits(have, wanted))));
    match (fitting.next(), fitting.next(), name) {
        (Some(only), None, _) => Ok(only),
        (None, _, None) => Err(fault("it has no image".to_owned())),
        (None, _, Some(name)) => {
            Err(fault(format!("it has no image '{}'; its names: {known}", shown(name))))
        }
        (Some(_), Some(_), _) => {
            Err(fault(format!("it has several images, and a name must choose; its names: {known}")))
        }
    }
}

fn size_max(limits: &Limits) -> u64 {
    limits.image_bytes.saturating_add(REST_MAX)
}

/// Runs a call that may block on the disk.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(call).await.map_err(io::Error::other)?
}

fn fault(why: String) -> Error {
    Error::Archive { why }
}

fn refused(why: Refusal) -> Error {
    Error::Manifest { image: "the image archive".to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_that_leads_outside_is_none() {
        assert_eq!(normal("./a//b/../c").as_deref(), Some("a/c"));
        assert_eq!(normal("/a").as_deref(), Some("a"));
        for outside in ["", ".", "..", "a/../..", "../a"] {
            assert_eq!(normal(outside), None, "{outside}");
        }
    }

    #[test]
    fn image_is_chosen_by_name_or_as_the_only_one() {
        let chosen = |all: &[&str], name| {
            let all = all.iter().map(|name| (*name).to_owned()).collect();
            choose(all, |name: &String| vec![name.clone()], name).ok()
        };
        assert_eq!(chosen(&["app:1"], None).as_deref(), Some("app:1"));
        assert_eq!(chosen(&["app:1", "app:2"], None), None);
        assert_eq!(chosen(&["app:1", "app:2"], Some("2")).as_deref(), Some("app:2"));
        assert_eq!(chosen(&["app:1", "app:2"], Some("app:1")).as_deref(), Some("app:1"));
        assert_eq!(chosen(&["app:1"], Some("p:1")), None);
        assert_eq!(chosen(&[], None), None);
    }
}
