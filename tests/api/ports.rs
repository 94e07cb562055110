//! Ports in the API: details, publication, refusals, and raw connections.

use crate::capsule;
use reqwest::Method;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use tests::{Upstream, Wire, eventually};

#[tokio::test]
async fn invalid_or_forbidden_public_port_is_refused_without_change() {
    let (platform, client, id) = capsule().await;
    let put = |port: &str, body: &str| {
        let path = format!("/v1/capsules/{id}/ports/{port}");
        client.send(client.request(Method::PUT, &path).body(body.to_owned()))
    };
    for port in ["0", "65536", "-1", "x", "80.0", "%20"] {
        put(port, r#"{"public":true}"#).await.refuses(404, "not_found", "port");
    }
    put("49983", r#"{"public":true}"#).await.refuses(400, "invalid_request", "port of envd");
    put("80", "{}").await.refuses(400, "invalid_request", "public");
    put("80", r#"{"public":1}"#).await.refuses(400, "invalid_request", "public");
    put("80", r#"{"public":true,"x":1}"#).await.refuses(400, "invalid_request", "x");
    let link = format!("/v1/capsules/{id}/ports/80/links");
    for (seconds, wrong) in [(json!(0), "expires_in"), (json!(99_999_999), "expires_in")] {
        let body = json!({ "expires_in": seconds });
        client.post(&link, &body).await.refuses(400, "invalid_request", wrong);
    }
    let envd = format!("/v1/capsules/{id}/ports/49983/links");
    client.post(&envd, &json!({})).await.refuses(400, "invalid_request", "port of envd");
    for ports in [json!([0]), json!([49983]), json!([65536]), json!((1..100).collect::<Vec<_>>())] {
        let made = client.post("/v1/capsules", &json!({ "public_ports": ports })).await;
        made.refuses(400, "invalid_request", "public_ports");
    }
    for port in 1..=64 {
        put(&port.to_string(), r#"{"public":true}"#).await.expect(200);
    }
    put("65", r#"{"public":true}"#).await.refuses(400, "invalid_request", "at most 64");
    put("1", r#"{"public":true}"#).await.expect(200);
    let shown = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    assert_eq!(shown["public_ports"].as_array().unwrap().len(), 64);
    put("1", r#"{"public":false}"#).await.expect(200);
    put("65", r#"{"public":true}"#).await.expect(200);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_connection_carries_any_protocol_and_half_closes() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::start(|mut wire| {
        wire.send("220 ready\r\n");
        let heard = wire.rest();
        wire.send(heard);
    });
    let key = client.key();
    let ask = |port: u16, more: &str| {
        let mut wire = Wire::to(platform.url());
        let line = format!("GET /v1/capsules/{id}/ports/{port}/tcp HTTP/1.1");
        wire.send(format!("{line}\r\nHost: x\r\nX-API-Key: {key}\r\n{more}\r\n"));
        wire
    };
    let mut wire = ask(guest.port, "Connection: upgrade\r\nUpgrade: tcp\r\n");
    assert!(wire.head().unwrap().starts_with("HTTP/1.1 101 "));
    assert_eq!(wire.take(11), b"220 ready\r\n");
    wire.send([0, 1, 2, 255]);
    wire.finish();
    assert_eq!(wire.rest(), [0, 1, 2, 255]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (port, more, status) in [
        (free, "Connection: upgrade\r\nUpgrade: tcp\r\n", "502"),
        (guest.port, "", "400"),
        (guest.port, "Connection: upgrade\r\nUpgrade: websocket\r\n", "400"),
        (49983, "Connection: upgrade\r\nUpgrade: tcp\r\n", "400"),
    ] {
        let head = ask(port, more).head().unwrap();
        assert_eq!(head.split(' ').nth(1), Some(status), "{head}");
    }
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn server_on_ipv6_loopback_is_reached_by_url_and_raw_connection() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::start_at("::1", |mut wire| {
        let Some(head) = wire.head() else { return };
        if head.to_lowercase().contains("upgrade: websocket") {
            wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n");
            wire.send("upgrade: websocket\r\n\r\nfirst");
        } else {
            wire.send("HTTP/1.1 200 OK\r\n\r\n");
        }
        // The rest is an echo, up to the client's end.
        let heard = wire.rest();
        wire.send(heard);
    });
    let (key, port) = (client.key(), guest.port);
    let ask = |line: &str, host: &str, more: &str| {
        let mut wire = Wire::to(platform.url());
        wire.send(format!("{line} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {key}\r\n{more}\r\n"));
        wire
    };
    let name = format!("{port}-{id}.localhost");
    let mut socket = ask("GET /", &name, "Connection: upgrade\r\nUpgrade: websocket\r\n");
    assert!(socket.head().unwrap().starts_with("HTTP/1.1 101 "));
    assert_eq!(socket.take(5), b"first");
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    socket.send(&bytes);
    socket.finish();
    assert!(socket.rest() == bytes, "the echo differs");
    let path = format!("GET /v1/capsules/{id}/ports/{port}/tcp");
    let mut raw = ask(&path, "x", "Connection: upgrade\r\nUpgrade: tcp\r\n");
    assert!(raw.head().unwrap().starts_with("HTTP/1.1 101 "));
    raw.send("GET / HTTP/1.0\r\n\r\n");
    raw.send(&bytes);
    raw.finish();
    assert!(raw.head().unwrap().starts_with("HTTP/1.1 200 "));
    assert!(raw.rest() == bytes, "the echo differs");
    platform.finish();
}

#[tokio::test]
async fn server_that_starts_listening_is_reached_by_next_request() {
    let (platform, client, id) = capsule().await;
    let one = Upstream::echo_at("::1");
    let status = |port: u16| {
        let ask = client.to_port(Method::GET, &id, port, "/");
        async { client.send(ask).await.status.as_u16() }
    };
    // Most of these requests use connections that were open before.
    for _ in 0..20 {
        assert_eq!(status(one.port).await, 200);
    }
    let free = std::net::TcpListener::bind("[::1]:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    assert_eq!(status(port).await, 502);
    let late = std::net::TcpListener::bind(("::1", port)).unwrap();
    std::thread::spawn(move || {
        for stream in late.incoming().map_while(Result::ok) {
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            assert!(lines.take_while(|line| !line.is_empty()).count() > 0);
            (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    });
    assert_eq!(status(port).await, 200);
    platform.finish();
}

#[tokio::test]
async fn listening_ports_show_address_program_url_and_public_flag() {
    let (platform, client, id) = capsule().await;
    let (four, six) = (Upstream::echo(), Upstream::echo_at("::1"));
    let public = format!("/v1/capsules/{id}/ports/{}", four.port);
    client.put(&public, &json!({ "public": true })).await.expect(200);
    let listed = client.get(&format!("/v1/capsules/{id}/ports")).await.expect(200);
    let find = |port: u16| {
        let found = listed.as_array().unwrap().iter().find(|listed| listed["port"] == port);
        found.unwrap_or_else(|| panic!("{port} is not in {listed}")).clone()
    };
    for (port, address, public) in [(four.port, "127.0.0.1", true), (six.port, "::1", false)] {
        let shown = find(port);
        assert_eq!((&shown["address"], &shown["public"]), (&json!(address), &json!(public)));
        assert!(!shown["program"].as_str().unwrap().is_empty(), "{shown}");
        let one = client.get(&format!("/v1/capsules/{id}/ports/{port}")).await.expect(200);
        assert_eq!((&shown["url"], &shown["public"]), (&one["url"], &one["public"]));
        assert!(shown["traffic_token"].is_null(), "{shown}");
    }
    let json = platform.run(&["--json", "capsule", "ports", &id]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(json.as_array().unwrap().contains(&find(six.port)), "{json}");
    let table = String::from_utf8(platform.run(&["capsule", "ports", &id]).stdout).unwrap();
    let begin = four.port.to_string();
    let line = table.lines().find(|line| line.trim_start().starts_with(&begin)).unwrap();
    assert!(table.trim_start().starts_with("PORT") && line.contains("127.0.0.1"), "{table}");
    let agent = platform.agent_client().below(&format!("/proxy/{id}/49983"));
    for path in ["/ports", "/ports/connect?port=80"] {
        agent.get(path).await.expect(401);
    }
    platform.finish();
}

#[tokio::test]
async fn public_traffic_shows_all_ports_public_except_the_agents() {
    let (platform, client, _) = capsule().await;
    let id = client.create(&json!({ "public_traffic": true })).await;
    let guest = Upstream::echo();
    let listed = client.get(&format!("/v1/capsules/{id}/ports")).await.expect(200);
    let shown = listed.as_array().unwrap().iter().find(|listed| listed["port"] == guest.port);
    assert_eq!(shown.unwrap()["public"], true, "{listed}");
    for (port, public) in [(80, true), (49983, false), (49999, false)] {
        let shown = client.get(&format!("/v1/capsules/{id}/ports/{port}")).await.expect(200);
        assert_eq!(shown["public"], public, "{shown}");
    }
    platform.finish();
}

#[tokio::test]
async fn listing_ports_does_not_wake_paused_capsule() {
    let (platform, client, _) = capsule().await;
    let id = client.create(&json!({ "auto_resume": true })).await;
    client.pause(&id).await;
    let list = format!("/v1/capsules/{id}/ports");
    client.get(&list).await.refuses(409, "capsule_paused", "paused");
    assert_eq!(client.status(&id).await, "paused");
    client.resume(&id).await;
    eventually("the list is there again", || async {
        (client.get(&list).await.status == 200).then_some(())
    })
    .await;
    client.get("/v1/capsules/cl-none/ports").await.refuses(404, "not_found", "capsule");
    platform.finish();
}
