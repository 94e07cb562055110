//! Versions on this host: their list, and the bytes that they and a team take.

use super::engine::Shared;
use super::folders;
use crate::storage;
use crate::version::Version;
use std::collections::{HashMap, HashSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use types::{BuildId, TeamId};

/// A version on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub id: BuildId,
    pub team: String,
    /// Bytes that no other version shares.
    pub bytes: u64,
    /// True if the store has the whole version.
    pub stored: bool,
}

impl Shared {
    /// Lists the versions on this host.
    pub(super) fn versions(&self) -> Vec<Listed> {
        let (bytes, stored) = (self.version_bytes(), self.guests.stored());
        let listed = bytes.into_iter().filter_map(|(id, bytes)| {
            let version = Version::load(&self.folders.version(id)).ok().flatten()?;
            let stored = stored.contains(&id);
            Some(Listed { id, team: version.team, bytes, stored })
        });
        listed.collect()
    }

    /// Returns the bytes on disk of each version that no other version shares.
    pub(super) fn version_bytes(&self) -> HashMap<BuildId, u64> {
        let ids = folders::entries(&self.folders.versions());
        let ids = ids.iter().filter_map(|path| folders::named::<BuildId>(path));
        let files: HashMap<BuildId, Vec<Metadata>> =
            ids.map(|id| (id, files(&self.folders.version(id)))).collect();
        let mut users: HashMap<(u64, u64), u32> = HashMap::new();
        for file in files.values().flatten() {
            *users.entry((file.dev(), file.ino())).or_default() += 1;
        }
        let own = |file: &&Metadata| users.get(&(file.dev(), file.ino())) == Some(&1);
        let sum =
            |files: &[Metadata]| files.iter().filter(own).map(|file| file.blocks() * 512).sum();
        files.iter().map(|(id, files)| (*id, sum(files))).collect()
    }

    /// Returns the bytes on disk of a team's layers, and of all files of its versions.
    pub(super) fn team_bytes(&self, team: TeamId) -> u64 {
        let mut seen = HashSet::new();
        let layers = storage::used(&self.folders.layers().join(team.to_string()), &mut seen);
        let versions = folders::entries(&self.folders.versions());
        let owned = versions.iter().filter(|dir| {
            let version = Version::load(dir).ok().flatten();
            version.is_some_and(|version| version.team == team.to_string())
        });
        let files: Vec<Metadata> = owned.flat_map(|dir| files(dir)).collect();
        let new = files.iter().filter(|file| seen.insert(file.ino()));
        layers + new.map(|file| file.blocks() * 512).sum::<u64>()
    }
}

fn files(dir: &Path) -> Vec<Metadata> {
    folders::entries(dir).iter().filter_map(|path| path.metadata().ok()).collect()
}
