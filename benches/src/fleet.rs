//! A thousand hosts and ten thousand capsules through one control plane.
//!
//! The hosts run in this process with the agent's own code and the null driver, which has no
//! machines. Each has its own identity, certificate, listener, heartbeats and records, in memory
//! instead of on a disk. The control plane and its PostgreSQL are processes of their own. All share
//! the machine's processors.

use crate::stats::Row;
use daemon::Tasks;
use futures::StreamExt;
use host_agent::membership::{Membership, Registration};
use host_agent::{Config, DriverChoice};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};
use tests::{Client, Driver, Platform, Replica};

const HOSTS: usize = 1000;
const CAPSULES: usize = 10_000;
/// Creates under way at once.
const AT_ONCE: usize = 16;
/// Hosts that enrol at once.
const ENROLLING: usize = 8;

/// Serves as every capsule's guest: answers each request with 204. Returns its port.
fn guest() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    #[expect(clippy::disallowed_methods, reason = "it ends with the process")]
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    port
}

/// Answers one request and closes the connection. Otherwise a thousand hosts would keep ten
/// thousand connections open.
async fn answer(mut stream: tokio::net::TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        // A whole request is a head and as many bytes as its `content-length` says.
        if let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |l| l.trim().parse().unwrap());
            if read.len() >= end + 4 + length {
                let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer).await;
                return;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(bytes) => read.extend(&buffer[..bytes]),
        }
    }
}

async fn enrol(client: &Client, dir: &Path, guest: u16, tasks: &Tasks) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config {
        ready_networks: 0,
        dir: dir.to_owned(),
        network: String::new(),
        dns: Vec::new(),
        driver: DriverChoice::Null { port: guest },
        firecracker: host_agent::FirecrackerChoice::default(),
        memory_mib: 4096,
        ready_memory_percent: 0,
        vcpus: 64,
        disk_mib: 1 << 20,
        registries: host_agent::Registries::default(),
        store: None,
        log_limits: host_agent::LogLimits::default(),
        connections: 64,
    };
    let agent = host_agent::start(config, tasks).await.unwrap();
    let invited = client.post("/v1/hosts", &json!({})).await.expect(201);
    let asked = Registration {
        token: invited["registration_token"].as_str().unwrap().to_owned(),
        address: listener.local_addr().unwrap().to_string(),
        control_plane: client.base().to_owned(),
    };
    let member = Membership::register(dir, &asked, &agent.about(), &listener).await.unwrap();
    let about = agent.about();
    hop::serve_tls(listener, member.tls().unwrap(), agent, hop::Limits::default(), tasks);
    member.spawn(about, None, tasks);
}

/// Returns the processor time of processes, in seconds.
pub(crate) fn processor(pids: &[i32]) -> f64 {
    let ticks = |pid: &i32| -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<f64> =
            rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
        fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0)
    };
    pids.iter().map(ticks).sum::<f64>() / 100.0
}

/// Returns a process and its children.
pub(crate) fn children(of: i32) -> Vec<i32> {
    let mut text = String::new();
    let path = format!("/proc/{of}/task/{of}/children");
    let _ = std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    std::iter::once(of).chain(text.split_whitespace().map(|pid| pid.parse().unwrap())).collect()
}

fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn figure(name: &str, value: String, goal: &str) -> Row {
    Row::value(name, &value, goal)
}

