//! Images in archives: OCI layouts and `docker save`.

use crate::sample::{OCI_INDEX, OCI_MANIFEST, Sample, layers, platform};
use registry::{Archive, Compression, Digest, Error, Limits, Refusal};
use serde_json::{Value, json};
use std::path::Path;

/// Appends a member of a tar archive.
fn member(out: &mut Vec<u8>, path: &str, flag: u8, link: &str, contents: &[u8]) {
    let mut header = [0u8; 512];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
    header[148..156].copy_from_slice(b"        ");
    header[156] = flag;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(contents);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, contents) in members {
        member(&mut out, path, b'0', "", contents);
    }
    out.extend([0; 1024]);
    out
}

fn blob_path(bytes: &[u8]) -> String {
    format!("./blobs/sha256/{}", Digest::sha256(bytes).digits())
}

/// Makes an OCI layout of an image, with some entries in its index.
fn layout(sample: &Sample, entries: &Value, rest: &[&[u8]]) -> Vec<u8> {
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let manifest = sample.bytes();
    let mut members = vec![("index.json".to_owned(), index.as_bytes())];
    let layer = sample.layers[0].as_slice();
    for bytes in
        [manifest.as_slice(), &sample.config, layer].into_iter().chain(rest.iter().copied())
    {
        members.push((blob_path(bytes), bytes));
    }
    let members: Vec<_> = members.iter().map(|(path, bytes)| (path.as_str(), *bytes)).collect();
    tar(&members)
}

fn entry(kind: &str, bytes: &[u8], name: &str) -> Value {
    json!({"mediaType": kind, "digest": Digest::sha256(bytes), "size": bytes.len(),
        "annotations": {"org.opencontainers.image.ref.name": name}})
}

async fn open(bytes: &[u8]) -> Result<Archive, Error> {
    let folder = std::env::temp_dir();
    let archive = Archive::receive(bytes, &folder, &Limits::default()).await?;
    Ok(archive.with_platform(platform()))
}

#[tokio::test]
async fn oci_layout_is_read() {
    let sample = Sample::large();
    let bytes = layout(&sample, &json!([entry(OCI_MANIFEST, &sample.bytes(), "1")]), &[]);
    let image = open(&bytes).await.unwrap().image(None).await.unwrap();
    assert_eq!((&image.digest, image.from.as_deref()), (&sample.digest(), None));
    assert_eq!(layers(&image).await.unwrap(), sample.layers);
    // Streams of one image do not disturb each other.
    let (first, second) = tokio::join!(layers(&image), layers(&image));
    assert_eq!(first.unwrap(), second.unwrap());
    let folder = std::env::temp_dir().join(format!("registry-archive-{}", std::process::id()));
    std::fs::write(&folder, &bytes).unwrap();
    let opened = Archive::open(&folder, &Limits::default()).await;
    std::fs::remove_file(&folder).unwrap();
    let image = opened.unwrap().with_platform(platform()).image(Some("1")).await.unwrap();
    assert_eq!(image.config.env, ["PATH=/bin"]);
}

#[tokio::test]
async fn layout_with_an_index_leads_to_the_platform() {
    let sample = Sample::of(b"layer");
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": sample.digest(), "size": sample.bytes().len(),
        "platform": {"os": "linux", "architecture": "amd64"}}]});
    let index = index.to_string().into_bytes();
    let entries = json!([entry(OCI_INDEX, &index, "1"), entry(OCI_MANIFEST, b"other", "2")]);
    let archive = open(&layout(&sample, &entries, &[&index])).await.unwrap();
    let image = archive.image(Some("1")).await.unwrap();
    assert_eq!(image.asked_digest, Digest::sha256(&index));
    assert_eq!(image.digest, sample.digest());
    let several = archive.image(None).await.unwrap_err().to_string();
    assert!(several.contains("several images") && several.contains("1, 2"), "{several}");
    let missing = archive.image(Some("2")).await.unwrap_err().to_string();
    assert!(missing.contains("it lacks `blobs/sha256/"), "{missing}");
}

