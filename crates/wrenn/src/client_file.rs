//! File by which the commands find the platform on the machine where it runs. The file holds the
//! platform's URL and a key or a user's session. Only its owner can read it.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Contents of the file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClientFile {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// Token of the signed-in user's session. It takes precedence over the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Id of the team that the user has chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
}

/// Returns the file's path: `WRENN_CLIENT_FILE`, or `wrenn/client.json` in the user's configuration
/// folder. `var` reads the environment.
pub(crate) fn path(var: impl Fn(&str) -> Option<String>) -> PathBuf {
    if let Some(path) = var("WRENN_CLIENT_FILE") {
        return path.into();
    }
    let config = var("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = || PathBuf::from(var("HOME").unwrap_or_else(|| "/root".to_owned()));
    config.unwrap_or_else(|| home().join(".config")).join("wrenn/client.json")
}

impl ClientFile {
    /// Reads the file. Returns `None` when there is no readable file.
    pub(crate) fn load(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Replaces the file atomically.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let what = || format!("cannot write {}", path.display());
        let dir = path.parent().with_context(what)?;
        fs::create_dir_all(dir).with_context(what)?;
        daemon::write_private(path, &serde_json::to_vec_pretty(self)?).with_context(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn client_file_round_trips_and_is_private_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/client.json");
        assert!(ClientFile::load(&path).is_none());
        let file = ClientFile {
            url: "http://127.0.0.1:1".into(),
            api_key: Some("k".into()),
            session: None,
            team: None,
        };
        file.save(&path).unwrap();
        file.save(&path).unwrap();
        assert!(ClientFile::load(&path) == Some(file));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn client_file_path_follows_environment_variables() {
        let with = |name: &'static str, value: &'static str| {
            path(move |asked| (asked == name).then(|| value.to_owned()))
        };
        assert_eq!(with("HOME", "/h"), Path::new("/h/.config/wrenn/client.json"));
        assert_eq!(with("XDG_CONFIG_HOME", "/c"), Path::new("/c/wrenn/client.json"));
        assert_eq!(with("WRENN_CLIENT_FILE", "/f"), Path::new("/f"));
    }
}
