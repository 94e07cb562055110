//! What the fuzz targets of `fuzz/` call. It exists with the feature `fuzzing` alone, so that no
//! parser is public in a build that is used.

use crate::seal::Sealer;
use crate::tree::{PIECE, Tree};

/// An object as somebody who can write to the store may have left it: a piece, or a tree.
///
/// # Panics
/// When a piece is larger than one may be, or an object that was sealed does not open.
pub fn object(data: &[u8]) {
    let key = [7; 32];
    for sealer in [Sealer::new(None, "space"), Sealer::new(Some(&key), "space")] {
        let most = usize::try_from(PIECE).unwrap_or(usize::MAX);
        let opened = sealer.open("name", data, most);
        assert!(opened.is_none_or(|piece| piece.len() <= most), "a piece is too large");
        let _ = Tree::parse(&sealer, "name", data);
        // Its contents, sealed as they should be.
        let text = [sealer.name(data).as_bytes(), data].concat();
        let Some(sealed) = sealer.seal("name", &text) else { continue };
        assert!(sealer.open("name", &sealed, text.len()).as_ref() == Some(&text), "it is shut");
        if let Some(tree) = Tree::parse(&sealer, "name", &sealed) {
            assert!(tree.pieces().count() <= data.len());
        }
    }
}
