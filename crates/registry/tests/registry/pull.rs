//! Pulls that succeed, and references that lead nowhere.

use crate::fake::{Fake, Fault};
use crate::sample::{OCI_INDEX, OCI_MANIFEST, Sample, client, layers, pull, reference, settings};
use registry::{Client, Compression, Error, Proof, Rewrite};
use serde_json::json;
use tokio::io::AsyncReadExt;

#[tokio::test]
async fn image_is_pulled_with_its_configuration_and_layers() {
    let fake = Fake::start().await;
    let sample = Sample::large();
    sample.push(&fake, "team/app", "1");
    let (image, layers) = pull(&client(&[&fake]), &fake).await.unwrap();
    assert_eq!((&image.digest, &image.asked_digest), (&sample.digest(), &sample.digest()));
    assert_eq!(image.config.env, ["PATH=/bin"]);
    assert_eq!(image.layers[0].compression, Compression::None);
    assert_eq!((layers, image.layer_bytes()), (sample.layers, 3_000_000));
    assert!(matches!(image.layer(1), Err(Error::NoSuchLayer { .. })));
    let mut read = Vec::new();
    image.layer(0).unwrap().into_reader().read_to_end(&mut read).await.unwrap();
    assert_eq!(read.len(), 3_000_000);
}

/// The acceptance test `import_again_is_free`: the digest alone says that nothing is to do.
#[tokio::test]
async fn import_again_is_free() {
    let fake = Fake::start().await;
    let sample = Sample::of(b"layer");
    sample.push(&fake, "team/app", "1");
    let client = client(&[&fake]);
    let first = client.resolve(&reference(&fake, "team/app:1"), None).await.unwrap();
    fake.taken();
    let again = client.resolve(&reference(&fake, "team/app:1"), None).await.unwrap();
    assert_eq!((again.digest(), again.proof()), (first.digest(), Proof::Anonymous));
    assert_eq!(fake.taken(), ["HEAD /v2/team/app/manifests/1"]);
}

#[tokio::test]
async fn moved_tag_is_seen() {
    let fake = Fake::start().await;
    let (old, new) = (Sample::of(b"old"), Sample::of(b"new"));
    old.push(&fake, "team/app", "1");
    let client = client(&[&fake]);
    let before = client.resolve(&reference(&fake, "team/app:1"), None).await.unwrap();
    new.push(&fake, "team/app", "1");
    let after = client.resolve(&reference(&fake, "team/app:1"), None).await.unwrap();
    assert_eq!((before.digest(), after.digest()), (&old.digest(), &new.digest()));
    // The image that was resolved before stays what it was.
    let image = client.image(&before).await.unwrap();
    assert_eq!(layers(&image).await.unwrap(), old.layers);
    // A digest in the reference wins over the tag.
    let pinned = format!("team/app:1@{}", old.digest());
    let pinned = client.resolve(&reference(&fake, &pinned), None).await.unwrap();
    assert_eq!(pinned.digest(), &old.digest());
}

