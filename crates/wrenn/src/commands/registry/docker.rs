//! Logins that `docker login` stored in its configuration file. Credential helpers are other
//! programs, and are not run.

use crate::output;
use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of Docker Hub in the file.
const HUB: &str = "https://index.docker.io/v1/";

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ConfigFile {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    /// User and password, joined by a colon, in Base64.
    auth: Option<String>,
}

/// Finds user name and password of a registry. `var` reads the environment.
pub(super) fn find(
    registry: &str,
    var: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<(String, String)> {
    let folder = var("DOCKER_CONFIG").map(PathBuf::from);
    let home = || var("HOME").map(|home| Path::new(&home).join(".docker"));
    let folder = folder.or_else(home).context("neither DOCKER_CONFIG nor HOME is set")?;
    let path = folder.join("config.json");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    // The error of a parser may hold a part of the file, which has secrets.
    let Ok(file) = serde_json::from_slice::<ConfigFile>(&bytes) else {
        anyhow::bail!("{} is no configuration of Docker", path.display());
    };
    of_file(&file, registry).with_context(|| path.display().to_string())
}

fn of_file(file: &ConfigFile, registry: &str) -> anyhow::Result<(String, String)> {
    let is_hub = matches!(registry, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let mut names = vec![registry.to_owned(), format!("https://{registry}")];
    names.extend(is_hub.then(|| HUB.to_owned()));
    let auth = names.iter().find_map(|name| file.auths.get(name)?.auth.as_deref());
    if let Some(auth) = auth.filter(|auth| !auth.is_empty()) {
        let text = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|text| text.split_once(':'));
        let (name, password) = pair.context("the login is no Base64 of user and password")?;
        let password = password.trim_end_matches('\0');
        return Ok((name.to_owned(), password.to_owned()));
    }
    let helper = names.iter().find_map(|name| file.cred_helpers.get(name));
    if let Some(helper) = helper.or(file.creds_store.as_ref()) {
        return Err(output::usage(format!(
            "Docker keeps the login to {registry} in docker-credential-{helper}; give it by \
             --username and --password-stdin"
        )));
    }
    Err(output::not_found(format!("docker login has stored no login to {registry}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(registry: &str) -> anyhow::Result<(String, String)> {
        let text = serde_json::json!({
            "auths": {
                "ghcr.io": {"auth": STANDARD.encode("ada:a:b")},
                HUB: {"auth": STANDARD.encode("bob:c")},
                "bad.example": {"auth": "%"},
                "gcr.io": {},
            },
            "credHelpers": {"gcr.io": "gcloud"},
        });
        of_file(&serde_json::from_value(text).unwrap(), registry)
    }

    #[test]
    fn stored_login_is_found_by_its_registry() {
        assert_eq!(found("ghcr.io").unwrap(), ("ada".to_owned(), "a:b".to_owned()));
        assert_eq!(found("docker.io").unwrap(), ("bob".to_owned(), "c".to_owned()));
    }

    #[test]
    fn login_of_a_helper_is_refused_with_the_remedy() {
        let error = found("gcr.io").unwrap_err().to_string();
        assert!(error.contains("docker-credential-gcloud") && error.contains("--password-stdin"));
        assert!(found("bad.example").unwrap_err().to_string().contains("Base64"));
        assert!(found("quay.io").unwrap_err().to_string().contains("no login"));
    }
}
