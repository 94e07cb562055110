//! WebSockets: commands, terminals, reconnects to both, and clients that send nonsense.

use crate::capsule;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

#[tokio::test]
async fn exec_stream_carries_input_output_and_exit_code() {
    let (platform, client, id) = capsule().await;
    let mut socket = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
    let script = "echo begun; while read -r line; do echo got $line; done; printf '\\342\\202'; \
        sleep 0.2; printf '\\254\\377'; exit 4";
    socket
        .send(json!({ "type": "start", "cmd": "bash", "args": ["-c", script], "stdin": true,
            "envs": { "A": "1" } }))
        .await;
    assert_eq!(socket.next().await.unwrap()["type"], "start");
    socket.until("stdout", "begun").await;
    socket.send(json!({ "type": "stdin", "data": STANDARD.encode("one\n") })).await;
    socket.until("stdout", "got one").await;
    socket.send(json!({ "type": "close_stdin" })).await;
    let (rest, code) = socket.until_exit("stdout").await;
    assert_eq!((rest.as_slice(), code), (&b"\xe2\x82\xac\xff"[..], 4));
    assert!(socket.next().await.is_none(), "the exit is the last frame");
    platform.finish();
}

#[tokio::test]
async fn exec_stream_loses_no_output_of_short_or_verbose_command() {
    let (platform, client, id) = capsule().await;
    for _ in 0..20 {
        let mut socket = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
        socket.send(json!({ "type": "start", "cmd": "echo", "args": ["x"] })).await;
        let (out, code) = socket.until_exit("stdout").await;
        assert_eq!((out.as_slice(), code), (&b"x\n"[..], 0));
    }
    let mut socket = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
    let script = "head -c 30000000 /dev/zero";
    let start =
        json!({ "type": "start", "cmd": "sh", "args": ["-c", script], "encoding": "base64" });
    socket.send(start).await;
    // A slow reader holds the command up and loses nothing.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let (out, _) = socket.until_exit("stdout").await;
    assert_eq!(out.len(), 30_000_000);
    platform.finish();
}

#[tokio::test]
async fn command_that_reads_no_input_can_be_stopped() {
    let (platform, client, id) = capsule().await;
    let mut socket = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
    socket.send(json!({ "type": "start", "cmd": "sleep", "args": ["1000"], "stdin": true })).await;
    assert_eq!(socket.next().await.unwrap()["type"], "start");
    let much = STANDARD.encode(vec![b'x'; 500_000]);
    for _ in 0..3 {
        socket.send(json!({ "type": "stdin", "data": much })).await;
    }
    socket.send(json!({ "type": "stop" })).await;
    let mut code = None;
    while let Some(frame) = socket.next().await {
        if frame["type"] == "exit" {
            code = frame["exit_code"].as_i64();
        }
    }
    assert_eq!(code, Some(137));
    platform.finish();
}

#[tokio::test]
async fn process_serves_several_clients_and_outlives_disconnect() {
    let (platform, client, id) = capsule().await;
    let mut first = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
    let start = json!({ "type": "start", "cmd": "cat", "stdin": true, "tag": "shared" });
    first.send(start).await;
    let pid = first.next().await.unwrap()["pid"].as_u64().unwrap();
    let attach = format!("/v1/capsules/{id}/processes/shared/stream");
    let (mut second, mut third) = (client.socket(&attach).await, client.socket(&attach).await);
    for socket in [&mut second, &mut third] {
        assert_eq!(socket.next().await.unwrap(), json!({ "type": "start", "pid": pid }));
    }
    drop(first);
    second.send(json!({ "type": "stdin", "data": STANDARD.encode("to all\n") })).await;
    second.until("stdout", "to all").await;
    third.until("stdout", "to all").await;
    third.send(json!({ "type": "close_stdin" })).await;
    for socket in [&mut second, &mut third] {
        assert_eq!(socket.until_exit("stdout").await.1, 0);
    }
    // A late subscriber still learns of the end.
    let mut late = client.socket(&format!("/v1/capsules/{id}/processes/{pid}/stream")).await;
    assert_eq!(late.until_exit("stdout").await.1, 0);
    platform.finish();
}

