//! Settings of registries, which the operator writes. Here they are checked, and the files that they
//! name are read.

use crate::error::{Error, Result};
use crate::login::Login;
use crate::platform::Platform;
use crate::reference::{Reference, host};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest file of certificates or keys, in bytes.
const PEM_MAX: u64 = 1 << 20;

/// All settings of this crate. Every field may be left out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Settings by host, such as `docker.io` or `registry.example:5000`. An entry may also name a
    /// token server or a storage of blobs, to permit its address.
    pub registries: BTreeMap<String, RegistrySettings>,
    /// Other names for images. The first entry that fits applies.
    pub rewrites: Vec<Rewrite>,
    /// Images that may be pulled, by the names that users write.
    pub access: AccessList,
    pub limits: Limits,
    /// Platform of the guests. The default is this machine's.
    pub platform: Option<Platform>,
    /// URL of ECR's API, in place of AWS's public one for the login's region.
    pub ecr_endpoint: Option<String>,
}

/// Settings of one host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySettings {
    /// Registries that are asked first, in order, each as `host[:port][/prefix]`. The next is asked
    /// when one does not have the image, or fails.
    pub mirrors: Vec<String>,
    /// Permits plain HTTP, and uses it.
    pub http: bool,
    /// PEM file of authorities, in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of a client certificate, with its chain.
    pub client_certificate: Option<PathBuf>,
    /// PEM file of the certificate's key. Without it, `client_certificate` holds both.
    pub client_key: Option<PathBuf>,
    /// Permits private addresses of this host and port.
    pub private: bool,
    /// Login for pulls that bring none.
    pub login: Option<Login>,
}

/// A change of the names of images.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewrite {
    /// Beginning of the names that are changed, such as `docker.io/library/`.
    pub from: String,
    /// The text in its place, such as `mirror.example/hub/`.
    pub to: String,
}

/// Lists of images that may be pulled. An entry is `*`, a host, or `*.` and a domain. After a `/`
/// may stand the first parts of a repository.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessList {
    /// An empty list permits every image.
    pub allow: Vec<String>,
    /// Images that are refused, even if `allow` names them.
    pub deny: Vec<String>,
}

/// Highest limit of an image's unpacked bytes.
const UNPACKED_MAX: u64 = 32 << 30;

/// Limits of one image.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most bytes of all layers, compressed.
    pub image_bytes: u64,
    /// Most bytes of all layers unpacked, and of the image that they make. The reader of the layers
    /// holds to it, since this crate unpacks none.
    pub unpacked_bytes: u64,
    /// Most layers. Docker's own limit is 127.
    pub layers: usize,
    /// Longest wait for any next byte.
    pub idle_timeout_ms: u64,
    /// Longest time of a pull.
    pub pull_timeout_ms: u64,
    /// Most tries of a request. A layer that breaks off counts anew after each MiB.
    pub tries: u32,
    /// Longest wait that a registry may ask for with `Retry-After`.
    pub retry_after_max_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            image_bytes: 10 << 30,
            unpacked_bytes: 10 << 30,
            layers: 128,
            idle_timeout_ms: 30_000,
            pull_timeout_ms: 30 * 60 * 1000,
            tries: 4,
            retry_after_max_ms: 60_000,
        }
    }
}

impl Limits {
    pub(crate) fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    pub(crate) fn pull(&self) -> Duration {
        Duration::from_millis(self.pull_timeout_ms)
    }
}

