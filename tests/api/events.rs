//! Events: streams deliver each event once as it happens. Channels get signed deliveries until they
//! arrive.

use crate::proxy::psql;
use futures::StreamExt;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use tests::{Client, Driver, Heard, Hook, Platform, eventually};

/// Bytes of a stream of server-sent events.
pub(crate) type Bytes = futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>;

/// Opens a stream of server-sent events, after the event with the id `after`.
pub(crate) async fn open(client: &Client, path: &str, after: Option<&str>) -> Bytes {
    let mut request = client.request(Method::GET, path);
    if let Some(after) = after {
        request = request.header("last-event-id", after);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    answer.bytes_stream().boxed()
}

/// Open stream of events.
pub(crate) struct Stream {
    bytes: Bytes,
    text: String,
}

impl Stream {
    async fn open(client: &Client, after: Option<&str>) -> Self {
        Self::open_at(client, "/v1/events/stream", after).await
    }

    /// Opens a stream at a path, which may have a query.
    pub(crate) async fn open_at(client: &Client, path: &str, after: Option<&str>) -> Self {
        Self { bytes: open(client, path, after).await, text: String::new() }
    }

    /// Returns the next event.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            while let Some((frame, rest)) = self.text.split_once("\n\n") {
                let (frame, rest) = (frame.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some(data) = frame.lines().find_map(|line| line.strip_prefix("data: ")) {
                    let event: Value = serde_json::from_str(data).unwrap();
                    assert!(frame.contains(&format!("id: {}", event["id"].as_str().unwrap())));
                    return event;
                }
            }
            let part = tokio::time::timeout(std::time::Duration::from_secs(30), self.bytes.next());
            let part =
                part.await.expect("no event came in time").expect("the stream ended").unwrap();
            self.text += std::str::from_utf8(&part).unwrap();
        }
    }

    async fn kinds(&mut self, count: usize) -> Vec<String> {
        let mut kinds = Vec::new();
        for _ in 0..count {
            kinds.push(self.next().await["event"].as_str().unwrap().to_owned());
        }
        kinds
    }
}

#[tokio::test]
async fn events_are_streamed_in_order_to_their_team_only() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let other = crate::auth::other_team(&platform).await;
    let mut stream = Stream::open(&client, None).await;
    let mut strange = Stream::open(&other, None).await;
    let id = client.create(&json!({})).await;
    client.pause(&id).await;
    client.resume(&id).await;
    client.post("/v1/snapshots", &json!({ "capsule_id": id, "name": "s" })).await.expect(201);
    client.delete("/v1/snapshots/s").await.expect(204);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let first = stream.next().await;
    assert_eq!((&first["event"], &first["resource_id"]), (&json!("capsule.created"), &json!(id)));
    let kinds = stream.kinds(9).await;
    assert_eq!(
        kinds,
        [
            "capsule.running",
            "capsule.pausing",
            "capsule.paused",
            "capsule.resuming",
            "capsule.running",
            "template.snapshot.created",
            "template.snapshot.deleted",
            "capsule.stopping",
            "capsule.destroyed"
        ]
    );
    let theirs = other.create(&json!({})).await;
    assert_eq!(strange.next().await["resource_id"], theirs);
    platform.finish();
}

#[tokio::test]
async fn begin_and_each_kind_of_end_of_a_build_are_events() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut stream = Stream::open(&client, None).await;
    let body = |command: &str| {
        let steps = json!([{ "run": { "command": command } }]);
        json!({ "name": "web", "from": { "image": "debian:12" }, "steps": steps })
    };
    let ready = client.build(&body("true")).await.id;
    let failed = client.attempt(&body("exit 3")).await.id;
    let cancelled = client.begin(&body("sleep 1000")).await;
    client.cancel(&cancelled).await.expect(200);
    client.ended(&cancelled).await;
    let declared = client.post("/v3/templates", &json!({ "name": "later" })).await.expect(202);
    let uuid: uuid::Uuid = declared["buildID"].as_str().unwrap().parse().unwrap();
    let waiting = types::BuildId(uuid).to_string();
    client.cancel(&waiting).await.expect(200);
    for (kind, name, build) in [
        ("started", "web", &ready),
        ("ready", "web", &ready),
        ("started", "web", &failed),
        ("failed", "web", &failed),
        ("started", "web", &cancelled),
        ("cancelled", "web", &cancelled),
        // A build whose steps never came has not started.
        ("cancelled", "later", &waiting),
    ] {
        let told = loop {
            let event = stream.next().await;
            if event["event"].as_str().unwrap().starts_with("template.build.") {
                break event;
            }
        };
        assert_eq!(told["event"], format!("template.build.{kind}"), "{told}");
        assert_eq!(told["data"], json!({ "name": name, "build": build }), "{told}");
    }
    platform.finish();
}

