//! Memory that the sandbox proxy takes for idle WebSockets and for cached routes.

use crate::stats::Row;
use std::process::Command;
use tests::{Client, Platform, Replica, Upstream, Wire};

const SOCKETS: usize = 5000;
const ROUTES: usize = 10_000;

/// Opens WebSockets through the proxy and measures their memory while they are idle. Each hop is a
/// process of its own, with two descriptors for each WebSocket.
pub(super) async fn sockets(platform: &Platform) -> Row {
    let dir = tempfile::Builder::new().prefix("wrenn-sockets-").tempdir().unwrap();
    let database = platform.separate_database().await;
    let control_plane = Replica::over(platform, &database);
    let client = control_plane.client();
    let (mut agent, _) = platform.agent(&client, dir.path(), "127.0.0.1:0").await;
    let id = client.create(&serde_json::json!({})).await;
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
    Row::value("memory of an idle WebSocket, of 5,000, a hop", &each, "≤ 16 KiB")
}

fn status_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Measures the memory of cached routes. The control plane was just started, so it has no spare
/// memory. The capsules are paused, so each is looked up once and cached.
pub(super) async fn routes(platform: &Platform, client: &Client) -> Row {
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
    Row::value("memory of 10,000 capsules' routes", &taken, "≤ 5 MiB")
}

fn psql(platform: &Platform, sql: &str) -> String {
    let out = Command::new("psql").args(["-XqAt", "-c", sql]).arg(platform.database_url()).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}
