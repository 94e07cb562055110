//! Entry points of the fuzz targets in `fuzz/`. Only the feature `fuzzing` compiles this module, so
//! a production build has no public parser.

use crate::seal::Sealer;
use crate::tree::{PIECE, Tree};

/// Reads `data` as a piece and as a tree. Anybody with write access may have left such an object in
/// the store.
///
/// # Panics
/// Panics when an opened piece is too large, or a sealed object does not open.
pub fn object(data: &[u8]) {
    let key = [7; 32];
    for sealer in [Sealer::new(None, "space"), Sealer::new(Some(&key), "space")] {
        let most = usize::try_from(PIECE).unwrap_or(usize::MAX);
        let opened = sealer.open("name", data, most);
        assert!(opened.is_none_or(|piece| piece.len() <= most), "a piece is too large");
        let _ = Tree::parse(&sealer, "name", data);
        // A valid object is the same data behind its own hash, sealed.
        let text = [sealer.name(data).as_bytes(), data].concat();
        let Some(sealed) = sealer.seal("name", &text) else { continue };
        assert!(sealer.open("name", &sealed, text.len()).as_ref() == Some(&text), "it is shut");
        if let Some(tree) = Tree::parse(&sealer, "name", &sealed) {
            assert!(tree.pieces().count() <= data.len());
        }
    }
}