#[tokio::test]
async fn event_stream_resumes_by_last_event_id_after_platform_crash() {
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut stream = Stream::open(&client, None).await;
    let first = client.create(&json!({})).await;
    let seen = stream.next().await;
    assert_eq!(seen["resource_id"], first);
    client.create(&json!({})).await;
    platform.kill();
    platform.resume().await;
    let client = platform.client();
    client.create(&json!({})).await;
    let mut stream = Stream::open(&client, seen["id"].as_str()).await;
    let kinds = stream.kinds(5).await;
    let created = kinds.iter().filter(|kind| *kind == "capsule.created").count();
    assert_eq!((created, kinds.len() - created), (2, 3), "{kinds:?}");
    let bad = client.request(Method::GET, "/v1/events/stream").header("last-event-id", "x");
    client.send(bad).await.refuses(400, "invalid_request", "last-event-id");
    platform.finish();
}

/// Concurrent writers commit their events in any order, and a stream misses none.
#[tokio::test]
async fn event_stream_misses_no_event_of_concurrent_creates() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut stream = Stream::open(&client, None).await;
    let body = json!({});
    let made = futures::stream::iter(0..24).map(|_| client.create(&body)).buffer_unordered(8);
    let mut made: Vec<String> = made.collect().await;
    let mut seen = Vec::new();
    for _ in 0..48 {
        let event = stream.next().await;
        if event["event"] == "capsule.running" {
            seen.push(event["resource_id"].as_str().unwrap().to_owned());
        }
    }
    made.sort();
    seen.sort();
    assert_eq!(made, seen);
    platform.finish();
}

fn signed(heard: &Heard, secret: &str) -> bool {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(heard.headers["x-wrenn-timestamp"].as_bytes());
    mac.update(b".");
    mac.update(&heard.body);
    let signature = types::hex::encode(&mac.finalize().into_bytes());
    heard.headers["x-wrenn-signature"] == format!("sha256={signature}")
}

#[tokio::test]
async fn channel_delivers_subscribed_events_signed() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_WEBHOOK_PRIVATE", "1")]).await;
    let client = platform.client();
    let hook = Hook::start(|_| (204, String::new(), String::new())).await;
    let wanted = json!({ "name": "n", "url": format!("{}/in", hook.url),
        "events": ["capsule.running", "capsule.destroyed"] });
    let made = client.post("/v1/channels", &wanted).await.expect(201);
    let (id, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    assert!(!client.get("/v1/channels").await.expect(200).to_string().contains(secret));
    client.post("/v1/channels", &wanted).await.refuses(409, "conflict", "name");
    let capsule = client.create(&json!({})).await;
    client.delete(&format!("/v1/capsules/{capsule}")).await.expect(204);
    client.post(&format!("/v1/channels/{id}/test"), &json!({})).await.expect(202);
    let heard = eventually("three deliveries", async || {
        Some(hook.heard()).filter(|heard| heard.len() >= 3)
    })
    .await;
    let mut kinds: Vec<&str> = heard.iter().map(|h| h.headers["x-wrenn-event"].as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["capsule.destroyed", "capsule.running", "channel.test"]);
    for one in &heard {
        assert!(one.line == "POST /in" && signed(one, secret), "{one:?}");
        assert!(!signed(one, "another"));
        let body: Value = serde_json::from_slice(&one.body).unwrap();
        assert_eq!(body["event"], one.headers["x-wrenn-event"].as_str());
        assert!(one.headers["x-wrenn-delivery"].starts_with("dlv-"));
    }
    let done = |d: &Value| d["status"] == "done" && d["answer"] == 204 && d["attempts"] == 1;
    // The hook receives a delivery before the platform records the answer.
    eventually("all are done", async || {
        let listed = client.get(&format!("/v1/channels/{id}/deliveries")).await.expect(200);
        listed["items"].as_array().unwrap().iter().all(done).then_some(())
    })
    .await;
    // The channel is disabled, gets another secret, and is enabled again.
    let off = client.patch(&format!("/v1/channels/{id}"), &json!({ "enabled": false })).await;
    assert_eq!(off.expect(200)["enabled"], false);
    client.create(&json!({})).await;
    let renewed = client.post(&format!("/v1/channels/{id}/secret"), &json!({})).await.expect(200);
    assert_ne!(renewed["secret"], secret);
    client.patch(&format!("/v1/channels/{id}"), &json!({ "enabled": true })).await.expect(200);
    client.post(&format!("/v1/channels/{id}/test"), &json!({})).await.expect(202);
    let heard = eventually("another delivery", async || {
        Some(hook.heard()).filter(|heard| heard.len() >= 4)
    })
    .await;
    assert_eq!(heard.len(), 4, "what happened while it was off was sent");
    assert!(signed(&heard[3], renewed["secret"].as_str().unwrap()));
    client.delete(&format!("/v1/channels/{id}")).await.expect(204);
    client.get(&format!("/v1/channels/{id}")).await.refuses(404, "not_found", "channel");
    platform.finish();
}

