//! Random layers against a slow model of the rules, and random bytes against the reader.

use crate::archive::{Spec, entry, file, folder, hard, header, link, pack};
use crate::contents::noise;
use crate::{chain, convert, convert_with, describe, reader};
use proptest::collection::vec;
use proptest::prelude::*;
use rootfs::Limits;
use std::collections::BTreeMap;

/// An entry of the model. Names of one file have one number.
#[derive(Debug, Clone)]
struct Modelled {
    number: usize,
    spec: Spec,
}

type Model = BTreeMap<Vec<u8>, Modelled>;

const FOLDER: u8 = b'5';

fn is_folder(found: &Modelled) -> bool {
    found.spec.flag == FOLDER
}

fn below(path: &[u8], folder: &[u8]) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
}

fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..path.len()).filter(|at| path[*at] == b'/').map(|at| &path[..at])
}

/// Applies a layer. Returns `None` where the rules refuse it.
fn apply(model: &mut Model, layer: &[Spec], numbers: &mut usize) -> Option<()> {
    for spec in layer {
        let (folder, name) = match spec.path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&spec.path[..at], &spec.path[at + 1..]),
            None => (&b""[..], &spec.path[..]),
        };
        if name == b".wh..wh..opq" {
            model.retain(|path, _| !below(path, folder));
        } else if let Some(name) = name.strip_prefix(b".wh.") {
            let hidden = [folder, if folder.is_empty() { b"" } else { b"/" }, name].concat();
            model.retain(|path, _| *path != hidden && !below(path, &hidden));
        }
    }
    let is_whiteout = |spec: &&Spec| spec.path.windows(4).any(|part| part == b".wh.");
    let mut late = Vec::new();
    for spec in layer.iter().filter(|spec| !is_whiteout(spec)) {
        *numbers += 1;
        if !put(model, spec, *numbers)? {
            late.push((spec, *numbers));
        }
    }
    for _ in 0..4 {
        let mut missing = Vec::new();
        for (spec, number) in late {
            if !put(model, spec, number)? {
                missing.push((spec, number));
            }
        }
        late = missing;
    }
    late.is_empty().then_some(())
}

/// Puts an entry. Returns `Some(false)` for a hard link whose target is missing.
fn put(model: &mut Model, spec: &Spec, number: usize) -> Option<bool> {
    let mut new = Modelled { number, spec: spec.clone() };
    if spec.flag == b'1' {
        let Some(target) = model.get(&spec.link) else { return Some(false) };
        if is_folder(target) {
            return None;
        }
        new = target.clone();
    }
    for parent in parents(&spec.path) {
        let made = Modelled { number: usize::MAX, spec: folder(parent) };
        if !is_folder(model.entry(parent.to_vec()).or_insert(made)) {
            return None;
        }
    }
    let old = model.get(&spec.path);
    if !(spec.flag == FOLDER && old.is_some_and(is_folder)) {
        model.retain(|path, _| !below(path, &spec.path));
    }
    model.insert(spec.path.clone(), new);
    Some(true)
}

/// Compares an image with the model.
fn compare(model: &Model, bytes: &[u8]) {
    let tree = reader::read(bytes);
    assert_eq!(tree.len(), model.len() + 1, "{}", describe(&tree));
    let mut inodes = BTreeMap::new();
    for (path, modelled) in model {
        let (found, spec) = (&tree[path], &modelled.spec);
        let name = path.escape_ascii();
        let is_made = modelled.number == usize::MAX;
        assert_eq!(u32::from(found.mode & 0o7777), spec.mode, "mode of {name}");
        assert_eq!(u64::from(found.uid), spec.uid, "user of {name}");
        assert_eq!(u64::from(found.gid), spec.gid, "group of {name}");
        assert_eq!(found.mtime, if is_made { 0 } else { spec.mtime }, "time of {name}");
        let kind = match spec.flag {
            b'0' => 0o10,
            b'2' => 0o12,
            b'3' => 0o02,
            FOLDER => 0o04,
            _ => 0o01,
        };
        assert_eq!(found.mode >> 12, kind, "kind of {name}");
        let data = if spec.flag == b'2' { &spec.link } else { &spec.data };
        assert!(found.data == *data, "contents of {name}");
        assert_eq!(found.device, spec.device, "device of {name}");
        let xattrs: BTreeMap<_, _> = spec
            .pax
            .iter()
            .map(|(key, value)| ((1, key["SCHILY.xattr.user.".len()..].to_vec()), value.clone()))
            .collect();
        assert_eq!(found.xattrs, xattrs, "attributes of {name}");
        if !is_folder(modelled) {
            let links = model.values().filter(|other| other.number == modelled.number).count();
            assert_eq!(found.links as usize, links, "links of {name}");
            assert_eq!(*inodes.entry(modelled.number).or_insert(found.inode), found.inode);
        }
    }
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof!["[a-c]", "[a-c]", Just("n".repeat(200)), "[a-c]-[a-c]"];
    vec(part, 1..4).prop_map(|parts| parts.join("/").into_bytes())
}

