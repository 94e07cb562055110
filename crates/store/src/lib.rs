//! Folders in an object store, from which other hosts can fetch them.
//!
//! A folder becomes a *manifest*: an object that lists its files and each file's chunks that are
//! not zeros. A *chunk* is an object whose name is the hash of its contents. So a chunk that is
//! there is not sent again. Chunks are compressed, checked when they are read and, if a key is set,
//! encrypted. A manifest is written after its chunks, so it is there whole or not at all. Names of
//! objects have earlier words: manifests are below `trees/`, and chunks below `pieces/`.
//!
//! Each *namespace* (a team) has names, chunks and, if a key is set, a key of its own. Namespaces
//! share nothing. With a key, nothing reveals if two namespaces hold equal contents. This crate
//! knows nothing of capsules, and never decides on what is stored or for how long.

mod age;
mod cipher;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod manifest;
mod sweep;

use anyhow::Context;
use cipher::ChunkCipher;
use futures::TryStreamExt;
use object_store::path::Path as Name;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Contents of the object that is written to check the store, and to read its clock.
const PROBE: &[u8] = b"wrenn";

/// Reasons why files could not be stored or fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No manifest has this name.
    #[error("the store has no {0}")]
    Missing(String),
    /// The stored object is not the one that was written.
    #[error("the store's copy of {0} is damaged")]
    Damaged(String),
    #[error("the store cannot be used")]
    Store(#[from] object_store::Error),
    #[error("a file cannot be read or written")]
    File(#[from] io::Error),
}

/// An object store.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    key: Option<[u8; 32]>,
}

impl Store {
    /// Opens a folder, or a URL such as `s3://bucket/prefix`. Credentials and endpoint of a URL are
    /// among the variables (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT`,
    /// `AWS_REGION`).
    ///
    /// # Errors
    /// Returns an error for a wrong URL or wrong variables, or when the folder cannot be made.
    pub fn open(
        url: &str,
        key: Option<[u8; 32]>,
        vars: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<Self> {
        let objects: Arc<dyn ObjectStore> = if url.contains("://") {
            let url = url::Url::parse(url).context("the store's location is not a valid URL")?;
            // Variables for other kinds of store are ignored.
            let options = vars.map(|(name, value)| (name.to_lowercase(), value));
            let (objects, prefix) = object_store::parse_url_opts(&url, options)?;
            Arc::new(PrefixStore::new(objects, prefix))
        } else {
            std::fs::create_dir_all(url).context("cannot create the store's folder")?;
            let folder = object_store::local::LocalFileSystem::new_with_prefix(url)?;
            Arc::new(folder.with_fsync(true))
        };
        Ok(Self { objects, key })
    }

    /// Writes an object and reads it back.
    ///
    /// # Errors
    /// Returns the reason why the store cannot be used.
    pub async fn probe(&self) -> anyhow::Result<()> {
        let name = Name::from("probe");
        self.objects.put(&name, PutPayload::from_static(PROBE)).await?;
        let read = self.objects.get(&name).await?.bytes().await?;
        anyhow::ensure!(read == PROBE, "the store returned other data than was written");
        Ok(())
    }

    /// Returns the store's own time, which dates its objects. The clocks of hosts differ.
    pub(crate) async fn now(&self) -> Result<SystemTime, Error> {
        let name = Name::from("probe");
        self.objects.put(&name, PutPayload::from_static(PROBE)).await?;
        Ok(self.objects.head(&name).await?.last_modified.into())
    }

    /// Stores the files of a folder under a name, in place of earlier ones. Returns the bytes that
    /// were sent.
    ///
    /// # Errors
    /// Returns the reason for a failure. The earlier files then keep the name.
    pub async fn put(&self, namespace: &str, name: &str, folder: &Path) -> Result<u64, Error> {
        manifest::put(self, namespace, name, folder).await
    }

    /// Fetches the files of a name into an empty folder. They are on the disk when it returns.
    ///
    /// # Errors
    /// Returns the reason for a failure. The folder may then hold some of the files.
    pub async fn get(&self, namespace: &str, name: &str, folder: &Path) -> Result<(), Error> {
        manifest::get(self, namespace, name, folder).await
    }

    /// Returns the most bytes that fetching the files of a name writes.
    ///
    /// # Errors
    /// Returns an error when nothing has the name, or the store cannot be used.
    pub async fn bytes(&self, namespace: &str, name: &str) -> Result<u64, Error> {
        Ok(manifest::ChunkManifest::read(self, namespace, name).await?.bytes())
    }

    /// Reports whether a manifest has the name.
    ///
    /// # Errors
    /// Returns an error when the store cannot be used.
    pub async fn has(&self, namespace: &str, name: &str) -> Result<bool, Error> {
        match self.objects.head(&manifest_name(namespace, name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Lists the names below the path `begin`.
    ///
    /// # Errors
    /// Returns an error when the store cannot be used.
    pub async fn names(&self, namespace: &str, begin: &str) -> Result<Vec<String>, Error> {
        let below = Name::from(format!("{namespace}/trees/{begin}"));
        let manifests = Name::from(format!("{namespace}/trees"));
        let found: Vec<_> = self.objects.list(Some(&below)).try_collect().await?;
        let name = |found: &object_store::ObjectMeta| {
            let parts = found.location.prefix_match(&manifests)?;
            Some(parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
        };
        Ok(found.iter().filter_map(name).collect())
    }

    /// Removes a name. An unknown name is success. The next sweep removes its chunks, if no other
    /// manifest has them.
    ///
    /// # Errors
    /// Returns an error when the store cannot be used.
    pub async fn remove(&self, namespace: &str, name: &str) -> Result<(), Error> {
        match self.objects.delete(&manifest_name(namespace, name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the chunks of every namespace that no manifest has any more. Returns their number.
    /// Chunks younger than a day stay, since a manifest may be about to name them.
    ///
    /// # Errors
    /// Returns an error when the store cannot be used, or a manifest cannot be read.
    pub async fn sweep(&self) -> Result<u64, Error> {
        sweep::sweep(self).await
    }

    fn cipher(&self, namespace: &str) -> ChunkCipher {
        ChunkCipher::new(self.key.as_ref(), namespace)
    }
}

fn manifest_name(namespace: &str, name: &str) -> Name {
    Name::from(format!("{namespace}/trees/{name}"))
}

fn chunk_name(namespace: &str, hash: &str) -> Name {
    Name::from(format!("{namespace}/pieces/{}/{hash}", &hash[..2]))
}