impl Settings {
    /// Checks all names and limits, and writes the hosts in their normal form.
    ///
    /// # Errors
    /// Returns `Settings` with the field at fault.
    pub(crate) fn normalized(mut self) -> Result<Self> {
        let mut registries = BTreeMap::new();
        for (name, registry) in self.registries {
            let field = format!("registries.\"{name}\"");
            let name = host(&name).ok_or_else(|| wrong(&field, "it is no host"))?;
            for mirror in &registry.mirrors {
                Mirror::parse(mirror).ok_or_else(|| {
                    wrong(&format!("{field}.mirrors"), "a mirror is `host[:port][/prefix]`")
                })?;
            }
            if let Some(login) = &registry.login {
                login.check(&name)?;
            }
            registries.insert(name, registry);
        }
        self.registries = registries;
        for rewrite in &self.rewrites {
            if !rewrite.from.contains('/') || !rewrite.to.contains('/') {
                return Err(wrong("rewrites", "`from` and `to` begin with a host and a `/`"));
            }
        }
        let limits = &self.limits;
        let waits = [limits.idle_timeout_ms, limits.pull_timeout_ms, u64::from(limits.tries)];
        if waits.contains(&0) {
            return Err(wrong("limits", "times and tries are at least 1"));
        }
        // Later deadlines than this could not be computed.
        if limits.pull_timeout_ms > 24 * 3600 * 1000 || limits.idle_timeout_ms > 3600 * 1000 {
            return Err(wrong("limits", "a pull takes at most 24 h, an idle time 1 h"));
        }
        if limits.layers > 500 {
            return Err(wrong("limits.layers", "an image has at most 500 layers"));
        }
        if limits.unpacked_bytes > UNPACKED_MAX {
            return Err(wrong("limits.unpacked_bytes", "an image has at most 32 GiB"));
        }
        Ok(self)
    }

    /// Returns the settings of a host, if there are any.
    pub(crate) fn registry(&self, host: &str) -> Option<&RegistrySettings> {
        self.registries.get(host)
    }

    /// Applies the first rewrite that fits.
    ///
    /// # Errors
    /// Returns `Settings` when the new name is none.
    pub(crate) fn rewritten(&self, reference: &Reference) -> Result<Reference> {
        let name = reference.name();
        let fitting = self.rewrites.iter().find_map(|rewrite| {
            name.strip_prefix(&rewrite.from).map(|rest| format!("{}{rest}", rewrite.to))
        });
        match fitting {
            None => Ok(reference.clone()),
            Some(renamed) => reference
                .renamed(&renamed)
                .map_err(|e| wrong("rewrites", &format!("'{name}' becomes a bad name: {e}"))),
        }
    }
}

impl AccessList {
    /// Checks an image by its normalized name. Callers with lists for each team call this, too.
    ///
    /// # Errors
    /// Returns `NotAllowed`.
    pub fn check(&self, reference: &Reference) -> Result<()> {
        let fail = |why| Err(Error::NotAllowed { image: reference.name(), why });
        if self.deny.iter().any(|entry| fits(entry, reference)) {
            return fail("on the list `access.deny`");
        }
        if !self.allow.is_empty() && !self.allow.iter().any(|entry| fits(entry, reference)) {
            return fail("not on the list `access.allow`");
        }
        Ok(())
    }
}

fn fits(entry: &str, reference: &Reference) -> bool {
    let (hosts, prefix) = entry.split_once('/').unwrap_or((entry, ""));
    let hosts = hosts.to_ascii_lowercase();
    let host_fits = match hosts.strip_prefix('*') {
        Some("") => true,
        Some(domain) => domain.starts_with('.') && reference.registry().ends_with(domain),
        None => hosts == reference.registry(),
    };
    let prefix = prefix.trim_end_matches('/');
    let rest = reference.repository().strip_prefix(prefix);
    host_fits
        && rest.is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

/// A mirror's host, and the beginning of its repositories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub host: String,
    pub prefix: String,
}

impl Mirror {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, prefix) = text.split_once('/').unwrap_or((text, ""));
        let host = host(name)?;
        let prefix = prefix.trim_end_matches('/').to_owned();
        // A whole name with this prefix must be a reference.
        let probe = if prefix.is_empty() { "x".to_owned() } else { format!("{prefix}/x") };
        format!("localhost/{probe}").parse::<Reference>().ok()?;
        Some(Self { host, prefix })
    }

    /// Returns the repository's path at this mirror.
    pub(crate) fn repository(&self, of: &str) -> String {
        if self.prefix.is_empty() { of.to_owned() } else { format!("{}/{of}", self.prefix) }
    }
}

/// Reads a PEM file.
///
/// # Errors
/// Returns `Settings` when the file cannot be read, or is too large.
pub(crate) fn read_pem(field: &str, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| file.take(PEM_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|e| wrong(field, &format!("{}: {e}", path.display())))?;
    if bytes.len() as u64 > PEM_MAX {
        return Err(wrong(field, &format!("{}: larger than 1 MiB", path.display())));
    }
    Ok(bytes)
}

