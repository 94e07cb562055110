//! Folders kept in an object store, so that another host can have them.
//!
//! A folder becomes a *tree*: one object that lists its files and, for each, the pieces that are
//! not zeros. A piece is an object named by the hash of its contents, so that what is there is
//! not sent again; compressed; checked when it is read; and, where a key is set, encrypted. A
//! tree is written after its pieces, so that it is there whole or not at all.
//!
//! Each *space* (a team) has names, pieces and, where a key is set, a key of its own: nothing is
//! shared between spaces, and nothing tells whether two of them keep the same. It knows nothing
//! of capsules, and never decides what is kept or for how long.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod seal;
mod sweep;
mod tree;

use anyhow::Context;
use futures::TryStreamExt;
use object_store::path::Path as Name;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use seal::Sealer;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Contents of the object that is written to check the store, and to read its clock.
const PROBE: &[u8] = b"wrenn";

/// Why something could not be kept or had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such tree.
    #[error("{0} is not in the store")]
    Missing(String),
    /// What is there is not what was put there.
    #[error("what the store has of {0} is damaged")]
    Damaged(String),
    #[error("the store cannot be used")]
    Store(#[from] object_store::Error),
    #[error("a file cannot be read or written")]
    File(#[from] io::Error),
}

/// A store.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    key: Option<[u8; 32]>,
}

impl Store {
    /// Opens one: a folder, or a URL as `s3://bucket/prefix`, whose credentials and endpoint are
    /// among the variables (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT`,
    /// `AWS_REGION`).
    ///
    /// # Errors
    /// What is wrong with the URL or the variables.
    pub fn open(
        url: &str,
        key: Option<[u8; 32]>,
        vars: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<Self> {
        let objects: Arc<dyn ObjectStore> = if url.contains("://") {
            let url = url::Url::parse(url).context("it is no URL")?;
            // Variables that are not of this kind of store are passed over.
            let options = vars.map(|(name, value)| (name.to_lowercase(), value));
            let (objects, prefix) = object_store::parse_url_opts(&url, options)?;
            Arc::new(PrefixStore::new(objects, prefix))
        } else {
            std::fs::create_dir_all(url).context("its folder cannot be made")?;
            let folder = object_store::local::LocalFileSystem::new_with_prefix(url)?;
            Arc::new(folder.with_fsync(true))
        };
        Ok(Self { objects, key })
    }

    /// Writes something and reads it back.
    ///
    /// # Errors
    /// Why the store cannot be used.
    pub async fn probe(&self) -> anyhow::Result<()> {
        let name = Name::from("probe");
        self.objects.put(&name, PutPayload::from_static(PROBE)).await?;
        let read = self.objects.get(&name).await?.bytes().await?;
        anyhow::ensure!(read == PROBE, "what is read is not what was written");
        Ok(())
    }

    /// Returns the store's own time, by which it dates its objects. The clocks of hosts differ.
    pub(crate) async fn now(&self) -> Result<SystemTime, Error> {
        let name = Name::from("probe");
        self.objects.put(&name, PutPayload::from_static(PROBE)).await?;
        Ok(self.objects.head(&name).await?.last_modified.into())
    }

    /// Keeps the files of a folder under a name, in place of what has it. Returns the bytes that
    /// were sent.
    ///
    /// # Errors
    /// Why they could not be kept; what had the name is as it was.
    pub async fn put(&self, space: &str, name: &str, folder: &Path) -> Result<u64, Error> {
        tree::put(self, space, name, folder).await
    }

    /// Has the files of a name in a folder, which must be empty. They are on the disk when it
    /// returns.
    ///
    /// # Errors
    /// Why they could not be had; the folder may hold some of them.
    pub async fn get(&self, space: &str, name: &str, folder: &Path) -> Result<(), Error> {
        tree::get(self, space, name, folder).await
    }

    /// Returns the most bytes that fetching the files of a name writes.
    ///
    /// # Errors
    /// When nothing has the name, or the store cannot be used.
    pub async fn bytes(&self, space: &str, name: &str) -> Result<u64, Error> {
        Ok(tree::Tree::read(self, space, name).await?.bytes())
    }

    /// Whether there is something of a name.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn has(&self, space: &str, name: &str) -> Result<bool, Error> {
        match self.objects.head(&tree_name(space, name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The names that begin with something.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn names(&self, space: &str, begin: &str) -> Result<Vec<String>, Error> {
        let below = Name::from(format!("{space}/trees/{begin}"));
        let trees = Name::from(format!("{space}/trees"));
        let found: Vec<_> = self.objects.list(Some(&below)).try_collect().await?;
        let name = |found: &object_store::ObjectMeta| {
            let parts = found.location.prefix_match(&trees)?;
            Some(parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
        };
        Ok(found.iter().filter_map(name).collect())
    }

    /// Forgets a name. Its pieces go with the next sweep, if nothing else has them.
    ///
    /// # Errors
    /// When the store cannot be used; nothing under the name is success.
    pub async fn remove(&self, space: &str, name: &str) -> Result<(), Error> {
        match self.objects.delete(&tree_name(space, name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the pieces that no tree has any more, of every space. Those younger than a day
    /// stay: a tree may be about to name them. Returns how many were removed.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn sweep(&self) -> Result<u64, Error> {
        sweep::sweep(self).await
    }

    fn sealer(&self, space: &str) -> Sealer {
        Sealer::new(self.key.as_ref(), space)
    }
}

fn tree_name(space: &str, name: &str) -> Name {
    Name::from(format!("{space}/trees/{name}"))
}

fn piece_name(space: &str, hash: &str) -> Name {
    Name::from(format!("{space}/pieces/{}/{hash}", &hash[..2]))
}
