//! Entry points of the fuzz targets in `fuzz/`. Only the feature `fuzzing` compiles this module, so
//! a production build has no public parser.

use crate::cipher::ChunkCipher;
use crate::manifest::{CHUNK, ChunkManifest};

/// Reads `data` as a chunk and as a manifest. Anybody with write access may have left such an
/// object in the store.
///
/// # Panics
/// Panics when an opened chunk is too large, or a sealed object does not open.
pub fn object(data: &[u8]) {
    let key = [7; 32];
    for cipher in [ChunkCipher::new(None, "space"), ChunkCipher::new(Some(&key), "space")] {
        let most = usize::try_from(CHUNK).unwrap_or(usize::MAX);
        let opened = cipher.open("name", data, most);
        assert!(opened.is_none_or(|chunk| chunk.len() <= most), "a chunk is too large");
        let _ = ChunkManifest::parse(&cipher, "name", data);
        // A valid object is the same data behind its own hash, sealed.
        let text = [cipher.name(data).as_bytes(), data].concat();
        let Some(sealed) = cipher.seal("name", &text) else { continue };
        assert!(cipher.open("name", &sealed, text.len()).as_ref() == Some(&text), "it is shut");
        if let Some(manifest) = ChunkManifest::parse(&cipher, "name", &sealed) {
            assert!(manifest.chunks().count() <= data.len());
        }
    }
}
