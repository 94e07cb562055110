//! Creates, pauses, resumes, forks and removals of one capsule at a time. The floor is the bare VMM
//! with equal memory, state and disk.

use crate::bare::{Bare, Namespace};
use crate::pools::{Metrics, Pools, gone};
use crate::stats::{Row, say};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use tests::{Client, Platform};

const ROUNDS: usize = 21;
/// Pools of the platform. No ready capsule is made behind a measurement.
pub(crate) const POOLS: Pools = Pools::Networks;

/// Measures the operations on one capsule at a time.
pub(crate) async fn measure(platform: &Platform, cold: &Bare) -> Vec<Row> {
    let client = platform.client();
    // The first capsule of its size may be booted. The next one is restored.
    let first = client.create(&json!({})).await;
    client.delete(&format!("/v1/capsules/{first}")).await.expect(204);
    let like = client.create(&json!({})).await;
    let floor = Bare::like(platform, &like);
    let at = Namespace::new("keep");
    let metrics = Metrics::of(platform);
    let (mut bare, mut created, mut booted) = (vec![], vec![], vec![]);
    let (mut resumed, mut paused, mut saved, mut removed) = (vec![], vec![], vec![], vec![]);
    let to = platform.dir().join("bare.saved");
    for round in 0..ROUNDS {
        POOLS.filled(&metrics, 1).await;
        let (machine, took) = floor.restore(&at, "restored.sock");
        bare.push(took);
        saved.push(machine.save(&to, true));
        machine.end();
        let started = Instant::now();
        let id = client.create(&json!({})).await;
        created.push(started.elapsed());
        client.out(&id, "true").await;
        let started = Instant::now();
        client.pause(&id).await;
        paused.push(started.elapsed());
        POOLS.filled(&metrics, 1).await;
        let started = Instant::now();
        client.resume(&id).await;
        resumed.push(started.elapsed());
        let started = Instant::now();
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        removed.push(started.elapsed());
        gone(platform, &[id]).await;
        if round % 4 == 0 {
            booted.push(cold.boot(&at));
        }
    }
    let mut rows = say(vec![
        Row::ratio("create from the template ÷ bare restore to /health", &created, &bare, ""),
        Row::ratio("bare boot ÷ create from the template", &booted, &created, "≥ 12"),
        Row::ratio("resume ÷ bare restore to /health", &resumed, &bare, "≤ 1.2"),
        Row::ratio("pause ÷ the VMM's own save with fsync", &paused, &saved, "≤ 1.3"),
        Row::alone("removal, to its answer", &removed, "≤ 20 ms"),
    ]);
    rows.extend(fork(platform, &client, &floor, &at, &to).await);
    rows.extend(sizes(platform, &client).await);
    client.delete(&format!("/v1/capsules/{like}")).await.expect(204);
    rows
}

/// Measures the time that a fork freezes its source, by the host's own metric.
async fn fork(
    platform: &Platform,
    client: &Client,
    floor: &Bare,
    at: &Namespace,
    to: &Path,
) -> [Row; 1] {
    let id = client.create(&json!({})).await;
    let metrics = Metrics::of(platform);
    let (machine, _) = floor.restore(at, "forked.sock");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(machine.save(to, false));
        let before = frozen(&metrics).await;
        let fork = format!("/v1/capsules/{id}/fork");
        let forked = client.post(&fork, &json!({})).await.expect(201);
        ours.push(frozen(&metrics).await - before);
        let child = forked["items"][0]["id"].as_str().unwrap();
        client.delete(&format!("/v1/capsules/{child}")).await.expect(204);
    }
    machine.end();
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    [Row::ratio("fork: source frozen ÷ the VMM's own stop-save-continue", &ours, &bare, "≤ 1.3")]
}

/// Returns the time that pauses and forks have frozen guests so far.
async fn frozen(metrics: &Metrics) -> Duration {
    Duration::from_secs_f64(metrics.sum("wrenn_snapshot_frozen_seconds_sum").await)
}

/// Returns the bytes of the layers that this snapshot alone has, and of all layers that it needs.
fn written(platform: &Platform, id: &str, number: u32) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let kept = platform.dir().join(format!("capsules/{id}/kept/{number}"));
    let files = std::fs::read_dir(kept).unwrap().flatten();
    let layers = files.filter(|f| f.file_name().to_string_lossy().ends_with(".pages"));
    let found: Vec<_> = layers.map(|layer| layer.metadata().unwrap()).collect();
    let own = found.iter().filter(|f| f.nlink() == 1).map(|f| f.len()).sum();
    (own, found.iter().map(|f| f.len()).sum())
}

/// Measures the bytes that a pause writes, against the memory that the guest uses.
async fn sizes(platform: &Platform, client: &Client) -> [Row; 3] {
    let id = client.create(&json!({})).await;
    // Used memory is all that is not free. It includes the kernel's own, which the guest's figures
    // leave out.
    let free = client.out(&id, "awk '/^MemFree/ {print $2}' /proc/meminfo").await;
    let used = (512 << 20) - (free.trim().parse::<u64>().unwrap() << 10);
    client.pause(&id).await;
    let (first, all) = written(platform, &id, 1);
    client.resume(&id).await;
    client.out(&id, "head -c 10000000 /dev/urandom > /dev/shm/x").await;
    client.pause(&id).await;
    let (second, _) = written(platform, &id, 2);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let ratio = format!("{:.2}", all as f64 / used as f64);
    [
        Row::new(
            "memory kept of a 512 MiB guest ÷ its used memory",
            &mib(all),
            &mib(used),
            &ratio,
            "≤ 1.1",
        ),
        Row::value("of that, written by its first pause", &mib(first), ""),
        Row::value("a second pause after 10 MB, written", &mib(second), "≤ 25 MB"),
    ]
}
