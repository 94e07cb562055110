//! A removal ends everything that the agent has in the capsule's namespace before it takes the
//! namespace down. So the removal waits for nobody. The namespace goes behind the answer.

use crate::{capsule, small};
use serde_json::{Value, json};
use std::time::Duration;
use tests::{
    Client, Driver, Platform, eventually, held_in_namespaces, held_in_removed_namespaces,
    processes_of,
};

/// Waits until the agent has nothing open in namespaces.
async fn holds_nothing(pid: u32) {
    eventually("the agent has nothing open in namespaces", async || {
        (held_in_namespaces(pid) == (0, 0)).then_some(())
    })
    .await;
    assert_eq!(held_in_removed_namespaces(pid), Vec::<String>::new());
}

/// Has a guest hold every kind of connection. Connections to the metadata service, the name server
/// and the filter stay silent. A connection to a port of the guest's own has a slow reader.
async fn take_all(client: &Client, id: &str) {
    let script = "import socket, time\n\
        held = []\n\
        for at in [('169.254.169.254', 80)] * 5 + [('169.254.0.1', 53)] * 5 + [('9.9.9.9', 443)] * 5:\n\
        \x20   s = socket.socket(); s.settimeout(5); s.connect(at); held.append(s)\n\
        held[0].send(b'GET / HTTP/1.1\\r\\nhost: x')\n\
        open('/tmp/held', 'w').close()\n\
        time.sleep(10000)";
    let held: Value = json!({ "cmd": "python3", "args": ["-c", script], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &held).await.expect(202);
    client
        .out(id, "for i in $(seq 100); do test -e /tmp/held && exit 0; sleep 0.1; done; exit 1")
        .await;
}

#[tokio::test]
async fn removal_and_pause_leave_nothing_open_in_namespaces() {
    let platform = Platform::start(Driver::Guests, &[]).await;
    let client = platform.client();
    // The first create may also make the template's machine.
    let first = client.create(&small()).await;
    client.delete(&format!("/v1/capsules/{first}")).await.expect(204);
    let pid = platform.pid();
    holds_nothing(pid).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let body = json!({ "memory_mib": 256, "disk_mib": 256,
            "network": { "deny": ["denied.test"] } });
        ids.push(client.create(&body).await);
    }
    // All guests run at once, since the filter and the name server end silent connections after a
    // while.
    futures::future::join_all(ids.iter().map(|id| take_all(&client, id))).await;
    // Under Firecracker, the VMM itself answers for the metadata service.
    let each = if tests::firecracker().is_some() { 10 } else { 15 };
    let during = held_in_namespaces(pid);
    assert!(during.0 >= 3 && during.1 >= 3 * each, "the test holds nothing: {during:?}");
    let mut terminals = Vec::new();
    for id in &ids {
        // Nobody reads from this tunnel to the guest.
        let flood = json!({ "type": "start", "cmd": "cat", "args": ["/dev/zero"] });
        let mut terminal = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
        terminal.send(flood).await;
        terminals.push(terminal);
    }
    client.delete(&format!("/v1/capsules/{}", ids[0])).await.expect(204);
    client.delete(&format!("/v1/capsules/{}", ids[1])).await.expect(204);
    client.pause(&ids[2]).await;
    holds_nothing(pid).await;
    platform.left_until("no namespace is left", |left| left.namespaces.is_empty()).await;
    client.resume(&ids[2]).await;
    assert_eq!(client.out(&ids[2], "echo up").await, "up\n");
    client.delete(&format!("/v1/capsules/{}", ids[2])).await.expect(204);
    holds_nothing(pid).await;
    platform.finish();
}

/// A removal answers once the capsule is out of reach, and the rest goes behind the answer.
#[tokio::test]
async fn agent_killed_right_after_removals_answer_leaves_nothing_of_the_capsule() {
    let (mut platform, _, kept) = capsule().await;
    for millis in [0, 5, 30] {
        let client = platform.client();
        let doomed = client.create(&small()).await;
        let path = format!("/v1/capsules/{doomed}");
        client.delete(&path).await.expect(204);
        assert!(processes_of(&doomed).is_empty(), "its machine runs on");
        client.get(&path).await.refuses(404, "not_found", "capsule");
        tokio::time::sleep(Duration::from_millis(millis)).await;
        platform.kill();
        platform.resume().await;
        let client = platform.client();
        client.get(&path).await.refuses(404, "not_found", "capsule");
        platform.settles(1).await;
        client.get(&path).await.refuses(404, "not_found", "capsule");
        assert_eq!(client.out(&kept, "echo up").await, "up\n");
    }
    platform.finish();
}

/// `docs/operations.md` recommends a disk of its own for `WRENN_DIR`.
#[tokio::test]
async fn clean_empties_directory_that_is_a_mount_point() {
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    platform.stop();
    let dir = platform.dir();
    rustix::mount::mount_bind(dir.as_path(), dir.as_path()).unwrap();
    let cleaned = platform.clean_command().output().unwrap();
    let left = std::fs::read_dir(&dir).unwrap().count();
    rustix::mount::unmount(dir.as_path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    assert_eq!(left, 0, "something is left");
    assert!(!dir.with_file_name("client.json").exists(), "the key is left");
    platform.finish();
}
