//! Manifests and indexes of images: the OCI forms and Docker's second schema. Pure.
//!
//! Their contents decide about their kind, since registries are known to send wrong types. Contents
//! that could be read as both kinds are refused (CVE-2021-41190).

use crate::digest::Digest;
use crate::platform::Platform;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Largest manifest or index, in bytes. The OCI specification asks registries for 4 MiB.
pub(crate) const MANIFEST_MAX: u64 = 4 << 20;
/// Most entries of an index.
const ENTRIES_MAX: usize = 1024;
/// Longest media type, by RFC 6838, section 4.2: two names of 127 bytes.
const TYPE_MAX: usize = 255;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Value of `Accept` for manifests.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Reasons why a manifest or a configuration is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is no JSON of an image: {0}")]
    Malformed(String),
    #[error("it has both the fields of an index and those of a manifest")]
    Ambiguous,
    #[error("its type '{0}' contradicts its contents")]
    TypeDiffers(String),
    #[error("Docker's first schema is not taken; push the image again with a current tool")]
    Schema1,
    #[error("an index inside an index is not taken")]
    NestedIndex,
    #[error("it is no container image, but '{0}'")]
    NotAnImage(String),
    #[error("it has no image for linux/{wanted}, but for {found}")]
    NoPlatform { wanted: String, found: String },
    #[error("it has {found} {what}, over the limit of {limit}")]
    TooMany { what: &'static str, found: usize, limit: usize },
    #[error("its layers have {found} bytes, over the limit of {limit} (`limits.image_bytes`)")]
    TooLarge { found: u64, limit: u64 },
    #[error("layer {0} is kept outside of the registry (a foreign layer), which is not taken")]
    ForeignLayer(usize),
    #[error("layer {0} is encrypted, which is not taken")]
    EncryptedLayer(usize),
    #[error("layer {0} has the unknown type '{1}'")]
    UnknownLayer(usize, String),
    #[error("its configuration is for {found}, and not for linux/{wanted}")]
    WrongPlatform { wanted: String, found: String },
    #[error("its configuration names {diff_ids} layers, and the manifest {layers}")]
    LayersDiffer { diff_ids: usize, layers: usize },
    #[error("`{0}` of its configuration has a NUL")]
    Nul(&'static str),
}

/// A blob that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub digest: Digest,
    pub size: u64,
}

/// Compression that a layer's type names. A reader goes by the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A parsed manifest of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<(Descriptor, Compression)>,
}

/// A parsed index: manifests for several platforms.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    entries: Vec<RawDescriptor>,
}

/// Contents behind a tag or digest.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// Bounds of a manifest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub layers: usize,
    pub image_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    fs_layers: Option<IgnoredAny>,
    signatures: Option<IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    urls: Option<Vec<String>>,
    platform: Option<RawPlatform>,
    artifact_type: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct RawPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
}

/// Parses a manifest or an index. `content_type` is the one of the answer, if any.
///
/// # Errors
/// Returns the reason why the contents are not taken.
pub(crate) fn parse(
    bytes: &[u8],
    content_type: Option<&str>,
    bounds: Bounds,
) -> Result<Document, Refusal> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| malformed(&e))?;
    let is_index = raw.manifests.is_some();
    let is_manifest = raw.config.is_some() || raw.layers.is_some();
    let is_old = raw.fs_layers.is_some() || raw.signatures.is_some();
    if u8::from(is_index) + u8::from(is_manifest) + u8::from(is_old) > 1 {
        return Err(Refusal::Ambiguous);
    }
    let old_type = raw.media_type.as_deref().is_some_and(|kind| SCHEMA_1.contains(&kind));
    if is_old || old_type || raw.schema_version == Some(1) {
        return Err(Refusal::Schema1);
    }
    if raw.schema_version != Some(2) {
        return Err(Refusal::Malformed("`schemaVersion` is not 2".to_owned()));
    }
    check_types(is_index, raw.media_type.as_deref(), content_type)?;
    if let Some(kind) = raw.artifact_type.filter(|kind| !kind.is_empty()) {
        return Err(Refusal::NotAnImage(shown(&kind)));
    }
    if let Some(entries) = raw.manifests {
        at_most("entries", entries.len(), ENTRIES_MAX)?;
        return Ok(Document::Index(Index { entries }));
    }
    let missing = |field: &str| Refusal::Malformed(format!("`{field}` is missing"));
    let config = raw.config.ok_or_else(|| missing("config"))?;
    let layers = raw.layers.ok_or_else(|| missing("layers"))?;
    manifest(config, layers, bounds).map(Document::Manifest)
}

