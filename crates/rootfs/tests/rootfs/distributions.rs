//! Whole images of a distribution's packages against umoci's trees. `./test` leaves this module out.
//! The script `tests/acceptance/debian-images` makes the images and runs it.

use crate::convert;
use crate::oracles::{hex, unpack_layout};
use crate::reader::{self, Found};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Variable with the folder of the images. Each is an OCI layout with an image `t`.
const LAYOUTS: &str = "WRENN_TEST_LAYOUTS";
/// Most differences that a failure shows.
const SHOWN: usize = 40;

/// Facts of an entry that both sides must agree on.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u16,
    owner: (u32, u32),
    mtime: u64,
    /// Number of names of a file, and the first of them. Folders have neither.
    names: Option<(u32, Vec<u8>)>,
    /// Size and SHA-256 of the contents.
    contents: (usize, String),
    device: (u32, u32),
    xattrs: BTreeMap<(u8, Vec<u8>), Vec<u8>>,
}

/// Reports whether a path is in a folder that the kernel fills, whose contents an image loses.
fn is_virtual(path: &[u8]) -> bool {
    [&b"dev/"[..], b"proc/", b"sys/"].iter().any(|folder| path.starts_with(folder))
}

/// Returns the facts of all entries below the root.
fn entries(tree: BTreeMap<Vec<u8>, Found>) -> BTreeMap<Vec<u8>, Entry> {
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for (path, found) in tree {
        if path.is_empty() || is_virtual(&path) {
            continue;
        }
        let first = first.entry(found.inode).or_insert_with(|| path.clone()).clone();
        let is_folder = found.mode >> 12 == 0o04;
        let entry = Entry {
            mode: found.mode,
            owner: (found.uid, found.gid),
            mtime: found.mtime,
            names: (!is_folder).then_some((found.links, first)),
            contents: (found.data.len(), hex(&found.data)),
            device: found.device,
            xattrs: found.xattrs,
        };
        all.insert(path, entry);
    }
    all
}

/// Lists the entries that differ.
fn differences(umoci: &BTreeMap<Vec<u8>, Entry>, ours: &BTreeMap<Vec<u8>, Entry>) -> Vec<String> {
    let missing = umoci.keys().filter(|path| !ours.contains_key(*path));
    let mut found: Vec<String> =
        missing.map(|path| format!("{} is missing", path.escape_ascii())).collect();
    for (path, entry) in ours {
        let name = path.escape_ascii();
        match umoci.get(path) {
            None => found.push(format!("{name} is too much: {entry:?}")),
            Some(wanted) if wanted != entry => {
                found.push(format!("{name}:\n  umoci {wanted:?}\n  ours  {entry:?}"));
            }
            Some(_) => {}
        }
    }
    found
}

/// Reads the layers of a layout's only image, lowest first.
fn layers(layout: &Path) -> Vec<Vec<u8>> {
    let json = |path: PathBuf| -> Value {
        let bytes = fs::read(path).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        layout.join("blobs/sha256").join(digest)
    };
    let index = json(layout.join("index.json"));
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 1, "{}", layout.display());
    let manifest = json(blob(&manifests[0]));
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers.map(|descriptor| fs::read(blob(descriptor)).unwrap()).collect()
}

#[test]
#[ignore = "the images come from tests/acceptance/debian-images"]
fn images_of_a_distribution_equal_umocis_trees() {
    let folder = std::env::var(LAYOUTS).unwrap();
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut layouts: Vec<PathBuf> = all.filter(|path| path.join("index.json").exists()).collect();
    layouts.sort();
    assert!(layouts.len() >= 5, "{layouts:?}");
    for layout in &layouts {
        let layers = layers(layout);
        let image = convert(&layers).unwrap();
        let tree = reader::read(&image.bytes);
        let name = layout.display();
        assert!(!tree.keys().any(|path| is_virtual(path)), "{name} has files of the kernel");
        let ours = entries(tree);
        let umoci = entries(unpack_layout(layout).unwrap());
        let wrong = differences(&umoci, &ours);
        assert!(
            wrong.is_empty(),
            "{name}: {} differences\n{}",
            wrong.len(),
            wrong[..wrong.len().min(SHOWN)].join("\n")
        );
        let marked = ours.values().filter(|entry| !entry.xattrs.is_empty()).count();
        let (count, layers) = (ours.len(), layers.len());
        assert!(count > 10, "{name} has {count} entries");
        eprintln!("{name}: {layers} layers, {count} entries, {marked} with attributes, all equal");
    }
}
