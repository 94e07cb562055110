//! The sandbox proxy's two hops, against two hops of nginx and of Caddy. All share an nginx as
//! their upstream. Equal clients (wrk, curl) run against each in turns.

use crate::rival::{self, Rival};
use crate::stats::Row;
use serde_json::json;
use std::process::Command;
use std::time::Duration;
use tests::{Client, Driver, Platform, Replica, Upstream, Wire};

const ROUNDS: usize = 9;
/// Time between two runs of a client.
const PAUSE: Duration = Duration::from_millis(300);
/// Bytes of the large body.
const LARGE: usize = 1_000_000_000;
const SOCKETS: usize = 5000;
const ROUTES: usize = 10_000;

/// A base URL and the headers that requests to it carry.
struct Way {
    url: String,
    headers: Vec<String>,
}

impl Way {
    /// Runs a client against a path and returns its output.
    fn run(&self, program: &str, args: &[&str], path: &str) -> String {
        let mut command = Command::new(program);
        command.args(args);
        for header in &self.headers {
            command.args(["-H", header]);
        }
        let out = command.arg(format!("{}{path}", self.url)).output().unwrap();
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Measures requests per second with 64 connections and answers of 1 KiB.
    fn rate(&self) -> f64 {
        let out = self.run("wrk", &["-t1", "-c64", "-d3"], "/1k");
        assert!(!out.contains("Non-2xx"), "{out}");
        let line = out.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
        line.unwrap().trim().parse().unwrap()
    }

    /// Measures the median time of a request when one is under way at a time.
    fn latency(&self) -> Duration {
        let out = self.run("wrk", &["-t1", "-c1", "-d2", "--latency"], "/1k");
        let text = out.lines().find_map(|line| line.trim().strip_prefix("50%")).unwrap().trim();
        let (number, unit) = text.split_at(text.find(char::is_alphabetic).unwrap());
        let scale = if unit == "ms" { 1e-3 } else { 1e-6 };
        Duration::from_secs_f64(number.parse::<f64>().unwrap() * scale)
    }

    /// Measures the time of a large body.
    fn large(&self) -> Duration {
        let out = self.run("curl", &["-sSf", "-o", "/dev/null", "-w", "%{time_total}"], "/large");
        Duration::from_secs_f64(out.parse().unwrap())
    }
}

pub(crate) async fn measure() -> Vec<Row> {
    daemon::raise_open_files();
    let rival = Rival::start(LARGE);
    let platform = Platform::start(Driver::Fake, &[("WRENN_CAPSULE_CONNECTIONS", "20000")]).await;
    let client = platform.client();
    let id = client.create(&json!({})).await;
    let plain = |port: u16| Way { url: format!("http://127.0.0.1:{port}"), headers: Vec::new() };
    let ours = Way {
        url: platform.url().to_owned(),
        headers: vec![
            format!("Host: {}-{id}.localhost", rival::UPSTREAM),
            format!("X-API-Key: {}", client.key()),
        ],
    };
    let (direct, nginx, caddy) = (plain(rival::UPSTREAM), plain(rival::NGINX), plain(rival::CADDY));
    let mut rows = rates(&ours, &nginx, &caddy);
    rows.push(latencies(&ours, &direct));
    rows.push(large(&ours, &nginx));
    drop(rival);
    rows.push(sockets(&platform).await);
    rows.push(routes(&platform, &client).await);
    platform.finish();
    rows
}

fn middle(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn rates(ours: &Way, nginx: &Way, caddy: &Way) -> Vec<Row> {
    let ways = [ours, nginx, caddy];
    let mut rates = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        // Each proxy comes first, and after each other one, equally often. A proxy's leftover work,
        // such as closing its connections, slows the next one.
        for turn in 0..3 {
            let which = if round % 2 == 0 { (round + turn) % 3 } else { (round + 3 - turn) % 3 };
            std::thread::sleep(PAUSE);
            let rate = ways[which].rate();
            // The first round only warms caches.
            if round > 0 {
                rates[which].push(rate);
            }
        }
    }
    let [a, b, c] = rates.map(middle);
    let row = |what: &str, other: f64, goal: &str| {
        let rate = |rate: f64| format!("{rate:.0}/s");
        Row::new(what, &rate(a), &rate(other), &format!("{:.2}", a / other), goal)
    };
    vec![
        row("requests/s by two hops, 64 connections, 1 KiB ÷ nginx by two", b, "≥ 0.9"),
        row("the same ÷ Caddy by two", c, "≥ 1.5"),
    ]
}

fn latencies(ours: &Way, direct: &Way) -> Row {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(ours.latency());
        b.push(direct.latency());
    }
    Row::less("latency of one request, both hops − none", &a, &b, "≤ 0.4 ms")
}

