//! Fuzz targets for snapshots that may come from a hostile author.

use super::layer::{Chunk, Layer, PAGE};
use super::manifest::Manifest;
use std::fs::File;
use std::io::Write;

/// Reads `data` as a layer, with the true hash of the index, so that the index itself is parsed.
///
/// # Panics
/// Panics when the layer yields pages that are not whole.
pub fn layer(data: &[u8]) {
    let name = "layer";
    let Ok(file) = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC) else { return };
    let mut file = File::from(file);
    // The footer, read from its end, has the magic, the index's length, its offset and its hash.
    let number = |from_end: usize| {
        let at = data.len().checked_sub(from_end)?;
        let bytes = data.get(at..)?.first_chunk::<8>()?;
        usize::try_from(u64::from_le_bytes(*bytes)).ok()
    };
    let index = number(24).zip(number(16));
    let index = index.and_then(|(at, size)| data.get(at..at.checked_add(size)?));
    let hash = blake3::hash(index.unwrap_or_default());
    if file.write_all(data).is_err() {
        return;
    }
    let Ok(layer) = Layer::open(file, &hash) else { return };
    let mut numbers = vec![0];
    let _ = layer.each(|first, pages| {
        assert!(pages.is_err() || pages.is_ok_and(|data| data.len() % PAGE == 0));
        numbers.push(first);
        Ok(())
    });
    let mut chunk = Chunk::default();
    for number in numbers {
        let page = layer.page(number, &mut chunk);
        assert!(page.is_err() || page.is_ok_and(|page| page.is_none_or(|p| p.len() == PAGE)));
    }
}

/// Reads `data` as a manifest, first alone, then with the true hash before it.
pub fn manifest(data: &[u8]) {
    let _ = Manifest::read(data);
    let hash = blake3::hash(data).to_hex();
    let _ = Manifest::read(&[hash.as_bytes(), b"\n", data].concat());
}
