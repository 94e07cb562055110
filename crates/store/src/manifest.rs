//! Manifests list a folder's files and the chunks of each file. This module uploads and downloads
//! folders by them.

use crate::cipher::ChunkCipher;
use crate::{Error, Store, chunk_name, manifest_name};
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStoreExt, PutPayload};
use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Bytes of a file in a chunk.
pub(crate) const CHUNK: u64 = 2 << 20;
/// Largest list, in bytes.
const MANIFEST_MAX: usize = 256 << 20;
/// Chunks under way at once.
const AT_ONCE: usize = 4;

/// Object that lists a folder's files and the chunks of each file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChunkManifest {
    files: Vec<Listed>,
}

impl ChunkManifest {
    /// Yields the hash of every chunk that the manifest names.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|file| &file.chunks).map(|chunk| chunk.hash.as_str())
    }

    /// Returns the most bytes that the manifest's files take on a disk. The files are sparse.
    pub(crate) fn bytes(&self) -> u64 {
        let of = |file: &Listed| (file.chunks.len() as u64 * CHUNK).min(file.bytes);
        self.files.iter().map(of).sum()
    }

    pub(crate) async fn read(store: &Store, namespace: &str, name: &str) -> Result<Self, Error> {
        let at = manifest_name(namespace, name);
        let object = match store.objects.get(&at).await {
            Ok(found) => found.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(Error::Missing(name.to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        let manifest = Self::parse(&store.cipher(namespace), name, &object);
        manifest.ok_or_else(|| Error::Damaged(name.to_owned()))
    }

    /// Reads a manifest from its object. Returns `None` for a damaged one.
    pub(crate) fn parse(cipher: &ChunkCipher, name: &str, object: &[u8]) -> Option<Self> {
        let text = cipher.open(name, object, MANIFEST_MAX)?;
        // The list's own hash comes first.
        let (hash, list) = text.split_at_checked(64)?;
        if cipher.name(list).as_bytes() != hash {
            return None;
        }
        serde_json::from_slice(list).ok()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    name: String,
    bytes: u64,
    mode: u32,
    #[serde(rename = "pieces")]
    chunks: Vec<Chunk>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Chunk {
    at: u64,
    hash: String,
}

/// Stores a folder's files. Returns the bytes that were sent.
pub(crate) async fn put(
    store: &Store,
    namespace: &str,
    name: &str,
    folder: &Path,
) -> Result<u64, Error> {
    let (cipher, mut sent, mut files) = (Arc::new(store.cipher(namespace)), 0, Vec::new());
    let now = store.now().await?;
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let file = Arc::new(File::open(entry.path())?);
        let about = file.metadata()?;
        let wrong = |_| Error::File(io::ErrorKind::InvalidFilename.into());
        let mut listed = Listed {
            name: entry.file_name().into_string().map_err(wrong)?,
            bytes: about.len(),
            mode: about.permissions().mode() & 0o777,
            chunks: Vec::new(),
        };
        let offsets = futures::stream::iter(data_offsets(Arc::clone(&file), about.len()));
        let uploads = offsets.map(|at| {
            let (file, cipher) = (Arc::clone(&file), Arc::clone(&cipher));
            async move { upload(store, (namespace, now), &cipher, file, at?).await }
        });
        let mut uploads = uploads.buffered(AT_ONCE);
        while let Some((chunk, bytes)) = uploads.try_next().await? {
            listed.chunks.extend(chunk);
            sent += bytes;
        }
        files.push(listed);
    }
    let list = serde_json::to_vec(&ChunkManifest { files }).map_err(io::Error::other)?;
    let text = [cipher.name(&list).as_bytes(), &list].concat();
    let object = cipher.seal(name, &text).ok_or_else(no_randomness)?;
    sent += object.len() as u64;
    store.objects.put(&manifest_name(namespace, name), PutPayload::from(object)).await?;
    Ok(sent)
}

/// Yields the offset of each chunk that has data.
fn data_offsets(file: Arc<File>, bytes: u64) -> impl Iterator<Item = io::Result<u64>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= bytes {
            return None;
        }
        let data = match rustix::fs::seek(&*file, SeekFrom::Data(at)) {
            Ok(data) => data - data % CHUNK,
            Err(rustix::io::Errno::NXIO) => return None,
            Err(error) => {
                at = bytes;
                return Some(Err(error.into()));
            }
        };
        at = data + CHUNK;
        Some(Ok(data))
    })
}

