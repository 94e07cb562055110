//! Trees: lists of a folder's files, and the pieces that the lists name.

use crate::seal::Sealer;
use crate::{Error, Store, piece_name, tree_name};
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

/// Bytes of a file in a piece.
pub(crate) const PIECE: u64 = 2 << 20;
/// Largest list, in bytes.
const TREE_MAX: usize = 256 << 20;
/// Pieces under way at once.
const AT_ONCE: usize = 4;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Tree {
    files: Vec<Listed>,
}

impl Tree {
    /// Yields the hash of every piece that the tree names.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(|file| &file.pieces).map(|piece| piece.hash.as_str())
    }

    /// Returns the most bytes that the tree's files take on a disk. The files are sparse.
    pub(crate) fn bytes(&self) -> u64 {
        let of = |file: &Listed| (file.pieces.len() as u64 * PIECE).min(file.bytes);
        self.files.iter().map(of).sum()
    }

    pub(crate) async fn read(store: &Store, space: &str, name: &str) -> Result<Self, Error> {
        let at = tree_name(space, name);
        let object = match store.objects.get(&at).await {
            Ok(found) => found.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(Error::Missing(name.to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        let tree = Self::parse(&store.sealer(space), name, &object);
        tree.ok_or_else(|| Error::Damaged(name.to_owned()))
    }

    /// Reads a tree from its object. Returns `None` for a damaged one.
    pub(crate) fn parse(sealer: &Sealer, name: &str, object: &[u8]) -> Option<Self> {
        let text = sealer.open(name, object, TREE_MAX)?;
        // The list's own hash comes first.
        let (hash, list) = text.split_at_checked(64)?;
        if sealer.name(list).as_bytes() != hash {
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
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Piece {
    at: u64,
    hash: String,
}

/// Stores a folder's files. Returns the bytes that were sent.
pub(crate) async fn put(
    store: &Store,
    space: &str,
    name: &str,
    folder: &Path,
) -> Result<u64, Error> {
    let (sealer, mut sent, mut files) = (Arc::new(store.sealer(space)), 0, Vec::new());
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
            pieces: Vec::new(),
        };
        let places = futures::stream::iter(places(Arc::clone(&file), about.len()));
        let kept = places.map(|at| {
            let (file, sealer) = (Arc::clone(&file), Arc::clone(&sealer));
            async move { keep(store, (space, now), &sealer, file, at?).await }
        });
        let mut kept = kept.buffered(AT_ONCE);
        while let Some((piece, bytes)) = kept.try_next().await? {
            listed.pieces.extend(piece);
            sent += bytes;
        }
        files.push(listed);
    }
    let list = serde_json::to_vec(&Tree { files }).map_err(io::Error::other)?;
    let text = [sealer.name(&list).as_bytes(), &list].concat();
    let object = sealer.seal(name, &text).ok_or_else(no_randomness)?;
    sent += object.len() as u64;
    store.objects.put(&tree_name(space, name), PutPayload::from(object)).await?;
    Ok(sent)
}

/// Yields the offset of each piece that has data.
fn places(file: Arc<File>, bytes: u64) -> impl Iterator<Item = io::Result<u64>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= bytes {
            return None;
        }
        let data = match rustix::fs::seek(&*file, SeekFrom::Data(at)) {
            Ok(data) => data - data % PIECE,
            Err(rustix::io::Errno::NXIO) => return None,
            Err(error) => {
                at = bytes;
                return Some(Err(error.into()));
            }
        };
        at = data + PIECE;
        Some(Ok(data))
    })
}

/// Stores a piece, unless the store has it. Returns `None` in place of a piece of zeros, and the
/// bytes that were sent. `now` is the store's time.
async fn keep(
    store: &Store,
    (space, now): (&str, SystemTime),
    sealer: &Arc<Sealer>,
    file: Arc<File>,
    at: u64,
) -> Result<(Option<Piece>, u64), Error> {
    let named = Arc::clone(sealer);
    let read = blocking(move || {
        let bytes = file.metadata()?.len();
        let size = usize::try_from(PIECE.min(bytes - at)).map_err(io::Error::other)?;
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
    let (piece, to) = (Piece { at, hash: hash.clone() }, piece_name(space, &hash));
    match store.objects.head(&to).await {
        // A piece that is about to be swept is written anew.
        Ok(found) if !crate::sweep::is_old(&found, now) => return Ok((Some(piece), 0)),
        Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let sealer = Arc::clone(sealer);
    let sealed = blocking(move || sealer.seal(&hash, &contents).ok_or_else(no_randomness));
    let sealed = sealed.await?;
    let bytes = sealed.len() as u64;
    store.objects.put(&to, PutPayload::from(sealed)).await?;
    Ok((Some(piece), bytes))
}

/// Fetches a folder's files.
pub(crate) async fn get(
    store: &Store,
    space: &str,
    name: &str,
    folder: &Path,
) -> Result<(), Error> {
    let tree = Tree::read(store, space, name).await?;
    let sealer = Arc::new(store.sealer(space));
    for listed in tree.files {
        let plain = !listed.name.contains('/') && !matches!(listed.name.as_str(), "" | "." | "..");
        if !plain {
            return Err(Error::Damaged(name.to_owned()));
        }
        let file = File::options().write(true).create_new(true).open(folder.join(&listed.name))?;
        file.set_permissions(fs::Permissions::from_mode(listed.mode))?;
        file.set_len(listed.bytes)?;
        let file = Arc::new(file);
        let pieces = futures::stream::iter(listed.pieces).map(|piece| {
            let (file, sealer) = (Arc::clone(&file), Arc::clone(&sealer));
            async move { fetch(store, space, name, sealer, file, piece).await }
        });
        pieces.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        blocking(move || file.sync_all()).await?;
    }
    Ok(File::open(folder)?.sync_all()?)
}

async fn fetch(
    store: &Store,
    space: &str,
    name: &str,
    sealer: Arc<Sealer>,
    file: Arc<File>,
    piece: Piece,
) -> Result<(), Error> {
    let damaged = || Error::Damaged(name.to_owned());
    if piece.hash.len() != 64 || !piece.hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(damaged());
    }
    let object = match store.objects.get(&piece_name(space, &piece.hash)).await {
        Ok(found) => found.bytes().await?,
        Err(object_store::Error::NotFound { .. }) => return Err(damaged()),
        Err(error) => return Err(error.into()),
    };
    let most = usize::try_from(PIECE).map_err(io::Error::other)?;
    let written = blocking(move || {
        let contents = sealer.open(&piece.hash, &object, most);
        let Some(contents) = contents.filter(|found| sealer.name(found) == piece.hash) else {
            return Ok(false);
        };
        file.write_all_at(&contents, piece.at)?;
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
