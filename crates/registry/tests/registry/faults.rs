//! Registries that fail or lie. Each fault ends in its own error.

use crate::fake::{Fake, Fault};
use crate::sample::{OCI_INDEX, OCI_MANIFEST, Sample, client, pull, reference, settings};
use registry::{Client, Error, Refusal};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Pulls from a registry with a fault, and returns the error.
async fn fails(fake: &Fake) -> Error {
    pull(&client(&[fake]), fake).await.unwrap_err()
}

async fn with_layer(sample: &Sample, fault: Fault) -> Fake {
    let fake = Fake::start().await;
    sample.push(&fake, "team/app", "1");
    fake.fault(sample.layer_digest(), fault);
    fake
}

async fn with_manifest(kind: &str, manifest: &Value) -> Fake {
    let fake = Fake::start().await;
    fake.put_manifest("team/app", "1", kind, manifest.to_string().as_bytes());
    fake
}

#[tokio::test]
async fn layer_that_breaks_off_goes_on_by_range() {
    let sample = Sample::large();
    let fake = with_layer(&sample, Fault::Cut { after: 700_000, times: 3 }).await;
    let (_, layers) = pull(&client(&[&fake]), &fake).await.unwrap();
    assert_eq!(layers, sample.layers);
    let ranges = fake.seen().into_iter().filter_map(|seen| seen.headers.get("range").cloned());
    let ranges: Vec<_> = ranges.map(|range| range.to_str().unwrap().to_owned()).collect();
    assert_eq!(ranges, ["bytes=700000-", "bytes=1400000-", "bytes=2100000-"]);
}

#[tokio::test]
async fn layer_that_breaks_off_goes_on_without_ranges_too() {
    let sample = Sample::large();
    let fake = with_layer(&sample, Fault::NoRange { after: 700_000, times: 2 }).await;
    let (_, layers) = pull(&client(&[&fake]), &fake).await.unwrap();
    assert_eq!(layers, sample.layers);
}

#[tokio::test]
async fn layer_that_always_breaks_off_ends_the_pull() {
    let fake = with_layer(&Sample::large(), Fault::Cut { after: 10, times: 1000 }).await;
    let error = fails(&fake).await;
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn silent_registry_ends_the_pull_after_the_idle_time() {
    let fake = with_layer(&Sample::large(), Fault::Stall { after: 100 }).await;
    let error = fails(&fake).await;
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
}

#[tokio::test]
async fn slow_registry_ends_the_pull_after_its_whole_time() {
    let fake = with_layer(&Sample::large(), Fault::Stall { after: 100 }).await;
    let mut settings = settings(&[&fake]);
    (settings.limits.idle_timeout_ms, settings.limits.pull_timeout_ms) = (60_000, 500);
    let error = pull(&Client::new(settings).unwrap(), &fake).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn layer_with_other_contents_is_refused() {
    let sample = Sample::of(b"right");
    let fake = with_layer(&sample, Fault::Instead(b"wrong".to_vec())).await;
    let error = fails(&fake).await;
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
    for size in ["", "longer than it is", "s"] {
        let fake = with_layer(&sample, Fault::Instead(size.into())).await;
        let error = fails(&fake).await;
        assert!(matches!(error, Error::WrongSize { expected: 5, .. }), "{error}");
    }
}

#[tokio::test]
async fn endless_body_ends_at_its_limit() {
    let sample = Sample::large();
    let fake = with_layer(&sample, Fault::Endless).await;
    let error = fails(&fake).await;
    assert!(
        matches!(error, Error::WrongSize { .. } | Error::WrongDigest { .. }),
        "a layer: {error}"
    );
    for what in [sample.digest(), registry::Digest::sha256(&sample.config)] {
        let fake = with_layer(&sample, Fault::NoDigest).await;
        fake.fault(&what, Fault::Endless);
        let error = fails(&fake).await;
        assert!(matches!(error, Error::TooLarge { .. } | Error::WrongSize { .. }), "{error}");
    }
}

#[tokio::test]
async fn manifest_with_other_contents_is_refused() {
    let fake = Fake::start().await;
    let sample = Sample::of(b"layer");
    sample.push(&fake, "team/app", "1");
    fake.fault(sample.digest(), Fault::Instead(Sample::of(b"other").bytes()));
    let error = fails(&fake).await;
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
}

#[tokio::test]
async fn image_of_a_kind_that_is_not_taken_is_refused() {
    let sample = Sample::of(b"layer");
    let of = |kind, manifest: Value| async move {
        let error = fails(&with_manifest(kind, &manifest).await).await;
        let Error::Manifest { why, .. } = error else { panic!("{error}") };
        why
    };
    let mut both = sample.manifest.clone();
    both["manifests"] = json!([]);
    assert_eq!(of(OCI_MANIFEST, both).await, Refusal::Ambiguous);
    let nested = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": OCI_INDEX, "digest": sample.digest(), "size": 1,
        "platform": {"os": "linux", "architecture": "amd64"}}]});
    assert_eq!(of(OCI_INDEX, nested).await, Refusal::NestedIndex);
    let mut foreign = sample.manifest.clone();
    foreign["layers"][0]["urls"] = json!(["https://elsewhere.example/"]);
    assert_eq!(of(OCI_MANIFEST, foreign).await, Refusal::ForeignLayer(0));
    let old = json!({"schemaVersion": 1, "fsLayers": []});
    let v1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    assert_eq!(of(v1, old).await, Refusal::Schema1);
    let mut large = sample.manifest.clone();
    large["layers"][0]["size"] = json!(u64::MAX);
    assert!(matches!(of(OCI_MANIFEST, large).await, Refusal::TooLarge { .. }));
}