#[tokio::test]
async fn terminal_echoes_resizes_interrupts_and_reattaches() {
    let (platform, client, id) = capsule().await;
    let path = format!("/v1/capsules/{id}/pty");
    let mut socket = client.socket(&path).await;
    let start =
        json!({ "type": "start", "cmd": "bash", "args": ["--norc"], "cols": 90, "rows": 30 });
    socket.send(start).await;
    let started = socket.next().await.unwrap();
    let tag = started["tag"].as_str().unwrap().to_owned();
    let typed = |text: &str| json!({ "type": "input", "data": STANDARD.encode(text) });
    socket.send(typed("stty size; echo $TERM\n")).await;
    socket.until("output", "30 90").await;
    socket.send(json!({ "type": "resize", "cols": 132, "rows": 50 })).await;
    socket.send(typed("stty size\n")).await;
    socket.until("output", "50 132").await;
    socket.send(typed("sh -c 'echo sle''eps; exec sleep 1000'\n")).await;
    socket.until("output", "sleeps").await;
    socket.send(typed("\u{3}")).await;
    socket.until("output", "^C").await;
    socket.send(typed("echo rc=$?\n")).await;
    socket.until("output", "rc=130").await;
    drop(socket);
    let mut again = client.socket(&path).await;
    again.send(json!({ "type": "connect", "tag": tag })).await;
    assert_eq!(again.next().await.unwrap()["pid"], started["pid"]);
    again.send(typed("exit 9\n")).await;
    assert_eq!(again.until_exit("output").await.1, 9);
    let mut killed = client.socket(&path).await;
    killed.send(json!({ "type": "start" })).await;
    killed.next().await.unwrap();
    killed.send(json!({ "type": "kill" })).await;
    assert_eq!(killed.until_exit("output").await.1, 137);
    platform.finish();
}

#[tokio::test]
async fn invalid_frame_gets_error_frame_with_reason() {
    let (platform, client, id) = capsule().await;
    let stream = format!("/v1/capsules/{id}/exec/stream");
    for (frame, told) in [
        ("{", "is invalid"),
        (r#"{"type":"dance"}"#, "unknown variant `dance`"),
        (r#"{"type":"start"}"#, "missing field `cmd`"),
        (r#"{"type":"start","cmd":""}"#, "cmd must not be empty"),
        (r#"{"type":"start","cmd":"true","encoding":"rot13"}"#, "encoding must be"),
        (r#"{"type":"stop"}"#, "must be `start` in the first frame"),
    ] {
        let mut socket = client.socket(&stream).await;
        socket.send_text(frame).await;
        let error = socket.next().await.unwrap();
        assert_eq!(error["type"], "error", "{frame}: {error}");
        assert_eq!(error["code"], "invalid_request", "{frame}: {error}");
        assert!(error["data"].as_str().unwrap().contains(told), "{frame}: {error}");
        assert!(socket.next().await.is_none());
    }
    let mut socket = client.socket(&stream).await;
    socket.send_text(r#"{"type":"start","cmd":"/nosuch"}"#).await;
    let error = socket.next().await.unwrap();
    assert_eq!(error["code"], "command_not_found", "{error}");
    assert!(error["data"].as_str().unwrap().contains("cannot run '/nosuch'"), "{error}");
    // After the start, nonsense gets an error, and the command continues.
    let mut socket = client.socket(&stream).await;
    socket.send(json!({ "type": "start", "cmd": "cat", "stdin": true })).await;
    socket.next().await.unwrap();
    for frame in ["nonsense", r#"{"type":"stdin","data":"!"}"#, r#"{"type":"start","cmd":"x"}"#] {
        socket.send_text(frame).await;
        assert_eq!(socket.next().await.unwrap()["type"], "error", "{frame}");
    }
    socket.send(json!({ "type": "signal", "signal": "SIGTERM" })).await;
    assert_eq!(socket.until_exit("stdout").await.1, 143);
    let mut pty = client.socket(&format!("/v1/capsules/{id}/pty")).await;
    pty.send(json!({ "type": "connect", "tag": "nosuch" })).await;
    let error = pty.next().await.unwrap();
    assert_eq!((&error["code"], &error["fatal"]), (&json!("not_found"), &json!(true)));
    platform.finish();
}
