//! Hostile clients: hosts that name nothing, requests that two servers would read differently,
//! floods.

use super::{answer, head};
use crate::capsule;
use std::sync::{Arc, Mutex};
use tests::{Upstream, Wire};

#[tokio::test(flavor = "multi_thread")]
async fn host_header_routes_to_capsule_api_or_error() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::echo();
    let key = client.key();
    let ask = |host: &str| {
        let mut wire = Wire::to(platform.url());
        wire.send(format!("GET /health HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {key}\r\n\r\n"));
        answer(&mut wire)
    };
    let port = guest.port;
    for host in [
        format!("{port}-{id}.localhost."),
        format!("{port}-{}.LOCALHOST:1", id.to_uppercase()),
        format!("{port}-{id}.any.domain.at.all"),
    ] {
        let (status, _, body) = ask(&host);
        assert!(status == 200 && body.starts_with(b"GET /health"), "{host}: {status}");
    }
    for host in ["localhost", "[::1]:8000", "127.0.0.1", "x", "80-x.localhost", &id, "a..b", "-"] {
        let (status, _, body) = ask(host);
        assert!(status == 200 && body.starts_with(br#"{"status""#), "{host}: {status}");
    }
    for host in [
        format!("0-{id}.localhost"),
        format!("65536-{id}.localhost"),
        format!("080-{id}.localhost"),
        "80-cl-short.localhost".to_owned(),
        format!("80-{id}0.localhost"),
        format!("80-cl-{}.localhost", "z".repeat(25)),
    ] {
        let (status, _, body) = ask(&host);
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(status == 400 && body.contains("host the"), "{host}: {status} {body}");
    }
    // These requests have two host headers, and none.
    let mut wire = Wire::to(platform.url());
    wire.send(format!("GET / HTTP/1.1\r\nHost: {port}-{id}.x\r\nHost: localhost\r\n\r\n"));
    assert_eq!(answer(&mut wire).0, 400);
    let mut wire = Wire::to(platform.url());
    wire.send("GET /health HTTP/1.0\r\n\r\n");
    assert_eq!(answer(&mut wire).0, 200);
    // The platform opens no tunnel to other places.
    for to in [format!("{port}-{id}.x:{port}"), "127.0.0.1:22".to_owned()] {
        let mut wire = Wire::to(platform.url());
        wire.send(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nX-API-Key: {key}\r\n\r\n"));
        let (status, head, _) = answer(&mut wire);
        assert!(matches!(status, 404 | 405), "{head}");
    }
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn smuggled_request_reaches_no_guest() {
    let (platform, client, id) = capsule().await;
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&heads);
    let guest = Upstream::start(move |mut wire| {
        while let Some(head) = wire.head() {
            let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: "));
            let chunked = head.contains("Transfer-Encoding: chunked\r\n");
            assert!(!(chunked && length.is_some()), "two lengths: {head}");
            seen.lock().unwrap().push(head.clone());
            match length {
                Some(length) => drop(wire.take(length.parse().unwrap())),
                None if chunked => {
                    let mut body = wire.take(1);
                    while !body.ends_with(b"0\r\n\r\n") && !body.is_empty() {
                        body.extend(wire.take(1));
                    }
                }
                None => {}
            }
            wire.answer("200 OK", "", b"ok");
        }
    });
    let within = format!("GET /smuggled HTTP/1.1\r\nHost: {}-{id}.x\r\n\r\n", guest.port);
    let post = head(&client, &id, guest.port, "POST /outer");
    for (headers, body) in [
        ("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n", "0\r\n\r\n"),
        ("Content-Length: 0\r\nContent-Length: 44\r\n\r\n", ""),
        ("Content-Length: 0, 44\r\n\r\n", ""),
        ("Content-Length: +5\r\n\r\n", ""),
        ("Content-Length : 5\r\n\r\n", ""),
        ("Content-Length: 0x5\r\n\r\n", ""),
        ("Transfer-Encoding: xchunked\r\n\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, identity\r\n\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding:\u{b}chunked\r\n\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding\u{0}: chunked\r\n\r\n", "0\r\n\r\n"),
        ("X: y\r\n Transfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n"),
        ("X: y\rTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n"),
        ("Content-Length: 3\r\nConnection: content-length\r\n\r\n", "abc"),
        ("Transfer-Encoding: chunked\r\n\r\n", "0;\nx\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n\r\n", "fffffffffffffffff\r\n"),
    ] {
        let mut wire = Wire::to(platform.url());
        wire.send(format!("{post}{headers}{body}{within}"));
        wire.finish();
        wire.rest();
    }
    let heads = heads.lock().unwrap();
    for head in heads.iter() {
        // The bytes after the body are a request of their own without a key, which is refused.
        assert!(head.starts_with("POST /outer HTTP/1.1\r\n"), "{head}");
        assert!(!head.contains("smuggled") && !head.contains('\u{b}'), "{head}");
    }
    drop(heads);
    platform.finish();
}

/// Neither the host nor the guest is at fault, so the answer blames neither.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_chunked_body_gets_400() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::start(|mut wire| {
        wire.head();
        wire.rest();
    });
    let key = client.key();
    let post = |path: &str, headers: &str, body: &str| {
        let mut wire = Wire::to(platform.url());
        wire.send(format!(
            "POST {path} HTTP/1.1\r\n{headers}X-API-Key: {key}\r\n\
             Transfer-Encoding: chunked\r\n\r\n{body}"
        ));
        let (status, _, said) = answer(&mut wire);
        (status, String::from_utf8_lossy(&said).into_owned())
    };
    let to_port = format!("Host: {}-{id}.localhost\r\n", guest.port);
    let by_headers =
        format!("Host: x\r\nE2b-Sandbox-Id: {id}\r\nE2b-Sandbox-Port: {}\r\n", guest.port);
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(30_000));
    for body in ["zz\r\n", "0x5\r\nhello\r\n", "fffffffffffffffff\r\n", "5\nhello", &long] {
        for headers in [&to_port, &by_headers] {
            let (status, said) = post("/", headers, body);
            assert!(status == 400 && said.contains("body is malformed"), "{body}: {status} {said}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f").display().to_string();
    let (api, line) = ("Host: x\r\n", format!("/v1/capsules/{id}/exec"));
    let (status, said) = post(&line, api, "zz\r\n");
    assert!(status == 400 && said.contains("body is malformed"), "{status} {said}");
    let mut wire = Wire::to(platform.url());
    wire.send(format!(
        "PUT /v1/capsules/{id}/files?path={file} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\
         Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"
    ));
    let (status, _, said) = answer(&mut wire);
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(status == 400 && said.contains("body is malformed"), "{status} {said}");
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn header_floods_are_refused_and_do_not_affect_others() {
    let (platform, client, id) = capsule().await;
    let guest = Upstream::echo();
    let ask = |more: &str| {
        let mut wire = Wire::to(platform.url());
        wire.send(head(&client, &id, guest.port, "GET /") + more + "\r\n");
        let head = wire.head().unwrap_or_default();
        head.split(' ').nth(1).map(str::to_owned)
    };
    let many: String = (0..300).map(|i| format!("x-{i}: 1\r\n")).collect();
    assert_eq!(ask(&many).as_deref(), Some("431"));
    let long = format!("x: {}\r\n", "a".repeat(200_000));
    assert_eq!(ask(&long).as_deref(), Some("431"));
    let path = format!("GET /{}", "a".repeat(200_000));
    let mut wire = Wire::to(platform.url());
    wire.send(head(&client, &id, guest.port, &path) + "\r\n");
    let head = wire.head().unwrap_or_default();
    assert!(head.contains(" 431 ") || head.contains(" 414 "), "{head}");
    assert_eq!(ask("").as_deref(), Some("200"));
    // Hundreds of clients never finish their requests.
    let slow: Vec<Wire> = (0..500)
        .map(|_| {
            let mut wire = Wire::to(platform.url());
            wire.send("GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ");
            wire
        })
        .collect();
    assert_eq!(ask("").as_deref(), Some("200"));
    drop(slow);
    platform.finish();
}