#[tokio::test]
async fn archive_of_docker_save_is_read_through_its_links() {
    let sample = Sample::of(b"layer");
    let list = json!([{"Config": "c.json", "RepoTags": ["team/app:1"], "Layers": ["b/layer.tar"]}]);
    let mut bytes = Vec::new();
    member(&mut bytes, "manifest.json", b'0', "", list.to_string().as_bytes());
    member(&mut bytes, "c.json", b'0', "", &sample.config);
    member(&mut bytes, "a/layer.tar", b'0', "", b"layer");
    member(&mut bytes, "b/layer.tar", b'2', "../a/layer.tar", b"");
    bytes.extend([0; 1024]);
    let image = open(&bytes).await.unwrap().image(Some("team/app:1")).await.unwrap();
    assert_eq!(image.digest, Digest::sha256(&sample.config));
    assert_eq!(layers(&image).await.unwrap(), sample.layers);
}

/// Contents that differ from their digests are found when they are read.
#[tokio::test]
async fn archive_with_wrong_contents_is_refused() {
    let sample = Sample::of(b"layer");
    let list = json!([{"Config": "c.json", "Layers": ["l"]}]).to_string();
    let saved = |layer: &'static [u8]| {
        tar(&[("manifest.json", list.as_bytes()), ("c.json", &sample.config), ("l", layer)])
    };
    let image = open(&saved(b"other")).await.unwrap().image(None).await.unwrap();
    assert!(matches!(layers(&image).await, Err(Error::WrongDigest { .. })));
    // Compressed layers have a digest of their own, and the plain one is the converter's.
    let image = open(&saved(b"\x1f\x8b\x08rest")).await.unwrap().image(None).await.unwrap();
    assert_eq!(image.layers[0].compression, Compression::Gzip);
    assert_eq!(layers(&image).await.unwrap(), [b"\x1f\x8b\x08rest"]);
    let mut entry = entry(OCI_MANIFEST, &sample.bytes(), "1");
    entry["size"] = json!(1);
    let bytes = layout(&sample, &json!([entry]), &[]);
    let error = open(&bytes).await.unwrap().image(None).await.unwrap_err();
    assert!(matches!(error, Error::WrongSize { .. }), "{error}");
}

#[tokio::test]
async fn file_that_is_no_archive_is_refused() {
    for (bytes, why) in [
        (&b"\x1f\x8b\x08compressed"[..], "gunzip"),
        (b"\x28\xb5\x2f\xfdcompressed", "unzstd"),
        (b"", "no whole tar"),
        (&[b'x'; 2000], "no whole tar"),
    ] {
        let error = open(bytes).await.err().unwrap().to_string();
        assert!(error.contains(why), "{error}");
    }
    let error = open(&tar(&[("a", b"b")])).await.unwrap().image(None).await.unwrap_err();
    assert!(error.to_string().contains("index.json"), "{error}");
    let limits = Limits { image_bytes: 0, ..Limits::default() };
    let endless = tokio::io::repeat(0);
    let error = Archive::receive(endless, &std::env::temp_dir(), &limits).await.err().unwrap();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert!(Archive::open(Path::new("/dev/zero"), &limits).await.is_err());
    assert!(Archive::open(Path::new("/nowhere/at/all"), &limits).await.is_err());
}

#[tokio::test]
async fn links_and_paths_of_an_archive_stay_inside() {
    let sample = Sample::of(b"layer");
    for target in ["../../etc/passwd", "l", "/etc/passwd"] {
        let list = json!([{"Config": "c.json", "Layers": ["l"]}]).to_string();
        let mut bytes = Vec::new();
        member(&mut bytes, "manifest.json", b'0', "", list.as_bytes());
        member(&mut bytes, "c.json", b'0', "", &sample.config);
        member(&mut bytes, "l", b'2', target, b"");
        bytes.extend([0; 1024]);
        let error = open(&bytes).await.unwrap().image(None).await.unwrap_err();
        assert!(matches!(error, Error::Archive { .. }), "{target}: {error}");
    }
    let list = json!([{"Config": "../c.json", "Layers": []}]).to_string();
    let bytes = tar(&[("manifest.json", list.as_bytes())]);
    assert!(open(&bytes).await.unwrap().image(None).await.is_err());
}

#[tokio::test]
async fn archives_image_is_checked_as_a_registrys() {
    let mut sample = Sample::of(b"layer");
    sample.manifest["layers"][0]["urls"] = json!(["https://elsewhere.example/"]);
    let bytes = layout(&sample, &json!([entry(OCI_MANIFEST, &sample.bytes(), "1")]), &[]);
    let error = open(&bytes).await.unwrap().image(None).await.unwrap_err();
    assert!(matches!(error, Error::Manifest { why: Refusal::ForeignLayer(0), .. }), "{error}");
}
