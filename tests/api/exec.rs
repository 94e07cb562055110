//! Commands: arbitrary bytes in and out, environment, folder, deadlines, background runs.

use crate::capsule;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tests::eventually;

#[tokio::test]
async fn exec_passes_binary_output_exit_code_environment_and_folder() {
    let (platform, client, id) = capsule().await;
    let exec = format!("/v1/capsules/{id}/exec");
    let body = json!({ "cmd": "sh", "args": ["-c", "echo $A; pwd; echo err >&2; exit 3"],
        "envs": { "A": "ü b" }, "cwd": "/usr" });
    let result = client.post(&exec, &body).await.expect(200);
    assert_eq!(result["stdout"], "ü b\n/usr\n");
    assert_eq!((&result["stderr"], &result["exit_code"]), (&json!("err\n"), &json!(3)));
    assert_eq!((&result["encoding"], &result["sandbox_id"]), (&json!("utf-8"), &json!(id)));
    let result = client.sh(&id, "printf 'a\\377\\000b'").await;
    assert_eq!(result["encoding"], "base64");
    assert_eq!(STANDARD.decode(result["stdout"].as_str().unwrap()).unwrap(), b"a\xff\0b");
    assert_eq!(client.sh(&id, "kill -9 $$").await["exit_code"], 137);
    // A command's environment does not reach the next command.
    assert_eq!(client.out(&id, "echo [$A]").await, "[]\n");
    platform.finish();
}

#[tokio::test]
async fn large_exec_input_passes_and_output_is_truncated_at_limit() {
    let (platform, client, id) = capsule().await;
    let exec = format!("/v1/capsules/{id}/exec");
    let text = "0123456789abcdef".repeat(256 * 1024);
    let body = json!({ "cmd": "cat", "stdin": text });
    let result = client.post(&exec, &body).await.expect(200);
    assert!(result["stdout"].as_str().unwrap() == text, "what came back is not what went in");
    // A command that does not read its input ends all the same.
    let body = json!({ "cmd": "true", "stdin": text });
    assert_eq!(client.post(&exec, &body).await.expect(200)["exit_code"], 0);
    let result = client.sh(&id, "head -c 9000000 /dev/zero | tr '\\0' x; echo end >&2").await;
    assert_eq!(result["truncated"], true);
    assert_eq!(result["stdout"].as_str().unwrap().len(), 8 << 20);
    assert_eq!(result["stderr"], "end\n");
    platform.finish();
}

#[tokio::test]
async fn exec_deadline_kills_whole_process_group() {
    let (platform, client, id) = capsule().await;
    let exec = format!("/v1/capsules/{id}/exec");
    for script in ["sleep 1234 & sleep 1234", "yes"] {
        let body = json!({ "cmd": "sh", "args": ["-c", script], "timeout": 1 });
        client.post(&exec, &body).await.refuses(504, "timeout", "did not end within 1 s");
    }
    eventually("the group is gone", || async {
        let list = client.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
        let left = client.out(&id, "pgrep -fc '[s]leep 1234' || true").await;
        (list["processes"] == json!([]) && left == "0\n").then_some(())
    })
    .await;
    // The deadline holds even after the caller has left.
    let body = json!({ "cmd": "sleep", "args": ["4321"], "timeout": 2, "tag": "left" });
    let gone = client.post(&exec, &body);
    let _ = tokio::time::timeout(std::time::Duration::from_millis(700), gone).await;
    let list = client.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
    assert_eq!(list["processes"][0]["tag"], "left", "{list}");
    eventually("the deadline has passed", || async {
        let list = client.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
        (list["processes"] == json!([])).then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn background_command_is_listed_and_killed() {
    let (platform, client, id) = capsule().await;
    let exec = format!("/v1/capsules/{id}/exec");
    let body = json!({ "cmd": "sleep", "args": ["1000"], "background": true });
    let started = client.post(&exec, &body).await.expect(202);
    let (pid, tag) = (started["pid"].as_u64().unwrap(), started["tag"].as_str().unwrap());
    let processes = format!("/v1/capsules/{id}/processes");
    let list = client.get(&processes).await.expect(200);
    let wanted = json!([{ "pid": pid, "cmd": "sleep", "args": ["1000"], "tag": tag }]);
    assert_eq!(list["processes"], wanted);
    client.delete(&format!("{processes}/{tag}?signal=SIGTERM")).await.expect(204);
    eventually("it ended", || async {
        let list = client.get(&processes).await.expect(200);
        (list["processes"] == json!([])).then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn exec_and_stream_fail_alike_in_stopped_guest() {
    let (platform, client, id) = capsule().await;
    // Open connections to the guest accept requests that nobody reads.
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    let envd = tests::processes_of(&id)[0];
    tests::signal(envd, rustix::process::Signal::STOP);
    let exec = format!("/v1/capsules/{id}/exec");
    let body = json!({ "cmd": "true", "timeout": 3600 });
    client.post(&exec, &body).await.refuses(503, "guest_unavailable", "does not answer");
    let mut socket = client.socket(&format!("{exec}/stream")).await;
    socket.send(json!({ "type": "start", "cmd": "true" })).await;
    let frame = socket.next().await.unwrap();
    assert_eq!((&frame["type"], &frame["code"]), (&json!("error"), &json!("guest_unavailable")));
    tests::signal(envd, rustix::process::Signal::CONT);
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}
