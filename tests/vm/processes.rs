//! A program's control group ends with it, whatever session its processes are in.

use crate::capsule;
use serde_json::json;
use tests::{Client, eventually};

/// Starts a leader that runs on and, beside it, one process for each way to leave its process
/// group.
const SCRIPT: &str = "setsid sleep 7001 & timeout 7000 sleep 7002 & \
    bash -c 'set -m; sleep 7003 & wait' & \
    python3 -c 'import subprocess as s; s.Popen([\"sleep\", \"7004\"], start_new_session=True).wait()' & \
    sleep 7005";

/// Counts the running processes of the script.
async fn sleepers(client: &Client, id: &str) -> usize {
    let found = client.out(id, "pgrep -fc '^sleep 700[0-9]$' || true").await;
    found.trim().parse().unwrap()
}

#[tokio::test]
async fn deadline_and_kill_end_processes_in_their_own_session() {
    let (platform, client, id) = capsule().await;
    let exec = format!("/v1/capsules/{id}/exec");
    let start = async |timeout: Option<u32>| {
        let body = json!({ "cmd": "bash", "args": ["-c", SCRIPT], "background": true,
            "timeout": timeout });
        let started = client.post(&exec, &body).await.expect(202);
        eventually("all of it runs", || async {
            (sleepers(&client, &id).await == 5).then_some(())
        })
        .await;
        started["tag"].as_str().unwrap().to_owned()
    };
    let tag = start(None).await;
    client.delete(&format!("/v1/capsules/{id}/processes/{tag}")).await.expect(204);
    eventually("the kill ended all of it", || async {
        (sleepers(&client, &id).await == 0).then_some(())
    })
    .await;
    start(Some(40)).await;
    eventually("the deadline ended all of it", || async {
        (sleepers(&client, &id).await == 0).then_some(())
    })
    .await;
    // The groups of the starts are removed. The remaining group belongs to the command itself.
    eventually("no other group is left", || async {
        let groups = client.out(&id, "ls -d /sys/fs/cgroup/user/p[0-9]* | wc -l").await;
        (groups == "1\n").then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn background_job_of_ended_program_outlives_the_deadline() {
    let (platform, client, id) = capsule().await;
    let exec = format!("/v1/capsules/{id}/exec");
    let body = json!({ "cmd": "bash", "args": ["-c", "setsid sleep 7001 & sleep 7002 &"],
        "timeout": 20 });
    client.post(&exec, &body).await.expect(200);
    // The sleep is longer than the deadline, by the guest's own clock.
    client.out(&id, "sleep 25").await;
    assert_eq!(sleepers(&client, &id).await, 2);
    client.out(&id, "pkill -f '^sleep 700[0-9]$'").await;
    eventually("it ended by its name", || async {
        (sleepers(&client, &id).await == 0).then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn programs_start_and_pause_works_while_a_mount_hides_cgroups() {
    let (platform, client, id) = capsule().await;
    client.out(&id, "sudo -n mount -t tmpfs none /sys/fs/cgroup").await;
    assert_eq!(client.out(&id, "echo runs").await, "runs\n");
    // The group is the kernel's, whatever the path shows.
    let group = client.out(&id, "cat /proc/self/cgroup").await;
    assert!(group.contains("/user/p"), "{group}");
    client.pause(&id).await;
    client.resume(&id).await;
    assert_eq!(client.out(&id, "echo again").await, "again\n");
    platform.finish();
}

/// Mounts a FUSE file system at `/mnt/hung` whose server never answers.
const HUNG: &str = "import ctypes, os, time
fd = os.open('/dev/fuse', os.O_RDWR)
os.makedirs('/mnt/hung', exist_ok=True)
libc = ctypes.CDLL(None, use_errno=True)
options = f'fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other'
done = libc.mount(b'hung', b'/mnt/hung', b'fuse', 0, options.encode())
assert done == 0, os.strerror(ctypes.get_errno())
open('/tmp/mounted', 'w').close()
time.sleep(3600)
";

#[tokio::test]
async fn start_in_hanging_directory_fails_and_blocks_nothing_else() {
    let (platform, client, id) = capsule().await;
    let exec = format!("/v1/capsules/{id}/exec");
    let server = json!({ "cmd": "python3", "args": ["-c", HUNG], "user": "root",
        "background": true, "tag": "server" });
    client.post(&exec, &server).await.expect(202);
    eventually("the file system is mounted", || async {
        (client.sh(&id, "test -e /tmp/mounted").await["exit_code"] == 0).then_some(())
    })
    .await;
    // A child that hangs holds no copy of another program's input.
    let reader = json!({ "cmd": "cat", "stdin": "read to its end" });
    let hung = json!({ "cmd": "true", "cwd": "/mnt/hung" });
    let (a, b, ()) = tokio::join!(client.post(&exec, &hung), client.post(&exec, &hung), async {
        for _ in 0..5 {
            let read = client.post(&exec, &reader).await.expect(200);
            assert_eq!(read["stdout"], "read to its end");
        }
    });
    for answer in [a, b] {
        answer.refuses(503, "guest_unavailable", "does not answer");
    }
    let list = client.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
    let tags: Vec<_> = list["processes"].as_array().unwrap().iter().map(|p| &p["tag"]).collect();
    assert_eq!(tags, ["server"], "{list}");
    // The children that hung were killed.
    eventually("no child is left", || async {
        (client.out(&id, "ps -eo wchan:32= | grep -c fuse || true").await == "0\n").then_some(())
    })
    .await;
    let limited = json!({ "cmd": "true", "cwd": "/mnt/hung", "timeout": 2 });
    // Both sides watch the deadline, and either may be the first to tell.
    let refused = client.post(&exec, &limited).await;
    assert!(matches!(refused.status.as_u16(), 503 | 504), "{refused:?}");
    client.pause(&id).await;
    client.resume(&id).await;
    assert_eq!(client.out(&id, "echo again").await, "again\n");
    platform.finish();
}