fn large(ours: &Way, nginx: &Way) -> Row {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(ours.large());
        b.push(nginx.large());
    }
    Row::throughput("one body of 1 GB by two hops ÷ nginx by two", LARGE, &a, &b, "≥ 0.9")
}

/// Opens WebSockets through the proxy and measures their memory while they are idle. Each hop is a
/// process of its own, with two descriptors for each WebSocket.
async fn sockets(platform: &Platform) -> Row {
    let dir = tempfile::tempdir().unwrap();
    let database = platform.separate_database().await;
    let control_plane = Replica::over(platform, &database);
    let client = control_plane.client();
    let (mut agent, _) = platform.agent(&client, dir.path(), "127.0.0.1:0").await;
    let id = client.create(&json!({})).await;
    let hops = [agent.id(), control_plane.process.id()];
    let guest = Upstream::start(|mut wire| {
        wire.head();
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        );
        loop {
            let byte = wire.take(1);
            if byte.is_empty() {
                return;
            }
            wire.send(byte);
        }
    });
    let ask = format!(
        "GET / HTTP/1.1\r\nHost: {}-{id}.localhost\r\nX-API-Key: {}\r\nConnection: upgrade\r\n\
         Upgrade: websocket\r\n\r\n",
        guest.port,
        client.key()
    );
    let open = || {
        let mut wire = Wire::to(&control_plane.url);
        wire.send(&ask);
        assert!(wire.head().unwrap().starts_with("HTTP/1.1 101"));
        wire
    };
    // The first sockets also pay for buffers that later ones share.
    let few: Vec<Wire> = (0..100).map(|_| open()).collect();
    let resident = || hops.map(status_kib).iter().sum::<u64>();
    let before = resident();
    let mut all: Vec<Wire> = (0..SOCKETS).map(|_| open()).collect();
    let taken = resident().saturating_sub(before) as f64;
    for wire in &mut all {
        assert!(wire.send("x") && wire.take(1) == b"x", "a WebSocket was not held");
    }
    drop((few, all));
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    agent.kill().unwrap();
    agent.wait().unwrap();
    let each = format!("{:.1} KiB", taken / SOCKETS as f64 / 2.0);
    Row::new("memory of an idle WebSocket, of 5,000, a hop", &each, "–", &each, "≤ 16 KiB")
}

fn status_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Measures the memory of cached routes. The control plane was just started, so it has no spare
/// memory. The capsules are paused, so each is looked up once and cached.
async fn routes(platform: &Platform, client: &Client) -> Row {
    let control_plane = Replica::start(platform);
    let client = client.at(&control_plane.url);
    let resident = || status_kib(control_plane.process.id());
    let sql = format!(
        "INSERT INTO capsules (id, team_id, template, status, vcpus, memory_mib, disk_mib, \
         envd_token, traffic_token) SELECT gen_random_uuid(), team_id, 'base', 'paused', 1, 128, \
         64, repeat('e', 64), repeat('t', 64) FROM (SELECT team_id FROM api_keys LIMIT 1) t, \
         generate_series(1, {ROUTES})"
    );
    psql(platform, &sql);
    let ids = psql(platform, "SELECT id FROM capsules WHERE status = 'paused'");
    let ids: Vec<types::CapsuleId> =
        ids.lines().map(|id| types::CapsuleId(id.parse::<uuid::Uuid>().unwrap())).collect();
    assert_eq!(ids.len(), ROUTES);
    let ask = async |id: &types::CapsuleId| {
        let answer = client.send(client.to_port(reqwest::Method::GET, &id.to_string(), 80, "/"));
        answer.await.refuses(409, "capsule_paused", "paused");
    };
    let (warm, rest) = ids.split_at(500);
    for id in warm {
        ask(id).await;
    }
    let before = resident();
    for id in rest {
        ask(id).await;
    }
    let taken = resident().saturating_sub(before) as f64 / 1024.0;
    let taken = taken * ROUTES as f64 / rest.len() as f64;
    let taken = format!("{taken:.1} MiB");
    psql(platform, "DELETE FROM capsules WHERE status = 'paused'");
    Row::new("memory of 10,000 capsules' routes", &taken, "–", &taken, "≤ 5 MiB")
}

fn psql(platform: &Platform, sql: &str) -> String {
    let out = Command::new("psql").args(["-XqAt", "-c", sql]).arg(platform.database_url()).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}