#[tokio::test]
async fn failed_delivery_is_retried_after_platform_crash() {
    let mut platform = Platform::start(Driver::Fake, &[("WRENN_WEBHOOK_PRIVATE", "1")]).await;
    let status = Arc::new(AtomicU16::new(500));
    let told = Arc::clone(&status);
    let hook =
        Hook::start(move |_| (told.load(Ordering::SeqCst), String::new(), String::new())).await;
    let client = platform.client();
    let wanted = json!({ "name": "n", "url": hook.url, "events": ["capsule.created"] });
    let made = client.post("/v1/channels", &wanted).await.expect(201);
    let path = format!("/v1/channels/{}/deliveries", made["id"].as_str().unwrap());
    let capsule = client.create(&json!({})).await;
    let failed = eventually("a try that failed", async || {
        let listed = client.get(&path).await.expect(200)["items"][0].clone();
        (listed["answer"] == 500).then_some(listed)
    })
    .await;
    assert_eq!((&failed["status"], &failed["attempts"]), (&json!("waiting"), &json!(1)));
    platform.kill();
    status.store(200, Ordering::SeqCst);
    platform.resume().await;
    let client = platform.client();
    eventually("it has arrived", async || {
        let listed = client.get(&path).await.expect(200)["items"][0].clone();
        (listed["status"] == "done" && listed["attempts"] == 2).then_some(())
    })
    .await;
    let ids: Vec<String> =
        hook.heard().iter().map(|heard| heard.headers["x-wrenn-delivery"].clone()).collect();
    assert!(ids.len() == 2 && ids[0] == ids[1], "the same, by its id: {ids:?}");
    let body: Value = serde_json::from_slice(&hook.heard()[1].body).unwrap();
    assert_eq!(body["resource_id"], capsule);
    platform.finish();
}

#[tokio::test]
async fn channel_refuses_private_and_invalid_urls() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let hook = Hook::start(|_| (200, String::new(), String::new())).await;
    let make = async |name: &str, url: &str| {
        client.post("/v1/channels", &json!({ "name": name, "url": url })).await
    };
    for bad in [
        hook.url.as_str(),
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://2130706433/",
        "ftp://example.com/",
        "http://user:secret@example.com/",
        "nonsense",
    ] {
        make("n", bad).await.refuses(400, "invalid_request", "url");
    }
    client
        .post(
            "/v1/channels",
            &json!({ "name": "n", "url": "https://example.com/", "events": ["x"] }),
        )
        .await
        .refuses(400, "invalid_request", "events");
    // A host name is resolved at delivery, so a name of a private address is found then.
    let port = hook.url.rsplit_once(':').unwrap().1;
    let made = make("n", &format!("http://localhost:{port}/")).await.expect(201);
    let path = format!("/v1/channels/{}", made["id"].as_str().unwrap());
    client.post(&format!("{path}/test"), &json!({})).await.expect(202);
    let failed = eventually("a try that failed", async || {
        let listed =
            client.get(&format!("{path}/deliveries")).await.expect(200)["items"][0].clone();
        listed["error"].is_string().then_some(listed)
    })
    .await;
    assert!(failed["error"].as_str().unwrap().contains("no public address"), "{failed}");
    assert!(hook.heard().is_empty());
    platform.finish();
}

#[tokio::test]
async fn operators_receive_host_events() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let operator = platform.client();
    let platforms = operator.in_team(&format!("team-{}", "0".repeat(25)));
    let mut stream = Stream::open(&platforms, None).await;
    let second = crate::hosts::Second::start(&platform, &operator).await;
    let event = stream.next().await;
    assert_eq!((&event["event"], &event["resource_id"]), (&json!("host.up"), &json!(second.id)));
    drop(second);
    platform.finish();
}

#[tokio::test]
async fn channel_of_expired_key_is_disabled_and_sends_nothing() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_WEBHOOK_PRIVATE", "1")]).await;
    let client = platform.client();
    let hook = Hook::start(|_| (200, String::new(), String::new())).await;
    let wanted = json!({ "name": "k", "expires_in": 600, "scopes": ["team:admin"] });
    let made = client.post("/v1/api-keys", &wanted).await.expect(201);
    let brief = platform.client_with(made["key"].as_str().unwrap());
    let wanted = json!({ "name": "n", "url": hook.url, "events": ["capsule.created"] });
    let channel = brief.post("/v1/channels", &wanted).await.expect(201);
    let path = format!("/v1/channels/{}", channel["id"].as_str().unwrap());
    client.create(&json!({})).await;
    eventually("a delivery", async || (hook.heard().len() == 1).then_some(())).await;
    psql(&platform, "UPDATE api_keys SET expires_at = now() WHERE name = 'k'");
    client.create(&json!({})).await;
    eventually("the channel is disabled", async || {
        (client.get(&path).await.expect(200)["enabled"] == false).then_some(())
    })
    .await;
    client.create(&json!({})).await;
    let log = client.get("/v1/audit-logs?action=channel.disable").await.expect(200);
    assert_eq!(log["items"][0]["resource_id"], channel["id"], "{log}");
    assert_eq!(hook.heard().len(), 1);
    // The admin who enables the channel becomes responsible for it.
    client.patch(&path, &json!({ "enabled": true })).await.expect(200);
    client.create(&json!({})).await;
    eventually("another delivery", async || (hook.heard().len() > 1).then_some(())).await;
    assert_eq!(client.get(&path).await.expect(200)["enabled"], true);
    platform.finish();
}
