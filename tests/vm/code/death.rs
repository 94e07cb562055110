//! Ends of the interpreter and of its kernels in a guest.

use super::{ran, stdout, value};
use serde_json::json;
use tests::{Client, eventually};

/// Kills the interpreter. Its kernels keep their state, and envd starts the next one.
pub(super) async fn kernels_outlive_the_interpreter(client: &Client, id: &str) {
    value(client, id, "outlived = 7\noutlived").await;
    let own = "pgrep -f '^/proc/self/exe interpreter'";
    let before = client.out(id, own).await;
    client.out(id, &format!("sudo kill -9 $({own})")).await;
    eventually("envd starts the interpreter again", async || {
        let found = client.sh(id, own).await;
        (found["exit_code"] == 0 && found["stdout"] != before.as_str()).then_some(())
    })
    .await;
    assert_eq!(value(client, id, "outlived").await, "7");
    let lines = ran(client, id, &json!({ "code": "echo up", "language": "bash" })).await;
    assert_eq!(stdout(&lines), "up\n");
}

/// Has kernels take more memory than there is, as often as `WRENN_OUT_OF_MEMORY` says.
pub(super) async fn lack_of_memory_is_named(client: &Client, id: &str) {
    let made = client.post(&format!("/v1/capsules/{id}/code/contexts"), &json!({})).await;
    let other = made.expect(201)["id"].as_str().unwrap().to_owned();
    let own = json!({ "code": "kept = 7", "context_id": other });
    ran(client, id, &own).await;
    let code = "all = []\nwhile True:\n    all.append(b'x' * (20 << 20))";
    for _ in 0..tests::rounds("WRENN_OUT_OF_MEMORY", 1) {
        let lines = ran(client, id, &json!({ "code": code })).await;
        let error = lines.iter().find(|line| line["type"] == "error").unwrap();
        assert_eq!(error["name"], "OutOfMemory", "{lines:?}");
        assert!(error["value"].as_str().unwrap().contains("MiB that programs here may have"));
        assert_eq!(value(client, id, "1 + 1").await, "2");
    }
    // No other context and no other program was touched.
    let own = json!({ "code": "print(kept)", "context_id": other });
    assert_eq!(stdout(&ran(client, id, &own).await), "7\n");
    let all = client.get(&format!("/v1/capsules/{id}/code/contexts")).await.expect(200);
    assert!(all["contexts"].as_array().unwrap().iter().all(|one| one["state"] != "dead"), "{all}");
}
