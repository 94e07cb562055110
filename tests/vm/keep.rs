//! Pauses and resumes of real guests. No number of them loses anything, and each resume begins a
//! new epoch.

use crate::{capsule, small};
use reqwest::Method;
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tests::{Client, Driver, Platform, eventually, processes_of};

/// Returns the number of pauses and resumes of a capsule. `WRENN_CYCLES` raises it, as in
/// `tests/long`.
fn cycles() -> u32 {
    std::env::var("WRENN_CYCLES").map_or(20, |cycles| cycles.parse().unwrap())
}

/// Puts a file into a capsule.
async fn put(client: &Client, id: &str, path: &str, contents: Vec<u8>) {
    let request = client.request(Method::PUT, &format!("/v1/capsules/{id}/files"));
    client.send(request.query(&[("path", path)]).body(contents)).await.expect(204);
}

/// Starts a program in the background.
async fn start(client: &Client, id: &str, script: &str) {
    let body = json!({ "cmd": "sh", "args": ["-c", script], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
}

/// Returns the answer of a port of a capsule.
async fn ask(client: &Client, id: &str, port: u16, path: &str) -> String {
    let asked = client.to_port(Method::GET, id, port, path).send().await.unwrap();
    let status = asked.status();
    let text = asked.text().await.unwrap();
    assert_eq!(status, 200, "{text}");
    text
}

/// Python's heap and Go's heap (in Caddy) go through many pauses. Go's collector runs all the time
/// and checks itself. No page may change.
#[tokio::test]
async fn no_memory_page_changes_over_pause_cycles() {
    let platform = Platform::start(Driver::Guests, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "memory_mib": 512, "disk_mib": 512 })).await;
    put(&client, &id, "/tmp/sums.py", include_bytes!("checksummer.py").to_vec()).await;
    put(&client, &id, "/tmp/caddy", std::fs::read(tests::program("caddy")).unwrap()).await;
    start(&client, &id, "exec python3 /tmp/sums.py 8001 4096 2>/tmp/sums.err").await;
    let go = "chmod +x /tmp/caddy; GOGC=1 GODEBUG=gccheckmark=1 HOME=/tmp exec /tmp/caddy respond \
              --listen :8002 whole 2>/tmp/go.err";
    start(&client, &id, go).await;
    for port in [8001, 8002] {
        eventually("the programs serve", || async {
            let asked = client.to_port(Method::GET, &id, port, "/").send().await.unwrap();
            (asked.status() == 200).then_some(())
        })
        .await;
    }
    let begun: u32 = ask(&client, &id, 8001, "/").await.split(' ').next().unwrap().parse().unwrap();
    for cycle in 1..=cycles() {
        client.pause(&id).await;
        assert!(processes_of(&id).is_empty(), "a machine runs");
        client.resume(&id).await;
        let said = ask(&client, &id, 8001, "/").await;
        assert_eq!(said, format!("{} 0", begun + cycle), "cycle and bad pages");
        assert_eq!(ask(&client, &id, 8002, "/").await, "whole");
    }
    let errors =
        client.out(&id, "cat /tmp/sums.err; grep -iE 'fatal|panic' /tmp/go.err || :").await;
    assert_eq!(errors, "");
    client.out(&id, "! sudo dmesg | grep -E 'BUG:|Oops|[Cc]orrupt|lockup|stall'").await;
    platform.finish();
}

/// Files grow between pauses, some of which keep only the disk.
#[tokio::test]
async fn files_are_intact_after_memory_and_disk_pauses() {
    let (platform, client, id) = capsule().await;
    let boot = "cat /proc/sys/kernel/random/boot_id";
    for round in 0..10 {
        let grow = "for f in a b c; do head -c 300000 /dev/urandom >> $f; done; sha256sum a b c";
        let sums = client.out(&id, grow).await;
        let (before, memory) = (client.out(&id, boot).await, round % 3 != 2);
        let paused = client.change(&id, "pause", &json!({ "memory": memory })).await;
        assert_eq!(paused["status"], "paused");
        let resumed = client.change(&id, "resume", &json!({})).await;
        assert_eq!(resumed["booted"] == true, !memory, "{resumed}");
        assert_eq!(client.out(&id, "sha256sum a b c").await, sums, "round {round}");
        assert_eq!(client.out(&id, boot).await == before, memory, "the boot's id");
    }
    assert_eq!(client.out(&id, "stat -c %s a").await, "3000000\n");
    platform.finish();
}

/// Returns a lower bound of the error of a guest's clock, in milliseconds.
pub(crate) async fn clock_off(client: &Client, id: &str) -> i128 {
    let now = || i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis());
    let before = now().unwrap();
    let there: i128 = client.out(id, "date +%s%3N").await.trim().parse().unwrap();
    let after = now().unwrap();
    (before - there).max(there - after).max(0)
}

#[tokio::test]
async fn guest_clock_is_correct_after_pause_snapshot_and_create() {
    let (platform, client, id) = capsule().await;
    assert!(clock_off(&client, &id).await <= 100);
    client.pause(&id).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    client.resume(&id).await;
    assert!(clock_off(&client, &id).await <= 100);
    let snapshot = json!({ "capsule_id": id, "name": "clock" });
    client.post("/v1/snapshots", &snapshot).await.expect(201);
    assert!(clock_off(&client, &id).await <= 100);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let other = client.create(&json!({ "template": "clock" })).await;
    assert!(clock_off(&client, &other).await <= 100);
    platform.finish();
}

