//! A layer: the finished disk of one build, or a copy of a capsule's disk. It never changes. Its
//! description names the keys whose folders it completes.

use super::folders::now_ms;
use recipe::Key;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use types::BuildId;

/// Name of the description in a layer's folder.
pub(super) const FILE: &str = "layer.json";
/// Name of the disk in a layer's folder.
pub(super) const DISK: &str = "disk.ext4";

/// Description of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    pub id: BuildId,
    /// Milliseconds since 1970.
    pub made_ms: u64,
    /// Finished steps in the order of their end. A copy of a capsule's disk has none.
    pub steps: Vec<Done>,
}

/// A finished step, with all folders above the base that a later step needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    pub key: Key,
    /// Folders from the lowest layer to the highest. The last layer may be this one.
    pub chain: Vec<Part>,
}

/// Folders of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub layer: BuildId,
    /// Numbers in growing order.
    pub folders: Vec<u32>,
}

impl Layer {
    /// Describes a layer that is made now.
    pub(super) fn new(id: BuildId, steps: Vec<Done>) -> Self {
        Self { id, made_ms: now_ms(), steps }
    }

    /// Reads the description in a layer's folder.
    ///
    /// # Errors
    /// Fails when the description is missing or damaged.
    pub(super) fn load(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(dir.join(FILE))?)?)
    }

    /// Writes the description into a staged folder.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub(super) fn save(&self, dir: &Path) -> io::Result<()> {
        fs::write(dir.join(FILE), serde_json::to_vec(self)?)
    }
}

/// Returns the path of a layer's disk.
pub(super) fn disk(dir: &Path) -> PathBuf {
    dir.join(DISK)
}

/// Notes that a layer is in use.
pub(super) fn touch(dir: &Path) {
    let touched = File::open(dir.join(FILE)).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::warn!(%error, dir = %dir.display(), "cannot note the use of a layer");
    }
}
