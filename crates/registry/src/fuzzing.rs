//! Entry points of the fuzz targets in `fuzz/`. Only the feature `fuzzing` compiles this module, so
//! a production build has no public parser.

use crate::manifest::{Bounds, Document};
use crate::platform::Platform;
use crate::{challenge, config, manifest};

/// Reads `data` as a manifest or index, as a configuration, and as a reference. A hostile registry
/// sends the first two, and whoever builds a template the third.
///
/// # Panics
/// Panics when a manifest exceeds its bounds, or a reference changes when it is read again.
pub fn image(data: &[u8]) {
    let bounds = Bounds { layers: 4, image_bytes: 1 << 20 };
    let platform = Platform { architecture: "amd64".to_owned(), level: 3 };
    for content_type in [None, Some("application/vnd.oci.image.index.v1+json")] {
        match manifest::parse(data, content_type, bounds) {
            Ok(Document::Manifest(manifest)) => {
                assert!(manifest.layers.len() <= bounds.layers, "too many layers");
                let total = manifest.layers.iter().map(|(layer, _)| layer.size).sum::<u64>();
                assert!(total <= bounds.image_bytes, "too large");
            }
            Ok(Document::Index(index)) => drop(index.choose(&platform)),
            Err(_) => {}
        }
    }
    for layers in [0, 1] {
        if let Ok(config) = config::parse(data, &platform, layers) {
            assert_eq!(config.diff_ids.len(), layers, "a layer without a digest");
        }
    }
    if let Ok(reference) = String::from_utf8_lossy(data).parse::<crate::Reference>() {
        assert_eq!(reference.to_string().parse().ok(), Some(reference), "it changed");
    }
}

/// Reads `data` as `WWW-Authenticate` headers, one for each line.
///
/// # Panics
/// Panics when `Basic` comes before `Bearer`.
pub fn challenge(data: &[u8]) {
    let found = challenge::parse(data.split(|byte| *byte == b'\n'));
    let is_basic = |challenge: &challenge::Challenge| *challenge == challenge::Challenge::Basic;
    assert!(found.is_sorted_by_key(is_basic), "Basic comes before Bearer");
}
