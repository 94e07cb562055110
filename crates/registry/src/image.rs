//! A checked image: its manifest's facts, and its layers as streams. Registries and archives give
//! images of this type.

use crate::blob::{Blob, Place};
use crate::config::{self, CONFIG_MAX, Config};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Compression, Manifest, Refusal};
use crate::platform::Platform;
use std::fmt;

/// A layer of an image. Its sizes and digests are what the manifest says, until its stream ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the bytes that the stream gives.
    pub digest: Digest,
    /// Count of the bytes that the stream gives.
    pub size: u64,
    /// Compression that the manifest names. Readers go by the first bytes.
    pub compression: Compression,
    /// Digest of the tar archive without compression. The stream does not check it.
    pub diff_id: Digest,
}

/// An image for one platform.
pub struct Image {
    /// Digest of the manifest for the platform. An archive of `docker save` has no such manifest.
    /// There it is the digest of the configuration, which names all contents too.
    pub digest: Digest,
    /// Digest that was resolved: that of an index, or `digest` itself.
    pub asked_digest: Digest,
    pub config_digest: Digest,
    pub config: Config,
    /// Layers, the lowest first. There are as many as `config.diff_ids`.
    pub layers: Vec<Layer>,
    /// Host that the manifest came from: the registry or a mirror. Archives have none.
    pub from: Option<String>,
    pub(crate) places: Vec<Place>,
}

impl Image {
    /// Opens a layer's stream. Each call begins anew, and connects at the first read.
    ///
    /// # Errors
    /// Returns `NoSuchLayer` for an index that is too high.
    pub fn layer(&self, index: usize) -> Result<Blob> {
        match (self.layers.get(index), self.places.get(index)) {
            (Some(layer), Some(place)) => {
                let what = format!("layer {index} ({})", layer.digest);
                Ok(Blob::new(what, layer.digest.clone(), layer.size, place.clone()))
            }
            _ => Err(Error::NoSuchLayer { index, layers: self.layers.len() }),
        }
    }

    /// Returns the bytes of all layers as they are stored. The manifest's bounds hold them within
    /// the limit.
    #[must_use]
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("digest", &self.digest)
            .field("layers", &self.layers)
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

/// Parts of an image whose configuration is not read yet.
pub(crate) struct Parts {
    pub asked: Digest,
    pub digest: Digest,
    pub manifest: Manifest,
    pub from: Option<String>,
}

/// Opens the configuration, if its size is within the limit.
pub(crate) fn config_blob(manifest: &Manifest, place: Place) -> Result<Blob> {
    let config = &manifest.config;
    let what = format!("the configuration {}", config.digest);
    if config.size > CONFIG_MAX {
        return Err(Error::TooLarge { what, limit: CONFIG_MAX });
    }
    Ok(Blob::new(what, config.digest.clone(), config.size, place))
}

/// Makes an image of its parts and the bytes of its configuration.
pub(crate) fn assemble(
    parts: Parts,
    config: &[u8],
    places: Vec<Place>,
    platform: &Platform,
) -> std::result::Result<Image, Refusal> {
    let Parts { asked, digest, manifest, from } = parts;
    let config = config::parse(config, platform, manifest.layers.len())?;
    let layers = manifest.layers.into_iter().zip(&config.diff_ids);
    let layers = layers.map(|((layer, compression), diff_id)| Layer {
        digest: layer.digest,
        size: layer.size,
        compression,
        diff_id: diff_id.clone(),
    });
    Ok(Image {
        digest,
        asked_digest: asked,
        config_digest: manifest.config.digest,
        layers: layers.collect(),
        config,
        from,
        places,
    })
}
