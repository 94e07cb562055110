//! Settings of an image's interpreter, and of the capsule that it runs in.

use anyhow::Context as _;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The settings of an image. envd starts the interpreter only if this file exists.
pub(crate) const FILE: &str = "/etc/wrenn/interpreter.json";
/// Largest settings file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Settings of an image's interpreter.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Name of the user that runs kernels. `None` is the interpreter's own user.
    pub user: Option<String>,
    /// Folder of contexts that name none. `None` is the capsule's own, else the user's home.
    pub cwd: Option<String>,
    /// Languages whose default contexts exist from the start.
    pub warm: Vec<String>,
    pub python: Python,
    pub node: Node,
    pub bash: Bash,
    /// Folders of Jupyter kernelspecs, in the order of precedence.
    pub kernels: Vec<PathBuf>,
    /// Most contexts.
    pub contexts: usize,
    /// Folder of the state file, and of each context's sockets.
    pub run: PathBuf,
}

/// The fork server of Python's kernels.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Python {
    pub command: Vec<String>,
    /// Folder of the package `wrenn_kernel`.
    pub path: PathBuf,
    /// Modules that the fork server imports.
    pub preload: Vec<String>,
}

/// The host of JavaScript and TypeScript.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Node {
    pub command: Vec<String>,
}

#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Bash {
    pub command: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            user: None,
            cwd: None,
            warm: words(&["python", "javascript"]),
            python: Python::default(),
            node: Node::default(),
            bash: Bash::default(),
            kernels: ["/usr/local/share/jupyter/kernels", "/usr/share/jupyter/kernels"]
                .map(PathBuf::from)
                .to_vec(),
            contexts: 32,
            run: PathBuf::from("/run/wrenn-interpreter"),
        }
    }
}

impl Default for Python {
    fn default() -> Self {
        let preload = ["numpy", "pandas", "matplotlib.pyplot", "PIL.Image", "IPython", "ipykernel"];
        Self {
            command: words(&["/usr/bin/python3", "-m", "wrenn_kernel.server"]),
            path: PathBuf::from("/usr/local/lib/wrenn/python"),
            preload: words(&preload),
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self { command: words(&["node", "/usr/local/lib/wrenn/node/host.mjs"]) }
    }
}

impl Default for Bash {
    fn default() -> Self {
        Self { command: words(&["/bin/bash"]) }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Settings {
    /// Reads the settings of a file. The image's own file may be absent; it then sets nothing.
    ///
    /// # Errors
    /// When a file cannot be read or is no settings file. The text names the field.
    pub(crate) fn read(file: Option<&Path>) -> anyhow::Result<Self> {
        let path = file.unwrap_or(Path::new(FILE));
        let size = match std::fs::metadata(path) {
            Ok(found) => found.len(),
            Err(e) if file.is_none() && e.kind() == ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        anyhow::ensure!(size <= FILE_MAX, "{} is larger than {FILE_MAX} bytes", path.display());
        let text =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let settings: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no settings file", path.display()))?;
        settings.check().with_context(|| format!("{}", path.display()))?;
        Ok(settings)
    }

    fn check(&self) -> anyhow::Result<()> {
        for (name, command) in [
            ("python.command", &self.python.command),
            ("node.command", &self.node.command),
            ("bash.command", &self.bash.command),
        ] {
            anyhow::ensure!(!command.is_empty(), "{name} is empty");
        }
        anyhow::ensure!((1..=256).contains(&self.contexts), "contexts must be from 1 to 256");
        anyhow::ensure!(self.warm.len() <= self.contexts, "warm has more entries than contexts");
        anyhow::ensure!(self.run.is_absolute(), "run must be an absolute path");
        Ok(())
    }
}

/// Settings of the capsule, which change while the interpreter runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Capsule {
    /// envd's token. Callers that send another one are refused.
    pub token: Option<String>,
    /// Variables of the capsule.
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// Folder in which programs of the capsule begin.
    pub workdir: Option<String>,
    /// Value of `PATH` in the template.
    pub path: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Settings> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Settings::read(Some(file.path()))
    }

    #[test]
    fn empty_settings_have_every_default() {
        let settings = read("{}").unwrap();
        assert_eq!(settings.warm, ["python", "javascript"]);
        assert_eq!(settings.contexts, 32);
        assert_eq!(settings.node.command[0], "node");
        assert!(settings.user.is_none());
    }

    #[test]
    fn wrong_settings_are_refused_by_the_name_of_the_field() {
        for (text, name) in [
            (r#"{"contxts": 3}"#, "contxts"),
            (r#"{"contexts": 0}"#, "contexts"),
            (r#"{"bash": {"command": []}}"#, "bash.command"),
            (r#"{"run": "x"}"#, "run"),
            (r#"{"contexts": 1}"#, "warm"),
            ("{", "no settings file"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(name), "{text}: {error}");
        }
        assert!(Settings::read(Some(Path::new("/nonexistent"))).is_err());
    }

    #[test]
    fn capsule_settings_may_lack_every_field() {
        let capsule: Capsule = serde_json::from_str("{}").unwrap();
        assert_eq!(capsule, Capsule::default());
    }
}