/// The entry of an index says that a manifest follows, and an index does.
#[tokio::test]
async fn index_in_the_place_of_a_manifest_is_refused() {
    let fake = Fake::start().await;
    let inner = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).to_string();
    fake.put_manifest("team/app", "inner", OCI_MANIFEST, inner.as_bytes());
    let outer = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": registry::Digest::sha256(inner.as_bytes()),
        "size": inner.len(), "platform": {"os": "linux", "architecture": "amd64"}}]});
    fake.put_manifest("team/app", "1", OCI_INDEX, outer.to_string().as_bytes());
    let error = fails(&fake).await;
    assert!(matches!(error, Error::Manifest { why: Refusal::NestedIndex, .. }), "{error}");
}

#[tokio::test]
async fn image_over_the_callers_limit_is_refused_before_its_layers() {
    let fake = Fake::start().await;
    Sample::large().push(&fake, "team/app", "1");
    let client = client(&[&fake]).with_image_bytes(2_999_999);
    let resolved = client.resolve(&reference(&fake, "team/app:1"), None).await.unwrap();
    let error = client.image(&resolved).await.unwrap_err();
    let too_large = Refusal::TooLarge { found: 3_000_000, limit: 2_999_999 };
    assert!(matches!(&error, Error::Manifest { why, .. } if *why == too_large), "{error}");
    assert!(fake.taken().iter().all(|one| !one.contains("/blobs/")));
}

#[tokio::test]
async fn page_of_a_portal_is_no_registry() {
    let fake = Fake::start().await;
    Sample::of(b"layer").push(&fake, "team/app", "1");
    fake.fault("1", Fault::Page);
    let error = fails(&fake).await;
    assert!(matches!(error, Error::NotARegistry { .. }), "{error}");
    assert!(error.to_string().contains("is not a registry"), "{error}");
}

#[tokio::test]
async fn busy_registry_is_asked_again_after_its_wait() {
    for status in [429, 500, 503] {
        let sample = Sample::of(b"layer");
        let busy = Fault::Status { status, times: 2, code: "BUSY", text: String::new() };
        let fake = with_layer(&sample, busy).await;
        assert_eq!(pull(&client(&[&fake]), &fake).await.unwrap().1, sample.layers);
    }
}

#[tokio::test]
async fn limit_of_requests_is_told_with_the_registrys_text() {
    let fake = Fake::start().await;
    Sample::of(b"layer").push(&fake, "team/app", "1");
    fake.fault("1", Fault::Later);
    let (started, error) = (Instant::now(), fails(&fake).await);
    assert!(matches!(error, Error::TooManyRequests { .. }), "{error}");
    assert!(error.to_string().contains("the limit of pulls is reached"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10), "it waited for an hour's limit");
}

#[tokio::test]
async fn unreachable_registry_is_named() {
    let fake = Fake::start().await;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let mut settings = settings(&[&fake]);
    let own = settings.registries.values().next().unwrap().clone();
    settings.registries.insert(host.clone(), own);
    let client = Client::new(settings).unwrap();
    let name = format!("{host}/team/app").parse().unwrap();
    let error = client.resolve(&name, None).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&host), "{error}");
}

#[tokio::test]
async fn blob_that_the_registry_lacks_is_named() {
    let fake = Fake::start().await;
    let sample = Sample::of(b"layer");
    fake.put_manifest("team/app", "1", OCI_MANIFEST, &sample.bytes());
    fake.put_blob(&sample.config);
    let error = fails(&fake).await;
    assert!(error.to_string().contains(&sample.layer_digest().to_string()), "{error}");
}

#[tokio::test]
async fn stream_that_failed_gives_no_end() {
    let sample = Sample::of(b"right");
    let fake = with_layer(&sample, Fault::Instead(b"wrong".to_vec())).await;
    let client = client(&[&fake]);
    let resolved = client.resolve(&reference(&fake, "team/app:1"), None).await.unwrap();
    let mut layer = client.image(&resolved).await.unwrap().layer(0).unwrap();
    while layer.chunk().await.is_ok_and(|chunk| chunk.is_some()) {}
    assert!(matches!(layer.chunk().await, Err(Error::FailedBefore { .. })));
}
