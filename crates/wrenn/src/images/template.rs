//! The template `base`: Debian in one read-only image, built from `images/base`.

use super::{Store, text};
use crate::sys::Run;
use rootfs::{Converter, Limits};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const SUITE: &str = "bookworm";
const PACKAGES: &str = include_str!("../../../../images/base/packages");
const CUSTOMIZE: &str = include_str!("../../../../images/base/customize.sh");
/// Version of the way an image is built. Raise it with each change.
const RECIPE: &[u8] = b"3";
/// Name of the root image.
const IMAGE: &str = "rootfs.erofs";

/// Builds `images/templates/base`.
pub(super) fn ensure(store: &Store, refresh: bool) -> anyhow::Result<()> {
    let writer = rootfs::FORMAT.to_string();
    let (sources, writer) = ([SUITE, PACKAGES, CUSTOMIZE].map(str::as_bytes), writer.as_bytes());
    let inputs = [sources[0], sources[1], sources[2], RECIPE, writer];
    let path = store.path("base", &inputs);
    store.ensure(&path, "the template base (Debian)", refresh, make)?;
    store.publish(&path, "templates/base")
}

fn make(dir: &Path) -> anyhow::Result<()> {
    let script = dir.join("customize.sh");
    fs::write(&script, CUSTOMIZE)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
    let packages: Vec<&str> =
        PACKAGES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let run = Run::new("mmdebstrap", &["--mode=root", "--variant=minbase", "--format=tar"])
        .arg(format!("--include={}", packages.join(",")))
        .arg("--dpkgopt=path-exclude=/usr/share/{man,locale,doc}/*")
        .arg(format!("--customize-hook={}", text(&script)?))
        .arg(SUITE)
        .arg("-");
    let out = File::options().read(true).write(true).create_new(true).open(dir.join(IMAGE))?;
    run.stream(|archive| convert(archive, out))?;
    Ok(fs::remove_file(&script)?)
}

/// Makes the root image of an archive, as agents make those of container images.
fn convert(archive: impl Read, out: File) -> anyhow::Result<()> {
    // The archive's own digest is known only at its end. The image's UUID has no other use.
    let digest = Sha256::digest([SUITE, PACKAGES, CUSTOMIZE].join("\n")).into();
    let converter = Converter::new(out, digest, Limits::default())?;
    converter.layer(archive, None)?.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn archive_becomes_an_erofs() {
        let out = tempfile::tempfile().unwrap();
        convert(&[0u8; 1024][..], out.try_clone().unwrap()).unwrap();
        let mut magic = [0; 4];
        out.read_exact_at(&mut magic, 1024).unwrap();
        assert_eq!(magic, [0xe2, 0xe1, 0xf5, 0xe0]);
        assert!(convert(&b"no archive"[..], tempfile::tempfile().unwrap()).is_err());
    }
}
