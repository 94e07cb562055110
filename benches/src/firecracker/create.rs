//! Creates and resumes with Firecracker, against a bare Firecracker. The bare one loads the memory,
//! state and disk of the template snapshot. Each lasts until envd's `/health` answers.

use super::{Running, load};
use crate::bare::{self, Namespace};
use crate::guests;
use crate::pools::{Metrics, Pools, gone};
use crate::stats::Row;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tests::Platform;

const ROUNDS: usize = 11;

/// Files that bare machines are loaded from.
struct Kept {
    template_snapshot: PathBuf,
    memory: PathBuf,
    image: PathBuf,
}

impl Kept {
    /// Finds the files that this capsule was restored from. The capsule was never paused.
    fn of(platform: &Platform, capsule: &str) -> Self {
        let jails = platform.dir().join(format!("capsules/{capsule}/vmm/jail"));
        let program = fs::read_dir(jails).unwrap().next().unwrap().unwrap().path();
        let root = program.join(capsule).join("root");
        // The capsule has the default memory size too.
        let template_snapshot = bare::template_snapshot(platform, "512");
        Self { template_snapshot, memory: root.join("memory"), image: root.join("image.ext4") }
    }

    /// Makes the root that a bare machine works in.
    fn furnish(&self, root: &Path) {
        fs::create_dir_all(root).unwrap();
        fs::hard_link(&self.memory, root.join("memory")).unwrap();
        fs::hard_link(&self.image, root.join("image.ext4")).unwrap();
        fs::copy(self.template_snapshot.join("state"), root.join("state")).unwrap();
        // The saved machine has the agent's placeholder drives.
        for name in ["spare_0", "spare_1"] {
            fs::File::create(root.join(name)).unwrap().set_len(4096).unwrap();
        }
        bare::copy_disk(&self.template_snapshot.join("disk.ext4"), &root.join("disk.ext4"));
    }
}

/// Restores a machine in a namespace with a tap, and returns the time until its guest answers.
fn restore(firecracker: &Path, root: &Path, at: &Namespace) -> Duration {
    let began = Instant::now();
    let running = Running::start(firecracker, root, at.name());
    load(&running);
    at.wait_healthy();
    let took = began.elapsed();
    running.end();
    took
}

pub(super) async fn measure(firecracker: &Path) -> Vec<Row> {
    if tests::firecracker().is_none() {
        println!("firecracker: no creates, since WRENN_TEST_GUESTS is not `firecracker`");
        return Vec::new();
    }
    let platform = guests::platform_by("firecracker", &Pools::Networks.vars()).await;
    let client = platform.client();
    // The first capsule of its size may be booted. The next one is restored.
    let first = client.create(&json!({})).await;
    client.delete(&format!("/v1/capsules/{first}")).await.expect(204);
    let like = client.create(&json!({})).await;
    let kept = Kept::of(&platform, &like);
    let metrics = Metrics::of(&platform);
    // Hard links need the platform's own file system.
    let root = platform.dir().join("bare");
    let at = Namespace::new("firecracker");
    let (mut floor, mut created, mut commanded, mut resumed) = (vec![], vec![], vec![], vec![]);
    // The first round only warms caches.
    for _ in 0..=ROUNDS {
        kept.furnish(&root);
        Pools::Networks.filled(&metrics, 1).await;
        floor.push(restore(firecracker, &root, &at));
        let started = Instant::now();
        let id = client.create(&json!({})).await;
        created.push(started.elapsed());
        client.out(&id, "true").await;
        commanded.push(started.elapsed());
        client.pause(&id).await;
        let started = Instant::now();
        client.resume(&id).await;
        resumed.push(started.elapsed());
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        gone(&platform, &[id]).await;
    }
    client.delete(&format!("/v1/capsules/{like}")).await.expect(204);
    drop(at);
    platform.finish();
    let what = ["create from the template", "the same with a first command", "resume"];
    let goals = ["≤ 1.2", "≤ 1.2", "≤ 1.2"];
    let rows = what.iter().zip([created, commanded, resumed]).zip(goals);
    rows.map(|((what, ours), goal)| {
        let what = format!("Firecracker: {what} ÷ bare load to /health");
        Row::ratio(&what, &ours[1..], &floor[1..], goal)
    })
    .collect()
}
