//! Creates by restore, pauses, resumes and forks, against the bare VMM with equal memory, state and
//! disk.

use crate::bare::{Bare, Namespace};
use crate::stats::{Row, median, shown};
use futures::StreamExt;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use tests::{Client, Platform, processes_of};

const ROUNDS: usize = 21;
const CLONES: usize = 100;
const AT_ONCE: usize = 4;
const WATCH: Duration = Duration::from_secs(10);

/// Measures the operations on one capsule at a time.
pub(crate) async fn measure(platform: &Platform, cold: &Bare) -> Vec<Row> {
    let client = platform.client();
    // The first capsule of its size may be booted. The next one is restored.
    let first = client.create(&json!({})).await;
    client.delete(&format!("/v1/capsules/{first}")).await.expect(204);
    let like = client.create(&json!({})).await;
    let floor = Bare::like(platform, &like);
    let at = Namespace::new("keep");
    let (mut bare, mut created, mut commanded, mut booted) = (vec![], vec![], vec![], vec![]);
    let (mut resumed, mut paused, mut saved, mut removed) = (vec![], vec![], vec![], vec![]);
    let to = platform.dir().join("bare.saved");
    for round in 0..ROUNDS {
        let (machine, took) = floor.restore(&at, "restored.sock");
        bare.push(took);
        saved.push(machine.save(&to, true));
        machine.end();
        let started = Instant::now();
        let id = client.create(&json!({})).await;
        created.push(started.elapsed());
        client.out(&id, "true").await;
        commanded.push(started.elapsed());
        let started = Instant::now();
        client.pause(&id).await;
        paused.push(started.elapsed());
        let started = Instant::now();
        client.resume(&id).await;
        resumed.push(started.elapsed());
        let started = Instant::now();
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        removed.push(started.elapsed());
        if round % 4 == 0 {
            booted.push(cold.boot(&at));
        }
    }
    let mut rows = vec![
        Row::ratio("create from the template ÷ bare restore to /health", &created, &bare, ""),
        Row::ratio("the same with a first command", &commanded, &bare, "≤ 1.2"),
        Row::ratio("bare boot ÷ create from the template", &booted, &created, "≥ 8"),
        Row::ratio("resume ÷ bare restore to /health", &resumed, &bare, "≤ 1.2"),
        Row::ratio("pause ÷ the VMM's own save with fsync", &paused, &saved, "≤ 1.3"),
        Row::new(
            "removal, until nothing is left",
            &shown(median(&removed)),
            "–",
            &shown(median(&removed)),
            "≤ 50 ms",
        ),
    ];
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
    let (machine, _) = floor.restore(at, "forked.sock");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(machine.save(to, false));
        let before = frozen(platform).await;
        let fork = format!("/v1/capsules/{id}/fork");
        let forked = client.post(&fork, &json!({})).await.expect(201);
        ours.push(frozen(platform).await - before);
        let child = forked["items"][0]["id"].as_str().unwrap();
        client.delete(&format!("/v1/capsules/{child}")).await.expect(204);
    }
    machine.end();
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    [Row::ratio("fork: source frozen ÷ the VMM's own stop-save-continue", &ours, &bare, "≤ 1.3")]
}

async fn frozen(platform: &Platform) -> Duration {
    let figures = platform.agent_client().get("/metrics").await.body;
    let text = figures.as_str().unwrap();
    let name = "wrenn_snapshot_frozen_seconds_sum ";
    let sum = text.lines().find_map(|line| line.strip_prefix(name));
    Duration::from_secs_f64(sum.map_or(0.0, |sum| sum.parse().unwrap()))
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
        Row::new("of that, written by its first pause", &mib(first), "–", &mib(first), ""),
        Row::new("a second pause after 10 MB, written", &mib(second), "–", &mib(second), "≤ 25 MB"),
    ]
}

/// Measures a hundred clones of one template, made four at a time, and their needs while idle.
pub(crate) async fn clones(platform: &Platform) -> Vec<Row> {
    let client = platform.client();
    let size = json!({ "memory_mib": 256 });
    let first = client.create(&size).await;
    let like = client.create(&size).await;
    let floor = Bare::like(platform, &like);
    let places: Vec<_> = (0..CLONES).map(|n| Namespace::new(&n.to_string())).collect();
    let started = Instant::now();
    let bare = std::sync::Mutex::new(Vec::new());
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(place) = places.get(n) else { break };
                    let (machine, _) = floor.restore(place, &format!("{n}.sock"));
                    bare.lock().unwrap().push(machine);
                }
            });
        }
    });
    let bare_took = started.elapsed();
    bare.into_inner().unwrap().into_iter().for_each(crate::bare::Machine::end);
    drop(places);
    let started = Instant::now();
    let made = futures::stream::iter(0..CLONES).map(|_| client.create(&size));
    let ids: Vec<String> = made.buffer_unordered(AT_ONCE).collect().await;
    let took = started.elapsed();
    tokio::time::sleep(WATCH).await;
    let pids: Vec<i32> = ids.iter().map(|id| processes_of(id)[0]).collect();
    let mut pss: Vec<u64> = pids.iter().map(|pid| crate::idle::pss_kib(*pid)).collect();
    pss.sort_unstable();
    let ticks = || pids.iter().map(|pid| crate::idle::ticks(pid.unsigned_abs())).sum::<u64>();
    let before = ticks();
    tokio::time::sleep(WATCH).await;
    let each = (ticks() - before) as f64 / WATCH.as_secs_f64() / CLONES as f64;
    let mut removed = Vec::new();
    for id in ids.iter().chain([&first, &like]) {
        let started = Instant::now();
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        removed.push(started.elapsed());
    }
    let left = platform.leftovers();
    assert!(
        left.namespaces.is_empty() && left.links.is_empty() && left.folders.is_empty(),
        "{left:?}"
    );
    let pss = format!("{:.1} MiB", pss[pss.len() / 2] as f64 / 1024.0);
    let each = format!("{each:.2} % of a core");
    let removal = shown(median(&removed));
    vec![
        Row::ratio("100 clones, four at a time ÷ the bare VMM's", &[took], &[bare_took], "≤ 1.3"),
        Row::new("memory of an idle clone of 256 MiB (PSS)", &pss, "–", &pss, "≤ 32 MiB"),
        Row::new("processor of an idle clone", &each, "–", &each, "≤ 1 % of a core"),
        Row::new("removal of one of a hundred", &removal, "–", &removal, "≤ 50 ms"),
    ]
}
