//! Transfers of 100 MB through the API, against transfers straight to envd, and the memory that
//! they take.

use crate::exec::Straight;
use crate::stats::Row;
use reqwest::{Body, Method};
use std::time::Instant;
use tests::Platform;

const BYTES: usize = 100_000_000;
const ROUNDS: usize = 5;
const URL: &str = "http://169.254.0.2:49983/files?path=/tmp/straight";

pub(crate) async fn measure(platform: &Platform, id: &str) -> Vec<Row> {
    let (client, straight) = (platform.client(), Straight::to(platform, id));
    let path = format!("/v1/capsules/{id}/files?path=/tmp/ours");
    let contents: Vec<u8> = (0..BYTES).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect();
    let [mut up, mut up_floor, mut down, mut down_floor] = [const { Vec::new() }; 4];
    reset_peak(platform.pid());
    for _ in 0..ROUNDS {
        let body = contents.clone();
        let started = Instant::now();
        client.send(client.request(Method::PUT, &path).body(body)).await.expect(204);
        up.push(started.elapsed());
        let body = contents.clone();
        up_floor.push(straight.time(async move |client, token| {
            let post = client.post(URL).header("x-access-token", token);
            let post = post.header("content-type", "application/octet-stream");
            assert!(post.body(Body::from(body)).send().await.unwrap().status().is_success());
        }));
        let started = Instant::now();
        drain(client.request(Method::GET, &path).send().await.unwrap()).await;
        down.push(started.elapsed());
        down_floor.push(straight.time(async |client, token| {
            let get = client.get(URL).header("x-access-token", token);
            drain(get.send().await.unwrap()).await;
        }));
    }
    let peak = status_mib(platform.pid(), "VmHWM");
    let envd = client.out(id, "grep VmHWM /proc/$(pgrep -o -P 1 init)/status").await;
    let envd = envd.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0);
    vec![
        Row::throughput(
            "100 MB up, throughput ÷ straight to envd",
            BYTES,
            &up,
            &up_floor,
            "≥ 0.95",
        ),
        Row::throughput("100 MB down", BYTES, &down, &down_floor, "≥ 0.95"),
        Row::value("peak memory meanwhile: agent + control plane", &mib(peak), "flat"),
        Row::value("peak memory meanwhile: envd", &mib(envd >> 10), "flat"),
    ]
}

async fn drain(mut answer: reqwest::Response) {
    let mut all = 0;
    while let Some(chunk) = answer.chunk().await.unwrap() {
        all += chunk.len();
    }
    assert_eq!(all, BYTES);
}

/// Resets the peak of a process's memory (`proc(5)`, `clear_refs`).
fn reset_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// Returns a field of a process's status, in MiB.
pub(crate) fn status_mib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

pub(crate) fn mib(count: u64) -> String {
    format!("{count} MiB")
}
