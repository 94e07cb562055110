//! Other programs as judges: `fsck.erofs` and `dump.erofs` of images, and umoci of trees. Tests
//! without their program say so and pass.

use crate::archive::{Spec, file, folder, hard, link, pack};
use crate::contents::noise;
use crate::merge::{Case, cases};
use crate::reader::Found;
use crate::{convert, describe, reader};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// Reports a program that is missing.
fn is_missing(program: &str) -> bool {
    let missing = Command::new(program).arg("--help").output().is_err();
    if missing {
        eprintln!("SKIPPED: {program} is not installed");
    }
    missing
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// Makes layers with all kinds of entries, sizes and attributes.
fn rich_layers() -> Vec<Vec<u8>> {
    let mut lower = vec![folder("d").mode(0o1777), link("l", "d"), link("long", "x".repeat(4000))];
    lower.push(Spec::new(b'6', "fifo", 0o600));
    lower.push(Spec::new(b'3', "char", 0o600).device(10, 200));
    lower.push(Spec::new(b'4', "block", 0o600).device(259, 70_000));
    for size in [0, 1, 1024, 1025, 4096, 5000, 100_000] {
        lower.push(file(format!("d/{size}"), noise(size + 1, size as usize)));
    }
    lower.extend((0..2000).map(|at| file(format!("many/{at}"), at.to_string())));
    lower.push(file("x", "1").pax("SCHILY.xattr.user.large", noise(9, 10_000)));
    lower.push(file("y", "1").pax("SCHILY.xattr.security.capability", [0; 20]));
    lower.push(hard("d/hard", "d/5000"));
    let upper = vec![file("d/.wh.1", ""), file("new/file", noise(7, 3_000_000)), folder("d")];
    vec![pack(&lower), pack(&upper)]
}

#[test]
fn fsck_accepts_images() {
    if is_missing("fsck.erofs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let mut images = vec![rich_layers(), vec![], vec![pack(&[])]];
    images.extend(cases().iter().map(|case| case.layers.iter().map(|specs| pack(specs)).collect()));
    for layers in images {
        fs::write(&path, convert(&layers).unwrap().bytes).unwrap();
        let text = run(Command::new("fsck.erofs").args(["-d3", "--extract"]).arg(&path));
        assert!(text.contains("No errors found"), "{text}");
    }
}

#[test]
fn dump_reads_the_superblock() {
    if is_missing("dump.erofs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let image = convert(&rich_layers()).unwrap();
    fs::write(&path, &image.bytes).unwrap();
    let text = run(Command::new("dump.erofs").arg("-s").arg(&path));
    let inodes = image.summary.inodes.to_string();
    assert!(text.contains("5a5a5a5a-5a5a-8a5a-9a5a-5a5a5a5a5a5a"), "{text}");
    assert!(
        text.lines().any(|line| line.contains("inode count") && line.ends_with(&inodes)),
        "{text}"
    );
    let text = run(Command::new("dump.erofs").args(["--path=/d/5000"]).arg(&path));
    assert!(text.contains("Links: 2") && text.contains("Size: 5000"), "{text}");
}

/// Compares trees with umoci's.
#[test]
fn tree_equals_umoci() {
    if is_missing("umoci") || !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: umoci and root are needed");
        return;
    }
    let mut wrong = Vec::new();
    let corpus: Vec<Case> = cases().into_iter().filter(|case| case.umoci).collect();
    assert!(corpus.len() >= 40, "{}", corpus.len());
    for case in &corpus {
        let layers: Vec<Vec<u8>> = case.layers.iter().map(|specs| pack(specs)).collect();
        let umoci = match unpack(&layers) {
            Ok(tree) => describe(&tree),
            Err(error) => error,
        };
        let ours = describe(&reader::read(&convert(&layers).unwrap().bytes));
        if umoci != ours {
            wrong.push(format!("{}:\n  umoci {umoci}\n  ours  {ours}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Unpacks layers by umoci, and reads the tree.
fn unpack(layers: &[Vec<u8>]) -> Result<BTreeMap<Vec<u8>, Found>, String> {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], kind: &str| {
        let digest = hex(bytes);
        fs::write(blobs.join(&digest), bytes).unwrap();
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        })
    };
    let descriptors: Vec<_> = layers.iter().map(|layer| put(layer, "layer.v1.tar")).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(config.to_string().as_bytes(), "config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": descriptors });
    let mut manifest = put(manifest.to_string().as_bytes(), "manifest.v1+json");
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "t" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\": \"1.0.0\"}").unwrap();
    unpack_layout(&layout)
}

/// Unpacks the image `t` of a layout by umoci, and reads the tree.
pub(crate) fn unpack_layout(layout: &Path) -> Result<BTreeMap<Vec<u8>, Found>, String> {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let output = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:t", layout.display()))
        .arg(&bundle)
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let mut tree = BTreeMap::new();
    walk(&bundle.join("rootfs"), &[], &mut tree);
    Ok(tree)
}

/// Reads a folder of this machine.
fn walk(path: &Path, name: &[u8], tree: &mut BTreeMap<Vec<u8>, Found>) {
    let status = fs::symlink_metadata(path).unwrap();
    let kind = status.file_type();
    let data = if kind.is_symlink() {
        fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
    } else if kind.is_file() {
        fs::read(path).unwrap()
    } else {
        Vec::new()
    };
    let device = status.rdev();
    let found = Found {
        mode: status.mode() as u16,
        uid: status.uid(),
        gid: status.gid(),
        mtime: status.mtime() as u64,
        links: status.nlink() as u32,
        inode: status.ino(),
        data,
        device: (rustix::fs::major(device), rustix::fs::minor(device)),
        xattrs: attributes(path),
    };
    tree.insert(name.to_vec(), found);
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap().file_name();
            let slash: &[u8] = if name.is_empty() { b"" } else { b"/" };
            walk(&path.join(&entry), &[name, slash, entry.as_bytes()].concat(), tree);
        }
    }
}

/// Reads the extended attributes of a file, in the form of [`Found`].
fn attributes(path: &Path) -> BTreeMap<(u8, Vec<u8>), Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    // A file system without attributes has none.
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let all = names.filter_map(|name| {
        let (prefix, rest) = stored_name(name)?;
        let mut value = vec![0_u8; 64 << 10];
        let text = std::str::from_utf8(name).unwrap();
        let length = rustix::fs::lgetxattr(path, text, &mut value[..]).unwrap();
        value.truncate(length);
        Some(((prefix, rest.to_vec()), value))
    });
    all.collect()
}

/// Splits the name of an attribute as EROFS stores it. Images lose the names without a result.
fn stored_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let prefixes: [(&[u8], u8); 3] =
        [(b"user.", 1), (b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3)];
    let known = prefixes.iter().find_map(|(text, prefix)| {
        let rest = name.strip_prefix(*text)?;
        Some((*prefix, rest))
    });
    known.or_else(|| (name == b"security.capability").then_some((6, b"capability".as_slice())))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
