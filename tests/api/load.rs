//! Crowds, slow clients and greedy clients leave room for everybody else. Requests beyond a share
//! are refused at once.

use crate::capsule;
use reqwest::Method;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tests::{Client, Driver, Platform, Upstream, Wire, eventually};

/// Reads the next answer's status and headers.
fn head(wire: &mut Wire) -> (u16, String) {
    let head = wire.head().unwrap_or_default().to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or(0), head)
}

/// Begins a request and leaves its body unfinished.
fn unfinished(platform: &Platform, line: &str, headers: &str, length: usize) -> Wire {
    let mut wire = Wire::to(platform.url());
    let head = format!("{line} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n1");
    wire.send(head);
    wire
}

/// Waits until one of several requests is refused, since the others hold a whole share. Returns the
/// head of the refusal.
async fn full(held: &mut [Wire], share: &str) -> String {
    let refused = || std::future::ready(held.iter().position(Wire::has_bytes));
    let refused = eventually(share, refused).await;
    let (status, told) = head(&mut held[refused]);
    assert_eq!(status, 429, "{told}");
    told
}

/// Begins a sign-in that never ends, as a client of the proxy on this machine.
fn stranger(platform: &Platform, address: &str) -> Wire {
    let from = format!("X-Forwarded-For: 10.0.0.1, {address}\r\n");
    unfinished(platform, "POST /v1/auth/login", &from, 9)
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_body_gets_408_and_connection_close() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let key = format!("X-API-Key: {}\r\n", client.key());
    let mut slow: Vec<Wire> = (0..40).map(|_| stranger(&platform, "198.51.100.1")).collect();
    // A host without its token is answered at once. So are requests whose body no route needs.
    slow.push(unfinished(&platform, "POST /v1/hosts/host-x/heartbeat", "", 9));
    slow.push(unfinished(&platform, "GET /health", "", 9));
    slow.push(unfinished(&platform, "GET /v1/nonsense", &key, 9));
    client.get("/health").await.expect(200);
    for (n, wire) in slow.iter_mut().enumerate() {
        let (status, head) = head(wire);
        let wanted = [401, 200, 404].get(n.wrapping_sub(40)).copied().unwrap_or(408);
        assert_eq!(status, wanted, "{n}: {head}");
        wire.rest();
        let mut ended = || (!wire.send([0; 1024])).then_some(());
        eventually("the connection ends", || std::future::ready(ended())).await;
    }
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_proxy_have_separate_connection_shares() {
    let vars = [("WRENN_CONNECTIONS_PER_ADDRESS", "8")];
    let platform = Platform::start(Driver::Fake, &vars).await;
    let client = platform.client();
    let mut held: Vec<Wire> =
        (0..9).map(|n| stranger(&platform, &format!("2001:db8::{n}"))).collect();
    full(&mut held, "the share of a network").await;
    let ask = |address: &str| {
        let mut wire = Wire::to(platform.url());
        let from = format!("X-Forwarded-For: {address}\r\n");
        wire.send(format!("GET /health HTTP/1.1\r\nHost: x\r\n{from}\r\n"));
        head(&mut wire)
    };
    let (status, refused) = ask("2001:db8::ffff");
    assert_eq!(status, 429, "{refused}");
    assert!(refused.contains("retry-after: 1\r\n"), "{refused}");
    // Another network is served, and so is a client on this machine.
    assert_eq!(ask("2001:db8:0:1::1").0, 200);
    assert_eq!(ask("203.0.113.9").0, 200);
    client.get("/v1/capsules").await.expect(200);
    drop(held);
    eventually("there is room again", async || (ask("2001:db8::ffff").0 == 200).then_some(()))
        .await;
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_are_limited_per_key_and_team() {
    // A key's share is a quarter of them, and a team's is a half.
    let platform = Platform::start(Driver::Fake, &[("WRENN_CONNECTIONS", "24")]).await;
    let client = platform.client();
    let (other, third) = (key(&platform).await, key(&platform).await);
    let id = client.create(&json!({})).await;
    let mut sockets = Vec::new();
    for client in [&client, &other] {
        for _ in 0..6 {
            let path = format!("/v1/capsules/{id}/exec/stream");
            let mut socket = client.socket(&path).await;
            socket.send(json!({ "type": "start", "cmd": "sleep", "args": ["1000"] })).await;
            assert_eq!(socket.next().await.unwrap()["type"], "start");
            sockets.push(socket);
        }
        // A socket counts as under way for as long as it is open.
        let refused = client.get("/v1/capsules").await;
        refused.refuses(429, "too_many_at_once", "this key");
    }
    third.get("/v1/capsules").await.refuses(429, "too_many_at_once", "this team");
    drop(sockets);
    eventually("there is room again", async || {
        (third.get("/v1/capsules").await.status == 200).then_some(())
    })
    .await;
    platform.finish();
}

/// Makes a further key of the team.
async fn key(platform: &Platform) -> Client {
    let made = platform.client().post("/v1/api-keys", &json!({ "name": "other" })).await;
    platform.client_with(made.expect(201)["key"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn event_streams_are_limited_per_caller() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let other = key(&platform).await;
    let open = async |client: &Client| {
        client.request(Method::GET, "/v1/events/stream").send().await.unwrap()
    };
    let mut streams = Vec::new();
    for _ in 0..50 {
        let stream = open(&client).await;
        assert_eq!(stream.status(), 200);
        streams.push(stream);
    }
    let refused = open(&client).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (429, &"1".parse().unwrap())
    );
    let told: Value = serde_json::from_slice(&refused.bytes().await.unwrap()).unwrap();
    assert_eq!(told["error"]["code"], "too_many_at_once");
    assert_eq!(open(&other).await.status(), 200);
    drop(streams);
    eventually("there is room again", async || (open(&client).await.status() == 200).then_some(()))
        .await;
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_beyond_memory_share_are_refused() {
    const LARGE: usize = 19 << 20;
    let (platform, client, id) = capsule().await;
    let key = format!("X-API-Key: {}\r\n", client.key());
    // Routes that run no command take no body of that size.
    for line in ["POST /v1/capsules", "POST /v1/teams", "POST /v1/auth/login"] {
        let (status, head) = head(&mut unfinished(&platform, line, &key, LARGE));
        assert!(status == 413 || (line.ends_with("teams") && status == 403), "{line}: {head}");
    }
    let exec = format!("POST /v1/capsules/{id}/exec");
    let mut held: Vec<Wire> = (0..12).map(|_| unfinished(&platform, &exec, &key, LARGE)).collect();
    // A body takes room as it comes.
    tokio::time::timeout(Duration::from_secs(60), client.get("/v1/capsules")).await.unwrap();
    assert!(!held.iter().any(Wire::has_bytes));
    let part = vec![b'1'; LARGE - 2];
    held.iter_mut().for_each(|wire| {
        wire.send(&part);
    });
    let told = full(&mut held, "the caller's share of memory").await;
    assert!(told.contains("retry-after: 1\r\n"), "{told}");
    client.get("/v1/capsules").await.expect(200);
    drop(held);
    let exec = format!("/v1/capsules/{id}/exec");
    let body = json!({ "cmd": "wc", "args": ["-c"], "stdin": "x".repeat(LARGE) });
    let done = eventually("there is room again", async || {
        let answer = client.post(&exec, &body).await;
        (answer.status == 200).then_some(answer.body)
    })
    .await;
    assert_eq!(done["stdout"], format!("{LARGE}\n"));
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn envd_port_has_own_connection_limit() {
    let vars = [("WRENN_CAPSULE_CONNECTIONS", "4")];
    let platform = Platform::start(Driver::Fake, &vars).await;
    let client = platform.client();
    let id = client.create(&json!({})).await;
    let guest = Upstream::echo();
    let host = format!("49983-{id}.localhost");
    let headers = format!("X-API-Key: {}\r\n", client.key());
    let upload = || {
        let mut wire = Wire::to(platform.url());
        wire.send(format!(
            "POST /files?path=/tmp/{id} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: 9\r\n\r\n1"
        ));
        wire
    };
    let mut held: Vec<Wire> = (0..5).map(|_| upload()).collect();
    full(&mut held, "envd's places").await;
    let answer = client.send(client.to_port(Method::GET, &id, 49983, "/metrics")).await;
    answer.refuses(429, "too_many_connections", "concurrent requests");
    for path in ["files?path=/etc/hostname", "files/archive?path=/etc/hostname", "ports"] {
        let answer = client.get(&format!("/v1/capsules/{id}/{path}")).await;
        answer.refuses(429, "too_many_connections", "concurrent requests");
    }
    let answer = client.to_port(Method::GET, &id, guest.port, "/").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    drop(held);
    eventually("there is room again", async || {
        let exec = format!("/v1/capsules/{id}/exec");
        let answer = client.post(&exec, &json!({ "cmd": "true" })).await;
        (answer.status == 200).then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_visitors_resume_public_capsule_once() {
    const STRANGERS: usize = 150;
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "auto_resume": true, "public_traffic": true })).await;
    client.pause(&id).await;
    let guest = Upstream::echo();
    let nobody = platform.client_with("");
    let asked = (0..STRANGERS).map(|_| async {
        nobody.to_port(Method::GET, &id, guest.port, "/").send().await.unwrap().status().as_u16()
    });
    let statuses = futures::future::join_all(asked).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    let sql = "SELECT count(*) FROM audit_logs WHERE action = 'capsule.resume'";
    assert_eq!(crate::proxy::psql(&platform, sql), "1");
    // PostgreSQL writes a connection's counts when the connection ends.
    platform.kill();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename IS NOT NULL \
               AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    eventually("its connections end", async || {
        (crate::proxy::psql(&platform, sql) == "0").then_some(())
    })
    .await;
    let sql = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    let transactions: usize = crate::proxy::psql(&platform, sql).parse().unwrap();
    assert!(transactions < STRANGERS * 10, "{transactions}");
    platform.resume().await;
    platform.finish();
}

/// Client that holds a table locked, as a long statement would.
struct Held(Child);

impl Held {
    async fn take(platform: &Platform, table: &str) -> Self {
        let mut command = Command::new("psql");
        command.args(["-XqAt"]).arg(platform.database_url());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let sql = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;\n");
        child.stdin.as_mut().unwrap().write_all(sql.as_bytes()).unwrap();
        let sql = format!(
            "SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass \
             AND mode = 'AccessExclusiveLock' AND granted"
        );
        eventually("the table is held", async || {
            (crate::proxy::psql(platform, &sql) == "1").then_some(())
        })
        .await;
        Self(child)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_reads_do_not_starve_database_pool() {
    let (platform, client, id) = capsule().await;
    let held = Held::take(&platform, "usage_spans").await;
    let reads = (0..40).map(|_| client.get("/v1/usage"));
    let reads = tokio::spawn({
        let reads: Vec<_> = reads.map(|_| client.clone()).collect();
        async move {
            let reads = reads.iter().map(|client| client.get("/v1/usage"));
            futures::future::join_all(reads).await
        }
    });
    let mut answered = 0;
    while !reads.is_finished() {
        client.get("/health").await.expect(200);
        client.get(&format!("/v1/capsules/{id}")).await.expect(200);
        answered += 1;
        // The pause keeps the requests within the team's rate.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(answered > 0);
    for answer in reads.await.unwrap() {
        let code = answer.body["error"]["code"].clone();
        assert!(code == "database_unavailable" || code == "too_many_at_once", "{answer:?}");
    }
    drop(held);
    client.get("/v1/usage").await.expect(200);
    platform.finish();
}
