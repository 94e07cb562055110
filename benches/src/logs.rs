//! Logs of capsules: the time until a line is readable, the host's cost of much output, and creates
//! with logs and metrics against creates without them. The guests are processes.

use crate::fleet::processor;
use crate::stats::Row;
use serde_json::json;
use std::time::{Duration, Instant};
use tests::{Client, Driver, Platform};

/// Lines whose way is timed.
const LINES: usize = 50;
/// Longest wait for a line.
const VISIBLE_MAX: Duration = Duration::from_secs(10);
/// Time between two looks for a line.
const LOOK: Duration = Duration::from_millis(10);
/// Time of a watch of the host's processor time.
const WATCH: Duration = Duration::from_secs(30);
/// Writes about 10 MiB each second, in lines of 1,000 bytes.
const FLOOD: &str = "while :; do head -c 1048576 /dev/zero | tr '\\0' x | fold -w 1000; \
                     sleep 0.08; done";
/// Commands of another capsule, before and during the output.
const COMMANDS: usize = 100;
/// Creates of each side.
const CREATES: usize = 100;

pub(crate) async fn measure() -> Vec<Row> {
    let mut rows = output().await;
    rows.push(creates().await);
    rows
}

async fn background(client: &Client, id: &str, script: &str) {
    let body = json!({ "cmd": "sh", "args": ["-c", script], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
}

async fn output() -> Vec<Row> {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let (loud, other) = (client.create(&json!({})).await, client.create(&json!({})).await);
    let lines = visible(&client, &other).await;
    let pid = i32::try_from(platform.pid()).unwrap();
    let watch = async || {
        let before = processor(&[pid]);
        tokio::time::sleep(WATCH).await;
        processor(&[pid]) - before
    };
    let idle = watch().await;
    let calm = commands(&client, &other).await;
    background(&client, &loud, FLOOD).await;
    let busy = watch().await;
    let disturbed = commands(&client, &other).await;
    platform.finish();
    let share = (busy - idle).max(0.0) / WATCH.as_secs_f64() * 100.0;
    vec![
        Row::alone("a line of output until it is readable", &lines, "≤ 1 s"),
        Row::value(
            "10 MiB/s of output, control plane and agent",
            &format!("{share:.2} % of a core"),
            "≤ 3 %",
        ),
        Row::ratio("a command beside 10 MiB/s of output ÷ one without", &disturbed, &calm, "≤ 1.1"),
    ]
}

/// Times lines from the start of their program until a read has them.
async fn visible(client: &Client, id: &str) -> Vec<Duration> {
    let mut took = Vec::new();
    for number in 0..LINES {
        let (line, began) = (format!("line-{number}-of-{id}"), Instant::now());
        background(client, id, &format!("echo {line}")).await;
        let path = format!("/v1/capsules/{id}/logs?source=process&search={line}");
        loop {
            let page = client.get(&path).await.expect(200);
            let items = page["items"].as_array().unwrap();
            if items.iter().any(|item| item["text"] == line) {
                break;
            }
            assert!(began.elapsed() < VISIBLE_MAX, "{line} did not come");
            tokio::time::sleep(LOOK).await;
        }
        took.push(began.elapsed());
    }
    took
}

async fn commands(client: &Client, id: &str) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..COMMANDS {
        let began = Instant::now();
        assert_eq!(client.out(id, "echo x").await, "x\n");
        took.push(began.elapsed());
    }
    took
}

/// Compares creates of two platforms in turns. The floor keeps neither logs nor metrics.
async fn creates() -> Row {
    let ours = Platform::start(Driver::Fake, &[]).await;
    let off = [("WRENN_LOGS_DAYS", "0"), ("WRENN_METRICS_DAYS", "0")];
    let floor = Platform::start(Driver::Fake, &off).await;
    let clients = [ours.client(), floor.client()];
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..CREATES {
        for (client, took) in clients.iter().zip(&mut took) {
            let began = Instant::now();
            let id = client.create(&json!({ "memory_mib": 128 })).await;
            took.push(began.elapsed());
            client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        }
    }
    floor.finish();
    ours.finish();
    let [with, without] = took;
    Row::less("a create with logs and metrics − one without", &with, &without, "≤ 1 ms")
}
