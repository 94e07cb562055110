//! Sample images, and the settings that reach a fake registry.

use crate::fake::Fake;
use registry::{
    Client, Digest, Error, Image, Limits, Platform, Reference, RegistrySettings, Settings,
};
use serde_json::{Value, json};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image whose layers are arbitrary bytes.
#[derive(Clone)]
pub(crate) struct Sample {
    pub manifest: Value,
    pub config: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
}

impl Sample {
    /// Makes an image of one layer with some bytes.
    pub(crate) fn of(layer: &[u8]) -> Self {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(layer)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::sha256(&config), "size": config.len(),
            },
            "layers": [{"mediaType": LAYER, "digest": Digest::sha256(layer), "size": layer.len()}],
        });
        Self { manifest, config, layers: vec![layer.to_vec()] }
    }

    /// Makes an image of one large layer.
    pub(crate) fn large() -> Self {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        Self::of(&bytes)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::sha256(&self.bytes())
    }

    pub(crate) fn layer_digest(&self) -> Digest {
        Digest::sha256(&self.layers[0])
    }

    /// Puts the image into a registry.
    pub(crate) fn push(&self, to: &Fake, repository: &str, tag: &str) {
        to.put_manifest(repository, tag, OCI_MANIFEST, &self.bytes());
        to.put_blob(&self.config);
        for layer in &self.layers {
            to.put_blob(layer);
        }
    }
}

/// Returns settings that permit these registries, with short limits of time.
pub(crate) fn settings(registries: &[&Fake]) -> Settings {
    let permitted =
        || RegistrySettings { http: true, private: true, ..RegistrySettings::default() };
    Settings {
        registries: registries.iter().map(|fake| (fake.host(), permitted())).collect(),
        limits: Limits { idle_timeout_ms: 400, pull_timeout_ms: 20_000, ..Limits::default() },
        platform: Some(platform()),
        ..Settings::default()
    }
}

pub(crate) fn platform() -> Platform {
    Platform { architecture: "amd64".into(), level: 1 }
}

pub(crate) fn client(registries: &[&Fake]) -> Client {
    Client::new(settings(registries)).unwrap()
}

pub(crate) fn reference(fake: &Fake, rest: &str) -> Reference {
    format!("{}/{rest}", fake.host()).parse().unwrap()
}

/// Pulls `team/app:1` with all of its layers.
pub(crate) async fn pull(client: &Client, fake: &Fake) -> Result<(Image, Vec<Vec<u8>>), Error> {
    let resolved = client.resolve(&reference(fake, "team/app:1"), None).await?;
    let image = client.image(&resolved).await?;
    let layers = layers(&image).await?;
    Ok((image, layers))
}

pub(crate) async fn layers(image: &Image) -> Result<Vec<Vec<u8>>, Error> {
    let mut all = Vec::new();
    for at in 0..image.layers.len() {
        let (mut blob, mut bytes) = (image.layer(at)?, Vec::new());
        while let Some(chunk) = blob.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        all.push(bytes);
    }
    Ok(all)
}
