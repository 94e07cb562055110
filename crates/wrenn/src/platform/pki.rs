//! The platform's own authority in files, which are created once and then read.

use anyhow::Context;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Returns the paths of the authority's certificate and key below a folder.
pub(crate) fn paths(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("pki/ca.crt"), dir.join("pki/ca.key"))
}

/// Creates an authority. Returns `false` when one exists already, which stays.
pub(crate) fn init(dir: &Path) -> anyhow::Result<bool> {
    let (cert, key) = paths(dir);
    if cert.exists() {
        return Ok(false);
    }
    let folder = dir.join("pki");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let made = ::pki::Authority::generate()?;
    // The certificate is written last: its presence means that the key is complete.
    write(&key, &made.key_pem)?;
    write(&cert, &made.cert_pem)?;
    Ok(true)
}

/// Returns the authority's certificate and key. Creates them if necessary.
pub(super) fn own(dir: &Path) -> anyhow::Result<(String, String)> {
    init(dir).context("cannot create the platform's authority")?;
    let (cert, key) = paths(dir);
    let read = |path: &Path| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok((read(&cert)?, read(&key)?))
}

/// Issues a certificate for a domain and the names right below it. The folder's authority signs it,
/// and is created if necessary. Returns the paths of the certificate and its key.
pub(crate) fn wildcard(dir: &Path, domain: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
    let (certs, key) = own(dir)?;
    let made = ::pki::Authority::load(&certs, &key)?.wildcard(domain)?;
    let at = |kind: &str| dir.join(format!("pki/wildcard.{kind}"));
    write(&at("key"), &made.key_pem)?;
    write(&at("crt"), &made.cert_pem)?;
    Ok((at("crt"), at("key")))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let what = || format!("cannot write {}", path.display());
    daemon::write_private(path, text.as_bytes()).with_context(what)
}
