//! Versions of templates on this host. A version is a folder that holds its image, the disks of its
//! steps, and a description. All of them are links to files by contents, and none ever changes.
//!
//! ```text
//!  images/templates/{version}/rootfs.erofs   link to images/store/oci-…/image.erofs
//!                             layer-1.ext4 … links to disks of builds or capsules, lowest first
//!                             version.json   this file's `Version`
//! ```

use crate::config;
use crate::storage::{self, LAYERS_MAX};
use protocol::lower::{FOLDERS_MAX, Folders, Lower};
use recipe::{Command, Config, Dialect};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};
use types::BuildId;

/// Name of the description in a version's folder.
pub(crate) const FILE: &str = "version.json";
/// End of the name of a version's folder that is being removed.
const REMOVED: &str = ".removed";

/// Description of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    pub id: BuildId,
    /// Team that made the version.
    pub team: String,
    /// Name of the template.
    pub template: String,
    /// Folders of each disk of steps, lowest first. The disk `n` is the file `layer-n.ext4`, from 1.
    pub layers: Vec<Folders>,
    /// Environment, user and folder of the version's programs.
    pub config: Config,
    /// Rules of the build, which choose the shell of start and ready commands.
    pub dialect: Dialect,
    /// Set if programs of capsules get the build's own variables too.
    pub env_at_run: bool,
    pub start: Option<Command>,
    pub ready: Option<Command>,
    /// Configuration of start and ready commands that came from the base; `None` if they run with
    /// `config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands_config: Option<Config>,
    /// Set if the start command runs after each restore.
    pub start_each: bool,
    /// Time within which the ready command must succeed, in seconds.
    pub ready_within_sec: u32,
}

