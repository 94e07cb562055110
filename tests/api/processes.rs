//! Programs that leave others behind, subscribers that do not read, and ends that wait for nobody.

use crate::capsule;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use std::cell::Cell;
use tests::{Client, Socket, eventually};

/// More bytes than all buffers between a program and a client hold together.
const MUCH: usize = 16 << 20;
/// Number of connections that may read a program's output.
const READERS: usize = 64;

/// Starts an endless program with the tag `flood` and opens its output without reading.
async fn stuck(client: &Client, id: &str, counter: &str, timeout: Option<u32>) -> Socket {
    let mut socket = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
    // Random data cannot be compressed, so buffers hold little of it.
    let script =
        format!("while :; do head -c 1000000 /dev/urandom | base64; echo >> {counter}; done");
    let start = json!({ "type": "start", "cmd": "sh", "args": ["-c", script], "tag": "flood",
        "encoding": "base64", "timeout": timeout });
    socket.send(start).await;
    assert_eq!(socket.next().await.unwrap()["type"], "start");
    socket
}

/// Waits until a program that counts its writes is blocked.
async fn held_up(counter: &str) {
    let (last, same) = (Cell::new(0), Cell::new(0));
    eventually("the program is held up", || async {
        let now = std::fs::metadata(counter).map_or(0, |file| file.len());
        same.set(if now > 0 && now == last.replace(now) { same.get() + 1 } else { 0 });
        (same.get() == 20).then_some(())
    })
    .await;
}

async fn running(client: &Client, id: &str) -> Value {
    let list = client.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
    list["processes"].clone()
}

#[tokio::test]
async fn orphaned_job_keeps_writing_and_its_last_output_is_readable() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (gate, alive, done) = (at("gate"), at("alive"), at("done"));
    let until = |file: &str| format!("while ! test -e {file}; do sleep 0.05; done");
    // The programs write far more than a pipe holds, and a closed pipe ends them.
    let script = format!(
        "({}; head -c 3000000 /dev/zero; echo late; echo worse >&2; echo yes > {alive}; {}) & \
        echo begun",
        until(&gate),
        until(&done),
    );
    let body = json!({ "cmd": "sh", "args": ["-c", script], "tag": "leader" });
    let exec = format!("/v1/capsules/{id}/exec");
    let result = client.post(&exec, &body).await.expect(200);
    assert_eq!((&result["stdout"], &result["exit_code"]), (&json!("begun\n"), &json!(0)));
    assert_eq!(running(&client, &id).await, json!([]));
    std::fs::write(&gate, "").unwrap();
    eventually("the job goes on after its output", || async {
        std::fs::read_to_string(&alive).is_ok_and(|text| text == "yes\n").then_some(())
    })
    .await;
    let attach = format!("/v1/capsules/{id}/processes/leader/stream");
    eventually("the job's last output is kept", || async {
        let (kept, code) = client.socket(&attach).await.until_exit("stdout").await;
        assert_eq!(code, 0);
        assert!(kept.len() <= 64 << 10, "{} bytes are kept", kept.len());
        kept.ends_with(b"\0late\n").then_some(())
    })
    .await;
    let (error, _) = client.socket(&attach).await.until_exit("stderr").await;
    assert_eq!(error, b"worse\n");
    // The leader's end ended its deadline, and no signal reaches the processes that it left.
    client.delete(&format!("/v1/capsules/{id}/processes/leader")).await.expect(404);
    std::fs::write(&done, "").unwrap();
    platform.finish();
}

#[tokio::test]
async fn leader_exit_is_reported_while_its_job_keeps_writing() {
    let (platform, client, id) = capsule().await;
    let script = "(while :; do echo x; sleep 0.05; done) & echo $!";
    let job = client.out(&id, script).await;
    let job = job.lines().find(|line| *line != "x").unwrap().to_owned();
    client.out(&id, &format!("kill {job}")).await;
    platform.finish();
}

