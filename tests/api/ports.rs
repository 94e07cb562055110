//! Ports in the API: what is shown and set, what is refused, and raw connections.

use crate::capsule;
use reqwest::Method;
use serde_json::json;
use tests::{Upstream, Wire};

#[tokio::test]
async fn what_cannot_be_a_port_or_may_not_be_public_is_refused_and_changes_nothing() {
    let (platform, client, id) = capsule().await;
    let put = |port: &str, body: &str| {
        let path = format!("/v1/capsules/{id}/ports/{port}");
        client.send(client.request(Method::PUT, &path).body(body.to_owned()))
    };
    for port in ["0", "65536", "-1", "x", "80.0", "%20"] {
        put(port, r#"{"public":true}"#).await.refuses(404, "not_found", "port");
    }
    put("49983", r#"{"public":true}"#).await.refuses(400, "invalid_request", "envd's own");
    put("80", "{}").await.refuses(400, "invalid_request", "public");
    put("80", r#"{"public":1}"#).await.refuses(400, "invalid_request", "public");
    put("80", r#"{"public":true,"x":1}"#).await.refuses(400, "invalid_request", "x");
    let link = format!("/v1/capsules/{id}/ports/80/links");
    for (seconds, wrong) in [(json!(0), "expires_sec"), (json!(99_999_999), "expires_sec")] {
        let body = json!({ "expires_sec": seconds });
        client.post(&link, &body).await.refuses(400, "invalid_request", wrong);
    }
    let envd = format!("/v1/capsules/{id}/ports/49983/links");
    client.post(&envd, &json!({})).await.refuses(400, "invalid_request", "envd's own");
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
async fn a_raw_connection_carries_any_protocol_and_each_side_ends_by_itself() {
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
