//! The platform's store on a real S3 server. A paused capsule outlives its host and continues on
//! another.

use crate::hosts::{Second, silence};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tests::{Client, Driver, Platform, S3, eventually};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// Returns the name of a tree in the store.
fn tree_name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// Waits until the store holds all of a paused capsule.
async fn stored(client: &Client, id: &str) {
    eventually("it is in the store", || async {
        let shown = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
        (shown["stored"] == true).then_some(())
    })
    .await;
}

/// Returns a capsule's trees in the store, with their contents.
fn trees(s3: &S3, id: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let found = s3.find(&format!("trees/capsules/{id}"));
    found.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Returns the manifest of a capsule's snapshot on a host. The manifest holds the time of the
/// snapshot.
fn manifest(dir: &Path, id: &str, number: u64) -> Option<Vec<u8>> {
    std::fs::read(dir.join(format!("capsules/{id}/kept/{number}/manifest.json"))).ok()
}

/// Resumes a capsule of a drained host until it runs on another. A control plane that does not know
/// of the drain yet resumes it on the old host. The old host then pauses it again.
async fn goes_elsewhere(client: &Client, id: &str) {
    let shown = async || client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    let from = shown().await["host_id"].clone();
    eventually("it goes on elsewhere", || async {
        let now = shown().await;
        if now["status"] == "paused" && now["stored"] == true {
            client.resume(id).await;
        }
        let now = shown().await;
        (now["status"] == "running" && now["host_id"] != from).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_capsule_resumes_elsewhere_after_host_loss() {
    let s3 = S3::start().await;
    let mut vars = s3.vars();
    vars.push(("WRENN_STORE_KEY", KEY));
    let platform = Platform::start(Driver::Fake, &vars).await;
    let client = platform.client();
    let mut second = Second::tagged(&platform, &client).await;
    let body = json!({ "memory_mib": 128, "host_tags": ["second"] });
    let (moves, stays) = (client.create(&body).await, client.create(&body).await);
    let shown = async |id: &str| client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    assert_eq!(shown(&moves).await["stored"], false);
    client.pause(&moves).await;
    eventually("it is in the store", || async {
        (shown(&moves).await["stored"] == true).then_some(())
    })
    .await;
    let tokens: Vec<u8> =
        s3.find("").iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
    let record = second.dir.path().join(format!("capsules/{moves}/capsule.json"));
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let token = record["envd_token"].as_str().unwrap();
    let at = |text: &str| tokens.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(!tokens.is_empty() && !at(token), "a token is readable in the store");
    // The capsule resumes on its host and pauses again. The store then holds only its last
    // snapshot.
    client.resume(&moves).await;
    assert_eq!(shown(&moves).await["stored"], false);
    client.pause(&moves).await;
    eventually("the last one is there alone", || async {
        let trees = s3.find(&format!("trees/capsules/{moves}"));
        let last = trees.len() == 1 && tree_name(&trees[0]).starts_with("2-");
        (last && shown(&moves).await["stored"] == true).then_some(())
    })
    .await;
    // The host is gone for good. Its paused capsule continues elsewhere, and its running capsule is
    // lost.
    second.kill();
    let path = format!("/v1/hosts/{}", second.id);
    let loss = client.get(&format!("{path}/delete-preview")).await.expect(200);
    assert_eq!(loss["capsules"].as_array().unwrap().len(), 1);
    assert_eq!(loss["capsules"][0]["id"], stays.as_str());
    client.delete(&format!("{path}?force=true")).await.expect(204);
    assert_eq!(shown(&stays).await["status"], "error");
    assert_eq!(shown(&moves).await["status"], "paused");
    client.resume(&moves).await;
    let now = shown(&moves).await;
    assert!(now["host_id"].as_str().is_some_and(|id| id != second.id), "{now}");
    assert_eq!(client.out(&moves, "echo up").await, "up\n");
    // A capsule that is lost while it runs can be resumed from its last snapshot, if its owner says
    // so.
    let third = Second::start(&platform, &client).await;
    client.pause(&moves).await;
    eventually("it is in the store", || async {
        (shown(&moves).await["stored"] == true).then_some(())
    })
    .await;
    let local = client.get("/v1/hosts").await.expect(200);
    let local = local["items"].as_array().unwrap().iter().find(|h| h["name"] == "local").unwrap();
    let local = format!("/v1/hosts/{}", local["id"].as_str().unwrap());
    client.post(&format!("{local}/drain"), &json!({})).await.expect(200);
    goes_elsewhere(&client, &moves).await;
    assert_eq!(shown(&moves).await["host_id"], third.id.as_str());
    client.post(&format!("{local}/drain"), &json!({ "drain": false })).await.expect(200);
    let path = format!("/v1/hosts/{}", third.id);
    drop(third);
    client.delete(&format!("{path}?force=true")).await.expect(204);
    assert_eq!(shown(&moves).await["status"], "error");
    client.resume(&moves).await;
    assert_eq!(client.out(&moves, "echo up").await, "up\n");
    // A removal leaves nothing of the capsules in the store.
    for id in [&moves, &stays] {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    assert_eq!(s3.find("trees/capsules"), Vec::<std::path::PathBuf>::new());
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn returning_host_does_not_affect_capsule_resumed_elsewhere() {
    let s3 = S3::start().await;
    let platform = Platform::start(Driver::Fake, &s3.vars()).await;
    let client = platform.client();
    let mut second = Second::tagged(&platform, &client).await;
    let id = client.create(&json!({ "memory_mib": 128, "host_tags": ["second"] })).await;
    client.pause(&id).await;
    let shown = async || client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    eventually("it is in the store", || async { (shown().await["stored"] == true).then_some(()) })
        .await;
    // A drained host gives its capsules to others, as soon as every control plane knows.
    client.post(&format!("/v1/hosts/{}/drain", second.id), &json!({})).await.expect(200);
    goes_elsewhere(&client, &id).await;
    eventually("the copy that was left is removed", || async {
        let left = std::fs::read_dir(second.dir.path().join("capsules")).unwrap().count();
        (left == 0).then_some(())
    })
    .await;
    client.pause(&id).await;
    eventually("its last snapshot is in the store alone", || async {
        let stored = shown().await["stored"] == true;
        (stored && trees(&s3, &id).len() == 1).then_some(())
    })
    .await;
    // Without the store, the pause still succeeds and the capsule resumes on its host.
    client.resume(&id).await;
    std::fs::rename(s3.objects(), s3.objects().with_extension("away")).unwrap();
    client.pause(&id).await;
    client.resume(&id).await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    second.kill();
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_snapshot_starts_capsule_on_any_host() {
    let s3 = S3::start().await;
    let platform = Platform::start(Driver::Fake, &s3.vars()).await;
    let client = platform.client();
    let second = Second::tagged(&platform, &client).await;
    let id = client.create(&json!({ "memory_mib": 128, "host_tags": ["second"] })).await;
    let taken = json!({ "capsule_id": id, "name": "kept" });
    let taken = client.post("/v1/snapshots", &taken).await.expect(201);
    let snapshot = taken["id"].as_str().unwrap();
    eventually("it is in the store", || async {
        (s3.find(&format!("trees/snapshots/{snapshot}")).len() == 1).then_some(())
    })
    .await;
    client.post(&format!("/v1/hosts/{}/drain", second.id), &json!({})).await.expect(200);
    let begun = eventually("it is begun from on another host", || async {
        let made = client.post("/v1/capsules", &json!({ "template": "kept" })).await;
        (made.status.as_u16() == 201).then_some(made.body)
    })
    .await;
    assert_ne!(begun["host_id"], second.id.as_str());
    assert_eq!(client.out(begun["id"].as_str().unwrap(), "echo up").await, "up\n");
    client.delete("/v1/snapshots/kept").await.expect(204);
    assert_eq!(s3.find("trees/snapshots").len(), 0);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_local_copy_yields_to_stored_version() {
    let s3 = S3::start().await;
    let mut platform = Platform::start(Driver::Fake, &s3.vars()).await;
    let client = platform.client();
    let mut second = Second::tagged(&platform, &client).await;
    let id = client.create(&json!({ "memory_mib": 128, "host_tags": ["second"] })).await;
    client.pause(&id).await;
    stored(&client, &id).await;
    let folder = second.dir.path().join("capsules").join(&id);
    // The capsule continues elsewhere, and is paused there.
    second.kill();
    client.delete(&format!("/v1/hosts/{}?force=true", second.id)).await.expect(204);
    client.resume(&id).await;
    client.pause(&id).await;
    stored(&client, &id).await;
    let good = manifest(&platform.dir(), &id, 2).unwrap();
    let before = eventually("the one before is removed from there", || async {
        let trees = trees(&s3, &id);
        (trees.len() == 1).then_some(trees)
    })
    .await;
    let tree = tree_name(before.keys().next().unwrap()).to_owned();
    platform.kill();
    // The host still has its old copy, and runs it by itself up to the same number.
    assert!(folder.join("kept/1").exists() && !folder.join("kept/2").exists());
    second.process = platform.agent(&client, second.dir.path(), &second.address).await.0;
    let agent = platform.client_of_agent(&second.address).below("/wrenn.host.v1.Host");
    let listed = async || agent.post("/ListCapsules", &json!({})).await.expect(200);
    assert_eq!(listed().await["capsules"][0]["state"], "CAPSULE_STATE_PAUSED");
    let at = |generation: u32| json!({ "capsuleId": id, "generation": generation });
    agent.post("/ResumeCapsule", &at(50)).await.expect(200);
    agent.post("/PauseCapsule", &at(51)).await.expect(200);
    assert!(manifest(second.dir.path(), &id, 2).is_some_and(|kept| kept != good));
    // A removal of the earlier copy comes too late for the later copy.
    let late = agent.post("/DestroyCapsule", &at(50)).await;
    assert_eq!(late.body["code"], "aborted", "{}", late.body);
    assert_eq!(listed().await["capsules"][0]["state"], "CAPSULE_STATE_PAUSED");
    // The host is told to resume from the store's copy, though its own has the same number.
    let record: Value =
        serde_json::from_slice(&std::fs::read(folder.join("capsule.json")).unwrap()).unwrap();
    let resume = json!({
        "capsuleId": id, "generation": 100,
        "stored": {
            "snapshot": { "number": 2, "name": tree }, "teamId": record["team"], "placed": 100,
        },
    });
    for wrong in ["3-0123456789abcdef", "../../x", "2-x"] {
        let mut resume = resume.clone();
        resume["stored"]["snapshot"]["name"] = wrong.into();
        let refused = agent.post("/ResumeCapsule", &resume).await;
        assert_eq!(refused.body["code"], "invalid_argument", "{}", refused.body);
    }
    agent.post("/ResumeCapsule", &resume).await.expect(200);
    assert_eq!(manifest(second.dir.path(), &id, 2).as_ref(), Some(&good));
    // The command comes again after a pause, and an older copy must not replace the newer one.
    agent.post("/PauseCapsule", &at(101)).await.expect(200);
    let newer = manifest(second.dir.path(), &id, 3).unwrap();
    let again = agent.post("/ResumeCapsule", &resume).await;
    assert_eq!(again.body["code"], "aborted", "{}", again.body);
    assert_eq!(manifest(second.dir.path(), &id, 3), Some(newer));
    assert_eq!(trees(&s3, &id), before, "a host that is no member changed the store");
    agent.post("/DestroyCapsule", &json!({ "capsuleId": id })).await.expect(200);
    second.kill();
    platform.resume().await;
    platform.client().delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_host_that_wakes_changes_nothing_in_store() {
    let s3 = S3::start().await;
    let platform = Platform::start(Driver::Fake, &s3.vars()).await;
    let client = platform.client();
    let mut first = Second::tagged(&platform, &client).await;
    let id = client.create(&json!({ "memory_mib": 128, "host_tags": ["second"] })).await;
    let path = format!("/v1/capsules/{id}");
    let shown = async || client.get(&path).await.expect(200);
    client.pause(&id).await;
    stored(&client, &id).await;
    // The capsule runs on, and its time ends while its host sleeps.
    client.change(&id, "resume", &json!({ "lifetime": 20 })).await;
    let pid = i32::try_from(first.process.id()).unwrap();
    tests::signal(pid, Signal::STOP);
    silence(&platform, &first.id).await;
    eventually("it is missing", || async { (shown().await["status"] == "missing").then_some(()) })
        .await;
    client.delete(&format!("/v1/hosts/{}?force=true", first.id)).await.expect(204);
    // The capsule continues elsewhere from the store, and is paused there under the same number.
    client.resume(&id).await;
    let local = shown().await["host_id"].as_str().unwrap().to_owned();
    client.pause(&id).await;
    stored(&client, &id).await;
    let good = manifest(&platform.dir(), &id, 2).unwrap();
    let before = eventually("the one before is removed from there", || async {
        let trees = trees(&s3, &id);
        (trees.len() == 1).then_some(trees)
    })
    .await;
    // The host wakes, and its capsule's time is over.
    tests::signal(pid, Signal::CONT);
    let log = first.dir.path().join("agent.log");
    eventually("it has paused the capsule, and is told that it is no member", || async {
        let log = std::fs::read_to_string(&log).unwrap();
        let told = log.contains("the platform does not know this host")
            && log.contains("not uploading to the store");
        (told && manifest(first.dir.path(), &id, 2).is_some()).then_some(())
    })
    .await;
    assert_ne!(manifest(first.dir.path(), &id, 2).as_ref(), Some(&good));
    assert_eq!(trees(&s3, &id), before, "the good copy was touched");
    // A third host resumes the good copy.
    let third = Second::start(&platform, &client).await;
    client.post(&format!("/v1/hosts/{local}/drain"), &json!({})).await.expect(200);
    goes_elsewhere(&client, &id).await;
    assert_eq!(shown().await["host_id"], third.id.as_str());
    let fetched = |number| Some((number, manifest(third.dir.path(), &id, number)?));
    let (number, fetched) = (2..10).find_map(fetched).unwrap();
    // A replica that did not know of the drain yet may have resumed the capsule at home first.
    assert!(number > 2 || fetched == good, "not the good copy");
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    let before = eventually("one tree is in the store", || async {
        let trees = trees(&s3, &id);
        (trees.len() == 1).then_some(trees)
    })
    .await;
    // The first host joins again under a new id, so its copy belongs to nobody and is removed.
    first.kill();
    std::fs::remove_file(first.dir.path().join("host-credentials.json")).unwrap();
    first.again(&platform, &client).await;
    eventually("its leftover is removed", || async {
        let left = std::fs::read_dir(first.dir.path().join("capsules")).unwrap().count();
        (left == 0).then_some(())
    })
    .await;
    // The host may have sent its copy first, under a name of its own. The next pause removes that
    // tree.
    let now = trees(&s3, &id);
    assert!(before.iter().all(|(name, tree)| now.get(name) == Some(tree)), "the good copy");
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    client.pause(&id).await;
    eventually("the newest is in the store alone", || async {
        let trees = trees(&s3, &id);
        let next = format!("{}-", number + 1);
        let newest =
            trees.len() == 1 && trees.keys().all(|tree| tree_name(tree).starts_with(&next));
        (newest && shown().await["stored"] == true).then_some(())
    })
    .await;
    client.delete(&path).await.expect(204);
    assert_eq!(trees(&s3, &id).len(), 0);
    platform.finish();
}

/// A host missed its capsule's life elsewhere, and is then the capsule's host again.
#[tokio::test(flavor = "multi_thread")]
async fn copy_older_than_placement_is_removed_and_fetched_again() {
    let s3 = S3::start().await;
    let platform = Platform::start(Driver::Fake, &s3.vars()).await;
    let client = platform.client();
    let id = client.create(&json!({ "memory_mib": 128 })).await;
    client.pause(&id).await;
    stored(&client, &id).await;
    let good = manifest(&platform.dir(), &id, 1).unwrap();
    let capsule: types::CapsuleId = id.parse().unwrap();
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let placed = "UPDATE capsules SET placed = generation WHERE id = $1";
    sqlx::query(placed).bind(capsule.0).execute(&mut db).await.unwrap();
    eventually("the copy is removed", || async {
        manifest(&platform.dir(), &id, 1).is_none().then_some(())
    })
    .await;
    assert_eq!(client.status(&id).await, "paused");
    client.resume(&id).await;
    assert_eq!(manifest(&platform.dir(), &id, 1), Some(good));
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    // A snapshot that an earlier version stored is named by its number alone.
    client.pause(&id).await;
    stored(&client, &id).await;
    let newest = |tree: &PathBuf| tree_name(tree).starts_with("2-");
    let tree = trees(&s3, &id).into_keys().find(newest).unwrap();
    std::fs::copy(&tree, tree.with_file_name("2")).unwrap();
    let earlier = "UPDATE capsules SET placed = generation, stored_tree = '' WHERE id = $1";
    sqlx::query(earlier).bind(capsule.0).execute(&mut db).await.unwrap();
    eventually("the copy is removed", || async {
        manifest(&platform.dir(), &id, 2).is_none().then_some(())
    })
    .await;
    client.resume(&id).await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}