/// Checks the types that contents and answer give. The contents' own type must fit. The answer's
/// may differ where the contents name theirs, since some registries serve indexes as manifests.
fn check_types(
    is_index: bool,
    own: Option<&str>,
    content_type: Option<&str>,
) -> Result<(), Refusal> {
    let right = if is_index { [OCI_INDEX, DOCKER_LIST] } else { [OCI_MANIFEST, DOCKER_MANIFEST] };
    if let Some(own) = own.filter(|own| !own.is_empty()) {
        return if right.contains(&own) { Ok(()) } else { Err(Refusal::TypeDiffers(shown(own))) };
    }
    let known = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST, SCHEMA_1[0], SCHEMA_1[1]];
    match content_type.map(essence) {
        Some(answered) if known.contains(&answered) && !right.contains(&answered) => {
            Err(Refusal::TypeDiffers(shown(answered)))
        }
        _ => Ok(()),
    }
}

fn manifest(
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
    bounds: Bounds,
) -> Result<Manifest, Refusal> {
    if !CONFIGS.contains(&config.media_type.as_str()) {
        return Err(Refusal::NotAnImage(shown(&config.media_type)));
    }
    at_most("layers", layers.len(), bounds.layers)?;
    let mut total: u64 = 0;
    let mut taken = Vec::new();
    for (index, layer) in layers.into_iter().enumerate() {
        total = total.saturating_add(layer.size);
        if total > bounds.image_bytes {
            return Err(Refusal::TooLarge { found: total, limit: bounds.image_bytes });
        }
        let compression = compression(index, &layer)?;
        taken.push((Descriptor { digest: layer.digest, size: layer.size }, compression));
    }
    let config = Descriptor { digest: config.digest, size: config.size };
    Ok(Manifest { config, layers: taken })
}

/// Reads the type of a layer, and refuses layers that the registry does not serve as plain blobs.
fn compression(index: usize, layer: &RawDescriptor) -> Result<Compression, Refusal> {
    let kind = layer.media_type.as_str();
    // Contents from elsewhere would be fetched from a URL that the image's author chose
    // (CVE-2020-15157).
    if kind.contains("foreign")
        || kind.contains("nondistributable")
        || layer.urls.as_ref().is_some_and(|urls| !urls.is_empty())
    {
        return Err(Refusal::ForeignLayer(index));
    }
    if kind.ends_with("+encrypted") {
        return Err(Refusal::EncryptedLayer(index));
    }
    match kind {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        other => Err(Refusal::UnknownLayer(index, shown(other))),
    }
}

impl Index {
    /// Chooses the manifest for a platform: the first with the best variant.
    ///
    /// # Errors
    /// Returns `NoPlatform` without a fitting manifest, and `NestedIndex` if an index would fit.
    pub(crate) fn choose(&self, platform: &Platform) -> Result<Descriptor, Refusal> {
        let mut best: Option<(u8, &RawDescriptor)> = None;
        for entry in &self.entries {
            let rank = match &entry.platform {
                // A lone entry without a platform is the image; its configuration is checked.
                None if self.entries.len() == 1 => Some(0),
                None => None,
                Some(raw) => {
                    let variant = raw.variant.as_deref().unwrap_or("");
                    platform.rank(&raw.os, &raw.architecture, variant)
                }
            };
            let is_artifact = entry.artifact_type.as_ref().is_some_and(|kind| !kind.is_empty());
            let Some(rank) = rank.filter(|_| !is_artifact) else { continue };
            if best.is_none_or(|(other, _)| rank > other) {
                best = Some((rank, entry));
            }
        }
        let Some((_, entry)) = best else {
            let wanted = platform.architecture.clone();
            return Err(Refusal::NoPlatform { wanted, found: self.platforms() });
        };
        match entry.media_type.as_str() {
            OCI_INDEX | DOCKER_LIST => Err(Refusal::NestedIndex),
            OCI_MANIFEST | DOCKER_MANIFEST => {
                Ok(Descriptor { digest: entry.digest.clone(), size: entry.size })
            }
            kind if SCHEMA_1.contains(&kind) => Err(Refusal::Schema1),
            other => Err(Refusal::NotAnImage(shown(other))),
        }
    }

