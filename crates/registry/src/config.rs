//! The configuration of an image: its environment, user, commands, and its layers' plain digests.
//! Pure.

use crate::digest::Digest;
use crate::manifest::{Refusal, malformed};
use crate::platform::Platform;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

/// Largest configuration, in bytes.
pub(crate) const CONFIG_MAX: u64 = 4 << 20;

/// Configuration of an image. Empty fields were absent. All values are the author's and unchecked,
/// except that none has a NUL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Variables, each as `NAME=value`.
    pub env: Vec<String>,
    /// User as `name`, `uid`, `name:group` or `uid:gid`.
    pub user: String,
    pub working_dir: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// Shell of a Dockerfile's commands in shell form.
    pub shell: Vec<String>,
    /// Instructions for builds that begin with this image.
    pub on_build: Vec<String>,
    pub volumes: Vec<String>,
    /// Ports, each as `80/tcp`.
    pub exposed_ports: Vec<String>,
    pub stop_signal: String,
    pub labels: BTreeMap<String, String>,
    /// Digests of the layers' tar archives without compression, lowest layer first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<RawConfig>,
    rootfs: RawRoot,
}

#[derive(Deserialize)]
struct RawRoot {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    shell: Option<Vec<String>>,
    on_build: Option<Vec<String>>,
    volumes: Option<BTreeMap<String, IgnoredAny>>,
    exposed_ports: Option<BTreeMap<String, IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// Parses a configuration, for a platform and a number of layers.
///
/// # Errors
/// Returns the reason why the configuration is not taken.
pub(crate) fn parse(bytes: &[u8], platform: &Platform, layers: usize) -> Result<Config, Refusal> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
    let variant = raw.variant.as_deref().unwrap_or("");
    if platform.rank(&raw.os, &raw.architecture, variant).is_none() {
        let found = format!("{}/{} {variant}", raw.os, raw.architecture);
        return Err(Refusal::WrongPlatform {
            wanted: platform.architecture.clone(),
            found: crate::manifest::shown(found.trim_end()),
        });
    }
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() != layers {
        return Err(Refusal::LayersDiffer { diff_ids: diff_ids.len(), layers });
    }
    let inner = raw.config.unwrap_or_default();
    let keys = |map: Option<BTreeMap<String, IgnoredAny>>| {
        map.map_or_else(Vec::new, |map| map.into_keys().collect())
    };
    let config = Config {
        env: inner.env.unwrap_or_default(),
        user: inner.user.unwrap_or_default(),
        working_dir: inner.working_dir.unwrap_or_default(),
        entrypoint: inner.entrypoint.unwrap_or_default(),
        cmd: inner.cmd.unwrap_or_default(),
        shell: inner.shell.unwrap_or_default(),
        on_build: inner.on_build.unwrap_or_default(),
        volumes: keys(inner.volumes),
        exposed_ports: keys(inner.exposed_ports),
        stop_signal: inner.stop_signal.unwrap_or_default(),
        labels: inner.labels.unwrap_or_default(),
        diff_ids,
    };
    no_nul(&config)?;
    Ok(config)
}

/// Refuses NULs. They would cut an argument or a path where the guest takes it.
fn no_nul(config: &Config) -> Result<(), Refusal> {
    let text =
        |name, text: &String| if text.contains('\0') { Err(Refusal::Nul(name)) } else { Ok(()) };
    for (name, list) in [
        ("Env", &config.env),
        ("Entrypoint", &config.entrypoint),
        ("Cmd", &config.cmd),
        ("Shell", &config.shell),
        ("OnBuild", &config.on_build),
        ("Volumes", &config.volumes),
        ("ExposedPorts", &config.exposed_ports),
    ] {
        list.iter().try_for_each(|item| text(name, item))?;
    }
    let labels = config.labels.iter().flat_map(|(key, value)| [key, value]);
    labels.into_iter().try_for_each(|item| text("Labels", item))?;
    text("User", &config.user)?;
    text("WorkingDir", &config.working_dir)?;
    text("StopSignal", &config.stop_signal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn platform() -> Platform {
        Platform { architecture: "amd64".into(), level: 1 }
    }

    fn raw() -> Value {
        json!({
            "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z",
            "config": {
                "Env": ["PATH=/bin"], "User": "1000:1000", "Cmd": ["sh"], "Entrypoint": null,
                "Volumes": {"/data": {}}, "Labels": null, "WorkingDir": "/w",
            },
            "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(b"x")]},
        })
    }

    fn read(value: &Value, layers: usize) -> Result<Config, Refusal> {
        parse(value.to_string().as_bytes(), &platform(), layers)
    }

    #[test]
    fn configuration_with_nulls_is_read() {
        let config = read(&raw(), 1).unwrap();
        assert_eq!(config.env, ["PATH=/bin"]);
        assert_eq!((config.volumes, config.entrypoint), (vec!["/data".to_owned()], vec![]));
        let bare = json!({"architecture": "amd64", "os": "linux", "rootfs": {}});
        assert_eq!(read(&bare, 0).unwrap(), Config::default());
    }

    #[test]
    fn configuration_that_does_not_fit_is_refused() {
        assert_eq!(read(&raw(), 2), Err(Refusal::LayersDiffer { diff_ids: 1, layers: 2 }));
        let mut arm = raw();
        arm["architecture"] = json!("arm64");
        assert!(matches!(read(&arm, 1), Err(Refusal::WrongPlatform { .. })));
        let mut windows = raw();
        windows["os"] = json!("windows");
        assert!(matches!(read(&windows, 1), Err(Refusal::WrongPlatform { .. })));
        let mut nul = raw();
        nul["config"]["Env"] = json!(["A=\u{0}"]);
        assert_eq!(read(&nul, 1), Err(Refusal::Nul("Env")));
        assert!(matches!(read(&json!({}), 0), Err(Refusal::Malformed(_))));
    }
}
