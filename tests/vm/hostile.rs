//! Guests that misbehave damage only themselves, and the platform reports them clearly.

use crate::{capsule, small};
use reqwest::Method;
use serde_json::json;
use tests::{Client, eventually};

/// Starts a shell script that runs in the background.
async fn unleash(client: &Client, id: &str, script: &str) {
    let body = json!({ "cmd": "bash", "args": ["-c", script], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
}

#[tokio::test]
async fn envd_answers_while_users_exhaust_cpu_memory_and_processes() {
    let (platform, client, id) = capsule().await;
    for _ in 0..4 {
        unleash(&client, &id, "while :; do :; done").await;
    }
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    let hog = "exec python3 -c 'a = []\nwhile True: a.append(bytearray(8 << 20))'";
    for _ in 0..2 {
        unleash(&client, &id, hog).await;
    }
    eventually("the kernel has ended a process that took all memory", || async {
        assert_eq!(client.out(&id, "echo up").await, "up\n");
        let count = "grep -h ^oom_kill /sys/fs/cgroup/user/memory.events | cut -d ' ' -f 2";
        (client.out(&id, count).await.trim() != "0").then_some(())
    })
    .await;
    unleash(&client, &id, "bomb() { bomb | bomb & }; bomb").await;
    for _ in 0..5 {
        assert_eq!(client.out(&id, "echo up").await, "up\n");
    }
    let limited =
        "test $(cat /sys/fs/cgroup/user/pids.current) -le $(cat /sys/fs/cgroup/user/pids.max)";
    client.out(&id, limited).await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn full_guest_disk_is_reported_and_guest_keeps_running() {
    let (platform, client, id) = capsule().await;
    let files = format!("/v1/capsules/{id}/files");
    let put = client.request(Method::PUT, &files).query(&[("path", "/tmp/large")]);
    let answer = client.send(put.body(vec![1_u8; 400 << 20])).await;
    answer.refuses(507, "disk_full", "disk is full");
    let left = client.post(&format!("{files}/stat"), &json!({ "path": "/tmp/large" })).await;
    left.refuses(404, "not_found", "path");
    client.out(&id, "head -c 1G /dev/zero > /tmp/full 2>/dev/null || true").await;
    let mkdir = json!({ "path": "/tmp/a/b/c" });
    let refused = client.post(&format!("{files}/mkdir"), &mkdir).await;
    assert!([507, 201].contains(&refused.status.as_u16()), "{refused:?}");
    assert_eq!(client.out(&id, "echo up; rm /tmp/full").await, "up\n");
    let put = client.request(Method::PUT, &files).query(&[("path", "/tmp/small")]);
    client.send(put.body("x")).await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn guest_that_ends_itself_is_reported_with_its_reason() {
    let (platform, client, first) = capsule().await;
    let second = client.create(&small()).await;
    unleash(
        &client,
        &first,
        "sudo sh -c 'echo farewell > /dev/console; echo b > /proc/sysrq-trigger'",
    )
    .await;
    // The killed process is envd's server. PID 1 survives it and sees its end.
    unleash(&client, &second, "sudo kill -9 $(pgrep -o -P 1 init)").await;
    for (id, told) in [(&first, "the guest ended"), (&second, "the guest ended")] {
        let path = format!("/v1/capsules/{id}");
        let seen = eventually("the capsule is known to have ended", || async {
            let seen = client.get(&path).await.expect(200);
            (seen["status"] == "error").then_some(seen)
        })
        .await;
        assert!(seen["error"].as_str().unwrap().contains(told), "{seen}");
        let exec = client.post(&format!("{path}/exec"), &json!({ "cmd": "true" })).await;
        exec.refuses(409, "capsule_not_running", "the capsule is error");
    }
    // The guest's console output is kept after its machine is gone.
    let logs = client.get(&format!("/v1/capsules/{first}/logs")).await.expect(200);
    assert!(logs.as_str().unwrap().contains("farewell"), "{logs}");
    eventually("the machines are gone", || async {
        tests::processes_of(&first).is_empty().then_some(())
    })
    .await;
    for id in [first, second] {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    platform.finish();
}

#[tokio::test]
async fn starts_with_many_arguments_do_not_exhaust_guest_memory() {
    let (platform, client, id) = capsule().await;
    let exec = format!("/v1/capsules/{id}/exec");
    let body = json!({ "cmd": "true", "args": vec!["z"; 150_000] });
    let starts = futures::future::join_all((0..20).map(|_| client.post(&exec, &body))).await;
    for start in starts {
        assert!([200, 503].contains(&start.status.as_u16()), "{start:?}");
    }
    assert_eq!(client.post(&exec, &body).await.expect(200)["exit_code"], 0);
    eventually("the agent has given the memory back", || async {
        let rss = "grep VmRSS /proc/$(pgrep -o -P 1 init)/status | tr -dc 0-9";
        let kib: u64 = client.out(&id, rss).await.trim().parse().unwrap();
        (kib < 24 << 10).then_some(())
    })
    .await;
    let endless = json!({ "cmd": "true", "args": vec!["z"; 900_000] });
    client.post(&exec, &endless).await.refuses(400, "invalid_request", "2 MiB");
    platform.finish();
}

/// More threads write to the disk than QEMU has for its disks.
#[tokio::test]
async fn many_concurrent_disk_writes_do_not_end_the_vm() {
    const WRITES: &str = "
import os, threading, time
end = time.time() + 15
def write(n):
    while time.time() < end:
        fd = os.open(f'/tmp/w{n}', os.O_CREAT | os.O_RDWR)
        for at in range(0, 1 << 20, 1 << 17):
            os.pwrite(fd, b'x' * 4096, at)
        os.fdatasync(fd)
        os.close(fd)
        os.unlink(f'/tmp/w{n}')
threads = [threading.Thread(target=write, args=(n,)) for n in range(200)]
[t.start() for t in threads]
[t.join() for t in threads]
";
    let (platform, client, id) = capsule().await;
    let body = json!({ "cmd": "python3", "args": ["-c", WRITES], "timeout": 200 });
    let done = client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(200);
    assert_eq!(done["exit_code"], 0, "{done}");
    assert_eq!(client.status(&id).await, "running");
    platform.finish();
}