fn hidden() -> impl Strategy<Value = Spec> {
    (path(), any::<bool>()).prop_map(|(path, opaque)| {
        let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let name = if opaque { b".wh..opq" } else { &path[at..] };
        file([&path[..at], b".wh.", if opaque { b".wh..opq" } else { name }].concat(), "")
    })
}

fn text(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| byte | 1).collect()
}

fn spec() -> impl Strategy<Value = Spec> {
    let size = prop_oneof![0..40_usize, 1000..1100_usize, 4000..4200_usize, 0..30_000_usize];
    let made = (path(), path(), size, any::<u32>(), 0..8_u8).prop_map(
        |(path, target, size, seed, kind)| match kind {
            0..=2 => file(path, noise(seed, size)),
            3 => folder(path),
            // No other name ends so: nothing is ever below a link.
            4 => link([&path[..], b".link"].concat(), text(&noise(seed, size % 4000 + 1))),
            5 => hard(path, target),
            6 => Spec::new(b'3', path, 0o600).device(seed % 4095 + 1, seed >> 12),
            _ => Spec::new(b'6', path, 0o600),
        },
    );
    let xattrs = vec(("[a-z]{1,9}", vec(any::<u8>(), 0..100)), 0..3);
    let owned = (made, 0..0o10000_u32, any::<u16>(), 0..u32::MAX, 0..1_u64 << 40, xattrs).prop_map(
        |(mut spec, mode, uid, gid, mtime, xattrs)| {
            (spec.mode, spec.uid, spec.gid, spec.mtime) = (mode, uid.into(), gid.into(), mtime);
            if spec.flag != b'1' {
                for (name, value) in xattrs {
                    spec = spec.pax(format!("SCHILY.xattr.user.{name}"), value);
                }
            }
            spec
        },
    );
    prop_oneof![9 => owned, 2 => hidden()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_come_out_as_the_model_has_them(layers in vec(vec(spec(), 0..12), 1..4)) {
        let archives: Vec<Vec<u8>> = layers.iter().map(|layer| pack(layer)).collect();
        let image = convert(&archives);
        let (mut model, mut numbers) = (Model::new(), 0);
        let fits = layers.iter().try_for_each(|layer| apply(&mut model, layer, &mut numbers));
        match (fits, image) {
            (Some(()), Ok(image)) => {
                compare(&model, &image.bytes);
                prop_assert!(image.bytes == convert(&archives).unwrap().bytes, "equal bytes");
            }
            (None, Err(_)) => {}
            (Some(()), Err(error)) => prop_assert!(false, "refused: {}", chain(&error)),
            (None, Ok(_)) => prop_assert!(false, "taken, and the model refuses it"),
        }
    }

    #[test]
    fn random_bytes_never_panic(
        spec in spec(),
        changes in vec((0..2048_usize, any::<u8>()), 1..6),
        cut in 0..4096_usize,
        fix in any::<bool>(),
    ) {
        let mut bytes = [entry(&spec), entry(&file("z", "1"))].concat();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if fix {
            crate::archive::sum(&mut bytes[..512]);
        }
        bytes.truncate(cut.max(512));
        let limits = Limits { bytes: 8 << 20, entries: 100, memory: 1 << 20, layers: 1 };
        if let Ok(image) = convert_with(&[bytes], limits) {
            reader::read(&image.bytes);
        }
    }

    #[test]
    fn random_headers_never_panic(
        body in vec(any::<u8>(), 0..600),
        flag in prop::sample::select(b"xgLKS0".to_vec()),
    ) {
        let mut bytes = header(&Spec::new(flag, "a", 0o644), body.len() as u64).to_vec();
        bytes.extend(crate::archive::padded(&body));
        bytes.extend(entry(&file("z", "1")));
        let limits = Limits { bytes: 8 << 20, entries: 100, memory: 1 << 20, layers: 1 };
        if let Ok(image) = convert_with(&[bytes], limits) {
            reader::read(&image.bytes);
        }
    }
}