impl Version {
    /// Reads the description in a version's folder. `None` for a template of the operator's.
    ///
    /// # Errors
    /// Fails when the description is damaged.
    pub(crate) fn load(dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(dir.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the description of the version `id`.
    ///
    /// # Errors
    /// Fails when this host lacks the version, or its description is damaged.
    pub(crate) fn find(config: &config::Config, id: BuildId) -> io::Result<Self> {
        let found = Self::load(&folder(config, id))?.ok_or(io::ErrorKind::NotFound)?;
        match found.id == id && found.is_valid() {
            true => Ok(found),
            false => Err(io::Error::other(format!("the description of {id} is not valid"))),
        }
    }

    /// Reports whether a machine can have the version's disks and folders.
    pub(crate) fn is_valid(&self) -> bool {
        self.layers.len() <= LAYERS_MAX && self.lower().from_top().len() <= FOLDERS_MAX
    }

    /// Returns the folders below a guest of this version, as envd gets them.
    pub(crate) fn lower(&self) -> Lower {
        Lower((1..).zip(self.layers.iter().cloned()).collect())
    }

    /// Returns the environment of every program in a guest of this version.
    pub(crate) fn envs(&self) -> BTreeMap<String, String> {
        let mut envs = self.config.env.clone();
        if self.env_at_run {
            envs.extend(self.config.build_env.clone());
        }
        envs
    }

    /// Reports whether a machine of this version runs commands before it serves.
    pub(crate) fn has_commands(&self) -> bool {
        self.start.is_some() || self.ready.is_some()
    }

    /// Returns the time within which the version must become ready.
    pub(crate) fn ready_within(&self) -> Duration {
        Duration::from_secs(self.ready_within_sec.into()).min(recipe::start::READY_WITHIN_MAX)
    }
}

/// Returns the folder of a version.
pub(crate) fn folder(config: &config::Config, id: BuildId) -> PathBuf {
    config.templates().join(id.to_string())
}

/// Returns the path of a version's disk of steps, by its number from 1.
pub(crate) fn layer(dir: &Path, number: usize) -> PathBuf {
    dir.join(storage::layer_name(number))
}

/// Lists the complete versions of this host.
pub(crate) fn existing(config: &config::Config) -> Vec<BuildId> {
    let entries = fs::read_dir(config.templates()).into_iter().flatten().flatten();
    let complete = entries.filter(|entry| entry.path().join(FILE).exists());
    complete.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Removes a version's folder; a missing folder is success. Capsules and snapshots of the version
/// have links of their own to its files. A rename comes first, so that no half of a version is
/// found after a crash.
pub(crate) fn remove(config: &config::Config, id: BuildId) -> io::Result<()> {
    let dir = folder(config, id);
    let gone = config.templates().join(format!("{id}{REMOVED}"));
    storage::remove_all(&gone)?;
    match fs::rename(dir, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.and_then(|()| storage::remove_all(&gone)),
    }
}

/// Removes what removals of versions left when they were cut short.
pub(crate) fn sweep(config: &config::Config) {
    for entry in fs::read_dir(config.templates()).into_iter().flatten().flatten() {
        let is_left = entry.file_name().to_str().is_some_and(|name| name.ends_with(REMOVED));
        if is_left && let Err(error) = storage::remove_all(&entry.path()) {
            tracing::warn!(%error, "cannot remove the rest of a version");
        }
    }
}

/// Returns a description for tests, with one disk of steps.
#[cfg(test)]
pub(crate) fn example(id: BuildId) -> Version {
    Version {
        id,
        team: "owners".to_owned(),
        template: "web".to_owned(),
        layers: vec![Folders::Steps(vec![1, 2])],
        config: Config {
            env: BTreeMap::from([("A".to_owned(), "image".to_owned())]),
            build_env: BTreeMap::from([("B".to_owned(), "build".to_owned())]),
            user: Some("app".to_owned()),
            workdir: Some("/srv".to_owned()),
            ..Config::default()
        },
        dialect: Dialect::Steps,
        env_at_run: false,
        start: None,
        ready: None,
        commands_config: None,
        start_each: false,
        ready_within_sec: 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::AgentContext;
    use crate::vmm::null::NullDriver;

    #[test]
    fn version_is_found_by_its_id_and_removed_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let config = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 })).config;
        let id = BuildId::new();
        assert!(Version::find(&config, id).is_err());
        let at = folder(&config, id);
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join(FILE), serde_json::to_vec(&example(id)).unwrap()).unwrap();
        fs::write(layer(&at, 1), [1; 8192]).unwrap();
        let found = Version::find(&config, id).unwrap();
        assert_eq!((found.lower().to_string().as_str(), existing(&config)), ("1/1-2", vec![id]));
        assert_eq!(storage::templates(&config), Vec::<String>::new(), "a version is no template");
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        storage::link_layers(&[layer(&at, 1)], &own).unwrap();
        for _ in 0..2 {
            remove(&config, id).unwrap();
        }
        assert_eq!(existing(&config), Vec::new());
        assert_eq!(fs::read(layer(&own, 1)).unwrap().len(), 8192, "a capsule has its own link");
        let left = config.templates().join(format!("{id}{REMOVED}"));
        fs::create_dir_all(&left).unwrap();
        sweep(&config);
        assert!(!left.exists());
    }

    #[test]
    fn version_with_too_many_disks_or_another_id_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 })).config;
        let id = BuildId::new();
        let at = folder(&config, id);
        fs::create_dir_all(&at).unwrap();
        let many = Version { layers: vec![Folders::Upper; LAYERS_MAX + 1], ..example(id) };
        for wrong in [many, example(BuildId::new())] {
            fs::write(at.join(FILE), serde_json::to_vec(&wrong).unwrap()).unwrap();
            assert!(Version::find(&config, id).is_err());
        }
    }

    #[test]
    fn variables_of_the_build_are_exported_only_on_request() {
        let version = example(BuildId::new());
        assert_eq!(version.envs().len(), 1);
        let exported = Version { env_at_run: true, ..version };
        assert_eq!(exported.envs()["B"], "build");
    }
}
