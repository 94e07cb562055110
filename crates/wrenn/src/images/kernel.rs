//! The distribution's kernel, taken out of its package and never installed on the host. The image
//! is uncompressed, for direct boot. Some modules load when a guest boots. Programs in the guest
//! may load the modules of a separate tree.

use super::{Store, remove, text};
use crate::sys::Run;
use anyhow::Context;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Debian package that depends on the newest kernel for virtual machines.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// Modules that load at boot. The build adds the modules that these need, before them.
const MODULES: &[&str] = &[
    // Devices.
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    // The root: an image of either kind below an overlay. The kernel itself has ext4.
    "erofs",
    "overlay",
    // The table of connections.
    "tcp_diag",
];
/// Modules that programs in a guest may load. The build adds the modules that these need.
const LOADABLE: &[&str] = &[
    // File systems and disks: FUSE, network file systems, images in files.
    "fuse",
    "cuse",
    "nfs",
    "nfsv3",
    "nfsv4",
    "loop",
    "squashfs",
    "binfmt_misc",
    // Networks: tunnels, and those that Docker makes.
    "tun",
    "bridge",
    "br_netfilter",
    "veth",
    "dummy",
    "macvlan",
    "ipvlan",
    "vxlan",
    "tls",
    "udp_diag",
    "unix_diag",
    // Firewalls by nftables.
    "nf_tables",
    "nf_conntrack_netlink",
    "nf_log_syslog",
    "nfnetlink_log",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_fib_inet",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    // Firewalls by iptables: its own tables, and matches and targets. nftables uses the last two as
    // well.
    "ip_tables",
    "iptable_filter",
    "iptable_mangle",
    "iptable_nat",
    "iptable_raw",
    "ip6_tables",
    "ip6table_filter",
    "ip6table_nat",
    "ipt_REJECT",
    "ip6t_REJECT",
    "ip_set",
    "ip_set_hash_net",
    "xt_addrtype",
    "xt_comment",
    "xt_connmark",
    "xt_conntrack",
    "xt_CT",
    "xt_hashlimit",
    "xt_limit",
    "xt_LOG",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_multiport",
    "xt_nat",
    "xt_NFLOG",
    "xt_owner",
    "xt_physdev",
    "xt_recent",
    "xt_REDIRECT",
    "xt_set",
    "xt_state",
    "xt_statistic",
    "xt_TCPMSS",
    "xt_tcpudp",
];
/// Loadable modules that a guest without `modprobe` loads at boot. They stay uncompressed, since
/// neither the kernel nor envd reads compressed ones.
const COMMON: [&str; 3] = ["fuse", "loop", "tun"];
/// Version of the way a kernel is built. Raise it with each change.
const RECIPE: &[u8] = b"3";
pub(super) const IMAGE: &str = "vmlinux";
pub(super) const ORDER: &str = "order";
/// Folder of the loadable modules. A guest shows it in `/lib/modules`.
pub(super) const TREE: &str = "loadable";
/// File that lists the common modules' files below `TREE`.
pub(super) const COMMON_LIST: &str = "common";
/// File with the package's file name, which identifies the package's revision.
pub(super) const SOURCE: &str = "source";

/// Builds a folder with `vmlinux`, the boot modules with their `order`, and the tree of loadable
/// modules.
pub(super) fn ensure(store: &Store, refresh: bool) -> anyhow::Result<PathBuf> {
    let lists = [MODULES.join("\n"), LOADABLE.join("\n"), COMMON.join("\n")];
    let [boot, loadable, common] = lists.each_ref().map(String::as_bytes);
    let path = store.path("kernel", &[PACKAGE.as_bytes(), boot, loadable, common, RECIPE]);
    store.ensure(&path, "the guest kernel", refresh, make)?;
    store.forget_others(&path)?;
    Ok(path)
}