#[tokio::test]
async fn index_leads_to_the_image_of_the_platform() {
    let fake = Fake::start().await;
    let sample = Sample::of(b"amd64");
    sample.push(&fake, "team/app", "only-amd64");
    let entry = |architecture: &str, digest| {
        json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": sample.bytes().len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        entry("arm64", Sample::of(b"arm64").digest()), entry("amd64", sample.digest())]});
    let index = index.to_string().into_bytes();
    fake.put_manifest("team/app", "1", OCI_INDEX, &index);
    let (image, layers) = pull(&client(&[&fake]), &fake).await.unwrap();
    assert_eq!(image.asked_digest, registry::Digest::sha256(&index));
    assert_eq!((image.digest, layers), (sample.digest(), sample.layers));
}

#[tokio::test]
async fn registry_without_digest_in_its_answer_is_asked_for_the_contents() {
    let fake = Fake::start().await;
    let sample = Sample::of(b"layer");
    sample.push(&fake, "team/app", "1");
    fake.fault("1", Fault::NoDigest);
    let resolved = client(&[&fake]).resolve(&reference(&fake, "team/app:1"), None).await.unwrap();
    assert_eq!(resolved.digest(), &sample.digest());
    let methods = ["HEAD /v2/team/app/manifests/1", "GET /v2/team/app/manifests/1"];
    assert_eq!(fake.taken(), methods);
}

#[tokio::test]
async fn missing_tag_and_missing_repository_are_told_apart() {
    let fake = Fake::start().await;
    Sample::of(b"layer").push(&fake, "team/app", "1");
    let client = client(&[&fake]);
    let fails = async |rest: &str| {
        let error = client.resolve(&reference(&fake, rest), None).await.unwrap_err();
        error.to_string().replace(&fake.host(), "host")
    };
    let image = "image 'host/team/app:2' not found: the image or tag does not exist";
    assert!(fails("team/app:2").await.starts_with(image));
    assert!(fails("team/none").await.starts_with("repository 'host/team/none:latest' not found: "));
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_last() {
    let (empty, wrong, good) = (Fake::start().await, Fake::start().await, Fake::start().await);
    let sample = Sample::of(b"layer");
    sample.push(&good, "hub/team/app", "1");
    // The second mirror resolves the tag, and serves other contents.
    sample.push(&wrong, "hub/team/app", "1");
    wrong.fault(sample.digest(), Fault::Instead(Sample::of(b"other").bytes()));
    let mut settings = settings(&[&empty, &wrong, &good]);
    let mirrors = [&empty, &wrong, &good].map(|mirror| format!("{}/hub", mirror.host()));
    let own = registry::RegistrySettings { mirrors: mirrors.into(), ..Default::default() };
    settings.registries.insert("registry.invalid".into(), own);
    let client = Client::new(settings).unwrap();
    let name = "registry.invalid/team/app:1".parse().unwrap();
    let resolved = client.resolve(&name, None).await.unwrap();
    assert_eq!(resolved.from(), wrong.host());
    let image = client.image(&resolved).await.unwrap();
    assert_eq!(image.from, Some(good.host()));
    assert_eq!(layers(&image).await.unwrap(), sample.layers);
    let missing = "registry.invalid/team/app:2".parse().unwrap();
    let error = client.resolve(&missing, None).await.unwrap_err();
    assert!(matches!(error.root(), Error::Unreachable { .. }), "{error}");
    let first = format!("mirrors that were asked first: {}: repository", empty.host());
    assert!(error.to_string().contains(&first), "{error}");
}

#[tokio::test]
async fn layer_that_a_mirror_cuts_goes_on_at_the_registry() {
    let (mirror, own) = (Fake::start().await, Fake::start().await);
    let sample = Sample::large();
    sample.push(&mirror, "team/app", "1");
    sample.push(&own, "team/app", "1");
    mirror.fault(sample.layer_digest(), Fault::Cut { after: 500_000, times: 1000 });
    let mut settings = settings(&[&mirror, &own]);
    settings.registries.get_mut(&own.host()).unwrap().mirrors = vec![mirror.host()];
    settings.limits.tries = 2;
    let (_, layers) = crate::sample::pull(&Client::new(settings).unwrap(), &own).await.unwrap();
    assert_eq!(layers, sample.layers);
    let seen = own.seen();
    assert_eq!(seen.len(), 1, "the registry served more than the rest of the layer");
    assert_eq!(seen[0].headers["range"], "bytes=1000000-");
}

#[tokio::test]
async fn rewrite_leads_to_another_registry() {
    let fake = Fake::start().await;
    let sample = Sample::of(b"layer");
    sample.push(&fake, "hub/ubuntu", "22.04");
    let mut settings = settings(&[&fake]);
    let to = format!("{}/hub/", fake.host());
    settings.rewrites = vec![Rewrite { from: "docker.io/library/".into(), to }];
    settings.access.allow = vec!["docker.io".into()];
    let client = Client::new(settings).unwrap();
    let resolved = client.resolve(&"ubuntu:22.04".parse().unwrap(), None).await.unwrap();
    assert_eq!(resolved.digest(), &sample.digest());
    let other = client.resolve(&reference(&fake, "hub/ubuntu:22.04"), None).await.unwrap_err();
    assert!(matches!(other, Error::NotAllowed { .. }), "{other}");
}
