//! Terminals that outlive their clients: lists, replays, windows of unacknowledged output.

use crate::capsule;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::Write;
use std::process::{Child, Stdio};
use tests::{Client, Socket, eventually};

/// Most bytes that a replay has.
const REPLAY: usize = 256 << 10;

fn typed(text: &str) -> Value {
    json!({ "type": "input", "data": STANDARD.encode(text) })
}

/// Starts a script on a terminal that changes no byte of the output. Returns the terminal's tag.
async fn start(client: &Client, id: &str, script: &str) -> (Socket, String) {
    let mut socket = client.socket(&format!("/v1/capsules/{id}/pty")).await;
    let script = format!("stty raw -echo; {script}");
    socket.send(json!({ "type": "start", "cmd": "sh", "args": ["-c", script] })).await;
    let started = socket.next().await.unwrap();
    assert_eq!(started["type"], "started", "{started}");
    assert!(started["replayed"].is_null(), "{started}");
    let tag = started["tag"].as_str().unwrap().to_owned();
    (socket, tag)
}

/// Connects to a terminal with a replay. Returns the number of replayed bytes.
async fn attach(client: &Client, id: &str, tag: &str) -> (Socket, usize) {
    let mut socket = client.socket(&format!("/v1/capsules/{id}/pty")).await;
    socket.send(json!({ "type": "connect", "tag": tag, "replay": true })).await;
    let started = socket.next().await.unwrap();
    assert_eq!((&started["type"], &started["tag"]), (&json!("started"), &json!(tag)));
    let replayed = started["replayed"].as_u64().unwrap();
    (socket, usize::try_from(replayed).unwrap())
}

async fn terminals(client: &Client, id: &str) -> Vec<Value> {
    let list = client.get(&format!("/v1/capsules/{id}/terminals")).await.expect(200);
    list["terminals"].as_array().unwrap().clone()
}

/// Reads output up to `count` bytes.
async fn output(socket: &mut Socket, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        let frame = socket.next().await.unwrap();
        match frame["type"].as_str().unwrap() {
            "output" => all.extend(STANDARD.decode(frame["data"].as_str().unwrap()).unwrap()),
            "ping" => {}
            _ => panic!("{frame} after {} bytes", all.len()),
        }
    }
    all
}