pub(crate) fn wrong(field: &str, why: &str) -> Error {
    Error::Settings { field: field.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Result<Settings> {
        serde_json::from_str::<Settings>(json).unwrap().normalized()
    }

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn settings_are_read_from_json() {
        let text = r#"{
            "registries": {"Registry.example:5000": {"mirrors": ["m.example/hub"], "http": true,
                "login": {"type": "password", "username": "u", "password": "p"}}},
            "rewrites": [{"from": "docker.io/library/", "to": "m.example/hub/"}],
            "access": {"deny": ["evil.example"]},
            "limits": {"layers": 5},
            "platform": {"architecture": "arm64"}
        }"#;
        let settings = settings(text).unwrap();
        assert!(settings.registry("registry.example:5000").unwrap().http);
        assert_eq!((settings.limits.layers, settings.limits.tries), (5, 4));
        assert!(serde_json::from_str::<Settings>(r#"{"registry": {}}"#).is_err());
        assert!(!format!("{settings:?}").contains("\"p\""));
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        for wrong in [
            r#"{"registries": {"https://a.example": {}}}"#,
            r#"{"registries": {"a.example": {"mirrors": ["https://m.example"]}}}"#,
            r#"{"registries": {"a.example": {"mirrors": ["m.example/UP"]}}}"#,
            r#"{"rewrites": [{"from": "docker.io", "to": "m.example/"}]}"#,
            r#"{"limits": {"tries": 0}}"#,
            r#"{"limits": {"unpacked_bytes": 34359738369}}"#,
            r#"{"limits": {"pull_timeout_ms": 18446744073709551615}}"#,
        ] {
            assert!(settings(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn first_fitting_rewrite_renames_the_image() {
        let settings = settings(
            r#"{"rewrites": [{"from": "docker.io/library/", "to": "m.example:5000/hub/"},
                {"from": "docker.io/", "to": "m.example:5000/rest/"},
                {"from": "bad.example/", "to": "m.example/UP/"}]}"#,
        )
        .unwrap();
        let renamed = |text: &str| settings.rewritten(&reference(text)).unwrap().to_string();
        assert_eq!(renamed("ubuntu:22.04"), "m.example:5000/hub/ubuntu:22.04");
        assert_eq!(renamed("e2bdev/base"), "m.example:5000/rest/e2bdev/base:latest");
        assert_eq!(renamed("ghcr.io/a/b"), "ghcr.io/a/b:latest");
        assert!(settings.rewritten(&reference("bad.example/a")).is_err());
    }

    #[test]
    fn lists_fit_hosts_domains_and_whole_parts_of_repositories() {
        let allowed = |allow: &[&str], deny: &[&str], text: &str| {
            let owned = |list: &[&str]| list.iter().map(|entry| (*entry).to_owned()).collect();
            AccessList { allow: owned(allow), deny: owned(deny) }.check(&reference(text)).is_ok()
        };
        assert!(allowed(&[], &[], "ubuntu"));
        assert!(allowed(&["docker.io"], &[], "ubuntu"));
        assert!(!allowed(&["ghcr.io"], &[], "ubuntu"));
        assert!(!allowed(&["*"], &["docker.io"], "ubuntu"));
        assert!(allowed(&["ghcr.io/team"], &[], "ghcr.io/team/app"));
        assert!(!allowed(&["ghcr.io/team"], &[], "ghcr.io/team2/app"));
        assert!(allowed(&["*.example.com"], &[], "a.b.example.com/x"));
        assert!(!allowed(&["*.example.com"], &[], "evilexample.com/x"));
        assert!(!allowed(&["*"], &["*/library/ubuntu"], "ubuntu"));
    }

    #[test]
    fn mirror_puts_its_prefix_before_the_repository() {
        let mirror = Mirror::parse("m.example:5000/hub/").unwrap();
        assert_eq!(
            (mirror.host.as_str(), mirror.repository("a/b").as_str()),
            ("m.example:5000", "hub/a/b")
        );
        assert_eq!(Mirror::parse("m.example").unwrap().repository("a"), "a");
        for wrong in ["", "/x", "m.example/../x", "m.example//x", "m.example/x:tag"] {
            assert_eq!(Mirror::parse(wrong), None, "{wrong}");
        }
    }
}
