//! A hundred clones of one template, made four at a time: their time, their needs while idle, and
//! their removal. The pools have the product's defaults.

use crate::bare::{Bare, Machine, Namespace};
use crate::guests::{self, machine_of};
use crate::idle::{pss_kib, ticks};
use crate::pools::{Pools, gone};
use crate::stats::{Row, say};
use futures::StreamExt;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tests::{Client, Platform};

const CLONES: usize = 100;
const AT_ONCE: usize = 4;
/// Time of the look at idle clones, and of the wait before.
const WATCH: Duration = Duration::from_secs(10);

/// Measures the clones on a platform of their own.
pub(crate) async fn measure() -> Vec<Row> {
    let platform = guests::platform(&Pools::Ready.vars()).await;
    guests::lift_limits(&platform).await;
    let client = platform.client();
    let size = json!({ "memory_mib": 256 });
    let first = client.create(&size).await;
    let like = client.create(&size).await;
    let floor = bare(&Bare::like(&platform, &like));
    let started = Instant::now();
    let (each, ids, failed) = create(&client, &size).await;
    let took = started.elapsed();
    let what = "100 clones, four at a time ÷ the bare VMM's";
    let mut rows = vec![
        Row::ratio(what, &[took], &[floor], "≤ 0.9").failures(failed),
        Row::alone("create of one of them", &each, "").failures(failed),
    ];
    rows.extend(idle(&platform, &ids).await);
    let all: Vec<String> = ids.into_iter().chain([first, like]).collect();
    rows.push(removal(&platform, &client, &all).await);
    platform.finish();
    say(rows)
}

/// Returns the time that the bare VMM takes for the clones.
fn bare(floor: &Bare) -> Duration {
    let places: Vec<_> = (0..CLONES).map(|n| Namespace::new(&n.to_string())).collect();
    let (machines, next) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(place) = places.get(n) else { break };
                    let (machine, _) = floor.restore(place, &format!("{n}.sock"));
                    machines.lock().unwrap().push(machine);
                }
            });
        }
    });
    let took = started.elapsed();
    machines.into_inner().unwrap().into_iter().for_each(Machine::end);
    took
}

/// Creates the clones. Returns the time and id of each that succeeded, and the number of others.
async fn create(client: &Client, size: &Value) -> (Vec<Duration>, Vec<String>, usize) {
    let creating = (0..CLONES).map(|_| async {
        let since = Instant::now();
        let made = client.post("/v1/capsules", size).await;
        let id = made.body["id"].as_str().filter(|_| made.status == 201);
        (since.elapsed(), id.map(str::to_owned).ok_or_else(|| made.body.to_string()))
    });
    let made: Vec<_> = futures::stream::iter(creating).buffer_unordered(AT_ONCE).collect().await;
    let (mut times, mut ids, mut failed) = (Vec::new(), Vec::new(), 0);
    for (took, id) in made {
        match id {
            Ok(id) => {
                times.push(took);
                ids.push(id);
            }
            Err(answer) => {
                println!("failed: {answer}");
                failed += 1;
            }
        }
    }
    (times, ids, failed)
}

/// Measures memory and processor time of the clones while they do nothing.
async fn idle(platform: &Platform, ids: &[String]) -> [Row; 2] {
    tokio::time::sleep(WATCH).await;
    let pids: Vec<i32> = ids.iter().map(|id| machine_of(platform, id)).collect();
    let mut pss: Vec<u64> = pids.iter().map(|pid| pss_kib(*pid)).collect();
    pss.sort_unstable();
    let all = || pids.iter().map(|pid| ticks(pid.unsigned_abs())).sum::<u64>();
    let before = all();
    tokio::time::sleep(WATCH).await;
    let each = (all() - before) as f64 / WATCH.as_secs_f64() / pids.len() as f64;
    let pss = format!("{:.1} MiB", pss[pss.len() / 2] as f64 / 1024.0);
    let each = format!("{each:.2} % of a core");
    [
        Row::value("memory of an idle clone of 256 MiB (PSS)", &pss, "≤ 30 MiB"),
        Row::value("processor of an idle clone", &each, "≤ 1 % of a core"),
    ]
}

/// Removes the clones one after another, and waits until the host has nothing of them.
async fn removal(platform: &Platform, client: &Client, ids: &[String]) -> Row {
    let mut removed = Vec::new();
    for id in ids {
        let started = Instant::now();
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        removed.push(started.elapsed());
    }
    gone(platform, ids).await;
    Row::alone("removal of one of a hundred, to its answer", &removed, "≤ 20 ms")
}
