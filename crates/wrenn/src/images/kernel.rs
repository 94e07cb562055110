//! The distribution's kernel, out of its package and never installed on the host: the image
//! uncompressed, for direct boot, and the modules that a guest needs.

use super::{Store, remove, text};
use crate::sys::Run;
use anyhow::Context;
use std::fs;
use std::path::{Path, PathBuf};

/// The package that always depends on the newest kernel for machines without hardware.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// In the order in which they load; each needs only those before it.
const MODULES: [&str; 11] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_mmio.ko",
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/char/hw_random/virtio-rng.ko",
    "fs/overlayfs/overlay.ko",
    "net/ipv4/inet_diag.ko",
    "net/ipv4/tcp_diag.ko",
];
pub(super) const IMAGE: &str = "vmlinux";
pub(super) const ORDER: &str = "order";

/// A folder with `vmlinux`, the modules, and `order`.
pub(super) fn ensure(store: &Store, refresh: bool) -> anyhow::Result<PathBuf> {
    let path = store.path("kernel", &[PACKAGE.as_bytes(), MODULES.join("\n").as_bytes()]);
    store.ensure(&path, "the guest's kernel", refresh, make)?;
    store.forget_others(&path)?;
    Ok(path)
}

fn make(dir: &Path) -> anyhow::Result<()> {
    let package = newest()?;
    let unpacked = dir.join("unpacked");
    fs::create_dir_all(&unpacked)?;
    // Downloads as root: the folder is ours alone.
    let download = ["-q", "-o", "APT::Sandbox::User=root", "download", &package];
    Run::new("apt-get", &download).dir(dir).output()?;
    let deb = fs::read_dir(dir)?.flatten().map(|e| e.path());
    let deb = deb.filter(|p| p.extension().is_some_and(|e| e == "deb")).max();
    let deb = deb.with_context(|| format!("apt-get downloaded no {package}"))?;
    Run::new("dpkg-deb", &["-x"]).arg(text(&deb)?).arg(text(&unpacked)?).output()?;
    let version = package.strip_prefix("linux-image-").unwrap_or(&package);
    let image = fs::read(unpacked.join(format!("boot/vmlinuz-{version}")))?;
    fs::write(dir.join(IMAGE), decompress(&image)?)?;
    let mut order = String::new();
    for module in MODULES {
        let from = unpacked.join(format!("lib/modules/{version}/kernel/{module}"));
        let name = module.rsplit_once('/').map_or(module, |(_, name)| name);
        fs::copy(&from, dir.join(name)).with_context(|| format!("taking out {module}"))?;
        order.push_str(name);
        order.push('\n');
    }
    fs::write(dir.join(ORDER), order)?;
    fs::write(dir.join("version"), version)?;
    fs::remove_file(deb)?;
    remove(&unpacked)
}

/// The name of the newest kernel's package.
fn newest() -> anyhow::Result<String> {
    let ask = || Run::new("apt-cache", &["depends", PACKAGE]).output();
    let mut answer = ask().unwrap_or_default();
    if parse_depends(&answer).is_none() {
        Run::new("apt-get", &["-q", "update"]).output()?;
        answer = ask()?;
    }
    parse_depends(&answer).with_context(|| format!("no package source has {PACKAGE}"))
}

fn parse_depends(answer: &str) -> Option<String> {
    let mut names = answer.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with("linux-image-")).map(ToOwned::to_owned)
}

/// Takes the kernel out of a bzImage, whose layout is the kernel's `Documentation/arch/x86/
/// boot.rst`; its payload is in LZ4's legacy frame: blocks of at most 8 MiB, each after its
/// size, and last the size of all.
fn decompress(image: &[u8]) -> anyhow::Result<Vec<u8>> {
    const LEGACY_FRAME: u32 = 0x184C_2102;
    const BLOCK_MAX: usize = 8 << 20;
    let word = |bytes: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let short = "the kernel's image is cut short";
    anyhow::ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "this is no kernel image");
    let sectors = match image[0x1f1] {
        0 => 4,
        given => usize::from(given),
    };
    let offset = word(image, 0x248).context(short)? as usize;
    let length = word(image, 0x24c).context(short)? as usize;
    let start = (sectors + 1) * 512 + offset;
    let payload = image.get(start..start + length).context(short)?;
    let magic = word(payload, 0).context(short)?;
    anyhow::ensure!(magic == LEGACY_FRAME, "the kernel is compressed in a form other than LZ4");
    let (mut kernel, mut at) = (Vec::new(), 4);
    while at + 4 < payload.len() {
        let size = word(payload, at).context(short)? as usize;
        let block = payload.get(at + 4..at + 4 + size).context(short)?;
        kernel.extend(lz4_flex::block::decompress(block, BLOCK_MAX)?);
        at += 4 + size;
    }
    anyhow::ensure!(kernel.starts_with(b"\x7fELF"), "the kernel's payload is no ELF file");
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_depended_on() {
        let answer = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(parse_depends(answer).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(parse_depends(""), None);
    }

    #[test]
    fn a_kernel_comes_out_of_its_image_and_garbage_is_told() {
        let kernel = [b"\x7fELF".as_slice(), &[7; 100_000]].concat();
        let block = lz4_flex::block::compress(&kernel);
        let mut payload = 0x184C_2102_u32.to_le_bytes().to_vec();
        payload.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        payload.extend(&block);
        payload.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
        let mut image = vec![0_u8; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(&payload);
        assert_eq!(decompress(&image).unwrap(), kernel);
        assert!(decompress(&image[..1100]).is_err());
        assert!(decompress(b"nothing").is_err());
    }
}
