//! Damaged snapshots are noticed, reported, and never restored as if they were whole.

use crate::capsule;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use tests::{Driver, Platform, eventually, processes_of};

/// Returns the files of a capsule's snapshot that each pause writes.
pub(crate) fn parts(platform: &Platform, id: &str, number: u32) -> Vec<PathBuf> {
    let kept = platform.dir().join(format!("capsules/{id}/kept/{number}"));
    let files = fs::read_dir(kept).unwrap().flatten().map(|file| file.path());
    files.filter(|path| !path.ends_with("image.ext4")).collect()
}

/// Damage to a file, undone on drop. Hard links to the file keep their contents.
struct Damage(PathBuf, PathBuf);

impl Damage {
    fn new(path: &Path, how: impl Fn(&mut Vec<u8>)) -> Self {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).unwrap();
        let mut bytes = fs::read(&aside).unwrap();
        how(&mut bytes);
        fs::write(path, bytes).unwrap();
        Self(path.to_owned(), aside)
    }
}

impl Drop for Damage {
    fn drop(&mut self) {
        fs::rename(&self.1, &self.0).unwrap();
    }
}

#[tokio::test]
async fn damaged_snapshot_is_reported_and_previous_one_is_offered() {
    let platform = Platform::start(Driver::Guests, &[]).await;
    let client = platform.client();
    // The capsule boots, so that all layers are its own. A shared layer may be in memory, checked
    // already.
    let _ = fs::remove_dir_all(platform.dir().join("golden"));
    let id = client.create(&json!({ "memory_mib": 192, "disk_mib": 64 })).await;
    client.out(&id, "echo one > /dev/shm/x; echo one > f").await;
    client.pause(&id).await;
    client.resume(&id).await;
    client.out(&id, "echo two > /dev/shm/x; echo two > f").await;
    client.pause(&id).await;
    let resume = format!("/v1/capsules/{id}/resume");
    let files = parts(&platform, &id, 2);
    assert!(files.len() >= 4, "{files:?}");
    let flip = |bytes: &mut Vec<u8>| {
        let at = bytes.iter().position(|byte| *byte != 0).unwrap() + 1;
        bytes[at] ^= 0x20;
    };
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
    for file in &files {
        for how in [&flip as &dyn Fn(&mut Vec<u8>), &cut] {
            let damage = Damage::new(file, how);
            let refused = client.post(&resume, &json!({})).await;
            let said = format!("{} of {}", refused.body, file.display());
            assert_eq!(refused.body["error"]["code"], "snapshot_damaged", "{said}");
            refused.refuses(409, "snapshot_damaged", "its snapshots are 1, 2");
            assert_eq!(client.status(&id).await, "paused");
            assert!(processes_of(&id).is_empty());
            let left = platform.leftovers();
            assert!(left.namespaces.is_empty() && left.links.is_empty(), "{left:?}");
            drop(damage);
        }
    }
    let damage = Damage::new(&files[0], cut);
    client.post(&resume, &json!({ "snapshot": 9 })).await.refuses(400, "invalid_request", "9");
    // The snapshot before is whole, memory and disk.
    let before = client.change(&id, "resume", &json!({ "snapshot": 1 })).await;
    assert_eq!(before["status"], "running");
    assert_eq!(client.out(&id, "cat /dev/shm/x f").await, "one\none\n");
    client.pause(&id).await;
    drop(damage);
    // The damaged snapshot can be resumed too, once its file is repaired.
    client.change(&id, "resume", &json!({ "snapshot": 2 })).await;
    assert_eq!(client.out(&id, "cat /dev/shm/x f").await, "two\ntwo\n");
    platform.finish();
}

/// A capsule whose machine and memory are lost can be resumed from its last snapshot.
#[tokio::test]
async fn capsule_with_lost_vm_resumes_from_last_snapshot() {
    let (mut platform, client, id) = capsule().await;
    client.out(&id, "echo one > /dev/shm/x").await;
    client.pause(&id).await;
    client.resume(&id).await;
    client.out(&id, "echo two > /dev/shm/x").await;
    platform.kill();
    tests::signal(processes_of(&id)[0], rustix::process::Signal::KILL);
    platform.resume().await;
    let client = platform.client();
    eventually("it is known to be lost", || async {
        (client.status(&id).await == "error").then_some(())
    })
    .await;
    client.resume(&id).await;
    assert_eq!(client.out(&id, "cat /dev/shm/x").await, "one\n");
    platform.finish();
}
