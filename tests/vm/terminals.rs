//! Terminals and processes of a real guest.

use crate::capsule;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

#[tokio::test]
async fn terminal_replays_its_output_after_a_pause_and_every_process_has_its_user() {
    let (platform, client, id) = capsule().await;
    let path = format!("/v1/capsules/{id}/pty");
    let mut first = client.socket(&path).await;
    let script = "echo before; exec cat";
    first.send(json!({ "type": "start", "cmd": "sh", "args": ["-c", script] })).await;
    let tag = first.next().await.unwrap()["tag"].as_str().unwrap().to_owned();
    first.until("output", "before").await;
    drop(first);
    client.pause(&id).await;
    client.resume(&id).await;
    let mut second = client.socket(&path).await;
    second.send(json!({ "type": "connect", "tag": tag, "replay": true })).await;
    assert!(second.next().await.unwrap()["replayed"].as_u64() >= Some(6));
    second.until("output", "before").await;
    second.send(json!({ "type": "input", "data": STANDARD.encode("after\n") })).await;
    second.until("output", "after").await;
    let list = client.get(&format!("/v1/capsules/{id}/processes?all=true")).await.expect(200);
    let rows = list["processes"].as_array().unwrap();
    let of = |wanted: &dyn Fn(&Value) -> bool| rows.iter().find(|row| wanted(row)).unwrap();
    assert_eq!(of(&|row| row["pid"] == 1)["user"], "root");
    let cat = of(&|row| row["tag"] == json!(tag));
    assert_eq!((&cat["command"], &cat["user"]), (&json!("cat"), &json!("user")));
    assert!(rows.iter().all(|row| row["ppid"] != 2 && row["pid"] != 2), "{list}");
    // A daemon that no client started gets a signal too.
    let daemon = client
        .out(&id, "setsid -f sleep 7001; until pgrep -f '^sleep 7001'; do sleep 0.1; done")
        .await;
    let kill = format!("/v1/capsules/{id}/processes/{}?signal=HUP", daemon.trim());
    client.delete(&kill).await.expect(204);
    client.out(&id, "while pgrep -f '^sleep 7001'; do sleep 0.1; done").await;
    client.delete(&format!("/v1/capsules/{id}/processes/1")).await.refuses(
        400,
        "invalid_request",
        "belongs to the platform",
    );
    second.send(json!({ "type": "kill" })).await;
    second.until_exit("output").await;
    platform.finish();
}