    /// Lists the platforms, for an error.
    fn platforms(&self) -> String {
        let named = self.entries.iter().filter_map(|entry| entry.platform.as_ref());
        let mut names: Vec<String> = named
            .filter(|raw| raw.os != "unknown")
            .map(|raw| {
                let variant = raw.variant.as_ref().map_or(String::new(), |v| format!("/{v}"));
                shown(&format!("{}/{}{variant}", raw.os, raw.architecture))
            })
            .take(16)
            .collect();
        names.dedup();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<(), Refusal> {
    if found > limit { Err(Refusal::TooMany { what, found, limit }) } else { Ok(()) }
}

/// Returns a media type without its parameters.
fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Makes a reason of a JSON error, whose text may repeat hostile contents.
pub(crate) fn malformed(error: &serde_json::Error) -> Refusal {
    Refusal::Malformed(shown(&error.to_string()))
}

/// Makes hostile text fit for an error.
pub(crate) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TYPE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const BOUNDS: Bounds = Bounds { layers: 3, image_bytes: 1000 };

    fn digest(of: &str) -> String {
        Digest::sha256(of.as_bytes()).to_string()
    }

    fn layer(kind: &str) -> Value {
        json!({"mediaType": kind, "digest": digest("layer"), "size": 10})
    }

    fn image() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": CONFIGS[0], "digest": digest("config"), "size": 5},
            "layers": [layer("application/vnd.oci.image.layer.v1.tar+gzip")],
        })
    }

    fn entry(os: &str, architecture: &str, variant: &str, of: &str) -> Value {
        json!({
            "mediaType": OCI_MANIFEST, "digest": digest(of), "size": 7,
            "platform": {"os": os, "architecture": architecture, "variant": variant},
        })
    }

    fn index(entries: &[Value]) -> Value {
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    }

    fn read(value: &Value, content_type: Option<&str>) -> Result<Document, Refusal> {
        parse(value.to_string().as_bytes(), content_type, BOUNDS)
    }

    fn with(key: &str, value: Value) -> Value {
        let mut changed = image();
        changed[key] = value;
        changed
    }

    fn choose(entries: &[Value]) -> Result<Descriptor, Refusal> {
        let platform = Platform { architecture: "amd64".into(), level: 2 };
        match read(&index(entries), None)? {
            Document::Index(index) => index.choose(&platform),
            Document::Manifest(_) => panic!("an index became a manifest"),
        }
    }

    #[test]
    fn manifest_of_an_image_is_read() {
        let Document::Manifest(manifest) = read(&image(), Some(OCI_MANIFEST)).unwrap() else {
            panic!("no manifest")
        };
        assert_eq!(manifest.config.size, 5);
        assert_eq!(manifest.layers[0].1, Compression::Gzip);
    }

    #[test]
    fn contents_of_both_kinds_are_refused() {
        let both = with("manifests", json!([]));
        assert_eq!(read(&both, Some(OCI_MANIFEST)).unwrap_err(), Refusal::Ambiguous);
        let mut old = image();
        old["fsLayers"] = json!([]);
        assert_eq!(read(&old, None).unwrap_err(), Refusal::Ambiguous);
        // A field that is there twice is malformed, whichever of the two would count.
        let twice = br#"{"schemaVersion":2,"layers":[],"layers":[]}"#;
        assert!(matches!(parse(twice, None, BOUNDS), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn type_that_contradicts_the_contents_is_refused() {
        let differs = |value: &Value, content_type| {
            matches!(read(value, content_type), Err(Refusal::TypeDiffers(_)))
        };
        assert!(differs(&with("mediaType", json!(OCI_INDEX)), None));
        let mut untyped = image();
        untyped.as_object_mut().unwrap().remove("mediaType");
        assert!(differs(&untyped, Some(OCI_INDEX)));
        assert!(read(&untyped, Some("application/json; charset=utf-8")).is_ok());
        assert!(read(&untyped, None).is_ok());
        // Some registries send a wrong type for contents that name their own.
        assert!(read(&index(&[]), Some(DOCKER_MANIFEST)).is_ok());
    }

    #[test]
    fn kinds_that_are_no_image_are_refused() {
        let fails = |value: Value| read(&value, None).unwrap_err();
        assert_eq!(fails(json!({"schemaVersion": 1, "fsLayers": []})), Refusal::Schema1);
        assert_eq!(fails(json!({"schemaVersion": 2, "mediaType": SCHEMA_1[1]})), Refusal::Schema1);
        assert!(matches!(fails(json!({"schemaVersion": 2})), Refusal::Malformed(_)));
        assert!(matches!(fails(json!({"schemaVersion": 3})), Refusal::Malformed(_)));
        assert!(matches!(fails(json!([])), Refusal::Malformed(_)));
        assert!(matches!(fails(with("artifactType", json!("x/y"))), Refusal::NotAnImage(_)));
        let helm = json!({"mediaType": "application/vnd.cncf.helm.config.v1+json",
            "digest": digest("c"), "size": 1});
        assert!(matches!(fails(with("config", helm)), Refusal::NotAnImage(_)));
        let deep = "[".repeat(100_000);
        assert!(matches!(parse(deep.as_bytes(), None, BOUNDS), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn layers_that_no_plain_blob_holds_are_refused() {
        let fails = |layer: Value| read(&with("layers", json!([layer])), None).unwrap_err();
        let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert_eq!(fails(layer(foreign)), Refusal::ForeignLayer(0));
        let mut elsewhere = layer(gzip);
        elsewhere["urls"] = json!(["https://evil.example/"]);
        assert_eq!(fails(elsewhere), Refusal::ForeignLayer(0));
        assert_eq!(fails(layer(&format!("{gzip}+encrypted"))), Refusal::EncryptedLayer(0));
        assert!(matches!(fails(layer("text/plain")), Refusal::UnknownLayer(0, _)));
        let mut empty = layer(gzip);
        empty["urls"] = Value::Null;
        assert!(read(&with("layers", json!([empty])), None).is_ok());
        let mut bad = layer(gzip);
        bad["digest"] = json!("sha256:../../x");
        assert!(matches!(fails(bad), Refusal::Malformed(_)));
        let mut negative = layer(gzip);
        negative["size"] = json!(-1);
        assert!(matches!(fails(negative), Refusal::Malformed(_)));
    }

    #[test]
    fn count_and_total_size_of_layers_are_bounded() {
        let gzip = layer("application/vnd.oci.image.layer.v1.tar+gzip");
        let four = json!([gzip, gzip, gzip, gzip]);
        let want = Refusal::TooMany { what: "layers", found: 4, limit: 3 };
        assert_eq!(read(&with("layers", four), None).unwrap_err(), want);
        let mut large = gzip;
        large["size"] = json!(u64::MAX);
        let two = read(&with("layers", json!([large, large])), None).unwrap_err();
        assert_eq!(two, Refusal::TooLarge { found: u64::MAX, limit: 1000 });
    }

    #[test]
    fn best_entry_for_the_platform_is_chosen() {
        let entries = [
            entry("unknown", "unknown", "", "attestation"),
            entry("linux", "arm64", "v8", "arm"),
            entry("linux", "amd64", "v3", "too new"),
            entry("linux", "amd64", "", "plain"),
            entry("linux", "amd64", "v2", "best"),
            entry("linux", "amd64", "v2", "later"),
        ];
        assert_eq!(choose(&entries).unwrap().digest.to_string(), digest("best"));
        assert_eq!(choose(&entries[..4]).unwrap().digest.to_string(), digest("plain"));
        let none = Refusal::NoPlatform { wanted: "amd64".into(), found: "linux/arm64/v8".into() };
        assert_eq!(choose(&entries[..2]).unwrap_err(), none);
        let mut nested = entry("linux", "amd64", "", "nested");
        nested["mediaType"] = json!(OCI_INDEX);
        assert_eq!(choose(&[nested]).unwrap_err(), Refusal::NestedIndex);
        let mut artifact = entry("linux", "amd64", "v2", "artifact");
        artifact["artifactType"] = json!("x/y");
        let chosen = choose(&[artifact, entry("linux", "amd64", "", "plain")]).unwrap();
        assert_eq!(chosen.digest.to_string(), digest("plain"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, None, BOUNDS);
        }

        #[test]
        fn changed_manifest_is_parsed_without_panic(at in 0usize..400, byte in any::<u8>()) {
            let mut bytes = image().to_string().into_bytes();
            let length = bytes.len();
            bytes[at % length] = byte;
            let _ = parse(&bytes, None, BOUNDS);
        }
    }
}
