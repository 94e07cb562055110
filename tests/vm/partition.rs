//! Three hosts in network namespaces of their own. They are cut off, put on a lossy link, and
//! restarted. Their capsules are only envd, since the test is about the network between hosts and
//! control plane.

use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tests::{Client, Driver, Platform, binary, eventually, told};

const BRIDGE: &str = "wt-hosts";

fn ip(command: &str) {
    let out = Command::new("ip").args(command.split(' ')).output().unwrap();
    assert!(out.status.success(), "ip {command}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Network of the hosts: a bridge, and a namespace for each host on it.
struct Lan;

impl Lan {
    fn make() -> Self {
        let this = Self;
        this.remove();
        ip(&format!("link add {BRIDGE} type bridge"));
        ip(&format!("addr add 10.197.0.1/24 dev {BRIDGE}"));
        ip(&format!("link set {BRIDGE} up"));
        for n in 1..=3 {
            let ns = format!("wt-host{n}");
            ip(&format!("netns add {ns}"));
            ip(&format!("link add wt-h{n} type veth peer name eth0 netns {ns}"));
            ip(&format!("link set wt-h{n} master {BRIDGE} up"));
            ip(&format!("-n {ns} link set lo up"));
            ip(&format!("-n {ns} addr add 10.197.0.1{n}/24 dev eth0"));
            ip(&format!("-n {ns} link set eth0 up"));
        }
        this
    }

    fn remove(&self) {
        for n in 1..=3 {
            let ns = format!("wt-host{n}");
            // A capsule that still runs keeps its namespace alive.
            let pids = Command::new("ip").args(["netns", "pids", &ns]).output().unwrap();
            for pid in String::from_utf8_lossy(&pids.stdout).lines() {
                tests::signal(pid.trim().parse().unwrap(), Signal::KILL);
            }
            let _ = Command::new("ip").args(["netns", "del", &ns]).output();
            let _ = Command::new("ip").args(["link", "del", &format!("wt-h{n}")]).output();
        }
        let _ = Command::new("ip").args(["link", "del", BRIDGE]).output();
    }

    fn cut(n: usize, cut: bool) {
        ip(&format!("link set wt-h{n} {}", if cut { "down" } else { "up" }));
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.remove();
    }
}

struct Host {
    n: usize,
    dir: TempDir,
    process: Child,
    id: String,
}

impl Host {
    async fn start(n: usize, platform: &Platform, client: &Client) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let new = json!({ "name": format!("host{n}"), "tags": [format!("host{n}")] });
        let invited = client.post("/v1/hosts", &new).await.expect(201);
        let token = invited["registration_token"].as_str().unwrap();
        let process = Self::run(n, platform, dir.path(), Some(token));
        let id = invited["host"]["id"].as_str().unwrap().to_owned();
        Self { n, dir, process, id }
    }

    fn run(n: usize, platform: &Platform, dir: &std::path::Path, token: Option<&str>) -> Child {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("wt-host{n}")]).arg(binary("wrenn"));
        command.args(["agent", "--agent-listen", &format!("10.197.0.1{n}:8001")]);
        command.env("WRENN_DIR", dir).env("WRENN_CP_URL", platform.url());
        command.env("WRENN_ALLOW_PLAINTEXT", "1");
        command.env("WRENN_DRIVER", format!("fake:{}", binary("envd").display()));
        if let Some(token) = token {
            command.env("WRENN_REGISTER_TOKEN", token);
        }
        let log = dir.join("agent.log");
        command.stdin(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        let mut process = command.spawn().unwrap();
        told(&log, "the host agent serves", &mut process);
        process
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn again(&mut self, platform: &Platform) {
        self.process = Self::run(self.n, platform, self.dir.path(), None);
    }

    async fn create(&self, client: &Client) -> String {
        let tag = format!("host{}", self.n);
        client.create(&json!({ "memory_mib": 128, "host_tags": [tag] })).await
    }

    async fn status(&self, client: &Client) -> String {
        let host = client.get(&format!("/v1/hosts/{}", self.id)).await.expect(200);
        host["status"].as_str().unwrap().to_owned()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until a command succeeds, since a connection may have been lost a moment ago.
async fn works(client: &Client, id: &str) {
    let (exec, body) = (format!("/v1/capsules/{id}/exec"), json!({ "cmd": "true" }));
    eventually("it answers", || async {
        (client.post(&exec, &body).await.status.as_u16() == 200).then_some(())
    })
    .await;
}

/// Runs commands over a link that loses a fifth of all packets, in bursts. Commands take longer.
/// When a connection cannot be opened in time, the answer says so.
async fn over_a_lossy_link(client: &Client, id: &str) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let lossy = std::thread::spawn(move || {
        while !stopping.load(Ordering::Relaxed) {
            Lan::cut(2, true);
            std::thread::sleep(Duration::from_millis(50));
            Lan::cut(2, false);
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let (exec, body) = (format!("/v1/capsules/{id}/exec"), json!({ "cmd": "true" }));
    let mut done = 0;
    for _ in 0..30 {
        let answer = client.post(&exec, &body).await;
        assert!([200, 503].contains(&answer.status.as_u16()), "{}", answer.body);
        done += u32::from(answer.status.as_u16() == 200);
    }
    assert!(done > 20, "{done} of 30");
    stop.store(true, Ordering::Relaxed);
    lossy.join().unwrap();
    works(client, id).await;
}

/// Cuts a host off in the middle of a command. The caller gets an error, and the other hosts work
/// on. After the cut, the host's capsule runs as before.
async fn cut_off(platform: &Platform, client: &Client, first: &Host, capsules: &[String]) {
    let (waiting, id) = (client.clone(), capsules[0].clone());
    let waited = tokio::spawn(async move {
        let exec = json!({ "cmd": "sleep", "args": ["600"], "timeout": 600 });
        waiting.post(&format!("/v1/capsules/{id}/exec"), &exec).await
    });
    eventually("it is under way", || async {
        let list = client.get(&format!("/v1/capsules/{}/processes", capsules[0])).await.expect(200);
        (!list["processes"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    Lan::cut(1, true);
    for id in &capsules[1..] {
        works(client, id).await;
    }
    let other = client.create(&json!({ "memory_mib": 128 })).await;
    works(client, &other).await;
    client.delete(&format!("/v1/capsules/{other}")).await.expect(204);
    let answer = waited.await.unwrap();
    assert_eq!(answer.status.as_u16(), 503, "{}", answer.body);
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let silent =
        "UPDATE hosts SET last_heartbeat_at = now() - interval '91 s' WHERE name = 'host1'";
    sqlx::query(silent).execute(&mut db).await.unwrap();
    eventually("it is missing", || async {
        (client.status(&capsules[0]).await == "missing").then_some(())
    })
    .await;
    assert_eq!(first.status(client).await, "unreachable");
    Lan::cut(1, false);
    // SIGHUP makes the host renew its credentials, so it reports at once.
    tests::signal(i32::try_from(first.process.id()).unwrap(), Signal::HUP);
    eventually("it runs", || async {
        (client.status(&capsules[0]).await == "running").then_some(())
    })
    .await;
    works(client, &capsules[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_packet_loss_and_restart_of_hosts_lose_nothing() {
    let _lan = Lan::make();
    let listen = [("WRENN_CP_LISTEN_ADDR", "10.197.0.1:0"), ("WRENN_ALLOW_PLAINTEXT", "1")];
    let mut platform = Platform::start(Driver::Fake, &listen).await;
    let client = platform.client();
    let mut hosts = Vec::new();
    for n in 1..=3 {
        hosts.push(Host::start(n, &platform, &client).await);
    }
    let mut capsules = Vec::new();
    for host in &hosts {
        capsules.push(host.create(&client).await);
    }
    for id in &capsules {
        works(&client, id).await;
    }
    over_a_lossy_link(&client, &capsules[1]).await;
    cut_off(&platform, &client, &hosts[0], &capsules).await;
    // Each part in turn is killed, and comes back.
    for host in &mut hosts {
        host.kill();
        host.again(&platform);
    }
    platform.kill();
    for id in &capsules {
        assert!(!tests::processes_of(id).is_empty(), "{id} has ended");
    }
    platform.set_var("WRENN_CP_LISTEN_ADDR", Some(&platform.url().replace("http://", "")));
    platform.resume().await;
    let client = platform.client();
    for id in &capsules {
        works(&client, id).await;
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    drop(hosts);
    platform.finish();
}