/// Server in the guest that holds a connection and waits for bytes from the client.
const WAITS: &str = "import socket, threading
listener = socket.create_server(('', 7000))
def serve(c):
    c.sendall(b'hello')
    try:
        said = c.recv(100)
        end = 'closed' if not said else said.decode()
    except OSError as e:
        end = type(e).__name__
    open('/tmp/ends', 'a').write(end + '\\n')
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()";

/// Clients from before a freeze see their connections end, and so does the guest. Processes
/// continue, and the next request succeeds.
#[tokio::test]
async fn resume_ends_old_connections_and_keeps_processes() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (platform, client, id) = capsule().await;
    put(&client, &id, "/tmp/waits.py", WAITS.into()).await;
    start(&client, &id, "exec python3 /tmp/waits.py").await;
    for round in 1..=3 {
        let mut stream = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
        let script = "trap 'echo sent' USR1; echo begun; while :; do sleep 0.2; done";
        let args = json!(["-c", script]);
        stream
            .send(json!({ "type": "start", "cmd": "bash", "args": args, "tag": "goes-on" }))
            .await;
        stream.until("stdout", "begun").await;
        let tunnel = eventually("the server listens", || async {
            let path = format!("/v1/capsules/{id}/ports/7000/tcp");
            let request = client.request(Method::GET, &path);
            let request = request.header("connection", "upgrade").header("upgrade", "tcp");
            let answer = request.send().await.unwrap();
            (answer.status() == 101).then_some(answer)
        })
        .await;
        let mut tunnel = tunnel.upgrade().await.unwrap();
        let mut hello = [0; 5];
        tunnel.read_exact(&mut hello).await.unwrap();
        client.pause(&id).await;
        let frame = stream.next().await.unwrap();
        assert_eq!(frame["code"], "capsule_interrupted", "{frame}");
        assert!(stream.next().await.is_none());
        let mut rest = Vec::new();
        let ended = tunnel.read_to_end(&mut rest).await;
        assert!(ended.is_err() || rest.is_empty());
        let _ = tunnel.shutdown().await;
        client.resume(&id).await;
        // The guest's side ends as soon as the guest continues, before the client sends anything.
        let ends = eventually("the guest's side has ended", || async {
            let ends = client.sh(&id, "cat /tmp/ends").await["stdout"].as_str().unwrap().to_owned();
            (ends.lines().count() == round).then_some(ends)
        })
        .await;
        assert!(ends.lines().all(|end| end.starts_with("Connection")), "{ends}");
        let mut again = client.socket(&format!("/v1/capsules/{id}/processes/goes-on/stream")).await;
        assert_eq!(again.next().await.unwrap()["type"], "start");
        client.out(&id, "pkill -USR1 -f 'echo [b]egun'").await;
        again.until("stdout", "sent").await;
        let path = format!("/v1/capsules/{id}/processes/goes-on");
        client.delete(&path).await.expect(204);
    }
    platform.finish();
}

#[tokio::test]
async fn paused_capsule_has_no_process_and_resumes_on_authorized_request() {
    let platform = Platform::start(Driver::Guests, &[]).await;
    let client = platform.client();
    let body =
        json!({ "memory_mib": 256, "disk_mib": 256, "idle_timeout": 1, "auto_resume": true });
    let id = client.create(&body).await;
    start(&client, &id, "cd /tmp && echo inside > index && exec python3 -m http.server 8000").await;
    eventually("the server serves", || async {
        let asked = client.to_port(Method::GET, &id, 8000, "/index").send().await.unwrap();
        (asked.status() == 200).then_some(())
    })
    .await;
    for _ in 0..2 {
        eventually("it is paused for being idle", || async {
            (client.status(&id).await == "paused").then_some(())
        })
        .await;
        let left = platform.leftovers();
        assert!(left.namespaces.is_empty() && left.cgroups.is_empty(), "{left:?}");
        assert!(processes_of(&id).is_empty());
        let stranger = platform.client_with("");
        let refused = stranger.to_port(Method::GET, &id, 8000, "/index").send().await.unwrap();
        assert_eq!(refused.status(), 401);
        assert_eq!(client.status(&id).await, "paused", "it woke for a stranger");
        assert_eq!(ask(&client, &id, 8000, "/index").await, "inside\n");
    }
    platform.finish();
}

/// A pause writes only pages that are in use. Pages of zeros and unchanged pages cost nothing.
#[tokio::test]
async fn pause_writes_only_changed_pages() {
    let (platform, client, _) = capsule().await;
    // The first capsule of this size may have booted, so all of its layers would be its own.
    let id = client.create(&small()).await;
    client.pause(&id).await;
    let kept = platform.dir().join(format!("capsules/{id}/kept"));
    let written = |number: u32| -> u64 {
        let files = std::fs::read_dir(kept.join(number.to_string())).unwrap().flatten();
        let layers = files.filter(|f| f.file_name().to_string_lossy().ends_with(".pages"));
        // A layer with several links existed before this pause.
        let own = layers.filter(|f| {
            use std::os::unix::fs::MetadataExt;
            f.metadata().unwrap().nlink() == 1
        });
        own.map(|f| f.metadata().unwrap().len()).sum()
    };
    assert!(written(1) < 16 << 20, "{} bytes", written(1));
    client.resume(&id).await;
    client.out(&id, "head -c 10000000 /dev/urandom > /dev/shm/x").await;
    client.pause(&id).await;
    let second = written(2);
    assert!(second > 10_000_000 && second < 25_000_000, "{second} bytes");
    client.resume(&id).await;
    assert_eq!(client.out(&id, "stat -c %s /dev/shm/x").await, "10000000\n");
    platform.finish();
}