fn make(dir: &Path) -> anyhow::Result<()> {
    let package = newest()?;
    let unpacked = dir.join("unpacked");
    fs::create_dir_all(&unpacked)?;
    // apt's own unprivileged user could not write to the folder, which is root's.
    let download = ["-q", "-o", "APT::Sandbox::User=root", "download", &package];
    Run::new("apt-get", &download).dir(dir).output()?;
    let deb = fs::read_dir(dir)?.flatten().map(|e| e.path());
    let deb = deb.filter(|p| p.extension().is_some_and(|e| e == "deb")).max();
    let deb = deb.with_context(|| format!("apt-get did not download {package}"))?;
    Run::new("dpkg-deb", &["-x"]).arg(text(&deb)?).arg(text(&unpacked)?).output()?;
    let version = package.strip_prefix("linux-image-").unwrap_or(&package);
    let image = fs::read(unpacked.join(format!("boot/vmlinuz-{version}")))?;
    fs::write(dir.join(IMAGE), decompress(&image)?)?;
    index(&unpacked, version)?;
    take_boot_modules(dir, &unpacked.join(format!("lib/modules/{version}")))?;
    collect(dir, &unpacked, version)?;
    let source = deb.file_name().context("the package has no file name")?;
    fs::write(dir.join(SOURCE), source.as_encoded_bytes())?;
    fs::remove_file(deb)?;
    remove(&unpacked)
}

/// Takes the modules that load at boot out of an unpacked kernel's folder, and writes their order.
fn take_boot_modules(dir: &Path, from: &Path) -> anyhow::Result<()> {
    let all = fs::read_to_string(from.join("modules.dep"))?;
    let mut order = String::new();
    for file in boot_order(&all, MODULES)? {
        let name = file.rsplit_once('/').map_or(file, |(_, name)| name);
        // envd loads a file as it is, and Debian's later kernels compress their modules.
        anyhow::ensure!(name.ends_with(".ko"), "the module {name} is compressed");
        fs::copy(from.join(file), dir.join(name))
            .with_context(|| format!("cannot extract {file}"))?;
        order.push_str(name);
        order.push('\n');
    }
    Ok(fs::write(dir.join(ORDER), order)?)
}

/// Lists the files of the named modules, each after the modules that it needs. `index` is a
/// `modules.dep(5)`, whose lines name the needed modules in reverse order of their loading.
fn boot_order<'a>(index: &'a str, names: &[&str]) -> anyhow::Result<Vec<&'a str>> {
    let mut order = Vec::new();
    for name in names {
        let (file, needed) = line_of(index, name)?;
        for file in needed.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

/// Returns a module's file and the files that it needs, from a `modules.dep(5)`.
fn line_of<'a>(index: &'a str, name: &str) -> anyhow::Result<(&'a str, &'a str)> {
    let mut lines = index.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(file, _)| module_name(file) == name);
    found.with_context(|| format!("the kernel has no module {name}"))
}

/// Collects the loadable modules of an unpacked and indexed kernel in `TREE`, with the index that
/// `modprobe` reads.
fn collect(dir: &Path, unpacked: &Path, version: &str) -> anyhow::Result<()> {
    let below = format!("lib/modules/{version}");
    let (from, base) = (unpacked.join(&below), dir.join("base"));
    let tree = base.join(&below);
    let all = fs::read_to_string(from.join("modules.dep"))?;
    let names = MODULES.iter().chain(LOADABLE).copied();
    let common = files_of(&all, COMMON)?;
    let mut compress = Run::new("xz", &["-q", "--check=crc32"]);
    for file in files_of(&all, names)? {
        let to = tree.join(&file);
        fs::create_dir_all(to.parent().unwrap_or(&tree))?;
        fs::copy(from.join(&file), &to).with_context(|| format!("cannot extract {file}"))?;
        if !common.contains(&file) {
            compress = compress.arg(text(&to)?);
        }
    }
    compress.output()?;
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(from.join(list), tree.join(list))
            .with_context(|| format!("cannot extract {list}"))?;
    }
    index(&base, version)?;
    // The common modules load in any order, so none may need another module.
    anyhow::ensure!(common.len() == COMMON.len(), "a common kernel module depends on another one");
    let common: String = common.iter().map(|file| format!("{file}\n")).collect();
    fs::write(dir.join(COMMON_LIST), common)?;
    fs::rename(&tree, dir.join(TREE))?;
    remove(&base)
}

/// Writes the index of the modules below a root folder.
fn index(root: &Path, version: &str) -> anyhow::Result<()> {
    Run::new("depmod", &["-b", text(root)?, version]).output()?;
    Ok(())
}

/// Lists the files of the named modules and of all modules that they need. `index` is a
/// `modules.dep(5)`.
fn files_of<'a>(
    index: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> anyhow::Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for name in names {
        let (file, needed) = line_of(index, name)?;
        files.insert(file.to_owned());
        files.extend(needed.split_whitespace().map(ToOwned::to_owned));
    }
    Ok(files)
}