#[tokio::test]
async fn stalled_subscriber_is_disconnected_and_program_continues() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let counter = dir.path().join("counter").display().to_string();
    let mut silent = stuck(&client, &id, &counter, None).await;
    held_up(&counter).await;
    let mut reader = client.socket(&format!("/v1/capsules/{id}/processes/flood/stream")).await;
    let mut read = 0;
    while read < MUCH {
        let frame = reader.next().await.unwrap();
        assert!(["start", "stdout", "ping"].contains(&frame["type"].as_str().unwrap()), "{frame}");
        read += frame["data"].as_str().map_or(0, str::len);
    }
    client.delete(&format!("/v1/capsules/{id}/processes/flood")).await.expect(204);
    let mut last = Value::Null;
    while let Some(frame) = reader.next().await {
        last = frame;
    }
    assert_eq!((&last["type"], &last["exit_code"]), (&json!("exit"), &json!(137)), "{last}");
    let mut last = Value::Null;
    while let Some(frame) = silent.next().await {
        last = frame;
    }
    assert_eq!((&last["type"], &last["code"]), (&json!("error"), &json!("output_not_read")));
    platform.finish();
}

#[tokio::test]
async fn subscriber_beyond_limit_is_refused_with_fix() {
    let (platform, client, id) = capsule().await;
    let mut first = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
    let start = json!({ "type": "start", "cmd": "sleep", "args": ["1000"], "tag": "quiet" });
    first.send(start).await;
    assert_eq!(first.next().await.unwrap()["type"], "start");
    let attach = format!("/v1/capsules/{id}/processes/quiet/stream");
    let mut readers = vec![first];
    while readers.len() < READERS {
        let mut reader = client.socket(&attach).await;
        assert_eq!(reader.next().await.unwrap()["type"], "start");
        readers.push(reader);
    }
    let one_more = || {
        let request = client.request(Method::GET, &attach).header("connection", "upgrade");
        let request = request.header("upgrade", "websocket");
        request
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    };
    let told = "64 connections already read this program's output; close one";
    client.send(one_more()).await.refuses(429, "too_many_at_once", told);
    drop(readers.pop());
    eventually("there is a place again", || async {
        let answer = one_more().send().await.unwrap();
        (answer.status().as_u16() == 101).then_some(())
    })
    .await;
    client.delete(&format!("/v1/capsules/{id}/processes/quiet")).await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn stalled_sole_subscriber_delays_neither_kill_nor_exit() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let counter = dir.path().join("counter").display().to_string();
    let mut silent = stuck(&client, &id, &counter, None).await;
    held_up(&counter).await;
    let pid = running(&client, &id).await[0]["pid"].clone();
    client.delete(&format!("/v1/capsules/{id}/processes/flood")).await.expect(204);
    eventually("the end is told", || async {
        (running(&client, &id).await == json!([])).then_some(())
    })
    .await;
    let mut late = client.socket(&format!("/v1/capsules/{id}/processes/{pid}/stream")).await;
    assert_eq!(late.until_exit("stdout").await.1, 137);
    // The program's output comes first, and then the end.
    let (out, code) = silent.until_exit("stdout").await;
    assert_eq!((out.is_empty(), code), (false, 137));
    platform.finish();
}

#[tokio::test]
async fn stalled_sole_subscriber_delays_no_deadline() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let counter = dir.path().join("counter").display().to_string();
    let _silent = stuck(&client, &id, &counter, Some(3)).await;
    eventually("the deadline has passed", || async {
        (running(&client, &id).await == json!([])).then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn blocked_input_ends_with_leader() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done").display().to_string();
    let mut socket = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
    // The job holds the leader's input, and reads none of it.
    let script = format!("exec 3<&0; (while ! test -e {done}; do sleep 0.05; done) & read -r x");
    socket
        .send(json!({ "type": "start", "cmd": "sh", "args": ["-c", script], "stdin": true }))
        .await;
    assert_eq!(socket.next().await.unwrap()["type"], "start");
    let much = format!("\n{}", "x".repeat(500_000));
    socket.send(json!({ "type": "stdin", "data": STANDARD.encode(much) })).await;
    let mut code = None;
    while let Some(frame) = socket.next().await {
        if frame["type"] == "exit" {
            code = frame["exit_code"].as_i64();
        }
    }
    assert_eq!(code, Some(0));
    std::fs::write(&done, "").unwrap();
    platform.finish();
}