pub(crate) async fn measure() -> Vec<Row> {
    daemon::raise_open_files();
    let _logs = daemon::log_to_stderr("warn", false, None).unwrap();
    let platform = Platform::start(Driver::Fake, &[]).await;
    let database = platform.separate_database().await;
    let control_plane = Replica::over(&platform, &database);
    let client = control_plane.client();
    let (tasks, guest) = (Tasks::default(), guest());
    // The platform's limits are off, since this benchmark does not measure them.
    let platforms = format!("/v1/admin/teams/team-{}/limits", "0".repeat(25));
    let none = json!({ "capsules": 0, "vcpus": 0, "memory_mib": 0, "creates_per_sec": 0,
        "requests_per_sec": 0 });
    client.put(&platforms, &none).await.expect(200);
    let dirs = tempfile::Builder::new().prefix("wrenn-fleet-").tempdir_in("/dev/shm").unwrap();
    let began = Instant::now();
    let enrolling = (0..HOSTS).map(|n| {
        let (client, dir, tasks) = (&client, dirs.path().join(n.to_string()), &tasks);
        async move { enrol(client, &dir, guest, tasks).await }
    });
    futures::stream::iter(enrolling).buffer_unordered(ENROLLING).collect::<Vec<()>>().await;
    let enrolled = HOSTS as f64 / began.elapsed().as_secs_f64();
    // By then the control plane follows each host and has had a heartbeat from it.
    tokio::time::sleep(Duration::from_secs(35)).await;
    let hosts = client.get("/v1/hosts").await.expect(200);
    let online = |h: &&serde_json::Value| h["status"] == "online";
    let count = hosts["items"].as_array().unwrap().iter().filter(online).count();
    assert_eq!(count, HOSTS, "some are not heard of");
    let idle_mib = resident_mib(control_plane.process.id());
    let postgres = children(platform.postgres_pid());
    let us = i32::try_from(control_plane.process.id()).unwrap();
    let (cp, pg, hosts) = (processor(&[us]), processor(&postgres), processor(&[pid()]));
    let began = Instant::now();
    let body = json!({ "memory_mib": 128, "disk_mib": 64 });
    let creating = (0..CAPSULES).map(|_| async {
        let began = Instant::now();
        client.create(&body).await;
        began.elapsed()
    });
    let took: Vec<Duration> =
        futures::stream::iter(creating).buffer_unordered(AT_ONCE).collect().await;
    let elapsed = began.elapsed().as_secs_f64();
    let share =
        |before: f64, after: f64| format!("{:.0} % of a core", (after - before) / elapsed * 100.0);
    let postgres_now = processor(&children(platform.postgres_pid()));
    let rows = vec![
        figure("1,000 hosts enrol, each second", format!("{enrolled:.0}/s"), ""),
        figure("10,000 creates on them", format!("{:.0}/s", CAPSULES as f64 / elapsed), "≥ 1500/s"),
        Row::alone("one create of them", &took, ""),
        figure("processor meanwhile: control plane", share(cp, processor(&[us])), ""),
        figure("processor meanwhile: PostgreSQL", share(pg, postgres_now), ""),
        figure("processor meanwhile: all hosts", share(hosts, processor(&[pid()])), ""),
        figure("memory of the control plane, 1,000 hosts", format!("{idle_mib} MiB"), "≤ 200 MiB"),
        figure(
            "the same with 10,000 capsules",
            format!("{} MiB", resident_mib(control_plane.process.id())),
            "≤ 200 MiB",
        ),
        decision(),
    ];
    let _ = std::io::stdout().flush();
    drop(control_plane);
    tasks.finish().await;
    platform.finish();
    rows
}

fn pid() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

/// Measures the scheduler's time to decide among ten thousand hosts.
fn decision() -> Row {
    use control_plane::scheduler::{Holders, HostView, PlacementRequest, ResourceAmounts, pick};
    let host = |n: u128| HostView {
        id: types::HostId(uuid::Uuid::from_u128(n)),
        open: true,
        team: None,
        tags: vec!["zone-a".to_owned(), "ssd".to_owned()],
        isolation: types::Isolation::Jailed,
        templates: vec!["base".to_owned(), "python".to_owned()],
        store: true,
        room: ResourceAmounts { vcpus: 512, memory_mib: 262_144, disk_mib: 8 << 20 },
        used: ResourceAmounts {
            vcpus: (n % 300) as u64,
            memory_mib: (n * 7919 % 200_000) as u64,
            disk_mib: 0,
        },
    };
    let hosts: Vec<HostView> = (1..=10_000).map(host).collect();
    let tags = ["ssd".to_owned()];
    let request = PlacementRequest {
        team: types::TeamId::new(),
        size: ResourceAmounts { vcpus: 1, memory_mib: 512, disk_mib: 5120 },
        origin: Holders::Template("python"),
        tags: &tags,
        isolation: types::Isolation::Kvm,
        excluded: &[],
    };
    let took: Vec<Duration> = (0..101)
        .map(|salt| {
            let began = Instant::now();
            pick(&hosts, &request, salt).unwrap();
            began.elapsed()
        })
        .collect();
    Row::alone("a decision among 10,000 hosts", &took, "≤ 1 ms")
}