/// Returns the kernel's name for the module in a file.
fn module_name(file: &str) -> String {
    let name = file.rsplit_once('/').map_or(file, |(_, name)| name);
    name.split_once('.').map_or(name, |(name, _)| name).replace('-', "_")
}

/// Returns the name of the newest kernel's package.
fn newest() -> anyhow::Result<String> {
    let ask = || Run::new("apt-cache", &["depends", PACKAGE]).output();
    let mut answer = ask().unwrap_or_default();
    if parse_depends(&answer).is_none() {
        Run::new("apt-get", &["-q", "update"]).output()?;
        answer = ask()?;
    }
    parse_depends(&answer).with_context(|| format!("no package source contains {PACKAGE}"))
}

fn parse_depends(answer: &str) -> Option<String> {
    let mut names = answer.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.find(|name| name.starts_with("linux-image-")).map(ToOwned::to_owned)
}

/// Unpacks the kernel in a bzImage (layout: the kernel's `Documentation/arch/x86/boot.rst`). The
/// payload is in LZ4's legacy frame: blocks of at most 8 MiB, each after its size. The last number
/// is the size of the whole kernel.
fn decompress(image: &[u8]) -> anyhow::Result<Vec<u8>> {
    const LEGACY_FRAME: u32 = 0x184C_2102;
    const BLOCK_MAX: usize = 8 << 20;
    let word = |bytes: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let short = "the kernel image is truncated";
    anyhow::ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "the file is not a kernel image");
    let sectors = match image[0x1f1] {
        0 => 4,
        given => usize::from(given),
    };
    let offset = word(image, 0x248).context(short)? as usize;
    let length = word(image, 0x24c).context(short)? as usize;
    let start = (sectors + 1) * 512 + offset;
    let payload = image.get(start..start + length).context(short)?;
    let magic = word(payload, 0).context(short)?;
    anyhow::ensure!(magic == LEGACY_FRAME, "the kernel is not compressed with LZ4");
    let (mut kernel, mut at) = (Vec::new(), 4);
    while at + 4 < payload.len() {
        let size = word(payload, at).context(short)? as usize;
        let block = payload.get(at + 4..at + 4 + size).context(short)?;
        kernel.extend(lz4_flex::block::decompress(block, BLOCK_MAX)?);
        at += 4 + size;
    }
    anyhow::ensure!(kernel.starts_with(b"\x7fELF"), "the kernel's payload is not an ELF file");
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_kernel_is_read_from_package_dependencies() {
        let answer = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(parse_depends(answer).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(parse_depends(""), None);
    }

    #[test]
    fn modules_include_their_dependencies() {
        let index = "kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
            kernel/net/802/stp.ko: kernel/net/llc/llc.ko\nkernel/net/llc/llc.ko:\n\
            kernel/drivers/char/hw_random/virtio-rng.ko.xz:\n";
        let files = files_of(index, ["bridge", "virtio_rng"]).unwrap();
        let names: Vec<String> = files.iter().map(|file| module_name(file)).collect();
        assert_eq!(names, ["virtio_rng", "stp", "bridge", "llc"]);
        let missing = files_of(index, ["fuse"]).unwrap_err();
        assert!(missing.to_string().contains("fuse"));
    }

    #[test]
    fn boot_modules_load_after_the_modules_that_they_need() {
        let index = "kernel/lib/libcrc32c.ko:\nkernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko\n\
            kernel/v/virtio_net.ko: kernel/n/net_failover.ko kernel/n/failover.ko kernel/v/virtio.ko\n\
            kernel/v/virtio.ko:\nkernel/n/failover.ko:\n\
            kernel/n/net_failover.ko: kernel/n/failover.ko\n";
        let order = boot_order(index, &["virtio_net", "erofs", "virtio"]).unwrap();
        let names: Vec<String> = order.iter().map(|file| module_name(file)).collect();
        assert_eq!(
            names,
            ["virtio", "failover", "net_failover", "virtio_net", "libcrc32c", "erofs"]
        );
        assert!(boot_order(index, &["overlay"]).unwrap_err().to_string().contains("overlay"));
    }

    #[test]
    fn common_modules_are_loadable() {
        assert!(COMMON.iter().all(|name| LOADABLE.contains(name)));
    }

    #[test]
    fn kernel_is_extracted_from_bzimage_and_garbage_is_an_error() {
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
