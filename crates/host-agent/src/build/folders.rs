//! Folders of builds below the agent's own folder, and durable changes of them.
//!
//! ```text
//!  builds/{build}/events            events, for as long as the control plane wants them
//!                 pins/N            links to files of the bases
//!                 files/{hash}      links to uploaded archives
//!                 layer/, version/  staged folders
//!  layers/{team}/{layer}/           finished disks: disk.ext4, layer.json
//!  files/{team}/{hash}              uploaded archives
//!  removed/                         folders on their way out
//! ```

use crate::storage;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use types::{BuildId, TeamId};

/// The folders of all builds.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    dir: PathBuf,
}

impl Folders {
    /// Makes the folders. Only this user may enter them.
    ///
    /// # Errors
    /// Fails when a folder cannot be made.
    pub(crate) fn make(dir: &Path) -> io::Result<Self> {
        let folders = Self { dir: dir.to_owned() };
        for dir in [folders.builds(), folders.layers(), folders.files(), folders.removed()] {
            fs::create_dir_all(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        }
        fs::create_dir_all(folders.versions())?;
        Ok(folders)
    }

    pub(crate) fn builds(&self) -> PathBuf {
        self.dir.join("builds")
    }

    pub(crate) fn build(&self, id: BuildId) -> PathBuf {
        self.builds().join(id.to_string())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.dir.join("layers")
    }

    pub(crate) fn layer(&self, team: TeamId, layer: BuildId) -> PathBuf {
        self.layers().join(team.to_string()).join(layer.to_string())
    }

    pub(crate) fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    pub(crate) fn versions(&self) -> PathBuf {
        self.dir.join("images/templates")
    }

    pub(crate) fn version(&self, id: BuildId) -> PathBuf {
        self.versions().join(id.to_string())
    }

    fn removed(&self) -> PathBuf {
        self.dir.join("removed")
    }

    /// Removes a folder in one step, and then its contents. A missing folder is success.
    ///
    /// # Errors
    /// Fails when the folder is still there.
    pub(crate) fn remove(&self, dir: &Path) -> io::Result<()> {
        let aside = self.removed().join(uuid::Uuid::new_v4().to_string());
        match fs::rename(dir, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        sync_parent(dir)?;
        // The next start removes what this call cannot.
        let _ = storage::remove_all(&aside);
        Ok(())
    }

    /// Removes the folders that an earlier agent was removing.
    pub(crate) fn sweep(&self) {
        for entry in entries(&self.removed()) {
            let _ = fs::remove_dir_all(&entry);
            let _ = fs::remove_file(&entry);
        }
    }
}

/// Moves a staged folder to its place. All of its files are on the disk first.
///
/// # Errors
/// Fails when a file cannot be synced, or when there is something at the place.
pub(crate) fn install(staged: &Path, to: &Path) -> io::Result<()> {
    for path in entries(staged) {
        // A read-only file of another owner cannot be opened for writing, and needs no writing.
        File::open(path)?.sync_all()?;
    }
    File::open(staged)?.sync_all()?;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::rename(staged, to)?;
    sync_parent(to)
}

/// Makes an empty folder, in place of any other at the path.
///
/// # Errors
/// Fails when the earlier folder cannot be removed.
pub(crate) fn empty(dir: &Path) -> io::Result<()> {
    storage::remove_all(dir)?;
    fs::create_dir_all(dir)
}

/// Lists the paths in a folder; a missing folder is empty.
pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Returns a path's last name, read as a value.
pub(crate) fn named<T: std::str::FromStr>(path: &Path) -> Option<T> {
    path.file_name()?.to_str()?.parse().ok()
}

pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Returns the milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