/// Stores a chunk, unless the store has it. Returns `None` in place of a chunk of zeros, and the
/// bytes that were sent. `now` is the store's time.
async fn upload(
    store: &Store,
    (namespace, now): (&str, SystemTime),
    cipher: &Arc<ChunkCipher>,
    file: Arc<File>,
    at: u64,
) -> Result<(Option<Chunk>, u64), Error> {
    let named = Arc::clone(cipher);
    let read = blocking(move || {
        let bytes = file.metadata()?.len();
        let size = usize::try_from(CHUNK.min(bytes - at)).map_err(io::Error::other)?;
        let mut contents = vec![0; size];
        file.read_exact_at(&mut contents, at)?;
        let zeros = contents.iter().all(|byte| *byte == 0);
        let hash = if zeros { String::new() } else { named.name(&contents) };
        Ok((contents, hash))
    });
    let (contents, hash) = read.await?;
    if hash.is_empty() {
        return Ok((None, 0));
    }
    let (chunk, to) = (Chunk { at, hash: hash.clone() }, chunk_name(namespace, &hash));
    match store.objects.head(&to).await {
        // A chunk that is about to be swept is written anew.
        Ok(found) if !crate::age::is_old(&found, now) => return Ok((Some(chunk), 0)),
        Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let cipher = Arc::clone(cipher);
    let sealed = blocking(move || cipher.seal(&hash, &contents).ok_or_else(no_randomness));
    let sealed = sealed.await?;
    let bytes = sealed.len() as u64;
    store.objects.put(&to, PutPayload::from(sealed)).await?;
    Ok((Some(chunk), bytes))
}

/// Fetches a folder's files.
pub(crate) async fn get(
    store: &Store,
    namespace: &str,
    name: &str,
    folder: &Path,
) -> Result<(), Error> {
    let manifest = ChunkManifest::read(store, namespace, name).await?;
    let cipher = Arc::new(store.cipher(namespace));
    for listed in manifest.files {
        let plain = !listed.name.contains('/') && !matches!(listed.name.as_str(), "" | "." | "..");
        if !plain {
            return Err(Error::Damaged(name.to_owned()));
        }
        let file = File::options().write(true).create_new(true).open(folder.join(&listed.name))?;
        file.set_permissions(fs::Permissions::from_mode(listed.mode))?;
        file.set_len(listed.bytes)?;
        let file = Arc::new(file);
        let chunks = futures::stream::iter(listed.chunks).map(|chunk| {
            let (file, cipher) = (Arc::clone(&file), Arc::clone(&cipher));
            async move { fetch(store, namespace, name, cipher, file, chunk).await }
        });
        chunks.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        blocking(move || file.sync_all()).await?;
    }
    Ok(File::open(folder)?.sync_all()?)
}

async fn fetch(
    store: &Store,
    namespace: &str,
    name: &str,
    cipher: Arc<ChunkCipher>,
    file: Arc<File>,
    chunk: Chunk,
) -> Result<(), Error> {
    let damaged = || Error::Damaged(name.to_owned());
    if chunk.hash.len() != 64 || !chunk.hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(damaged());
    }
    let object = match store.objects.get(&chunk_name(namespace, &chunk.hash)).await {
        Ok(found) => found.bytes().await?,
        Err(object_store::Error::NotFound { .. }) => return Err(damaged()),
        Err(error) => return Err(error.into()),
    };
    let most = usize::try_from(CHUNK).map_err(io::Error::other)?;
    let written = blocking(move || {
        let contents = cipher.open(&chunk.hash, &object, most);
        let Some(contents) = contents.filter(|found| cipher.name(found) == chunk.hash) else {
            return Ok(false);
        };
        file.write_all_at(&contents, chunk.at)?;
        Ok(true)
    });
    if written.await? { Ok(()) } else { Err(damaged()) }
}

fn no_randomness() -> io::Error {
    io::Error::other("an object could not be encrypted")
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