#[tokio::test]
async fn terminal_outlives_its_client_and_is_listed_with_size_and_clients() {
    let (platform, client, id) = capsule().await;
    assert_eq!(terminals(&client, &id).await, Vec::<Value>::new());
    let (mut first, tag) = start(&client, &id, "echo ready; exec cat").await;
    first.until("output", "ready").await;
    first.send(json!({ "type": "resize", "cols": 132, "rows": 50 })).await;
    let shown = eventually("the terminal has its new size", || async {
        terminals(&client, &id).await.into_iter().find(|terminal| terminal["cols"] == 132)
    })
    .await;
    assert_eq!(
        (&shown["tag"], &shown["rows"], &shown["clients"]),
        (&json!(tag), &json!(50), &json!(1))
    );
    assert!(shown["command"].as_str().unwrap().starts_with("sh -c stty raw"), "{shown}");
    assert!(shown["started_at"].is_string() && shown["pid"].is_u64(), "{shown}");
    drop(first);
    eventually("the client has gone, and the terminal is still there", || async {
        let list = terminals(&client, &id).await;
        assert_eq!(list.len(), 1);
        (list[0]["clients"] == 0).then_some(())
    })
    .await;
    // A command without a terminal is not listed.
    let quiet = json!({ "cmd": "sleep", "args": ["1000"], "background": true, "tag": "quiet" });
    client.post(&format!("/v1/capsules/{id}/exec"), &quiet).await.expect(202);
    assert_eq!(terminals(&client, &id).await.len(), 1);
    let (mut again, _) = attach(&client, &id, &tag).await;
    again.send(json!({ "type": "kill" })).await;
    assert_eq!(again.until_exit("output").await.1, 137);
    assert_eq!(terminals(&client, &id).await, Vec::<Value>::new());
    client.delete(&format!("/v1/capsules/{id}/processes/quiet")).await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn reattached_client_gets_earlier_and_later_output_once() {
    let (platform, client, id) = capsule().await;
    // The script writes a number for each line that it reads, so that the test sets the pace.
    let script = "n=0; echo ready; while read -r x; do n=$((n+1)); echo \"line $n\"; done";
    let (mut first, tag) = start(&client, &id, script).await;
    first.until("output", "ready\n").await;
    for _ in 0..3 {
        first.send(typed("\n")).await;
    }
    first.until("output", "line 3\n").await;
    let earlier = "ready\nline 1\nline 2\nline 3\n";
    let (mut second, replayed) = attach(&client, &id, &tag).await;
    assert_eq!(replayed, earlier.len());
    assert_eq!(output(&mut second, replayed).await, earlier.as_bytes());
    drop(first);
    // Input needs no output to be read, and all clients share the terminal.
    for number in 4..50 {
        second.send(typed("\n")).await;
        let line = format!("line {number}\n");
        assert_eq!(output(&mut second, line.len()).await, line.as_bytes());
    }
    drop(second);
    let whole: String = (1..50).map(|number| format!("line {number}\n")).collect();
    let whole = format!("ready\n{whole}");
    let (mut third, replayed) = attach(&client, &id, &tag).await;
    assert_eq!(output(&mut third, replayed).await, whole.as_bytes());
    // Without `replay`, only later output comes, as before.
    let mut plain = client.socket(&format!("/v1/capsules/{id}/pty")).await;
    plain.send(json!({ "type": "connect", "tag": tag })).await;
    let started = plain.next().await.unwrap();
    assert!(started["replayed"].is_null(), "{started}");
    third.send(typed("\n")).await;
    for socket in [&mut third, &mut plain] {
        assert_eq!(output(socket, 8).await, b"line 50\n");
    }
    let pid = started["pid"].as_u64().unwrap().to_string();
    let (mut by_pid, _) = attach(&client, &id, &pid).await;
    by_pid.send(json!({ "type": "kill" })).await;
    assert_eq!(by_pid.until_exit("output").await.1, 137);
    // The end does not drop the last output at once.
    let (mut late, replayed) = attach(&client, &id, &tag).await;
    let (kept, code) = late.until_exit("output").await;
    assert_eq!((kept.len(), code), (replayed, 137));
    assert!(kept.ends_with(b"line 50\n"));
    platform.finish();
}

#[tokio::test]
async fn replay_of_long_output_is_its_last_part_from_the_beginning_of_a_line() {
    let (platform, client, id) = capsule().await;
    let (mut first, tag) = start(&client, &id, "seq 100000; echo done; exec cat").await;
    first.until("output", "done\n").await;
    let (mut late, replayed) = attach(&client, &id, &tag).await;
    assert!((REPLAY - 8..=REPLAY).contains(&replayed), "{replayed} bytes");
    let text = String::from_utf8(output(&mut late, replayed).await).unwrap();
    let mut lines = text.lines();
    let begin: u32 = lines.next().unwrap().parse().unwrap();
    let numbers: Vec<u32> = lines.map_while(|line| line.parse().ok()).collect();
    assert_eq!(numbers, (begin + 1..=100_000).collect::<Vec<_>>());
    assert!(text.ends_with("100000\ndone\n"));
    late.send(json!({ "type": "kill" })).await;
    late.until_exit("output").await;
    platform.finish();
}

#[tokio::test]
async fn full_window_stops_the_program_until_output_is_acknowledged() {
    let (platform, client, id) = capsule().await;
    let dir = tempfile::tempdir().unwrap();
    let counter = dir.path().join("counter").display().to_string();
    let script =
        format!("read -r go; while :; do head -c 100000 /dev/urandom; echo x >> {counter}; done");
    let (mut socket, _) = start(&client, &id, &script).await;
    let window = 64 << 10;
    socket.send(json!({ "type": "window", "bytes": window })).await;
    socket.send(typed("\n")).await;
    let mut read = output(&mut socket, window).await.len();
    assert_eq!(read, window, "more output came than the window allows");
    let written = || std::fs::metadata(&counter).map_or(0, |file| file.len());
    let (last, same) = (Cell::new(0), Cell::new(0));
    eventually("the program is held up", || async {
        let now = written();
        same.set(if now > 0 && now == last.replace(now) { same.get() + 1 } else { 0 });
        (same.get() == 20).then_some(())
    })
    .await;
    let held = written();
    // More than all buffers on the way hold lets the program go on.
    while written() == held {
        socket.send(json!({ "type": "ack", "bytes": window })).await;
        read += output(&mut socket, window).await.len();
        assert!(read < 256 << 20, "the program writes nothing");
    }
    let ack = json!({ "type": "ack", "bytes": window + 1 });
    socket.send(ack).await;
    let refused = socket.next().await.unwrap();
    assert_eq!((&refused["code"], &refused["fatal"]), (&json!("invalid_request"), &json!(false)));
    socket.send(json!({ "type": "window", "bytes": 0 })).await;
    let refused = socket.next().await.unwrap();
    assert!(refused["data"].as_str().unwrap().starts_with("bytes must be between 1"), "{refused}");
    // A full window holds up neither signals nor the end of the terminal.
    socket.send(json!({ "type": "kill" })).await;
    eventually("the terminal has ended", || async {
        terminals(&client, &id).await.is_empty().then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn pasted_input_comes_back_whole_through_a_small_window() {
    let (platform, client, id) = capsule().await;
    let (mut socket, _) = start(&client, &id, "echo ready; exec cat").await;
    socket.until("output", "ready\n").await;
    socket.send(json!({ "type": "ack", "bytes": 6 })).await;
    socket.send(json!({ "type": "window", "bytes": 4096 })).await;
    let pasted = "0123456789abcde\n".repeat(16 << 10).into_bytes();
    for piece in pasted.chunks(16 << 10) {
        socket.send(json!({ "type": "input", "data": STANDARD.encode(piece) })).await;
    }
    let mut echoed = Vec::new();
    while echoed.len() < pasted.len() {
        let piece = output(&mut socket, 1).await;
        assert!(piece.len() <= 4096, "{} bytes came at once", piece.len());
        socket.send(json!({ "type": "ack", "bytes": piece.len() })).await;
        echoed.extend(piece);
    }
    assert!(echoed == pasted, "the echo differs");
    socket.send(json!({ "type": "kill" })).await;
    platform.finish();
}

#[tokio::test]
async fn listing_terminals_does_not_wake_a_paused_capsule() {
    let (platform, client, _) = capsule().await;
    let id = client.create(&json!({ "auto_resume": true })).await;
    client.pause(&id).await;
    for query in ["", "?passive=true"] {
        let path = format!("/v1/capsules/{id}/terminals{query}");
        client.get(&path).await.refuses(409, "capsule_paused", "paused");
    }
    assert_eq!(client.status(&id).await, "paused");
    platform.finish();
}

#[tokio::test]
async fn shell_attaches_to_an_open_terminal_and_shows_its_output() {
    let (platform, client, id) = capsule().await;
    let none = platform.run(&["capsule", "shell", &id, "--attach"]);
    let told = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(!none.status.success() && told.contains("no open terminal"), "{told}");
    let script = "echo earlier; read -r x; echo \"got $x\"; exit 7";
    let (mut first, tag) = start(&client, &id, script).await;
    first.until("output", "earlier").await;
    drop(first);
    let shell = |attach: &str| -> Child {
        let mut command = platform.wrenn();
        command.args(["capsule", "shell", &id, attach]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    // The first shell only looks, so that the second one sees the same replay.
    let mut watching = shell(&format!("--attach={tag}"));
    let mut typing = shell("--attach");
    typing.stdin.as_mut().unwrap().write_all(b"keys\n").unwrap();
    for child in [&mut watching, &mut typing] {
        let mut out = String::new();
        std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut out).unwrap();
        assert!(out.starts_with("earlier\n") && out.ends_with("got keys\n"), "{out}");
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }
    platform.finish();
}
